"""The profit and loss of a simulated year, month by month, from what the real reports and the ledger say, held against what was paid.

A month's figures are the differences between two readings of the whole, taken at its ends as a person would have read them then: usage
that was reported a month late counts in the month in which we heard of it. All are nano-USD.

    cash        what was paid at Stripe, less what went back
    deferred    the cash behind credit that is neither used nor expired nor taken back
    recognised  cash less what was added to deferred: what was earned
    cost        what the work cost us upstream (the margin report's figure)
    fees        what Stripe kept; it keeps it of payments that are refunded too
    margin      recognised − cost − fees
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

from django.db import connection

from analytics import margin, rollups

NANOS_PER_CENT = 10_000_000


class CashDiffers(Exception):
    """Our books have another sum than what was paid. The message has both."""


@dataclass(frozen=True, slots=True)
class Figures:
    """All in nano-USD, but for ``records``."""

    plans: int
    credit: int
    refunds: int
    deferred: int
    cost: int
    charged: int
    fees: int
    records: int

    @property
    def cash(self) -> int:
        return self.plans + self.credit - self.refunds

    @property
    def recognised(self) -> int:
        return self.cash - self.deferred

    @property
    def margin(self) -> int:
        return self.recognised - self.cost - self.fees

    def __sub__(self, other: Figures) -> Figures:
        return Figures(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


NOTHING = Figures(*[0] * 8)


@dataclass(frozen=True, slots=True)
class Month:
    """``figures`` are what the month added, ``deferred`` is what was deferred at its end."""

    name: str
    figures: Figures
    deferred: int


class Books:
    """Read at the end of each month of ``[start, …)``."""

    def __init__(self, *, product_id: int, start: datetime) -> None:
        self.months: list[Month] = []
        self.total = NOTHING
        self._product_id = product_id
        self._start = start.date()

    def close(self, *, month: date, told: tuple[int, int, int], now: datetime) -> None:
        """Closes ``month``. ``told``: in cents, what was paid, given back and kept by Stripe of all payments that came to our inbox.

        :raises CashDiffers: our rows have not these sums, to the cent.
        """
        paid, back, fees = told
        with connection.cursor() as cursor:
            cursor.execute(rollups.query("simulated_cash"), {"product": self._product_id})
            plans, credit, refunded, deferred = cursor.fetchone()
        if (plans + credit, refunded) != (paid, back):
            raise CashDiffers(
                f"Until {now:%Y-%m-%d} {_cents(paid)} were paid and {_cents(back)} given back; our books have "
                f"{_cents(plans + credit)} and {_cents(refunded)}."
            )
        used = margin.report(by="day", since=self._start, until=now.date() + timedelta(days=2), product_id=self._product_id, limit=1).totals
        total = Figures(
            plans=plans * NANOS_PER_CENT,
            credit=credit * NANOS_PER_CENT,
            refunds=refunded * NANOS_PER_CENT,
            deferred=deferred,
            cost=used.cost_nanos,
            charged=used.revenue_nanos,
            fees=fees * NANOS_PER_CENT,
            records=used.records,
        )
        self.months.append(Month(f"{month:%b %Y}", total - self.total, deferred))
        self.total = total

    def table(self) -> list[str]:
        """The months and their sum, aligned for people; US dollars, to the cent."""
        heads = ("", "plans", "credit sold", "refunds", "cash", "deferred", "recognised", "AI cost", "fees", "margin", "%", "usage")
        rows = [_row(month.name, month.figures, month.deferred) for month in self.months]
        rows.append(_row("total", self.total, self.total.deferred))
        widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) if not n else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True)))
            for row in (heads, *rows)
        ]
        rule = "─" * len(lines[0])
        return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _row(name: str, figures: Figures, deferred: int) -> tuple[str, ...]:
    share = margin.percent(figures.margin, figures.recognised)
    paid = (figures.plans, figures.credit, -figures.refunds, figures.cash)
    earned = (deferred, figures.recognised, figures.cost, figures.fees, figures.margin)
    shown = "–" if share is None or figures.recognised < 0 else f"{share:.1f}"
    return (name, *map(_dollars, (*paid, *earned)), shown, f"{figures.records:,}")


def _dollars(nanos: int) -> str:
    """Rounded half to even to the cent, never -0.00."""
    return f"{Decimal(nanos).scaleb(-9).quantize(Decimal('0.01')) + 0:,}"


def _cents(cents: int) -> str:
    return f"${cents // 100:,}.{cents % 100:02}"
