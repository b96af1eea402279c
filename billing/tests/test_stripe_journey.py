"""From a payment on the double of Stripe to credits, and back: over real HTTP in both directions, with real deliveries."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import pytest
from django.utils import timezone

from accounts.models import Account
from billing import audit, subscriptions, tasks
from billing.models import Grant, StripeCustomer, StripeEvent
from billing.tests.test_stripe_inbox import balance
from pricing.models import CreditPack, Plan, PlanVersion
from stripe_double.tests.conftest import Client
from tests.factories import NANOS, START, make_account, make_product


@dataclass(frozen=True)
class Shop:
    """A customer of a product that sells a plan and a pack at the double's prices."""

    account: Account
    customer: str
    pack: str
    plan: str


@pytest.fixture
def shop(double: Client, monkeypatch: pytest.MonkeyPatch) -> Shop:
    product = make_product(burn_order=["monthly", "purchased"])
    pack, plan = double.price(1_000, None).id, double.price(2_500).id
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
    customer = StripeCustomer.objects.create(id=double.customer().id, account=account)
    return Shop(account, customer.pk, pack, plan)


def settle(double: Client) -> set[tuple[str, str]]:
    """Waits until all deliveries have arrived and works the inbox; the events that are neither done nor ignored, and why."""
    until = time.monotonic() + 20
    while double.control("GET", "")["deliveries_waiting"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    tasks.work_stripe_inbox()
    mine = StripeEvent.objects.filter(endpoint="/api/v1/billing/webhook")
    return set(mine.exclude(state__in=["done", "ignored"]).values_list("type", "last_error"))


def buy(double: Client, shop: Shop) -> str:
    """Buys a pack on the hosted page. Returns the payment intent."""
    session = double.v1.checkout.sessions.create(
        {
            "mode": "payment",
            "customer": shop.customer,
            "success_url": "http://x.test",
            "line_items": [{"price": shop.pack, "quantity": 1}],
        }
    )
    assert double.post(str(session.url), number="4242424242424242", email="ada@example.com")[0] == 303
    return str(double.v1.checkout.sessions.retrieve(session.id).payment_intent)


def test_a_pack_is_bought_partly_refunded_disputed_and_won(double: Client, shop: Shop) -> None:
    intent = buy(double, shop)
    assert settle(double) == set()
    lot = Grant.objects.defer("expires_at").get(account=shop.account)
    assert (lot.granted, lot.cash_nanos, lot.fee_nanos) == (12 * NANOS, 10 * NANOS, 590_000_000)
    double.v1.refunds.create({"payment_intent": intent, "amount": 300})
    assert settle(double) == set()
    assert balance(shop.account) == (8_400_000_000, 0, 0)
    charge = double.v1.charges.list({"payment_intent": intent}).data[0].id
    dispute = double.control("POST", "/disputes", charge=charge)["id"]
    assert settle(double) == set()
    assert balance(shop.account) == (0, 0, 0)
    double.control("POST", f"/disputes/{dispute}/close", outcome="won")
    assert settle(double) == set()
    assert balance(shop.account) == (8_400_000_000, 0, 0)
    assert audit.run() == []


def test_a_subscription_is_paid_renewed_and_canceled(double: Client, shop: Shop) -> None:
    subscription = double.subscribe(shop.customer, shop.plan)
    assert settle(double) == set()
    live = subscriptions.current(account_id=shop.account.pk)
    assert live is not None
    assert (live.plan_version.plan.slug, live.stripe_id) == ("core", subscription.id)
    assert balance(shop.account) == (20 * NANOS, 0, 0)
    double.advance(days=32)
    assert settle(double) == set()
    assert list(Grant.objects.filter(account=shop.account).values_list("source", "granted")) == [("monthly", 20 * NANOS)] * 2
    double.v1.subscriptions.cancel(subscription.id)
    assert settle(double) == set()
    live = subscriptions.current(account_id=shop.account.pk)
    assert live is not None
    assert live.plan_version.plan.slug == "free"
    assert audit.run() == []


@pytest.mark.failure(70)
def test_what_happened_while_stripe_was_away_is_worked_when_it_is_back(double: Client, shop: Shop) -> None:
    buy(double, shop)
    time.sleep(0.5)
    double.control("POST", "/fault", mode="500_before", path="/v1/")
    assert settle(double) != set()
    assert balance(shop.account) == (0, 0, 0)
    double.control("DELETE", "/fault")
    StripeEvent.objects.filter(state="pending").update(next_attempt_at=timezone.now())
    assert settle(double) == set()
    assert balance(shop.account) == (12 * NANOS, 0, 0)
