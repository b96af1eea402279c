"""Throttles: reached by use, told once, lifted by the window's end or by staff, and never coming back in a window that staff lifted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import User, WebhookEvent
from billing import ledger
from billing.models import Subscription
from metering import kill_switches, switch_preview, throttles, usage
from metering.models import CostThrottle, KillSwitch
from metering.tests.limited import PER_TOKEN, Shop
from pricing.models import CostTier
from tests.factories import make_account

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
MIDNIGHT = datetime(2027, 6, 16, tzinfo=UTC)
DAY = "cost/day"

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> User:
    return User.objects.create_user(email="ada@staff.example")


def limited(tokens: int = 10, **tier: Any) -> Shop:
    """A shop whose accounts may cost as much as ``tokens`` tokens a day."""
    return Shop.new(tier={"daily_cost_nanos": tokens * PER_TOKEN} | tier)


def lift(shop: Shop, by: User, now: datetime) -> int:
    account = shop.account
    throttled = [throttles.Throttled(account, stop) for stop in throttles.of_account(account=account, now=now).stops]
    return throttles.lift(throttled=throttled, by=by, actor="ada", reason="a false positive", now=now)


def told(shop: Shop) -> list[tuple[str, str | None]]:
    return [
        (event.kind, event.data["reason"])
        for event in WebhookEvent.objects.filter(account=shop.account, kind__startswith="account.").order_by("pk")
    ]


class TestReached:
    def test_an_account_is_throttled_at_its_limit_to_the_nano_and_not_one_below(self) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=9)
            assert throttles.of_account(account=shop.account, now=NOON).stops == ()
            shop.use(tokens=1)
            [stop] = throttles.of_account(account=shop.account, now=NOON).stops
            assert (stop.meter, stop.used_nanos, stop.limit_nanos, stop.until) == (DAY, 10 * PER_TOKEN, 10 * PER_TOKEN, MIDNIGHT)
            assert (stop.actor, stop.reason) == ("tollgate", "The usage limit for this day is reached.")
            assert shop.refused_by() == "cost"

    def test_what_open_work_may_cost_refuses_and_is_no_throttle(self) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.authorize(tokens=10)
            assert shop.refused_by() == "cost"
            assert throttles.of_account(account=shop.account, now=NOON).stops == ()

    def test_a_tier_that_only_measures_throttles_nobody_and_shows_who_is_above(self) -> None:
        shop = limited(10, throttle_on_exceed=False)
        with shop.at(NOON):
            shop.use(tokens=20)
            assert throttles.of_account(account=shop.account, now=NOON).stops == ()
            assert [one.account for one in throttles.everybody(now=NOON, product=shop.product)] == []
            [one] = throttles.at_risk(now=NOON, product=shop.product)
            assert (one.ppm, one.state) == (2_000_000, "reached, only measured")

    def test_the_throttle_ends_with_its_window_and_not_a_microsecond_earlier(self) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
        with shop.at(MIDNIGHT - timedelta(microseconds=1)):
            assert shop.refused_by() == "cost"
        with shop.at(MIDNIGHT):
            assert throttles.of_account(account=shop.account, now=MIDNIGHT).stops == ()
            assert shop.refused_by() is None

    def test_a_limit_of_zero_allows_nothing_and_is_no_throttle(self) -> None:
        shop = limited(0)
        with shop.at(NOON):
            assert shop.refused_by() == "cost"
            assert throttles.everybody(now=NOON, product=shop.product) == []


class TestLifted:
    def test_a_lift_lets_the_account_work_without_limit_until_the_window_ends_and_no_longer(self, ada: User) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
            assert lift(shop, ada, NOON) == 1
            assert shop.refused_by(tokens=1_000) is None
            shop.use(tokens=1_000)
            assert shop.refused_by() is None  # it does not come back by itself
            assert throttles.of_account(account=shop.account, now=NOON).stops == ()
            assert shop.decide().refusal is None
        with shop.at(MIDNIGHT):
            shop.use(tokens=10)
            assert shop.refused_by() == "cost"

    def test_a_lift_is_of_the_limit_that_was_reached_and_of_no_other(self, ada: User) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 10 * PER_TOKEN, "monthly_cost_nanos": 15 * PER_TOKEN})
        with shop.at(NOON):
            shop.use(tokens=10)
            lift(shop, ada, NOON)
            shop.use(tokens=5)
            assert shop.refused_by() == "cost"
            [stop] = throttles.of_account(account=shop.account, now=NOON).stops
            assert stop.meter == "cost/period"

    def test_a_lift_of_one_account_is_not_anothers(self, ada: User) -> None:
        shop, other = limited(10), limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
            lift(shop, ada, NOON)
        with other.at(NOON):
            other.use(tokens=10)
            assert other.refused_by() == "cost"

    def test_what_was_lifted_says_who_why_and_until_when_and_is_in_the_audit_log_once(self, ada: User) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
            before = [throttles.Throttled(shop.account, stop) for stop in throttles.of_account(account=shop.account, now=NOON).stops]
            lifts = [throttles.lift(throttled=before, by=ada, actor="ada", reason="a mistake", now=NOON) for _ in range(2)]
            [row] = throttles.of_account(account=shop.account, now=NOON).lifted
        assert lifts == [1, 0]
        assert (row.meter, row.window_end, row.ended_by, row.reason) == (DAY, MIDNIGHT, "ada", "a mistake")
        [line] = LogEntry.objects.filter(object_id=str(shop.account.pk), user=ada)
        assert line.change_message == "Resumed (cost/day until 2027-06-16 00:00 UTC): a mistake"

    def test_a_stop_by_staff_is_lifted_in_the_same_act(self, ada: User) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
            throttles.stop(account=shop.account, actor="grace", reason="odd", ends_at=None, now=NOON)
            assert shop.refused_by() == "throttle"
            assert lift(shop, ada, NOON) == 1
            assert shop.refused_by() is None
        assert told(shop) == [
            ("account.throttled", "odd"), ("account.unthrottled", "a false positive"), ("account.unthrottled", "a false positive")
        ]  # fmt: skip

    def test_other_layers_still_refuse_whose_cost_limit_is_lifted(self, ada: User) -> None:
        shop = Shop.new(("messages", "day", 2), tier={"daily_cost_nanos": 10 * PER_TOKEN})
        with shop.at(NOON):
            shop.use(tokens=10)
            lift(shop, ada, NOON)
            shop.use(tokens=10)
            assert shop.refused_by() == "quota"

    def test_who_has_no_lift_is_asked_nothing_more_by_the_hot_path(self, ada: User) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.authorize(tokens=1)
            with CaptureQueriesContext(
                connection,
            ) as asked:
                shop.authorize(tokens=1)
        assert not [query for query in asked.captured_queries if "costthrottle" in query["sql"]]


class TestTold:
    def test_reaching_and_the_windows_end_are_noted_and_told_once_each(self) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
            assert [throttles.follow(now=NOON) for _ in range(2)] == [1, 0]
        with shop.at(MIDNIGHT + timedelta(days=2)):
            assert [throttles.follow(now=MIDNIGHT + timedelta(days=2)) for _ in range(2)] == [1, 0]
        [row] = CostThrottle.objects.filter(account=shop.account)
        assert (row.began_at, row.ended_at, row.ended_by, row.lifted) == (NOON, MIDNIGHT, "tollgate", False)
        assert told(shop) == [
            ("account.throttled", "The usage limit for this day is reached."), ("account.unthrottled", "Its window has ended.")
        ]  # fmt: skip
        assert "limit_nanos" not in str(WebhookEvent.objects.filter(account=shop.account).values_list("data", flat=True))

    def test_a_raised_limit_ends_the_throttle_and_reaching_that_is_told_anew(self) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
            throttles.follow(now=NOON)
            CostTier.objects.filter(product=shop.product).update(daily_cost_nanos=20 * PER_TOKEN)
            throttles.follow(now=NOON)
            assert shop.refused_by(tokens=1) is None
            shop.record(shop.event(tokens=9), shop.event(tokens=1))
            throttles.follow(now=NOON)
        assert [kind for kind, _ in told(shop)] == ["account.throttled", "account.unthrottled", "account.throttled"]

    def test_a_lift_is_told_and_does_not_lead_to_another_throttle_in_its_window(self, ada: User) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
            throttles.follow(now=NOON)
            lift(shop, ada, NOON)
            shop.use(tokens=10)
            throttles.follow(now=NOON)
        assert told(shop) == [
            ("account.throttled", "The usage limit for this day is reached."), ("account.unthrottled", "a false positive")
        ]  # fmt: skip


class TestEverybody:
    def test_everybody_who_is_throttled_is_listed_with_the_reason_and_nobody_else(self) -> None:
        shop = limited(10)
        others = [Shop(make_account(shop.product, credit=100), shop.model) for _ in range(3)]
        with shop.at(NOON):
            for tokens, one in zip((10, 7, 8, 0), (shop, *others), strict=True):
                one.now = NOON
                if tokens:
                    one.use(tokens=tokens)
            ledger.throttle(account_id=others[2].account.pk, actor="grace", reason="abuse")
            found = throttles.everybody(now=NOON, product=shop.product)
            assert [(one.account, one.stop.reason) for one in found] == [
                (others[2].account, "abuse"), (shop.account, "The usage limit for this day is reached.")
            ]  # fmt: skip
            at_risk = throttles.at_risk(now=NOON, product=shop.product)
            assert [(one.account, one.ppm) for one in at_risk] == [(shop.account, 1_000_000), (others[1].account, 800_000)]
            share = throttles.share(now=NOON, product=shop.product)
            assert (share.throttled, share.active, share.ppm) == (2, 4, 500_000)
        assert throttles.share(now=NOON, product=limited().product).ppm == 0

    def test_the_seats_of_a_team_and_a_tier_of_its_own_count_as_in_the_hot_path(self) -> None:
        shop = limited(10)
        CostTier.objects.create(product=shop.product, slug="own", daily_cost_nanos=12 * PER_TOKEN)
        shop.account.cost_tier = "own"
        shop.account.save()
        with shop.at(NOON):
            shop.use(tokens=11)
            [one] = throttles.at_risk(now=NOON, product=shop.product)
            assert (one.tier, one.limit_nanos, one.throttled) == ("own", 12 * PER_TOKEN, False)

    def test_closed_accounts_and_ended_windows_are_nobodys_risk(self) -> None:
        shop = limited(10)
        with shop.at(NOON):
            shop.use(tokens=10)
        with shop.at(MIDNIGHT):
            assert throttles.at_risk(now=MIDNIGHT, product=shop.product) == []
        shop.account.closed_at = NOON
        shop.account.save()
        with shop.at(NOON):
            assert throttles.everybody(now=NOON, product=shop.product) == []

    def test_the_lists_ask_as_often_for_many_accounts_as_for_few(self) -> None:
        shop = limited(10)

        def queries() -> int:
            with shop.at(NOON), CaptureQueriesContext(connection) as asked:
                throttles.at_risk(now=NOON, product=shop.product)
            return sum("usage_counter" in query["sql"] or "costthrottle" in query["sql"] for query in asked.captured_queries)

        with shop.at(NOON):
            shop.use(tokens=10)
        few = queries()
        for _ in range(5):
            one = Shop(make_account(shop.product, credit=100), shop.model)
            with one.at(NOON):
                one.use(tokens=10)
        assert queries() == few

    def test_the_address_is_that_of_the_bills_or_of_the_first_owner(self) -> None:
        shop = limited(10)
        grace = User.objects.create_user(email="grace@example.com")
        shop.account.memberships.create(user=grace, role="owner")
        assert throttles.addresses([shop.account]) == {shop.account.pk: "grace@example.com"}
        shop.account.billing_email = "bills@example.com"
        assert throttles.addresses([shop.account]) == {shop.account.pk: "bills@example.com"}


def test_an_account_whose_plan_has_ended_is_not_throttled_but_refused_otherwise() -> None:
    shop = limited(10)
    with shop.at(NOON):
        shop.use(tokens=10)
        Subscription.objects.filter(account=shop.account).update(status=Subscription.Status.CANCELED, ended_at=NOON)
        assert throttles.everybody(now=NOON, product=shop.product) == []
        shop.account.rate_card = "standard"
        with pytest.raises(usage.Refused, match="no active plan"):
            shop.authorize()


class TestSwitches:
    def throw(self, kind: str, now: datetime, **more: Any) -> None:
        wanted = kill_switches.Wanted(kind=kind, **more)
        kill_switches.throw(wanted=wanted, reason="a bad deployment", actor="grace", ends_at=now + timedelta(hours=1), now=now)

    def test_while_throttling_is_off_nobody_is_throttled_and_afterwards_who_was_is_again(self) -> None:
        shop, now = limited(10), datetime.now(UTC)
        shop.use(tokens=10)
        throttles.stop(account=shop.account, actor="grace", reason="odd", ends_at=None, now=now)
        now = datetime.now(UTC)
        assert [one.account for one in throttles.everybody(now=now, product=shop.product)] == [shop.account] * 2
        self.throw("throttling", now, product=shop.product)
        assert throttles.everybody(now=now, product=shop.product) == []
        assert throttles.of_account(account=shop.account, now=now).stops == ()
        kill_switches.end(switch=KillSwitch.objects.get(), actor="grace", now=now + timedelta(seconds=1))
        assert len(throttles.everybody(now=now + timedelta(seconds=2), product=shop.product)) == 2

    def test_an_emergency_cap_throttles_also_who_was_lifted_and_says_until_when(self, ada: User) -> None:
        shop = Shop.new(tier={"monthly_cost_nanos": 100 * PER_TOKEN})
        shop.use(tokens=100)
        now = datetime.now(UTC)
        assert lift(shop, ada, now) == 1
        assert throttles.everybody(now=now, product=shop.product) == []
        self.throw("cost_cap", now, product=shop.product, cap_nanos=40 * PER_TOKEN)
        [one] = throttles.everybody(now=now, product=shop.product)
        assert (one.stop.limit_nanos, one.stop.until) == (40 * PER_TOKEN, now + timedelta(hours=1))
        assert one.stop.reason == "Usage is limited for everybody for the moment."
        assert lift(shop, ada, now) == 0
        assert shop.refused_by() == "cost"


def test_the_preview_of_throttling_off_counts_whoever_is_throttled_once_and_no_stop_that_ran_out() -> None:
    shop = limited(10)
    other = Shop(make_account(shop.product), shop.model)
    with shop.at(NOON):
        shop.use(tokens=10)
        throttles.stop(account=shop.account, actor="ada", reason="abuse", ends_at=None, now=NOON)
        throttles.stop(account=other.account, actor="ada", reason="a while", ends_at=NOON + timedelta(minutes=5), now=NOON)

    def stopped(now: datetime, **of: Any) -> int:
        return switch_preview.of(wanted=kill_switches.Wanted(kind="throttling", **of), now=now).stopped

    assert stopped(NOON, product=shop.product) == 2
    assert stopped(NOON, account=other.account) == 1
    assert stopped(NOON + timedelta(minutes=5), product=shop.product) == 1
    with shop.at(NOON):
        throttles.resume(account=shop.account, actor="ada", reason="over", now=NOON)
    assert stopped(NOON, account=shop.account) == 1  # by its limit on cost
