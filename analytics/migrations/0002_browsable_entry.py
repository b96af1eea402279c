"""The ledger entries as admin browses them, and the two models that are only read."""

from pathlib import Path

from django.db import migrations, models

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    initial = True  # of the models
    dependencies = [("analytics", "0001_rollups")]
    operations = [
        migrations.RunSQL([(SQL / "browsable_entry.sql").read_text()]),
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("id", models.TextField(primary_key=True, serialize=False)),
                ("seq", models.BigIntegerField()),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("grant", "Grant"),
                            ("usage", "Usage"),
                            ("expiry", "Expiry"),
                            ("rollover", "Rollover"),
                            ("refund", "Refund"),
                            ("freeze", "Freeze"),
                            ("unfreeze", "Unfreeze"),
                            ("reversal", "Reversal"),
                            ("adjustment", "Adjustment"),
                            ("debt", "Debt"),
                            ("debt_repaid", "debt repaid"),
                        ],
                        max_length=20,
                    ),
                ),
                ("amount", models.BigIntegerField()),
                ("debt_delta", models.BigIntegerField()),
                ("balance_after", models.BigIntegerField()),
                ("debt_after", models.BigIntegerField()),
                ("grant_id", models.BigIntegerField(null=True)),
                ("usage_id", models.UUIDField(null=True)),
                ("operation_id", models.BigIntegerField(null=True)),
                ("effective_at", models.DateTimeField()),
                ("recorded_at", models.DateTimeField()),
            ],
            options={
                "verbose_name": "ledger entry",
                "verbose_name_plural": "ledger entries",
                "db_table": "browsable_entry",
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Margin",
            fields=[
                ("day", models.DateField(primary_key=True, serialize=False)),
            ],
            options={
                "verbose_name_plural": "margin",
                "db_table": "live_rollup_model",
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
    ]
