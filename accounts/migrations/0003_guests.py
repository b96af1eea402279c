"""An account may be a guest's."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_guards_and_tenancy"),
    ]

    operations = [
        migrations.AlterField(
            model_name="account",
            name="kind",
            field=models.CharField(choices=[("person", "Person"), ("team", "Team"), ("guest", "Guest")], default="person", max_length=10),
        ),
    ]
