"""What customers see of their use: the overview (how much is left, what was used, when it resets), the usage page with its limits, the
same records as a file, and one charge explained.

The product's visibility policy decides how much is told: with ``depletion_only`` amounts but no quantities, so that no price per token
can be worked out; with ``amount`` the tokens in and out of each use; with ``full_breakdown`` every component of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts import exports, pages
from accounts.models import Account, ApiKey
from accounts.templatetags import amounts
from billing import balances, ledger, periods
from billing.models import Subscription
from metering import breakdown, charges, explanation, prompts, standing, usage
from metering.models import Feature, UsageModel, UsageRecord
from pricing import catalog
from pricing.models import Plan, Product, Unit
from pricing.rating import COMPONENTS, INPUT_COMPONENTS

RECENT: Final = 6
PAGE_SIZE: Final = 25
RANGES: Final = (7, 30, 90)
#: The range from the beginning of the billing period on.
PERIOD: Final = "period"
_CHUNK: Final = 1_000
_MAX_NAME: Final = 200


@dataclass(frozen=True, slots=True)
class Use:
    """One usage record as a page shows it. ``nanos`` None: its price is not known yet. ``quantities`` are empty where policy hides them."""

    id: str
    at: datetime
    model: str
    feature: str
    nanos: int | None
    free: bool
    quantities: tuple[tuple[str, int], ...]
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the usage page's table, a group with its name. ``query`` narrows the page to it; empty where it cannot be."""

    name: str
    group: breakdown.Group
    query: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address of the usage page says; ``narrowed`` by name, as it stands there."""

    range: str
    by: str
    narrowed: Mapping[str, str]

    def query(self, **changes: str | None) -> str:
        """The same address with some of it changed; None takes it out."""
        said = {"days": self.range, "by": self.by} | dict(self.narrowed) | changes
        return urlencode({name: value for name, value in said.items() if value is not None})


@require_safe
@never_cache
@login_required
def overview(request: HttpRequest, public_id: str) -> HttpResponse:
    now = timezone.now()
    with pages.tenant(request, public_id) as account:
        wallets = balances.of_account(account, now=now)
        subscription = Subscription.objects.filter(account=account).exclude(status=Subscription.Status.CANCELED).first()
        manages = pages.manages(pages.signed_in(request), account)
    product = account.product = catalog.product_by_id(product_id=account.product_id)
    since, until = period(subscription, now) if subscription else (now - timedelta(days=30), None)
    with pages.tenant(request, public_id):
        month = breakdown.window(account, now=now, days=30)
        used = breakdown.charged(account, breakdown.window(account, now=now, since=since), product.unit_id)
        totals = breakdown.read(account, month, unit_id=product.unit_id, by="model").totals
        recent = charges.with_ratings(account, list(_records(account)[:RECENT]))
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
            "used": used,
            "since": since,
            "until": until,
            "subscription": subscription,
            "plan": subscription and Plan.objects.get(versions=subscription.plan_version_id),
            "next_to_expire": min((lot for lot in wallet.lots if lot.ends_at), key=lambda lot: lot.ends_at or now, default=None)
            if wallet
            else None,
            "days": breakdown.by_day(month, totals),
            "uses": _uses(account, recent, product),
            "digits": amounts.sub_digits([record.price_nanos or 0 for record in recent]),
            "prompt": next(iter(prompts.reached(account=account, now=now)), None) if account.closed_at is None else None,
            "manages": manages,
            "renews_credit": subscription is not None and _renews_credit(subscription),
            "sells": bool(catalog.packs(product_id=product.pk, at=now)),
            **_told(product),
        },
    )


def _renews_credit(subscription: Subscription) -> bool:
    """Whether the next period brings credit by itself."""
    return bool(catalog.plan_version_by_id(plan_version_id=subscription.plan_version_id).version.included_credit_nanos)


@require_safe
@never_cache
@login_required
def usage_page(request: HttpRequest, public_id: str) -> HttpResponse:
    """``?days=`` 7, 30, 90 or ``period`` sets what is summed, ``?by=`` what is told apart; ``?model=``, ``?feature=`` and ``?user=`` narrow
    it. ``?from=`` is the record that a page of them begins with; narrowed, the records are those of the range.
    """
    now = timezone.now()
    asked, first = _asked(request), _first(request)
    with pages.tenant(request, public_id) as account:
        subscription = Subscription.objects.filter(account=account).exclude(status=Subscription.Status.CANCELED).first()
    product = Product.objects.select_related("unit").get(pk=account.product_id)
    narrowed = _narrowed(asked, product)
    window = _window(account, asked, subscription, now)
    with pages.tenant(request, public_id):
        used = breakdown.read(account, window, unit_id=product.unit_id, by=asked.by, narrowed=narrowed)
        records = _listed(account, window, narrowed)
        found = charges.with_ratings(account, list((records.filter(pk__lte=first) if first else records)[: PAGE_SIZE + 1]))
    groups = breakdown.by_group(used.totals)
    chart = breakdown.by_day(window, used.totals, groups if len(groups) > 1 else ())
    lines = _lines(account, product, asked, groups)
    return pages.render(
        request,
        "billing/usage.html",
        account=account,
        now=now,
        context={
            "unit": product.unit,
            "days": chart,
            "asked": asked,
            "period_since": window.since if asked.range == PERIOD else None,
            "ranges": [(name, asked.query(days=name), name == asked.range) for name in (*map(str, RANGES), PERIOD)],
            "apart": [(name, asked.query(by=name), name == asked.by) for name in _apart(account, asked, used)],
            "narrowed": [(name, value, asked.query(**{name: None})) for name, value in asked.narrowed.items()],
            "query": asked.query(),
            "total": sum(day.nanos for day in chart),
            "count": sum(day.records for day in chart),
            "lines": lines,
            "series": lines[: breakdown.MAX_SERIES] if len(lines) > 1 else [],
            "others": len(lines) > breakdown.MAX_SERIES,
            "limits": standing.of_account(account, product=product, now=now),
            "uses": _uses(account, found[:PAGE_SIZE], product),
            "digits": amounts.sub_digits([record.price_nanos or 0 for record in found[:PAGE_SIZE]]),
            "first": first,
            "older": found[PAGE_SIZE].pk if len(found) > PAGE_SIZE else None,
            "most": exports.MAX_ROWS,
            **_told(product),
        },
    )


@require_safe
@never_cache
@login_required
def usage_csv(request: HttpRequest, public_id: str) -> HttpResponseBase:
    """The range's records as a file, the latest first. Of more than ``exports.MAX_ROWS`` it has the latest, and says so in its name."""
    now = timezone.now()
    asked = _asked(request)
    with pages.tenant(request, public_id) as account:
        subscription = Subscription.objects.filter(account=account).exclude(status=Subscription.Status.CANCELED).first()
    product = Product.objects.select_related("unit").get(pk=account.product_id)
    window, narrowed = _window(account, asked, subscription, now), _narrowed(asked, product)
    with pages.tenant(request, public_id):
        records = breakdown.records(account, window, narrowed).order_by("-id")
        whole = not records.values("id")[exports.MAX_ROWS :].exists()
    stretch = f"{window.days[0]}_to_{window.days[-1]}"
    name = f"usage_{account.public_id}_{stretch}{'' if whole else f'_latest-{exports.MAX_ROWS}-rows'}.csv"
    return exports.download(_file(request, account, product, records.defer("cost_nanos")), name=name, account=account)


@require_safe
@never_cache
@login_required
def explain(request: HttpRequest, public_id: str, record: str) -> HttpResponse:
    """One charge, sentence by sentence, as far as the product's visibility goes."""
    now = timezone.now()
    with pages.tenant(request, public_id) as account:
        named, id_ = _split(record)
        found = charges.record(account, id_) if named == public_id else None
        if found is None:
            raise Http404("There is no such record.")
        burnt = charges.burnt(found)
    told = explanation.explain(account=account, record=found, burnt=burnt, staff=False, zone=explanation.zone_of(account))
    product = told.charge.product
    lines = told.rated.lines if told.rated and told.told.components and told.rated.price else ()
    return pages.render(
        request,
        "billing/explain.html",
        account=account,
        now=now,
        context={
            "record": found,
            "use": _uses(account, [found], product)[0],
            "unit": told.charge.unit,
            "told": told,
            "lines": [_component(line) for line in lines],
            "exact": charges.exact(told.rated.exact) if told.rated else "",
            "burnt": burnt,
            "digits": amounts.sub_digits([entry.amount for entry, _ in burnt]),
            "worked": found.outcome in charges.USED,
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


def _asked(request: HttpRequest) -> Asked:
    """:raises Http404: anything that the page does not offer."""
    length, by = request.GET.get("days", "30"), request.GET.get("by", "model")
    narrowed = {name: request.GET[name] for name in ("model", "feature", "user") if name in request.GET}
    if length not in (*map(str, RANGES), PERIOD) or by not in breakdown.COLUMNS:
        raise Http404("There is no such view.")
    if any(len(value) > _MAX_NAME or not value.isprintable() for value in narrowed.values()):
        raise Http404("There is no such name.")
    return Asked(length, by, narrowed)


def _narrowed(asked: Asked, product: Product) -> list[breakdown.Narrowed]:
    """The names as the numbers that records have. A name that nobody has is the number of nothing: an empty page, as one of others'."""
    found = []
    for name, value in asked.narrowed.items():
        number: int | str | None = value or None
        if name == "model":
            provider, _, model = value.partition(":")
            number = UsageModel.objects.filter(provider=provider, name=model).values_list("pk", flat=True).first() or -1
        elif name == "feature" and value:
            number = Feature.objects.filter(product=product, slug=value).values_list("pk", flat=True).first() or -1
        found.append(breakdown.Narrowed(breakdown.COLUMNS[name], number))
    return found


def _window(account: Account, asked: Asked, subscription: Subscription | None, now: datetime) -> breakdown.Window:
    if asked.range != PERIOD:
        return breakdown.window(account, now=now, days=int(asked.range))
    since = period(subscription, now)[0] if subscription else now - timedelta(days=30)
    return breakdown.window(account, now=now, since=since)


def _listed(account: Account, window: breakdown.Window, narrowed: Sequence[breakdown.Narrowed]) -> QuerySet[UsageRecord]:
    """All records, a page of which is found at once; narrowed only those of the window, so that no page looks through all of history."""
    if not narrowed:
        return _records(account)
    return breakdown.records(account, window, narrowed).defer("cost_nanos").order_by("-id")


def _apart(account: Account, asked: Asked, used: breakdown.Used) -> list[str]:
    """What there is more than one of to be told apart."""
    keys = asked.by == "key" or ApiKey.objects.filter(account=account).exists()
    offered = {"model": True, "feature": used.features, "user": used.several_users, "key": keys}
    return [name for name, there in offered.items() if there or name == asked.by]


def _lines(account: Account, product: Product, asked: Asked, groups: Sequence[breakdown.Group]) -> list[Line]:
    keys: dict[Any, str] = {}
    match asked.by:
        case "model":
            keys = {
                pk: str(model)
                for pk, model in UsageModel.objects.in_bulk([group.key for group in groups if group.key != breakdown.OTHERS]).items()
            }
        case "feature":
            keys = {pk: str(feature) for pk, feature in Feature.objects.filter(product=product).in_bulk().items()}
        case "key":
            keys = {key.pk: f"{key.name} ({key.prefix}…)" for key in ApiKey.objects.filter(account=account)}
    nameless = {"feature": "No feature named", "user": "No user named", "key": product.name}
    lines = []
    for group in groups:
        name = keys.get(group.key) or (str(group.key) if asked.by == "user" and group.key else nameless.get(asked.by, ""))
        if group.key == breakdown.OTHERS:
            name = "All others"
        can_narrow = asked.by != "key" and group.key != breakdown.OTHERS and asked.by not in asked.narrowed
        value = "" if group.key is None else name
        lines.append(Line(name, group, asked.query(**{asked.by: value}) if can_narrow else ""))
    return lines


def _component(line: Any) -> dict[str, Any]:
    """A line of a price for people: its rate is what ``per_units`` of the component are charged at."""
    return {
        "name": line.component.replace("_", " "),
        "quantity": line.quantity,
        "rate": charges.exact(line.charge * line.per_units / line.quantity),
        "per_units": line.per_units,
        "charge": charges.exact(line.charge),
    }


def _split(record: str) -> tuple[str, uuid.UUID]:
    try:
        return usage.split_id(record)
    except ledger.NotFound:
        raise Http404("There is no such record.") from None


def _file(request: HttpRequest, account: Account, product: Product, records: QuerySet[UsageRecord]) -> Iterator[Sequence[exports.Cell]]:
    """The rows of the records' file. Each chunk is read behind both walls anew, since the view has ended by then."""
    told = _told(product)
    columns = [name for name in COMPONENTS if told["tells_components"]]
    tokens = ["tokens_in", "tokens_out"] if told["tells_tokens"] else []
    yield (
        "record", "event_at", "recorded_at", "outcome", "model", "feature", "user", "session", "run", *tokens, *columns, "charged", "unit",
    )  # fmt: skip
    units = {unit.pk: unit.code for unit in Unit.objects.all()}
    left, last = exports.MAX_ROWS, None
    while left:
        with pages.tenant(request, account.public_id):
            page = records.filter(pk__lt=last) if last else records
            found = charges.with_ratings(account, list(page[: min(_CHUNK, left)]))
        for record, use in zip(found, _uses(account, found, product), strict=True):
            used = charges.quantities(record.quantities)
            yield (
                use.id, record.event_at, record.recorded_at, record.outcome, use.model, use.feature, record.user_ref, record.session_ref,
                record.run_ref, *((use.tokens_in, use.tokens_out) if tokens else ()), *(used.get(name, 0) for name in columns),
                None if record.price_nanos is None else exports.Nanos(record.price_nanos), units.get(record.unit_id or product.unit_id),
            )  # fmt: skip
        if len(found) < _CHUNK:
            return
        left -= len(found)
        last = found[-1].id


def _first(request: HttpRequest) -> uuid.UUID | None:
    text = request.GET.get("from", "")
    try:
        return uuid.UUID(text) if text else None
    except ValueError:
        raise Http404("There is no such page.") from None


def _records(account: Account) -> QuerySet[UsageRecord]:
    """The account's finished work, the latest first. Wholesale cost stays in the database."""
    return charges.of(account).filter(outcome__in=charges.USED).order_by("-id")


def _uses(account: Account, records: Sequence[UsageRecord], product: Product) -> list[Use]:
    models = UsageModel.objects.in_bulk({record.model_id for record in records})
    features = Feature.objects.in_bulk({record.feature_id for record in records if record.feature_id})
    told = _told(product)
    uses = []
    for record in records:
        used = charges.quantities(record.quantities).items()
        uses.append(
            Use(
                id=usage.public_id(account, record.id, kind="rec"),
                at=record.event_at,
                model=str(models[record.model_id]),
                feature=str(features[record.feature_id]) if record.feature_id else "",
                nanos=record.price_nanos,
                free=record.unit_id != product.unit_id and not record.price_nanos,
                quantities=tuple((name.replace("_", " "), quantity) for name, quantity in used) if told["tells_components"] else (),
                tokens_in=sum(quantity for name, quantity in used if name in INPUT_COMPONENTS) if told["tells_tokens"] else 0,
                tokens_out=sum(quantity for name, quantity in used if name in breakdown.OUTPUT_COMPONENTS) if told["tells_tokens"] else 0,
            )
        )
    return uses
