"""What client apps are told of by webhooks, as rows. :mod:`accounts.webhook_delivery` sends them.

    queue        writes an event down in the caller's transaction, once for each (account, kind, key)
    queue_test   an event for one endpoint, to try it
    send_again   has staff's choice of deliveries sent anew
    set_aside    takes deliveries out of the queue for good

The row is written with what it tells of, so there is neither an event of what never happened nor silence about what did. It costs its
caller one statement; whom it goes to is settled by the worker. Events may come twice, and in any order: a receiver goes by their id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from hashlib import sha256
from uuid import uuid4

from django.db import transaction

from accounts import doorbell, tasks
from accounts.models import Account, WebhookDelivery, WebhookEndpoint, WebhookEvent
from pricing.models import Product

Kind = WebhookEvent.Kind
State = WebhookDelivery.State
KEY_LENGTH = 200


def queue(
    *,
    account: Account | None,
    kind: str,
    key: str,
    data: Mapping[str, str | int | None],
    now: datetime,
    product: Product | None = None,
) -> None:
    """Writes an event down, in the caller's transaction. A known (account, kind, key) changes nothing.

    :param account: whom it is about; None: the whole of ``product``, which then has to be given.
    :param kind: one of :class:`WebhookEvent.Kind`.
    :param key: what it is about: a period and threshold, a change.
    :param data: its facts, as docs/webhooks.md shows them: amounts as decimal strings, instants as ISO 8601, nobody's name or address.
    :raises ValueError: an unknown kind, or neither account nor product: a mistake of the caller's code.
    """
    product_id = account.product_id if account else product.pk if product else None
    if product_id is None:
        raise ValueError("An event is of an account or of a product.")
    event = WebhookEvent(
        kind=Kind(kind),
        product_id=product_id,
        account=account,
        key=key if len(key) <= KEY_LENGTH and key.isprintable() else sha256(key.encode(errors="replace")).hexdigest(),
        data={name: _stored(value) for name, value in data.items()},
        created_at=now,
    )
    WebhookEvent.objects.bulk_create([event], ignore_conflicts=True)
    transaction.on_commit(ring, robust=True)


def queue_test(*, endpoint: WebhookEndpoint, now: datetime) -> WebhookEvent:
    """Queues an event of kind ``webhook.test`` for this endpoint alone, whatever it subscribes to."""
    with transaction.atomic():
        event = WebhookEvent.objects.create(
            kind=Kind.TEST,
            product_id=endpoint.product_id,
            key=uuid4().hex,
            data={"endpoint": endpoint.public_id},
            created_at=now,
            addressed_at=now,
        )
        WebhookDelivery.objects.create(event=event, endpoint=endpoint, next_attempt_at=now, queued_at=now)
        transaction.on_commit(ring, robust=True)
    return event


def ring() -> None:
    """Asks a worker to send what is due."""
    doorbell.ring(tasks.send_webhooks)


def send_again(*, delivery_ids: Collection[int], now: datetime) -> list[WebhookDelivery]:
    """Makes these deliveries pending again, whatever became of them before; returns them."""
    with transaction.atomic():
        chosen = list(WebhookDelivery.objects.select_for_update().filter(pk__in=delivery_ids).order_by("pk"))
        for delivery in chosen:
            delivery.state, delivery.attempts, delivery.next_attempt_at, delivery.done_at = State.PENDING, 0, now, None
            delivery.save(update_fields=["state", "attempts", "next_attempt_at", "done_at"])
        transaction.on_commit(ring, robust=True)
    return chosen


def set_aside(*, delivery_ids: Collection[int], reason: str, now: datetime) -> list[WebhookDelivery]:
    """Has these deliveries never sent, unless they were already; returns those that were not."""
    with transaction.atomic():
        waiting = WebhookDelivery.objects.select_for_update().filter(pk__in=delivery_ids, state__in=[State.PENDING, State.DEAD])
        chosen = list(waiting.order_by("pk"))
        for delivery in chosen:
            delivery.state, delivery.reason, delivery.done_at = State.SUPPRESSED, f"Set aside: {reason}"[:200], now
            delivery.save(update_fields=["state", "reason", "done_at"])
    return chosen


def _stored(value: str | int | None) -> str | int | None:
    """What the database and every parser of JSON takes: no NUL, no half of a surrogate pair."""
    return value.replace("\0", "").encode(errors="replace").decode() if isinstance(value, str) else value
