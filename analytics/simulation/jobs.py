"""The jobs of a simulated year, and how they are run: on time, or as badly as they are in real life.

What they do is in PostgreSQL; they say "look" and never "this is due". So however they are run, the ledger must come out the same.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, get_args

from django.db import connection

from analytics import customer_warnings, rollups
from billing import due, dunning, ledger
from metering import rerating, throttles

Manner = Literal["on-time", "late", "doubled", "killed"]
MANNERS: tuple[Manner, ...] = get_args(Manner)
#: How often they are rung when all is well. Less often than in real life: to be late must not matter anyway.
EVERY: Final = timedelta(hours=6)
#: How long nothing runs where they are late: the mean, and the longest.
SILENCE_HOURS: Final = (30, 96)
#: A worker that is killed is killed within so many statements.
STATEMENTS: Final = 40
BATCH: Final = 100


def _apply_due(now: datetime) -> None:
    due.apply(given_up=(), failed=_failed)


def _renew_plans(now: datetime) -> None:
    due.renew(now=now, given_up=(), failed=_failed)


def _close_windows(now: datetime) -> None:
    due.close_windows(given_up=(), failed=_failed)


def _follow_throttles(now: datetime) -> None:
    throttles.follow(now=now)


def _sweep_holds(now: datetime) -> None:
    while ledger.sweep(limit=BATCH):
        pass


def _take_dunning_steps(now: datetime) -> None:
    dunning.take_steps(now=now, failed=_failed)


def _rate_unpriced(now: datetime) -> None:
    rerating.run(now=now)


def _fold_rollups(now: datetime) -> None:
    while rollups.fold() == rollups.FOLD_LIMIT:
        pass


def _warn_customers(now: datetime) -> None:
    while customer_warnings.look(now=now) == customer_warnings.BATCH:
        pass


def _failed(subject: str, error: Exception) -> None:
    """Jobs go on after what fails for one account. A simulation does not."""
    raise error


#: Those that neither ask Stripe nor send mails, each with how long it rests after a run. Warnings change no account and cost the most.
JOBS: tuple[tuple[Callable[[datetime], None], timedelta], ...] = (
    (_apply_due, timedelta(0)),
    (_sweep_holds, timedelta(0)),
    (_take_dunning_steps, timedelta(0)),
    (_renew_plans, timedelta(0)),
    (_close_windows, timedelta(days=1)),
    (_follow_throttles, timedelta(days=1)),
    (_fold_rollups, timedelta(0)),
    (_rate_unpriced, timedelta(days=1)),
    (_warn_customers, timedelta(days=14)),
)


class _Killed(BaseException):
    """No ``except Exception`` stops it, as none stops a signal."""


def rings(*, manner: Manner, start: datetime, seed: str) -> Iterator[datetime]:
    """When the jobs are run, for ever."""
    chance = random.Random(f"{seed}:rings")  # noqa: S311 -- a simulation, no secret
    mean, longest = SILENCE_HOURS
    at = start
    while True:
        at += timedelta(hours=min(1 + chance.expovariate(1 / mean), longest)) if manner == "late" else EVERY
        yield at


class Worker:
    """Runs the jobs when they are rung."""

    def __init__(self, *, manner: Manner, seed: str) -> None:
        self.manner = manner
        self.runs = 0
        self.killed = 0
        self._ran: dict[Callable[[datetime], None], datetime] = {}
        self._chance = random.Random(f"{seed}:kills")  # noqa: S311 -- a simulation, no secret

    def run(self, *, now: datetime) -> None:
        """One ring: every job whose turn it is."""
        due = [job for job, rest in JOBS if job not in self._ran or now - self._ran[job] >= rest]
        self._ran |= dict.fromkeys(due, now)
        if self.manner == "doubled":
            _twice_at_once(due, now)
        elif self.manner == "killed" and self._chance.random() < 0.7:
            self._run_and_die(due, now)
        else:
            _run(due, now)
        self.runs += len(due)

    def finish(self, *, now: datetime) -> None:
        """All of them, undisturbed: the last state of the year is up to date, whatever the manner."""
        _run([job for job, _ in JOBS], now)

    def _run_and_die(self, due: Sequence[Callable[[datetime], None]], now: datetime) -> None:
        """What was committed stays; what was not is gone, and so is what would have come after it."""
        left = self._chance.randrange(1, STATEMENTS)

        def count(execute: Callable[..., Any], *args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Killed
            return execute(*args)

        try:
            with connection.execute_wrapper(count):
                _run(due, now)
        except _Killed:
            self.killed += 1


def _run(due: Sequence[Callable[[datetime], None]], now: datetime) -> None:
    for job in due:
        job(now)


def _twice_at_once(due: Sequence[Callable[[datetime], None]], now: datetime) -> None:
    """Two workers, each with a connection of its own. :raises BaseException: what either of them raised."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            ledger.set_clock(at=now)
            _run(due, now)
        except BaseException as error:  # noqa: BLE001 (the caller raises it)
            failures.append(error)
        finally:
            ledger.set_clock(at=None)
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
