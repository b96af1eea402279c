"""Whether an account in debt may go on with what costs nothing beforehand is the product's policy."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("pricing", "0003_guests")]

    operations = [
        migrations.AddField(
            model_name="product",
            name="work_in_debt",
            field=models.BooleanField(default=False, help_text="An account in debt may go on with what costs nothing beforehand."),
        ),
    ]
