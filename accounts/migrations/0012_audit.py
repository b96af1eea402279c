"""The audit log's particulars, kept for ever; and one wait at a time for the same act."""

from pathlib import Path

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0011_guard_mail"),
        ("admin", "0003_logentry_add_action_flag_choices"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="account",
            options={"ordering": ["id"], "permissions": [("impersonate_account", "Can look at an account as one of its people")]},
        ),
        migrations.AddField(
            model_name="approval",
            name="mark",
            field=models.CharField(blank=True, editable=False, help_text="By which the same asked for twice is known.", max_length=64),
        ),
        migrations.CreateModel(
            name="AuditEvent",
            fields=[
                (
                    "entry",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="audit",
                        serialize=False,
                        to="admin.logentry",
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("added", "Added"),
                            ("changed", "Changed"),
                            ("deleted", "Deleted"),
                            ("money", "money moved"),
                            ("asked", "asked a second person"),
                            ("approved", "Approved"),
                            ("refused", "Refused"),
                            ("exported", "Exported"),
                            ("signed_in", "signed in"),
                            ("looked", "looked as a customer"),
                        ],
                        max_length=10,
                    ),
                ),
                ("reason", models.TextField(blank=True)),
                ("before", models.JSONField(default=dict)),
                ("after", models.JSONField(default=dict)),
                ("request_id", models.CharField(blank=True, max_length=64)),
                (
                    "account",
                    models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.account"),
                ),
                (
                    "impersonator",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "default_permissions": ("view",),
            },
        ),
        migrations.RunSQL([(SQL / "acts.sql").read_text()]),
    ]
