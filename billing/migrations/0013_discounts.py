from django.db import migrations, models


class Migration(migrations.Migration):
    """What a coupon takes off a subscription's invoices."""

    dependencies = [("billing", "0012_paid_time")]

    operations = [
        migrations.AddField(
            model_name="stripesubscription",
            name="discount_ppm",
            field=models.PositiveIntegerField(default=0, help_text="Taken off every invoice, until it ends."),
        ),
        migrations.AddField(
            model_name="stripesubscription",
            name="discount_cents",
            field=models.PositiveIntegerField(default=0, help_text="Taken off every invoice beside it."),
        ),
        migrations.AddField(
            model_name="stripesubscription",
            name="discount_ends_at",
            field=models.DateTimeField(blank=True, help_text="Empty = never, or there is none.", null=True),
        ),
        migrations.AddConstraint(
            model_name="stripesubscription",
            constraint=models.CheckConstraint(condition=models.Q(("discount_ppm__lte", 1_000_000)), name="stripe_subscription_discount"),
        ),
    ]
