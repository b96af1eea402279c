"""Events as they were written down, of the API version that we pin and of others: each is understood, or kept for staff; none is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from accounts.models import Account
from billing import stripe_inbox
from billing.models import StripeEvent
from billing.tests.stripe_stub import Obj, Stub
from billing.tests.test_stripe_inbox import NOW, balance, shop, stub, work
from billing.tests.test_stripe_receiver import deliver
from billing.tests.test_stripe_subscriptions import core, customer
from pricing.models import PlanVersion
from stripe_double.tests.contract import problems
from tests.factories import NANOS

__all__ = ["core", "customer", "shop", "stub"]  # fixtures
pytestmark = pytest.mark.django_db

RECORDED = Path(__file__).parent / "recorded"
PINNED = sorted((RECORDED / settings.STRIPE_API_VERSION).glob("*.json"))
INVOICES = sorted(RECORDED.glob("*/invoice.paid.json"))
THIN = RECORDED / "next" / "thin.invoice.paid.json"


def read(path: Path) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(path.read_text())
    return recorded


def announce(path: Path, obj: Obj) -> StripeEvent:
    """The recording, about ``obj`` in place of what it was about, comes by the webhook; our row of it, due at ``NOW``."""
    event = read(path)
    assert deliver(path.read_text().replace(event["data"]["object"]["id"], obj["id"])).status_code == 200
    StripeEvent.objects.filter(event_id=event["id"]).update(next_attempt_at=NOW)
    return StripeEvent.objects.get(event_id=event["id"])


def test_there_are_recordings_of_the_version_that_we_pin() -> None:
    assert {path.stem for path in PINNED} == {
        "charge.dispute.created", "charge.refunded", "checkout.session.completed", "customer.subscription.updated", "invoice.paid",
        "payment_intent.succeeded",
    }  # fmt: skip


@pytest.mark.failure(69)
@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.stem)
def test_the_pinned_versions_bodies_keep_the_sdks_contract_and_are_stored_as_due(path: Path) -> None:
    event = read(path)
    assert problems(event) == []
    assert problems(event["data"]["object"]) == []
    assert deliver(path.read_text()).status_code == 200
    stored = StripeEvent.objects.get(event_id=event["id"])
    assert (stored.state, stored.type, stored.object_id) == ("pending", path.stem, event["data"]["object"]["id"])
    assert stored.api_version == settings.STRIPE_API_VERSION


@pytest.mark.failure(69)
def test_each_of_the_pinned_version_has_its_effect(stub: Stub, shop: Account, customer: str, core: PlanVersion) -> None:
    intent, subscription = stub.pack(customer, "price_pack", 1_000), stub.subscription(customer, "price_core")
    about = {
        "checkout.session.completed": stub.session_of(intent),
        "payment_intent.succeeded": intent,
        "invoice.paid": stub.invoice(subscription, 2_500),
        "customer.subscription.updated": subscription,
        "charge.refunded": intent["latest_charge"],
    }
    for path in PINNED:
        if path.stem in about:
            announce(path, about[path.stem])
    assert {one.state for one in work()} == {"done"}
    assert balance(shop) == (32 * NANOS, 0, 0)
    announce(RECORDED / settings.STRIPE_API_VERSION / "charge.dispute.created.json", stub.dispute(intent, 1_000))
    assert [one.state for one in work()] == ["done"]
    assert balance(shop) == (20 * NANOS, 0, 0)


@pytest.mark.failure(69)
@pytest.mark.parametrize("path", INVOICES, ids=lambda path: path.parent.name)
def test_a_paid_invoice_grants_the_same_in_whatever_version_it_is_announced(
    stub: Stub, shop: Account, customer: str, core: PlanVersion, path: Path
) -> None:
    received = announce(path, stub.invoice(stub.subscription(customer, "price_core"), 2_500))
    assert received.api_version == read(path)["api_version"]
    assert [one.state for one in work()] == ["done"]
    assert balance(shop) == (20 * NANOS, 0, 0)


@pytest.mark.failure(69)
def test_a_body_without_an_object_is_kept_for_staff() -> None:
    assert deliver(THIN.read_text()).status_code == 200
    kept = StripeEvent.objects.get(payload=THIN.read_text())
    assert kept.state == "quarantined"
    assert "not understood" in kept.last_error


@pytest.mark.failure(69)
def test_an_object_of_another_shape_is_tried_again_told_and_worked_when_it_can_be_read(
    stub: Stub, shop: Account, customer: str, core: PlanVersion
) -> None:
    """Where Stripe itself answers in a shape that we do not know, nothing is guessed."""
    invoice = stub.invoice(stub.subscription(customer, "price_core"), 2_500)
    lines = invoice.pop("lines")
    received = announce(RECORDED / "next" / "invoice.paid.json", invoice)
    for _ in range(stripe_inbox.MAX_ATTEMPTS):
        received.refresh_from_db()
        work(received.next_attempt_at)
    received.refresh_from_db()
    assert (received.state, received.last_error) == ("dead", "KeyError: 'lines'")
    assert balance(shop) == (0, 0, 0)
    invoice["lines"] = lines
    stripe_inbox.work_again(event_ids=[received.event_id], now=NOW)
    assert [one.state for one in work()] == ["done"]
    assert balance(shop) == (20 * NANOS, 0, 0)
