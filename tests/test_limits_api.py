"""Limits as client apps meet them: each refusal says what, until when, and what would lift it; objects are reserved and released."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from billing import ledger
from metering.models import KillSwitch
from metering.tests.limited import PER_TOKEN, Shop, plan, plan_version
from tests.factories import make_account, make_key

pytestmark = pytest.mark.django_db


class App:
    """A client app of the shop's product, with a product key unless told otherwise."""

    def __init__(self, shop: Shop, *, token: str = "") -> None:
        self.shop = shop
        self.token = token or make_key(shop.product)

    def post(self, path: str, body: object, *, raw: bytes | None = None, key: str = "") -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": key or str(uuid4())}
        data = json.dumps(body).encode() if raw is None else raw
        return Client().post(f"/api/v1/usage/{path}", data, content_type="application/json", headers=headers)

    def get(self, path: str, **query: str) -> Any:
        return Client().get(f"/api/v1/usage/{path}", query, headers={"Authorization": f"Bearer {self.token}"})

    def authorize(self, *, tokens: int = 1, key: str = "", **more: Any) -> Any:
        estimate = {"input_tokens": tokens, "max_output_tokens": 0}
        body = {"account": self.shop.account.external_id, "model": self.shop.model, "estimate": estimate} | more
        return self.post("authorize", body, key=key)

    def place(self, meter: str = "agents", **body: Any) -> Any:
        return self.post(f"counters/{meter}", {"account": self.shop.account.external_id, "action": "reserve", "object": "a"} | body)


def stop(shop: Shop) -> None:
    ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse", ends_at=datetime.now(UTC) + timedelta(hours=1))


def switch_off(shop: Shop) -> None:
    now = datetime.now(UTC)
    KillSwitch.objects.create(product=shop.product, reason="outage", actor="ada", created_at=now, ends_at=now + timedelta(hours=1))


def nothing(shop: Shop) -> None:
    """It is refused by its terms."""


#: What is refused, by which terms or by what has happened, how it is called, whether it has an end and whether a plan lifts it.
REFUSALS: list[tuple[str, Callable[[Shop], None], list[Any], dict[str, Any], int, str, bool, bool]] = [
    ("kill_switch", switch_off, [], {}, 503, "switched_off", True, False),
    ("throttle", stop, [], {}, 429, "throttled", True, False),
    ("entitlement", nothing, [], {"flags": {"chat": False}}, 403, "not_entitled", False, True),
    ("request_size", nothing, [("request_tokens", "request", 0)], {}, 422, "request_too_large", False, True),
    ("requests", nothing, [("requests", "hour", 0)], {}, 429, "rate_limited", True, True),
    ("requests", nothing, [], {"tier": {"requests_per_hour": 0}}, 429, "rate_limited", True, True),
    ("concurrency", nothing, [("tasks", "open", 0)], {}, 429, "concurrency_limit_reached", False, True),
    ("quota", nothing, [("messages", "day", 0)], {}, 429, "quota_exceeded", True, True),
    ("quota", nothing, [("messages", "lifetime", 0)], {}, 429, "quota_exceeded", False, True),
    ("cost", nothing, [], {"tier": {"daily_cost_nanos": 0}}, 429, "cost_limit_reached", True, True),
    ("credits", nothing, [], {"credit": 0}, 402, "insufficient_credits", False, False),
]


class TestWarnings:
    def test_a_soft_limit_lets_pass_and_says_so_once_and_a_shadow_says_nothing(self) -> None:
        now = datetime.now(UTC)
        shop = Shop.new(("messages", "day", 1, "soft"), ("request_tokens", "request", 5, "soft"), ("tasks", "open", 0, "shadow"))
        app = App(shop)
        assert app.authorize().json()["warnings"] == []
        second = app.authorize(tokens=6, key="k")
        size, quota = second.json()["warnings"]
        assert size == {"layer": "request_size", "meter": "request_tokens/request", "limit": 5, "used": 6, "resets_at": None}
        assert datetime.fromisoformat(quota.pop("resets_at")) > now
        assert quota == {"layer": "quota", "meter": "messages/day", "limit": 1, "used": 1}
        again = app.authorize(tokens=6, key="k")
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.json() == second.json() | {"warnings": []}


class TestRefusals:
    def test_a_refusal_asks_once_what_the_plan_allows(self) -> None:
        shop = Shop.new(("messages", "day", 0))
        app = App(shop)
        with CaptureQueriesContext(connection) as asked:
            assert app.authorize().status_code == 429
        assert sum("from billing_subscription" in query["sql"] for query in asked) == 1

    @pytest.mark.parametrize(("layer", "happened", "terms", "more", "status", "code", "ends", "lifted"), REFUSALS)
    def test_a_refusal_says_its_status_its_layer_its_end_and_the_plan_that_lifts_it(
        self, layer: str, happened: Callable[[Shop], None], terms: list[Any], more: dict[str, Any], status: int, code: str, ends: bool,
        lifted: bool,
    ) -> None:  # fmt: skip
        shop = Shop.new(*terms, **{"flags": {"chat": True}} | more)
        plan(shop.product, "pro", 21, flags={"chat": True})
        happened(shop)
        answer = App(shop).authorize(feature="chat")
        told = answer.json()
        assert (answer.status_code, told["status"], told["code"], told["layer"]) == (status, status, code, layer)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert told["detail"]
        assert ("resets_at" in told) == ends
        assert ("Retry-After" in answer.headers) == (status in (429, 503))
        if ends:
            seconds = (datetime.fromisoformat(told["resets_at"]) - datetime.now(UTC)).total_seconds()
            assert 0 <= int(answer.headers["Retry-After"]) - seconds < 3
        offered = {"plan": "pro", "name": "Pro", "price": "20.00", "currency": "usd"}
        assert told.get("upgrade") == (offered if lifted else None)
        assert [each["layer"] for each in told["limits"] if not each["allowed"]] == [layer]

    def test_nothing_is_held_or_counted_for_what_was_refused(self) -> None:
        shop = Shop.new(("messages", "day", 1), ("tasks", "open", 0))
        app = App(shop)
        before = app.get("limits", account=shop.account.external_id).json()
        assert app.authorize().status_code == 429
        assert app.get("limits", account=shop.account.external_id).json() == before


class TestWholesaleCosts:
    def figures(self, value: Any) -> list[Any]:
        """Every figure of a cost layer in an answer, and every figure that is not 0 of the limit's size."""
        if isinstance(value, list):
            return [found for item in value for found in self.figures(item)]
        if isinstance(value, dict):
            own = [value.get(name) for name in ("limit", "used", "remaining")] if value.get("layer") == "cost" else []
            return [*own, *(found for item in value.values() for found in self.figures(item))]
        return []

    def test_account_keys_see_that_a_cost_limit_is_there_and_never_its_figures(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 77 * PER_TOKEN, "monthly_cost_nanos": 78 * PER_TOKEN})
        shop.use(tokens=33)
        app = App(shop, token=make_key(shop.product, account=shop.account))
        answers = [app.get("limits"), app.authorize(account=None), app.authorize(account=None, tokens=50)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        for answer in answers:
            figures = self.figures(answer.json())
            assert figures != []
            assert set(figures) == {None}
            assert not [amount for amount in ("0.000077", "0.000078", "0.000033", "0.000044") if amount in answer.content.decode()]

    def test_a_product_key_sees_them_where_it_may_read_costs(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 77 * PER_TOKEN})
        shop.use(tokens=33)
        account = shop.account.external_id
        seen = App(shop).get("limits", account=account).json()
        assert self.figures(seen) == ["0.000077000", "0.000033000", "0.000044000"]
        reader = App(shop, token=make_key(shop.product, scopes=["usage:read", "usage:write"]))
        assert set(self.figures(reader.get("limits", account=account).json())) == {None}
        assert set(self.figures(reader.authorize(tokens=50).json())) == {None}


class TestCounters:
    def test_objects_are_reserved_refused_released_and_each_answer_may_be_asked_again(self) -> None:
        shop = Shop.new(("agents", "count", 1))
        plan(shop.product, "pro", 21, ("agents", "count", 3))
        app = App(shop)
        first, again = app.place(), app.place()
        expected = {"meter": "agents", "account": shop.account.public_id, "used": 1, "limit": 1, "remaining": 0}
        assert (first.status_code, first.json()) == (200, expected) == (again.status_code, again.json())
        assert [answer.headers.get("Idempotency-Replayed") for answer in (first, again)] == [None, "true"]
        full = app.place(object="b")
        assert (full.status_code, full.json()["code"], full.json()["layer"]) == (429, "quota_exceeded", "quota")
        assert full.json()["upgrade"]["plan"] == "pro"
        assert full.json()["limits"][-1]["used"] == 1
        assert app.place(action="release").json()["remaining"] == 1
        assert app.place(action="release").headers["Idempotency-Replayed"] == "true"
        assert app.place(object="b").status_code == 200

    def test_a_stopped_account_makes_no_new_objects_and_may_let_the_old_ones_go(self) -> None:
        shop = Shop.new(("agents", "count", 2))
        app = App(shop)
        assert app.place().status_code == 200
        stop(shop)
        refused = app.place(object="b")
        assert (refused.status_code, refused.json()["code"], refused.json()["layer"]) == (429, "throttled", "throttle")
        assert "resets_at" in refused.json()
        assert app.place(action="release").json()["used"] == 0
        ledger.resume(account_id=shop.account.pk, actor="ada")
        assert app.place(object="b").status_code == 200

    def test_a_meter_that_the_plan_does_not_have_is_not_entitled_and_one_without_a_limit_is_not_limited(self) -> None:
        shop = Shop.new(("agents", "count", None))
        app = App(shop)
        refused = app.place("projects")
        assert (refused.status_code, refused.json()["code"], refused.json()["layer"]) == (403, "not_entitled", "entitlement")
        assert app.place().json() | {"account": ""} == {"meter": "agents", "account": "", "used": 1, "limit": None, "remaining": None}

    def test_releasing_what_never_was_is_404_and_above_a_lower_limit_nothing_is_left(self) -> None:
        shop = Shop.new(("agents", "count", 2))
        app = App(shop)
        assert app.place(action="release").status_code == 404
        assert [app.place(object=name).status_code for name in "ab"] == [200, 200]
        shop.put_on(plan_version(shop.product.plans.get(slug="free"), ("agents", "count", 1)))
        assert app.place(action="release", object="c").status_code == 404
        assert app.place().json()["remaining"] == 0

    @pytest.mark.parametrize(
        "body",
        [
            {"action": "take"}, {"action": None}, {"action": 1}, {"object": ""}, {"object": "x" * 201}, {"object": 5}, {"object": None},
            {"object": "a\nb"}, {"object": []}, {"object": {}}, {"account": 5}, {"account": ""}, {"account": "x" * 129}, {"more": 1},
        ],
    )  # fmt: skip
    def test_garbage_is_422_and_reserves_nothing(self, body: dict[str, Any]) -> None:
        shop = Shop.new(("agents", "count", 1))
        answer = App(shop).place(**body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert shop.used("quota") == 0

    @pytest.mark.parametrize("raw", [b" ", b"[]", b"null", b"{", b'"reserve"', b'{"action":"reserve","action":"release"}', b"\xff", b"NaN"])
    def test_a_body_that_is_no_command_is_400_or_422(self, raw: bytes) -> None:
        shop = Shop.new(("agents", "count", 1))
        assert App(shop).post("counters/agents", None, raw=raw).status_code in (400, 422)

    @pytest.mark.parametrize("meter", ["Agents", "a b", "a/b", "..", "a%00", "%D9%A3", "x" * 65, "messages%2Fday", "-a"])
    def test_a_meter_that_no_plan_can_have_is_refused(self, meter: str) -> None:
        shop = Shop.new(("agents", "count", 1))
        assert App(shop).place(meter).status_code in (403, 404)

    def test_another_products_account_is_as_if_it_were_not_and_an_account_key_is_its_own(self) -> None:
        shop, other = Shop.new(("agents", "count", 1)), make_account()
        assert App(shop).place(account=other.public_id).status_code == 404
        own = App(shop, token=make_key(shop.product, account=shop.account))
        assert own.place(account=None).json()["used"] == 1
        assert App(shop, token=make_key(shop.product, scopes=["usage:read"])).place().json()["code"] == "missing_scope"
