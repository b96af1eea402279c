"""What happens by itself: expiry, rollover and scheduled grants, in the verb that comes next, as if it had come on time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import tenancy
from accounts.models import Account, User
from billing import audit, balances, due, ledger, periods, subscriptions
from billing.models import Grant, LedgerEntry, Operation, Schedule, Subscription, Wallet
from billing.tests.test_ledger import capture, hold, record
from config import roles
from pricing.models import Plan, PlanVersion
from tests.factories import NANOS, START, give, make_account, make_product

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
MONTH = timedelta(days=31)
INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(2400, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 (the zone is given beside)


@pytest.fixture
def account(db: None) -> Iterator[Account]:
    yield make_account()
    assert audit.run() == []


@contextmanager
def at(moment: datetime) -> Iterator[None]:
    with ledger.clock(at=moment):
        yield


def schedule(account: Account, amount: int = 100, *, anchor: datetime = BEGIN, key: str = "plan", **fields: Any) -> ledger.Operation:
    fields = {"months": 1, "priority": 10, "rollover_priority": 20} | fields
    return ledger.schedule(
        account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=amount, source="monthly", source_key=key, anchor_at=anchor,
        key=key, actor="tollgate", reason="Included in Free", **fields,
    )  # fmt: skip


def end(account: Account, ends_at: datetime | None, key: str = "end") -> ledger.Operation:
    return ledger.end_schedule(
        account_id=account.pk, unit_id=account.product.unit_id, ends_at=ends_at, key=key, actor="ann", reason="left"
    )  # fmt: skip


def touch(account: Account) -> None:
    """A verb that does nothing but come by."""
    with pytest.raises(ledger.InsufficientCredits):
        ledger.adjust(
            account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=-(2**62), key="touch", actor="ann", reason="test"
        )  # fmt: skip


def left(account: Account) -> dict[str, int]:
    found: dict[str, int] = {}
    for source, remaining in Grant.objects.filter(account=account, remaining__gt=0).values_list("source", "remaining"):
        found[source] = found.get(source, 0) + remaining
    return found


def entries(account: Account) -> list[tuple[str, int, datetime]]:
    rows = LedgerEntry.objects.filter(account=account).order_by("seq")
    return list(rows.values_list("kind", "amount", "effective_at"))


class TestAnniversary:
    @pytest.mark.django_db
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(anchors=st.lists(st.tuples(INSTANTS, st.integers(0, 1_200)), min_size=20, max_size=20))
    def test_the_database_counts_from_the_anchor_as_the_program_does(self, anchors: list[tuple[datetime, int]]) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "select anniversary(a, n) from unnest(%s::timestamptz[], %s::int[]) with ordinality x (a, n, i) order by i",
                [[anchor for anchor, _ in anchors], [months for _, months in anchors]],
            )
            assert [moment for (moment,) in cursor] == [periods.anniversary(anchor, months=months) for anchor, months in anchors]

    @pytest.mark.failure(43)
    @pytest.mark.django_db
    def test_every_anchor_of_400_years_is_the_same_in_the_database(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "select anniversary('2000-01-01 09:30+00'::timestamptz + d * interval '1 day', n)"
                " from generate_series(0, 30) d, generate_series(0, 4799) n order by d, n"
            )
            found = [moment for (moment,) in cursor]
        first = datetime(2000, 1, 1, 9, 30, tzinfo=UTC)
        assert found == [periods.anniversary(first + timedelta(days=d), months=n) for d in range(31) for n in range(4_800)]

    @pytest.mark.django_db
    def test_it_counts_in_utc_whatever_the_zone_of_the_session(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("set local time zone 'America/New_York'")
            cursor.execute("select anniversary('2028-01-31 02:00+00', 1) = '2028-02-29 02:00+00'::timestamptz")
            assert cursor.fetchone() == (True,)


class TestSchedule:
    @pytest.mark.failure(43)
    def test_a_31st_stays_a_31st_and_nothing_runs_until_april(self, account: Account) -> None:
        anchor = datetime(2028, 1, 31, 9, tzinfo=UTC)
        with at(anchor):
            schedule(account, anchor=anchor)
        with at(datetime(2028, 4, 3, tzinfo=UTC)):
            touch(account)
        grants = Grant.objects.filter(account=account).order_by("starts_at")
        assert list(grants.values_list("starts_at", "expires_at", "remaining")) == [
            (anchor, datetime(2028, 2, 29, 9, tzinfo=UTC), 0),
            (datetime(2028, 2, 29, 9, tzinfo=UTC), datetime(2028, 3, 31, 9, tzinfo=UTC), 0),
            (datetime(2028, 3, 31, 9, tzinfo=UTC), datetime(2028, 4, 30, 9, tzinfo=UTC), 100),
        ]
        wallet = Wallet.objects.get(account=account)
        assert wallet.due_at == datetime(2028, 4, 30, 9, tzinfo=UTC)
        assert [(kind, when) for kind, _, when in entries(account)][1:] == [
            ("expiry", datetime(2028, 2, 29, 9, tzinfo=UTC)),
            ("grant", datetime(2028, 2, 29, 9, tzinfo=UTC)),
            ("expiry", datetime(2028, 3, 31, 9, tzinfo=UTC)),
            ("grant", datetime(2028, 3, 31, 9, tzinfo=UTC)),
        ]

    def test_scheduled_grants_say_who_set_them_and_why(self, account: Account) -> None:
        with at(BEGIN):
            schedule(account)
        grant = Grant.objects.get(account=account)
        operation = Operation.objects.get(account=account, verb="grant", grant_id=grant.pk)
        assert (operation.actor, operation.reason, operation.amount, operation.balance_after) == ("tollgate", "Included in Free", 100, 100)
        assert grant.source_key == "plan:2026-03-01T00:00:00.000000Z"

    def test_a_scheduled_grant_repays_debt_at_its_due_time(self, account: Account) -> None:
        with at(BEGIN):
            schedule(account)
            record(account, 130)
        with at(BEGIN + MONTH + timedelta(days=3)):
            assert hold(account, 70).available_nanos == 0
        assert entries(account)[-2:] == [("grant", 100, BEGIN + MONTH), ("debt_repaid", -30, BEGIN + MONTH)]

    def test_repeated_key_schedules_once_and_one_source_is_scheduled_once(self, account: Account) -> None:
        with at(BEGIN):
            first = schedule(account)
            again = schedule(account)
            assert (again.replayed, again.id, again.balance_nanos) == (True, first.id, 100)
            with pytest.raises(ledger.KeyReused):
                schedule(account, 101)
            with pytest.raises(ledger.SourceReused):
                ledger.schedule(
                    account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=1, source="monthly", source_key="plan",
                    anchor_at=BEGIN, months=1, priority=0, key="another", actor="a", reason="r",
                )  # fmt: skip
        assert left(account) == {"monthly": 100}

    def test_a_new_schedule_takes_the_place_of_the_old_one_after_what_that_had_to_grant(self, account: Account) -> None:
        with at(BEGIN):
            schedule(account, 100, rollover_periods=1)
        later = BEGIN + MONTH + timedelta(days=5)
        with at(later):
            schedule(account, 500, anchor=later, key="better")
            assert left(account) == {"rollover": 100, "monthly": 600}
        with at(later + MONTH):
            touch(account)
        assert left(account) == {"rollover": 100, "monthly": 500}
        assert schedule(account, 100, rollover_periods=1).replayed
        assert Schedule.objects.get(account=account).source_key == "better"

    def test_an_end_that_has_not_come_can_be_moved_and_one_that_has_cannot(self, account: Account) -> None:
        with at(BEGIN):
            with pytest.raises(ledger.NotFound):
                end(account, None)
            schedule(account)
            end(account, BEGIN + MONTH)
        with at(BEGIN + timedelta(days=30)):
            end(account, None, key="stay")
            assert end(account, BEGIN + MONTH).replayed
        with at(BEGIN + MONTH):
            touch(account)
            assert left(account) == {"monthly": 100}
            end(account, BEGIN + MONTH + timedelta(days=2), key="go")
        with at(BEGIN + 3 * MONTH):
            with pytest.raises(ledger.NotFound):
                end(account, None, key="back")
            touch(account)
        assert left(account) == {}
        assert Wallet.objects.get(account=account).due_at is None

    def test_nothing_is_granted_at_the_end_itself(self, account: Account) -> None:
        with at(BEGIN):
            schedule(account, ends_at=BEGIN + MONTH)
        with at(BEGIN + MONTH):
            touch(account)
        assert left(account) == {}

    def test_a_schedule_from_the_future_begins_there(self, account: Account) -> None:
        with at(BEGIN):
            assert schedule(account, anchor=BEGIN + MONTH).balance_nanos == 0
        with at(BEGIN + MONTH):
            assert hold(account, 100).hold_nanos == 100

    @pytest.mark.parametrize("wrong", [{"amount": 0}, {"amount": -1}, {"months": 0}, {"rollover_periods": -1}, {"rollover_cap_nanos": -1}])
    def test_schedule_of_nothing_or_of_never_is_refused(self, account: Account, wrong: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="schedule grants"):
            schedule(account, **wrong)  # type: ignore[arg-type]


class TestRollover:
    def example(self, account: Account) -> datetime:
        """Monthly 100, used 40; rollover 20, over at the period's end; cap 200; purchased 30."""
        over = BEGIN + MONTH
        with at(BEGIN):
            give(account, 20, source="rollover", priority=20, expires_at=over, cash_nanos=0)
            give(account, 30, cash_nanos=30)
            schedule(account, rollover_periods=1, rollover_cap_nanos=200)
            record(account, 40)
        return over

    @pytest.mark.failure(18)
    @pytest.mark.failure(50)
    def test_expire_then_roll_over_then_grant_and_again_changes_nothing(self, account: Account) -> None:
        over = self.example(account)
        for late in (timedelta(0), timedelta(hours=1), timedelta(days=9)):
            with at(over + late):
                ledger.catch_up(after=0, limit=100)
                touch(account)
            assert left(account) == {"monthly": 100, "rollover": 60, "purchased": 30}
        assert entries(account)[-4:] == [
            ("expiry", -20, over), ("rollover", -60, over), ("rollover", 60, over), ("grant", 100, over),
        ]  # fmt: skip

    @pytest.mark.failure(18)
    def test_rollovers_together_come_to_the_cap_and_the_rest_expires_with_its_amount(self, account: Account) -> None:
        with at(BEGIN):
            give(account, 30, source="rollover", priority=20, expires_at=BEGIN + 3 * MONTH, cash_nanos=0)
            schedule(account, rollover_periods=2, rollover_cap_nanos=70)
        with at(BEGIN + MONTH):
            touch(account)
        assert left(account) == {"rollover": 70, "monthly": 100}
        assert [(kind, amount) for kind, amount, _ in entries(account)[2:]] == [
            ("rollover", -40), ("rollover", 40), ("expiry", -60), ("grant", 100),
        ]  # fmt: skip

    @pytest.mark.failure(51)
    def test_a_clock_that_goes_back_five_minutes_does_nothing_twice_and_nothing_before_its_time(self, account: Account) -> None:
        over = self.example(account)
        with at(over):
            touch(account)
        kept = entries(account)
        for back in (timedelta(minutes=-5), timedelta(minutes=-1), timedelta(0)):
            with at(over + back):
                ledger.catch_up(after=0, limit=100)
                assert hold(account, 10).available_nanos == 190 - 10 - (10 if back > timedelta(minutes=-5) else 0) - (10 if not back else 0)
        assert entries(account) == kept
        assert Wallet.objects.get(account=account).due_at == over + timedelta(days=30)

    @pytest.mark.parametrize(("cap", "rolled"), [(None, 60), (0, 0), (1, 1), (59, 59), (60, 60), (61, 60)])
    def test_no_cap_is_all_and_a_cap_of_nothing_is_nothing(self, account: Account, cap: int | None, rolled: int) -> None:
        over = BEGIN + MONTH
        with at(BEGIN):
            give(account, 60, expires_at=over, rollover=ledger.Rollover(over + MONTH, cap, 5))
        with at(over):
            touch(account)
        assert left(account).get("rollover", 0) == rolled

    def test_a_rollover_carries_cash_fee_root_priority_and_end(self, account: Account) -> None:
        over = BEGIN + MONTH
        with at(BEGIN):
            root = give(account, 3, expires_at=over, rollover=ledger.Rollover(over + MONTH, None, 5), cash_nanos=100, fee_nanos=10)
            record(account, 1)
        with at(over):
            record(account, 1)
        child = Grant.objects.get(account=account, source="rollover")
        assert (child.root_id, child.priority, child.starts_at, child.expires_at) == (root.grant_id, 5, over, over + MONTH)
        assert (child.granted, child.cash_nanos, child.fee_nanos, child.currency) == (2, 67, 7, "usd")
        with at(over + MONTH):
            touch(account)
        moved = LedgerEntry.objects.filter(account=account, kind__in=["usage", "expiry"]).values_list("cash_nanos", "fee_nanos")
        assert tuple(map(sum, zip(*moved, strict=True))) == (100, 10)

    def test_a_rollover_does_not_roll_over_again(self, account: Account) -> None:
        with at(BEGIN):
            schedule(account, rollover_periods=1, ends_at=BEGIN + timedelta(days=1))
        with at(BEGIN + 2 * MONTH):
            touch(account)
        assert left(account) == {}
        assert [kind for kind, _, _ in entries(account)] == ["grant", "rollover", "rollover", "expiry"]

    def test_what_a_hold_covers_stays_and_rolls_over_when_the_hold_ends(self, account: Account) -> None:
        over = BEGIN + MONTH
        with at(over - timedelta(minutes=1)):
            give(account, 60, priority=1, expires_at=over, rollover=ledger.Rollover(over + MONTH, None, 5))
            opened = hold(account, 25)
        with at(over + timedelta(minutes=1)):
            touch(account)
            assert left(account) == {"purchased": 25, "rollover": 35}
            capture(account, opened.id, 5)
        assert left(account) == {"rollover": 55}

    def test_a_new_grant_that_stands_before_it_frees_what_a_hold_kept(self, account: Account) -> None:
        over = BEGIN + MONTH
        with at(over - timedelta(minutes=1)):
            schedule(account, anchor=over + timedelta(minutes=2), priority=0)
            give(account, 60, priority=1, expires_at=over)
            hold(account, 25)
        with at(over + timedelta(minutes=1)):
            touch(account)
            assert left(account) == {"purchased": 25}
        with at(over + timedelta(minutes=3)):
            touch(account)
        assert left(account) == {"monthly": 100}

    @pytest.mark.parametrize("rollover", [ledger.Rollover(BEGIN, None, 0), ledger.Rollover(BEGIN + MONTH, -1, 0)])
    def test_rollover_into_the_past_or_under_a_negative_cap_is_refused(self, account: Account, rollover: ledger.Rollover) -> None:
        with pytest.raises(ValueError, match="rolls over"):
            give(account, 1, expires_at=BEGIN, rollover=rollover)

    def test_what_never_expires_cannot_roll_over(self, account: Account) -> None:
        with pytest.raises(ValueError, match="rolls over"):
            give(account, 1, rollover=ledger.Rollover(BEGIN, None, 0))


class TestCapOfThePlan:
    """What may roll over is the plan's to say that the account is on when it does, not the plan's that it came with."""

    def cap(self, account: Account, cap: int | None, key: str = "cap") -> ledger.Operation:
        return ledger.cap_rollovers(
            account_id=account.pk, unit_id=account.product.unit_id, cap_nanos=cap, key=key, actor="tollgate", reason="Lower begins"
        )  # fmt: skip

    @pytest.mark.failure(52)
    @pytest.mark.parametrize(("cap", "rolled"), [(0, 0), (50, 50), (80, 80), (120, 100), (None, 100)])
    def test_a_change_of_plan_in_mid_cycle_caps_what_rolls_over_at_its_end(self, account: Account, cap: int | None, rolled: int) -> None:
        with at(BEGIN):
            schedule(account, rollover_periods=1, rollover_cap_nanos=80)
        with at(BEGIN + timedelta(days=10)):
            self.cap(account, cap)
            assert self.cap(account, cap).replayed
        [seen] = balances.of_account(account, now=BEGIN + MONTH)
        with at(BEGIN + MONTH):
            touch(account)
        assert left(account) == {"monthly": 100} | ({"rollover": rolled} if rolled else {})
        assert seen.balance == 100 + rolled

    @pytest.mark.failure(50)
    @pytest.mark.failure(52)
    def test_whether_the_reset_or_the_change_of_plan_is_first_comes_to_the_same(self, account: Account) -> None:
        other = make_account(account.product)
        for each, first in ((account, "reset"), (other, "change")):
            with at(BEGIN):
                schedule(each, rollover_periods=1, rollover_cap_nanos=200)
            with at(BEGIN + MONTH):
                if first == "reset":
                    touch(each)
                    assert left(each) == {"monthly": 100, "rollover": 100}
                self.cap(each, 30)
            assert left(each) == {"monthly": 100, "rollover": 30}
        assert entries(account)[-1] == ("expiry", -70, BEGIN + MONTH)

    def test_what_ends_first_goes_first_and_what_a_hold_covers_stays(self, account: Account) -> None:
        with at(BEGIN):
            give(account, 40, source="rollover", priority=1, expires_at=BEGIN + 2 * MONTH, cash_nanos=0)
            give(account, 40, source="rollover", priority=1, expires_at=BEGIN + MONTH, cash_nanos=0)
            hold(account, 25)
            self.cap(account, 45)
        assert sorted(Grant.objects.filter(account=account).values_list("expires_at", "remaining")) == [
            (BEGIN + MONTH, 25), (BEGIN + 2 * MONTH, 20),
        ]  # fmt: skip

    def test_a_cap_below_nothing_is_refused(self, account: Account) -> None:
        with pytest.raises(ValueError, match="not negative"):
            self.cap(account, -1)

    @pytest.mark.django_db
    @pytest.mark.failure(52)
    def test_a_plan_caps_rollovers_when_it_begins_and_one_without_them_leaves_what_there_is(self) -> None:
        account = make_account(make_product(burn_order=["monthly", "rollover"]))
        for slug, terms in (("low", {"rollover_periods": 1, "rollover_cap_nanos": 30}), ("none", {})):
            plan = Plan.objects.create(product=account.product, slug=slug, name=slug, rank=2)
            PlanVersion.objects.create(plan=plan, valid_from=START, price_cents=0, rate_card="standard", **terms)
        give(account, 100, source="rollover", priority=20, expires_at=datetime.now(UTC) + MONTH, cash_nanos=0)
        now = datetime.now(UTC)
        for slug, rest in (("none", 100), ("low", 30), ("none", 30)):
            subscriptions.end(account=account, now=now)
            subscriptions.start(account=account, plan=slug, now=now)
            assert left(account) == {"rollover": rest}


class TestRunaway:
    """A fault that would grant again and again is stopped after two, for its account alone; see docs/decisions/0050."""

    def corrupt(self, account: Account) -> None:
        """Forgets what was granted, as only the tables' owner could make it."""
        with connection.cursor() as cursor:
            cursor.execute(f"set local role {roles.OWNER}")
            cursor.execute("alter table credit_schedule disable trigger terms_never_change")
            cursor.execute("update credit_schedule set granted = 0 where account_id = %s", [account.pk])
            cursor.execute("update wallet set due_at = %s where account_id = %s", [BEGIN, account.pk])
            cursor.execute("alter table credit_schedule enable trigger terms_never_change")
            cursor.execute("reset role")

    def restart(self, account: Account, *, grants: bool, key: str = "restart") -> ledger.Operation:
        return ledger.restart_schedule(
            account_id=account.pk, unit_id=account.product.unit_id, grants=grants, key=key, actor="ann", reason="looked at it"
        )  # fmt: skip

    @pytest.mark.failure(54)
    def test_a_loop_that_schedules_again_and_again_is_stopped_after_two_grants_of_a_day(self, account: Account) -> None:
        with at(BEGIN):
            for number in range(20):
                schedule(account, key=f"loop {number}")
            assert left(account) == {"monthly": 200}
            row = Schedule.objects.get(account=account)
            assert (row.stopped_at, row.stopped_because) == (BEGIN, "There are two resets of 2026-03-01 already.")
            assert hold(account, 150).available_nanos == 50  # the account works on

    @pytest.mark.failure(54)
    def test_a_schedule_that_forgot_what_it_granted_grants_nothing_again_and_everything_else_goes_on(self, account: Account) -> None:
        with at(BEGIN):
            schedule(account)
            give(account, 30, expires_at=BEGIN + 4 * MONTH)
        with at(BEGIN + MONTH):
            touch(account)
        self.corrupt(account)
        later = BEGIN + 2 * MONTH - timedelta(days=1)
        with at(later):
            touch(account)
            assert left(account) == {"purchased": 30}
        assert Grant.objects.filter(account=account, source="monthly").count() == 2
        row = Schedule.objects.get(account=account)
        assert (row.stopped_at, row.stopped_because) == (later, "The period that began at 2026-03-01 00:00 UTC was granted before.")
        [found] = audit.run()
        assert "0 periods begun, 2 grants" in found.text
        with at(later):
            self.restart(account, grants=True)
        assert left(account) == {"monthly": 100, "purchased": 30}
        assert Grant.objects.filter(account=account, source="monthly").count() == 3

    @pytest.mark.failure(54)
    def test_catching_up_with_three_years_is_no_runaway(self, account: Account) -> None:
        with at(BEGIN):
            schedule(account)
        with at(BEGIN + timedelta(days=3 * 365)):
            touch(account)
        assert Grant.objects.filter(account=account).count() == 37 - 1
        assert Schedule.objects.get(account=account).stopped_at is None

    @pytest.mark.failure(54)
    def test_staff_let_it_go_on_with_what_it_missed_or_with_the_next_period(self, account: Account) -> None:
        other = make_account(account.product)
        for each in (account, other):
            with at(BEGIN):
                for number in range(3):
                    schedule(each, 100 + number, key=f"agreed {number}")
        with at(BEGIN + timedelta(days=2)):
            self.restart(account, grants=True)
            assert self.restart(account, grants=True).replayed
            with pytest.raises(ledger.NotFound):
                self.restart(account, grants=True, key="once more")
            self.restart(other, grants=False)
        assert (left(account), left(other)) == ({"monthly": 303}, {"monthly": 201})
        with at(BEGIN + MONTH):
            touch(account)
            touch(other)
        assert (left(account), left(other)) == ({"monthly": 102}, {"monthly": 102})

    def test_a_restart_of_what_never_stopped_is_refused_and_what_was_due_has_happened(self, account: Account) -> None:
        with at(BEGIN):
            give(account, 30, expires_at=BEGIN + timedelta(days=1))
        with at(BEGIN + timedelta(days=2)), pytest.raises(ledger.NotFound):
            self.restart(account, grants=False)
        assert left(account) == {}
        assert Wallet.objects.get(account=account).balance == 0
        assert audit.run() == []
        assert audit.run() == []

    def test_what_was_stopped_is_not_shown_as_coming(self, account: Account) -> None:
        with at(BEGIN):
            for number in range(3):
                schedule(account, key=f"loop {number}")
        [seen] = balances.of_account(account, now=BEGIN + 2 * MONTH)
        assert seen.balance == 0

    def test_what_is_paid_for_is_never_too_much(self, account: Account) -> None:
        with at(BEGIN):
            for _ in range(4):
                give(account, 10, source="monthly", cash_nanos=10)
            schedule(account)
        assert left(account) == {"monthly": 140}


class TestPlans:
    def local_plan(self, **terms: Any) -> Account:
        product = make_product(burn_order=["monthly", "rollover", "purchased"])
        PlanVersion.objects.create(
            plan=PlanVersion.objects.get(plan__product=product).plan, version=2, valid_from=START + timedelta(days=1), price_cents=0,
            rate_card="standard", included_credit_nanos=5 * NANOS, **terms,
        )  # fmt: skip
        return make_account(product)

    @pytest.mark.django_db
    def test_a_plan_without_a_price_is_granted_every_period_and_rolls_over_as_it_says(self) -> None:
        account = self.local_plan(rollover_periods=1, rollover_cap_nanos=3 * NANOS)
        subscription = Subscription.objects.get(account=account)
        row = Schedule.objects.get(account=account)
        assert (row.priority, row.rollover_priority, row.months, row.granted) == (10, 20, 1, 1)
        for month in (1, 2, 5):
            with at(periods.anniversary(subscription.anchor_at, months=month)):
                touch(account)
            assert left(account) == {"monthly": 5 * NANOS, "rollover": 3 * NANOS}
        assert Grant.objects.filter(account=account, source="monthly").count() == 6
        assert subscriptions.schedule_included_credit(subscription=subscription).replayed

    @pytest.mark.django_db
    def test_a_plan_without_rollover_begins_each_period_anew(self) -> None:
        account = self.local_plan(interval="year")
        with at(periods.anniversary(Subscription.objects.get(account=account).anchor_at, months=24)):
            touch(account)
        assert left(account) == {"monthly": 5 * NANOS}
        assert Grant.objects.filter(account=account).count() == 3


GRANTS = st.lists(
    st.tuples(
        st.integers(1, 60),  # amount
        st.integers(0, 2),  # priority
        st.none() | st.integers(1, 100),  # ends after days
        st.none() | st.tuples(st.integers(1, 60), st.none() | st.integers(0, 60), st.integers(0, 2)),  # rolls over
    ),
    max_size=5,
)
SCHEDULES = st.none() | st.tuples(
    st.integers(1, 100), st.integers(0, 2), st.integers(-40, 40), st.integers(1, 2), st.none() | st.integers(0, 120), st.integers(0, 2),
    st.none() | st.integers(0, 90), st.integers(0, 2),
)  # fmt: skip
HOLDS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 120)), max_size=3)
LIVES = st.tuples(GRANTS, SCHEDULES, HOLDS, st.integers(0, 150))


def lived(account: Account, life: tuple[Any, ...]) -> None:
    grants, plan, holds, spent = life
    for amount, priority, days, rolls in grants:
        ends_at = None if days is None else BEGIN + timedelta(days=days)
        rollover = ledger.Rollover(ends_at + timedelta(days=rolls[0]), *rolls[1:]) if ends_at and rolls else None
        give(account, amount, priority=priority, expires_at=ends_at, rollover=rollover, cash_nanos=amount * 7, fee_nanos=amount)
    if plan:
        amount, priority, days, months, ends_in, rollover_periods, cap, rollover_priority = plan
        schedule(
            account, amount, anchor=BEGIN + timedelta(days=days), months=months, priority=priority, rollover_periods=rollover_periods,
            rollover_cap_nanos=cap, rollover_priority=rollover_priority,
            ends_at=None if ends_in is None else BEGIN + timedelta(days=ends_in),
        )  # fmt: skip
    for amount, days in holds if grants else ():
        give(account, amount + 1, priority=1)
        hold(account, amount, lifetime=timedelta(days=days))
    if spent:
        record(account, spent)


#: Everything of an account but ids and when it was written.
STATE = (
    "select balance, held, debt, seq, due_at from wallet where account_id = %s",
    """select source, granted, remaining, frozen, clawed, refunded, priority, starts_at, expires_at, cash_nanos, fee_nanos, closed
       from credit_grant where account_id = %s order by id""",
    """select e.seq, g.source, g.starts_at, e.kind, e.amount, e.debt_delta, e.balance_after, e.debt_after, e.cash_nanos, e.fee_nanos,
         e.effective_at
       from ledger_entry e left join credit_grant g on g.account_id = e.account_id and g.id = e.grant_id
       where e.account_id = %s order by e.seq""",
    """select verb, actor, reason, amount, balance_after, debt_after
       from operation_key where account_id = %s and actor = 'tollgate' order by id""",
    "select granted from credit_schedule where account_id = %s",
)


def state(account: Account) -> list[list[Any]]:
    found = []
    with connection.cursor() as cursor:
        for sql in STATE:
            cursor.execute(sql.replace("expires_at", "expires_at::text"), [account.pk])
            found.append(cursor.fetchall())
    return found


@pytest.mark.failure(47)
@pytest.mark.failure(50)
@pytest.mark.django_db
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(life=LIVES, days=st.integers(0, 200), punctual=st.sampled_from(["verb", "job"]))
def test_a_verb_that_comes_late_finds_what_it_would_have_found_and_pages_show_it_before(life: Any, days: int, punctual: str) -> None:
    """One twin is touched at every moment at which something is due, the other only in the end; a third only looked at."""
    with transaction.atomic():
        product = make_product()
        on_time, late = make_account(product), make_account(product)
        now = BEGIN + timedelta(days=days)
        for account in (on_time, late):
            with at(BEGIN):
                lived(account, life)
        for _ in range(100):
            due_at = Wallet.objects.filter(account=on_time).values_list("due_at", flat=True).first()
            kept = LedgerEntry.objects.filter(account=on_time).count()
            moments = [moment for moment in [*_ends(on_time), due_at] if moment and moment <= now]
            if not moments:
                break
            for moment in sorted(set(moments)):
                with at(moment):
                    if punctual == "job":
                        ledger.sweep(limit=10)
                        ledger.catch_up(after=on_time.pk - 1, limit=1)
                    else:
                        _touch(on_time)
            if kept == LedgerEntry.objects.filter(account=on_time).count():
                break
        seen = _seen(late, now)
        with at(now):
            for account in (on_time, late):
                _touch(account)
            assert audit.run() == []
        assert state(on_time) == state(late)
        assert seen == _seen(late, now)
        transaction.set_rollback(True)


def _ends(account: Account) -> list[datetime]:
    rows = Grant.objects.filter(account=account, remaining__gt=0).annotate(ends_at=balances.ENDS_AT).values_list("ends_at", flat=True)
    with connection.cursor() as cursor:
        cursor.execute("select expires_at from open_authorization where account_id = %s and state = 'open'", [account.pk])
        return [moment for moment in rows if moment] + [moment for (moment,) in cursor.fetchall()]


def _touch(account: Account) -> None:
    if Wallet.objects.filter(account=account).exists():
        touch(account)


def _seen(account: Account, now: datetime) -> list[Any]:
    """What pages show, but for ids and entry numbers, which only writing gives."""
    return [
        (seen.balance, seen.held, seen.debt, [(lot.source, lot.granted, lot.remaining, lot.starts_at, lot.ends_at) for lot in seen.lots])
        for seen in balances.of_account(account, now=now)
    ]


@pytest.mark.parametrize("swept", [True, False])
def test_a_hold_that_nobody_ended_pays_at_its_end_whether_or_not_it_is_swept_then(account: Account, swept: bool) -> None:
    with at(BEGIN):
        give(account, 100)
        held = hold(account, 60, lifetime=timedelta(minutes=15))
        record(account, 70)
    assert entries(account)[1:] == [("usage", -40, BEGIN), ("debt", 0, BEGIN)]
    ended = BEGIN + timedelta(minutes=15)
    with at(ended):
        assert ledger.sweep(limit=10) == 1 if swept else True
    with at(BEGIN + timedelta(days=3)):
        record(account, 20)
        assert entries(account)[3:] == [("debt_repaid", -30, ended), ("usage", -20, BEGIN + timedelta(days=3))]
        with pytest.raises(ledger.AlreadyResolved):
            ledger.extend(account_id=account.pk, authorization_id=held.id, lifetime=MONTH)
        assert capture(account, held.id, 15).debt_nanos == 5


class TestReading:
    def test_looking_writes_nothing_and_costs_no_more_queries_while_nothing_is_due(
        self, account: Account, django_assert_num_queries: Any
    ) -> None:
        with at(BEGIN):
            schedule(account)
        with django_assert_num_queries(2):
            balances.of_account(account, now=BEGIN)
        with django_assert_num_queries(3):
            [seen] = balances.of_account(account, now=BEGIN + MONTH)
        assert [(lot.id, lot.source, lot.starts_at) for lot in seen.lots] == [(None, "monthly", BEGIN + MONTH)]
        assert len(entries(account)) == 1

    @pytest.mark.django_db
    def test_a_customer_sees_what_is_due_too_but_not_who_of_staff_set_it(self) -> None:
        user = User.objects.create_user("ada@example.com")
        account = make_account(owner=user)
        with at(BEGIN):
            schedule(account, rollover_periods=1)
        with tenancy.acting_as(user=user):
            [seen] = balances.of_account(account, now=BEGIN + MONTH)
        assert seen.balance == 200


@pytest.mark.failure(48)
@pytest.mark.failure(50)
@pytest.mark.usefixtures("committed")
def test_the_same_instant_twice_in_parallel_and_once_more_grants_once() -> None:
    """Real threads, real commits: the example of 100, 60 and 30."""
    account = make_account()
    anchor = datetime.now(UTC) - timedelta(days=100)
    over = periods.period_at(anchor, datetime.now(UTC))[0]
    before = over - timedelta(minutes=1)
    with at(before):
        schedule(account, anchor=anchor, rollover_periods=1, rollover_cap_nanos=200, ends_at=over - timedelta(seconds=30))
        give(account, 20, source="rollover", priority=20, expires_at=over, cash_nanos=0)
        give(account, 30, cash_nanos=30)
        surplus = left(account)["rollover"] - 20
        record(account, 40)
        end(account, None)
    assert left(account) == {"monthly": 60, "rollover": 20 + surplus, "purchased": 30}
    barrier = threading.Barrier(4)
    errors: list[Exception] = []

    def run(work: Callable[[], object]) -> None:
        try:
            barrier.wait()
            work()
        except Exception as error:  # noqa: BLE001 (shown below)
            errors.append(error)
        finally:
            connections.close_all()

    jobs: list[Callable[[], object]] = [
        lambda: ledger.catch_up(after=account.pk - 1, limit=1),
        lambda: ledger.catch_up(after=account.pk - 1, limit=1),
        lambda: touch(account),
        lambda: record(account, 0),
    ]
    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    touch(account)
    assert errors == []
    assert left(account) == {"monthly": 100, "rollover": 60, "purchased": 30}
    assert LedgerEntry.objects.filter(account=account, kind="grant", effective_at=over).count() == 1
    assert audit.run() == []


@pytest.mark.usefixtures("committed")
def test_the_job_walks_over_every_account_and_ends_even_while_a_hold_keeps_something_overdue() -> None:
    product = make_product()
    accounts = [make_account(product) for _ in range(5)]
    soon = datetime.now(UTC) + timedelta(seconds=5)
    for account in accounts:
        give(account, 10, expires_at=soon)
    hold(accounts[0], 4)
    walked = []
    with at(soon):
        after: int | None = accounts[0].pk - 1
        while after is not None:
            after = ledger.catch_up(after=after, limit=2)
            walked.append(after)
    assert walked == [accounts[1].pk, accounts[3].pk, accounts[4].pk, None]
    assert [left(account) for account in accounts] == [{"purchased": 4}, {}, {}, {}, {}]


def fail(subject: str, error: Exception) -> None:
    raise error


@pytest.mark.usefixtures("committed")
def test_the_job_of_the_beat_comes_to_an_end_and_twice_is_once() -> None:
    account = make_account()
    soon = datetime.now(UTC) + timedelta(seconds=1)
    give(account, 10, expires_at=soon)
    with at(soon):
        assert due.apply(given_up=(), failed=fail) >= 1
        found = entries(account)
        due.apply(given_up=(), failed=fail)
    assert (left(account), entries(account)) == ({}, found)
    assert found[1:] == [("expiry", -10, soon)]
