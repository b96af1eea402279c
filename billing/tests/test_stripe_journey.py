"""From a payment on the double of Stripe to credits, and back: over real HTTP in both directions, with real deliveries."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django import Settings

from accounts.models import Account
from billing import audit, stripe_api, stripe_receiver, subscriptions, tasks
from billing.models import Grant, StripeCustomer, StripeEvent
from billing.tests.test_stripe_inbox import balance
from pricing.models import CreditPack, Plan, PlanVersion
from stripe_double.server import Double
from stripe_double.tests.conftest import Client
from tests.factories import NANOS, START, make_account, make_product


@pytest.fixture
def client(tmp_path: Path, settings: Settings, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A double that delivers to our server, which asks it."""
    double = Double(port=0, data=tmp_path / "stripe.sqlite3")
    thread = threading.Thread(target=double.serve_forever)
    thread.start()
    settings.STRIPE_API_HOST = double.address
    stripe_api.client.cache_clear()
    monkeypatch.setattr(stripe_receiver, "ring", lambda: None)  # the test is the worker
    client = Client(double.address)
    endpoint = client.v1.webhook_endpoints.create({"url": server + "/api/v1/billing/webhook", "enabled_events": ["*"]})
    settings.STRIPE_WEBHOOK_SECRETS = [endpoint.secret]
    try:
        yield client
    finally:
        double.close()
        thread.join()
        stripe_api.client.cache_clear()
    StripeEvent.objects.filter(endpoint="/api/v1/billing/webhook").delete()


@dataclass(frozen=True)
class Shop:
    """A customer of a product that sells a plan and a pack at the double's prices."""

    account: Account
    customer: str
    pack: str
    plan: str


@pytest.fixture
def shop(client: Client, monkeypatch: pytest.MonkeyPatch) -> Shop:
    product = make_product(burn_order=["monthly", "purchased"])
    pack, plan = client.price(1_000, None).id, client.price(2_500).id
    suffix = secrets.token_hex(4).upper()
    monkeypatch.setenv(f"PACK_{suffix}", pack)
    monkeypatch.setenv(f"CORE_{suffix}", plan)
    CreditPack.objects.create(
        product=product, slug="starter", name="Starter", valid_from=START, price_cents=1_000, credit_nanos=12 * NANOS,
        stripe_price_setting=f"PACK_{suffix}",
    )  # fmt: skip
    PlanVersion.objects.create(
        plan=Plan.objects.create(product=product, slug="core", name="Core", rank=2), valid_from=START, rate_card="standard",
        price_cents=2_500, included_credit_nanos=20 * NANOS, stripe_price_setting=f"CORE_{suffix}",
    )  # fmt: skip
    account = make_account(product)
    customer = StripeCustomer.objects.create(id=client.customer().id, account=account)
    return Shop(account, customer.pk, pack, plan)


def settle(client: Client) -> set[tuple[str, str]]:
    """Waits until all deliveries have arrived and works the inbox; the events that are neither done nor ignored, and why."""
    until = time.monotonic() + 20
    while client.control("GET", "")["deliveries_waiting"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    tasks.work_stripe_inbox()
    mine = StripeEvent.objects.filter(endpoint="/api/v1/billing/webhook")
    return set(mine.exclude(state__in=["done", "ignored"]).values_list("type", "last_error"))


def buy(client: Client, shop: Shop) -> str:
    """Buys a pack on the hosted page. Returns the payment intent."""
    session = client.v1.checkout.sessions.create(
        {
            "mode": "payment",
            "customer": shop.customer,
            "success_url": "http://x.test",
            "line_items": [{"price": shop.pack, "quantity": 1}],
        }
    )
    assert client.post(str(session.url), number="4242424242424242", email="ada@example.com")[0] == 303
    return str(client.v1.checkout.sessions.retrieve(session.id).payment_intent)


def test_a_pack_is_bought_partly_refunded_disputed_and_won(client: Client, shop: Shop) -> None:
    intent = buy(client, shop)
    assert settle(client) == set()
    lot = Grant.objects.defer("expires_at").get(account=shop.account)
    assert (lot.granted, lot.cash_nanos, lot.fee_nanos) == (12 * NANOS, 10 * NANOS, 590_000_000)
    client.v1.refunds.create({"payment_intent": intent, "amount": 300})
    assert settle(client) == set()
    assert balance(shop.account) == (8_400_000_000, 0, 0)
    charge = client.v1.charges.list({"payment_intent": intent}).data[0].id
    dispute = client.control("POST", "/disputes", charge=charge)["id"]
    assert settle(client) == set()
    assert balance(shop.account) == (0, 0, 0)
    client.control("POST", f"/disputes/{dispute}/close", outcome="won")
    assert settle(client) == set()
    assert balance(shop.account) == (8_400_000_000, 0, 0)
    assert audit.run() == []


def test_a_subscription_is_paid_renewed_and_canceled(client: Client, shop: Shop) -> None:
    subscription = client.subscribe(shop.customer, shop.plan)
    assert settle(client) == set()
    live = subscriptions.current(account_id=shop.account.pk)
    assert live is not None
    assert (live.plan_version.plan.slug, live.stripe_id) == ("core", subscription.id)
    assert balance(shop.account) == (20 * NANOS, 0, 0)
    client.advance(days=32)
    assert settle(client) == set()
    assert list(Grant.objects.filter(account=shop.account).values_list("source", "granted")) == [("monthly", 20 * NANOS)] * 2
    client.v1.subscriptions.cancel(subscription.id)
    assert settle(client) == set()
    live = subscriptions.current(account_id=shop.account.pk)
    assert live is not None
    assert live.plan_version.plan.slug == "free"
    assert audit.run() == []


@pytest.mark.failure(70)
def test_what_happened_while_stripe_was_away_is_worked_when_it_is_back(client: Client, shop: Shop) -> None:
    buy(client, shop)
    time.sleep(0.5)
    client.control("POST", "/fault", mode="500_before", path="/v1/")
    assert settle(client) != set()
    assert balance(shop.account) == (0, 0, 0)
    client.control("DELETE", "/fault")
    StripeEvent.objects.filter(state="pending").update(next_attempt_at=timezone.now())
    assert settle(client) == set()
    assert balance(shop.account) == (12 * NANOS, 0, 0)
