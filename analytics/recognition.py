"""Recognised revenue: where every cent went that customers paid, of a period and up to an instant.

    report       the movements of some UTC days, with what was owed before and after them
    outstanding  the state at an instant: the cash behind what customers have not used yet

Every nano of cash is in one of four places, always (``Sums``): ``recognised + deferred + refunded + fees = cash``.

* *cash*: what was paid for credit and for plans, without taxes; *refunded*: what of it went back, lost disputes included.
* *earned*: the cash behind credits that were used, that repaid debt, that expired (breakage) or that staff took away, and of a plan's price
  its share of time. A plan that includes credit is paid for that credit; one that includes none, and whatever an invoice charges beyond
  credit, is earned evenly over the time it pays for. Money that went back for credits that were used already is taken off; what is owed for
  them counts when it is repaid.
* *fees*: what the payment provider kept, counted with the credit or time that the payment bought, and at once where that was taken back.
* *recognised* is earned less fees. *deferred* is the rest: the cash behind credits that are still there, frozen ones too, and behind
  unexpired time.

Days are those on which the ledger recorded it, in UTC: a day that is over never changes. Nano-units of the currency that everything is
sold in. Why so: docs/decisions/0064.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from django.db import connection

from analytics import margin, rollups

By = Literal["product", "account", "day"]
BYS: tuple[By, ...] = get_args(By)
_BEGIN = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Sums:
    """One group's movements: what credit was sold for and what became of it, and the same of plans' time.

    ``promotion_…`` is no cash: the list value (nano-USD) of what was used on credits that nobody paid for, and what that cost us upstream.
    It was spent to win customers, and is no revenue at a negative price.
    """

    key: str
    label: str
    credit_sold_nanos: int
    credit_sold_fee_nanos: int
    used_nanos: int
    debt_repaid_nanos: int
    breakage_nanos: int
    corrections_nanos: int
    clawed_nanos: int
    credit_returned_nanos: int
    disputed_nanos: int
    credit_fees_nanos: int
    time_sold_nanos: int
    time_sold_fee_nanos: int
    time_returned_nanos: int
    time_earned_nanos: int
    time_fees_nanos: int
    promotion_value_nanos: int
    promotion_cost_nanos: int

    @property
    def cash_nanos(self) -> int:
        return self.credit_sold_nanos + self.time_sold_nanos

    @property
    def refunded_nanos(self) -> int:
        return self.credit_returned_nanos + self.time_returned_nanos

    @property
    def returned_of_used_nanos(self) -> int:
        """Money that went back for credits that were used by then: taken off what was earned."""
        return self.credit_returned_nanos - self.clawed_nanos

    @property
    def fees_nanos(self) -> int:
        return self.credit_fees_nanos + self.time_fees_nanos

    @property
    def earned_nanos(self) -> int:
        """Revenue before payment fees."""
        credit = self.used_nanos + self.debt_repaid_nanos + self.breakage_nanos + self.corrections_nanos
        return credit - self.returned_of_used_nanos + self.time_earned_nanos

    @property
    def recognised_nanos(self) -> int:
        """Revenue after payment fees."""
        return self.earned_nanos - self.fees_nanos

    @property
    def deferred_credit_nanos(self) -> int:
        """What was added to the cash behind credits that are still there, disputed ones included."""
        gone = self.used_nanos + self.debt_repaid_nanos + self.breakage_nanos + self.corrections_nanos + self.clawed_nanos
        return self.credit_sold_nanos - gone

    @property
    def deferred_time_nanos(self) -> int:
        """What was added to the cash behind the unexpired part of plans."""
        return self.time_sold_nanos - self.time_returned_nanos - self.time_earned_nanos

    @property
    def deferred_nanos(self) -> int:
        return self.deferred_credit_nanos + self.deferred_time_nanos

    @property
    def prepaid_fees_nanos(self) -> int:
        """What was added to the fees that the provider has kept already of cash that is still deferred."""
        return self.credit_sold_fee_nanos + self.time_sold_fee_nanos - self.fees_nanos


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What is owed to customers at ``at``: ``sums`` are all movements up to then. ``disputed_nanos`` is part of ``credit_nanos``."""

    at: datetime
    sums: Sums

    @property
    def credit_nanos(self) -> int:
        """The cash behind credits not yet burnt: the outstanding liability."""
        return self.sums.deferred_credit_nanos

    @property
    def disputed_nanos(self) -> int:
        return self.sums.disputed_nanos

    @property
    def time_nanos(self) -> int:
        """The cash behind the unexpired part of plans."""
        return self.sums.deferred_time_nanos

    @property
    def deferred_nanos(self) -> int:
        return self.sums.deferred_nanos


@dataclass(frozen=True, slots=True)
class Report:
    """``rows`` are as many as were asked for, of ``groups``; ``totals`` is over all. ``opening`` and ``closing`` are at the ends."""

    by: By
    since: date
    until: date
    totals: Sums
    rows: list[Sums]
    groups: int
    opening: Outstanding
    closing: Outstanding

    @property
    def outstanding_percent(self) -> Decimal | None:
        """The cash behind credits at the end, of what was earned in the period; None where nothing was."""
        return margin.percent(self.closing.credit_nanos, self.totals.earned_nanos)


def report(
    *,
    since: date,
    until: date,
    product_id: int | None = None,
    account_id: int | None = None,
    by: By = "product",
    limit: int = margin.MAX_ROWS,
) -> Report:
    """The UTC days from ``since`` up to but without ``until``: days in order, products and accounts by what they earned.

    :raises margin.InvalidPeriod: see there.
    """
    margin.check_period(since=since, until=until)
    if not 1 <= limit <= margin.MAX_ROWS:
        raise ValueError(f"Ask for 1 to {margin.MAX_ROWS} rows.")
    start, end = _midnight(since), _midnight(until)
    totals, rows, groups = _sums(since=start, until=end, product_id=product_id, account_id=account_id, by=by, limit=limit)
    return Report(
        by=by, since=since, until=until, totals=totals, rows=rows, groups=groups,
        opening=outstanding(product_id=product_id, account_id=account_id, at=start),
        closing=outstanding(product_id=product_id, account_id=account_id, at=end),
    )  # fmt: skip


def outstanding(*, product_id: int | None, at: datetime, account_id: int | None = None) -> Outstanding:
    """The state at ``at``: of everything that was recorded before. None: all products."""
    totals, _, _ = _sums(since=_BEGIN, until=at, product_id=product_id, account_id=account_id, by="product", limit=0)
    return Outstanding(at=at, sums=totals)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)


def _sums(
    *, since: datetime, until: datetime, product_id: int | None, account_id: int | None, by: By, limit: int
) -> tuple[Sums, list[Sums], int]:
    until = until.astimezone(UTC)
    whole_days = until == _midnight(until.date())
    parameters: dict[str, Any] = {
        "by": by, "since": since, "until": until, "last_day": until.date() - timedelta(days=1) if whole_days else until.date(),
        "partial": not whole_days, "product": product_id, "account": account_id, "limit": limit,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("recognition"), parameters)
        rows = [(Sums(key or "", label or "", *figures), groups) for key, label, figures, groups in cursor.fetchall()]
    (totals, groups), *others = rows
    return totals, [row for row, _ in others], groups
