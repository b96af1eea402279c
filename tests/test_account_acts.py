"""What staff do to an account beyond its wallet: money given back, another plan. Shown first, done once, and written down."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account, Approval, User
from analytics import account_search
from analytics.forms import RefundForm
from billing import audit, ledger, subscriptions
from billing.models import StripePayment, StripeRequest, Wallet
from billing.tests.selling import Shop, double, shop
from tests import factories
from tests.factories import NANOS
from tests.test_admin import page, staff, text

__all__ = ["double", "shop"]  # fixtures

pytestmark = pytest.mark.usefixtures("committed")


@pytest.fixture
def superuser(committed: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser(f"{uuid4().hex}@example.com", "correct horse battery"))
    return client


@pytest.fixture
def bought(shop: Shop) -> StripePayment:
    """A pack of 6 credits for $5.00."""
    account = shop.account()
    shop.pay(shop.buy(account))
    assert shop.settle() == set()
    return StripePayment.objects.get(account=account)


def refund(client: Client, payment: StripePayment, **fields: Any) -> Any:
    form = {"amount": "2.00", "reason": "Paid by mistake", "token": str(uuid4())} | fields
    return client.post(page(payment.account, "refund", payment.pk), form)


def words(response: Any) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", response.content.decode()).split())


def free(account: Account) -> tuple[int, int]:
    wallet = Wallet.objects.get(account=account)
    return wallet.available, wallet.debt


class TestRefund:
    def test_it_shows_first_what_it_takes_back_and_changes_nothing(self, superuser: Client, bought: StripePayment) -> None:
        assert page(bought.account, "refund", bought.pk) in text(superuser, page(bought.account))
        shown = words(refund(superuser, bought))
        assert "Credit taken back $2.40" in shown
        assert "Free now $6.00" in shown
        assert "Free afterwards $3.60" in shown
        assert not StripeRequest.objects.filter(kind="refund").filter(account=bought.account).exists()

    def test_confirmed_the_money_goes_back_once_and_the_credits_with_it(self, superuser: Client, shop: Shop, bought: StripePayment) -> None:
        token = str(uuid4())
        for _ in range(2):
            assert refund(superuser, bought, confirm="1", token=token).status_code == 302
        [made] = shop.client.v1.refunds.list({"payment_intent": bought.pk}).data
        assert made.metadata
        assert (made.amount, made.metadata["tollgate_request"]) == (200, f"refund:{token}")
        assert free(bought.account) == (3_600_000_000, 0)
        assert shop.settle() == set()
        assert free(bought.account) == (3_600_000_000, 0)
        assert LogEntry.objects.filter(object_id=str(bought.account_id), change_message__contains="Refund of 2.00 USD").count() == 1
        assert audit.run() == []

    def test_a_form_that_is_sent_again_with_another_amount_says_what_was_given_back(
        self, superuser: Client, shop: Shop, bought: StripePayment
    ) -> None:
        token = str(uuid4())
        refund(superuser, bought, confirm="1", token=token)
        response = superuser.post(
            page(bought.account, "refund", bought.pk), {"amount": "1.00", "reason": "x", "token": token, "confirm": "1"}, follow=True
        )
        assert "This form gave 2.00 USD back already" in words(response)
        assert "1.00 USD are given back" not in words(response)
        assert [made.amount for made in shop.client.v1.refunds.list({"payment_intent": bought.pk}).data] == [200]

    def test_what_was_spent_already_is_shown_as_debt_and_is_that(self, superuser: Client, shop: Shop, bought: StripePayment) -> None:
        ledger.adjust(
            account_id=bought.account_id, unit_id=shop.product.unit_id, amount_nanos=-5 * NANOS, key="x", actor="test", reason="spent"
        )
        assert "Debt $0.00 → $5.00 : it was spent already" in words(refund(superuser, bought, amount="5.00"))
        refund(superuser, bought, amount="5.00", confirm="1")
        assert free(bought.account) == (0, 5 * NANOS)

    def test_no_more_goes_back_than_was_paid_whoever_asks_and_however_it_is_sent(self, superuser: Client, bought: StripePayment) -> None:
        assert refund(superuser, bought, amount="4.00", confirm="1").status_code == 302
        assert "at most 1.00" in words(refund(superuser, bought, amount="1.01", confirm="1"))
        StripeRequest.objects.create(
            key=uuid4().hex, kind="refund", account=bought.account, path="/v1/refunds", created_at=timezone.now(),
            params={"payment_intent": bought.pk, "amount": 100}, next_attempt_at=timezone.now(),
        )  # fmt: skip
        response = superuser.get(page(bought.account, "refund", bought.pk), follow=True)
        assert "given back already, or is on its way" in words(response)

    @pytest.mark.parametrize("amount", ["", "0", "-1", "1e3", "NaN", "5.01", "1,00", "0.001", "٣", "9" * 30, "\0"])
    def test_a_garbage_amount_is_an_error_beside_its_field(self, amount: str) -> None:
        form = RefundForm({"amount": amount, "reason": "x", "token": uuid4()}, most=500, currency="usd")
        assert set(form.errors) == {"amount"}

    def test_what_stripe_refuses_is_said_and_what_it_does_not_answer_is_sent_again(
        self, superuser: Client, shop: Shop, bought: StripePayment
    ) -> None:
        shop.client.control("POST", "/fault", mode="500_before", path="/v1/refunds")
        refund(superuser, bought, confirm="1")
        shop.client.control("DELETE", "/fault")
        assert StripeRequest.objects.get(kind="refund", account=bought.account).state == "pending"
        shop.client.v1.refunds.create({"payment_intent": bought.pk})
        response = superuser.post(
            page(bought.account, "refund", bought.pk), {"amount": "3.00", "reason": "x", "token": uuid4(), "confirm": "1"}, follow=True
        )
        assert "Stripe refused" in words(response)

    def test_only_who_may_gives_back_and_only_of_this_account(self, shop: Shop, bought: StripePayment) -> None:
        assert refund(staff("accounts.view_account"), bought, confirm="1").status_code == 403
        finance = staff("accounts.view_account", "billing.refund_stripepayment")
        assert finance.get(page(shop.account(), "refund", bought.pk)).status_code == 404
        assert finance.get(page(bought.account, "refund", "pi_nobody")).status_code == 404
        StripePayment.objects.filter(pk=bought.pk).update(disputed=True)
        response = finance.get(page(bought.account, "refund", bought.pk), follow=True)
        assert "The bank disputes it" in words(response)

    def test_support_asks_for_it_and_finance_gives_it_back_once(self, bought: StripePayment) -> None:
        support = staff("accounts.view_account", "accounts.view_approval", "billing.add_operation")
        finance = staff("accounts.view_account", "accounts.view_approval", "billing.refund_stripepayment")
        assert page(bought.account, "refund", bought.pk) in text(support, page(bought.account))
        shown = words(refund(support, bought))
        assert ("Ask a second person" in shown, "Give it back" in shown) == (True, False)
        refund(support, bought, confirm="1")
        refund(support, bought, confirm="1")  # another form, the same refund
        asked = Approval.objects.get(kind="refund", payload__payment=bought.pk)
        assert "It takes $2.40 of that." in asked.before
        assert not StripeRequest.objects.filter(kind="refund", account=bought.account).exists()
        decide = reverse("admin:accounts_approval_decide", args=[asked.pk])
        assert support.post(decide, {"decision": "approve"}).status_code == 403
        for _ in range(2):
            finance.post(decide, {"decision": "approve", "note": ""})
        [sent] = StripeRequest.objects.filter(kind="refund", account=bought.account)
        assert (sent.params["amount"], sent.state) == (200, "pending")
        for amount in ("3.01", "0", "-1", "x", "9" * 40):
            refund(support, bought, amount=amount, confirm="1")
        assert Approval.objects.filter(kind="refund", payload__payment=bought.pk).count() == 1


def test_a_charge_and_its_refund_are_asked_of_stripe_to_find_the_account(superuser: Client, shop: Shop, bought: StripePayment) -> None:
    charge = shop.client.v1.payment_intents.retrieve(bought.pk).latest_charge
    given_back = shop.client.v1.refunds.create({"payment_intent": bought.pk, "amount": 100})
    find = page(bought.account).replace(f"{bought.account_id}/change/", "find/")
    for known_by in (str(charge), given_back.id):
        assert superuser.get(find, {"q": known_by}).headers["Location"] == page(bought.account)
    assert account_search.find("ch_nobody") == account_search.Found()


def change(client: Client, account: Account, plan: str, **fields: Any) -> Any:
    return client.post(page(account, "plan"), {"plan": plan, "until": "", "reason": "Asked by mail", "token": str(uuid4())} | fields)


class TestPlan:
    def test_where_stripe_collects_an_upgrade_shows_its_charge_and_counts_at_once(self, superuser: Client, shop: Shop) -> None:
        account = shop.account()
        shop.pay(shop.subscribe(account))
        assert shop.settle() == set()
        shown = words(change(superuser, account, "pro"))
        assert re.search(r"Pro counts at once, at 30.00 USD each month. The customer’s card is charged (19|20)\.\d\d USD now.", shown)
        assert on(account) == ("core", "active")
        assert "tried until a day" in words(change(superuser, account, "pro", until="2099-01-01", confirm="1"))
        assert change(superuser, account, "pro", confirm="1").status_code == 302
        assert on(account) == ("pro", "active")
        assert LogEntry.objects.filter(object_id=str(account.pk), change_message="Plan pro: Asked by mail").count() == 1
        assert "Core counts from" in words(change(superuser, account, "core"))
        assert shop.settle() == set()

    def test_where_nobody_pays_a_plan_with_a_price_is_tried_until_a_day(self, superuser: Client, shop: Shop) -> None:
        account, day = shop.account(), (timezone.now() + timedelta(days=14)).date()
        assert "say until when it is tried" in words(change(superuser, account, "pro", confirm="1"))
        assert "free and without its included credit" in words(change(superuser, account, "pro", until=day))
        assert on(account) == ("free", "active")
        assert change(superuser, account, "pro", until=day, confirm="1").status_code == 302
        assert on(account) == ("pro", "trialing")
        assert change(superuser, account, "free", confirm="1").status_code == 302
        assert on(account) == ("free", "active")
        assert "on this plan already" in words(change(superuser, account, "free", confirm="1"))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"plan": "nobody"},
            {"plan": ""},
            {"until": "x"},
            {"until": "0001-01-01"},
            {"until": "9999-12-31"},
            {"reason": ""},
            {"token": "x"},
        ],
    )
    def test_garbage_changes_nothing(self, superuser: Client, wrong: dict[str, str]) -> None:
        account = factories.make_account()
        response = superuser.post(
            page(account, "plan"), {"plan": "free", "until": "", "reason": "x", "token": uuid4(), "confirm": "1"} | wrong
        )
        assert response.status_code == 200
        assert on(account) == ("free", "active")

    def test_it_takes_the_right_to_change_subscriptions(self, superuser: Client) -> None:
        account = factories.make_account()
        assert change(staff("accounts.view_account", "billing.add_operation"), account, "free").status_code == 403
        assert page(account, "plan") in text(superuser, page(account))


def on(account: Account) -> tuple[str, str]:
    live = subscriptions.current(account_id=account.pk)
    assert live is not None
    return live.plan_version.plan.slug, live.status
