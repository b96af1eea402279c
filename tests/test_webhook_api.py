"""Client apps register their endpoints over the API, with a product's key, and only such addresses as may be called."""

from __future__ import annotations

import json
import socket
from typing import Any, get_args

import pytest
from django.test import Client
from standardwebhooks import Webhook

from accounts import webhook_api, webhook_endpoints
from accounts.models import WebhookEndpoint, WebhookEvent
from accounts.tests.receiver import Names
from pricing.models import Product
from tests.factories import make_account, make_key, make_product

PATH = "/api/v1/webhooks/endpoints"
URL = "https://hooks.test/tollgate"
GOOD: dict[str, Any] = {"url": URL, "kinds": ["balance.low", "account.throttled"]}

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    found = Names(hooks_test=[["93.184.215.14"]])
    real = socket.getaddrinfo
    local = {"localhost", "127.0.0.1", None}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: (real if host in local else found)(host, *args, **kwargs))
    return found


@pytest.fixture
def product() -> Product:
    return make_product()


def call(method: str, path: str, key: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    response = Client().generic(method, path, data, content_type="application/json", headers={"Authorization": f"Bearer {key}"})
    return response.status_code, json.loads(response.content)


class TestLife:
    def test_an_endpoint_is_registered_listed_without_its_secret_tried_and_deleted(self, product: Product) -> None:
        key = make_key(product)
        status, made = call("POST", PATH, key, GOOD)
        assert status == 200
        Webhook(made["secret"])
        assert made["secret"].startswith("whsec_")
        status, listed = call("GET", PATH, key)
        assert (status, [each["id"] for each in listed["items"]]) == (200, [made["id"]])
        assert "secret" not in listed["items"][0]
        assert listed["items"][0]["kinds"] == ["account.throttled", "balance.low"]
        status, event = call("POST", f"{PATH}/{made['id']}/test", key)
        assert (status, event["type"]) == (200, "webhook.test")
        assert WebhookEvent.objects.get(public_id=event["id"]).deliveries.get().endpoint.public_id == made["id"]
        status, _ = call("DELETE", f"{PATH}/{made['id']}", key)
        assert status == 200
        assert call("GET", PATH, key)[1]["items"] == []
        assert call("DELETE", f"{PATH}/{made['id']}", key)[0] == 404

    def test_a_rotated_secret_is_another_one(self, product: Product) -> None:
        key = make_key(product)
        made = call("POST", PATH, key, GOOD)[1]
        status, rotated = call("POST", f"{PATH}/{made['id']}/rotate", key, {})
        assert (status, rotated["id"]) == (200, made["id"])
        assert rotated["secret"] != made["secret"]

    def test_one_address_has_one_endpoint_and_a_product_twenty(self, product: Product) -> None:
        key = make_key(product)
        call("POST", PATH, key, GOOD)
        status, problem = call("POST", PATH, key, GOOD)
        assert (status, problem["code"]) == (409, "endpoint_exists")
        for number in range(1, webhook_endpoints.MAX_ENDPOINTS):
            assert call("POST", PATH, key, GOOD | {"url": f"{URL}/{number}"})[0] == 200
        status, problem = call("POST", PATH, key, GOOD | {"url": f"{URL}/x"})
        assert (status, problem["errors"][0]["field"]) == (422, "url")

    def test_the_kinds_of_the_api_are_those_there_are(self) -> None:
        assert get_args(webhook_api.Kind) == webhook_endpoints.KINDS


class TestWho:
    def test_an_account_key_has_no_webhooks(self, product: Product) -> None:
        endpoint = call("POST", PATH, make_key(product), GOOD)[1]["id"]
        account = make_account(product)
        key = make_key(product, account=account, scopes=["billing:read", "billing:write"])
        for method, path, body in (
            ("POST", PATH, GOOD), ("GET", PATH, None), ("DELETE", f"{PATH}/{endpoint}", None), ("POST", f"{PATH}/{endpoint}/test", None),
            ("POST", f"{PATH}/{endpoint}/rotate", None),
        ):  # fmt: skip
            status, problem = call(method, path, key, body)
            assert (status, problem["code"]) == (403, "refused"), (method, path)

    def test_a_key_that_only_reads_changes_nothing(self, product: Product) -> None:
        endpoint = call("POST", PATH, make_key(product), GOOD)[1]["id"]
        key = make_key(product, scopes=["billing:read"])
        assert call("GET", PATH, key)[0] == 200
        for method, path in (("POST", PATH), ("DELETE", f"{PATH}/{endpoint}"), ("POST", f"{PATH}/{endpoint}/rotate")):
            assert call(method, path, key, GOOD if path == PATH else None)[1]["code"] == "missing_scope"

    def test_another_products_endpoint_is_not_there(self, product: Product) -> None:
        endpoint = call("POST", PATH, make_key(product), GOOD)[1]["id"]
        key = make_key(make_product())
        assert call("GET", PATH, key)[1]["items"] == []
        for method, path in (("DELETE", f"/{endpoint}"), ("POST", f"/{endpoint}/rotate"), ("POST", f"/{endpoint}/test")):
            assert call(method, PATH + path, key)[1]["code"] == "not_found"
        assert WebhookEndpoint.objects.get(public_id=endpoint).deleted_at is None


class TestGarbage:
    @pytest.mark.failure(89)
    @pytest.mark.parametrize(
        "url",
        ["http://hooks.test/", "https://user:pw@hooks.test/", "https://hooks.test:22/", "https://127.0.0.1/", "https://[::ffff:10.0.0.1]/",
         "https://169.254.169.254/latest", "https://localhost/", "https://nowhere.test/", "ftp://hooks.test", "\\", "https://hooks.test/\n"],
    )  # fmt: skip
    def test_an_address_that_may_not_be_called_is_refused_beside_its_field(self, product: Product, url: str) -> None:
        status, problem = call("POST", PATH, make_key(product), GOOD | {"url": url})
        assert (status, problem["errors"][0]["field"]) == (422, "url")
        assert not WebhookEndpoint.objects.filter(product=product).exists()

    @pytest.mark.parametrize(
        "wrong",
        [{"url": None}, {"url": 5}, {"url": ""}, {"url": "x" * 2001}, {"kinds": []}, {"kinds": None}, {"kinds": "balance.low"},
         {"kinds": ["balance.lower"]}, {"kinds": ["webhook.test"]}, {"kinds": ["*"]}, {"kinds": [5]}, {"kinds": ["balance.low"] * 21},
         {"description": "x" * 121}, {"description": "a\nb"}, {"description": None}, {"secret": "whsec_mine"}, {"disabled_at": None},
         {"product": 1}],
    )  # fmt: skip
    def test_what_is_no_endpoint_is_422(self, product: Product, wrong: dict[str, Any]) -> None:
        status, problem = call("POST", PATH, make_key(product), GOOD | wrong)
        assert (status, problem["code"]) == (422, "invalid_request")
        assert not WebhookEndpoint.objects.filter(product=product).exists()

    @pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff", b"5", b'{"url": "a", "url": "b"}'])
    def test_bodies_that_are_no_command_are_refused(self, product: Product, body: bytes) -> None:
        assert call("POST", PATH, make_key(product), body)[0] in (400, 422)

    @pytest.mark.parametrize("id_", ["x", "we_", "we_" + "0" * 20, "%00", "é", "0" * 3000])
    def test_an_id_that_is_none_is_404(self, product: Product, id_: str) -> None:
        key = make_key(product)
        assert call("DELETE", f"{PATH}/{id_}", key)[0] == 404
        assert call("POST", f"{PATH}/{id_}/rotate", key)[0] == 404

    def test_fields_and_parameters_that_do_not_belong_are_422(self, product: Product) -> None:
        key = make_key(product)
        endpoint = call("POST", PATH, key, GOOD)[1]["id"]
        assert call("POST", f"{PATH}/{endpoint}/rotate", key, {"secret": "whsec_mine"})[0] == 422
        assert call("POST", f"{PATH}/{endpoint}/test", key, {"type": "balance.low"})[0] == 422
        assert call("GET", f"{PATH}?x=1", key)[0] == 422
        assert call("DELETE", f"{PATH}/{endpoint}?x=1", key)[0] == 422
