"""Statements of credits: what a wallet had when a period began, every movement in it, and what it had at the end.

    choices     the billing periods and calendar months that an account may ask for, the latest first
    named       one of them, by the name that it has in an address
    of_period   where a period begins and ends in a wallet's ledger, and its sums

A movement belongs to the period in which it was written: ``recorded_at``, not ``effective_at``. Entries are written one after another, so a
period is a run of sequence numbers, periods meet without gap or overlap, and a period that is over never changes again; an entry that takes
effect earlier (credit that expired while it was reserved) still shows when. Always: opening balance + Σ movements = closing balance, and
the same of the debt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from django.db.models import Count, QuerySet, Sum

from accounts.models import Account
from billing import periods
from billing.models import LedgerEntry, Wallet
from billing.subscriptions import Allowed

#: How many periods of each kind are offered; older ones are asked for by their names.
MAX_CHOICES: Final = 24
#: How many entries are looked at in one step of the search for a boundary.
_PROBES: Final = 200
_YEARS: Final = range(2000, 2200)


@dataclass(frozen=True, slots=True)
class Period:
    """``[start, end)``. ``name`` is ``2026-03`` for a calendar month of the account's, ``2026-03-14`` for the billing period that begins
    on that day (UTC).
    """

    name: str
    start: datetime
    end: datetime

    @property
    def is_month(self) -> bool:
        return len(self.name) == len("2026-03")

    @property
    def last_moment(self) -> datetime:
        """For people, who say the last day and not the one after it."""
        return self.end - timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Sums:
    """What the movements of one kind come to, in nanos."""

    kind: str
    entries: int
    amount: int
    debt_delta: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A period of one wallet: its entries are those with ``first <= seq < after``. Amounts in nanos."""

    first: int
    after: int
    opening: int
    opening_debt: int
    closing: int
    closing_debt: int
    sums: tuple[Sums, ...]

    @property
    def entries(self) -> int:
        return self.after - self.first


def choices(*, account: Account, allowed: Allowed | None, now: datetime) -> tuple[list[Period], list[Period]]:
    """Billing periods (none without a plan) and calendar months since the account was opened, the latest first."""
    billing: list[Period] = []
    months: list[Period] = []
    at = now
    while allowed and len(billing) < MAX_CHOICES and at >= account.created_at:
        billing.append(_billing(allowed, at))
        at = billing[-1].start - timedelta(microseconds=1)
    at = now
    while len(months) < MAX_CHOICES and at >= account.created_at:
        months.append(_month(account, at.astimezone(ZoneInfo(account.time_zone)).date()))
        at = months[-1].start - timedelta(microseconds=1)
    return billing, months


def named(name: str, *, account: Account, allowed: Allowed | None, now: datetime) -> Period | None:
    """The period of this name; None where there is none, or where it has not begun."""
    match = re.fullmatch(r"(\d{4})-(\d\d)(?:-(\d\d))?", name, re.ASCII)
    try:
        day = date(int(match[1]), int(match[2]), int(match[3] or 1)) if match else None
    except ValueError:
        return None
    if match is None or day is None or day.year not in _YEARS:
        return None
    if match[3] is None:
        period = _month(account, day)
    elif allowed is None:
        return None
    else:
        period = _billing(allowed, datetime.combine(day, time.max, tzinfo=UTC))
    return period if period.name == name and period.start <= now else None


def around(period: Period, *, account: Account, allowed: Allowed | None, now: datetime) -> tuple[Period | None, Period | None]:
    """The periods of the same kind before and after it, as far as the account's life goes."""
    moments = (period.start - timedelta(microseconds=1), period.end)
    if period.is_month:
        zone = ZoneInfo(account.time_zone)
        earlier, later = (_month(account, moment.astimezone(zone).date()) for moment in moments)
    elif allowed is None:
        return None, None
    else:
        earlier, later = (_billing(allowed, moment) for moment in moments)
    return earlier if earlier.end > account.created_at else None, later if later.start <= now else None


def of_period(*, wallet: Wallet | None, period: Period) -> Statement:
    """The period's place in the ledger and its sums. Reads the account's own rows: call it behind both walls."""
    if wallet is None:
        return Statement(first=1, after=1, opening=0, opening_debt=0, closing=0, closing_debt=0, sums=())
    entries = LedgerEntry.objects.filter(account_id=wallet.account_id, unit_id=wallet.unit_id)
    first, after = _boundaries(entries, wallet.seq, (period.start, period.end))
    ends = {
        seq: (balance, debt)
        for seq, balance, debt in entries.filter(seq__in=[first - 1, after - 1]).values_list("seq", "balance_after", "debt_after")
    }
    opening, opening_debt = ends.get(first - 1, (0, 0))
    closing, closing_debt = ends.get(after - 1, (0, 0))
    within = entries.filter(seq__gte=first, seq__lt=after).order_by().values_list("kind")
    sums = [
        Sums(kind, count, int(amount), int(debt))
        for kind, count, amount, debt in within.annotate(Count("seq"), Sum("amount"), Sum("debt_delta"))
    ]
    order = LedgerEntry.Kind.values
    return Statement(
        first=first,
        after=after,
        opening=opening,
        opening_debt=opening_debt,
        closing=closing,
        closing_debt=closing_debt,
        sums=tuple(sorted(sums, key=lambda each: order.index(each.kind))),
    )


def _billing(allowed: Allowed, at: datetime) -> Period:
    """Its neighbours give way to the stored period where that is no whole one, as a trial is: periods never overlap."""
    start, end = allowed.period_at(at)
    if at < allowed.period_start:
        end = min(end, allowed.period_start)
    elif at >= allowed.period_end:
        start = max(start, allowed.period_end)
    return Period(start.astimezone(UTC).date().isoformat(), start, end)


def _month(account: Account, day: date) -> Period:
    """The calendar month that ``day`` is in: its 15th is in no other, whatever the clocks do at midnight."""
    zone = ZoneInfo(account.time_zone)
    start, end = periods.month_at(datetime(day.year, day.month, 15, tzinfo=zone), zone)
    return Period(f"{day:%Y-%m}", start, end)


def _boundaries(entries: QuerySet[LedgerEntry], last: int, instants: Sequence[datetime]) -> list[int]:
    """For each instant, the sequence number of the first entry that was written at it or later; behind the last where there is none.

    A search among numbered entries, a few hundred of them at a time: two or three questions, however long the history is.
    """
    ranges = [(1, last + 1) for _ in instants]
    while any(low < high for low, high in ranges):
        probes = {seq for low, high in ranges for seq in range(low, high, max((high - low) // _PROBES, 1))}
        written = sorted(entries.filter(seq__in=probes).values_list("seq", "recorded_at"))
        for number, (instant, (low, high)) in enumerate(zip(instants, ranges, strict=True)):
            inside = [(seq, at) for seq, at in written if low <= seq < high]
            if low < high and not inside:
                raise LookupError(f"The ledger has no entries from {low} to {high}.")
            # Among the probes the first that is not before the instant, and the one ahead of it.
            found = next((index for index, (_, at) in enumerate(inside) if at >= instant), len(inside))
            below = inside[found - 1][0] + 1 if found else low
            above = inside[found][0] if found < len(inside) else high
            ranges[number] = (below, max(below, above))
    return [low for low, _ in ranges]
