"""Rollups: folding changes no figure, a check finds every difference, a rebuild ends them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from threading import Event

import pytest
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection, connections, transaction

from analytics import books, margin, rollups, tasks
from analytics.tests.world import NOON, World
from billing import ledger
from config import roles


def live(world: World) -> margin.Row:
    today = NOON.date()
    return margin.report(by="model", since=today - timedelta(days=9), until=today + timedelta(days=9), product_id=world.product.pk).totals


def command(action: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("rollups", action, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def as_owner(sql: str, parameters: list[int]) -> None:
    """What the app's role may not do."""
    with connection.cursor() as cursor:
        cursor.execute(f"set local role {roles.OWNER}")
        cursor.execute(sql, parameters)
        cursor.execute("reset role")


def test_folding_changes_no_figure(world: World) -> None:
    account = world.account()
    world.grant(account, 1000, cash_nanos=500)
    for price in (10, 20, 30):
        ledger.record(world.event(account, cost=1, price=price))
    before = live(world)
    rollups.fold(limit=2)
    assert live(world) == before
    tasks.fold_rollups()
    assert live(world) == before
    assert before.revenue_nanos == 60


def test_a_fold_says_how_many_it_took_and_when(world: World) -> None:
    tasks.fold_rollups()
    account = world.account()
    for _ in range(3):
        ledger.record(world.event(account, cost=1, price=2))
    before = rollups.folded_at()
    assert [rollups.fold(limit=2), rollups.fold(limit=2), rollups.fold(limit=2)] == [2, 1, 0]
    assert rollups.folded_at() > before


@pytest.mark.django_db
def test_a_fold_of_nothing_or_less_is_refused() -> None:
    for limit in (0, -1):
        with pytest.raises(ValueError, match="at least one"):
            rollups.fold(limit=limit)


@pytest.mark.failure(38)
def test_the_check_names_a_lost_and_an_invented_figure(world: World) -> None:
    account = world.account()
    ledger.record(world.event(account, cost=7, price=10))
    tasks.fold_rollups()
    as_owner("update rollup_model set cost_nanos = 8 where product_id = %s", [world.product.pk])
    as_owner("delete from rollup_account where account_id = %s", [account.pk])
    lost, wrong = rollups.check()
    assert (lost.rollup, lost.key, lost.found.records, lost.expected.records) == ("account", account.pk, 0, 1)
    assert str(wrong) == f"product {world.product.pk} 2026-03-10 model {world.models[0].pk} feature 0: cost_nanos 8 instead of 7"


def test_the_command_fails_with_the_differences_and_passes_after_a_rebuild(world: World) -> None:
    tasks.fold_rollups()  # what other tests committed
    ledger.record(world.event(world.account(), cost=7, price=10))
    assert command("check")[0] == "The rollups are what the records say.\n"
    as_owner("delete from rollup_delta", [])
    with pytest.raises(SystemExit, match="1"):
        command("check")
    assert command("rebuild")[0].startswith("Rebuilt from the records; 2 rows changed. The books of ")
    assert command("check")[0] == "The rollups are what the records say.\n"
    assert live(world).cost_nanos == 7


def test_a_rebuild_takes_the_deltas_that_it_counted(world: World) -> None:
    account = world.account()
    ledger.record(world.event(account, cost=1, price=10))
    tasks.fold_rollups()
    ledger.record(world.event(account, cost=1, price=10))
    before = live(world)
    rollups.rebuild()
    assert live(world) == before
    assert rollups.fold() == 0
    assert rollups.rebuild() == 0


@pytest.mark.django_db
@pytest.mark.parametrize("action", ["", "drop", "fold; drop table x"])
def test_the_command_refuses_an_unknown_action(action: str) -> None:
    with pytest.raises(CommandError, match="invalid choice"):
        command(action)


@pytest.mark.django_db
@pytest.mark.parametrize("table", ["rollup_model", "rollup_account", "rollup_delta", "rollup_state"])
def test_the_app_can_read_the_rollups_and_not_write_them(table: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"select count(*) from {table}")
        with pytest.raises(ProgrammingError, match="permission denied"):
            cursor.execute(f"delete from {table}")


@pytest.mark.usefixtures("committed")
def test_charges_folds_and_rebuilds_at_once_lose_and_double_nothing() -> None:
    world = World.new()
    accounts = [world.account() for _ in range(4)]

    def charge(number: int) -> None:
        try:
            for price in range(1, 41):
                ledger.record(world.event(accounts[number], cost=1, price=price, model=price % 2))
        finally:
            connections.close_all()

    def fold(number: int) -> None:
        try:
            for round_ in range(30):
                rollups.rebuild() if number == 0 and round_ % 10 == 0 else rollups.fold(limit=7)
                books.rebuild() if number == 0 and round_ % 10 == 5 else books.fold()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(7) as pool:
        list(pool.map(lambda job: job[0](job[1]), [(charge, 0), (charge, 1), (charge, 2), (charge, 3), (fold, 0), (fold, 1), (fold, 2)]))
    assert rollups.check() == []
    assert books.check() == []
    assert (live(world).records, live(world).revenue_nanos) == (160, 4 * sum(range(1, 41)))


@pytest.mark.failure(38)
@pytest.mark.usefixtures("committed")
def test_an_earlier_charge_that_commits_after_a_later_one_was_folded_is_folded_too() -> None:
    world = World.new()
    early, late = world.account(), world.account()
    written, folded = Event(), Event()

    def charge_slowly() -> None:
        try:
            with transaction.atomic():
                ledger.record(world.event(early, cost=1, price=10, at=NOON - timedelta(days=2)))
                written.set()
                assert folded.wait(10)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(charge_slowly)
        assert written.wait(10)
        ledger.record(world.event(late, cost=1, price=20))
        tasks.fold_rollups()
        assert live(world).revenue_nanos == 20
        folded.set()
        slow.result()
    assert live(world).revenue_nanos == 30
    tasks.fold_rollups()
    assert live(world).revenue_nanos == 30
    assert rollups.check() == []
    assert books.check() == []
