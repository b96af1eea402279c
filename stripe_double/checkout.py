"""The two things that send a customer to a hosted page: Checkout sessions and sessions of the customer portal.

pages.py draws the pages; here is what their forms do.
"""

from __future__ import annotations

from typing import Any

from stripe_double import cards, catalog, collection, customers, errors, invoices, payments, periods, subscriptions
from stripe_double.params import Params
from stripe_double.store import Obj, Store, listed

PASSED_ON = ("client_reference_id", "locale", "billing_address_collection", "submit_type", "payment_method_collection", "customer_creation")
COLLECTED = [
    "automatic_tax",
    "branding_settings",
    "consent_collection",
    "custom_text",
    "customer_update",
    "name_collection",
    "payment_method_options",
    "payment_method_types",
    "phone_number_collection",
    "saved_payment_method_options",
    "shipping_address_collection",
]


def create(store: Store, p: Params) -> Obj:
    mode = p.need("mode", choices=("payment", "setup", "subscription"))
    p.text("ui_mode", choices=("hosted_page", "hosted"))
    p.known(*COLLECTED)
    session = store.new("checkout.session", "cs_test", mode=mode, success_url=p.need("success_url"), metadata=p.metadata())
    nothing = (
        "adaptive_pricing after_expiration amount_subtotal amount_total client_secret collected_information consent consent_collection"
    )
    nothing += (
        " currency_conversion customer_account customer_details invoice origin_context payment_intent payment_link permissions return_url"
    )
    nothing += " payment_method_configuration_details recovered_from setup_intent shipping_cost shipping_address_collection subscription"
    nothing += " integration_identifier wallet_options branding_settings excluded_payment_method_types name_collection total_details"
    session |= dict.fromkeys(
        (*nothing.split(), *PASSED_ON, "currency", "cancel_url", "customer", "customer_email", "saved_payment_method_options")
    )
    session |= {"automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None}, "custom_fields": []}
    session["custom_text"] = dict.fromkeys(("after_submit", "shipping_address", "submit", "terms_of_service_acceptance"))
    session |= {
        "allow_promotion_codes": p.flag("allow_promotion_codes"),
        "discounts": [],
        "payment_method_options": {},
        "shipping_options": [],
    }
    session |= {
        "payment_method_types": ["card", "us_bank_account"],
        "payment_status": "unpaid",
        "phone_number_collection": {"enabled": False},
    }
    session |= {"redirect_on_completion": "always", "status": "open", "ui_mode": "hosted_page", "_items": [], "_offers": []}
    tax = p.child("tax_id_collection")
    session["tax_id_collection"] = {"enabled": bool(tax and tax.flag("enabled")), "required": "never"}
    if tax:
        tax.known("required")
    p.put(session, "cancel_url", "customer_email", *PASSED_ON)
    if customer := p.text("customer"):
        session["customer"] = store.get("customer", customer, param="customer")["id"]
    session["expires_at"] = p.number("expires_at", store.now() + periods.DAY, least=store.now() + 1, most=store.now() + periods.DAY)
    session["url"] = f"{store.address}/c/pay/{session['id']}"
    session["_intent"] = _data(p, "payment_intent_data" if mode == "payment" else "setup_intent_data" if mode == "setup" else "")
    if wish := p.child("invoice_creation"):
        data = wish.child("invoice_data")
        session["_invoice"] = {"metadata": data.metadata() if data else {}} if wish.flag("enabled") else None
    shown: Obj = dict.fromkeys(("account_tax_ids", "custom_fields", "description", "footer", "issuer", "rendering_options"))
    invoiced = bool(session.get("_invoice"))
    shown["metadata"] = session["_invoice"]["metadata"] if invoiced else {}
    session["invoice_creation"] = {"enabled": invoiced, "invoice_data": shown} if mode == "payment" else None
    if mode == "subscription":
        session["_subscription"] = _subscription_data(p)
    _take_items(store, p, session)
    for wish in p.children("discounts"):
        take_offer(session, catalog.offer_of(store, wish))
    price_session(store, session)
    store.add(session)
    store.schedule(session["expires_at"], "expire_session", session["id"])
    return session


def _data(p: Params, name: str) -> Obj:
    """What is passed on to the payment or setup intent."""
    found: Obj = {"metadata": {}}
    if name and (data := p.child(name)):
        data.put(found, "description", "receipt_email", "setup_future_usage", "statement_descriptor_suffix")
        found["metadata"] = data.metadata()
    return found


def _subscription_data(p: Params) -> dict[str, Any]:
    """``subscription_data`` as it came: :func:`subscriptions.begin` reads it when the session completes."""
    data = p.child("subscription_data")
    if data is None:
        return {}
    for name in ("trial_period_days", "trial_end", "billing_cycle_anchor"):
        data.number(name, least=1)
    settings = data.child("trial_settings")
    if settings and (end := settings.child("end_behavior")):
        end.need("missing_payment_method", choices=("cancel", "create_invoice", "pause"))
    data.put({}, "description", "proration_behavior")
    data.metadata()
    return data.as_sent()


def _take_items(store: Store, p: Params, session: Obj) -> None:
    for wish in p.children("line_items"):
        inline = wish.child("price_data")
        price = catalog.inline_price(store, inline) if inline else store.get("price", wish.need("price"), param=wish.path("price"))
        if not inline and not price["active"]:
            raise errors.invalid(f"The price specified is inactive: {price['id']}.", param=wish.path("price"))
        if price["recurring"] and session["mode"] != "subscription":
            raise errors.invalid("You specified `payment` mode but passed a recurring price.", param=wish.path("price"))
        wish.known("adjustable_quantity", "tax_rates", "dynamic_tax_rates")
        quantity = wish.number("quantity", 1, least=1, most=10**6)
        session["_items"].append(
            {"id": store.new("item", "li")["id"], "price": price["id"], "quantity": quantity, "amount": price["unit_amount"]}
        )
        if price["custom_unit_amount"]:
            session["_items"][-1]["amount"] = price["custom_unit_amount"]["preset"] or 0
        session["currency"] = price["currency"]
    if session["mode"] == "setup":
        session["currency"] = p.text("currency", "usd")
    elif not session["_items"]:
        raise errors.invalid("Missing required param: line_items.", param="line_items", code="parameter_missing")
    if session["mode"] == "subscription" and not any(store.get("price", item["price"])["recurring"] for item in session["_items"]):
        raise errors.invalid("You must provide at least one recurring price in `subscription` mode.", param="line_items")


def take_offer(session: Obj, offer: Obj) -> None:
    """Put a coupon or a promotion code on the session, in place of what was there."""
    session["_offers"] = [[offer["object"], offer["id"]]]
    session["discounts"] = [{"coupon": None, "promotion_code": None} | {offer["object"]: offer["id"]}]


def price_session(store: Store, session: Obj) -> None:
    """What the page will ask for: nothing in a trial, less with a discount."""
    if session["mode"] == "setup":
        session["payment_status"] = "no_payment_required"
        return
    trial = {"trial_period_days", "trial_end"} & set(session.get("_subscription", {}))
    due = [item for item in session["_items"] if not (trial and store.get("price", item["price"])["recurring"])]
    subtotal = left = sum(item["amount"] * item["quantity"] for item in due)
    for kind, id in session["_offers"]:
        coupon = catalog.coupon_of(store, store.get(kind, id))["id"]
        left -= catalog.reduction(store, {"source": {"coupon": coupon}, "end": None}, left)
    session |= {"amount_subtotal": subtotal, "amount_total": left, "_trial": bool(trial)}
    session["total_details"] = {"amount_discount": subtotal - left, "amount_shipping": 0, "amount_tax": 0}


def line_items(store: Store, session: Obj) -> Obj:
    """The lines of a session, which come only when asked for. Discounts are shared out cumulatively, so that they add up."""
    total = sum(item["amount"] * item["quantity"] for item in session["_items"])
    off, seen, given, made = (session["total_details"] or {}).get("amount_discount", 0), 0, 0, []
    for item in session["_items"]:
        price = store.get("price", item["price"], deleted=True)
        amount = item["amount"] * item["quantity"]
        seen += amount
        part = off * seen // total - given if total else 0
        given += part
        line: Obj = {"id": item["id"], "object": "item", "adjustable_quantity": None, "amount_discount": part, "amount_subtotal": amount}
        line |= {
            "amount_tax": 0,
            "amount_total": amount - part,
            "currency": price["currency"],
            "metadata": {},
            "quantity": item["quantity"],
        }
        made.append(line | {"description": store.get("product", price["product"], deleted=True)["name"], "price": price})
    return listed(made, f"/v1/checkout/sessions/{session['id']}/line_items")


def get_line_items(store: Store, p: Params, id: str) -> Obj:
    p.known("limit")
    return line_items(store, store.get("checkout.session", id))


def update(store: Store, p: Params, id: str) -> Obj:
    session = store.get("checkout.session", id)
    session["metadata"] = p.metadata(session["metadata"])
    return store.save(session)


def expire_route(store: Store, p: Params, id: str) -> Obj:
    session = store.get("checkout.session", id)
    if session["status"] != "open":
        raise errors.invalid(f"Only Checkout Sessions with a status of `open` can be expired: this one is {session['status']}.")
    return expire(store, session)


def expire(store: Store, session: Obj) -> Obj:
    if session["status"] == "open":
        session |= {"status": "expired", "url": None}
        store.save(session, "checkout.session.expired")
    return session


# What the hosted page does


def submit(
    store: Store, session: Obj, *, number: str, email: str | None, name: str | None, authenticated: bool | None = None
) -> str | None:
    """Pay for an open session. None when it is complete, "requires_action" when the bank asks first, else what to tell the customer."""
    store.save(session)
    customer = _customer(store, session, email, name)
    if customer:
        _keep_details(store, session, store.get("customer", customer))
    method = customers.add_method(store, number, name=name)
    if session["mode"] == "setup" or (session["mode"] == "subscription" and not session["amount_total"]):
        refusal = _keep_card(store, session, customer, method)
        if refusal:
            return refusal
    if session["mode"] == "payment" and session["amount_total"]:
        intent = _intent(store, session, customer)
        intent["payment_method"] = method["id"]
        payments.confirm(store, intent, authenticated=authenticated)
        if intent["status"] not in {"succeeded", "processing"}:
            store.save(session)
            error = intent["last_payment_error"]
            return str(error["message"]) if error else "requires_action"
        session |= {"payment_intent": intent["id"], "payment_status": "paid" if intent["status"] == "succeeded" else "unpaid"}
        if intent["status"] == "succeeded":
            _invoice_purchase(store, session)
    elif session["mode"] == "payment":
        session["payment_status"] = "no_payment_required"
    if session["mode"] == "subscription":
        if authenticated is None and cards.CARDS[number].charge == "requires_action" and session["amount_total"]:
            return "requires_action"
        if refusal := _subscribe(store, session, customer, method, authenticated):
            return refusal
    if session["mode"] == "payment":
        for kind, id in session["_offers"]:
            catalog.redeem(store, store.get(kind, id), customer, checkout_session=session["id"])
    session |= {"status": "complete", "url": None, "customer": customer}
    store.save(session, "checkout.session.completed")
    return None


def _customer(store: Store, session: Obj, email: str | None, name: str | None) -> str | None:
    """The customer who pays; a new one, where the session asks for one, belongs to it when it is complete."""
    id = session["customer"] or session.get("_customer")
    known = store.get("customer", id) if id else None
    if known is None and (session["mode"] != "payment" or session["customer_creation"] == "always" or session.get("_invoice")):
        known = customers.add(store, email=session["customer_email"] or email, name=name)
        session["_customer"] = known["id"]
    elif known and not session["customer"] and email:  # corrected after a card was declined
        known["email"] = email
        store.save(known, "customer.updated")
    details = {"email": email or session["customer_email"] or (known or {}).get("email"), "name": name or (known or {}).get("name")}
    address = session.get("_address") or dict.fromkeys(customers.ADDRESS) | {"country": "US"}
    tax_ids = [{"type": "eu_vat", "value": session["_vat"]}] if session.get("_vat") else []
    session["customer_details"] = details | {"address": address, "phone": None, "tax_exempt": "none", "tax_ids": tax_ids}
    session["customer_details"] |= {"business_name": None, "individual_name": None}
    return known["id"] if known else None


def _keep_details(store: Store, session: Obj, customer: Obj) -> None:
    """The address and the VAT id that were asked for stand on the customer from now on."""
    if session.get("_address"):
        customer["address"] = session["_address"]
        store.save(customer, "customer.updated")
    if session.get("_vat") and not store.find("tax_id", {"customer": customer["id"], "value": session["_vat"]}):
        customers.add_tax_id(store, customer["id"], "eu_vat", session["_vat"])


def _intent(store: Store, session: Obj, customer: str | None) -> Obj:
    """The session's payment intent: one, however often a card is declined."""
    if id := session.get("_payment_intent"):
        return store.get("payment_intent", id)
    data = session["_intent"]
    intent = payments.add(store, session["amount_total"], session["currency"], customer, data["metadata"], _session=session["id"])
    intent |= {key: value for key, value in data.items() if key in intent}
    session["_payment_intent"] = intent["id"]
    return intent


def _keep_card(store: Store, session: Obj, customer: str | None, method: Obj) -> str | None:
    setup = customers.add_setup(store, customer, session["_intent"]["metadata"])
    if not customers.succeed_setup(store, setup, method):
        return str(setup["last_setup_error"]["message"])
    if session["mode"] == "setup":
        session["setup_intent"] = setup["id"]
    return None


def _subscribe(store: Store, session: Obj, customer: str | None, method: Obj, authenticated: bool | None) -> str | None:
    """Begin the subscription and pay its first invoice. A refused payment leaves no subscription behind, as on Stripe's page."""
    assert customer is not None
    card, number = cards.CARDS[method["_number"]], method["_number"]
    decline = {"succeeded": None, "requires_action": None if authenticated else "authentication_required"}.get(card.charge, card.charge)
    if decline and session["amount_total"] and card.brand != "bank":
        return str(cards.error(number, decline)["message"])
    customers.attach(store, method["id"], customer)
    items, extras = [], []
    for item in session["_items"]:
        price = store.get("price", item["price"])
        if price["recurring"]:
            items.append(subscriptions.new_item(store, price, item["quantity"], {}))
        else:
            extras.append((price, item["quantity"]))
    for price, quantity in extras:
        invoices.add_item(
            store,
            customer,
            price["unit_amount"] * quantity,
            price["currency"],
            None,
            (store.now(), store.now()),
            quantity=quantity,
            price=price,
        )
    subscription, _ = subscriptions.begin(store, Params(session["_subscription"]), store.get("customer", customer), items)
    subscription["default_payment_method"] = method["id"]
    for kind, id in session["_offers"]:
        discount = catalog.redeem(store, store.get(kind, id), customer, subscription=subscription["id"], checkout_session=session["id"])
        subscription["discounts"].append(discount["id"])
    store.save(subscription)
    subscriptions.start(store, subscription, "default_incomplete")
    invoice = store.get("invoice", subscription["latest_invoice"])
    if invoice["status"] == "open":
        found = invoices.payment_of(store, invoice)
        assert found is not None
        intent = found[1]
        intent |= {"payment_method": method["id"], "_session": session["id"]}
        payments.confirm(store, intent, authenticated=authenticated)
        collection.resolve(store, intent)
    session |= {"subscription": subscription["id"], "invoice": invoice["id"]}
    session["payment_status"] = (
        "no_payment_required" if not session["amount_total"] else "paid" if invoice["status"] == "paid" else "unpaid"
    )
    return None


def _invoice_purchase(store: Store, session: Obj) -> None:
    """``invoice_creation``: a paid invoice for a one-time purchase, after the fact."""
    if not session.get("_invoice"):
        return
    customer = store.get("customer", session["customer"] or session["_customer"])
    for item in session["_items"]:
        price = store.get("price", item["price"])
        name = store.get("product", price["product"])["name"]
        amount, span = item["amount"] * item["quantity"], (store.now(), store.now())
        invoices.add_item(store, customer["id"], amount, price["currency"], name, span, quantity=item["quantity"], price=price)
    invoice = invoices.draft(store, customer, [], "manual", currency=session["currency"])
    invoice["metadata"] = session["_invoice"]["metadata"]
    invoices.finalize(store, invoice, intent=store.get("payment_intent", session["payment_intent"]))
    invoices.mark_paid(store, invoice)
    session["invoice"] = invoice["id"]


def settled(store: Store, intent: Obj) -> None:
    """A payment that was processing when the session completed has ended."""
    session = store.get("checkout.session", intent["_session"]) if intent.get("_session") else None
    if session is None:
        return
    if intent["status"] == "succeeded":
        session["payment_status"] = "paid"
        if session["mode"] == "payment":
            _invoice_purchase(store, session)
        store.save(session, "checkout.session.async_payment_succeeded")
    elif intent["status"] == "requires_payment_method":
        store.emit("checkout.session.async_payment_failed", session)


def settle(store: Store, intent: Obj, end: str | None = None) -> None:
    """The end of a bank debit, and everybody who waited for it."""
    if intent["status"] == "processing":
        payments.settle(store, intent, end)
        collection.resolve(store, intent)
        settled(store, intent)


def confirm_intent(store: Store, p: Params, id: str) -> Obj:
    intent = payments.take_confirmation(store, p, id)
    collection.resolve(store, intent, scheduled=False)
    payments.raise_if_declined(intent)
    return intent


# The customer portal


def add_configuration(store: Store, p: Params | None = None) -> Obj:
    made = store.new("billing_portal.configuration", "bpc", active=True, application=None, is_default=p is None, metadata={}, name=None)
    made |= {"business_profile": {"headline": None, "privacy_policy_url": None, "terms_of_service_url": None}, "default_return_url": None}
    options = ["too_expensive", "missing_features", "switched_service", "unused", "other"]
    cancel = {
        "cancellation_reason": {"enabled": False, "options": options},
        "enabled": True,
        "mode": "at_period_end",
        "proration_behavior": "none",
    }
    switch = {"default_allowed_updates": ["price"], "enabled": True, "products": None, "proration_behavior": "always_invoice"}
    switch |= {"billing_cycle_anchor": None, "schedule_at_period_end": {"conditions": []}, "trial_update_behavior": "end_trial"}
    made["features"] = {
        "customer_update": {"allowed_updates": [], "enabled": False},
        "invoice_history": {"enabled": True},
        "payment_method_update": {"enabled": True, "payment_method_configuration": None},
        "subscription_cancel": cancel,
        "subscription_update": switch,
    }
    made |= {"login_page": {"enabled": False, "url": None}, "updated": made["created"]}
    if p:
        _take_configuration(p, made)
    return store.add(made, "billing_portal.configuration.created")


def _take_configuration(p: Params, made: Obj) -> None:
    made |= {"metadata": p.metadata(made["metadata"]), "active": p.flag("active", made["active"])}
    p.put(made, "default_return_url", "name")
    p.known("login_page")
    if profile := p.child("business_profile"):
        profile.put(made["business_profile"], "headline", "privacy_policy_url", "terms_of_service_url")
    for name, feature in made["features"].items():
        wishes = p.child("features")
        wish = wishes.child(name) if wishes else None
        if wish is None:
            continue
        feature["enabled"] = wish.flag("enabled", feature["enabled"])
        wish.put(feature, *(key for key in ("mode", "proration_behavior") if key in feature))
        wish.known("allowed_updates", "cancellation_reason", "schedule_at_period_end", "trial_update_behavior")
        if wish.has("products"):
            feature["products"] = [
                {
                    "product": row.need("product"),
                    "prices": row.texts("prices"),
                    "adjustable_quantity": {"enabled": False, "maximum": None, "minimum": 1},
                }
                for row in wish.children("products")
            ]
        if wish.has("default_allowed_updates"):
            feature["default_allowed_updates"] = wish.texts("default_allowed_updates")


def update_configuration(store: Store, p: Params, id: str) -> Obj:
    made = store.get("billing_portal.configuration", id)
    _take_configuration(p, made)
    made["updated"] = store.now()
    return store.save(made, "billing_portal.configuration.updated")


def create_portal(store: Store, p: Params) -> Obj:
    customer = store.get("customer", p.need("customer"), param="customer")
    id = p.text("configuration")
    default = store.find("billing_portal.configuration", {"is_default": True})
    chosen = (
        store.get("billing_portal.configuration", id, param="configuration") if id else default[0] if default else add_configuration(store)
    )
    p.known("flow_data")
    session = store.new(
        "billing_portal.session", "bps", configuration=chosen["id"], customer=customer["id"], customer_account=None, flow=None
    )
    session |= {"locale": p.text("locale"), "on_behalf_of": None, "return_url": p.text("return_url") or chosen["default_return_url"]}
    session["url"] = f"{store.address}/p/session/{session['id']}"
    return store.add(session, "billing_portal.session.created")


def switchable(store: Store, session: Obj, subscription: Obj) -> list[Obj]:
    """The prices that the portal offers: those of its configuration, else every active recurring one in the same currency."""
    update = store.get("billing_portal.configuration", session["configuration"])["features"]["subscription_update"]
    if not update["enabled"]:
        return []
    listed_ids = [id for row in update["products"] or [] for id in row["prices"]]
    found = [store.get("price", id) for id in listed_ids] if listed_ids else store.find("price", {"active": True, "type": "recurring"})
    return [price for price in found if price["currency"] == subscription["currency"] and price["active"]]


def change_card(store: Store, customer: Obj, number: str) -> str | None:
    """Keep a new card and use it from now on; what to tell the customer when it is refused. What is past due is tried again."""
    setup = customers.add_setup(store, customer["id"], {})
    method = customers.add_method(store, number)
    if not customers.succeed_setup(store, setup, method):
        return str(setup["last_setup_error"]["message"])
    customer["invoice_settings"]["default_payment_method"] = method["id"]
    store.save(customer, "customer.updated")
    for subscription in store.find("subscription", {"customer": customer["id"]}):
        if subscription["status"] in collection.ALIVE:
            subscription["default_payment_method"] = method["id"]
            store.save(subscription, "customer.subscription.updated")
    return None
