"""The margin report is what was charged, to the nano: whatever came late, twice, was captured under or over its hold, or taken back."""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection

from accounts.models import Account
from analytics import books, margin, rollups, tasks
from analytics.margin import BYS, By, Row
from analytics.tests.world import NANOS, NOON, World
from billing import ledger
from billing.models import Subscription
from pricing import catalog_file
from pricing.models import Plan, PlanVersion

SINCE, UNTIL = date(2026, 3, 1), date(2026, 3, 31)


def report(world: World, by: By = "model", **options: Any) -> margin.Report:
    return margin.report(by=by, since=SINCE, until=UNTIL, product_id=world.product.pk, **options)


def sums(row: Row) -> tuple[int, int | None, int, int, int, int]:
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
        assert (empty.rows, empty.groups, sums(empty.totals)) == ([], 0, (0,) * 6), by


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
    assert (totals.cash_nanos, totals.fee_nanos, totals.cash_margin_nanos) == (180, 10, 150)


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
                        "plan": "",
                        "cohort": f"{account.created_at:%Y-%m}",
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
                    books.fold()
    with connection.cursor() as cursor:
        cursor.execute(
            "select coalesce(sum(cash_nanos), 0)::bigint, coalesce(sum(fee_nanos), 0)::bigint from ledger_entry"
            " where account_id = any(%s) and kind in ('usage', 'reversal')",
            [[account.pk for account in accounts]],
        )
        cash["cash"], cash["fee"] = cursor.fetchone()
    for by in BYS:
        found = margin.report(by=by, since=date(2026, 1, 1), until=date(2027, 1, 1), product_id=world.product.pk)
        if by not in ("user", "pack"):
            assert {row.key: (row.records, row.tokens, row.cost_nanos, row.revenue_nanos) for row in found.rows} == {
                key: (sum_["records"], sum_["tokens"], sum_["cost"], sum_["revenue"]) for key, sum_ in expected[by].items()
            }
        whole = margin.report(by="product", since=date(2026, 1, 1), until=date(2027, 1, 1), product_id=world.product.pk).totals
        assert sums(found.totals) == sums(whole)
        for number in (0, 2, 3, 4, 5) if by in ("user", "pack") else range(6):
            assert sums(whole)[number] == sum(sums(row)[number] or 0 for row in found.rows)
        assert (found.totals.cash_nanos, found.totals.fee_nanos) == (cash["cash"], cash["fee"])
        assert sum(row.cash_nanos for row in found.rows) == cash["cash"]
    assert rollups.check() == []
    assert [wrong for wrong in books.check() if wrong.startswith(f"product {world.product.pk} ")] == []


def give(account: Account, nanos: int, *, reason: str = "test", source: str = "purchased", **fields: Any) -> None:
    key = uuid4().hex
    terms = {"cash_nanos": 0, "priority": 10} | fields
    ledger.grant(
        account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=nanos, source=source, source_key=key, key=key, actor="test",
        reason=reason, **terms,
    )  # fmt: skip


class TestSlices:
    """By what the credits came from, by who used them, by the plan of the day and by the month of sign-up."""

    def rows(self, world: World, by: By, **options: Any) -> dict[str, tuple[int, int, int, int]]:
        found = margin.report(by=by, since=SINCE, until=UNTIL, product_id=world.product.pk, **options).rows
        return {row.key: (row.records, row.revenue_nanos, row.cost_nanos, row.cash_nanos) for row in found}

    @pytest.fixture(params=[False, True], ids=["live", "folded"])
    def fold(self, request: pytest.FixtureRequest) -> Callable[[], object]:
        return books.fold if request.param else lambda: None

    def test_a_request_is_split_by_what_each_grant_gave_of_it(self, world: World, fold: Callable[[], object]) -> None:
        account = world.account()
        give(account, 40, source="promotion", priority=1, cash_nanos=0)
        give(account, 50, source="purchased", priority=2, cash_nanos=25, reason="2 × Starter, pi_3Nx_9")
        ledger.record(world.event(account, cost=50, price=100, value=200))
        fold()
        assert self.rows(world, "pack") == {
            "purchased/Starter": (0, 100, 25, 25),
            "promotion": (1, 80, 20, 0),
            "debt": (0, 20, 5, 0),
        }

    def test_a_reversal_gives_each_its_part_back_and_leaves_the_cost(self, world: World, fold: Callable[[], object]) -> None:
        account = world.account()
        give(account, 40, source="promotion", priority=1, cash_nanos=0)
        give(account, 50, source="purchased", priority=2, cash_nanos=25, reason="Starter, in_1")
        usage = ledger.record(world.event(account, cost=50, price=100))
        fold()
        give(account, 10, source="purchased", cash_nanos=5, reason="Starter, in_2")  # repays what is owed
        world.reverse(account, usage)
        assert self.rows(world, "pack") == {"promotion": (1, 0, 20, 0), "purchased/Starter": (0, 0, 25, 0), "debt": (0, 0, 5, 0)}

    def test_what_was_charged_to_no_credits_is_a_row_of_its_own(self, world: World, fold: Callable[[], object]) -> None:
        account = world.account()
        give(account, 100, cash_nanos=100, reason="Starter, pi_1")
        ledger.record(world.event(account, cost=7, price=0))
        ledger.record(world.event(account, cost=1, price=10, user_ref="u1"))
        ledger.record(world.event(account, cost=2, price=20))
        fold()
        assert self.rows(world, "pack") == {"purchased/Starter": (2, 30, 3, 30), "": (1, 0, 7, 0)}
        name = account.public_id
        assert self.rows(world, "user") == {f"{name}/": (1, 20, 2, 20), f"{name}/u1": (1, 10, 1, 10), "": (1, 0, 7, 0)}

    def test_a_plan_counts_from_its_first_day_and_the_cohort_is_the_month_of_sign_up(self, world: World) -> None:
        account = world.account()
        versions: list[PlanVersion] = []
        for slug in ("free", "pro"):
            plan = Plan.objects.create(product=world.product, slug=slug, name=slug.title(), rank=len(versions))
            versions.append(
                PlanVersion.objects.create(plan=plan, valid_from=NOON - timedelta(days=90), price_cents=0, rate_card="standard")
            )
        begins = NOON - timedelta(days=5), NOON
        for version, begin, end in zip(versions, begins, (NOON, None), strict=True):
            Subscription.objects.create(
                account=account, plan_version=version, status="canceled" if end else "active", anchor_at=begin, current_period_start=begin,
                current_period_end=begin + timedelta(days=30), started_at=begin, ended_at=end,
            )  # fmt: skip
        for days in (-6, -1, 0, 3):
            ledger.record(world.event(account, cost=1, price=10, at=NOON + timedelta(days=days)))
        slug = world.product.slug
        assert {key: row[:2] for key, row in self.rows(world, "plan").items()} == {
            f"{slug}/pro": (2, 20),
            f"{slug}/free": (1, 10),
            "": (1, 10),
        }
        assert {key: row[:2] for key, row in self.rows(world, "cohort").items()} == {f"{account.created_at:%Y-%m}": (4, 40)}

    def test_models_that_earn_least_come_first_and_the_fee_may_decide_which(self, world: World) -> None:
        account = world.account()
        world.grant(account, 100, cash_nanos=100, fee_nanos=50)
        ledger.record(world.event(account, cost=40, price=50, model=0))
        ledger.record(world.event(account, cost=20, price=50, model=1))
        ledger.record(world.event(account, cost=30, price=100, model=1))
        least = margin.report(by="model", since=SINCE, until=UNTIL, product_id=world.product.pk, order="least").rows
        assert [(row.label, row.margin_percent) for row in least] == [
            (str(world.models[0]), Decimal("20.00")),
            (str(world.models[1]), Decimal("66.67")),
        ]
        least = margin.report(by="model", since=SINCE, until=UNTIL, product_id=world.product.pk, order="least", fees=True).rows
        assert [(row.margin_nanos, row.cash_margin_nanos) for row in least] == [(-15, -15), (75, -25)]

    def test_a_dollar_of_rovers_enterprise_pack_was_bought_for_66_7_cents(self, world: World) -> None:
        """$75 for $50, a markup of 50 %: a third at list prices, nothing at what was paid."""
        account = world.account()
        give(account, 75 * NANOS, cash_nanos=50 * NANOS, fee_nanos=1_750_000_000, reason="Enterprise, pi_1")
        ledger.record(world.event(account, cost=2 * NANOS, price=3 * NANOS))
        [row] = margin.report(by="pack", since=SINCE, until=UNTIL, product_id=world.product.pk).rows
        assert (row.label, row.margin_percent, row.cash_nanos, row.cash_margin_percent) == (
            "Enterprise", Decimal("33.33"), 2 * NANOS, Decimal("0.00"),
        )  # fmt: skip
        [row] = margin.report(by="pack", since=SINCE, until=UNTIL, product_id=world.product.pk, fees=True).rows
        assert row.cash_margin_percent == Decimal("-3.50")

    def test_rovers_packs_used_up_earn_what_their_discounts_leave(self, world: World) -> None:
        """At a markup of 50 %: 20.0, 14.7, 6.7 and 0.0 % of what was paid; with the payment fee 14.1, 10.6, 3.2 and -3.2 %."""
        packs = tomllib.loads((Path(catalog_file.__file__).parent / "catalogs" / "rover.toml").read_text())["packs"]
        for pack in packs.values():
            account, cash = world.account(), int(Decimal(pack["price"]) * NANOS)
            nanos = int(Decimal(pack["credit"]) * NANOS)
            give(account, nanos, cash_nanos=cash, fee_nanos=cash * 29 // 1000 + 3 * NANOS // 10, reason=f"{pack['name']}, pi_1")
            ledger.record(world.event(account, cost=nanos * 2 // 3, price=nanos))
        found = {fees: [f"{row.cash_margin_percent:.1f}" for row in self.report(world, fees=fees)] for fees in (False, True)}
        assert found == {False: ["20.0", "14.7", "6.7", "0.0"], True: ["14.1", "10.6", "3.2", "-3.2"]}

    def report(self, world: World, *, fees: bool) -> list[Row]:
        found = margin.report(by="pack", since=SINCE, until=UNTIL, product_id=world.product.pk, fees=fees).rows
        return sorted(found, key=lambda row: row.cash_nanos)
