from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("billing", "0012_paid_time")]

    operations = [
        migrations.AlterModelOptions(name="stripepayment", options={"permissions": [("refund_stripepayment", "Can give a payment back")]}),
    ]
