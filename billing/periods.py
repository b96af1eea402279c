"""Billing periods: pure arithmetic on dates, standard library only. Periods are half-open ``[start, end)``.

Anniversaries are counted from the anchor, never from the previous period, so that a 31st stays a 31st: 31 January, 28 or 29 February,
31 March. This is the rule of Stripe's billing cycle anchor.
"""

from __future__ import annotations

import calendar
from datetime import datetime


def anniversary(anchor: datetime, *, months: int) -> datetime:
    """The ``months``-th monthly anniversary of ``anchor`` (0 = the anchor): same day and time, or the last of a shorter month."""
    index = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(index, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def period_at(anchor: datetime, at: datetime, *, months: int = 1) -> tuple[datetime, datetime]:
    """The period of ``months`` months, counted from ``anchor``, that contains ``at`` (which may lie before the anchor)."""
    elapsed = (at.year - anchor.year) * 12 + at.month - anchor.month
    count = elapsed // months
    if anniversary(anchor, months=count * months) > at:
        count -= 1
    elif anniversary(anchor, months=(count + 1) * months) <= at:
        count += 1
    return anniversary(anchor, months=count * months), anniversary(anchor, months=(count + 1) * months)
