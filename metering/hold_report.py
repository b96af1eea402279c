"""How well holds are sized where the client app does not say how long an answer may be.

    of_records  what captures of a database came to
    of_trace    what a trace's calls come to, replayed by the same rules in order, each learning from those before it

A false refusal is a call that is refused though its charge fits what the account has free; an overshoot is a charge above its hold.
Beside what was held stands what the same calls would be with the worst case always. A call that was refused never ran and has no charge,
so of a database only the captured ones can be asked again: with what their account had then, and with the holds of today.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from metering import estimates
from metering.models import UsageRecord
from metering.traces import Row
from metering.usage import LAYERS
from pricing import catalog, rating
from pricing.models import Product

CHUNK: Final = 2_000


@dataclass(slots=True)
class Figures:
    """``asked`` calls of which ``refused`` falsely; ``calls`` that ran, ``over`` their hold, with the sums of their holds and charges."""

    asked: int = 0
    refused: int = 0
    calls: int = 0
    over: int = 0
    hold_nanos: int = 0
    charge_nanos: int = 0

    def ask(self, *, hold_nanos: int, charge_nanos: int, available_nanos: int) -> None:
        self.asked += 1
        self.refused += charge_nanos <= available_nanos < hold_nanos

    def run(self, *, hold_nanos: int, charge_nanos: int) -> None:
        self.calls += 1
        self.over += charge_nanos > hold_nanos
        self.hold_nanos += hold_nanos
        self.charge_nanos += charge_nanos

    def add(self, other: Figures) -> None:
        self.asked += other.asked
        self.refused += other.refused
        self.calls += other.calls
        self.over += other.over
        self.hold_nanos += other.hold_nanos
        self.charge_nanos += other.charge_nanos


@dataclass(slots=True)
class Line:
    """What was held, and what always holding the worst case would have been."""

    held: Figures = field(default_factory=Figures)
    worst: Figures = field(default_factory=Figures)

    def add(self, other: Line) -> None:
        self.held.add(other.held)
        self.worst.add(other.worst)


#: Lines by what they are about.
Lines: TypeAlias = dict[tuple[str, ...], Line]


def total(lines: Mapping[tuple[str, ...], Line]) -> Line:
    """All lines as one; their amounts must have one unit."""
    everything = Line()
    for line in lines.values():
        everything.add(line)
    return everything


# A database -------------------------------------------------------------------------------------------------------------------


def of_records(*, product: Product, since: datetime) -> Lines:
    """A product's captures of work authorized since ``since``, by model, feature and who said the length: "client app" or "assumed".

    Whether a call would be refused is asked of the assumed ones alone. Reads every such record.
    """
    lines: defaultdict[tuple[str, ...], Line] = defaultdict(Line)
    records = (
        UsageRecord.objects.filter(account__product=product, outcome=UsageRecord.Outcome.CAPTURED, event_at__gte=since)
        .select_related("model", "feature")
        .order_by()
    )
    for record in records.iterator(chunk_size=CHUNK):
        assumed = record.assumed_output_tokens is not None
        line = lines[str(record.model), str(record.feature or "–"), "assumed" if assumed else "client app"]
        charge_nanos = (record.price_nanos or 0) + record.waived_nanos
        line.held.run(hold_nanos=record.hold, charge_nanos=charge_nanos)
        left = (record.remaining or [None, None])[LAYERS.index("credits")]
        if assumed and left is not None:
            _ask_again(record, line, product=product, charge_nanos=charge_nanos, available_nanos=left + record.hold)
    return dict(lines)


def _ask_again(record: UsageRecord, line: Line, *, product: Product, charge_nanos: int, available_nanos: int) -> None:
    assert record.rate_card_id is not None
    model = str(record.model)
    card = catalog.rate_card_by_id(rate_card_id=record.rate_card_id)
    book = catalog.book_of_rows(model=model, row_ids=record.price_ids or ())
    quantities = dict(zip(rating.COMPONENTS, record.quantities, strict=False))

    def price_nanos(output_tokens: int) -> int:
        rated = rating.rate(
            card=card,
            book=book,
            model=model,
            quantities=quantities | {"output_tokens": output_tokens},
            service_level=next(iter(book.levels), "standard"),
        )
        return rated.price_nanos

    known = estimates.of(product_id=product.pk, model_id=record.model_id, feature_id=record.feature_id)
    usual = known.usual(estimates.input_tokens(quantities))
    try:
        worst_nanos = price_nanos(estimates.worst_case(usual))
    except (rating.UnpricedUsage, rating.QuantityOverflow):  # no output price on record with it, as it used none; or beyond all prices
        return
    tokens = estimates.choose(usual=usual, worst_price_nanos=worst_nanos, available_nanos=available_nanos)
    line.held.ask(hold_nanos=price_nanos(tokens), charge_nanos=charge_nanos, available_nanos=available_nanos)
    line.worst.ask(hold_nanos=worst_nanos, charge_nanos=charge_nanos, available_nanos=available_nanos)
    line.worst.run(hold_nanos=worst_nanos, charge_nanos=charge_nanos)


# A trace ----------------------------------------------------------------------------------------------------------------------

_CARD: Final = rating.RateCard(id=0, mode="pass_through")
_MODEL: Final = "trace"


@dataclass(slots=True)
class _Wallet:
    """What one customer after the other has; who is refused leaves, and the next one comes with as much."""

    credit_nanos: int
    free_nanos: int

    def spend(self, figures: Figures, *, hold_nanos: int, charge_nanos: int) -> bool:
        figures.ask(hold_nanos=hold_nanos, charge_nanos=charge_nanos, available_nanos=self.free_nanos)
        if hold_nanos > self.free_nanos:
            self.free_nanos = self.credit_nanos
        if hold_nanos > self.free_nanos:
            return False
        figures.run(hold_nanos=hold_nanos, charge_nanos=charge_nanos)
        self.free_nanos = max(self.free_nanos - charge_nanos, 0)
        return True


def of_trace(rows: Iterable[Row], *, input_nanos: int, output_nanos: int, credit_nanos: int, behind: int = 1) -> Lines:
    """The calls of a trace, by feature and by what the hold was sized by: "worst case" or "learned".

    :param input_nanos: price of 1,000,000 tokens, as ``output_nanos``.
    :param credit_nanos: what each customer has to begin with.
    :param behind: what was learned is looked up anew once in so many calls.
    """
    lines: defaultdict[tuple[str, ...], Line] = defaultdict(Line)
    cells: defaultdict[str, dict[int, estimates.Counts]] = defaultdict(dict)
    known: dict[str, estimates.Sizes] = {}
    book = _book(input_nanos, output_nanos)
    held, worst = _Wallet(credit_nanos, credit_nanos), _Wallet(credit_nanos, credit_nanos)

    def price_nanos(row: Row, output_tokens: int) -> int:
        quantities = {"input_tokens": row.input_tokens, "output_tokens": output_tokens}
        return rating.rate(card=_CARD, book=book, model=_MODEL, quantities=quantities).price_nanos

    for number, row in enumerate(rows):
        if number % behind == 0:
            known.clear()
        if row.kind not in known:
            known[row.kind] = estimates.sizes(cells[row.kind])
        usual = known[row.kind].usual(row.input_tokens)
        worst_tokens = estimates.worst_case(usual)
        worst_nanos, charge_nanos = price_nanos(row, worst_tokens), price_nanos(row, row.output_tokens)
        tokens = estimates.choose(usual=usual, worst_price_nanos=worst_nanos, available_nanos=held.free_nanos)
        line = lines[row.kind or "–", "worst case" if tokens == worst_tokens else "learned"]
        worst.spend(line.worst, hold_nanos=worst_nanos, charge_nanos=charge_nanos)
        if held.spend(line.held, hold_nanos=price_nanos(row, tokens), charge_nanos=charge_nanos):
            estimates.learn(cells[row.kind], input_tokens=row.input_tokens, output_tokens=row.output_tokens)
    return dict(lines)


def _book(input_nanos: int, output_nanos: int) -> rating.Book:
    prices = {"input_tokens": input_nanos, "output_tokens": output_nanos}
    table = rating.compile_table([rating.Price(component, nanos, 1_000_000) for component, nanos in prices.items()])
    return rating.Book(_MODEL, {"standard": (table,)})
