"""Guests have a plan of the product's, and a limit may be replaced by an environment variable; the product's own two columns go."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("pricing", "0002_guards"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="entitlement",
            name="entitlement_says_what_its_kind_needs",
        ),
        migrations.RemoveField(
            model_name="product",
            name="guest_exchanges",
        ),
        migrations.RemoveField(
            model_name="product",
            name="guest_exchanges_setting",
        ),
        migrations.AddField(
            model_name="entitlement",
            name="setting",
            field=models.CharField(blank=True, help_text="Environment variable that, where it is set, replaces the limit.", max_length=80),
        ),
        migrations.AddField(
            model_name="product",
            name="guest_plan",
            field=models.CharField(blank=True, help_text="Slug of the plan that a guest is on; empty = no guests.", max_length=64),
        ),
        migrations.AddConstraint(
            model_name="entitlement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("enabled__isnull", False), ("kind", "flag"), ("limit", None), ("setting", ""), ("window", "")),
                    models.Q(
                        ("enabled", None),
                        ("kind", "text"),
                        ("limit", None),
                        ("setting", ""),
                        ("window", ""),
                        models.Q(("text", ""), _negated=True),
                    ),
                    models.Q(
                        ("enabled", None),
                        ("kind", "limit"),
                        models.Q(("window", ""), _negated=True),
                        models.Q(("limit", None), ("limit__gte", 0), _connector="OR"),
                    ),
                    _connector="OR",
                ),
                name="entitlement_says_what_its_kind_needs",
            ),
        ),
    ]
