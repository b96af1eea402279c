from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0006_team"),
    ]

    operations = [
        migrations.AlterField(
            model_name="mail",
            name="kind",
            field=models.CharField(
                choices=[
                    ("receipt", "Receipt"),
                    ("payment_failed", "Payment Failed"),
                    ("trial_ending", "Trial Ending"),
                    ("limit_warning", "Limit Warning"),
                    ("low_balance", "Low Balance"),
                    ("account_credits", "Account Credits"),
                    ("grace_ending", "Grace Ending"),
                    ("plan_ended", "Plan Ended"),
                    ("top_up_failed", "Top Up Failed"),
                    ("price_change", "Price Change"),
                    ("invitation", "Invitation"),
                ],
                max_length=20,
            ),
        ),
    ]
