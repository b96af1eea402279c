"""What the runaway guard does to an account, for its customers: which step, why with figures, when it ends, and what caps allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts import pages
from accounts.models import Account, ApiKey
from billing import subscriptions
from metering import guard, limits
from metering.ladder import Step
from metering.models import GuardState, GuardStep, Spend
from pricing import catalog
from pricing.models import Guard, GuardCap

SHOWN = 10
_DONE = {
    Step.WARN: ("Unusual spending", "Nothing is stopped."),
    Step.DEGRADE: ("Asked to use a cheaper model", "The answer to a refused call names it."),
    Step.SLOW: ("Slowed down", "A few calls a minute may begin."),
    Step.BLOCK: ("Blocked", "No new work may begin."),
}
_CAPS = {
    "run": ("Each run", "Run"),
    "session": ("Each session", "Session"),
    "member": ("Each member", "Member"),
    "key": ("Each API key", "API key"),
    "pool": ("The whole account", ""),
}
_SPANS = {"hour": "an hour", "day": "a day", "period": "a billing period", "lifetime": "in all"}


@dataclass(frozen=True, slots=True)
class Held:
    """A step in force. ``ends_at`` None: when spending is low again."""

    state: GuardState
    whose: str
    heading: str
    effect: str
    why: str
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class Cap:
    """What one kind of spender may spend, and those who have spent most of it in the window that ends at ``ends_at`` (None: never)."""

    whose: str
    column: str
    span: str
    most_nanos: int
    ends_at: datetime | None
    spenders: Sequence[tuple[str, int]]


@require_safe
@never_cache
@login_required
def spending(request: HttpRequest, public_id: str) -> HttpResponse:
    """Where the account, its sessions and its keys stand, and how much of each cap is spent."""
    now = timezone.now()
    with pages.tenant(request, public_id) as account:
        states = [
            state for state in GuardState.objects.filter(account=account).order_by("-step", "kind", "ref") if guard.holds(state, now=now)
        ]
        steps = list(GuardStep.objects.filter(account=account).exclude(mode=Guard.Mode.SHADOW).defer("actor")[:SHOWN])
        since = now - timedelta(days=400)
        spends = list(
            Spend.objects.filter(account=account, window_start__gte=since, window_start__lte=now).order_by("-window_start", "-spent")
        )
    account.product = catalog.product_by_id(product_id=account.product_id)
    keys = dict(ApiKey.objects.filter(account=account).values_list("pk", "name"))
    allowed = subscriptions.allowed(account=account)
    terms = guard.terms(account=account, allowed=allowed)
    shown = terms is not None and terms.guard.mode != Guard.Mode.SHADOW  # a trial of the operator's own
    context = {
        "guarded": shown,
        "held": [_held(state, account, keys) for state in states] if shown else [],
        "steps": [(step, _whose(step.kind, step.ref, keys)) for step in steps],
        "caps": _caps(account, allowed, terms, spends, keys, now) if shown and terms and allowed else [],
        "unit": account.product.unit,
    }
    return pages.render(request, "billing/spending.html", account=account, now=now, context=context)


def _held(state: GuardState, account: Account, keys: dict[int, str]) -> Held:
    heading, effect = _DONE[Step(state.step)]
    return Held(state, _whose(state.kind, state.ref, keys), heading, effect, guard.why(state, unit=account.product.unit), state.releases_at)


def _whose(kind: str, ref: str, keys: dict[int, str]) -> str:
    match kind:
        case "session":
            return f"Session {ref}"
        case "key":
            return f"API key {_key(ref, keys)}"
    return "The whole account"


def _key(ref: str, keys: dict[int, str]) -> str:
    return keys.get(int(ref), "of the app") if ref.isdigit() else ref


def _caps(
    account: Account,
    allowed: subscriptions.Allowed,
    terms: catalog.GuardTerms,
    spends: Sequence[Spend],
    keys: dict[int, str],
    now: datetime,
) -> list[Cap]:
    found = []
    for (kind, span), most in terms.caps.items():
        start, end = limits.window_at(account, allowed, span, now)
        lasting = span == GuardCap.Span.LIFETIME
        mine = [spend for spend in spends if (spend.kind, spend.span) == (kind, span) and (lasting or spend.window_start >= start)]
        names = [(_key(spend.subject, keys) if kind == "key" else spend.subject, spend.spent) for spend in mine]
        whose, column = _CAPS[kind]
        top = sorted(names, key=lambda name: -name[1])[:SHOWN]
        found.append(Cap(whose, column, _SPANS[span], most, None if lasting else end, top))
    return found
