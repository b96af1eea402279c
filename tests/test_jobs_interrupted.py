"""Whatever happens to beat, workers and the broker, the ledger ends as if nothing had: in the clock's own time, and with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from django.conf import settings as django_settings
from django.db import connection, transaction
from django.utils import timezone

from accounts import mails
from accounts.models import Account, Mail
from analytics import jobs
from analytics.models import JobRun
from billing import audit, ledger, stripe_receiver
from billing.models import Grant, LedgerEntry, StripeEvent, Wallet
from billing.tests.test_ledger import record
from billing.tests.test_stripe_inbox import receive
from config import jobs as table
from config.celery import app as celery
from tests.factories import give, make_account

ROOT = Path(__file__).resolve().parent.parent
BEGIN = datetime(2028, 1, 28, 9, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LAST = datetime(2028, 3, 3, tzinfo=UTC)
CALENDAR = [table.named(name) for name in ("apply-due", "reset-costs", "reset-credits", "expire-rollovers")]
State = JobRun.State


# In the clock's own time --------------------------------------------------------------------------------------------------------


def world() -> list[Account]:
    """Accounts whose periods turn around the end of February, with credit to expire, to roll over and to owe."""
    accounts = []
    for number in range(5):
        anchor = BEGIN + number * DAY + number * HOUR
        with ledger.clock(at=anchor):
            account = make_account()
            ledger.schedule(
                account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=100, source="monthly", source_key="plan",
                anchor_at=anchor, months=1, priority=10, rollover_priority=20, rollover_periods=1, rollover_cap_nanos=80, key="plan",
                actor="tollgate", reason="test",
            )  # fmt: skip
            give(account, 30, expires_at=datetime(2028, 3, 1, tzinfo=UTC))
            record(account, 40 * number, key="used")
        accounts.append(account)
    return accounts


def told(account: Account) -> Any:
    """All that the ledger says of an account, but when it was written and under which number."""
    entries = LedgerEntry.objects.filter(account=account).order_by("unit_id", "seq")
    grants = Grant.objects.filter(account=account).order_by("starts_at", "source", "granted")
    wallets = Wallet.objects.filter(account=account).order_by("unit_id")
    return (
        list(entries.values_list("seq", "kind", "amount", "debt_delta", "balance_after", "debt_after", "effective_at")),
        list(grants.values_list("source", "granted", "remaining", "starts_at", "expires_at", "priority")),
        list(wallets.values_list("balance", "held", "debt", "due_at")),
    )


def ring(now: datetime, do: Callable[[jobs.Job, datetime], None]) -> None:
    with ledger.clock(at=now):
        for job in jobs.ring(jobs=CALENDAR, now=now):
            do(job, now)


def do_all(job: jobs.Job, now: datetime) -> None:
    while (run := jobs.work(job=job, worker="w", now=now)) is not None:
        assert run.state == State.DONE, run.error


def twice(job: jobs.Job, now: datetime) -> None:
    """The second beat's ring comes while the first one's run is under way, and once more afterwards."""
    run = jobs._take(job, "first", now)
    jobs.ring(jobs=CALENDAR, now=now)
    assert jobs.work(job=job, worker="second", now=now) is None
    if run is not None:
        subjects = jobs.Subjects(job=job, run=run, now=now)
        for _ in range(2):
            job.run(now, subjects)
        jobs._end(job, run, State.DONE, now)
    do_all(job, now)


def killed_before(job: jobs.Job, now: datetime) -> None:
    """Takes a run and is never heard of again; one that was left so is taken over."""
    if now.hour % 12 < 6:
        jobs._take(job, "killed", now)
    else:
        do_all(job, now)


def killed_after(job: jobs.Job, now: datetime) -> None:
    """Does it and dies before saying so."""
    if now.hour % 12 < 6:
        run = jobs._take(job, "killed", now)
        if run is not None:
            job.run(now, jobs.Subjects(job=job, run=run, now=now))
    else:
        do_all(job, now)


ALL = [datetime(2028, 2, 27, 0, 20, tzinfo=UTC) + number * 4 * HOUR for number in range(6 * 6)]
STOPPED = [tick for tick in ALL if not datetime(2028, 2, 28, 6, tzinfo=UTC) < tick < datetime(2028, 3, 2, 12, tzinfo=UTC)]


def state_after(ticks: Sequence[datetime], do: Callable[[jobs.Job, datetime], None]) -> list[Any]:
    """What the ledger says of a world of its own when all ticks are over. Everything is rolled back."""
    with transaction.atomic():
        accounts = world()
        for tick in ticks:
            ring(tick, do)
        ring(LAST + HOUR, do_all)
        assert audit.run() == []
        found = [told(account) for account in accounts]
        transaction.set_rollback(True)
    return found


@pytest.mark.django_db
class TestTheSameEnd:
    @pytest.mark.failure(47, 48, 77, 78)
    def test_beat_stopped_over_the_end_of_a_month_two_beats_and_killed_workers_end_as_an_uninterrupted_run(self) -> None:
        uninterrupted = state_after(ALL, do_all)
        kinds = {entry[1] for entries, _, _ in uninterrupted for entry in entries}
        assert kinds >= {"grant", "usage", "expiry", "rollover", "debt", "debt_repaid"}
        assert state_after(STOPPED, do_all) == uninterrupted
        assert state_after(STOPPED, twice) == uninterrupted
        assert state_after(ALL, twice) == uninterrupted
        assert state_after(ALL, killed_before) == uninterrupted
        assert state_after(ALL, killed_after) == uninterrupted
        assert state_after(ALL[:1], do_all) == uninterrupted

    def test_each_missed_day_has_its_run_and_they_went_in_their_order(self) -> None:
        for tick in STOPPED:
            ring(tick, do_all)
        for name in ("reset-costs", "reset-credits", "expire-rollovers"):
            days = list(JobRun.objects.filter(job=name, state="done").order_by("pk").values_list("due_at__day", flat=True))
            assert days == [28, 29, 1, 2, 3]


# With real processes --------------------------------------------------------------------------------------------------------------

WORK = """
import django
django.setup()
from django.utils import timezone
from billing import due
from config import jobs
due.BATCH = 3
jobs.work(job=jobs.named("apply-due"), now=timezone.now())
"""


@pytest.fixture
def clean(committed: None) -> Iterator[None]:
    JobRun.objects.all().delete()
    yield
    JobRun.objects.all().delete()


def database() -> str:
    return str(urlsplit(django_settings.DATABASE_URL)._replace(path=f"/{connection.settings_dict['NAME']}").geturl())


def until(true: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "It did not happen in time."
        time.sleep(0.1)


@contextmanager
def locked(account: Account) -> Iterator[None]:
    """Nobody gets past this account meanwhile; who waits at the end loses the connection, as when its machine is gone."""
    with psycopg.connect(database()) as other:
        other.execute("select pg_advisory_xact_lock(%s)", [account.pk])
        yield
        other.execute(
            "select pg_terminate_backend(pid, 10000) from pg_locks where locktype = 'advisory' and objid = %s and not granted", [account.pk]
        )


def due_accounts(number: int) -> list[Account]:
    """Accounts of which 10 have just expired."""
    soon = datetime.now(UTC) + timedelta(seconds=3)
    accounts = [make_account(billing_email="ada@example.com") for _ in range(number)]
    for account in accounts:
        give(account, 10, expires_at=max(soon, datetime.now(UTC) + timedelta(seconds=1)))
    until(lambda: not Grant.objects.filter(account__in=accounts, expires_at__gt=datetime.now(UTC)).exists())
    return accounts


def expiries(accounts: Sequence[Account]) -> list[int]:
    return [LedgerEntry.objects.filter(account=account, kind="expiry", amount=-10).count() for account in accounts]


def plan(*names: str) -> None:
    """These are due since a minute ago."""
    moment = timezone.now() - timedelta(minutes=1)
    jobs._plan([(table.named(name), moment) for name in names], moment)


class TestKilled:
    @pytest.mark.failure(49, 77)
    @pytest.mark.usefixtures("clean")
    def test_a_process_that_is_killed_half_way_is_taken_over_and_nothing_happens_twice(self) -> None:
        accounts = due_accounts(9)
        plan("apply-due")
        environment = os.environ | {"DATABASE_URL": database(), "DJANGO_SETTINGS_MODULE": "config.settings.test"}
        with locked(accounts[7]), subprocess.Popen([sys.executable, "-c", WORK], cwd=ROOT, env=environment) as worker:
            try:
                until(lambda: expiries(accounts[:7]) == [1] * 7)
            finally:
                worker.kill()
        assert worker.wait(30) == -signal.SIGKILL
        assert expiries(accounts) == [1] * 7 + [0] * 2
        run = JobRun.objects.get(job="apply-due")
        assert (run.state, run.fence) == ("running", 1)
        job, now = table.named("apply-due"), timezone.now()
        assert run.lease_until is not None
        assert jobs.work(job=job, worker="other", now=run.lease_until - timedelta(seconds=1)) is None
        assert job in table.ring(now=now + jobs.LEASE)
        done = jobs.work(job=job, worker="other", now=now + jobs.LEASE)
        assert done is not None
        assert (done.pk, done.state, done.fence) == (run.pk, "done", 2)
        assert expiries(accounts) == [1] * 9
        ours = {account.pk for account in accounts}
        assert [finding for finding in audit.run() if finding.account_id in ours] == []


class TestBroker:
    @pytest.fixture
    def real_broker(self) -> Iterator[None]:
        celery.conf.task_always_eager = False
        yield
        celery.conf.task_always_eager = True

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        environment = {
            "PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "config.settings.base", "SECRET_KEY": "x" * 60,
            "ALLOWED_HOSTS": "localhost", "DATABASE_URL": database(), "REDIS_URL": django_settings.REDIS_URL,
            "STRIPE_SECRET_KEY": "sk_test_" + "0" * 24, "STRIPE_API_HOST": "http://127.0.0.1:1", "DB_LOCK_TIMEOUT_MS": "120000",
        }  # fmt: skip
        command = [sys.executable, "-m", "celery", "--quiet", "-A", "config", "worker", "--concurrency", "2", "--loglevel", "WARNING"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

    @pytest.mark.failure(79, 80)
    @pytest.mark.usefixtures("clean", "real_broker")
    def test_valkey_flushed_twice_and_the_workers_killed_under_load_lose_nothing_and_do_nothing_twice(self) -> None:
        accounts = due_accounts(3)
        with transaction.atomic():
            mails.queue(account=accounts[0], kind=Mail.Kind.LOW_BALANCE, key="1", context={"balance_nanos": 5}, now=timezone.now())
        event = receive("customer.nothing_of_ours", {"id": "cus_1", "object": "customer"}, now=timezone.now())
        stripe_receiver.ring()
        plan("apply-due", "send-mails", "work-stripe-inbox")

        def mail() -> str:
            return str(Mail.objects.get(account=accounts[0]).state)

        def beat() -> None:
            celery.send_task("config.tasks.ring_jobs")

        with redis.Redis.from_url(django_settings.REDIS_URL) as valkey:
            assert valkey.llen("celery") >= 2, "the doorbells of the mail and the event"
            valkey.flushall()  # nobody will hear them
            with locked(accounts[1]), self.worker():
                beat()
                until(lambda: mail() == "sent" and StripeEvent.objects.get(pk=event.pk).state == "ignored")
                until(lambda: JobRun.objects.filter(job="apply-due", state="running").exists())
                until(lambda: expiries(accounts[:1]) == [1])
                beat()
                valkey.flushall()  # the ring, and what the worker has not acknowledged
            assert JobRun.objects.get(job="apply-due").state == "running"
            assert expiries(accounts) == [1, 0, 0]
            JobRun.objects.filter(job="apply-due", state="running").update(lease_until=timezone.now())  # two minutes later
            with self.worker():

                def done() -> bool:
                    beat()
                    time.sleep(1)
                    return JobRun.objects.filter(job="apply-due", state="done").exists()

                until(done)
            valkey.flushall()
        assert expiries(accounts) == [1, 1, 1]
        assert (mail(), Mail.objects.get(account=accounts[0]).sendings) == ("sent", 1)
        assert [run.fence for run in JobRun.objects.filter(job="apply-due", state="done").order_by("pk")[:1]] == [2]
