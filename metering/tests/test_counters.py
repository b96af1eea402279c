"""What limits count: open work, late work, lost work and direct records, each once and in its own window, whoever asks at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection, connections, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import Account
from billing import audit, ledger
from billing.models import Subscription, Wallet
from metering import limits, usage
from metering.models import OpenAuthorization, UsageRecord
from metering.tests.limited import PER_TOKEN, Shop, plan_version
from metering.tests.test_concurrency import at_once
from tests.factories import make_model

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: Longer than a hold lives in these tests' products.
HOLD = timedelta(minutes=15)


def counters(account: Account) -> dict[tuple[str, datetime], int]:
    with connection.cursor() as cursor:
        cursor.execute("select meter, window_start, used from usage_counter where account_id = %s", [account.pk])
        return {(meter, start): used for meter, start, used in cursor.fetchall()}


def account_state(account: Account) -> tuple[int, int]:
    """Open authorizations, and their estimated cost."""
    with connection.cursor() as cursor:
        cursor.execute("select open_count, open_cost_nanos from account_state where account_id = %s", [account.pk])
        [row] = cursor.fetchall()
        return row  # type: ignore[no-any-return]


def somebody_waits() -> bool:
    """Whether a connection to this database waits for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_stat_clear_snapshot()")
        cursor.execute("select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')")
        [(waits,)] = cursor.fetchall()
        return bool(waits)


@pytest.mark.usefixtures("committed")
class TestAtOnce:
    """Real threads, real commits: eight clients at one below the limit."""

    @pytest.mark.failure(39)
    @pytest.mark.parametrize(
        ("layer", "terms", "tier"),
        [
            ("requests", [], {"requests_per_hour": 4}),
            ("concurrency", [("tasks", "open", 4)], None),
            ("quota", [("messages", "day", 4)], None),
            ("cost", [], {"daily_cost_nanos": 4 * PER_TOKEN}),
            ("cost", [], {"monthly_cost_nanos": 4 * PER_TOKEN}),
        ],
    )
    def test_of_eight_at_once_at_one_below_the_limit_exactly_one_passes(
        self, layer: str, terms: list[Any], tier: dict[str, int] | None
    ) -> None:
        shop = Shop.new(*terms, tier=tier)
        for _ in range(3):
            shop.authorize()
        answers = at_once(8, lambda _: shop.authorize())
        assert sum(isinstance(answer, usage.Authorization) for answer in answers) == 1
        assert [answer.layer.name for answer in answers if isinstance(answer, usage.Refused)] == [layer] * 7
        assert shop.used(layer) == {"cost": 4 * PER_TOKEN}.get(layer, 4)
        assert Wallet.objects.get(account=shop.account).held == 4 * PER_TOKEN * 3 // 2  # nothing stayed behind of the seven
        assert audit.run() == []

    def test_of_eight_objects_at_once_at_one_below_the_limit_exactly_one_passes(self) -> None:
        shop = Shop.new(("agents", "count", 3))

        def reserve(name: Any) -> Any:
            return usage.reserve(account=shop.account, meter="agents", object_ref=str(name), now=datetime.now(UTC))

        reserve("a")
        reserve("b")
        answers = at_once(8, reserve)
        assert sum(isinstance(answer, tuple) for answer in answers) == 1
        assert [answer.layer.name for answer in answers if isinstance(answer, usage.Refused)] == ["quota"] * 7

    def test_one_object_reserved_by_eight_at_once_takes_one_place(self) -> None:
        shop = Shop.new(("agents", "count", 3))
        answers = at_once(8, lambda _: usage.reserve(account=shop.account, meter="agents", object_ref="a", now=datetime.now(UTC)))
        assert [answer[0].used for answer in answers] == [1] * 8
        assert sum(not answer[0].replayed for answer in answers) == 1

    def test_an_object_that_waits_while_its_account_is_stopped_is_refused(self) -> None:
        shop = Shop.new(("agents", "count", 3))

        def reserve() -> None:
            try:
                usage.reserve(account=shop.account, meter="agents", object_ref="a", now=datetime.now(UTC))
            finally:
                connections.close_all()

        with ThreadPoolExecutor(1) as pool:
            with transaction.atomic():
                ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
                waiting = pool.submit(reserve)
                while not somebody_waits():
                    assert not waiting.done()
            with pytest.raises(usage.Refused, match="stopped: abuse"):
                waiting.result()

    def test_the_first_eight_of_a_window_make_its_counter_once(self) -> None:
        shop = Shop.new(("messages", "day", 100), tier={"requests_per_hour": 100, "daily_cost_nanos": 10**9})
        assert all(isinstance(answer, usage.Authorization) for answer in at_once(8, lambda _: shop.authorize()))
        assert sorted((meter, used) for (meter, _), used in counters(shop.account).items()) == [
            ("cost/day", 0),
            ("messages/day", 8),
            ("requests/hour", 8),
        ]

    def test_work_and_reports_at_once_are_all_counted(self) -> None:
        shop = Shop.new(("messages", "lifetime", 1_000))

        def work(number: int) -> Any:
            for _ in range(5):
                if number % 2:
                    shop.record(*(shop.event() for _ in range(3)))
                else:
                    shop.use()

        at_once(8, work)
        assert shop.used("quota") == 4 * 5 + 4 * 5 * 3
        assert audit.run() == []


@pytest.mark.django_db
class TestOpenWork:
    def test_open_work_counts_with_its_estimate_and_finished_work_with_its_cost(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 100 * PER_TOKEN})
        with shop.at(NOON):
            work = shop.authorize(tokens=60)
            assert shop.used("cost") == 60 * PER_TOKEN
            assert [shop.refused_by(tokens=tokens) for tokens in (41, 40)] == ["cost", None]
            shop.capture(work, tokens=10)
            assert shop.used("cost") == (10 + 40) * PER_TOKEN
            assert [shop.refused_by(tokens=tokens) for tokens in (51, 50)] == ["cost", None]

    def test_work_that_cost_more_than_its_estimate_counts_whole_also_above_the_limit(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 100 * PER_TOKEN})
        with shop.at(NOON):
            shop.capture(shop.authorize(tokens=1), tokens=150)
            layer = shop.layer("cost")
            assert (layer.used, layer.remaining) == (150 * PER_TOKEN, 0)
            assert shop.refused_by() == "cost"

    def test_a_capture_adds_its_cost_to_the_window_of_its_authorization(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 100 * PER_TOKEN})
        midnight = NOON.replace(hour=0)
        with shop.at(midnight + DAY - timedelta(minutes=1)):
            work = shop.authorize(tokens=60)
        with shop.at(midnight + DAY + timedelta(minutes=1)):
            assert shop.used("cost") == 60 * PER_TOKEN  # open work belongs to no window yet
            shop.authorize(tokens=5)
            shop.capture(work, tokens=60)
            assert shop.used("cost") == 5 * PER_TOKEN
        assert counters(shop.account) == {("cost/day", midnight): 60 * PER_TOKEN, ("cost/day", midnight + DAY): 0}

    def test_release_gives_a_message_and_its_cost_back_but_not_the_request(self) -> None:
        shop = Shop.new(("messages", "day", 1), ("tasks", "open", 1), tier={"requests_per_hour": 2, "daily_cost_nanos": 10 * PER_TOKEN})
        with shop.at(NOON):
            shop.release(shop.authorize(tokens=10))
            assert {(layer.name, layer.used) for layer in shop.decide().layers if layer.used is not None} == {
                ("requests", 1),
                ("concurrency", 0),
                ("quota", 0),
                ("cost", 0),
            }
            shop.use(tokens=10)
            assert shop.refused_by() == "requests"

    def test_usage_that_waits_for_its_price_frees_its_slot_and_keeps_its_message_and_its_estimate(self) -> None:
        shop = Shop.new(("messages", "day", 5), ("tasks", "open", 1), tier={"daily_cost_nanos": 100 * PER_TOKEN})
        with shop.at(NOON):
            work = shop.authorize(tokens=60)
            quantities = {"input_tokens": 60, "images": 1}
            done = usage.capture(account=shop.account, authorization_id=work.usage.id, quantities=quantities)
            assert done.state == "awaiting_price"
            assert [shop.used(name) for name in ("concurrency", "quota", "cost")] == [0, 1, 60 * PER_TOKEN]
            assert [shop.refused_by(tokens=tokens) for tokens in (41, 40)] == ["cost", None]
            assert audit.run() == []


@pytest.mark.django_db
class TestLostClients:
    """Holds that nobody resolves are given back in the very call that would be refused for them."""

    @pytest.mark.failure(10)
    @pytest.mark.parametrize(
        ("layer", "terms", "tier", "tokens"),
        [
            ("concurrency", [("tasks", "open", 1)], None, 1),
            ("quota", [("messages", "day", 1)], None, 1),
            ("cost", [], {"daily_cost_nanos": PER_TOKEN}, 1),
            ("credits", [], None, 600_000),  # 0.9 of the one dollar
        ],
    )
    def test_what_a_crashed_client_left_open_is_free_again_when_its_hold_has_expired(
        self, layer: str, terms: list[Any], tier: dict[str, int] | None, tokens: int
    ) -> None:
        shop = Shop.new(*terms, tier=tier, credit=1)
        with shop.at(NOON):
            lost = shop.authorize(tokens=tokens)
            assert shop.refused_by(tokens=tokens) == layer
        with shop.at(NOON + HOLD - timedelta(seconds=1)):
            assert shop.refused_by(tokens=tokens) == layer
        with shop.at(NOON + HOLD):
            assert shop.refused_by(tokens=tokens) is None
            assert shop.refused_by(tokens=tokens) == layer  # one was lost, one is free
        assert OpenAuthorization.objects.get(pk=lost.usage.id).state == "timed_out"
        assert audit.run() == []

    def test_an_expired_hold_gives_no_request_back(self) -> None:
        shop = Shop.new(tier={"requests_per_hour": 1})
        with shop.at(NOON):
            shop.authorize()
        with shop.at(NOON + HOLD):
            assert shop.refused_by() == "requests"

    def test_a_capture_after_the_time_out_counts_its_message_and_its_cost_in_its_own_window(self) -> None:
        shop = Shop.new(("messages", "day", 2), tier={"daily_cost_nanos": 100 * PER_TOKEN, "requests_per_hour": 9})
        midnight = NOON.replace(hour=0)
        with shop.at(midnight + timedelta(minutes=1)):
            work = shop.authorize(tokens=60)
        with shop.at(midnight + HOUR):
            assert ledger.sweep(limit=10) == 1
            assert [shop.used(name) for name in ("quota", "cost")] == [0, 0]
        with shop.at(midnight + DAY + HOUR):
            shop.authorize()
            assert shop.capture(work, tokens=60).state == "captured"
            assert [shop.used(name) for name in ("quota", "cost")] == [1, PER_TOKEN]
        found = counters(shop.account)
        assert (found["messages/day", midnight], found["cost/day", midnight]) == (1, 60 * PER_TOKEN)
        assert audit.run() == []

    def test_a_hold_that_timed_out_for_good_counts_nothing_but_its_request(self) -> None:
        shop = Shop.new(("messages", "lifetime", 5), ("requests", "lifetime", 5), tier={"monthly_cost_nanos": 100 * PER_TOKEN})
        with shop.at(NOON):
            shop.authorize(tokens=60)
        with shop.at(NOON + 8 * DAY):
            while ledger.sweep(limit=10):
                pass
            assert UsageRecord.objects.get(account=shop.account).outcome == "timed_out"
            assert [shop.used(name) for name in ("quota", "requests", "cost")] == [0, 1, 0]
            assert audit.run() == []


@pytest.mark.django_db
class TestRecords:
    def test_direct_records_count_alone_and_in_batches_and_are_never_refused(self) -> None:
        shop = Shop.new(("messages", "day", 3), ("exports", "day", 9), tier={"requests_per_hour": 5, "daily_cost_nanos": 10 * PER_TOKEN})
        with shop.at(NOON):
            shop.use()  # makes the counters
            shop.record(shop.event(tokens=2))
            shop.record(*(shop.event(tokens=3, counts={"exports": 2}) for _ in range(3)), shop.event(counts={"messages": 4}))
            told = {layer.meter: layer.used for layer in shop.decide().layers if layer.meter}
            assert told == {"messages/day": 6, "exports/day": 6, "requests/hour": 6, "cost/day": 13 * PER_TOKEN}
            assert shop.refused_by() == "requests"
            assert audit.run() == []

    def test_a_record_counts_once_however_often_it_is_sent(self) -> None:
        shop = Shop.new(("messages", "day", 9))
        with shop.at(NOON):
            shop.use()
            event = shop.event()
            shop.record(event, event)
            shop.record(event)
            assert shop.used("quota") == 2

    def test_an_event_counts_in_the_window_of_its_own_time(self) -> None:
        shop = Shop.new(("messages", "day", 9), tier={"requests_per_hour": 9, "daily_cost_nanos": 10**9})
        midnight = NOON.replace(hour=0)
        with shop.at(midnight + timedelta(hours=23, minutes=58)):
            shop.use()
            shop.record(shop.event(at=midnight + DAY + timedelta(minutes=2)))  # its clock is ahead of ours
        with shop.at(midnight + DAY + timedelta(minutes=3)):
            assert shop.used("quota") == 1
            shop.use()
            shop.record(shop.event(at=midnight + DAY - timedelta(microseconds=1)), shop.event(at=midnight + DAY))
            assert shop.used("quota") == 3
        found = counters(shop.account)
        assert [found["messages/day", midnight + day] for day in (0 * DAY, DAY)] == [2, 3]
        assert audit.run() == []

    def test_usage_without_a_price_counts_as_a_message_and_a_request_and_no_cost(self) -> None:
        shop = Shop.new(("messages", "day", 9), tier={"requests_per_hour": 9, "daily_cost_nanos": 10**9})
        with shop.at(NOON):
            shop.use()
            shop.model = "acme:nobody-priced-it"
            assert [answer.state for answer in shop.record()] == ["unpriced"]
            assert [shop.used(name) for name in ("quota", "requests", "cost")] == [2, 2, PER_TOKEN]
            assert audit.run() == []


@pytest.mark.django_db
class TestWindows:
    def test_an_hour_a_day_a_period_and_a_lifetime_each_begin_anew_or_never(self) -> None:
        shop = Shop.new(*(("messages", window, 9) for window in ("hour", "day", "period", "lifetime")))

        def used() -> list[int]:
            return [shop.used("quota", f"messages/{window}") for window in ("hour", "day", "period", "lifetime")]

        start = Subscription.objects.get(account=shop.account).current_period_start
        instants = [start + timedelta(seconds=1), start + HOUR, start + DAY, start + timedelta(days=40)]
        seen = []
        for instant in instants:
            with shop.at(instant):
                shop.use()
                seen.append(used())
        assert [each[0] for each in seen] == [1, 1, 1, 1]
        assert [each[2:] for each in seen] == [[1, 1], [2, 2], [3, 3], [1, 4]]
        assert audit.run() == []

    def test_a_period_ends_with_the_subscriptions_also_when_the_job_that_moves_it_on_is_late(self) -> None:
        shop = Shop.new(tier={"monthly_cost_nanos": 100 * PER_TOKEN})
        subscription = Subscription.objects.get(account=shop.account)
        end = subscription.current_period_end
        with shop.at(end - timedelta(seconds=1)):
            shop.use(tokens=100)
            assert (shop.refused_by(), shop.layer("cost").resets_at) == ("cost", end)
        with shop.at(end):  # no job has run: the subscription still says that its period is over
            assert shop.refused_by(tokens=100) is None
            assert shop.layer("cost").resets_at == limits.window_at(*terms_of(shop), "period", end)[1]

    @pytest.mark.parametrize("looked_before", [False, True])
    def test_a_capture_after_its_period_was_closed_counts_when_it_comes_whether_somebody_counted_then_or_not(
        self, looked_before: bool
    ) -> None:
        shop = Shop.new(("messages", "day", 100), tier={"daily_cost_nanos": 100 * PER_TOKEN})
        subscription = Subscription.objects.get(account=shop.account)
        end = subscription.current_period_end
        with shop.at(end - timedelta(minutes=1)):
            authorization = shop.authorize(tokens=5)
        with shop.at(end + usage.GRACE + timedelta(hours=1)):
            if looked_before:
                shop.use(tokens=1)
            usage.capture(account=shop.account, authorization_id=authorization.usage.id, quantities={"input_tokens": 4})
            if not looked_before:
                shop.use(tokens=1)
            assert UsageRecord.objects.get(pk=authorization.usage.id).counted_at is not None
            assert (shop.used("cost"), shop.used("quota")) == (5 * PER_TOKEN, 2)
        assert audit.run() == []

    def test_lifetimes_never_reset_and_count_what_happened_before_anybody_counted(self) -> None:
        shop = Shop.new()
        with shop.at(NOON):
            shop.use()
            shop.record(shop.event(at=NOON - timedelta(days=300)))
        shop.put_on(plan_version(shop.product.plans.get(slug="free"), ("messages", "lifetime", 3)))
        with shop.at(NOON + timedelta(days=900)):
            assert shop.layer("quota").resets_at is None
            assert [shop.refused_by(), shop.refused_by()] == [None, "quota"]
        assert audit.run() == []

    def test_a_change_of_time_zone_begins_at_the_next_window_and_no_event_is_in_two_or_in_none(self) -> None:
        shop = Shop.new(("messages", "day", 100))
        zones = ["Asia/Tokyo", "America/Los_Angeles", "Pacific/Kiritimati", "Europe/Paris", "Pacific/Midway"]
        instant, used = NOON, 0
        for step in range(60):
            if step % 10 == 3:
                Account.objects.filter(pk=shop.account.pk).update(time_zone=zones[step // 10 % len(zones)])
                shop.account.refresh_from_db()
            with shop.at(instant):
                before = shop.layer("quota")
                shop.use()
                used += 1
                assert shop.used("quota") == (before.used or 0) + 1
            instant += timedelta(hours=5)
            with connection.cursor() as cursor:
                cursor.execute(
                    "select count(*) from usage_record r where account_id = %(account)s and r.event_at >= (select min(window_start) from"
                    " usage_counter where account_id = %(account)s) and 1 <> (select count(*) from usage_counter c where"
                    " c.account_id = %(account)s and c.window_start <= r.event_at and r.event_at < c.window_end)",
                    {"account": shop.account.pk},
                )
                assert cursor.fetchone() == (0,)
        assert audit.run() == []

    def test_the_window_in_force_ends_as_it_began_when_the_time_zone_changes(self) -> None:
        shop = Shop.new(("messages", "day", 1))
        with shop.at(NOON):
            shop.use()
        Account.objects.filter(pk=shop.account.pk).update(time_zone="Asia/Tokyo")
        shop.account.refresh_from_db()
        midnight = NOON.replace(hour=0) + DAY
        with shop.at(midnight - timedelta(seconds=1)):  # in Tokyo it is nine in the morning of the next day
            assert (shop.refused_by(), shop.layer("quota").resets_at) == ("quota", midnight)
        with shop.at(midnight):
            assert shop.refused_by() is None
            assert shop.layer("quota").resets_at == datetime(2027, 6, 17, tzinfo=ZoneInfo("Asia/Tokyo"))

    def test_a_change_of_plan_in_mid_window_keeps_what_was_used_and_takes_the_new_limit(self) -> None:
        shop = Shop.new(("messages", "day", 2), tier={"monthly_cost_nanos": 10 * PER_TOKEN})
        free = shop.product.plans.get(slug="free")
        with shop.at(NOON):
            shop.use(tokens=5)
            shop.use(tokens=5)
            assert shop.refused_by() == "quota"
            shop.put_on(plan_version(free, ("messages", "day", 3), ("messages", "period", 5), tier={"monthly_cost_nanos": 11 * PER_TOKEN}))
            assert [(layer.used, layer.limit) for layer in shop.decide().layers if layer.name == "quota"] == [(2, 3), (2, 5)]
            assert [shop.refused_by(tokens=tokens) for tokens in (2, 1)] == ["cost", None]
            shop.put_on(plan_version(free, ("messages", "day", 1)))
            layer = shop.layer("quota")
            assert (layer.used, layer.remaining, layer.allowed) == (3, 0, False)
            assert audit.run() == []

    @pytest.mark.parametrize("late", [timedelta(milliseconds=1), timedelta(seconds=30), -timedelta(milliseconds=1), -timedelta(seconds=30)])
    @pytest.mark.parametrize("used_before", [False, True])
    def test_the_ledgers_clock_says_which_window_it_is_when_the_hour_or_the_day_ends_on_the_way(
        self, late: timedelta, used_before: bool
    ) -> None:
        """The caller's clock is on one side of midnight and the ledger's on the other, by waiting or by being wrong."""
        shop = Shop.new(("messages", "day", 3), ("messages", "lifetime", 9), tier={"requests_per_hour": 9, "daily_cost_nanos": 10**9})
        midnight = NOON.replace(hour=0) + DAY
        if used_before:
            with shop.at(midnight - timedelta(minutes=1)):
                shop.use()
        its, ours = midnight + late / 2, midnight - late / 2
        left = 3 if late > timedelta(0) or not used_before else 2
        with ledger.clock(at=its):
            for number in range(left):
                for replayed in (False, True):
                    answer = usage.authorize(account=shop.account, ask=shop.ask(1), key=f"k{number}", now=ours)
                    assert answer.usage.replayed == replayed
            with pytest.raises(usage.Refused) as refused:
                usage.authorize(account=shop.account, ask=shop.ask(1), key="one more", now=ours)
            assert refused.value.layer.meter == "messages/day"
            assert refused.value.layer.resets_at == (midnight + DAY if late > timedelta(0) else midnight)
            assert audit.run() == []


def terms_of(shop: Shop) -> tuple[Account, Any]:
    from billing import subscriptions

    allowed = subscriptions.allowed(account=shop.account)
    assert allowed is not None
    return shop.account, allowed


@pytest.mark.django_db
class TestDerived:
    def test_counters_that_are_missing_are_counted_again_exactly(self) -> None:
        shop = everything_has_happened()
        before = [(layer.meter, layer.used) for layer in shop.decide().layers]
        stored = counters(shop.account)
        with connection.cursor() as cursor:
            cursor.execute("set local role tollgate_owner") if owned() else None
            cursor.execute("delete from usage_counter where account_id = %s", [shop.account.pk])
            cursor.execute("reset role")
        assert [(layer.meter, layer.used) for layer in shop.decide().layers] == before
        shop.refused_by()
        again = counters(shop.account)
        now = datetime.now(UTC)
        assert {key: used for key, used in again.items() if key[1] <= now} != {}
        for (meter, start), used in again.items():
            expected = stored[meter, start]
            assert used == expected + (1 if meter.startswith(("messages", "requests")) else 0)

    def test_a_counter_that_was_tampered_with_is_found_by_the_audit(self) -> None:
        shop = everything_has_happened()
        with connection.cursor() as cursor:
            cursor.execute("set local role tollgate_owner") if owned() else None
            cursor.execute("update usage_counter set used = used + 1 where account_id = %s and meter = 'messages/day'", [shop.account.pk])
            cursor.execute("reset role")
        assert {finding.check for finding in audit.run()} == {"every counter is the recount of its records"}

    def test_refused_requests_are_not_counted_and_do_not_count_history_again(self) -> None:
        shop = Shop.new(("messages", "lifetime", 1), credit=0)
        assert shop.refused_by() == "credits"
        assert list(counters(shop.account).values()) == [0]

    def test_counters_of_windows_long_over_are_forgotten_and_those_of_the_last_are_kept(self) -> None:
        shop = Shop.new(("messages", "hour", 9), ("messages", "lifetime", 999))
        for hour in range(6):
            with shop.at(NOON + hour * HOUR):
                shop.use()
        assert sorted((start, used) for (meter, start), used in counters(shop.account).items() if meter == "messages/hour") == [
            (NOON + hour * HOUR, 1) for hour in (3, 4, 5)
        ]

    def test_a_meter_without_a_limit_is_not_counted(self) -> None:
        shop = Shop.new(("messages", "day", None), ("exports", "day", 0, "off"), tier={"daily_cost_nanos": None})
        shop.use()
        shop.record()
        assert counters(shop.account) == {}


def owned() -> bool:
    """Whether the tables belong to a role of their own, which the tests' log-in may take."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_has_role(session_user, oid, 'SET') from pg_roles where rolname = 'tollgate_owner'")
        row = cursor.fetchone()
    return bool(row and row[0])


def everything_has_happened() -> Shop:
    shop = Shop.new(
        ("messages", "day", 99), ("messages", "lifetime", 99), ("exports", "period", 99), ("tasks", "open", 99),
        tier={"requests_per_hour": 99, "daily_cost_nanos": 10**9, "monthly_cost_nanos": 10**9},
    )  # fmt: skip
    shop.use(tokens=3)
    shop.release(shop.authorize(tokens=7))
    shop.authorize(tokens=11)
    shop.record(shop.event(tokens=13), shop.event(tokens=17, counts={"exports": 5}))
    shop.model = "acme:nobody-priced-it"
    shop.record()
    shop.model = make_model(output_price=0)
    return shop


# Whatever happens, in whatever order ------------------------------------------------------------------------------------------

ACTS = ["authorize", "authorize", "capture", "capture", "release", "unpriced capture", "record", "batch", "late record", "sweep"]
WORLDS = ["zone", "plan", "forget", "reserve", "unreserve"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*ACTS * 3, *WORLDS]),
        st.integers(0, 9),
        st.sampled_from([timedelta(seconds=1), timedelta(minutes=4), timedelta(minutes=20), timedelta(hours=7), timedelta(days=3)]),
    ),
    min_size=5,
    max_size=30,
)


@pytest.mark.django_db
class TestAnyOrder:
    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(steps=STEPS)
    def test_after_any_acts_in_any_order_every_counter_is_its_recount_and_no_hard_limit_was_passed_by_an_authorization(
        self, steps: list[tuple[str, int, timedelta]]
    ) -> None:
        with transaction.atomic():
            life = Life()
            for act, number, pause in steps:
                life.step(act, number)
                life.now += pause
            with life.shop.at(life.now):
                assert audit.run() == []
            transaction.set_rollback(True)


class Life:
    """One account; each step does one thing and compares every counter with its recount."""

    ZONES = ("UTC", "Asia/Tokyo", "America/Los_Angeles", "Pacific/Kiritimati", "Pacific/Midway")

    def __init__(self) -> None:
        self.shop = Shop.new(*self.terms(3), tier=self.tier(3))
        self.now = NOON
        self.work: list[usage.Authorization] = []
        self.acts: dict[str, Callable[[int], object]] = {
            "authorize": self.authorize,
            "capture": lambda number: self.resolve(number, lambda work: self.shop.capture(work, tokens=number)),
            "unpriced capture": lambda number: self.resolve(number, self.capture_unpriced),
            "release": lambda number: self.resolve(number, self.shop.release),
            "record": lambda number: self.shop.record(self.shop.event(tokens=number)),
            "batch": lambda number: self.shop.record(*(self.shop.event(counts={"exports": number}) for _ in range(number + 1))),
            "late record": lambda number: self.shop.record(self.shop.event(at=self.now - number * timedelta(hours=9))),
            "sweep": lambda number: ledger.sweep(limit=number + 1),
            "zone": self.move,
            "plan": self.change_plan,
            "forget": self.forget,
            "reserve": lambda number: usage.reserve(account=self.shop.account, meter="agents", object_ref=str(number), now=self.now),
            "unreserve": lambda number: usage.unreserve(account=self.shop.account, meter="agents", object_ref=str(number)),
        }

    def terms(self, limit: int) -> list[Any]:
        windows = ("hour", "day", "period", "lifetime")
        return [
            *(("messages", window, limit * (place + 1) ** 2) for place, window in enumerate(windows)),
            ("exports", "day", 9 * limit), ("tasks", "open", limit), ("agents", "count", limit),
        ]  # fmt: skip

    def tier(self, limit: int) -> dict[str, Any]:
        return {"requests_per_hour": 2 * limit, "daily_cost_nanos": 9 * limit * PER_TOKEN, "monthly_cost_nanos": 40 * limit * PER_TOKEN}

    def step(self, act: str, number: int) -> None:
        with self.shop.at(self.now):
            with suppress(usage.Refused, ledger.AlreadyResolved, ledger.NotFound):
                self.acts[act](number)
            with connection.cursor() as cursor:
                cursor.execute(audit.checks()["every counter is the recount of its records"])
                assert cursor.fetchall() == []
                cursor.execute(audit.checks()["the cost of open work is counted"])
                assert cursor.fetchall() == []

    def authorize(self, number: int) -> None:
        work = self.shop.authorize(tokens=number, counts={"exports": 1} if number == 7 else None)
        self.work.append(work)
        told = {layer.meter: layer.remaining for layer in work.decision.layers}
        for layer in self.shop.decide().layers:
            asked = not (layer.meter or "").startswith("exports" if number != 7 else "messages")
            if layer.name in ("requests", "concurrency", "quota", "cost") and layer.meter != "agents/count" and number:
                assert layer.used is not None
                assert layer.limit is not None
                assert layer.remaining == told[layer.meter]
                assert layer.used <= layer.limit or not asked

    def resolve(self, number: int, how: Callable[[usage.Authorization], object]) -> None:
        if self.work:
            how(self.work[number % len(self.work)])

    def capture_unpriced(self, work: usage.Authorization) -> None:
        usage.capture(account=self.shop.account, authorization_id=work.usage.id, quantities={"input_tokens": 1, "images": 1})

    def move(self, number: int) -> None:
        Account.objects.filter(pk=self.shop.account.pk).update(time_zone=self.ZONES[number % len(self.ZONES)])
        self.shop.account.refresh_from_db(fields=["time_zone"])

    def change_plan(self, number: int) -> None:
        self.shop.put_on(plan_version(self.shop.product.plans.get(slug="free"), *self.terms(number), tier=self.tier(number)))

    def forget(self, number: int) -> None:
        if owned():
            with connection.cursor() as cursor:
                cursor.execute("set local role tollgate_owner")
                cursor.execute("delete from usage_counter where account_id = %s and (window_start < %s or %s > 5)",
                               [self.shop.account.pk, self.now - DAY, number])  # fmt: skip
                cursor.execute("reset role")


@pytest.mark.django_db
class TestALimitThatComesLater:
    """Work of an account without limits is not counted; the first limit that is asked about counts what is open then."""

    def test_work_that_was_open_before_the_first_limit_counts_against_it(self) -> None:
        shop = Shop.new(credit=1_000)
        first, second = shop.authorize(tokens=5), shop.authorize(tokens=7)
        assert account_state(shop.account) == (0, 0)
        shop.put_on(plan_version(shop.product.plans.get(slug="free"), ("tasks", "open", 2), tier={"daily_cost_nanos": 20 * PER_TOKEN}))
        look = {layer.name: layer.used for layer in shop.decide(tokens=1).layers if layer.limit is not None}
        assert look == {"concurrency": 2, "cost": 12 * PER_TOKEN}
        assert account_state(shop.account) == (0, 0)  # who only asks writes nothing
        with pytest.raises(usage.Refused) as refusal:
            shop.authorize()
        assert (refusal.value.layer.name, refusal.value.layer.used) == ("concurrency", 2)
        assert account_state(shop.account) == (2, 12 * PER_TOKEN)
        usage.release(account=shop.account, authorization_id=first.usage.id)
        usage.capture(account=shop.account, authorization_id=second.usage.id, quantities={"input_tokens": 3})
        assert account_state(shop.account) == (0, 0)
        shop.authorize(tokens=2)
        assert account_state(shop.account) == (1, 2 * PER_TOKEN)
        assert audit.run() == []
