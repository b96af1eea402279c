"""Sends webhooks to client apps, as https://www.standardwebhooks.com says.

    address    writes the deliveries of new events
    suppress   ends those to endpoints that were disabled or deleted
    send_next  sends one
    forget     deletes old ones

A worker takes a lease on the delivery, calls outside of any transaction, and marks the row. If it is killed between the two, the event goes
out once more when the lease is over, with the same ``webhook-id``: at least once, in no promised order. What fails is tried again later
and later for about three days, and is dead then. An endpoint that failed is left alone for a moment that grows with its failures in a
row, so that no other waits for it; one that answers 410, or did nothing but fail for five days, is disabled.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from prometheus_client import Counter
from standardwebhooks import Webhook

from accounts import outbound, sealing, webhook_endpoints
from accounts.models import WebhookDelivery, WebhookEndpoint, WebhookEvent

MAX_ATTEMPTS = 18
FIRST_DELAY = timedelta(seconds=15)
LONGEST_DELAY = timedelta(hours=12)
#: Each delay is so much longer at most, so that what failed together does not come back together.
JITTER = 0.2
#: For so long nobody else sends what is being sent: longer than a call and the look-up of its name may take.
LEASE = timedelta(minutes=2)
#: So long an endpoint is left alone after its first failure, then twice as long with each in a row.
FIRST_QUIET = timedelta(seconds=15)
LONGEST_QUIET = timedelta(minutes=10)
DISABLED_AFTER = timedelta(days=5)
ADDRESSED_AT_ONCE = 100
ENDED_AT_ONCE = 1_000
#: What became of an event can be seen, and sent again, for so long after it was done.
KEEP_DELIVERIES = timedelta(days=90)
#: An event's row also says that it was told: what is still so after all that time is told once more.
KEEP_EVENTS = timedelta(days=400)
GONE = 410

State = WebhookDelivery.State

log = structlog.get_logger(__name__)
WEBHOOKS = Counter("webhooks", "Attempts to deliver a webhook, by what became of it.", ["outcome"])


class NotTaken(Exception):
    """The endpoint did not take the event. ``status``: what it answered, None = nothing; ``retry_after``: as it asked for."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: str = "") -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


def address(*, now: datetime) -> int:
    """Writes the deliveries of events that have none yet, one for each endpoint that stood when they happened; returns how many events.

    Opens its own transaction. Two at once take different events.
    """
    with transaction.atomic():
        waiting = WebhookEvent.objects.select_for_update(skip_locked=True).filter(addressed_at=None).order_by("pk")
        events = list(waiting[:ADDRESSED_AT_ONCE])
        standing = WebhookEndpoint.objects.filter(product__in={event.product_id for event in events}, disabled_at=None, deleted_at=None)
        endpoints = list(standing)
        WebhookDelivery.objects.bulk_create(
            WebhookDelivery(event=event, endpoint=endpoint, next_attempt_at=event.created_at, queued_at=now)
            for event in events
            for endpoint in endpoints
            if endpoint.product_id == event.product_id and event.kind in endpoint.kinds and endpoint.created_at <= event.created_at
        )
        WebhookEvent.objects.filter(pk__in=[event.pk for event in events]).update(addressed_at=now)
    return len(events)


def suppress(*, now: datetime) -> int:
    """Ends so many at most of the due deliveries to endpoints that are disabled or deleted, in one statement; returns how many.

    A long queue of such an endpoint would else be ended one by one before anybody who waits behind it.
    """
    with transaction.atomic():
        over = Q(endpoint__disabled_at__isnull=False) | Q(endpoint__deleted_at__isnull=False)
        due = WebhookDelivery.objects.filter(over, state=State.PENDING, next_attempt_at__lte=now).order_by("next_attempt_at", "pk")
        chosen = list(due.select_for_update(skip_locked=True, of=("self",)).values_list("pk", flat=True)[:ENDED_AT_ONCE])
        rows = WebhookDelivery.objects.filter(pk__in=chosen)
        return rows.update(state=State.SUPPRESSED, reason="The endpoint is disabled or deleted.", done_at=now)


def forget(*, now: datetime) -> int:
    """Deletes deliveries that were done ``KEEP_DELIVERIES`` ago, and events of ``KEEP_EVENTS`` ago that have none; returns how many rows.

    Opens a transaction for each thousand. Late, twice or at once with another: the same end.
    """
    before = now - KEEP_DELIVERIES
    deliveries = WebhookDelivery.objects.filter(queued_at__lt=before, done_at__lt=before).order_by("queued_at")
    told = ~Exists(WebhookDelivery.objects.filter(event=OuterRef("pk")))
    events = WebhookEvent.objects.filter(told, created_at__lt=now - KEEP_EVENTS, addressed_at__isnull=False).order_by("created_at")
    return _delete(deliveries) + _delete(events)


def _delete(rows: QuerySet[Any]) -> int:
    deleted = 0
    while batch := list(rows.values_list("pk", flat=True)[:ENDED_AT_ONCE]):
        deleted += rows.model.objects.filter(pk__in=batch).delete()[0]
    return deleted


def send_next(*, now: datetime, but: Collection[int] = ()) -> WebhookDelivery | None:
    """Sends the pending delivery that is due first and nobody else is sending, to none of the endpoints ``but``; None where there is none.

    Opens its own transactions; none while it calls.
    """
    delivery = _claim(now, but)
    if delivery is None or delivery.state != State.PENDING:
        return delivery
    try:
        status = _send(delivery, now)
    except NotTaken as error:
        _failed(delivery, error, now)
    except Exception as error:
        log.error("webhook not sent", delivery=delivery.pk, exc_info=error)
        _failed(delivery, NotTaken(f"{type(error).__name__}: {error}"), now)
    else:
        _delivered(delivery, status, now)
    WEBHOOKS.labels(delivery.state).inc()
    return delivery


def body(event: WebhookEvent) -> bytes:
    """What is sent, the same at each attempt."""
    shown = {
        "type": event.kind,
        "timestamp": event.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "sequence": event.pk,
        "product": event.product.slug,
        "account": event.account.public_id if event.account else None,
        "external_id": event.account.external_id if event.account else None,
        "data": event.data,
    }
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()


def headers(*, event: WebhookEvent, body: bytes, secrets: Collection[str], now: datetime) -> dict[str, str]:
    """The id, time and signatures of one attempt; one signature for each of ``secrets``."""
    at = now.astimezone(UTC)
    signatures = [Webhook(secret).sign(event.public_id, at, body.decode()) for secret in secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": "Tollgate-Webhooks/1",
        "webhook-id": event.public_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def delay(*, attempts: int) -> timedelta:
    """How long to wait after so many attempts, with its jitter."""
    return min(LONGEST_DELAY, FIRST_DELAY * (1 << attempts - 1)) * (1 + JITTER * random.random())  # noqa: S311 (no secret hangs on it)


def _send(delivery: WebhookDelivery, now: datetime) -> int:
    """The status that the endpoint took it with. :raises NotTaken: it did not."""
    event, endpoint = delivery.event, delivery.endpoint
    sent = body(event)
    try:
        signed = headers(event=event, body=sent, secrets=webhook_endpoints.signing_secrets(endpoint=endpoint, now=now), now=now)
        answer = outbound.post(url=endpoint.url, body=sent, headers=signed)
    except (outbound.Refused, outbound.Unreachable, sealing.Unreadable) as error:
        raise NotTaken(str(error)) from error
    if not 200 <= answer.status < 300:
        redirected = ": redirects are not followed" if 300 <= answer.status < 400 else ""
        raise NotTaken(f"It answered {answer.status}{redirected}.", status=answer.status, retry_after=answer.retry_after)
    return answer.status


def _claim(now: datetime, but: Collection[int]) -> WebhookDelivery | None:
    """Takes the next due delivery for the length of a lease. What may no longer be sent, or whose workers never came back, is ended."""
    with transaction.atomic():
        due = WebhookDelivery.objects.select_related("event__account", "event__product", "endpoint").filter(
            Q(endpoint__quiet_until=None) | Q(endpoint__quiet_until__lte=now), state=State.PENDING, next_attempt_at__lte=now
        )
        free = due.exclude(endpoint__in=but).select_for_update(skip_locked=True, of=("self",))
        delivery = free.order_by("next_attempt_at", "pk").first()
        if delivery is None:
            return None
        delivery.attempts += 1
        delivery.lease += 1
        delivery.next_attempt_at = now + LEASE
        delivery.save(update_fields=["attempts", "lease", "next_attempt_at"])
        if delivery.endpoint.deleted_at or delivery.endpoint.disabled_at:
            _finish(delivery, State.SUPPRESSED, f"The endpoint is {'deleted' if delivery.endpoint.deleted_at else 'disabled'}.", now)
        elif delivery.attempts > MAX_ATTEMPTS:
            _finish(delivery, State.DEAD, delivery.reason or "Its workers never came back.", now)
    return delivery


def _mine(delivery: WebhookDelivery) -> Q:
    """The row, as long as nobody else took it: the number of the lease fences off a worker whose lease is over."""
    return Q(pk=delivery.pk, state=State.PENDING, lease=delivery.lease)


def _finish(delivery: WebhookDelivery, state: State, reason: str, now: datetime, status: int | None = None) -> None:
    WebhookDelivery.objects.filter(_mine(delivery)).update(state=state, reason=reason[:200], last_status=status, done_at=now)
    delivery.state, delivery.reason, delivery.last_status, delivery.done_at = state, reason, status, now
    if state == State.DEAD:
        log.error("webhook needs staff", delivery=delivery.pk, endpoint=delivery.endpoint.public_id, why=reason)


def _delivered(delivery: WebhookDelivery, status: int, now: datetime) -> None:
    _finish(delivery, State.DELIVERED, "", now, status)
    failing = WebhookEndpoint.objects.filter(pk=delivery.endpoint_id, failures__gte=1)
    failing.update(failures=0, failing_since=None, quiet_until=None)


def _failed(delivery: WebhookDelivery, error: NotTaken, now: datetime) -> None:
    """Tries again later or never, and leaves the endpoint alone for a while or for good."""
    log.warning("webhook failed", delivery=delivery.pk, attempt=delivery.attempts, status=error.status)
    asked = _asked_for(error.retry_after, now)
    if error.status == GONE or delivery.attempts >= MAX_ATTEMPTS:
        _finish(delivery, State.DEAD, str(error), now, error.status)
    else:
        again = now + max(delay(attempts=delivery.attempts), asked)
        changed = {"reason": str(error)[:200], "last_status": error.status, "next_attempt_at": again}
        WebhookDelivery.objects.filter(_mine(delivery)).update(**changed)
        for name, value in changed.items():
            setattr(delivery, name, value)
    _leave_alone(delivery.endpoint, error, asked, now)


def _leave_alone(endpoint: WebhookEndpoint, error: NotTaken, asked: timedelta, now: datetime) -> None:
    with transaction.atomic():
        row = WebhookEndpoint.objects.select_for_update().get(pk=endpoint.pk)
        row.failures += 1
        row.failing_since = row.failing_since or now
        row.quiet_until = now + max(min(LONGEST_QUIET, FIRST_QUIET * 2 ** min(row.failures - 1, 10)), asked)
        row.save(update_fields=["failures", "failing_since", "quiet_until"])
        if row.disabled_at is None and (error.status == GONE or now - row.failing_since >= DISABLED_AFTER):
            since = row.failing_since.astimezone(UTC)
            reason = (
                "It answered 410 (gone)." if error.status == GONE else f"Nothing was delivered since {since:%d %B %Y %H:%M} UTC. {error}"
            )
            webhook_endpoints.disable(endpoint=row, reason=reason, now=now)
            log.error("webhook endpoint disabled", endpoint=row.public_id, why=reason)


def _asked_for(retry_after: str, now: datetime) -> timedelta:
    """How long the endpoint asked us to wait: seconds or a date; nothing where it is neither, and never longer than ``LONGEST_DELAY``."""
    if retry_after.isascii() and retry_after.isdigit():
        return min(LONGEST_DELAY, timedelta(seconds=int(retry_after[:9])))
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return timedelta()
    return min(LONGEST_DELAY, max(timedelta(), at.replace(tzinfo=at.tzinfo or UTC) - now))
