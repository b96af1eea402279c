"""Caps of the runaway guard: what a run, a session, a member, a key or the account may spend holds exactly, whoever asks at once."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import audit, ledger
from metering import limits, usage
from metering.models import Spend
from metering.tests.limited import PER_TOKEN, Shop
from metering.tests.test_concurrency import at_once
from pricing import catalog
from pricing.models import Guard

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: What a token is charged: 50 % more than it costs.
PRICE = PER_TOKEN * 3 // 2


def shop_with(*caps: tuple[str, str, int], **policy: Any) -> Shop:
    """A shop whose accounts are under a guard with these caps, in tokens."""
    shop = Shop.new()
    shop.guard(*((kind, span, tokens * PRICE) for kind, span, tokens in caps), **policy)
    return shop


def spends(shop: Shop) -> dict[tuple[str, str], int]:
    """What was spent, in tokens, by kind and subject."""
    return {(row.kind, row.subject): row.spent // PRICE for row in Spend.objects.filter(account=shop.account)}


@pytest.mark.usefixtures("committed")
class TestAtOnce:
    @pytest.mark.parametrize(
        ("kind", "who"), [("run", {"run": "r"}), ("session", {"session": "s"}), ("member", {"user": "m"}), ("pool", {})]
    )
    def test_of_fifty_at_once_exactly_those_pass_that_fit_under_the_cap(self, kind: str, who: dict[str, Any]) -> None:
        shop = shop_with((kind, "day", 10))
        answers = at_once(50, lambda _: shop.authorize(**who))
        assert sum(isinstance(answer, usage.Authorization) for answer in answers) == 10
        assert {answer.layer.name for answer in answers if isinstance(answer, usage.Refused)} == {"cap"}
        for done in answers:
            if isinstance(done, usage.Authorization):
                shop.capture(done)
        assert sum(spends(shop).values()) == 10
        assert shop.refused_by(**who) == "cap"
        assert audit.run() == []

    def test_a_cap_of_one_key_is_not_the_cap_of_another(self) -> None:
        shop = shop_with(("key", "day", 5))

        def authorize(number: Any) -> usage.Authorization:
            key = int(number) % 2 + 1
            return usage.authorize(account=shop.account, ask=shop.ask(1), key=str(uuid4()), now=datetime.now(UTC), api_key_id=key)

        answers = at_once(50, authorize)
        assert sum(isinstance(answer, usage.Authorization) for answer in answers) == 10
        assert audit.run() == []


@pytest.mark.django_db
class TestCaps:
    def test_a_refusal_says_which_cap_what_is_spent_and_when_it_begins_anew(self) -> None:
        shop = shop_with(("member", "day", 1_000_000))
        with shop.at(NOON):
            shop.use(tokens=600_000, user="ada")
            layer = shop.refusal(tokens=500_000, user="ada")
        assert layer is not None
        assert (layer.name, layer.meter, layer.limit, layer.used) == ("cap", "spend:member/day", 10**6 * PRICE, 600_000 * PRICE)
        assert layer.resets_at == datetime(2027, 6, 16, tzinfo=UTC)
        assert layer.reason == "This member may spend $1.50 today: $0.90 is spent or held, and this could take $0.75 more."

    def test_another_member_and_work_of_nobody_are_not_stopped(self) -> None:
        shop = shop_with(("member", "day", 5))
        with shop.at(NOON):
            shop.use(tokens=5, user="ada")
            assert shop.refused_by(user="ada") == "cap"
            assert shop.refused_by(user="bob") is None
            assert shop.refused_by() is None

    def test_a_day_begins_anew_and_a_run_does_not(self) -> None:
        shop = shop_with(("member", "day", 5), ("run", "lifetime", 8))
        with shop.at(NOON):
            shop.use(tokens=5, user="ada", run="r")
            assert shop.refused_by(user="ada", run="r") == "cap"
        with shop.at(NOON + DAY):
            shop.use(tokens=3, user="ada", run="r")
            layer = shop.refusal(user="ada", run="r")
            assert layer is not None
            assert (layer.meter, layer.resets_at) == ("spend:run/lifetime", None)
        assert audit.run() == []

    def test_open_work_counts_until_it_is_released(self) -> None:
        shop = shop_with(("run", "lifetime", 5))
        with shop.at(NOON):
            held = shop.authorize(tokens=5, run="r")
            assert shop.refused_by(run="r") == "cap"
            shop.release(held)
            assert shop.refused_by(tokens=5, run="r") is None

    def test_what_a_crashed_client_left_open_is_given_back_in_the_call_that_needs_it(self) -> None:
        shop = shop_with(("run", "lifetime", 5))
        with shop.at(NOON):
            shop.authorize(tokens=5, run="r")
        with shop.at(NOON + HOUR):
            assert shop.refused_by(tokens=5, run="r") is None

    def test_work_that_was_recorded_without_asking_counts_too(self) -> None:
        shop = shop_with(("session", "day", 5))
        with shop.at(NOON):
            shop.record(shop.event(tokens=2, session="s"))
            assert shop.refused_by(tokens=4, session="s") == "cap"
            shop.record(shop.event(tokens=1, session="s"), shop.event(tokens=2, session="s"), shop.event(session="other"))
            assert shop.refused_by(session="s") == "cap"
            assert spends(shop) == {("session", "s"): 5, ("session", "other"): 1}
        assert audit.run() == []

    def test_a_cap_that_comes_in_mid_day_has_the_true_figure_at_once(self) -> None:
        shop = Shop.new()
        with shop.at(NOON):
            shop.use(tokens=4, user="ada")
            assert not Spend.objects.filter(account=shop.account).exists()
            shop.guard(("member", "day", 5 * PRICE))
            assert shop.refused_by(tokens=2, user="ada") == "cap"
            assert shop.refused_by(tokens=1, user="ada") is None

    def test_a_repeated_key_is_answered_although_the_cap_is_reached(self) -> None:
        shop = shop_with(("run", "lifetime", 5))
        with shop.at(NOON):
            first = shop.authorize(tokens=5, run="r", key="k")
            again = shop.authorize(tokens=5, run="r", key="k")
        assert again.usage.replayed
        assert again.usage.id == first.usage.id
        assert [layer.remaining for layer in again.decision.layers if layer.name == "cap"] == [0]

    def test_a_cap_of_nothing_allows_nothing(self) -> None:
        shop = shop_with(("run", "lifetime", 0))
        with shop.at(NOON):
            assert shop.refused_by(run="r") == "cap"
            assert shop.refused_by() is None

    @pytest.mark.parametrize(("mode", "warned"), [("soft", ["cap"]), ("shadow", [])])
    def test_a_policy_that_only_watches_refuses_nothing(self, mode: str, warned: list[str]) -> None:
        shop = shop_with(("run", "lifetime", 1), mode=mode)
        with shop.at(NOON):
            shop.use(run="r")
            assert [layer.name for layer in shop.authorize(run="r").warnings] == warned

    def test_the_plan_s_own_guard_comes_before_the_product_s(self) -> None:
        shop = shop_with(("run", "lifetime", 1))
        Guard.objects.create(product=shop.product, slug="none")
        shop.product.plans.filter(slug="free").update(guard="none")
        catalog.clear()
        with shop.at(NOON):
            shop.use(run="r")
            assert shop.refused_by(run="r") is None

    def test_an_account_without_a_policy_has_no_row_and_asks_nothing(self) -> None:
        shop = Shop.new()
        with shop.at(NOON):
            shop.use(user="ada", run="r", session="s")
        with connection.cursor() as cursor:
            cursor.execute("select capped, exists (select from usage_spend_window w where w.account_id = s.account_id) from account_state s"
                           " where account_id = %s", [shop.account.pk])  # fmt: skip
            assert cursor.fetchall() == [(False, False)]

    def test_windows_that_are_over_are_forgotten(self) -> None:
        shop = shop_with(("member", "hour", 100))
        for hours in range(5):
            with shop.at(NOON + hours * HOUR):
                shop.use(user="ada")
        assert Spend.objects.filter(account=shop.account).count() == 3  # this one, the last, and the one before it, which has just ended

    def test_what_had_no_price_counts_in_its_own_window_when_it_has_one(self) -> None:
        shop = shop_with(("member", "day", 100))
        with shop.at(NOON):
            shop.use(user="ada")
            [unpriced] = shop.record(usage.Event(str(uuid4()), shop.account, NOON, "acme:unheard-of", {"input_tokens": 1}, user="ada"))
            assert spends(shop) == {("member", "ada"): 1}
            ledger.rate(
                account_id=shop.account.pk, usage_id=unpriced.id, rate_card_id=1, price_ids=[], unit_id=shop.product.unit_id,
                charge=ledger.Charge(PRICE, 3 * PRICE, PRICE, 1), charged=True,
            )  # fmt: skip
            assert spends(shop) == {("member", "ada"): 4}
        assert audit.run() == []

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        work=st.lists(
            st.tuples(
                st.sampled_from(["use", "hold", "release", "record", "batch"]),
                st.sampled_from("abc"),
                st.integers(1, 4),
                st.integers(0, 90),
            ),
            max_size=14,
        )
    )
    def test_whatever_happens_the_spend_is_the_recount_and_never_above_the_cap(self, work: list[tuple[str, str, int, int]]) -> None:
        shop = shop_with(("member", "hour", 6), ("run", "lifetime", 9), ("pool", "day", 20))
        asked: dict[str, list[usage.Authorization]] = {}
        recorded = False
        now = NOON
        for what, who, tokens, minutes in work:
            now += timedelta(minutes=minutes)
            with shop.at(now):
                if what in ("record", "batch"):
                    recorded = True
                    shop.record(*(shop.event(tokens=tokens, user=who, run=who) for _ in range(1 if what == "record" else 3)))
                elif what == "release":
                    for done in asked.pop(who, []):
                        shop.release(done)
                else:
                    with suppress(usage.Refused):
                        done = shop.authorize(tokens=tokens, user=who, run=who)
                        if what == "use":
                            shop.capture(done, tokens=tokens)
                        else:
                            asked.setdefault(who, []).append(done)
        assert [finding for finding in audit.run() if finding.account_id == shop.account.pk] == []
        if not recorded:
            assert all(limit >= spent for spent, limit in ((row.spent, {"member": 6, "run": 9, "pool": 20}[row.kind] * PRICE)
                       for row in Spend.objects.filter(account=shop.account)))  # fmt: skip


def test_the_layers_stand_in_the_order_in_which_they_are_asked() -> None:
    assert limits.ORDER.index("guard") == limits.ORDER.index("throttle") + 1
    assert limits.ORDER.index("cap") == limits.ORDER.index("credits") - 1
