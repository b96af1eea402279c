"""What an account used in a stretch of days, by day and by one thing: bounded reads for the pages.

    window      the days that a page is about
    Narrowed    only one model, feature or user
    read        sums of each (day, group)
    by_day, by_group   the same, for a chart and for a table

What counts on a day is what :func:`metering.charges.used` says, so that a page and the API come to the same. No read goes further back
than its window: rows are found by an id that begins with the time. Amounts are nanos of the product's unit.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.db.models import BigIntegerField, Case, Count, F, Max, Min, Q, QuerySet, Sum, TextField, Value, When
from django.db.models.functions import Coalesce, TruncDate

from accounts.models import Account
from accounts.templatetags.charts import Day
from metering import charges
from metering.models import UsageRecord
from pricing.rating import INPUT_COMPONENTS, TOKEN_COMPONENTS

OUTPUT_COMPONENTS: Final = TOKEN_COMPONENTS - INPUT_COMPONENTS
#: What use is told apart by, and the column that says it.
COLUMNS: Final = {"model": "model_id", "feature": "feature_id", "user": "user_ref", "key": "api_key_id"}
#: How many groups a table has, and how many of them a chart; what is beyond is one more.
MAX_GROUPS: Final = 50
MAX_SERIES: Final = 5
#: A record's id is as old as its authorization: a day of hold and a week of grace older than the use, at most.
_OLDEST_ID: Final = timedelta(days=8)
#: A chart of more days than this has one bar a week.
_MAX_BARS: Final = 92
#: The group of all that is in none of its own.
OTHERS: Final = "\x01"


@dataclass(frozen=True, slots=True)
class Window:
    """What counts in ``[since, until)``, on the ``days`` of the account's own calendar, oldest first."""

    since: datetime
    until: datetime
    days: tuple[date, ...]


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Only the records with this value in this column; None: those that have none."""

    column: str
    value: Hashable


@dataclass(frozen=True, slots=True)
class Total:
    """What one group came to on one day."""

    day: date
    group: Hashable
    records: int
    nanos: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Used:
    """Everything that was read. ``several_users``: more than one is named; ``features``: any is."""

    totals: tuple[Total, ...]
    several_users: bool
    features: bool


@dataclass(frozen=True, slots=True)
class Group:
    """What one group came to; ``series`` is its place in the chart."""

    key: Hashable
    series: int
    records: int
    nanos: int
    tokens_in: int
    tokens_out: int


def window(account: Account, *, now: datetime, days: int | None = None, since: datetime | None = None) -> Window:
    """The last so many days of the account's calendar, today included, or those from the instant ``since`` on."""
    zone = ZoneInfo(account.time_zone)
    today = now.astimezone(zone).date()
    if since is None:
        first = today - timedelta(days=(days or 1) - 1)
        since = datetime.combine(first, time.min, tzinfo=zone)
    else:
        first = min(since.astimezone(zone).date(), today)
    count = (today - first).days + 1
    until = datetime.combine(today + timedelta(days=1), time.min, tzinfo=zone)
    return Window(since, until, tuple(first + timedelta(days=number) for number in range(count)))


def records(account: Account, window: Window, narrowed: Sequence[Narrowed] = ()) -> QuerySet[UsageRecord]:
    """The records that count in the window, without order. The bound on the id keeps the read away from older history."""
    oldest = int((window.since - _OLDEST_ID).timestamp() * 1000)
    found = charges.used(account, window.since, window.until).filter(pk__gte=uuid.UUID(int=max(oldest, 0) << 80)).order_by()
    return only(found, narrowed)


def only(records: QuerySet[UsageRecord], narrowed: Sequence[Narrowed]) -> QuerySet[UsageRecord]:
    """Those of ``records`` that fit all of ``narrowed``."""
    return records.filter(**{f"{each.column}__isnull" if each.value is None else each.column: each.value or True for each in narrowed})


def charged(account: Account, window: Window, unit_id: int) -> int:
    """What was charged in the window."""
    total = records(account, window).aggregate(total=_charged(unit_id))["total"]
    return int(total)


def read(account: Account, window: Window, *, unit_id: int, by: str, narrowed: Sequence[Narrowed] = ()) -> Used:
    """Sums of each day and group. Call it behind both walls."""
    found = records(account, window, narrowed)
    column = COLUMNS[by]
    group: Any = F(column)
    if by == "user":
        # There may be any number of users: those that used the most each have a group.
        most = found.exclude(user_ref=None).values("user_ref").annotate(nanos=_charged(unit_id)).order_by("-nanos", "user_ref")
        names = [row["user_ref"] for row in most[:MAX_GROUPS]]
        group = Case(When(Q(user_ref__in=names) | Q(user_ref=None), then=F(column)), default=Value(OTHERS), output_field=TextField())
    rows = (
        found.annotate(day=TruncDate(charges.COUNTED_AT, tzinfo=ZoneInfo(account.time_zone)), group=group)
        .values("day", "group")
        .annotate(
            records=Count("id"),
            nanos=_charged(unit_id),
            tokens_in=Sum(charges.quantity(INPUT_COMPONENTS)),
            tokens_out=Sum(charges.quantity(OUTPUT_COMPONENTS)),
            first_user=Min("user_ref"),
            last_user=Max("user_ref"),
            feature=Max("feature_id"),
        )
    )
    found_rows = list(rows)
    users = {user for row in found_rows for user in (row["first_user"], row["last_user"])} - {None}
    return Used(
        totals=tuple(
            Total(row["day"], row["group"], row["records"], int(row["nanos"]), int(row["tokens_in"]), int(row["tokens_out"]))
            for row in found_rows
        ),
        several_users=len(users) > 1,
        features=any(row["feature"] is not None for row in found_rows),
    )


def by_group(totals: Sequence[Total]) -> list[Group]:
    """The dearest first; beyond ``MAX_GROUPS`` one group has the rest."""
    sums: dict[Hashable, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in totals:
        for index, value in enumerate((row.records, row.nanos, row.tokens_in, row.tokens_out)):
            sums[row.group][index] += value
    ordered = sorted(sums.items(), key=lambda item: (item[0] == OTHERS, -item[1][1], -item[1][0], str(item[0])))
    if len(ordered) > MAX_GROUPS:
        rest = [sum(values) for values in zip(*(values for _, values in ordered[MAX_GROUPS:]), strict=True)]
        ordered = [*ordered[:MAX_GROUPS], (OTHERS, rest)]
    return [Group(key, min(place, MAX_SERIES), *values) for place, (key, values) in enumerate(ordered)]


def by_day(window: Window, totals: Sequence[Total], groups: Sequence[Group] = ()) -> list[Day]:
    """The days of the window for a chart, each with what the groups came to, in their order, what is not among the first in one part.

    Of a long window the weeks, counted from its beginning.
    """
    step = 1 if len(window.days) <= _MAX_BARS else 7
    bars = {day: number // step for number, day in enumerate(window.days)}
    series = {group.key: group.series for group in groups}
    parts = min(len(groups), MAX_SERIES + 1)
    sums = [[0] * (parts + 2) for _ in range(-(-len(window.days) // step))]
    for row in totals:
        bar = sums[bars[row.day]]
        bar[-1] += row.records
        bar[-2] += row.nanos
        if parts:
            bar[series.get(row.group, MAX_SERIES)] += row.nanos
    return [
        Day(day=window.days[number * step], nanos=bar[-2], records=bar[-1], parts=tuple(bar[:parts]), days=step)
        for number, bar in enumerate(sums)
    ]


def _charged(unit_id: int) -> Any:
    """Σ of what was charged in this unit; what was not charged at all has none."""
    return Coalesce(Sum(charges.CHARGED, filter=Q(unit_id=unit_id) | Q(unit_id=None)), Value(0), output_field=BigIntegerField())
