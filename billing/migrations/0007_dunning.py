from django.db import migrations, models

IN_ARREARS = """
update billing_stripesubscription s set past_due_since = s.current_period_start, grace_ends_at = now() + p.grace_days * interval '1 day',
    next_step_at = now() + p.grace_days * interval '1 day'
from accounts_account a join pricing_product p on p.id = a.product_id
where s.status = 'past_due' and a.id = s.account_id
"""


class Migration(migrations.Migration):
    """Since when a subscription is not paid, and when that ends its plan. What is past due already has its grace from now on."""

    dependencies = [
        ("accounts", "0005_cost_tier"),
        ("billing", "0006_checkout"),
        ("pricing", "0006_grace"),
    ]

    operations = [
        migrations.AddField(
            model_name="stripesubscription",
            name="past_due_since",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="stripesubscription",
            name="grace_ends_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="stripesubscription",
            name="next_step_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="subscription",
            name="grace_ends_at",
            field=models.DateTimeField(blank=True, help_text="While it is past due: from then on the default plan counts.", null=True),
        ),
        migrations.RunSQL("grant select (grace_ends_at) on billing_subscription to authenticated", migrations.RunSQL.noop),
        migrations.RunSQL(IN_ARREARS, migrations.RunSQL.noop),
        migrations.AddIndex(
            model_name="stripesubscription",
            index=models.Index(
                condition=models.Q(("next_step_at__isnull", False)), fields=["next_step_at"], name="stripe_subscription_due"
            ),
        ),
        migrations.AddConstraint(
            model_name="stripesubscription",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("grace_ends_at__gte", models.F("past_due_since")),
                        ("grace_ends_at__isnull", False),
                        ("past_due_since__isnull", False),
                        ("status", "past_due"),
                    ),
                    models.Q(
                        models.Q(("status", "past_due"), _negated=True),
                        ("grace_ends_at", None),
                        ("next_step_at", None),
                        ("past_due_since", None),
                    ),
                    _connector="OR",
                ),
                name="stripe_subscription_grace",
            ),
        ),
    ]
