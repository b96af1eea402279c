"""What the growth page draws: MRR by month as inline SVG, and the cells of cohorts. Geometry is integers; labels are HTML beside it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import template

from accounts.templatetags.charts import GAP, HEIGHT, STEP, ceiling
from analytics.templatetags.margins import DOLLAR

if TYPE_CHECKING:
    from analytics.growth import Month
    from analytics.retention import Cohort

register = template.Library()


@register.inclusion_tag("admin/analytics/mrr_chart.html")
def mrr_chart(months: Sequence[Month]) -> dict[str, Any]:
    """A bar a month: the MRR at its end. The table behind it is the caller's."""
    top = ceiling(max((month.mrr_nanos for month in months), default=0))
    bars = []
    for index, month in enumerate(months):
        height = max(month.mrr_nanos * HEIGHT // top, 6) if month.mrr_nanos > 0 else 0
        bars.append({"month": month, "x": index * STEP, "bar_x": index * STEP + GAP // 2, "y": HEIGHT - height, "height": height})
    return {
        "bars": bars, "width": max(len(months), 1) * STEP, "height": HEIGHT, "step": STEP, "bar_width": STEP - GAP, "top": top,
        "half": top // 2, "middle": HEIGHT // 2, "dollar": DOLLAR,
        "labels": [months[0], months[len(months) // 2], months[-1]] if len(months) > 2 else months,
    }  # fmt: skip


@register.simple_tag
def cohort_cells(cohort: Cohort) -> list[tuple[Decimal | None, Decimal | None]]:
    """Who is active and what revenue is kept, in percent, month by month."""
    return [(cohort.active_percent(offset), cohort.revenue_percent(offset)) for offset in range(len(cohort.cells))]


@register.filter
def whole_percent(value: Decimal | None) -> str:
    """``33 %``, halves to even; a dash of nothing."""
    return "–" if value is None else f"{round(value):,} %"
