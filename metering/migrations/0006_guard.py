"""Where accounts stand with the runaway guard, what it learned, and what it does in the ledger."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0011_guard_mail"),
        ("metering", "0005_switches"),
    ]

    operations = [
        migrations.CreateModel(
            name="Spend",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "account_id",
                        "kind",
                        "span",
                        "window_start",
                        "subject",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("kind", models.TextField()),
                ("span", models.TextField()),
                ("window_start", models.DateTimeField()),
                ("subject", models.TextField()),
                ("spent", models.BigIntegerField()),
            ],
            options={
                "db_table": "usage_spend",
                "ordering": ["-spent", "subject"],
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="GuardPeak",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "account_id", "day", "window_minutes", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("day", models.DateField()),
                ("window_minutes", models.PositiveSmallIntegerField()),
                ("peak_nanos", models.BigIntegerField()),
                ("account", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.account")),
            ],
        ),
        migrations.CreateModel(
            name="GuardState",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(choices=[("account", "Account"), ("key", "API key"), ("session", "Session")], max_length=10)),
                (
                    "ref",
                    models.CharField(blank=True, help_text="The key's number, the session's name; empty for the account.", max_length=128),
                ),
                (
                    "step",
                    models.PositiveSmallIntegerField(
                        choices=[(0, "none"), (1, "warned"), (2, "cheaper model"), (3, "slowed"), (4, "blocked")], default=0
                    ),
                ),
                ("since", models.DateTimeField(null=True)),
                ("calm_since", models.DateTimeField(null=True)),
                ("peak_nanos", models.BigIntegerField(default=0)),
                ("blocks", models.PositiveSmallIntegerField(default=0)),
                ("blocked_until", models.DateTimeField(null=True)),
                ("excused_until", models.DateTimeField(null=True)),
                ("excused_nanos", models.BigIntegerField(default=0)),
                ("slow_next_at", models.DateTimeField(null=True)),
                ("looked_at", models.DateTimeField()),
                ("window_minutes", models.PositiveSmallIntegerField()),
                ("spent_nanos", models.BigIntegerField()),
                ("usual_nanos", models.BigIntegerField()),
                ("available_nanos", models.BigIntegerField(null=True)),
                (
                    "releases_at",
                    models.DateTimeField(help_text="When the step ends by itself; empty while spending is not low.", null=True),
                ),
                (
                    "account",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="guard_states", to="accounts.account"),
                ),
            ],
            options={
                "ordering": ["-looked_at", "-step"],
                "indexes": [models.Index(condition=models.Q(("step", 0), _negated=True), fields=["account"], name="guard_state_taken")],
                "constraints": [
                    models.UniqueConstraint(fields=("account", "kind", "ref"), name="guard_state_once"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("kind", "account"), ("ref", "")),
                            models.Q(models.Q(("kind", "account"), _negated=True), models.Q(("ref", ""), _negated=True)),
                            _connector="OR",
                        ),
                        name="guard_state_of_somebody",
                    ),
                    models.CheckConstraint(condition=models.Q(("step__lte", 4)), name="guard_state_step"),
                ],
            },
        ),
        migrations.CreateModel(
            name="GuardStep",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(choices=[("account", "Account"), ("key", "API key"), ("session", "Session")], max_length=10)),
                ("ref", models.CharField(blank=True, max_length=128)),
                (
                    "before",
                    models.PositiveSmallIntegerField(
                        choices=[(0, "none"), (1, "warned"), (2, "cheaper model"), (3, "slowed"), (4, "blocked")]
                    ),
                ),
                (
                    "step",
                    models.PositiveSmallIntegerField(
                        choices=[(0, "none"), (1, "warned"), (2, "cheaper model"), (3, "slowed"), (4, "blocked")]
                    ),
                ),
                ("mode", models.CharField(help_text="The policy's: shadow and soft refuse nothing.", max_length=10)),
                ("at", models.DateTimeField()),
                ("actor", models.CharField(max_length=150)),
                ("reason", models.CharField(max_length=500)),
                (
                    "account",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="guard_steps", to="accounts.account"),
                ),
            ],
            options={
                "ordering": ["-id"],
                "indexes": [models.Index(fields=["account", "-id"], name="guard_step_newest")],
            },
        ),
        migrations.RunSQL([(SQL / "guard.sql").read_text()]),
    ]
