"""What is done for accounts in the background."""

from __future__ import annotations

import time
from collections import defaultdict

from celery import shared_task
from django.utils import timezone

from accounts import mail_delivery, webhook_delivery
from accounts.models import Mail, WebhookDelivery

#: A ring of the bell sends so many mails at most, for so long: the next ring goes on. Other work waits for the same workers.
BATCH = 500
SECONDS = 50.0
#: After so many failures in a row the mail server is taken to be away until the next ring.
FAILURES = 3
#: So long one endpoint keeps a ring of the webhooks' bell busy; then the others' turn has come.
ENDPOINT_SECONDS = 10.0
#: So long a ring writes deliveries of new events and ends those that are not to be sent; then it sends, however many there are left.
ADDRESS_SECONDS = 20.0


@shared_task
def send_mails() -> int:
    """Sends what is due of the outbox; returns how many were sent. Late, twice or at once with another: each is sent once."""
    sent = failures = 0
    until = time.monotonic() + SECONDS
    for _ in range(BATCH):
        mail = mail_delivery.send_next(now=timezone.now())
        if mail is None or failures >= FAILURES or time.monotonic() >= until:
            break
        sent += mail.state == Mail.State.SENT
        failures = failures + 1 if mail.state == Mail.State.PENDING else 0
    return sent


@shared_task
def send_webhooks() -> int:
    """Sends what is due of the webhooks; returns how many were delivered. Late, twice or at once with another: each is sent once."""
    delivered = 0
    took: defaultdict[int, float] = defaultdict(float)
    started = time.monotonic()
    while time.monotonic() - started < ADDRESS_SECONDS and webhook_delivery.address(now=timezone.now()):
        pass
    while time.monotonic() - started < ADDRESS_SECONDS and webhook_delivery.suppress(now=timezone.now()):
        pass
    for _ in range(BATCH):
        busy = [endpoint for endpoint, seconds in took.items() if seconds >= ENDPOINT_SECONDS]
        begun = time.monotonic()
        delivery = webhook_delivery.send_next(now=timezone.now(), but=busy)
        if delivery is None:
            break
        took[delivery.endpoint_id] += time.monotonic() - begun
        delivered += delivery.state == WebhookDelivery.State.DELIVERED
        if time.monotonic() - started >= SECONDS:
            break
    return delivered


@shared_task
def forget_webhooks() -> int:
    """Deletes what became of old webhooks; returns how many rows. Late, twice or at once with another: the same end."""
    return webhook_delivery.forget(now=timezone.now())
