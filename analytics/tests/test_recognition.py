"""Every nano that was paid is recognised, deferred, refunded or a fee, at every moment of any history."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db.models import Sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics import books, margin, recognition
from analytics.recognition import Sums
from analytics.tests.life import Life
from analytics.tests.test_rollups import as_owner
from analytics.tests.world import NANOS, NOON, World
from billing import ledger
from billing.models import Grant, LedgerEntry, PaidTime, Wallet

FEW = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(deadline=None, suppress_health_check=list(HealthCheck))
TICK = timedelta(microseconds=1)
SINCE, UNTIL = date(2026, 3, 1), date(2026, 5, 1)


def report(world: World, by: recognition.By = "product") -> recognition.Report:
    return recognition.report(since=SINCE, until=UNTIL, product_id=world.product.pk, by=by)


def now(world: World, at: datetime = NOON + timedelta(days=400)) -> Sums:
    return recognition.outstanding(product_id=world.product.pk, at=at).sums


def balances(sums: Sums) -> bool:
    return sums.recognised_nanos + sums.deferred_nanos + sums.refunded_nanos + sums.fees_nanos == sums.cash_nanos


@pytest.mark.django_db
@(LONG if settings.get_current_profile_name() == "soak" else FEW)
@given(seed=st.integers(0, 2**32), steps=st.integers(20, 70))
def test_every_nano_paid_is_recognised_deferred_refunded_or_a_fee_whatever_happens(seed: int, steps: int) -> None:
    world, chance = World.new(), random.Random(seed)
    life = Life(world, chance)
    seen = []
    for at in life.steps(steps):
        if chance.random() < 0.2:
            books.fold()
        if chance.random() < 0.3:
            seen.append(recognition.outstanding(product_id=world.product.pk, at=at + TICK))
    end = recognition.outstanding(product_id=world.product.pk, at=life.at + TICK)
    sums = end.sums
    # What was paid, given back and kept is what was paid, given back and kept, and nothing is in two places or in none.
    assert balances(sums)
    assert (sums.cash_nanos, sums.refunded_nanos) == (life.cash, life.returned)
    assert sums.fees_nanos + sums.prepaid_fees_nanos == life.fees + life.time_fees
    # What is deferred is what the lots that are there were paid with; a thaw's rounding may leave a nano.
    lots = list(Grant.objects.defer("expires_at").filter(account__in=life.accounts))
    assert end.credit_nanos - end.disputed_nanos == sum(
        lot.cash_nanos - lot.cash_nanos * (lot.granted - lot.remaining) // lot.granted for lot in lots
    )
    thaws = LedgerEntry.objects.filter(account__in=life.accounts, kind__in=["freeze", "unfreeze"]).count()
    assert abs(end.disputed_nanos - sum(lot.cash_nanos * lot.frozen // lot.granted for lot in lots)) <= thaws + len(lots)
    # What was earned is what the ledger's entries moved.
    moved = dict(LedgerEntry.objects.filter(account__in=life.accounts).order_by().values_list("kind").annotate(Sum("cash_nanos")))
    assert sums.used_nanos == moved.get("usage", 0) + moved.get("reversal", 0)
    assert (sums.breakage_nanos, sums.debt_repaid_nanos) == (moved.get("expiry", 0), moved.get("debt_repaid", 0))
    # The past does not change, and the books are what a recount says.
    for then in seen:
        assert recognition.outstanding(product_id=world.product.pk, at=then.at) == then
        assert balances(then.sums)
    assert [wrong for wrong in books.check() if wrong.startswith(f"product {world.product.pk} ")] == []
    # Days, accounts and the product are three views of the same.
    whole = report(world)
    for by in recognition.BYS:
        found = report(world, by)
        assert found.totals == whole.totals
        for name in ("cash_nanos", "recognised_nanos", "deferred_nanos", "refunded_nanos", "fees_nanos"):
            assert sum(getattr(row, name) for row in found.rows) == getattr(whole.totals, name)
    for account in life.accounts:
        assert balances(recognition.outstanding(product_id=None, account_id=account.pk, at=life.at + TICK).sums)


def test_what_was_bought_for_less_is_earned_at_what_was_paid(world: World) -> None:
    """Rover's Enterprise pack: $75 of usage for $50, so $1 of usage at list price was bought for $0.667."""
    account = world.account()
    with ledger.clock(at=NOON):
        world.grant(account, 75 * NANOS, cash_nanos=50 * NANOS, fee_nanos=1_750_000_000)
        ledger.record(world.event(account, cost=666_666_667, price=NANOS))
    sums = now(world, NOON + timedelta(hours=1))
    assert (sums.used_nanos, sums.fees_nanos) == (666_666_666, 23_333_333)
    assert sums.recognised_nanos == 643_333_333
    assert sums.deferred_credit_nanos == 49_333_333_334
    assert balances(sums)


def test_a_payment_is_a_liability_until_it_is_used_and_what_expires_is_breakage(world: World) -> None:
    account = world.account()
    with ledger.clock(at=NOON):
        world.grant(account, 1_000, cash_nanos=900, fee_nanos=90, expires_at=NOON + timedelta(days=2))
    first = now(world, NOON + timedelta(hours=1))
    assert (first.cash_nanos, first.deferred_nanos, first.recognised_nanos, first.fees_nanos) == (900, 900, 0, 0)
    assert first.prepaid_fees_nanos == 90
    with ledger.clock(at=NOON + timedelta(days=1)):
        ledger.record(world.event(account, cost=1, price=400))
    with ledger.clock(at=NOON + timedelta(days=3)):
        ledger.apply_due(account_id=account.pk)
    last = now(world)
    assert (last.used_nanos, last.breakage_nanos, last.deferred_nanos, last.fees_nanos, last.recognised_nanos) == (360, 540, 0, 90, 810)


def test_money_that_went_back_for_used_credit_is_taken_off_and_counts_when_the_debt_is_repaid(world: World) -> None:
    account = world.account()
    with ledger.clock(at=NOON):
        world.grant(account, 100, cash_nanos=100, fee_nanos=10)
        key = Grant.objects.values_list("source_key", flat=True).get(account=account)
        ledger.record(world.event(account, cost=1, price=80))
        ledger.refund(
            account_id=account.pk, source="purchase", source_key=key, refunded=100, paid=100, key="re", actor="test", reason="test"
        )
    sums = now(world, NOON + timedelta(hours=1))
    assert (sums.refunded_nanos, sums.returned_of_used_nanos, sums.earned_nanos, sums.deferred_nanos) == (100, 80, 0, 0)
    assert (sums.fees_nanos, sums.recognised_nanos) == (10, -10)
    with ledger.clock(at=NOON + timedelta(days=1)):
        world.grant(account, 100, cash_nanos=100)
    sums = now(world)
    assert (sums.debt_repaid_nanos, sums.earned_nanos, sums.deferred_nanos) == (80, 80, 20)


def test_what_is_used_on_free_credit_earns_nothing_and_is_what_it_cost_us(world: World) -> None:
    account = world.account()
    with ledger.clock(at=NOON):
        world.grant(account, 60, priority=1)
        world.grant(account, 100, cash_nanos=50, priority=2)
        usage = ledger.record(world.event(account, cost=30, price=100, value=200))
    sums = now(world, NOON + timedelta(hours=1))
    assert (sums.earned_nanos, sums.promotion_value_nanos, sums.promotion_cost_nanos) == (20, 120, 18)
    with ledger.clock(at=NOON + timedelta(days=1)):
        world.reverse(account, usage)
    assert (now(world).promotion_value_nanos, now(world).promotion_cost_nanos) == (0, 18)


def test_disputed_credit_is_still_owed_and_shown_apart(world: World) -> None:
    account = world.account()
    with ledger.clock(at=NOON):
        world.grant(account, 100, cash_nanos=50)
        key = Grant.objects.values_list("source_key", flat=True).get(account=account)
        ledger.freeze(account_id=account.pk, source="purchase", source_key=key, key="dp", actor="test", reason="test")
    state = recognition.outstanding(product_id=world.product.pk, at=NOON + timedelta(hours=1))
    assert (state.credit_nanos, state.disputed_nanos, Wallet.objects.get(account=account).balance) == (50, 50, 0)


def test_a_plans_time_is_earned_evenly_and_its_refund_takes_off_what_was_earned(world: World) -> None:
    account = world.account()
    terms = {"account": account, "payment_id": "in_1", "currency": "usd", "starts_at": NOON, "ends_at": NOON + timedelta(days=30)}
    PaidTime.objects.create(**terms, cash_nanos=3_000, fee_nanos=300, back_nanos=0, booked_at=NOON)
    third = now(world, NOON + timedelta(days=10))
    assert (third.time_earned_nanos, third.fees_nanos, third.deferred_time_nanos) == (1_000, 100, 2_000)
    PaidTime.objects.create(**terms, cash_nanos=0, fee_nanos=0, back_nanos=1_500, booked_at=NOON + timedelta(days=15))
    assert now(world, NOON + timedelta(days=15)).time_earned_nanos == 1_500
    half = now(world, NOON + timedelta(days=15) + TICK)
    assert (half.time_earned_nanos, half.refunded_nanos, half.deferred_time_nanos) == (749, 1_500, 751)  # floors: never more than is earned
    assert now(world).time_earned_nanos == 1_500
    by_day = report(world, "day")
    assert [row.time_earned_nanos for row in by_day.rows][:3] == [50, 100, 100]
    assert by_day.rows[0].key == "2026-03-10"


def test_usage_that_is_reported_late_changes_no_day_that_is_over(world: World) -> None:
    account = world.account()
    with ledger.clock(at=NOON):
        world.grant(account, 100, cash_nanos=100)
    with ledger.clock(at=NOON + timedelta(days=5)):
        ledger.record(world.event(account, cost=1, price=40, at=NOON + timedelta(days=1)))
    assert [(row.key, row.used_nanos) for row in report(world, "day").rows] == [("2026-03-10", 0), ("2026-03-15", 40)]
    assert report(world).outstanding_percent is not None


def test_an_empty_product_owes_nothing_and_an_impossible_period_is_refused(world: World) -> None:
    empty = report(world)
    assert (empty.rows, empty.groups, empty.totals.cash_nanos, empty.outstanding_percent) == ([], 0, 0, None)
    with pytest.raises(margin.InvalidPeriod, match="ends before"):
        recognition.report(since=UNTIL, until=SINCE)
    with pytest.raises(ValueError, match="rows"):
        recognition.report(since=SINCE, until=UNTIL, limit=0)


def test_the_state_of_now_is_the_state_of_a_moment_later(world: World) -> None:
    account = world.account()
    world.grant(account, 100, cash_nanos=70)
    at = datetime.now(UTC) + timedelta(seconds=1)
    assert recognition.outstanding(product_id=world.product.pk, at=at).credit_nanos == 70


def test_the_check_names_what_is_not_what_the_entries_say_and_a_rebuild_puts_it_right(world: World) -> None:
    world.grant(world.account(), 100, cash_nanos=70)
    books.fold()
    mine = f"product {world.product.pk} "
    as_owner("update book_product set cash_nanos = cash_nanos + 1 where product_id = %s", [world.product.pk])
    [wrong] = [each for each in books.check() if each.startswith(mine)]
    assert wrong.endswith("product received: [71, 0, 0, 0] instead of [70, 0, 0, 0]")
    books.rebuild()
    assert [each for each in books.check() if each.startswith(mine)] == []
    assert books.fold() == 0
