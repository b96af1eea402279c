"""Credits come once from what was paid at its price, and go back with the money, in whatever order the events come."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest
import stripe
from django.db import IntegrityError, transaction

from accounts.models import Account
from billing import audit, ledger, stripe_inbox
from billing.models import Grant, LedgerEntry, Operation, PaidTime, StripeCustomer, StripePayment, Wallet
from billing.tests.stripe_stub import FEBRUARY, JANUARY, Obj, Stub, new
from billing.tests.test_ledger import record
from billing.tests.test_stripe_inbox import NOW, balance, receive, shop, stub, work
from pricing.models import CreditPack, Plan, PlanVersion
from tests.factories import NANOS, START, make_account

__all__ = ["shop", "stub"]  # fixtures
pytestmark = pytest.mark.django_db
CENT = NANOS // 100


@pytest.fixture
def customer(shop: Account) -> str:
    return shop.stripe_customer.pk


def happen(*events: tuple[str, Obj]) -> list[tuple[str, str]]:
    """Receives these events and works all of them; what became of each."""
    ids = [receive(type, obj).pk for type, obj in events]
    worked = {one.pk: (str(one.state), one.last_error) for one in work()}
    return [worked[pk] for pk in ids]


def grant(account: Account) -> Grant:
    return Grant.objects.defer("expires_at").get(account=account)


def announcements(stub: Stub, intent: Obj) -> list[tuple[str, Obj]]:
    return [
        ("checkout.session.completed", stub.session_of(intent)),
        ("payment_intent.succeeded", intent),
        ("charge.refunded", intent["latest_charge"]),
    ]


class TestPacks:
    def test_a_pack_grants_its_face_value_with_the_cash_that_was_paid_and_the_fee(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000, fee=59)
        assert happen(("checkout.session.completed", stub.session_of(intent))) == [("done", "")]
        lot = grant(shop)
        assert (lot.source, lot.source_key, lot.granted, lot.currency) == ("purchased", intent["id"], 12 * NANOS, "usd")
        assert (lot.cash_nanos, lot.fee_nanos, lot.priority) == (10 * NANOS, 59 * CENT, 20)
        assert Operation.objects.get(account=shop, verb="grant").reason == f"Starter, {intent['id']}"

    @pytest.mark.failure(59)
    def test_an_invoice_a_session_and_a_payment_intent_of_one_pack_grant_once(self, stub: Stub, shop: Account, customer: str) -> None:
        """$10 announced by four events, each delivered twice."""
        sold = stub.subscription(customer, "price_pack")
        invoice = stub.invoice(sold, 1_000, parent=None)
        [intent] = [obj for obj in stub.find("payment_intent") if obj["customer"] == customer]
        session = stub.session(payment_intent=intent["id"])
        four = [
            ("checkout.session.completed", session),
            ("payment_intent.succeeded", intent),
            ("invoice.paid", invoice),
            ("invoice.payment_succeeded", invoice),
        ]
        assert happen(*four, *four) == [("done", "")] * 8
        assert balance(shop) == (12 * NANOS, 0, 0)
        assert grant(shop).source_key == intent["id"]

    @pytest.mark.failure(59)
    def test_the_same_payment_in_events_of_other_ids_grants_once(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        assert happen(*[("payment_intent.succeeded", intent)] * 10) == [("done", "")] * 10
        assert balance(shop) == (12 * NANOS, 0, 0)

    @pytest.mark.failure(64)
    def test_an_invoice_that_is_paid_before_stripe_says_by_what_waits_and_grants_once(
        self, stub: Stub, shop: Account, customer: str
    ) -> None:
        sold = stub.subscription(customer, "price_pack")
        invoice = stub.invoice(sold, 1_000, parent=None)
        [payment] = invoice["payments"]["data"]
        payment["status"] = "open"
        assert happen(("invoice.paid", invoice))[0][0] == "pending"
        with pytest.raises(
            stripe.StripeError, match="does not say yet by which payment"
        ):  # who looks by himself waits as for a dead Stripe
            stripe_inbox.look_at(invoice=invoice["id"], now=NOW)
        assert balance(shop) == (0, 0, 0)
        intent = stub.objects[payment["payment"]["payment_intent"]]
        assert happen(("payment_intent.succeeded", intent)) == [("done", "")]
        payment["status"] = "paid"
        assert happen(("invoice.payment_succeeded", invoice)) == [("done", "")]
        assert balance(shop) == (12 * NANOS, 0, 0)

    def test_an_invoice_that_was_paid_by_wire_grants_without_a_fee(self, stub: Stub, shop: Account, customer: str) -> None:
        sold = stub.subscription(customer, "price_pack")
        invoice = stub.invoice(sold, 1_000, parent=None, amount_paid=0, amount_paid_off_stripe=1_000)
        invoice["payments"]["data"][0]["status"] = "canceled"
        assert happen(("invoice.paid", invoice)) == [("done", "")]
        lot = grant(shop)
        assert (lot.source_key, lot.granted, lot.cash_nanos, lot.fee_nanos) == (invoice["id"], 12 * NANOS, 10 * NANOS, 0)

    @pytest.mark.parametrize("status", ["processing", "requires_action", "requires_payment_method", "canceled"])
    def test_nothing_is_granted_before_it_is_paid_and_then_at_once(self, stub: Stub, shop: Account, customer: str, status: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000, status=status, amount_received=0)
        assert happen(("checkout.session.completed", stub.session_of(intent))) == [("done", "")]
        assert balance(shop) == (0, 0, 0)
        assert StripePayment.objects.get(pk=intent["id"]).status == status
        intent |= {"status": "succeeded", "amount_received": 1_000}
        assert happen(("checkout.session.async_payment_succeeded", stub.session_of(intent))) == [("done", "")]
        assert balance(shop) == (12 * NANOS, 0, 0)

    @pytest.mark.failure(75)
    def test_a_discounted_pack_grants_the_share_that_was_paid(self, stub: Stub, shop: Account, customer: str) -> None:
        happen(("payment_intent.succeeded", stub.pack(customer, "price_pack", 1_000, discount=333)))
        lot = grant(shop)
        assert (lot.granted, lot.cash_nanos) == (12 * NANOS * 667 // 1_000, 667 * CENT)

    def test_tax_buys_no_credit_and_is_no_cash_of_ours(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        [line] = stub.session_of(intent)["line_items"]["data"]
        line |= {"amount_tax": 190, "amount_total": 1_190}
        stub.session_of(intent)["amount_total"] = 1_190
        intent |= {"amount": 1_190, "amount_received": 1_190}
        assert happen(("payment_intent.succeeded", intent)) == [("done", "")]
        assert (grant(shop).granted, grant(shop).cash_nanos) == (12 * NANOS, 10 * NANOS)

    def test_a_fee_that_stripe_has_not_said_yet_is_estimated_and_never_charged_twice(
        self, stub: Stub, shop: Account, customer: str
    ) -> None:
        shop.product.payment_fee_ppm, shop.product.payment_fee_cents = 29_000, 30
        shop.product.save()
        intent = stub.pack(customer, "price_pack", 1_000, fee=None)
        happen(("payment_intent.succeeded", intent))
        assert grant(shop).fee_nanos == 59 * CENT
        intent["latest_charge"]["balance_transaction"] = {"fee": 88, "amount": 1_000, "currency": "usd"}
        assert happen(("payment_intent.succeeded", intent)) == [("done", "")]
        assert (grant(shop).fee_nanos, balance(shop)) == (59 * CENT, (12 * NANOS, 0, 0))

    def test_a_fee_in_another_currency_is_converted_and_rounded_up(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        intent["latest_charge"]["balance_transaction"] = {"fee": 55, "amount": 920, "currency": "eur"}
        happen(("payment_intent.succeeded", intent))
        assert grant(shop).fee_nanos == 60 * CENT  # 59.78

    def test_several_packs_may_share_a_price_and_the_amount_says_which(self, stub: Stub, shop: Account, customer: str) -> None:
        CreditPack.objects.create(
            product=shop.product, slug="double", name="Double", valid_from=START, price_cents=2_000, credit_nanos=26 * NANOS,
            stripe_price_setting="STRIPE_TEST_PACK", expires_after_days=90,
        )  # fmt: skip
        bought_at = int(time.time())
        happen(("payment_intent.succeeded", stub.pack(customer, "price_pack", 2_000, quantity=2, created=bought_at)))
        lot = Grant.objects.get(account=shop)
        assert lot.granted == 26 * NANOS
        assert lot.expires_at.timestamp() == bought_at + 90 * 86_400
        assert happen(("payment_intent.succeeded", stub.pack(customer, "price_pack", 3_000, quantity=3))) == [("done", "")]
        assert balance(shop) == ((26 + 36) * NANOS, 0, 0)

    def test_a_purchase_has_the_terms_of_its_own_time_also_when_the_pack_has_gone_since(
        self, stub: Stub, shop: Account, customer: str
    ) -> None:
        CreditPack.objects.filter(product=shop.product).update(available=False)
        CreditPack.objects.create(
            product=shop.product, slug="starter", version=2, name="Starter", valid_from=START + timedelta(days=5), price_cents=1_000,
            credit_nanos=11 * NANOS, stripe_price_setting="STRIPE_TEST_PACK",
        )  # fmt: skip
        happen(("payment_intent.succeeded", stub.pack(customer, "price_pack", 1_000)))
        assert balance(shop) == (12 * NANOS, 0, 0)
        happen(("payment_intent.succeeded", stub.pack(customer, "price_pack", 1_000, created=JANUARY + 6 * 86_400)))
        assert balance(shop) == (23 * NANOS, 0, 0)


def more_paid(stub: Stub, intent: Obj) -> None:
    intent["amount_received"] = 1_001


def other_currency(stub: Stub, intent: Obj) -> None:
    intent["currency"] = "eur"


def whole_session_in_euros(stub: Stub, intent: Obj) -> None:
    intent["currency"] = "eur"
    stub.session_of(intent)["line_items"]["data"][0]["currency"] = "eur"


def two_things(stub: Stub, intent: Obj) -> None:
    stub.session_of(intent)["line_items"]["data"] *= 2


def other_amount(stub: Stub, intent: Obj) -> None:
    intent["amount_received"] = stub.session_of(intent)["amount_total"] = 700
    stub.session_of(intent)["line_items"]["data"][0] |= {"amount_subtotal": 700, "amount_total": 700}


def unknown_price(stub: Stub, intent: Obj) -> None:
    stub.session_of(intent)["line_items"]["data"][0]["price"]["id"] = "price_unknown"


class TestQuarantine:
    @pytest.mark.failure(75)
    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            (more_paid, "1001 usd were paid, 1000 were due."),
            (other_currency, "priced in another currency"),
            (whole_session_in_euros, "No pack of"),
            (two_things, "paid for 2 things"),
            (other_amount, "costs 700 usd"),
            (unknown_price, "The price price_unknown is of no pack of"),
        ],
    )
    def test_what_is_not_what_the_catalog_says_grants_nothing_and_is_kept_for_staff(
        self, stub: Stub, shop: Account, customer: str, spoil: Callable[[Stub, Obj], None], why: str
    ) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        spoil(stub, intent)
        [(state, reason)] = happen(("payment_intent.succeeded", intent))
        assert state == "quarantined"
        assert why in reason
        assert balance(shop) == (0, 0, 0)

    @pytest.mark.failure(68)
    def test_once_it_is_put_right_the_same_event_grants(
        self, stub: Stub, shop: Account, customer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("STRIPE_TEST_PACK")
        intent = stub.pack(customer, "price_pack", 1_000)
        assert happen(("payment_intent.succeeded", intent))[0][0] == "quarantined"
        monkeypatch.setenv("STRIPE_TEST_PACK", "price_pack")
        assert happen(("payment_intent.succeeded", intent)) == [("done", "")]
        assert balance(shop) == (12 * NANOS, 0, 0)

    def test_a_pack_of_another_product_is_not_this_customers(self, stub: Stub, shop: Account) -> None:
        stranger = StripeCustomer.objects.create(id=new("cus"), account=make_account())
        assert happen(("payment_intent.succeeded", stub.pack(stranger.pk, "price_pack", 1_000)))[0][0] == "quarantined"
        assert balance(stranger.account) == (0, 0, 0)


class TestRefunds:
    @pytest.mark.failure(13)
    def test_two_dollars_and_three_in_either_order_each_twice_come_to_the_same(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        first, second = stub.refund(intent, 200), stub.refund(intent, 300)
        both = [("refund.created", first), ("refund.created", second), ("charge.refunded", intent["latest_charge"])]
        assert {state for state, _ in happen(*both, *reversed(both))} == {"done"}
        assert balance(shop) == (6 * NANOS, 0, 0)
        assert (grant(shop).clawed, grant(shop).refunded) == (6 * NANOS, 6 * NANOS)

    @pytest.mark.failure(13)
    @pytest.mark.parametrize("amounts", [(200, 300), (300, 200)])
    def test_refunds_that_are_told_as_they_happen_and_twice_come_to_the_same_as_told_at_once(
        self, stub: Stub, shop: Account, customer: str, amounts: tuple[int, int]
    ) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        happen(("payment_intent.succeeded", intent))
        for amount in amounts:
            told = [("refund.created", stub.refund(intent, amount)), ("charge.refunded", intent["latest_charge"])]
            assert happen(*told, *told) == [("done", "")] * 4
            if amount == amounts[0]:
                assert balance(shop) == (12 * NANOS * (1_000 - amount) // 1_000, 0, 0)
        assert balance(shop) == (6 * NANOS, 0, 0)
        assert (grant(shop).clawed, grant(shop).refunded) == (6 * NANOS, 6 * NANOS)

    @pytest.mark.failure(12)
    def test_a_refund_after_70_of_100_were_spent_leaves_70_owed_and_the_next_100_leave_30(
        self, stub: Stub, shop: Account, customer: str
    ) -> None:
        CreditPack.objects.create(
            product=shop.product, slug="hundred", name="Hundred", valid_from=START, price_cents=10_000, credit_nanos=100 * NANOS,
            stripe_price_setting="STRIPE_TEST_PACK",
        )  # fmt: skip
        intent = stub.pack(customer, "price_pack", 10_000)
        happen(("payment_intent.succeeded", intent))
        record(shop, 70 * NANOS)
        stub.refund(intent, 10_000)
        assert happen(("charge.refunded", intent["latest_charge"])) == [("done", "")]
        assert balance(shop) == (0, 70 * NANOS, 0)
        happen(("payment_intent.succeeded", stub.pack(customer, "price_pack", 10_000)))
        assert balance(shop) == (30 * NANOS, 0, 0)

    def test_a_refund_whose_payment_was_never_announced_grants_and_takes_back(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        stub.refund(intent, 1_000)
        assert happen(("charge.refunded", intent["latest_charge"])) == [("done", "")]
        assert balance(shop) == (0, 0, 0)
        assert list(LedgerEntry.objects.filter(account=shop).order_by("seq").values_list("kind", flat=True)) == ["grant", "refund"]

    def test_the_fee_of_a_refunded_payment_stays_a_cost(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000, fee=59)
        stub.refund(intent, 1_000)
        happen(("charge.refunded", intent["latest_charge"]))
        assert grant(shop).fee_nanos == 59 * CENT

    @pytest.mark.failure(75)
    def test_a_refund_that_fails_later_is_told_to_staff(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        refund = stub.refund(intent, 500)
        happen(("refund.created", refund))
        intent["latest_charge"]["amount_refunded"] = 0
        [(state, reason)] = happen(("refund.failed", refund))
        assert state == "quarantined"
        assert "6000000000 nanos that it took are to be given back" in reason
        assert balance(shop) == (6 * NANOS, 0, 0)


class TestDisputes:
    def test_a_dispute_freezes_what_is_left_and_a_won_one_gives_exactly_that_back(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        happen(("payment_intent.succeeded", intent))
        record(shop, 2 * NANOS)
        dispute = stub.dispute(intent, 1_000)
        assert happen(("charge.dispute.created", dispute), ("charge.dispute.funds_withdrawn", dispute)) == [("done", "")] * 2
        assert (balance(shop), grant(shop).frozen) == ((0, 0, 0), 10 * NANOS)
        assert StripePayment.objects.get(pk=intent["id"]).disputed
        dispute["status"] = "won"
        assert happen(("charge.dispute.closed", dispute), ("charge.dispute.funds_reinstated", dispute)) == [("done", "")] * 2
        assert (balance(shop), grant(shop).frozen) == ((10 * NANOS, 0, 0), 0)

    def test_a_lost_dispute_takes_its_share_and_gives_back_the_rest_of_what_it_froze(
        self, stub: Stub, shop: Account, customer: str
    ) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        dispute = stub.dispute(intent, 400)
        happen(("charge.dispute.created", dispute))
        assert grant(shop).frozen == 12 * NANOS
        dispute["status"] = "lost"
        happen(("charge.dispute.closed", dispute))
        assert (balance(shop), grant(shop).frozen) == ((7_200_000_000, 0, 0), 0)

    def test_a_lost_dispute_after_all_was_spent_is_owed(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        happen(("payment_intent.succeeded", intent))
        record(shop, 12 * NANOS)
        stub.dispute(intent, 1_000, "lost")
        happen(("charge.dispute.closed", stub.find("dispute", payment_intent=intent["id"])[0]))
        assert balance(shop) == (0, 12 * NANOS, 0)

    def test_a_refund_and_a_lost_dispute_never_take_more_than_was_paid(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        stub.refund(intent, 700)
        dispute = stub.dispute(intent, 1_000, "lost")
        assert happen(("charge.dispute.closed", dispute)) == [("done", "")]
        assert balance(shop) == (0, 0, 0)

    @pytest.mark.parametrize("status", ["warning_needs_response", "warning_under_review", "warning_closed", "prevented"])
    def test_an_inquiry_freezes_nothing(self, stub: Stub, shop: Account, customer: str, status: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        assert happen(("charge.dispute.created", stub.dispute(intent, 1_000, status))) == [("done", "")]
        assert (balance(shop), grant(shop).frozen) == ((12 * NANOS, 0, 0), 0)

    def test_while_one_of_two_disputes_is_open_all_stays_frozen(self, stub: Stub, shop: Account, customer: str) -> None:
        intent = stub.pack(customer, "price_pack", 1_000)
        first, second = stub.dispute(intent, 500), stub.dispute(intent, 500)
        happen(("charge.dispute.created", first), ("charge.dispute.created", second))
        first["status"] = "won"
        happen(("charge.dispute.closed", first))
        assert grant(shop).frozen == 12 * NANOS
        second["status"] = "won"
        happen(("charge.dispute.closed", second))
        assert balance(shop) == (12 * NANOS, 0, 0)


class TestPaidTime:
    """What an invoice charges beyond the credit that it brings is booked for the time it pays for."""

    @pytest.fixture
    def subscribe(self, stub: Stub, shop: Account, customer: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Obj]:
        def subscribe(included: int = 0, amount: int = 2_000, **fields: Any) -> Obj:
            monkeypatch.setenv("STRIPE_TEST_PLAN", "price_plan")
            plan = Plan.objects.create(product=shop.product, slug="core", name="Core", rank=2)
            PlanVersion.objects.create(
                plan=plan, valid_from=START, price_cents=2_000, rate_card="standard", included_credit_nanos=included,
                stripe_price_setting="STRIPE_TEST_PLAN",
            )  # fmt: skip
            return stub.invoice(stub.subscription(customer, "price_plan"), amount, **fields)

        return subscribe

    def booked(self) -> list[tuple[int, int, int]]:
        return list(PaidTime.objects.order_by("pk").values_list("cash_nanos", "fee_nanos", "back_nanos"))

    def test_a_plan_without_credit_is_booked_once_for_its_period_with_its_fee(self, subscribe: Callable[..., Obj]) -> None:
        invoice = subscribe()
        assert happen(("invoice.paid", invoice), ("invoice.payment_succeeded", invoice)) == [("done", "")] * 2
        assert self.booked() == [(20 * NANOS, 103 * CENT, 0)]
        row = PaidTime.objects.get()
        assert (row.starts_at.timestamp(), row.ends_at.timestamp()) == (JANUARY, FEBRUARY)

    def test_tax_is_no_cash_of_ours(self, subscribe: Callable[..., Obj]) -> None:
        taxed = subscribe(total_taxes=[{"amount": 300, "tax_behavior": "inclusive"}])
        happen(("invoice.paid", taxed))
        assert self.booked() == [(17 * NANOS, 103 * CENT, 0)]

    def test_a_plan_whose_credit_is_all_that_it_sells_books_no_time(self, subscribe: Callable[..., Obj], shop: Account) -> None:
        happen(("invoice.paid", subscribe(included=30 * NANOS)))
        assert (self.booked(), grant(shop).cash_nanos) == ([], 20 * NANOS)

    def test_refunds_take_their_share_back_once_each(self, stub: Stub, subscribe: Callable[..., Obj], customer: str) -> None:
        invoice = subscribe()
        happen(("invoice.paid", invoice))
        [intent] = [obj for obj in stub.find("payment_intent") if obj["customer"] == customer]
        for refunded in (500, 500, 2_000):
            intent["latest_charge"]["amount_refunded"] = refunded
            assert happen(("charge.refunded", intent["latest_charge"])) == [("done", "")]
        assert self.booked() == [(20 * NANOS, 103 * CENT, 0), (0, 0, 5 * NANOS), (0, 0, 15 * NANOS)]

    def test_what_was_booked_is_never_changed_or_removed(self, subscribe: Callable[..., Obj]) -> None:
        happen(("invoice.paid", subscribe()))
        for act in (lambda: PaidTime.objects.update(cash_nanos=0), lambda: PaidTime.objects.all().delete()):
            with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
                act()


class Undone(Exception):
    """Rolls a try back."""


def digest(account: Account) -> object:
    """All that the ledger and the mirror of Stripe say of an account, without row ids and times of recording."""
    lots = Grant.objects.filter(account=account).order_by("source", "source_key")
    return (
        list(
            lots.values_list(
                "source", "source_key", "granted", "remaining", "frozen", "clawed", "refunded", "cash_nanos", "fee_nanos", "closed"
            )
        ),
        sorted(
            LedgerEntry.objects.filter(account=account).values_list("seq", "kind", "amount", "debt_delta", "balance_after", "debt_after")
        ),
        sorted(Operation.objects.filter(account=account).values_list("verb", "key_hash", "amount", "actor", "reason")),
        list(Wallet.objects.filter(account=account).values_list("balance", "held", "debt", "seq")),
        sorted(StripePayment.objects.filter(account=account).values_list("id", "status", "paid", "refunded", "disputed")),
    )


class TestOrders:
    def test_every_order_of_a_purchases_events_leaves_the_same_rows(self, stub: Stub, shop: Account, customer: str) -> None:
        """A $10 pack, $2 and then $1 refunded, a dispute of $4 lost: 120 orders."""
        intent = stub.pack(customer, "price_pack", 1_000)
        stub.refund(intent, 200)
        told = [*announcements(stub, intent), ("refund.created", stub.refund(intent, 100))]
        told.append(("charge.dispute.closed", stub.dispute(intent, 400, "lost")))
        assert len({repr(outcome(shop, order)) for order in permutations(told)}) == 1

    def test_events_told_as_things_happen_end_where_events_told_afterwards_end(self, stub: Stub, shop: Account, customer: str) -> None:
        """40 random interleavings of what happens at Stripe and of deliveries, each 1 to 4 times: one balance, one grant."""
        ends = set()
        for seed in range(40):
            dice = random.Random(seed)
            sign = transaction.savepoint()
            intent = stub.pack(customer, "price_pack", 1_000)
            due = announcements(stub, intent)[:2]
            steps: list[Callable[[], tuple[str, Obj]]] = [
                lambda intent=intent: ("refund.created", stub.refund(intent, 200)),  # type: ignore[misc]
                lambda intent=intent: ("charge.dispute.created", stub.dispute(intent, 500)),  # type: ignore[misc]
                lambda intent=intent: ("refund.created", stub.refund(intent, 300)),  # type: ignore[misc]
                lambda intent=intent: ("charge.dispute.closed", close(stub, intent)),  # type: ignore[misc]
            ]
            while steps or due:
                if steps and (not due or dice.random() < 0.4):
                    due += [steps.pop(0)()] * dice.randint(1, 4)
                else:
                    happen(due.pop(dice.randrange(len(due))))
            lot = grant(shop)
            ends.add((balance(shop), lot.granted, lot.remaining, lot.frozen, lot.clawed, lot.refunded))
            assert seed % 10 or audit.run() == []
            transaction.savepoint_rollback(sign)
        assert ends == {((6 * NANOS, 0, 0), 12 * NANOS, 6 * NANOS, 0, 6 * NANOS, 6 * NANOS)}


def close(stub: Stub, intent: Obj) -> Obj:
    [dispute] = stub.find("dispute", payment_intent=intent["id"])
    dispute["status"] = "won"
    return dispute


def outcome(account: Account, events: Any) -> object:
    """What these events lead to from here; nothing of it stays."""
    seen: list[object] = []
    try:
        with transaction.atomic():
            happen(*events)
            seen.append(digest(account))
            raise Undone
    except Undone:
        return seen[0]


def test_what_was_not_paid_for_cannot_be_refunded(shop: Account) -> None:
    with pytest.raises(ledger.NotFound):
        ledger.refund(
            account_id=shop.pk, source="purchased", source_key="pi_none", refunded=1, paid=1, key="k", actor="test", reason="test"
        )
