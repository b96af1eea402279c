"""Rating one call that reads from the cache and reasons, against two libraries. The price book has tiers and batch prices too."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import genai_prices

from benchmarks.measure import Row, compare, rounds
from pricing import rating

MODEL = "anthropic:claude-sonnet-4-5"
#: Nano-USD per 1,000,000 tokens, up to 200,000 tokens of context and above.
PRICES = {
    "input_tokens": (3_000_000_000, 6_000_000_000),
    "cached_input_tokens": (300_000_000, 600_000_000),
    "cache_write_tokens": (3_750_000_000, 7_500_000_000),
    "output_tokens": (15_000_000_000, 22_500_000_000),
    "reasoning_tokens": (15_000_000_000, 22_500_000_000),
}
LONG_CONTEXT = 200_000
QUANTITIES = {"input_tokens": 1_000, "cached_input_tokens": 9_000, "output_tokens": 400, "reasoning_tokens": 100}
CALLS = 500


def rows(count: int, *, calls: int = CALLS) -> list[Row]:
    """µs a call.

    :raises RuntimeError: the three do not agree on the cost.
    """
    contestants = {"genai_prices.calc_price": _genai_prices(), "litellm.completion_cost": _litellm(), "rating.rate": _ours()}
    costs = {name: Decimal(str(call())).quantize(Decimal("1e-9")) for name, call in contestants.items()}
    if len(set(costs.values())) != 1:
        raise RuntimeError(f"They do not agree on the cost: {costs}")
    timed = rounds(count, {name: partial(_micros, call, calls) for name, call in contestants.items()})
    ours = timed.pop("rating.rate")
    return [compare(f"{name} × rating.rate, µs a call", theirs, ours, target="≥ 20") for name, theirs in timed.items()]


def _ours() -> Callable[[], Decimal]:
    card = rating.RateCard(id=1, mode="markup", markup_ppm=500_000)
    prices = [
        rating.Price(component, amount // (2 if level == "batch" else 1), 1_000_000, 1, above, level)
        for component, amounts in PRICES.items()
        for above, amount in zip((0, LONG_CONTEXT), amounts, strict=True)
        for level in ("standard", "batch")
    ]
    book = rating.compile_book(model=MODEL, prices=prices)
    return lambda: Decimal(rating.rate(card=card, book=book, model=MODEL, quantities=QUANTITIES).cost_nanos).scaleb(-9)


def _genai_prices() -> Callable[[], Decimal]:
    used = genai_prices.Usage(input_tokens=10_000, cache_read_tokens=9_000, output_tokens=500)
    return lambda: genai_prices.calc_price(used, model_ref="claude-sonnet-4-5", provider_id="anthropic").total_price


def _litellm() -> Callable[[], Any]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch its prices from the Internet
    litellm: Any = importlib.import_module("litellm")
    used = litellm.Usage(prompt_tokens=10_000, completion_tokens=500, total_tokens=10_500, cache_read_input_tokens=9_000)
    response = litellm.ModelResponse(model="claude-sonnet-4-5", usage=used)
    return lambda: litellm.completion_cost(completion_response=response, model="claude-sonnet-4-5", custom_llm_provider="anthropic")


def _micros(call: Callable[[], object], calls: int) -> float:
    """The median of ``calls``."""

    def once() -> int:
        start = time.perf_counter_ns()
        call()
        return time.perf_counter_ns() - start

    return statistics.median(once() for _ in range(calls)) / 1000
