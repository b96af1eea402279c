"""Who holds credits and who is on which plan.

The ledger's tables are made by ``billing/sql/tables.sql`` and written only by the verbs of :mod:`billing.ledger`; the models here read
them. Amounts are nanos of the wallet's unit; ``cash_nanos`` and ``fee_nanos`` are nano-units of the grant's currency.
"""

from __future__ import annotations

import secrets
import uuid

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from accounts.models import Account
from pricing.models import CreditPack, PlanVersion, Unit


class Wallet(models.Model):
    """An account's credits in one unit. ``balance`` includes what is held; ``available`` does not."""

    pk = models.CompositePrimaryKey("account_id", "unit_id")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="wallets")
    unit = models.ForeignKey(Unit, on_delete=models.PROTECT, related_name="+")
    balance = models.BigIntegerField()
    held = models.BigIntegerField()
    debt = models.BigIntegerField()
    seq = models.BigIntegerField()
    due_at = models.DateTimeField(null=True)
    rollover_cap = models.BigIntegerField(null=True)

    class Meta:
        managed = False
        db_table = "wallet"

    def __str__(self) -> str:
        return f"wallet of account {self.account_id}"

    @property
    def available(self) -> int:
        return self.balance - self.held


class Grant(models.Model):
    """A lot of credits that arrived together: from where, for how much cash, until when, and what is left of it.

    ``root_id`` is the grant that a rollover comes from. ``clawed`` is what refunds took from this grant, ``refunded`` what they took for
    it: here, from its rollovers, or as debt.
    """

    id = models.BigAutoField(primary_key=True)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="grants")
    unit = models.ForeignKey(Unit, on_delete=models.PROTECT, related_name="+")
    source = models.CharField(max_length=20)
    source_key = models.CharField(max_length=200)
    root_id = models.BigIntegerField(null=True)
    granted = models.BigIntegerField()
    remaining = models.BigIntegerField()
    frozen = models.BigIntegerField()
    clawed = models.BigIntegerField()
    refunded = models.BigIntegerField()
    priority = models.SmallIntegerField()
    starts_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    cash_nanos = models.BigIntegerField()
    fee_nanos = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    rollover_expires_at = models.DateTimeField(null=True)
    rollover_cap = models.BigIntegerField(null=True)
    rollover_priority = models.SmallIntegerField(null=True)
    closed = models.BooleanField()

    class Meta:
        managed = False
        db_table = "credit_grant"
        ordering = ["priority", "expires_at", "id"]

    def __str__(self) -> str:
        return f"{self.source} {self.id}"


class Schedule(models.Model):
    """What a wallet is granted by itself: ``amount`` at the anchor and every ``months`` after it, but for the first ``skipped`` periods;
    ``granted`` times so far. ``stopped_at``: it was about to grant what it should not, and grants nothing until staff let it go on.
    """

    #: What the role of customers' pages may not read.
    STAFFS_OWN = ("actor", "reason", "stopped_because")

    pk = models.CompositePrimaryKey("account_id", "unit_id")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="schedules")
    unit = models.ForeignKey(Unit, on_delete=models.PROTECT, related_name="+")
    source = models.CharField(max_length=20)
    source_key = models.CharField(max_length=150)
    amount = models.BigIntegerField()
    priority = models.SmallIntegerField()
    anchor_at = models.DateTimeField()
    months = models.SmallIntegerField()
    granted = models.IntegerField()
    skipped = models.IntegerField()
    ends_at = models.DateTimeField(null=True)
    rollover_periods = models.SmallIntegerField()
    rollover_cap = models.BigIntegerField(null=True)
    rollover_priority = models.SmallIntegerField()
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=500)
    stopped_at = models.DateTimeField(null=True)
    stopped_because = models.CharField(max_length=200, null=True)
    released_through = models.DateTimeField(null=True)

    class Meta:
        managed = False
        db_table = "credit_schedule"

    def __str__(self) -> str:
        return f"schedule of account {self.account_id}"


class LedgerEntry(models.Model):
    """One movement on one grant (or of debt alone), immutable."""

    class Kind(models.TextChoices):
        GRANT = "grant"
        USAGE = "usage"
        EXPIRY = "expiry"
        ROLLOVER = "rollover"
        REFUND = "refund"
        FREEZE = "freeze"
        UNFREEZE = "unfreeze"
        REVERSAL = "reversal"
        ADJUSTMENT = "adjustment"
        DEBT = "debt"
        DEBT_REPAID = "debt_repaid", "debt repaid"

    pk = models.CompositePrimaryKey("account_id", "unit_id", "seq")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="ledger_entries")
    unit = models.ForeignKey(Unit, on_delete=models.PROTECT, related_name="+")
    seq = models.BigIntegerField()
    grant_id = models.BigIntegerField(null=True)
    kind = models.CharField(max_length=20, choices=Kind)
    amount = models.BigIntegerField()
    debt_delta = models.BigIntegerField()
    balance_after = models.BigIntegerField()
    debt_after = models.BigIntegerField()
    cash_nanos = models.BigIntegerField()
    fee_nanos = models.BigIntegerField()
    usage_id = models.UUIDField(null=True)
    operation_id = models.BigIntegerField(null=True)
    effective_at = models.DateTimeField()
    recorded_at = models.DateTimeField()

    class Meta:
        managed = False
        db_table = "ledger_entry"
        ordering = ["-seq"]

    def __str__(self) -> str:
        return f"entry {self.seq} of account {self.account_id}"


class UsageRating(models.Model):
    """The one later rating of a usage record that had no price; the record itself never changes.

    ``price_nanos`` is what was charged; ``waived_nanos`` what came too late to be. ``cost_nanos`` and ``value_nanos`` are nano-USD.
    """

    pk = models.CompositePrimaryKey("account_id", "usage_id")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    usage_id = models.UUIDField()
    rated_at = models.DateTimeField()
    cost_nanos = models.BigIntegerField()
    price_nanos = models.BigIntegerField()
    value_nanos = models.BigIntegerField()
    waived_nanos = models.BigIntegerField()
    first_seq = models.BigIntegerField(null=True)
    balance_after = models.BigIntegerField(null=True)
    debt_after = models.BigIntegerField(null=True)
    rate_card_id = models.IntegerField()
    unit_id = models.SmallIntegerField(null=True)
    entries = models.SmallIntegerField()
    price_ids = ArrayField(models.IntegerField())

    class Meta:
        managed = False
        db_table = "usage_rating"

    def __str__(self) -> str:
        return f"rating of {self.usage_id}"


class Operation(models.Model):
    """One of the rare verbs' acts (grant, adjustment, reversal, refund …): its key, who did it and why."""

    id = models.BigAutoField(primary_key=True)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="operations")
    verb = models.CharField(max_length=10)
    key_hash = models.UUIDField()
    fingerprint = models.UUIDField()
    target = models.UUIDField(null=True)
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField()
    grant_id = models.BigIntegerField(null=True)
    amount = models.BigIntegerField()
    balance_after = models.BigIntegerField()
    debt_after = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "operation_key"
        ordering = ["-id"]
        permissions = [("approve_operation", "Can approve credit above the cap of one person")]

    def __str__(self) -> str:
        return f"{self.verb} {self.id}"


class Subscription(models.Model):
    """Which plan an account is on, since when, and until when it is paid. One live subscription an account."""

    class Status(models.TextChoices):
        ACTIVE = "active"
        TRIALING = "trialing"
        PAST_DUE = "past_due", "past due"
        CANCELED = "canceled"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="subscriptions")
    plan_version = models.ForeignKey(PlanVersion, on_delete=models.PROTECT, related_name="subscriptions")
    stripe = models.ForeignKey(
        "StripeSubscription",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        help_text="Who pays for it; empty = nobody.",
    )
    status = models.CharField(max_length=10, choices=Status, default=Status.ACTIVE)
    anchor_at = models.DateTimeField(help_text="Periods are counted from here, so that a 31st stays a 31st.")
    current_period_start = models.DateTimeField()
    current_period_end = models.DateTimeField()
    cancel_at_period_end = models.BooleanField(default=False)
    seats = models.PositiveIntegerField(default=1, help_text="How many members are paid for, where the plan's price is per member.")
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    grace_ends_at = models.DateTimeField(null=True, blank=True, help_text="While it is past due: from then on the default plan counts.")
    trial_ends_at = models.DateTimeField(
        null=True, blank=True, help_text="Of a trial that nobody pays for at Stripe: from then on the default plan counts."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account"], condition=~Q(status="canceled"), name="subscription_live_once"),
            models.CheckConstraint(
                name="subscription_trial",
                condition=Q(trial_ends_at=None)
                | Q(stripe=None, status="trialing", trial_ends_at=F("current_period_end"))
                | Q(stripe=None, status="canceled"),
            ),
            models.CheckConstraint(name="subscription_period", condition=Q(current_period_start__lt=F("current_period_end"))),
            models.CheckConstraint(name="subscription_seats", condition=Q(seats__gte=1)),
            models.CheckConstraint(
                name="subscription_ended",
                condition=Q(status="canceled", ended_at__isnull=False) | (~Q(status="canceled") & Q(ended_at=None)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.account} on {self.plan_version}"


class StripeCustomer(models.Model):
    """Which account a customer at Stripe is. The only source of who pays: what an event says of itself is not believed."""

    id = models.CharField(primary_key=True, max_length=64, help_text="cus_…")
    account = models.OneToOneField(Account, on_delete=models.PROTECT, related_name="stripe_customer")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    def __str__(self) -> str:
        return self.id


class StripeSubscription(models.Model):
    """A subscription at Stripe as it was last read. What of it counts is a :class:`Subscription`.

    ``plan_version`` is the plan that it last had by a price of ours; None while it never had one. ``read_number`` grows with every read.
    While it is past due, the grace counts from the first payment that failed; ``next_step_at`` is when we are to warn, or to end the plan.
    """

    id = models.CharField(primary_key=True, max_length=64, help_text="sub_…")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="stripe_subscriptions")
    status = models.CharField(max_length=24, help_text="As Stripe says it.")
    price_id = models.CharField(max_length=64)
    quantity = models.PositiveIntegerField(default=1)
    plan_version = models.ForeignKey(PlanVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    anchor_at = models.DateTimeField()
    current_period_start = models.DateTimeField()
    current_period_end = models.DateTimeField()
    cancel_at_period_end = models.BooleanField(default=False)
    started_at = models.DateTimeField()
    trial_ends_at = models.DateTimeField(null=True, blank=True, help_text="Of a trial under way, or over; empty = it never had one.")
    ended_at = models.DateTimeField(null=True, blank=True)
    past_due_since = models.DateTimeField(null=True, blank=True)
    grace_ends_at = models.DateTimeField(null=True, blank=True)
    next_step_at = models.DateTimeField(null=True, blank=True)
    discount_ppm = models.PositiveIntegerField(default=0, help_text="Taken off every invoice, until it ends.")
    discount_cents = models.PositiveIntegerField(default=0, help_text="Taken off every invoice beside it.")
    discount_ends_at = models.DateTimeField(null=True, blank=True, help_text="Empty = never, or there is none.")
    read_number = models.BigIntegerField()

    class Meta:
        constraints = [
            models.CheckConstraint(name="stripe_subscription_discount", condition=Q(discount_ppm__lte=1_000_000)),
            models.CheckConstraint(
                name="stripe_subscription_grace",
                condition=Q(
                    status="past_due",
                    past_due_since__isnull=False,
                    grace_ends_at__isnull=False,
                    grace_ends_at__gte=models.F("past_due_since"),
                )
                | (~Q(status="past_due") & Q(past_due_since=None, grace_ends_at=None, next_step_at=None)),
            ),
        ]
        indexes = [models.Index(fields=["next_step_at"], condition=Q(next_step_at__isnull=False), name="stripe_subscription_due")]

    def __str__(self) -> str:
        return self.id


class StripePayment(models.Model):
    """A payment at Stripe as it was last read: a payment intent, or an invoice that was paid without one.

    Amounts are in the smallest unit of ``currency`` and cumulative; ``refunded`` includes what was lost in disputes.
    """

    id = models.CharField(primary_key=True, max_length=64, help_text="pi_… or in_…")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="stripe_payments")
    status = models.CharField(max_length=32, help_text="As Stripe says it.")
    currency = models.CharField(max_length=3)
    paid = models.BigIntegerField()
    refunded = models.BigIntegerField()
    disputed = models.BooleanField(help_text="A dispute is open.")
    description = models.CharField(max_length=500, blank=True, help_text="What was bought; empty where an invoice says it.")
    receipt_url = models.CharField(max_length=500, blank=True, help_text="The receipt's page at Stripe; empty where there is an invoice.")
    note = models.CharField(max_length=1_000, blank=True, help_text="Why it is not in the ledger, or not as it should be: for staff.")
    created_at = models.DateTimeField()
    read_number = models.BigIntegerField()

    class Meta:
        permissions = [("refund_stripepayment", "Can give a payment back")]
        constraints = [models.CheckConstraint(name="stripe_payment_amounts", condition=Q(refunded__gte=0, paid__gte=F("refunded")))]
        indexes = [models.Index(fields=["account", "-created_at"], name="stripe_payment_newest")]

    def __str__(self) -> str:
        return self.id


class PaidTime(models.Model):
    """What of a payment bought no credit but a plan's time: earned evenly from ``starts_at`` to ``ends_at``. Append-only: refunds too.

    ``cash_nanos`` is without taxes, and negative where an invoice charged less than the credit it brought is sold for (what was left of a
    former plan, or of the customer's balance at Stripe). ``back_nanos`` is what of it was given back.
    """

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    payment_id = models.CharField(max_length=64, help_text="pi_… or in_…")
    currency = models.CharField(max_length=3)
    cash_nanos = models.BigIntegerField()
    fee_nanos = models.BigIntegerField()
    back_nanos = models.BigIntegerField()
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    booked_at = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(name="paid_time_forwards", condition=Q(starts_at__lte=F("ends_at")))]
        indexes = [models.Index(fields=["payment_id"], name="paid_time_payment")]
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.payment_id} from {self.starts_at:%Y-%m-%d} to {self.ends_at:%Y-%m-%d}"


class StripeInvoice(models.Model):
    """An invoice at Stripe as it was last read, from when it is no draft any more. Amounts are in the smallest unit of ``currency``."""

    id = models.CharField(primary_key=True, max_length=64, help_text="in_…")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="stripe_invoices")
    number = models.CharField(max_length=64, blank=True)
    status = models.CharField(max_length=16, help_text="As Stripe says it: open, paid, uncollectible or void.")
    description = models.CharField(max_length=500, blank=True)
    currency = models.CharField(max_length=3)
    total = models.BigIntegerField(help_text="With tax; negative where the customer is owed.")
    tax = models.BigIntegerField()
    paid = models.BigIntegerField()
    created_at = models.DateTimeField()
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    hosted_invoice_url = models.CharField(max_length=500, blank=True)
    invoice_pdf = models.CharField(max_length=500, blank=True)
    read_number = models.BigIntegerField()

    class Meta:
        indexes = [models.Index(fields=["account", "-created_at"], name="stripe_invoice_newest")]

    def __str__(self) -> str:
        return self.number or self.id


class AutoTopUp(models.Model):
    """What a customer asked for: below ``threshold_nanos`` of credit, ``pack`` is bought with the saved card, as many as bring the account
    above it, for ``daily_cap_cents`` a day (UTC) at most."""

    account = models.OneToOneField(Account, on_delete=models.PROTECT, primary_key=True, related_name="auto_top_up")
    enabled = models.BooleanField(default=False)
    threshold_nanos = models.BigIntegerField()
    pack = models.CharField(max_length=64, help_text="Slug; the version that is on sale is bought.")
    daily_cap_cents = models.PositiveIntegerField()
    changed_at = models.DateTimeField()
    changed_by = models.CharField(max_length=150)
    look_again_at = models.DateTimeField(help_text="Not looked at before this time; while a worker looks, when its lease ends.")

    class Meta:
        indexes = [models.Index(fields=["look_again_at"], condition=Q(enabled=True), name="auto_top_up_turn")]
        constraints = [
            models.CheckConstraint(name="auto_top_up_amounts", condition=Q(threshold_nanos__gte=0, daily_cap_cents__gt=0)),
        ]

    def __str__(self) -> str:
        return f"automatic top-up of {self.account}"


class TopUp(models.Model):
    """One automatic purchase of credit, or why there was none. It is here before Stripe is asked; its id is the key of all that is asked.

    Pending: the money is under way, or its credit. What is pending counts as funds, and an account has one at most.
    """

    class State(models.TextChoices):
        PENDING = "pending"
        PAID = "paid"
        DECLINED = "declined"
        REFUNDED = "refunded"
        SKIPPED = "skipped", "not charged"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="top_ups")
    pack = models.ForeignKey(CreditPack, on_delete=models.PROTECT, null=True, related_name="+")
    copies = models.PositiveSmallIntegerField(default=0)
    amount_cents = models.PositiveIntegerField(default=0)
    credit_nanos = models.BigIntegerField(default=0)
    currency = models.CharField(max_length=3, default="usd")
    day = models.DateField(help_text="The day in UTC whose cap it counts against.")
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    reason = models.CharField(max_length=300, blank=True, help_text="Customers read it.")
    card = models.CharField(max_length=40, blank=True, help_text="As customers know it.")
    fingerprint = models.CharField(max_length=64, blank=True)
    invoice_id = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField()
    charged_at = models.DateTimeField(null=True, help_text="When Stripe said that it is paid; its credit may still be on the way.")
    finished_at = models.DateTimeField(null=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True, help_text="When a worker goes on with it; empty = there is nothing left to do.")

    class Meta:
        indexes = [
            models.Index(fields=["account", "-created_at"], name="top_up_newest"),
            models.Index(fields=["next_attempt_at"], condition=Q(next_attempt_at__isnull=False), name="top_up_due"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["account"], condition=Q(state="pending"), name="top_up_one_under_way"),
            models.UniqueConstraint(fields=["account", "day", "reason"], condition=Q(state="skipped"), name="top_up_skipped_once_a_day"),
            models.UniqueConstraint(fields=["invoice_id"], condition=~Q(invoice_id=""), name="top_up_invoice_once"),
            models.CheckConstraint(
                name="top_up_buys_something",
                condition=Q(state="skipped", copies=0, amount_cents=0, credit_nanos=0)
                | (~Q(state="skipped") & Q(pack__isnull=False, copies__gte=1, amount_cents__gte=1, credit_nanos__gte=1)),
            ),
            models.CheckConstraint(
                name="top_up_finished",
                condition=Q(state="pending", finished_at=None) | (~Q(state="pending") & Q(finished_at__isnull=False)),
            ),
        ]

    def __str__(self) -> str:
        return f"top-up {self.id}"


class CardDecline(models.Model):
    """The breaker: how often in a row a card was declined for an account, and when it is tried again. None: not by itself."""

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    fingerprint = models.CharField(max_length=64)
    declines = models.PositiveSmallIntegerField(default=0)
    retry_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["account", "fingerprint"], name="card_decline_once")]

    def __str__(self) -> str:
        return f"{self.declines} declines of account {self.account_id}"


class StripePrice(models.Model):
    """A price at Stripe that was made for one version of a plan: an agreed one, which no environment variable names."""

    id = models.CharField(primary_key=True, max_length=64, help_text="price_…")
    plan_version = models.OneToOneField(PlanVersion, on_delete=models.PROTECT, related_name="stripe_price")

    def __str__(self) -> str:
        return self.id


class PriceMove(models.Model):
    """Staff's word that subscribers of a plan get the price of another version, each with the first renewal from ``effective_at`` on.

    ``announced_to``: the last subscription that was told by mail; empty = none yet, None = all.
    """

    to_version = models.ForeignKey(PlanVersion, on_delete=models.PROTECT, related_name="+")
    effective_at = models.DateTimeField()
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField()
    announced_to = models.CharField(max_length=64, null=True, blank=True)
    canceled_at = models.DateTimeField(null=True, blank=True)
    canceled_by = models.CharField(max_length=150, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["to_version"], condition=Q(canceled_at=None), name="price_move_once"),
            models.CheckConstraint(name="price_move_never_back", condition=Q(effective_at__gte=F("created_at"))),
            models.CheckConstraint(name="price_move_has_a_reason", condition=~Q(reason="") & ~Q(actor="")),
        ]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"move to {self.to_version} from {self.effective_at:%Y-%m-%d}"


class Agreement(models.Model):
    """Terms that staff agreed with one customer, who did and why. Never edited: other terms are another agreement."""

    class Collection(models.TextChoices):
        CARD = "card", "by the saved card, through Stripe"
        INVOICE = "invoice", "by an invoice that Stripe sends"
        NONE = "none", "outside of Stripe"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="agreements")
    plan_version = models.OneToOneField(PlanVersion, on_delete=models.PROTECT, related_name="agreement")
    collection = models.CharField(max_length=10, choices=Collection)
    days_until_due = models.PositiveSmallIntegerField(default=30, help_text="Of an invoice that is sent.")
    key = models.CharField(max_length=100, unique=True)
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField()
    next_attempt_at = models.DateTimeField(null=True, help_text="When Stripe is told; empty = it knows, or need not.")
    last_error = models.CharField(max_length=500, blank=True)

    class Meta:
        indexes = [models.Index(fields=["next_attempt_at"], condition=Q(next_attempt_at__isnull=False), name="agreement_due")]
        constraints = [models.CheckConstraint(name="agreement_has_a_reason", condition=~Q(reason="") & ~Q(actor=""))]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.plan_version} of {self.account}"


class LimitOverride(models.Model):
    """Staff set one limit of one account to another value until ``ends_at``. Never edited: another value is another row.

    It counts by time alone: from ``created_at`` until ``ends_at``, or until somebody ends it (``ended_at``). ``value`` and ``was`` are
    counts; of a limit on cost nano-USD. ``was``: what the limit was without it, None no limit.
    """

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="limit_overrides")
    meter = models.CharField(max_length=80)
    value = models.BigIntegerField()
    was = models.BigIntegerField(null=True)
    created_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=500)
    token = models.UUIDField(unique=True, help_text="The mark of the form: sent twice, it is one act.")
    ended_at = models.DateTimeField(null=True)
    ended_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["account", "meter"], condition=Q(ended_at=None), name="limit_override_once"),
            models.CheckConstraint(name="limit_override_value", condition=Q(value__gte=0) & (Q(was=None) | ~Q(was=F("value")))),
            models.CheckConstraint(name="limit_override_ends", condition=Q(ends_at__gt=F("created_at"))),
            models.CheckConstraint(name="limit_override_has_a_reason", condition=~Q(reason="") & ~Q(actor="")),
            models.CheckConstraint(
                name="limit_override_ended_by_somebody",
                condition=Q(ended_at=None, ended_by="") | (Q(ended_at__isnull=False) & ~Q(ended_by="")),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.meter} of account {self.account_id}"


class StripeReconciliation(models.Model):
    """One comparison with Stripe of what changed since ``since``. Unfinished: Stripe did not answer to the end."""

    since = models.DateTimeField()
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    compared = models.PositiveIntegerField(default=0)
    healed = models.JSONField(default=list, help_text="The ids of what we had missed and have taken over.")
    problems = models.JSONField(default=list, help_text="What staff has to look at.")

    class Meta:
        ordering = ["-started_at"]
        indexes = [models.Index(fields=["-started_at"], name="stripe_reconciliation_newest")]

    def __str__(self) -> str:
        return f"{self.started_at:%Y-%m-%d %H:%M}"


class StripeEvent(models.Model):
    """The inbox: an event that Stripe signed, exactly as it came, and what became of it. Stored once, whatever endpoint got it."""

    class State(models.TextChoices):
        PENDING = "pending"
        DONE = "done"
        IGNORED = "ignored"
        QUARANTINED = "quarantined"
        DEAD = "dead"

    event_id = models.CharField(max_length=80, unique=True)
    endpoint = models.CharField(max_length=80, help_text="The path that it was sent to.")
    type = models.CharField(max_length=80, blank=True)
    object_id = models.CharField(max_length=80, blank=True)
    api_version = models.CharField(max_length=40, blank=True)
    livemode = models.BooleanField(null=True)
    created_at = models.DateTimeField(null=True, help_text="When Stripe made it.")
    payload = models.TextField(help_text="The body as it was signed.")
    received_at = models.DateTimeField()
    state = models.CharField(max_length=12, choices=State, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(help_text="Not worked before this time; while it is worked, when its lease ends.")
    last_error = models.TextField(blank=True, help_text="Why it was not done, or not yet.")
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["next_attempt_at", "id"], condition=Q(state="pending"), name="stripe_event_due"),
            models.Index(fields=["-received_at"], name="stripe_event_newest"),
        ]
        constraints = [
            models.CheckConstraint(
                name="stripe_event_done", condition=Q(state="pending", done_at=None) | (~Q(state="pending") & Q(done_at__isnull=False))
            )
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"


class StripeRequest(models.Model):
    """A change that we ask of Stripe, written before it is sent, and what Stripe answered: see :mod:`billing.stripe_requests`."""

    class State(models.TextChoices):
        PENDING = "pending", "no answer yet"
        DONE = "done"
        REFUSED = "refused"
        STUCK = "stuck", "for staff to look at"

    key = models.CharField(max_length=200, unique=True, help_text="Also Stripe's idempotency key, after the first round with its number.")
    kind = models.CharField(max_length=40, help_text="What for; decides what the answer does here.")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, null=True, blank=True, related_name="stripe_requests")
    path = models.CharField(max_length=200)
    changes = models.CharField(max_length=200, blank=True, help_text="The address of what it changes; empty = it creates.")
    params = models.JSONField()
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    round = models.PositiveSmallIntegerField(default=0, help_text="How often it was given another key.")
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(help_text="Not sent by itself before; while somebody sends it, when their lease ends.")
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, blank=True, help_text="First sent under its present key, which Stripe keeps for 24 hours.")
    answer_id = models.CharField(max_length=80, blank=True, help_text="The object that Stripe answered with.")
    last_error = models.TextField(blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["next_attempt_at", "id"], condition=Q(state="pending"), name="stripe_request_due"),
            models.Index(fields=["changes", "kind"], condition=Q(state__in=["pending", "stuck"]), name="stripe_request_open"),
            models.Index(fields=["-created_at"], name="stripe_request_newest"),
        ]
        constraints = [
            models.CheckConstraint(
                name="stripe_request_finished",
                condition=Q(state="pending", finished_at=None) | (~Q(state="pending") & Q(finished_at__isnull=False)),
            )
        ]

    def __str__(self) -> str:
        return self.key


def new_checkout_id() -> str:
    return "co_" + secrets.token_hex(10)


class Checkout(models.Model):
    """One visit to Stripe's hosted Checkout: what is bought, for how much, and how it ended, as Stripe says it and never as a browser does.

    ``amount_cents`` is what all of it costs, before discounts and taxes; in a trial what it will cost each period. ``completed`` while it
    is open: the customer has finished the page, and the bank takes its time.
    """

    class State(models.TextChoices):
        OPEN = "open"
        PAID = "paid"
        FAILED = "failed"
        EXPIRED = "expired"

    public_id = models.CharField(max_length=32, unique=True, default=new_checkout_id, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="checkouts")
    pack = models.ForeignKey(CreditPack, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    plan_version = models.ForeignKey(PlanVersion, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    thing = models.CharField(max_length=80, help_text="What is bought, of which one at a time can be: pack:<slug>, or plan.")
    name = models.CharField(max_length=160, help_text="The same, for people.")
    quantity = models.PositiveIntegerField(default=1)
    amount_cents = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    trial_days = models.PositiveIntegerField(default=0)
    state = models.CharField(max_length=10, choices=State, default=State.OPEN)
    completed = models.BooleanField(default=False)
    session_id = models.CharField(
        max_length=120, unique=True, null=True, blank=True, help_text="cs_…; empty = Stripe has not answered yet."
    )
    url = models.TextField(blank=True, help_text="Where the customer pays, while that can be done.")
    success_url = models.TextField()
    cancel_url = models.TextField()
    key = models.CharField(max_length=255, null=True, blank=True, help_text="The caller's Idempotency-Key.")
    fingerprint = models.UUIDField(null=True, blank=True, help_text="What was asked for under the key.")
    actor = models.CharField(max_length=150)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    read_number = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "thing"], condition=Q(state="open", completed=False), name="checkout_open_once"),
            models.UniqueConstraint(fields=["account", "key"], name="checkout_key_once"),
            models.CheckConstraint(
                name="checkout_of_one_thing",
                condition=Q(pack__isnull=False, plan_version=None) | Q(pack=None, plan_version__isnull=False, thing="plan"),
            ),
            models.CheckConstraint(name="checkout_amounts", condition=Q(amount_cents__gt=0, quantity__gte=1)),
        ]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.name}, {self.public_id}"


class PlanChange(models.Model):
    """A move to another price, written before Stripe is asked for it: it says which version of a plan that price means here.

    The price of a lower plan is at Stripe at once, for the next invoice, and the plan that is paid for is kept until then. What counts
    follows from this row and from the price and the period that Stripe says, whatever came when: in a period that began before
    ``keeps_until``, ``to_price_id`` means ``from_version`` still. A move that counts at once keeps nothing: its ``keeps_until`` is the
    beginning of the period.
    """

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="plan_changes")
    subscription_id = models.CharField(max_length=64, help_text="sub_…")
    from_version = models.ForeignKey(PlanVersion, on_delete=models.PROTECT, related_name="+")
    from_price_id = models.CharField(max_length=64)
    to_version = models.ForeignKey(PlanVersion, on_delete=models.PROTECT, related_name="+")
    to_price_id = models.CharField(max_length=64)
    keeps_until = models.DateTimeField(help_text="The end of the period that is paid for.")
    actor = models.CharField(max_length=150)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["subscription_id", "-id"], name="plan_change_newest")]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.from_version} → {self.to_version}"
