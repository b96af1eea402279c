"""Buying over the API, on the double: the endpoints, the source documents' aliases, and garbage."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from django.test import Client as Http

from accounts.models import Account
from billing.models import Checkout
from billing.tests.selling import ORIGIN, Shop
from billing.tests.test_stripe_inbox import balance
from tests.factories import NANOS, make_key, make_model, make_product

CHECKOUT, CHANGE = "/api/v1/billing/checkout", "/api/v1/billing/subscription/change"
BACK: dict[str, Any] = {"success_url": f"{ORIGIN}/done", "cancel_url": f"{ORIGIN}/back"}


def post(
    payer: Account, path: str, /, status: int = 200, scopes: list[str] | None = None, headers: Any = None, **body: Any
) -> dict[str, Any]:
    key = make_key(payer.product, account=payer, scopes=scopes)
    sent = {"Authorization": f"Bearer {key}"} | (headers or {})
    answer = Http().post(path, json.dumps(body), content_type="application/json", headers=sent)
    assert answer.status_code == status, answer.content
    answered: dict[str, Any] = json.loads(answer.content)
    return answered | {"_headers": answer.headers}


def get(account: Account, path: str) -> dict[str, Any]:
    key = make_key(account.product, account=account)
    answer = Http().get(path, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.content
    found: dict[str, Any] = json.loads(answer.content)
    return found


def test_a_pack_is_bought_by_a_client_app(shop: Shop) -> None:
    account = shop.account()
    sold = post(account, CHECKOUT, pack="small", quantity=2, **BACK | {"success_url": f"{ORIGIN}/done?visit={{CHECKOUT_ID}}"})
    assert (sold["state"], sold["amount"], sold["currency"], sold["name"]) == ("open", "10.00", "usd", "2 × Small")
    visit = Checkout.objects.get(public_id=sold["id"])
    assert (visit.url, visit.success_url) == (sold["url"], f"{ORIGIN}/done?visit={sold['id']}")
    assert visit.actor.startswith("API key tg_")
    shop.pay(visit)
    assert shop.settle() == set()
    paid = get(account, f"{CHECKOUT}/{sold['id']}")
    assert (paid["state"], paid["completed"], paid["url"]) == ("paid", True, None)
    assert balance(account) == (12 * NANOS, 0, 0)


def test_a_plan_is_subscribed_to_previewed_changed_cancelled_and_resumed(shop: Shop) -> None:
    account = shop.account()
    assert post(account, CHANGE, 409, plan="pro")["code"] == "not_subscribed"
    sold = post(account, CHECKOUT, plan="core", **BACK)
    shop.pay(Checkout.objects.get(public_id=sold["id"]))
    assert shop.settle() == set()
    again = post(account, CHECKOUT, 409, plan="pro", **BACK)
    assert (again["code"], again["change_plan"]) == ("already_subscribed", CHANGE)
    preview = get(account, "/api/v1/billing/subscription/preview?plan=pro")
    changed = post(account, CHANGE, plan="pro")
    del changed["_headers"]
    assert (changed["change"], changed["plan"], changed["price"]) == ("upgrade", "pro", "30.00")
    assert changed["due_now"] == preview["due_now"]
    down = post(account, CHANGE, plan="core")
    assert (down["change"], down["due_now"]) == ("downgrade", "0.00")
    ended = post(account, "/api/v1/billing/subscription/cancel")
    assert (ended["plan"], ended["cancel_at_period_end"]) == ("pro", True)
    assert post(account, "/api/v1/billing/subscription/resume")["cancel_at_period_end"] is False
    assert get(account, "/api/v1/billing/subscription")["subscription"]["plan"]["slug"] == "pro"


def test_the_portal_has_an_address(shop: Shop) -> None:
    account = shop.account()
    assert post(account, "/api/v1/billing/portal", return_url=f"{ORIGIN}/settings")["url"].startswith("http")
    assert post(account, "/api/v1/billing/portal", 422, return_url="//evil.example")["code"] == "redirect_not_allowed"


def test_the_paths_of_prpms_guide_sell_the_same(shop: Shop) -> None:
    account = shop.account()
    there: dict[str, Any] = {"successUrl": f"{ORIGIN}/done", "cancelUrl": f"{ORIGIN}/back"}
    pack = post(account, "/api/v1/playground/credits/purchase", package="large", **there)
    assert (pack["name"], pack["amount"]) == ("Large", "20.00")
    several = post(account, "/api/v1/playground/subscribe", 409, **there)
    assert (several["code"], several["detail"]) == ("change_not_possible", "Name the plan: core, max, pro.")
    assert post(account, "/api/v1/playground/subscribe", plan="pro", **there)["name"] == "Pro"
    shop.product.plans.filter(slug__in=["core", "max"]).update(public=False)
    assert post(account, "/api/v1/playground/subscribe", **there)["name"] == "Pro"
    refused = post(
        account, "/api/v1/playground/credits/purchase", 422, package="small", successUrl="https://evil.example", cancelUrl=ORIGIN
    )
    assert refused["code"] == "redirect_not_allowed"


def test_an_idempotency_key_is_answered_with_the_same_visit(shop: Shop) -> None:
    account = shop.account()
    first = post(account, CHECKOUT, pack="small", headers={"Idempotency-Key": "order-1"}, **BACK)
    assert post(account, CHECKOUT, pack="small", headers={"Idempotency-Key": "order-1"}, **BACK)["id"] == first["id"]
    other = post(account, CHECKOUT, 409, pack="large", headers={"Idempotency-Key": "order-1"}, **BACK)
    assert other["code"] == "idempotency_key_reused"
    for key in ("", "x" * 256, "ä"):
        assert post(account, CHECKOUT, 422, pack="small", headers={"Idempotency-Key": key}, **BACK)["code"] == "invalid_request"


@pytest.mark.parametrize(
    "body",
    [
        {}, {"pack": "small", "plan": "core"}, {"pack": ""}, {"pack": 5}, {"pack": "small", "quantity": 0},
        {"pack": "small", "quantity": 101}, {"pack": "small", "quantity": "2"}, {"pack": "small", "quantity": 1.5},
        {"pack": "small", "quantity": True}, {"plan": "core", "quantity": 2},
        {"pack": "small", "price": 1}, {"pack": "small", "amount": "0.01"}, {"pack": "small", "trial_days": 365}, {"pack": "nothing"},
        {"plan": "nothing"}, {"plan": "x" * 65}, {"pack": "small", "success_url": ""}, {"pack": "small", "success_url": None},
        {"pack": "small", "success_url": ["https://shop.example"]}, {"pack": "small", "cancel_url": "x" * 2_001}, {"plan": "free"},
        {"pack": "small", "account": ""}, {"pack": "small", "customer": "cus_1"},
    ],
)  # fmt: skip
def test_garbage_is_refused_and_sells_nothing(shop: Shop, body: dict[str, Any]) -> None:
    account = shop.account()
    post(account, CHECKOUT, 422, **BACK | body)
    assert not Checkout.objects.filter(account=account).exists()


def test_only_keys_that_may_write_bills_sell_and_only_to_their_own(shop: Shop) -> None:
    account, other = shop.account(), shop.account()
    assert post(account, CHECKOUT, 403, ["billing:read"], pack="small", **BACK)["code"] == "missing_scope"
    assert post(account, CHECKOUT, 404, pack="small", account=other.public_id, **BACK)["code"] == "not_found"
    assert Http().post(CHECKOUT, "{}", content_type="application/json").status_code == 401
    assert Http().get("/api/v1/billing/portal").status_code == 405
    mine = post(account, CHECKOUT, pack="small", **BACK)["id"]
    for key in (make_key(other.product, account=other), make_key(make_product())):
        answer = Http().get(f"{CHECKOUT}/{mine}?account={account.public_id}", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 404
    key = make_key(account.product, account=account)
    for name in ("co_none", "%00", "x" * 300):
        assert Http().get(f"{CHECKOUT}/{name}", headers={"Authorization": f"Bearer {key}"}).status_code == 404


@pytest.mark.failure(70)
@pytest.mark.parametrize("fault", ["dead_before", "slow", "429"])
def test_while_stripe_is_away_selling_is_503_and_work_and_balances_do_not_notice(shop: Shop, fault: str) -> None:
    account, model = shop.account(credit=5), make_model()
    assert post(account, CHECKOUT, pack="small", **BACK)["url"]
    shop.client.control("POST", "/fault", mode=fault, path="/v1/", seconds=15)
    begun = time.monotonic()
    refused = post(account, CHECKOUT, 503, plan="core", **BACK)
    assert time.monotonic() - begun < 10
    assert (refused["code"], refused["_headers"]["Retry-After"]) == ("dependency_unavailable", "5")
    begun = time.monotonic()
    work: dict[str, Any] = {"model": model, "estimate": {"input_tokens": 1_000, "max_output_tokens": 10}}
    allowed = post(account, "/api/v1/usage/authorize", headers={"Idempotency-Key": "work-1"}, **work)
    post(account, f"/api/v1/usage/authorizations/{allowed['id']}/capture", quantities={"input_tokens": 1_000})
    assert get(account, "/api/v1/billing/balance")["balance"] < "5.000000000"
    assert time.monotonic() - begun < 5
    shop.client.control("DELETE", "/fault")
    shop.pay(Checkout.objects.get(public_id=post(account, CHECKOUT, plan="core", **BACK)["id"]))
    assert shop.settle() == set()
    assert get(account, "/api/v1/billing/subscription")["subscription"]["plan"]["slug"] == "core"
