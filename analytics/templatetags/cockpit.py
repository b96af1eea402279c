"""The chart of how many accounts were active, as inline SVG. Geometry is integers; labels are HTML beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django import template

from accounts.templatetags.charts import GAP, HEIGHT, STEP, ceiling

if TYPE_CHECKING:
    from analytics.overview import Active

register = template.Library()


@register.inclusion_tag("admin/analytics/active_chart.html")
def active_chart(found: Sequence[Active]) -> dict[str, Any]:
    """A bar a day, or a week, with its figures as a table behind it."""
    top = ceiling(max((one.accounts for one in found), default=0))
    bars = []
    for index, one in enumerate(found):
        height = max(one.accounts * HEIGHT // top, 6) if one.accounts else 0
        bars.append({"one": one, "x": index * STEP, "bar_x": index * STEP + GAP // 2, "y": HEIGHT - height, "height": height})
    return {
        "bars": bars, "width": max(len(found), 1) * STEP, "height": HEIGHT, "step": STEP, "bar_width": STEP - GAP, "top": top,
        "half": top // 2 if top > 1 else "", "middle": HEIGHT // 2, "weekly": any(one.days > 1 for one in found),
        "labels": [found[0], found[len(found) // 2], found[-1]] if len(found) > 2 else found,
    }  # fmt: skip
