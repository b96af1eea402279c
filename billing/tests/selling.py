"""A shop on the double: its products and prices there, ours here, and a customer at the hosted page. Over real HTTP in both directions."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from accounts.models import Account
from billing import checkout, stripe_api, stripe_receiver, tasks
from billing.models import Checkout, StripeEvent
from pricing import catalog
from pricing.models import CreditPack, Plan, PlanVersion, Product
from stripe_double.server import Double
from stripe_double.tests.conftest import Client
from tests.factories import NANOS, START, make_account, make_product

ORIGIN = "https://shop.example"
CARD = "4242424242424242"
BANK_FAILS = "000222222227"
BANK_WORKS = "000123456789"


@pytest.fixture
def double(tmp_path: Path, settings: Settings, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A double that delivers to our server, which asks it."""
    running = Double(port=0, data=tmp_path / "stripe.sqlite3")
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    settings.STRIPE_API_HOST = running.address
    stripe_api.client.cache_clear()
    monkeypatch.setattr(stripe_receiver, "ring", lambda: None)  # the test is the worker
    client = Client(running.address)
    endpoint = client.v1.webhook_endpoints.create({"url": server + "/api/v1/billing/webhook", "enabled_events": ["*"]})
    settings.STRIPE_WEBHOOK_SECRETS = [endpoint.secret]
    try:
        yield client
    finally:
        running.close()
        thread.join()
        stripe_api.client.cache_clear()
        StripeEvent.objects.filter(endpoint="/api/v1/billing/webhook").delete()


@dataclass
class Shop:
    """A product: the packs ``small`` ($5) and ``large`` ($20), the plans ``core`` ($10), ``pro`` ($30) and ``max`` ($90) a month."""

    client: Client
    monkeypatch: pytest.MonkeyPatch
    product: Product = field(init=False)
    prices: dict[str, str] = field(default_factory=dict)
    suffix: str = field(default_factory=lambda: secrets.token_hex(4).upper())

    def __post_init__(self) -> None:
        self.product = make_product(burn_order=["monthly", "purchased"], allowed_origins=[ORIGIN])
        self.pack("small", 500, 6)
        self.pack("large", 2_000, 30)
        for rank, (slug, cents, credit) in enumerate((("core", 1_000, 10), ("pro", 3_000, 40), ("max", 9_000, 150)), start=2):
            self.plan(slug, cents, credit, rank=rank)

    def setting(self, slug: str, price: str) -> str:
        self.prices[slug] = price
        name = f"PRICE_{slug.upper()}_{self.suffix}"
        self.monkeypatch.setenv(name, price)
        return name

    def pack(self, slug: str, cents: int, credit: int, *, price: str | None = None) -> CreditPack:
        catalog.clear()
        return CreditPack.objects.create(
            product=self.product, slug=slug, name=slug.title(), valid_from=START, price_cents=cents, credit_nanos=credit * NANOS,
            stripe_price_setting=self.setting(slug, price or self.client.price(cents, None, name=slug).id),
        )  # fmt: skip

    def plan(self, slug: str, cents: int, credit: int, *, rank: int, **terms: Any) -> PlanVersion:
        catalog.clear()
        interval = terms.get("interval", "month")
        return PlanVersion.objects.create(
            plan=Plan.objects.create(product=self.product, slug=slug, name=slug.title(), rank=rank), valid_from=START,
            rate_card="standard", price_cents=cents, included_credit_nanos=credit * NANOS,
            stripe_price_setting=self.setting(slug, self.client.price(cents, interval, name=slug).id), **terms,
        )  # fmt: skip

    def account(self, **fields: Any) -> Account:
        return make_account(self.product, **fields)

    def buy(self, account: Account, pack: str = "small", **terms: Any) -> Checkout:
        return checkout.buy(
            account=account, pack=pack, actor="test", now=timezone.now(),
            **{"success_url": f"{ORIGIN}/done", "cancel_url": f"{ORIGIN}/back"} | terms,
        )  # fmt: skip

    def subscribe(self, account: Account, plan: str = "core", **terms: Any) -> Checkout:
        return checkout.subscribe(
            account=account, plan=plan, actor="test", now=timezone.now(),
            **{"success_url": f"{ORIGIN}/done", "cancel_url": f"{ORIGIN}/back"} | terms,
        )  # fmt: skip

    def pay(self, visit: Checkout, number: str = CARD) -> None:
        """On the hosted page, as a customer does."""
        address = {"line1": "1 Rue de la Paix", "postal_code": "75002", "city": "Paris", "country": "FR", "vat": "FR12345678901"}
        status, text = self.client.post(visit.url, number=number, email="ada@example.com", name="Ada", **address)
        assert status == 303, text

    def settle(self) -> set[tuple[str, str]]:
        """Waits until all deliveries have arrived and works the inbox; the events that are neither done nor ignored, and why."""
        until = time.monotonic() + 20
        while self.client.control("GET", "")["deliveries_waiting"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        tasks.work_stripe_inbox()
        mine = StripeEvent.objects.filter(endpoint="/api/v1/billing/webhook")
        return set(mine.exclude(state__in=["done", "ignored"]).values_list("type", "last_error"))

    def now(self) -> datetime:
        """The double's time."""
        return datetime.fromtimestamp(self.client.now(), tz=UTC)


@pytest.fixture
def shop(double: Client, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(double, monkeypatch)
