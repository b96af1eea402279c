"""What beat rings for this app."""

from celery import shared_task
from django.utils import timezone

from analytics import customer_warnings, rollups

#: So many batches of accounts are looked at each time, at most; the next minute goes on.
LOOK_BATCHES = 50


@shared_task(name="analytics.tasks.fold_rollups")
def fold_rollups() -> int:
    """Folds until nothing is left, a chunk a transaction; returns how many deltas. Twice at once is safe."""
    folded = 0
    while chunk := rollups.fold():
        folded += chunk
        if chunk < rollups.FOLD_LIMIT:
            break
    return folded


@shared_task(name="analytics.tasks.warn_customers")
def warn_customers() -> int:
    """Looks at the accounts that used something lately; returns how many. Late, twice or at once with another: each is told once."""
    looked = 0
    for _ in range(LOOK_BATCHES):
        chunk = customer_warnings.look(now=timezone.now())
        looked += chunk
        if chunk < customer_warnings.BATCH:
            break
    return looked
