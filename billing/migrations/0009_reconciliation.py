from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0008_top_ups"),
    ]

    operations = [
        migrations.AddField(
            model_name="stripepayment",
            name="note",
            field=models.CharField(
                blank=True, help_text="Why it is not in the ledger, or not as it should be: for staff.", max_length=1000
            ),
        ),
        migrations.CreateModel(
            name="StripeReconciliation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("since", models.DateTimeField()),
                ("started_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                ("compared", models.PositiveIntegerField(default=0)),
                ("healed", models.JSONField(default=list, help_text="The ids of what we had missed and have taken over.")),
                ("problems", models.JSONField(default=list, help_text="What staff has to look at.")),
            ],
            options={
                "ordering": ["-started_at"],
                "indexes": [models.Index(fields=["-started_at"], name="stripe_reconciliation_newest")],
            },
        ),
    ]
