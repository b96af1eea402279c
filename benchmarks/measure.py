"""Timing: rounds in which everything takes its turn, so that a neighbour's noise falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement: µs a call, the median of each round's median, and how many times the reference's that is, round by round."""

    name: str
    micros: float
    reference: str
    times: float
    least: float
    most: float

    def __str__(self) -> str:
        if self.name == self.reference:
            return f"{self.name:<44} {self.micros:>9.1f} µs"
        return f"{self.name:<44} {self.micros:>9.1f} µs  {self.times:>7.2f} × {self.reference}  [{self.least:.2f} to {self.most:.2f}]"


def compare(calls: Mapping[str, Callable[[], object]], *, repeat: int) -> list[Result]:
    """Each call ``repeat`` times a round; the first is the reference of the others. The first round warms up and does not count."""
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS + 1):
        rounds.append({name: statistics.median(_time(call) for _ in range(repeat)) / 1000 for name, call in calls.items()})
    del rounds[0]
    reference = next(iter(calls))
    results = []
    for name in calls:
        times = [medians[name] / medians[reference] for medians in rounds]
        micros = statistics.median(medians[name] for medians in rounds)
        results.append(Result(name, micros, reference, statistics.median(times), min(times), max(times)))
    return results


def _time(call: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start
