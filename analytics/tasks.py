"""What beat rings for this app."""

import time

from celery import shared_task
from django.utils import timezone

from accounts import doorbell
from analytics import alert_notices, alerts, books, customer_warnings, rollups
from analytics.drafts import replays
from analytics.models import AlertNotice

#: So many batches of accounts are looked at each time, at most; the next minute goes on.
LOOK_BATCHES = 50
#: A ring of the bell sends so many notices at most, for so long: the next ring goes on.
NOTICES = 100
NOTICE_SECONDS = 50.0


@shared_task(name="analytics.tasks.fold_rollups")
def fold_rollups() -> int:
    """Folds until nothing is left, a chunk a transaction, then the books; returns how many deltas. Twice at once is safe."""
    folded = 0
    while chunk := rollups.fold():
        folded += chunk
        if chunk < rollups.FOLD_LIMIT:
            break
    books.fold()
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


@shared_task(name="analytics.tasks.look_at_alerts")
def look_at_alerts() -> int:
    """Looks at every alert rule; returns at how many. Late, twice or at once with another: an alert is opened and told once."""
    looked = alerts.look(now=timezone.now())
    doorbell.ring(send_alert_notices)
    return looked


@shared_task(name="analytics.tasks.send_alert_notices")
def send_alert_notices() -> int:
    """Tells staff what is due; returns how many notices were sent. A channel that does not answer is left for its next time."""
    sent = 0
    until = time.monotonic() + NOTICE_SECONDS
    for _ in range(NOTICES):
        notice = alert_notices.send_next(now=timezone.now())
        if notice is None or time.monotonic() >= until:
            break
        sent += notice.state == AlertNotice.State.SENT
    return sent


@shared_task(name="analytics.tasks.replay_drafts")
def replay_drafts() -> int:
    """Works the replays that wait, one after the other; returns how many. Another worker takes none that is under way."""
    worked = 0
    while replays.work_next(now=timezone.now()) is not None:
        worked += 1
    return worked
