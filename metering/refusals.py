"""Refusals that are kept, so that "why was I refused at noon" has an answer at two.

    note      keeps what a refusal was decided by

:mod:`metering.refusal_explanation` says it in sentences.

One row for each limit of an account, of the last refusal by it and of how many there were in its window: an account has as many as it
has limits.
A process writes one at most every ten seconds; those between are counted and written with the next, so that a client app in a loop costs
a look into memory. What is not written when a process ends is not counted. Noting never fails the answer.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import structlog
from django.db import DatabaseError, connection, transaction

from accounts.models import Account
from metering.limits import Decision, Layer

SECONDS = 10
MAX_KEPT = 10_000
_NOTE = """
    insert into metering_refusal as r
      (account_id, layer, meter, resets_at, reason, count, first_at, last_at, model, feature, "user", layers, costs)
    values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict (account_id, layer, meter) do update set
      count = excluded.count + case when r.resets_at is not distinct from excluded.resets_at then r.count else 0 end,
      first_at = case when r.resets_at is not distinct from excluded.resets_at then r.first_at else excluded.first_at end,
      resets_at = excluded.resets_at, reason = excluded.reason, last_at = excluded.last_at, model = excluded.model,
      feature = excluded.feature, "user" = excluded."user", layers = excluded.layers, costs = excluded.costs
"""
log = structlog.get_logger(__name__)
#: When this process wrote of (account, layer, meter) last, in monotonic seconds, and how many it has not written since.
_noted: dict[tuple[int, str, str], tuple[float, int]] = {}


def note(*, account: Account, layer: Layer, decision: Decision, model: str, feature: str, user: str, now: datetime) -> None:
    """Keeps the refusal, or counts it where one by the same limit was written seconds ago."""
    key, more = (account.pk, layer.name, layer.meter or ""), 0
    if not connection.in_atomic_block:  # what a transaction writes may be rolled back
        written, more = _noted.get(key, (-SECONDS, 0))
        if time.monotonic() - written < SECONDS:
            _noted[key] = (written, more + 1)
            return
        if len(_noted) >= MAX_KEPT:
            _noted.clear()
        _noted[key] = (time.monotonic(), 0)
    kept = [_kept(each) for each in decision.layers]
    costs = [[each.limit, each.used, each.remaining] if each.name == "cost" else None for each in decision.layers]
    values: list[Any] = [
        account.pk, layer.name, layer.meter or "", layer.resets_at, layer.reason[:500], 1 + more, now, now, model, feature, user,
        json.dumps(kept), json.dumps(costs),
    ]  # fmt: skip
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_NOTE, values)
    except DatabaseError as error:
        log.error("refusal not noted", account=account.public_id, layer=layer.name, exc_info=error)


def _kept(layer: Layer) -> dict[str, object]:
    """What everybody may know of a layer: of wholesale cost, no figure."""
    figures = (None, None, None) if layer.name == "cost" else (layer.limit, layer.used, layer.remaining)
    return {
        "name": layer.name, "meter": layer.meter, "allowed": layer.allowed, "mode": str(layer.mode), "limit": figures[0],
        "used": figures[1], "remaining": figures[2], "switched": layer.switched,
        "resets_at": layer.resets_at and layer.resets_at.isoformat(),
    }  # fmt: skip
