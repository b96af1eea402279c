"""Where Stripe sends events to. A signed event is stored and answered with 200; everything else is answered with 400 and leaves no row.

The request calls nobody: it stores, and after the commit rings the worker, which :mod:`billing.stripe_inbox` is.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import stripe
import structlog
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import transaction
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from prometheus_client import Counter

from accounts import doorbell
from accounts.api import Problem, as_json, problem_of
from billing import tasks
from billing.models import StripeEvent

MAX_BODY_BYTES = 256 * 1024
TOLERANCE_SECONDS = 300

log = structlog.get_logger(__name__)
RECEIVED = Counter("stripe_events_received", "Webhook deliveries, by what became of them.", ["outcome"])


class Refused(Exception):
    """Not an event that Stripe has just signed for this endpoint. The message says why, to us alone."""


@csrf_exempt
def receive(request: HttpRequest, *, secrets: str) -> HttpResponse:
    """One webhook endpoint. ``secrets`` names the setting that lists its signing secrets, several while one is being changed."""
    try:
        if request.method != "POST":
            raise Problem(405, "method_not_allowed", "Use POST.", headers={"Allow": "POST"})
        now = timezone.now()
        body = read(request)
        verify(body, request.headers.get("Stripe-Signature", ""), secrets=getattr(settings, secrets), now=now)
        outcome = store(parse(body), endpoint=request.path, now=now)
    except Refused as error:
        RECEIVED.labels("refused").inc()
        log.warning("stripe event refused", endpoint=request.path, why=str(error))
        return Problem(400, "invalid_signature", "This is no event that Stripe has just signed for this endpoint.").response()
    except Exception as error:  # noqa: BLE001 (problem_of raises what it does not know again)
        return problem_of(error).response()
    RECEIVED.labels(outcome).inc()
    return as_json({"received": True})


def read(request: HttpRequest) -> str:
    """The raw body. :raises Refused: it is too long, cut short or no UTF-8."""
    length = request.headers.get("Content-Length") or "0"
    if not length.isdecimal() or len(length) > 9 or int(length) > MAX_BODY_BYTES:
        raise Refused(f"a body of {length[:20]} bytes")
    try:
        return request.body.decode()
    except (UnicodeDecodeError, UnreadablePostError, RequestDataTooBig) as error:
        raise Refused("an unreadable body") from error


def verify(body: str, header: str, *, secrets: list[str], now: datetime) -> None:
    """:raises Refused: none of ``secrets`` signed the body, or not within the tolerance of ``now``, before or after it."""
    if not secrets:
        raise Refused("this endpoint has no signing secret")
    for secret in secrets:
        try:
            stripe.WebhookSignature.verify_header(body, header, secret)
        except (stripe.SignatureVerificationError, ValueError, TypeError, UnicodeError):
            continue
        signed_at = next(int(part.partition("=")[2]) for part in header.split(",") if part.startswith("t="))
        if abs(now.timestamp() - signed_at) > TOLERANCE_SECONDS:
            raise Refused(f"signed at {signed_at}")
        return
    raise Refused("no good signature")


def parse(body: str) -> StripeEvent:
    """An event that Stripe signed, as a row to store. What cannot be understood is kept all the same, for staff to look at."""
    event = StripeEvent(payload=body)
    try:
        message: dict[str, Any] = json.loads(body)
        event.event_id = _text(message["id"], 80)
        event.type = _text(message["type"], 80)
        event.object_id = _text(message["data"]["object"].get("id") or "none", 80)
        event.api_version = _text(message["api_version"] or "none", 40)
        event.created_at = datetime.fromtimestamp(message["created"], tz=UTC)
        event.livemode = message["livemode"]
        if not isinstance(event.livemode, bool):
            raise TypeError("livemode")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError, RecursionError) as error:
        digest = sha256(body.encode()).hexdigest()
        reason = f"Signed by Stripe, but not understood: {error!r}"[:500]
        return StripeEvent(
            event_id=f"unreadable_{digest[:60]}", payload=body.replace("\0", "\\0"), state=StripeEvent.State.QUARANTINED, last_error=reason
        )
    return event


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= most:
        raise ValueError(f"expected a text of at most {most} characters")
    return value


def store(event: StripeEvent, *, endpoint: str, now: datetime) -> str:
    """Stores an event once and rings the worker when that is committed. Returns its state, or ``other_mode`` or ``duplicate``."""
    outcome = ""
    event.endpoint = endpoint[:80]
    event.received_at = event.next_attempt_at = now
    if event.state == StripeEvent.State.QUARANTINED:
        log.error("stripe event not understood", event_id=event.event_id, why=event.last_error)
    elif event.livemode != settings.STRIPE_LIVE_MODE:
        event.state, outcome = StripeEvent.State.IGNORED, "other_mode"
        event.last_error = f"Of {'live' if event.livemode else 'test'} mode, which this is not."
        log.error("stripe event of the other mode", event_id=event.event_id, livemode=event.livemode)
    if event.state != StripeEvent.State.PENDING:
        event.done_at = now
    with transaction.atomic():
        # The unique key decides, not a look before: deliveries of one event come at the same time.
        known = StripeEvent.objects.filter(event_id=event.event_id).exists()
        if not known:
            StripeEvent.objects.bulk_create([event], ignore_conflicts=True)
        transaction.on_commit(ring)
    return "duplicate" if known else outcome or str(event.state)


def ring() -> None:
    """Asks a worker to look at the inbox."""
    doorbell.ring(tasks.work_stripe_inbox)
