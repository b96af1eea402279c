"""What client apps are told of by webhooks, as rows. :mod:`accounts.webhook_delivery` sends them.

    queue    writes an event down in the caller's transaction, once for each (account, kind, key)

The row is written with what it tells of, so there is neither an event of what never happened nor silence about what did. It costs its
caller one statement; whom it goes to is settled by the worker. Events may come twice, and in any order: a receiver goes by their id.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256

from accounts.models import Account, WebhookEvent
from pricing.models import Product

Kind = WebhookEvent.Kind
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


def _stored(value: str | int | None) -> str | int | None:
    """What the database and every parser of JSON takes: no NUL, no half of a surrogate pair."""
    return value.replace("\0", "").encode(errors="replace").decode() if isinstance(value, str) else value
