"""Notes whose usage the fold took away."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_cost_tier"),
        ("analytics", "0002_browsable_entry"),
    ]

    operations = [
        migrations.CreateModel(
            name="UsedLately",
            fields=[
                (
                    "account",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to="accounts.account",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.RunSQL([(SQL / "used_lately.sql").read_text()]),
    ]
