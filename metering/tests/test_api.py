"""The hot endpoints, over Django's client: what a client app sees."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.http import HttpResponse
from django.test import Client
from psycopg.types.range import Range

from accounts.models import Account
from billing import audit, ledger
from billing.models import LedgerEntry, Wallet
from metering.models import OpenAuthorization, UsageRecord
from pricing.models import PriceRow, RateCard
from tests.factories import NANOS, START, give, make_account, make_key, make_model, make_product

pytestmark = pytest.mark.django_db


class App:
    """A client app of one product, with a product key, one account and one priced model."""

    def __init__(self, **product: Any) -> None:
        self.product = make_product(**product)
        self.account = make_account(self.product)
        self.token = make_key(self.product)
        self.model = make_model()

    def post(self, path: str, body: object, *, key: str | None = None, token: str | None = None, raw: bytes | None = None) -> HttpResponse:
        headers = {"Authorization": f"Bearer {token or self.token}"} | ({"Idempotency-Key": key} if key else {})
        data = json.dumps(body).encode() if raw is None else raw
        return Client().post(f"/api/v1/usage/{path}", data, content_type="application/json", headers=headers)  # type: ignore[return-value]

    def authorize(self, *, key: str = "", **fields: Any) -> HttpResponse:
        body = {
            "account": self.account.external_id,
            "model": self.model,
            "estimate": {"input_tokens": 100_000, "max_output_tokens": 0},
        } | fields
        return self.post("authorize", body, key=key or str(uuid4()))

    def event(self, **fields: Any) -> dict[str, Any]:
        event = {
            "id": str(uuid4()), "account": self.account.external_id, "time": datetime.now(UTC).isoformat(), "model": self.model,
            "quantities": {"input_tokens": 1},
        }  # fmt: skip
        return event | fields


@pytest.fixture
def app() -> App:
    app = App()
    give(app.account, NANOS)
    return app


def body(response: HttpResponse) -> Any:
    return json.loads(response.content)


def balance(account: Account) -> tuple[int, int, int]:
    wallet = Wallet.objects.get(account=account)
    return wallet.balance, wallet.held, wallet.debt


class TestAuthorizeAndCapture:
    def test_rovers_worked_example_holds_to_the_nano(self, app: App) -> None:
        held = app.authorize()
        assert held.status_code == 200, held.content
        assert body(held)["hold"] == "0.450000000"
        done = app.post(f"authorizations/{body(held)['id']}/capture", {"quantities": {"input_tokens": 100_000}})
        assert body(done)["charged"] == "0.450000000"
        assert body(done)["balance"] == "0.550000000"
        record = UsageRecord.objects.get(account=app.account)
        assert (record.price_nanos, record.cost_nanos) == (450_000_000, 300_000_000)  # a margin of 0.15
        assert audit.run() == []

    def test_answer_names_every_layer_and_what_remains(self, app: App) -> None:
        layers = {layer["layer"]: layer for layer in body(app.authorize())["limits"]}
        assert list(layers) == ["request_size", "credits"]
        assert layers["credits"]["remaining"] == "0.550000000"

    @pytest.mark.failure(5)
    def test_retry_with_the_same_key_is_the_same_answer_even_with_an_empty_wallet(self, app: App) -> None:
        first, again = (app.authorize(key="k", estimate={"input_tokens": 200_000, "max_output_tokens": 0}) for _ in range(2))
        assert (again.status_code, body(again)) == (first.status_code, body(first))
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"
        assert balance(app.account) == (NANOS, 900_000_000, 0)

    @pytest.mark.failure(3)
    def test_same_key_with_another_body_is_409_and_changes_nothing(self, app: App) -> None:
        app.authorize(key="k")
        other = app.authorize(key="k", feature="chat")
        assert (other.status_code, body(other)["code"]) == (409, "idempotency_key_reused")
        assert balance(app.account) == (NANOS, 450_000_000, 0)

    @pytest.mark.failure(3)
    def test_same_key_for_another_estimate_is_409(self, app: App) -> None:
        assert app.authorize(key="k").status_code == 200
        other = app.authorize(key="k", estimate={"input_tokens": 100_001, "max_output_tokens": 0})
        assert (other.status_code, body(other)["code"]) == (409, "idempotency_key_reused")

    def test_an_account_that_closes_ends_what_it_began_and_begins_nothing_new(self, app: App) -> None:
        captured, released, extended = (body(app.authorize(estimate={"input_tokens": 10}))["id"] for _ in range(3))
        Account.objects.filter(pk=app.account.pk).update(closed_at=datetime.now(UTC))
        done = app.post(f"authorizations/{captured}/capture", {"quantities": {"input_tokens": 10}})
        assert (done.status_code, body(done)["charged"]) == (200, "0.000045000")
        assert body(app.post(f"authorizations/{released}/release", {}))["status"] == "released"
        assert app.post(f"authorizations/{extended}/extend", {"seconds": 60}).status_code == 200
        foreign = make_key(make_product())
        assert app.post(f"authorizations/{extended}/release", {}, token=foreign).status_code == 404
        place = {"account": app.account.external_id, "action": "reserve", "object": "a"}
        for refused in (app.authorize(), app.authorize(account=app.account.public_id), app.post("counters/agents", place)):
            assert (refused.status_code, body(refused)["detail"]) == (404, "No such account.")
        assert audit.run() == []

    @pytest.mark.failure(7)
    def test_capture_again_is_the_same_answer(self, app: App) -> None:
        path = f"authorizations/{body(app.authorize())['id']}/capture"
        first, again = (app.post(path, {"quantities": {"input_tokens": 5}}) for _ in range(2))
        assert body(first) == body(again)
        assert again.headers["Idempotency-Replayed"] == "true"
        other = app.post(path, {"quantities": {"input_tokens": 6}})
        assert (other.status_code, body(other)["code"]) == (409, "hold_already_resolved")

    def test_capture_again_is_the_same_answer_where_reasoning_was_billed_as_output(self, app: App) -> None:
        path = f"authorizations/{body(app.authorize())['id']}/capture"
        used = {"quantities": {"input_tokens": 5, "output_tokens": 2, "reasoning_tokens": 1}}
        first, again = (app.post(path, used) for _ in range(2))
        assert (again.status_code, body(again)) == (200, body(first))
        other = app.post(path, {"quantities": {"input_tokens": 5, "output_tokens": 2, "reasoning_tokens": 2}})
        assert (other.status_code, body(other)["code"]) == (409, "hold_already_resolved")

    def test_capture_again_is_the_same_answer_where_reasoning_has_its_own_price(self, app: App) -> None:
        app.model = make_model(reasoning_tokens=1_000_000_000)
        path = f"authorizations/{body(app.authorize())['id']}/capture"
        first, again = (app.post(path, {"quantities": {"output_tokens": 2, "reasoning_tokens": 1}}) for _ in range(2))
        assert (again.status_code, body(again)) == (200, body(first))
        assert app.post(path, {"quantities": {"output_tokens": 3}}).status_code == 409

    def test_retry_is_answered_when_the_model_has_lost_its_price_meanwhile(self, app: App) -> None:
        first = app.authorize(key="k")
        PriceRow.objects.filter(model=app.model.partition(":")[2]).update(withdrawn_at=datetime.now(UTC))
        again = app.authorize(key="k")
        assert (again.status_code, body(again)) == (200, body(first))
        refused = app.authorize(key="new")
        assert (refused.status_code, body(refused)["code"]) == (422, "unknown_model")
        other = app.authorize(key="k", feature="chat")
        assert (other.status_code, body(other)["code"]) == (409, "idempotency_key_reused")

    def test_release_gives_the_hold_back(self, app: App) -> None:
        path = f"authorizations/{body(app.authorize())['id']}/release"
        assert body(app.post(path, {}))["status"] == "released"
        assert app.post(path, {}).headers["Idempotency-Replayed"] == "true"
        assert balance(app.account) == (NANOS, 0, 0)

    def test_extend_moves_the_end_of_the_hold(self, app: App) -> None:
        held = body(app.authorize())
        later = app.post(f"authorizations/{held['id']}/extend", {"seconds": 7_200})
        assert body(later)["expires_at"] > held["expires_at"]

    @pytest.mark.failure(33)
    def test_capture_uses_the_prices_promised_at_the_authorization(self, app: App) -> None:
        held = body(app.authorize())
        opened = OpenAuthorization.objects.get(account=app.account)
        app.product.rate_cards.model.objects.create(
            product=app.product, slug="standard", version=2, valid_from=datetime.now(UTC) - timedelta(seconds=1), mode="pass_through"
        )
        done = app.post(f"authorizations/{held['id']}/capture", {"quantities": {"input_tokens": 100_000}})
        assert body(done)["charged"] == "0.450000000"
        assert UsageRecord.objects.get(account=app.account).rate_card_id == opened.rate_card_id

    @pytest.mark.failure(33)
    def test_price_that_changes_before_the_capture_is_not_charged(self, app: App) -> None:
        path = f"authorizations/{body(app.authorize())['id']}/capture"
        provider, _, name = app.model.partition(":")
        now = datetime.now(UTC)
        row = {"provider": provider, "model": name, "component": "input_tokens"}
        PriceRow.objects.filter(**row).update(valid=Range(START, now))
        PriceRow.objects.create(**row, price_nanos=6_000_000_000, valid=Range(now, None), source="test")
        assert body(app.authorize(estimate={"input_tokens": 10_000, "max_output_tokens": 0}))["hold"] == "0.090000000"
        assert body(app.post(path, {"quantities": {"input_tokens": 100_000}}))["charged"] == "0.450000000"

    @pytest.mark.failure(42)
    @pytest.mark.parametrize(
        ("provider", "report"),
        [
            ("anthropic", {"input_tokens": 1_000, "cache_read_input_tokens": 9_000, "output_tokens": 0}),
            ("openai", {"prompt_tokens": 10_000, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 9_000}}),
            ("openai", {"input_tokens": 10_000, "output_tokens": 0, "input_tokens_details": {"cached_tokens": 9_000}}),
        ],
    )
    def test_cached_tokens_are_priced_once_whatever_the_provider_reports(self, app: App, provider: str, report: dict[str, Any]) -> None:
        app.model = make_model(provider=provider, cached_input_tokens=300_000_000)
        held = body(app.authorize())
        done = app.post(f"authorizations/{held['id']}/capture", {"provider_usage": report})
        assert done.status_code == 200, done.content
        record = UsageRecord.objects.get(account=app.account)
        assert record.quantities == [1_000, 0, 9_000]
        assert record.cost_nanos == 1_000 * 3_000 + 9_000 * 300

    def test_capture_of_an_unpriced_component_waits_for_its_price(self, app: App) -> None:
        path = f"authorizations/{body(app.authorize())['id']}/capture"
        done = app.post(path, {"quantities": {"input_tokens": 5, "images": 1}})
        assert (done.status_code, body(done)["status"]) == (200, "awaiting_price")
        assert balance(app.account) == (NANOS, 450_000_000, 0)


class TestRefusals:
    def test_too_little_credit_is_402_with_the_balance_and_every_layer(self, app: App) -> None:
        refused = app.authorize(estimate={"input_tokens": 1_000_000, "max_output_tokens": 0})
        assert (refused.status_code, body(refused)["code"]) == (402, "insufficient_credits")
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert body(refused)["balance"] == "1.000000000"
        assert [layer["layer"] for layer in body(refused)["limits"] if not layer["allowed"]] == ["credits"]
        assert [layer["layer"] for layer in body(refused)["limits"]] == [
            "kill_switch",
            "throttle",
            "entitlement",
            "request_size",
            "credits",
        ]

    @pytest.mark.failure(6)
    def test_refusal_is_decided_again_after_a_top_up(self, app: App) -> None:
        estimate = {"input_tokens": 1_000_000, "max_output_tokens": 0}
        assert app.authorize(key="k", estimate=estimate).status_code == 402
        give(app.account, 10 * NANOS)
        assert app.authorize(key="k", estimate=estimate).status_code == 200

    def test_oversize_request_is_refused_and_nothing_else_changes(self) -> None:
        app = App(request_tokens=20_000)
        give(app.account, NANOS)
        refused = app.authorize(estimate={"input_tokens": 20_001, "max_output_tokens": 0})
        assert (refused.status_code, body(refused)["code"]) == (422, "request_too_large")
        assert app.authorize(estimate={"input_tokens": 20_000, "max_output_tokens": 0}).status_code == 200

    def test_feature_outside_the_plan_is_403_and_an_unnamed_one_is_only_a_label(self) -> None:
        app = App(flags={"api_access": False, "canvas": True})
        give(app.account, NANOS)
        assert body(app.authorize(feature="api_access"))["code"] == "not_entitled"
        assert app.authorize(feature="canvas").status_code == 200
        assert app.authorize(feature="anything").status_code == 200

    def test_unknown_model_is_422_and_never_priced_as_another(self, app: App) -> None:
        refused = app.authorize(model="acme:nobody-priced-this")
        assert (refused.status_code, body(refused)["code"]) == (422, "unknown_model")

    def test_balance_below_the_products_minimum_is_402(self) -> None:
        app = App(minimum_balance_nanos=10_000_000)
        give(app.account, 9_999_999)
        assert app.authorize(estimate={"input_tokens": 1, "max_output_tokens": 0}).status_code == 402
        give(app.account, 1)
        assert app.authorize(estimate={"input_tokens": 1, "max_output_tokens": 0}).status_code == 200

    @pytest.mark.parametrize("mode", ["byo", "included"])
    def test_byo_and_included_usage_needs_no_credit_and_charges_nothing(self, mode: str) -> None:
        app = App(mode=mode)
        held = app.authorize()
        assert held.status_code == 200, held.content
        done = app.post(f"authorizations/{body(held)['id']}/capture", {"quantities": {"input_tokens": 100_000}})
        assert body(done)["charged"] == "0.000000000"
        assert UsageRecord.objects.get(account=app.account).cost_nanos == (0 if mode == "byo" else 300_000_000)

    def test_wrong_revoked_or_weak_keys_are_told_apart_only_by_scope(self, app: App) -> None:
        estimate = {"account": app.account.external_id, "model": app.model, "estimate": {"input_tokens": 1}}
        assert app.post("authorize", estimate, key="k", token="nonsense").status_code == 401
        reader = make_key(app.product, scopes=["usage:read"])
        refused = app.post("authorize", estimate, key="k", token=reader)
        assert (refused.status_code, body(refused)["code"]) == (403, "missing_scope")

    def test_another_products_account_and_authorization_do_not_exist(self, app: App) -> None:
        other = App()
        give(other.account, NANOS)
        held = body(other.authorize())
        foreign = app.authorize(account=other.account.public_id)
        assert (foreign.status_code, body(foreign)["code"]) == (404, "not_found")
        capture = app.post(f"authorizations/{held['id']}/capture", {"quantities": {"input_tokens": 1}})
        missing = app.post(f"authorizations/auth_{'0' * 52}/capture", {"quantities": {"input_tokens": 1}})
        assert (capture.status_code, capture.content) == (missing.status_code, missing.content) == (404, missing.content)
        assert balance(other.account) == (NANOS, 450_000_000, 0)

    def test_account_key_acts_for_its_account_alone(self, app: App) -> None:
        token = make_key(app.product, account=app.account)
        ask = {"model": app.model, "estimate": {"input_tokens": 1}}
        assert app.post("authorize", ask, key="k", token=token).status_code == 200
        other = make_account(app.product)
        assert app.post("authorize", ask | {"account": other.external_id}, key="k", token=token).status_code == 404


UNIX_TIME = str(int(datetime.now(UTC).timestamp()))


class TestRecords:
    @pytest.mark.failure(25, 26)
    def test_every_item_has_its_own_result_and_a_retry_changes_nothing(self, app: App) -> None:
        reused = app.event(id="same", quantities={"input_tokens": 2})
        assert app.post("records", app.event(id="same")).status_code == 200
        events = [
            app.event(id="a"), app.event(id="b", quantities={"input_tokens": -1}), reused, app.event(id="c", model="acme:unheard-of"),
            app.event(id="d", account="nobody"), app.event(id="e", time="2026-01-01T00:00:00"), 7,
        ]  # fmt: skip
        first = body(app.post("records", {"events": events}))
        assert [result["status"] for result in first["results"]] == [
            "created",
            "invalid",
            "conflict",
            "unpriced",
            "invalid",
            "invalid",
            "invalid",
        ]
        after = balance(app.account)
        again = body(app.post("records", {"events": events}))
        assert [result["status"] for result in again["results"]] == [
            "duplicate",
            "invalid",
            "conflict",
            "duplicate",
            "invalid",
            "invalid",
            "invalid",
        ]
        assert balance(app.account) == after
        assert audit.run() == []

    def test_cloud_event_counts_once_by_source_and_id(self, app: App) -> None:
        event = app.event()
        data = {name: event[name] for name in ("account", "model", "quantities")}
        envelope = {"specversion": "1.0", "id": "1", "source": "/chat", "type": "usage", "time": event["time"], "data": data}
        assert body(app.post("records", envelope))["status"] == "created"
        assert body(app.post("records", envelope))["status"] == "duplicate"
        assert body(app.post("records", envelope | {"source": "/search"}))["status"] == "created"

    def test_cloud_events_data_may_not_name_another_id_or_time(self, app: App) -> None:
        event = app.event()
        envelope = {"specversion": "1.0", "id": "1", "source": "/chat", "type": "usage", "time": event["time"], "data": event}
        refused = app.post("records", envelope)
        assert (refused.status_code, body(refused)["errors"][0]["field"]) == (422, "data")
        assert UsageRecord.objects.count() == 0

    def test_retry_is_a_duplicate_when_reasoning_has_got_a_price_of_its_own_meanwhile(self, app: App) -> None:
        event = app.event(quantities={"output_tokens": 2, "reasoning_tokens": 1})
        assert body(app.post("records", event))["status"] == "created"
        provider, _, name = app.model.partition(":")
        PriceRow.objects.create(
            provider=provider, model=name, component="reasoning_tokens", price_nanos=1, valid=Range(START, None), source="test"
        )
        assert body(app.post("records", event))["status"] == "duplicate"
        assert UsageRecord.objects.get(account=app.account).quantities == [0, 3]

    @pytest.mark.failure(33)
    def test_event_is_charged_at_the_prices_and_the_rate_card_of_its_own_time(self, app: App) -> None:
        changed = datetime.now(UTC) - timedelta(hours=1)
        for price, valid in ((1_000_000_000, Range(START, changed)), (2_000_000_000, Range(changed, None))):
            PriceRow.objects.create(
                provider="acme", model=app.product.slug, component="images", price_nanos=price, valid=valid, source="test"
            )
        RateCard.objects.create(
            product=app.product, slug="standard", version=2, valid_from=changed, mode="markup", markup_ppm=1_000_000
        )  # fmt: skip
        for at, charged in ((changed, "0.004000000"), (changed - timedelta(seconds=1), "0.001500000")):
            event = app.event(model=f"acme:{app.product.slug}", quantities={"images": 1_000}, time=at.isoformat())
            assert body(app.post("records", event))["charged"] == charged

    @pytest.mark.failure(25)
    def test_same_id_and_time_with_other_quantities_is_a_conflict(self, app: App) -> None:
        event = app.event()
        assert body(app.post("records", event))["status"] == "created"
        other = app.post("records", event | {"quantities": {"input_tokens": 2}})
        assert (other.status_code, body(other)["code"]) == (409, "event_id_reused")

    def test_usage_from_before_the_rate_card_began_is_stored_unpriced_and_the_rest_goes_on(self, app: App) -> None:
        begun = datetime.now(UTC) - timedelta(hours=1)
        RateCard.objects.create(product=app.product, slug="late", valid_from=begun, mode="pass_through")
        Account.objects.filter(pk=app.account.pk).update(rate_card="late")
        early = app.event(time=(datetime.now(UTC) - timedelta(hours=2)).isoformat())
        answer = body(app.post("records", {"events": [app.event(), early, app.event()]}))
        assert [result["status"] for result in answer["results"]] == ["created", "unpriced", "created"]
        assert balance(app.account) == (NANOS - 2 * 3_000, 0, 0)

    def test_event_that_the_debt_has_no_room_for_does_not_stop_the_others_of_its_batch(self, app: App) -> None:
        app.model = make_model(input_price=600_000 * NANOS)  # 10⁶ tokens are 900,000 dollars; a debt has room for 9.2 × 10⁹
        owed, key = 2**63 - 1 - 10**15, ledger.key_hash("usage", "owed")
        call = ledger.Call(1, None, None, 1, [1], [1])
        charge = ledger.Charge(0, owed + NANOS, 0, 1)
        ledger.record(ledger.Event(app.account.pk, key, key, call, app.product.unit_id, datetime.now(UTC), charge))
        most = {"input_tokens": 10**6}
        events = [app.event(quantities=most), app.event(quantities=most), app.event()]
        results = body(app.post("records", {"events": events}))["results"]
        assert [result["status"] for result in results] == ["created", "invalid", "created"]
        assert results[1]["problem"]["code"] == "amount_too_large"
        alone = app.post("records", app.event(quantities=most))
        assert (alone.status_code, body(alone)["code"]) == (422, "amount_too_large")
        assert audit.run() == []

    @pytest.mark.failure(12)
    def test_usage_beyond_the_balance_is_recorded_whole_and_becomes_debt(self, app: App) -> None:
        done = app.post("records", app.event(quantities={"input_tokens": 1_000_000}))
        assert body(done)["charged"] == "4.500000000"
        assert balance(app.account) == (0, 0, 3_500_000_000)
        assert app.authorize(estimate={"input_tokens": 1}).status_code == 402

    @pytest.mark.parametrize(
        "time",
        [
            "1970-01-01T00:00:00Z",
            "2026-01-01",
            "yesterday",
            1767225600,
            None,
            "2026-13-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            pytest.param(UNIX_TIME, id="now"),
            "2026-01-01T00:00:00",
            "2016-12-31T23:59:60Z",
        ],
    )
    @pytest.mark.failure(28)
    def test_impossible_times_are_422(self, app: App, time: object) -> None:
        assert app.post("records", app.event(time=time)).status_code == 422

    @pytest.mark.failure(28)
    @pytest.mark.parametrize(
        ("ahead", "status"),
        [(timedelta(minutes=4), 200), (timedelta(minutes=6), 422), (-timedelta(days=365), 200), (-timedelta(days=367), 422)],
    )
    def test_an_event_is_from_the_last_year_or_the_next_five_minutes(self, app: App, ahead: timedelta, status: int) -> None:
        answer = app.post("records", app.event(time=(datetime.now(UTC) + ahead).isoformat()))
        assert answer.status_code == status
        assert [error["field"] for error in body(answer).get("errors", [])] == ["time"] * (status == 422)
        assert UsageRecord.objects.count() == (status == 200)

    @pytest.mark.parametrize("events", [[], [{}] * 1_001, "x", None])
    def test_batches_of_none_or_too_many_are_422(self, app: App, events: object) -> None:
        assert app.post("records", {"events": events}).status_code == 422


GARBAGE = [10**24, 10**18, 10**12 + 1, -1, 1.5, 5.0, -0.0, 1e9, "5", "５", True, None, [], {}, "NaN"]


class TestGarbage:
    @pytest.mark.failure(20, 29)
    @pytest.mark.parametrize("value", GARBAGE, ids=repr)
    def test_quantities_are_strict_integers(self, app: App, value: object) -> None:
        refused = app.authorize(estimate={"input_tokens": value})
        assert refused.status_code == 422
        assert body(refused)["errors"][0]["field"] == "estimate.input_tokens"
        held = body(app.authorize())
        assert app.post(f"authorizations/{held['id']}/capture", {"quantities": {"input_tokens": value}}).status_code == 422
        assert app.post("records", app.event(quantities={"input_tokens": value})).status_code == 422
        assert UsageRecord.objects.count() == 0

    @pytest.mark.failure(86)
    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            (b" ", 400),
            (b"{", 400),
            (b"\xff", 400),
            (b'{"account": NaN}', 400),
            (b'{"account": "a", "account": "b"}', 400),
            (b"[" * 20_000 + b"]" * 20_000, 400),
            (b'{"account": ' + b"[" * 40 + b"]" * 40 + b"}", 400),
            (b'{"account": "\\u0000"}', 400),
            (b'{"account": "\\ud800"}', 400),
            (b'{"account": 1e999999999999999999999}', 400),
            (b'{"account": ' + b"9" * 5_000 + b"}", 400),
            (b'"' + b"a" * 5 * 1024 * 1024 + b'"', 413),
            (b"[]", 422),
            (b'"text"', 422),
            (b'{"balance": 5}', 422),
        ],
        ids=lambda value: repr(value)[:30],
    )
    def test_bodies_that_are_no_command_are_refused(self, app: App, raw: bytes, status: int) -> None:
        for path in ("authorize", "records", f"authorizations/{body(app.authorize())['id']}/capture"):
            refused = app.post(path, None, key="k", raw=raw)
            assert (refused.status_code, refused.headers["Content-Type"]) == (status, "application/problem+json"), (path, refused.content)
        assert LedgerEntry.objects.filter(account=app.account).count() == 1

    @pytest.mark.parametrize("key", ["", " ", "x" * 256, "schlüssel"])
    def test_unusable_idempotency_keys_are_422(self, app: App, key: str) -> None:
        ask = {"account": app.account.external_id, "model": app.model, "estimate": {"input_tokens": 1}}
        refused = app.post("authorize", ask, key=key)
        assert refused.status_code == 422 or (key == " " and refused.status_code == 200)

    @pytest.mark.failure(86)
    def test_body_without_a_length_is_411(self, app: App) -> None:
        headers = {"Authorization": f"Bearer {app.token}", "Transfer-Encoding": "chunked"}
        refused = Client().post("/api/v1/usage/records", b"{}", content_type="application/json", headers=headers)
        assert (refused.status_code, json.loads(refused.content)["code"]) == (411, "length_required")

    @pytest.mark.parametrize("path", ["/api/v1/usage/authorize/", "/api/v1/nothing", "/api/"])
    def test_any_method_on_an_unknown_path_is_a_problem_404(self, path: str) -> None:
        for method in ("get", "post", "put", "delete"):
            missing = getattr(Client(enforce_csrf_checks=True), method)(path, headers={"Authorization": "Bearer x"})
            assert (missing.status_code, missing.headers["Content-Type"]) == (404, "application/problem+json"), method

    def test_other_methods_are_405_and_other_media_types_415(self, app: App) -> None:
        headers = {"Authorization": f"Bearer {app.token}"}
        assert Client().get("/api/v1/usage/authorize", headers=headers).status_code == 405
        form = Client().post("/api/v1/usage/authorize", {"account": "a"}, headers=headers | {"Idempotency-Key": "k"})
        assert form.status_code == 415

    @pytest.mark.parametrize("model", ["sonnet", ":", "a:", ":b", "a:b c", "a" * 65 + ":b", "acme:" + "m" * 129, "acme:m\u200b"])
    def test_model_names_are_provider_and_model(self, app: App, model: str) -> None:
        assert app.authorize(model=model).status_code == 422

    def test_capture_needs_quantities_or_the_providers_report_but_not_both(self, app: App) -> None:
        path = f"authorizations/{body(app.authorize())['id']}/capture"
        assert app.post(path, {}).status_code == 422
        assert app.post(path, {"quantities": {}, "provider_usage": {}}).status_code == 422
        assert app.post(path, {"provider_usage": {"input_tokens": "many"}}).status_code == 422
        assert balance(app.account)[1] == 450_000_000
