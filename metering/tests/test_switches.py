"""Every kind of kill switch: what it does while it is on, to whom, and that nothing of it is left when it is over."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import WebhookEvent
from billing import audit, ledger, subscriptions
from billing.models import Wallet
from metering import api, kill_switches, limits, usage
from metering.kill_switches import InvalidSwitch, Wanted
from metering.models import KillSwitch, UsageRecord
from metering.tests.limited import PER_TOKEN, Shop, dollars, plan
from metering.tests.switched import thrown
from pricing.models import Entitlement
from tests.factories import NANOS, give, make_account, make_model, make_product

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
#: A switch of each kind, a shop that it matters to, and who refuses there while it is off and while it is on.
KINDS: list[tuple[str, dict[str, Any], dict[str, Any], str | None, str | None]] = [
    ("work", {}, {}, None, "kill_switch"),
    ("provider", {"provider": "acme"}, {}, None, "kill_switch"),
    ("balance_check", {}, {"credit": 0}, "credits", None),
    ("throttling", {}, {"tier": {"daily_cost_nanos": 0}}, "cost", None),
    ("throttling", {}, {"tier": {"monthly_cost_nanos": 0}}, "cost", None),
    ("cost_cap", {"cap_nanos": 0}, {}, None, "cost"),
    ("cost_cap", {"cap_nanos": 0}, {"tier": {"monthly_cost_nanos": NANOS}}, None, "cost"),
]  # fmt: skip


@pytest.mark.django_db
class TestEveryKind:
    @pytest.mark.parametrize(("kind", "more", "shop", "off", "on"), KINDS)
    @pytest.mark.parametrize("scope", ["everything", "product", "account"])
    def test_it_is_felt_in_its_scope_from_its_beginning_to_its_end_on_the_ledgers_clock(
        self, kind: str, more: dict[str, Any], shop: dict[str, Any], off: str | None, on: str | None, scope: str
    ) -> None:
        mine, stranger = Shop.new(**shop), Shop.new(**shop)
        neighbour = Shop(make_account(mine.product, credit=shop.get("credit", 1_000)), mine.model)
        scopes: dict[str, dict[str, Any]] = {"product": {"product": mine.product}, "account": {"account": mine.account}}
        where = scopes.get(scope, {})
        thrown(kind=kind, now=NOON, **where, **more)
        for at, in_force in ((NOON - SECOND, False), (NOON, True), (NOON + HOUR - SECOND, True), (NOON + HOUR, False)):
            for each, covered in ((mine, True), (neighbour, scope != "account"), (stranger, scope == "everything")):
                with each.at(at):
                    assert each.refused_by() == (on if in_force and covered else off), (at, each)

    @pytest.mark.parametrize(("kind", "more", "shop", "off", "on"), KINDS)
    def test_what_would_be_said_is_what_is_said(
        self, kind: str, more: dict[str, Any], shop: dict[str, Any], off: str | None, on: str | None
    ) -> None:
        mine = Shop.new(**shop)
        for expected in (off, on):
            refusal = mine.decide(tokens=1).refusal
            assert (refusal.name if refusal else None) == mine.refused_by() == expected
            thrown(kind=kind, now=datetime.now(UTC), product=mine.product, **more)

    def test_one_that_staff_ended_is_over_at_once(self) -> None:
        shop = Shop.new()
        switch = thrown(now=datetime.now(UTC), product=shop.product)
        assert shop.refused_by() == "kill_switch"
        assert kill_switches.end(switch=switch, actor="ada", now=datetime.now(UTC))
        assert not kill_switches.end(switch=switch, actor="bob", now=datetime.now(UTC))
        assert shop.refused_by() is None


@pytest.mark.django_db
class TestProvider:
    def test_other_providers_go_on(self) -> None:
        shop = Shop.new()
        other = make_model(provider="zeta", input_price=PER_TOKEN * 1_000_000)
        thrown(kind="provider", provider="acme", now=datetime.now(UTC), product=shop.product)
        assert shop.refused_by() == "kill_switch"
        assert Shop(shop.account, other).refused_by() is None
        layer = shop.refusal()
        assert layer is not None
        assert (layer.provider, layer.reason) == ("acme", "Switched off: an incident")

    def test_what_began_before_is_captured(self) -> None:
        shop = Shop.new()
        done = shop.authorize()
        thrown(kind="provider", provider="acme", now=datetime.now(UTC), product=shop.product)
        assert shop.capture(done).state == "captured"


@pytest.mark.django_db
class TestBalanceCheck:
    def wallet(self, shop: Shop) -> tuple[int, int]:
        wallet = Wallet.objects.get(account=shop.account)
        return wallet.balance, wallet.debt

    def switched(self, **product: Any) -> Shop:
        """An account with 100 tokens' worth of credit whose balance is not checked; a token costs and is charged 1,000 nanos."""
        shop = Shop.new(credit=0, mode="pass_through", **product)
        give(shop.account, 100 * PER_TOKEN)
        thrown(kind="balance_check", now=datetime.now(UTC), product=shop.product)
        return shop

    def test_what_is_covered_is_held_and_charged_as_ever(self) -> None:
        shop = self.switched()
        done = shop.authorize(tokens=80)
        assert done.usage.hold_nanos == 80 * PER_TOKEN
        shop.capture(done, tokens=70)
        assert self.wallet(shop) == (30 * PER_TOKEN, 0)

    @pytest.mark.parametrize(
        ("overage", "charged", "debt"), [("charge", 500, 400), ("cap", 100, 0), ("reject", 100, 0)]
    )  # fmt: skip
    def test_what_is_not_covered_becomes_debt_or_is_absorbed_by_the_products_policy_and_all_of_it_is_recorded(
        self, overage: str, charged: int, debt: int
    ) -> None:
        shop = self.switched(overage=overage)
        done = shop.authorize(tokens=500)
        assert done.usage.hold_nanos == 100 * PER_TOKEN
        answer = shop.capture(done, tokens=500)
        assert (answer.price_nanos, answer.waived_nanos) == (charged * PER_TOKEN, (500 - charged) * PER_TOKEN)
        record = UsageRecord.objects.get(account=shop.account)
        assert (record.cost_nanos, record.quantities) == (500 * PER_TOKEN, [500])
        assert self.wallet(shop) == (0, debt * PER_TOKEN)
        assert audit.run() == []

    def test_an_account_in_debt_goes_on_and_is_asked_to_settle_when_the_switch_is_over(self) -> None:
        shop = self.switched()
        shop.use(tokens=500)
        shop.use(tokens=3)
        assert self.wallet(shop) == (0, 403 * PER_TOKEN)
        KillSwitch.objects.update(ended_at=datetime.now(UTC), ended_by="ada")
        assert shop.refused_by() == "credits"

    def test_a_product_that_refuses_dear_captures_still_does_for_holds_of_before(self) -> None:
        shop = Shop.new(overage="reject")
        with shop.at(NOON):
            done = shop.authorize(tokens=1)
            thrown(kind="balance_check", now=NOON + SECOND, product=shop.product)
            with pytest.raises(ledger.HoldExceeded):
                shop.capture(done, tokens=2)

    def test_a_refused_key_counts_as_shadow_and_every_other_layer_still_refuses(self) -> None:
        shop = Shop.new(("messages", "day", 1), credit=0)
        thrown(kind="balance_check", now=datetime.now(UTC), product=shop.product)
        before = usage.SHADOWED.labels("credits")._value.get()
        assert [shop.refused_by() for _ in range(2)] == [None, "quota"]
        assert usage.SHADOWED.labels("credits")._value.get() == before + 1


@pytest.mark.django_db
class TestThrottling:
    def test_a_stopped_account_works_while_it_is_off_and_is_stopped_again_afterwards(self) -> None:
        shop = Shop.new(("agents", "count", 5))
        with shop.at(NOON):
            ledger.throttle(account_id=shop.account.pk, actor="runaway guard", reason="too fast", ends_at=NOON + 9 * HOUR)
            assert shop.refused_by() == "throttle"
            thrown(kind="throttling", now=NOON, product=shop.product)
            before = usage.SHADOWED.labels("throttle")._value.get()
            assert shop.use().state == "captured"
            assert usage.SHADOWED.labels("throttle")._value.get() == before + 1
            layer = shop.layer("throttle")
            assert (layer.allowed, layer.mode, layer.reason) == (False, "shadow", "The account is stopped: too fast")
            assert usage.reserve(account=shop.account, meter="agents", object_ref="a", now=NOON)[0].used == 1
        with shop.at(NOON + HOUR):
            assert shop.refused_by() == "throttle"
            with pytest.raises(usage.Refused):
                usage.reserve(account=shop.account, meter="agents", object_ref="b", now=NOON + HOUR)

    def test_cost_is_counted_meanwhile_and_refuses_when_it_is_over(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 3 * PER_TOKEN})
        with shop.at(NOON):
            switch = thrown(kind="throttling", now=NOON, product=shop.product)
            shop.use(tokens=5)
            assert shop.used("cost") == 5 * PER_TOKEN
            assert [layer.mode for layer in shop.decide(tokens=1).passed] == ["shadow"]
            KillSwitch.objects.filter(pk=switch.pk).update(ended_at=NOON + SECOND, ended_by="ada")
        with shop.at(NOON + SECOND):
            assert shop.refused_by() == "cost"

    def test_requests_quotas_and_credits_still_refuse(self) -> None:
        for shop, layer in (
            (Shop.new(("messages", "day", 0)), "quota"), (Shop.new(("requests", "hour", 0)), "requests"), (Shop.new(credit=0), "credits")
        ):  # fmt: skip
            thrown(kind="throttling", now=datetime.now(UTC), product=shop.product)
            assert shop.refused_by() == layer


@pytest.mark.django_db
class TestCostCap:
    def capped(self, shop: Shop, cap: int) -> None:
        thrown(kind="cost_cap", cap_nanos=cap, now=datetime.now(UTC), product=shop.product)

    def test_ten_dollars_stop_who_used_ten_and_never_raise_the_fifty_cents_of_a_free_tier(self) -> None:
        rich, free, none = (
            Shop.new(tier={"monthly_cost_nanos": dollars("50")}),
            Shop.new(tier={"monthly_cost_nanos": dollars("0.50")}),
            Shop.new(),
        )
        for shop in (rich, none):
            shop.record(shop.event(tokens=dollars("9.999999") // PER_TOKEN))
        free.record(free.event(tokens=dollars("0.5") // PER_TOKEN))
        for shop in (rich, free, none):
            self.capped(shop, dollars("10"))
        assert [shop.refused_by() for shop in (rich, free, none)] == [None, "cost", None]
        for shop in (rich, none):  # the one token that was left is being used
            layer = shop.refusal()
            assert layer is not None
            assert (layer.name, layer.limit, layer.reason) == ("cost", dollars("10"), "Usage is limited for the moment: an incident")
            assert layer.resets_at == KillSwitch.objects.get(product=shop.product).ends_at
        own = free.refusal()
        assert own is not None
        assert (own.limit, own.switched) == (dollars("0.50"), False)

    def test_no_plan_is_offered_against_it(self) -> None:
        shop = Shop.new()
        self.capped(shop, 0)
        layer = shop.refusal()
        assert layer is not None
        assert limits.upgrade(account=shop.account, allowed=subscriptions.allowed(account=shop.account), layer=layer, now=NOON) is None

    def test_none_is_offered_against_a_limit_before_it_either(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": PER_TOKEN})
        plan(shop.product, "pro", 2)
        shop.use(tokens=1)

        def offered() -> bool:
            with pytest.raises(usage.Refused) as refused:
                shop.authorize()
            return "upgrade" in api.problem(refused.value, shop.account).body()

        assert offered()
        self.capped(shop, PER_TOKEN)
        assert not offered()

    def test_the_lowest_of_several_counts(self) -> None:
        shop = Shop.new()
        for cap in (7, 3, 9):
            thrown(kind="cost_cap", cap_nanos=cap, now=NOON, account=shop.account)
        with shop.at(NOON):
            assert shop.layer("cost").limit == 3

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
    @given(
        limit=st.none() | st.integers(0, 10**18), mode=st.sampled_from(Entitlement.Mode.values), cap=st.integers(0, 10**18),
    )  # fmt: skip
    def test_it_never_raises_a_limit(self, limit: int | None, mode: str, cap: int) -> None:
        effective = kill_switches.effective_cap_nanos(limit=limit, mode=mode, cap=cap)
        assert effective <= cap
        if limit is not None and mode == "hard":
            assert effective <= limit
            assert effective in (limit, cap)

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
    @given(own=st.none() | st.integers(0, 10), cap=st.integers(0, 10), used=st.integers(0, 11), soft=st.booleans(), off=st.booleans())
    def test_whoever_was_refused_before_is_refused_under_it_too(self, own: int | None, cap: int, used: int, soft: bool, off: bool) -> None:
        with transaction.atomic():
            shop = Shop.new(tier={"monthly_cost_nanos": own and own * PER_TOKEN, "throttle_on_exceed": not soft})
            if used:
                shop.record(shop.event(tokens=used))
            if off:
                thrown(kind="throttling", now=datetime.now(UTC), product=shop.product)
            before = shop.decide(tokens=1).refusal
            self.capped(shop, cap * PER_TOKEN)
            after = shop.decide(tokens=1).refusal
            assert before is None or after is not None
            assert (after is not None) == (before is not None or used + 1 > cap)
            transaction.set_rollback(True)

    def test_a_lift_by_staff_lifts_the_plans_limit_and_not_the_cap(self) -> None:
        shop = Shop.new(tier={"monthly_cost_nanos": 5 * PER_TOKEN})
        switches = kill_switches.Switches((KillSwitch(kind="cost_cap", cap_nanos=9 * PER_TOKEN, ends_at=NOON),), settling=False)
        counted = limits.counted(
            account=shop.account, allowed=subscriptions.allowed(account=shop.account), counts=None, cost_nanos=0, now=datetime.now(UTC),
            lifted=["cost/period"], switches=switches,
        )  # fmt: skip
        assert [(item.limit.allowed, item.mode) for item in counted if item.limit.layer == "cost"] == [(9 * PER_TOKEN, "hard")]


@pytest.mark.django_db
class TestThrowing:
    def throw(self, wanted: Wanted, **more: Any) -> KillSwitch:
        said: dict[str, Any] = {"reason": "an incident", "actor": "ada", "ends_at": NOON + HOUR, "now": NOON}
        return kill_switches.throw(wanted=wanted, **said | more)

    @pytest.mark.parametrize("kind", KillSwitch.Kind.values)
    def test_one_for_everything_is_never_thrown_by_one_person(self, kind: str) -> None:
        kinds: dict[str, dict[str, Any]] = {"provider": {"provider": "acme"}, "cost_cap": {"cap_nanos": 1}}
        more = kinds.get(kind, {})
        with pytest.raises(InvalidSwitch, match="second person"):
            self.throw(Wanted(kind=kind, **more))
        with pytest.raises(IntegrityError, match="second_person"), transaction.atomic():
            KillSwitch.objects.create(kind=kind, reason="x", actor="ada", created_at=NOON, ends_at=NOON + HOUR, **more)

    def test_what_makes_no_sense_is_refused_with_a_reason(self) -> None:
        shop, other = Shop.new(), Shop.new()
        for wanted, why in (
            (Wanted(kind="tracking", product=shop.product, feature="chat"), "feature by feature"),
            (Wanted(kind="provider", product=shop.product), "Name the provider"),
            (Wanted(kind="work", product=shop.product, provider="acme"), "not of one provider"),
            (Wanted(kind="cost_cap", product=shop.product), "how much"),
            (Wanted(kind="work", product=shop.product, cap_nanos=1), "Only a cost cap"),
            (Wanted(product=other.product, account=shop.account), "is not of"),
        ):
            with pytest.raises(InvalidSwitch, match=why):
                self.throw(wanted)
        for ends_at in (NOON, NOON - SECOND, NOON + timedelta(days=7, seconds=1)):
            with pytest.raises(InvalidSwitch, match="within 7 days"):
                self.throw(Wanted(product=shop.product), ends_at=ends_at)
        with pytest.raises(IntegrityError, match="within_a_week"), transaction.atomic():
            thrown(product=shop.product, now=NOON, minutes=7 * 24 * 60 + 1)
        with pytest.raises(IntegrityError, match="kill_switch_account_of_its_product"), transaction.atomic():
            KillSwitch.objects.create(
                product=other.product, account=shop.account, reason="x", actor="a", created_at=NOON, ends_at=NOON + HOUR
            )
        assert not KillSwitch.objects.exists()

    def test_the_same_is_thrown_once_and_another_kind_or_scope_beside_it(self) -> None:
        shop = Shop.new()
        self.throw(Wanted(product=shop.product))
        with pytest.raises(InvalidSwitch, match="already"):
            self.throw(Wanted(product=shop.product))
        for wanted in (
            Wanted(account=shop.account), Wanted(product=shop.product, feature="chat"), Wanted(kind="tracking", product=shop.product)
        ):  # fmt: skip
            self.throw(wanted)

    def test_client_apps_hear_of_its_beginning_and_of_its_end_once_each(self) -> None:
        shop = Shop.new()
        early = self.throw(Wanted(product=shop.product, feature="chat"))
        late = self.throw(Wanted(kind="cost_cap", account=shop.account, cap_nanos=5))
        kill_switches.end(switch=early, actor="bob", now=NOON + SECOND)
        assert kill_switches.finish(now=NOON + HOUR) == 1  # the other one has just ended
        assert kill_switches.finish(now=NOON + HOUR + kill_switches.SETTLING) == 1
        assert kill_switches.finish(now=NOON + 2 * HOUR) == 0
        told = WebhookEvent.objects.filter(product=shop.product, kind="kill_switch.changed").order_by("id")
        assert [(event.key, event.account_id, event.data["kind"], event.data["state"]) for event in told] == [
            (f"{early.pk}:on", None, "work", "on"),
            (f"{late.pk}:on", shop.account.pk, "cost_cap", "on"),
            (f"{early.pk}:off", None, "work", "off"),
            (f"{late.pk}:off", shop.account.pk, "cost_cap", "off"),
        ]
        assert told[0].data["reason"] == "an incident"
        assert told[0].data["feature"] == "chat"
        assert "ada" not in str([event.data for event in told])


@pytest.mark.usefixtures("committed")
def test_of_two_who_throw_the_same_at_once_one_does() -> None:
    product, said, ready = make_product(), [], threading.Barrier(3)

    def throw() -> None:
        ready.wait()
        now = datetime.now(UTC)
        try:
            wanted = kill_switches.Wanted(product=product)
            said.append(str(kill_switches.throw(wanted=wanted, reason="x", actor="ada", ends_at=now + timedelta(seconds=1), now=now)))
        except kill_switches.InvalidSwitch:
            said.append("switched already")
        finally:
            connection.close()

    threads = [threading.Thread(target=throw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said.count("switched already") == 2
    assert KillSwitch.objects.filter(product=product).count() == 1
