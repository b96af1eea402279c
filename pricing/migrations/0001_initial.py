import django.contrib.postgres.constraints
import django.contrib.postgres.fields
import django.contrib.postgres.fields.ranges
import django.core.validators
import django.db.models.deletion
import django.db.models.functions.datetime
from django.contrib.postgres.operations import BtreeGistExtension
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        BtreeGistExtension(),
        migrations.CreateModel(
            name="CostTier",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "slug",
                    models.CharField(
                        max_length=64,
                        validators=[
                            django.core.validators.RegexValidator("^[a-z0-9]+(?:[-_][a-z0-9]+)*$", "lower-case letters, digits, - and _")
                        ],
                    ),
                ),
                ("monthly_cost_nanos", models.BigIntegerField(blank=True, null=True)),
                ("daily_cost_nanos", models.BigIntegerField(blank=True, null=True)),
                ("requests_per_hour", models.IntegerField(blank=True, null=True)),
                ("throttle_on_exceed", models.BooleanField(default=True)),
                (
                    "warn_at_ppm",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.IntegerField(), default=list, help_text="Shares of the monthly limit at which to warn.", size=None
                    ),
                ),
                ("target_margin_ppm", models.IntegerField(blank=True, null=True)),
                ("staff_only", models.BooleanField(default=False, help_text="Never chosen by a rule; staff assign it.")),
                ("notes", models.TextField(blank=True)),
            ],
        ),
        migrations.CreateModel(
            name="Plan",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "slug",
                    models.CharField(
                        max_length=64,
                        validators=[
                            django.core.validators.RegexValidator("^[a-z0-9]+(?:[-_][a-z0-9]+)*$", "lower-case letters, digits, - and _")
                        ],
                    ),
                ),
                ("name", models.CharField(max_length=120)),
                ("rank", models.PositiveSmallIntegerField(help_text="Order on the pricing page; a higher rank is an upgrade.")),
                ("public", models.BooleanField(default=True, help_text="Shown on the pricing page.")),
                (
                    "available",
                    models.BooleanField(default=True, help_text="In the product's catalog; otherwise only kept for those who are on it."),
                ),
            ],
            options={
                "ordering": ["product", "rank"],
            },
        ),
        migrations.CreateModel(
            name="Product",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "slug",
                    models.CharField(
                        max_length=64,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator("^[a-z0-9]+(?:[-_][a-z0-9]+)*$", "lower-case letters, digits, - and _")
                        ],
                    ),
                ),
                ("name", models.CharField(max_length=120)),
                ("default_plan", models.CharField(help_text="Slug of the plan that a new account is on.", max_length=64)),
                (
                    "time_zone",
                    models.CharField(
                        default="UTC", help_text="Where a day quota rolls over, unless the account says otherwise.", max_length=64
                    ),
                ),
                (
                    "visibility",
                    models.CharField(
                        choices=[
                            ("depletion_only", "credits used, never a price per token"),
                            ("amount", "what each use cost"),
                            ("full_breakdown", "what each use cost, component by component"),
                        ],
                        default="amount",
                        max_length=20,
                    ),
                ),
                (
                    "overage",
                    models.CharField(
                        choices=[
                            ("charge", "charge all of it; what is not covered becomes debt"),
                            ("cap", "charge at most the hold"),
                            ("reject", "refuse the capture, keep the hold open"),
                        ],
                        default="charge",
                        max_length=10,
                    ),
                ),
                (
                    "late_charging",
                    models.CharField(
                        choices=[
                            ("charge", "charge usage reported late, up to the maximum delay"),
                            ("absorb", "record usage reported late, at the product's own expense"),
                        ],
                        default="charge",
                        max_length=10,
                    ),
                ),
                ("late_charging_max_hours", models.PositiveIntegerField(default=48)),
                ("hold_lifetime_seconds", models.PositiveIntegerField(default=900)),
                ("hold_max_seconds", models.PositiveIntegerField(default=86400)),
                ("minimum_balance_nanos", models.BigIntegerField(default=0, help_text="Below this an account may not start work.")),
                ("welcome_credit_nanos", models.BigIntegerField(default=0, help_text="Granted once, when an account is opened.")),
                (
                    "announcement_credit_nanos",
                    models.BigIntegerField(default=0, help_text="For accounts that existed before the product charged."),
                ),
                (
                    "guest_exchanges",
                    models.PositiveIntegerField(
                        blank=True, help_text="Free exchanges of an anonymous guest; empty = no guests.", null=True
                    ),
                ),
                (
                    "guest_exchanges_setting",
                    models.CharField(blank=True, help_text="Environment variable that overrides the guest exchanges.", max_length=80),
                ),
                (
                    "burn_order",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=20),
                        default=list,
                        help_text="Sources of credit, first burnt first.",
                        size=None,
                    ),
                ),
                (
                    "allowed_origins",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=200),
                        default=list,
                        help_text="Where checkout may send a customer back to.",
                        size=None,
                    ),
                ),
                ("support_email", models.EmailField(blank=True, max_length=254)),
                (
                    "brand_colour",
                    models.CharField(blank=True, max_length=7, validators=[django.core.validators.RegexValidator("^#[0-9a-f]{6}$")]),
                ),
                ("target_margin_ppm", models.IntegerField(blank=True, null=True)),
                ("alert_margin_ppm", models.IntegerField(blank=True, null=True)),
                ("floor_margin_ppm", models.IntegerField(blank=True, null=True)),
                (
                    "payment_fee_ppm",
                    models.PositiveIntegerField(default=0, help_text="What the payment provider keeps of a payment, for estimates."),
                ),
                (
                    "payment_fee_cents",
                    models.PositiveIntegerField(default=0, help_text="What the payment provider keeps of each payment, beside the share."),
                ),
                ("notes", models.TextField(blank=True)),
            ],
        ),
        migrations.CreateModel(
            name="Unit",
            fields=[
                ("id", models.SmallAutoField(primary_key=True, serialize=False)),
                ("code", models.CharField(max_length=64, unique=True)),
                ("name", models.CharField(max_length=64)),
                (
                    "decimals",
                    models.PositiveSmallIntegerField(default=2, help_text="Digits shown to people; sub-digit precision is stored."),
                ),
            ],
        ),
        migrations.CreateModel(
            name="PlanVersion",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.PositiveIntegerField(default=1)),
                ("valid_from", models.DateTimeField()),
                ("price_cents", models.IntegerField(blank=True, help_text="Empty = agreed per customer.", null=True)),
                ("currency", models.CharField(default="usd", max_length=3)),
                ("interval", models.CharField(choices=[("month", "Month"), ("year", "Year")], default="month", max_length=10)),
                ("per_seat", models.BooleanField(default=False, help_text="The price is per member of the account.")),
                ("trial_days", models.PositiveIntegerField(default=0)),
                ("included_credit_nanos", models.BigIntegerField(default=0, help_text="Granted each paid period.")),
                (
                    "rollover_cap_nanos",
                    models.BigIntegerField(blank=True, help_text="Most unused credit that rolls over; empty = all, 0 = none.", null=True),
                ),
                (
                    "rollover_periods",
                    models.PositiveSmallIntegerField(
                        default=0, help_text="How many periods rolled-over credit lives; 0 = it does not roll over."
                    ),
                ),
                ("rate_card", models.CharField(help_text="Slug of the rate card that prices this plan's usage.", max_length=64)),
                (
                    "alternative_rate_cards",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=64),
                        default=list,
                        help_text="Cards a customer may be switched to, e.g. own provider keys.",
                        size=None,
                    ),
                ),
                ("stripe_product", models.CharField(blank=True, max_length=120)),
                (
                    "stripe_price_setting",
                    models.CharField(blank=True, help_text="Environment variable that holds the Stripe price id.", max_length=80),
                ),
                ("legacy_price_cents", models.IntegerField(blank=True, help_text="The previous price, kept for a roll-back.", null=True)),
                ("charge_automatically", models.BooleanField(default=True)),
                ("notes", models.TextField(blank=True)),
                ("recorded_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ("cost_tier", models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, to="pricing.costtier")),
                ("plan", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="versions", to="pricing.plan")),
            ],
        ),
        migrations.CreateModel(
            name="Entitlement",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "key",
                    models.CharField(
                        help_text="Feature or meter, e.g. api_access, messages, request_tokens.",
                        max_length=64,
                        validators=[
                            django.core.validators.RegexValidator("^[a-z0-9]+(?:[-_][a-z0-9]+)*$", "lower-case letters, digits, - and _")
                        ],
                    ),
                ),
                ("kind", models.CharField(choices=[("flag", "Flag"), ("text", "Text"), ("limit", "Limit")], max_length=10)),
                ("enabled", models.BooleanField(blank=True, null=True)),
                ("text", models.CharField(blank=True, max_length=120)),
                (
                    "window",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("request", "each request"),
                            ("open", "at the same time"),
                            ("hour", "Hour"),
                            ("day", "Day"),
                            ("period", "billing period"),
                            ("lifetime", "Lifetime"),
                            ("count", "existing objects"),
                        ],
                        max_length=10,
                    ),
                ),
                ("limit", models.BigIntegerField(blank=True, null=True)),
                (
                    "mode",
                    models.CharField(
                        choices=[("off", "Off"), ("shadow", "Shadow"), ("soft", "Soft"), ("hard", "Hard")], default="hard", max_length=10
                    ),
                ),
                (
                    "plan_version",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="entitlements", to="pricing.planversion"),
                ),
            ],
        ),
        migrations.CreateModel(
            name="PriceRow",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("provider", models.CharField(max_length=64)),
                ("model", models.CharField(max_length=128)),
                ("component", models.CharField(max_length=32)),
                ("context_above", models.PositiveIntegerField(default=0)),
                ("service_level", models.CharField(default="standard", max_length=16)),
                ("price_nanos", models.BigIntegerField()),
                ("per_units", models.BigIntegerField(default=1000000)),
                ("valid", django.contrib.postgres.fields.ranges.DateTimeRangeField()),
                ("source", models.CharField(help_text="Where the figure comes from.", max_length=200)),
                (
                    "catalog",
                    models.CharField(
                        blank=True, help_text="Slug of the product whose catalog carries this row; empty = imported.", max_length=64
                    ),
                ),
                ("recorded_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ("withdrawn_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "db_table": "price_book",
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("per_units__gte", 1), ("price_nanos__gte", 0)), name="price_amounts"),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("valid__isempty", False),
                            ("valid__lower_inc", True),
                            ("valid__startswith__isnull", False),
                            ("valid__upper_inc", False),
                        ),
                        name="price_valid_is_half_open",
                    ),
                    django.contrib.postgres.constraints.ExclusionConstraint(
                        condition=models.Q(("withdrawn_at", None)),
                        expressions=[
                            (models.F("provider"), "="),
                            (models.F("model"), "="),
                            (models.F("component"), "="),
                            (models.F("context_above"), "="),
                            (models.F("service_level"), "="),
                            ("valid", "&&"),
                        ],
                        name="price_never_overlaps",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="PriceProposal",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("provider", models.CharField(max_length=64)),
                ("model", models.CharField(max_length=128)),
                ("component", models.CharField(max_length=32)),
                ("context_above", models.PositiveIntegerField(default=0)),
                ("service_level", models.CharField(default="standard", max_length=16)),
                ("price_nanos", models.BigIntegerField()),
                ("per_units", models.BigIntegerField(default=1000000)),
                ("valid_from", models.DateTimeField(blank=True, null=True)),
                ("valid_until", models.DateTimeField(blank=True, help_text="Exclusive; empty = until the next change.", null=True)),
                ("source", models.CharField(max_length=200)),
                (
                    "state",
                    models.CharField(
                        choices=[("pending", "Pending"), ("approved", "Approved"), ("rejected", "Rejected")],
                        default="pending",
                        max_length=10,
                    ),
                ),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
                ("decided_by", models.CharField(blank=True, max_length=150)),
                ("reason", models.CharField(blank=True, max_length=300)),
                (
                    "previous",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.pricerow"
                    ),
                ),
            ],
            options={
                "ordering": ["provider", "model", "service_level", "context_above", "component", "id"],
            },
        ),
        migrations.AddField(
            model_name="plan",
            name="product",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="plans", to="pricing.product"),
        ),
        migrations.CreateModel(
            name="CreditPack",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "slug",
                    models.CharField(
                        max_length=64,
                        validators=[
                            django.core.validators.RegexValidator("^[a-z0-9]+(?:[-_][a-z0-9]+)*$", "lower-case letters, digits, - and _")
                        ],
                    ),
                ),
                ("version", models.PositiveIntegerField(default=1)),
                ("valid_from", models.DateTimeField()),
                ("name", models.CharField(max_length=120)),
                ("price_cents", models.IntegerField()),
                ("currency", models.CharField(default="usd", max_length=3)),
                ("credit_nanos", models.BigIntegerField(help_text="Face value: what the customer can spend.")),
                ("expires_after_days", models.PositiveIntegerField(blank=True, null=True)),
                (
                    "stripe_price_setting",
                    models.CharField(blank=True, help_text="Environment variable that holds the Stripe price id.", max_length=80),
                ),
                ("available", models.BooleanField(default=True, help_text="In the product's catalog; otherwise off sale.")),
                ("notes", models.TextField(blank=True)),
                ("product", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="packs", to="pricing.product")),
            ],
        ),
        migrations.AddField(
            model_name="costtier",
            name="product",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="cost_tiers", to="pricing.product"),
        ),
        migrations.CreateModel(
            name="CatalogChange",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("actor", models.CharField(max_length=150)),
                ("applied_at", models.DateTimeField()),
                ("effective_at", models.DateTimeField()),
                ("digest", models.CharField(help_text="SHA-256 of the file.", max_length=64)),
                ("diff", models.TextField()),
                (
                    "product",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="catalog_changes", to="pricing.product"),
                ),
            ],
            options={
                "ordering": ["-id"],
            },
        ),
        migrations.CreateModel(
            name="RateCard",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "slug",
                    models.CharField(
                        max_length=64,
                        validators=[
                            django.core.validators.RegexValidator("^[a-z0-9]+(?:[-_][a-z0-9]+)*$", "lower-case letters, digits, - and _")
                        ],
                    ),
                ),
                ("version", models.PositiveIntegerField(default=1)),
                ("valid_from", models.DateTimeField()),
                (
                    "mode",
                    models.CharField(
                        choices=[
                            ("markup", "wholesale cost plus a markup"),
                            ("credit_rate", "tokens per credit, times the model's multiplier"),
                            ("price_book", "the card's own retail price per model"),
                            ("pass_through", "wholesale cost, no markup"),
                            ("byo", "the customer's own provider key: metered, costs and charges nothing"),
                            ("included", "part of the plan: costs us, charges nothing"),
                        ],
                        max_length=20,
                    ),
                ),
                ("markup_ppm", models.IntegerField(default=0, help_text="500,000 = 50 %. Only for mode markup.")),
                ("tokens_per_credit", models.PositiveIntegerField(blank=True, help_text="Only for mode credit_rate.", null=True)),
                (
                    "default_multiplier_ppm",
                    models.PositiveIntegerField(
                        blank=True, help_text="credit_rate: for models without their own; empty = such models are refused.", null=True
                    ),
                ),
                (
                    "quantum_nanos",
                    models.BigIntegerField(default=1, help_text="A price is rounded up to a multiple of this, once per usage record."),
                ),
                ("minimum_nanos", models.BigIntegerField(default=0, help_text="Least price of a usage record that used anything.")),
                (
                    "credit_value_nanos",
                    models.BigIntegerField(default=1000000000, help_text="List value of one unit of the wallet in nano-USD."),
                ),
                ("notes", models.TextField(blank=True)),
                ("recorded_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                (
                    "product",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="rate_cards", to="pricing.product"),
                ),
            ],
        ),
        migrations.CreateModel(
            name="RateCardModel",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("provider", models.CharField(max_length=64)),
                ("model", models.CharField(max_length=128)),
                ("multiplier_ppm", models.PositiveIntegerField(blank=True, null=True)),
                ("markup_ppm", models.PositiveIntegerField(blank=True, null=True)),
                ("card", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="models", to="pricing.ratecard")),
            ],
        ),
        migrations.CreateModel(
            name="RateCardPrice",
            fields=[
                ("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("provider", models.CharField(max_length=64)),
                ("model", models.CharField(max_length=128)),
                ("component", models.CharField(max_length=32)),
                ("price_nanos", models.BigIntegerField()),
                ("per_units", models.BigIntegerField(default=1000000)),
                ("card", models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="prices", to="pricing.ratecard")),
            ],
        ),
        migrations.AddField(
            model_name="product",
            name="unit",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="products", to="pricing.unit"),
        ),
        migrations.AddConstraint(
            model_name="planversion",
            constraint=models.UniqueConstraint(fields=("plan", "version"), name="plan_version_once"),
        ),
        migrations.AddConstraint(
            model_name="planversion",
            constraint=models.UniqueConstraint(fields=("plan", "valid_from"), name="plan_version_start_once"),
        ),
        migrations.AddConstraint(
            model_name="planversion",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("price_cents__gte", 0), ("price_cents", None), _connector="OR"),
                    models.Q(("legacy_price_cents__gte", 0), ("legacy_price_cents", None), _connector="OR"),
                    models.Q(("rollover_cap_nanos__gte", 0), ("rollover_cap_nanos", None), _connector="OR"),
                    ("included_credit_nanos__gte", 0),
                ),
                name="plan_version_amounts",
            ),
        ),
        migrations.AddConstraint(
            model_name="entitlement",
            constraint=models.UniqueConstraint(fields=("plan_version", "key", "window"), name="entitlement_once"),
        ),
        migrations.AddConstraint(
            model_name="entitlement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("enabled__isnull", False), ("kind", "flag"), ("limit", None), ("window", "")),
                    models.Q(("enabled", None), ("kind", "text"), ("limit", None), ("window", ""), models.Q(("text", ""), _negated=True)),
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
        migrations.AddConstraint(
            model_name="priceproposal",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "pending")),
                fields=("provider", "model", "component", "context_above", "service_level", "valid_from"),
                name="price_proposal_pending_once",
                nulls_distinct=False,
            ),
        ),
        migrations.AddConstraint(
            model_name="priceproposal",
            constraint=models.CheckConstraint(
                condition=models.Q(("per_units__gte", 1), ("price_nanos__gte", 0)), name="price_proposal_amounts"
            ),
        ),
        migrations.AddConstraint(
            model_name="priceproposal",
            constraint=models.CheckConstraint(
                condition=models.Q(("state", "pending"), models.Q(("decided_by", ""), _negated=True), _connector="OR"),
                name="price_proposal_decided_by_somebody",
            ),
        ),
        migrations.AddConstraint(
            model_name="plan",
            constraint=models.UniqueConstraint(fields=("product", "slug"), name="plan_once"),
        ),
        migrations.AddConstraint(
            model_name="creditpack",
            constraint=models.UniqueConstraint(fields=("product", "slug", "version"), name="credit_pack_version_once"),
        ),
        migrations.AddConstraint(
            model_name="creditpack",
            constraint=models.UniqueConstraint(fields=("product", "slug", "valid_from"), name="credit_pack_start_once"),
        ),
        migrations.AddConstraint(
            model_name="creditpack",
            constraint=models.CheckConstraint(
                condition=models.Q(("credit_nanos__gt", 0), ("price_cents__gt", 0)), name="credit_pack_amounts"
            ),
        ),
        migrations.AddConstraint(
            model_name="costtier",
            constraint=models.UniqueConstraint(fields=("product", "slug"), name="cost_tier_once"),
        ),
        migrations.AddConstraint(
            model_name="costtier",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("monthly_cost_nanos__gte", 0), ("monthly_cost_nanos", None), _connector="OR"),
                    models.Q(("daily_cost_nanos__gte", 0), ("daily_cost_nanos", None), _connector="OR"),
                    models.Q(("requests_per_hour__gte", 0), ("requests_per_hour", None), _connector="OR"),
                ),
                name="cost_tier_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="catalogchange",
            constraint=models.CheckConstraint(condition=models.Q(("actor", ""), _negated=True), name="catalog_change_by_somebody"),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.UniqueConstraint(fields=("product", "slug", "version"), name="rate_card_version_once"),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.UniqueConstraint(fields=("product", "slug", "valid_from"), name="rate_card_start_once"),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("credit_value_nanos__gte", 1), ("markup_ppm__gte", 0), ("minimum_nanos__gte", 0), ("quantum_nanos__gte", 1)
                ),
                name="rate_card_amounts",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.CheckConstraint(
                condition=models.Q(("mode", "markup"), ("markup_ppm", 0), _connector="OR"), name="rate_card_markup_only_for_markup"
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecard",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("mode", "credit_rate"), ("tokens_per_credit__gte", 1), ("tokens_per_credit__isnull", False)),
                    models.Q(
                        models.Q(("mode", "credit_rate"), _negated=True), ("default_multiplier_ppm", None), ("tokens_per_credit", None)
                    ),
                    _connector="OR",
                ),
                name="rate_card_credits_only_for_credit_rate",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecardmodel",
            constraint=models.UniqueConstraint(fields=("card", "provider", "model"), name="rate_card_model_once"),
        ),
        migrations.AddConstraint(
            model_name="ratecardmodel",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("markup_ppm__gte", 0), ("markup_ppm__isnull", False), ("multiplier_ppm__isnull", True)),
                    models.Q(("markup_ppm__isnull", True), ("multiplier_ppm__gte", 1), ("multiplier_ppm__isnull", False)),
                    _connector="OR",
                ),
                name="rate_card_model_has_one_term",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratecardprice",
            constraint=models.UniqueConstraint(fields=("card", "provider", "model", "component"), name="rate_card_price_once"),
        ),
        migrations.AddConstraint(
            model_name="ratecardprice",
            constraint=models.CheckConstraint(
                condition=models.Q(("per_units__gte", 1), ("price_nanos__gte", 0)), name="rate_card_price_amounts"
            ),
        ),
        migrations.AddConstraint(
            model_name="product",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("announcement_credit_nanos__gte", 0), ("minimum_balance_nanos__gte", 0), ("welcome_credit_nanos__gte", 0)
                ),
                name="product_amounts_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="product",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("hold_lifetime_seconds__gte", 1),
                    ("hold_max_seconds__gte", models.F("hold_lifetime_seconds")),
                    ("hold_max_seconds__lte", 86400),
                ),
                name="product_hold_lifetimes",
            ),
        ),
    ]
