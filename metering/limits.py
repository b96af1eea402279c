"""What an account may do, layer by layer, in the order in which :mod:`metering.usage` asks.

    before    the layers that cached reads decide: kill switch, entitlement, request size
    counted   the limits that the ledger counts under the account's lock: requests, concurrency, quotas, wholesale cost
    caps      what the runaway guard lets a run, a session, a member, a key or the account spend, asked under the same lock
    answered  what the ledger said of them, as layers
    upgrade   the plan that would allow what a layer refused

Windows are half-open. An hour is an hour of UTC, a day one of the account's time zone, a period the subscription's; a "lifetime" has
neither beginning nor end. A limit of None is no limit and is not counted; 0 allows nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from accounts.models import Account
from accounts.templatetags.amounts import plain_amount
from billing import ledger, periods, subscriptions
from metering import cohorts, feature_flags, kill_switches
from metering.kill_switches import Kind, Switches
from metering.models import KillSwitch
from pricing import catalog, rating
from pricing.models import Entitlement, Guard, GuardCap, Unit

#: The names of all layers, in order.
ORDER = (
    "kill_switch", "throttle", "guard", "entitlement", "request_size", "requests", "concurrency", "quota", "cost", "cap", "credits",
)  # fmt: skip
#: A usage that says nothing else counts as one message.
ONE_MESSAGE: Mapping[str, int] = {"messages": 1}
_WINDOWS = (Entitlement.Window.HOUR, Entitlement.Window.DAY, Entitlement.Window.PERIOD, Entitlement.Window.LIFETIME)
_SPANS = {"lifetime": "in all", "period": "in this billing period", "day": "today", "hour": "in this hour"}
_CAPPED = {
    "spend:run": "This run", "spend:session": "This session", "spend:member": "This member", "spend:key": "This API key",
    "spend:pool": "This account",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """What one limit says. ``limit`` None means no limit, 0 nothing allowed.

    Amounts of ``credits`` and ``cap`` are nanos of the wallet's unit, those of ``cost`` nano-USD (wholesale), all others counts.
    ``remaining`` is what is left before the request that is asked about; once it is authorized, what is left after it. Of ``guard``,
    ``step`` is what is done and ``model`` the cheaper one to use instead.
    """

    name: str
    allowed: bool = True
    mode: str = "hard"
    meter: str | None = None
    limit: int | None = None
    used: int | None = None
    remaining: int | None = None
    resets_at: datetime | None = None
    reason: str = ""
    #: A kill switch says so, and no plan lifts it; of one provider, its name.
    switched: bool = False
    provider: str = ""
    step: str = ""
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What every layer says, in order. The first hard refusal is the answer."""

    layers: tuple[Layer, ...]

    @property
    def refusal(self) -> Layer | None:
        return next((layer for layer in self.layers if not layer.allowed and layer.mode == Entitlement.Mode.HARD), None)

    @property
    def passed(self) -> list[Layer]:
        """Limits in soft or shadow mode that are reached: they refuse nothing."""
        return [layer for layer in self.layers if not layer.allowed and layer.mode != Entitlement.Mode.HARD]


@dataclass(frozen=True, slots=True)
class Counted:
    """A limit that the ledger counts, and its mode. ``cap``: the kill switch that made it lower than the plan does. ``unit``: of a cap of
    the runaway guard."""

    limit: ledger.Limit
    mode: str
    cap: KillSwitch | None = None
    unit: Unit | None = None


# From cached reads ------------------------------------------------------------------------------------------------------------


def before(
    *,
    account: Account,
    allowed: subscriptions.Allowed | None,
    feature: str | None,
    quantities: Mapping[str, int] | None,
    now: datetime,
    model: str | None = None,
    switches: Switches | None = None,
) -> tuple[Layer, Layer, Layer]:
    """Kill switch, entitlement and request size. ``switches``: what was read already of those that cover the account."""
    if switches is None:
        switches = kill_switches.covering(product_id=account.product_id, account_id=account.pk, now=now)
    return _kill_switch(switches, feature, model), _entitlement(account, allowed, feature), _request_size(account, allowed, quantities)


def _kill_switch(switches: Switches, feature: str | None, model: str | None) -> Layer:
    if not switches.found:
        return Layer("kill_switch")
    switch = switches.first(Kind.WORK, feature=feature)
    if switch is None and model is not None:
        switch = switches.first(Kind.PROVIDER, provider=model.partition(":")[0])
    if switch is None:
        return Layer("kill_switch")
    reason = f"Switched off: {switch.reason}"
    return Layer("kill_switch", allowed=False, resets_at=switch.ends_at, reason=reason, switched=True, provider=switch.provider)


def _entitlement(account: Account, allowed: subscriptions.Allowed | None, feature: str | None) -> Layer:
    """A live plan, and a plan that has the feature. A feature that no plan of the product names is only a label."""
    if allowed is None:
        return Layer("entitlement", allowed=False, reason="The account has no active plan.")
    if feature is not None and (instead := feature_flags.off(product=account.product, feature=feature)) is not None:
        return Layer("entitlement", allowed=False, meter=feature, reason=instead, switched=True)
    if feature is not None and (not_yet := cohorts.closed(account=account, feature=feature)) is not None:
        return Layer("entitlement", allowed=False, meter=feature, reason=not_yet, switched=True)
    if feature is not None and not allowed.plan.flags.get(feature, False) and feature in catalog.flags(product_id=account.product_id):
        return Layer(
            "entitlement", allowed=False, meter=feature, reason=f"The plan {allowed.plan.version.plan.name} does not include {feature}."
        )
    return Layer("entitlement")


def _request_size(account: Account, allowed: subscriptions.Allowed | None, quantities: Mapping[str, int] | None) -> Layer:
    """The most tokens that one request may have: what goes in, and the most that may come out where the request says so.

    What the product sets for all plans comes first where it is less, or refuses what the plan would only warn of.
    """
    limit = allowed.plan.limit("request_tokens", Entitlement.Window.REQUEST) if allowed else None
    at_most, mode = None, str(Entitlement.Mode.OFF)
    if allowed is not None and limit is not None:
        at_most, mode = allowed.limit_of("request_tokens/request", limit.limit), mode_of(account, limit)
    if mode == Entitlement.Mode.OFF:
        at_most = None
    asked = sum(quantity for name, quantity in (quantities or {}).items() if name in rating.TOKEN_COMPONENTS)
    cap, who = account.product.max_request_tokens, "the plan allows"
    if cap is not None and (at_most is None or cap < at_most or asked > cap):
        at_most, mode, who = cap, Entitlement.Mode.HARD, "for now the product allows"
    if at_most is None:
        return Layer("request_size", mode=mode)
    return Layer(
        "request_size",
        allowed=asked <= at_most,
        mode=mode,
        meter="request_tokens/request",
        limit=at_most,
        used=asked,
        remaining=max(at_most - asked, 0),
        reason="" if asked <= at_most else f"The request has {asked} tokens; {who} {at_most}.",
    )


# Counted by the ledger --------------------------------------------------------------------------------------------------------


def counted(
    *,
    account: Account,
    allowed: subscriptions.Allowed | None,
    counts: Mapping[str, int] | None,
    cost_nanos: int,
    now: datetime,
    objects: bool = False,
    lifted: Collection[str] = (),
    switches: Switches = kill_switches.NOTHING,
) -> list[Counted]:
    """The limits of the account's plan and cost tier, or what staff set in their place, in order. ``cost_nanos`` is the wholesale estimate
    of what is asked.

    ``objects``: also those on objects, which no request uses; they are there to be looked at. ``lifted``: meters of cost whose limits do
    not count for this account until their windows end, because staff lifted them. ``switches`` may let limits on cost only watch, and may
    cap the cost of the period, lifted or not.
    """
    if allowed is None:
        return []
    counts = ONE_MESSAGE if counts is None else counts
    found: list[Counted] = []

    def add(layer: str, key: str, window: str, limit: int | None, amount: int, mode: str, by: KillSwitch | None = None) -> None:
        if limit is None or mode == Entitlement.Mode.OFF:
            return
        start, end = window_at(account, allowed, window, now) if window in _WINDOWS else (None, None)
        enforced = mode == Entitlement.Mode.HARD and amount > 0
        found.append(Counted(ledger.Limit(layer, f"{key}/{window}", start, end, limit, amount, enforced), mode, by))

    tier = allowed.plan.cost_tier
    if tier is not None:
        hourly = allowed.limit_of("requests/hour", tier.requests_per_hour)
        add("requests", "requests", Entitlement.Window.HOUR, hourly, 1, Entitlement.Mode.HARD)
    for limit in allowed.plan.limits:
        at_most = allowed.limit_of(f"{limit.key}/{limit.window}", limit.limit) if allowed.overrides else limit.limit
        if limit.window == Entitlement.Window.OPEN:
            add("concurrency", limit.key, limit.window, at_most, 1, mode_of(account, limit))
        elif limit.window in _WINDOWS and limit.key == "requests":
            add("requests", limit.key, limit.window, at_most, 1, mode_of(account, limit))
        elif limit.window in _WINDOWS:
            add("quota", limit.key, limit.window, at_most, counts.get(limit.key, 0), mode_of(account, limit))
        elif limit.window == Entitlement.Window.COUNT and objects:
            add("quota", limit.key, limit.window, at_most, 0, mode_of(account, limit))
    cap = switches.cap() if switches.found else None
    if tier is not None or cap is not None:
        enforced = tier is not None and tier.throttle_on_exceed and not switches.first(Kind.THROTTLING)
        mode = Entitlement.Mode.HARD if enforced else Entitlement.Mode.SHADOW
        daily = allowed.limit_of("cost/day", tier.daily_cost_nanos) if tier is not None and "cost/day" not in lifted else None
        monthly = allowed.limit_of("cost/period", tier.monthly_cost_nanos) if tier is not None and "cost/period" not in lifted else None
        by, monthly_mode = None, mode
        if cap is not None and cap.cap_nanos is not None:
            capped = kill_switches.effective_cap_nanos(limit=monthly, mode=mode, cap=cap.cap_nanos)
            by = cap if capped != monthly else None
            monthly, monthly_mode = capped, Entitlement.Mode.HARD
        # A cost of nothing is refused too once the limit is reached: what it really costs is known only afterwards.
        add("cost", "cost", Entitlement.Window.DAY, daily, max(cost_nanos, 1), mode)
        add("cost", "cost", Entitlement.Window.PERIOD, monthly, max(cost_nanos, 1), monthly_mode, by)
    return sorted(found, key=lambda item: ORDER.index(item.limit.layer))


@dataclass(frozen=True, slots=True)
class Spender:
    """Who would spend, as the client app names them; None: it does not say, and no cap of that kind is asked."""

    run: str | None = None
    session: str | None = None
    member: str | None = None
    key: str | None = None
    pool: str = ""


def caps(
    *, account: Account, allowed: subscriptions.Allowed, terms: catalog.GuardTerms, spender: Spender, price_nanos: int, now: datetime
) -> list[Counted]:
    """The caps of the account's guard on this spender, of which ``price_nanos`` would be spent. What costs nothing passes a full cap."""
    found = []
    for (kind, span), most in terms.caps.items():
        subject: str | None = getattr(spender, kind)
        if subject is None:
            continue
        start, end = window_at(account, allowed, span, now)
        if span == GuardCap.Span.LIFETIME:  # counted from the day on which it is first asked about
            start = periods.day_at(now, ZoneInfo("UTC"))[0]
        enforced = terms.guard.mode == Guard.Mode.HARD and price_nanos > 0
        limit = ledger.Limit("cap", f"spend:{kind}/{span}", start, end, most, price_nanos, enforced, subject)
        found.append(Counted(limit, terms.guard.mode, unit=account.product.unit))
    return found


def mode_of(account: Account, limit: catalog.Limit) -> str:
    """The mode of a plan's limit; one in shadow mode refuses where the product says so for all its plans."""
    if limit.mode == Entitlement.Mode.SHADOW and f"{limit.key}/{limit.window}" in account.product.enforced_meters:
        return Entitlement.Mode.HARD
    return limit.mode


def window_at(account: Account, allowed: subscriptions.Allowed, window: str, now: datetime) -> tuple[datetime, datetime]:
    """The window that contains ``now``, in UTC."""
    match window:
        case Entitlement.Window.HOUR:
            return periods.hour_at(now)
        case Entitlement.Window.DAY:
            return periods.day_at(now, ZoneInfo(account.time_zone))
        case Entitlement.Window.PERIOD:
            return allowed.period_at(now)
    return periods.LIFETIME


def answered(*, counted: Sequence[Counted], look: ledger.Look, throttling: bool = True) -> list[Layer]:
    """What the ledger said of ``counted``, and of a throttle, which refuses nothing where ``throttling`` is off."""
    layers = [
        Layer(
            item.limit.layer,
            allowed=used + item.limit.amount <= item.limit.allowed or item.limit.amount == 0,
            mode=item.mode,
            meter=item.limit.meter,
            limit=item.limit.allowed,
            used=used,
            remaining=max(item.limit.allowed - used, 0),
            resets_at=_resets_at(item, resets_at),
            reason="" if used + item.limit.amount <= item.limit.allowed else _reason(item, used),
            switched=item.cap is not None,
        )
        for item, used, resets_at in zip(counted, look.used, look.resets_at, strict=False)
    ]
    if look.throttle_reason is None:
        return [Layer("throttle"), *layers]
    reason = f"The account is stopped: {look.throttle_reason}"
    mode = Entitlement.Mode.HARD if throttling else Entitlement.Mode.SHADOW
    return [Layer("throttle", allowed=False, mode=mode, resets_at=look.throttled_until, reason=reason), *layers]


def _resets_at(item: Counted, resets_at: datetime | None) -> datetime | None:
    if resets_at == periods.LIFETIME[1]:
        return None
    return min(resets_at, item.cap.over_at) if item.cap and resets_at else resets_at


def _reason(item: Counted, used: int) -> str:
    limit = item.limit
    if item.cap:
        return f"Usage is limited for the moment: {item.cap.reason}"
    key, _, window = limit.meter.partition("/")
    name = key.replace("_", " ")
    match limit.layer:
        case "concurrency":
            return f"{used} of {limit.allowed} {name} are running."
        case "cost":
            return f"The usage limit for this {window} is reached."
        case "cap" if item.unit is not None:
            most, spent, more = (plain_amount(nanos, item.unit) for nanos in (limit.allowed, used, limit.amount))
            return f"{_CAPPED[key]} may spend {most} {_SPANS[window]}: {spent} is spent or held, and this could take {more} more."
    if window == Entitlement.Window.COUNT:
        return f"There are {used} {name}; the plan has room for {limit.allowed}."
    return f"{used} of {limit.allowed} {name} are used {_SPANS[window]}."


def in_order(layers: Sequence[Layer]) -> Decision:
    return Decision(tuple(sorted(layers, key=lambda layer: ORDER.index(layer.name))))


# The way out ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A plan that allows more of what was refused, on the terms of today."""

    terms: catalog.PlanTerms

    @property
    def plan(self) -> str:
        """Its slug."""
        return self.terms.version.plan.slug

    @property
    def name(self) -> str:
        return self.terms.version.plan.name

    @property
    def price_cents(self) -> int | None:
        """Per interval; None where it is agreed."""
        return self.terms.version.price_cents

    @property
    def currency(self) -> str:
        return self.terms.version.currency


def upgrade(*, account: Account, allowed: subscriptions.Allowed | None, layer: Layer, now: datetime) -> Upgrade | None:
    """The next plan of the product that lifts ``layer``'s refusal; None where none does, or money would not help."""
    if layer.switched:
        return None
    if layer.name == "request_size" and layer.limit == account.product.max_request_tokens:
        return None  # so it is on every plan
    rank = allowed.plan.version.plan.rank if allowed else -1
    for terms in catalog.plans(product_id=account.product_id, at=now):
        if terms.version.plan.rank > rank and _lifts(terms, layer):
            return Upgrade(terms)
    return None


def _lifts(terms: catalog.PlanTerms, layer: Layer) -> bool:
    key, _, window = (layer.meter or "").partition("/")
    limit, tier = terms.limit(key, window), terms.cost_tier
    enforced = limit.limit if limit and limit.mode == Entitlement.Mode.HARD else None
    match layer.name:
        case "entitlement" | "quota" if window == Entitlement.Window.COUNT:
            return limit is not None and _more(enforced, layer)  # without the limit, a plan has no such objects
        case "entitlement":
            return terms.flags.get(key, False) if key else True
        case "requests":
            return _more(enforced, layer) and _more(tier.requests_per_hour if tier and window == Entitlement.Window.HOUR else None, layer)
        case "cost":
            if tier is None or not tier.throttle_on_exceed:
                return True
            return _more(tier.daily_cost_nanos if window == Entitlement.Window.DAY else tier.monthly_cost_nanos, layer)
        case "request_size" | "concurrency" | "quota":
            return _more(enforced, layer)
    return False


def _more(limit: int | None, layer: Layer) -> bool:
    return limit is None or limit > (layer.limit or 0)
