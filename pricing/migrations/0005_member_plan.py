"""A plan may name the one that takes its place for teams and for persons who belong to one."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("pricing", "0004_debt"),
    ]

    operations = [
        migrations.AddField(
            model_name="plan",
            name="member_plan",
            field=models.CharField(
                blank=True,
                help_text="Slug of the plan that takes this one's place for teams and for persons who belong to one.",
                max_length=64,
            ),
        ),
    ]
