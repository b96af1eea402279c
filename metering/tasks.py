"""Metering's jobs."""

from celery import shared_task

from billing import ledger

SWEEP_BATCH = 100


@shared_task
def sweep_holds() -> int:
    """Gives back every hold that nobody resolved in time; returns how many. Late, twice or at once with another: the same end."""
    swept = 0
    while batch := ledger.sweep(limit=SWEEP_BATCH):
        swept += batch
    return swept
