"""The endpoints of client apps: where a product's webhooks go, of which kinds, and signed by which secret.

    create        registers an address; its secret is shown once, here
    rotate        makes a new secret; the one before signs too for a day, so that receivers can change over
    disable       sends nothing more there;  enable takes it up again
    delete        for good; what was sent stays readable
    signing_secrets   those that sign now, the newest first

Addresses are looked up when they are saved (:mod:`accounts.outbound`): do not call :func:`create` within a transaction.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction

from accounts import outbound, sealing
from accounts.models import WebhookEndpoint, WebhookEvent
from pricing.models import Product

MAX_ENDPOINTS = 20
OVERLAP = timedelta(days=1)
SECRET_BYTES = 32
#: What can be subscribed to: every kind but the test's.
KINDS = tuple(kind for kind in WebhookEvent.Kind.values if kind != WebhookEvent.Kind.TEST)


class InvalidEndpoint(Exception):
    """``field`` is wrong; the message says how."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class KnownEndpoint(Exception):
    """The product has an endpoint with this address."""


@dataclass(frozen=True, slots=True)
class Created:
    endpoint: WebhookEndpoint
    secret: str


def create(*, product: Product, url: str, kinds: Collection[str], description: str = "", created_by: str, now: datetime) -> Created:
    """Registers ``url``. Opens its own transaction, after it looked the address up.

    :raises InvalidEndpoint: an address that may not be called, kinds that there are not, or too many endpoints.
    :raises KnownEndpoint: the product has one with this address.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise InvalidEndpoint("kinds", f"Choose one or more of {', '.join(KINDS)}.")
    try:
        outbound.check(url)
    except outbound.Refused as error:
        raise InvalidEndpoint("url", str(error)) from error
    secret = _new_secret()
    with transaction.atomic():
        Product.objects.select_for_update(no_key=True).get(pk=product.pk)
        standing = WebhookEndpoint.objects.filter(product=product, deleted_at=None)
        if standing.filter(url=url).exists():
            raise KnownEndpoint("There is an endpoint with this address.")
        if standing.count() >= MAX_ENDPOINTS:
            raise InvalidEndpoint("url", f"A product has at most {MAX_ENDPOINTS} endpoints.")
        endpoint = WebhookEndpoint.objects.create(
            product=product, url=url, kinds=sorted(set(kinds)), description=description, secret=sealing.seal(secret),
            created_by=created_by, created_at=now,
        )  # fmt: skip
    return Created(endpoint, secret)


def rotate(*, endpoint: WebhookEndpoint, now: datetime) -> str:
    """Makes a new secret and returns it, for the only time. The former one signs beside it for ``OVERLAP``; one before that no more."""
    secret = _new_secret()
    with transaction.atomic():
        row = WebhookEndpoint.objects.select_for_update().get(pk=endpoint.pk)
        row.previous_secret, row.previous_until, row.secret = row.secret, now + OVERLAP, sealing.seal(secret)
        row.save(update_fields=["previous_secret", "previous_until", "secret"])
    return secret


def disable(*, endpoint: WebhookEndpoint, reason: str, now: datetime) -> None:
    """Sends nothing more there; what is queued for it is suppressed as it comes due. Again it changes nothing."""
    standing = WebhookEndpoint.objects.filter(pk=endpoint.pk, disabled_at=None)
    standing.update(disabled_at=now, disabled_reason=reason[:300], quiet_until=None)


def enable(*, endpoint: WebhookEndpoint) -> None:
    """Sends there again, from new events on; what was not delivered meanwhile is staff's to send again."""
    rows = WebhookEndpoint.objects.filter(pk=endpoint.pk, deleted_at=None)
    rows.update(disabled_at=None, disabled_reason="", failures=0, failing_since=None, quiet_until=None)


def delete(*, endpoint: WebhookEndpoint, now: datetime) -> None:
    """Sends nothing there ever again. Again it changes nothing."""
    WebhookEndpoint.objects.filter(pk=endpoint.pk, deleted_at=None).update(deleted_at=now)


def signing_secrets(*, endpoint: WebhookEndpoint, now: datetime) -> list[str]:
    """:raises sealing.Unreadable: they were sealed by a key that is gone."""
    sealed = [endpoint.secret]
    if endpoint.previous_until is not None and now < endpoint.previous_until:
        sealed.append(endpoint.previous_secret)
    return [sealing.unseal(each) for each in sealed]


def _new_secret() -> str:
    return "whsec_" + b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
