from django.db import migrations, models


class Migration(migrations.Migration):
    """What margins are computed with while nothing is used, and levers on packs, plans and rate cards."""

    dependencies = [("pricing", "0009_enforced_meters")]

    operations = [
        migrations.AddField(
            model_name="product",
            name="expected_model",
            field=models.CharField(
                blank=True, default="", help_text="provider:model that margins are computed with while nothing is used.", max_length=193
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="product",
            name="expected_input_ppm",
            field=models.PositiveIntegerField(default=600_000, help_text="Share of the tokens that is input, for margins."),
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
                    ("pack", "one credit pack"),
                    ("plan", "one plan"),
                    ("rate_card", "one rate card"),
                ],
                max_length=20,
            ),
        ),
    ]
