from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0014_refund_permission"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="operation",
            options={
                "managed": False,
                "ordering": ["-id"],
                "permissions": [("approve_operation", "Can approve credit above the cap of one person")],
            },
        ),
    ]
