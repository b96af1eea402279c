"""What staff look at day by day, week by week and month by month: lists as data, each point with its figure, and who went through it when.

    ITEMS     the points of all lists (``review_lists.toml``)
    read      a list as it stands now
    record    that somebody went through a point

Days, weeks (from Monday) and months are in UTC; what belongs to a launch is gone through once. The figure that stood there is kept.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from django.urls import reverse

from analytics import alert_metrics, growth, retention
from analytics.alert_metrics import METRICS, Ask
from analytics.models import AlertRule, Review
from pricing.models import PriceProposal, Product

LISTS: Final = {"daily": "Every day", "weekly": "Every week", "monthly": "Every month", "launch": "After a launch"}
#: What is done once has a period of its own.
ONCE: Final = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Item:
    """One point. ``figure`` names a metric, with its window and sums, or one of this module's; empty: nothing to count."""

    slug: str
    list: str
    title: str
    figure: str = ""
    window: str = ""
    numerator: str = ""
    denominator: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    text: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """An item as it stands: ``review`` is None while nobody went through it in this period."""

    item: Item
    figures: tuple[Figure, ...]
    review: Review | None


def period(*, of: str, now: datetime) -> date:
    """The first day of the present day, week or month of a list."""
    today = now.astimezone(UTC).date()
    return {"daily": today, "weekly": today - timedelta(days=today.weekday()), "monthly": today.replace(day=1), "launch": ONCE}[of]


def read(*, of: str, now: datetime) -> list[Point]:
    """The points of a list with their figures of now. Reads alone."""
    items = [item for item in ITEMS if item.list == of]
    done = Review.objects.filter(item__in=[item.slug for item in items], period=period(of=of, now=now))
    reviews = {review.item: review for review in done}
    return [Point(item, figures(item=item, now=now), reviews.get(item.slug)) for item in items]


def figures(*, item: Item, now: datetime) -> tuple[Figure, ...]:
    """What is to be looked at: one figure, or one a product. None where there is not enough data."""
    if not item.figure:
        return ()
    if item.figure in _OWN:
        return (_OWN[item.figure](now),)
    metric = METRICS[item.figure]
    found = []
    for product in Product.objects.order_by("name", "pk") if metric.each else [None]:
        ask = Ask(product, AlertRule.Window(item.window), now, item.numerator, item.denominator)
        reading = alert_metrics.read(metric=metric.name, ask=ask)
        if reading.value is not None:
            text = alert_metrics.words(metric.unit, reading.value)
            found.append(Figure(f"{product}: {text}" if product else text, reading.link))
    return tuple(found)


def record(*, item: Item, note: str, actor: str, now: datetime) -> Review:
    """Notes that ``actor`` went through ``item`` in the present period; the first to say so stays."""
    text = "; ".join(figure.text for figure in figures(item=item, now=now))[:200]
    review, _ = Review.objects.get_or_create(
        item=item.slug, period=period(of=item.list, now=now),
        defaults={"figure": text, "note": note, "reviewed_by": actor, "reviewed_at": now},
    )  # fmt: skip
    return review


def _growth(now: datetime) -> tuple[growth.Period, str]:
    return growth.period(month=now.date(), now=now), reverse("admin:analytics_growth")


def _churn(now: datetime) -> Figure:
    of, link = _growth(now)
    found = growth.churn(since=of.since, until=of.until)
    return Figure(f"{found.lost:,} of {found.accounts:,} customers", link)


def _failed_payments(now: datetime) -> Figure:
    of, link = _growth(now)
    found = retention.failures(of=of, now=now)
    return Figure(f"{len(found.plans):,} failed, {len(found.recovered):,} recovered, {len(found.lost):,} lost", link)


def _active(now: datetime) -> Figure:
    of, link = _growth(now)
    found = retention.activity(since=of.first_day, until=of.end)
    return Figure(f"{found.accounts:,} active accounts, {found.records:,} requests this month", link)


def _conversion(now: datetime) -> Figure:
    of, link = _growth(now)
    found = retention.cohorts(first=of.month, now=now)
    signed_up, paying = (found[0].accounts, found[0].cells[-1].paying) if found else (0, 0)
    return Figure(f"{signed_up:,} signed up this month, {paying:,} of them pay for a plan", link)


def _price_proposals(now: datetime) -> Figure:
    link = reverse("admin:pricing_priceproposal_changelist") + "?state__exact=pending"
    return Figure(f"{PriceProposal.objects.filter(state='pending').count():,} proposals", link)


_OWN: Final[dict[str, Callable[[datetime], Figure]]] = {
    "churn": _churn,
    "failed_payments": _failed_payments,
    "active": _active,
    "conversion": _conversion,
    "price_proposals": _price_proposals,
}


def _items(text: str) -> tuple[Item, ...]:
    items = tuple(Item(**row) for row in tomllib.loads(text)["items"])
    assert all(item.list in LISTS and (not item.figure or item.figure in _OWN or item.figure in METRICS) for item in items)
    return items


ITEMS: Final = _items((Path(__file__).parent / "review_lists.toml").read_text())
