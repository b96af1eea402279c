"""The hosted pages: Checkout, the customer portal, an invoice. Plain forms that work without scripts."""

from __future__ import annotations

import re
from html import escape
from typing import NamedTuple

from stripe_double import cards, catalog, checkout, collection, customers, errors, periods, subscriptions
from stripe_double.params import Params
from stripe_double.store import Obj, Store

STYLE = """
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}body{max-width:40rem;margin:2rem auto;padding:0 1rem}
.double{background:#b3261e;color:#fff;padding:.5rem 1rem;border-radius:.25rem}table{width:100%;border-collapse:collapse}
td,th{padding:.25rem 0;text-align:left}td:last-child,th:last-child{text-align:right;font-variant-numeric:tabular-nums}
label{display:block;margin-top:.75rem}input,select,button{font:inherit;padding:.5rem;width:100%;box-sizing:border-box}
button{margin-top:1rem;cursor:pointer}[role=alert]{border-left:4px solid #b3261e;padding-left:1rem;font-weight:600}
section{margin-top:2rem}form.inline button{width:auto}
"""


ADDRESS = {"line1": "Address", "postal_code": "Postal code", "city": "City", "country": "Country (two letters)"}


class Page(NamedTuple):
    """``html``, or where to go instead."""

    status: int
    html: str = ""
    location: str = ""


def answer(store: Store, method: str, path: str, fields: Params) -> Page:
    """:raises StripeError: 404 for a page that is not here."""
    for pattern, page in _PAGES:
        if found := re.fullmatch(pattern, path):
            return page(store, method, found[1], fields)
    raise errors.invalid(f"Unrecognized request URL ({method}: {path[:200]}).", status=404)


def money(cents: int | None, currency: str | None) -> str:
    amount = cents or 0
    return f"{'−' if amount < 0 else ''}{abs(amount) // 100:,}.{abs(amount) % 100:02} {(currency or 'usd').upper()}"


def _document(title: str, body: str, *, alert: str | None = None, status: int = 200) -> Page:
    warning = '<p class="double">Stripe double: no real card, no real money.</p>'
    told = f'<p role="alert" id="error">{escape(alert)}</p>' if alert else ""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style>'
    html = (
        f'<!doctype html><html lang="en"><head>{head}</head><body>{warning}<main><h1>{escape(title)}</h1>{told}{body}</main></body></html>'
    )
    return Page(status, html)


def _rows(rows: list[tuple[str, str]], caption: str) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>{escape(caption)}</caption>{cells}</table>"


def _number_field() -> str:
    options = "".join(f'<option value="{number}">{escape(card.says)}</option>' for number, card in cards.CARDS.items())
    field = '<input name="number" list="numbers" inputmode="numeric" autocomplete="off" required value="4242 4242 4242 4242">'
    return f'<label>Card or account number{field}</label><datalist id="numbers">{options}</datalist>'


def _number(fields: Params) -> str | None:
    """The test number that was typed, None for one that is not in the list."""
    number = re.sub(r"[\s-]", "", fields.text("number") or "")
    return number if number in cards.CARDS else None


def _form(action: str, inner: str, button: str, *, id: str, inline: bool = False) -> str:
    kind = ' class="inline"' if inline else ""
    return f'<form method="post" action="{escape(action)}" id="{id}"{kind}>{inner}<button type="submit">{escape(button)}</button></form>'


def _hidden(**values: str) -> str:
    return "".join(f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in values.items())


# Checkout


def _checkout(store: Store, method: str, id: str, fields: Params) -> Page:
    session = store.get("checkout.session", id)
    if session["status"] == "complete":
        return Page(303, location=_success_url(session))
    if session["status"] == "expired" or session["expires_at"] <= store.now():
        return _document("This page has expired", _back(session), status=410)
    return _pay(store, session, fields) if method == "POST" else _checkout_page(store, session)


def _pay(store: Store, session: Obj, fields: Params) -> Page:
    number = _number(fields)
    if number is None:
        return _checkout_page(store, session, "Your card number is incorrect: take one of the list.", 402)
    email, name = fields.text("email", longest=512), fields.text("name", longest=200)
    if (wanted := _email_is_wanted(session)) and "@" not in (email or ""):
        return _checkout_page(store, session, "An email address is needed.", 402)
    if (code := fields.text("code", longest=100)) and (refusal := _take_code(store, session, code)):
        return _checkout_page(store, session, refusal, 402)
    if fields.has("amount") and (refusal := _take_amount(store, session, fields)):
        return _checkout_page(store, session, refusal, 402)
    if session["billing_address_collection"] == "required" and not fields.has("authenticated"):
        address = {name: fields.text(name, longest=200) for name in ADDRESS}
        if not all(address.values()):
            return _checkout_page(store, session, "The address is not complete.", 402)
        session["_address"] = dict.fromkeys(customers.ADDRESS) | address
    if session["tax_id_collection"]["enabled"] and (vat := fields.text("vat", longest=30)):
        session["_vat"] = vat
    answered = {"yes": True, "no": False}.get(fields.text("authenticated") or "")
    said = checkout.submit(store, session, number=number, email=email if wanted else None, name=name, authenticated=answered)
    if said == "requires_action":
        kept = _hidden(number=number, email=email or "", name=name or "")
        yes = _form(f"/c/pay/{session['id']}", kept + _hidden(authenticated="yes"), "Complete authentication", id="authenticate")
        no = _form(f"/c/pay/{session['id']}", kept + _hidden(authenticated="no"), "Fail authentication", id="fail-authentication")
        return _document("Your bank asks whether this is you", yes + no)
    return _checkout_page(store, session, said, 402) if said else Page(303, location=_success_url(session))


def _email_is_wanted(session: Obj) -> bool:
    return not session["customer"] and not session["customer_email"]


def _take_code(store: Store, session: Obj, code: str) -> str | None:
    found = store.find("promotion_code", {"code": code, "active": True}) if session["allow_promotion_codes"] else []
    try:
        offer = catalog.redeemable(store, found[0]) if found else None
    except errors.StripeError:
        offer = None
    if offer is None:
        return "This code is invalid."
    checkout.take_offer(session, offer)
    checkout.price_session(store, session)
    return None


def _take_amount(store: Store, session: Obj, fields: Params) -> str | None:
    """The amount that the customer chooses, in whole cents."""
    item = session["_items"][0]
    limits = store.get("price", item["price"])["custom_unit_amount"]
    typed = re.fullmatch(r"(\d{1,6})(?:\.(\d\d))?", fields.text("amount") or "")
    cents = int(typed[1]) * 100 + int(typed[2] or 0) if typed else -1
    if not limits or not (limits["minimum"] or 50) <= cents <= (limits["maximum"] or 99_999_999):
        return "This amount is not possible."
    item["amount"] = cents
    checkout.price_session(store, session)
    return None


def _checkout_page(store: Store, session: Obj, alert: str | None = None, status: int = 200) -> Page:
    inner, total = "", money(session["amount_total"], session["currency"])
    rows = []
    for line in checkout.line_items(store, session)["data"] if session["mode"] != "setup" else ():
        cost = money(line["amount_subtotal"], line["currency"]) + _every(line["price"])
        rows.append((f"{line['quantity']} × {line['description']}", cost))
    if session["amount_total"] is not None:
        discount = session["total_details"]["amount_discount"]
        rows += [("Discount", money(-discount, session["currency"]))] if discount else []
        rows.append(("Due today" + (" (trial)" if session["_trial"] else ""), total))
    if session["mode"] == "payment" and store.get("price", session["_items"][0]["price"])["custom_unit_amount"]:
        amount = session["_items"][0]["amount"]
        inner += f'<label>Amount<input name="amount" inputmode="decimal" required value="{amount // 100}.{amount % 100:02}"></label>'
    if _email_is_wanted(session):
        inner += '<label>Email<input name="email" type="email" autocomplete="email" required></label>'
    inner += _number_field() + '<label>Name on card<input name="name" autocomplete="off"></label>'
    if session["billing_address_collection"] == "required":
        inner += "".join(f'<label>{label}<input name="{name}" required></label>' for name, label in ADDRESS.items())
    if session["tax_id_collection"]["enabled"]:
        inner += '<label>VAT id, for a business in the EU<input name="vat" autocomplete="off"></label>'
    if session["allow_promotion_codes"]:
        inner += '<label>Promotion code<input name="code" autocomplete="off"></label>'
    verb = {"payment": f"Pay {total}", "subscription": "Subscribe", "setup": "Save card"}[session["mode"]]
    body = _rows(rows, "Your order") + _form(f"/c/pay/{session['id']}", inner, verb, id="pay") + _back(session)
    return _document("Checkout", body, alert=alert, status=status)


def _back(session: Obj) -> str:
    url = session["cancel_url"]
    return f'<p><a id="back" href="{escape(url)}" rel="noreferrer">Back</a></p>' if url else ""


def _success_url(session: Obj) -> str:
    return str(session["success_url"]).replace("{CHECKOUT_SESSION_ID}", session["id"])


# The portal


def _portal(store: Store, method: str, id: str, fields: Params) -> Page:
    session = store.get("billing_portal.session", id)
    customer = store.get("customer", session["customer"])
    alert = None
    if method == "POST":
        alert = _act(store, session, customer, fields)
        if alert is None:
            return Page(303, location=f"/p/session/{id}")
    return _portal_page(store, session, customer, alert)


def _act(store: Store, session: Obj, customer: Obj, fields: Params) -> str | None:
    """Do what a button of the portal says; what to tell the customer when that is refused."""
    features = store.get("billing_portal.configuration", session["configuration"])["features"]
    action = fields.text("action")
    if action == "card" and features["payment_method_update"]["enabled"]:
        number = _number(fields)
        return checkout.change_card(store, customer, number) if number else "Your card number is incorrect: take one of the list."
    subscription = store.get("subscription", fields.need("subscription"), param="subscription")
    if subscription["customer"] != customer["id"] or subscription["status"] not in collection.ALIVE:
        return "There is no such subscription any more."
    if action == "cancel" and features["subscription_cancel"]["enabled"]:
        if features["subscription_cancel"]["mode"] == "immediately":
            collection.cancel(store, subscription, "cancellation_requested")
        else:
            subscriptions.set_cancel(store, subscription, True)
    elif action == "resume":
        subscriptions.set_cancel(store, subscription, False)
    elif action == "switch":
        price = next((price for price in checkout.switchable(store, session, subscription) if price["id"] == fields.text("price")), None)
        if price is None:
            return "This plan is not on offer."
        switch = features["subscription_update"]["proration_behavior"]
        if refusal := subscriptions.switch(store, subscription, price, switch):
            return refusal
    else:
        return "This cannot be done here."
    store.save(subscription, "customer.subscription.updated")
    return None


def _portal_page(store: Store, session: Obj, customer: Obj, alert: str | None) -> Page:
    here = f"/p/session/{session['id']}"
    features = store.get("billing_portal.configuration", session["configuration"])["features"]
    body = ""
    for subscription in store.find("subscription", {"customer": customer["id"]}):
        if subscription["status"] not in collection.ALIVE:
            continue
        item, end = subscription["items"]["data"][0], subscriptions.current_period(subscription)[1]
        state = f"Cancels on {periods.date(end)}" if subscription["cancel_at_period_end"] else f"Renews on {periods.date(end)}"
        rows = [(subscriptions.name_of(store, item), money(item["price"]["unit_amount"] * item["quantity"], subscription["currency"]))]
        body += "<section>" + _rows([*rows, (f"Status: {subscription['status']}", state)], "Your plan")
        this = _hidden(subscription=subscription["id"])
        if subscription["cancel_at_period_end"]:
            body += _form(here, this + _hidden(action="resume"), "Keep the plan", id="resume", inline=True)
        elif features["subscription_cancel"]["enabled"]:
            body += _form(here, this + _hidden(action="cancel"), "Cancel the plan", id="cancel", inline=True)
        if offers := [price for price in checkout.switchable(store, session, subscription) if price["id"] != item["price"]["id"]]:
            options = "".join(
                f'<option value="{price["id"]}">{escape(_offer(store, price))}</option>'
                for price in sorted(offers, key=lambda one: one["unit_amount"])
            )
            choice = f'<label>Another plan<select name="price">{options}</select></label>'
            body += _form(here, this + _hidden(action="switch") + choice, "Switch plan", id="switch")
        body += "</section>"
    default = customer["invoice_settings"]["default_payment_method"]
    for method in store.find("payment_method", {"customer": customer["id"]}):
        face = method[method["type"]]
        used = " (default)" if method["id"] == default else ""
        body += f"<p>{escape(face.get('brand') or face['bank_name'])} ending in {face['last4']}{used}</p>"
    if features["payment_method_update"]["enabled"]:
        body += "<section>" + _form(here, _hidden(action="card") + _number_field(), "Change card", id="card") + "</section>"
    if features["invoice_history"]["enabled"]:
        numbered = [invoice for invoice in store.find("invoice", {"customer": customer["id"]}) if invoice["number"]]
        entries = "".join(_invoice_entry(invoice) for invoice in numbered)
        body += f"<section><h2>Invoices</h2><ul>{entries}</ul></section>"
    if url := session["return_url"]:
        body += f'<p><a id="return" href="{escape(url)}" rel="noreferrer">Return</a></p>'
    return _document("Billing", body, alert=alert, status=402 if alert else 200)


def _invoice_entry(invoice: Obj) -> str:
    amount = money(invoice["total"], invoice["currency"])
    return f'<li><a href="/i/{invoice["id"]}">{escape(invoice["number"])}</a>: {amount}, {invoice["status"]}</li>'


def _offer(store: Store, price: Obj) -> str:
    name = store.get("product", price["product"], deleted=True)["name"]
    return f"{name}: {money(price['unit_amount'], price['currency'])}{_every(price)}"


def _every(price: Obj) -> str:
    """As in "every 3 months"; nothing for a one-time price."""
    if not (recurring := price["recurring"]):
        return ""
    count, interval = recurring["interval_count"], recurring["interval"]
    return f" every {interval}" if count == 1 else f" every {count} {interval}s"


# An invoice, and a receipt


def _invoice(store: Store, method: str, id: str, fields: Params) -> Page:
    invoice = store.get("invoice", id)
    alert = None
    if method == "POST":
        alert = _pay_invoice(store, invoice, fields)
        if alert is None:
            return Page(303, location=f"/i/{id}")
    rows = [(line["description"] or "", money(line["amount"], line["currency"])) for line in invoice["lines"]["data"]]
    rows += [("Discount", money(-row["amount"], invoice["currency"])) for row in invoice["total_discount_amounts"]]
    rows += [("Total", money(invoice["total"], invoice["currency"])), ("Due", money(invoice["amount_remaining"], invoice["currency"]))]
    body = f"<p>Status: <strong>{invoice['status']}</strong></p>" + _rows(rows, f"Invoice {invoice['number'] or 'draft'}")
    if invoice["status"] == "open":
        body += _form(f"/i/{id}", _number_field(), "Pay", id="pay")
    return _document(f"Invoice {invoice['number'] or ''}", body, alert=alert, status=402 if alert else 200)


def _pay_invoice(store: Store, invoice: Obj, fields: Params) -> str | None:
    number = _number(fields)
    if number is None or invoice["status"] != "open":
        return "Your card number is incorrect: take one of the list." if number is None else "This invoice cannot be paid any more."
    method = customers.add_method(store, number)
    error = collection.pay(store, invoice, method["id"], scheduled=False)
    return str(error) if error else None


def _receipt(store: Store, method: str, id: str, fields: Params) -> Page:
    charge = store.get("charge", id)
    rows = [("Amount", money(charge["amount"], charge["currency"])), ("Refunded", money(charge["amount_refunded"], charge["currency"]))]
    return _document("Receipt", _rows([("Status", charge["status"]), *rows], f"Charge {id}"))


_PAGES = (
    (r"/c/pay/(cs_test_\w+)", _checkout),
    (r"/p/session/(bps_\w+)", _portal),
    (r"/i/(in_\w+)", _invoice),
    (r"/i/(in_\w+)/pdf", _invoice),
    (r"/receipts/(ch_\w+)", _receipt),
)
