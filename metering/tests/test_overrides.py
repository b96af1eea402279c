"""One limit of one account, overridden until a date: felt by the hot path, told everywhere, and over by time alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command

from accounts.models import User
from billing import subscriptions
from billing.models import LimitOverride
from metering import overrides, standing, throttles, usage
from metering.tests.limited import PER_TOKEN, Shop, plan
from tests.factories import NANOS, make_account

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
WEEK = NOON + timedelta(days=7)


def override(shop: Shop, meter: str, value: int, *, now: datetime = NOON, ends_at: datetime = WEEK, **more: Any) -> LimitOverride:
    by, _ = User.objects.get_or_create(email="ada@staff.example")
    said: dict[str, Any] = {"token": uuid4(), "reason": "a big launch"} | more
    return overrides.override(account=shop.account, meter=meter, value=value, ends_at=ends_at, by=by, actor=by.email, now=now, **said)


class TestLimitOf:
    @pytest.mark.parametrize(
        ("own", "value", "raises", "allows"),
        [(10, 50, True, 50), (100, 50, True, 100), (None, 50, True, None), (10, 5, False, 5), (3, 5, False, 3), (None, 5, False, 5)],
    )
    def test_a_raised_limit_takes_nothing_of_the_plan_and_a_lowered_one_adds_nothing(
        self, own: int | None, value: int, raises: bool, allows: int | None
    ) -> None:
        terms: Any = None
        allowed = subscriptions.Allowed(terms, "standard", 1, NOON, NOON, WEEK, {"messages/day": (value, raises)})
        assert allowed.limit_of("messages/day", own) == allows
        assert allowed.limit_of("messages/hour", own) == own


@pytest.mark.django_db
class TestOverride:
    def test_every_kind_of_limit_is_what_staff_set_until_its_date_and_then_the_plans_again(self) -> None:
        tier = {"daily_cost_nanos": 10 * PER_TOKEN, "monthly_cost_nanos": 99 * PER_TOKEN, "requests_per_hour": 5}
        terms = (("messages", "day", 1), ("tasks", "open", 2), ("request_tokens", "request", 100), ("agents", "count", 1))
        shop = Shop.new(*terms, tier=tier)
        other = make_account(shop.product, credit=1)
        new = {
            "messages/day": 7, "tasks/open": 0, "request_tokens/request": 50, "agents/count": 3, "cost/day": 20 * PER_TOKEN,
            "cost/period": 5 * PER_TOKEN, "requests/hour": 6,
        }  # fmt: skip

        def limits_of(account: Any, now: datetime) -> dict[str | None, int | None]:
            with shop.at(now):
                return {one.meter: one.limit for one in usage.decide(account=account, ask=None, now=now).layers if one.meter in new}

        before = limits_of(shop.account, NOON)
        assert before.keys() == new.keys()
        for meter, value in new.items():
            override(shop, meter, value)
        assert limits_of(shop.account, NOON) == new
        assert limits_of(other, NOON) == before
        assert limits_of(shop.account, WEEK - timedelta(seconds=1)) == new
        assert limits_of(shop.account, WEEK) == before

    def test_work_and_objects_are_allowed_and_refused_by_it(self) -> None:
        shop = Shop.new(("messages", "day", 1), ("agents", "count", 0))
        with shop.at(NOON):
            shop.use()
            assert shop.refused_by() == "quota"
            override(shop, "messages/day", 2)
            shop.use()
            assert shop.refused_by() == "quota"
            override(shop, "agents/count", 1)
            assert usage.reserve(account=shop.account, meter="agents", object_ref="a", now=NOON)[1] == 1
            with pytest.raises(usage.Refused):
                usage.reserve(account=shop.account, meter="agents", object_ref="b", now=NOON)
            assert usage.unreserve(account=shop.account, meter="agents", object_ref="a")[1] == 1

    def test_a_throttle_follows_it_up_and_down_below_every_tier(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 10 * PER_TOKEN, "monthly_cost_nanos": 50 * PER_TOKEN})
        with shop.at(NOON):
            shop.use(tokens=4)
            assert throttles.everybody(now=NOON, product=shop.product) == []
            override(shop, "cost/day", 4 * PER_TOKEN)
            [one] = throttles.everybody(now=NOON, product=shop.product)
            assert (one.account, one.stop.limit_nanos) == (shop.account, 4 * PER_TOKEN)
            assert shop.refused_by() == "cost"
            override(shop, "cost/day", 40 * PER_TOKEN)
            assert throttles.everybody(now=NOON, product=shop.product) == []
            shop.use(tokens=20)

    def test_another_plan_that_allows_more_is_not_held_back_by_what_was_raised_on_the_former(self) -> None:
        shop = Shop.new(("messages", "day", 1))
        override(shop, "messages/day", 5)
        with shop.at(NOON):
            shop.put_on(plan(shop.product, "pro", 2, ("messages", "day", 50)))
            assert shop.layer("quota").limit == 50
            shop.put_on(plan(shop.product, "lite", 3, ("messages", "hour", 50)))
            [one] = overrides.in_force(account=shop.account, now=NOON)
            assert one.void
            assert one.plans == "no such limit"

    def test_the_customer_sees_it_as_the_limit(self) -> None:
        shop = Shop.new(("messages", "day", 1))
        override(shop, "messages/day", 5)
        with shop.at(NOON):
            [limit] = standing.of_account(shop.account, product=shop.product, now=NOON).limits
        assert (limit.name, limit.allowed) == ("Messages a day", 5)

    def test_explain_decision_says_who_set_it_until_when_and_what_the_plan_says(self) -> None:
        now = datetime.now(UTC)
        shop = Shop.new(("messages", "day", 1_000), ("tasks", "open", 0))
        override(shop, "messages/day", 5_000, now=now, ends_at=now + timedelta(days=1))
        out = StringIO()
        with pytest.raises(CommandError):
            call_command("explain_decision", shop.account.public_id, stdout=out)
        until = f"{now + timedelta(days=1):%Y-%m-%d %H:%M} UTC"
        assert f"messages/day is 5,000 until {until}, where the plan says 1,000: ada@staff.example set it, a big launch\n" in out.getvalue()

    def test_sent_twice_it_is_one_act_and_another_value_ends_the_former(self) -> None:
        shop, token = Shop.new(("messages", "day", 1)), uuid4()
        first = override(shop, "messages/day", 5, token=token)
        assert override(shop, "messages/day", 5, token=token) == first
        second = override(shop, "messages/day", 9, now=NOON + timedelta(hours=1))
        first.refresh_from_db()
        assert (first.ended_at, first.ended_by, second.was) == (NOON + timedelta(hours=1), "ada@staff.example", 1)
        later = override(shop, "messages/day", 3, now=WEEK + timedelta(days=1), ends_at=WEEK + timedelta(days=2))
        second.refresh_from_db()
        assert (second.ended_at, later.was) == (WEEK, 1)
        lines = LogEntry.objects.filter(audit__account=shop.account).order_by("pk")
        assert [(line.audit.before, line.audit.after, line.audit.reason) for line in lines] == [
            ({"messages/day": "1"}, {"messages/day": "5", "until": "2027-06-22 12:00 UTC"}, "a big launch"),
            (
                {"messages/day": "5", "until": "2027-06-22 12:00 UTC"},
                {"messages/day": "9", "until": "2027-06-22 12:00 UTC"},
                "a big launch",
            ),
            ({"messages/day": "1"}, {"messages/day": "3", "until": "2027-06-24 12:00 UTC"}, "a big launch"),
        ]

    def test_ended_early_the_plan_counts_again_and_only_once(self) -> None:
        shop = Shop.new(("messages", "day", 1))
        row = override(shop, "messages/day", 5)
        by = User.objects.get(email="ada@staff.example")
        ended = [
            overrides.end(account=shop.account, override_id=row.pk, by=by, actor=by.email, reason="it is calm again", now=NOON)
            for _ in range(2)
        ]
        assert ended == [True, False]
        with shop.at(NOON):
            assert shop.layer("quota").limit == 1
        line = LogEntry.objects.filter(audit__account=shop.account).order_by("-pk")[0]
        assert (line.audit.after, line.audit.reason) == ({"messages/day": "1"}, "it is calm again")

    @pytest.mark.parametrize(
        ("wrong", "field"),
        [
            ({"meter": "messages/hour"}, "meter"), ({"meter": "cost/day"}, "meter"), ({"meter": "\0"}, "meter"),
            ({"meter": "off/day"}, "meter"),
            ({"value": -1}, "value"), ({"value": 10**15 + 1}, "value"), ({"value": 1}, "value"),
            ({"ends_at": NOON}, "ends_at"), ({"ends_at": NOON + timedelta(days=368)}, "ends_at"),
        ],
    )  # fmt: skip
    def test_what_is_no_limit_changes_nothing_or_never_ends_is_refused(self, wrong: dict[str, Any], field: str) -> None:
        shop = Shop.new(("messages", "day", 1), ("off", "day", 1, "off"))
        said: dict[str, Any] = {"meter": "messages/day", "value": 5} | wrong
        with pytest.raises(overrides.InvalidOverride) as error:
            override(shop, said.pop("meter"), said.pop("value"), **said)
        assert error.value.field == field
        assert not LimitOverride.objects.filter(account=shop.account).exists()

    def test_a_raised_cost_limit_says_what_it_leaves_of_the_plans_price(self) -> None:
        shop = Shop.new(tier={"monthly_cost_nanos": 2 * NANOS})
        shop.put_on(plan(shop.product, "pro", 11, tier={"monthly_cost_nanos": 2 * NANOS}))
        _, says = overrides.check(account=shop.account, meter="cost/period", value=20 * NANOS, ends_at=WEEK, now=NOON)
        assert says[0] == "Cost a billing period: $20.00 instead of $2.00, felt within a second."
        assert says[1].startswith("Pro at this limit: −100.0 % at worst"), says
        _, says = overrides.check(account=shop.account, meter="cost/period", value=NANOS, ends_at=WEEK, now=NOON)
        assert len(says) == 1


@pytest.mark.usefixtures("committed")
def test_it_is_read_with_the_plan_and_felt_by_what_is_kept() -> None:
    shop = Shop.new(("messages", "day", 1))
    now = datetime.now(UTC)
    found = subscriptions.payer(shop.product.pk, shop.account.public_id)
    assert found is not None
    assert subscriptions.allowed(account=found) is not None
    override(shop, "messages/day", 5, now=now, ends_at=now + timedelta(days=1))
    allowed = subscriptions.allowed(account=found)
    assert allowed is not None
    assert allowed.overrides == {"messages/day": [5, True]}
    subscriptions.clear()
    found = subscriptions.payer(shop.product.pk, shop.account.public_id)
    assert found is not None
    allowed = subscriptions.allowed(account=found)
    assert allowed is not None
    assert allowed.limit_of("messages/day", 1) == 5
