"""What simulated customers do: how long their calls are, on which models, and how often.

Lengths come from the published traces of Azure where ``TOLLGATE_TRACES`` names them, else from :mod:`metering.workload`, which draws them
from log-normal distributions whose constants were measured on those traces (the source is named there). What is not a call to a
language model (a sandbox, a machine, an image) has a log-normal length of its own, whose constants are assumptions and stand here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metering import traces, workload
from pricing import price_import, rating
from pricing.catalog_file import Document
from pricing.models import PriceRow

#: So many calls of a trace are kept to draw from.
LENGTHS: Final = 5_000
#: What is asked of language models where the catalog does not list its models, and how often in ten.
MODELS: Final = (("anthropic:claude-sonnet-4-5", 6), ("anthropic:claude-haiku-4-5", 3), ("anthropic:claude-opus-4-5", 1))
#: Of a catalog that lists its models so many are used, the first in the alphabet the most.
LISTED: Final = 6
#: One unit of other work: the median of its quantity and the σ of the logarithm; assumed.
OTHER: Final = {"seconds": (1_200, 1.0), "requests": (400, 1.2), "images": (1, 0.4), "gb_months": (2, 0.8), "egress_gb": (3, 1.0)}
#: Of ten units of work of a product with language models and other work, so many are the other.
OTHER_SHARE: Final = 1
SOURCE: Final = "the prices that a simulation begins with"


@dataclass(frozen=True, slots=True)
class Persona:
    """How a customer behaves. Chances are in percent; ``daily`` is the mean of the units of work a day.

    ``asked``: of the units of work that are authorized first; the others are reported afterwards, in batches. ``pays``: who takes a paid
    plan in the first weeks; ``buys``: who buys a pack when there is too little credit; ``burst``: so many calls at once when it asks.
    """

    name: str
    share: int
    daily: float
    asked: int
    pays: int
    buys: int
    burst: int


PERSONAS: Final = (
    Persona("light", 50, 0.6, 10, 15, 30, 1),
    Persona("usual", 34, 2.5, 8, 45, 60, 1),
    Persona("heavy", 13, 7.0, 5, 85, 80, 2),
    Persona("abuser", 3, 15.0, 6, 15, 10, 6),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of work: what was used, and what was asked for as its most."""

    model: str
    used: dict[str, int]
    most: dict[str, int]


class Workload:
    """Draws units of work for one product."""

    def __init__(self, *, document: Document, files: Sequence[Path], seed: str) -> None:
        cards = document.get("rate_cards", {}).values()
        listed = sorted({model for card in cards for model in card.get("prices", {})})
        metered = any(card["mode"] != "included" for card in cards)
        self.models = [(model, LISTED - rank) for rank, model in enumerate(listed[:LISTED])] or (list(MODELS) if metered else [])
        self.other = sorted(
            (f"{row['provider']}:{row['model']}", row["component"])
            for row in document.get("prices", ())
            if row["component"] in OTHER and row["price"].strip("0.")
        )
        self.lengths = _lengths(files, seed)

    def price(self, *, since: object) -> None:
        """Puts the wholesale prices of these models into the price book, as far as it has none for them."""
        wanted = {model for model, _ in self.models}
        stretches, _ = price_import.read(providers=sorted({model.partition(":")[0] for model in wanted}))
        known = {f"{row.provider}:{row.model}" for row in PriceRow.objects.filter(withdrawn_at=None)}
        PriceRow.objects.bulk_create(
            PriceRow(
                provider=each.key.provider, model=each.key.model, component=each.key.component, context_above=each.key.context_above,
                service_level=each.key.service_level, price_nanos=each.price_nanos, per_units=each.per_units, valid=(since, None),
                source=SOURCE,
            )
            for each in stretches
            if each.end is None and f"{each.key.provider}:{each.key.model}" in wanted - known
        )  # fmt: skip

    def draw(self, chance: random.Random) -> Unit:
        if self.other and (not self.models or chance.randrange(10) < OTHER_SHARE):
            model, component = chance.choice(self.other)
            median, sigma = OTHER[component]
            quantity = max(1, round(chance.lognormvariate(math.log(median), sigma)))
            return Unit(model, {component: quantity}, {component: 2 * quantity})
        [model] = chance.choices([model for model, _ in self.models], [weight for _, weight in self.models])
        asked, answered = chance.choice(self.lengths)
        cached = asked * chance.choice((0, 0, 0, 40, 80)) // 100 if model.partition(":")[0] == "anthropic" else 0
        used = {"input_tokens": asked - cached, "output_tokens": answered} | ({"cached_input_tokens": cached} if cached else {})
        return Unit(model, used, {"input_tokens": asked, "output_tokens": _ceiling(answered)})


def _lengths(files: Sequence[Path], seed: str) -> list[tuple[int, int]]:
    """What went in and came out of so many calls, drawn evenly from the files."""
    chance = random.Random(f"{seed}:lengths")  # noqa: S311 -- a workload, no secret
    if not files:
        return [(row.input_tokens, row.output_tokens) for row in workload.generate(rows=LENGTHS)]
    kept: list[tuple[int, int]] = []
    seen = 0
    for file in files:
        for row in traces.read(file):
            if isinstance(row, traces.Row) and row.input_tokens and row.output_tokens:
                seen += 1
                if len(kept) < LENGTHS:
                    kept.append((row.input_tokens, row.output_tokens))
                elif (place := chance.randrange(seen)) < LENGTHS:
                    kept[place] = (row.input_tokens, row.output_tokens)
    if not kept:
        raise traces.TraceError(f"There is no call in {', '.join(map(str, files))}.")
    return kept


def _ceiling(tokens: int) -> int:
    """What a client app would allow the model at most, not knowing the answer."""
    ceiling = 512
    while ceiling < tokens:
        ceiling *= 2
    return min(ceiling, rating.MAX_QUANTITY)
