"""The margin report is what was charged, to the nano: whatever came late, twice, was captured under or over its hold, or taken back."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from django.db import connection

from analytics import margin, rollups, tasks
from analytics.margin import BYS, By, Row
from analytics.tests.world import NANOS, NOON, World
from billing import ledger

SINCE, UNTIL = date(2026, 3, 1), date(2026, 3, 31)


def report(world: World, by: By = "model", **options: int) -> margin.Report:
    return margin.report(by=by, since=SINCE, until=UNTIL, product_id=world.product.pk, **options)


def sums(row: Row) -> tuple[int, int, int, int, int, int]:
    return row.records, row.tokens, row.cost_nanos, row.revenue_nanos, row.cash_nanos, row.fee_nanos


def test_rovers_worked_example_earns_a_third(world: World) -> None:
    account = world.account()
    world.grant(account, NANOS)
    ledger.record(world.event(account, cost=300_000_000, price=450_000_000))
    [row] = report(world).rows
    assert (row.cost_nanos, row.revenue_nanos, row.margin_nanos) == (300_000_000, 450_000_000, 150_000_000)
    assert row.margin_percent == Decimal("33.33")


def test_usage_that_was_charged_nothing_has_no_margin_percent(world: World) -> None:
    ledger.record(world.event(world.account(), cost=5, price=0))
    totals = report(world).totals
    assert (totals.margin_nanos, totals.margin_percent) == (-5, None)


def test_an_empty_period_has_totals_of_zero_and_no_rows(world: World) -> None:
    for by in BYS:
        empty = report(world, by)
        assert (empty.rows, empty.groups, sums(empty.totals)) == ([], 0, (0,) * 6)


def test_until_is_the_first_day_that_does_not_count(world: World) -> None:
    account = world.account()
    for moment in (
        "2026-02-28T23:59:59.999999+00:00",
        "2026-03-01T00:00:00+00:00",
        "2026-03-30T23:59:59+00:00",
        "2026-03-31T00:00:00+00:00",
    ):
        ledger.record(world.event(account, cost=1, price=2, at=datetime.fromisoformat(moment)))
    assert [row.key for row in report(world, "day").rows] == ["2026-03-01", "2026-03-30"]


@pytest.mark.failure(24)
def test_a_repeated_event_counts_once(world: World) -> None:
    account, key = world.account(), uuid4()
    for _ in range(3):
        ledger.record(world.event(account, cost=1, price=2, key=key))
    assert report(world).totals.records == 1


@pytest.mark.failure(38)
def test_a_late_event_changes_its_own_day_after_that_was_folded(world: World) -> None:
    account = world.account()
    ledger.record(world.event(account, cost=1, price=2))
    tasks.fold_rollups()
    ledger.record(world.event(account, cost=10, price=20, at=NOON - timedelta(days=3)))
    assert [(row.key, row.revenue_nanos) for row in report(world, "day").rows] == [("2026-03-07", 20), ("2026-03-10", 2)]


def test_a_reversal_takes_revenue_and_cash_back_and_leaves_the_cost(world: World) -> None:
    account = world.account()
    world.grant(account, 1000, cash_nanos=500, fee_nanos=30)
    usage = ledger.record(world.event(account, cost=40, price=100))
    assert sums(report(world).totals) == (1, 120, 40, 100, 50, 3)
    world.reverse(account, usage)
    assert sums(report(world).totals) == (1, 120, 40, 0, 0, 0)


def test_cash_is_that_of_the_credits_that_were_burnt(world: World) -> None:
    account = world.account()
    world.grant(account, 100, priority=1)  # promotion: no cash behind it
    world.grant(account, 1000, cash_nanos=900, fee_nanos=50, priority=2)
    ledger.record(world.event(account, cost=30, price=300))
    totals = report(world).totals
    assert (totals.cash_nanos, totals.fee_nanos, totals.cash_margin_nanos) == (180, 10, 140)


def test_credits_that_expire_when_the_wallet_is_opened_are_no_cash_of_the_charge(world: World) -> None:
    with ledger.clock(at=NOON):
        account = world.account()
        world.grant(account, 1000, cash_nanos=700, fee_nanos=70, expires_at=NOON + timedelta(days=1))
        world.grant(account, 1000, cash_nanos=1000)
    with ledger.clock(at=NOON + timedelta(days=2)):
        ledger.record(world.event(account, cost=1, price=10))
    assert (report(world).totals.cash_nanos, report(world).totals.fee_nanos) == (10, 0)


def test_a_capture_over_its_hold_earns_what_the_overage_policy_charges(world: World) -> None:
    account = world.account()
    world.grant(account, 1000)
    for overage, price in (("charge", 150), ("cap", 250), ("charge", 30)):
        with ledger.clock(at=NOON):
            world.capture(account, world.hold(account, 100), cost=20, price=price, overage=overage)
    totals = report(world).totals
    assert (totals.records, totals.cost_nanos, totals.revenue_nanos) == (3, 60, 150 + 100 + 30)


def test_released_work_is_no_record(world: World) -> None:
    account = world.account()
    world.grant(account, 1000)
    with ledger.clock(at=NOON):
        ledger.release(account_id=account.pk, authorization_id=world.hold(account, 100).id)
    totals = report(world).totals
    assert totals.records == 0


def test_groups_are_named_and_a_product_sees_only_its_own(world: World) -> None:
    other = World.new(name="Elite")
    ledger.record(other.event(other.account(), cost=1, price=7))
    ada, bob = world.account("Ada"), world.account("Bob")
    ledger.record(world.event(ada, cost=10, price=30, model=0, feature=0))
    ledger.record(world.event(bob, cost=5, price=20, model=1, feature=1))
    ledger.record(world.event(bob, cost=5, price=1, model=1))
    named: Callable[[By], list[tuple[str, str, int]]] = lambda by: [(r.key, r.label, r.revenue_nanos) for r in report(world, by).rows]  # noqa: E731
    slug = world.product.slug
    assert named("model") == [(str(world.models[0]), str(world.models[0]), 30), (str(world.models[1]), str(world.models[1]), 21)]
    assert named("account") == [(ada.public_id, "Ada", 30), (bob.public_id, "Bob", 21)]
    assert named("product") == [(slug, "Rover", 51)]
    assert named("day") == [("2026-03-10", "2026-03-10", 51)]
    assert named("feature") == [(f"{slug}/chat", "chat", 30), (f"{slug}/search", "search", 20), ("", "", 1)]
    everything = margin.report(by="product", since=SINCE, until=UNTIL)
    assert {(other.product.slug, 7), (slug, 51)} <= {(row.key, row.revenue_nanos) for row in everything.rows}


def test_totals_and_the_number_of_groups_count_the_rows_that_the_limit_leaves_out(world: World) -> None:
    for price in (30, 20, 10):
        ledger.record(world.event(world.account(), cost=1, price=price))
    short = report(world, "account", limit=2)
    assert ([row.revenue_nanos for row in short.rows], short.groups, short.totals.revenue_nanos) == ([30, 20], 3, 60)


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [("2026-03-02", "2026-03-01", "ends before"), ("2026-03-01", "2026-03-01", "ends before"), ("1000-01-01", "2026-01-01", "longer than")],
)
@pytest.mark.django_db
def test_an_impossible_period_is_refused(since: str, until: str, message: str) -> None:
    with pytest.raises(margin.InvalidPeriod, match=message):
        margin.report(by="day", since=date.fromisoformat(since), until=date.fromisoformat(until))


@pytest.mark.failure(42)
@pytest.mark.parametrize("seed", range(4))
def test_every_view_of_a_random_history_is_exact(world: World, seed: int) -> None:
    """Late and repeated events, debt, expiry, reversals, folds in between: each view equals a recount in Python, and so does the check."""
    dice = random.Random(seed)
    accounts = [world.account(f"Account {number}") for number in range(3)]
    expected: dict[By, dict[str, Counter[str]]] = {by: {} for by in BYS}
    cash: Counter[str] = Counter()
    charged = []
    moment = NOON
    for _ in range(60):
        moment += timedelta(hours=dice.randrange(12))
        account = dice.choice(accounts)
        with ledger.clock(at=moment):
            match dice.choice(["grant", "record", "record", "record", "repeat", "reverse", "fold"]):
                case "grant":
                    expires_at = moment + timedelta(hours=dice.randrange(1, 60)) if dice.random() < 0.6 else None
                    world.grant(
                        account, dice.randrange(1, 500), cash_nanos=dice.randrange(400), fee_nanos=dice.randrange(40), expires_at=expires_at
                    )
                case "record":
                    late = NOON - timedelta(days=dice.randrange(8)) if dice.random() < 0.3 else moment
                    model, feature = dice.randrange(2), dice.choice([None, 0, 1])
                    cost, price, value = dice.randrange(100), dice.randrange(200), dice.randrange(300)
                    event = world.event(account, cost=cost, price=price, value=value, at=late, model=model, feature=feature)
                    usage = ledger.record(event)
                    keys: dict[By, str] = {
                        "model": str(world.models[model]),
                        "account": account.public_id,
                        "product": world.product.slug,
                        "day": late.date().isoformat(),
                        "feature": "" if feature is None else f"{world.product.slug}/{world.features[feature].slug}",
                    }
                    charged.append((account, event, usage, keys))
                    for by, key in keys.items():
                        expected[by].setdefault(key, Counter()).update(
                            records=1, tokens=120, cost=event.charge.cost_nanos or 0, revenue=event.charge.value_nanos or 0
                        )
                case "repeat" if charged:
                    ledger.record(dice.choice(charged)[1])
                case "reverse" if charged:
                    owner, event, usage, keys = dice.choice(charged)
                    try:
                        world.reverse(owner, usage)
                    except (ledger.AlreadyReversed, ledger.NotFound):
                        continue
                    for by, key in keys.items():
                        expected[by][key].update(revenue=-(event.charge.value_nanos or 0))
                case "fold":
                    rollups.fold(limit=dice.randrange(1, 9))
    with connection.cursor() as cursor:
        cursor.execute(
            "select coalesce(sum(cash_nanos), 0)::bigint, coalesce(sum(fee_nanos), 0)::bigint from ledger_entry"
            " where account_id = any(%s) and kind in ('usage', 'reversal')",
            [[account.pk for account in accounts]],
        )
        cash["cash"], cash["fee"] = cursor.fetchone()
    for by in BYS:
        found = margin.report(by=by, since=date(2026, 1, 1), until=date(2027, 1, 1), product_id=world.product.pk)
        assert {row.key: (row.records, row.tokens, row.cost_nanos, row.revenue_nanos) for row in found.rows} == {
            key: (sum_["records"], sum_["tokens"], sum_["cost"], sum_["revenue"]) for key, sum_ in expected[by].items()
        }
        assert (found.totals.cash_nanos, found.totals.fee_nanos) == (cash["cash"], cash["fee"])
        assert sum(row.cash_nanos for row in found.rows) == cash["cash"]
    assert rollups.check() == []
