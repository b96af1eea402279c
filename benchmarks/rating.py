"""Rating one call that reads from the cache, against genai-prices doing the same: it prices wholesale only, in Decimal."""

from __future__ import annotations

from decimal import Decimal

import genai_prices

from benchmarks.measure import Result, compare
from pricing import rating

MODEL = "anthropic:claude-sonnet-4-5"
PRICES = {"input_tokens": 3_000_000_000, "cached_input_tokens": 300_000_000, "output_tokens": 15_000_000_000}
QUANTITIES = {"input_tokens": 1_000, "cached_input_tokens": 9_000, "output_tokens": 500}
CALLS = 200


def results() -> list[Result]:
    card = rating.RateCard(id=1, mode="markup", markup_ppm=500_000)
    book = rating.compile_book(
        model=MODEL, prices=[rating.Price(component, price, 1_000_000, row) for row, (component, price) in enumerate(PRICES.items(), 1)]
    )
    usage = genai_prices.Usage(input_tokens=10_000, cache_read_tokens=9_000, output_tokens=500)

    def theirs() -> Decimal:
        return genai_prices.calc_price(usage, model_ref="claude-sonnet-4-5", provider_id="anthropic").total_price

    def ours() -> rating.Rated:
        return rating.rate(card=card, book=book, model=MODEL, quantities=QUANTITIES)

    if Decimal(ours().cost_nanos).scaleb(-9) != theirs():
        raise RuntimeError(f"The two do not agree on the cost: {ours().cost_nanos} nano-USD and {theirs()} USD.")
    return compare({"genai-prices": theirs, "rating.rate": ours}, repeat=CALLS)
