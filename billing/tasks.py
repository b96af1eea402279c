"""Billing's jobs."""

from celery import shared_task

from billing import ledger

DUE_BATCH = 100


@shared_task
def apply_due() -> int:
    """Applies what is due for accounts that nobody touches; returns how many batches. Late, twice or at once with another: the same end."""
    batches, after = 0, ledger.catch_up(after=0, limit=DUE_BATCH)
    while after is not None:
        batches += 1
        after = ledger.catch_up(after=after, limit=DUE_BATCH)
    return batches
