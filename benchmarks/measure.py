"""Rows, and rounds in which everything takes its turn, so that a neighbour's noise falls on all alike."""

from __future__ import annotations

import json
import operator
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

_TESTS = {"≥": operator.ge, "≤": operator.le}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. ``ratio`` is value ÷ reference, the median of the rounds; ``spread`` its lowest and highest round.

    ``target`` (``≥ 1.3``) is about the ratio, or about the value where there is no reference; ``met`` is None where there is no target.
    Units stand in ``goal``.
    """

    goal: str
    value: float
    reference: float | None
    ratio: float | None
    target: str | None
    spread: tuple[float, float]
    met: bool | None

    def json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Load:
    """How often everything takes its turn, and for how long."""

    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """What one load did: calls, calls a second, and the time of a call, in milliseconds."""

    count: int
    rate: float
    p50: float
    p99: float

    @classmethod
    def of(cls, latencies_ms: Sequence[float], *, seconds: float) -> Run:
        """:raises ValueError: nothing was done."""
        if not latencies_ms:
            raise ValueError("The load did nothing.")
        ordered = sorted(latencies_ms)
        return cls(
            len(ordered), len(ordered) / seconds, statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        )


def compare(goal: str, values: Sequence[float], references: Sequence[float], *, target: str | None = None) -> Row:
    """The row of ``values``, each beside the reference of its own round."""
    ratios = [value / reference for value, reference in zip(values, references, strict=True)]
    ratio = statistics.median(ratios)
    spread = (_rounded(min(ratios)), _rounded(max(ratios)))
    return Row(goal, _median(values), _median(references), _rounded(ratio), target, spread, _met(ratio, target))


def alone(goal: str, values: Sequence[float], *, target: str | None = None) -> Row:
    """The row of ``values`` that no reference stands beside: the spread is theirs."""
    spread = (_rounded(min(values)), _rounded(max(values)))
    return Row(goal, _median(values), None, None, target, spread, _met(statistics.median(values), target))


def rounds(count: int, parts: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Every part once a round, in turn: A, B, A, B…"""
    results: dict[str, list[T]] = {name: [] for name in parts}
    for _ in range(count):
        for name, part in parts.items():
            results[name].append(part())
    return results


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table."""
    yield "| what | value | reference | ratio | spread | target | met |"
    yield "|---|--:|--:|--:|--:|--:|---|"
    for row in rows:
        lowest, highest = (f"{_shown(edge)}" for edge in row.spread)
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        cells: list[Any] = [
            row.goal,
            _shown(row.value),
            _shown(row.reference),
            _shown(row.ratio),
            f"{lowest}–{highest}",
            row.target or "",
            met,
        ]
        yield f"| {' | '.join(cells)} |"


def _met(value: float, target: str | None) -> bool | None:
    if target is None:
        return None
    sign, _, bound = target.partition(" ")
    return bool(_TESTS[sign](value, float(bound)))


def _median(values: Sequence[float]) -> float:
    return _rounded(statistics.median(values))


def _rounded(value: float) -> float:
    """To four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
