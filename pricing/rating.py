"""Rating: quantities → cost and price. Pure integer arithmetic, standard library only.

    rate      what a usage record cost us and what it is charged
    explain   the same, component by component, in exact fractions

Cost (nano-USD) and price (nanos of the wallet's unit) are exact sums over a common denominator, each rounded **up once**, on the total
of one usage record. The price comes from the exact cost, never from the rounded one.

Nothing is guessed. A model or component without a price raises :class:`UnpricedUsage`; it is never 0 and never another's price. That
holds for ``reasoning_tokens`` too: providers bill them as output tokens, so :func:`pricing.provider_usage.normalise` folds them into
``output_tokens`` unless asked not to, and the price import writes rows of their own for those who report them apart. Here they need a
price like anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import NamedTuple, NoReturn

#: The order of ``quantities`` arrays in the database. Append only: a position is for ever.
COMPONENTS: tuple[str, ...] = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "images",
    "seconds",
    "gb_months",
    "requests",
    "cached_input_audio_tokens",
    "egress_gb",
    "web_searches",
)
#: What a ``credit_rate`` card counts.
TOKEN_COMPONENTS = frozenset(component for component in COMPONENTS if component.endswith("_tokens"))
#: What the model reads: together they are the context that decides a long-context tier.
INPUT_COMPONENTS = frozenset(
    component for component in TOKEN_COMPONENTS if component not in ("output_tokens", "reasoning_tokens", "output_audio_tokens")
)

MAX_QUANTITY = 10**12
#: The most that one usage record may cost or be priced at, a million units: more is a mistake, and sums of records stay in bigint.
MAX_NANOS = 10**15
NANOS = 1_000_000_000
PPM = 1_000_000

Quantities = Mapping[str, int]
_KNOWN = frozenset(COMPONENTS)


class InvalidQuantity(ValueError):
    """A quantity that nobody can have used: unknown component, no integer, negative."""


class QuantityOverflow(InvalidQuantity):
    """A quantity above ``MAX_QUANTITY``, or a cost or price above ``MAX_NANOS``."""


class UnpricedUsage(Exception):
    """No price covers these components of this model at this service level."""

    def __init__(self, *, model: str, components: Iterable[str], missing: str) -> None:
        self.model = model
        self.components = tuple(components)
        self.missing = missing
        super().__init__(f"No {missing} for {model}: {', '.join(self.components) or 'any component'}.")


@dataclass(frozen=True, slots=True)
class Price:
    """``price_nanos`` for ``per_units`` of one component. ``row_id`` is its price book row (0 for a card's retail price)."""

    component: str
    price_nanos: int
    per_units: int
    row_id: int = 0
    context_above: int = 0
    service_level: str = "standard"


@dataclass(frozen=True, slots=True)
class Table:
    """The prices that apply together, over one denominator: a component's rate is ``rates[component][0] / denominator`` nanos a unit."""

    context_above: int
    prices: Mapping[str, Price]
    denominator: int
    rates: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Book:
    """The price book of one model at one instant: for each service level its tables, the longest context first.

    A model that nobody has priced has a book too, an empty one.
    """

    model: str
    levels: Mapping[str, tuple[Table, ...]]

    @property
    def row_ids(self) -> tuple[int, ...]:
        """Every price book row that rating with this book may use, in order."""
        return tuple(sorted({price.row_id for tables in self.levels.values() for table in tables for price in table.prices.values()}))


@dataclass(frozen=True, slots=True)
class RateCard:
    """The terms of one version of a product's rate card.

    :param mode: ``markup``, ``credit_rate``, ``price_book``, ``pass_through``, ``byo`` or ``included``.
    :param markup_ppm: for ``markup``; ``markups`` has the models with their own.
    :param tokens_per_credit: for ``credit_rate``; ``multipliers`` (ppm) has the models with their own, ``default_multiplier_ppm`` is for
        the others, and None refuses them.
    :param retail: for ``price_book``: a model's own prices, in nanos of the wallet's unit.
    :param quantum_nanos: a price is rounded up to a multiple of this.
    :param minimum_nanos: least price of a record that used anything; not for ``byo`` and ``included``.
    :param credit_value_nanos: list value in nano-USD of one unit of the wallet, at least 1.
    """

    id: int
    mode: str
    markup_ppm: int = 0
    tokens_per_credit: int | None = None
    default_multiplier_ppm: int | None = None
    quantum_nanos: int = 1
    minimum_nanos: int = 0
    credit_value_nanos: int = NANOS
    markups: Mapping[str, int] = field(default_factory=dict)
    multipliers: Mapping[str, int] = field(default_factory=dict)
    retail: Mapping[str, Table] = field(default_factory=dict)


class Rated(NamedTuple):
    """What a usage record cost and is charged.

    ``price_row_ids[i]`` is the price book row of ``components[i]``, the components that were used, in the order given; a ``byo`` card
    uses no rows. ``list_value_nanos`` is the price in nano-USD at the card's credit value, rounded down.
    """

    cost_nanos: int
    price_nanos: int
    list_value_nanos: int
    components: tuple[str, ...]
    price_row_ids: tuple[int, ...]


class Line(NamedTuple):
    """One component of a charge. ``cost`` is exact nano-USD, ``charge`` exact nanos of the unit before rounding and minimum."""

    component: str
    quantity: int
    price_row_id: int
    price_nanos: int
    per_units: int
    cost: Fraction
    charge: Fraction


def rate(*, card: RateCard, book: Book, model: str, quantities: Quantities, service_level: str = "standard") -> Rated:
    """Cost (nano-USD) and price (nanos of the wallet's unit) of ``quantities``, which must be disjoint, on ``model``.

    Each total is exact and rounded up once; the price then to the card's quantum, and at least to its minimum.

    :raises UnpricedUsage: the book, or the card, has no price for a component that was used. ``byo`` needs none.
    :raises InvalidQuantity: an unknown component, or a quantity that is no integer or negative.
    :raises QuantityOverflow: a quantity above ``MAX_QUANTITY``, or a total above ``MAX_NANOS``.
    """
    if book.model != model:
        raise ValueError(f"The price book of {book.model} cannot rate {model}.")
    mode = card.mode
    if mode == "byo":
        return Rated(0, 0, 0, tuple(_used(quantities)), ())
    table = _table(book, quantities, service_level)
    total, components, rows = _total(table, quantities, book.model)
    cost_nanos = -(-total // table.denominator)
    if mode == "included":
        price_nanos = 0
    else:
        numerator, denominator = _charge(card, model, quantities, total, table.denominator)
        quantum = card.quantum_nanos
        price_nanos = -(-numerator // (denominator * quantum)) * quantum
        if price_nanos < card.minimum_nanos and components:
            price_nanos = card.minimum_nanos
    if cost_nanos > MAX_NANOS or price_nanos > MAX_NANOS:
        raise QuantityOverflow(f"{model}: the cost or the price exceeds {MAX_NANOS} nanos.")
    value = card.credit_value_nanos
    return Rated(cost_nanos, price_nanos, price_nanos if value == NANOS else price_nanos * value // NANOS, tuple(components), tuple(rows))


def explain(*, card: RateCard, book: Book, model: str, quantities: Quantities, service_level: str = "standard") -> tuple[Line, ...]:
    """The lines behind :func:`rate`, one for each component that was used; their exact sums, rounded up, are its cost and price.

    Minimum and quantum belong to the record, not to a line. Raises what :func:`rate` raises.
    """
    rate(card=card, book=book, model=model, quantities=quantities, service_level=service_level)
    if card.mode == "byo":
        return tuple(Line(component, quantities[component], 0, 0, 1, Fraction(0), Fraction(0)) for component in _used(quantities))
    table = _table(book, quantities, service_level)
    lines = []
    for component in _used(quantities):
        price, quantity = table.prices[component], quantities[component]
        total = quantity * table.rates[component][0]
        charge = (0, 1) if card.mode == "included" else _charge(card, model, {component: quantity}, total, table.denominator)
        cost = Fraction(total, table.denominator)
        lines.append(Line(component, quantity, price.row_id, price.price_nanos, price.per_units, cost, Fraction(*charge)))
    return tuple(lines)


def compile_table(prices: Iterable[Price], *, context_above: int = 0) -> Table:
    """``prices``, one a component, over their common denominator."""
    by_component = {price.component: price for price in prices}
    denominator = lcm(*(price.per_units for price in by_component.values()))
    rates = {component: (price.price_nanos * (denominator // price.per_units), price.row_id) for component, price in by_component.items()}
    return Table(context_above, by_component, denominator, rates)


def compile_book(*, model: str, prices: Iterable[Price]) -> Book:
    """The book of ``model`` from its rows at one instant.

    A component takes its row with the highest threshold below the context, so a long-context table inherits what it does not change.
    """
    by_level: dict[str, list[Price]] = {}
    for price in prices:
        by_level.setdefault(price.service_level, []).append(price)
    levels = {}
    for level, rows in by_level.items():
        rows.sort(key=lambda price: price.context_above)
        thresholds = sorted({0, *(price.context_above for price in rows)}, reverse=True)
        levels[level] = tuple(
            compile_table((price for price in rows if price.context_above <= above), context_above=above) for above in thresholds
        )
    return Book(model, levels)


def _table(book: Book, quantities: Quantities, service_level: str) -> Table:
    """The table for this service level and for the whole context of the request."""
    tables = book.levels.get(service_level)
    if tables is None:
        raise UnpricedUsage(model=book.model, components=_used(quantities), missing=f"{service_level} price in the price book")
    if len(tables) == 1:
        return tables[0]
    context = sum(quantities[component] for component in _used(quantities) if component in INPUT_COMPONENTS)
    return next((table for table in tables if context > table.context_above), tables[-1])


def _total(table: Table, quantities: Quantities, model: str, missing: str = "price in the price book") -> tuple[int, list[str], list[int]]:
    """Σ quantity × rate over the table's denominator, the components used, and their rows."""
    rates = table.rates
    total = 0
    components: list[str] = []
    rows: list[int] = []
    for component, quantity in quantities.items():
        if type(quantity) is not int or not 0 <= quantity <= MAX_QUANTITY:
            _refuse(component, quantity)
        found = rates.get(component)
        if found is not None:
            if quantity:
                total += quantity * found[0]
                components.append(component)
                rows.append(found[1])
        elif quantity or component not in _KNOWN:
            raise UnpricedUsage(model=model, components=(name for name in _used(quantities) if name not in rates), missing=missing)
    return total, components, rows


def _charge(card: RateCard, model: str, quantities: Quantities, total: int, denominator: int) -> tuple[int, int]:
    """The exact charge in nanos of the wallet's unit, as numerator and denominator; ``total / denominator`` is the exact cost."""
    mode = card.mode
    if mode in ("markup", "pass_through"):
        factor = PPM + (card.markups.get(model, card.markup_ppm) if card.markups else card.markup_ppm)
        if card.credit_value_nanos == NANOS:
            return total * factor, denominator * PPM
        return total * factor * NANOS, denominator * PPM * card.credit_value_nanos
    if mode == "credit_rate":
        multiplier = card.multipliers.get(model, card.default_multiplier_ppm)
        used = _used(quantities)
        uncounted = used if multiplier is None else [component for component in used if component not in TOKEN_COMPONENTS]
        if multiplier is None or uncounted or card.tokens_per_credit is None:
            raise UnpricedUsage(model=model, components=uncounted, missing="credit rate on the rate card")
        tokens = sum(quantities[component] for component in used)
        return tokens * multiplier * NANOS, card.tokens_per_credit * PPM
    if mode == "price_book":
        retail = card.retail.get(model)
        if retail is None:
            raise UnpricedUsage(model=model, components=_used(quantities), missing="retail price on the rate card")
        return _total(retail, quantities, model, "retail price on the rate card")[0], retail.denominator
    raise ValueError(f"A rate card has no mode {mode!r}.")


def _used(quantities: Quantities) -> list[str]:
    """The components that were used, all quantities checked."""
    for component, quantity in quantities.items():
        if type(quantity) is not int or not 0 <= quantity <= MAX_QUANTITY or component not in _KNOWN:
            _refuse(component, quantity)
    return [component for component, quantity in quantities.items() if quantity]


def _refuse(component: str, quantity: object) -> NoReturn:
    if component not in _KNOWN:
        raise InvalidQuantity(f"{component!r} is no component; expected one of {', '.join(COMPONENTS)}.")
    if type(quantity) is int and quantity > MAX_QUANTITY:
        raise QuantityOverflow(f"{component} is {quantity}; expected at most {MAX_QUANTITY}.")
    raise InvalidQuantity(f"{component} is {quantity!r}; expected an integer from 0 to {MAX_QUANTITY}.")
