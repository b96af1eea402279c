"""Staff may assign a cost tier to an account. Tenants read the whole row, as before."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0004_mails"),
    ]

    operations = [
        migrations.AddField(
            model_name="account",
            name="cost_tier",
            field=models.CharField(
                blank=True,
                help_text="Slug of a cost tier that replaces the plan's, assigned by staff; empty = the plan's.",
                max_length=64,
            ),
        ),
        migrations.RunSQL("grant select (cost_tier) on accounts_account to authenticated", migrations.RunSQL.noop),
    ]
