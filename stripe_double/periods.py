"""Billing periods from their anchor, in UTC: each boundary is counted from the anchor, so the 31st comes back after February."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime

DAY = 86_400


def boundary(anchor: int, interval: str, count: int, n: int) -> int:
    """The ``n``-th boundary after ``anchor`` (a timestamp): n × count days, weeks, months or years, at the month's end if need be."""
    if interval in {"day", "week"}:
        return anchor + n * count * DAY * (7 if interval == "week" else 1)
    start = datetime.fromtimestamp(anchor, UTC)
    months = start.year * 12 + start.month - 1 + n * count * (12 if interval == "year" else 1)
    year, month = divmod(months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return int(start.replace(year=year, month=month + 1, day=day).timestamp())


def period(anchor: int, interval: str, count: int, at: int) -> tuple[int, int]:
    """The period ``[start, end)`` that holds ``at``."""
    length = {"day": DAY, "week": 7 * DAY, "month": 31 * DAY, "year": 366 * DAY}[interval] * count
    n = (at - anchor) // length
    while boundary(anchor, interval, count, n + 1) <= at:
        n += 1
    return boundary(anchor, interval, count, n), boundary(anchor, interval, count, n + 1)


def share(amount: int, part: int, whole: int) -> int:
    """``amount × part ÷ whole`` in whole cents, halves away from zero."""
    cents = (2 * abs(amount) * part + whole) // (2 * whole)
    return cents if amount >= 0 else -cents


def date(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%d %b %Y")
