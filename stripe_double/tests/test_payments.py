"""Payment intents, charges and fees, refunds, disputes, saved cards, one-off invoices."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from stripe_double import cards
from stripe_double.tests.conftest import Client


def pay(client: Client, cents: int = 1000, card: str = "pm_card_visa", **more: Any) -> stripe.PaymentIntent:
    given: Any = {"amount": cents, "currency": "usd", "payment_method": card, "confirm": True} | more
    return client.v1.payment_intents.create(given)


def charge_of(client: Client, intent: stripe.PaymentIntent) -> stripe.Charge:
    return client.v1.charges.retrieve(str(intent.latest_charge), {"expand": ["balance_transaction"]})


@pytest.mark.parametrize(("cents", "fee"), [(50, 31), (1000, 59), (2500, 103), (1050, 60), (1051, 60), (1086, 61), (99_999_999, 2_900_030)])
def test_a_charge_pays_2_point_9_percent_and_30_cents(client: Client, cents: int, fee: int) -> None:
    move = charge_of(client, pay(client, cents)).balance_transaction
    assert isinstance(move, stripe.BalanceTransaction)
    assert (move.amount, move.fee, move.net, move.fee_details[0].amount) == (cents, fee, cents - fee, fee)


@pytest.mark.parametrize(
    "number", [number for number, card in cards.CARDS.items() if card.brand != "bank" and card.charge != "requires_action"]
)
def test_each_card_does_what_it_says(client: Client, number: str) -> None:
    card = cards.CARDS[number]
    if card.charge == "succeeded":
        assert pay(client, card=f"pm_card_{card.name}").status == "succeeded"
        return
    with pytest.raises(stripe.CardError) as refused:
        pay(client, card=f"pm_card_{card.name}")
    code = card.charge if card.charge in cards.OWN_CODES else "card_declined"
    assert (refused.value.http_status, refused.value.code) == (402, code)
    intent = client.v1.payment_intents.list().data[0]
    assert (intent.status, intent.amount_received) == ("requires_payment_method", 0)
    assert intent.last_payment_error is not None
    charge = charge_of(client, intent)
    assert (charge.status, charge.failure_code, charge.balance_transaction) == ("failed", code, None)
    assert client.events()[-2:] == ["charge.failed", "payment_intent.payment_failed"]


def test_a_card_that_wants_authentication_asks_for_it_and_off_session_declines(client: Client) -> None:
    assert pay(client, card="pm_card_authenticationRequired").status == "requires_action"
    with pytest.raises(stripe.CardError) as refused:
        pay(client, card="pm_card_authenticationRequired", off_session=True)
    assert refused.value.code == "authentication_required"


@pytest.mark.parametrize(
    ("account", "end"), [("pm_usBankAccount", "succeeded"), ("pm_usBankAccountInsufficientFunds", "requires_payment_method")]
)
def test_a_bank_debit_is_processing_until_it_ends_one_way_or_the_other(client: Client, account: str, end: str) -> None:
    client.control("POST", "/settings", settlement_seconds=3 * 86_400)
    intent = pay(client, card=account)
    assert (intent.status, charge_of(client, intent).status) == ("processing", "pending")
    client.advance(days=2.9)
    assert client.v1.payment_intents.retrieve(intent.id).status == "processing"
    client.advance(days=0.2)
    assert client.v1.payment_intents.retrieve(intent.id).status == end
    assert charge_of(client, intent).status == ("succeeded" if end == "succeeded" else "failed")


def test_a_bank_debit_can_be_ended_by_hand_against_its_number(client: Client) -> None:
    intent = pay(client, card="pm_usBankAccount")
    client.control("POST", f"/payment_intents/{intent.id}/settle", outcome="failed")
    assert client.v1.payment_intents.retrieve(intent.id).status == "requires_payment_method"


def test_refunds_add_up_to_the_charge_and_no_further(client: Client) -> None:
    intent = pay(client, 1000)
    for cents, status in ((200, False), (300, False), (500, True)):
        refund = client.v1.refunds.create({"payment_intent": intent.id, "amount": cents, "reason": "requested_by_customer"})
        assert (refund.status, charge_of(client, intent).refunded) == ("succeeded", status)
    charge = charge_of(client, intent)
    assert charge.amount_refunded == 1000
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.refunds.create({"charge": charge.id})
    assert refused.value.code == "charge_already_refunded"
    events = client.events()
    assert (events.count("refund.created"), events.count("charge.refunded")) == (3, 3)
    moves = client.v1.balance_transactions.list().data
    assert sum(move.amount for move in moves) == 0
    assert sum(move.net for move in moves) == -59  # the fee stays with Stripe


@pytest.mark.parametrize("cents", [0, -1, 1001])
def test_a_refund_of_more_than_is_left_is_refused(client: Client, cents: int) -> None:
    intent = pay(client, 1000)
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.refunds.create({"payment_intent": intent.id, "amount": cents})
    assert charge_of(client, intent).amount_refunded == 0


def test_a_refund_that_fails_later_gives_the_money_back(client: Client) -> None:
    intent = pay(client, 1000)
    refund = client.v1.refunds.create({"payment_intent": intent.id, "amount": 400})
    client.control("POST", f"/refunds/{refund.id}/fail")
    failed = client.v1.refunds.retrieve(refund.id)
    assert (failed.status, failed.failure_reason) == ("failed", "lost_or_stolen_card")
    assert charge_of(client, intent).amount_refunded == 0
    assert {"refund.failed", "refund.updated"} <= set(client.events())
    assert sum(move.amount for move in client.v1.balance_transactions.list().data) == 1000


@pytest.mark.parametrize(("outcome", "net"), [("won", 1000 - 59 - 1500), ("lost", -59 - 1500)])
def test_a_dispute_takes_the_money_and_gives_it_back_if_it_is_won(client: Client, outcome: str, net: int) -> None:
    charge = charge_of(client, pay(client, 1000))
    dispute = client.control("POST", "/disputes", charge=charge.id)
    assert charge_of(client, pay(client)).disputed is False
    assert client.v1.charges.retrieve(charge.id).disputed is True
    with pytest.raises(stripe.InvalidRequestError, match="charged back"):
        client.v1.refunds.create({"charge": charge.id})
    submitted = client.v1.disputes.update(dispute["id"], {"evidence": {"uncategorized_text": "They used it."}})
    assert (submitted.status, submitted.evidence.uncategorized_text) == ("under_review", "They used it.")
    client.control("POST", f"/disputes/{dispute['id']}/close", outcome=outcome)
    assert client.v1.disputes.retrieve(dispute["id"]).status == outcome
    assert client.raw("POST", f"/_control/disputes/{dispute['id']}/close", b'{"outcome": "won"}', Content_Type="application/json")[0] == 400
    own = [move for move in client.v1.balance_transactions.list().data if move.source in {charge.id, dispute["id"]}]
    assert sum(move.net for move in own) == net
    said = [event for event in client.events() if event.startswith("charge.dispute")]
    expected = ["created", "funds_withdrawn", "updated", "closed"] + (["funds_reinstated"] if outcome == "won" else [])
    assert said == [f"charge.dispute.{name}" for name in expected]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/disputes", b'{"charge": "ch_none"}', 400),
        ("/disputes", b"[]", 400),
        ("/disputes", b"{", 400),
        ("/disputes/du_none/close", b'{"outcome": "won"}', 404),
        ("/settings", b'{"retry_days": [0]}', 400),
        ("/settings", b'{"nothing": 1}', 400),
        ("/settings", b'{"settlement_seconds": "1"}', 400),
        ("/settings", b'{"webhook_retry_seconds": -1}', 400),
        ("/fault", b'{"mode": "sudden"}', 400),
        ("/fault", b'{"mode": "slow", "seconds": 1e9}', 400),
        ("/nothing", b"{}", 404),
    ],
)
def test_a_switch_that_makes_no_sense_is_refused(client: Client, path: str, body: bytes, status: int) -> None:
    assert client.raw("POST", f"/_control{path}", body, Content_Type="application/json")[0] == status


def test_the_switches_take_no_form_of_a_foreign_page(client: Client) -> None:
    assert client.raw("POST", "/_control/clock", b'{"advance": 1}', Content_Type="text/plain")[0] == 415
    assert client.raw("GET", "/_control", Host="evil.example:80")[0] == 403


# Saved cards


def test_a_card_is_attached_used_off_session_and_detached(client: Client) -> None:
    customer = client.customer()
    (method,) = client.v1.customers.payment_methods.list(customer.id).data
    assert method.card is not None
    assert (method.card.last4, method.card.brand) == ("4242", "visa")
    assert pay(client, card=method.id, customer=customer.id, off_session=True).status == "succeeded"
    client.v1.payment_methods.detach(method.id)
    assert client.v1.customers.payment_methods.list(customer.id).data == []
    settings = client.v1.customers.retrieve(customer.id).invoice_settings
    assert settings is not None
    assert settings.default_payment_method is None
    with pytest.raises(stripe.InvalidRequestError, match="may not be used again"):
        client.v1.payment_methods.attach(method.id, {"customer": customer.id})


def test_the_same_card_has_the_same_fingerprint_for_all_customers(client: Client) -> None:
    prints = set()
    for _ in range(2):
        (method,) = client.v1.customers.payment_methods.list(client.customer().id).data
        assert method.card is not None
        prints.add(method.card.fingerprint)
    assert len(prints) == 1


def test_another_customers_card_cannot_be_used(client: Client) -> None:
    (method,) = client.v1.customers.payment_methods.list(client.customer().id).data
    other = client.customer(card=None)
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_methods.attach(method.id, {"customer": other.id})
    with pytest.raises(stripe.InvalidRequestError):
        pay(client, card=method.id, customer=other.id)


def test_a_setup_intent_keeps_a_card_or_says_why_not(client: Client) -> None:
    customer = client.customer(card=None)
    setup = client.v1.setup_intents.create({"customer": customer.id, "payment_method": "pm_card_mastercard", "confirm": True})
    assert setup.status == "succeeded"
    with pytest.raises(stripe.CardError):
        client.v1.setup_intents.create({"customer": customer.id, "payment_method": "pm_card_chargeDeclined", "confirm": True})
    assert {"setup_intent.succeeded", "setup_intent.setup_failed"} <= set(client.events())
    assert len(client.v1.customers.payment_methods.list(customer.id).data) == 1


def test_a_canceled_intent_cannot_be_paid(client: Client) -> None:
    intent = client.v1.payment_intents.create({"amount": 1000, "currency": "usd"})
    assert client.v1.payment_intents.cancel(intent.id, {"cancellation_reason": "abandoned"}).status == "canceled"
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_card_visa"})
    assert refused.value.code == "payment_intent_unexpected_state"


@pytest.mark.parametrize("amount", ["0", "-5", "49", "10.5", "1e3", "NaN", "١٠٠", "9" * 30, ""])
def test_an_amount_that_is_none_is_refused(client: Client, amount: str) -> None:
    given: Any = {"amount": amount, "currency": "usd"}
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_intents.create(given)


# Invoices of their own


def test_an_invoice_gathers_its_items_and_is_paid(client: Client) -> None:
    customer = client.customer()
    client.v1.invoice_items.create({"customer": customer.id, "amount": 1500, "currency": "usd", "description": "Setup"})
    client.v1.invoice_items.create({"customer": customer.id, "pricing": {"price": client.price(250, None).id}, "quantity": 4})
    invoice = client.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include", "auto_advance": False})
    assert (invoice.status, invoice.total, [line.amount for line in invoice.lines.data]) == ("draft", 2500, [1500, 1000])
    final = client.v1.invoices.finalize_invoice(invoice.id)
    assert (final.status, final.amount_due, bool(final.hosted_invoice_url)) == ("open", 2500, True)
    paid = client.v1.invoices.pay(invoice.id, {"expand": ["payments"]})
    assert paid.payments is not None
    assert (paid.status, paid.amount_paid, paid.payments.data[0].status) == ("paid", 2500, "paid")
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.invoices.pay(invoice.id)
    assert refused.value.code == "invoice_already_paid"


def test_an_open_invoice_can_be_voided_or_written_off_but_not_deleted(client: Client) -> None:
    customer = client.customer(card=None)
    ends = []
    for _ in range(2):
        client.v1.invoice_items.create({"customer": customer.id, "amount": 1500, "currency": "usd"})
        invoice = client.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
        client.v1.invoices.finalize_invoice(invoice.id)
        with pytest.raises(stripe.InvalidRequestError):
            client.v1.invoices.delete(invoice.id)
        ends.append(invoice.id)
    assert client.v1.invoices.void_invoice(ends[0]).status == "void"
    assert client.v1.invoices.mark_uncollectible(ends[1]).status == "uncollectible"
    assert [intent.status for intent in client.v1.payment_intents.list().data] == ["requires_payment_method", "canceled"]


def test_a_draft_can_be_deleted_with_its_items(client: Client) -> None:
    customer = client.customer(card=None)
    client.v1.invoice_items.create({"customer": customer.id, "amount": 1500, "currency": "usd"})
    invoice = client.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
    client.v1.invoices.delete(invoice.id)
    assert client.v1.invoice_items.list().data == []
    assert client.v1.invoices.list().data == []


def test_credit_on_the_balance_pays_first(client: Client) -> None:
    customer = client.customer(balance=-700)
    client.subscribe(customer.id, client.price(2500).id)
    (invoice,) = client.v1.invoices.list().data
    assert (invoice.total, invoice.amount_due, invoice.amount_paid, invoice.ending_balance) == (2500, 1800, 1800, 0)
    assert client.v1.charges.list().data[0].amount == 1800


def test_too_little_to_charge_waits_on_the_balance(client: Client) -> None:
    customer = client.customer(balance=-2460)
    client.subscribe(customer.id, client.price(2500).id)
    assert client.v1.invoices.list().data[0].status == "paid"
    assert client.v1.customers.retrieve(customer.id).balance == 40
    client.advance(days=32)
    assert client.v1.charges.list().data[0].amount == 2540


def test_a_tax_id_stands_on_the_customer_and_the_invoice(client: Client) -> None:
    customer = client.customer(tax_id_data=[{"type": "eu_vat", "value": "DE123456789"}], address={"country": "DE", "line1": "Weg 1"})
    client.subscribe(customer.id, client.price(2500).id)
    (invoice,) = client.v1.invoices.list().data
    assert invoice.customer_tax_ids is not None
    assert invoice.customer_tax_ids[0].value == "DE123456789"
    assert invoice.customer_address is not None
    assert invoice.customer_address.country == "DE"
    (tax,) = client.v1.customers.tax_ids.list(customer.id).data
    client.v1.customers.tax_ids.delete(customer.id, tax.id)
    assert client.v1.customers.tax_ids.list(customer.id).data == []
