"""What customers see of their credits: what they have and what comes next, and the statement of a period."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from typing import Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts import exports, pages
from accounts.models import Account
from accounts.templatetags import amounts
from billing import balances, periods, statements, subscriptions
from billing.api import record_id
from billing.models import Grant, LedgerEntry, Schedule, Subscription, Wallet
from pricing import catalog
from pricing.models import Product, Unit

PAGE_SIZE: Final = 50
LATEST: Final = 10
#: How many grants are listed one by one.
MAX_LOTS: Final = 50
_CHUNK: Final = 1_000
_HEADINGS: Final = (
    "entry", "written_at", "effective_at", "what", "source", "amount", "balance_after", "debt_change", "debt_after", "unit", "usage_record",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Movement:
    """One ledger entry as a page shows it. ``source`` is where its grant came from; ``record`` the usage record behind it, or empty."""

    entry: LedgerEntry
    source: str
    record: str


@dataclass(frozen=True, slots=True)
class Run:
    """Movements that follow each other: the use of one day in one line, or one movement of another kind. Amounts in nanos."""

    day: date
    kind: str
    source: str
    entries: int
    amount: int
    debt_delta: int
    balance_after: int


@require_safe
@never_cache
@login_required
def credits(request: HttpRequest, public_id: str) -> HttpResponse:
    """``?unit=`` names the wallet where there are several."""
    now = timezone.now()
    with pages.tenant(request, public_id) as account:
        wallets = {wallet.unit_id: wallet for wallet in balances.of_account(account, now=now)}
        units = _units(wallets)
        manages = pages.manages(pages.signed_in(request), account)
    unit = _chosen(request, account, units)
    with pages.tenant(request, public_id):
        wallet = wallets.get(unit.pk) if unit else None
        grants = (
            Grant.objects.filter(account=account, unit_id=wallet.unit_id, frozen__gt=0, closed=False) if wallet else Grant.objects.none()
        )
        frozen = sum(grants.values_list("frozen", flat=True))
        schedule = Schedule.objects.filter(account=account, unit_id=wallet.unit_id).defer(*Schedule.STAFFS_OWN).first() if wallet else None
        subscription = Subscription.objects.filter(account=account).exclude(status=Subscription.Status.CANCELED).first()
        latest = _movements(account, _entries(account, wallet.unit_id).order_by("-seq")[:LATEST]) if wallet else []
    product = Product.objects.select_related("unit").get(pk=account.product_id)
    lots = wallet.lots if wallet else ()
    return pages.render(
        request,
        "billing/credits.html",
        account=account,
        now=now,
        context={
            "wallet": wallet,
            "unit": unit or product.unit,
            "units": list(units.values()) if len(units) > 1 else [],
            "lots": lots[:MAX_LOTS],
            "more_lots": max(len(lots) - MAX_LOTS, 0),
            "frozen": frozen,
            "next_grant": _next_grant(schedule, now) or _next_paid(account, subscription, unit),
            "next_to_expire": min(
                (lot for lot in lots if lot.ends_at and lot.ends_at > now), key=lambda lot: lot.ends_at or now, default=None
            ),
            "movements": latest,
            "digits": _digits([movement.entry for movement in latest]),
            "buys": manages and account.closed_at is None and bool(catalog.packs(product_id=product.pk, at=now)),
        },
    )


@require_safe
@never_cache
@login_required
def statement(request: HttpRequest, public_id: str) -> HttpResponse:
    """``?period=2026-03`` a calendar month, ``?period=2026-03-14`` the billing period from that day; without, the one that runs.

    ``?page=`` pages through its movements, the oldest first; ``?view=days`` has all of them, the use of a day in one line, to be printed.
    """
    now = timezone.now()
    number, by_day = page_number(request), _by_day(request)
    with pages.tenant(request, public_id) as account:
        wallets = {wallet.unit_id: wallet for wallet in Wallet.objects.filter(account=account).order_by("unit_id")}
        units = _units(wallets)
    allowed = subscriptions.allowed(account=account)
    unit, period = _chosen(request, account, units), _period(request, account, allowed, now)
    with pages.tenant(request, public_id):
        found = statements.of_period(wallet=wallets.get(unit.pk) if unit else None, period=period)
        first = found.first + (number - 1) * PAGE_SIZE
        if first >= found.after and number > 1:
            raise Http404("The statement has no such page.")
        entries = _entries(account, unit.pk).filter(seq__gte=first, seq__lt=min(first + PAGE_SIZE, found.after)) if unit else []
        movements = [] if by_day else _movements(account, entries)
        runs = _runs(account, unit, found) if by_day and unit and found.entries <= exports.MAX_ROWS else []
    product = Product.objects.select_related("unit").get(pk=account.product_id)
    billing, months = statements.choices(account=account, allowed=allowed, now=now)
    earlier, later = statements.around(period, account=account, allowed=allowed, now=now)
    shown = [each.entry for each in movements]
    return pages.render(
        request,
        "billing/statement.html",
        account=account,
        now=now,
        context={
            "unit": unit or product.unit,
            "units": list(units.values()) if len(units) > 1 else [],
            "period": period,
            "billing_periods": billing,
            "months": months,
            "earlier": earlier,
            "later": later,
            "statement": found,
            "movements": movements,
            "runs": runs,
            "by_day": by_day,
            "digits": amounts.sub_digits([value for run in runs for value in (run.amount, run.balance_after)])
            if by_day
            else _digits(shown),
            "sums_digits": amounts.sub_digits([found.opening, found.closing, *(sums.amount for sums in found.sums)]),
            "query": urlencode({"period": period.name} | ({"unit": unit.code} if unit and len(units) > 1 else {})),
            "number": number,
            "last": max(1, -(-found.entries // PAGE_SIZE)),
            "most": exports.MAX_ROWS,
        },
    )


@require_safe
@never_cache
@login_required
def statement_csv(request: HttpRequest, public_id: str) -> HttpResponseBase:
    """The same period as a file, between a row with what was there before and one with what is there afterwards.

    Of more than ``exports.MAX_ROWS`` movements the file has the first, says so in its name, and has no closing row.
    """
    now = timezone.now()
    with pages.tenant(request, public_id) as account:
        wallets = {wallet.unit_id: wallet for wallet in Wallet.objects.filter(account=account).order_by("unit_id")}
        units = _units(wallets)
    allowed = subscriptions.allowed(account=account)
    unit, period = _chosen(request, account, units), _period(request, account, allowed, now)
    with pages.tenant(request, public_id):
        found = statements.of_period(wallet=wallets.get(unit.pk) if unit else None, period=period)
    product = Product.objects.select_related("unit").get(pk=account.product_id)
    whole = found.entries <= exports.MAX_ROWS
    name = f"statement_{account.public_id}_{period.name}{'' if whole else f'_first-{exports.MAX_ROWS}-rows'}.csv"
    return exports.download(_file(request, account, unit or product.unit, period, found), name=name, account=account)


def page_number(request: HttpRequest) -> int:
    """``?page=``, from 1. :raises Http404: anything but a whole number of up to nine digits."""
    text = request.GET.get("page", "1")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        raise Http404("There is no such page.")
    return int(text)


def _by_day(request: HttpRequest) -> bool:
    view = request.GET.get("view", "movements")
    if view not in ("movements", "days"):
        raise Http404("There is no such view.")
    return view == "days"


def _units(ids: Iterable[int]) -> dict[str, Unit]:
    return {unit.code: unit for unit in Unit.objects.filter(pk__in=ids).order_by("pk")}


def _chosen(request: HttpRequest, account: Account, units: dict[str, Unit]) -> Unit | None:
    """The unit asked for; else the product's own, else the first; None where the account has no wallet.

    :raises Http404: the account has no wallet in the unit that is asked for.
    """
    if "unit" in request.GET:
        unit = units.get(request.GET["unit"])
        if unit is None:
            raise Http404("There is no such wallet.")
        return unit
    return next((unit for unit in units.values() if unit.pk == account.product.unit_id), next(iter(units.values()), None))


def _period(request: HttpRequest, account: Account, allowed: subscriptions.Allowed | None, now: datetime) -> statements.Period:
    """:raises Http404: no such period, or one that has not begun."""
    if "period" not in request.GET:
        billing, months = statements.choices(account=account, allowed=allowed, now=now)
        return (billing or months)[0]
    period = statements.named(request.GET["period"], account=account, allowed=allowed, now=now)
    if period is None:
        raise Http404("There is no such period.")
    return period


def _entries(account: Account, unit_id: int) -> QuerySet[LedgerEntry]:
    """The oldest first. What the payment provider took is closed to tenants."""
    return LedgerEntry.objects.filter(account=account, unit_id=unit_id).defer("fee_nanos").order_by("seq")


def _movements(account: Account, entries: Iterable[LedgerEntry]) -> list[Movement]:
    found = list(entries)
    sources = _sources(account, found)
    return [
        Movement(entry, sources.get(entry.grant_id or 0, ""), record_id(account, entry.usage_id) if entry.usage_id else "")
        for entry in found
    ]


def _sources(account: Account, entries: Sequence[LedgerEntry]) -> dict[int, str]:
    return dict(Grant.objects.filter(account=account, pk__in={entry.grant_id for entry in entries}).values_list("pk", "source"))


def _runs(account: Account, unit: Unit, found: statements.Statement) -> list[Run]:
    """All movements of a statement, what was used on one day of the account's in one line."""
    zone = ZoneInfo(account.time_zone)
    used = (LedgerEntry.Kind.USAGE, LedgerEntry.Kind.DEBT)
    rows = _entries(account, unit.pk).filter(seq__gte=found.first, seq__lt=found.after)
    entries = list(rows.only("account", "unit", "seq", "kind", "grant_id", "amount", "debt_delta", "balance_after", "effective_at"))
    sources = _sources(account, [entry for entry in entries if entry.kind not in used])

    def key(entry: LedgerEntry) -> tuple[date, int]:
        return entry.effective_at.astimezone(zone).date(), 0 if entry.kind in used else entry.seq

    runs = []
    for (day, _), group in groupby(entries, key=key):
        together = list(group)
        last = together[-1]
        runs.append(
            Run(
                day=day,
                kind=LedgerEntry.Kind.USAGE if last.kind in used else last.kind,
                source="" if last.kind in used else sources.get(last.grant_id or 0, ""),
                entries=len(together),
                amount=sum(entry.amount for entry in together),
                debt_delta=sum(entry.debt_delta for entry in together),
                balance_after=last.balance_after,
            )
        )
    return runs


def _digits(entries: Sequence[LedgerEntry]) -> int:
    return amounts.sub_digits([value for entry in entries for value in (entry.amount, entry.balance_after)])


def _next_grant(schedule: Schedule | None, now: datetime) -> tuple[datetime, int, str] | None:
    """When the wallet is granted something by itself, how much (nanos), and as what."""
    if schedule is None or schedule.stopped_at is not None:
        return None
    anchor, number = schedule.anchor_at.astimezone(UTC), schedule.granted
    while (at := periods.anniversary(anchor, months=number * schedule.months)) <= now:
        number += 1
    return None if schedule.ends_at is not None and at >= schedule.ends_at else (at, schedule.amount, schedule.source)


def _next_paid(account: Account, subscription: Subscription | None, unit: Unit | None) -> tuple[datetime, int, str] | None:
    """The credit that the next paid period brings."""
    if subscription is None or subscription.stripe_id is None or subscription.cancel_at_period_end:
        return None
    amount = subscription.plan_version.included_credit_nanos
    if not amount or (unit is not None and unit.pk != account.product.unit_id):
        return None
    return subscription.current_period_end, amount, "monthly"


def _file(
    request: HttpRequest, account: Account, unit: Unit, period: statements.Period, found: statements.Statement
) -> Iterator[Sequence[exports.Cell]]:
    """The rows of a statement's file. Each chunk is read behind both walls anew, since the view has ended by then."""
    nanos = exports.Nanos

    def balance(what: str, at: datetime | None, balance: int, debt: int) -> Sequence[exports.Cell]:
        return (None, None, at, what, None, None, nanos(balance), None, nanos(debt), unit.code, None)

    yield _HEADINGS
    yield balance("opening balance", period.start, found.opening, found.opening_debt)
    end = min(found.after, found.first + exports.MAX_ROWS)
    for first in range(found.first, end, _CHUNK):
        with pages.tenant(request, account.public_id):
            movements = _movements(account, _entries(account, unit.pk).filter(seq__gte=first, seq__lt=min(first + _CHUNK, end)))
        for each in movements:
            entry = each.entry
            yield (
                entry.seq, entry.recorded_at, entry.effective_at, entry.kind, each.source, nanos(entry.amount), nanos(entry.balance_after),
                nanos(entry.debt_delta), nanos(entry.debt_after), unit.code, each.record,
            )  # fmt: skip
    if end == found.after:
        yield balance("closing balance", min(period.end, timezone.now()), found.closing, found.closing_debt)
