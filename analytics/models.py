"""What analytics keeps: views that admin shows, whom to look at, the runs of jobs, what the audit found, and alerts."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import F, Q

from accounts.models import Account
from analytics import bill_models as bill_models  # registers its models
from billing.models import LedgerEntry, Subscription
from pricing.models import SLUG, CatalogChange, PlanVersion, Product, Unit


class Entry(models.Model):
    """A ledger entry under one text key, ``<account>-<unit>-<seq>``: admin knows no composite ones."""

    id = models.TextField(primary_key=True)
    account = models.ForeignKey(Account, on_delete=models.DO_NOTHING, related_name="+")
    unit = models.ForeignKey(Unit, on_delete=models.DO_NOTHING, related_name="+")
    seq = models.BigIntegerField()
    kind = models.CharField(max_length=20, choices=LedgerEntry.Kind)
    amount = models.BigIntegerField()
    debt_delta = models.BigIntegerField()
    balance_after = models.BigIntegerField()
    debt_after = models.BigIntegerField()
    grant_id = models.BigIntegerField(null=True)
    usage_id = models.UUIDField(null=True)
    operation_id = models.BigIntegerField(null=True)
    effective_at = models.DateTimeField()
    recorded_at = models.DateTimeField()

    class Meta:
        managed = False
        db_table = "browsable_entry"
        default_permissions = ("view",)
        verbose_name = "ledger entry"
        verbose_name_plural = "ledger entries"

    def __str__(self) -> str:
        return f"entry {self.seq}"


class Margin(models.Model):
    """The margin report's place in admin and its permission. Never queried: :mod:`analytics.margin` reads the view."""

    day = models.DateField(primary_key=True)

    class Meta:
        managed = False
        db_table = "live_rollup_model"
        default_permissions = ("view",)
        verbose_name_plural = "margin"

    def __str__(self) -> str:
        return str(self.day)


class UsedLately(models.Model):
    """An account that used something since it was last looked at: written by the fold (``analytics/sql/used_lately.sql``)."""

    account = models.OneToOneField(Account, on_delete=models.PROTECT, primary_key=True, related_name="+")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"account {self.pk}"


class JobRun(models.Model):
    """One run of a job, or the trouble that one subject of it makes (:mod:`analytics.jobs`). The row comes first: it says what is due.

    A run that is not over and is past ``late_at`` is late, whoever asks: no table of jobs is needed to see it.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"  # given up: staff may have it tried again

    job = models.CharField(max_length=40)
    subject = models.CharField(max_length=64, blank=True, help_text="What of the job fails, by its public id; empty: the run itself.")
    due_at = models.DateTimeField()
    late_at = models.DateTimeField(help_text="Not over by then: late.")
    state = models.CharField(max_length=7, choices=State, default=State.WAITING)
    attempts = models.PositiveIntegerField(default=0)
    fence = models.PositiveIntegerField(default=0, help_text="Counts who took the run; only the last one may say how it ended.")
    next_attempt_at = models.DateTimeField()
    lease_until = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=100, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    rows = models.BigIntegerField(null=True, blank=True)
    error = models.TextField(blank=True)
    actor = models.CharField(max_length=200, blank=True, help_text="Who asked for the run; empty: the calendar.")
    reason = models.CharField(max_length=500, blank=True)

    class Meta:
        default_permissions = ("view", "change")
        ordering = ("-due_at", "-pk")
        constraints = [
            models.UniqueConstraint(fields=["job", "subject", "due_at"], name="job_run_once"),
            models.UniqueConstraint(fields=["job"], condition=Q(state="running", subject=""), name="job_run_one_at_a_time"),
            models.UniqueConstraint(fields=["job"], condition=Q(state="waiting", subject="", actor=""), name="job_run_one_planned"),
            models.UniqueConstraint(fields=["job"], condition=Q(state="waiting", subject="") & ~Q(actor=""), name="job_run_one_asked_for"),
            models.UniqueConstraint(
                fields=["job", "subject"], condition=~Q(subject="") & ~Q(state="done"), name="job_run_one_trouble_a_subject"
            ),
            models.CheckConstraint(
                condition=Q(state="running", lease_until__isnull=False) | ~Q(state="running") & Q(lease_until=None), name="job_run_leased"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["done", "failed"], ended_at__isnull=False) | Q(state__in=["waiting", "running"], ended_at=None),
                name="job_run_ended",
            ),
            models.CheckConstraint(condition=Q(actor="", reason="") | ~Q(actor="") & ~Q(reason=""), name="job_run_asked_with_a_reason"),
        ]
        indexes = [models.Index(fields=["late_at"], condition=~Q(state="done"), name="job_run_open")]

    def __str__(self) -> str:
        return f"{self.job}{f' of {self.subject}' if self.subject else ''}, due {self.due_at:%Y-%m-%d %H:%M} UTC"


class AuditFinding(models.Model):
    """Something that the audit found not to hold, from the audit that saw it first to the one that saw it no more."""

    check_name = models.CharField(max_length=100)
    account_id = models.BigIntegerField(null=True, blank=True)
    text = models.TextField()
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    gone_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        default_permissions = ("view",)
        ordering = ("-last_seen_at", "-pk")

    def __str__(self) -> str:
        return f"{self.check_name}: {self.text[:80]}"


class AlertChannel(models.Model):
    """Where staff are told: some mail addresses, a Slack channel, Sentry, or an address of their own that takes JSON."""

    class Kind(models.TextChoices):
        MAIL = "mail"
        SLACK = "slack", "Slack incoming webhook"
        SENTRY = "sentry", "Sentry"
        WEBHOOK = "webhook", "outgoing webhook"

    name = models.CharField(max_length=60, unique=True)
    kind = models.CharField(max_length=8, choices=Kind)
    target = models.TextField(
        blank=True,
        help_text="Mail: addresses, between commas; empty = ALERT_EMAILS. Slack, webhook: an address. Sentry: nothing.",
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="alert_channel_has_an_address",
                condition=Q(kind="mail") | Q(kind="sentry", target="") | Q(kind__in=["slack", "webhook"]) & ~Q(target=""),
            )
        ]
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class AlertRule(models.Model):
    """What staff want to hear of: a metric on the wrong side of a threshold. Turned off, never deleted: its alerts are history.

    ``threshold`` and ``minimum`` are in the metric's own unit (:mod:`analytics.alert_metrics`): parts per million of a share, nano-USD,
    seconds, or a number. No threshold: the product's own alert margin, from its catalog.
    """

    class Comparator(models.TextChoices):
        BELOW = "lt", "below"
        AT_MOST = "le", "at most"
        ABOVE = "gt", "above"
        AT_LEAST = "ge", "at least"

    class Severity(models.TextChoices):
        WARNING = "warning"
        CRITICAL = "critical"

    class Window(models.TextChoices):
        FIVE_MINUTES = "5m", "5 minutes"
        QUARTER = "15m", "15 minutes"
        HOUR = "1h", "hour"
        DAY = "1d", "day"
        WEEK = "7d", "7 days"
        THIRTY_DAYS = "30d", "30 days"
        MONTH = "month", "calendar month (UTC)"

    slug = models.CharField(max_length=64, unique=True, validators=[SLUG], editable=False)
    name = models.CharField(max_length=120)
    metric = models.CharField(max_length=40)
    numerator = models.CharField(max_length=20, blank=True, help_text="Of a share or a margin: the cost. Of an amount: what is added up.")
    denominator = models.CharField(max_length=20, blank=True, help_text="Of a share or a margin: the revenue.")
    comparator = models.CharField(max_length=2, choices=Comparator)
    threshold = models.BigIntegerField(null=True, blank=True)
    minimum = models.BigIntegerField(default=0)
    window = models.CharField(max_length=5, choices=Window, default=Window.FIVE_MINUTES)
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.WARNING)
    product = models.ForeignKey(
        Product, on_delete=models.PROTECT, null=True, blank=True, related_name="+", help_text="Empty: all, each product for itself."
    )
    channels = models.ManyToManyField(AlertChannel, blank=True, related_name="rules")
    cool_down_minutes = models.PositiveIntegerField(default=60, help_text="An alert is told at most once in this time, however it flaps.")
    enabled = models.BooleanField(default=True)
    muted_until = models.DateTimeField(null=True, blank=True, editable=False)
    muted_by = models.CharField(max_length=150, blank=True, editable=False)
    mute_reason = models.CharField(max_length=200, blank=True, editable=False)
    looked_at = models.DateTimeField(null=True, editable=False)
    error = models.CharField(max_length=300, blank=True, editable=False, help_text="Why it could not be looked at the last time.")

    class Meta:
        default_permissions = ("add", "change", "view")
        constraints = [
            models.CheckConstraint(name="alert_rule_minimum", condition=Q(minimum__gte=0)),
            models.CheckConstraint(name="alert_rule_cool_down", condition=Q(cool_down_minutes__gte=1, cool_down_minutes__lte=10_080)),
            models.CheckConstraint(
                name="alert_rule_muted_by_somebody",
                condition=Q(muted_until=None, muted_by="", mute_reason="")
                | Q(muted_until__isnull=False) & ~Q(muted_by="") & ~Q(mute_reason=""),
            ),
        ]
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.name


class Alert(models.Model):
    """A metric that is, or was, where its rule does not want it. Written by :mod:`analytics.alerts` alone.

    ``value``, ``text`` and ``rows`` are of the last look that found it so; ``told`` is what its channels heard last.
    """

    class State(models.TextChoices):
        OPEN = "open"
        ACKNOWLEDGED = "acknowledged"
        RESOLVED = "resolved"

    class Told(models.TextChoices):
        NOTHING = "", "nothing"
        FIRED = "fired"
        RESOLVED = "resolved"

    rule = models.ForeignKey(AlertRule, on_delete=models.PROTECT, related_name="alerts")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, null=True, related_name="+")
    state = models.CharField(max_length=12, choices=State, default=State.OPEN)
    severity = models.CharField(max_length=8, choices=AlertRule.Severity)
    text = models.TextField()
    value = models.BigIntegerField()
    rows = models.JSONField(default=list, help_text="What it is about, by name; the first of them.")
    link = models.CharField(max_length=300, blank=True)
    times = models.PositiveIntegerField(default=1, help_text="How often it came back within its cool-down, and the first time.")
    opened_at = models.DateTimeField()
    seen_at = models.DateTimeField(help_text="When it was last seen to be so.")
    acknowledged_at = models.DateTimeField(null=True)
    acknowledged_by = models.CharField(max_length=150, blank=True)
    note = models.CharField(max_length=500, blank=True)
    resolved_at = models.DateTimeField(null=True)
    resolved_by = models.CharField(max_length=150, blank=True, help_text="Empty: the metric came back by itself.")
    told = models.CharField(max_length=8, choices=Told, default=Told.NOTHING, blank=True)
    told_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ("view", "change")
        constraints = [
            models.UniqueConstraint(
                fields=["rule", "product"], condition=~Q(state="resolved"), name="alert_open_once", nulls_distinct=False
            ),
            models.CheckConstraint(
                name="alert_resolved", condition=Q(state="resolved", resolved_at__isnull=False) | ~Q(state="resolved") & Q(resolved_at=None)
            ),
            models.CheckConstraint(
                name="alert_acknowledged_by_somebody",
                condition=Q(acknowledged_at=None, acknowledged_by="") & ~Q(state="acknowledged")
                | Q(acknowledged_at__isnull=False) & ~Q(acknowledged_by=""),
            ),
            models.CheckConstraint(name="alert_told", condition=Q(told="", told_at=None) | ~Q(told="") & Q(told_at__isnull=False)),
        ]
        indexes = [models.Index(fields=["rule", "product", "-opened_at"], name="alert_latest")]
        ordering = ["-opened_at"]

    def __str__(self) -> str:
        return self.text


class AlertNotice(models.Model):
    """One telling of an alert on one channel: written with what it tells, sent afterwards (:mod:`analytics.alert_notices`)."""

    class State(models.TextChoices):
        PENDING = "pending"
        SENT = "sent"
        DEAD = "dead"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    channel = models.ForeignKey(AlertChannel, on_delete=models.PROTECT, related_name="notices")
    alert = models.ForeignKey(Alert, on_delete=models.PROTECT, null=True, related_name="notices", help_text="None: a test of the channel.")
    event = models.CharField(max_length=8, choices=[("fired", "fired"), ("resolved", "resolved"), ("test", "test")])
    subject = models.CharField(max_length=200)
    text = models.TextField()
    state = models.CharField(max_length=8, choices=State, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(help_text="Not sent before this time; while it is being sent, when its lease ends.")
    error = models.TextField(blank=True)
    queued_at = models.DateTimeField()
    done_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ("view",)
        indexes = [
            models.Index(fields=["next_attempt_at"], condition=Q(state="pending"), name="alert_notice_due"),
            models.Index(fields=["-queued_at"], name="alert_notice_newest"),
        ]
        constraints = [
            models.CheckConstraint(
                name="alert_notice_done", condition=Q(state="pending", done_at=None) | ~Q(state="pending") & Q(done_at__isnull=False)
            ),
            models.CheckConstraint(
                name="alert_notice_tests_or_tells", condition=Q(event="test", alert=None) | ~Q(event="test") & Q(alert__isnull=False)
            ),
        ]
        ordering = ["-queued_at"]

    def __str__(self) -> str:
        return self.subject


class ProviderBill(models.Model):
    """What an upstream provider billed for whole days in UTC: what our own record of its cost is held against.

    Typed in by staff, or imported from files (:mod:`analytics.bills`); then ``digest`` names them and the lines are kept. Never changed. Of
    several for the same days the last one entered counts.
    """

    provider = models.CharField(max_length=64, help_text="As models name it: openai, anthropic, e2b.")
    since = models.DateField()
    until = models.DateField(help_text="The first day that it does not cover.")
    billed_nanos = models.BigIntegerField(help_text="Nano-USD, for usage alone: without tax, credits and fees.")
    other_nanos = models.BigIntegerField(default=0, editable=False, help_text="Credits, discounts, taxes and fees on it.")
    source = models.CharField(max_length=300, blank=True, editable=False, help_text="The exports and files it came from; empty: typed in.")
    digest = models.CharField(max_length=64, blank=True, editable=False, help_text="SHA-256 of the files.")
    entered_by = models.CharField(max_length=150, editable=False)
    entered_at = models.DateTimeField(editable=False)

    class Meta:
        default_permissions = ("add", "view")
        constraints = [
            models.UniqueConstraint(fields=["provider", "since", "until"], condition=Q(digest=""), name="provider_bill_once"),
            models.UniqueConstraint(fields=["digest"], condition=~Q(digest=""), name="provider_bill_imported_once"),
            models.CheckConstraint(name="provider_bill_days", condition=Q(until__gt=F("since"))),
            models.CheckConstraint(name="provider_bill_not_negative", condition=Q(billed_nanos__gte=0)),
        ]
        ordering = ["-until", "provider", "-entered_at"]

    def __str__(self) -> str:
        return f"{self.provider}, {self.since} until {self.until}"


class SubscriptionTerm(models.Model):
    """What a subscription stood at from ``from_at`` until ``until_at`` (empty: it still does), or ``lapses_at``, whichever comes first.

    Written by a trigger in the transaction of what changed (``analytics/sql/subscription_terms.sql``); nothing else writes it. What is
    paid a month follows from it: the view ``subscription_revenue``.
    """

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    subscription = models.ForeignKey(Subscription, on_delete=models.CASCADE, related_name="+")
    plan_version = models.ForeignKey(PlanVersion, on_delete=models.PROTECT, related_name="+", db_index=False)
    status = models.CharField(max_length=10, choices=Subscription.Status)
    seats = models.PositiveIntegerField()
    discount_ppm = models.PositiveIntegerField(help_text="Taken off each invoice, until the discount ends.")
    discount_cents = models.PositiveIntegerField(help_text="Taken off each invoice beside it.")
    discount_ends_at = models.DateTimeField(null=True)
    lapses_at = models.DateTimeField(null=True, help_text="When a trial or the grace of an unpaid plan is over.")
    from_at = models.DateTimeField()
    until_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(fields=["subscription"], condition=Q(until_at=None), name="subscription_term_open_once"),
            models.CheckConstraint(name="subscription_term_not_empty", condition=Q(until_at=None) | Q(until_at__gt=F("from_at"))),
        ]
        ordering = ["-from_at", "-pk"]

    def __str__(self) -> str:
        return f"{self.plan_version} of {self.account} from {self.from_at:%Y-%m-%d}"


class MarketingSpend(models.Model):
    """What was spent in a month to win customers, typed in by staff. Several rows of a month add up; one below zero puts another right."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    month = models.DateField(help_text="The first day of the month.")
    amount_cents = models.BigIntegerField(help_text="US cents.")
    what = models.CharField(max_length=200, help_text="What for, and where the bill is.")
    entered_by = models.CharField(max_length=150, editable=False)
    entered_at = models.DateTimeField(editable=False)

    class Meta:
        default_permissions = ("add", "view")
        constraints = [
            models.CheckConstraint(name="marketing_spend_of_a_month", condition=Q(month__day=1)),
            models.CheckConstraint(name="marketing_spend_of_something", condition=~Q(amount_cents=0) & ~Q(what="")),
        ]
        ordering = ["-month", "-pk"]
        verbose_name_plural = "marketing spend"

    def __str__(self) -> str:
        return f"{self.what}, {self.month:%B %Y}"


class HourlyFigures(models.Model):
    """How a product stood at a full hour: what its calendar month (UTC) had cost and brought so far, and who was near a limit or stopped.

    ``gifts_cost_nanos`` is what usage paid by given credit cost us since the row before. Nano-USD.
    """

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField()
    cost_nanos = models.BigIntegerField()
    subscriptions_nanos = models.BigIntegerField()
    packs_nanos = models.BigIntegerField()
    active = models.PositiveIntegerField(help_text="Accounts that used something this month.")
    near_limit = models.PositiveIntegerField(help_text="Accounts that have used 90 % or more of a limit on cost.")
    throttled = models.PositiveIntegerField()
    gifts_cost_nanos = models.BigIntegerField()

    class Meta:
        default_permissions = ("view",)
        constraints = [models.UniqueConstraint(fields=["product", "at"], name="hourly_figures_once")]
        ordering = ["-at", "product"]
        verbose_name_plural = "hourly figures"

    def __str__(self) -> str:
        return f"{self.product}, {self.at:%Y-%m-%d %H:%M}"

    @property
    def revenue_nanos(self) -> int:
        return self.subscriptions_nanos + self.packs_nanos


class DraftReplay(models.Model):
    """A period's real usage under a draft of a product's catalog: asked for, worked in the background, and kept (:mod:`analytics.drafts`).

    ``done`` counts uses, of about ``total``. ``fence`` counts who took it: only the last may say how it goes on.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="+")
    name = models.CharField(max_length=120)
    document = models.JSONField()
    changes = models.TextField(blank=True, help_text="What the draft said otherwise than the catalog when it was asked for.")
    since = models.DateTimeField()
    until = models.DateTimeField()
    state = models.CharField(max_length=9, choices=State, default=State.WAITING)
    asked_by = models.CharField(max_length=150)
    asked_at = models.DateTimeField()
    total = models.BigIntegerField(default=0)
    done = models.BigIntegerField(default=0)
    attempts = models.PositiveSmallIntegerField(default=0)
    fence = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    ended_by = models.CharField(max_length=150, blank=True, help_text="Who cancelled it.")
    error = models.TextField(blank=True)
    summary = models.JSONField(default=dict)
    applied = models.ForeignKey(CatalogChange, on_delete=models.PROTECT, null=True, related_name="+")

    class Meta:
        default_permissions = ("add", "change", "view")
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(name="draft_replay_period", condition=Q(since__lt=F("until"))),
            models.CheckConstraint(
                name="draft_replay_leased",
                condition=Q(state="running", lease_until__isnull=False) | ~Q(state="running") & Q(lease_until=None),
            ),
            models.CheckConstraint(
                name="draft_replay_ended",
                condition=Q(state__in=["waiting", "running"], ended_at=None)
                | Q(state__in=["done", "failed", "cancelled"], ended_at__isnull=False),
            ),
        ]
        indexes = [models.Index(fields=["id"], condition=Q(state__in=["waiting", "running"]), name="draft_replay_open")]

    def __str__(self) -> str:
        return self.name

    @property
    def percent(self) -> int:
        """How far it is, of 100; a replay under way is never shown as finished."""
        return 100 if self.state == self.State.DONE else min(99, self.done * 100 // self.total) if self.total else 0


class DraftReplayAccount(models.Model):
    """One account's figures in both worlds (:class:`analytics.drafts.worlds.Figures`). ``change_nanos`` is what the customer would have
    paid more, list value of usage and the plan's price together, in nano-USD."""

    replay = models.ForeignKey(DraftReplay, on_delete=models.CASCADE, related_name="accounts")
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+")
    change_nanos = models.BigIntegerField()
    refused_count = models.BigIntegerField()
    first_refused_at = models.DateTimeField(null=True)
    old = models.JSONField()
    new = models.JSONField()
    refused = models.JSONField(help_text="By limit: how often, its list value, the first and the last time.")

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["replay", "account"], name="draft_replay_account_once")]
        indexes = [models.Index(fields=["replay", "change_nanos"], name="draft_replay_winners")]

    def __str__(self) -> str:
        return f"{self.account_id} of replay {self.replay_id}"


class ChecklistTick(models.Model):
    """Staff said that an item of a checklist holds, or no longer does. The last one counts; none is changed or deleted (a trigger)."""

    checklist = models.CharField(max_length=40)
    item = models.CharField(max_length=40)
    done = models.BooleanField()
    note = models.CharField(max_length=300)
    actor = models.CharField(max_length=150)
    ticked_at = models.DateTimeField()

    class Meta:
        default_permissions = ("add", "view")
        constraints = [models.CheckConstraint(name="checklist_tick_says_why", condition=~Q(note="") & ~Q(actor=""))]
        verbose_name = "checklist"

    def __str__(self) -> str:
        return f"{self.checklist}: {self.item}"


class Review(models.Model):
    """That somebody went through one point of a review list, for one day, week or month: who, when, and the figure that stood there."""

    item = models.CharField(max_length=64)
    period = models.DateField(help_text="The first day of the day, week or month.")
    figure = models.CharField(max_length=200)
    note = models.CharField(max_length=500, blank=True)
    reviewed_by = models.CharField(max_length=150)
    reviewed_at = models.DateTimeField()

    class Meta:
        default_permissions = ("add", "view")
        constraints = [models.UniqueConstraint(fields=["item", "period"], name="review_once")]
        ordering = ["-reviewed_at"]

    def __str__(self) -> str:
        return f"{self.item}, {self.period}"
