"""A provider's bill against our own record, pure: what differs, in volume and in price. Standard library only.

    paired     which of a bill's model names and of ours are one model
    compare    one variance for each day, model, component and service level: volume and price, exact

With Q for quantity and P for price of one unit, of the bill (b) and of our record (o)::

    volume = (Qb - Qo) × Po      price = (Pb - Po) × Qb      volume + price = billed - recorded

Both are whole nano-USD: volume is rounded once, half to even, and price is what is left, so that they sum to the difference to the nano.
Where we recorded nothing, Po is the price book's price; where that has none either, the billed one, so that all of it is volume. Where the
bill states no quantity nothing is guessed: the difference stands as ``unsplit``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from typing import NamedTuple


class Key(NamedTuple):
    """What is compared. ``component`` empty: the model as a whole; ``level`` empty: all service levels together."""

    day: date
    model: str
    component: str
    level: str


@dataclass(frozen=True, slots=True)
class Billed:
    """What the bill says. ``quantity`` None: it does not. ``amount_nanos`` may be off by ``precision_nanos``, by its rounding."""

    key: Key
    quantity: int | None
    amount_nanos: int
    precision_nanos: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A price row, by its id: ``price_nanos`` for ``per_units``. ``catalog`` names the product whose file carries it."""

    id: int
    price_nanos: int
    per_units: int
    catalog: str = ""

    @property
    def price(self) -> Fraction:
        return Fraction(self.price_nanos, self.per_units)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What we recorded: ``cost_nanos`` for ``quantity`` at ``rows`` (each with the quantity rated by it), and ``unpriced`` beside it."""

    key: Key
    quantity: int
    cost_nanos: int
    rows: tuple[tuple[Row, int], ...] = ()
    unpriced: int = 0


@dataclass(frozen=True, slots=True)
class Variance:
    """One line of the comparison; ``volume + price + unsplit = billed - recorded``, and ``unsplit`` is 0 where the bill has quantities."""

    key: Key
    billed_quantity: int | None
    billed_nanos: int
    precision_nanos: int
    quantity: int
    recorded_nanos: int
    unpriced: int
    volume_nanos: int
    price_nanos: int
    unsplit_nanos: int
    price: Fraction | None
    rows: tuple[Row, ...]

    @property
    def difference_nanos(self) -> int:
        return self.billed_nanos - self.recorded_nanos

    @property
    def missing(self) -> int:
        """How much more was billed than recorded with a price; below 0: less."""
        return 0 if self.billed_quantity is None else self.billed_quantity - self.quantity


# Comparing ----------------------------------------------------------------------------------------------------------------------


def compare(*, billed: Iterable[Billed], recorded: Iterable[Recorded], book: Callable[[Key], Row | None]) -> list[Variance]:
    """Every key that either side has, in order of day, model and component.

    The coarser side decides: where the bill has a model or its service levels together, our record is added up likewise. Reasoning is
    billed as output, so it joins that unless the bill has it apart. ``book`` answers the price book's row of a key that we never recorded.
    """
    lines = list(billed)
    whole = {(line.key.day, line.key.model) for line in lines if not line.key.component}
    untold = {line.key.model for line in lines if not line.key.level}
    apart = {line.key.model for line in lines if line.key.component == "reasoning_tokens"}

    def coarse(key: Key) -> Key:
        if (key.day, key.model) in whole:
            return key._replace(component="", level="")
        if key.component == "reasoning_tokens" and key.model not in apart:
            key = key._replace(component="output_tokens")
        return key._replace(level="") if key.model in untold else key

    bills: dict[Key, Billed] = {}
    for bill in lines:
        key = coarse(bill.key)
        bills[key] = _joined(bills.get(key), replace(bill, key=key))
    ours: dict[Key, Recorded] = {}
    for line in recorded:
        key = coarse(line.key)
        ours[key] = _added(ours.get(key), replace(line, key=key))
    return [_variance(key, bills.get(key), ours.get(key), book) for key in sorted({*bills, *ours})]


def _joined(one: Billed | None, other: Billed) -> Billed:
    """Tokens of different kinds are no sum: a model as a whole has no quantity."""
    one = one or Billed(other.key, 0, 0, 0)
    quantity = None if one.quantity is None or other.quantity is None or not other.key.component else one.quantity + other.quantity
    return Billed(other.key, quantity, one.amount_nanos + other.amount_nanos, one.precision_nanos + other.precision_nanos)


def _added(one: Recorded | None, other: Recorded) -> Recorded:
    if one is None:
        return other
    return Recorded(
        other.key, one.quantity + other.quantity, one.cost_nanos + other.cost_nanos, one.rows + other.rows, one.unpriced + other.unpriced
    )


def _variance(key: Key, billed: Billed | None, ours: Recorded | None, book: Callable[[Key], Row | None]) -> Variance:
    bill = billed or Billed(key, 0, 0, 0)
    mine = ours or Recorded(key, 0, 0)
    rows = tuple(dict.fromkeys(row for row, _ in mine.rows))
    of_book = book(key) if not rows and key.component else None
    known = (*rows, *([of_book] if of_book else []))
    difference, volume, price = bill.amount_nanos - mine.cost_nanos, 0, 0
    if bill.quantity is not None:
        if mine.quantity:
            unit = Fraction(mine.cost_nanos, mine.quantity)
        elif of_book:
            unit = of_book.price
        else:
            unit = Fraction(bill.amount_nanos, bill.quantity) if bill.quantity else Fraction(0)
        volume = round((bill.quantity - mine.quantity) * unit)
        price = difference - volume
    rated = sum(quantity for _, quantity in mine.rows)
    exact = sum((row.price * quantity for row, quantity in mine.rows), Fraction(0)) / rated if rated else None
    return Variance(
        key=key, billed_quantity=bill.quantity, billed_nanos=bill.amount_nanos, precision_nanos=bill.precision_nanos,
        quantity=mine.quantity, recorded_nanos=mine.cost_nanos, unpriced=mine.unpriced, volume_nanos=volume, price_nanos=price,
        unsplit_nanos=difference - volume - price, price=exact if exact is not None else of_book.price if of_book else None, rows=known,
    )  # fmt: skip


# Names ------------------------------------------------------------------------------------------------------------------------------


def paired(*, billed: Iterable[str], recorded: Iterable[str], book: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Under which one name each billed and each recorded model is compared; a billed one that is nowhere here is in neither.

    Bills name dated versions, or display names, where apps ask for an alias: ``gpt-4o``, ``gpt-4o-2024-08-06``; ``Claude Haiku 4.5``,
    ``claude-haiku-4-5-20251001``. Names that differ by date and punctuation alone are one where either side has but one of them;
    where both have several, each stands for itself.
    """
    bills, ours, prices = _families(billed), _families(recorded), _families(book)
    of_bill: dict[str, str] = {}
    of_record = {name: name for names in ours.values() for name in names}
    for family, names in bills.items():
        here = ours.get(family, [])
        if len(here) == 1:
            of_bill |= dict.fromkeys(names, here[0])
        elif here and len(names) == 1:
            of_bill[names[0]] = names[0]
            of_record |= dict.fromkeys(here, names[0])
        elif here:
            of_bill |= {name: name for name in names}
        elif priced := prices.get(family):
            of_bill |= {name: name if name in priced else priced[0] for name in names}
    return of_bill, of_record


def _families(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        found.setdefault(_family(name), []).append(name)
    return found


def _family(name: str) -> str:
    """The name without its date, its words in order: a display name and an identifier may have them in another one."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return " ".join(sorted(re.sub(r"-(20\d{6}|20\d\d-\d\d-\d\d|latest)$", "", slug).split("-")))
