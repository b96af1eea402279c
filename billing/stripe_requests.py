"""What we ask Stripe to change: every call that changes something there is a row first.

    ask        writes the row, in the caller's transaction
    under_way  whether another change of an object has no answer yet
    send       sends it, outside of any transaction, and keeps the answer
    sweep      sends again what was left without an answer: a crash, a cut line, a Stripe that was away
    retry      staff's "try again" for what was handed to them

The row's key is Stripe's idempotency key, so a request that is sent twice happens once, and both are given the first answer. Stripe keeps
keys for 24 hours, and keeps a failure (500) as well. What is then still unknown is looked up: whatever a request creates carries the key in
its metadata. What cannot be found is handed to staff. A change to one object is sent again under another key instead: it says what the
object is to be, so that twice is as good as once.

What an answer means here is done by the effect of its kind (:func:`answered`), in the transaction that keeps the answer: once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import stripe
import structlog
from django.db import transaction
from django.db.models import F, Q

from accounts.models import Account
from billing import stripe_api
from billing.models import StripeRequest

#: Who asked sends it; nobody else does for so long.
LEASE: Final = timedelta(minutes=1)
#: Stripe forgets a key after 24 hours; an hour is left for what is on its way.
KEY_LASTS: Final = timedelta(hours=23)
FIRST_DELAY: Final = timedelta(seconds=30)
LONGEST_DELAY: Final = timedelta(hours=1)
#: How often a call under the same key that is under way elsewhere is asked for.
PATIENCE: Final = 24
METADATA: Final = "tollgate_request"

State = StripeRequest.State
Effect = Callable[[StripeRequest, stripe_api.Obj], None]
log = structlog.get_logger(__name__)
_effects: dict[str, Effect] = {}


class Refused(Exception):
    """Stripe understood and said no: this request will never happen. ``code`` and ``param`` are Stripe's, or empty."""

    def __init__(self, request: StripeRequest, *, code: str = "", param: str = "") -> None:
        super().__init__(request.last_error)
        self.code = code
        self.param = param


class Declined(Refused):
    """The customer's bank said no. The message is for the customer."""


class Unanswered(Exception):
    """Nobody knows yet whether it happened. It is sent again by itself."""


def answered(kind: str) -> Callable[[Effect], Effect]:
    """Registers what an answer to requests of ``kind`` does here. It runs once, in the transaction that keeps the answer."""

    def register(effect: Effect) -> Effect:
        _effects[kind] = effect
        return effect

    return register


def ask(
    *, key: str, kind: str, path: str, params: Mapping[str, Any], account: Account | None, now: datetime, changes: str = ""
) -> StripeRequest:
    """The row of the request with this key, written if there was none; one that exists is returned as it is, whatever else is passed.

    ``path`` is where it is posted to. ``changes`` is the address of the object that it changes: such a request makes every earlier one that
    has no answer yet and would change the same object obsolete, if it is of its kind or sets one of the same parameters: the last word
    counts. Without it the request creates one, and is given the key as metadata.

    ``key`` is unique in the world, as the public ids of our rows are and their numbers are not: several installations may share an account
    at Stripe.
    """
    if not changes:
        params = {**params, "metadata": {**params.get("metadata", {}), METADATA: key}}
    with transaction.atomic():
        request, new = StripeRequest.objects.get_or_create(
            key=key,
            defaults={
                "kind": kind,
                "account": account,
                "path": path,
                "changes": changes,
                "params": dict(params),
                "created_at": now,
                "next_attempt_at": now + LEASE,
            },
        )
        if new and changes:
            earlier = StripeRequest.objects.filter(changes=changes, state__in=[State.PENDING, State.STUCK], pk__lt=request.pk)
            earlier.filter(Q(kind=kind) | Q(params__has_any_keys=list(params))).update(
                state=State.REFUSED, last_error=f"Made obsolete by {key}.", finished_at=now
            )
    return request


def under_way(*, changes: str, beside: str) -> bool:
    """Whether a change of this object that is not of the kind ``beside`` has no answer yet: what follows by itself waits for it."""
    return StripeRequest.objects.filter(changes=changes, state=State.PENDING).exclude(kind=beside).exists()


def send(request: StripeRequest, *, now: datetime) -> stripe_api.Obj:
    """Sends the request and keeps the answer, which it returns. One that has been answered is sent again for the answer's sake alone, or
    where Stripe has forgotten it by then read anew. Calls the network: not inside a transaction.

    :raises Refused: Stripe said no; :raises Declined: the bank did.
    :raises Unanswered: no answer, or a failure on Stripe's side.
    """
    request.refresh_from_db()
    if request.state == State.DONE:
        return stripe_api.fetch(request.changes or f"{request.path}/{request.answer_id}")
    if request.state != State.PENDING:
        raise Refused(request)
    if request.sent_at is not None and now - request.sent_at > KEY_LASTS:
        return _look_up(request, now)
    StripeRequest.objects.filter(pk=request.pk).update(
        attempts=F("attempts") + 1, next_attempt_at=now + LEASE, sent_at=request.sent_at or now
    )
    try:
        answer = _post(request)
    except (stripe.InvalidRequestError, stripe.CardError) as error:
        _finish(request, State.REFUSED, _why(error), now)
        sort = Declined if isinstance(error, stripe.CardError) else Refused
        raise sort(request, code=error.code or "", param=getattr(error, "param", None) or "") from error
    except stripe.IdempotencyError as error:
        _hand_over(request, f"The key was used for something else: {_why(error)}", now)
        raise Unanswered(str(error)) from error
    except stripe.StripeError as error:
        if (error.headers or {}).get("Idempotent-Replayed") == "true":
            return _look_up(request, now)  # this key is answered with the same failure for ever
        _later(request, _why(error), now)
        raise Unanswered(str(error)) from error
    _done(request, answer, now)
    return answer


def sweep(*, now: datetime, limit: int = 100) -> int:
    """Sends what is due and nobody else is sending; returns how many requests it took."""
    taken = 0
    while taken < limit:
        with transaction.atomic():
            due = StripeRequest.objects.filter(state=State.PENDING, next_attempt_at__lte=now).order_by("next_attempt_at", "pk")
            request = due.select_for_update(skip_locked=True, of=("self",)).first()
            if request is None:
                break
            request.next_attempt_at = now + LEASE
            request.save(update_fields=["next_attempt_at"])
        taken += 1
        try:
            send(request, now=now)
        except (Refused, Unanswered, stripe.StripeError) as error:
            log.warning("request to stripe failed", key=request.key, why=str(error))
    return taken


def retry(*, request_ids: list[int], now: datetime) -> list[StripeRequest]:
    """Makes these requests pending again, those that were handed to staff under a new key; returns them. What is answered stays so."""
    with transaction.atomic():
        open_ones = StripeRequest.objects.select_for_update(of=("self",)).filter(pk__in=request_ids, state__in=[State.PENDING, State.STUCK])
        chosen = list(open_ones.order_by("pk"))
        for request in chosen:
            if request.state == State.STUCK:
                request.state, request.sent_at, request.round, request.finished_at = State.PENDING, None, request.round + 1, None
            request.next_attempt_at = now
            request.save(update_fields=["state", "sent_at", "round", "finished_at", "next_attempt_at"])
    return chosen


def _post(request: StripeRequest) -> stripe_api.Obj:
    """Another call under the same key may be under way: then its answer is waited for."""
    key = request.key if not request.round else f"{request.key}:{request.round}"
    for attempt in range(PATIENCE):
        try:
            return stripe_api.post(request.path, request.params, key=key)
        except stripe.StripeError as error:
            if error.code != "idempotency_key_in_use" or attempt == PATIENCE - 1:
                raise
        time.sleep(0.25)
    raise AssertionError("unreachable")


def _look_up(request: StripeRequest, now: datetime) -> stripe_api.Obj:
    """What became of a request whose key says nothing any more.

    :raises Unanswered: it is not found, and handed to staff, or for one that changes an object, to be sent under a new key.
    """
    if request.changes:
        StripeRequest.objects.filter(pk=request.pk).update(round=F("round") + 1, sent_at=None)
        _later(request, "Nobody knows whether it happened: to be sent again under another key.", now)
        raise Unanswered(request.last_error)
    since = (request.sent_at or request.created_at) - timedelta(minutes=10)
    try:
        answer = stripe_api.created_with(request.path, METADATA, request.key, customer_id=request.params.get("customer"), since=since)
    except stripe.StripeError as error:
        _later(request, _why(error), now)
        raise Unanswered(str(error)) from error
    if answer is None:
        _hand_over(request, f"{request.last_error} Stripe has nothing that was made by it.".strip(), now)
        raise Unanswered(request.last_error)
    _done(request, answer, now)
    return answer


def _done(request: StripeRequest, answer: stripe_api.Obj, now: datetime) -> None:
    with transaction.atomic():
        stored = StripeRequest.objects.select_for_update(of=("self",)).select_related("account").get(pk=request.pk)
        if stored.state == State.DONE:
            return
        stored.state, stored.answer_id, stored.finished_at, stored.last_error = State.DONE, str(answer.get("id", "")), now, ""
        stored.save(update_fields=["state", "answer_id", "finished_at", "last_error"])
        if effect := _effects.get(stored.kind):
            effect(stored, answer)
    request.refresh_from_db()


def _finish(request: StripeRequest, state: State, why: str, now: datetime) -> None:
    """Keeps why, unless it was answered meanwhile."""
    StripeRequest.objects.filter(pk=request.pk).exclude(state=State.DONE).update(state=state, last_error=why, finished_at=now)
    request.refresh_from_db()


def _hand_over(request: StripeRequest, why: str, now: datetime) -> None:
    log.error("request to stripe needs staff", key=request.key, path=request.path, why=why)
    _finish(request, State.STUCK, why, now)


def _later(request: StripeRequest, why: str, now: datetime) -> None:
    request.refresh_from_db(fields=["attempts"])
    delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(request.attempts, 20))
    pending = StripeRequest.objects.filter(pk=request.pk, state=State.PENDING)
    pending.update(last_error=why, next_attempt_at=now + delay)
    request.refresh_from_db()


def _why(error: stripe.StripeError) -> str:
    return f"{type(error).__name__}: {error.user_message or error}"[:2_000].replace("\0", "\\0")
