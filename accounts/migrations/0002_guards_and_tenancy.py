from pathlib import Path

from django.db import migrations

SQL = Path(__file__).resolve().parent.parent / "sql"


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]

    # Lists, so that each file is sent whole: Django would split a string at its semicolons.
    operations = [
        migrations.RunSQL([(SQL / "guards.sql").read_text()]),
        migrations.RunSQL([(SQL / "tenancy.sql").read_text()]),
    ]
