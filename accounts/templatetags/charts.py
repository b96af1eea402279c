"""Charts as inline SVG, drawn on the server: bars a day, and how full something is. Geometry is integers; labels are HTML beside it, so
that they keep their size when the drawing stretches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from django import template

from pricing.models import Unit

register = template.Library()

#: The drawing's own height and the width of one day in it; the browser stretches both.
HEIGHT = 1000
STEP = 100
GAP = 24


@dataclass(frozen=True, slots=True)
class Day:
    """The use of one day, or of so many ``days`` from it on: what was charged (nanos of the wallet's unit) and how many records made it.

    ``parts`` are what its series came to, the first at the bottom; together they are ``nanos``. Without any it is one bar.
    """

    day: date
    nanos: int
    records: int
    parts: tuple[int, ...] = ()
    days: int = 1


@register.inclusion_tag("charts/days.html")
def days_chart(days: Sequence[Day], unit: Unit) -> dict[str, Any]:
    """Bars for ``days``, which follow each other without a hole, oldest first. The table behind them is the caller's."""
    top = ceiling(max((day.nanos for day in days), default=0))
    bars = [
        {
            "day": day,
            "x": index * STEP,
            "bar_x": index * STEP + GAP // 2,
            "y": HEIGHT - _height(day.nanos, top),
            "height": _height(day.nanos, top),
        }
        for index, day in enumerate(days)
    ]
    return {
        "bars": bars,
        "series": _series(days, top),
        "unit": unit,
        "span": "week" if days and days[0].days > 1 else "day",
        "width": len(days) * STEP,
        "height": HEIGHT,
        "middle": HEIGHT // 2,
        "step": STEP,
        "bar_width": STEP - GAP,
        "top": top,
        "half": top // 2,
        "total": sum(day.nanos for day in days),
        "labels": [days[0], days[len(days) // 2], days[-1]] if len(days) > 2 else list(days),
    }


@register.inclusion_tag("charts/meter.html")
def meter(used: int, held: int, whole: int, thin: bool = False) -> dict[str, Any]:
    """A bar of ``whole``, of which ``used`` is full and ``held`` half so. A sliver is shown for anything above 0."""
    whole = max(whole, 1)
    full = min(_share(used, whole), 1000)
    return {"full": full, "held": min(_share(held, whole), 1000 - full), "thin": thin}


def ceiling(nanos: int) -> int:
    """The least of 1, 2, 4, 5, 8, 10 × 10ⁿ that is not below ``nanos``, so that an axis has round labels and its half does too."""
    if nanos <= 0:
        return 0
    power: int = 10 ** (len(str(nanos)) - 1)
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= nanos)


def _series(days: Sequence[Day], top: int) -> list[str]:
    """One SVG path for each series, standing on the one before it. Tops are rounded, not heights, so that parts fill their whole bar."""
    paths: list[list[str]] = [[] for _ in range(max((len(day.parts) for day in days), default=0))]
    for index, day in enumerate(days):
        below = sofar = 0
        for path, part in zip(paths, day.parts, strict=False):
            sofar += part
            height = _height(sofar, top)
            if height > below:
                left = index * STEP + GAP // 2
                path.append(f"M{left} {HEIGHT - below}V{HEIGHT - height}h{STEP - GAP}V{HEIGHT - below}z")
            below = max(below, height)
    return ["".join(path) for path in paths]


def _height(nanos: int, top: int) -> int:
    return max(nanos * HEIGHT // top, 4) if nanos > 0 else 0


def _share(part: int, whole: int) -> int:
    return max(part * 1000 // whole, 4) if part > 0 else 0
