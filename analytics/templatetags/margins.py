"""The chart of revenue, cost and margin by day, as inline SVG. Geometry is integers; labels are HTML beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from django import template

from accounts.templatetags.charts import GAP, HEIGHT, STEP, ceiling
from analytics.margin import Row
from pricing.models import Unit

register = template.Library()
DOLLAR = Unit(code="USD", name="US dollar", decimals=2)


@register.inclusion_tag("admin/analytics/margin_chart.html")
def margin_chart(rows: Sequence[Row], since: date, until: date) -> dict[str, Any]:
    """One bar a UTC day from ``since`` up to but without ``until``: cost below, margin on it; a loss is what cost sticks out of revenue."""
    found = {row.key: row for row in rows}
    days = [since + timedelta(days=offset) for offset in range((until - since).days)]
    top = ceiling(max((max(row.cost_nanos, row.revenue_nanos) for row in rows), default=0))
    bars = []
    for index, day in enumerate(days):
        row = found.get(day.isoformat()) or Row(day.isoformat(), day.isoformat(), 0, 0, 0, 0, 0, 0)
        low, high = sorted((max(row.cost_nanos, 0), max(row.revenue_nanos, 0)))
        low_y, high_y = HEIGHT - _height(low, top), HEIGHT - _height(high, top)
        bars.append(
            {
                "day": day, "row": row, "x": index * STEP, "bar_x": index * STEP + GAP // 2, "low_y": low_y, "low_height": HEIGHT - low_y,
                "high_y": high_y, "high_height": low_y - high_y, "loss": row.margin_nanos < 0,
            }
        )  # fmt: skip
    return {
        "bars": bars, "width": len(days) * STEP, "height": HEIGHT, "middle": HEIGHT // 2, "step": STEP, "bar_width": STEP - GAP, "top": top,
        "half": top // 2, "dollar": DOLLAR, "labels": [days[0], days[len(days) // 2], days[-1]] if len(days) > 2 else days,
    }  # fmt: skip


@register.simple_tag
def dollar() -> Unit:
    """The unit of cost, revenue and margin."""
    return DOLLAR


@register.filter
def percentage(value: object) -> str:
    """``33.33 %``; a dash where nothing was charged."""
    return "–" if value is None else f"{value} %".replace("-", "\N{MINUS SIGN}")


def _height(nanos: int, top: int) -> int:
    return max(nanos * HEIGHT // top, 6) if nanos > 0 and top else 0
