"""Metering's jobs."""

from celery import shared_task
from django.utils import timezone

from accounts.models import Account
from billing import ledger, top_ups
from metering import estimates, guard, kill_switches, throttles
from metering.models import KillSwitch

SWEEP_BATCH = 100
#: So many accounts at most are topped up at one ring of the bell; the next ring goes on.
TOP_UP_BATCH = 200


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


@shared_task
def follow_throttles() -> int:
    """Notes who came to be throttled by cost and who no longer is; returns how many. Late or twice: the same end."""
    return throttles.follow(now=timezone.now())


@shared_task
def watch_spending() -> int:
    """Looks for spend that runs away; returns how many steps were taken or ended. Late, twice or at once with another: the same end."""
    return guard.watch(now=timezone.now())


@shared_task
def top_up() -> int:
    """Tops accounts up that ask for it and are below their threshold, and goes on with what is under way; returns how many it looked at.

    The kill switch on top-ups stops what has not begun. Late, twice or at once with another: the same end.
    """
    looked = 0
    while looked < TOP_UP_BATCH and top_ups.go_on_next(now=timezone.now()):
        looked += 1
    while looked < TOP_UP_BATCH and top_ups.work_next(now=timezone.now(), stopped=_top_ups_stopped):
        looked += 1
    return looked


def _top_ups_stopped(account: Account) -> str:
    switch = kill_switches.in_force(kind=KillSwitch.Kind.TOP_UPS, product_id=account.product_id, account_id=account.pk, now=timezone.now())
    return switch.reason if switch else ""
