"""Kinds of kill switches, their second person, and what is spooled while usage tracking is off."""

import datetime
import uuid

import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0009_approvals"),
        ("metering", "0004_cost_throttles"),
        ("pricing", "0006_grace"),
    ]

    operations = [
        migrations.CreateModel(
            name="SpooledUsage",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("ref", models.UUIDField(default=uuid.uuid4, help_text="What client apps know work by.", unique=True)),
                (
                    "what",
                    models.CharField(
                        choices=[
                            ("work", "work without a hold"),
                            ("event", "finished work"),
                            ("capture", "capture of a hold"),
                            ("release", "release of a hold"),
                        ],
                        max_length=8,
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "under way"),
                            ("waiting", "waits to be charged"),
                            ("done", "charged"),
                            ("released", "nothing was used"),
                        ],
                        max_length=8,
                    ),
                ),
                ("key_hash", models.UUIDField(null=True)),
                ("fingerprint", models.UUIDField(null=True)),
                ("authorization_id", models.UUIDField(null=True)),
                ("api_key_id", models.BigIntegerField(null=True)),
                ("command", models.JSONField(default=dict)),
                ("quantities", models.JSONField(null=True)),
                ("at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(null=True)),
                ("spooled_at", models.DateTimeField()),
                ("reported_at", models.DateTimeField(null=True)),
                ("done_at", models.DateTimeField(null=True)),
                ("record_id", models.UUIDField(help_text="The usage record that it became.", null=True)),
                ("error", models.TextField(blank=True, help_text="Why it could not be charged yet. It is tried again each minute.")),
            ],
            options={
                "verbose_name_plural": "spooled usage",
                "ordering": ["at", "id"],
            },
        ),
        migrations.AddField(
            model_name="killswitch",
            name="account",
            field=models.ForeignKey(
                blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.account"
            ),
        ),
        migrations.AddField(
            model_name="killswitch",
            name="approval",
            field=models.OneToOneField(
                editable=False, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.approval"
            ),
        ),
        migrations.AddField(
            model_name="killswitch",
            name="cap_nanos",
            field=models.BigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="killswitch",
            name="finished_at",
            field=models.DateTimeField(
                editable=False, help_text="When client apps were told, and what was spooled was charged.", null=True
            ),
        ),
        migrations.AddField(
            model_name="killswitch",
            name="kind",
            field=models.CharField(
                choices=[
                    ("work", "Work stopped"),
                    ("provider", "Provider off"),
                    ("tracking", "Usage tracking off"),
                    ("balance_check", "Balance check off"),
                    ("throttling", "Throttling off"),
                    ("top_ups", "Automatic top-ups off"),
                    ("cost_cap", "Emergency cost cap"),
                ],
                default="work",
                max_length=16,
            ),
        ),
        migrations.AddField(
            model_name="killswitch",
            name="provider",
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AddIndex(
            model_name="killswitch",
            index=models.Index(condition=models.Q(("finished_at", None)), fields=["created_at"], name="kill_switch_unfinished"),
        ),
        migrations.AddConstraint(
            model_name="killswitch",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "ends_at__lte",
                        django.db.models.expressions.CombinedExpression(
                            models.F("created_at"), "+", models.Value(datetime.timedelta(days=7))
                        ),
                    )
                ),
                name="kill_switch_ends_within_a_week",
            ),
        ),
        migrations.AddConstraint(
            model_name="killswitch",
            constraint=models.CheckConstraint(
                condition=models.Q(("product__isnull", False), ("approval__isnull", False), _connector="OR"),
                name="kill_switch_for_all_has_a_second_person",
            ),
        ),
        migrations.AddConstraint(
            model_name="killswitch",
            constraint=models.CheckConstraint(
                condition=models.Q(("account", None), ("product__isnull", False), _connector="OR"), name="kill_switch_account_of_a_product"
            ),
        ),
        migrations.AddConstraint(
            model_name="killswitch",
            constraint=models.CheckConstraint(
                condition=models.Q(("feature", ""), ("kind", "work"), _connector="OR"), name="kill_switch_feature_of_work"
            ),
        ),
        migrations.AddConstraint(
            model_name="killswitch",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("kind", "provider"), models.Q(("provider", ""), _negated=True)),
                    models.Q(models.Q(("kind", "provider"), _negated=True), ("provider", "")),
                    _connector="OR",
                ),
                name="kill_switch_of_a_provider",
            ),
        ),
        migrations.AddConstraint(
            model_name="killswitch",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("cap_nanos__gte", 0), ("kind", "cost_cap")),
                    models.Q(models.Q(("kind", "cost_cap"), _negated=True), ("cap_nanos", None)),
                    _connector="OR",
                ),
                name="kill_switch_cap",
            ),
        ),
        migrations.AddField(
            model_name="spooledusage",
            name="account",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.account"),
        ),
        migrations.AddIndex(
            model_name="spooledusage",
            index=models.Index(condition=models.Q(("state", "waiting")), fields=["account", "at", "id"], name="spooled_waiting"),
        ),
        migrations.AddConstraint(
            model_name="spooledusage",
            constraint=models.UniqueConstraint(fields=("account", "key_hash"), name="spooled_key_once"),
        ),
        migrations.AddConstraint(
            model_name="spooledusage",
            constraint=models.UniqueConstraint(fields=("account", "authorization_id"), name="spooled_end_once"),
        ),
        migrations.AddConstraint(
            model_name="spooledusage",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("authorization_id", None),
                        ("fingerprint__isnull", False),
                        ("key_hash__isnull", False),
                        ("what__in", ["work", "event"]),
                    ),
                    models.Q(
                        ("authorization_id__isnull", False), ("fingerprint", None), ("key_hash", None), ("what__in", ["capture", "release"])
                    ),
                    _connector="OR",
                ),
                name="spooled_is_something",
            ),
        ),
        migrations.AddConstraint(
            model_name="spooledusage",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("reported_at", None), ("state", "open")),
                    models.Q(models.Q(("state", "open"), _negated=True), ("reported_at__isnull", False)),
                    _connector="OR",
                ),
                name="spooled_is_reported",
            ),
        ),
        migrations.AddConstraint(
            model_name="spooledusage",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("done_at", None), ("state__in", ["open", "waiting"])),
                    models.Q(("done_at__isnull", False), ("state__in", ["done", "released"])),
                    _connector="OR",
                ),
                name="spooled_is_done",
            ),
        ),
        migrations.RunSQL(
            [
                "alter table metering_killswitch add constraint kill_switch_account_of_its_product"
                " foreign key (account_id, product_id) references accounts_account (id, product_id)"
            ]
        ),
    ]
