"""What admin shows that is no table of another app: SQL views that are never written. And whom to look at."""

from __future__ import annotations

from django.db import models

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
