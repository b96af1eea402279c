from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

import billing.models

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    """What we ask of Stripe, visits to Checkout, and moves to a lower plan."""

    dependencies = [
        ("accounts", "0003_guests"),
        ("billing", "0005_seats"),
        ("pricing", "0004_debt"),
    ]

    operations = [
        migrations.AddField(
            model_name="stripesubscription",
            name="trial_ends_at",
            field=models.DateTimeField(blank=True, help_text="Of a trial under way, or over; empty = it never had one.", null=True),
        ),
        migrations.CreateModel(
            name="Checkout",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("public_id", models.CharField(default=billing.models.new_checkout_id, editable=False, max_length=32, unique=True)),
                (
                    "thing",
                    models.CharField(help_text="What is bought, of which one at a time can be: pack:<slug>, or plan.", max_length=80),
                ),
                ("name", models.CharField(help_text="The same, for people.", max_length=160)),
                ("quantity", models.PositiveIntegerField(default=1)),
                ("amount_cents", models.BigIntegerField()),
                ("currency", models.CharField(max_length=3)),
                ("trial_days", models.PositiveIntegerField(default=0)),
                (
                    "state",
                    models.CharField(
                        choices=[("open", "Open"), ("paid", "Paid"), ("failed", "Failed"), ("expired", "Expired")],
                        default="open",
                        max_length=10,
                    ),
                ),
                ("completed", models.BooleanField(default=False)),
                (
                    "session_id",
                    models.CharField(
                        blank=True, help_text="cs_…; empty = Stripe has not answered yet.", max_length=120, null=True, unique=True
                    ),
                ),
                ("url", models.TextField(blank=True, help_text="Where the customer pays, while that can be done.")),
                ("success_url", models.TextField()),
                ("cancel_url", models.TextField()),
                ("key", models.CharField(blank=True, help_text="The caller's Idempotency-Key.", max_length=255, null=True)),
                ("fingerprint", models.UUIDField(blank=True, help_text="What was asked for under the key.", null=True)),
                ("actor", models.CharField(max_length=150)),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("read_number", models.BigIntegerField(default=0)),
                (
                    "account",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="checkouts", to="accounts.account"),
                ),
                (
                    "pack",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.creditpack"
                    ),
                ),
                (
                    "plan_version",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.planversion"
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("completed", False), ("state", "open")), fields=("account", "thing"), name="checkout_open_once"
                    ),
                    models.UniqueConstraint(fields=("account", "key"), name="checkout_key_once"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("pack__isnull", False), ("plan_version", None)),
                            models.Q(("pack", None), ("plan_version__isnull", False), ("thing", "plan")),
                            _connector="OR",
                        ),
                        name="checkout_of_one_thing",
                    ),
                    models.CheckConstraint(condition=models.Q(("amount_cents__gt", 0), ("quantity__gte", 1)), name="checkout_amounts"),
                ],
            },
        ),
        migrations.CreateModel(
            name="PlanChange",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("subscription_id", models.CharField(help_text="sub_…", max_length=64)),
                ("from_price_id", models.CharField(max_length=64)),
                ("to_price_id", models.CharField(max_length=64)),
                ("keeps_until", models.DateTimeField(help_text="The end of the period that is paid for.")),
                ("actor", models.CharField(max_length=150)),
                ("created_at", models.DateTimeField()),
                (
                    "account",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="plan_changes", to="accounts.account"),
                ),
                (
                    "from_version",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.planversion"),
                ),
                ("to_version", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.planversion")),
            ],
            options={
                "ordering": ["-id"],
                "indexes": [models.Index(fields=["subscription_id", "-id"], name="plan_change_newest")],
            },
        ),
        migrations.CreateModel(
            name="StripeRequest",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "key",
                    models.CharField(
                        help_text="Also Stripe's idempotency key, after the first round with its number.", max_length=200, unique=True
                    ),
                ),
                ("kind", models.CharField(help_text="What for; decides what the answer does here.", max_length=40)),
                ("path", models.CharField(max_length=200)),
                ("changes", models.CharField(blank=True, help_text="The address of what it changes; empty = it creates.", max_length=200)),
                ("params", models.JSONField()),
                (
                    "state",
                    models.CharField(
                        choices=[("pending", "no answer yet"), ("done", "Done"), ("refused", "Refused"), ("stuck", "for staff to look at")],
                        default="pending",
                        max_length=10,
                    ),
                ),
                ("round", models.PositiveSmallIntegerField(default=0, help_text="How often it was given another key.")),
                ("attempts", models.PositiveIntegerField(default=0)),
                (
                    "next_attempt_at",
                    models.DateTimeField(help_text="Not sent by itself before; while somebody sends it, when their lease ends."),
                ),
                ("created_at", models.DateTimeField()),
                (
                    "sent_at",
                    models.DateTimeField(
                        blank=True, help_text="First sent under its present key, which Stripe keeps for 24 hours.", null=True
                    ),
                ),
                ("answer_id", models.CharField(blank=True, help_text="The object that Stripe answered with.", max_length=80)),
                ("last_error", models.TextField(blank=True)),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                (
                    "account",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="stripe_requests",
                        to="accounts.account",
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(condition=models.Q(("state", "pending")), fields=["next_attempt_at", "id"], name="stripe_request_due"),
                    models.Index(
                        condition=models.Q(("state__in", ["pending", "stuck"])), fields=["changes", "kind"], name="stripe_request_open"
                    ),
                    models.Index(fields=["-created_at"], name="stripe_request_newest"),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("finished_at", None), ("state", "pending")),
                            models.Q(models.Q(("state", "pending"), _negated=True), ("finished_at__isnull", False)),
                            _connector="OR",
                        ),
                        name="stripe_request_finished",
                    )
                ],
            },
        ),
        migrations.RunSQL([(SQL / "checkout.sql").read_text()]),
    ]
