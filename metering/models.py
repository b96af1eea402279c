"""What was used: the names that usage rows refer to by number, and the rows themselves.

``OpenAuthorization`` and ``UsageRecord`` are the ledger's tables (``billing/sql/tables.sql``), written by its verbs only; the models
read them. ``quantities`` are in the order of :data:`pricing.rating.COMPONENTS`, with trailing zeros left out.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from decimal import Decimal

from django.contrib.postgres.fields import ArrayField
from django.db import models

from accounts.models import Account, Approval
from metering import cohort_models as cohort_models  # registers its models
from pricing.models import Product


class UsageModel(models.Model):
    """An upstream model that somebody asked for, priced or not, as ``provider:name``."""

    provider = models.CharField(max_length=64)
    name = models.CharField(max_length=128)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["provider", "name"], name="usage_model_once")]

    def __str__(self) -> str:
        return f"{self.provider}:{self.name}"


class Feature(models.Model):
    """A part of a product that uses models, as its client apps name it."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    slug = models.CharField(max_length=64)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["product", "slug"], name="feature_once")]

    def __str__(self) -> str:
        return self.slug


class _Usage(models.Model):
    """What open and finished work have in common."""

    key_hash = models.UUIDField()
    fingerprint = models.UUIDField()
    model = models.ForeignKey(UsageModel, on_delete=models.DO_NOTHING, related_name="+")
    feature = models.ForeignKey(Feature, on_delete=models.DO_NOTHING, null=True, related_name="+")
    api_key_id = models.BigIntegerField(null=True)
    unit_id = models.SmallIntegerField(null=True)
    rate_card_id = models.IntegerField(null=True)
    price_ids = ArrayField(models.IntegerField(), null=True)
    quantities = ArrayField(models.BigIntegerField())
    hold = models.BigIntegerField()
    cost_nanos = models.BigIntegerField(null=True)
    remaining = ArrayField(models.BigIntegerField(null=True), null=True)
    meters = ArrayField(models.TextField(), null=True)
    counts = models.JSONField(null=True)
    assumed_output_tokens = models.BigIntegerField(null=True)
    expires_at = models.DateTimeField(null=True)
    user_ref = models.TextField(null=True)
    session_ref = models.TextField(null=True)
    run_ref = models.TextField(null=True)

    class Meta:
        abstract = True


class OpenAuthorization(_Usage):
    """Work that was allowed and is not finished."""

    class State(models.TextChoices):
        OPEN = "open"
        TIMED_OUT = "timed_out", "timed out"
        AWAITING_PRICE = "awaiting_price", "awaiting a price"

    id = models.UUIDField(primary_key=True)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="open_authorizations")
    state = models.CharField(max_length=20, choices=State)
    held = models.BigIntegerField()
    created_at = models.DateTimeField()
    hard_expires_at = models.DateTimeField()
    captured = ArrayField(models.BigIntegerField(), null=True)
    captured_at = models.DateTimeField(null=True)

    class Meta:
        managed = False
        db_table = "open_authorization"

    def __str__(self) -> str:
        return str(self.id)


class UsageRecord(_Usage):
    """Finished work, rated: what it cost us (``cost_nanos``, nano-USD) and what was charged (``price_nanos``, of the wallet's unit).

    ``value_nanos`` is the list value of the price in nano-USD; ``waived_nanos`` what the product's overage policy let go. ``counted_at`` is
    set where the event came after its period was closed: then it counts at that time. ``service_level`` None is the standard one.
    """

    class Outcome(models.TextChoices):
        CAPTURED = "captured"
        RECORDED = "recorded"
        RELEASED = "released"
        TIMED_OUT = "timed_out", "timed out"
        UNPRICED = "unpriced"

    id = models.UUIDField(primary_key=True)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="usage_records")
    outcome = models.CharField(max_length=10, choices=Outcome)
    event_at = models.DateTimeField()
    recorded_at = models.DateTimeField()
    counted_at = models.DateTimeField(null=True)
    service_level = models.TextField(null=True)
    authorized_at = models.DateTimeField(null=True)
    price_nanos = models.BigIntegerField(null=True)
    value_nanos = models.BigIntegerField(null=True)
    waived_nanos = models.BigIntegerField()
    first_seq = models.BigIntegerField(null=True)
    entries = models.SmallIntegerField()
    balance_after = models.BigIntegerField(null=True)
    debt_after = models.BigIntegerField(null=True)

    class Meta:
        managed = False
        db_table = "usage_record"
        ordering = ["-id"]

    def __str__(self) -> str:
        return str(self.id)


class OutputHistogram(models.Model):
    """How many captures with so much input had so much output: see :mod:`metering.estimates`, which alone writes it."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    model = models.ForeignKey(UsageModel, on_delete=models.PROTECT, related_name="+")
    feature = models.ForeignKey(Feature, on_delete=models.PROTECT, null=True, related_name="+")
    input_bits = models.SmallIntegerField()
    counts = ArrayField(models.IntegerField(), default=list)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["product", "model", "feature", "input_bits"], name="output_histogram_once", nulls_distinct=False
            )
        ]

    def __str__(self) -> str:
        return f"{self.model} from {self.input_bits} bits of input"


class KillSwitch(models.Model):
    """One thing that is switched, until ``ends_at`` at the latest: for everything (no product), a product, or one account of it.

    What each kind means says :mod:`metering.kill_switches`. Who throws it says why; one for everything was approved by a second person. It
    is ended, never deleted. ``cap_nanos`` is nano-USD of wholesale cost an account and period.
    """

    class Kind(models.TextChoices):
        WORK = "work", "Work stopped"
        PROVIDER = "provider", "Provider off"
        TRACKING = "tracking", "Usage tracking off"
        BALANCE_CHECK = "balance_check", "Balance check off"
        THROTTLING = "throttling", "Throttling off"
        TOP_UPS = "top_ups", "Automatic top-ups off"
        COST_CAP = "cost_cap", "Emergency cost cap"

    kind = models.CharField(max_length=16, choices=Kind, default=Kind.WORK)
    product = models.ForeignKey(Product, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    feature = models.SlugField(max_length=64, blank=True, help_text="Empty: all features.")
    provider = models.CharField(max_length=64, blank=True)
    cap_nanos = models.BigIntegerField(null=True, blank=True)
    reason = models.CharField(max_length=200, help_text="Client apps show it.")
    actor = models.CharField(max_length=150, editable=False)
    approval = models.OneToOneField(Approval, on_delete=models.PROTECT, null=True, editable=False, related_name="+")
    created_at = models.DateTimeField(editable=False)
    ends_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, editable=False)
    ended_by = models.CharField(max_length=150, editable=False, blank=True)
    finished_at = models.DateTimeField(null=True, editable=False, help_text="When client apps were told, and what was spooled was charged.")

    class Meta:
        constraints = [
            models.CheckConstraint(name="kill_switch_ends", condition=models.Q(ends_at__gt=models.F("created_at"))),
            models.CheckConstraint(
                name="kill_switch_ends_within_a_week", condition=models.Q(ends_at__lte=models.F("created_at") + timedelta(days=7))
            ),
            models.CheckConstraint(name="kill_switch_has_a_reason", condition=~models.Q(reason="")),
            models.CheckConstraint(
                name="kill_switch_ended_by_somebody",
                condition=models.Q(ended_at=None, ended_by="") | (models.Q(ended_at__isnull=False) & ~models.Q(ended_by="")),
            ),
            models.CheckConstraint(
                name="kill_switch_for_all_has_a_second_person",
                condition=models.Q(product__isnull=False) | models.Q(approval__isnull=False),
            ),
            models.CheckConstraint(
                name="kill_switch_account_of_a_product", condition=models.Q(account=None) | models.Q(product__isnull=False)
            ),
            models.CheckConstraint(name="kill_switch_feature_of_work", condition=models.Q(feature="") | models.Q(kind="work")),
            models.CheckConstraint(
                name="kill_switch_of_a_provider",
                condition=(models.Q(kind="provider") & ~models.Q(provider="")) | (~models.Q(kind="provider") & models.Q(provider="")),
            ),
            models.CheckConstraint(
                name="kill_switch_cap",
                condition=models.Q(kind="cost_cap", cap_nanos__gte=0) | (~models.Q(kind="cost_cap") & models.Q(cap_nanos=None)),
            ),
        ]
        indexes = [models.Index(fields=["created_at"], condition=models.Q(finished_at=None), name="kill_switch_unfinished")]
        ordering = ["-id"]
        verbose_name_plural = "kill switches"

    def __str__(self) -> str:
        cap = f" of ${Decimal(self.cap_nanos or 0).scaleb(-9).normalize():f} a month" if self.kind == self.Kind.COST_CAP else ""
        provider = f" ({self.provider})" if self.provider else ""
        return f"{self.get_kind_display()}{cap}{provider}: {self.scope}"

    @property
    def scope(self) -> str:
        """``everything``, ``Rover``, ``Rover: chat``, ``Ada (rover)``."""
        if self.account:
            return str(self.account)
        return f"{self.product.name if self.product else 'everything'}{': ' + self.feature if self.feature else ''}"

    @property
    def over_at(self) -> datetime:
        """When it ended, or ends by itself."""
        return self.ended_at or self.ends_at

    def is_in_force(self, now: datetime) -> bool:
        return self.created_at <= now < self.over_at


class SpooledUsage(models.Model):
    """What was asked or reported while usage tracking was off for its account; :mod:`metering.tracking` writes it, and charges it later.

    ``what`` says what it is: work that was let go without a hold, a finished event, or the end of an authorization that had begun before.
    ``command`` is what was asked or reported; ``quantities`` are what work used, once that was reported. ``at`` is when it happened.
    """

    class What(models.TextChoices):
        WORK = "work", "work without a hold"
        EVENT = "event", "finished work"
        CAPTURE = "capture", "capture of a hold"
        RELEASE = "release", "release of a hold"

    class State(models.TextChoices):
        OPEN = "open", "under way"
        WAITING = "waiting", "waits to be charged"
        DONE = "done", "charged"
        RELEASED = "released", "nothing was used"

    ref = models.UUIDField(unique=True, default=uuid.uuid4, help_text="What client apps know work by.")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    what = models.CharField(max_length=8, choices=What)
    state = models.CharField(max_length=8, choices=State)
    key_hash = models.UUIDField(null=True)
    fingerprint = models.UUIDField(null=True)
    authorization_id = models.UUIDField(null=True)
    api_key_id = models.BigIntegerField(null=True)
    command = models.JSONField(default=dict)
    quantities = models.JSONField(null=True)
    at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True)
    spooled_at = models.DateTimeField()
    reported_at = models.DateTimeField(null=True)
    done_at = models.DateTimeField(null=True)
    record_id = models.UUIDField(null=True, help_text="The usage record that it became.")
    error = models.TextField(blank=True, help_text="Why it could not be charged yet. It is tried again each minute.")

    class Meta:
        indexes = [models.Index(fields=["account", "at", "id"], condition=models.Q(state="waiting"), name="spooled_waiting")]
        constraints = [
            models.UniqueConstraint(fields=["account", "key_hash"], name="spooled_key_once"),
            models.UniqueConstraint(fields=["account", "authorization_id"], name="spooled_end_once"),
            models.CheckConstraint(
                name="spooled_is_something",
                condition=models.Q(what__in=["work", "event"], key_hash__isnull=False, fingerprint__isnull=False, authorization_id=None)
                | models.Q(what__in=["capture", "release"], key_hash=None, fingerprint=None, authorization_id__isnull=False),
            ),
            models.CheckConstraint(
                name="spooled_is_reported",
                condition=models.Q(state="open", reported_at=None) | (~models.Q(state="open") & models.Q(reported_at__isnull=False)),
            ),
            models.CheckConstraint(
                name="spooled_is_done",
                condition=models.Q(state__in=["open", "waiting"], done_at=None)
                | models.Q(state__in=["done", "released"], done_at__isnull=False),
            ),
        ]
        ordering = ["at", "id"]
        verbose_name_plural = "spooled usage"

    def __str__(self) -> str:
        return f"{self.get_what_display()} {self.ref}"


class Throttle(models.Model):
    """A stop on one account, written by :func:`billing.ledger.throttle` and lifted by :func:`billing.ledger.resume`."""

    pk = models.CompositePrimaryKey("account_id", "id")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="throttles")
    id = models.BigIntegerField()
    reason = models.TextField()
    actor = models.TextField()
    created_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True)
    lifted_at = models.DateTimeField(null=True)
    lifted_by = models.TextField(null=True)

    class Meta:
        managed = False
        db_table = "usage_throttle"
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"throttle of account {self.account_id}"


class UsageCounter(models.Model):
    """How much of a meter an account has used in one window, kept by the ledger (``billing/sql/counters.sql``). Read only."""

    pk = models.CompositePrimaryKey("account_id", "meter", "window_start")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    meter = models.TextField()
    window_start = models.DateTimeField()
    window_end = models.DateTimeField()
    used = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "usage_counter"

    def __str__(self) -> str:
        return f"{self.meter} of account {self.account_id}"


class CostThrottle(models.Model):
    """An account reached a limit on its wholesale cost: which, by how much, since when, and how that ended. Never deleted.

    A note, not the stop itself: what refuses is the counter. Only ``lifted`` decides something: until ``window_end`` that limit does not
    count for the account. :mod:`metering.throttles` alone writes it. Amounts are nano-USD.
    """

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="cost_throttles")
    meter = models.CharField(max_length=40)
    window_end = models.DateTimeField()
    limit_nanos = models.BigIntegerField()
    used_nanos = models.BigIntegerField()
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    ended_by = models.CharField(max_length=150, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    lifted = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["account", "meter", "window_end"], condition=models.Q(ended_at=None), name="cost_throttle_open_once"
            ),
            models.CheckConstraint(
                name="cost_throttle_ended_by_somebody",
                condition=models.Q(ended_at=None, ended_by="", lifted=False) | (models.Q(ended_at__isnull=False) & ~models.Q(ended_by="")),
            ),
            models.CheckConstraint(
                name="cost_throttle_amounts", condition=models.Q(limit_nanos__gte=0, used_nanos__gte=models.F("limit_nanos"))
            ),
        ]
        indexes = [models.Index(fields=["account", "window_end"], condition=models.Q(lifted=True), name="cost_throttle_lifted")]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.meter} of account {self.account_id}"


class Spend(models.Model):
    """What one subject of a cap has spent in a window (``billing/sql/spend.sql``), in nanos of the wallet's unit."""

    pk = models.CompositePrimaryKey("account_id", "kind", "span", "window_start", "subject")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    kind = models.TextField()
    span = models.TextField()
    window_start = models.DateTimeField()
    subject = models.TextField()
    spent = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "usage_spend"
        ordering = ["-spent", "subject"]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}: {self.spent}"


class GuardState(models.Model):
    """Where an account, one of its API keys or one of its sessions stands with the runaway guard: :mod:`metering.guard` alone writes it.

    The figures are those of the last look: spent in the window before it, usual in such a window, free in the wallet (None: no wallet is
    charged), in nanos of the wallet's unit. ``slow_next_at`` is the bucket of a slowed subject: when the next call would be due at an even
    pace.
    """

    class Kind(models.TextChoices):
        ACCOUNT = "account"
        KEY = "key", "API key"
        SESSION = "session"

    class Step(models.IntegerChoices):
        NONE = 0, "none"
        WARN = 1, "warned"
        DEGRADE = 2, "cheaper model"
        SLOW = 3, "slowed"
        BLOCK = 4, "blocked"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="guard_states")
    kind = models.CharField(max_length=10, choices=Kind)
    ref = models.CharField(max_length=128, blank=True, help_text="The key's number, the session's name; empty for the account.")
    step = models.PositiveSmallIntegerField(choices=Step, default=Step.NONE)
    since = models.DateTimeField(null=True)
    calm_since = models.DateTimeField(null=True)
    peak_nanos = models.BigIntegerField(default=0)
    blocks = models.PositiveSmallIntegerField(default=0)
    blocked_until = models.DateTimeField(null=True)
    excused_until = models.DateTimeField(null=True)
    excused_nanos = models.BigIntegerField(default=0)
    slow_next_at = models.DateTimeField(null=True)
    looked_at = models.DateTimeField()
    window_minutes = models.PositiveSmallIntegerField()
    spent_nanos = models.BigIntegerField()
    usual_nanos = models.BigIntegerField()
    available_nanos = models.BigIntegerField(null=True)
    releases_at = models.DateTimeField(null=True, help_text="When the step ends by itself; empty while spending is not low.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "kind", "ref"], name="guard_state_once"),
            models.CheckConstraint(
                name="guard_state_of_somebody",
                condition=models.Q(kind="account", ref="") | (~models.Q(kind="account") & ~models.Q(ref="")),
            ),
            models.CheckConstraint(name="guard_state_step", condition=models.Q(step__lte=4)),
        ]
        indexes = [models.Index(fields=["account"], condition=~models.Q(step=0), name="guard_state_taken")]
        ordering = ["-looked_at", "-step"]

    def __str__(self) -> str:
        return f"{self.account}: {self.get_kind_display()} {self.ref}".rstrip()


class GuardStep(models.Model):
    """One change of a :class:`GuardState`: to which step, when, by whom and why. Never edited or deleted."""

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="guard_steps")
    kind = models.CharField(max_length=10, choices=GuardState.Kind)
    ref = models.CharField(max_length=128, blank=True)
    before = models.PositiveSmallIntegerField(choices=GuardState.Step)
    step = models.PositiveSmallIntegerField(choices=GuardState.Step)
    mode = models.CharField(max_length=10, help_text="The policy's: shadow and soft refuse nothing.")
    at = models.DateTimeField()
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=500)

    class Meta:
        indexes = [models.Index(fields=["account", "-id"], name="guard_step_newest")]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.get_before_display()} → {self.get_step_display()}"


class GuardPeak(models.Model):
    """The most that an account spent in any window of a day (UTC), in nanos of the wallet's unit: what its usual spend is learned from."""

    pk = models.CompositePrimaryKey("account_id", "day", "window_minutes")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    day = models.DateField()
    window_minutes = models.PositiveSmallIntegerField()
    peak_nanos = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.day}: {self.peak_nanos}"


class ShadowRefusal(models.Model):
    """How often, in one window, an account passed a limit in shadow mode that would have refused it; :mod:`metering.shadow` writes it.

    ``value_nanos`` is the list value (nano-USD) that the passed calls were expected to have when they were authorized.
    """

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    layer = models.CharField(max_length=20)
    meter = models.CharField(max_length=80)
    window_end = models.DateTimeField()
    count = models.BigIntegerField()
    value_nanos = models.BigIntegerField()
    allowed = models.BigIntegerField()
    most_used = models.BigIntegerField()
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "meter", "window_end"], name="shadow_refusal_once"),
            models.CheckConstraint(
                name="shadow_refusal_amounts", condition=models.Q(count__gte=1, value_nanos__gte=0, last_at__gte=models.F("first_at"))
            ),
        ]
        indexes = [models.Index(fields=["last_at"], name="shadow_refusal_last")]

    def __str__(self) -> str:
        return f"{self.meter} of account {self.account_id}"


class Refusal(models.Model):
    """The last refusal of an account by one limit, and how many there were in its window; :mod:`metering.refusals` writes it.

    ``layers`` is what every layer said, ``costs`` its figures in nano-USD of wholesale cost, which no customer is told.
    """

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    layer = models.CharField(max_length=20)
    meter = models.CharField(max_length=80, blank=True)
    resets_at = models.DateTimeField(null=True)
    reason = models.CharField(max_length=500)
    count = models.BigIntegerField()
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()
    model = models.CharField(max_length=200, blank=True)
    feature = models.CharField(max_length=128, blank=True)
    user = models.CharField(max_length=128, blank=True)
    layers = models.JSONField()
    costs = models.JSONField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "layer", "meter"], name="refusal_once"),
            models.CheckConstraint(name="refusal_happened", condition=models.Q(count__gte=1, last_at__gte=models.F("first_at"))),
        ]
        ordering = ["-last_at"]

    def __str__(self) -> str:
        return f"{self.layer} of account {self.account_id}"
