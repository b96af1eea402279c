from django.db import migrations, models


class Migration(migrations.Migration):
    """Until when an account tries a plan that nobody pays for at Stripe."""

    dependencies = [("billing", "0010_price_moves")]

    operations = [
        migrations.AddField(
            model_name="subscription",
            name="trial_ends_at",
            field=models.DateTimeField(
                blank=True, null=True, help_text="Of a trial that nobody pays for at Stripe: from then on the default plan counts."
            ),
        ),
        migrations.RunSQL("grant select (trial_ends_at) on billing_subscription to authenticated", migrations.RunSQL.noop),
        migrations.AddConstraint(
            model_name="subscription",
            constraint=models.CheckConstraint(
                name="subscription_trial",
                condition=models.Q(trial_ends_at=None)
                | models.Q(stripe=None, status="trialing", trial_ends_at=models.F("current_period_end"))
                | models.Q(stripe=None, status="canceled"),
            ),
        ),
    ]
