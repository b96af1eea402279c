"""Periods of time: pure arithmetic, standard library only. All are half-open ``[start, end)``, and every instant is in exactly one of each
kind.

    anniversary          the nth month after an anchor; 12 is a year
    period_at            the months, quarters or years counted from an anchor
    weeks_at             the same for weeks
    hour_at, day_at      the hour, day, week or month that the clocks of a time zone show
    week_at, month_at
    rolling              the last so many seconds, until now
    LIFETIME             from before all usage, without end

Anniversaries are counted from the anchor, never from the previous period, so that a 31st stays a 31st: 31 January, 28 or 29 February,
31 March. This is the rule of Stripe's billing cycle anchor. They are counted by the anchor's own clock: pass UTC for what Stripe says.

A calendar period begins when its first day does: at the first instant that the zone's clocks show as its midnight, or where they jump over
midnight at the instant at which they jump. So days of 23 and of 25 hours, days that are no whole number of hours, a date that a zone left
out and a midnight that came twice follow each other without gap and without overlap. Answers of calendar periods are in UTC.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final, TypeAlias

Period: TypeAlias = tuple[datetime, datetime]

#: The lifetime of everything here: its beginning is before all usage, its end is never.
LIFETIME: Final[Period] = (datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_WEEK: Final = timedelta(weeks=1)


# Counted from an anchor --------------------------------------------------------------------------------------------------------


def anniversary(anchor: datetime, *, months: int) -> datetime:
    """The ``months``-th monthly anniversary of ``anchor`` (0 = the anchor): same day and time, or the last of a shorter month."""
    index = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(index, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def period_at(anchor: datetime, at: datetime, *, months: int = 1) -> Period:
    """The period of ``months`` months, counted from ``anchor``, that contains ``at`` (which may lie before the anchor)."""
    elapsed = (at.year - anchor.year) * 12 + at.month - anchor.month
    count = elapsed // months
    if anniversary(anchor, months=count * months) > at:
        count -= 1
    elif anniversary(anchor, months=(count + 1) * months) <= at:
        count += 1
    return anniversary(anchor, months=count * months), anniversary(anchor, months=(count + 1) * months)


def weeks_at(anchor: datetime, at: datetime, *, weeks: int = 1) -> Period:
    """The period of ``weeks`` weeks of 168 hours, counted from ``anchor``, that contains ``at`` (which may lie before the anchor)."""
    start = anchor + (at - anchor) // (weeks * _WEEK) * (weeks * _WEEK)
    return start, start + weeks * _WEEK


# By the calendar of a time zone ------------------------------------------------------------------------------------------------


def hour_at(at: datetime, zone: tzinfo = UTC) -> Period:
    """The hour of ``zone``'s clocks that contains ``at``. One that the clocks show twice is two; where they change by less than an hour,
    the hours beside the change are as long as that leaves them."""
    if zone is UTC:
        start = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        return start, start + _HOUR
    shown = at.astimezone(zone).replace(tzinfo=None)
    start = at.astimezone(UTC) - (shown - shown.replace(minute=0, second=0, microsecond=0))
    end = start + _HOUR
    if _offset(start, zone) != _offset(at, zone):
        start = _change(start, at.astimezone(UTC), lambda moment: _offset(moment, zone) == _offset(at, zone))
    if _offset(end - timedelta.resolution, zone) != _offset(at, zone):
        end = _change(at.astimezone(UTC), end, lambda moment: _offset(moment, zone) != _offset(at, zone))
    return start, end


def day_at(at: datetime, zone: tzinfo = UTC) -> Period:
    """The day of ``zone`` that contains ``at``."""
    today = at.astimezone(zone).date()
    start, end = _begin(today, zone), _begin(today + _DAY, zone)
    if start <= at < end:
        return start, end
    return _around(at, [_begin(today + days * _DAY, zone) for days in range(-1, 3)])


def week_at(at: datetime, zone: tzinfo = UTC) -> Period:
    """The week of ``zone``, Monday to Sunday, that contains ``at``."""
    today = at.astimezone(zone).date()
    monday = today - today.weekday() * _DAY
    return _around(at, [_begin(monday + weeks * _WEEK, zone) for weeks in range(-1, 3)])


def month_at(at: datetime, zone: tzinfo = UTC) -> Period:
    """The calendar month of ``zone`` that contains ``at``."""
    first = datetime.combine(at.astimezone(zone).date().replace(day=1), datetime.min.time())
    return _around(at, [_begin(anniversary(first, months=months).date(), zone) for months in range(-1, 3)])


def rolling(until: datetime, length: timedelta) -> Period:
    """The last ``length`` before ``until``: what happened exactly so long ago still counts, what happens at ``until`` does not yet."""
    return until - length, until


# Parts -------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _begin(day: date, zone: tzinfo) -> datetime:
    """When ``day`` begins in ``zone``, in UTC: at its first midnight, or where there is none when the clocks jump over it."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    first, second = midnight.astimezone(UTC), midnight.replace(fold=1).astimezone(UTC)
    if first <= second:
        return first
    return _change(second, first, lambda moment: moment.astimezone(zone).date() >= day)


def _around(at: datetime, moments: list[datetime]) -> Period:
    """The two neighbours of ``moments`` that ``at`` lies between. Two of them may be the same: a date that was left out is no period."""
    return max(moment for moment in moments if moment <= at), min(moment for moment in moments if moment > at)


def _offset(moment: datetime, zone: tzinfo) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()


def _change(before: datetime, after: datetime, changed: Callable[[datetime], bool]) -> datetime:
    """The first whole second after ``before``, and not after ``after``, at which ``changed`` holds; it does at ``after``, and stays so."""
    before = before.replace(microsecond=0)
    low, high = 0, -(-(after - before) // timedelta(seconds=1))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if changed(before + timedelta(seconds=middle)) else (middle, high)
    return before + timedelta(seconds=high)
