# ruff: noqa: DJ008 -- nobody looks at these rows
"""The tables of a prepaid ledger as one would write them with the ORM. Amounts are nanos."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models


class _Row(models.Model):
    objects: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        abstract = True


class Account(_Row):
    open_count = models.IntegerField(default=0)


class Wallet(_Row):
    account = models.OneToOneField(Account, on_delete=models.PROTECT)
    balance = models.BigIntegerField()
    held = models.BigIntegerField(default=0)
    debt = models.BigIntegerField(default=0)
    seq = models.BigIntegerField(default=0)


class Grant(_Row):
    account = models.ForeignKey(Account, on_delete=models.PROTECT)
    granted = models.BigIntegerField()
    remaining = models.BigIntegerField()
    priority = models.SmallIntegerField(default=0)
    expires_at = models.DateTimeField(null=True)
    cash = models.BigIntegerField()
    closed = models.BooleanField(default=False)

    class Meta:
        indexes = [models.Index(fields=["account", "priority", "expires_at", "id"], condition=models.Q(closed=False), name="burn_order")]


class _Usage(_Row):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    account = models.ForeignKey(Account, on_delete=models.PROTECT)
    key_hash = models.UUIDField()
    fingerprint = models.UUIDField()
    hold = models.BigIntegerField()
    model_id = models.IntegerField()
    feature_id = models.IntegerField(null=True)
    rate_card_id = models.IntegerField()
    price_ids = ArrayField(models.IntegerField())
    quantities = ArrayField(models.BigIntegerField())
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        abstract = True


class Authorization(_Usage):
    class Meta:
        constraints = [models.UniqueConstraint(fields=["account", "key_hash"], name="authorization_once")]


class Usage(_Usage):
    event_at = models.DateTimeField()
    cost = models.BigIntegerField()
    price = models.BigIntegerField()
    balance_after = models.BigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["account", "key_hash"], name="usage_once")]


class Entry(_Row):
    account = models.ForeignKey(Account, on_delete=models.PROTECT)
    seq = models.BigIntegerField()
    grant = models.ForeignKey(Grant, on_delete=models.PROTECT)
    usage = models.ForeignKey(Usage, on_delete=models.PROTECT)
    amount = models.BigIntegerField()
    balance_after = models.BigIntegerField()
    cash = models.BigIntegerField()
    recorded_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["account", "seq"], name="entry_once")]


class Delta(_Row):
    account = models.ForeignKey(Account, on_delete=models.PROTECT)
    day = models.DateField()
    model_id = models.IntegerField()
    feature_id = models.IntegerField(null=True)
    tokens = models.BigIntegerField()
    cost = models.BigIntegerField()
    price = models.BigIntegerField()
    cash = models.BigIntegerField()
