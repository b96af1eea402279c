"""How long a plan lasts that is not paid any more is the product's policy."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("pricing", "0005_member_plan")]

    operations = [
        migrations.AddField(
            model_name="product",
            name="grace_days",
            field=models.PositiveSmallIntegerField(
                default=7, help_text="How long a plan lasts after a payment for it failed; 0 = it ends at once."
            ),
        ),
    ]
