"""A business at a glance: what the dashboard shows of one product, or of all of them together.

    look    the money of a period, the credit that customers hold, and who is active, throttled or a risk

Money is nano-USD, credit nanos of its unit. All is live (:mod:`analytics.rollups`): time grows with days, models and accounts, not with
what they used. MRR is as of now (:mod:`analytics.growth`); who is a risk is of the calendar month so far (:mod:`analytics.risk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from django.db import connection

from analytics import growth, margin, risk, rollups
from billing.admin import unit
from pricing.models import Product, Unit

#: What machines are priced by, beside what models are.
MACHINE_COMPONENTS: Final = ["seconds", "gb_months", "egress_gb"]
#: So many rows of each list of the best.
TOP: Final = 5
WEEK: Final = 7


@dataclass(frozen=True, slots=True)
class Credits:
    """Credit in one unit: what customers hold now, and what was charged in a period of ``days`` days."""

    unit: Unit
    balance: int
    held: int
    debt: int
    holders: int
    burnt: int
    days: int

    @property
    def a_day(self) -> int:
        """What is burnt on an average day of the period."""
        return self.burnt // self.days

    @property
    def lasts_days(self) -> int | None:
        """How long what customers hold lasts at that rate; None where nothing is burnt."""
        return self.balance // self.a_day if self.a_day > 0 else None


@dataclass(frozen=True, slots=True)
class Active:
    """How many accounts used something: on one day, or on the busiest of so many ``days``."""

    day: date
    days: int
    accounts: int


@dataclass(frozen=True, slots=True)
class Overview:
    """``before`` is the period of the same length before this one. ``packs`` were sold for ``packs_nanos``; ``owed_nanos`` is the cash
    behind credit that is not used yet, now. ``machine_records`` 0: no machine is metered."""

    since: date
    until: date
    days: margin.Report
    before: margin.Row
    by_product: margin.Report
    by_model: margin.Report
    by_account: margin.Report
    machine_nanos: int
    machine_records: int
    mrr_nanos: int
    payers: int
    packs_nanos: int
    packs: int
    owed_nanos: int
    credits: tuple[Credits, ...]
    active: tuple[Active, ...]
    months: tuple[risk.Month, ...]

    @property
    def last_day(self) -> date:
        return self.until - timedelta(days=1)

    @property
    def recognised_nanos(self) -> int:
        """The cash behind the credit that was used, after the fees that it cost to collect."""
        return self.days.totals.cash_nanos - self.days.totals.fee_nanos

    @property
    def ai_nanos(self) -> int:
        """What usage cost us, but for machines."""
        return self.days.totals.cost_nanos - self.machine_nanos

    @property
    def month_cost_nanos(self) -> int:
        return sum(month.cost_nanos for month in self.months)

    @property
    def throttled(self) -> int:
        return sum(month.throttled_accounts for month in self.months)

    @property
    def at_risk(self) -> int:
        return sum(len(month.at_risk) for month in self.months)

    @property
    def high_risk(self) -> int:
        return sum(len(month.high_risk) for month in self.months)


def look(*, products: Sequence[Product], one: Product | None, days: int, now: datetime) -> Overview:
    """The last ``days`` UTC days, today included, of ``one`` product, or of all ``products``."""
    until = now.date() + timedelta(days=1)
    since = until - timedelta(days=days)
    product_id = one.pk if one else None
    asked: dict[str, Any] = {"product": product_id, "since": since, "until": until}
    [(machine_nanos, machine_records)] = _rows("overview_machines", asked | {"components": MACHINE_COMPONENTS})
    [(packs,)] = _rows("overview_packs", asked)
    [(owed,)] = _rows("overview_owed", asked)
    paid = growth.standing(at=now, product_id=product_id)

    def of(by: margin.By, limit: int = margin.MAX_ROWS) -> margin.Report:
        return margin.report(by=by, since=since, until=until, product_id=product_id, limit=limit)

    credits = tuple(
        Credits(unit(unit_id), int(balance), int(held), int(debt), int(holders), int(burnt), days)
        for unit_id, balance, held, debt, holders, burnt in _rows("overview_credits", asked)
    )
    before = margin.report(by="product", since=since - timedelta(days=days), until=since, product_id=product_id, limit=1)
    return Overview(
        since, until, days=of("day"), before=before.totals, by_product=of("product", TOP), by_model=of("model", TOP),
        by_account=of("account", TOP), machine_nanos=machine_nanos, machine_records=machine_records, mrr_nanos=paid.mrr_nanos,
        payers=paid.accounts, packs_nanos=growth.credit_revenue(since=since, until=until, product_id=product_id), packs=packs,
        owed_nanos=int(owed), credits=credits,
        active=_active(dict(_rows("overview_active", asked)), since, days),
        months=tuple(risk.look(product=product, now=now) for product in ([one] if one else products)),
    )  # fmt: skip


def _active(found: dict[date, int], since: date, days: int) -> tuple[Active, ...]:
    """Day by day, or of more than a month week by week: the busiest day of each."""
    step = 1 if days <= 31 else WEEK
    found_days = [since + timedelta(days=offset) for offset in range(days)]
    parts = (found_days[at : at + step] for at in range(0, days, step))
    return tuple(Active(part[0], len(part), max(found.get(day, 0) for day in part)) for part in parts)


def _rows(name: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(rollups.query(name), parameters)
        return list(cursor.fetchall())
