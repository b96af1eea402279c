"""How far one person alone may change a price: by ``PRICE_CHANGE_CAP_PERCENT`` of what it is, or was within the last day.

    exceeded   whether a figure is further from another than that
    share      how far, in words
    moves      how far proposed upstream prices are from the price book
    far        those that are too far

From nothing to something, or back, is always too far. Where the setting is None, nothing is. What has no price yet is not changed by its
first one. Steps that add up to more within ``WINDOW`` are as far as one, so callers compare with what held then, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from django.conf import settings

from pricing.models import PriceProposal, PriceRow

WINDOW = timedelta(hours=24)


def exceeded(*, before: Fraction, after: Fraction) -> bool:
    """Exact: a change by just the cap is not above it."""
    cap: int | None = settings.PRICE_CHANGE_CAP_PERCENT
    if cap is None or before == after:
        return False
    return not before or not after or abs(after - before) * 100 > cap * before


def share(*, before: Fraction, after: Fraction) -> str:
    """``+66.7 %``, rounded away from 0, or ``from nothing``."""
    if not before:
        return "from nothing" if after else "the same"
    tenths = -(-abs(after - before) * 1000 // before)
    sign = "+" if after > before else "−" if after < before else ""
    return f"{sign}{Decimal(tenths).scaleb(-1):,f} %".replace(".0 %", " %")


@dataclass(frozen=True, slots=True)
class Move:
    """A proposal, the ``row`` of the book that it follows, and the one that it is too far from: that, or one of the last day."""

    proposal: PriceProposal
    row: PriceRow | None
    too_far: PriceRow | None

    def __str__(self) -> str:
        """``openai:gpt-5 input_tokens (standard): $3 per 1,000,000 → $6 per 1,000,000 (+100 %)``."""
        one = self.proposal
        above = f" above {one.context_above}" if one.context_above else ""
        dates = f" from {one.valid_from:%Y-%m-%d}" if one.valid_from else ""
        dates += f" until {one.valid_until:%Y-%m-%d}" if one.valid_until else ""
        name = f"{one.provider}:{one.model} {one.component}{above} ({one.service_level})"
        if self.row is None:
            return f"{name}: new, {figure(one)}{dates}"
        return f"{name}: {figure(self.row)} → {figure(one)} ({share(before=rate(self.row), after=rate(one))}){dates}"

    @property
    def words(self) -> str:
        """The same, with the earlier price that it is too far from, where the last one is nearer."""
        if self.too_far is None or self.too_far is self.row:
            return str(self)
        return f"{self}, after {figure(self.too_far)} within a day"


def moves(*, proposals: Iterable[PriceProposal], rows: Iterable[PriceRow], effective: datetime, now: datetime) -> list[Move]:
    """How far each is from the book. ``rows`` are the book's, without what was withdrawn; ``effective`` is when proposals without a date
    begin.

    A proposal is held against every price of the same thing that holds between a day before ``now`` and its own beginning, or, where none
    does, against the last one before. One that fills a gap of the past changes nothing.
    """
    book: dict[tuple[object, ...], list[PriceRow]] = {}
    for row in sorted(rows, key=lambda row: row.valid.lower):
        book.setdefault(_key(row), []).append(row)
    found = []
    for proposal in proposals:
        start = max(proposal.valid_from or effective, now)
        gap = proposal.valid_until is not None and proposal.valid_until <= now
        earlier = [] if gap else [row for row in book.get(_key(proposal), []) if row.valid.lower <= start]
        held = [row for row in earlier if row.valid.upper is None or row.valid.upper > now - WINDOW] or earlier[-1:]
        away = [row for row in held if exceeded(before=rate(row), after=rate(proposal))]
        found.append(Move(proposal, held[-1] if held else None, away[-1] if away else None))
    return found


def far(*, proposals: Iterable[PriceProposal], rows: Iterable[PriceRow], effective: datetime, now: datetime) -> list[Move]:
    """The moves that are above the cap."""
    return [move for move in moves(proposals=proposals, rows=rows, effective=effective, now=now) if move.too_far]


def rate(row: PriceRow | PriceProposal) -> Fraction:
    """Nano-USD for one unit."""
    return Fraction(row.price_nanos, row.per_units)


def figure(row: PriceRow | PriceProposal) -> str:
    return f"${Decimal(row.price_nanos).scaleb(-9).normalize():f} per {row.per_units:,}"


def _key(row: PriceRow | PriceProposal) -> tuple[object, ...]:
    return row.provider, row.model, row.component, row.context_above, row.service_level
