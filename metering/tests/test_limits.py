"""Every layer, at its limit and on either side of it: what is refused, what is only seen, and what would lift it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import Account
from billing import ledger, subscriptions
from billing.models import Subscription
from metering import kill_switches, limits, usage
from metering.models import GuardState, KillSwitch, Throttle
from metering.tests.limited import PER_TOKEN, Shop, dollars, plan, plan_version
from metering.tests.switched import thrown
from pricing import catalog, catalog_file
from pricing.models import Plan, Product
from tests.factories import NANOS, START, give, make_account, make_model

CATALOGS = Path(__file__).parents[2] / "pricing" / "catalogs"
NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
#: What counts requests one by one: the layer, and the term that limits it.
COUNTED = [
    ("requests", "requests", "hour"),
    ("requests", "requests", "day"),
    ("concurrency", "tasks", "open"),
    ("quota", "messages", "hour"),
    ("quota", "messages", "day"),
    ("quota", "messages", "period"),
    ("quota", "messages", "lifetime"),
]
COSTS = ["daily_cost_nanos", "monthly_cost_nanos"]


@pytest.mark.django_db
class TestEveryLayer:
    @pytest.mark.failure(39)
    @pytest.mark.parametrize(("layer", "key", "window"), COUNTED)
    def test_a_counted_limit_of_three_allows_three_and_refuses_the_fourth(self, layer: str, key: str, window: str) -> None:
        shop = Shop.new((key, window, 3))
        with shop.at(NOON):
            for used in range(3):
                asked = shop.layer(layer)
                assert (asked.used, asked.remaining, asked.allowed, asked.meter) == (used, 3 - used, True, f"{key}/{window}")
                assert shop.refused_by() is None
            refused = shop.refusal()
            assert refused is not None
            assert (refused.name, refused.limit, refused.used, refused.remaining) == (layer, 3, 3, 0)

    @pytest.mark.failure(39)
    @pytest.mark.parametrize("limit", COSTS)
    def test_a_cost_limit_allows_what_reaches_it_to_the_nano_and_refuses_one_nano_more(self, limit: str) -> None:
        shop = Shop.new(tier={limit: 3 * PER_TOKEN - 1})
        assert shop.refused_by(tokens=3) == "cost"  # estimate = limit + 1
        exact = Shop.new(tier={limit: 3 * PER_TOKEN})
        assert exact.refused_by(tokens=3) is None
        above = Shop.new(tier={limit: 3 * PER_TOKEN + 1})
        assert above.refused_by(tokens=3) is None
        assert above.layer("cost").remaining == 1
        assert exact.layer("cost").remaining == 0
        assert exact.refused_by(tokens=0) == "cost"  # what it will really cost is known only afterwards

    def test_a_request_of_as_many_tokens_as_the_plan_allows_passes_and_of_one_more_does_not(self) -> None:
        shop = Shop.new(("request_tokens", "request", 10))
        assert [shop.refused_by(tokens=tokens) for tokens in (9, 10, 11)] == [None, None, "request_size"]

    def test_what_may_come_out_is_part_of_the_size_of_a_request(self) -> None:
        shop = Shop.new(("request_tokens", "request", 10))
        ask = usage.Ask(shop.model, {"input_tokens": 6, "output_tokens": 5})
        with pytest.raises(usage.Refused, match="has 11 tokens; the plan allows 10"):
            usage.authorize(account=shop.account, ask=ask, key="k", now=datetime.now(UTC))

    @pytest.mark.failure(41)
    @pytest.mark.parametrize(("layer", "key", "window"), [*COUNTED, ("request_size", "request_tokens", "request")])
    def test_a_limit_of_zero_allows_nothing_and_one_of_none_allows_everything(self, layer: str, key: str, window: str) -> None:
        assert Shop.new((key, window, 0)).refused_by() == layer
        free = Shop.new((key, window, None))
        assert {free.refused_by(tokens=50_000) for _ in range(20)} == {None}
        assert not [found for found in free.decide().layers if found.name == layer and found.limit is not None]

    @pytest.mark.failure(41)
    @pytest.mark.parametrize("limit", [*COSTS, "requests_per_hour"])
    def test_a_cost_tiers_zero_allows_nothing_and_its_none_everything(self, limit: str) -> None:
        assert Shop.new(tier={limit: 0}).refused_by() == ("requests" if limit == "requests_per_hour" else "cost")
        free = Shop.new(tier={limit: None}, credit=9_000)
        assert {free.refused_by(tokens=1_000_000) for _ in range(20)} == {None}

    def test_a_feature_that_the_plan_withholds_is_refused_and_one_that_no_plan_names_is_a_label(self) -> None:
        shop = Shop.new(flags={"reports": False, "chat": True})
        assert [shop.refused_by(feature=feature) for feature in ("reports", "chat", "anything")] == ["entitlement", None, None]

    def test_an_account_without_a_live_plan_is_not_entitled(self) -> None:
        shop = Shop.new()
        Subscription.objects.filter(account=shop.account).update(status=Subscription.Status.CANCELED, ended_at=datetime.now(UTC))
        shop.account.rate_card = "standard"
        refused = shop.refusal()
        assert refused is not None
        assert (refused.name, refused.reason) == ("entitlement", "The account has no active plan.")

    def test_a_usage_counts_what_it_says_of_each_meter_and_one_message_where_it_says_nothing(self) -> None:
        shop = Shop.new(("messages", "day", 10), ("exports", "day", 10))
        with shop.at(NOON):
            shop.authorize(counts={"exports": 7})
            assert [layer.used for layer in shop.decide().layers if layer.name == "quota"] == [7, 0]
            assert shop.refused_by(counts={"exports": 4}) == "quota"
            shop.authorize(counts={"exports": 3, "messages": 10, "others": 5})
            assert shop.refused_by() == "quota"
            assert shop.refused_by(counts={}) is None  # neither a message nor an export

    @pytest.mark.failure(40)
    def test_one_oversize_request_refuses_only_itself(self) -> None:
        shop = Shop.new(("request_tokens", "request", 20_000), tier={"daily_cost_nanos": 10_000 * PER_TOKEN})
        before = shop.decide()
        assert shop.refused_by(tokens=20_001) == "request_size"
        assert shop.refused_by(tokens=20_000) == "cost"
        assert shop.decide() == before
        assert shop.refused_by(tokens=10_000) is None

    def test_an_estimate_that_no_ledger_can_hold_is_refused_and_changes_nothing(self) -> None:
        shop = Shop.new(("messages", "day", 10), tier={"daily_cost_nanos": 10**18})
        before = shop.decide()
        shop.model = make_model(input_price=10**13)
        with pytest.raises(usage.InvalidUsage):
            shop.authorize(tokens=10**12)
        assert shop.decide() == before


@pytest.mark.django_db
class TestModes:
    @pytest.mark.parametrize("mode", ["shadow", "soft"])
    @pytest.mark.parametrize(("layer", "key", "window"), [*COUNTED, ("request_size", "request_tokens", "request")])
    def test_shadow_and_soft_refuse_nothing_are_shown_and_are_counted_once(self, mode: str, layer: str, key: str, window: str) -> None:
        shop = Shop.new((key, window, 1, mode))
        counted = usage.SHADOWED.labels(layer)._value.get
        before, refused = counted(), usage.REFUSALS.labels(layer)._value.get()
        assert shop.authorize(tokens=1).warnings == ()
        assert counted() == before
        told = shop.authorize(tokens=2, key="k").warnings
        assert [(found.name, found.limit) for found in told] == ([(layer, 1)] if mode == "soft" else [])
        assert counted() == before + 1
        assert shop.authorize(tokens=2, key="k").warnings == ()  # the same one again
        assert (counted(), usage.REFUSALS.labels(layer)._value.get()) == (before + 1, refused)
        asked = shop.decide(tokens=2)
        [shown] = [found for found in asked.layers if found.name == layer]
        assert (shown.allowed, shown.mode, shown.limit) == (False, mode, 1)
        assert (asked.refusal, asked.passed) == (None, [shown])

    @pytest.mark.parametrize(("layer", "key", "window"), [*COUNTED, ("request_size", "request_tokens", "request")])
    def test_off_is_neither_asked_nor_counted(self, layer: str, key: str, window: str) -> None:
        shop = Shop.new((key, window, 0, "off"))
        before = usage.SHADOWED.labels(layer)._value.get()
        assert shop.refused_by() is None
        assert usage.SHADOWED.labels(layer)._value.get() == before
        assert [found.allowed for found in shop.decide().layers if found.name == layer] in ([], [True])

    def test_a_cost_tier_that_does_not_throttle_only_shows_its_cost_limits(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 1, "monthly_cost_nanos": 1, "throttle_on_exceed": False})
        before = usage.SHADOWED.labels("cost")._value.get()
        assert shop.refused_by() is None
        assert usage.SHADOWED.labels("cost")._value.get() == before + 2
        assert [(layer.allowed, layer.mode) for layer in shop.decide().layers if layer.name == "cost"] == [(False, "shadow")] * 2

    @pytest.mark.parametrize("mode", ["shadow", "soft"])
    def test_a_limit_on_objects_that_is_only_watched_is_counted_too(self, mode: str) -> None:
        shop = Shop.new(("agents", "count", 1, mode))
        before = usage.SHADOWED.labels("quota")._value.get()
        for name in ("a", "b", "b"):
            usage.reserve(account=shop.account, meter="agents", object_ref=name, now=datetime.now(UTC))
        assert usage.SHADOWED.labels("quota")._value.get() == before + 1


@pytest.mark.django_db
class TestOrder:
    def test_the_first_layer_in_order_that_refuses_names_the_answer(self) -> None:
        """Everything refuses at once; layer after layer is lifted, and the next one in order answers."""
        shop = Shop.new(
            ("request_tokens", "request", 0), ("requests", "hour", 0), ("tasks", "open", 0), ("messages", "day", 0),
            tier={"daily_cost_nanos": 0}, flags={"chat": False}, credit=0,
        )  # fmt: skip
        free = Plan.objects.get(product=shop.product, slug="free")
        now = datetime.now(UTC)
        switch = throw(shop.product, now=now)
        ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
        shop.guard(("pool", "day", 0))
        runaway = GuardState.objects.create(
            account=shop.account, kind="session", ref="s", step=4, blocked_until=now + timedelta(hours=1), looked_at=now, window_minutes=10,
            spent_nanos=9, usual_nanos=1,
        )  # fmt: skip
        seen = [shop.refused_by(feature="chat", session="s")]
        KillSwitch.objects.filter(pk=switch.pk).update(ended_at=now, ended_by="ada")
        seen.append(shop.refused_by(feature="chat"))
        ledger.resume(account_id=shop.account.pk, actor="ada")
        seen.append(shop.refused_by(feature="chat", session="s"))
        runaway.delete()
        seen.append(shop.refused_by(feature="chat"))
        left: list[Any] = [("request_tokens", "request", 0), ("requests", "hour", 0), ("tasks", "open", 0), ("messages", "day", 0)]
        while True:
            shop.put_on(plan_version(free, *left, tier={"daily_cost_nanos": 0}, flags={"chat": True}))
            seen.append(shop.refused_by(feature="chat"))
            if not left:
                break
            left.pop(0)
        shop.put_on(plan_version(free, flags={"chat": True}))
        seen.append(shop.refused_by(feature="chat"))
        shop.guard()
        seen.append(shop.refused_by(feature="chat"))
        assert tuple(seen) == limits.ORDER

    def test_every_layer_stands_in_the_decision_in_that_order(self) -> None:
        shop = Shop.new(
            ("messages", "lifetime", 9), ("messages", "day", 9), ("tasks", "open", 9), ("requests", "hour", 9),
            tier={"requests_per_hour": 5, "daily_cost_nanos": 9, "monthly_cost_nanos": 9},
        )  # fmt: skip
        shop.guard(("pool", "day", 9))
        names = [layer.name for layer in shop.decide().layers]
        assert names == sorted(names, key=limits.ORDER.index)
        assert set(names) == set(limits.ORDER)

    def test_of_two_limits_on_one_meter_the_tighter_one_refuses(self) -> None:
        shop = Shop.new(("requests", "hour", 9), tier={"requests_per_hour": 2})
        with shop.at(NOON):
            assert [shop.refused_by() for _ in range(3)] == [None, None, "requests"]
            assert [layer.used for layer in shop.decide().layers if layer.name == "requests"] == [2, 2]

    def test_a_key_that_was_answered_is_answered_again_whatever_refuses_now(self) -> None:
        shop = Shop.new(("messages", "day", 1), ("tasks", "open", 1))
        first = shop.authorize(key="k")
        assert shop.refused_by() == "concurrency"
        ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
        throw(shop.product, now=datetime.now(UTC))
        again = shop.authorize(key="k")
        assert (again.usage.id, again.usage.replayed) == (first.usage.id, True)
        assert {(layer.name, layer.meter, layer.remaining) for layer in again.decision.layers} == {
            (layer.name, layer.meter, layer.remaining) for layer in first.decision.layers
        }

    def test_what_was_left_of_each_limit_is_told_with_the_authorization(self) -> None:
        shop = Shop.new(("messages", "day", 5), ("tasks", "open", 3), tier={"daily_cost_nanos": 100 * PER_TOKEN})
        left = {layer.meter: layer.remaining for layer in shop.authorize(tokens=40).decision.layers if layer.meter}
        assert left == {"messages/day": 4, "tasks/open": 2, "cost/day": 60 * PER_TOKEN}


@pytest.mark.django_db
class TestUpgrade:
    def offered(self, shop: Shop, **ask: Any) -> str | None:
        layer = shop.refusal(**ask)
        assert layer is not None
        return self.lifting(shop, layer)

    def lifting(self, shop: Shop, layer: limits.Layer) -> str | None:
        allowed = subscriptions.allowed(account=shop.account)
        found = limits.upgrade(account=shop.account, allowed=allowed, layer=layer, now=datetime.now(UTC))
        return found.plan if found else None

    @pytest.mark.parametrize(("layer", "key", "window"), [*COUNTED, ("request_size", "request_tokens", "request")])
    def test_the_next_plan_that_allows_more_of_what_was_refused_is_offered(self, layer: str, key: str, window: str) -> None:
        shop = Shop.new((key, window, 0))
        plan(shop.product, "same", 2, (key, window, 0))
        assert self.offered(shop) is None
        plan(shop.product, "pro", 3, (key, window, 100))
        plan(shop.product, "team", 4, (key, window, None))
        assert self.offered(shop) == "pro"

    @pytest.mark.parametrize("limit", [*COSTS, "requests_per_hour"])
    def test_a_plan_with_a_wider_cost_tier_or_with_none_is_offered(self, limit: str) -> None:
        shop = Shop.new(tier={limit: 0})
        plan(shop.product, "same", 2, tier={limit: 0})
        assert self.offered(shop) is None
        plan(shop.product, "team", 4)
        assert self.offered(shop) == "team"
        plan(shop.product, "pro", 3, tier={limit: 10**6})
        assert self.offered(shop) == "pro"

    def test_requests_are_not_offered_a_plan_whose_own_limit_is_no_higher(self) -> None:
        shop = Shop.new(("requests", "hour", 0))
        plan(shop.product, "pro", 2, tier={"requests_per_hour": 0})
        plan(shop.product, "other", 3, ("requests", "hour", 0))
        assert self.offered(shop) is None

    def test_a_feature_is_offered_the_plan_that_has_it(self) -> None:
        shop = Shop.new(flags={"reports": False})
        plan(shop.product, "pro", 2, flags={"reports": False})
        plan(shop.product, "team", 3, flags={"reports": True})
        assert self.offered(shop, feature="reports") == "team"

    def test_objects_are_offered_only_a_plan_that_has_them(self) -> None:
        def offered(*terms: Any) -> str | None:
            shop = Shop.new(*terms)
            plan(shop.product, "without", 2)
            plan(shop.product, "none", 3, ("agents", "count", 0))
            plan(shop.product, "pro", 4, ("agents", "count", 3))
            with pytest.raises(usage.Refused) as refused:
                usage.reserve(account=shop.account, meter="agents", object_ref="a", now=datetime.now(UTC))
            return self.lifting(shop, refused.value.layer)

        assert offered(("agents", "count", 0)) == "pro"
        assert offered() == "pro"

    def test_plans_that_nobody_can_choose_are_not_offered_nor_lower_ones(self) -> None:
        shop = Shop.new(("messages", "day", 0))
        for slug, rank, change in (("hidden", 2, {"public": False}), ("gone", 3, {"available": False}), ("lower", 0, {})):
            version = plan(shop.product, slug, rank + 1 if rank else 1, ("messages", "day", None))
            Plan.objects.filter(pk=version.plan_id).update(**({"rank": rank} | change))
        assert self.offered(shop) is None

    def test_no_plan_lifts_a_throttle_a_kill_switch_or_an_empty_wallet(self) -> None:
        shop = Shop.new(credit=0)
        plan(shop.product, "pro", 2)
        assert self.offered(shop) is None
        ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
        assert self.offered(shop) is None
        throw(shop.product, now=datetime.now(UTC))
        assert self.offered(shop) is None


@pytest.mark.django_db
class TestThrottles:
    def test_a_throttle_in_force_refuses_and_says_why_and_until_when(self) -> None:
        shop = Shop.new()
        with shop.at(NOON):
            ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse", ends_at=NOON + timedelta(hours=1))
            layer = shop.refusal()
            assert layer is not None
            assert (layer.name, layer.reason, layer.resets_at) == ("throttle", "The account is stopped: abuse", NOON + timedelta(hours=1))
            assert shop.decide().refusal == layer

    def test_a_throttle_ends_at_its_end_and_not_a_microsecond_earlier(self) -> None:
        shop = Shop.new()
        end = NOON + timedelta(hours=1)
        with shop.at(NOON):
            ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse", ends_at=end)
        with shop.at(end - timedelta(microseconds=1)):
            assert shop.refused_by() == "throttle"
        with shop.at(end):
            assert shop.refused_by() is None

    def test_a_throttle_without_an_end_lasts_until_it_is_lifted(self) -> None:
        shop = Shop.new()
        ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
        layer = shop.refusal()
        assert layer is not None
        assert layer.resets_at is None
        assert ledger.resume(account_id=shop.account.pk, actor="bob") is True
        assert shop.refused_by() is None
        assert ledger.resume(account_id=shop.account.pk, actor="bob") is False

    def test_a_second_throttle_replaces_the_first_and_both_stay_in_the_history(self) -> None:
        shop = Shop.new()
        with shop.at(NOON):
            ledger.throttle(account_id=shop.account.pk, actor="ada", reason="first")
        with shop.at(NOON + timedelta(hours=1)):
            ledger.throttle(account_id=shop.account.pk, actor="bob", reason="second")
            layer = shop.refusal()
            ledger.resume(account_id=shop.account.pk, actor="eve")
        assert layer is not None
        assert layer.reason == "The account is stopped: second"
        told = Throttle.objects.filter(account=shop.account).order_by("id").values_list("reason", "actor", "lifted_at", "lifted_by")
        hour = NOON + timedelta(hours=1)
        assert list(told) == [("first", "ada", hour, "bob"), ("second", "bob", hour, "eve")]

    def test_a_throttle_that_ran_out_ended_then_by_itself(self) -> None:
        shop = Shop.new()
        with shop.at(NOON):
            ledger.throttle(account_id=shop.account.pk, actor="ada", reason="first", ends_at=NOON + timedelta(hours=1))
        with shop.at(NOON + timedelta(hours=2)):
            assert ledger.resume(account_id=shop.account.pk, actor="bob") is False
            ledger.throttle(account_id=shop.account.pk, actor="bob", reason="second")
            assert shop.refused_by() == "throttle"
        first = Throttle.objects.filter(account=shop.account).order_by("id")[0]
        assert (first.lifted_at, first.lifted_by) == (NOON + timedelta(hours=1), "tollgate")

    def test_a_throttle_stops_one_account_only_and_no_capture(self) -> None:
        shop = Shop.new()
        work = shop.authorize()
        neighbour = Shop(make_account(shop.product, credit=1), shop.model)
        ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
        assert (shop.refused_by(), neighbour.refused_by()) == ("throttle", None)
        assert shop.capture(work).state == "captured"
        assert [answer.state for answer in shop.record()] == ["recorded"]


def throw(product: Product | None, *, now: datetime, feature: str = "", minutes: int = 60) -> KillSwitch:
    return thrown(product=product, feature=feature, reason="provider outage", now=now, minutes=minutes)


@pytest.mark.django_db
class TestKillSwitches:
    def test_a_switch_stops_everything_a_product_or_a_feature_and_nothing_else(self) -> None:
        shop, other = Shop.new(), Shop.new()
        now = datetime.now(UTC)

        def stopped() -> list[bool]:
            return [each.refused_by(feature=feature) == "kill_switch" for each in (shop, other) for feature in ("chat", "search", None)]

        for product, feature, expected in (
            (shop.product, "chat", [True, False, False, False, False, False]),
            (shop.product, "", [True, True, True, False, False, False]),
            (None, "chat", [True, False, False, True, False, False]),
            (None, "", [True] * 6),
        ):
            switch = throw(product, now=now, feature=feature)
            assert stopped() == expected
            KillSwitch.objects.filter(pk=switch.pk).update(ended_at=now, ended_by="ada")
            assert stopped() == [False] * 6

    def test_a_switch_is_in_force_from_its_beginning_until_its_end(self) -> None:
        shop = Shop.new()
        throw(shop.product, now=NOON, minutes=60)
        second = timedelta(seconds=1)
        seen = []
        for now in (NOON - second, NOON, NOON + timedelta(minutes=60) - second, NOON + timedelta(minutes=60)):
            with shop.at(now):
                seen.append(shop.refused_by())
        assert seen == [None, "kill_switch", "kill_switch", None]

    def test_the_broadest_switch_answers_with_its_reason_and_end(self) -> None:
        shop = Shop.new()
        now = datetime.now(UTC)
        throw(shop.product, now=now, feature="chat")
        throw(shop.product, now=now)
        broad = throw(None, now=now)
        assert kill_switches.in_force(product_id=shop.product.pk, feature="chat", now=now) == broad
        layer = shop.refusal(feature="chat")
        assert layer is not None
        assert (layer.reason, layer.resets_at) == ("Switched off: provider outage", broad.ends_at)

    def test_a_switch_stops_no_capture_no_release_and_no_record(self) -> None:
        shop = Shop.new()
        one, two = shop.authorize(), shop.authorize()
        throw(None, now=datetime.now(UTC))
        assert shop.capture(one).state == "captured"
        assert shop.release(two).state == "released"
        assert [answer.state for answer in shop.record()] == ["recorded"]

    def test_new_objects_are_stopped_too_and_those_that_exist_may_go(self) -> None:
        shop = Shop.new(("agents", "count", 5))
        now = datetime.now(UTC)
        usage.reserve(account=shop.account, meter="agents", object_ref="a", now=now)
        throw(shop.product, now=now)
        with pytest.raises(usage.Refused, match="Switched off"):
            usage.reserve(account=shop.account, meter="agents", object_ref="b", now=now)
        assert usage.unreserve(account=shop.account, meter="agents", object_ref="a")[0].used == 0


@pytest.mark.usefixtures("committed")
class TestKillSwitchesOutsideTransactions:
    def test_a_switch_and_its_end_are_felt_within_a_second_without_being_read_each_time(self) -> None:
        shop = Shop.new()
        assert shop.refused_by() is None
        switch = throw(shop.product, now=datetime.now(UTC))
        assert self.seconds_until(shop, "kill_switch") <= 1.3
        KillSwitch.objects.filter(pk=switch.pk).update(ended_at=datetime.now(UTC), ended_by="ada")
        assert self.seconds_until(shop, None) <= 1.3

    def test_switches_are_as_old_as_the_question_however_long_its_answer_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shop = Shop.new()
        monkeypatch.setattr(kill_switches, "MAX_AGE_SECONDS", 0.2)
        monkeypatch.setattr(kill_switches, "_kept", None)

        def slowly(execute: Any, *query: Any) -> Any:
            answer = execute(*query)
            time.sleep(0.3)
            return answer

        with connection.execute_wrapper(slowly):
            assert kill_switches.in_force(product_id=shop.product.pk, feature=None, now=datetime.now(UTC)) is None
        switch = throw(shop.product, now=datetime.now(UTC))
        assert kill_switches.in_force(product_id=shop.product.pk, feature=None, now=datetime.now(UTC)) == switch

    def seconds_until(self, shop: Shop, expected: str | None) -> float:
        began = time.monotonic()
        while shop.refused_by() != expected:
            assert time.monotonic() - began < 5
            time.sleep(0.02)
        return time.monotonic() - began


@pytest.mark.django_db
class TestObjects:
    def reserve(self, shop: Shop, name: str) -> int | str:
        """How many there are then, or which layer refuses."""
        try:
            return usage.reserve(account=shop.account, meter="agents", object_ref=name, now=datetime.now(UTC))[0].used
        except usage.Refused as error:
            return error.layer.name

    def test_as_many_objects_as_the_plan_allows_and_not_one_more(self) -> None:
        shop = Shop.new(("agents", "count", 3))
        assert [self.reserve(shop, name) for name in "abcd"] == [1, 2, 3, "quota"]
        assert usage.unreserve(account=shop.account, meter="agents", object_ref="b")[0].used == 2
        assert [self.reserve(shop, name) for name in "de"] == [3, "quota"]

    def test_an_object_is_there_once_however_often_it_is_reserved_or_released(self) -> None:
        shop = Shop.new(("agents", "count", 2))
        assert [self.reserve(shop, name) for name in "aab"] == [1, 1, 2]
        assert self.reserve(shop, "a") == 2  # also when it is full
        answers = [usage.unreserve(account=shop.account, meter="agents", object_ref="a")[0] for _ in range(2)]
        assert [(answer.used, answer.replayed) for answer in answers] == [(1, False), (1, True)]
        with pytest.raises(ledger.NotFound):
            usage.unreserve(account=shop.account, meter="agents", object_ref="never")

    def test_zero_allows_none_none_allows_any_number_and_a_plan_that_is_silent_has_none(self) -> None:
        assert self.reserve(Shop.new(("agents", "count", 0)), "a") == "quota"
        unlimited = Shop.new(("agents", "count", None))
        assert [self.reserve(unlimited, str(number)) for number in range(30)] == list(range(1, 31))
        assert self.reserve(Shop.new(("projects", "count", 5)), "a") == "entitlement"

    @pytest.mark.parametrize("mode", ["off", "shadow", "soft"])
    def test_a_limit_that_is_not_hard_refuses_no_object(self, mode: str) -> None:
        shop = Shop.new(("agents", "count", 1, mode))
        assert [self.reserve(shop, name) for name in "abc"] == [1, 2, 3]

    def test_objects_that_exist_stay_when_the_plan_allows_fewer(self) -> None:
        shop = Shop.new(("agents", "count", 3))
        assert [self.reserve(shop, name) for name in "abc"] == [1, 2, 3]
        shop.put_on(plan_version(shop.product.plans.get(slug="free"), ("agents", "count", 1)))
        assert [self.reserve(shop, "a"), self.reserve(shop, "d")] == [3, "quota"]
        for name in "ab":
            usage.unreserve(account=shop.account, meter="agents", object_ref=name)
        assert self.reserve(shop, "d") == "quota"
        usage.unreserve(account=shop.account, meter="agents", object_ref="c")
        assert self.reserve(shop, "d") == 1

    def test_an_object_that_exists_is_answered_whatever_stops_new_ones(self) -> None:
        shop = Shop.new(("agents", "count", 2))
        assert self.reserve(shop, "a") == 1
        shop.put_on(plan_version(shop.product.plans.get(slug="free")))
        assert [self.reserve(shop, name) for name in "ab"] == [1, "entitlement"]
        Subscription.objects.filter(account=shop.account).update(status="canceled", ended_at=NOON)
        assert [self.reserve(shop, name) for name in "ab"] == [1, "entitlement"]
        ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
        assert [self.reserve(shop, name) for name in "ab"] == [1, "throttle"]
        throw(shop.product, now=datetime.now(UTC))
        assert [self.reserve(shop, name) for name in "ab"] == [1, "kill_switch"]

    def test_what_refuses_an_object_says_why_and_until_when(self) -> None:
        shop = Shop.new(("agents", "count", 2))
        with shop.at(NOON):
            ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse", ends_at=NOON + timedelta(hours=1))
            with pytest.raises(usage.Refused) as refused:
                usage.reserve(account=shop.account, meter="agents", object_ref="a", now=NOON)
        layer = refused.value.layer
        assert (layer.name, layer.reason, layer.resets_at) == ("throttle", "The account is stopped: abuse", NOON + timedelta(hours=1))

    def test_objects_are_shown_among_the_limits_and_refuse_no_request(self) -> None:
        shop = Shop.new(("agents", "count", 1))
        self.reserve(shop, "a")
        shown = shop.layer("quota", "agents/count")
        assert (shown.used, shown.limit, shown.remaining, shown.allowed) == (1, 1, 0, True)
        assert shop.decide().refusal is None
        assert shop.refused_by() is None


@pytest.mark.django_db
class TestWindows:
    ZONES = sorted(available_timezones() - {"Factory", "localtime"})

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        zone=st.sampled_from(ZONES),
        now=st.datetimes(datetime(2000, 1, 2), datetime(2037, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001 (made aware)
        window=st.sampled_from(["hour", "day", "period", "lifetime"]),
        anchor=st.datetimes(datetime(2000, 1, 2), datetime(2037, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001
    )
    def test_windows_of_every_zone_and_period_contain_their_instant_and_follow_each_other_without_gap(
        self, zone: str, now: datetime, window: str, anchor: datetime
    ) -> None:
        account = Account(time_zone=zone)
        terms = catalog.PlanTerms(plan_version_stub(), {}, {}, (), None)
        allowed = subscriptions.Allowed(terms, "standard", 1, anchor, anchor, anchor + timedelta(days=1))
        start, end = limits.window_at(account, allowed, window, now)
        assert start <= now < end
        if window == "period":
            return  # the first one may be cut short by a change of plan; billing.periods has its own tests
        for instant in (start, end - timedelta(microseconds=1)):
            assert limits.window_at(account, allowed, window, instant) == (start, end)
        if window != "lifetime":
            assert limits.window_at(account, allowed, window, end)[0] == end

    @pytest.mark.parametrize(
        ("zone", "day", "hours"),
        [
            ("Europe/Paris", (2027, 3, 28), 23),
            ("Europe/Paris", (2027, 10, 31), 25),
            ("America/Santiago", (2027, 9, 5), 23),  # midnight itself does not exist
            ("America/Havana", (2027, 11, 7), 25),  # midnight happens twice
            ("Australia/Lord_Howe", (2027, 10, 3), 23.5),
            ("Asia/Kathmandu", (2027, 5, 5), 24),
        ],
    )
    def test_a_day_is_the_accounts_own_also_when_it_has_23_or_25_hours(self, zone: str, day: tuple[int, int, int], hours: float) -> None:
        shop = Shop.new(("messages", "day", 1))
        Account.objects.filter(pk=shop.account.pk).update(time_zone=zone)
        shop.account.refresh_from_db()
        noon = datetime(*day, 12, tzinfo=ZoneInfo(zone)).astimezone(UTC)
        with shop.at(noon):
            shop.use()
            end = shop.layer("quota").resets_at
        assert end is not None
        start = end - timedelta(hours=hours)
        assert start.astimezone(ZoneInfo(zone)).date() == datetime(*day).date()  # noqa: DTZ001 (a date)
        second = timedelta(seconds=1)
        assert (start - second).astimezone(ZoneInfo(zone)).date() < datetime(*day).date()  # noqa: DTZ001
        with shop.at(end - second):
            assert shop.refused_by() == "quota"
        with shop.at(end):
            assert shop.refused_by() is None


def plan_version_stub() -> Any:
    from pricing.models import PlanVersion

    return PlanVersion(interval="month")


@pytest.mark.django_db
class TestTheFiveBusinesses:
    """The limits that the catalogs state, enforced as they state them."""

    def customer(self, product: str, plan: str | None = None) -> Shop:
        catalog_file.apply(catalog_file.parse((CATALOGS / f"{product}.toml").read_bytes()), actor="ada", effective=START)
        account = make_account(catalog.product(slug=product))
        give(account, 10_000 * NANOS)
        shop = Shop(account, make_model(input_price=2 * NANOS, output_price=0))  # 10,000 tokens are $0.02
        if plan is not None:
            shop.put_on(catalog.plan_version(product_id=account.product_id, slug=plan, at=datetime.now(UTC)).version)
        return shop

    def test_prpm_free_has_ten_requests_an_hour(self) -> None:
        shop = self.customer("prpm")
        hour = datetime.now(UTC).replace(minute=10, second=0)
        with shop.at(hour):
            assert [shop.refused_by() for _ in range(11)] == [None] * 10 + ["requests"]
            assert shop.layer("requests").resets_at == hour.replace(minute=0, microsecond=0) + timedelta(hours=1)
        with shop.at(hour + timedelta(hours=1)):
            assert shop.refused_by() is None

    @pytest.mark.parametrize(
        ("plan", "an_hour", "a_day", "a_month"),
        [("free", 10, "0.10", "0.50"), ("individual", 100, "1.00", "5.00"), ("org_member", 100, "0.50", "2.50")],
    )
    def test_prpms_tiers_refuse_what_is_above_them(self, plan: str, an_hour: int, a_day: str, a_month: str) -> None:
        shop = self.customer("prpm", plan)
        told = {layer.meter: layer.limit for layer in shop.decide().layers if layer.name in ("requests", "cost")}
        assert told == {"requests/hour": an_hour, "cost/day": dollars(a_day), "cost/period": dollars(a_month)}
        while (refused := shop.refusal(tokens=10_000)) is None:  # two cents each
            pass
        assert (refused.meter, refused.used, refused.limit) == ("cost/day", dollars(a_day), dollars(a_day))

    def test_prpm_free_has_ten_cents_a_day_and_fifty_a_month(self) -> None:
        shop = self.customer("prpm")
        midnight = datetime.now(UTC).replace(hour=0, minute=5, second=0, microsecond=0) + timedelta(days=1)
        seen = []
        for day in range(6):
            with shop.at(midnight + timedelta(days=day)):
                done = 0
                while (refused := shop.refusal(tokens=10_000, key=f"{day}:{done}")) is None:
                    shop.capture(shop.authorize(tokens=10_000, key=f"{day}:{done}"), tokens=10_000)
                    done += 1
                seen.append((done, refused.meter))
        assert seen == [(5, "cost/day")] * 5 + [(0, "cost/period")]
        with shop.at(midnight + timedelta(days=5)):
            cost = {layer.meter: (layer.used, layer.limit) for layer in shop.decide().layers if layer.name == "cost"}
        assert cost == {"cost/day": (0, dollars("0.10")), "cost/period": (dollars("0.50"), dollars("0.50"))}

    @pytest.mark.parametrize(("plan", "tasks"), [("pay_as_you_go", 1), ("core", 3), ("pro", 10)])
    def test_rover_runs_as_many_tasks_at_once_as_the_plan_says(self, plan: str, tasks: int) -> None:
        shop = self.customer("rover", plan)
        open_work = [shop.authorize() for _ in range(tasks)]
        refused = shop.refusal()
        assert refused is not None
        assert (refused.name, refused.limit, refused.reason) == ("concurrency", tasks, f"{tasks} of {tasks} concurrent tasks are running.")
        shop.capture(open_work[0])
        assert shop.refused_by() is None

    def test_rover_enterprise_runs_any_number_of_tasks(self) -> None:
        shop = self.customer("rover", "enterprise")
        assert {shop.refused_by() for _ in range(15)} == {None}

    def test_teach_charlie_free_has_a_hundred_messages_a_day_and_three_agents(self) -> None:
        shop = self.customer("teach_charlie")
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        with shop.at(midnight + timedelta(hours=13)):
            for _ in range(99):
                shop.record()
            assert [shop.refused_by(), shop.refused_by()] == [None, "quota"]
            allowed = subscriptions.allowed(account=shop.account)
            offer = limits.upgrade(account=shop.account, allowed=allowed, layer=shop.layer("quota", "messages/day"), now=now)
            assert offer is not None
            assert offer.plan == "pro"
        with shop.at(midnight + timedelta(days=1)):
            assert shop.refused_by() is None
        for name in "abc":
            usage.reserve(account=shop.account, meter="agents", object_ref=name, now=now)
        with pytest.raises(usage.Refused, match="There are 3 agents; the plan allows 3"):
            usage.reserve(account=shop.account, meter="agents", object_ref="d", now=now)
