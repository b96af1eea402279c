"""Invitations and brands; an account that has an owner keeps one."""

from pathlib import Path

import django.core.validators
import django.db.models.deletion
import django.db.models.functions.text
from django.conf import settings
from django.db import migrations, models

SQL = Path(__file__).resolve().parent.parent / "sql"


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_cost_tier"),
        ("pricing", "0004_debt"),
    ]

    operations = [
        migrations.AddField(
            model_name="apikey",
            name="revoked_by",
            field=models.CharField(blank=True, editable=False, max_length=150),
        ),
        migrations.CreateModel(
            name="Brand",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "colour",
                    models.CharField(
                        blank=True,
                        max_length=7,
                        validators=[django.core.validators.RegexValidator("^#[0-9a-f]{6}\\Z", "Write a colour such as #0f766e.")],
                    ),
                ),
                ("logo", models.BinaryField(blank=True, null=True)),
                ("logo_type", models.CharField(blank=True, max_length=16)),
                (
                    "logo_digest",
                    models.CharField(blank=True, db_index=True, help_text="The first half of its SHA-256, in hexadecimal.", max_length=32),
                ),
                ("updated_at", models.DateTimeField()),
                (
                    "account",
                    models.OneToOneField(
                        blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="brand", to="accounts.account"
                    ),
                ),
                (
                    "product",
                    models.OneToOneField(
                        blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="brand", to="pricing.product"
                    ),
                ),
                (
                    "updated_by",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("account__isnull", False), ("product", None)),
                            models.Q(("account", None), ("colour", ""), ("product__isnull", False)),
                            _connector="OR",
                        ),
                        name="brand_of_one",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("colour", ""), ("colour__regex", "^#[0-9a-f]{6}$"), _connector="OR"),
                        name="brand_colour_is_hexadecimal",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("logo", None), ("logo_digest", ""), ("logo_type", "")),
                            models.Q(
                                ("logo__isnull", False),
                                ("logo_digest__regex", "^[0-9a-f]{32}$"),
                                ("logo_type__in", ["image/png", "image/jpeg", "image/webp"]),
                            ),
                            _connector="OR",
                        ),
                        name="brand_logo_is_whole",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Invitation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("email", models.EmailField(max_length=254)),
                (
                    "role",
                    models.CharField(
                        choices=[("owner", "Owner"), ("admin", "Admin"), ("member", "Member")], default="member", max_length=10
                    ),
                ),
                ("sent", models.PositiveSmallIntegerField(default=1)),
                ("sent_at", models.DateTimeField()),
                ("created_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("accepted_at", models.DateTimeField(blank=True, null=True)),
                ("revoked_at", models.DateTimeField(blank=True, null=True)),
                (
                    "accepted_by",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "account",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="invitations", to="accounts.account"),
                ),
                (
                    "created_by",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL),
                ),
                (
                    "revoked_by",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "ordering": ["id"],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("accepted_at", None), ("revoked_at", None)),
                        fields=("account", "email"),
                        name="invitation_open_once",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("email", django.db.models.functions.text.Lower("email"))), name="invitation_email_lower_case"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("accepted_at", None), ("accepted_by", None), ("revoked_at", None), ("revoked_by", None)),
                            models.Q(
                                ("accepted_at__isnull", False), ("accepted_by__isnull", False), ("revoked_at", None), ("revoked_by", None)
                            ),
                            models.Q(
                                ("accepted_at", None), ("accepted_by", None), ("revoked_at__isnull", False), ("revoked_by__isnull", False)
                            ),
                            _connector="OR",
                        ),
                        name="invitation_ends_once",
                    ),
                ],
            },
        ),
        migrations.RunSQL([(SQL / "team.sql").read_text()]),
    ]
