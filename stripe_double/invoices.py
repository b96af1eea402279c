"""Invoices: their items and lines, discounts, and the way from draft to open, paid, void or uncollectible.

What is collected, when and with what, is collection.py.
"""

from __future__ import annotations

from typing import Any

from stripe_double import catalog, errors, payments, periods
from stripe_double.params import Params
from stripe_double.store import Obj, Store, listed

NO_TAX = {"disabled_reason": None, "enabled": False, "liability": None, "provider": None, "status": None}


def create_item(store: Store, p: Params) -> Obj:
    customer = store.get("customer", p.need("customer"), param="customer")
    quantity = p.number("quantity", 1, least=0) or 0
    price = None
    if inline := p.child("price_data"):
        price = catalog.inline_price(store, inline)
    elif pricing := p.child("pricing"):
        price = store.get("price", pricing.need("price"), param="pricing[price]")
    amount = price["unit_amount"] * quantity if price else p.need_number("amount", least=-99_999_999)
    currency = price["currency"] if price else (p.text("currency") or "usd").lower()
    p.known("amount", "currency", "unit_amount_decimal", "tax_rates", "tax_code", "tax_behavior")
    span = p.child("period")
    start, end = (span.need_number("start", most=10**11), span.need_number("end", most=10**11)) if span else (store.now(), store.now())
    subscription = p.text("subscription")
    item = add_item(
        store,
        customer["id"],
        amount,
        currency,
        p.text("description"),
        (start, end),
        quantity=quantity,
        price=price,
        subscription=subscription,
    )
    item |= {"metadata": p.metadata(), "discountable": p.flag("discountable", True)}
    if id := p.text("invoice"):
        invoice = _draft(store, id)
        item["invoice"] = id
        invoice["lines"]["data"].append(_item_line(item))
        store.save(_total(store, invoice), "invoice.updated")
    return store.save(item)


def add_item(
    store: Store, customer: str, amount: int, currency: str, description: str | None, period: tuple[int, int], *, quantity: int = 1,
    price: Obj | None = None, subscription: str | None = None, subscription_item: str | None = None, proration: bool = False,
) -> Obj:  # fmt: skip
    """A pending item: it waits for the customer's (or the subscription's) next invoice."""
    item = store.new("invoiceitem", "ii", amount=amount, currency=currency, customer=customer, description=description, metadata={})
    del item["created"]
    item |= {
        "customer_account": None,
        "date": store.now(),
        "discountable": not proration,
        "discounts": [],
        "invoice": None,
        "net_amount": amount,
    }
    parent = {"subscription": subscription, "subscription_item": subscription_item}
    item["parent"] = {"type": "subscription_details", "subscription_details": parent} if subscription else None
    item |= {"period": {"start": period[0], "end": period[1]}, "pricing": _pricing(price), "proration": proration, "quantity": quantity}
    item |= {"quantity_decimal": str(quantity), "tax_rates": [], "test_clock": None}
    item["proration_details"] = {"discount_amounts": []} if proration else None
    return store.add(item, "invoiceitem.created")


def update_item(store: Store, p: Params, id: str) -> Obj:
    item = _pending(store, id)
    item |= {"metadata": p.metadata(item["metadata"]), "amount": p.number("amount", item["amount"])}
    p.put(item, "description")
    return store.save(item)


def delete_item(store: Store, p: Params, id: str) -> Obj:
    return store.delete(_pending(store, id), "invoiceitem.deleted")


def _pending(store: Store, id: str) -> Obj:
    item = store.get("invoiceitem", id)
    if item["invoice"]:
        raise errors.invalid("This invoice item is part of an invoice already.")
    return item


def _pricing(price: Obj | None) -> Obj | None:
    if price is None:
        return None
    details = {"price": price["id"], "product": price["product"]}
    return {"price_details": details, "type": "price_details", "unit_amount_decimal": price["unit_amount_decimal"]}


def _line(amount: int, currency: str, description: str | None, period: Obj, quantity: int, **more: Any) -> Obj:
    line: Obj = {"amount": amount, "currency": currency, "description": description, "discount_amounts": [], "discountable": True}
    line |= {"discounts": [], "livemode": False, "metadata": {}, "object": "line_item", "period": period, "pretax_credit_amounts": []}
    return line | {"quantity": quantity, "quantity_decimal": str(quantity), "subscription": None, "subtotal": amount, "taxes": []} | more


def _item_line(item: Obj) -> Obj:
    details = (item["parent"] or {}).get("subscription_details") or {"subscription": None, "subscription_item": None}
    parent: Obj = {"invoice_item": item["id"], "proration": item["proration"], "subscription": details["subscription"]}
    where = {"type": "invoice_item_details", "invoice_item_details": parent, "subscription_item_details": None}
    parent["proration_details"] = {"credited_items": None} if item["proration"] else None
    return _line(
        item["amount"], item["currency"], item["description"], item["period"], item["quantity"],
        id=f"il_{item['id'][3:]}", parent=where,
        pricing=item["pricing"], discountable=item["discountable"], metadata=dict(item["metadata"]), subscription=details["subscription"],
    )  # fmt: skip


def subscription_line(store: Store, subscription: Obj, item: Obj, amount: int, description: str, period: tuple[int, int]) -> Obj:
    """The line of one subscription item for ``period``."""
    parent: Obj = {"invoice_item": None, "proration": False, "subscription": subscription["id"], "subscription_item": item["id"]}
    parent["proration_details"] = {"credited_items": None}
    return _line(
        amount, subscription["currency"], description, {"start": period[0], "end": period[1]}, item["quantity"],
        id=store.new("line_item", "il")["id"], subscription=subscription["id"], pricing=_pricing(item["price"]),
        parent={"type": "subscription_item_details", "subscription_item_details": parent, "invoice_item_details": None},
        metadata=dict(item["metadata"]) or dict(subscription["metadata"]),
    )  # fmt: skip


def create(store: Store, p: Params) -> Obj:
    customer = store.get("customer", p.need("customer"), param="customer")
    pending = p.text("pending_invoice_items_behavior", "exclude", choices=("include", "exclude")) == "include"
    p.known("payment_settings", "automatic_tax", "rendering", "custom_fields", "issuer")
    wanted = p.text("subscription")
    subscription = store.get("subscription", wanted, param="subscription") if wanted else None
    invoice = draft(store, customer, [], "manual", subscription=subscription, pending=pending, currency=p.text("currency"), add=False)
    invoice |= {"metadata": p.metadata(), "auto_advance": p.flag("auto_advance")}
    invoice["default_payment_method"] = p.text("default_payment_method")
    invoice["collection_method"] = p.text("collection_method", "charge_automatically", choices=("charge_automatically", "send_invoice"))
    if days := p.number("days_until_due", least=0):
        invoice["due_date"] = store.now() + days * periods.DAY
    invoice["discounts"] += catalog.discounts(store, p, customer["id"], invoice=invoice["id"])
    p.put(invoice, "description", "footer", "statement_descriptor")
    store.add(_total(store, invoice), "invoice.created")
    if invoice["auto_advance"]:
        _finalize_later(store, invoice)
    return invoice


def draft(
    store: Store, customer: Obj, lines: list[Obj], reason: str, *, subscription: Obj | None = None, pending: bool = True,
    currency: str | None = None, period: tuple[int, int] | None = None, add: bool = True,
) -> Obj:  # fmt: skip
    """A draft with these lines and, if ``pending``, all items that wait for it; the discounts of the subscription apply."""
    invoice = store.new("invoice", "in", customer=customer["id"], customer_account=None, billing_reason=reason, status="draft", metadata={})
    start, end = period or (store.now(), store.now())
    nothing = "account_tax_ids amount_paid_off_stripe application automatically_finalizes_at custom_fields customer_shipping description"
    nothing += (
        " default_payment_method default_source due_date effective_at ending_balance footer from_invoice hosted_invoice_url invoice_pdf"
    )
    nothing += (
        " last_finalization_error latest_revision next_payment_attempt number on_behalf_of receipt_number rendering shipping_cost parent"
    )
    nothing += " shipping_details statement_descriptor test_clock threshold_reason webhooks_delivered_at"
    invoice |= dict.fromkeys(nothing.split())
    invoice |= {"account_country": "US", "account_name": "Stripe double", "amount_overpaid": 0, "amount_paid": 0, "amount_shipping": 0}
    invoice |= {
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": NO_TAX,
        "collection_method": "charge_automatically",
    }
    invoice |= {f"customer_{name}": customer[name] for name in ("address", "email", "name", "phone", "tax_exempt")} | {
        "starting_balance": 0
    }
    invoice["customer_tax_ids"] = [
        {"type": tax["type"], "value": tax["value"]} for tax in store.find("tax_id", {"customer": customer["id"]})
    ]
    invoice |= {"default_tax_rates": [], "issuer": {"type": "self"}, "period_start": start, "period_end": end, "total_taxes": []}
    invoice["payment_settings"] = {"default_mandate": None, "payment_method_options": None, "payment_method_types": None}
    invoice |= {"post_payment_credit_notes_amount": 0, "pre_payment_credit_notes_amount": 0, "total_pretax_credit_amounts": []}
    invoice["status_transitions"] = dict.fromkeys(("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at"))
    invoice["discounts"] = []
    if subscription:
        details = {"metadata": dict(subscription["metadata"]), "subscription": subscription["id"]}
        invoice["parent"] = {"quote_details": None, "subscription_details": details, "type": "subscription_details"}
        invoice["collection_method"] = subscription["collection_method"]
        invoice["discounts"] = list(subscription["discounts"])
    items = [item for item in reversed(store.find("invoiceitem", {"customer": customer["id"]})) if not item["invoice"]] if pending else []
    wanted = {None, subscription["id"] if subscription else None}
    for item in items:
        if ((item["parent"] or {}).get("subscription_details") or {}).get("subscription") in wanted:
            item["invoice"] = invoice["id"]
            store.save(item)
            lines = [*lines, _item_line(item)]
    invoice["lines"] = listed(lines, f"/v1/invoices/{invoice['id']}/lines")
    invoice["currency"] = (currency or (lines[0]["currency"] if lines else customer["currency"] or "usd")).lower()
    _total(store, invoice)
    return store.add(invoice, "invoice.created") if add else invoice


def _total(store: Store, invoice: Obj) -> Obj:
    """Sums and discounts; the discount of each line is its cumulative share, so that the shares add up."""
    lines = invoice["lines"]["data"]
    for line in lines:
        line |= {"invoice": invoice["id"], "discount_amounts": []}
    subtotal = sum(line["amount"] for line in lines)
    open_lines = [line for line in lines if line["discountable"] and line["amount"] > 0]
    base = left = sum(line["amount"] for line in open_lines)
    invoice["total_discount_amounts"] = []
    for id in invoice["discounts"]:
        off = catalog.reduction(store, store.get("discount", id), left)
        left -= off
        invoice["total_discount_amounts"].append({"amount": off, "discount": id})
        seen = given = 0
        for line in open_lines:
            seen += line["amount"]
            line["discount_amounts"].append({"amount": off * seen // base - given, "discount": id})
            given = off * seen // base
    total = subtotal - (base - left)
    invoice |= {"subtotal": subtotal, "subtotal_excluding_tax": subtotal, "total": total, "total_excluding_tax": total}
    invoice |= {"amount_due": max(0, total), "amount_remaining": max(0, total)}
    return invoice


def _draft(store: Store, id: str) -> Obj:
    invoice = store.get("invoice", id)
    if invoice["status"] != "draft":
        raise errors.invalid(f"Invoice {id} is {invoice['status']}, not a draft.", code="invoice_not_editable")
    return invoice


def update(store: Store, p: Params, id: str) -> Obj:
    invoice = store.get("invoice", id)
    invoice |= {"metadata": p.metadata(invoice["metadata"]), "auto_advance": p.flag("auto_advance", invoice["auto_advance"])}
    p.put(invoice, "description", "footer", "default_payment_method")
    return store.save(invoice, "invoice.updated")


def delete(store: Store, p: Params, id: str) -> Obj:
    invoice = _draft(store, id)
    if invoice["parent"]:
        raise errors.invalid("You can only delete draft one-off invoices.")
    for line in invoice["lines"]["data"]:
        store.delete(store.get("invoiceitem", line["parent"]["invoice_item_details"]["invoice_item"]), "invoiceitem.deleted")
    return store.delete(invoice, "invoice.deleted")


def _finalize_later(store: Store, invoice: Obj) -> None:
    invoice["automatically_finalizes_at"] = store.now() + store.setting("finalize_seconds")
    store.save(invoice)
    store.schedule(invoice["automatically_finalizes_at"], "finalize", invoice["id"])


def leave_as_draft(store: Store, invoice: Obj) -> Obj:
    """A renewal's invoice stays open to changes for an hour."""
    _finalize_later(store, invoice)
    return invoice


def finalize(store: Store, invoice: Obj, intent: Obj | None = None) -> Obj:
    """From here on the invoice is what the customer owes. Credit on the customer's balance pays first; a negative total adds to it."""
    _draft(store, invoice["id"])
    customer = store.get("customer", invoice["customer"], deleted=True)
    number = store.setting("invoice_number") + 1
    store.set("invoice_number", number)
    before = customer["balance"]
    owed = invoice["total"] + before
    due, after = (owed, 0) if owed >= payments.LEAST else (0, owed)  # too little to charge waits for the next invoice
    invoice |= {"amount_due": due, "amount_remaining": due}
    invoice |= {
        "status": "open",
        "number": f"{customer['invoice_prefix']}-{number:04}",
        "starting_balance": before,
        "ending_balance": after,
    }
    invoice |= {"automatically_finalizes_at": None, "effective_at": store.now()}
    page = f"{store.address}/i/{invoice['id']}"
    invoice |= {"hosted_invoice_url": page, "invoice_pdf": f"{page}/pdf"}
    invoice["status_transitions"]["finalized_at"] = store.now()
    customer |= {"balance": after, "currency": invoice["currency"], "next_invoice_sequence": customer["next_invoice_sequence"] + 1}
    store.save(customer, *(["customer.updated"] if after != before else []))
    store.save(invoice, "invoice.finalized", "invoice.updated")
    if invoice["amount_due"]:
        _ask_for_payment(store, invoice, intent)
    for id in invoice["discounts"]:
        _use_up(store, id)
    return invoice


def _ask_for_payment(store: Store, invoice: Obj, intent: Obj | None) -> None:
    """The invoice's payment intent (``intent`` where one has been paid already), joined to it by an invoice payment."""
    if intent is None:
        intent = payments.add(store, invoice["amount_due"], invoice["currency"], invoice["customer"], {}, _invoice=invoice["id"])
        first = invoice["billing_reason"] == "subscription_create"
        intent["description"] = "Subscription creation" if first else f"Invoice {invoice['number']}"
        store.save(intent)
    payment = store.new("invoice_payment", "inpay", amount_paid=None, amount_requested=invoice["amount_due"], currency=invoice["currency"])
    payment |= {"invoice": invoice["id"], "is_default": True, "payment": {"type": "payment_intent", "payment_intent": intent["id"]}}
    store.add(payment | {"status": "open", "status_transitions": {"canceled_at": None, "paid_at": None}})


def _use_up(store: Store, id: str) -> None:
    """A discount that holds once, or until a month, ends for whom it was meant."""
    discount = store.get("discount", id)
    coupon = store.get("coupon", discount["source"]["coupon"], deleted=True)
    over = coupon["duration"] == "once" or (discount["end"] and discount["end"] <= store.now())
    if over and discount["subscription"]:
        subscription = store.get("subscription", discount["subscription"])
        subscription["discounts"] = [other for other in subscription["discounts"] if other != id]
        store.save(subscription)
        store.emit("customer.discount.deleted", discount)


def payment_of(store: Store, invoice: Obj) -> tuple[Obj, Obj] | None:
    """The invoice's own payment and its intent."""
    found = store.find("invoice_payment", {"invoice": invoice["id"], "is_default": True})
    return (found[0], store.get("payment_intent", found[0]["payment"]["payment_intent"])) if found else None


def mark_paid(store: Store, invoice: Obj, *, out_of_band: bool = False) -> Obj:
    invoice |= {"status": "paid", "amount_paid": 0 if out_of_band else invoice["amount_due"], "amount_remaining": 0, "attempted": True}
    invoice |= {"next_payment_attempt": None, "auto_advance": False}
    if out_of_band:
        invoice["amount_paid_off_stripe"] = invoice["amount_due"]
    invoice["status_transitions"]["paid_at"] = store.now()
    if found := payment_of(store, invoice):
        _end_payment(store, *found, paid=not out_of_band)
    return store.save(invoice, "invoice.updated", "invoice.paid", "invoice.payment_succeeded")


def _end_payment(store: Store, payment: Obj, intent: Obj, *, paid: bool) -> None:
    payment |= {"status": "paid", "amount_paid": payment["amount_requested"]} if paid else {"status": "canceled"}
    payment["status_transitions"]["paid_at" if paid else "canceled_at"] = store.now()
    if not paid and intent["status"] in payments.OPEN:
        payments.void(store, intent, "void_invoice")
    store.save(payment, *(["invoice_payment.paid"] if paid else []))


def finalize_route(store: Store, p: Params, id: str) -> Obj:
    invoice = _draft(store, id)
    invoice["auto_advance"] = p.flag("auto_advance", invoice["auto_advance"])
    finalize(store, invoice)
    return invoice if invoice["amount_due"] else mark_paid(store, invoice)


def send(store: Store, p: Params, id: str) -> Obj:
    invoice = store.get("invoice", id)
    if invoice["status"] == "draft":
        finalize(store, invoice)
    store.emit("invoice.sent", invoice)
    return invoice


def void(store: Store, p: Params, id: str) -> Obj:
    return end(store, store.get("invoice", id), "void")


def write_off(store: Store, p: Params, id: str) -> Obj:
    return end(store, store.get("invoice", id), "uncollectible")


def end(store: Store, invoice: Obj, status: str) -> Obj:
    """``status`` is void or uncollectible."""
    if invoice["status"] not in {"open", "uncollectible"} - {status}:
        raise errors.invalid(f"Invoice {invoice['id']} is {invoice['status']}.", code="invoice_not_editable")
    invoice |= {"status": status, "next_payment_attempt": None, "auto_advance": False}
    name = "voided" if status == "void" else "marked_uncollectible"
    invoice["status_transitions"][f"{name}_at"] = store.now()
    if status == "void" and (found := payment_of(store, invoice)):
        _end_payment(store, *found, paid=False)
    return store.save(invoice, "invoice.updated", f"invoice.{name}")
