"""Installs the guards of ``pricing/sql/price_book.sql``. There is no way back: a guard is never dropped."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parents[1] / "sql" / "price_book.sql"


class Migration(migrations.Migration):
    dependencies = [("pricing", "0001_initial")]
    operations = [migrations.RunSQL(SQL.read_text())]
