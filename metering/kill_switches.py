"""Stops on a feature, a product or everything, for all accounts at once: thrown by staff, with a reason and an end.

    in_force  the switch that stops this work now, if any
    throw     stops work until a time
    end       lets it go on before that; a switch is never edited or deleted

Answers are kept for at most ``MAX_AGE_SECONDS``, so a switch is felt everywhere within that time.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from django.db import connection

from metering.models import KillSwitch
from pricing.models import Product

MAX_AGE_SECONDS = 1.0
MAX_LIFETIME = timedelta(days=7)
_kept: tuple[float, list[KillSwitch]] | None = None


def in_force(*, product_id: int, feature: str | None, now: datetime) -> KillSwitch | None:
    """The broadest switch that stops ``feature`` of this product at ``now``."""
    for switch in _switches(now):
        if (
            switch.product_id in (None, product_id)
            and switch.feature in ("", feature)
            and switch.created_at <= now
            and now < (switch.ended_at or switch.ends_at)
        ):
            return switch
    return None


class InvalidSwitch(ValueError):
    """Such a switch cannot be thrown. The message says why."""


def throw(*, product: Product | None, feature: str, reason: str, actor: str, ends_at: datetime, now: datetime) -> KillSwitch:
    """Stops ``feature`` (empty: all) of ``product`` (None: of all) until ``ends_at``.

    :raises InvalidSwitch: it would end before it begins or after ``MAX_LIFETIME``, or the same one is in force.
    """
    if not now < ends_at <= now + MAX_LIFETIME:
        raise InvalidSwitch(f"A switch ends within {MAX_LIFETIME.days} days.")
    if KillSwitch.objects.filter(product=product, feature=feature, ended_at=None, ends_at__gt=now).exists():
        raise InvalidSwitch("This is switched off already. End that switch first.")
    return KillSwitch.objects.create(product=product, feature=feature, reason=reason, actor=actor, created_at=now, ends_at=ends_at)


def end(*, switch: KillSwitch, actor: str, now: datetime) -> bool:
    """Lets work go on. False where the switch has ended."""
    return KillSwitch.objects.filter(pk=switch.pk, ended_at=None, ends_at__gt=now).update(ended_at=now, ended_by=actor) == 1


def _switches(now: datetime) -> list[KillSwitch]:
    """Every switch that has not ended at ``now``, the broadest first."""
    global _kept
    if connection.in_atomic_block or _kept is None or time.monotonic() - _kept[0] > MAX_AGE_SECONDS:
        read_at = time.monotonic()
        found = list(KillSwitch.objects.filter(ended_at=None, ends_at__gt=now).order_by("-product_id", "feature", "id"))
        if connection.in_atomic_block:  # what a transaction sees is its own
            return found
        _kept = (read_at, found)
    return _kept[1]
