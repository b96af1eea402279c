"""The OpenAPI document and the API say the same, and nothing that is sent makes the API fail."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from django.core.management import call_command
from django.db import OperationalError
from django.http import HttpResponse
from django.test import Client
from django.urls import URLPattern, get_resolver
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from accounts import api_keys
from accounts.models import Account, ApiKey
from billing import balances
from config import openapi
from config.wsgi import application
from metering.models import OpenAuthorization, UsageRecord
from tests.factories import make_account, make_key, make_model, make_product

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
#: Served below /api/ without being part of the API that it describes.
UNDESCRIBED = {
    "api/schema",
    "api/docs",
    "api/<path:path>",
    # Schedulers alone call these, with a secret of their own
    "api/v1/admin/jobs",
    "api/v1/admin/jobs/<str:name>",
    "api/v1/playground/credits/cron/reset",
    "api/v1/playground/credits/cron/expire",
    # Stripe alone calls these
    "api/v1/billing/webhook",
    "api/auth/stripe/webhook",
    "api/v1/playground/webhooks/stripe/credits",
}


@pytest.fixture
def document(db: None) -> dict[str, Any]:
    return json.loads(Client().get("/api/schema").content)  # type: ignore[no-any-return]


def problem(response: Any) -> dict[str, Any]:
    assert response.headers["Content-Type"] == "application/problem+json", response.content
    body: dict[str, Any] = json.loads(response.content)
    assert body["status"] == response.status_code
    assert body["code"]
    assert body["detail"]
    return body


class TestDocument:
    def test_it_is_valid_and_was_made_without_a_warning(self, db: None) -> None:
        call_command("spectacular", "--validate", "--fail-on-warn", stdout=StringIO())

    def test_every_route_below_api_is_in_it_and_it_has_no_other(self, document: dict[str, Any]) -> None:
        routes = {str(each.pattern) for each in get_resolver().url_patterns if isinstance(each, URLPattern)}
        served = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route) for route in routes if route.startswith("api/") and route not in UNDESCRIBED}
        assert {path.removeprefix("/") for path in document["paths"]} == served
        assert len(served) > 15

    def test_every_operation_has_a_name_a_description_a_key_and_its_problems(self, document: dict[str, Any]) -> None:
        operations = {(path, method): each for path, methods in document["paths"].items() for method, each in methods.items()}
        names = [operation["operationId"] for operation in operations.values()]
        assert len(names) == len(set(names))
        for where, operation in operations.items():
            assert operation["description"], where
            assert "application/problem+json" in operation["responses"]["422"]["content"], where
            if where != ("/api/health/pricing", "get"):
                assert {"apiKey": []} in operation["security"], where
                assert {"401", "403", "503"} <= set(operation["responses"]), where

    def test_every_example_is_an_instance_of_its_schema(self, document: dict[str, Any]) -> None:
        checked = 0
        for methods in document["paths"].values():
            for operation in methods.values():
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    for example in content["examples"].values():
                        conforms(document, content["schema"], example["value"])
                        checked += 1
        assert checked >= len(openapi.OPERATIONS)

    def test_the_page_loads_nothing_from_elsewhere(self, db: None) -> None:
        for address in ("/api/docs", "/api/docs?script="):
            page = Client().get(address)
            assert page.status_code == 200
            assert re.findall(r"https?://[^\"'\s<]+", page.content.decode()) == []

    def test_the_document_takes_no_parameters_into_its_headers(self, db: None) -> None:
        assert Client().get("/api/schema?version=%0d%0aX-Evil:1").status_code == 200


class TestPage:
    """``docs/api.md`` says what there is."""

    def test_it_has_every_endpoint_with_its_methods(self, document: dict[str, Any]) -> None:
        told = set(re.findall(r"^\| (GET|POST|DELETE) \| `([^`]+)`", PAGE.read_text(), re.MULTILINE))
        assert told == {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}

    def test_it_has_every_code_that_a_problem_can_have(self) -> None:
        """Every code is written beside its status, so both are found in the source."""
        found: set[tuple[str, str]] = set()
        for app in ("accounts", "analytics", "billing", "config", "metering"):
            for source in (ROOT / app).glob("*.py"):
                found |= set(re.findall(r'(?:Problem\(|[(:])\s*(4\d\d|5\d\d)[,:]\s*"([a-z_]+)"', source.read_text()))
        found |= {("409", code) for code in ("hold_expired", "hold_already_resolved")}
        rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
        told = {(status, code) for status, codes in rows for code in re.findall(r"`([a-z_]+)`", codes)}
        assert len(found) > 15
        assert found - {("400", "invalid_request")} - told == set()


def conforms(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator(schema | {"components": document["components"]}).validate(value)


class App:
    """A client app with every scope, that holds each answer against the document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.account = make_account(credit=10)
        self.model = make_model()
        self.key = make_key(self.account.product)

    def call(self, method: str, path: str, body: Any = None, *, template: str = "", **parameters: str) -> Any:
        headers = {"Authorization": f"Bearer {self.key}", "Idempotency-Key": str(uuid4())}
        data = "" if body is None else json.dumps(body)
        address = path + ("?" + "&".join(f"{name}={value}" for name, value in parameters.items()) if parameters else "")
        response = Client().generic(method, address, data, content_type="application/json", headers=headers)
        described = self.document["paths"][template or path][method.lower()]["responses"]
        media_type = response.headers["Content-Type"].partition(";")[0]
        conforms(self.document, described[str(response.status_code)]["content"][media_type]["schema"], json.loads(response.content))
        return json.loads(response.content)


@pytest.mark.django_db
class TestAnswers:
    """Every endpoint of the document, called for real."""

    def test_the_hot_endpoints_answer_as_described(self, document: dict[str, Any]) -> None:
        app = App(document)
        hot, ending = "/api/v1/usage/authorizations", "/api/v1/usage/authorizations/{authorization}"
        ask = {"account": app.account.external_id, "model": app.model, "estimate": {"input_tokens": 1000, "max_output_tokens": 10}}
        first = app.call("POST", "/api/v1/usage/authorize", ask)["id"]
        app.call("POST", f"{hot}/{first}/extend", {"seconds": 60}, template=f"{ending}/extend")
        captured = app.call("POST", f"{hot}/{first}/capture", {"quantities": {"input_tokens": 1000}}, template=f"{ending}/capture")
        assert captured["charged"] == "0.004500000"
        app.call("POST", f"{hot}/{first}/release", {}, template=f"{ending}/release")  # 409
        second = app.call("POST", "/api/v1/usage/authorize", ask)["id"]
        assert app.call("POST", f"{hot}/{second}/release", template=f"{ending}/release")["status"] == "released"
        too_much = ask | {"estimate": {"input_tokens": 10**9}}
        assert app.call("POST", "/api/v1/usage/authorize", too_much)["code"] == "insufficient_credits"
        assert app.call("POST", "/api/v1/usage/authorize", ask | {"model": "acme:unknown"})["code"] == "unknown_model"
        assert app.call("POST", "/api/v1/usage/authorize", ask | {"account": "nobody"})["code"] == "not_found"

    def test_recording_answers_as_described(self, document: dict[str, Any]) -> None:
        app = App(document)
        now = datetime.now(UTC).isoformat()
        event = {"id": "1", "account": app.account.external_id, "time": now, "model": app.model, "quantities": {"input_tokens": 1}}
        data = {name: event[name] for name in ("account", "model", "quantities")}
        cloud = {"specversion": "1.0", "id": "1", "source": "/app", "type": "usage", "time": now, "data": data}
        assert app.call("POST", "/api/v1/usage/records", event)["status"] == "created"
        assert app.call("POST", "/api/v1/usage/records", event | {"model": "acme:other"})["code"] == "event_id_reused"
        batch = {"events": [event, cloud, event | {"id": "2", "model": "acme:unpriced"}, event | {"id": "1", "user": "eve"}, {"id": 5}]}
        answer = app.call("POST", "/api/v1/usage/records", batch)
        assert [result["status"] for result in answer["results"]] == ["duplicate", "created", "unpriced", "conflict", "invalid"]

    def test_the_reads_answer_as_described(self, document: dict[str, Any]) -> None:
        app = App(document)
        event = {
            "id": "1", "account": app.account.external_id, "time": datetime.now(UTC).isoformat(), "model": app.model,
            "quantities": {"input_tokens": 1},
        }  # fmt: skip
        id_ = app.call("POST", "/api/v1/usage/records", event)["id"]
        called = set()
        for path, methods in document["paths"].items():
            if "get" in methods:
                named = any(parameter["name"] == "account" for parameter in methods["get"].get("parameters", []))
                parameters = {"account": app.account.public_id} if named else {}
                app.call("GET", path.replace("{record}", id_), template=path, **parameters)
                called.add(path)
        assert len(called) >= 12


@pytest.mark.django_db
class TestProblemsEverywhere:
    @pytest.mark.parametrize(
        "path", ["/api/", "/api/v1", "/api/v1/", "/api/v2/usage", "/api/v1/usage/records/", "/api/balance/x", "/api/%00"]
    )
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
    def test_an_unknown_path_is_a_404_problem(self, path: str, method: str) -> None:
        assert problem(Client().generic(method, path))["code"] == "not_found"

    def test_every_endpoint_answers_405_to_other_methods_and_says_which_it_has(self, document: dict[str, Any]) -> None:
        account = make_account()
        headers = {"Authorization": f"Bearer {make_key(account.product)}"}
        for path, methods in document["paths"].items():
            for method in ("PATCH", "PUT", "OPTIONS", "TRACE", *({"GET", "POST", "DELETE"} - {name.upper() for name in methods})):
                response = Client().generic(method, path.replace("{", "").replace("}", ""), headers=headers)
                assert problem(response)["code"] == "method_not_allowed", (method, path)
                allowed = {name.strip() for name in response.headers["Allow"].split(",")}
                assert {name.upper() for name in methods} <= allowed, (method, path)
                assert method not in allowed

    def test_a_bug_is_a_500_problem_without_internals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        account = make_account()

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("the password is hunter2")

        monkeypatch.setattr(balances, "of_account", broken)
        headers = {"Authorization": f"Bearer {make_key(account.product)}"}
        response = Client(raise_request_exception=False).get("/api/v1/billing/balance", {"account": account.public_id}, headers=headers)
        assert problem(response)["code"] == "internal_error"
        assert b"hunter2" not in response.content

    def test_a_database_that_is_away_is_a_503_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(**_: object) -> None:
            raise OperationalError("connection refused")

        monkeypatch.setattr(api_keys, "authenticate", away)
        response = Client().get("/api/v1/billing/plans", headers={"Authorization": "Bearer x"})
        assert (problem(response)["code"], response.headers["Retry-After"]) == ("dependency_unavailable", "1")

    def test_a_host_that_is_not_ours_is_a_400_problem(self) -> None:
        assert problem(Client().get("/api/v1/billing/plans", headers={"Host": "evil.example"}))["status"] == 400

    def test_an_accept_header_without_json_is_a_406_problem(self) -> None:
        headers = {"Authorization": f"Bearer {make_key(make_product())}", "Accept": "text/html"}
        assert problem(Client().get("/api/v1/billing/plans", headers=headers))["code"] == "not_acceptable"


def posts(account: Account, authorization: str) -> list[str]:
    ending = f"/api/v1/usage/authorizations/{authorization}"
    return ["/api/v1/usage/authorize", "/api/v1/usage/records", f"{ending}/capture", f"{ending}/release", f"{ending}/extend"]


@pytest.mark.django_db
class TestGarbageBodies:
    """What no client should send, to every endpoint that has a body: refused as a problem, and nothing has happened."""

    NOT_JSON = [
        b" ", b"{", b"nul", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1, "a": 2}', b"'", b"{'a': 1}",
        b"[" * 20_000 + b"]" * 20_000, b'{"a":' * 20_000 + b"1" + b"}" * 20_000, b'{"a": ' + b"9" * 5000 + b"}",
        b'{"account": "\\ud800"}', b'{"account": "a\\u0000b"}', b'{"account": "a\x00b"}',
    ]  # fmt: skip
    WRONG: list[Any] = [
        None, [], "text", 5, True, {"unknown": 1}, {"account": 5}, {"account": None}, {"account": ["a"]}, {"account": "x" * 200},
        {"model": ""}, {"model": "no-provider"}, {"model": "a:b\n"}, {"feature": "Not A Slug"}, {"service_level": "gold"}, {"time": 5},
        {"time": "now"}, {"seconds": 0}, {"seconds": 10**24}, {"seconds": True}, {"seconds": "5"}, {"estimate": {}}, {"events": []},
        {"quantities": {"input_tokens": None}}, {"quantities": {"apples": 1}}, {"quantities": []}, {"events": [None] * 1001},
        {"specversion": "0.3"},
    ]  # fmt: skip
    NUMBERS = [10**24, 10**12 + 1, -1, 1.5, 1.0, "5", "５", True, [1], {"value": 1}]

    @pytest.fixture
    def app(self, document: dict[str, Any]) -> App:
        return App(document)

    def opened(self, app: App) -> str:
        ask = {"account": app.account.external_id, "model": app.model, "estimate": {"input_tokens": 1000, "max_output_tokens": 0}}
        return str(app.call("POST", "/api/v1/usage/authorize", ask)["id"])

    def send(self, app: App, path: str, data: bytes, *, key: str | None = None, **headers: str) -> HttpResponse:
        every = {"Authorization": f"Bearer {app.key if key is None else key}", "Idempotency-Key": str(uuid4())} | headers
        return Client().generic("POST", path, data, content_type="application/json", headers=every)  # type: ignore[return-value]

    def state(self, app: App) -> tuple[Any, ...]:
        wallet = app.account.wallets.get()
        held = OpenAuthorization.objects.values_list("state", "held", "expires_at")
        return wallet.balance, wallet.held, wallet.debt, wallet.seq, list(held), UsageRecord.objects.count()

    def refused(self, app: App, bodies: list[bytes], statuses: set[int]) -> None:
        before = (authorization := self.opened(app)) and self.state(app)
        for path in posts(app.account, authorization):
            for data in bodies:
                if data or not path.endswith("release"):  # a release needs no body
                    response = self.send(app, path, data)
                    assert problem(response)["status"] in statuses, (path, data[:100], response.content)
        assert self.state(app) == before

    def test_what_is_no_strict_json_is_400(self, app: App) -> None:
        self.refused(app, self.NOT_JSON, {400})

    def test_json_of_another_shape_is_422(self, app: App) -> None:
        self.refused(app, [json.dumps(value).encode() for value in self.WRONG], {422})

    def test_five_megabytes_are_413(self, app: App) -> None:
        self.refused(app, [b'{"account": "' + b"x" * 5_000_000 + b'"}'], {413})

    def test_a_quantity_is_a_whole_number_within_reason(self, app: App) -> None:
        before = (authorization := self.opened(app)) and self.state(app)
        ask: dict[str, Any] = {"account": app.account.external_id, "model": app.model}
        event = ask | {"id": "1", "time": datetime.now(UTC).isoformat()}
        for number in self.NUMBERS:
            quantities = {"input_tokens": number}
            bodies = [ask | {"estimate": quantities}, event | {"quantities": quantities}, {"quantities": quantities}]
            for path, body in zip(posts(app.account, authorization), bodies, strict=False):
                response = self.send(app, path, json.dumps(body).encode())
                assert problem(response)["status"] == 422, (path, number, response.content)
        assert self.state(app) == before

    def test_a_wrong_a_revoked_and_a_weak_key_do_nothing(self, app: App) -> None:
        before = (authorization := self.opened(app)) and self.state(app)
        revoked = make_key(app.account.product)
        api_keys.revoke(key=ApiKey.objects.order_by("-id")[0], now=datetime.now(UTC))
        reader = make_key(app.account.product, scopes=["usage:read", "billing:read", "billing:write", "admin:read"])
        for path in posts(app.account, authorization):
            for key, status in {"": 401, "x" * 5000: 401, "tg_live_" + "x" * 32: 401, revoked: 401, reader: 403}.items():
                assert problem(self.send(app, path, b"{}", key=key))["status"] == status
            for scheme in ("Basic " + app.key, "Bearer", app.key, "Bearer \ufffd"):
                assert problem(self.send(app, path, b"{}", Authorization=scheme))["status"] == 401
        assert self.state(app) == before

    def test_another_tenants_account_and_authorization_are_as_unknown_as_none(self, app: App, document: dict[str, Any]) -> None:
        stranger = App(document)
        theirs, mine = self.opened(stranger), make_key(app.account.product, account=make_account(app.account.product))
        own = self.opened(app)
        before = self.state(app), self.state(stranger)
        bodies = {"capture": b'{"quantities": {"input_tokens": 1}}', "release": b"{}", "extend": b'{"seconds": 60}'}
        for verb, data in bodies.items():
            answers = {
                self.send(app, f"/api/v1/usage/authorizations/{id_}/{verb}", data, key=key).content
                for id_, key in [
                    ("auth_" + "0" * 52, app.key), ("auth_" + "0_" * 26, app.key), ("%00" * 57, app.key), ("nonsense", app.key),
                    ("５" * 57, app.key), ("auth_" + "%00" * 20 + "0" * 32, app.key), (theirs, app.key), (own, mine),
                ]
            }  # fmt: skip
            assert [json.loads(answer)["code"] for answer in answers] == ["not_found"]
        ask = {"model": app.model, "estimate": {"input_tokens": 1}}
        for name in (stranger.account.public_id, stranger.account.external_id, "acct_" + "0" * 20):
            assert problem(self.send(app, "/api/v1/usage/authorize", json.dumps(ask | {"account": name}).encode()))["status"] == 404
        assert (self.state(app), self.state(stranger)) == before

    @pytest.mark.parametrize("key", ["", "x" * 256, "\x07", "schlüssel"])
    def test_an_idempotency_key_is_short_and_printable(self, app: App, key: str) -> None:
        body = problem(self.send(app, "/api/v1/usage/authorize", b"{}", **{"Idempotency-Key": key}))
        assert [error["field"] for error in body["errors"]] == ["Idempotency-Key"]


class TestMadeUpRequests:
    """Requests that schemathesis makes up from the document, right ones and wrong ones, sent to the whole application."""

    EXAMPLES = 12
    CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")

    def test_none_fails_the_server_or_is_answered_otherwise_than_described(self, committed: None) -> None:
        make_model()
        account = make_account(credit=10)
        headers = {"Authorization": f"Bearer {make_key(account.product, account=account)}"}
        schema = schemathesis.openapi.from_wsgi("/api/schema", application)
        checks = [getattr(schemathesis.checks, name) for name in self.CHECKS]
        tried: dict[str, int] = {}
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        for operation in operations:
            for mode in GenerationMode:

                @settings(
                    max_examples=self.EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(operation.as_strategy(generation_mode=mode))
                def request(case: Case[Any]) -> None:
                    case.validate_response(case.call(headers=headers), checks=checks, headers=headers)
                    tried[case.operation.label] = tried.get(case.operation.label, 0) + 1

                with suppress(Unsatisfiable):  # nothing about a request without parameters can be wrong
                    request()
        assert set(tried) == {operation.label for operation in operations} != set()
