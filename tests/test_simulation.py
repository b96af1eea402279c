"""A short year of each product, whose ledger does not depend on how its jobs were run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from accounts import registration
from analytics.simulation import books, digest, jobs
from billing import ledger
from config import scratch
from tests.factories import NANOS, give, make_account, make_product

CATALOGS = sorted(path.stem for path in (Path(__file__).parent.parent / "pricing" / "catalogs").glob("*.toml"))


def simulate(*arguments: str, database: str = "") -> str:
    """What the command prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "manage.py", "simulate", *arguments],
        cwd=settings.BASE_DIR,
        env=os.environ | {"DATABASE_URL": database or settings.DATABASE_URL, "REDIS_URL": settings.REDIS_URL, "TOLLGATE_TRACES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digests(printed: str) -> list[str]:
    return re.findall(r"^digest  ([0-9a-f]{64})  jobs", printed, re.MULTILINE)


@pytest.mark.parametrize("catalog", CATALOGS)
def test_jobs_that_are_late_doubled_or_killed_leave_the_ledger_of_jobs_on_time(catalog: str, fresh_database: str) -> None:
    printed = simulate(catalog, "--days", "60", "--accounts", "6", "--seed", "3", "--jobs", "all", "--here", database=fresh_database)
    assert len(digests(printed)) == len(jobs.MANNERS)
    assert len(set(digests(printed))) == 1
    assert printed.count("audit   0 findings") == len(jobs.MANNERS)
    months = [line.split()[0] for line in printed.splitlines() if re.match(r"(Jan|Feb|Mar) 2025 |total ", line)]
    assert months == ["Jan", "Feb", "Mar", "total"]


def test_the_same_seed_gives_the_same_ledger_and_another_one_another(django_db_setup: None) -> None:
    short = ("supabase_chat", "--days", "20", "--accounts", "6")
    [first], [again], [other] = (digests(simulate(*short, "--seed", seed)) for seed in ("5", "5", "6"))
    assert first == again
    assert first != other
    with psycopg.connect(scratch.url("postgres")) as server:
        left = server.execute("select datname from pg_database where datname ~ %s", [f"^{scratch.PREFIX}_[0-9]+$"]).fetchall()
    assert all(psutil.pid_exists(int(name.rpartition("_")[2])) for (name,) in left), "its own database is dropped"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such"], "expected a file, or one of elite"),
        (["../no-such-folder/passwd"], "expected a file"),
        (["pricing/catalog.py"], "pricing/catalog.py"),
        (["rover", "--days", "0"], "--days"),
        (["rover", "--days", "many"], "--days"),
        (["rover", "--days", "９"], "--days"),
        (["rover", "--accounts", "-3"], "--accounts"),
        (["rover", "--accounts", "99999999999999999999"], "--accounts"),
        (["rover", "--seed", "1.5"], "--seed"),
        (["rover", "--start", "soon"], "--start"),
        (["rover", "--jobs", "never"], "--jobs"),
        (["rover", "--here", "--keep"], "not allowed with"),
        ([], "CATALOG"),
    ],
)
def test_garbage_is_refused_before_anything_is_made(arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=re.escape(said)):
        call_command("simulate", *arguments, stdout=StringIO())


def test_a_trace_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_TRACES", "/no/such/trace.csv")
    with pytest.raises(CommandError, match="there is no trace at /no/such"):
        call_command("simulate", "rover", stdout=StringIO())


@pytest.mark.django_db
def test_a_database_with_accounts_is_left_alone() -> None:
    make_account()
    with pytest.raises(CommandError, match="This database has accounts"):
        call_command("simulate", "rover", "--here", stdout=StringIO())


@pytest.mark.django_db
def test_books_that_are_a_cent_away_from_what_was_paid_are_refused() -> None:
    read = books.Books(product_id=make_product().pk, start=datetime(2025, 1, 1, tzinfo=UTC))
    read.close(month=date(2025, 1, 1), told=(0, 0, 0), now=datetime(2025, 2, 1, tzinfo=UTC))
    with pytest.raises(books.CashDiffers, match=r"\$0\.01 were paid and \$0\.00 given back; our books have \$0\.00 and \$0\.00"):
        read.close(month=date(2025, 2, 1), told=(1, 0, 0), now=datetime(2025, 3, 1, tzinfo=UTC))


@pytest.mark.django_db
def test_the_digest_is_of_what_happened_and_not_of_the_ids_of_rows() -> None:
    at = datetime(2027, 1, 1, tzinfo=UTC)

    def lived(*, taken: int) -> str:
        product = make_product()
        with ledger.clock(at=at):
            account = registration.open_account(product=product, external_id="customer", name="Ada", now=at)
        for days, act in enumerate(("grant", "take")):
            with ledger.clock(at=at + timedelta(days=days)):
                if act == "grant":
                    give(account, 5 * NANOS)
                else:
                    ledger.adjust(account_id=account.pk, unit_id=product.unit_id, amount_nanos=-taken, key="k", actor="test", reason="test")
        return digest.digest(product_id=product.pk)

    lines = lived(taken=NANOS), lived(taken=NANOS), lived(taken=NANOS + 1)
    assert lines[0] == lines[1]
    assert lines[0] != lines[2]


def test_late_jobs_are_days_late_and_late_in_the_same_way_each_time() -> None:
    rung: dict[str, Any] = {}
    for name, manner, seed in (("late", "late", "a"), ("again", "late", "a"), ("other", "late", "b"), ("on-time", "on-time", "a")):
        rung[name] = list(islice(jobs.rings(manner=manner, start=datetime(2025, 1, 1, tzinfo=UTC), seed=seed), 50))  # type: ignore[arg-type]
    assert rung["late"] == rung["again"] != rung["other"]
    assert max(after - before for before, after in zip(rung["late"], rung["late"][1:], strict=False)) > timedelta(days=3)
    assert {after - before for before, after in zip(rung["on-time"], rung["on-time"][1:], strict=False)} == {jobs.EVERY}
