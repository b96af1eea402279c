"""How each product stands, written down every hour: cost, revenue, margin, who is near a limit or stopped, and how it came to be so.

    measure   writes this hour's rows, once
    history   the rows of a product, newest first

What cannot be asked of the past (who was near a limit, who was stopped) is asked when the job runs; a missed hour has no row. What given
credit cost is added up from row to row, so a missed hour is in the next one's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from django.db import connection
from django.db.models import QuerySet

from analytics import margin, risk, rollups
from analytics.models import HourlyFigures
from metering import throttles
from pricing.models import Product

#: Credit that was given to win customers. What support gives (goodwill, compensation) and what a plan includes is not.
GIFTS: Final = ("welcome", "announcement", "promotion")
#: 90 % of a limit on cost, or more.
NEAR_PPM: Final = 900_000
#: A transaction is over long before: what is recorded by then is seen.
SETTLED: Final = timedelta(minutes=2)
#: How far back a product's first row looks for the cost of given credit.
FIRST_SPAN: Final = timedelta(days=31)


def measure(*, now: datetime) -> int:
    """Writes the rows of the last full hour that are missing; returns how many. An hour is measured from two minutes after it."""
    at = (now.astimezone(UTC) - SETTLED).replace(minute=0, second=0, microsecond=0)
    written = 0
    for product in Product.objects.order_by("pk"):
        if HourlyFigures.objects.filter(product=product, at=at).exists():
            continue
        month = risk.look(product=product, now=now)
        near = {one.account.pk for one in throttles.at_risk(now=now, product=product, ppm=NEAR_PPM - 1)}
        _, made = HourlyFigures.objects.get_or_create(
            product=product, at=at,
            defaults={
                "cost_nanos": month.cost_nanos, "subscriptions_nanos": month.subscriptions_nanos, "packs_nanos": month.packs_nanos,
                "active": month.active, "near_limit": len(near), "throttled": month.throttled_accounts,
                "gifts_cost_nanos": _gifts_cost(product, at),
            },
        )  # fmt: skip
        written += made
    return written


def history(*, product: Product, since: datetime, until: datetime) -> QuerySet[HourlyFigures]:
    """The rows at ``since`` and later, before ``until``, newest first."""
    return HourlyFigures.objects.filter(product=product, at__gte=since, at__lt=until).order_by("-at")


def margin_percent(row: HourlyFigures) -> Decimal | None:
    """Of what came in, to two decimals; None where nothing did."""
    return margin.percent(row.revenue_nanos - row.cost_nanos, row.revenue_nanos)


def _gifts_cost(product: Product, at: datetime) -> int:
    """Since the row before, until ``at``."""
    last = HourlyFigures.objects.filter(product=product, at__lt=at).order_by("-at").values_list("at", flat=True).first()
    with connection.cursor() as cursor:
        asked: dict[str, Any] = {"product": product.pk, "since": last or at - FIRST_SPAN, "until": at, "sources": list(GIFTS)}
        cursor.execute(rollups.query("gifts_cost"), asked)
        return int(cursor.fetchone()[0])
