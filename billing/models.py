"""Who holds credits and who is on which plan.

The ledger's tables are made by ``billing/sql/tables.sql`` and written only by the verbs of :mod:`billing.ledger`; the models here read
them. Amounts are nanos of the wallet's unit; ``cash_nanos`` and ``fee_nanos`` are nano-units of the grant's currency.
"""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from accounts.models import Account
from pricing.models import PlanVersion, Unit


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
    """What a wallet is granted by itself: ``amount`` at the anchor and every ``months`` after it, ``granted`` times so far."""

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
    ends_at = models.DateTimeField(null=True)
    rollover_periods = models.SmallIntegerField()
    rollover_cap = models.BigIntegerField(null=True)
    rollover_priority = models.SmallIntegerField()
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=500)

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
    status = models.CharField(max_length=10, choices=Status, default=Status.ACTIVE)
    anchor_at = models.DateTimeField(help_text="Periods are counted from here, so that a 31st stays a 31st.")
    current_period_start = models.DateTimeField()
    current_period_end = models.DateTimeField()
    cancel_at_period_end = models.BooleanField(default=False)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account"], condition=~Q(status="canceled"), name="subscription_live_once"),
            models.CheckConstraint(name="subscription_period", condition=Q(current_period_start__lt=models.F("current_period_end"))),
            models.CheckConstraint(
                name="subscription_ended",
                condition=Q(status="canceled", ended_at__isnull=False) | (~Q(status="canceled") & Q(ended_at=None)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.account} on {self.plan_version}"
