"""Installs the rollups: their tables, live views, and the functions that fold, recount and rebuild them."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_ledger"), ("metering", "0001_initial")]
    operations = [migrations.RunSQL([(SQL / "rollups.sql").read_text()])]
