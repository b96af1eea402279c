"""What beat rings for this app."""

from celery import shared_task

from analytics import rollups


@shared_task(name="analytics.tasks.fold_rollups")
def fold_rollups() -> int:
    """Folds until nothing is left, a chunk a transaction; returns how many deltas. Twice at once is safe."""
    folded = 0
    while chunk := rollups.fold():
        folded += chunk
        if chunk < rollups.FOLD_LIMIT:
            break
    return folded
