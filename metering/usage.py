"""The hot path: may this account spend this, and what did it spend.

    authorize   decides, before the call, and holds the worst case
    capture     charges what was used and gives the rest back
    release     gives a hold back: no work was done
    extend      keeps a hold open longer
    record      charges finished work that had no hold, one event or a thousand; record_late what was written down meanwhile
    decide      what authorize would say, layer by layer, without holding anything

Reads top to bottom. Limits are asked in the order of :data:`metering.limits.ORDER`, the first that refuses names the answer. What can be
decided from cached reads is decided in :mod:`metering.limits` and handed to the ledger as a verdict, because the ledger answers a repeated
key before it decides anything. Counted limits and credits are decided by the ledger, under the account's lock.

After every function here: a repeated key, or a repeated capture or release, has changed nothing and answers as the first one did; usage
that was reported is stored, priced or not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

import structlog
from django.db import connection
from prometheus_client import Counter

from accounts import prepared
from accounts.models import Account
from billing import balances, ledger, subscriptions
from billing.models import Wallet
from metering import estimates, guard, kill_switches, limits, names, refusals, shadow, throttles
from metering.kill_switches import Kind, Switches
from metering.ladder import Step
from metering.limits import Decision, Layer
from metering.models import GuardState, OpenAuthorization, UsageRecord
from pricing import catalog, rating
from pricing.models import Entitlement, Guard

#: What ``remaining`` arrays in the ledger begin with; what counted limits left follows, named by ``meters``. Never changed.
LAYERS = ("request_size", "credits")
#: An event may be this far ahead of our clock, and this old.
MAX_AHEAD = timedelta(minutes=5)
MAX_AGE = timedelta(days=366)
#: How long after its end a billing period still takes late events. Later ones count when they are recorded: a closed statement stays.
GRACE = timedelta(hours=48)
#: What an authorization promised of its price.
_PROMISED = "select model_id, rate_card_id, price_ids from open_authorization where account_id = %s and id = %s"
#: Which of these keys were used before.
_RECORDED = """
    select account_id, key_hash from unnest(%s::bigint[], %s::uuid[]) asked (account_id, key_hash)
    join usage_record using (account_id, key_hash)
"""

log = structlog.get_logger(__name__)
REFUSALS = Counter("usage_refusals", "Refused authorizations, by the layer that refused.", ["layer"])
SHADOWED = Counter("usage_shadow_refusals", "Authorizations that a limit in shadow or soft mode would have refused.", ["layer"])
UNPRICED = Counter("usage_unpriced", "Usage that was reported and has no price yet.")


class UsageError(Exception):
    """The base of what metering refuses."""


class InvalidUsage(UsageError):
    """A quantity, a time or a name that cannot be: see the message. ``field`` says which."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownModel(UsageError):
    """Nobody has priced this model, or not all that was asked for. Nothing is guessed."""


class Refused(UsageError):
    """A layer said no. ``decision`` has them all, ``allowed`` is what the plan allowed then."""

    def __init__(self, layer: Layer, decision: Decision, allowed: subscriptions.Allowed | None) -> None:
        super().__init__(layer.reason)
        self.layer = layer
        self.decision = decision
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client app wants to do: ``quantities`` are the worst case. ``counts`` says what of each meter it is; None is one message.

    ``open_ended``: nobody says how many tokens the answer may have, so ``quantities`` are without it and it is assumed.
    """

    model: str
    quantities: Mapping[str, int]
    feature: str | None = None
    service_level: str = "standard"
    user: str | None = None
    session: str | None = None
    run: str | None = None
    counts: Mapping[str, int] | None = None
    open_ended: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """Finished work that a client app reports: ``key`` makes it count once, for ever."""

    key: str
    account: Account
    at: datetime
    model: str
    quantities: Mapping[str, int]
    feature: str | None = None
    service_level: str = "standard"
    user: str | None = None
    session: str | None = None
    run: str | None = None
    counts: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Authorization:
    """Leave to do work: what is held for it, until when, for how long an answer, and what every layer had left.

    ``warnings`` are the soft limits that it has passed, as they were before it. They are not stored: a repeated key hears none.
    """

    account: Account
    usage: ledger.Usage
    decision: Decision
    max_output_tokens: int
    warnings: tuple[Layer, ...] = ()


# Before the call --------------------------------------------------------------------------------------------------------------


def authorize(
    *, account: Account, ask: Ask, key: str, now: datetime, api_key_id: int | None = None, lifted: Collection[str] = ()
) -> Authorization:
    """Holds the worst case of ``ask``, if every layer allows it. Limits on cost that staff ``lifted`` are found where one refuses.

    :raises Refused: a layer said no; ``credits`` when too little is free.
    :raises UnknownModel: the model, or a component asked for, has no price.
    :raises InvalidUsage: a quantity that cannot be, or a worst case beyond what the ledger can hold.
    :raises ledger.KeyReused: the key was used for another command.
    """
    switches = kill_switches.covering(product_id=account.product_id, account_id=account.pk, now=now)
    allowed = subscriptions.allowed(account=account)
    before: Sequence[Layer] = limits.before(
        account=account, allowed=allowed, feature=ask.feature, quantities=ask.quantities, now=now, model=ask.model, switches=switches
    )
    refusal, unknown = limits.Decision(tuple(before)).refusal, None
    try:
        estimate = _estimate(account, allowed, ask, now)
    except UnknownModel as error:  # a verdict like another: a key that was answered when there was a price is answered again
        estimate, unknown = replace(_NO_ESTIMATE, quantities=ask.quantities), error
    cost_nanos = estimate.rated.cost_nanos
    counted = limits.counted(
        account=account, allowed=allowed, counts=ask.counts, cost_nanos=cost_nanos, now=now, lifted=lifted, switches=switches
    )
    terms = guard.terms(account=account, allowed=allowed)
    if terms is not None:
        watched = _guarded(account, allowed, terms, ask, estimate, api_key_id, now, switches, take=refusal is None)
        before = [before[0], watched, *before[1:]]
        refusal = limits.Decision(tuple(before)).refusal
        counted += _caps(account, allowed, terms, ask, estimate, api_key_id, now)
    try:
        usage = _hold(
            account,
            switches,
            account_id=account.pk,
            key=ledger.key_hash("usage", key),
            fingerprint=fingerprint(ask),
            refusal=refusal.name if refusal else "price" if unknown else None,
            call=_call(account, replace(ask, quantities=estimate.quantities), estimate.card.id, estimate.book.row_ids, api_key_id),
            unit_id=account.product.unit_id if charges(estimate.card) else None,
            amount_nanos=estimate.rated.price_nanos,
            cost_nanos=estimate.rated.cost_nanos,
            minimum_nanos=account.product.minimum_balance_nanos,
            in_debt=account.product.work_in_debt,
            remaining=[layer.remaining for layer in before if layer.name in LAYERS],
            limits=[item.limit for item in counted],
            lifetime=timedelta(seconds=account.product.hold_lifetime_seconds),
            hard_lifetime=timedelta(seconds=account.product.hold_max_seconds),
            closes_at=allowed.period_at(now)[1] + GRACE if allowed else None,
            assumed_output_tokens=estimate.quantities["output_tokens"] if ask.open_ended and not unknown else None,
        )
    except ledger.OtherWindow as error:  # an hour, a day or a period has ended on the way: the ledger's clock decides
        return authorize(account=account, ask=ask, key=key, now=error.now, api_key_id=api_key_id, lifted=lifted)
    except ledger.Refused as error:
        if unknown and error.layer == "price":
            raise unknown from None
        if error.layer == "cost" and not lifted and (free := throttles.lifted(account_id=account.pk, now=now)):
            return authorize(account=account, ask=ask, key=key, now=now, api_key_id=api_key_id, lifted=free)
        answered = limits.answered(counted=counted, look=error.look)
        raise _refused(error.layer, [*before, *answered, _credits(account, now)], allowed, account=account, ask=ask, now=now) from None
    except ledger.InsufficientCredits as error:
        _hear(account, error.available_nanos)
        if ask.open_ended and _estimate(account, allowed, ask, now).quantities != estimate.quantities:
            # The worst case was chosen by what was heard a while ago. By what was heard just now it is the usual, which may fit.
            return authorize(account=account, ask=ask, key=key, now=now, api_key_id=api_key_id, lifted=lifted)
        answered = limits.answered(counted=counted, look=error.look)
        short = Layer("credits", allowed=False, remaining=error.available_nanos, reason=str(error))
        raise _refused("credits", [*before, *answered, short], allowed, account=account, ask=ask, now=now) from error
    passed = [] if usage.replayed else limits.in_order([*before, *limits.answered(counted=counted, look=usage.look)]).passed
    for layer in passed:
        _passed(account, layer)
        _note(account, layer, value_nanos=estimate.rated.list_value_nanos, now=now)
    _hear(account, usage.available_nanos)
    if usage.replayed and ask.open_ended:
        output_tokens = _assumed_at_first(account, usage.id)
    else:
        output_tokens = estimate.quantities.get("output_tokens", 0)
    warnings = tuple(layer for layer in passed if layer.mode == Entitlement.Mode.SOFT)
    return Authorization(account, usage, _left(usage), output_tokens, warnings)


def _hold(account: Account, switches: Switches, **call: Any) -> ledger.Usage:
    """:func:`billing.ledger.hold`, and what kill switches let pass that it refuses: a throttle, and too little credit. Then what is free is
    held, and capturing charges the rest as the product's policy says."""
    try:
        return ledger.hold(**call)
    except ledger.Refused as error:
        if error.layer != "throttle" or not switches.first(Kind.THROTTLING):
            raise
        [throttle, *_] = limits.answered(counted=(), look=error.look, throttling=False)
        with ledger.throttling_off():
            usage = _hold(account, switches, **call)
        _passed(account, throttle)
        return usage
    except ledger.InsufficientCredits as error:
        if not switches.first(Kind.BALANCE_CHECK):
            raise
        _passed(account, Layer("credits", allowed=False, mode=Entitlement.Mode.SHADOW, remaining=error.available_nanos, reason=str(error)))
        lenient = call | {"minimum_nanos": 0, "in_debt": True}
        try:
            return ledger.hold(**lenient | {"amount_nanos": max(0, min(error.available_nanos, call["amount_nanos"]))})
        except ledger.InsufficientCredits:  # somebody was faster
            return ledger.hold(**lenient | {"amount_nanos": 0})


def decide(*, account: Account, ask: Ask | None, now: datetime, lifted: Collection[str] = (), api_key_id: int | None = None) -> Decision:
    """What :func:`authorize` would say now, without holding anything; without an ``ask``, what the layers have left.

    :raises UnknownModel: the model, or a component asked for, has no price.
    """
    allowed = subscriptions.allowed(account=account)
    switches = kill_switches.covering(product_id=account.product_id, account_id=account.pk, now=now)
    feature, quantities, counts, model = (ask.feature, ask.quantities, ask.counts, ask.model) if ask else (None, None, None, None)
    before: list[Layer] = [
        *limits.before(account=account, allowed=allowed, feature=feature, quantities=quantities, now=now, model=model, switches=switches)
    ]
    estimate = _estimate(account, allowed, ask, now) if ask else _NO_ESTIMATE
    rated = estimate.rated
    counted = limits.counted(
        account=account,
        allowed=allowed,
        counts=counts,
        cost_nanos=rated.cost_nanos,
        now=now,
        objects=ask is None,
        lifted=lifted,
        switches=switches,
    )
    terms = guard.terms(account=account, allowed=allowed)
    if terms is not None:
        before.append(_guarded(account, allowed, terms, ask, estimate, api_key_id, now, switches, take=False))
        counted += _caps(account, allowed, terms, ask, estimate, api_key_id, now)
    look = ledger.limits(account_id=account.pk, limits=[item.limit for item in counted])
    needed = max(rated.price_nanos, account.product.minimum_balance_nanos) if charges(estimate.card) else None if ask else 0
    answered = limits.answered(counted=counted, look=look, throttling=not switches.first(Kind.THROTTLING))
    refused = any(layer.name == "cost" and not layer.allowed and layer.mode == Entitlement.Mode.HARD for layer in answered)
    if refused and not lifted and (free := throttles.lifted(account_id=account.pk, now=now)):
        return decide(account=account, ask=ask, now=now, lifted=free, api_key_id=api_key_id)
    credits = _credits(account, now, needed)
    if not credits.allowed and switches.first(Kind.BALANCE_CHECK):
        credits = replace(credits, mode=Entitlement.Mode.SHADOW)
    return limits.in_order([*before, *answered, credits])


def reserve(*, account: Account, meter: str, object_ref: str, now: datetime) -> tuple[ledger.Places, int | None]:
    """Takes a place for an object that the plan limits in number; answers how many there are, and the limit (None = no limit).

    Objects that exist are never refused, also where a plan allows fewer, or none.

    :raises Refused: the object is new, and there are as many as the plan allows, or the plan has none of them, or all work is stopped.
    """
    allowed = subscriptions.allowed(account=account)
    limit = allowed.plan.limit(meter, Entitlement.Window.COUNT) if allowed else None
    switches = kill_switches.covering(product_id=account.product_id, account_id=account.pk, now=now)
    kill_switch, *others = limits.before(account=account, allowed=allowed, feature=None, quantities=None, now=now, switches=switches)
    if limit is None:
        reason = f"The plan does not include {meter.replace('_', ' ')}."
        others = [Layer("entitlement", allowed=False, meter=f"{meter}/count", reason=reason)]
    layers = [kill_switch, *others]
    refusal = Decision(tuple(layers)).refusal
    at_most, mode = None, str(Entitlement.Mode.OFF)
    if allowed is not None and limit is not None:
        at_most, mode = allowed.limit_of(f"{meter}/count", limit.limit), limits.mode_of(account, limit)
    try:
        with ledger.throttling_off() if switches.first(Kind.THROTTLING) else nullcontext():
            places = ledger.reserve(
                account_id=account.pk,
                meter=meter,
                object_ref=object_ref,
                refusal=refusal.name if refusal else None,
                allowed=at_most,
                enforced=mode == Entitlement.Mode.HARD,
            )
    except ledger.Refused as error:
        layers += limits.answered(counted=[], look=error.look)
        if error.layer == "quota":
            [used] = error.look.used
            reason = f"There are {used} {meter.replace('_', ' ')}; the plan allows {at_most}."
            layers.append(Layer("quota", allowed=False, meter=f"{meter}/count", limit=at_most, used=used, remaining=0, reason=reason))
        raise _refused(error.layer, layers, allowed, account=account, ask=Ask(meter, {}), now=now) from None
    watched = mode in (Entitlement.Mode.SHADOW, Entitlement.Mode.SOFT)
    if watched and at_most is not None and places.used > at_most and not places.replayed:
        layer = Layer("quota", allowed=False, mode=mode, meter=f"{meter}/count", limit=at_most, used=places.used)
        _passed(account, layer)
        _note(account, layer, value_nanos=0, now=now)
    return places, at_most


def unreserve(*, account: Account, meter: str, object_ref: str) -> tuple[ledger.Places, int | None]:
    """Gives an object's place back. :raises ledger.NotFound: there never was such an object."""
    allowed = subscriptions.allowed(account=account)
    limit = allowed.plan.limit(meter, Entitlement.Window.COUNT) if allowed else None
    at_most = allowed.limit_of(f"{meter}/count", limit.limit) if allowed and limit else None
    return ledger.unreserve(account_id=account.pk, meter=meter, object_ref=object_ref), at_most


def _passed(account: Account, layer: Layer) -> None:
    SHADOWED.labels(layer.name).inc()
    log.info("Limit passed", account=account.public_id, layer=layer.name, meter=layer.meter, mode=layer.mode, used=layer.used)


def _note(account: Account, layer: Layer, *, value_nanos: int, now: datetime) -> None:
    """Keeps whom a limit in shadow mode would have refused."""
    if layer.mode == Entitlement.Mode.SHADOW and layer.meter is not None:
        shadow.note(
            account=account, layer=layer.name, meter=layer.meter, window_end=layer.resets_at, allowed=layer.limit or 0,
            used=layer.used or 0, value_nanos=value_nanos, now=now,
        )  # fmt: skip


def _refused(
    name: str, layers: Sequence[Layer], allowed: subscriptions.Allowed | None, *, account: Account, ask: Ask, now: datetime
) -> Refused:
    """The refusal by the first layer of this name that refuses, which is kept."""
    REFUSALS.labels(name).inc()
    decision = limits.in_order(layers)
    layer = next(layer for layer in decision.layers if layer.name == name and not layer.allowed and layer.mode == Entitlement.Mode.HARD)
    refusals.note(account=account, layer=layer, decision=decision, model=ask.model, feature=ask.feature or "", user=ask.user or "", now=now)
    return Refused(layer, decision, allowed)


def _credits(account: Account, now: datetime, needed_nanos: int | None = 0) -> Layer:
    """What is free; refused where it is not ``needed_nanos``, None for work that charges no wallet."""
    wallet = next((wallet for wallet in balances.of_account(account, now=now) if wallet.unit_id == account.product.unit_id), None)
    available, debt = (wallet.available, wallet.debt) if wallet else (0, 0)
    if needed_nanos is None or (available >= needed_nanos and (debt == 0 or account.product.work_in_debt)):
        return Layer("credits", remaining=available)
    reason = str(ledger.InsufficientCredits(needed_nanos=needed_nanos, available_nanos=available, debt_nanos=debt))
    return Layer("credits", allowed=False, remaining=available, reason=reason)


def _left(usage: ledger.Usage) -> Decision:
    """What was left of each limit once the work was authorized: told from what the authorization stored, so that a repeated key hears it
    again."""
    remaining = list(usage.remaining or ())
    layers = [Layer(name, remaining=left) for name, left in zip(LAYERS, remaining, strict=False)]
    counted = zip(usage.meters or (), remaining[len(LAYERS) :], strict=True)
    layers += [Layer(_layer_of(meter), meter=meter, remaining=left) for meter, left in counted]
    return limits.in_order(layers)


def _assumed_at_first(account: Account, id_: UUID) -> int:
    """The output tokens that an authorization assumed, open or finished meanwhile."""
    for rows in (OpenAuthorization.objects, UsageRecord.objects):
        for assumed in rows.filter(account_id=account.pk, pk=id_).values_list("assumed_output_tokens", flat=True):
            return int(assumed or 0)
    raise ledger.NotFound("No such authorization.")


def _guarded(
    account: Account,
    allowed: subscriptions.Allowed | None,
    terms: catalog.GuardTerms,
    ask: Ask | None,
    estimate: _Estimate,
    api_key_id: int | None,
    now: datetime,
    switches: Switches,
    *,
    take: bool,
) -> Layer:
    """What the runaway guard says of this call. ``take``: a slowed one begins now, if it may."""
    state = guard.standing(account_id=account.pk, api_key_id=api_key_id, session=ask.session if ask else None, now=now)
    if state is None:
        return Layer("guard")
    policy, step, ends_at = terms.guard, Step(state.step), state.releases_at
    if switches.first(Kind.THROTTLING):  # staff have switched throttling off: what would have been is noted
        return Layer("guard", allowed=False, mode=Guard.Mode.SHADOW, resets_at=ends_at, step=step.name.lower())
    refuses, model = False, None
    if step in (Step.DEGRADE, Step.SLOW) and policy.degrade_at_ppm is not None and ask is not None:
        model = _cheaper(account, allowed, policy, ask, estimate, now)
    if model is not None and (policy.dear_models == Guard.Dear.REFUSE or policy.mode != Guard.Mode.HARD):
        step, refuses = Step.DEGRADE, True
    elif step == Step.SLOW and ask is not None:
        begins_at = guard.pace(state=state, per_minute=policy.slow_per_minute, now=now, take=take and policy.mode == Guard.Mode.HARD)
        refuses, ends_at = begins_at is not None, begins_at or ends_at
    elif step == Step.BLOCK:  # the whole account's is a throttle, which says so itself, and which a person may lift there
        refuses = state.kind != GuardState.Kind.ACCOUNT or policy.mode != Guard.Mode.HARD
        if not refuses:
            return Layer("guard")
    mode = policy.mode if refuses or policy.mode == Guard.Mode.SHADOW else Guard.Mode.SOFT.value
    reason = guard.why(state, unit=account.product.unit)
    if model is not None:
        reason += f" Use {model} instead: it costs less for the same."
    elif refuses and step == Step.SLOW:
        reason += f" It may begin {policy.slow_per_minute} calls a minute."
    return Layer("guard", allowed=False, mode=mode, resets_at=ends_at, reason=reason, step=step.name.lower(), model=model)


def _cheaper(
    account: Account, allowed: subscriptions.Allowed | None, policy: Guard, ask: Ask, estimate: _Estimate, now: datetime
) -> str | None:
    """A model that does the same call for less: the first of the policy's that does, or without a list of its own the cheapest of the rate
    card's. None where the model asked for is as good as it gets."""
    asked = estimate.rated
    if ask.model in policy.cheaper_models or not estimate.quantities:
        return None
    card = estimate.card
    found: list[tuple[int, int, str]] = []
    for model in policy.cheaper_models or sorted({*card.markups, *card.multipliers, *card.retail}):
        try:
            rated = _estimate_of(card, _book(model, now, ask.service_level), replace(ask, model=model), estimate.quantities).rated
        except (rating.UnpricedUsage, InvalidUsage):  # nobody can be sent to what has no price
            continue
        less = (rated.price_nanos, rated.cost_nanos)
        if less != (asked.price_nanos, asked.cost_nanos) and less[0] <= asked.price_nanos and less[1] <= asked.cost_nanos:
            if policy.cheaper_models:
                return model
            found.append((*less, model))
    return min(found)[2] if found else None


def _caps(
    account: Account,
    allowed: subscriptions.Allowed | None,
    terms: catalog.GuardTerms,
    ask: Ask | None,
    estimate: _Estimate,
    api_key_id: int | None,
    now: datetime,
) -> list[limits.Counted]:
    if allowed is None or not terms.caps:
        return []
    key = None if api_key_id is None else str(api_key_id)
    spender = limits.Spender(ask.run, ask.session, ask.user, key) if ask else limits.Spender()
    price_nanos = estimate.rated.price_nanos if charges(estimate.card) else 0
    return limits.caps(account=account, allowed=allowed, terms=terms, spender=spender, price_nanos=price_nanos, now=now)


def _layer_of(meter: str) -> str:
    key, _, window = meter.partition("/")
    if key.startswith("spend:"):
        return "cap"
    return "concurrency" if window == Entitlement.Window.OPEN else key if key in limits.ORDER else "quota"


# After the call ---------------------------------------------------------------------------------------------------------------


def capture(*, account: Account, authorization_id: UUID, quantities: Mapping[str, int], may_refuse: bool = True) -> ledger.Usage:
    """Charges ``quantities``, at the rate card and price rows that were promised at the authorization, and gives the rest of the hold back.
    ``may_refuse`` False: nobody is there any more to hear that the price is above the hold, so that is absorbed.

    What has no price yet keeps its hold and answers ``awaiting_price``.

    :raises ledger.NotFound, ledger.AlreadyResolved, ledger.HoldExceeded, ledger.AmountOverflow: see :func:`billing.ledger.capture`.
    :raises InvalidUsage: a quantity that cannot be.
    """
    promised = prepared.rows(_PROMISED, [account.pk, authorization_id])
    if not promised:  # finished already: the ledger compares and answers
        nothing = ledger.Charge(0, 0, 0, 0)
        quantities = _folded_as_recorded(quantities, account, authorization_id)
        return ledger.capture(
            account_id=account.pk,
            authorization_id=authorization_id,
            quantities=_array(quantities),
            price_ids=[],
            charge=nothing,
            overage="charge",
        )
    [(model_id, rate_card_id, price_ids)] = promised
    model = names.model_name(model_id)
    card = catalog.rate_card_by_id(rate_card_id=rate_card_id)
    book = catalog.book_of_rows(model=model, row_ids=price_ids or ())
    quantities = folded(quantities, book)
    try:
        rated = _rated(card, book, model, quantities, next(iter(book.levels), "standard"))
    except rating.UnpricedUsage as error:
        _report_unpriced(model, account, error)
        return ledger.await_price(account_id=account.pk, authorization_id=authorization_id, quantities=_array(quantities))
    capture = partial(
        ledger.capture,
        account_id=account.pk,
        authorization_id=authorization_id,
        quantities=_array(quantities),
        price_ids=rated.price_row_ids,
        charge=_charge(rated, quantities),
    )
    try:
        usage = capture(overage=account.product.overage)
    except ledger.HoldExceeded:
        if may_refuse and not _was_let_go(account, authorization_id):
            raise
        usage = capture(overage="cap")
    log.info("Usage recorded", account=account.public_id, model=model, cost_nanos=usage.cost_nanos, price_nanos=usage.price_nanos)
    return usage


def _was_let_go(account: Account, authorization_id: UUID) -> bool:
    """Whether the hold is as small as it is because balances were not checked then: a capture is not refused for that."""
    begun = OpenAuthorization.objects.filter(account_id=account.pk, pk=authorization_id).values_list("created_at", flat=True).first()
    return begun is not None and kill_switches.covered(account=account, kind=Kind.BALANCE_CHECK, at=begun)


def promised_model(*, account: Account, authorization_id: UUID) -> str:
    """The model that an authorization is for, open or finished. :raises ledger.NotFound: no such authorization."""
    for rows in (OpenAuthorization.objects, UsageRecord.objects):
        found = rows.select_related("model").filter(account_id=account.pk, pk=authorization_id).first()
        if found is not None:
            return str(found.model)
    raise ledger.NotFound("No such authorization.")


def release(*, account: Account, authorization_id: UUID) -> ledger.Usage:
    """Gives the whole hold back. Raises what :func:`billing.ledger.release` raises."""
    return ledger.release(account_id=account.pk, authorization_id=authorization_id)


def extend(*, account: Account, authorization_id: UUID, lifetime: timedelta) -> ledger.Usage:
    """Keeps the hold open for ``lifetime`` from now. Raises what :func:`billing.ledger.extend` raises."""
    return ledger.extend(account_id=account.pk, authorization_id=authorization_id, lifetime=lifetime)


# Without a hold ---------------------------------------------------------------------------------------------------------------

#: What became of one event.
Recorded: TypeAlias = ledger.Usage | UsageError | ledger.AmountOverflow


def record(*, events: Sequence[Event], now: datetime, api_key_id: int | None = None) -> list[Recorded]:
    """Records and charges finished work, in transactions of at most ``ledger.CHUNK`` events; answers in the order of ``events``.

    An event that cannot be (:class:`InvalidUsage`), or whose charge the account's debt has no room for (:class:`ledger.AmountOverflow`),
    is answered as an error and the rest goes on. One without a price is stored ``unpriced``. One whose key was used for another event is
    answered with the outcome ``key_reused``.
    """
    plans = subscriptions.allowed_many(accounts={event.account.pk: event.account for event in events}.values())
    recorded = _recorded([event for event in events if event.at < now - MAX_AGE])
    rated = [_prepare(event, plans.get(event.account.pk), recorded, now, api_key_id) for event in events]
    answers = iter(ledger.record_many([item for item in rated if isinstance(item, ledger.Event)]))
    return [item if isinstance(item, UsageError) else next(answers) for item in rated]


@dataclass(frozen=True, slots=True)
class Late:
    """An event that was written down when it was reported, to be charged now: under which key, and by the rate card that was promised (its
    slug; None: the plan's)."""

    event: Event
    key: UUID
    fingerprint: UUID
    rate_card: str | None
    api_key_id: int | None


def record_late(*, items: Sequence[Late], now: datetime) -> list[Recorded]:
    """:func:`record` of what was reported in time, however long ago, under keys of its own."""
    plans = subscriptions.allowed_many(accounts={item.event.account.pk: item.event.account for item in items}.values())
    rated: list[ledger.Event | InvalidUsage] = []
    for item in items:
        try:
            event = _rate_event(item.event, item.key, plans.get(item.event.account.pk), now, item.api_key_id, item.rate_card)
            rated.append(replace(event, fingerprint=item.fingerprint))
        except InvalidUsage as error:
            rated.append(error)
    answers = iter(ledger.record_many([item for item in rated if isinstance(item, ledger.Event)]))
    return [item if isinstance(item, UsageError) else next(answers) for item in rated]


def check(*, model: str, quantities: Mapping[str, int], at: datetime | None = None, now: datetime | None = None) -> None:
    """What can be known of usage without rating it. :raises InvalidUsage: no such model, component, quantity or time (of an event)."""
    try:
        catalog.split_model(model)
    except catalog.InvalidModel as error:
        raise InvalidUsage("model", str(error)) from error
    _array(quantities)
    if any(not 0 <= quantity <= rating.MAX_QUANTITY for quantity in quantities.values()):
        raise InvalidUsage("quantities", "A quantity is below 0 or beyond what can be used.")
    if at is not None and now is not None and not now - MAX_AGE <= at <= now + MAX_AHEAD:
        raise InvalidUsage("time", "The event's time is more than five minutes ahead or more than a year ago.")


def _recorded(events: Sequence[Event]) -> set[tuple[int, UUID]]:
    """The accounts and keys of those ``events`` that were recorded before."""
    keys = [(event.account.pk, ledger.key_hash("usage", event.key)) for event in events]
    return set(prepared.rows(_RECORDED, [list(column) for column in zip(*keys, strict=True)])) if keys else set()


def _prepare(
    event: Event, allowed: subscriptions.Allowed | None, recorded: Collection[tuple[int, UUID]], now: datetime, api_key_id: int | None
) -> ledger.Event | InvalidUsage:
    key = ledger.key_hash("usage", event.key)
    try:
        # A key that was used before is answered as it was, however long ago that is.
        if event.at > now + MAX_AHEAD or (event.at < now - MAX_AGE and (event.account.pk, key) not in recorded):
            raise InvalidUsage("time", "The event's time is more than five minutes ahead or more than a year ago.")
        return _rate_event(event, key, allowed, now, api_key_id)
    except InvalidUsage as error:
        return error


def _rate_event(
    event: Event,
    key: UUID,
    allowed: subscriptions.Allowed | None,
    now: datetime,
    api_key_id: int | None,
    rate_card: str | None = None,
) -> ledger.Event:
    account = event.account
    book = _book(event.model, event.at, event.service_level)
    quantities = folded(event.quantities, book)
    card = rated = None
    try:
        card = _card(account, allowed, event.model, event.at, rate_card)
        rated = _rated(card, book, event.model, quantities, event.service_level)
    except rating.UnpricedUsage as error:
        _report_unpriced(event.model, account, error)
    asked = Ask(event.model, event.quantities, event.feature, event.service_level, event.user, event.session, event.run, event.counts)
    done = asked
    if rated and quantities is not event.quantities:  # without a price they stay as reported: one that is to come may count otherwise
        done = replace(asked, quantities=quantities)
    return ledger.Event(
        account_id=account.pk,
        key=key,
        fingerprint=fingerprint_of(event),
        call=_call(account, done, card.id if card else None, rated.price_row_ids if rated else (), api_key_id),
        unit_id=account.product.unit_id if card and charges(card) else None,
        event_at=event.at,
        charge=_charge(rated, quantities),
        service_level=None if event.service_level == "standard" else event.service_level,
        closes_at=None if allowed is None or event.at >= allowed.period_at(now)[0] else allowed.period_at(event.at)[1] + GRACE,
    )


# Later ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rerated:
    """What work that had no price costs, now that it has one."""

    rate_card_id: int
    price_ids: Sequence[int]
    unit_id: int | None
    charge: ledger.Charge


def rate_again(
    *,
    account: Account,
    model: str,
    quantities: Mapping[str, int],
    at: datetime,
    service_level: str,
    rate_card_id: int | None,
    promised: Sequence[int] = (),
) -> Rerated:
    """Rates work of ``at`` by the prices that are now known to have been valid then; ``promised`` price rows go before all others.

    :raises rating.UnpricedUsage: there is still no price for all of it.
    :raises InvalidUsage: the total is beyond what the ledger can hold.
    """
    if rate_card_id is None:
        card = _card(account, subscriptions.allowed(account=account), model, at)
    else:
        card = catalog.rate_card_by_id(rate_card_id=rate_card_id)
    if promised:
        kept = catalog.book_of_rows(model=model, row_ids=promised)
        service_level = next(iter(kept.levels), service_level)
        book = catalog.book_of_rows(model=model, row_ids=sorted({*promised, *_rows_beside(kept, _book(model, at, service_level))}))
    else:
        book = _book(model, at, service_level)
    quantities = folded(quantities, book)
    rated = _rated(card, book, model, quantities, service_level)
    unit_id = account.product.unit_id if charges(card) else None
    return Rerated(card.id, rated.price_row_ids, unit_id, _charge(rated, quantities))


def _rows_beside(kept: rating.Book, book: rating.Book) -> set[int]:
    """The rows of ``book`` for components that ``kept`` has no price for."""
    known = {component for tables in kept.levels.values() for table in tables for component in table.prices}
    prices = [price for tables in book.levels.values() for table in tables for price in table.prices.values()]
    return {price.row_id for price in prices if price.component not in known}


# Parts ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Estimate:
    card: rating.RateCard
    book: rating.Book
    rated: rating.Rated
    quantities: Mapping[str, int]


#: Stands where nothing can be estimated and something else refuses.
_NO_ESTIMATE = _Estimate(rating.RateCard(id=0, mode="included"), rating.Book("", {}), rating.Rated(0, 0, 0, (), ()), {})


def _estimate(account: Account, allowed: subscriptions.Allowed | None, ask: Ask, now: datetime) -> _Estimate:
    book = _book(ask.model, now, ask.service_level)
    try:
        card = _card(account, allowed, ask.model, now) if allowed or account.rate_card else _NO_ESTIMATE.card
        if ask.open_ended:
            return _assume(account, card, book, ask)
        return _estimate_of(card, book, ask, ask.quantities)
    except rating.UnpricedUsage as error:
        raise UnknownModel(str(error)) from error


def _estimate_of(card: rating.RateCard, book: rating.Book, ask: Ask, quantities: Mapping[str, int]) -> _Estimate:
    return _Estimate(card, book, _rated(card, book, ask.model, folded(quantities, book), ask.service_level), quantities)


def _assume(account: Account, card: rating.RateCard, book: rating.Book, ask: Ask) -> _Estimate:
    """The worst case while the wallet has it many times over, or too few such calls are known; else an answer as long as is usual."""
    known = estimates.of(
        product_id=account.product_id,
        model_id=names.model_id(ask.model),
        feature_id=names.feature_id(account.product_id, ask.feature),
    )
    usual = known.usual(estimates.input_tokens(ask.quantities))
    worst_tokens = estimates.worst_case(usual)
    worst = _estimate_of(card, book, ask, {**ask.quantities, "output_tokens": worst_tokens})
    if usual is None:
        return worst
    tokens = estimates.choose(
        usual=usual,
        worst_price_nanos=worst.rated.price_nanos,
        available_nanos=_free_nanos(account) if charges(card) else None,
    )
    return worst if tokens == worst_tokens else _estimate_of(card, book, ask, {**ask.quantities, "output_tokens": tokens})


#: What accounts have free: when that was heard (monotonic seconds), and the nanos.
_heard: dict[int, tuple[float, int]] = {}


def _free_nanos(account: Account) -> int:
    """What the account had free when this process last heard of it, a minute ago at most: enough to choose an estimate by. The ledger
    decides, under its lock."""
    heard = _heard.get(account.pk)
    if heard is not None and not connection.in_atomic_block and time.monotonic() - heard[0] <= estimates.MAX_AGE_SECONDS:
        return heard[1]
    wallet = Wallet.objects.filter(account_id=account.pk, unit_id=account.product.unit_id).values_list("balance", "held")
    return next((balance - held for balance, held in wallet), 0)


def _hear(account: Account, available_nanos: int | None) -> None:
    """Keeps what the ledger just said is free, so that the next call need not ask for it."""
    if available_nanos is not None and not connection.in_atomic_block:  # what a transaction sees may be rolled back
        if len(_heard) >= estimates.MAX_KEPT:
            _heard.clear()
        _heard[account.pk] = (time.monotonic(), available_nanos)


def _card(account: Account, allowed: subscriptions.Allowed | None, model: str, at: datetime, slug: str | None = None) -> rating.RateCard:
    """The rate card of the account's plan as it was at ``at``; with ``slug`` that one.

    :raises rating.UnpricedUsage: the account has none, or it has not begun: what happened before it is priced by nothing else.
    """
    if slug is None:
        slug = allowed.rate_card if allowed else account.rate_card
    try:
        if not slug:
            raise catalog.NotInCatalog
        return catalog.rate_card(product_id=account.product_id, slug=slug, at=at)
    except catalog.NotInCatalog:
        raise rating.UnpricedUsage(model=model, components=(), missing=f"rate card at {at.isoformat()}") from None


def _book(model: str, at: datetime, service_level: str) -> rating.Book:
    """The prices of ``model`` at one service level, so that a stored list of rows says which level it was."""
    try:
        book = catalog.price_book(model=model, at=at)
    except catalog.InvalidModel as error:
        raise InvalidUsage("model", str(error)) from error
    tables = book.levels.get(service_level)
    return rating.Book(model, {service_level: tables} if tables else {})


def _rated(card: rating.RateCard, book: rating.Book, model: str, quantities: Mapping[str, int], service_level: str) -> rating.Rated:
    try:
        return rating.rate(card=card, book=book, model=model, quantities=quantities, service_level=service_level)
    except rating.InvalidQuantity as error:
        raise InvalidUsage("quantities", str(error)) from error


def folded(quantities: Mapping[str, int], book: rating.Book) -> Mapping[str, int]:
    """Reasoning is billed as output wherever the price book has no price of its own for it."""
    if any("reasoning_tokens" in table.rates for tables in book.levels.values() for table in tables):
        return quantities
    return _reasoning_as_output(quantities)


def _folded_as_recorded(quantities: Mapping[str, int], account: Account, id_: UUID) -> Mapping[str, int]:
    """``quantities`` as :func:`capture` would have stored them in this record: its prices are no longer at hand, its quantities are."""
    record = UsageRecord.objects.filter(account_id=account.pk, pk=id_).first()
    stored = dict(zip(rating.COMPONENTS, record.quantities if record else (), strict=False))
    return quantities if stored.get("reasoning_tokens") else _reasoning_as_output(quantities)


def _reasoning_as_output(quantities: Mapping[str, int]) -> Mapping[str, int]:
    reasoning = quantities.get("reasoning_tokens", 0)
    if not reasoning:
        return quantities
    rest = {name: quantity for name, quantity in quantities.items() if name != "reasoning_tokens"}
    return rest | {"output_tokens": rest.get("output_tokens", 0) + reasoning}


def charges(card: rating.RateCard) -> bool:
    """Whether use under this card is taken from the wallet."""
    return card.mode not in ("byo", "included")


def _charge(rated: rating.Rated | None, quantities: Mapping[str, int]) -> ledger.Charge:
    tokens = sum(quantity for name, quantity in quantities.items() if name in rating.TOKEN_COMPONENTS)
    if rated is None:
        return ledger.Charge(None, None, None, tokens)
    return ledger.Charge(rated.cost_nanos, rated.price_nanos, rated.list_value_nanos, tokens)


def _call(account: Account, ask: Ask, rate_card_id: int | None, price_ids: Sequence[int], api_key_id: int | None) -> ledger.Call:
    return ledger.Call(
        model_id=names.model_id(ask.model),
        feature_id=names.feature_id(account.product_id, ask.feature),
        api_key_id=api_key_id,
        rate_card_id=rate_card_id,
        price_ids=price_ids,
        quantities=_array(ask.quantities),
        user_ref=ask.user,
        session_ref=ask.session,
        run_ref=ask.run,
        counts=ask.counts,
    )


def _array(quantities: Mapping[str, int]) -> list[int]:
    """Quantities in the order of ``rating.COMPONENTS``, trailing zeros left out: how they are stored and compared."""
    for name in quantities:
        if name not in rating.COMPONENTS:
            raise InvalidUsage("quantities", f"{name!r} is no component.")
    array = [quantities.get(name, 0) for name in rating.COMPONENTS]
    while array and array[-1] == 0:
        array.pop()
    return array


def fingerprint(ask: Ask, **more: Any) -> UUID:
    """The same for the same command, and for no other."""
    return ledger.fingerprint(
        {
            "model": ask.model,
            "quantities": {name: quantity for name, quantity in ask.quantities.items() if quantity},
            "feature": ask.feature,
            "service_level": ask.service_level,
            "user": ask.user,
            "session": ask.session,
            "run": ask.run,
        }
        | ({} if ask.counts is None else {"counts": ask.counts})
        | ({"open_ended": True} if ask.open_ended else {})
        | more
    )


def fingerprint_of(event: Event) -> UUID:
    """The same for the same event, and for no other."""
    asked = Ask(event.model, event.quantities, event.feature, event.service_level, event.user, event.session, event.run, event.counts)
    return fingerprint(asked, at=event.at.astimezone(UTC).isoformat())


def _report_unpriced(model: str, account: Account, error: rating.UnpricedUsage) -> None:
    UNPRICED.inc()
    log.error("No pricing found for model", model=model, account=account.public_id, missing=str(error))


# Public ids -------------------------------------------------------------------------------------------------------------------

_PUBLIC_ID = re.compile("(?:auth|rec)_([0-9a-f]{20})([0-9a-f]{32})")


def public_id(account: Account, id_: UUID, *, kind: str = "auth") -> str:
    """``auth_…`` or ``rec_…``: names the account too, because that is how the rows are found."""
    return f"{kind}_{account.public_id.removeprefix('acct_')}{id_.hex}"


def split_id(value: str) -> tuple[str, UUID]:
    """The account's public id and the row's id. :raises ledger.NotFound: it is none of ours, to the letter."""
    match = _PUBLIC_ID.fullmatch(value)
    if match is None:
        raise ledger.NotFound("No such usage.")
    return f"acct_{match[1]}", UUID(match[2])
