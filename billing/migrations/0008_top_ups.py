"""Automatic top-ups with the guard of their cap, and terms that are agreed with one customer."""

import uuid
from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_cost_tier"),
        ("billing", "0007_dunning"),
        ("pricing", "0005_member_plan"),
    ]

    operations = [
        migrations.CreateModel(
            name="AutoTopUp",
            fields=[
                (
                    "account",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="auto_top_up",
                        serialize=False,
                        to="accounts.account",
                    ),
                ),
                ("enabled", models.BooleanField(default=False)),
                ("threshold_nanos", models.BigIntegerField()),
                ("pack", models.CharField(help_text="Slug; the version that is on sale is bought.", max_length=64)),
                ("daily_cap_cents", models.PositiveIntegerField()),
                ("changed_at", models.DateTimeField()),
                ("changed_by", models.CharField(max_length=150)),
                (
                    "look_again_at",
                    models.DateTimeField(help_text="Not looked at before this time; while a worker looks, when its lease ends."),
                ),
            ],
            options={
                "indexes": [models.Index(condition=models.Q(("enabled", True)), fields=["look_again_at"], name="auto_top_up_turn")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("daily_cap_cents__gt", 0), ("threshold_nanos__gte", 0)), name="auto_top_up_amounts"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="StripePrice",
            fields=[
                ("id", models.CharField(help_text="price_…", max_length=64, primary_key=True, serialize=False)),
                (
                    "plan_version",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="stripe_price", to="pricing.planversion"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Agreement",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "collection",
                    models.CharField(
                        choices=[
                            ("card", "by the saved card, through Stripe"),
                            ("invoice", "by an invoice that Stripe sends"),
                            ("none", "outside of Stripe"),
                        ],
                        max_length=10,
                    ),
                ),
                ("days_until_due", models.PositiveSmallIntegerField(default=30, help_text="Of an invoice that is sent.")),
                ("key", models.CharField(max_length=100, unique=True)),
                ("actor", models.CharField(max_length=150)),
                ("reason", models.CharField(max_length=500)),
                ("created_at", models.DateTimeField()),
                ("next_attempt_at", models.DateTimeField(help_text="When Stripe is told; empty = it knows, or need not.", null=True)),
                ("last_error", models.CharField(blank=True, max_length=500)),
                (
                    "account",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="agreements", to="accounts.account"),
                ),
                (
                    "plan_version",
                    models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name="agreement", to="pricing.planversion"),
                ),
            ],
            options={
                "ordering": ["-id"],
                "indexes": [
                    models.Index(condition=models.Q(("next_attempt_at__isnull", False)), fields=["next_attempt_at"], name="agreement_due")
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(models.Q(("reason", ""), _negated=True), models.Q(("actor", ""), _negated=True)),
                        name="agreement_has_a_reason",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="CardDecline",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("fingerprint", models.CharField(max_length=64)),
                ("declines", models.PositiveSmallIntegerField(default=0)),
                ("retry_at", models.DateTimeField(null=True)),
                ("account", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.account")),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("account", "fingerprint"), name="card_decline_once")],
            },
        ),
        migrations.CreateModel(
            name="TopUp",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("copies", models.PositiveSmallIntegerField(default=0)),
                ("amount_cents", models.PositiveIntegerField(default=0)),
                ("credit_nanos", models.BigIntegerField(default=0)),
                ("currency", models.CharField(default="usd", max_length=3)),
                ("day", models.DateField(help_text="The day in UTC whose cap it counts against.")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("paid", "Paid"),
                            ("declined", "Declined"),
                            ("refunded", "Refunded"),
                            ("skipped", "not charged"),
                        ],
                        default="pending",
                        max_length=10,
                    ),
                ),
                ("reason", models.CharField(blank=True, help_text="Customers read it.", max_length=300)),
                ("card", models.CharField(blank=True, help_text="As customers know it.", max_length=40)),
                ("fingerprint", models.CharField(blank=True, max_length=64)),
                ("invoice_id", models.CharField(blank=True, max_length=64)),
                ("created_at", models.DateTimeField()),
                (
                    "charged_at",
                    models.DateTimeField(help_text="When Stripe said that it is paid; its credit may still be on the way.", null=True),
                ),
                ("finished_at", models.DateTimeField(null=True)),
                ("attempts", models.PositiveSmallIntegerField(default=0)),
                (
                    "next_attempt_at",
                    models.DateTimeField(help_text="When a worker goes on with it; empty = there is nothing left to do.", null=True),
                ),
                ("account", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="top_ups", to="accounts.account")),
                (
                    "pack",
                    models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.creditpack"),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["account", "-created_at"], name="top_up_newest"),
                    models.Index(condition=models.Q(("next_attempt_at__isnull", False)), fields=["next_attempt_at"], name="top_up_due"),
                ],
                "constraints": [
                    models.UniqueConstraint(condition=models.Q(("state", "pending")), fields=("account",), name="top_up_one_under_way"),
                    models.UniqueConstraint(
                        condition=models.Q(("state", "skipped")), fields=("account", "day", "reason"), name="top_up_skipped_once_a_day"
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("invoice_id", ""), _negated=True), fields=("invoice_id",), name="top_up_invoice_once"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("amount_cents", 0), ("copies", 0), ("credit_nanos", 0), ("state", "skipped")),
                            models.Q(
                                models.Q(("state", "skipped"), _negated=True),
                                ("amount_cents__gte", 1),
                                ("copies__gte", 1),
                                ("credit_nanos__gte", 1),
                                ("pack__isnull", False),
                            ),
                            _connector="OR",
                        ),
                        name="top_up_buys_something",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("finished_at", None), ("state", "pending")),
                            models.Q(models.Q(("state", "pending"), _negated=True), ("finished_at__isnull", False)),
                            _connector="OR",
                        ),
                        name="top_up_finished",
                    ),
                ],
            },
        ),
        migrations.RunSQL([(Path(__file__).parents[1] / "sql" / "top_ups.sql").read_text()]),
    ]
