"""What a product earns month by month, who comes and who leaves: MRR and its movements, packs, churn, and what a customer is worth.

    mrr             what subscriptions bring in a month, as of any instant
    standing        the same with who pays it, plan by plan
    movements       what changed it in a period; their sum is its difference
    months          both, month by month
    churn           who of those that paid at its beginning pays nothing at its end
    credit_revenue  what packs sold for
    economics       a month's revenue per customer, lifetime value and acquisition cost

docs/decisions/0065-mrr.md defines each of them. Amounts are nano-USD; subscriptions and packs in other currencies are not in them. As of an
instant means just before it, so that what happens at a midnight belongs to the day that begins. ``product_id`` None is all products.
Months are calendar months in UTC, and the present one is as far as it is. All reads; time grows with subscriptions and packs, not with use.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Literal, get_args

from django.db import connection
from django.db.models import Sum

from analytics import margin, rollups
from analytics.models import HourlyFigures, MarketingSpend

NANOS_PER_CENT: Final = 10_000_000
#: The documents' targets: less churn than this a month, and at least so much lifetime value for what a customer cost to win.
CHURN_TARGET_PERCENT: Final = 5
LTV_TO_CAC_TARGET: Final = 3

Kind = Literal["new", "expansion", "contraction", "churned", "reactivated"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Period:
    """A calendar month in UTC, ``[since, until)``; the present one until now."""

    month: date
    since: datetime
    until: datetime

    @property
    def first_day(self) -> date:
        return self.month

    @property
    def end(self) -> date:
        """The first day that does not count."""
        return (self.until.astimezone(UTC) - timedelta(microseconds=1)).date() + timedelta(days=1)

    @property
    def under_way(self) -> bool:
        return self.until < midnight(next_month(self.month))


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan's part of the MRR. ``name`` is its own."""

    name: str
    mrr_nanos: int
    accounts: int


@dataclass(frozen=True, slots=True)
class Standing:
    """``accounts`` pay ``mrr_nanos`` a month together, nobody of them nothing. Plans, the largest first."""

    mrr_nanos: int
    accounts: int
    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class Movement:
    """All changes of one kind: how many, and what they come to (below zero for contraction and churned)."""

    kind: Kind
    count: int
    nanos: int


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month: the MRR at its end, and what changed it."""

    month: date
    mrr_nanos: int
    movements: tuple[Movement, ...]

    @property
    def net_nanos(self) -> int:
        return sum(each.nanos for each in self.movements)


@dataclass(frozen=True, slots=True)
class Churn:
    """Of the ``accounts`` that paid ``mrr_nanos`` at the beginning, those lost at the end, and what of it is not paid any more."""

    accounts: int
    lost: int
    mrr_nanos: int
    lost_nanos: int

    @property
    def percent(self) -> Decimal | None:
        """Of customers, to two decimals, halves to even; None where there were none."""
        return margin.percent(self.lost, self.accounts)

    @property
    def revenue_percent(self) -> Decimal | None:
        """Of revenue; what others pay more takes nothing off it."""
        return margin.percent(self.lost_nanos, self.mrr_nanos)


@dataclass(frozen=True, slots=True)
class Economics:
    """A month's inputs of lifetime value and acquisition cost. ``revenue_nanos`` is the MRR at its end and the packs sold in it; ``payers``
    are the accounts behind it, ``won`` those whose first payment it was. ``cost_nanos`` is what all usage of the month cost us."""

    revenue_nanos: int
    cost_nanos: int
    payers: int
    won: int
    churn: Churn
    gifts_nanos: int
    marketing_nanos: int

    @property
    def margin_percent(self) -> Decimal | None:
        return margin.percent(self.revenue_nanos - self.cost_nanos, self.revenue_nanos)

    @property
    def arpu_nanos(self) -> int | None:
        """Revenue per payer, rounded down; None of nobody."""
        return self.revenue_nanos // self.payers if self.payers else None

    @property
    def acquisition_nanos(self) -> int:
        return self.gifts_nanos + self.marketing_nanos

    @property
    def cac_nanos(self) -> int | None:
        """Acquisition cost per customer won, rounded down; None where none was."""
        return self.acquisition_nanos // self.won if self.won else None

    @property
    def ltv_nanos(self) -> int | None:
        """Margin per payer and month, for as many months as the churn lets expect: rounded down. None where nobody was lost."""
        worth = self._worth()
        return None if worth is None else worth.numerator // worth.denominator

    @property
    def ltv_to_cac(self) -> Decimal | None:
        """To two decimals, halves to even; None where one of them is not known, or nothing was spent."""
        worth = self._worth()
        if worth is None or not self.won or not self.acquisition_nanos:
            return None
        return Decimal(round(100 * worth * self.won / self.acquisition_nanos)).scaleb(-2)

    def _worth(self) -> Fraction | None:
        if not self.payers or not self.churn.lost:
            return None
        return Fraction(self.revenue_nanos - self.cost_nanos, self.payers) * Fraction(self.churn.accounts, self.churn.lost)


def period(*, month: date, now: datetime) -> Period:
    """The month that ``month`` lies in, up to ``now`` at most.

    :raises ValueError: it has not begun.
    """
    first = month.replace(day=1)
    since = midnight(first)
    if since >= now:
        raise ValueError("That month has not begun.")
    return Period(first, since, min(midnight(next_month(first)), now))


def next_month(first: date) -> date:
    return (first + timedelta(days=31)).replace(day=1)


def midnight(day: date) -> datetime:
    """In UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def mrr(*, at: datetime, product_id: int | None = None) -> int:
    """Nano-USD a month that subscriptions bring in as of ``at``: who pays for them counts, at the price agreed, seats and lasting
    discounts in, a year as a twelfth, rounded down to the nano per subscription."""
    return standing(at=at, product_id=product_id).mrr_nanos


def standing(*, at: datetime, product_id: int | None = None) -> Standing:
    """The MRR as of ``at``, how many accounts pay it, and for which plans."""
    [_, _, nanos, accounts], *plans = _rows("growth_standing", at=at, product=product_id)
    return Standing(nanos, accounts, tuple(Plan(name, part, count) for name, _, part, count in plans))


def movements(*, since: datetime, until: datetime, product_id: int | None = None) -> tuple[Movement, ...]:
    """What changed the MRR from ``since`` until before ``until``, every kind, also those that did not happen.

    Their sum is ``mrr(at=until) - mrr(at=since)``, and those of two adjoining periods add up to those of both together.
    """
    found = {kind: (count, nanos) for kind, count, nanos in _rows("growth_movements", since=since, until=until, product=product_id)}
    return tuple(Movement(kind, *found.get(kind, (0, 0))) for kind in KINDS)


def months(*, until: datetime, product_id: int | None = None) -> list[Month]:
    """Every month from the first one that anybody paid in to the one before ``until``, oldest first."""
    found: dict[date, dict[Kind, tuple[int, int]]] = {}
    for month, kind, count, nanos in _rows("growth_months", until=until, product=product_id):
        found.setdefault(month, {})[kind] = (count, nanos)
    result: list[Month] = []
    month, total = min(found, default=until.date()), 0
    while found and midnight(month) < until:
        moved = tuple(Movement(kind, *found.get(month, {}).get(kind, (0, 0))) for kind in KINDS)
        total += sum(each.nanos for each in moved)
        result.append(Month(month, total, moved))
        month = next_month(month)
    return result


def churn(*, since: datetime, until: datetime, product_id: int | None = None) -> Churn:
    """Customers and revenue lost from ``since`` until before ``until``. Who came and left in between was never there."""
    [found] = _rows("growth_churn", since=since, until=until, product=product_id)
    return Churn(*found)


def credit_revenue(*, since: date, until: date, product_id: int | None = None) -> int:
    """Nano-USD that packs sold for on the UTC days from ``since`` up to but without ``until``, less what was ever given back of them: the
    share of the price that was refunded, rounded so that no pack is below zero."""
    [(nanos, _)] = _rows("growth_packs", since=since, until=until, product=product_id)
    return int(nanos)


def economics(*, of: Period, product_id: int | None = None) -> Economics:
    """A month's unit economics. Given credit counts with what its use cost us (:mod:`analytics.hourly`), marketing as staff typed it in."""
    packs = credit_revenue(since=of.first_day, until=of.end, product_id=product_id)
    [(payers, won)] = _rows("growth_payers", since=of.since, until=of.until, product=product_id)
    spent = MarketingSpend.objects.filter(month=of.month)
    given = HourlyFigures.objects.filter(at__gt=of.since, at__lte=midnight(next_month(of.month)))
    if product_id is not None:
        spent, given = spent.filter(product_id=product_id), given.filter(product_id=product_id)
    return Economics(
        revenue_nanos=mrr(at=of.until, product_id=product_id) + packs,
        cost_nanos=margin.report(by="day", since=of.first_day, until=of.end, product_id=product_id, limit=1).totals.cost_nanos,
        payers=payers,
        won=won,
        churn=churn(since=of.since, until=of.until, product_id=product_id),
        gifts_nanos=int(given.aggregate(sum=Sum("gifts_cost_nanos"))["sum"] or 0),
        marketing_nanos=int(spent.aggregate(sum=Sum("amount_cents"))["sum"] or 0) * NANOS_PER_CENT,
    )


def _rows(name: str, **parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(rollups.query(name), parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows
