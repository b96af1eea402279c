from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

SQL = Path(__file__).parents[1] / "sql"


class Migration(migrations.Migration):
    """Invoices and receipts, which customers see; what was read when is ours."""

    dependencies = [
        ("accounts", "0003_guests"),
        ("billing", "0003_stripe_inbox"),
    ]

    operations = [
        migrations.CreateModel(
            name="StripeInvoice",
            fields=[
                ("id", models.CharField(help_text="in_…", max_length=64, primary_key=True, serialize=False)),
                ("number", models.CharField(blank=True, max_length=64)),
                ("status", models.CharField(help_text="As Stripe says it: open, paid, uncollectible or void.", max_length=16)),
                ("description", models.CharField(blank=True, max_length=500)),
                ("currency", models.CharField(max_length=3)),
                ("total", models.BigIntegerField(help_text="With tax; negative where the customer is owed.")),
                ("tax", models.BigIntegerField()),
                ("paid", models.BigIntegerField()),
                ("created_at", models.DateTimeField()),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                ("hosted_invoice_url", models.CharField(blank=True, max_length=500)),
                ("invoice_pdf", models.CharField(blank=True, max_length=500)),
                ("read_number", models.BigIntegerField()),
            ],
        ),
        migrations.AddField(
            model_name="stripepayment",
            name="description",
            field=models.CharField(blank=True, help_text="What was bought; empty where an invoice says it.", max_length=500),
        ),
        migrations.AddField(
            model_name="stripepayment",
            name="receipt_url",
            field=models.CharField(blank=True, help_text="The receipt's page at Stripe; empty where there is an invoice.", max_length=500),
        ),
        migrations.AddIndex(
            model_name="stripepayment",
            index=models.Index(fields=["account", "-created_at"], name="stripe_payment_newest"),
        ),
        migrations.AddField(
            model_name="stripeinvoice",
            name="account",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="stripe_invoices", to="accounts.account"),
        ),
        migrations.AddIndex(
            model_name="stripeinvoice",
            index=models.Index(fields=["account", "-created_at"], name="stripe_invoice_newest"),
        ),
        migrations.RunSQL([(SQL / "stripe_tenancy.sql").read_text()]),
    ]
