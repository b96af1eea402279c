"""Who pays, and with what: customers, tax ids, payment methods, setup intents."""

from __future__ import annotations

from typing import Any

from stripe_double import cards, errors
from stripe_double.params import Params
from stripe_double.store import Obj, Store, listed

ADDRESS = ("city", "country", "line1", "line2", "postal_code", "state")


def account(store: Store, p: Params) -> Obj:
    """The one account whose API this is."""
    profile = dict.fromkeys(("mcc", "product_description", "support_address", "support_email", "support_phone", "support_url", "url"))
    branding = dict.fromkeys(("icon", "logo", "primary_color", "secondary_color"))
    kana = dict.fromkeys(("statement_descriptor_prefix_kana", "statement_descriptor_prefix_kanji"))
    cvc = {"avs_failure": False, "cvc_failure": False}
    payments = dict.fromkeys(("statement_descriptor", "statement_descriptor_kana", "statement_descriptor_kanji"))
    settings: dict[str, Any] = {
        "branding": branding,
        "card_issuing": {"tos_acceptance": {"date": None, "ip": None}},
        "card_payments": kana | {"decline_on": cvc, "statement_descriptor_prefix": None},
        "dashboard": {"display_name": "Stripe double", "timezone": "Etc/UTC"},
        "payments": payments,
    }
    return {
        "id": "acct_double00000000",
        "object": "account",
        "business_profile": profile | {"name": "Stripe double", "annual_revenue": None, "estimated_worker_count": None},
        "business_type": "company",
        "capabilities": {"card_payments": "active", "transfers": "active"},
        "charges_enabled": True,
        "controller": {"type": "account"},
        "country": "US",
        "created": 1_700_000_000,
        "default_currency": "usd",
        "details_submitted": True,
        "email": "double@localhost.test",
        "metadata": {},
        "payouts_enabled": True,
        "settings": settings,
        "type": "standard",
    }


def add(store: Store, p: Params | None = None, **fields: Any) -> Obj:
    customer = store.new("customer", "cus", balance=0, currency=None, default_source=None, delinquent=False, discount=None)
    customer |= dict.fromkeys(("address", "customer_account", "description", "email", "name", "phone", "shipping", "test_clock"))
    customer |= {"invoice_prefix": customer["id"][-8:].upper(), "next_invoice_sequence": 1, "preferred_locales": [], "tax_exempt": "none"}
    customer |= {"metadata": {}, "invoice_settings": {"custom_fields": None, "default_payment_method": None, "footer": None}}
    customer["invoice_settings"]["rendering_options"] = None
    customer |= fields
    store.add(customer)
    if p:
        _take(store, p, customer)
        store.save(customer)
    store.emit("customer.created", customer)
    return customer


def update(store: Store, p: Params, id: str) -> Obj:
    customer = store.get("customer", id)
    _take(store, p, customer)
    return store.save(customer, "customer.updated")


def _take(store: Store, p: Params, customer: Obj) -> None:
    if (email := p.text("email", longest=512)) and "@" not in email:
        raise errors.invalid(f"Invalid email address: {email}", param="email", code="email_invalid")
    p.put(customer, "description", "email", "name", "phone")
    customer["metadata"] = p.metadata(customer["metadata"])
    customer["balance"] = p.number("balance", customer["balance"])
    customer["tax_exempt"] = p.text("tax_exempt", customer["tax_exempt"], choices=("none", "exempt", "reverse"))
    if p.has("address"):
        where = p.child("address")
        customer["address"] = {name: where.text(name) for name in ADDRESS} if where else None
    if p.has("preferred_locales"):
        customer["preferred_locales"] = p.texts("preferred_locales")
    if method := p.text("payment_method"):
        attach(store, method, customer["id"])
    if (settings := p.child("invoice_settings")) and settings.has("default_payment_method"):
        id = settings.text("default_payment_method")
        if id and store.get("payment_method", id, param="invoice_settings[default_payment_method]")["customer"] != customer["id"]:
            raise errors.invalid(
                "The payment method must be attached to the customer first.", param=settings.path("default_payment_method")
            )
        customer["invoice_settings"]["default_payment_method"] = id
    for tax in p.children("tax_id_data"):
        create_tax_id(store, tax, customer["id"])
    p.known("tax", "shipping")


def tax_ids(store: Store, customer: str) -> Obj:
    return listed(store.find("tax_id", {"customer": customer}), f"/v1/customers/{customer}/tax_ids")


def create_tax_id(store: Store, p: Params, customer: str) -> Obj:
    return add_tax_id(store, store.get("customer", customer)["id"], p.need("type"), p.need("value"))


def add_tax_id(store: Store, customer: str, type: str, value: str) -> Obj:
    tax = store.new("tax_id", "txi", customer=customer, type=type, value=value)
    tax |= {"country": tax["value"][:2].upper() if tax["type"] == "eu_vat" else None, "customer_account": None}
    tax["owner"] = {"account": None, "application": None, "customer": customer, "customer_account": None, "type": "customer"}
    tax["verification"] = {"status": "verified", "verified_address": None, "verified_name": None}
    return store.add(tax, "customer.tax_id.created")


def delete_tax_id(store: Store, p: Params, customer: str, id: str) -> Obj:
    tax = store.get("tax_id", id)
    if tax["customer"] != customer:
        raise errors.missing_resource("tax_id", id)
    return store.delete(tax, "customer.tax_id.deleted", stub=False)


# Payment methods


def create_method(store: Store, p: Params) -> Obj:
    type = p.need("type", choices=("card", "us_bank_account"))
    face = p.child(type)
    if face is None:
        raise errors.invalid(f"Missing required param: {type}.", param=type, code="parameter_missing")
    known = cards.number_of(face.text("token") or "") or face.text("number") or face.text("account_number")
    face.known("exp_month", "exp_year", "cvc", "account_holder_type", "account_type", "routing_number")
    if known not in cards.CARDS:
        raise errors.StripeError(402, "card_error", "Your card number is incorrect.", code="incorrect_number", param="number")
    return add_method(store, known, name=_name(p), metadata=p.metadata())


def _name(p: Params) -> str | None:
    details = p.child("billing_details")
    if details:
        details.known("address", "email", "phone")
    return details.text("name") if details else None


def add_method(store: Store, number: str, *, name: str | None = None, metadata: dict[str, str] | None = None) -> Obj:
    method = store.new("payment_method", "pm", customer=None, customer_account=None, metadata=metadata or {}, _number=number)
    method |= cards.details(number) | {"allow_redisplay": "unspecified"}
    method["billing_details"] = {"address": dict.fromkeys(ADDRESS), "email": None, "name": name, "phone": None, "tax_id": None}
    return store.add(method)


def method(store: Store, id: str, *, param: str = "payment_method") -> Obj:
    """A payment method by its id; a fresh one for each use of Stripe's ``pm_card_…`` names."""
    if number := cards.number_of(id):
        return add_method(store, number)
    return store.get("payment_method", id, param=param)


def attach(store: Store, id: str, customer: str) -> Obj:
    """:raises StripeError: 402 for a card that cannot be kept; 400 for one that is another customer's."""
    found = method(store, id)
    store.get("customer", customer, param="customer")
    if found["customer"] not in {None, customer}:
        raise errors.invalid("The payment method you provided has already been attached to a customer.", param="payment_method")
    if found.get("_detached"):
        raise errors.invalid(
            "This PaymentMethod was previously detached from a Customer and may not be used again.", param="payment_method"
        )
    card = cards.CARDS[found["_number"]]
    if not card.saves:
        raise errors.declined(cards.error(found["_number"], card.charge))
    if found["customer"] is None:
        found["customer"] = customer
        store.save(found, "payment_method.attached")
    return found


def attach_route(store: Store, p: Params, id: str) -> Obj:
    return attach(store, id, p.need("customer"))


def detach(store: Store, p: Params, id: str) -> Obj:
    found = store.get("payment_method", id)
    if found["customer"] is None:
        raise errors.invalid("The payment method you provided is not attached to a customer so detachment is impossible.")
    customer = store.get("customer", found["customer"], deleted=True)
    found |= {"customer": None, "_detached": True}
    if customer["invoice_settings"]["default_payment_method"] == id:
        customer["invoice_settings"]["default_payment_method"] = None
        store.save(customer, "customer.updated")
    for subscription in store.find("subscription", {"default_payment_method": id}):
        subscription["default_payment_method"] = None
        store.save(subscription, "customer.subscription.updated")
    return store.save(found, "payment_method.detached")


def update_method(store: Store, p: Params, id: str) -> Obj:
    found = store.get("payment_method", id)
    found["metadata"] = p.metadata(found["metadata"])
    if p.has("billing_details"):
        found["billing_details"]["name"] = _name(p)
    return store.save(found, "payment_method.updated")


def get_method(store: Store, p: Params, customer: str, id: str) -> Obj:
    found = store.get("payment_method", id)
    if found["customer"] != customer:
        raise errors.missing_resource("payment_method", id)
    return found


# Setup intents


def create_setup(store: Store, p: Params) -> Obj:
    p.known("automatic_payment_methods", "payment_method_types", "payment_method_options", "return_url", "mandate_data")
    customer = p.text("customer")
    if customer:
        store.get("customer", customer, param="customer")
    setup = add_setup(store, customer, p.metadata(), p.text("usage", "off_session", choices=("off_session", "on_session")))
    if method := p.text("payment_method"):
        setup |= {"payment_method": method, "status": "requires_confirmation"}
        store.save(setup)
    return _confirm(store, setup) if p.flag("confirm") else setup


def add_setup(store: Store, customer: str | None, metadata: dict[str, str], usage: str | None = "off_session") -> Obj:
    setup = store.new("setup_intent", "seti", customer=customer, metadata=metadata, usage=usage, status="requires_payment_method")
    setup |= {"client_secret": f"{setup['id']}_secret_double", "payment_method_types": ["card"], "payment_method_options": None}
    nothing = ("application", "automatic_payment_methods", "cancellation_reason", "customer_account", "description", "flow_directions")
    setup |= dict.fromkeys((*nothing, "last_setup_error", "latest_attempt", "mandate", "next_action", "on_behalf_of", "payment_method"))
    return store.add(setup | {"single_use_mandate": None, "excluded_payment_method_types": None}, "setup_intent.created")


def confirm_setup(store: Store, p: Params, id: str) -> Obj:
    setup = store.get("setup_intent", id)
    p.known("return_url", "mandate_data", "payment_method_options")
    if setup["status"] in {"succeeded", "canceled"}:
        raise errors.invalid(f"This SetupIntent is {setup['status']}.", code="setup_intent_unexpected_state")
    setup["payment_method"] = p.text("payment_method", setup["payment_method"])
    return _confirm(store, setup)


def _confirm(store: Store, setup: Obj) -> Obj:
    if not setup["payment_method"]:
        raise errors.invalid("A payment method is needed to confirm.", param="payment_method", code="setup_intent_unexpected_state")
    if not succeed_setup(store, setup, method(store, setup["payment_method"])):
        raise errors.declined(setup["last_setup_error"], setup_intent={"id": setup["id"], "object": "setup_intent"})
    return setup


def succeed_setup(store: Store, setup: Obj, found: Obj) -> bool:
    """Try to keep the payment method; whether that worked is also on record in ``setup``."""
    setup["payment_method"] = found["id"]
    try:
        if setup["customer"]:
            attach(store, found["id"], setup["customer"])
    except errors.StripeError as error:
        if error.status != 402:
            raise
        setup |= {"status": "requires_payment_method", "last_setup_error": error.body["error"], "payment_method": None}
        store.save(setup, "setup_intent.setup_failed")
        return False
    setup |= {"status": "succeeded", "last_setup_error": None}
    store.save(setup, "setup_intent.succeeded")
    return True


def cancel_setup(store: Store, p: Params, id: str) -> Obj:
    setup = store.get("setup_intent", id)
    if setup["status"] in {"succeeded", "canceled"}:
        raise errors.invalid(f"This SetupIntent is {setup['status']}.", code="setup_intent_unexpected_state")
    setup |= {"status": "canceled", "cancellation_reason": p.text("cancellation_reason")}
    return store.save(setup, "setup_intent.canceled")
