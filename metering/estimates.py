"""How many tokens a model will answer with, where the client app does not say: learned from the calls before it.

    bucket, edge    the scale: four buckets an octave, each told by its upper edge
    quantile        the edge that covers the n-th smallest of what was counted
    learn           counts one capture, in the cell of calls with about as much input
    sizes           what holds cover, by input; what too few captures say is left out
    fold            counts the captures that the ledger has appended since the last time
    of              the sizes of one model and feature, at most a minute old
    choose          the worst case or what is usual, by what the wallet has

What comes out of a model follows what goes in, so captures are counted by powers of two of their input tokens. A cell that has seen too
little is answered by all cells together; where these have seen too little, the worst case is held. Only captures of calls that said no
maximum are counted, since a maximum cuts what it is given for. All is whole numbers; the only money is the two amounts that ``choose``
compares.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final, TypeAlias

from django.db import connection, transaction

from metering.models import OutputHistogram
from pricing import rating

#: Held for the answer of a call that gives no maximum and of which too little is known.
DEFAULT_MAX_OUTPUT_TOKENS: Final = 4_096
#: A hold covers the answers of this many calls in a hundred.
COVERED_PERCENT: Final = 99
#: Fewer captures say nothing about the hundredth call.
MIN_CAPTURES: Final = 200
#: A cell with this many forgets half, so that it follows a product that changes.
MAX_CAPTURES: Final = 8_192
#: The worst case is held while the wallet has it so many times.
EASILY: Final = 20
MAX_AGE_SECONDS: Final = 60.0
FOLD_LIMIT: Final = 20_000
MAX_KEPT: Final = 10_000

#: Captures by bucket of their output tokens; the last one is not 0.
Counts: TypeAlias = list[int]
#: Counts by the bits of the input tokens.
Cells: TypeAlias = MutableMapping[int, Counts]
#: Product, model, feature (None for none), as usage rows number them.
Key: TypeAlias = tuple[int, int, int | None]


# Counting ---------------------------------------------------------------------------------------------------------------------


def bucket(tokens: int) -> int:
    """The lowest bucket whose edge is not below ``tokens``: the least b with 2^(b/4) ≥ tokens."""
    return 0 if tokens <= 1 else (tokens**4 - 1).bit_length()


def edge(bucket: int) -> int:
    """The most tokens of a bucket: 2^(bucket/4), rounded down."""
    return isqrt(isqrt(1 << bucket))


def quantile(counts: Sequence[int], rank: int) -> int:
    """The edge of the bucket with the ``rank``-th smallest of what was counted: not below it, and in its bucket.

    :raises ValueError: there are not so many.
    """
    seen = 0
    for place, count in enumerate(counts):
        seen += count
        if seen >= rank:
            return edge(place)
    raise ValueError(f"{seen} were counted; there is no {rank}th.")


def learn(cells: Cells, *, input_tokens: int, output_tokens: int) -> None:
    """Counts one capture. A cell that is full is halved first, rounding up: what is rare is forgotten last."""
    bits, place = input_tokens.bit_length(), bucket(output_tokens)
    counts = cells.setdefault(bits, [])
    if sum(counts) >= MAX_CAPTURES:
        counts[:] = [-(-count // 2) for count in counts]
    counts.extend([0] * (place + 1 - len(counts)))
    counts[place] += 1


@dataclass(frozen=True, slots=True)
class Sizes:
    """Output tokens that a hold covers, by the bits of the input tokens; ``otherwise`` is for the rest, None where too little is known."""

    by_bits: Mapping[int, int]
    otherwise: int | None

    def usual(self, input_tokens: int) -> int | None:
        return self.by_bits.get(input_tokens.bit_length(), self.otherwise)


def sizes(cells: Mapping[int, Sequence[int]]) -> Sizes:
    """What ``cells`` say: each alone where it has ``MIN_CAPTURES``, else all together."""
    together = [0] * max((len(counts) for counts in cells.values()), default=0)
    for counts in cells.values():
        for place, count in enumerate(counts):
            together[place] += count
    known = {bits: _covering(counts) for bits, counts in cells.items()}
    return Sizes({bits: tokens for bits, tokens in known.items() if tokens is not None}, _covering(together))


def _covering(counts: Sequence[int]) -> int | None:
    """The tokens that the next call stays within ``COVERED_PERCENT`` times in a hundred.

    The rank is that of n + 1 calls, not of n: if the next call is like the n before it, its chance to be beyond is then no greater than
    promised, however small n is.
    """
    captures = sum(counts)
    return None if captures < MIN_CAPTURES else quantile(counts, -(-(captures + 1) * COVERED_PERCENT // 100))


def worst_case(usual: int | None) -> int:
    """The output tokens of the worst case: the default, or what is usual where that is more."""
    return max(DEFAULT_MAX_OUTPUT_TOKENS, usual or 0)


def choose(*, usual: int | None, worst_price_nanos: int, available_nanos: int | None) -> int:
    """The output tokens to hold for: the worst case while the wallet easily covers its price, or nothing better is known.

    ``available_nanos`` None: no wallet pays, so only limits ask for the estimate, and they want the usual one.
    """
    easily = available_nanos is not None and available_nanos >= EASILY * worst_price_nanos
    return worst_case(usual) if usual is None or easily else usual


def input_tokens(quantities: Mapping[str, int]) -> int:
    return sum(quantity for name, quantity in quantities.items() if name in rating.INPUT_COMPONENTS)


# Keeping ----------------------------------------------------------------------------------------------------------------------


def fold(*, limit: int = FOLD_LIMIT) -> int:
    """Counts up to ``limit`` captures that the ledger appended, in one transaction; returns how many. Less than ``limit``: no more.

    A capture is taken and counted at once, so it counts once however often, and by however many at a time, this is called.
    """
    if limit < 1:
        raise ValueError("Fold at least one capture.")
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("select product_id, model_id, feature_id, quantities from take_captures(%s)", [limit])
            taken = cursor.fetchall()
        learnt: defaultdict[Key, list[tuple[int, int]]] = defaultdict(list)
        for product_id, model_id, feature_id, array in taken:
            quantities = dict(zip(rating.COMPONENTS, array, strict=False))
            output = quantities.get("output_tokens", 0) + quantities.get("reasoning_tokens", 0)
            learnt[product_id, model_id, feature_id].append((input_tokens(quantities), output))
        for key in sorted(learnt, key=lambda key: (key[0], key[1], key[2] or 0)):  # two folds lock in the same order
            _count(key, learnt[key])
    return len(taken)


def _count(key: Key, captures: Sequence[tuple[int, int]]) -> None:
    rows = {}
    for bits in sorted({input_tokens.bit_length() for input_tokens, _ in captures}):
        rows[bits], _ = OutputHistogram.objects.select_for_update().get_or_create(**_lookup(key), input_bits=bits)
    cells = {bits: row.counts for bits, row in rows.items()}
    for input_tokens, output_tokens in captures:
        learn(cells, input_tokens=input_tokens, output_tokens=output_tokens)
    OutputHistogram.objects.bulk_update(rows.values(), ["counts"])


def _lookup(key: Key) -> dict[str, Any]:
    return dict(zip(("product_id", "model_id", "feature_id"), key, strict=True))


_kept: dict[Key, tuple[float, Sizes]] = {}


def of(*, product_id: int, model_id: int, feature_id: int | None) -> Sizes:
    """What holds cover for calls of this model and feature: read at most once in ``MAX_AGE_SECONDS`` by each process."""
    key = product_id, model_id, feature_id
    kept = _kept.get(key)
    if kept is not None and not connection.in_atomic_block and time.monotonic() - kept[0] <= MAX_AGE_SECONDS:
        return kept[1]
    read_at = time.monotonic()
    found = sizes(dict(OutputHistogram.objects.filter(**_lookup(key)).values_list("input_bits", "counts")))
    if not connection.in_atomic_block:  # what a transaction sees is its own
        if len(_kept) >= MAX_KEPT:
            _kept.clear()
        _kept[key] = (read_at, found)
    return found
