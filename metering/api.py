"""The endpoints that client apps call around every model call. Plain Django views: a serializer framework costs a third of their time.

POST /api/v1/usage/authorize                     may this account spend this?
POST /api/v1/usage/authorizations/{id}/capture   this is what it used
POST /api/v1/usage/authorizations/{id}/release   nothing was used
POST /api/v1/usage/authorizations/{id}/extend    still at it
POST /api/v1/usage/records                       this was used, without asking: one event or up to 1,000
POST /api/v1/usage/counters/{meter}              reserve or release an object that the plan limits in number
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from accounts import api, api_keys, faults
from accounts.models import Account, Fault
from billing import ledger, subscriptions
from metering import ingest, limits, tracking, usage
from pricing import catalog

log = structlog.get_logger(__name__)
MAX_EVENTS = 1_000
#: How long a client app waits where nobody knows when work ends.
RETRY_SECONDS = 5
REFUSED_AS = {
    "kill_switch": (503, "switched_off"),
    "provider": (503, "provider_switched_off"),
    "throttle": (429, "throttled"),
    "guard": (429, "throttled"),
    "entitlement": (403, "not_entitled"),
    "feature_off": (403, "feature_off"),
    "request_size": (422, "request_too_large"),
    "requests": (429, "rate_limited"),
    "concurrency": (429, "concurrency_limit_reached"),
    "quota": (429, "quota_exceeded"),
    "cost": (429, "cost_limit_reached"),
    "cap": (429, "spend_cap_reached"),
    "credits": (402, "insufficient_credits"),
}
#: What the runaway guard's refusals are called.
STEPS = {"degrade": "model_degraded", "slow": "slowed_down", "block": "throttled"}
OUTCOMES = {"done": "created", "replayed": "duplicate", "key_reused": "conflict"}
#: What a caller did wrong. Any other failure to capture or record leaves work that was done and is not deducted.
CALLERS_OWN = (api.Problem, usage.InvalidUsage, ledger.NotFound, ledger.KeyReused, ledger.AlreadyResolved)


class Estimate(ingest.Quantities):
    """The worst case of a call that is about to happen. Without `max_output_tokens` the answer is assumed to be as long as usual."""

    input_tokens: ingest.Quantity
    max_output_tokens: ingest.Quantity | None = None

    @property
    def open_ended(self) -> bool:
        return not self.output_tokens and self.max_output_tokens is None

    def worst_case(self) -> dict[str, int]:
        """What is known of it: without the output where it is open-ended."""
        quantities = {name: quantity for name, quantity in self if quantity and name != "max_output_tokens"}
        if self.max_output_tokens is not None:
            quantities["output_tokens"] = self.max_output_tokens
        return quantities

    @model_validator(mode="after")
    def _says_output_once(self) -> Estimate:
        if self.output_tokens and self.max_output_tokens is not None:
            raise ValueError("give output_tokens or max_output_tokens, not both")
        return self


class Authorize(api.Command):
    """Asks leave for one model call."""

    account: ingest.Name | None = None
    model: ingest.Model
    feature: ingest.Slug | None = None
    service_level: ingest.ServiceLevel = "standard"
    estimate: Estimate
    user: ingest.Name | None = None
    session: ingest.Name | None = None
    run: ingest.Name | None = None
    counts: ingest.Counts | None = None


class Capture(ingest.Used):
    """Ends an authorization with what was used."""


class Extend(api.Command):
    seconds: Annotated[int, Field(ge=1, le=86_400)]


class Place(api.Command):
    """Reserves a place for an object before it is made, or gives it back. ``object`` is the client app's own id of it."""

    account: ingest.Name | None = None
    action: Literal["reserve", "release"]
    object: Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(ingest.printable)]


class Nothing(api.Command):
    """A body without fields."""


class Batch(api.Command):
    """Up to 1,000 events. Each is judged alone: a bad one does not stop the others."""

    events: Annotated[list[Any], Field(min_length=1, max_length=MAX_EVENTS)]


@api.endpoint(scope="usage:write")
def authorize(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    key = _idempotency_key(request)
    body = api.parse(request, Authorize)
    account = api.account_for(principal, body.account, find=subscriptions.payer)
    ask = usage.Ask(body.model, body.estimate.worst_case(), open_ended=body.estimate.open_ended, **_said(body))
    try:
        done = tracking.authorize(account=account, ask=ask, key=key, now=timezone.now(), api_key_id=principal.key_id)
    except (usage.UsageError, ledger.LedgerError) as error:
        raise problem(error, account) from error
    if isinstance(done, tracking.Spooled):
        return _let_go(account, done)
    return _answer(
        {
            "id": usage.public_id(account, done.usage.id),
            "status": "authorized",
            "account": account.public_id,
            "hold": api.amount(done.usage.hold_nanos),
            "unit": account.product.unit.code,
            "max_output_tokens": done.max_output_tokens,
            "created_at": done.usage.created_at,
            "expires_at": done.usage.expires_at,
            "limits": [
                {"layer": layer.name, "meter": layer.meter, "remaining": _measure(layer, layer.remaining, wholesale=False)}
                for layer in done.decision.layers
            ],
            "warnings": [
                {
                    "layer": layer.name,
                    "meter": layer.meter,
                    "limit": _measure(layer, layer.limit, wholesale=False),
                    "used": _measure(layer, layer.used, wholesale=False),
                    "resets_at": layer.resets_at,
                }
                | _steps(layer)
                for layer in done.warnings
            ],
        },
        replayed=done.usage.replayed,
    )


@api.endpoint(scope="usage:write")
def capture(request: HttpRequest, principal: api_keys.Principal, authorization: str) -> HttpResponse:
    body = api.parse(request, Capture)
    account, id_ = _authorization(principal, authorization)
    try:
        if body.provider_usage is not None:
            model = tracking.promised_model(account=account, authorization_id=id_)
            quantities = ingest.reported(model, body.provider_usage)
        else:
            assert body.quantities is not None
            quantities = body.quantities.used()
        done = tracking.capture(account=account, authorization_id=id_, quantities=quantities, now=timezone.now())
    except Exception as error:
        _not_deducted(error, account.public_id)
        if isinstance(error, usage.UsageError | ledger.LedgerError):
            raise problem(error, account) from error
        raise
    return _answer(_settled(account, done), replayed=done.replayed)


@api.endpoint(scope="usage:write")
def release(request: HttpRequest, principal: api_keys.Principal, authorization: str) -> HttpResponse:
    if request.body:
        api.parse(request, Nothing)
    account, id_ = _authorization(principal, authorization)
    try:
        done = tracking.release(account=account, authorization_id=id_, now=timezone.now())
    except ledger.LedgerError as error:
        raise problem(error, account) from error
    return _answer(_settled(account, done), replayed=done.replayed)


@api.endpoint(scope="usage:write")
def extend(request: HttpRequest, principal: api_keys.Principal, authorization: str) -> HttpResponse:
    body = api.parse(request, Extend)
    account, id_ = _authorization(principal, authorization)
    try:
        lifetime = timedelta(seconds=body.seconds)
        done = tracking.extend(account=account, authorization_id=id_, lifetime=lifetime, now=timezone.now())
    except ledger.LedgerError as error:
        raise problem(error, account) from error
    if isinstance(done, tracking.Spooled):
        id_, expires_at = usage.public_id(account, id_), done.row.expires_at
        return _answer({"id": id_, "status": "authorized", "expires_at": expires_at, "spooled": True})
    return _answer({"id": usage.public_id(account, done.id), "status": "authorized", "expires_at": done.expires_at})


@api.endpoint(scope="usage:write")
def records(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    """One event, or a batch of them; every event has its own result, so the answer to a batch is 200 also where some were refused."""
    value = api.read(request)
    batch = isinstance(value, dict) and "events" in value
    items = api.check(value, Batch).events if batch else [value]
    read = ingest.read(items, product_id=principal.product_id, account_id=principal.account_id)
    events = [event for event in read if isinstance(event, usage.Event)]
    try:
        answers = iter(tracking.record(events=events, now=timezone.now(), api_key_id=principal.key_id))
    except Exception as error:
        for event in events:
            _not_deducted(error, event.account.public_id)
        raise
    unit = catalog.product_by_id(product_id=principal.product_id).unit.code
    results = [_recorded(event, next(answers), unit) if isinstance(event, usage.Event) else _refused(event) for event in read]
    finished = [{"index": index} | result for index, result in enumerate(results)]
    if not batch:
        return _single(finished[0])
    counts = {
        status: sum(result["status"] == status for result in finished)
        for status in ("created", "duplicate", "conflict", "invalid", "unpriced")
    }
    return api.as_json({"results": finished} | counts)


@api.endpoint(scope="usage:write")
def counter(request: HttpRequest, principal: api_keys.Principal, meter: str) -> HttpResponse:
    """Repeating either action changes nothing: an object is there once."""
    body = api.parse(request, Place)
    account = api.account_for(principal, body.account, find=subscriptions.payer)
    try:
        if body.action == "reserve":
            places, limit = usage.reserve(account=account, meter=meter, object_ref=body.object, now=timezone.now())
        else:
            places, limit = usage.unreserve(account=account, meter=meter, object_ref=body.object)
    except ledger.NotFound as error:
        raise api.Problem(404, "not_found", str(error)) from error
    except usage.UsageError as error:
        raise problem(error, account) from error
    remaining = None if limit is None else max(limit - places.used, 0)
    answer = {"meter": meter, "account": account.public_id, "used": places.used, "limit": limit, "remaining": remaining}
    return _answer(answer, replayed=places.replayed)


def problem(error: Exception, account: Account | None) -> api.Problem:
    """What a refusal of metering or the ledger is called over HTTP."""
    match error:
        case usage.Refused():
            return _refusal(error, account)
        case usage.UnknownModel():
            return api.Problem(422, "unknown_model", str(error))
        case usage.InvalidUsage():
            return api.Problem(422, "invalid_request", str(error), errors=[{"field": error.field, "message": str(error)}])
        case ledger.NotFound():
            return api.Problem(404, "not_found", "No such authorization.")
        case ledger.KeyReused():
            return api.Problem(409, "idempotency_key_reused", str(error))
        case ledger.AlreadyResolved():
            code = "hold_expired" if error.state == "timed_out" else "hold_already_resolved"
            return api.Problem(409, code, str(error), state=error.state)
        case ledger.HoldExceeded():
            return api.Problem(422, "capture_exceeds_hold", str(error))
        case ledger.AmountOverflow():
            return api.Problem(422, "amount_too_large", str(error))
    raise error


def _not_deducted(error: Exception, account: str) -> None:
    """Counts work that was done and could not be deducted, unless that is its caller's own doing."""
    if not isinstance(error, CALLERS_OWN):
        log.warning("Failed to deduct balance", account=account, error=type(error).__name__)
        faults.note(kind=Fault.Kind.DEDUCTION, about=f"{account}: {type(error).__name__}", now=timezone.now())


def _refusal(error: usage.Refused, account: Account | None) -> api.Problem:
    """A layer's no: what it is, when to come back, and which plan would say yes."""
    layer, now = error.layer, timezone.now()
    off = layer.name == "entitlement" and layer.switched
    status, code = REFUSED_AS["provider" if layer.provider else "feature_off" if off else layer.name]
    members: dict[str, Any] = {"layer": layer.name, "limits": layers(error.decision)}
    headers = {}
    if layer.provider:
        members["provider"] = layer.provider
    if layer.name == "guard":
        code = STEPS[layer.step]
        members |= {"step": layer.step, "model": layer.model}
    if layer.name == "credits":
        members["balance"] = api.amount(layer.remaining or 0)
    if layer.resets_at is not None:
        members["resets_at"] = layer.resets_at
    if status in (429, 503) and not (layer.name == "cap" and layer.resets_at is None):  # a lifetime's cap never ends
        seconds = RETRY_SECONDS if layer.resets_at is None else max(1, math.ceil((layer.resets_at - now).total_seconds()))
        headers["Retry-After"] = str(seconds)
    capped = any(one.switched and not one.allowed for one in error.decision.layers)  # then no plan would help
    offer = limits.upgrade(account=account, allowed=error.allowed, layer=layer, now=now) if account and not capped else None
    if offer is not None:
        price = None if offer.price_cents is None else f"{offer.price_cents // 100}.{offer.price_cents % 100:02}"
        members["upgrade"] = {"plan": offer.plan, "name": offer.name, "price": price, "currency": offer.currency}
    if account is not None:
        members["page"] = _page(account, layer)
    guest = offer is not None and account is not None and account.kind == Account.Kind.GUEST
    return api.Problem(status, code, layer.reason + (" Sign up to go on." if guest else ""), headers=headers, **members)


def _page(account: Account, layer: limits.Layer) -> str:
    """Where the client app may send its customer to: what the limit is and the way on; a guest, to sign up."""
    if account.kind == Account.Kind.GUEST:
        return f"{settings.PUBLIC_URL}{reverse('account_signup')}?{urlencode({'product': account.product.slug})}"
    meter = layer.meter or ("credits" if layer.name == "credits" else "")
    named = f"?{urlencode({'meter': meter})}" if meter else ""
    return f"{settings.PUBLIC_URL}{reverse('limit', args=[account.public_id])}{named}"


def layers(decision: limits.Decision, *, wholesale: bool = False) -> list[dict[str, Any]]:
    """A decision as JSON. Amounts of credits and of cost (in dollars, wholesale) are decimal strings, everything else is a count."""
    return [
        {
            "layer": layer.name,
            "meter": layer.meter,
            "allowed": layer.allowed,
            "mode": layer.mode,
            "limit": _measure(layer, layer.limit, wholesale),
            "used": _measure(layer, layer.used, wholesale),
            "remaining": _measure(layer, layer.remaining, wholesale),
            "resets_at": layer.resets_at,
        }
        for layer in decision.layers
    ]


def _measure(layer: limits.Layer, value: int | None, wholesale: bool) -> int | str | None:
    match layer.name:
        case "cost":
            return api.amount(value) if value is not None and wholesale else None
        case "credits" | "cap":
            return None if value is None else api.amount(value)
    return value


def _steps(layer: limits.Layer) -> dict[str, Any]:
    """What the runaway guard says beside what every limit does."""
    return {"step": layer.step, "model": layer.model, "detail": layer.reason} if layer.name == "guard" else {}


def _idempotency_key(request: HttpRequest) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if not 1 <= len(key) <= ingest.MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        most = ingest.MAX_KEY_LENGTH
        message = f"Send the header Idempotency-Key: 1 to {most} printable ASCII characters, the same for every retry of one call."
        raise api.Problem(422, "invalid_request", message, errors=[{"field": "Idempotency-Key", "message": message}])
    return key


def _authorization(principal: api_keys.Principal, value: str) -> tuple[Account, Any]:
    try:
        account_id, id_ = usage.split_id(value)
        return api.account_for(principal, account_id, find=subscriptions.payer_of), id_
    except (ledger.NotFound, api.Problem):
        raise api.Problem(404, "not_found", "No such authorization.") from None


def _said(body: Authorize) -> dict[str, Any]:
    """What an authorization says about the work, beside its size."""
    return {name: getattr(body, name) for name in ("feature", "service_level", "user", "session", "run", "counts")}


def _let_go(account: Account, done: tracking.Spooled) -> HttpResponse:
    """Leave without a hold, while usage tracking is off."""
    answer = {
        "id": usage.public_id(account, done.row.ref),
        "status": "authorized",
        "account": account.public_id,
        "hold": api.amount(0),
        "unit": account.product.unit.code,
        "max_output_tokens": done.max_output_tokens,
        "created_at": done.row.at,
        "expires_at": done.row.expires_at,
        "limits": [],
        "warnings": [],
        "spooled": True,
    }
    return _answer(answer, replayed=done.replayed)


def _recorded(event: usage.Event, answer: tracking.Recorded, unit: str) -> dict[str, Any]:
    if isinstance(answer, Exception):
        _not_deducted(answer, event.account.public_id)
        return _refused(answer)
    if answer.outcome == "key_reused":
        return _refused(api.Problem(409, "event_id_reused", "The id was used before, for another event."), status="conflict")
    if isinstance(answer, tracking.Spooled):
        account = event.account.public_id
        return {"status": OUTCOMES[answer.outcome], "id": None, "account": account, "charged": None, "unit": unit, "spooled": True}
    status = "unpriced" if answer.outcome == "done" and answer.state == "unpriced" else OUTCOMES[answer.outcome]
    charged = None if answer.price_nanos is None else api.amount(answer.price_nanos)
    return {
        "status": status,
        "id": usage.public_id(event.account, answer.id, kind="rec"),
        "account": event.account.public_id,
        "charged": charged,
        "unit": unit,
    }


def _refused(error: Exception, status: str = "invalid") -> dict[str, Any]:
    return {"status": status, "problem": (error if isinstance(error, api.Problem) else problem(error, None)).body()}


def _single(result: dict[str, Any]) -> HttpResponse:
    """The result of one event that came alone: as a status of its own."""
    if "problem" in result:
        body = result["problem"]
        return api.as_json(body, status=body["status"], content_type=api.PROBLEM_JSON)
    return _answer(result, replayed=result["status"] == "duplicate")


def _settled(account: Account, done: ledger.Usage | tracking.Spooled) -> dict[str, Any]:
    """A capture or release as JSON: the same fields for the first answer and for a repeated one, until what was spooled is charged."""
    if isinstance(done, tracking.Spooled):
        return _spooled(account, done)
    body: dict[str, Any] = {
        "id": usage.public_id(account, done.id),
        "status": done.state,
        "account": account.public_id,
        "unit": account.product.unit.code,
        "hold": api.amount(done.hold_nanos),
    }
    if done.price_nanos is None:
        return body
    owed, waived = done.owed_nanos or 0, done.waived_nanos or 0
    return body | {
        "charged": api.amount(done.price_nanos),
        "released": api.amount(max(done.hold_nanos - done.price_nanos, 0)),
        "owed": api.amount(owed),
        "waived": api.amount(waived),
        "balance": None if done.balance_nanos is None else api.amount(done.balance_nanos),
    }


def _spooled(account: Account, done: tracking.Spooled) -> dict[str, Any]:
    row, record = done.row, done.record
    body: dict[str, Any] = {
        "id": usage.public_id(account, row.authorization_id or row.ref),
        "status": "released" if row.state == tracking.State.RELEASED or row.what == tracking.What.RELEASE else "captured",
        "account": account.public_id,
        "unit": account.product.unit.code,
        "hold": api.amount(record.hold if record else 0),
        "spooled": True,
    }
    if record is None or record.price_nanos is None:
        return body
    charged = {"charged": api.amount(record.price_nanos), "waived": api.amount(record.waived_nanos)}
    return body | charged | {"record": usage.public_id(account, record.pk, kind="rec")}


def _answer(body: Mapping[str, datetime | Any], *, replayed: bool = False) -> HttpResponse:
    return api.as_json(body, headers={"Idempotency-Replayed": "true"} if replayed else {})
