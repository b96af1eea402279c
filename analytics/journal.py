"""The double-entry journal of recognised revenue: one line per account of the chart, UTC day and product, which balance to zero each day.

    lines   a period's lines, of one product or of all
    CHART   the accounts, in the order of the lines

Amounts are nano-units, debits above 0 and credits below. Where they come from: :mod:`analytics.recognition`, whose totals they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from accounts.exports import Cell, Nanos
from analytics import margin, recognition
from analytics.recognition import Sums
from pricing.models import Product


@dataclass(frozen=True, slots=True)
class Line:
    day: str
    product: str
    account: str
    amount_nanos: int


#: What each account of the chart is debited with (above 0) or credited with by a day's movements. They sum to zero, whatever the sums are.
CHART: Final[dict[str, Callable[[Sums], int]]] = {
    "Cash at the payment provider": lambda s: s.cash_nanos - s.refunded_nanos - s.credit_sold_fee_nanos - s.time_sold_fee_nanos,
    "Prepaid payment fees": lambda s: s.prepaid_fees_nanos,
    "Deferred revenue, credit": lambda s: s.disputed_nanos - s.deferred_credit_nanos,
    "Deferred revenue, disputed credit": lambda s: -s.disputed_nanos,
    "Deferred revenue, plans": lambda s: -s.deferred_time_nanos,
    "Revenue, used credit": lambda s: -s.used_nanos,
    "Revenue, repaid debt": lambda s: -s.debt_repaid_nanos,
    "Revenue, plans": lambda s: -s.time_earned_nanos,
    "Breakage, expired credit": lambda s: -s.breakage_nanos,
    "Breakage, corrections by staff": lambda s: -s.corrections_nanos,
    "Refunds of used credit": lambda s: s.returned_of_used_nanos,
    "Payment fees": lambda s: s.fees_nanos,
    "Promotion, list value of free credit used": lambda s: s.promotion_value_nanos,
    "Usage given away, at list price": lambda s: -s.promotion_value_nanos,
}


def lines(*, since: date, until: date, product: Product | None = None) -> Iterator[Line]:
    """The UTC days from ``since`` up to but without ``until``, without lines of zero: by day, product and account of the chart.

    :raises margin.InvalidPeriod: see there; before the first line.
    """
    margin.check_period(since=since, until=until)
    products = [product] if product else list(Product.objects.order_by("slug"))
    days = [
        (day.key, each.slug, day)
        for each in products
        for day in recognition.report(since=since, until=until, product_id=each.pk, by="day").rows
    ]
    return (
        Line(day, slug, account, amount)
        for day, slug, sums in sorted(days, key=lambda found: found[:2])
        for account, posted in CHART.items()
        if (amount := posted(sums))
    )


def cells(lines: Iterator[Line]) -> Iterator[Sequence[Cell]]:
    """The same as rows of a file, its headings first. Amounts are exact."""
    yield ("Day (UTC)", "Product", "Account", "Debit USD", "Credit USD")
    for line in lines:
        debit, credit = (Nanos(line.amount_nanos), None) if line.amount_nanos > 0 else (None, Nanos(-line.amount_nanos))
        yield (line.day, line.product, line.account, debit, credit)
