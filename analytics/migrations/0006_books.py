"""Installs the books: where the cash behind credits went, by day."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    dependencies = [("analytics", "0005_alerts"), ("billing", "0012_paid_time")]
    operations = [migrations.RunSQL([(SQL / "books.sql").read_text()])]
