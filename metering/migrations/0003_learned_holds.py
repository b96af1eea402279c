"""What is learned from captures about answers whose length nobody said, and the function that takes those captures from the ledger."""

from pathlib import Path

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0002_ledger"),
        ("metering", "0002_limits"),
        ("pricing", "0002_guards"),
    ]

    operations = [
        migrations.CreateModel(
            name="OutputHistogram",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("input_bits", models.SmallIntegerField()),
                (
                    "counts",
                    django.contrib.postgres.fields.ArrayField(base_field=models.IntegerField(), default=list, size=None),
                ),
                (
                    "feature",
                    models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="metering.feature"),
                ),
                ("model", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="metering.usagemodel")),
                ("product", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.product")),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("product", "model", "feature", "input_bits"), name="output_histogram_once", nulls_distinct=False
                    )
                ],
            },
        ),
        migrations.RunSQL([(SQL / "captures.sql").read_text()]),
    ]
