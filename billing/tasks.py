"""Billing's jobs."""

from collections.abc import Callable, Collection

from celery import shared_task
from django.utils import timezone

from billing import agreements, checkout, reconciliation, seats, stripe_inbox, stripe_requests

#: So many events at most are worked at one ring of the bell; the sweeper rings again within a minute.
INBOX_BATCH = 1_000


@shared_task
def reconcile_stripe() -> bool:
    """Compares with Stripe, where a day has passed since the last time; returns whether it did."""
    return reconciliation.run_due(now=timezone.now()) is not None


@shared_task
def work_stripe_inbox() -> int:
    """Works what is due of the events that Stripe sent; returns how many. Late, twice or at once with another: the same end."""
    worked = 0
    while worked < INBOX_BATCH and stripe_inbox.work_next(now=timezone.now()) is not None:
        worked += 1
    return worked


@shared_task
def send_stripe_requests() -> int:
    """Sends again what Stripe has not answered; returns how many requests. Late, twice or at once with another: the same end."""
    return stripe_requests.sweep(now=timezone.now())


@shared_task
def follow_members(*, given_up: Collection[str] = (), failed: Callable[[str, Exception], None] = seats.log_failed) -> int:
    """Has subscriptions follow their members, end with their accounts, and agreed terms reach Stripe; returns how many batches. Late or
    twice: the same end."""
    now, batches = timezone.now(), 0
    agreements.go_on(now=now)
    checkout.leave_closed(now=now)
    after = seats.follow(after="", now=now, given_up=given_up, failed=failed)
    while after is not None:
        batches += 1
        after = seats.follow(after=after, now=timezone.now(), given_up=given_up, failed=failed)
    return batches
