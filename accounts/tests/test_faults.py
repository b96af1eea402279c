"""Faults are counted while they happen, written outside of what failed, and not lost while the database is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.db import DatabaseError, OperationalError, transaction
from django.db.models import Sum

from accounts import api, faults
from accounts.models import Fault
from tests.cutter import database_behind_a_cutter

NOW = datetime(2032, 2, 2, 12, 0, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is left of other tests, and nothing of this one."""
    faults._counted.clear()
    monkeypatch.setattr(faults, "GATHER_SECONDS", 0.05)
    monkeypatch.setattr(faults, "RETRY_SECONDS", 0.05)
    yield
    while faults._writer is not None:
        time.sleep(0.02)
    faults._counted.clear()


def counted(kind: str = "database", *, now: datetime = NOW) -> int:
    return Fault.objects.filter(kind=kind, minute=now.replace(second=0)).aggregate(n=Sum("count"))["n"] or 0


def eventually(count: int, *, now: datetime) -> bool:
    for _ in range(200):
        if counted(now=now) == count:
            return True
        time.sleep(0.05)
    return False


def test_a_burst_is_one_row_a_minute_and_kind(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_schedule", lambda seconds: None)
    for number in range(50):
        faults.note(kind="database", about=f"error {number}", now=NOW)
    faults.note(kind="database", about="x" * 500, now=NOW + timedelta(minutes=1))
    faults.note(kind="deduction", about="one", now=NOW)
    assert faults.flush() == 52
    assert faults.flush() == 0
    rows = list(Fault.objects.filter(minute__year=2032).order_by("minute", "kind").values_list("kind", "count", "about"))
    assert rows == [("database", 50, "error 49"), ("deduction", 1, "one"), ("database", 1, "x" * 200)]


def test_what_is_noted_in_a_transaction_that_fails_is_written_all_the_same(committed: None) -> None:
    now = NOW + timedelta(days=1)
    with transaction.atomic():
        faults.note(kind="database", about="lost", now=now)
        transaction.set_rollback(True)
    assert eventually(1, now=now)


def test_many_threads_lose_none(committed: None) -> None:
    now = NOW + timedelta(days=2)

    def fail() -> None:
        for _ in range(200):
            faults.note(kind="database", about="t", now=now)

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert eventually(1_600, now=now)


def test_while_the_database_is_away_they_are_kept_and_written_when_it_is_back(committed: None) -> None:
    now = NOW + timedelta(days=3)
    with database_behind_a_cutter() as cutter:
        cutter.down()
        for _ in range(7):
            faults.note(kind="database", about="away", now=now)
        with pytest.raises((DatabaseError, OSError)):
            faults.flush()
        assert sum(count for count, _ in faults._counted.values()) == 7
        cutter.up()
    assert eventually(7, now=now)


def test_an_endpoint_that_the_database_does_not_answer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_schedule", lambda seconds: None)
    assert api.problem_of(OperationalError("gone")).code == "dependency_unavailable"
    assert [(kind, count, about) for (kind, _), (count, about) in faults._counted.items()] == [("database", 1, "OperationalError")]
