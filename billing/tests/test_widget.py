"""The balance widget: who gets an address for it, who may frame it, and that no other address shows anything."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core import signing
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import Account, ApiKey
from billing import balances, widget
from billing.models import Wallet
from metering import usage
from pricing.models import Product
from tests.factories import give, make_account, make_key, make_model, make_product

pytestmark = pytest.mark.django_db
ORIGIN = "https://app.example.com"


@pytest.fixture
def account() -> Account:
    return make_account(make_product(allowed_origins=[ORIGIN, "http://localhost:3000"]), credit=10)


def mint(key: str, body: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"}
    return Client(raise_request_exception=False).post(
        "/api/v1/billing/widget", json.dumps(body), content_type="application/json", headers=headers
    )


def address(account: Account, *, key: str | None = None) -> str:
    """The widget's address without its host."""
    response = mint(key or make_key(account.product), {"account": account.external_id})
    assert response.status_code == 200, response.content
    parts = urlsplit(response.json()["url"])
    return f"{parts.path}?{parts.query}"


class TestMint:
    def test_a_product_key_names_the_account_and_an_account_key_needs_no_name(self, account: Account) -> None:
        for key, body in (
            (make_key(account.product), {"account": account.public_id}),
            (make_key(account.product, account=account), {}),
        ):
            answer = mint(key, body).json()
            assert answer["account"] == account.public_id
            assert answer["url"].startswith(f"http://testserver/a/{account.public_id}/widget/?token=")
            assert datetime.fromisoformat(answer["expires_at"]) > datetime.now(UTC)

    def test_it_needs_the_scope_that_the_balance_needs(self, account: Account) -> None:
        response = mint(make_key(account.product, scopes=["usage:read"]), {"account": account.public_id})
        assert (response.status_code, response.json()["scope"]) == (403, "billing:read")

    def test_another_tenants_account_is_as_unknown_as_one_that_never_was(self, account: Account) -> None:
        key = make_key(make_product())
        theirs, missing = mint(key, {"account": account.public_id}), mint(key, {"account": f"acct_{'0' * 20}"})
        assert theirs.status_code == missing.status_code == 404
        assert theirs.content == missing.content

    @pytest.mark.parametrize(
        "body", [[], "x", {"account": 5}, {"account": ""}, {"account": None, "lifetime": 9}, {"token": "x"}, {"account": "a" * 201}]
    )
    def test_garbage_is_refused(self, account: Account, body: Any) -> None:
        assert mint(make_key(account.product), body).status_code == 422


class TestDocument:
    def test_it_says_what_is_left_and_what_is_reserved(self, account: Account) -> None:
        usage.authorize(
            account=account, ask=usage.Ask(model=make_model(), quantities={"input_tokens": 100_000}), key="k", now=datetime.now(UTC)
        )
        page = Client().get(address(account)).content.decode()
        assert "$9.55" in page
        assert "is reserved for work in progress" in page

    def test_debt_is_said(self, account: Account) -> None:
        event = usage.Event("k", account, datetime.now(UTC), make_model(), {"input_tokens": 3_000_000})
        list(usage.record(events=[event], now=datetime.now(UTC)))
        assert "You owe" in Client().get(address(account)).content.decode()

    def test_an_account_without_a_wallet_has_nothing(self) -> None:
        assert "$0.00" in Client().get(address(make_account())).content.decode()

    def test_it_runs_no_script_asks_for_its_style_alone_and_sets_no_cookie(self, account: Account) -> None:
        client = Client()
        response = client.get(address(account))
        page = response.content.decode()
        assert "<script" not in page
        assert "<style" not in page
        assert "style=" not in page
        assert page.count("<link") == 1
        assert client.cookies == {}
        assert "Cookie" not in response.headers.get("Vary", "")
        assert len(page) < 4_000

    def test_only_the_products_origins_may_frame_it(self, account: Account) -> None:
        response = Client().get(address(account))
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self';")
        assert policy.endswith(f"frame-ancestors {ORIGIN} http://localhost:3000")
        assert "X-Frame-Options" not in response.headers
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert "no-store" in response.headers["Cache-Control"]

    @pytest.mark.parametrize(
        "origins",
        [[], ["https://a.example; script-src *"], ["https://a.example *"], ["*"], ["https:"], ["https://a.example\n"], ["'self'"]],
    )
    def test_without_an_origin_or_with_one_that_is_none_nobody_may(self, account: Account, origins: list[str]) -> None:
        Product.objects.filter(pk=account.product_id).update(allowed_origins=origins)
        policy = Client().get(address(account)).headers["Content-Security-Policy"]
        assert policy.endswith("frame-ancestors 'none'")
        assert "script-src" not in policy

    @pytest.mark.parametrize("path", ["", "usage/", "credits/"])
    def test_no_other_page_may_be_framed(self, account: Account, path: str) -> None:
        response = Client().get(f"/a/{account.public_id}/{path}")
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Frame-Options"] == "DENY"

    def test_more_history_asks_no_more_queries(self, account: Account) -> None:
        where = address(account)

        def count() -> int:
            with CaptureQueriesContext(connection) as queries:
                Client().get(where)
            return len(queries)

        few = count()
        for _ in range(5):
            give(account, 1_000)
        assert count() == few <= 12


class TestToken:
    """Whatever is wrong with it, the answer is one and the same."""

    def refused(self, path: str) -> bytes:
        response = Client(raise_request_exception=False).get(path)
        assert response.status_code == 404, response.status_code
        assert b"9.99" not in response.content
        assert b"10.00" not in response.content
        return response.content

    def test_every_wrong_token_has_the_same_answer(self, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        good = address(account)
        path, _, token = good.partition("?token=")
        other = make_account(account.product, credit=10)
        key = ApiKey.objects.filter(product=account.product).latest("pk")
        nobody = f"acct_{'0' * 20}"
        wrong = {
            "none": path,
            "empty": f"{path}?token=",
            "altered": f"{path}?token={'x' if token[0] != 'x' else 'y'}{token[1:]}",
            "cut short": good[:-1],
            "longer": good + "A",
            "of another account": f"/a/{other.public_id}/widget/?token={token}",
            "signed for something else": f"{path}?token={signing.dumps([account.public_id, key.pk], salt='other')}",
            "of a key that never was": f"{path}?token={signing.dumps([account.public_id, 10**9], salt=widget._SALT)}",
            "of an account that never was": f"/a/{nobody}/widget/?token={signing.dumps([nobody, key.pk], salt=widget._SALT)}",
            "bytes": f"{path}?token=%00%ff",
            "long": f"{path}?token={'a' * 5_000}",
            "words": f"{path}?token=☃:☃:☃",
        }
        answers = {name: self.refused(where) for name, where in wrong.items()}
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + widget.LIFETIME.total_seconds() + 1)
        answers["expired"] = self.refused(good)
        assert len(set(answers.values())) == 1

    def test_it_ends_with_the_key_that_asked_for_it(self, account: Account) -> None:
        good = address(account)
        assert Client().get(good).status_code == 200
        ApiKey.objects.filter(product=account.product).update(revoked_at=datetime.now(UTC))
        self.refused(good)

    def test_it_ends_with_the_account(self, account: Account) -> None:
        good = address(account)
        Account.objects.filter(pk=account.pk).update(closed_at=datetime.now(UTC))
        self.refused(good)

    def test_it_opens_no_other_page_and_no_endpoint(self, account: Account) -> None:
        token = parse_qs(urlsplit(address(account)).query)["token"][0]
        assert Client().get(f"/a/{account.public_id}/?token={token}").status_code == 302
        assert Client().get("/api/v1/billing/balance", headers={"Authorization": f"Bearer {token}"}).status_code == 401
        assert Client().get("/api/v1/billing/balance", {"token": token}).status_code == 401

    @pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
    def test_it_reads_and_writes_nothing(self, account: Account, method: str) -> None:
        assert getattr(Client(), method)(address(account)).status_code == 405

    def test_the_second_wall_stands_around_it(self, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        """Even a query that forgot the account reads that account's rows alone."""
        make_account(account.product, credit=77)
        seen: list[set[int]] = []

        def all_wallets(*_: object, **__: object) -> list[object]:
            seen.append(set(Wallet.objects.values_list("account_id", flat=True)))
            return []

        monkeypatch.setattr(balances, "of_account", all_wallets)
        Client().get(address(account))
        assert seen == [{account.pk}]
