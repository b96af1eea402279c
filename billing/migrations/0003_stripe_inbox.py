import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    """The inbox, and what Stripe last said of customers, payments and subscriptions. ``stripe_read_number`` numbers the reads."""

    dependencies = [
        ("accounts", "0003_guests"),
        ("billing", "0002_ledger"),
        ("pricing", "0003_guests"),
    ]

    operations = [
        migrations.RunSQL("create sequence stripe_read_number", "drop sequence stripe_read_number"),
        migrations.CreateModel(
            name="StripeCustomer",
            fields=[
                ("id", models.CharField(help_text="cus_…", max_length=64, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "account",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="stripe_customer", to="accounts.account"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="StripeEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("event_id", models.CharField(max_length=80, unique=True)),
                ("endpoint", models.CharField(help_text="The path that it was sent to.", max_length=80)),
                ("type", models.CharField(blank=True, max_length=80)),
                ("object_id", models.CharField(blank=True, max_length=80)),
                ("api_version", models.CharField(blank=True, max_length=40)),
                ("livemode", models.BooleanField(null=True)),
                ("created_at", models.DateTimeField(help_text="When Stripe made it.", null=True)),
                ("payload", models.TextField(help_text="The body as it was signed.")),
                ("received_at", models.DateTimeField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("done", "Done"),
                            ("ignored", "Ignored"),
                            ("quarantined", "Quarantined"),
                            ("dead", "Dead"),
                        ],
                        default="pending",
                        max_length=12,
                    ),
                ),
                ("attempts", models.PositiveSmallIntegerField(default=0)),
                (
                    "next_attempt_at",
                    models.DateTimeField(help_text="Not worked before this time; while it is worked, when its lease ends."),
                ),
                ("last_error", models.TextField(blank=True, help_text="Why it was not done, or not yet.")),
                ("done_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "indexes": [
                    models.Index(condition=models.Q(("state", "pending")), fields=["next_attempt_at", "id"], name="stripe_event_due"),
                    models.Index(fields=["-received_at"], name="stripe_event_newest"),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("done_at", None), ("state", "pending")),
                            models.Q(models.Q(("state", "pending"), _negated=True), ("done_at__isnull", False)),
                            _connector="OR",
                        ),
                        name="stripe_event_done",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="StripeSubscription",
            fields=[
                ("id", models.CharField(help_text="sub_…", max_length=64, primary_key=True, serialize=False)),
                ("status", models.CharField(help_text="As Stripe says it.", max_length=24)),
                ("price_id", models.CharField(max_length=64)),
                ("quantity", models.PositiveIntegerField(default=1)),
                ("anchor_at", models.DateTimeField()),
                ("current_period_start", models.DateTimeField()),
                ("current_period_end", models.DateTimeField()),
                ("cancel_at_period_end", models.BooleanField(default=False)),
                ("started_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                ("read_number", models.BigIntegerField()),
                (
                    "account",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="stripe_subscriptions", to="accounts.account"
                    ),
                ),
                (
                    "plan_version",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.planversion"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="subscription",
            name="stripe",
            field=models.ForeignKey(
                blank=True,
                help_text="Who pays for it; empty = nobody.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="billing.stripesubscription",
            ),
        ),
        # Who pays is no secret of ours: tenants read the whole row, as before.
        migrations.RunSQL("grant select (stripe_id) on billing_subscription to authenticated", migrations.RunSQL.noop),
        migrations.CreateModel(
            name="StripePayment",
            fields=[
                ("id", models.CharField(help_text="pi_… or in_…", max_length=64, primary_key=True, serialize=False)),
                ("status", models.CharField(help_text="As Stripe says it.", max_length=32)),
                ("currency", models.CharField(max_length=3)),
                ("paid", models.BigIntegerField()),
                ("refunded", models.BigIntegerField()),
                ("disputed", models.BooleanField(help_text="A dispute is open.")),
                ("created_at", models.DateTimeField()),
                ("read_number", models.BigIntegerField()),
                (
                    "account",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="stripe_payments", to="accounts.account"),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("paid__gte", models.F("refunded")), ("refunded__gte", 0)), name="stripe_payment_amounts"
                    )
                ],
            },
        ),
    ]
