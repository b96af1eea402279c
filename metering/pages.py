"""What customers see of their use: the overview (how much is left, what was used, when it resets) and the usage page.

The product's visibility policy decides how much is told: with ``depletion_only`` amounts but no quantities, so that no price per token
can be worked out; with ``amount`` the tokens in and out of each use; with ``full_breakdown`` every component of it.
"""

from __future__ import annotations

import uuid
import zoneinfo
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Final, TypedDict, cast

from django.contrib.auth.decorators import login_required
from django.db.models import Count, F, QuerySet, Sum, Value
from django.db.models.functions import Coalesce, TruncDate
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts import pages
from accounts.models import Account
from accounts.templatetags import amounts
from accounts.templatetags.charts import Day
from billing import balances, periods
from billing.models import Subscription
from metering.models import Feature, UsageModel, UsageRecord
from pricing.models import Plan, Product, Unit
from pricing.rating import COMPONENTS, INPUT_COMPONENTS, TOKEN_COMPONENTS

RECENT: Final = 6
PAGE_SIZE: Final = 25
RANGES: Final = (7, 30, 90)
#: A record's id is as old as its authorization: a day of hold and a week of grace older than the use, at most.
_OLDEST_ID: Final = timedelta(days=8)
_USED: Final = (UsageRecord.Outcome.CAPTURED, UsageRecord.Outcome.RECORDED, UsageRecord.Outcome.UNPRICED)


@dataclass(frozen=True, slots=True)
class Use:
    """One usage record as a page shows it. ``nanos`` None: its price is not known yet. ``quantities`` are empty where policy hides them."""

    at: datetime
    model: str
    feature: str
    nanos: int | None
    free: bool
    quantities: tuple[tuple[str, int], ...]
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class ModelTotal:
    """What one model came to."""

    model: str
    records: int
    nanos: int
    tokens_in: int
    tokens_out: int


@require_safe
@never_cache
@login_required
def overview(request: HttpRequest, public_id: str) -> HttpResponse:
    now = timezone.now()
    with pages.tenant(request, public_id) as account:
        wallets = balances.of_account(account, now=now)
        subscription = Subscription.objects.filter(account=account).exclude(status=Subscription.Status.CANCELED).first()
        since, until = period(subscription, now) if subscription else (now - timedelta(days=30), None)
        used = _used_since(account, since, now)
        days = _days(account, now, 30)
        totals = _totals(account, days)
        recent = list(_records(account)[:RECENT])
    product = Product.objects.select_related("unit").get(pk=account.product_id)
    wallet = next((wallet for wallet in wallets if wallet.unit_id == product.unit_id), None)
    units = Unit.objects.in_bulk([each.unit_id for each in wallets])
    return pages.render(
        request,
        "billing/overview.html",
        account=account,
        now=now,
        context={
            "unit": product.unit,
            "wallet": wallet,
            "others": [(each, units[each.unit_id]) for each in wallets if each is not wallet],
            "used": used.get(product.unit_id, 0),
            "since": since,
            "until": until,
            "subscription": subscription,
            "plan": subscription and Plan.objects.get(versions=subscription.plan_version_id),
            "next_to_expire": min((lot for lot in wallet.lots if lot.ends_at), key=lambda lot: lot.ends_at or now, default=None)
            if wallet
            else None,
            "days": _by_day(days, totals, product.unit_id),
            "uses": _uses(recent, product),
            "digits": amounts.sub_digits([record.price_nanos or 0 for record in recent]),
            **_told(product),
        },
    )


@require_safe
@never_cache
@login_required
def usage(request: HttpRequest, public_id: str) -> HttpResponse:
    """``?days=`` 7, 30 or 90 sets what is summed; ``?from=`` is the record that a page of them begins with."""
    now = timezone.now()
    length, first = _range(request), _first(request)
    with pages.tenant(request, public_id) as account:
        days = _days(account, now, length)
        totals = _totals(account, days)
        records = _records(account)
        found = list((records.filter(pk__lte=first) if first else records)[: PAGE_SIZE + 1])
    product = Product.objects.select_related("unit").get(pk=account.product_id)
    chart = _by_day(days, totals, product.unit_id)
    return pages.render(
        request,
        "billing/usage.html",
        account=account,
        now=now,
        context={
            "unit": product.unit,
            "days": chart,
            "length": length,
            "ranges": RANGES,
            "total": sum(day.nanos for day in chart),
            "count": sum(day.records for day in chart),
            "models": _by_model(totals, product.unit_id),
            "uses": _uses(found[:PAGE_SIZE], product),
            "digits": amounts.sub_digits([record.price_nanos or 0 for record in found[:PAGE_SIZE]]),
            "first": first,
            "older": found[PAGE_SIZE].pk if len(found) > PAGE_SIZE else None,
            **_told(product),
        },
    )


def period(subscription: Subscription, now: datetime) -> tuple[datetime, datetime]:
    """The period that contains ``now``: the stored one, or the one that follows it where nobody has turned the page yet."""
    start, end = subscription.current_period_start, subscription.current_period_end
    if now < end or subscription.cancel_at_period_end:
        return start, end
    months = (end.year - start.year) * 12 + end.month - start.month
    return periods.period_at(subscription.anchor_at, now, months=max(months, 1))


def _told(product: Product) -> dict[str, bool]:
    """What the visibility policy lets a page say."""
    return {
        "tells_tokens": product.visibility != Product.Visibility.DEPLETION_ONLY,
        "tells_components": product.visibility == Product.Visibility.FULL_BREAKDOWN,
    }


def _range(request: HttpRequest) -> int:
    chosen = request.GET.get("days", "30")
    if chosen not in map(str, RANGES):
        raise Http404("There is no such range.")
    return int(chosen)


def _first(request: HttpRequest) -> uuid.UUID | None:
    text = request.GET.get("from", "")
    try:
        return uuid.UUID(text) if text else None
    except ValueError:
        raise Http404("There is no such page.") from None


def _records(account: Account) -> QuerySet[UsageRecord]:
    """The account's finished work, the latest first. Wholesale cost stays in the database."""
    return (
        UsageRecord.objects.filter(account=account, outcome__in=_USED)
        .only("id", "event_at", "model_id", "feature_id", "price_nanos", "unit_id", "quantities", "outcome")
        .order_by("-id")
    )


def _since(account: Account, start: datetime) -> QuerySet[UsageRecord]:
    """Records of use since ``start``. The bound on the id keeps the read away from older history: the key begins with the account."""
    oldest = int((start - _OLDEST_ID).timestamp() * 1000)
    return UsageRecord.objects.filter(
        account=account, outcome__in=_USED, event_at__gte=start, pk__gte=uuid.UUID(int=max(oldest, 0) << 80)
    ).order_by()


def _used_since(account: Account, start: datetime, now: datetime) -> dict[int | None, int]:
    """Charged in ``[start, now]``, by unit, in nanos."""
    rows = _since(account, start).filter(event_at__lte=now).values_list("unit_id").annotate(total=Coalesce(Sum("price_nanos"), Value(0)))
    return {unit_id: int(total) for unit_id, total in rows}


def _days(account: Account, now: datetime, count: int) -> list[date]:
    """The last ``count`` days of the account's own calendar, today included, oldest first."""
    today = now.astimezone(zoneinfo.ZoneInfo(account.time_zone)).date()
    return [today - timedelta(days=back) for back in reversed(range(count))]


class _Total(TypedDict):
    """The sums arrive as PostgreSQL's numeric where they are of bigint."""

    day: date
    model_id: int
    unit_id: int | None
    records: int
    nanos: int
    tokens_in: int
    tokens_out: int


def _totals(account: Account, days: list[date]) -> list[_Total]:
    """Sums of each (day, model, unit) of ``days``."""
    zone = zoneinfo.ZoneInfo(account.time_zone)
    start = datetime.combine(days[0], time.min, tzinfo=zone)
    rows = (
        _since(account, start)
        .annotate(day=TruncDate("event_at", tzinfo=zone))
        .filter(day__lte=days[-1])
        .values("day", "model_id", "unit_id")
        .annotate(
            records=Count("id"), nanos=Coalesce(Sum("price_nanos"), Value(0)), tokens_in=_sum(INPUT_COMPONENTS), tokens_out=_sum(_OUTPUT)
        )
    )
    return [cast("_Total", row) for row in rows]


_OUTPUT: Final = TOKEN_COMPONENTS - INPUT_COMPONENTS


def _sum(components: Iterable[str]) -> Any:
    """Σ of some components over records; arrays end with their last component that is not 0."""
    return Sum(sum((Coalesce(F(f"quantities__{COMPONENTS.index(name)}"), Value(0)) for name in sorted(components)), start=Value(0)))


def _by_day(days: list[date], totals: list[_Total], unit_id: int) -> list[Day]:
    nanos: dict[date, int] = defaultdict(int)
    records: dict[date, int] = defaultdict(int)
    for row in totals:
        records[row["day"]] += row["records"]
        if row["unit_id"] == unit_id:
            nanos[row["day"]] += int(row["nanos"])
    return [Day(day=day, nanos=nanos[day], records=records[day]) for day in days]


def _by_model(totals: list[_Total], unit_id: int) -> list[ModelTotal]:
    """The dearest first."""
    names = UsageModel.objects.in_bulk({row["model_id"] for row in totals})
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in totals:
        charged = int(row["nanos"]) if row["unit_id"] == unit_id else 0
        for index, value in enumerate((charged, row["records"], int(row["tokens_in"]), int(row["tokens_out"]))):
            sums[row["model_id"]][index] += value
    ordered = sorted(sums.items(), key=lambda item: (-item[1][0], -item[1][1], item[0]))
    return [
        ModelTotal(model=str(names[model_id]), nanos=nanos, records=records, tokens_in=tokens_in, tokens_out=tokens_out)
        for model_id, (nanos, records, tokens_in, tokens_out) in ordered
    ]


def _uses(records: list[UsageRecord], product: Product) -> list[Use]:
    models = UsageModel.objects.in_bulk({record.model_id for record in records})
    features = Feature.objects.in_bulk({record.feature_id for record in records if record.feature_id})
    told = _told(product)
    uses = []
    for record in records:
        used = [(name, quantity) for name, quantity in zip(COMPONENTS, record.quantities, strict=False) if quantity]
        uses.append(
            Use(
                at=record.event_at,
                model=str(models[record.model_id]),
                feature=str(features[record.feature_id]) if record.feature_id else "",
                nanos=record.price_nanos,
                free=record.unit_id != product.unit_id,
                quantities=tuple((name.replace("_", " "), quantity) for name, quantity in used) if told["tells_components"] else (),
                tokens_in=sum(quantity for name, quantity in used if name in INPUT_COMPONENTS) if told["tells_tokens"] else 0,
                tokens_out=sum(quantity for name, quantity in used if name in _OUTPUT) if told["tells_tokens"] else 0,
            )
        )
    return uses
