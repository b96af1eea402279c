"""Who stays, who uses the product and how, and what gets lost on the way: cohorts, activity, trials and payments that failed.

    cohorts   accounts by the month they signed up in, and what became of them month by month
    activity  who was active in a period, on which days, and how much
    trials    the trials that ended in a period, and which of them were paid for afterwards
    failures  the payments that failed in a period: recovered, lost, or open

Periods, products and amounts are as in :mod:`analytics.growth`; docs/decisions/0065-mrr.md has the definitions. All reads. Activity reads
the rollups: its time grows with accounts and days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from django.db import connection
from django.db.models import Count, Q, Sum

from analytics import margin, rollups
from analytics.growth import Period
from billing.models import Checkout, TopUp

#: So long after its end a trial may still be paid for and counts as converted: a payment that is made by hand, or tried again.
TRIAL_GRACE: Final = timedelta(days=7)
#: So many months are followed at most.
MAX_COHORTS: Final = 24
#: How many records an account made, in words, in the order of :attr:`Activity.sizes`.
SIZES: Final = ("1 to 9", "10 to 99", "100 to 999", "1,000 or more")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cohort in one month. ``revenue_nanos`` is what its subscriptions brought a month at the end of it, and its packs in it."""

    active: int
    paying: int
    mrr_nanos: int
    packs_nanos: int

    @property
    def revenue_nanos(self) -> int:
        return self.mrr_nanos + self.packs_nanos


@dataclass(frozen=True, slots=True)
class Cohort:
    """The ``accounts`` that signed up in ``month``; a cell for that month and each since."""

    month: date
    accounts: int
    cells: tuple[Cell, ...]

    def active_percent(self, offset: int) -> Decimal | None:
        """Of all that signed up, who used something ``offset`` months later."""
        return margin.percent(self.cells[offset].active, self.accounts)

    def revenue_percent(self, offset: int) -> Decimal | None:
        """What the cohort brought ``offset`` months later, of what it brought in its first month; None where that was nothing."""
        return margin.percent(self.cells[offset].revenue_nanos, self.cells[0].revenue_nanos)


@dataclass(frozen=True, slots=True)
class Day:
    day: date
    accounts: int
    records: int


@dataclass(frozen=True, slots=True)
class Activity:
    """``accounts`` used something, ``records`` times; how many of them so often (``SIZES``); and the days on which anybody did."""

    accounts: int
    records: int
    sizes: tuple[int, ...]
    days: tuple[Day, ...]
    length: int

    @property
    def daily(self) -> Decimal:
        """Accounts active on a day of the period, on average, to one decimal, halves to even."""
        return Decimal(round(Fraction(10 * sum(day.accounts for day in self.days), self.length))).scaleb(-1)

    @property
    def stickiness_percent(self) -> Decimal | None:
        """On how many of its days an account of the period was active, on average."""
        return margin.percent(sum(day.accounts for day in self.days), self.accounts * self.length)

    def weekdays(self) -> list[tuple[int, int]]:
        """Records and account-days from Monday to Sunday."""
        sums = [(0, 0)] * 7
        for day in self.days:
            records, accounts = sums[day.day.weekday()]
            sums[day.day.weekday()] = (records + day.records, accounts + day.accounts)
        return sums


@dataclass(frozen=True, slots=True)
class Trial:
    """``paid_from``: when the account began to pay; None where it did not."""

    account_id: int
    began: datetime
    ended: datetime
    paid_from: datetime | None


@dataclass(frozen=True, slots=True)
class Unpaid:
    """A plan whose payment failed. ``ended``: when it was paid or given up; None while it is neither. ``mrr_nanos``: what it brings."""

    account_id: int
    failed: datetime
    mrr_nanos: int
    ended: datetime | None
    recovered: bool


@dataclass(frozen=True, slots=True)
class Failures:
    """Plans that were not paid, and one-time payments that failed: top-ups that were declined, and visits to Stripe's page."""

    plans: tuple[Unpaid, ...]
    top_ups: int
    top_ups_cents: int
    checkouts: int
    checkouts_failed: int

    @property
    def recovered(self) -> tuple[Unpaid, ...]:
        return tuple(plan for plan in self.plans if plan.recovered)

    @property
    def lost(self) -> tuple[Unpaid, ...]:
        """Ended by dunning, or by the customer, unpaid."""
        return tuple(plan for plan in self.plans if plan.ended is not None and not plan.recovered)

    @property
    def open(self) -> tuple[Unpaid, ...]:
        return tuple(plan for plan in self.plans if plan.ended is None)

    @property
    def recovered_percent(self) -> Decimal | None:
        """Of those that are decided."""
        return margin.percent(len(self.recovered), len(self.recovered) + len(self.lost))


def cohorts(*, first: date, now: datetime, product_id: int | None = None) -> list[Cohort]:
    """The months from ``first``'s on in which anybody signed up, oldest first.

    :raises ValueError: more than ``MAX_COHORTS`` months ago.
    """
    first = first.replace(day=1)
    if (now.year - first.year) * 12 + now.month - first.month >= MAX_COHORTS:
        raise ValueError(f"Cohorts are followed for {MAX_COHORTS} months.")
    found: dict[date, tuple[int, list[Cell]]] = {}
    for cohort, _, accounts, *figures in _rows("cohorts", first=first, now=now, product=product_id):
        found.setdefault(cohort, (accounts, []))[1].append(Cell(*figures))
    return [Cohort(month, accounts, tuple(cells)) for month, (accounts, cells) in found.items()]


def activity(*, since: date, until: date, product_id: int | None = None) -> Activity:
    """The UTC days from ``since`` up to but without ``until``."""
    [_, accounts, records, sizes], *days = _rows("activity", since=since, until=until, product=product_id)
    return Activity(accounts, records, tuple(sizes), tuple(Day(*row[:3]) for row in days), (until - since).days)


def trials(*, of: Period, product_id: int | None = None) -> list[Trial]:
    """The trials that ended in the period, the last first. One that ended lately may still be paid for."""
    return [Trial(*row) for row in _rows("trials", since=of.since, until=of.until, grace=TRIAL_GRACE, product=product_id)]


def failures(*, of: Period, now: datetime, product_id: int | None = None) -> Failures:
    """The payments that failed in the period, the last first, and what had become of them by ``now``."""
    plans = tuple(Unpaid(*row) for row in _rows("unpaid", since=of.since, until=of.until, now=now, product=product_id))
    declined = TopUp.objects.filter(state=TopUp.State.DECLINED, created_at__gte=of.since, created_at__lt=of.until)
    visits = Checkout.objects.filter(created_at__gte=of.since, created_at__lt=of.until)
    if product_id is not None:
        declined, visits = declined.filter(account__product_id=product_id), visits.filter(account__product_id=product_id)
    top_ups = declined.aggregate(count=Count("pk"), cents=Sum("amount_cents"))
    seen = visits.aggregate(count=Count("pk"), failed=Count("pk", filter=Q(state=Checkout.State.FAILED)))
    return Failures(plans, top_ups["count"], int(top_ups["cents"] or 0), seen["count"], seen["failed"])


def _rows(name: str, **parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(rollups.query(name), parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows
