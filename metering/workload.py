"""A small workload for machines without a trace at hand: generated, always the same, shaped like Azure's published traces.

Every figure is measured on the traces of 2023-11-16 (28,185 calls of two services) that Patel et al. published with "Splitwise:
Efficient Generative LLM Inference Using Phase Splitting" (ISCA 2024) in the AzurePublicDataset repository, CC-BY 4.0. Lengths are drawn
from lognormal distributions with the measured medians; σ is the interquartile range of the logarithm ÷ 1.349, and nothing is longer
than the longest call of the trace.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from metering.traces import Row

ROWS: Final = 2_000
SEED: Final = 2023_11_16


@dataclass(frozen=True, slots=True)
class _Length:
    median: int
    sigma: float
    greatest: int

    def draw(self, source: random.Random) -> int:
        return min(max(round(source.lognormvariate(math.log(self.median), self.sigma)), 1), self.greatest)


#: Kind → its calls in the traces, its prompts and its answers.
_SERVICES: Final = {
    "conversation": (19_366, _Length(1_020, 0.815, 14_050), _Length(129, 1.139, 1_000)),
    "code": (8_819, _Length(1_469, 1.155, 7_437), _Length(13, 0.727, 1_899)),
}


def generate(*, rows: int = ROWS, seed: int = SEED) -> Iterator[Row]:
    """``rows`` calls; the same for the same seed, and the first of a longer workload are those of a shorter one."""
    source = random.Random(seed)  # noqa: S311 -- a workload, no secret
    kinds, weights = list(_SERVICES), [calls for calls, _, _ in _SERVICES.values()]
    for number in range(1, rows + 1):
        [kind] = source.choices(kinds, weights)
        _, prompt, answer = _SERVICES[kind]
        yield Row(number, prompt.draw(source), answer.draw(source), kind)
