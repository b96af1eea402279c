"""Customers are told of their payments and trials: once each, whatever order, number or repetition of events arrives."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from django.core import mail as django_mail
from django.db import transaction

from accounts import mail_delivery
from accounts.models import Account, Mail
from billing import stripe_api, stripe_inbox, stripe_mails
from billing.models import StripeSubscription
from billing.tests.stripe_stub import FEBRUARY, JANUARY, Obj, Stub
from billing.tests.test_stripe_inbox import NOW, shop, stub
from billing.tests.test_stripe_payments import Undone, announcements, happen
from billing.tests.test_stripe_subscriptions import core, customer, item, renew
from pricing.models import PlanVersion
from tests.factories import NANOS, make_account, make_product

__all__ = ["core", "customer", "shop", "stub"]  # fixtures
pytestmark = pytest.mark.django_db
JANUARY_1 = datetime.fromtimestamp(JANUARY, UTC)


def mails_of(account: Account, kind: str) -> list[dict[str, object]]:
    assert not Mail.objects.filter(account=account, state="dead").exists()
    return [mail.context for mail in Mail.objects.filter(account=account, kind=kind).order_by("pk")]


def told(account: Account) -> str:
    """The text of the only mail to ``account``, sent now."""
    account.billing_email = "pay@example.com"
    account.save()
    assert mail_delivery.send_next(now=NOW) is not None
    return str(django_mail.outbox[-1].body)


class TestReceipts:
    def test_a_pack_is_receipted_once_with_what_was_granted_and_is_there_now(self, stub: Stub, shop: Account, customer: str) -> None:
        first = stub.pack(customer, "price_pack", 1_000, created=int(NOW.timestamp()))
        happen(*announcements(stub, first), *announcements(stub, first))
        assert mails_of(shop, "receipt") == [
            {
                "paid_cents": 1_000, "currency": "usd", "paid_at": NOW.isoformat(), "what": "Starter", "granted_nanos": 12 * NANOS,
                "balance_nanos": 12 * NANOS, "receipt_url": "https://stripe.test/receipts/1000",
            }
        ]  # fmt: skip
        text = told(shop)
        assert "Paid: $10.00\nFor: Starter" in text
        assert "Credit added: $12.00\nCredit you have now: $12.00" in text

    def test_every_order_of_events_leads_to_the_same_one_receipt(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        ends = []
        for order in permutations(announcements(stub, intent)):
            with transaction.atomic():
                happen(*order)
                ends.append(mails_of(shop, "receipt"))
                transaction.set_rollback(True)
        assert len(ends[0]) == 1
        assert ends == [ends[0]] * 6

    def test_a_paid_period_is_receipted_with_its_plan(self, stub: Stub, shop: Account, customer: str, core: PlanVersion) -> None:
        subscription = stub.subscription(customer, "price_core")
        happen(("invoice.paid", stub.invoice(subscription, 2_500)))
        [facts] = mails_of(shop, "receipt")
        assert (facts["what"], facts["paid_cents"], facts["granted_nanos"]) == ("Core", 2_500, 20 * NANOS)

    @pytest.mark.parametrize("status", ["processing", "requires_payment_method", "canceled"])
    def test_what_is_not_paid_has_no_receipt(self, stub: Stub, shop: Account, customer: str, status: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000, status=status, amount_received=0)
        happen(("payment_intent.payment_failed", intent))
        assert not Mail.objects.filter(account=shop).exists()

    def test_a_payment_that_was_quarantined_is_receipted_when_it_is_granted(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_unheard_of", 1_000)
        [(state, _)] = happen(("payment_intent.succeeded", intent))
        assert (state, mails_of(shop, "receipt")) == ("quarantined", [])

    def test_a_payment_of_long_ago_that_is_read_for_its_refund_is_not_receipted_now(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)  # nine days ago
        happen(("charge.refunded", intent["latest_charge"]))
        shop.billing_email = "pay@example.com"
        shop.save()
        sent = mail_delivery.send_next(now=NOW)
        assert sent is not None
        assert (sent.state, django_mail.outbox) == ("suppressed", [])

    def test_what_was_read_before_what_is_known_tells_nothing(self, stub: Stub, shop: Account, customer: str, core: PlanVersion) -> None:
        """A worker read the invoice unpaid, and comes to write when another has written that it was paid."""
        subscription = stub.subscription(customer, "price_core", status="past_due")
        invoice = stub.invoice(subscription, 2_500, status="open")
        late = stripe_api.invoice(invoice["id"])
        [intent] = stub.find("payment_intent", customer=customer)
        intent |= {"status": "succeeded", "amount_received": 2_500}
        invoice |= {"status": "paid", "amount_paid": 2_500}
        invoice["payments"]["data"][0]["status"] = "paid"
        happen(("invoice.paid", invoice))
        stripe_mails.of_payment(truth=late, customer=shop.stripe_customer, read_number=1, now=NOW)
        trial = replace(late.subscription, status="trialing") if late.subscription else None
        assert trial is not None
        stripe_mails.of_subscription(truth=trial, customer=shop.stripe_customer, read_number=1, now=NOW)
        assert sorted(Mail.objects.filter(account=shop).values_list("kind", flat=True)) == ["receipt"]

    def test_the_receipt_and_the_grant_are_one_transaction(
        self, stub: Stub, shop: Account, customer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*args: object) -> None:
            raise Undone

        monkeypatch.setattr(stripe_inbox, "_verdict", die)
        [(state, _)] = happen(("payment_intent.succeeded", stub.pack(customer, "price_pack", 1_000)))
        assert (state, mails_of(shop, "receipt"), shop.grants.count()) == ("pending", [], 0)


class TestFailedPayments:
    def test_each_unpaid_period_of_a_plan_is_told_once_however_often_the_card_is_tried(
        self, stub: Stub, shop: Account, customer: str, core: PlanVersion
    ) -> None:
        subscription = stub.subscription(customer, "price_core", status="past_due")
        unpaid = stub.invoice(subscription, 2_500, status="open", next_payment_attempt=int((NOW + timedelta(days=3)).timestamp()))
        happen(*[("invoice.payment_failed", unpaid), ("customer.subscription.updated", subscription)] * 3)
        until = StripeSubscription.objects.get(pk=subscription["id"]).grace_ends_at
        assert until is not None
        [facts] = mails_of(shop, "payment_failed")
        again = (NOW + timedelta(days=3)).isoformat()
        assert facts == {"amount_cents": 2_500, "currency": "usd", "plan": "Core", "retry_at": again, "until": until.isoformat()}
        text = told(shop)
        assert f"We could not take $25.00 for Core from your card. You keep Core until {until:%-d %B %Y, %H:%M} UTC." in text
        assert "We try the card again on 13 January 2026, 00:00 UTC. To be sure, check the card or use another one." in text
        renew(subscription, FEBRUARY, FEBRUARY + 28 * 86_400)
        happen(("invoice.payment_failed", stub.invoice(subscription, 2_500, status="open")))
        assert len(mails_of(shop, "payment_failed")) == 2

    @pytest.mark.parametrize("retry_at", [None, NOW - timedelta(seconds=1)])
    def test_no_other_attempt_is_promised_where_there_is_none(
        self, stub: Stub, shop: Account, customer: str, core: PlanVersion, retry_at: datetime | None
    ) -> None:
        subscription = stub.subscription(customer, "price_core", status="past_due")
        attempt = retry_at and int(retry_at.timestamp())
        happen(("invoice.payment_failed", stub.invoice(subscription, 2_500, status="open", next_payment_attempt=attempt)))
        text = told(shop)
        assert "To keep Core, check the card or use another one." in text
        assert "again" not in text

    @pytest.mark.parametrize("status", ["incomplete", "trialing", "active", "canceled"])
    def test_who_is_still_at_the_checkout_or_owes_nothing_is_told_nothing(
        self, stub: Stub, shop: Account, customer: str, core: PlanVersion, status: str
    ) -> None:
        subscription = stub.subscription(customer, "price_core", status=status)
        happen(("invoice.payment_failed", stub.invoice(subscription, 2_500, status="open")))
        assert mails_of(shop, "payment_failed") == []

    def test_a_payment_that_may_still_come_is_not_called_failed(self, stub: Stub, shop: Account, customer: str, core: PlanVersion) -> None:
        subscription = stub.subscription(customer, "price_core", status="past_due")
        unpaid = stub.invoice(subscription, 2_500, status="open")
        [intent] = [obj for obj in stub.find("payment_intent") if obj["customer"] == customer]
        intent["status"] = "processing"
        happen(("invoice.payment_failed", unpaid))
        assert mails_of(shop, "payment_failed") == []


class TestTrials:
    def trial(self, stub: Stub, customer: str, left: timedelta, **fields: Any) -> Obj:
        return stub.subscription(customer, "price_core", status="trialing", end=int((NOW + left).timestamp()), **fields)

    def test_a_trial_that_ends_within_three_days_is_told_once(self, stub: Stub, shop: Account, customer: str, core: PlanVersion) -> None:
        subscription = self.trial(stub, customer, timedelta(days=3))
        item(subscription)["quantity"] = 4  # the price is not per seat
        happen(*[("customer.subscription.trial_will_end", subscription)] * 3, ("customer.subscription.updated", subscription))
        assert mails_of(shop, "trial_ending") == [
            {
                "plan": "Core", "ends_at": (NOW + timedelta(days=3)).isoformat(), "price_cents": 2_500, "currency": "usd",
                "interval": "month",
            }
        ]  # fmt: skip
        assert "After that, Core goes on for $25.00 a month, charged to your card." in told(shop)

    @pytest.mark.parametrize(
        ("left", "fields"),
        [(timedelta(days=3, seconds=1), {}), (timedelta(0), {}), (timedelta(days=1), {"cancel_at_period_end": True})],
    )
    def test_one_that_has_time_is_over_or_was_cancelled_is_not_told(
        self, stub: Stub, shop: Account, customer: str, core: PlanVersion, left: timedelta, fields: dict[str, object]
    ) -> None:
        happen(("customer.subscription.updated", self.trial(stub, customer, left, **fields)))
        assert mails_of(shop, "trial_ending") == []


class TestWelcome:
    def test_welcome_credit_is_told_with_the_opening_and_once(self) -> None:
        product = make_product(welcome_credit_nanos=5 * NANOS, support_email="help@rover.example")
        account = make_account(product, billing_email="ada@example.com", external_id="ada")
        make_account(product, external_id="ada")
        assert mails_of(account, "account_credits") == [{"granted_nanos": 5 * NANOS, "balance_nanos": 5 * NANOS}]
        assert mail_delivery.send_next(now=datetime.now(UTC)) is not None
        [message] = django_mail.outbox
        assert message.subject == "Your account credits"
        text = str(message.body)
        assert "$5.00 of credit is in your account" in text
        assert "help@rover.example" in text
        assert f"https://testserver/a/{account.public_id}/" in text

    def test_without_welcome_credit_there_is_no_mail(self) -> None:
        assert not Mail.objects.filter(account=make_account()).exists()
