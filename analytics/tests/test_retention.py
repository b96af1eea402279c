"""Cohorts, activity, trials, failed payments, and the hourly rows: each figure from a history that shows only it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import Account
from analytics import growth, hourly, retention, rollups
from analytics.models import HourlyFigures
from analytics.tests.subscribers import APRIL, MONTH, account, change, day, end, plan, subscribe
from analytics.tests.world import World
from billing import ledger
from billing.models import AutoTopUp, Checkout, TopUp
from metering.tests.limited import PER_TOKEN, Shop
from pricing.models import CreditPack
from tests.factories import NANOS, give

pytestmark = pytest.mark.django_db
MARCH = growth.Period(MONTH.date(), MONTH, APRIL)
NOW = datetime(2026, 5, 20, tzinfo=UTC)


def signed_up(world: World, at: datetime, **fields: Any) -> Account:
    return account(world.product, at=at, **fields)


def use(world: World, who: Account, *days: datetime, times: int = 1) -> None:
    for at in days:
        for _ in range(times):
            ledger.record(world.event(who, cost=NANOS, price=1, at=at))


class TestCohorts:
    def test_each_month_of_sign_ups_is_followed_by_who_used_it_who_paid_and_what_came_in(self, world: World) -> None:
        version = plan(world.product, 2_000)
        first, second, third = (signed_up(world, MONTH) for _ in range(3))
        signed_up(world, MONTH, kind="guest")
        later = signed_up(world, APRIL)
        one = subscribe(first, version, at=day(3))
        subscribe(later, version, at=day(2, month=5))
        end(one, at=day(10, month=5))
        with ledger.clock(at=day(5, month=4)):
            give(second, 10 * NANOS, cash_nanos=10 * NANOS, currency="usd")
        use(world, first, day(4), day(5), day(4, month=5))
        use(world, third, day(6))
        rollups.fold()
        use(world, second, day(7, month=4))
        use(world, later, day(8, month=5))

        march, april = retention.cohorts(first=date(2026, 3, 9), now=NOW, product_id=world.product.pk)
        cell = retention.Cell
        assert (march.month, march.accounts) == (date(2026, 3, 1), 3)
        assert march.cells == (cell(2, 1, 20 * NANOS, 0), cell(1, 1, 20 * NANOS, 10 * NANOS), cell(1, 0, 0, 0))
        assert april == retention.Cohort(date(2026, 4, 1), 1, (cell(0, 0, 0, 0), cell(1, 1, 20 * NANOS, 0)))
        assert [march.active_percent(0), march.revenue_percent(1)] == [Decimal("66.67"), Decimal("150.00")]
        assert april.revenue_percent(1) is None

    def test_they_are_followed_for_two_years_and_no_longer(self) -> None:
        with pytest.raises(ValueError, match="24 months"):
            retention.cohorts(first=date(2024, 5, 31), now=NOW)
        assert retention.cohorts(first=date(2024, 6, 30), now=NOW, product_id=0) == []


class TestActivity:
    def test_it_says_who_was_active_on_which_days_and_how_much(self, world: World) -> None:
        one, two = world.account(), world.account()
        use(world, one, day(2), day(3), times=6)  # a Monday and a Tuesday
        use(world, two, day(3))
        rollups.fold()
        use(world, two, day(3))
        use(world, two, APRIL)
        found = retention.activity(since=MONTH.date(), until=APRIL.date(), product_id=world.product.pk)
        assert (found.accounts, found.records, found.sizes) == (2, 14, (1, 1, 0, 0))
        assert found.days == (retention.Day(date(2026, 3, 2), 1, 6), retention.Day(date(2026, 3, 3), 2, 8))
        assert found.weekdays()[:3] == [(6, 1), (8, 2), (0, 0)]
        assert (found.daily, found.stickiness_percent) == (Decimal("0.1"), Decimal("4.84"))

    def test_of_nobody_there_are_zeros_and_no_share(self, world: World) -> None:
        found = retention.activity(since=MONTH.date(), until=APRIL.date(), product_id=world.product.pk)
        assert (found.accounts, found.records, found.days, found.daily, found.stickiness_percent) == (0, 0, (), Decimal("0.0"), None)


class TestTrials:
    @pytest.fixture
    def found(self, world: World) -> Callable[[], list[retention.Trial]]:
        return lambda: retention.trials(of=MARCH, product_id=world.product.pk)

    def test_one_that_is_paid_for_when_it_ends_or_within_a_week_has_converted(
        self, world: World, found: Callable[[], list[retention.Trial]]
    ) -> None:
        version = plan(world.product, 2_000)
        at_once, late, too_late, never = (signed_up(world, MONTH) for _ in range(4))
        trials = {who: subscribe(who, version, at=day(1), status="trialing") for who in (at_once, late, too_late, never)}
        change(trials[at_once], at=day(15), status="active")
        for who in (late, too_late, never):
            end(trials[who], at=day(15))
        subscribe(late, version, at=day(22))
        subscribe(too_late, version, at=day(23))
        assert {one.account_id: one.paid_from for one in found()} == {
            at_once.pk: day(15), late.pk: day(22), too_late.pk: None, never.pk: None,
        }  # fmt: skip

    def test_one_that_changes_its_plan_is_one_trial_and_one_under_way_is_none_yet(
        self, world: World, found: Callable[[], list[retention.Trial]]
    ) -> None:
        small, large = plan(world.product, 2_000), plan(world.product, 4_000)
        one = subscribe(signed_up(world, MONTH), small, at=day(1), status="trialing")
        end(one, at=day(5))
        period = {"anchor_at": day(5), "current_period_start": day(5), "current_period_end": APRIL}
        other = type(one).objects.create(
            account=one.account, plan_version=large, stripe=one.stripe, status="trialing", started_at=day(5), **period
        )
        assert found() == []
        end(other, at=day(12))
        assert found() == [retention.Trial(one.account_id, day(1), day(12), None)]

    def test_one_that_nobody_ended_is_over_when_it_lapses(self, world: World, found: Callable[[], list[retention.Trial]]) -> None:
        one = subscribe(signed_up(world, MONTH), plan(world.product, 2_000), at=day(1))
        change(one, at=day(1), stripe=None, status="trialing", trial_ends_at=day(8), current_period_end=day(8))
        assert [trial.ended for trial in found()] == [day(8)]


class TestFailures:
    def test_plans_that_were_not_paid_are_recovered_lost_or_open(self, world: World) -> None:
        version = plan(world.product, 2_000, per_seat=True)
        recovered, lapsed, left, open_, old = (subscribe(signed_up(world, MONTH), version, at=day(1, month=2)) for _ in range(5))
        change(old, at=day(20, month=2), status="past_due", grace_ends_at=day(27, month=2))
        for one in (recovered, lapsed, left, open_):
            change(one, at=day(3), status="past_due", grace_ends_at=day(10))
        change(open_, at=day(3), grace_ends_at=NOW + timedelta(days=1))
        change(recovered, at=day(5), seats=2)
        change(recovered, at=day(8), status="active", grace_ends_at=None)
        end(left, at=day(6))
        found = retention.failures(of=MARCH, now=NOW, product_id=world.product.pk)
        unpaid = {one.account_id: (one.mrr_nanos // NANOS, one.failed, one.ended, one.recovered) for one in found.plans}
        assert unpaid == {
            recovered.account_id: (20, day(3), day(8), True), lapsed.account_id: (20, day(3), day(10), False),
            left.account_id: (20, day(3), day(6), False), open_.account_id: (20, day(3), None, False),
        }  # fmt: skip
        assert (len(found.recovered), len(found.lost), len(found.open), found.recovered_percent) == (1, 2, 1, Decimal("33.33"))

    def test_declined_top_ups_and_failed_visits_to_checkout_are_counted(self, world: World) -> None:
        who = world.account()
        pack = CreditPack.objects.create(
            product=world.product,
            slug="pack",
            name="Pack",
            price_cents=500,
            credit_nanos=NANOS,
            valid_from=datetime(2026, 1, 1, tzinfo=UTC),
        )
        AutoTopUp.objects.create(
            account=who,
            enabled=True,
            threshold_nanos=1,
            pack="pack",
            daily_cap_cents=900,
            changed_at=MONTH,
            changed_by="ada",
            look_again_at=MONTH,
        )
        for at, state in ((day(3), "declined"), (day(4), "declined"), (day(5), "paid"), (APRIL, "declined")):
            TopUp.objects.create(
                account=who,
                pack=pack,
                copies=1,
                amount_cents=500,
                credit_nanos=NANOS,
                day=at.date(),
                state=state,
                created_at=at,
                finished_at=at,
            )
        for at, state in ((day(3), "failed"), (day(4), "paid"), (APRIL, "failed")):
            Checkout.objects.create(account=who, pack=pack, thing="pack:pack", name="Pack", amount_cents=500, state=state, created_at=at)
        found = retention.failures(of=MARCH, now=NOW, product_id=world.product.pk)
        assert (found.top_ups, found.top_ups_cents, found.checkouts, found.checkouts_failed) == (2, 1_000, 2, 1)
        assert found.recovered_percent is None


class TestHourly:
    def test_an_hour_has_one_row_with_cost_revenue_and_who_is_near_a_limit_or_stopped(self) -> None:
        shop = Shop.new(tier={"monthly_cost_nanos": 100 * PER_TOKEN})
        noon = datetime(2027, 6, 15, 12, 2, tzinfo=UTC)
        with shop.at(noon):
            shop.use(tokens=90)
        assert hourly.measure(now=noon) >= 1
        with shop.at(noon + timedelta(minutes=30)):
            shop.use(tokens=10)
        assert hourly.measure(now=noon + timedelta(minutes=30)) == 0
        assert hourly.measure(now=noon + timedelta(minutes=59)) == 0  # the next hour is measured two minutes after it
        hourly.measure(now=noon + timedelta(minutes=60))
        second, first = hourly.history(product=shop.product, since=noon - timedelta(hours=1), until=noon + timedelta(hours=2))
        assert (first.at, second.at) == (noon - timedelta(minutes=2), noon + timedelta(minutes=58))
        assert (first.cost_nanos, first.near_limit, first.throttled, first.active) == (90 * PER_TOKEN, 1, 0, 1)
        assert (second.cost_nanos, second.near_limit, second.throttled) == (100 * PER_TOKEN, 1, 1)
        assert hourly.margin_percent(first) is None

    def test_what_gifts_cost_is_added_up_from_row_to_row_also_over_a_missed_hour(self) -> None:
        world = World.new()
        version = plan(world.product, 2_000)
        who = world.account()
        subscribe(who, version, at=timezone.now() - timedelta(days=1))
        hour = timezone.now().replace(minute=0, second=0, microsecond=0)

        def row() -> HourlyFigures:
            found: HourlyFigures = HourlyFigures.objects.filter(product=world.product).latest("at")
            return found

        def at(hours: int, minutes: int, cost: int, price: int) -> None:
            with ledger.clock(at=hour + timedelta(hours=hours, minutes=minutes)):
                ledger.record(world.event(who, cost=cost, price=price, at=hour))

        with ledger.clock(at=hour - timedelta(hours=2)):
            for source, nanos in (("welcome", 10), ("goodwill", 10)):
                ledger.grant(
                    account_id=who.pk, unit_id=world.unit.pk, amount_nanos=nanos, source=source, source_key=source, key=source, actor="t",
                    reason="t", priority=10 if source == "welcome" else 20,
                )  # fmt: skip
        at(-1, 10, cost=7, price=4)
        hourly.measure(now=hour + timedelta(minutes=2))
        assert (row().gifts_cost_nanos, row().subscriptions_nanos) == (7, 20 * NANOS)
        at(0, 10, cost=5, price=2)
        at(1, 10, cost=11, price=6)  # four of it from the welcome credit, two from what support gave
        hourly.measure(now=hour + timedelta(hours=2, minutes=2))
        assert row().gifts_cost_nanos == 5 + 7
        hourly.measure(now=hour + timedelta(hours=3, minutes=2))
        assert row().gifts_cost_nanos == 0
