"""What subscriptions stood at and when, what was spent to win customers, and how products stood hour by hour."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0011_guard_mail"),
        ("analytics", "0006_books"),
        ("billing", "0013_discounts"),
        ("pricing", "0009_enforced_meters"),
    ]

    operations = [
        migrations.CreateModel(
            name="HourlyFigures",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                ("cost_nanos", models.BigIntegerField()),
                ("subscriptions_nanos", models.BigIntegerField()),
                ("packs_nanos", models.BigIntegerField()),
                ("active", models.PositiveIntegerField(help_text="Accounts that used something this month.")),
                ("near_limit", models.PositiveIntegerField(help_text="Accounts that have used 90 % or more of a limit on cost.")),
                ("throttled", models.PositiveIntegerField()),
                ("gifts_cost_nanos", models.BigIntegerField()),
                ("product", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.product")),
            ],
            options={
                "verbose_name_plural": "hourly figures",
                "ordering": ["-at", "product"],
                "default_permissions": ("view",),
                "constraints": [models.UniqueConstraint(fields=("product", "at"), name="hourly_figures_once")],
            },
        ),
        migrations.CreateModel(
            name="MarketingSpend",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("month", models.DateField(help_text="The first day of the month.")),
                ("amount_cents", models.BigIntegerField(help_text="US cents.")),
                ("what", models.CharField(help_text="What for, and where the bill is.", max_length=200)),
                ("entered_by", models.CharField(editable=False, max_length=150)),
                ("entered_at", models.DateTimeField(editable=False)),
                ("product", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.product")),
            ],
            options={
                "verbose_name_plural": "marketing spend",
                "ordering": ["-month", "-pk"],
                "default_permissions": ("add", "view"),
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("month__day", 1)), name="marketing_spend_of_a_month"),
                    models.CheckConstraint(
                        condition=models.Q(models.Q(("amount_cents", 0), _negated=True), models.Q(("what", ""), _negated=True)),
                        name="marketing_spend_of_something",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="SubscriptionTerm",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "status",
                    models.CharField(
                        choices=[("active", "Active"), ("trialing", "Trialing"), ("past_due", "past due"), ("canceled", "Canceled")],
                        max_length=10,
                    ),
                ),
                ("seats", models.PositiveIntegerField()),
                ("discount_ppm", models.PositiveIntegerField(help_text="Taken off each invoice, until the discount ends.")),
                ("discount_cents", models.PositiveIntegerField(help_text="Taken off each invoice beside it.")),
                ("discount_ends_at", models.DateTimeField(null=True)),
                ("lapses_at", models.DateTimeField(help_text="When a trial or the grace of an unpaid plan is over.", null=True)),
                ("from_at", models.DateTimeField()),
                ("until_at", models.DateTimeField(null=True)),
                ("account", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.account")),
                (
                    "plan_version",
                    models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.planversion"
                    ),
                ),
                (
                    "subscription",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="billing.subscription"),
                ),
            ],
            options={
                "ordering": ["-from_at", "-pk"],
                "default_permissions": ("view",),
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("until_at", None)), fields=("subscription",), name="subscription_term_open_once"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("until_at", None), ("until_at__gt", models.F("from_at")), _connector="OR"),
                        name="subscription_term_not_empty",
                    ),
                ],
            },
        ),
        migrations.RunSQL([(SQL / "subscription_terms.sql").read_text()]),
    ]
