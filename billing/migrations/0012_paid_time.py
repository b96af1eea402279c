import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """What payments bought that is no credit but a plan's time. Append-only, like the ledger beside which it stands."""

    dependencies = [("billing", "0011_trials")]

    operations = [
        migrations.CreateModel(
            name="PaidTime",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("payment_id", models.CharField(help_text="pi_… or in_…", max_length=64)),
                ("currency", models.CharField(max_length=3)),
                ("cash_nanos", models.BigIntegerField()),
                ("fee_nanos", models.BigIntegerField()),
                ("back_nanos", models.BigIntegerField()),
                ("starts_at", models.DateTimeField()),
                ("ends_at", models.DateTimeField()),
                ("booked_at", models.DateTimeField()),
                (
                    "account",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.account"),
                ),
            ],
            options={
                "default_permissions": ("view",),
                "indexes": [models.Index(fields=["payment_id"], name="paid_time_payment")],
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("starts_at__lte", models.F("ends_at"))), name="paid_time_forwards")
                ],
            },
        ),
        migrations.RunSQL(
            "create trigger append_only before update or delete on billing_paidtime for each row execute function refuse_change();"
            "create trigger never_truncated before truncate on billing_paidtime for each statement execute function refuse_change();",
            migrations.RunSQL.noop,
        ),
    ]
