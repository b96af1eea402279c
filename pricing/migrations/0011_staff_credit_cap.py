from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("pricing", "0010_margins"),
    ]

    operations = [
        migrations.AddField(
            model_name="product",
            name="staff_credit_cap_nanos",
            field=models.BigIntegerField(
                blank=True,
                help_text="The most credit that one of staff alone gives or takes on an account in 24 hours; empty = any amount.",
                null=True,
            ),
        ),
        migrations.AddConstraint(
            model_name="product",
            constraint=models.CheckConstraint(
                condition=models.Q(("staff_credit_cap_nanos", None), ("staff_credit_cap_nanos__gte", 0), _connector="OR"),
                name="product_staff_credit_cap",
            ),
        ),
    ]
