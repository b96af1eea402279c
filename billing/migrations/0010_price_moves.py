import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0009_reconciliation"),
        ("pricing", "0006_grace"),
    ]

    operations = [
        migrations.CreateModel(
            name="PriceMove",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("effective_at", models.DateTimeField()),
                ("actor", models.CharField(max_length=150)),
                ("reason", models.CharField(max_length=500)),
                ("created_at", models.DateTimeField()),
                ("announced_to", models.CharField(blank=True, max_length=64, null=True)),
                ("canceled_at", models.DateTimeField(blank=True, null=True)),
                ("canceled_by", models.CharField(blank=True, max_length=150)),
                ("to_version", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.planversion")),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(condition=models.Q(("canceled_at", None)), fields=("to_version",), name="price_move_once"),
                    models.CheckConstraint(condition=models.Q(("effective_at__gte", models.F("created_at"))), name="price_move_never_back"),
                    models.CheckConstraint(
                        condition=models.Q(models.Q(("reason", ""), _negated=True), models.Q(("actor", ""), _negated=True)),
                        name="price_move_has_a_reason",
                    ),
                ],
            },
        ),
    ]
