"""What is done by the clock: jobs, and one row for each run of one. Which jobs there are says :mod:`config.jobs`.

    ring       plans what is not planned, and says which jobs are due
    work       does the run of a job that is due first
    ask        has a job run now, outside of its schedule, for a reason
    again      has a subject that was given up tried again
    standings  each job's last run, next run, errors and lag
    late       the runs that should be over and are not

The row comes first: while a job is not running, its next run stands in the table with the time that it is due. So what is due survives
every restart, whoever looks sees what is late, and a second ring at the same time finds nothing to do. A worker takes a run for the length
of a lease, which it renews while it works; when it is killed the lease runs out, and the next ring gives the run to somebody else. The
number of the taking (``fence``) keeps the first worker, if it was only slow, from saying how the run ended.

Effects are not fenced here: every job leaves the same state if it runs late, twice or twice at once, because each thing it does has its own
row and its own transaction. A run that fails is tried again, later and later, ``MAX_ATTEMPTS`` times; then it is given up, and the next one
is planned. A job that goes over many subjects says which of them failed and goes on: that subject has a row of its own, and after as many
failures it is left out until staff have it tried again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.models import Count, Q, QuerySet
from prometheus_client import Counter

from analytics.models import JobRun

MAX_ATTEMPTS = 5
FIRST_DELAY = timedelta(minutes=1)
#: For so long a run is its worker's, who says that it is still there each third of it.
LEASE = timedelta(minutes=2)
#: So many missed times of a job that makes up for each of them are made up for, at most.
MAX_MISSED = 40
#: Runs of jobs that are rung more often than hourly are kept for a day, or a month if they failed; other jobs' runs for longer.
OFTEN = timedelta(hours=1)
KEEP_DONE, KEEP_FAILED, KEEP_LONG = timedelta(days=1), timedelta(days=30), timedelta(days=400)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

State = JobRun.State
OPEN = (State.WAITING, State.RUNNING)

log = structlog.get_logger(__name__)
RUNS = Counter("job_runs", "Runs of jobs, by what became of them.", ["job", "outcome"])


class UnknownJob(LookupError):
    """There is no job of this name."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Each ``every``, ``offset`` after 00:00 UTC of 1 January 1970 (a Thursday): the same times for ever, whatever was restarted when."""

    every: timedelta
    offset: timedelta = timedelta()

    def last(self, *, until: datetime) -> datetime:
        """The latest time that is not after ``until``."""
        return _EPOCH + self.offset + (until - _EPOCH - self.offset) // self.every * self.every

    def next(self, *, after: datetime) -> datetime:
        """The first time after ``after``."""
        return self.last(until=after) + self.every

    def __str__(self) -> str:
        if self.every < timedelta(hours=1):
            minutes = self.every // timedelta(minutes=1)
            return "every minute" if minutes == 1 else f"every {minutes} minutes"
        at = f"{(_EPOCH + self.offset):%H:%M} UTC"
        if self.every == timedelta(hours=1):
            return f"hourly, at minute {self.offset // timedelta(minutes=1)}"
        return f"daily, {at}" if self.every == timedelta(days=1) else f"{_EPOCH + self.offset:%A}s, {at}"


class Subjects:
    """The single subjects (accounts, subscriptions …) of one run that fail: each has a row, and none holds up the others."""

    def __init__(self, *, job: Job, run: JobRun, now: datetime) -> None:
        self._job, self._run, self._now = job, run, now
        self._failed: set[str] = set()
        #: Leave these out: they failed too often.
        self.given_up = frozenset(_troubles(job).filter(state=State.FAILED).values_list("subject", flat=True))

    def failed(self, subject: str, error: Exception) -> None:
        """Notes that ``subject`` (its public id) failed. Outside of the transaction that failed: it opens its own."""
        self._failed.add(subject)
        log.error("subject of a job failed", job=self._job.name, subject=subject, exc_info=error)
        with transaction.atomic():
            row = _troubles(self._job).select_for_update().filter(subject=subject).exclude(state=State.DONE).first()
            row = row or JobRun(
                job=self._job.name, subject=subject, due_at=self._run.due_at, late_at=self._job.late_at(due_at=self._now),
                next_attempt_at=self._now, started_at=self._now,
            )  # fmt: skip
            row.attempts += 1
            row.error = _words(error)
            if row.attempts >= MAX_ATTEMPTS:
                row.state, row.ended_at = State.FAILED, self._now
            row.save()

    def settle(self) -> None:
        """At the end of a run that went over all: what failed before and did not now is well again."""
        well = _troubles(self._job).filter(state=State.WAITING).exclude(subject__in=self._failed)
        well.update(state=State.DONE, ended_at=self._now)


@dataclass(frozen=True, slots=True)
class Job:
    """``run(now, subjects)`` returns how many rows it did. It may be killed at any point, and run late, twice and twice at once.

    ``after`` names the jobs that must not have anything due before it; ``each`` gives every missed time a run of its own, oldest first,
    where otherwise one run stands for all of them. ``off`` says why it is not run at all: what it needs is not configured.
    """

    name: str
    what: str
    schedule: Schedule
    run: Callable[[datetime, Subjects], int]
    after: tuple[str, ...] = ()
    each: bool = False
    off: Callable[[], str] = field(default=lambda: "")

    def late_at(self, *, due_at: datetime) -> datetime:
        return due_at + max(timedelta(minutes=5), min(2 * self.schedule.every, timedelta(hours=1)))


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands. ``lag`` is how long its next run is overdue, zero if it is not; ``given_up`` counts its subjects."""

    job: Job
    last: JobRun | None
    next: JobRun | None
    lag: timedelta
    state: str
    trouble: int
    given_up: int

    @property
    def off(self) -> str:
        """Why it is not run at all."""
        return self.job.off()

    @property
    def bad(self) -> bool:
        """Somebody should look."""
        return self.state in ("late", "failed") or self.given_up > 0


def ring(*, jobs: Sequence[Job], outside: Collection[str] = (), now: datetime) -> list[Job]:
    """Plans each job that has no run ahead, takes away what is planned of jobs that are no more, and returns the jobs that are due,
    the longest due first. Of the jobs named in ``outside`` somebody else does what is planned."""
    by_name = {job.name: job for job in jobs if not job.off()}
    planned = _runs().filter(actor="")
    planned.filter(state=State.WAITING).exclude(job__in=by_name).delete()
    there = set(planned.filter(state__in=OPEN).values_list("job", flat=True))
    _plan([(job, job.schedule.next(after=now)) for job in by_name.values() if job.name not in there], now)
    due = _due(_runs(), now).exclude(job__in=outside, actor="").order_by("due_at", "pk").values_list("job", flat=True)
    return [by_name[name] for name in dict.fromkeys(due) if name in by_name]


def work(*, job: Job, worker: str, now: datetime) -> JobRun | None:
    """Does the run of ``job`` that is due first; None where none is due, somebody does it, or another job must come before it.

    Opens its own transactions. What the job raises is kept with the run and not raised again.
    """
    run = _take(job, worker, now)
    if run is None or run.state == State.FAILED:
        return run
    begun = time.monotonic()
    subjects = Subjects(job=job, run=run, now=now)
    try:
        with _kept(run, now):
            rows = job.run(now, subjects)
            subjects.settle()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is kept with the run, and other jobs must not wait for it)
        _failed(job, run, error, now + _since(begun))
    else:
        _end(job, run, State.DONE, now + _since(begun), rows=rows)
        RUNS.labels(job.name, "done").inc()
    return run


def ask(*, job: Job, actor: str, reason: str, now: datetime) -> JobRun:
    """A run that is due now, beside the schedule. One that is due, or was asked for, and has not begun is returned instead: it will do."""
    if planned := _runs().filter(job=job.name, state=State.WAITING, actor="", next_attempt_at__lte=now).first():
        return planned
    asked = _runs().filter(job=job.name, state=State.WAITING).exclude(actor="")
    try:
        with transaction.atomic():
            return asked.first() or JobRun.objects.create(
                job=job.name, due_at=now, late_at=job.late_at(due_at=now), next_attempt_at=now, actor=actor[:200], reason=reason[:500]
            )
    except IntegrityError:  # somebody else asked in the same moment
        return asked.get()


def again(*, run: JobRun, now: datetime) -> bool:
    """Has a subject that was given up tried again by the job's next run; False where it was not given up."""
    given_up = JobRun.objects.filter(pk=run.pk, state=State.FAILED).exclude(subject="")
    return bool(given_up.update(state=State.WAITING, attempts=0, ended_at=None, next_attempt_at=now, late_at=now + timedelta(hours=1)))


def standings(*, jobs: Sequence[Job], now: datetime) -> list[Standing]:
    """How each job stands, in the order given."""
    newest = _runs().filter(started_at__isnull=False).order_by("job", "-started_at").distinct("job")
    last = {run.job: run for run in newest}
    ahead = {run.job: run for run in _runs().filter(actor="", state__in=OPEN)}
    troubles: dict[str, dict[str, int]] = {}
    for name, state, count in (
        JobRun.objects.exclude(subject="")
        .exclude(state=State.DONE)
        .order_by()
        .values_list("job", "state")
        .annotate(count=Count("pk"))
        .values_list("job", "state", "count")
    ):
        troubles.setdefault(name, {})[state] = count
    return [_standing(job, last.get(job.name), ahead.get(job.name), troubles.get(job.name, {}), now) for job in jobs]


def late(*, now: datetime) -> QuerySet[JobRun]:
    """The runs that should be over by now and are not, and the subjects that have been failing for as long."""
    return JobRun.objects.filter(state__in=OPEN, late_at__lte=now).order_by("late_at", "pk")


def given_up(*, since: datetime) -> QuerySet[JobRun]:
    """The runs and subjects that failed for the last time since then."""
    return JobRun.objects.filter(state=State.FAILED, ended_at__gte=since).order_by("ended_at", "pk")


# Planning, taking, ending ---------------------------------------------------------------------------------------------------


def _runs() -> QuerySet[JobRun]:
    return JobRun.objects.filter(subject="")


def _troubles(job: Job) -> QuerySet[JobRun]:
    return JobRun.objects.filter(job=job.name).exclude(subject="")


def _due(runs: QuerySet[JobRun], now: datetime) -> QuerySet[JobRun]:
    return runs.filter(Q(state=State.WAITING, next_attempt_at__lte=now) | Q(state=State.RUNNING, lease_until__lte=now))


def _plan(planned: list[tuple[Job, datetime]], now: datetime) -> None:
    """One run ahead for each job: the database drops a second one."""
    rows = [
        JobRun(job=job.name, due_at=due_at, late_at=job.late_at(due_at=max(due_at, now)), next_attempt_at=due_at) for job, due_at in planned
    ]
    JobRun.objects.bulk_create(rows, ignore_conflicts=True)


def _take(job: Job, worker: str, now: datetime) -> JobRun | None:
    """The run that is due first, for the length of a lease. One whose workers never came back as often as is allowed is given up."""
    try:
        with transaction.atomic():
            due = _due(_runs().filter(job=job.name), now).select_for_update(skip_locked=True)
            ordered = due.order_by("state", "due_at", "pk")[:2]  # a run that was left comes before one that waits
            run = next((each for each in ordered if not _must_wait(job, each)), None)
            if run is None:
                return None
            run.fence += 1
            if run.state == State.RUNNING and run.attempts >= MAX_ATTEMPTS:
                JobRun.objects.filter(pk=run.pk).update(fence=run.fence)
                _end(job, run, State.FAILED, now, error=run.error or "Its workers never came back.")
                return run
            if run.state == State.RUNNING:
                log.warning("run taken over", job=job.name, due_at=run.due_at, left_by=run.worker)
                RUNS.labels(job.name, "taken over").inc()
            run.attempts += 1
            run.state, run.worker, run.started_at, run.lease_until = State.RUNNING, worker[:100], now, now + LEASE
            run.save(update_fields=["fence", "attempts", "state", "worker", "started_at", "lease_until"])
    except IntegrityError:  # another run of the job, planned or asked for, is under way
        return None
    return run


def _must_wait(job: Job, run: JobRun) -> bool:
    """Who asks for a run does not wait for the jobs that a planned one comes after."""
    return not run.actor and _runs().filter(job__in=job.after, actor="", state__in=OPEN, due_at__lte=run.due_at).exists()


def _failed(job: Job, run: JobRun, error: Exception, at: datetime) -> None:
    """Keeps the error, and tries again later or never."""
    log.error("job failed", job=job.name, due_at=run.due_at, attempt=run.attempts, exc_info=error)
    if run.attempts >= MAX_ATTEMPTS:
        _end(job, run, State.FAILED, at, error=_words(error))
        return
    RUNS.labels(job.name, "failed").inc()
    delay = min(job.schedule.every, FIRST_DELAY * 2 ** (run.attempts - 1))
    run.state, run.error, run.next_attempt_at, run.lease_until = State.WAITING, _words(error), at + delay, None
    mine = _mine(run).update(state=run.state, error=run.error, next_attempt_at=run.next_attempt_at, lease_until=None)
    if not mine:
        log.warning("run was taken over meanwhile", job=job.name, due_at=run.due_at)


def _end(job: Job, run: JobRun, state: State, at: datetime, *, rows: int | None = None, error: str = "") -> None:
    """Marks the run as over, plans the next one and forgets old ones, in one transaction: there is never none ahead."""
    with transaction.atomic():
        if not _mine(run).update(state=state, ended_at=at, lease_until=None, rows=rows, error=error):
            log.warning("run was taken over meanwhile", job=job.name, due_at=run.due_at)
            return
        run.state, run.ended_at, run.lease_until, run.rows, run.error = state, at, None, rows, error
        if not run.actor:
            _plan([(job, _following(job, run, at))], at)
        often = job.schedule.every < OFTEN
        old = Q(state=State.DONE, due_at__lt=at - (KEEP_DONE if often else KEEP_LONG))
        old |= Q(state=State.FAILED, due_at__lt=at - (KEEP_FAILED if often else KEEP_LONG))
        JobRun.objects.filter(old, job=job.name).exclude(pk=run.pk).delete()
    if state == State.FAILED:
        log.error("job given up", job=job.name, due_at=run.due_at, why=error)
        RUNS.labels(job.name, "given up").inc()


def _following(job: Job, run: JobRun, at: datetime) -> datetime:
    """When the run after this one is due: the next time that this one does not stand for."""
    if not job.each:
        return job.schedule.next(after=max(run.due_at, run.started_at or at))
    return max(job.schedule.next(after=run.due_at), job.schedule.last(until=at) - MAX_MISSED * job.schedule.every)


def _mine(run: JobRun) -> QuerySet[JobRun]:
    return JobRun.objects.filter(pk=run.pk, state=State.RUNNING, fence=run.fence)


@contextmanager
def _kept(run: JobRun, now: datetime) -> Iterator[None]:
    """Renews the lease while the block runs, on a connection of its own."""
    over, begun = threading.Event(), time.monotonic()

    def renew() -> None:
        try:
            while not over.wait(LEASE.total_seconds() / 3):
                try:
                    if not _mine(run).update(lease_until=now + _since(begun) + LEASE):
                        return
                except DatabaseError as error:  # the lease runs out; whoever takes the run over finds done what was done
                    log.warning("lease not renewed", job=run.job, exc_info=error)
        finally:
            connections.close_all()

    keeper = threading.Thread(target=renew, name=f"lease of {run.job}", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


def _since(begun: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - begun)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2_000].replace("\0", "\\0")


def _standing(job: Job, last: JobRun | None, ahead: JobRun | None, troubles: dict[str, int], now: datetime) -> Standing:
    lag = max(now - ahead.due_at, timedelta()) if ahead else timedelta()
    if job.off():
        state = "off"
    elif ahead and ahead.late_at <= now:
        state = "late"
    elif last and (last.state == State.FAILED or (last.state == State.WAITING and last.error)):
        state = "failed"
    elif last is None:
        state = "never run"
    else:
        state = "running" if last.state == State.RUNNING else "ok"
    return Standing(job, last, ahead, lag, state, troubles.get(State.WAITING, 0), troubles.get(State.FAILED, 0))
