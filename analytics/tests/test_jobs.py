"""Runs of jobs: planned as rows, done once, taken over, tried again, given up; and what single subjects do to none of the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import IntegrityError, connections, transaction
from hypothesis import given
from hypothesis import strategies as st

from analytics import jobs
from analytics.jobs import MAX_ATTEMPTS, Job, Schedule, Subjects
from analytics.models import JobRun

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTELY = Schedule(MINUTE)
DAILY = Schedule(DAY, timedelta(minutes=5))
State = JobRun.State


def a_job(run: Callable[[datetime, Subjects], int] = lambda now, subjects: 3, schedule: Schedule = MINUTELY, **fields: object) -> Job:
    return Job(f"job-{uuid4().hex[:8]}", "Does something.", schedule, run, **fields)  # type: ignore[arg-type]


def due(job: Job, now: datetime) -> bool:
    return job in jobs.ring(jobs=[job], now=now)


def work(job: Job, now: datetime, worker: str = "w1") -> JobRun | None:
    return jobs.work(job=job, worker=worker, now=now)


def runs(job: Job) -> list[tuple[datetime, str]]:
    return [(run.due_at, str(run.state)) for run in JobRun.objects.filter(job=job.name).order_by("due_at", "pk")]


def raising(message: str) -> Callable[[datetime, Subjects], int]:
    def run(now: datetime, subjects: Subjects) -> int:
        raise RuntimeError(message)

    return run


class TestSchedule:
    @given(
        every=st.sampled_from([MINUTE, 10 * MINUTE, 60 * MINUTE, DAY, 7 * DAY]),
        offset=st.integers(0, 1439),
        at=st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    )
    def test_the_last_time_and_the_next_enclose_every_moment(self, every: timedelta, offset: int, at: datetime) -> None:
        schedule = Schedule(every, offset * MINUTE)
        last, following = schedule.last(until=at), schedule.next(after=at)
        assert last <= at < following == last + every
        assert schedule.last(until=following) == following == schedule.next(after=last)

    def test_it_says_when_it_is(self) -> None:
        schedules = [Schedule(MINUTE), Schedule(10 * MINUTE), Schedule(60 * MINUTE), DAILY, Schedule(7 * DAY, 3 * DAY + 125 * MINUTE)]
        assert [str(schedule) for schedule in schedules] == [
            "every minute", "every 10 minutes", "hourly, at minute 0", "daily, 00:05 UTC", "Sundays, 02:05 UTC",
        ]  # fmt: skip

    def test_daily_times_are_the_days_of_utc(self) -> None:
        assert DAILY.next(after=datetime(2026, 3, 1, 0, 5, tzinfo=UTC)) == datetime(2026, 3, 2, 0, 5, tzinfo=UTC)
        assert DAILY.next(after=datetime(2026, 3, 1, 0, 4, 59, tzinfo=UTC)) == datetime(2026, 3, 1, 0, 5, tzinfo=UTC)


@pytest.mark.django_db
class TestRuns:
    def test_a_run_is_planned_then_due_then_done_and_the_next_is_planned(self) -> None:
        job = a_job()
        assert not due(job, NOW)
        assert work(job, NOW) is None
        later = NOW + MINUTE
        assert due(job, later)
        run = work(job, later)
        assert run is not None
        assert (run.state, run.rows, run.started_at, run.attempts, run.worker) == ("done", 3, later, 1, "w1")
        assert run.ended_at is not None
        assert later <= run.ended_at < later + MINUTE
        assert runs(job) == [(NOW + timedelta(seconds=30), "done"), (NOW + timedelta(seconds=90), "waiting")]
        assert work(job, later) is None

    @pytest.mark.failure(83)
    def test_a_daily_job_runs_though_beat_is_restarted_every_other_minute_for_days(self) -> None:
        """Each beat is a new one and remembers nothing: a schedule in its memory would begin to count anew."""
        job, now, done = a_job(schedule=DAILY), NOW, 0
        for _ in range(3 * 24 * 6):
            if due(job, now):
                done += work(job, now) is not None
            now += 10 * MINUTE
        assert done == 3
        assert [day for day, state in runs(job) if state == "done"] == [datetime(2026, 3, day, 0, 5, tzinfo=UTC) for day in (2, 3, 4)]

    @pytest.mark.failure(47)
    def test_missed_days_are_made_up_for_oldest_first_each_once(self) -> None:
        seen: list[datetime] = []
        job = a_job(lambda now, subjects: seen.append(now) or 0, DAILY, each=True)  # type: ignore[func-returns-value]
        jobs.ring(jobs=[job], now=NOW)
        back = NOW + 3 * DAY
        assert due(job, back)
        while work(job, back) is not None:
            pass
        days = [datetime(2026, 3, day, 0, 5, tzinfo=UTC) for day in (2, 3, 4, 5)]
        assert runs(job) == [*((day, "done") for day in days[:3]), (days[3], "waiting")]
        assert len(seen) == 3

    def test_it_makes_up_for_forty_missed_times_at_most(self) -> None:
        job = a_job(schedule=DAILY, each=True)
        jobs.ring(jobs=[job], now=NOW)
        done = 0
        while work(job, NOW + 400 * DAY) is not None:
            done += 1
        assert done == jobs.MAX_MISSED + 2

    def test_one_run_stands_for_all_missed_minutes(self) -> None:
        job = a_job()
        jobs.ring(jobs=[job], now=NOW)
        assert work(job, NOW + 3 * DAY) is not None
        assert runs(job) == [(NOW + timedelta(seconds=30), "done"), (NOW + 3 * DAY + timedelta(seconds=30), "waiting")]

    @pytest.mark.failure(48)
    def test_two_beats_plan_once_and_a_job_longer_than_its_interval_runs_once_at_a_time(self) -> None:
        inner: list[JobRun | None] = []

        def slow(now: datetime, subjects: Subjects) -> int:
            inner.append(work(job, now + MINUTE, "w2"))  # the next ring comes while it still runs
            jobs.ring(jobs=[job], now=now + 5 * MINUTE)
            return 0

        job = a_job(slow)
        for _ in range(2):
            jobs.ring(jobs=[job], now=NOW)
        assert len(runs(job)) == 1
        work(job, NOW + MINUTE)
        assert inner == [None]
        assert [state for _, state in runs(job)] == ["done", "waiting"]

    def test_a_job_that_waits_for_another_goes_after_it_by_the_time_that_each_is_due(self) -> None:
        first = a_job(schedule=Schedule(DAY), each=True)
        second = a_job(schedule=DAILY, after=(first.name,), each=True)
        jobs.ring(jobs=[second, first], now=NOW)
        late = NOW + DAY
        assert jobs.ring(jobs=[second, first], now=late) == [first, second]
        assert work(second, late) is None
        assert work(first, late) is not None
        assert work(second, late) is not None

    def test_a_job_that_was_given_up_lets_the_next_one_go(self) -> None:
        first = a_job(raising("boom"), schedule=Schedule(DAY))
        second = a_job(schedule=DAILY, after=(first.name,))
        jobs.ring(jobs=[first, second], now=NOW)
        now = NOW + DAY
        for _ in range(MAX_ATTEMPTS):
            assert work(second, now) is None
            work(first, now)
            now += 60 * MINUTE
        assert [state for _, state in runs(first)] == ["failed", "waiting"]
        assert work(second, now) is not None

    def test_what_fails_is_tried_again_later_and_later_and_then_given_up_and_the_next_run_is_planned(self) -> None:
        job = a_job(raising("no \0 luck"), DAILY)
        jobs.ring(jobs=[job], now=NOW)
        now, waits = NOW + DAY, []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            run = work(job, now)
            assert run is not None
            assert (run.attempts, run.error) == (attempt, "RuntimeError: no \\0 luck")
            assert work(job, now) is None
            waits.append(round((run.next_attempt_at - now) / MINUTE) if run.state == State.WAITING else 0)
            now = max(now, run.next_attempt_at) + timedelta(seconds=1)
        assert waits == [1, 2, 4, 8, 0]
        assert runs(job) == [(datetime(2026, 3, 2, 0, 5, tzinfo=UTC), "failed"), (datetime(2026, 3, 3, 0, 5, tzinfo=UTC), "waiting")]
        assert [run.job for run in jobs.given_up(since=NOW)] == [job.name]

    @pytest.mark.failure(81)
    def test_a_run_whose_worker_is_gone_is_taken_over_when_its_lease_is_over_and_the_first_worker_changes_nothing_then(self) -> None:
        job = a_job()
        jobs.ring(jobs=[job], now=NOW)
        now = NOW + MINUTE
        lost = jobs._take(job, "lost", now)
        assert lost is not None
        assert not due(job, now + jobs.LEASE - timedelta(seconds=1))
        assert work(job, now + jobs.LEASE - timedelta(seconds=1)) is None
        assert due(job, now + jobs.LEASE)
        second = work(job, now + jobs.LEASE, "w2")
        assert second is not None
        assert (second.pk, second.fence, second.worker) == (lost.pk, 2, "w2")
        jobs._end(job, lost, State.FAILED, now + DAY, error="I was only slow")
        kept = JobRun.objects.get(pk=lost.pk)
        assert (kept.state, kept.error, kept.rows) == ("done", "", 3)

    def test_a_run_that_kills_each_of_its_workers_is_given_up(self) -> None:
        job = a_job()
        jobs.ring(jobs=[job], now=NOW)
        now = NOW + MINUTE
        for _ in range(MAX_ATTEMPTS):
            assert jobs._take(job, "lost", now) is not None
            now += jobs.LEASE
        run = work(job, now)
        assert run is not None
        assert (run.state, run.error) == ("failed", "Its workers never came back.")
        assert [state for _, state in runs(job)] == ["failed", "waiting"]

    def test_what_is_late_is_seen_without_a_table_of_jobs(self) -> None:
        job = a_job(schedule=DAILY)
        jobs.ring(jobs=[job], now=NOW)
        due_at = datetime(2026, 3, 2, 0, 5, tzinfo=UTC)
        assert job.name not in {run.job for run in jobs.late(now=due_at + 59 * MINUTE)}
        assert job.name in {run.job for run in jobs.late(now=due_at + 60 * MINUTE)}
        work(job, due_at + 61 * MINUTE)
        assert job.name not in {run.job for run in jobs.late(now=due_at + 62 * MINUTE)}

    def test_a_jobs_name_that_is_no_more_leaves_no_plan_and_keeps_its_history(self) -> None:
        job, other = a_job(), a_job()
        jobs.ring(jobs=[job], now=NOW)
        work(job, NOW + MINUTE)
        jobs.ring(jobs=[other], now=NOW)
        assert [state for _, state in runs(job)] == ["done"]

    def test_what_needs_settings_that_are_missing_is_off(self) -> None:
        job = a_job(off=lambda: "BACKUP_FOLDER is not set.")
        assert not due(job, NOW)
        assert not due(job, NOW + DAY)
        [standing] = jobs.standings(jobs=[job], now=NOW)
        assert (standing.state, standing.next) == ("off", None)

    def test_history_is_bounded(self) -> None:
        often, daily = a_job(), a_job(schedule=DAILY)
        jobs.ring(jobs=[often, daily], now=NOW)
        for minutes in range(1, 11):
            assert work(often, NOW + minutes * MINUTE) is not None
        assert work(daily, NOW + DAY) is not None
        assert work(often, NOW + DAY + 6 * MINUTE) is not None
        assert len([state for _, state in runs(often) if state == "done"]) == 5
        assert work(daily, NOW + 300 * DAY) is not None
        assert [state for _, state in runs(daily)] == ["done", "done", "waiting"]
        assert work(daily, NOW + 600 * DAY) is not None
        assert [state for _, state in runs(daily)] == ["done", "waiting"]


@pytest.mark.django_db
class TestAsked:
    def test_a_run_that_was_asked_for_is_due_at_once_and_moves_no_plan(self) -> None:
        job = a_job(schedule=DAILY)
        jobs.ring(jobs=[job], now=NOW)
        run = jobs.ask(job=job, actor="ann@example.com", reason="after the outage", now=NOW)
        assert jobs.ask(job=job, actor="bob", reason="me too", now=NOW + MINUTE).pk == run.pk
        assert due(job, NOW)
        assert work(job, NOW) is not None
        assert runs(job) == [(NOW, "done"), (datetime(2026, 3, 2, 0, 5, tzinfo=UTC), "waiting")]

    def test_it_waits_while_the_planned_run_is_under_way(self) -> None:
        job = a_job()
        jobs.ring(jobs=[job], now=NOW)
        assert jobs._take(job, "w1", NOW + MINUTE) is not None
        jobs.ask(job=job, actor="ann", reason="now", now=NOW + MINUTE)
        assert work(job, NOW + MINUTE) is None
        assert work(job, NOW + 9 * MINUTE) is not None  # the run that was left
        assert work(job, NOW + 9 * MINUTE) is not None  # the one that was asked for
        assert [state for _, state in runs(job)] == ["done", "done", "waiting"]

    def test_nobody_asks_without_a_reason(self) -> None:
        with pytest.raises(IntegrityError, match="job_run_asked_with_a_reason"), transaction.atomic():
            JobRun.objects.create(job="x", due_at=NOW, late_at=NOW, next_attempt_at=NOW, actor="ann")


@pytest.mark.django_db
class TestSubjects:
    @pytest.mark.failure(82)
    def test_a_subject_that_always_fails_is_given_up_after_its_attempts_and_the_others_flow(self) -> None:
        tried: dict[str, int] = {}
        broken = {"acct_b"}

        def run(now: datetime, subjects: Subjects) -> int:
            done = 0
            for name in {"acct_a", "acct_b", "acct_c"} - subjects.given_up:
                tried[name] = tried.get(name, 0) + 1
                if name in broken:
                    subjects.failed(name, ValueError("poison"))
                else:
                    done += 1
            return done

        job, now = a_job(run), NOW
        jobs.ring(jobs=[job], now=now)
        for _ in range(MAX_ATTEMPTS + 3):
            now += MINUTE
            run_ = work(job, now)
            assert run_ is not None
            assert (run_.state, run_.rows) == ("done", 2)
        assert tried == {"acct_a": MAX_ATTEMPTS + 3, "acct_b": MAX_ATTEMPTS, "acct_c": MAX_ATTEMPTS + 3}
        letter = JobRun.objects.get(job=job.name, subject="acct_b")
        assert (letter.state, letter.attempts, letter.error) == ("failed", MAX_ATTEMPTS, "ValueError: poison")
        assert jobs.standings(jobs=[job], now=now)[0].given_up == 1

        assert jobs.again(run=letter, now=now)
        assert not jobs.again(run=letter, now=now)
        assert jobs.standings(jobs=[job], now=now)[0].trouble == 1
        broken.clear()
        work(job, now + MINUTE)
        letter.refresh_from_db()
        assert (letter.state, letter.ended_at) == ("done", now + MINUTE)

    def test_a_subject_that_is_well_again_has_its_trouble_closed(self) -> None:
        fail = True

        def run(now: datetime, subjects: Subjects) -> int:
            if fail:
                subjects.failed("acct_a", ValueError("once"))
            return 0

        job = a_job(run)
        jobs.ring(jobs=[job], now=NOW)
        work(job, NOW + MINUTE)
        fail = False
        work(job, NOW + 2 * MINUTE)
        assert [(row.state, row.attempts) for row in JobRun.objects.filter(job=job.name, subject="acct_a")] == [("done", 1)]


@pytest.mark.django_db
class TestStandings:
    def test_they_say_what_was_what_is_next_and_how_far_behind(self) -> None:
        ok, bad = a_job(), a_job(raising("boom"))
        jobs.ring(jobs=[ok, bad], now=NOW)
        assert [each.state for each in jobs.standings(jobs=[ok, bad], now=NOW)] == ["never run", "never run"]
        work(ok, NOW + MINUTE)
        work(bad, NOW + MINUTE)
        fine, failed = jobs.standings(jobs=[ok, bad], now=NOW + MINUTE)
        assert fine.last is not None
        assert failed.last is not None
        assert (fine.state, fine.last.rows, fine.lag) == ("ok", 3, timedelta())
        assert (failed.state, failed.last.error) == ("failed", "RuntimeError: boom")
        [behind, _] = jobs.standings(jobs=[ok, bad], now=NOW + DAY)
        assert (behind.state, behind.lag) == ("late", DAY - timedelta(seconds=90))


@pytest.fixture
def own_job(committed: None) -> Iterator[Callable[[Job], Job]]:
    """For tests that commit: their rows are gone afterwards."""
    made: list[str] = []

    def keep(job: Job) -> Job:
        made.append(job.name)
        return job

    yield keep
    JobRun.objects.filter(job__in=made).delete()


class TestAtOnce:
    @pytest.mark.failure(48, 78)
    def test_of_eight_workers_at_once_one_does_the_run(self, own_job: Callable[[Job], Job]) -> None:
        count, lock = 0, threading.Lock()

        def run(now: datetime, subjects: Subjects) -> int:
            nonlocal count
            with lock:
                count += 1
            return 1

        job = own_job(a_job(run, DAILY))

        def beat(number: int) -> JobRun | None:
            try:
                barrier.wait(30)
                jobs._plan([(job, DAILY.next(after=NOW))], NOW)
                return work(job, NOW + DAY, f"w{number}")
            finally:
                connections.close_all()

        barrier = threading.Barrier(8)
        with ThreadPoolExecutor(8) as workers:
            found = list(workers.map(beat, range(8)))
        assert (count, len([run for run in found if run])) == (1, 1)
        assert [state for _, state in runs(job)] == ["done", "waiting"]

    def test_a_lease_is_renewed_while_its_worker_works(self, own_job: Callable[[Job], Job], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jobs, "LEASE", timedelta(seconds=0.6))
        working, go_on = threading.Event(), threading.Event()

        def run(now: datetime, subjects: Subjects) -> int:
            working.set()
            assert go_on.wait(30)
            return 1

        job = own_job(a_job(run))
        jobs._plan([(job, NOW)], NOW)

        def other() -> JobRun | None:
            try:
                return work(job, NOW)
            finally:
                connections.close_all()

        with ThreadPoolExecutor(1) as thread:
            result = thread.submit(other)
            assert working.wait(30)
            first = JobRun.objects.get(job=job.name).lease_until
            assert first is not None
            for _ in range(200):
                renewed = JobRun.objects.get(job=job.name).lease_until
                if renewed and renewed > first + timedelta(seconds=0.6):
                    break
                threading.Event().wait(0.05)
            else:
                pytest.fail("The lease was not renewed.")
            assert work(job, first) is None
            go_on.set()
            done = result.result()
        assert done is not None
        assert (done.state, done.fence) == ("done", 1)
