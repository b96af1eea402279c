"""The growth page: what comes in each month, who comes, who stays and who leaves; the rows behind each figure, and all of it as files."""

from __future__ import annotations

import calendar
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from accounts import exports
from analytics import growth, growth_rows, hourly, retention
from analytics.models import HourlyFigures
from analytics.templatetags.margins import DOLLAR
from pricing.models import Product

#: So many months are shown, and can be chosen; so many rows of a figure; so many hours.
MONTHS: Final = 12
ROWS: Final = 200
HOURS: Final = 24
FILE_HOURS: Final = 31 * 24


def growth_view(request: HttpRequest) -> HttpResponse:
    """One month of one product, or of all. Reads alone."""
    asked = _asked(request)
    of, now, product_id = asked["of"], asked["now"], asked["product_id"]
    moved = growth.movements(since=of.since, until=of.until, product_id=product_id)
    trials = retention.trials(of=of, product_id=product_id)
    cohorts = retention.cohorts(first=_months(now)[-1], now=now, product_id=product_id)
    activity = retention.activity(since=of.first_day, until=of.end, product_id=product_id)
    context = asked | {
        "title": "Growth",
        "dollar": DOLLAR,
        "churn_target": growth.CHURN_TARGET_PERCENT,
        "ltv_target": growth.LTV_TO_CAC_TARGET,
        "before": growth.mrr(at=of.since, product_id=product_id),
        "standing": growth.standing(at=of.until, product_id=product_id),
        "moved": [(each, growth_rows.WHATS[each.kind]) for each in moved],
        "net": sum(each.nanos for each in moved),
        "packs": growth.credit_revenue(since=of.first_day, until=of.end, product_id=product_id),
        "economics": growth.economics(of=of, product_id=product_id),
        "months": growth.months(until=of.until, product_id=product_id)[-MONTHS:],
        "trials": trials,
        "converted": sum(trial.paid_from is not None for trial in trials),
        "failures": retention.failures(of=of, now=now, product_id=product_id),
        "activity": activity,
        "sized": list(zip(retention.SIZES, activity.sizes, strict=True)),
        "weekdays": [(name, *sums) for name, sums in zip(calendar.day_name, activity.weekdays(), strict=True)],
        "cohorts": cohorts,
        "offsets": range(max((len(cohort.cells) for cohort in cohorts), default=0)),
        "hours": [(row, hourly.margin_percent(row)) for row in _hours(asked)[:HOURS]],
    }
    return TemplateResponse(request, "admin/analytics/growth.html", admin.site.each_context(request) | context)


def rows_view(request: HttpRequest) -> HttpResponse:
    """The rows behind one figure."""
    asked, what = _asked(request), request.GET.get("what", "")
    context = asked | {
        "title": _named(what), "what": what, "dollar": DOLLAR, "shown": ROWS, "rows": _rows(asked, what, ROWS),
    }  # fmt: skip
    return TemplateResponse(request, "admin/analytics/growth_rows.html", admin.site.each_context(request) | context)


def file_view(request: HttpRequest) -> StreamingHttpResponse:
    """One of the page's tables, or the rows behind a figure, as CSV."""
    asked, what = _asked(request), request.GET.get("what", "")
    tables: dict[str, Callable[[], Iterator[Sequence[exports.Cell]]]] = {
        "months": lambda: _month_cells(growth.months(until=asked["now"], product_id=asked["product_id"])),
        "cohorts": lambda: _cohort_cells(
            retention.cohorts(first=_months(asked["now"])[-1], now=asked["now"], product_id=asked["product_id"])
        ),
        "hours": lambda: _hour_cells(_hours(asked)[:FILE_HOURS]),
    }
    if what not in tables:
        _named(what)
    cells = tables[what]() if what in tables else growth_rows.cells(_rows(asked, what, exports.MAX_ROWS))
    return exports.download(cells, name=f"{what}-{asked['of'].month:%Y-%m}.csv")


def _asked(request: HttpRequest) -> dict[str, Any]:
    """What was asked for; garbage is the usual: every product, this month."""
    if not request.user.has_perm("analytics.view_margin"):
        raise PermissionDenied
    now, products = timezone.now(), list(Product.objects.order_by("name", "pk"))
    product = next((one for one in products if one.slug == request.GET.get("product")), None)
    choices = _months(now)
    month = next((one for one in choices if f"{one:%Y-%m}" == request.GET.get("month")), choices[0])
    return {
        "now": now, "products": products, "product": product, "product_id": product.pk if product else None, "choices": choices,
        "of": growth.period(month=month, now=now), "query": f"product={product.slug if product else ''}&month={month:%Y-%m}",
    }  # fmt: skip


def _months(now: datetime) -> list[date]:
    """The present month and those before it, newest first."""
    month = now.date().replace(day=1)
    found = [month]
    while len(found) < MONTHS:
        found.append((found[-1] - timedelta(days=1)).replace(day=1))
    return found


def _named(what: str) -> str:
    if what not in growth_rows.WHATS:
        raise Http404("There is no such figure.")
    return growth_rows.WHATS[what]


def _rows(asked: dict[str, Any], what: str, limit: int) -> list[growth_rows.Row]:
    return growth_rows.read(what=what, of=asked["of"], now=asked["now"], product_id=asked["product_id"], limit=limit)


def _hours(asked: dict[str, Any]) -> Any:
    rows = HourlyFigures.objects.select_related("product").order_by("-at", "product__name")
    return rows.filter(product=asked["product"]) if asked["product"] else rows


def _month_cells(months: Sequence[growth.Month]) -> Iterator[Sequence[exports.Cell]]:
    yield ("month", "mrr_usd", *(f"{kind}_usd" for kind in growth.KINDS), *(f"{kind}_count" for kind in growth.KINDS))
    for month in months:
        amounts = (exports.Nanos(each.nanos) for each in month.movements)
        yield f"{month.month:%Y-%m}", exports.Nanos(month.mrr_nanos), *amounts, *(each.count for each in month.movements)


def _cohort_cells(cohorts: Sequence[retention.Cohort]) -> Iterator[Sequence[exports.Cell]]:
    yield "signed_up", "accounts", "months_since", "active", "paying", "mrr_usd", "packs_usd"
    for cohort in cohorts:
        for offset, cell in enumerate(cohort.cells):
            sums = exports.Nanos(cell.mrr_nanos), exports.Nanos(cell.packs_nanos)
            yield f"{cohort.month:%Y-%m}", cohort.accounts, offset, cell.active, cell.paying, *sums


def _hour_cells(rows: Sequence[HourlyFigures]) -> Iterator[Sequence[exports.Cell]]:
    amounts = ("cost_usd", "subscriptions_usd", "packs_usd")
    yield "product", "at", *amounts, "margin_percent", "active", "near_limit", "throttled", "gifts_cost_usd"
    for row in rows:
        margin = hourly.margin_percent(row)
        sums = (exports.Nanos(each) for each in (row.cost_nanos, row.subscriptions_nanos, row.packs_nanos))
        yield (
            row.product.slug, row.at, *sums, None if margin is None else exports.Nanos(int(margin * 10**9)), row.active, row.near_limit,
            row.throttled, exports.Nanos(row.gifts_cost_nanos),
        )  # fmt: skip
