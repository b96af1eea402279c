"""The hosted pages as a browser posts them: Checkout, the portal, an invoice."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

import pytest
import stripe

from stripe_double.tests.conftest import Client

PROCESSING, FAILS_LATER = "000123456789", "000222222227"


def begin(client: Client, mode: str = "payment", **more: Any) -> stripe.checkout.Session:
    given: Any = {"mode": mode, "success_url": "http://shop.test/ok?s={CHECKOUT_SESSION_ID}", "cancel_url": "http://shop.test/no"} | more
    return client.v1.checkout.sessions.create(given)


def pack(client: Client, cents: int = 1000, **more: Any) -> stripe.checkout.Session:
    data = {"currency": "usd", "unit_amount": cents, "product_data": {"name": "Credits"}}
    return begin(client, line_items=[{"price_data": data, "quantity": 1}], **more)


def submit(client: Client, session: stripe.checkout.Session, number: str = "4242 4242 4242 4242", **more: str) -> tuple[int, str]:
    return client.post(str(session.url), **({"number": number, "email": "ada@example.com", "name": "Ada"} | more))


def page(url: str | None) -> str:
    with urllib.request.urlopen(str(url)) as answer:
        return str(answer.read().decode())


def again(client: Client, session: stripe.checkout.Session) -> stripe.checkout.Session:
    return client.v1.checkout.sessions.retrieve(session.id)


def test_a_pack_is_bought_and_the_browser_comes_back(client: Client) -> None:
    session = pack(client, metadata={"account": "7"}, payment_intent_data={"metadata": {"pack": "small"}}, client_reference_id="7")
    assert "10.00 USD" in page(session.url)
    assert submit(client, session) == (303, f"http://shop.test/ok?s={session.id}")
    done = again(client, session)
    assert (done.status, done.payment_status, done.amount_total, done.url) == ("complete", "paid", 1000, None)
    intent = client.v1.payment_intents.retrieve(str(done.payment_intent))
    assert (intent.status, intent.metadata.to_dict()) == ("succeeded", {"pack": "small"})
    assert client.events()[-3:] == ["charge.succeeded", "payment_intent.succeeded", "checkout.session.completed"]
    assert client.v1.checkout.sessions.line_items.list(session.id).data[0].amount_total == 1000


def test_pressing_pay_twice_charges_once(client: Client) -> None:
    session = pack(client)
    first = submit(client, session)
    assert submit(client, session) == first
    assert len(client.v1.charges.list().data) == 1
    assert client.events().count("checkout.session.completed") == 1


def test_a_declined_card_is_told_and_another_one_pays_with_the_same_intent(client: Client) -> None:
    session = pack(client)
    status, told = submit(client, session, "4000000000009995")
    assert (status, "insufficient funds" in told) == (402, True)
    assert again(client, session).status == "open"
    assert submit(client, session)[0] == 303
    assert len(client.v1.payment_intents.list().data) == 1
    assert [charge.status for charge in client.v1.charges.list().data] == ["succeeded", "failed"]


@pytest.mark.parametrize(("answer", "status", "paid"), [("yes", 303, "paid"), ("no", 402, "unpaid")])
def test_a_bank_that_asks_gets_its_page(client: Client, answer: str, status: int, paid: str) -> None:
    session = pack(client)
    code, asked = submit(client, session, "4000002760003184")
    assert (code, "Complete authentication" in asked) == (200, True)
    assert submit(client, session, "4000002760003184", authenticated=answer)[0] == status
    assert again(client, session).payment_status == paid


@pytest.mark.parametrize(
    ("number", "event", "paid"),
    [
        (PROCESSING, "checkout.session.async_payment_succeeded", "paid"),
        (FAILS_LATER, "checkout.session.async_payment_failed", "unpaid"),
    ],
)
def test_a_bank_debit_completes_unpaid_and_ends_later(client: Client, number: str, event: str, paid: str) -> None:
    client.control("POST", "/settings", settlement_seconds=86_400)
    session = pack(client)
    assert submit(client, session, number)[0] == 303
    assert (again(client, session).status, again(client, session).payment_status) == ("complete", "unpaid")
    assert "payment_intent.succeeded" not in client.events()
    client.advance(days=1.1)
    assert again(client, session).payment_status == paid
    assert client.events()[-1] == event


def test_a_plan_is_subscribed_to_and_renews_with_the_same_card(client: Client) -> None:
    customer = client.customer(card=None)
    data = {"metadata": {"account": "7"}}
    session = begin(
        client, "subscription", customer=customer.id, line_items=[{"price": client.price(2500).id, "quantity": 1}], subscription_data=data
    )
    assert submit(client, session, "4000000000000002")[0] == 402
    assert client.v1.subscriptions.list({"status": "all"}).data == []
    assert submit(client, session)[0] == 303
    done = again(client, session)
    subscription = client.v1.subscriptions.retrieve(str(done.subscription))
    assert (done.payment_status, subscription.status, subscription.metadata.to_dict()) == ("paid", "active", {"account": "7"})
    assert client.v1.invoices.retrieve(str(done.invoice)).status == "paid"
    client.advance(days=32)
    assert [invoice.status for invoice in client.v1.invoices.list().data] == ["paid", "paid"]


@pytest.mark.parametrize(("number", "later"), [(PROCESSING, "active"), (FAILS_LATER, "past_due")])
def test_a_plan_by_bank_debit_is_active_until_the_debit_fails(client: Client, number: str, later: str) -> None:
    client.control("POST", "/settings", settlement_seconds=86_400)
    session = begin(client, "subscription", line_items=[{"price": client.price(2500).id, "quantity": 1}])
    assert submit(client, session, number)[0] == 303
    id = str(again(client, session).subscription)
    assert (client.v1.subscriptions.retrieve(id).status, again(client, session).payment_status) == ("active", "unpaid")
    client.advance(days=1.1)
    assert client.v1.subscriptions.retrieve(id).status == later


def test_a_trial_asks_for_a_card_and_no_money(client: Client) -> None:
    session = begin(
        client, "subscription", line_items=[{"price": client.price(2500).id, "quantity": 1}], subscription_data={"trial_period_days": 7}
    )
    assert session.amount_total == 0
    assert submit(client, session)[0] == 303
    done = again(client, session)
    assert (done.payment_status, client.v1.subscriptions.retrieve(str(done.subscription)).status) == ("no_payment_required", "trialing")
    client.advance(days=8)
    assert client.v1.subscriptions.retrieve(str(done.subscription)).status == "active"


def test_a_card_is_saved_in_setup_mode(client: Client) -> None:
    customer = client.customer(card=None)
    session = begin(client, "setup", customer=customer.id)
    assert submit(client, session)[0] == 303
    setup = client.v1.setup_intents.retrieve(str(again(client, session).setup_intent))
    assert (setup.status, len(client.v1.customers.payment_methods.list(customer.id).data)) == ("succeeded", 1)


def test_a_purchase_may_have_an_invoice(client: Client) -> None:
    session = pack(client, invoice_creation={"enabled": True, "invoice_data": {"metadata": {"pack": "1"}}})
    submit(client, session)
    invoice = client.v1.invoices.retrieve(str(again(client, session).invoice), {"expand": ["payments"]})
    assert invoice.payments is not None
    assert (invoice.status, invoice.amount_paid, invoice.billing_reason) == ("paid", 1000, "manual")
    assert invoice.payments.data[0].payment.payment_intent == again(client, session).payment_intent
    assert len(client.v1.charges.list().data) == 1


def test_address_and_vat_id_are_asked_for_and_kept(client: Client) -> None:
    customer, asked = client.customer(card=None), {"billing_address_collection": "required", "tax_id_collection": {"enabled": True}}
    session = begin(client, "subscription", customer=customer.id, line_items=[{"price": client.price(2500).id, "quantity": 1}], **asked)
    assert submit(client, session, vat="DE123456789")[0] == 402
    where = {"line1": "Weg 1", "postal_code": "10115", "city": "Berlin", "country": "DE"}
    assert submit(client, session, "4000000000000002", vat="DE123456789", **where)[0] == 402
    assert submit(client, session, vat="DE123456789", **where)[0] == 303
    (invoice,) = client.v1.invoices.list().data
    assert [tax.value for tax in invoice.customer_tax_ids or []] == ["DE123456789"]
    details = again(client, session).customer_details
    assert details is not None
    assert details.address is not None
    assert (details.address.city, [tax.value for tax in details.tax_ids or []]) == ("Berlin", ["DE123456789"])
    assert [tax.value for tax in client.v1.customers.tax_ids.list(customer.id).data] == ["DE123456789"]
    kept = client.v1.customers.retrieve(customer.id).address
    assert kept is not None
    assert (kept.line1, kept.country) == ("Weg 1", "DE")


def test_a_code_or_a_coupon_makes_it_cheaper_and_a_full_one_free(client: Client) -> None:
    coupon = client.v1.coupons.create({"percent_off": 25})
    client.v1.promotion_codes.create({"promotion": {"type": "coupon", "coupon": coupon.id}, "code": "QUARTER"})
    session = pack(client, allow_promotion_codes=True)
    assert submit(client, session, code="NONE")[0] == 402
    assert submit(client, session, code="QUARTER")[0] == 303
    assert (again(client, session).amount_total, client.v1.charges.list().data[0].amount) == (750, 750)
    for more in ({"percent_off": 100}, {"amount_off": 5000, "currency": "usd"}):
        free = pack(client, discounts=[{"coupon": client.v1.coupons.create(more).id}])  # type: ignore[arg-type]
        assert submit(client, free)[0] == 303
        done = again(client, free)
        assert (done.payment_status, done.payment_intent, done.amount_total) == ("no_payment_required", None, 0)


def test_a_code_for_one_customer_is_used_up_by_the_first(client: Client) -> None:
    coupon = client.v1.coupons.create({"percent_off": 25})
    code = client.v1.promotion_codes.create({"promotion": {"type": "coupon", "coupon": coupon.id}, "code": "ONE", "max_redemptions": 1})
    first, second = pack(client, allow_promotion_codes=True), pack(client, allow_promotion_codes=True)
    assert submit(client, first, code="ONE")[0] == 303
    assert submit(client, second, code="ONE")[0] == 402
    assert client.v1.promotion_codes.retrieve(code.id).times_redeemed == 1
    assert client.v1.coupons.retrieve(coupon.id).times_redeemed == 1
    with pytest.raises(stripe.InvalidRequestError, match="cannot be redeemed"):
        pack(client, discounts=[{"promotion_code": code.id}])


def test_a_coupon_holds_for_the_first_invoice_of_a_plan_bought_with_it(client: Client) -> None:
    coupon = client.v1.coupons.create({"amount_off": 500, "currency": "usd"})
    session = begin(client, "subscription", line_items=[{"price": client.price(2500).id, "quantity": 1}], discounts=[{"coupon": coupon.id}])
    submit(client, session)
    client.advance(days=32)
    assert [invoice.total for invoice in client.v1.invoices.list().data] == [2500, 2000]


@pytest.mark.parametrize(("typed", "status"), [("12.34", 303), ("4.99", 402), ("100.01", 402), ("1e1", 402), ("-5", 402), ("", 402)])
def test_the_customer_chooses_the_amount_within_its_limits(client: Client, typed: str, status: int) -> None:
    given: Any = {
        "currency": "usd",
        "product_data": {"name": "Credits"},
        "custom_unit_amount": {"enabled": True, "minimum": 500, "maximum": 10_000, "preset": 1000},
    }
    price = client.v1.prices.create(given)
    session = begin(client, line_items=[{"price": price.id, "quantity": 1}])
    assert submit(client, session, amount=typed)[0] == status
    assert [charge.amount for charge in client.v1.charges.list().data] == ([1234] if status == 303 else [])


def test_a_session_expires_by_itself_or_by_hand_and_then_sells_nothing(client: Client) -> None:
    late, closed = pack(client), pack(client)
    client.v1.checkout.sessions.expire(closed.id)
    assert submit(client, closed)[0] == 410
    client.advance(days=1.01)
    assert (again(client, late).status, submit(client, late)[0]) == ("expired", 410)
    assert client.events().count("checkout.session.expired") == 2
    assert client.v1.charges.list().data == []


@pytest.mark.parametrize("fields", [{"number": "1234"}, {"number": ""}, {"number": "4242424242424242", "email": "nobody"}])
def test_a_form_with_garbage_is_refused(client: Client, fields: dict[str, str]) -> None:
    session = pack(client)
    assert client.post(str(session.url), **fields)[0] == 402
    assert client.v1.charges.list().data == []


@pytest.mark.parametrize(
    "path", ["/c/pay/cs_test_none", "/c/pay/../../etc/passwd", "/p/session/bps_none", "/i/in_none", "/", "/c/pay/<script>"]
)
def test_a_page_that_is_not_there_is_a_404(client: Client, path: str) -> None:
    assert client.raw("GET", path)[0] == 404


def test_what_others_wrote_is_shown_as_text(client: Client) -> None:
    session = begin(
        client,
        line_items=[
            {"price_data": {"currency": "usd", "unit_amount": 1000, "product_data": {"name": "<script>x</script>"}}, "quantity": 1}
        ],
        cancel_url='http://shop.test/"><script>y</script>',
    )
    shown = page(session.url)
    assert "&lt;script&gt;x" in shown
    assert "<script>" not in shown


# The portal


def portal(client: Client, customer: str, **more: Any) -> str:
    return str(client.v1.billing_portal.sessions.create({"customer": customer, "return_url": "http://shop.test/billing"} | more).url)  # type: ignore[arg-type]


def test_the_portal_cancels_and_resumes_at_the_end_of_the_period(client: Client) -> None:
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(2500).id)
    url = portal(client, customer.id)
    assert "Renews on" in page(url)
    assert client.post(url, action="cancel", subscription=subscription.id)[0] == 303
    assert client.v1.subscriptions.retrieve(subscription.id).cancel_at_period_end
    assert "Cancels on" in page(url)
    assert client.post(url, action="resume", subscription=subscription.id)[0] == 303
    assert not client.v1.subscriptions.retrieve(subscription.id).cancel_at_period_end


def test_the_portal_switches_to_the_plans_that_it_offers(client: Client) -> None:
    customer, core, pro, other = client.customer(), client.price(2500, name="Core"), client.price(5000), client.price(9000, name="Secret")
    subscription = client.subscribe(customer.id, core.id)
    features: Any = {
        "subscription_update": {
            "enabled": True,
            "default_allowed_updates": ["price"],
            "products": [{"product": str(one.product), "prices": [one.id]} for one in (core, pro)],
        }
    }
    configuration = client.v1.billing_portal.configurations.create({"features": features})
    url = portal(client, customer.id, configuration=configuration.id)
    assert re.findall(r'value="(price_\w+)"', page(url)) == [pro.id]
    assert client.post(url, action="switch", subscription=subscription.id, price=other.id)[0] == 402
    assert client.post(url, action="switch", subscription=subscription.id, price=pro.id)[0] == 303
    assert client.v1.subscriptions.retrieve(subscription.id)["items"].data[0].price.id == pro.id
    assert client.v1.invoices.list().data[0].billing_reason == "subscription_update"


def test_the_portal_changes_the_card_for_what_comes(client: Client) -> None:
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(2500).id)
    url = portal(client, customer.id)
    assert client.post(url, action="card", number="4000000000000002")[0] == 402
    assert client.post(url, action="card", number="5555 5555 5555 4444")[0] == 303
    client.advance(days=32)
    charge = client.v1.charges.list().data[0]
    assert charge.payment_method_details is not None
    assert charge.payment_method_details.card is not None
    assert charge.payment_method_details.card.last4 == "4444"
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"


def test_the_portal_does_nothing_for_another_customers_plan_or_a_switched_off_feature(client: Client) -> None:
    customer = client.customer()
    subscription, foreign = (
        client.subscribe(customer.id, client.price(2500).id),
        client.subscribe(client.customer().id, client.price(2500).id),
    )
    features: Any = {"subscription_cancel": {"enabled": False}}
    configuration = client.v1.billing_portal.configurations.create({"features": features})
    url = portal(client, customer.id, configuration=configuration.id)
    assert client.post(url, action="cancel", subscription=foreign.id)[0] == 402
    assert client.post(url, action="cancel", subscription=subscription.id)[0] == 402
    assert client.post(url, action="explode", subscription=subscription.id)[0] == 402
    assert not any(one.cancel_at_period_end for one in client.v1.subscriptions.list().data)


def test_an_unpaid_invoice_is_paid_on_its_own_page(client: Client) -> None:
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(2500).id)
    client.use_card(customer.id, "pm_card_chargeCustomerFail")
    client.advance(days=32)
    invoice = client.v1.invoices.list().data[0]
    assert invoice.number in page(portal(client, customer.id))  # type: ignore[operator]
    url = str(invoice.hosted_invoice_url)
    assert client.post(url, number="4000000000000002")[0] == 402
    assert client.post(url, number="4242424242424242")[0] == 303
    assert "paid" in page(url)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"
    assert "25.00 USD" in page(str(invoice.invoice_pdf))
    assert "25.00 USD" in page(client.v1.charges.list().data[0].receipt_url)
