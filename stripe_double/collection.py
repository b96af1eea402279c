"""Getting invoices paid, and what that does to the subscription behind them: active, past_due, and the end after the last attempt."""

from __future__ import annotations

from stripe_double import customers, errors, invoices, payments, periods
from stripe_double.params import Params
from stripe_double.store import Obj, Store

ALIVE = ("trialing", "active", "past_due", "unpaid", "paused", "incomplete")


def pay_route(store: Store, p: Params, id: str) -> Obj:
    invoice = store.get("invoice", id)
    if invoice["status"] == "draft":
        invoices.finalize(store, invoice)
    if invoice["status"] not in {"open", "uncollectible"}:
        raise errors.invalid(
            f"Invoice is already {invoice['status']}.", code="invoice_already_paid" if invoice["status"] == "paid" else None
        )
    out_of_band, off_session = p.flag("paid_out_of_band"), p.flag("off_session", True)
    if out_of_band or not invoice["amount_due"]:
        return paid(store, invoice, out_of_band=out_of_band)
    given = p.text("payment_method")
    method = customers.method(store, given)["id"] if given else None
    error = pay(store, invoice, method, off_session=off_session, scheduled=not invoice["attempted"])
    if error and error.status == 402:
        error.keeps = True
        raise error
    return invoice


def collect(store: Store, invoice: Obj) -> None:
    """What happens by itself when a draft's hour is over: finalize, then charge what there is to charge."""
    if invoice["status"] == "draft":
        invoices.finalize(store, invoice)
    if not invoice["amount_due"]:
        paid(store, invoice)
    elif invoice["collection_method"] == "charge_automatically":
        pay(store, invoice)


def pay(
    store: Store, invoice: Obj, method: str | None = None, *, off_session: bool = True, scheduled: bool = True
) -> errors.StripeError | None:
    """One attempt with ``method`` or the default one. The error is what a person at the checkout should hear; an attempt that is not
    ``scheduled`` leaves the plan of retries as it is."""
    payment = invoices.payment_of(store, invoice)
    assert payment is not None
    intent = payment[1]
    if intent["status"] == "processing":
        raise errors.invalid("A payment of this invoice is processing.", code="invoice_payment_intent_requires_action")
    intent["payment_method"] = method or default_method(store, invoice)
    if intent["payment_method"] is None:
        failed(store, invoice, scheduled=scheduled)
        return errors.invalid("There is no default payment method: the customer has none to charge.", code="resource_missing")
    payments.confirm(store, intent, off_session=off_session)
    resolve(store, intent, scheduled=scheduled)
    error = intent["last_payment_error"]
    return errors.declined(error, payment_intent={"id": intent["id"], "object": "payment_intent"}) if error else None


def default_method(store: Store, invoice: Obj) -> str | None:
    subscription = subscription_of(store, invoice)
    customer = store.get("customer", invoice["customer"], deleted=True)
    chosen: str | None = invoice["default_payment_method"] or (subscription or {}).get("default_payment_method")
    return chosen or customer["invoice_settings"]["default_payment_method"]


def subscription_of(store: Store, invoice: Obj) -> Obj | None:
    return store.get("subscription", invoice["parent"]["subscription_details"]["subscription"]) if invoice["parent"] else None


def resolve(store: Store, intent: Obj, *, scheduled: bool = True) -> None:
    """Tell the invoice that this intent belongs to, if any, how its payment stands."""
    if not (id := intent.get("_invoice")):
        return
    invoice = store.get("invoice", id)
    if intent["status"] == "succeeded":
        paid(store, invoice)
    elif intent["status"] == "requires_payment_method":
        failed(store, invoice, scheduled=scheduled)
    elif intent["status"] == "requires_action":
        store.emit("invoice.payment_action_required", invoice)
        failed(store, invoice, scheduled=scheduled)
    elif (subscription := subscription_of(store, invoice)) and subscription["status"] == "incomplete":
        _become(store, subscription, "active")  # a bank debit that is processing counts until it fails


def paid(store: Store, invoice: Obj, *, out_of_band: bool = False) -> Obj:
    invoices.mark_paid(store, invoice, out_of_band=out_of_band)
    subscription = subscription_of(store, invoice)
    if subscription and subscription["status"] in {"incomplete", "past_due", "unpaid"} and not _owed(store, subscription):
        _become(store, subscription, "active")
    return invoice


def failed(store: Store, invoice: Obj, *, scheduled: bool = True) -> None:
    """Count the attempt, plan the next one or end it, and tell the subscription."""
    if not scheduled:
        store.emit("invoice.payment_failed", invoice)
        return
    subscription = subscription_of(store, invoice)
    first = bool(subscription and subscription["status"] == "incomplete")
    days = [] if first or not invoice["auto_advance"] else store.setting("retry_days")
    invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1, "next_payment_attempt": None}
    again = invoice["attempt_count"] <= len(days)
    if again:
        invoice["next_payment_attempt"] = store.now() + days[invoice["attempt_count"] - 1] * periods.DAY
        store.schedule(invoice["next_payment_attempt"], "retry", invoice["id"])
    store.save(invoice, "invoice.payment_failed", "invoice.updated")
    if subscription is None or first or subscription["status"] not in ALIVE:
        return
    if again or not days:
        _become(store, subscription, "past_due")
    elif store.setting("retry_end") == "canceled":
        cancel(store, subscription, "payment_failed")
    else:
        _become(store, subscription, store.setting("retry_end"))


def retry(store: Store, invoice: Obj) -> None:
    if invoice["status"] == "open" and invoice["next_payment_attempt"] and invoice["next_payment_attempt"] <= store.now():
        pay(store, invoice)


def cancel(store: Store, subscription: Obj, reason: str, **details: str | None) -> Obj:
    """The end of a subscription, at once. Its open invoices are no longer collected by themselves."""
    now = store.now()
    subscription |= {"status": "canceled", "ended_at": now, "canceled_at": subscription["canceled_at"] or now, "pause_collection": None}
    subscription["cancellation_details"] = {"comment": None, "feedback": None} | details | {"reason": reason}
    for invoice in _owed(store, subscription):
        invoice |= {"auto_advance": False, "next_payment_attempt": None}
        store.save(invoice)
    for item in store.find("invoiceitem", {"parent.subscription_details.subscription": subscription["id"]}):
        if not item["invoice"]:
            store.delete(item, "invoiceitem.deleted")
    return store.save(subscription, "customer.subscription.deleted")


def _owed(store: Store, subscription: Obj) -> list[Obj]:
    """The subscription's latest invoices that are open: an older debt does not keep it from being active."""
    latest = subscription["latest_invoice"]
    return [store.get("invoice", latest)] if latest and store.get("invoice", latest)["status"] == "open" else []


def _become(store: Store, subscription: Obj, status: str) -> None:
    subscription["status"] = status
    store.save(subscription, "customer.subscription.updated")
