"""Installs the ledger: its tables, its verbs, and row-level security. There is no way back: a ledger is never dropped."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parents[1] / "sql"
FILES = ("tables", "seal", "counters", "spend", "ledger", "calendar", "refunds", "settle", "tenancy")


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial"), ("accounts", "0002_guards_and_tenancy"), ("pricing", "0002_guards")]
    operations = [migrations.RunSQL([(SQL / f"{name}.sql").read_text()]) for name in FILES]
