"""Metering's jobs."""

from celery import shared_task
from django.utils import timezone

from billing import ledger
from metering import estimates, rerating

SWEEP_BATCH = 100


@shared_task
def rate_unpriced() -> int:
    """Rates usage that had no price and has one now; returns how much of it. Late, twice or at once with another: the same end."""
    return rerating.run(now=timezone.now()).rated


@shared_task
def sweep_holds() -> int:
    """Gives back every hold that nobody resolved in time; returns how many. Late, twice or at once with another: the same end."""
    swept = 0
    while batch := ledger.sweep(limit=SWEEP_BATCH):
        swept += batch
    return swept


@shared_task
def learn_holds() -> int:
    """Counts what the captures of open-ended calls came to, a chunk a transaction; returns how many. Late or twice: the same end."""
    learnt = 0
    while chunk := estimates.fold():
        learnt += chunk
        if chunk < estimates.FOLD_LIMIT:
            break
    return learnt
