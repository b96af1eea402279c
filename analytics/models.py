"""What analytics keeps: views that admin shows, whom to look at, the runs of jobs, and what the audit found."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import Account
from billing.models import LedgerEntry
from pricing.models import Unit


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
