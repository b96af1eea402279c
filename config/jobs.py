"""Every job, in one table: what it does, and when. :mod:`analytics.jobs` has the rows and does the work.

    JOBS           the table
    named          one of them
    ring, work     what beat rings each minute, and what a worker does then: :mod:`config.tasks`
    run_now        a run in this process, outside of the schedule or not, for who waits for it

Beat (or any other scheduler that posts to ``/api/v1/admin/jobs/<name>`` or starts ``manage.py jobs run``) only says "look": what is due is
in the database. Jobs that an outside scheduler runs are named in ``JOBS_OUTSIDE``; they are planned and late like any other.

**Order.** A wallet's own order at one instant (expire, roll over, grant) is kept by the ledger in one transaction, whichever job comes by.
The three daily jobs of the calendar still wait for each other, so that their rows tell the story in the order in which it is told.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings

from accounts import tasks as accounts
from analytics import audits, hourly, jobs
from analytics import tasks as analytics
from analytics.jobs import Job, Schedule, Subjects
from analytics.models import JobRun
from billing import due, dunning, price_moves
from billing import tasks as billing
from config import backups, upkeep
from metering import kill_switches, rerating, throttles, tracking
from metering import tasks as metering
from pricing import price_import

_MINUTE, _TEN_MINUTES = Schedule(timedelta(minutes=1)), Schedule(timedelta(minutes=10))
_HOURLY = Schedule(timedelta(hours=1), timedelta(minutes=2))
_SUNDAYS = Schedule(timedelta(days=7), timedelta(days=3, hours=1))


def _daily(hour: int, minute: int) -> Schedule:
    return Schedule(timedelta(days=1), timedelta(hours=hour, minutes=minute))


def _alone(function: Callable[[], int | bool]) -> Callable[[datetime, Subjects], int]:
    """A job that reads the clock itself for each thing it does, and keeps the trouble of single things in its own queue."""
    return lambda now, subjects: int(function())


def _apply_due(now: datetime, subjects: Subjects) -> int:
    return due.apply(given_up=subjects.given_up, failed=subjects.failed)


def _reset_costs(now: datetime, subjects: Subjects) -> int:
    return throttles.follow(now=now) + due.close_windows(given_up=subjects.given_up, failed=subjects.failed)


def _take_dunning_steps(now: datetime, subjects: Subjects) -> int:
    return dunning.take_steps(now=now, given_up=subjects.given_up, failed=subjects.failed)


def _renew_plans(now: datetime, subjects: Subjects) -> int:
    return due.renew(now=now, given_up=subjects.given_up, failed=subjects.failed)


def _finish_switches(now: datetime, subjects: Subjects) -> int:
    return tracking.backfill(now=now, given_up=subjects.given_up, failed=subjects.failed) + kill_switches.finish(now=now)


def _follow_members(now: datetime, subjects: Subjects) -> int:
    return billing.follow_members(given_up=subjects.given_up, failed=subjects.failed)


def _move_prices(now: datetime, subjects: Subjects) -> int:
    return price_moves.go_on(now=now, given_up=subjects.given_up, failed=subjects.failed)


def _rate_unpriced(now: datetime, subjects: Subjects) -> int:
    """An account's usage is never left out: after the late-charging hours it could not be charged any more."""
    return rerating.run(now=now, failed=subjects.failed).rated


def _audit(now: datetime, subjects: Subjects) -> int:
    return audits.run(now=now)


def _measure_hour(now: datetime, subjects: Subjects) -> int:
    return hourly.measure(now=now)


def _back_up(now: datetime, subjects: Subjects) -> int:
    return backups.take(url=backups.url(), folder=Path(settings.BACKUP_FOLDER), now=now).rows


def _propose_prices(now: datetime, subjects: Subjects) -> int:
    return price_import.propose(providers=price_import.PROVIDERS, now=now).proposed


JOBS: tuple[Job, ...] = (
    Job("finish-switches", "Charges what was spooled, and tells of switches that are over.", _MINUTE, _finish_switches),
    Job("fold-rollups", "Refreshes the cost analytics: folds new usage into the sums.", _MINUTE, _alone(analytics.fold_rollups)),
    Job("follow-members", "Brings seats, members' prices and agreed terms to Stripe.", _MINUTE, _follow_members),
    Job("follow-throttles", "Notes who reached a limit on cost and who is let go, and tells.", _MINUTE, _alone(metering.follow_throttles)),
    Job("learn-holds", "Counts how long answers were whose length nobody had said.", _MINUTE, _alone(metering.learn_holds)),
    Job("look-at-alerts", "Looks at every alert rule.", _MINUTE, _alone(analytics.look_at_alerts)),
    Job("renew-plans", "Begins the next period of plans without Stripe, and ends trials.", _MINUTE, _renew_plans),
    Job("replay-drafts", "Replays what was used under drafts of catalogs that staff ask about.", _MINUTE, _alone(analytics.replay_drafts)),
    Job("send-alert-notices", "Tells staff of alerts.", _MINUTE, _alone(analytics.send_alert_notices)),
    Job("send-mails", "Sends what is due of the mails.", _MINUTE, _alone(accounts.send_mails)),
    Job("send-stripe-requests", "Sends again what Stripe has not answered.", _MINUTE, _alone(billing.send_stripe_requests)),
    Job("send-webhooks", "Tells client apps' endpoints what happened.", _MINUTE, _alone(accounts.send_webhooks)),
    Job("sweep-holds", "Ends holds that outlived their time.", _MINUTE, _alone(metering.sweep_holds)),
    Job("take-dunning-steps", "Warns of the end of unpaid plans, and ends them.", _MINUTE, _take_dunning_steps),
    Job("top-up", "Buys credit for accounts that ask for it and are low.", _MINUTE, _alone(metering.top_up)),
    Job("warn-customers", "Queues mails about limits and credit that run low.", _MINUTE, _alone(analytics.warn_customers)),
    Job("watch-spending", "Looks for spend that runs away, and ends what was done about it.", _MINUTE, _alone(metering.watch_spending)),
    Job("work-stripe-inbox", "Works what is due of Stripe's events.", _MINUTE, _alone(billing.work_stripe_inbox)),
    Job("apply-due", "Expires, rolls over and grants for accounts that nobody touches.", _TEN_MINUTES, _apply_due),
    Job("move-prices", "Announces changed prices, and moves renewals to them.", _TEN_MINUTES, _move_prices),
    Job("rate-unpriced", "Rates usage that had no price and has one now.", _TEN_MINUTES, _rate_unpriced),
    Job("reconcile-stripe", "Compares with Stripe, once a day.", _TEN_MINUTES, _alone(billing.reconcile_stripe)),
    Job("measure-hour", "Writes down how each product stands.", _HOURLY, _measure_hour),
    Job("reset-costs", "Lifts throttles and stops that ended, and forgets old counters.", _daily(0, 0), _reset_costs, each=True),
    Job("reset-credits", "Expires, rolls over, grants: periods that ended.", _daily(0, 5), _apply_due, after=("reset-costs",), each=True),
    Job(
        "expire-rollovers", "Expires what was rolled over and is over.", _daily(0, 10), _apply_due,
        after=("reset-costs", "reset-credits"), each=True,
    ),
    Job("vacuum", "Clears dead rows and refreshes the planner's figures.", _SUNDAYS, _alone(upkeep.vacuum)),
    Job("back-up", "Writes the whole database to a file, uploads it, deletes old ones.", _daily(2, 0), _back_up, off=backups.off),
    Job("audit", "Checks every equation of the ledger and the sums; keeps what does not hold.", _daily(3, 0), _audit),
    Job("forget-webhooks", "Deletes old webhooks to client apps.", _daily(1, 30), _alone(accounts.forget_webhooks)),
    Job("propose-prices", "Proposes upstream prices that differ from the price book.", _daily(4, 0), _propose_prices),
)  # fmt: skip
_BY_NAME = {job.name: job for job in JOBS}


def named(name: str) -> Job:
    """:raises jobs.UnknownJob: there is none of this name."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise jobs.UnknownJob(f"There is no job {name!r}.") from None


def ring(*, now: datetime) -> list[Job]:
    """Plans what is not planned; the jobs that are due and ours to run."""
    return jobs.ring(jobs=JOBS, outside=settings.JOBS_OUTSIDE, now=now)


def work(*, job: Job, now: datetime) -> JobRun | None:
    """See :func:`analytics.jobs.work`."""
    return jobs.work(job=job, worker=f"{socket.gethostname()}:{os.getpid()}", now=now)


def run_now(*, job: Job, actor: str, reason: str, clock: Callable[[], datetime]) -> JobRun | None:
    """Does the run that is due, or one that is asked for; None where another is under way, or must come before it. In this process, with no
    limit of time; ``clock`` is read for each."""
    if (run := work(job=job, now=clock())) is not None:
        return run
    jobs.ask(job=job, actor=actor, reason=reason, now=clock())
    return work(job=job, now=clock())


def followers(job: Job) -> list[Job]:
    """The jobs that wait for this one."""
    return [other for other in JOBS if job.name in other.after]
