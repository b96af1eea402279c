"""Stops on a feature, a product or everything, for all accounts at once: thrown by staff, with a reason and an end.

    in_force  the switch that stops this work now, if any

Answers are kept for at most ``MAX_AGE_SECONDS``, so a switch is felt everywhere within that time.
"""

from __future__ import annotations

import time
from datetime import datetime

from django.db import connection

from metering.models import KillSwitch

MAX_AGE_SECONDS = 1.0
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


def _switches(now: datetime) -> list[KillSwitch]:
    """Every switch that has not ended at ``now``, the broadest first."""
    global _kept
    if connection.in_atomic_block or _kept is None or time.monotonic() - _kept[0] > MAX_AGE_SECONDS:
        found = list(KillSwitch.objects.filter(ended_at=None, ends_at__gt=now).order_by("-product_id", "feature", "id"))
        if connection.in_atomic_block:  # what a transaction sees is its own
            return found
        _kept = (time.monotonic(), found)
    return _kept[1]
