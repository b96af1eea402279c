import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    """Limits in shadow mode that refuse all the same, on every plan of a product."""

    dependencies = [("pricing", "0008_guards")]

    operations = [
        migrations.AddField(
            model_name="product",
            name="enforced_meters",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=80),
                default=list,
                help_text='Limits in shadow mode that refuse all the same, on every plan, e.g. "messages/day".',
                size=None,
            ),
        ),
        migrations.AlterField(
            model_name="lever",
            name="kind",
            field=models.CharField(
                choices=[
                    ("cost_limits", "all cost limits"),
                    ("cost_tier", "one cost tier"),
                    ("throttling", "throttling of all tiers"),
                    ("request_size", "request size"),
                    ("price_back", "prices back"),
                    ("promote", "a shadow limit to hard"),
                ],
                max_length=20,
            ),
        ),
    ]
