from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("billing", "0013_discounts")]

    operations = [
        migrations.AlterModelOptions(name="stripepayment", options={"permissions": [("refund_stripepayment", "Can give a payment back")]}),
    ]
