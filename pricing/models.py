"""What is sold and what it costs, as rows: products, plans, packs, rate cards and the price book.

A product's commercial terms come from one catalog file (``manage.py catalog apply``); the price book, what *we* pay upstream,
comes from proposals that staff approve (``manage.py prices``). Everything that decides a charge is dated and versioned: a later
edit makes a new row, so that a past charge can always be explained by the rows it was rated with.

Money is integers: ``*_nanos`` is 10⁻⁹ of the unit (nano-USD for cost; nano of the wallet's unit for price), ``*_cents`` is what
Stripe is asked to collect, ``*_ppm`` is parts per million.
"""

from __future__ import annotations

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import ArrayField, DateTimeRangeField, RangeOperators
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

SLUG_PATTERN = r"^[a-z0-9]+(?:[-_][a-z0-9]+)*$"
SLUG = RegexValidator(SLUG_PATTERN, "lower-case letters, digits, - and _")


#: Where credit comes from: a grant's source, and the words of a product's burn order.
CREDIT_SOURCES = ("monthly", "rollover", "welcome", "announcement", "staff", "purchased")


class Unit(models.Model):
    """What a wallet counts: ``USD``, or a product's own credit (``prpm.credit``). Its scale is fixed for ever: 10⁻⁹."""

    id = models.SmallAutoField(primary_key=True)
    code = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=64)
    decimals = models.PositiveSmallIntegerField(default=2, help_text="Digits shown to people; sub-digit precision is stored.")

    def __str__(self) -> str:
        return self.code


class Product(models.Model):
    """One AI business run on the platform, and the policies that apply to all its accounts."""

    class Visibility(models.TextChoices):
        DEPLETION_ONLY = "depletion_only", "credits used, never a price per token"
        AMOUNT = "amount", "what each use cost"
        FULL_BREAKDOWN = "full_breakdown", "what each use cost, component by component"

    class Overage(models.TextChoices):
        CHARGE = "charge", "charge all of it; what is not covered becomes debt"
        CAP = "cap", "charge at most the hold"
        REJECT = "reject", "refuse the capture, keep the hold open"

    class LateCharging(models.TextChoices):
        CHARGE = "charge", "charge usage reported late, up to the maximum delay"
        ABSORB = "absorb", "record usage reported late, at the product's own expense"

    slug = models.CharField(max_length=64, unique=True, validators=[SLUG])
    name = models.CharField(max_length=120)
    unit = models.ForeignKey(Unit, on_delete=models.PROTECT, related_name="products")
    default_plan = models.CharField(max_length=64, help_text="Slug of the plan that a new account is on.")
    guest_plan = models.CharField(max_length=64, blank=True, help_text="Slug of the plan that a guest is on; empty = no guests.")
    guard = models.CharField(
        max_length=64, blank=True, help_text="Slug of the runaway guard of all accounts whose plan names none; empty = none."
    )
    time_zone = models.CharField(max_length=64, default="UTC", help_text="Where a day quota rolls over, unless the account says otherwise.")
    visibility = models.CharField(max_length=20, choices=Visibility, default=Visibility.AMOUNT)
    overage = models.CharField(max_length=10, choices=Overage, default=Overage.CHARGE)
    late_charging = models.CharField(max_length=10, choices=LateCharging, default=LateCharging.CHARGE)
    late_charging_max_hours = models.PositiveIntegerField(default=48)
    hold_lifetime_seconds = models.PositiveIntegerField(default=900)
    hold_max_seconds = models.PositiveIntegerField(default=86_400)
    grace_days = models.PositiveSmallIntegerField(
        default=7, help_text="How long a plan lasts after a payment for it failed; 0 = it ends at once."
    )
    minimum_balance_nanos = models.BigIntegerField(default=0, help_text="Below this an account may not start work.")
    work_in_debt = models.BooleanField(default=False, help_text="An account in debt may go on with what costs nothing beforehand.")
    welcome_credit_nanos = models.BigIntegerField(default=0, help_text="Granted once, when an account is opened.")
    announcement_credit_nanos = models.BigIntegerField(default=0, help_text="For accounts that existed before the product charged.")
    max_request_tokens = models.PositiveIntegerField(
        null=True, blank=True, help_text="The most tokens of one request, on every plan; empty = as its plan says."
    )
    enforced_meters = ArrayField(
        models.CharField(max_length=80),
        default=list,
        help_text='Limits in shadow mode that refuse all the same, on every plan, e.g. "messages/day".',
    )
    staff_credit_cap_nanos = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="The most credit that one of staff alone gives or takes on an account in 24 hours; empty = any amount.",
    )
    burn_order = ArrayField(models.CharField(max_length=20), default=list, help_text="Sources of credit, first burnt first.")
    allowed_origins = ArrayField(models.CharField(max_length=200), default=list, help_text="Where checkout may send a customer back to.")
    support_email = models.EmailField(blank=True)
    brand_colour = models.CharField(max_length=7, blank=True, validators=[RegexValidator(r"^#[0-9a-f]{6}$")])
    target_margin_ppm = models.IntegerField(null=True, blank=True)
    alert_margin_ppm = models.IntegerField(null=True, blank=True)
    floor_margin_ppm = models.IntegerField(null=True, blank=True)
    payment_fee_ppm = models.PositiveIntegerField(default=0, help_text="What the payment provider keeps of a payment, for estimates.")
    payment_fee_cents = models.PositiveIntegerField(
        default=0, help_text="What the payment provider keeps of each payment, beside the share."
    )
    expected_model = models.CharField(
        max_length=193, blank=True, help_text="provider:model that margins are computed with while nothing is used."
    )
    expected_input_ppm = models.PositiveIntegerField(default=600_000, help_text="Share of the tokens that is input, for margins.")
    notes = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="product_amounts_not_negative",
                condition=Q(minimum_balance_nanos__gte=0, welcome_credit_nanos__gte=0, announcement_credit_nanos__gte=0),
            ),
            models.CheckConstraint(
                name="product_staff_credit_cap", condition=Q(staff_credit_cap_nanos=None) | Q(staff_credit_cap_nanos__gte=0)
            ),
            models.CheckConstraint(
                name="product_hold_lifetimes",
                condition=Q(hold_lifetime_seconds__gte=1, hold_max_seconds__gte=F("hold_lifetime_seconds"), hold_max_seconds__lte=86_400),
            ),
        ]

    def __str__(self) -> str:
        return self.name


class CostTier(models.Model):
    """How much wholesale cost an account may cause: the rows of PRPM's ``cost_limits_config``.

    A limit of NULL means no limit, 0 means nothing allowed. The target margin is stored beside the limit, never derived from it.
    """

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="cost_tiers")
    slug = models.CharField(max_length=64, validators=[SLUG])
    monthly_cost_nanos = models.BigIntegerField(null=True, blank=True)
    daily_cost_nanos = models.BigIntegerField(null=True, blank=True)
    requests_per_hour = models.IntegerField(null=True, blank=True)
    throttle_on_exceed = models.BooleanField(default=True)
    warn_at_ppm = ArrayField(models.IntegerField(), default=list, help_text="Shares of the monthly limit at which to warn.")
    target_margin_ppm = models.IntegerField(null=True, blank=True)
    staff_only = models.BooleanField(default=False, help_text="Never chosen by a rule; staff assign it.")
    notes = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["product", "slug"], name="cost_tier_once"),
            models.CheckConstraint(
                name="cost_tier_not_negative",
                condition=(Q(monthly_cost_nanos__gte=0) | Q(monthly_cost_nanos=None))
                & (Q(daily_cost_nanos__gte=0) | Q(daily_cost_nanos=None))
                & (Q(requests_per_hour__gte=0) | Q(requests_per_hour=None)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.product.slug}/{self.slug}"


class Guard(models.Model):
    """What a product does about spend that runs away. Policy, changed in place; a step or a cap that is not there is not taken or asked.

    The usual spend of an account in a window is learned, and taken as ``floor_nanos`` (of the wallet's unit) where it is less. Each step
    begins at so many times that, and ends below ``release_below_ppm`` of where it began, for ``calm_minutes``. See
    ``metering/ladder.py``.
    """

    class Mode(models.TextChoices):
        SHADOW = "shadow", "watch and record, refuse nothing, tell nobody"
        SOFT = "soft", "warn, refuse nothing"
        HARD = "hard", "warn and refuse"

    class Dear(models.TextChoices):
        REFUSE = "refuse", "refuse the dearer model and name the cheaper one"
        ADVISE = "advise", "let the work pass and name the cheaper one"

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="guards")
    slug = models.CharField(max_length=64, validators=[SLUG])
    mode = models.CharField(max_length=10, choices=Mode, default=Mode.HARD)
    window_minutes = models.PositiveSmallIntegerField(default=10)
    floor_nanos = models.BigIntegerField(null=True, blank=True, help_text="The usual spend of a window is taken as at least this.")
    warn_at_ppm = models.PositiveIntegerField(null=True, blank=True, help_text="Times the usual spend of a window; empty = no such step.")
    degrade_at_ppm = models.PositiveIntegerField(null=True, blank=True)
    slow_at_ppm = models.PositiveIntegerField(null=True, blank=True)
    block_at_ppm = models.PositiveIntegerField(null=True, blank=True)
    warn_empty_minutes = models.PositiveIntegerField(
        null=True, blank=True, help_text="Warns too where the credit would be gone within so many minutes."
    )
    release_below_ppm = models.PositiveIntegerField(default=500_000)
    calm_minutes = models.PositiveSmallIntegerField(default=10)
    block_minutes = models.PositiveSmallIntegerField(
        default=30, help_text="The first block of a day; each further one lasts twice as long."
    )
    slow_per_minute = models.PositiveSmallIntegerField(default=6, help_text="How many calls a slowed subject may begin in a minute.")
    dear_models = models.CharField(max_length=10, choices=Dear, default=Dear.REFUSE)
    cheaper_models = ArrayField(models.CharField(max_length=193), default=list, help_text="provider:model, the best first.")
    notes = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["product", "slug"], name="guard_once"),
            models.CheckConstraint(
                name="guard_amounts",
                condition=Q(
                    window_minutes__gte=1, window_minutes__lte=60, calm_minutes__gte=1, block_minutes__gte=1, slow_per_minute__gte=1
                )
                & Q(release_below_ppm__gte=1, release_below_ppm__lt=1_000_000)
                & (Q(floor_nanos__gt=0) | Q(floor_nanos=None)),
            ),
            models.CheckConstraint(
                name="guard_steps_have_a_floor",
                condition=Q(floor_nanos__isnull=False)
                | Q(warn_at_ppm=None, degrade_at_ppm=None, slow_at_ppm=None, block_at_ppm=None, warn_empty_minutes=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.product.slug}/{self.slug}"


class GuardCap(models.Model):
    """The most that one subject may spend in one window, in nanos of the wallet's unit. 0 allows nothing."""

    class Kind(models.TextChoices):
        RUN = "run"
        SESSION = "session"
        MEMBER = "member"
        KEY = "key", "API key"
        POOL = "pool", "the whole account"

    class Span(models.TextChoices):
        HOUR = "hour"
        DAY = "day"
        PERIOD = "period"
        LIFETIME = "lifetime"

    guard = models.ForeignKey(Guard, on_delete=models.CASCADE, related_name="caps")
    kind = models.CharField(max_length=10, choices=Kind)
    span = models.CharField(max_length=10, choices=Span)
    most_nanos = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["guard", "kind", "span"], name="guard_cap_once"),
            models.CheckConstraint(name="guard_cap_not_negative", condition=Q(most_nanos__gte=0)),
        ]

    def __str__(self) -> str:
        return f"{self.guard}: {self.kind} a {self.span}"


class RateCard(models.Model):
    """How a product turns usage into a price, from ``valid_from`` until the next version of the same slug.

    Never edited and never deleted, nor are its models and prices, which are written in the card's own transaction: a trigger in
    ``pricing/sql/price_book.sql`` refuses the rest. New terms are a new version.
    """

    class Mode(models.TextChoices):
        MARKUP = "markup", "wholesale cost plus a markup"
        CREDIT_RATE = "credit_rate", "tokens per credit, times the model's multiplier"
        PRICE_BOOK = "price_book", "the card's own retail price per model"
        PASS_THROUGH = "pass_through", "wholesale cost, no markup"
        BYO = "byo", "the customer's own provider key: metered, costs and charges nothing"
        INCLUDED = "included", "part of the plan: costs us, charges nothing"

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="rate_cards")
    slug = models.CharField(max_length=64, validators=[SLUG])
    version = models.PositiveIntegerField(default=1)
    valid_from = models.DateTimeField()
    mode = models.CharField(max_length=20, choices=Mode)
    markup_ppm = models.IntegerField(default=0, help_text="500,000 = 50 %. Only for mode markup.")
    tokens_per_credit = models.PositiveIntegerField(null=True, blank=True, help_text="Only for mode credit_rate.")
    default_multiplier_ppm = models.PositiveIntegerField(
        null=True, blank=True, help_text="credit_rate: for models without their own; empty = such models are refused."
    )
    quantum_nanos = models.BigIntegerField(default=1, help_text="A price is rounded up to a multiple of this, once per usage record.")
    minimum_nanos = models.BigIntegerField(default=0, help_text="Least price of a usage record that used anything.")
    credit_value_nanos = models.BigIntegerField(default=1_000_000_000, help_text="List value of one unit of the wallet in nano-USD.")
    notes = models.TextField(blank=True)
    recorded_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["product", "slug", "version"], name="rate_card_version_once"),
            models.UniqueConstraint(fields=["product", "slug", "valid_from"], name="rate_card_start_once"),
            models.CheckConstraint(
                name="rate_card_amounts",
                condition=Q(markup_ppm__gte=0, quantum_nanos__gte=1, minimum_nanos__gte=0, credit_value_nanos__gte=1),
            ),
            models.CheckConstraint(name="rate_card_markup_only_for_markup", condition=Q(mode="markup") | Q(markup_ppm=0)),
            models.CheckConstraint(
                name="rate_card_credits_only_for_credit_rate",
                condition=Q(mode="credit_rate", tokens_per_credit__isnull=False, tokens_per_credit__gte=1)
                | (~Q(mode="credit_rate") & Q(tokens_per_credit=None, default_multiplier_ppm=None)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.product.slug}/{self.slug} v{self.version}"


class RateCardModel(models.Model):
    """One model's own term: its multiplier on a ``credit_rate`` card (1,000,000 = once), or its markup on a ``markup`` card."""

    card = models.ForeignKey(RateCard, on_delete=models.PROTECT, related_name="models")
    provider = models.CharField(max_length=64)
    model = models.CharField(max_length=128)
    multiplier_ppm = models.PositiveIntegerField(null=True, blank=True)
    markup_ppm = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["card", "provider", "model"], name="rate_card_model_once"),
            models.CheckConstraint(
                name="rate_card_model_has_one_term",
                condition=Q(multiplier_ppm__isnull=True, markup_ppm__isnull=False, markup_ppm__gte=0)
                | Q(multiplier_ppm__isnull=False, multiplier_ppm__gte=1, markup_ppm__isnull=True),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


class RateCardPrice(models.Model):
    """One retail price of a ``price_book`` card: what a customer pays for ``per_units`` of a component of a model."""

    card = models.ForeignKey(RateCard, on_delete=models.PROTECT, related_name="prices")
    provider = models.CharField(max_length=64)
    model = models.CharField(max_length=128)
    component = models.CharField(max_length=32)
    price_nanos = models.BigIntegerField()
    per_units = models.BigIntegerField(default=1_000_000)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["card", "provider", "model", "component"], name="rate_card_price_once"),
            models.CheckConstraint(name="rate_card_price_amounts", condition=Q(price_nanos__gte=0, per_units__gte=1)),
        ]

    def __str__(self) -> str:
        return f"{self.provider}:{self.model} {self.component}"


class Plan(models.Model):
    """What can be subscribed to. Its terms are in its versions."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="plans")
    slug = models.CharField(max_length=64, validators=[SLUG])
    name = models.CharField(max_length=120)
    rank = models.PositiveSmallIntegerField(help_text="Order on the pricing page; a higher rank is an upgrade.")
    public = models.BooleanField(default=True, help_text="Shown on the pricing page.")
    available = models.BooleanField(default=True, help_text="In the product's catalog; otherwise only kept for those who are on it.")
    member_plan = models.CharField(
        max_length=64, blank=True, help_text="Slug of the plan that takes this one's place for teams and for persons who belong to one."
    )
    guard = models.CharField(max_length=64, blank=True, help_text="Slug of the runaway guard of its accounts; empty = the product's.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["product", "slug"], name="plan_once")]
        ordering = ["product", "rank"]

    def __str__(self) -> str:
        return f"{self.product.slug}/{self.slug}"


class PlanVersion(models.Model):
    """One version of a plan's terms, from ``valid_from`` until the next.

    Never edited and never deleted, nor are its entitlements, which are written in the version's own transaction (a trigger).
    """

    class Interval(models.TextChoices):
        MONTH = "month"
        YEAR = "year"

    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="versions")
    version = models.PositiveIntegerField(default=1)
    valid_from = models.DateTimeField()
    price_cents = models.IntegerField(null=True, blank=True, help_text="Empty = agreed per customer.")
    currency = models.CharField(max_length=3, default="usd")
    interval = models.CharField(max_length=10, choices=Interval, default=Interval.MONTH)
    per_seat = models.BooleanField(default=False, help_text="The price is per member of the account.")
    trial_days = models.PositiveIntegerField(default=0)
    included_credit_nanos = models.BigIntegerField(default=0, help_text="Granted each paid period.")
    rollover_cap_nanos = models.BigIntegerField(
        null=True, blank=True, help_text="Most unused credit that rolls over; empty = all, 0 = none."
    )
    rollover_periods = models.PositiveSmallIntegerField(
        default=0, help_text="How many periods rolled-over credit lives; 0 = it does not roll over."
    )
    rate_card = models.CharField(max_length=64, help_text="Slug of the rate card that prices this plan's usage.")
    alternative_rate_cards = ArrayField(
        models.CharField(max_length=64), default=list, help_text="Cards a customer may be switched to, e.g. own provider keys."
    )
    cost_tier = models.ForeignKey(CostTier, on_delete=models.PROTECT, null=True, blank=True)
    stripe_product = models.CharField(max_length=120, blank=True)
    stripe_price_setting = models.CharField(max_length=80, blank=True, help_text="Environment variable that holds the Stripe price id.")
    legacy_price_cents = models.IntegerField(null=True, blank=True, help_text="The previous price, kept for a roll-back.")
    charge_automatically = models.BooleanField(default=True)
    notes = models.TextField(blank=True)
    recorded_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["plan", "version"], name="plan_version_once"),
            models.UniqueConstraint(fields=["plan", "valid_from"], name="plan_version_start_once"),
            models.CheckConstraint(
                name="plan_version_amounts",
                condition=(Q(price_cents__gte=0) | Q(price_cents=None))
                & (Q(legacy_price_cents__gte=0) | Q(legacy_price_cents=None))
                & (Q(rollover_cap_nanos__gte=0) | Q(rollover_cap_nanos=None))
                & Q(included_credit_nanos__gte=0),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.plan} v{self.version}"


class Entitlement(models.Model):
    """One allowance of a plan version: a feature that is on, a text (support level), or a limit on a meter.

    ``limit`` NULL means no limit and 0 means nothing allowed; both are different from having no row, which means not entitled.
    """

    class Kind(models.TextChoices):
        FLAG = "flag"
        TEXT = "text"
        LIMIT = "limit"

    class Window(models.TextChoices):
        REQUEST = "request", "each request"
        OPEN = "open", "at the same time"
        HOUR = "hour"
        DAY = "day"
        PERIOD = "period", "billing period"
        LIFETIME = "lifetime"
        COUNT = "count", "existing objects"

    class Mode(models.TextChoices):
        OFF = "off"
        SHADOW = "shadow"
        SOFT = "soft"
        HARD = "hard"

    plan_version = models.ForeignKey(PlanVersion, on_delete=models.PROTECT, related_name="entitlements")
    key = models.CharField(max_length=64, validators=[SLUG], help_text="Feature or meter, e.g. api_access, messages, request_tokens.")
    kind = models.CharField(max_length=10, choices=Kind)
    enabled = models.BooleanField(null=True, blank=True)
    text = models.CharField(max_length=120, blank=True)
    window = models.CharField(max_length=10, choices=Window, blank=True)
    limit = models.BigIntegerField(null=True, blank=True)
    setting = models.CharField(max_length=80, blank=True, help_text="Environment variable that, where it is set, replaces the limit.")
    mode = models.CharField(max_length=10, choices=Mode, default=Mode.HARD)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["plan_version", "key", "window"], name="entitlement_once"),
            models.CheckConstraint(
                name="entitlement_says_what_its_kind_needs",
                condition=Q(kind="flag", enabled__isnull=False, window="", limit=None, setting="")
                | (Q(kind="text", enabled=None, window="", limit=None, setting="") & ~Q(text=""))
                | (Q(kind="limit", enabled=None) & ~Q(window="") & (Q(limit=None) | Q(limit__gte=0))),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.plan_version} {self.key}"


class CreditPack(models.Model):
    """A one-time purchase of credits. A new price or face value is a new version, so that old purchases keep their cost basis.

    Only ``available`` is ever changed (a trigger).
    """

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="packs")
    slug = models.CharField(max_length=64, validators=[SLUG])
    version = models.PositiveIntegerField(default=1)
    valid_from = models.DateTimeField()
    name = models.CharField(max_length=120)
    price_cents = models.IntegerField()
    currency = models.CharField(max_length=3, default="usd")
    credit_nanos = models.BigIntegerField(help_text="Face value: what the customer can spend.")
    expires_after_days = models.PositiveIntegerField(null=True, blank=True)
    stripe_price_setting = models.CharField(max_length=80, blank=True, help_text="Environment variable that holds the Stripe price id.")
    available = models.BooleanField(default=True, help_text="In the product's catalog; otherwise off sale.")
    notes = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["product", "slug", "version"], name="credit_pack_version_once"),
            models.UniqueConstraint(fields=["product", "slug", "valid_from"], name="credit_pack_start_once"),
            models.CheckConstraint(name="credit_pack_amounts", condition=Q(price_cents__gt=0, credit_nanos__gt=0)),
        ]

    def __str__(self) -> str:
        return f"{self.product.slug}/{self.slug} v{self.version}"


class PriceRow(models.Model):
    """What we pay upstream for ``per_units`` of one component of one model, while ``valid``; the price book.

    Rows of one (provider, model, component, context_above, service_level) never overlap in time. A row may be closed (an open end is
    shortened, not into the past) and withdrawn, each once; amount and identity never change and rows are never deleted: the trigger in
    ``pricing/sql/price_book.sql`` refuses the rest.

    ``context_above``: the row applies to requests whose whole context (all input components) has more tokens than this; the highest
    such row wins, for all of the request's tokens (the cliff that providers' long-context prices have).
    """

    provider = models.CharField(max_length=64)
    model = models.CharField(max_length=128)
    component = models.CharField(max_length=32)
    context_above = models.PositiveIntegerField(default=0)
    service_level = models.CharField(max_length=16, default="standard")
    price_nanos = models.BigIntegerField()
    per_units = models.BigIntegerField(default=1_000_000)
    valid = DateTimeRangeField()
    source = models.CharField(max_length=200, help_text="Where the figure comes from.")
    catalog = models.CharField(max_length=64, blank=True, help_text="Slug of the product whose catalog carries this row; empty = imported.")
    recorded_at = models.DateTimeField(db_default=Now(), editable=False)
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "price_book"
        constraints = [
            models.CheckConstraint(name="price_amounts", condition=Q(price_nanos__gte=0, per_units__gte=1)),
            models.CheckConstraint(
                name="price_valid_is_half_open",
                condition=Q(valid__isempty=False, valid__startswith__isnull=False, valid__lower_inc=True, valid__upper_inc=False),
            ),
            ExclusionConstraint(
                name="price_never_overlaps",
                expressions=[
                    *((F(name), RangeOperators.EQUAL) for name in ("provider", "model", "component", "context_above", "service_level")),
                    ("valid", RangeOperators.OVERLAPS),
                ],
                condition=Q(withdrawn_at=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.provider}:{self.model} {self.component}"


class PriceProposal(models.Model):
    """A price row that an import suggests and that staff approve or reject.

    ``valid_from`` NULL means from the approval on; otherwise the provider's own date, past (a gap in the book) or future (announced).
    """

    class State(models.TextChoices):
        PENDING = "pending"
        APPROVED = "approved"
        REJECTED = "rejected"

    provider = models.CharField(max_length=64)
    model = models.CharField(max_length=128)
    component = models.CharField(max_length=32)
    context_above = models.PositiveIntegerField(default=0)
    service_level = models.CharField(max_length=16, default="standard")
    price_nanos = models.BigIntegerField()
    per_units = models.BigIntegerField(default=1_000_000)
    valid_from = models.DateTimeField(null=True, blank=True)
    valid_until = models.DateTimeField(null=True, blank=True, help_text="Exclusive; empty = until the next change.")
    previous = models.ForeignKey(PriceRow, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    source = models.CharField(max_length=200)
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    proposed_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True, blank=True)
    decided_by = models.CharField(max_length=150, blank=True)
    reason = models.CharField(max_length=300, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["provider", "model", "component", "context_above", "service_level", "valid_from", "source"],
                condition=Q(state="pending"),
                nulls_distinct=False,
                name="price_proposal_pending_once",
            ),
            models.CheckConstraint(name="price_proposal_amounts", condition=Q(price_nanos__gte=0, per_units__gte=1)),
            models.CheckConstraint(name="price_proposal_decided_by_somebody", condition=Q(state="pending") | ~Q(decided_by="")),
        ]
        ordering = ["provider", "model", "service_level", "context_above", "component", "id"]

    def __str__(self) -> str:
        return f"{self.provider}:{self.model} {self.component} ({self.state})"


class CatalogChange(models.Model):
    """One ``catalog apply`` that changed something: who, when, from when on, and what. Never edited and never deleted (a trigger)."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="catalog_changes")
    actor = models.CharField(max_length=150)
    applied_at = models.DateTimeField()
    effective_at = models.DateTimeField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the file.")
    diff = models.TextField()

    class Meta:
        constraints = [models.CheckConstraint(name="catalog_change_by_somebody", condition=~Q(actor=""))]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.product} {self.applied_at:%Y-%m-%d %H:%M} {self.actor}"


class Lever(models.Model):
    """Terms of one product that staff changed at once, not by its catalog file: what, from what to what, who and why. Never deleted.

    ``changes`` are ``[path, before, after]`` in the words of the catalog file; null is what the file leaves out. Until it is undone, or the
    file says the same (``adopted_at``), applying a catalog file leaves these terms as they are: see :mod:`pricing.catalog_file`. Levers of
    several products that were pulled in one act share their ``token``.
    """

    class Kind(models.TextChoices):
        COST_LIMITS = "cost_limits", "all cost limits"
        COST_TIER = "cost_tier", "one cost tier"
        THROTTLING = "throttling", "throttling of all tiers"
        REQUEST_SIZE = "request_size", "request size"
        PRICE_BACK = "price_back", "prices back"
        PROMOTE = "promote", "a shadow limit to hard"
        PACK = "pack", "one credit pack"
        PLAN = "plan", "one plan"
        RATE_CARD = "rate_card", "one rate card"

    token = models.UUIDField()
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="levers")
    kind = models.CharField(max_length=20, choices=Kind)
    changes = models.JSONField()
    reason = models.CharField(max_length=300)
    actor = models.CharField(max_length=150)
    pulled_at = models.DateTimeField()
    undone_at = models.DateTimeField(null=True)
    undone_by = models.CharField(max_length=150, blank=True)
    undone_reason = models.CharField(max_length=300, blank=True)
    adopted_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["token", "product"], name="lever_pulled_once"),
            models.CheckConstraint(name="lever_by_somebody", condition=~Q(actor="") & ~Q(reason="")),
            models.CheckConstraint(
                name="lever_undone_by_somebody",
                condition=Q(undone_at=None, undone_by="") | (Q(undone_at__isnull=False, adopted_at=None) & ~Q(undone_by="")),
            ),
        ]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.product}"
