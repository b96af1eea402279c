"""Margin: what was charged minus what it cost us, by model, account, user, product, plan, pack, cohort, day or feature.

    report    the whole of a period, group by group
    account   the same figures for one account

*Revenue* is the list value of what was charged, in nano-USD, reversals taken off; *cost* what we paid upstream, which a reversal does
not bring back. *Cash* is what was really paid for the credits that were burnt (nothing, for promotional ones), *fee* what of that the
payment provider kept. All are exact sums of integers, live: see :mod:`analytics.rollups`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, get_args

from django.db import connection

from analytics import rollups

By = Literal["model", "account", "user", "product", "plan", "pack", "cohort", "day", "feature"]
BYS: tuple[By, ...] = get_args(By)
#: By revenue, the highest first (days and cohorts in their order), or by margin percent, the least first.
Order = Literal["revenue", "least"]
MAX_DAYS = 1_830
MAX_ROWS = 2_000
_QUERIES: dict[By, str] = {
    "account": "margin_account", "user": "margin_slices", "plan": "margin_slices", "pack": "margin_slices", "cohort": "margin_slices",
}  # fmt: skip


class InvalidPeriod(ValueError):
    """A period that ends before it begins, or is longer than ``MAX_DAYS``. The message says which."""


@dataclass(frozen=True, slots=True)
class Row:
    """One group's sums. ``key`` is how the API names it, ``label`` how people do; empty is usage without a feature or plan, or that was
    charged to no credits. ``tokens`` is None where a group has parts of requests. ``fees_in``: the payment fee is a cost of the margins."""

    key: str
    label: str
    records: int
    tokens: int | None
    cost_nanos: int
    revenue_nanos: int
    cash_nanos: int
    fee_nanos: int
    fees_in: bool = field(default=False, kw_only=True)

    @property
    def costs_nanos(self) -> int:
        """What is taken off: what we paid upstream, and the payment fee where it is asked for."""
        return self.cost_nanos + (self.fee_nanos if self.fees_in else 0)

    @property
    def margin_nanos(self) -> int:
        return self.revenue_nanos - self.costs_nanos

    @property
    def margin_percent(self) -> Decimal | None:
        """Margin per revenue, to two decimals; None where nothing was charged."""
        return percent(self.margin_nanos, self.revenue_nanos)

    @property
    def cash_margin_nanos(self) -> int:
        """What is left of the cash behind the burnt credits."""
        return self.cash_nanos - self.costs_nanos

    @property
    def cash_margin_percent(self) -> Decimal | None:
        """Cash margin per cash, to two decimals; None where nothing was paid."""
        return percent(self.cash_margin_nanos, self.cash_nanos)


@dataclass(frozen=True, slots=True)
class Report:
    """``rows`` are at most as many as were asked for; ``groups`` says how many there are, ``totals`` is over all of them."""

    by: By
    since: date
    until: date
    totals: Row
    rows: list[Row]
    groups: int
    folded_at: datetime


def report(
    *, by: By, since: date, until: date, product_id: int | None = None, limit: int = MAX_ROWS, order: Order = "revenue", fees: bool = False
) -> Report:
    """The margin on the UTC days from ``since`` up to but without ``until``, less the payment fee where ``fees``.

    :raises InvalidPeriod: see there.
    """
    check_period(since=since, until=until)
    if not 1 <= limit <= MAX_ROWS:
        raise ValueError(f"Ask for 1 to {MAX_ROWS} rows.")
    parameters = {
        "by": by, "since": since, "until": until, "product": product_id, "account": None, "limit": limit, "least": order == "least",
        "fees": fees,
    }  # fmt: skip
    (totals, groups), *rows = _rows(_QUERIES.get(by, "margin"), parameters)
    return Report(
        by=by, since=since, until=until, totals=totals, rows=[row for row, _ in rows], groups=groups, folded_at=rollups.folded_at()
    )


def account(*, account_id: int, since: date, until: date) -> Row:
    """One account's sums on the UTC days from ``since`` up to but without ``until``."""
    parameters = {"since": since, "until": until, "product": None, "account": account_id, "limit": 0, "least": False, "fees": False}
    [(totals, _)] = _rows("margin_account", parameters)
    return totals


def check_period(*, since: date, until: date) -> None:
    """:raises InvalidPeriod: see there."""
    if since >= until:
        raise InvalidPeriod("The period ends before it begins: until is the first day that is not counted.")
    if (until - since).days > MAX_DAYS:
        raise InvalidPeriod(f"The period is longer than {MAX_DAYS} days.")


def percent(part: int, whole: int) -> Decimal | None:
    """``part`` of ``whole`` in percent, rounded half to even to two decimals; None of nothing."""
    if whole == 0:
        return None
    return Decimal(round(Fraction(10_000 * part, whole))).scaleb(-2)


def _rows(name: str, parameters: dict[str, Any]) -> list[tuple[Row, int]]:
    with connection.cursor() as cursor:
        cursor.execute(rollups.query(name), parameters)
        return [
            (Row(key or "", label or "", *figures, fees_in=parameters["fees"]), groups)
            for key, label, *figures, groups in cursor.fetchall()
        ]
