"""The way on for an account that a limit stops: which one it is, how much of it is used, when that ends and what would lift it.

    reached  what stops the account now, whatever it asks for: what its overview warns of
    of       one limit, by its meter or feature, reached or not: what a refusal links to

Both decide with the hot path's own layers and hold nothing. They read the plan's terms, which no tenant's role may: call them after the
first wall, with an account from behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from accounts.models import Account
from billing import subscriptions
from metering import limits, usage
from metering.limits import Layer
from pricing import catalog, words
from pricing.models import Entitlement

_SPANS = {"hour": "this hour", "day": "today", "period": "this billing period", "lifetime": "your plan"}
_NO_MORE_OF = {"hour": "of this hour ", "day": "of today ", "period": "of this billing period "}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One limit in a customer's words. ``used`` and ``limit`` are counts, None where they are not told. ``ends`` says in words when it
    ends where no instant does. ``allows`` is what ``upgrade`` gives in its place.
    """

    layer: Layer
    heading: str
    ends: str
    upgrade: limits.Upgrade | None = None
    allows: str = ""

    @property
    def stops(self) -> bool:
        return not self.layer.allowed

    @property
    def used(self) -> int | None:
        return None if self.layer.name in ("cost", "cap", "credits", "request_size") else self.layer.used

    @property
    def limit(self) -> int | None:
        return None if self.layer.name in ("cost", "cap", "credits") else self.layer.limit

    @property
    def why(self) -> str:
        """The guard's figures, or what staff wrote who stopped the account, or all work."""
        return self.layer.reason.removeprefix("The account is stopped: ").removeprefix("Switched off: ").rstrip(".")

    @property
    def counted(self) -> str:
        """What is counted: ``messages``."""
        return words.meter(*_meter(self.layer)) if self.layer.meter and self.layer.name != "cap" else ""


def reached(*, account: Account, now: datetime) -> list[Prompt]:
    """What refuses all work now, in the order in which it is asked. What is only busy (work under way at the same time) is no stop."""
    allowed = subscriptions.allowed(account=account)
    return [_prompt(account, allowed, layer, now) for layer in _stopping(account, allowed, now)]


def _stopping(account: Account, allowed: subscriptions.Allowed | None, now: datetime) -> Iterator[Layer]:
    for layer in usage.decide(account=account, ask=None, now=now).layers:
        if layer.name == "credits" and allowed is not None:
            layer = _credits(account, allowed, layer, now)
        if not layer.allowed and layer.mode == Entitlement.Mode.HARD and layer.name != "concurrency":
            yield layer


def _credits(account: Account, allowed: subscriptions.Allowed, layer: Layer, now: datetime) -> Layer:
    """Refused where what is left would not pay for anything, if the plan charges at all."""
    card = catalog.rate_card(product_id=account.product_id, slug=allowed.rate_card, at=now)
    if not usage.charges(card):
        return Layer("credits", remaining=layer.remaining)
    enough = (layer.remaining or 0) >= max(account.product.minimum_balance_nanos, 1)
    return layer if not layer.allowed or enough else Layer("credits", allowed=False, remaining=layer.remaining)


def of(*, account: Account, meter: str, now: datetime) -> Prompt | None:
    """The limit on ``meter`` (``messages/day``, ``credits``, or a feature of the product), reached or not; None where the plan has none."""
    allowed = subscriptions.allowed(account=account)
    if meter in catalog.flags(product_id=account.product_id):
        layers = limits.before(account=account, allowed=allowed, feature=meter, quantities=None, now=now)
        layer: Layer | None = layers[1]
    else:
        decision = usage.decide(account=account, ask=None, now=now)
        layer = next((layer for layer in decision.layers if meter in (layer.meter, layer.name if layer.name == "credits" else None)), None)
        if layer is not None and layer.name == "credits" and allowed is not None:
            layer = _credits(account, allowed, layer, now)
        key, _, window = meter.partition("/")
        here, anywhere = (allowed.plan.limit(key, window) if allowed else None), catalog.plans(product_id=account.product_id, at=now)
        if window == Entitlement.Window.COUNT and here is None and any(terms.limit(key, window) for terms in anywhere):
            layer = Layer("entitlement", allowed=False, meter=meter)  # objects that this plan has none of
    return None if layer is None else _prompt(account, allowed, layer, now)


def _prompt(account: Account, allowed: subscriptions.Allowed | None, layer: Layer, now: datetime) -> Prompt:
    offer = limits.upgrade(account=account, allowed=allowed, layer=layer, now=now)
    heading, ends = _told(account, layer)
    return Prompt(layer, heading, ends, offer, _allows(offer.terms, layer) if offer else "")


def _meter(layer: Layer) -> tuple[str, str]:
    key, _, window = (layer.meter or "").partition("/")
    return key, window


def _told(account: Account, layer: Layer) -> tuple[str, str]:
    """The heading, and when it ends where that is no instant."""
    key, window = _meter(layer)
    counted = words.meter(key, window) if key and layer.name != "cap" else ""
    if layer.limit == 0 and layer.name not in ("cost", "requests", "cap"):
        return f"Your plan does not include {counted}", ""
    match layer.name:
        case "kill_switch":
            return f"{account.product.name} is switched off for the moment", "Nothing is lost; nothing that you can do ends it sooner."
        case "guard":
            return "Spending here is unusually high", "It ends by itself once spending is low again." if layer.resets_at is None else ""
        case "cap":
            return "What may be spent here is spent", "It does not begin anew." if layer.resets_at is None else ""
        case "throttle":
            return "This account is stopped", "It lasts until it is lifted: ask support." if layer.resets_at is None else ""
        case "entitlement" if layer.switched:
            return f"{words.title(key)} is switched off for now", layer.reason
        case "entitlement":
            return f"Your plan does not include {counted}" if counted else "This account has no active plan", ""
        case "request_size":
            return f"A request may have up to {layer.limit:,} {counted} on your plan", "Send less at once."
        case "concurrency":
            return f"Up to {layer.limit:,} {counted} can run at a time on your plan", "There is room as soon as one of them ends."
        case "cost":
            span = "today" if window == Entitlement.Window.DAY else "this billing period"
            return f"The usage limit for {span} is reached" if not layer.allowed else f"There is a usage limit for {span}", ""
        case "credits" if layer.allowed:
            return "There is credit left to spend", ""
        case "credits":
            return "Too little is left to spend" if (layer.remaining or 0) > 0 else "Nothing is left to spend", ""
    if window == Entitlement.Window.COUNT:
        full = (layer.used or 0) >= (layer.limit or 0)
        return f"There is {'no ' if full else ''}room for more {counted}", "There is room again as soon as you delete one."
    if layer.allowed:
        return f"{layer.remaining:,} {counted} are left for {_SPANS[window]}", ""
    return f"All {counted} {_NO_MORE_OF.get(window, '')}are used", "" if layer.resets_at else "They do not come back on this plan."


def _allows(terms: catalog.PlanTerms, layer: Layer) -> str:
    """What the plan gives in place of what ``layer`` refuses."""
    key, window = _meter(layer)
    limit = terms.limit(key, window)
    match layer.name:
        case "entitlement" if not window:
            return words.title(key) if key else "Work as its terms say"
        case "cost":
            return "More usage"
        case "requests":
            hourly = terms.cost_tier.requests_per_hour if terms.cost_tier and window == Entitlement.Window.HOUR else None
            most = min((number for number in (limit.limit if limit else None, hourly) if number is not None), default=None)
            return words.allowance(catalog.Limit(key, window, most, Entitlement.Mode.HARD))
    return words.allowance(limit or catalog.Limit(key, window, None, Entitlement.Mode.HARD))
