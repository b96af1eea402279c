"""Objects that a lower plan has no room for: they stay, and there are no more. By Teach Charlie's own plans and over the API."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client

from accounts.models import Account
from billing import stripe_api, stripe_subscriptions
from billing.models import StripeCustomer
from billing.tests.stripe_stub import new
from pricing import catalog_file
from pricing.models import Product
from tests.factories import START, make_account, make_key

pytestmark = pytest.mark.django_db
CATALOG = Path(catalog_file.__file__).parent / "catalogs" / "teach_charlie.toml"
PRICES = {"STRIPE_PRO_PRICE_ID": "price_pro", "STRIPE_TEAM_PRICE_ID": "price_team"}


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Account:
    for name, price in PRICES.items():
        monkeypatch.setenv(name, price)
    catalog_file.apply(catalog_file.parse(CATALOG.read_bytes()), actor="ada", effective=START)
    account = make_account(Product.objects.get(slug="teach_charlie"))
    StripeCustomer.objects.create(id=new("cus"), account=account)
    return account


class App:
    """Teach Charlie, asking for places for its objects."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.token = make_key(account.product)

    def place(self, meter: str, name: str, *, action: str = "reserve") -> tuple[int, Any]:
        body = json.dumps({"account": self.account.public_id, "action": action, "object": name})
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": str(uuid4())}
        answer = Client().post(f"/api/v1/usage/counters/{meter}", body, content_type="application/json", headers=headers)
        return answer.status_code, answer.json()

    def limit(self, meter: str) -> dict[str, Any]:
        answer = (
            Client()
            .get("/api/v1/usage/limits", {"account": self.account.public_id}, headers={"Authorization": f"Bearer {self.token}"})
            .json()
        )
        found: dict[str, Any] = next(each for each in answer["limits"] if each["meter"] == f"{meter}/count")
        return found


def says_stripe(account: Account, price: str, *, read: int, status: str = "active") -> None:
    """What Stripe says of the account's one subscription, taken over as the inbox does."""
    now = datetime.now(UTC)
    truth: Any = stripe_api.Subscription(
        id=f"sub_{account.public_id}", customer_id=account.stripe_customer.pk, status=status, items=[(price, 1)], anchor_at=now,
        period=(now - timedelta(days=1), now + timedelta(days=29)), cancel_at_period_end=False, started_at=now,
        ended_at=now if status == "canceled" else None, trial_ends_at=None,
    )  # fmt: skip
    stripe_subscriptions.apply(truth=truth, customer=account.stripe_customer, read_number=read, now=now)


def test_what_a_lower_plan_has_no_room_for_stays_and_nothing_is_added_until_there_is_room(account: Account) -> None:
    app = App(account)
    says_stripe(account, "price_pro", read=1)
    assert [app.place("agents", f"agent {number}")[0] for number in range(10)] == [200] * 10
    assert app.place("agents", "one too many")[0] == 429
    assert [app.place("projects", f"project {number}")[0] for number in range(5)] == [200] * 5

    says_stripe(account, "price_pro", read=2, status="canceled")
    shown = app.limit("agents")
    assert (shown["limit"], shown["used"], shown["remaining"]) == (3, 10, 0)
    status, refusal = app.place("agents", "an eleventh")
    assert (status, refusal["code"], refusal["upgrade"]["plan"]) == (429, "quota_exceeded", "pro")
    status, kept = app.place("agents", "agent 9")
    assert (status, kept["used"]) == (200, 10)  # it is there already: asking for it again is no new one

    for number in range(7):
        assert app.place("agents", f"agent {number}", action="release")[0] == 200
        assert app.place("agents", "an eleventh")[0] == 429
    assert app.place("agents", "agent 7", action="release")[0] == 200
    assert app.place("agents", "an eleventh")[0] == 200
    assert app.place("agents", "a twelfth")[0] == 429
    assert app.limit("projects")["used"] == 5
    assert app.place("projects", "a sixth")[0] == 429


def test_without_a_limit_there_is_room_and_a_downgrade_from_there_keeps_all(account: Account) -> None:
    app = App(account)
    says_stripe(account, "price_team", read=1)
    assert [app.place("agents", f"agent {number}")[0] for number in range(12)] == [200] * 12
    says_stripe(account, "price_pro", read=2)
    assert (app.limit("agents")["limit"], app.limit("agents")["used"]) == (10, 12)
    assert app.place("agents", "a thirteenth")[0] == 429
    says_stripe(account, "price_team", read=3)
    assert app.place("agents", "a thirteenth")[0] == 200
