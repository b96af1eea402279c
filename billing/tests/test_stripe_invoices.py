"""Invoices and receipts: taken over from Stripe in any order, and listed without it."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import resolve, reverse

from accounts import tenancy
from accounts.models import Account, Membership, User
from billing import admin, audit, stripe_inbox
from billing.models import StripeInvoice, StripePayment
from billing.tests.stripe_stub import FEBRUARY, JANUARY, MARCH, Obj, Stub
from billing.tests.test_stripe_inbox import NOW, balance, receive, stub, work
from billing.tests.test_stripe_subscriptions import core, customer, shop
from tests.factories import NANOS, make_account, make_key, make_product

__all__ = ["core", "customer", "shop", "stub"]  # fixtures

pytestmark = pytest.mark.django_db


def happen(*events: tuple[str, Obj]) -> list[tuple[str, str]]:
    for type, obj in events:
        receive(type, obj)
    return [(str(one.state), one.last_error) for one in work()]


def told(account: Account, **parameters: Any) -> Any:
    headers = {"Authorization": f"Bearer {make_key(account.product)}"}
    answer = Client().get("/api/v1/billing/invoices", {"account": account.public_id} | parameters, headers=headers)
    assert answer.status_code == 200, answer.content
    return json.loads(answer.content)


class TestApply:
    def test_an_invoice_is_taken_over_when_it_is_final_and_follows_what_becomes_of_it(
        self, stub: Stub, shop: Account, customer: str
    ) -> None:
        subscription = stub.subscription(customer, "price_core", status="incomplete")
        invoice = stub.invoice(subscription, 2_500, status="draft", number=None)
        del stub.objects[invoice["payments"]["data"][0]["id"]]
        payments, invoice["payments"]["data"] = invoice["payments"]["data"], []
        assert happen(("invoice.created", invoice)) == [("done", "")]
        assert not StripeInvoice.objects.exists()
        assert not StripePayment.objects.exists()  # nobody has begun to pay it
        invoice |= {
            "status": "open",
            "number": "T-1",
            "hosted_invoice_url": "https://stripe.test/i",
            "invoice_pdf": "https://stripe.test/p",
        }
        happen(("invoice.finalized", invoice))
        row = StripeInvoice.objects.get()
        assert (row.account_id, row.number, row.status, row.total, row.paid, row.tax) == (shop.pk, "T-1", "open", 2_500, 0, 0)
        assert [int(each.timestamp()) for each in (row.period_start, row.period_end)] == [JANUARY, FEBRUARY]
        assert (row.description, row.hosted_invoice_url, row.invoice_pdf) == ("1 × Core", "https://stripe.test/i", "https://stripe.test/p")
        invoice["payments"]["data"] = payments
        happen(("invoice.payment_failed", invoice))
        assert StripePayment.objects.get().paid == 0
        for status, event in (("uncollectible", "marked_uncollectible"), ("void", "voided")):
            invoice["status"] = status
            happen((f"invoice.{event}", invoice))
            row.refresh_from_db()
            assert row.status == status
        assert balance(shop) == (0, 0, 0)

    def test_every_order_of_its_events_ends_in_the_same_rows(self, stub: Stub, shop: Account, customer: str) -> None:
        subscription = stub.subscription(customer, "price_core")
        invoice = stub.invoice(subscription, 2_500, total_taxes=[{"amount": 300}, {"amount": 99}])
        ends = set()
        for order in permutations(("created", "finalized", "paid", "updated")):
            happen(*[(f"invoice.{each}", invoice) for each in order])
            ends.add(repr(list(StripeInvoice.objects.values("status", "tax", "total", "paid", "number"))))
        assert len(ends) == 1
        assert (StripeInvoice.objects.get().tax, StripePayment.objects.count()) == (399, 1)
        assert audit.run() == []

    def test_what_was_read_earlier_changes_nothing_any_more(self, stub: Stub, shop: Account, customer: str) -> None:
        invoice = stub.invoice(stub.subscription(customer, "price_core"), 2_500, status="open")
        slow = receive("invoice.finalized", invoice)
        number, effect = stripe_inbox._read_number(), stripe_inbox._read(slow)
        invoice["status"] = "void"
        happen(("invoice.voided", invoice))
        effect(NOW, number)
        assert StripeInvoice.objects.get().status == "void"

    def test_an_invoice_of_nobody_we_know_leaves_no_row(self, stub: Stub, shop: Account) -> None:
        invoice = stub.invoice(stub.subscription("cus_of_somebody_else", "price_core"), 2_500)
        assert [state for state, _ in happen(("invoice.paid", invoice))] == ["ignored"]
        assert not StripeInvoice.objects.exists()

    def test_an_invoice_without_lines_or_with_a_credit_is_taken_over_too(self, stub: Stub, shop: Account, customer: str) -> None:
        subscription = stub.subscription(customer, "price_core")
        invoice = stub.invoice(subscription, 0, total=-700, amount_due=0, description="x" * 900)
        invoice["lines"]["data"], invoice["payments"]["data"] = [], []
        happen(("invoice.paid", invoice))
        assert StripeInvoice.objects.get().total == -700
        assert told(shop)["items"][0]["total"] == "-7.00"


class TestApi:
    def test_invoices_and_receipts_are_listed_the_newest_first(self, stub: Stub, shop: Account, customer: str) -> None:
        subscription = stub.subscription(customer, "price_core")
        invoice = stub.invoice(subscription, 2_500)
        intent = stub.pack(customer, "price_pack", 1_000, created=MARCH)
        stub.refund(intent, 250)
        happen(("invoice.paid", invoice), ("payment_intent.succeeded", intent))
        stub.trouble = 500  # from here on Stripe is dead
        body = told(shop)
        assert (body["account"], body["next_cursor"]) == (shop.public_id, None)
        assert body["items"] == [
            {
                "kind": "receipt", "id": intent["id"], "number": None, "status": "paid", "description": "Starter Pack", "currency": "usd",
                "total": "10.00", "tax": None, "refunded": "2.50", "created_at": "2026-03-01T00:00:00Z", "period": None,
                "url": "https://stripe.test/receipts/1000", "pdf_url": None,
            },
            {
                "kind": "invoice", "id": invoice["id"], "number": invoice["number"], "status": "paid", "description": "1 × Core",
                "currency": "usd", "total": "25.00", "tax": "0.00", "refunded": None, "created_at": "2026-01-01T00:00:00Z",
                "period": {"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"},
                "url": invoice["hosted_invoice_url"], "pdf_url": invoice["invoice_pdf"],
            },
        ]  # fmt: skip
        first = told(shop, limit=1)
        assert [each["id"] for each in first["items"] + told(shop, limit=1, cursor=first["next_cursor"])["items"]] == [
            intent["id"], invoice["id"],
        ]  # fmt: skip

    def test_pages_are_whole_also_where_many_were_made_in_one_second(self, stub: Stub, shop: Account, customer: str) -> None:
        subscription = stub.subscription(customer, "price_core")
        made = [stub.invoice(subscription, 2_500) for _ in range(4)]
        made += [stub.pack(customer, "price_pack", 1_000) for _ in range(3)]
        happen(*[("invoice.paid" if each["object"] == "invoice" else "payment_intent.succeeded", each) for each in made])
        seen: list[str] = []
        cursor: dict[str, Any] = {}
        for _ in range(7):
            page = told(shop, limit=1, **cursor)
            seen += [each["id"] for each in page["items"]]
            cursor = {"cursor": page["next_cursor"]}
        assert (sorted(seen), page["next_cursor"]) == (sorted(each["id"] for each in made), None)

    def test_nobody_sees_anothers(self, stub: Stub, shop: Account, customer: str) -> None:
        happen(("invoice.paid", stub.invoice(stub.subscription(customer, "price_core"), 2_500)))
        happen(("payment_intent.succeeded", stub.pack(customer, "price_pack", 1_000)))
        assert told(make_account(shop.product))["items"] == []
        theirs = {"Authorization": f"Bearer {make_key(make_product())}"}
        assert Client().get("/api/v1/billing/invoices", {"account": shop.public_id}, headers=theirs).status_code == 404
        owner, eve = (User.objects.create_user(f"{uuid4().hex}@example.com") for _ in range(2))
        Membership.objects.create(account=shop, user=owner, role=Membership.Role.MEMBER)
        for user, count in ((owner, 1), (eve, 0)):
            with tenancy.acting_as(user=user):
                assert (StripeInvoice.objects.count(), StripePayment.objects.filter(receipt_url__gt="").count()) == (count, count)
        assert balance(shop)[0] > 12 * NANOS


@pytest.mark.parametrize("key", ["pi_3F1x", "pi_3AbC", "in_2Fq", "cus_5F", "pi_1"])
def test_a_link_leads_to_its_row_whatever_its_id_looks_like(key: str) -> None:
    """Admin reads an underscore with two digits after it as a character that addresses may not have."""
    address = admin.link("billing_stripepayment", key, "paid").split('"')[3]
    assert unquote(resolve(address).kwargs["object_id"]) == key


def test_staff_find_invoices_and_payments(stub: Stub, shop: Account, customer: str) -> None:
    invoice = stub.invoice(stub.subscription(customer, "price_core"), 2_500)
    intent = stub.pack(customer, "price_pack", 1_000)
    happen(("invoice.paid", invoice), ("payment_intent.succeeded", intent))
    user = User.objects.create_user(f"{uuid4().hex}@example.com", "correct horse battery", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_stripeinvoice", "view_stripepayment"]))
    client = Client()
    client.force_login(user)
    for model, id, words in (("stripeinvoice", invoice["id"], "25.00 USD"), ("stripepayment", intent["id"], "10.00 USD")):
        listed = client.get(reverse(f"admin:billing_{model}_changelist"), {"within": "all", "q": id}).content.decode()
        assert words in listed
        page = client.get(reverse(f"admin:billing_{model}_change", args=[quote(id)])).content.decode()
        assert words in page
        assert "https://stripe.test/" in page
