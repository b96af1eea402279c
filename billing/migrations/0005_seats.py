"""How many members a subscription pays for. Tenants read the whole row, as before."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_cost_tier"),
        ("billing", "0004_stripe_invoices"),
        ("pricing", "0005_member_plan"),
    ]

    operations = [
        migrations.AddField(
            model_name="subscription",
            name="seats",
            field=models.PositiveIntegerField(default=1, help_text="How many members are paid for, where the plan's price is per member."),
        ),
        migrations.AddConstraint(
            model_name="subscription",
            constraint=models.CheckConstraint(condition=models.Q(("seats__gte", 1)), name="subscription_seats"),
        ),
        migrations.RunSQL("grant select (seats) on billing_subscription to authenticated", migrations.RunSQL.noop),
    ]
