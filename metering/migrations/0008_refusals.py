import django.db.models.deletion
from django.db import migrations, models

#: Tenants read their own, but not what work cost us.
TENANCY = """
    alter table metering_refusal enable row level security;
    create policy others on metering_refusal using (current_user <> 'authenticated');
    create policy tenant on metering_refusal for select to authenticated using (account_id in (select visible_account_ids()));
    grant select (id, account_id, layer, meter, resets_at, reason, count, first_at, last_at, model, feature, "user", layers)
      on metering_refusal to authenticated;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0009_approvals"),
        ("metering", "0007_shadow_refusals"),
    ]

    operations = [
        migrations.CreateModel(
            name="Refusal",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("layer", models.CharField(max_length=20)),
                ("meter", models.CharField(blank=True, max_length=80)),
                ("resets_at", models.DateTimeField(null=True)),
                ("reason", models.CharField(max_length=500)),
                ("count", models.BigIntegerField()),
                ("first_at", models.DateTimeField()),
                ("last_at", models.DateTimeField()),
                ("model", models.CharField(blank=True, max_length=200)),
                ("feature", models.CharField(blank=True, max_length=128)),
                ("user", models.CharField(blank=True, max_length=128)),
                ("layers", models.JSONField()),
                ("costs", models.JSONField()),
                ("account", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.account")),
            ],
            options={
                "ordering": ["-last_at"],
                "constraints": [
                    models.UniqueConstraint(fields=("account", "layer", "meter"), name="refusal_once"),
                    models.CheckConstraint(
                        condition=models.Q(("count__gte", 1), ("last_at__gte", models.F("first_at"))), name="refusal_happened"
                    ),
                ],
            },
        ),
        migrations.RunSQL(TENANCY, migrations.RunSQL.noop),
    ]
