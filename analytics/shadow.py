"""Shadow enforcement: whom limits in shadow mode would have refused, and how much revenue would have been at risk.

    report    by account and limit, the most value first

:mod:`metering.shadow` notes it while the work goes on. The value is the list value that the passed calls were expected to have when they
were authorized, so it is the most that refusing them would have cost; a call that passed two limits is told of both. To make such a limit
refuse is a lever (:func:`metering.levers.promote`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from analytics import rollups

MAX_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Row:
    """What one limit would have refused of one account. ``now``: in a window that is not over, so refusing would begin at once."""

    account: str
    name: str
    product: str
    meter: str
    layer: str
    calls: int
    value_nanos: int
    most_used: int
    allowed: int
    windows: int
    first_at: datetime
    last_at: datetime
    now: bool


@dataclass(frozen=True, slots=True)
class Report:
    """``accounts``, ``calls`` and ``value_nanos`` are of all, ``rows`` at most as many as were asked for. For each account the limit counts
    that would have refused most, so that no call counts twice."""

    accounts: int
    calls: int
    value_nanos: int
    rows: list[Row]


def report(*, since: datetime, now: datetime, product_id: int | None = None, limit: int = MAX_ROWS) -> Report:
    """What would have been refused since ``since``; windows that began before it count whole."""
    if not 1 <= limit <= MAX_ROWS:
        raise ValueError(f"Ask for 1 to {MAX_ROWS} rows.")
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("shadow"), {"since": since, "now": now, "product": product_id, "limit": limit})
        total, *rows = cursor.fetchall()
    return Report(accounts=total[9], calls=total[5], value_nanos=total[6], rows=[Row(*row) for row in rows])
