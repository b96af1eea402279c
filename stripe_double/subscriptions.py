"""Subscriptions: their items and periods, trials, changes with proration, renewals and cancellation."""

from __future__ import annotations

from stripe_double import catalog, collection, errors, invoices, periods
from stripe_double.params import Params
from stripe_double.store import Obj, Store, listed

PRORATIONS = ("create_prorations", "always_invoice", "none")
BEHAVIORS = ("allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")
TRIAL_WARNING = 3 * periods.DAY
FIRST_PAYMENT_WINDOW = 23 * 3600
FEEDBACK = ("customer_service", "low_quality", "missing_features", "other", "switched_service", "too_complex", "too_expensive", "unused")


def create(store: Store, p: Params) -> Obj:
    customer = store.get("customer", p.need("customer"), param="customer")
    subscription, behavior = begin(store, p, customer)
    if not start(store, subscription, behavior, off_session=p.flag("off_session")) and behavior == "error_if_incomplete":
        raise errors.StripeError(402, "card_error", "The first payment of the subscription failed.", code="card_declined")
    return subscription


def begin(store: Store, p: Params, customer: Obj, items: list[Obj] | None = None) -> tuple[Obj, str]:
    """The subscription that ``p`` asks for, before its first invoice; and what is to happen if that is not paid."""
    now = store.now()
    behavior = p.text("payment_behavior", "allow_incomplete", choices=BEHAVIORS) or "allow_incomplete"
    subscription = store.new("subscription", "sub", customer=customer["id"], status="incomplete", metadata=p.metadata(), start_date=now)
    nothing = "application application_fee_percent billing_cycle_anchor_config billing_thresholds cancel_at canceled_at customer_account"
    nothing += (
        " days_until_due default_source ended_at latest_invoice next_pending_invoice_item_invoice on_behalf_of pause_collection schedule"
    )
    nothing += (
        " pending_invoice_item_interval pending_setup_intent pending_update test_clock transfer_data trial_end trial_start description"
    )
    subscription |= dict.fromkeys(nothing.split())
    subscription |= {"automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None}, "billing_schedules": []}
    subscription["billing_mode"] = {"flexible": {"proration_discounts": "included"}, "type": "flexible", "updated_at": now}
    subscription |= {"cancel_at_period_end": False, "cancellation_details": {"comment": None, "feedback": None, "reason": None}}
    subscription |= {"default_payment_method": None, "default_tax_rates": [], "discounts": []}
    subscription["invoice_settings"] = {"account_tax_ids": None, "issuer": {"type": "self"}}
    subscription["payment_settings"] = {"payment_method_options": None, "payment_method_types": None}
    subscription["payment_settings"]["save_default_payment_method"] = "off"
    subscription["collection_method"] = "charge_automatically"
    subscription["trial_settings"] = {"end_behavior": {"missing_payment_method": "create_invoice"}}
    if settings := p.child("trial_settings"):
        end = settings.child("end_behavior")
        wish = end.need("missing_payment_method", choices=("cancel", "create_invoice", "pause")) if end else "create_invoice"
        subscription["trial_settings"]["end_behavior"]["missing_payment_method"] = wish
    p.known("automatic_tax", "invoice_settings", "payment_settings", "billing_mode", "default_tax_rates")
    items = items if items is not None else [_new_item(store, wish) for wish in p.children("items")]
    if not items:
        raise errors.invalid("Missing required param: items.", param="items", code="parameter_missing")
    subscription["currency"] = items[0]["price"]["currency"]
    _set_items(subscription, items)
    for item in items:
        item["subscription"] = subscription["id"]
    _set_trial(store, p, subscription)
    subscription["status"] = "trialing" if subscription["trial_end"] else "incomplete"
    anchor = p.number("billing_cycle_anchor", least=now)
    subscription["billing_cycle_anchor"] = subscription["trial_end"] or anchor or now
    subscription["_prorate_first"] = p.text("proration_behavior", "create_prorations", choices=PRORATIONS) != "none"
    end = subscription["billing_cycle_anchor"]
    _set_period(subscription, (now, end) if end > now else _period(subscription, now))
    _take(store, p, subscription)
    store.add(subscription)
    subscription["discounts"] = catalog.discounts(store, p, customer["id"], subscription=subscription["id"])
    return subscription, behavior


def start(
    store: Store, subscription: Obj, behavior: str = "allow_incomplete", *, method: str | None = None, off_session: bool = True
) -> bool:
    """Make the first invoice and try to collect it; whether the subscription may be used."""
    customer = store.get("customer", subscription["customer"])
    trial = subscription["trial_end"]
    store.save(subscription)
    store.emit("customer.subscription.created", subscription)
    invoice = invoices.draft(
        store, customer, _lines(store, subscription), "subscription_create", subscription=subscription, period=(store.now(), store.now())
    )
    subscription["latest_invoice"] = invoice["id"]
    invoices.finalize(store, invoice)
    store.save(subscription)
    if trial:
        store.schedule(max(store.now(), trial - TRIAL_WARNING), "trial_will_end", subscription["id"])
    if not invoice["amount_due"]:
        collection.paid(store, invoice)
        if subscription["status"] == "incomplete":
            subscription["status"] = "active"
    elif subscription["collection_method"] == "send_invoice":
        subscription["status"] = "active"
    elif behavior != "default_incomplete":
        collection.pay(store, invoice, method, off_session=off_session)
    store.save(subscription, "customer.subscription.updated")
    if subscription["status"] == "incomplete":
        store.schedule(store.now() + FIRST_PAYMENT_WINDOW, "expire", subscription["id"])
    _schedule_period_end(store, subscription)
    return bool(subscription["status"] != "incomplete")


# Items and periods


def _new_item(store: Store, p: Params, quantity: int = 1) -> Obj:
    inline = p.child("price_data")
    price = catalog.inline_price(store, inline) if inline else store.get("price", p.need("price"), param=p.path("price"))
    if not inline and not price["active"]:
        raise errors.invalid(f"The price specified is inactive: {price['id']}.", param=p.path("price"))
    p.known("tax_rates", "clear_usage", "deleted", "id")
    return new_item(store, price, p.number("quantity", quantity, least=0, most=10**6) or 0, p.metadata())


def new_item(store: Store, price: Obj, quantity: int, metadata: dict[str, str]) -> Obj:
    if not price["recurring"]:
        raise errors.invalid(f"The price specified is set to `type=one_time`: {price['id']}", param="items[0][price]")
    item = store.new("subscription_item", "si", metadata=metadata, quantity=quantity)
    del item["livemode"]
    item |= {"billing_thresholds": None, "discounts": [], "tax_rates": [], "price": _frozen(price), "plan": catalog.plan(price)}
    return item


def _frozen(price: Obj) -> Obj:
    return {name: value for name, value in price.items() if not name.startswith("_")}


def _set_items(subscription: Obj, items: list[Obj]) -> None:
    recurring = {(item["price"]["recurring"]["interval"], item["price"]["recurring"]["interval_count"]) for item in items}
    if len(recurring) > 1 or len({item["price"]["currency"] for item in items}) > 1:
        raise errors.invalid("All items of a subscription must have the same interval and currency.", param="items")
    if len({item["price"]["id"] for item in items}) < len(items):
        raise errors.invalid("Cannot add multiple subscription items with the same price.", param="items")
    subscription["items"] = listed(items, f"/v1/subscription_items?subscription={subscription['id']}")


def _period(subscription: Obj, at: int) -> tuple[int, int]:
    """The billing period that holds ``at``."""
    recurring = subscription["items"]["data"][0]["price"]["recurring"]
    return periods.period(subscription["billing_cycle_anchor"], recurring["interval"], recurring["interval_count"], at)


def current_period(subscription: Obj) -> tuple[int, int]:
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


def _set_period(subscription: Obj, period: tuple[int, int]) -> None:
    for item in subscription["items"]["data"]:
        item["current_period_start"], item["current_period_end"] = period


def _schedule_period_end(store: Store, subscription: Obj) -> None:
    store.schedule(current_period(subscription)[1], "renew", subscription["id"])


def _lines(store: Store, subscription: Obj) -> list[Obj]:
    """The lines of the current period: nothing is due in a trial, and a part before a later anchor costs its share."""
    start, end = current_period(subscription)
    stub = end == subscription["billing_cycle_anchor"] and not subscription["trial_end"]
    made = []
    for item in subscription["items"]["data"]:
        amount, name = item["price"]["unit_amount"] * item["quantity"], name_of(store, item)
        text = f"{item['quantity']} × {name} (at ${item['price']['unit_amount'] // 100}.{item['price']['unit_amount'] % 100:02})"
        if subscription["status"] == "trialing":
            amount, text = 0, f"Trial period for {name}"
        elif stub:
            recurring = item["price"]["recurring"]
            whole = end - periods.boundary(end, recurring["interval"], recurring["interval_count"], -1)
            amount = periods.share(amount, end - start, whole) if subscription["_prorate_first"] else 0
        made.append(invoices.subscription_line(store, subscription, item, amount, text, (start, end)))
    return made


def name_of(store: Store, item: Obj) -> str:
    return str(store.get("product", item["price"]["product"], deleted=True)["name"])


# Changes


def _take(store: Store, p: Params, subscription: Obj) -> None:
    """What may be set at the beginning as well as later."""
    p.put(subscription, "description")
    if p.has("collection_method"):
        subscription["collection_method"] = p.need("collection_method", choices=("charge_automatically", "send_invoice"))
        sent = subscription["collection_method"] == "send_invoice"
        subscription["days_until_due"] = p.need_number("days_until_due") if sent else None
    if p.has("default_payment_method"):
        id = p.text("default_payment_method")
        if id and store.get("payment_method", id, param="default_payment_method")["customer"] != subscription["customer"]:
            raise errors.invalid("The payment method must be attached to the customer first.", param="default_payment_method")
        subscription["default_payment_method"] = id
    if p.has("cancel_at_period_end") or p.has("cancel_at"):
        at_end, at = p.flag("cancel_at_period_end"), p.number("cancel_at", least=store.now())
        set_cancel(store, subscription, at_end, at)


def set_cancel(store: Store, subscription: Obj, at_period_end: bool, at: int | None = None) -> None:
    """Plan the end at the end of the period or at a time; both unset means that it goes on."""
    planned = at_period_end or at is not None
    subscription["cancel_at_period_end"] = at_period_end
    if at_period_end:
        at = current_period(subscription)[1]
    subscription |= {"cancel_at": at, "canceled_at": store.now() if planned else None}
    reason = "cancellation_requested" if planned else None
    subscription["cancellation_details"] = {"comment": None, "feedback": None, "reason": reason}
    if at is not None:
        store.schedule(at, "cancel", subscription["id"])


def _set_trial(store: Store, p: Params, subscription: Obj) -> None:
    if p.text("trial_end") == "now":
        end: int | None = store.now()
    else:
        days = p.number("trial_period_days", least=1, most=730)
        end = store.now() + days * periods.DAY if days else p.number("trial_end", least=store.now())
    p.known("trial_from_plan")
    if end is not None:
        subscription |= {"trial_end": end, "trial_start": subscription["trial_start"] or store.now()}


def update(store: Store, p: Params, id: str) -> Obj:
    subscription = store.get("subscription", id)
    behavior = p.text("payment_behavior", "allow_incomplete", choices=BEHAVIORS)
    proration, invoice = apply(store, p, subscription)
    if proration == "always_invoice" or invoice:
        error = _invoice_now(store, subscription)
        if error and behavior == "error_if_incomplete":
            error.keeps = False
            raise error
    return subscription


def apply(store: Store, p: Params, subscription: Obj) -> tuple[str, bool]:
    """Make the change with its prorations as pending items; how to prorate, and whether an invoice is due at once."""
    if subscription["status"] in {"canceled", "incomplete_expired"}:
        raise errors.invalid("A canceled subscription can only update its cancellation_details.", code="resource_missing")
    subscription["metadata"] = p.metadata(subscription["metadata"])
    proration = p.text("proration_behavior", "create_prorations", choices=PRORATIONS) or "create_prorations"
    at = p.number("proration_date", store.now(), least=current_period(subscription)[0], most=current_period(subscription)[1])
    now_anchor = p.text("billing_cycle_anchor", "unchanged", choices=("now", "unchanged")) == "now"
    p.known("off_session", "automatic_tax", "payment_settings", "invoice_settings")
    _take(store, p, subscription)
    if details := p.child("cancellation_details"):
        subscription["cancellation_details"] |= {"comment": details.text("comment"), "feedback": details.text("feedback", choices=FEEDBACK)}
    if p.has("pause_collection"):
        pause = p.child("pause_collection")
        behaviors = ("keep_as_draft", "mark_uncollectible", "void")
        subscription["pause_collection"] = (
            {"behavior": pause.need("behavior", choices=behaviors), "resumes_at": pause.number("resumes_at")} if pause else None
        )
    if p.has("discounts"):
        subscription["discounts"] = catalog.discounts(store, p, subscription["customer"], subscription=subscription["id"])
    due = False
    if p.has("trial_end") or p.has("trial_period_days"):
        _set_trial(store, p, subscription)
        ended = subscription["trial_end"] <= store.now()
        subscription |= {"billing_cycle_anchor": subscription["trial_end"], "status": "active" if ended else "trialing"}
        _set_period(subscription, _period(subscription, store.now()) if ended else (store.now(), subscription["trial_end"]))
        _schedule_period_end(store, subscription)
        due = subscription["_period_due"] = ended
    if items := p.children("items"):
        wishes = [(wish.text("id"), wish) for wish in items]
        due = _change_items(store, wishes, subscription, proration, at or store.now(), now_anchor) or due
    elif now_anchor:
        due = _restart(store, subscription, subscription["items"]["data"], proration, store.now())
    store.save(subscription, "customer.subscription.updated")
    return proration, due


def _change_items(
    store: Store, wishes: list[tuple[str | None, Params]], subscription: Obj, proration: str, at: int, restart: bool = False
) -> bool:
    before = subscription["items"]["data"]
    after = {item["id"]: item for item in before}
    for id, wish in wishes:
        if not id:
            item = _new_item(store, wish)
            after[item["id"]] = item
            continue
        if id not in after:
            raise errors.missing_resource("subscription_item", id, param=wish.path("id"))
        if wish.flag("deleted"):
            del after[id]
        elif wish.has("price") or wish.has("price_data"):
            item = _new_item(store, wish, after[id]["quantity"])
            after[id] = after[id] | {name: item[name] for name in ("price", "plan", "quantity")}
        else:
            after[id] = after[id] | {"quantity": wish.number("quantity", after[id]["quantity"], least=0, most=10**6)}
        if id in after:
            after[id]["metadata"] = wish.metadata(after[id]["metadata"])
    return change(store, subscription, list(after.values()), proration, at, restart)


def change(store: Store, subscription: Obj, items: list[Obj], proration: str, at: int, restart: bool = False) -> bool:
    """Replace the items. What is left of the old ones is credited and the rest of the period debited, as pending items; another
    interval begins a new period at once, which is then due: True."""
    before, old = subscription["items"]["data"], subscription["items"]["data"][0]["price"]["recurring"]
    if not items:
        raise errors.invalid("A subscription must have at least one item.", param="items")
    _set_items(subscription, items)
    start, end = current_period({"items": {"data": before}})
    for item in items:
        item |= {"subscription": subscription["id"], "current_period_start": start, "current_period_end": end}
    new = items[0]["price"]["recurring"]
    if subscription["status"] == "trialing":
        return False
    if restart or (old["interval"], old["interval_count"]) != (new["interval"], new["interval_count"]):
        return _restart(store, subscription, before, proration, at)
    if proration != "none":
        same = {(item["id"], item["price"]["id"], item["quantity"]) for item in before} & {
            (item["id"], item["price"]["id"], item["quantity"]) for item in items
        }
        for sign, side in ((-1, before), (1, items)):
            for item in side:
                if (item["id"], item["price"]["id"], item["quantity"]) not in same:
                    _prorate(store, subscription, item, sign, at, (start, end))
    return False


def switch(store: Store, subscription: Obj, price: Obj, proration: str) -> str | None:
    """The portal's change of plan: the first item gets another price. What to tell the customer when its payment is declined."""
    first, *others = subscription["items"]["data"]
    switched = first | {"price": _frozen(price), "plan": catalog.plan(price)}
    due = change(store, subscription, [switched, *others], proration, store.now())
    store.save(subscription, "customer.subscription.updated")
    error = _invoice_now(store, subscription) if due or proration == "always_invoice" else None
    return str(error) if error else None


def _restart(store: Store, subscription: Obj, before: list[Obj], proration: str, at: int) -> bool:
    """A new period begins now, with credit for what is left of the one that is cut short."""
    for item in before if proration != "none" else ():
        _prorate(store, subscription, item, -1, at, current_period({"items": {"data": before}}))
    subscription["billing_cycle_anchor"] = store.now()
    _set_period(subscription, _period(subscription, store.now()))
    _schedule_period_end(store, subscription)
    subscription["_period_due"] = True
    return True


def _prorate(store: Store, subscription: Obj, item: Obj, sign: int, at: int, period: tuple[int, int]) -> None:
    """``sign`` -1 credits the unused time of ``item``, 1 debits its remaining time. Cents are rounded half away from zero."""
    amount = periods.share(sign * item["price"]["unit_amount"] * item["quantity"], period[1] - at, period[1] - period[0])
    what = f"{'Unused' if sign < 0 else 'Remaining'} time on {item['quantity']} × {name_of(store, item)} after {periods.date(at)}"
    invoices.add_item(
        store, subscription["customer"], amount, subscription["currency"], what, (at, period[1]), quantity=item["quantity"],
        price=item["price"], subscription=subscription["id"], subscription_item=item["id"], proration=True,
    )  # fmt: skip


def _invoice_now(store: Store, subscription: Obj) -> errors.StripeError | None:
    """Invoice what is pending, with the new period if one has just begun, and try to collect it."""
    invoice = draft_now(store, subscription)
    if not invoice["lines"]["data"]:
        store.delete(invoice, stub=False)
        return None
    store.emit("invoice.created", invoice)
    subscription["latest_invoice"] = invoice["id"]
    store.save(subscription)
    invoices.finalize(store, invoice)
    if not invoice["amount_due"]:
        collection.paid(store, invoice)
        return None
    return None if invoice["collection_method"] == "send_invoice" else collection.pay(store, invoice)


def draft_now(store: Store, subscription: Obj) -> Obj:
    """What is pending, with the current period if it has just begun. No event says so yet."""
    lines = _lines(store, subscription) if subscription.pop("_period_due", False) else []
    customer = store.get("customer", subscription["customer"])
    invoice = invoices.draft(store, customer, lines, "subscription_update", subscription=subscription, add=False)
    return store.add(invoice)


def cancel(store: Store, p: Params, id: str) -> Obj:
    subscription = store.get("subscription", id)
    if subscription["status"] in {"canceled", "incomplete_expired"}:
        raise errors.missing_resource("subscription", id)
    details = p.child("cancellation_details")
    said = {"comment": details.text("comment"), "feedback": details.text("feedback", choices=FEEDBACK)} if details else {}
    prorate, invoice_now = p.flag("prorate"), p.flag("invoice_now")
    if prorate and subscription["status"] in {"active", "past_due"}:
        for item in subscription["items"]["data"]:
            _prorate(store, subscription, item, -1, store.now(), current_period(subscription))
    if invoice_now:
        _invoice_now(store, subscription)
    return collection.cancel(store, subscription, "cancellation_requested", **said)


def resume(store: Store, p: Params, id: str) -> Obj:
    subscription = store.get("subscription", id)
    if subscription["status"] != "paused":
        raise errors.invalid("Only a paused subscription can be resumed.")
    p.known("proration_behavior", "proration_date", "billing_cycle_anchor")
    subscription |= {"status": "active", "billing_cycle_anchor": store.now(), "_period_due": True}
    _set_period(subscription, _period(subscription, store.now()))
    store.save(subscription, "customer.subscription.resumed", "customer.subscription.updated")
    _schedule_period_end(store, subscription)
    _invoice_now(store, subscription)
    return subscription


def delete_customer(store: Store, p: Params, id: str) -> Obj:
    """A customer who is deleted takes the subscriptions along."""
    customer = store.get("customer", id)
    for subscription in store.find("subscription", {"customer": id}):
        if subscription["status"] in collection.ALIVE:
            collection.cancel(store, subscription, "cancellation_requested")
    return store.delete(customer, "customer.deleted")


# What the clock brings


def trial_will_end(store: Store, subscription: Obj) -> None:
    if subscription["status"] == "trialing" and subscription["trial_end"] - TRIAL_WARNING <= store.now():
        store.emit("customer.subscription.trial_will_end", subscription)


def expire(store: Store, subscription: Obj) -> None:
    """The first payment never came."""
    if subscription["status"] == "incomplete":
        subscription |= {"status": "incomplete_expired", "ended_at": store.now()}
        store.save(subscription, "customer.subscription.updated")
        invoice = store.get("invoice", subscription["latest_invoice"])
        if invoice["status"] == "open":
            invoices.end(store, invoice, "void")


def cancel_planned(store: Store, subscription: Obj) -> None:
    if subscription["status"] in collection.ALIVE and subscription["cancel_at"] and subscription["cancel_at"] <= store.now():
        collection.cancel(store, subscription, "cancellation_requested")


def renew(store: Store, subscription: Obj) -> None:
    """The next period begins, and its invoice stays a draft for an hour. A trial that ends becomes active the same way."""
    end = current_period(subscription)[1]
    if subscription["status"] not in {"trialing", "active", "past_due", "unpaid"} or end > store.now():
        return
    if subscription["cancel_at_period_end"]:
        collection.cancel(store, subscription, "cancellation_requested")
        return
    trial = subscription["status"] == "trialing"
    if trial and _without_method(store, subscription):
        return
    if trial:
        subscription["status"] = "active"
    before = current_period(subscription)
    _set_period(subscription, _period(subscription, end))
    customer = store.get("customer", subscription["customer"], deleted=True)
    invoice = invoices.draft(store, customer, _lines(store, subscription), "subscription_cycle", subscription=subscription, period=before)
    subscription["latest_invoice"] = invoice["id"]
    store.save(subscription, "customer.subscription.updated")
    _schedule_period_end(store, subscription)
    if subscription["status"] == "unpaid" or (subscription["pause_collection"] or {}).get("behavior") == "keep_as_draft":
        invoice["auto_advance"] = False
        store.save(invoice)
    else:
        invoices.leave_as_draft(store, invoice)


def _without_method(store: Store, subscription: Obj) -> bool:
    """A trial that ends without a payment method may pause or end the subscription instead: True."""
    customer = store.get("customer", subscription["customer"], deleted=True)
    wish = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    has_method = subscription["default_payment_method"] or customer["invoice_settings"]["default_payment_method"]
    if has_method or wish == "create_invoice":
        return False
    if wish == "cancel":
        collection.cancel(store, subscription, "cancellation_requested")
    else:
        subscription["status"] = "paused"
        store.save(subscription, "customer.subscription.paused", "customer.subscription.updated")
    return True


def finalize_due(store: Store, invoice: Obj) -> None:
    """The hour of a draft is over."""
    if invoice["status"] != "draft" or not invoice["auto_advance"]:
        return
    subscription = collection.subscription_of(store, invoice)
    if subscription and subscription["pause_collection"]:
        invoices.finalize(store, invoice)
        invoices.end(store, invoice, "void" if subscription["pause_collection"]["behavior"] == "void" else "uncollectible")
    else:
        collection.collect(store, invoice)


def preview(store: Store, p: Params) -> Obj:
    """The invoice that would come, made by really making the change and then taking it back."""
    p.known("automatic_tax", "preview_mode", "currency", "issuer")
    details = p.child("subscription_details")
    id = p.text("subscription")
    with store.pretend():
        if id:
            subscription = store.get("subscription", id, param="subscription")
            proration, due = apply(store, details, subscription) if details else ("none", False)
        else:
            customer = store.get("customer", p.need("customer"), param="customer")
            if details is None:
                raise errors.invalid("Nothing to invoice: pass a subscription or subscription_details.", code="invoice_upcoming_none")
            subscription, _ = begin(store, details, customer)
            proration, due = "always_invoice", True
            subscription["_period_due"] = True
        if proration != "always_invoice" and not due:
            if subscription["cancel_at_period_end"] or subscription["status"] not in {"trialing", "active", "past_due"}:
                raise errors.invalid("No upcoming invoices for this subscription.", code="invoice_upcoming_none", status=404)
            subscription["status"] = "active"
            _set_period(subscription, _period(subscription, current_period(subscription)[1]))
            subscription["_period_due"] = True
        p.text("customer")
        invoice = draft_now(store, subscription)
        invoice |= {"id": f"upcoming_{invoice['id']}", "billing_reason": "upcoming", "_preview": True}
        customer = store.get("customer", subscription["customer"])
        invoice["amount_due"] = invoice["amount_remaining"] = max(0, invoice["total"] + customer["balance"])
        invoice["starting_balance"] = customer["balance"]
        return invoice


# Items by their own address


def _holding(store: Store, item: str) -> Obj:
    has = "and exists (select 1 from json_each(body, '$.items.data') where json_extract(value, '$.id') = ?)"
    rows = store.find("subscription", tail=has, tail_values=(item,))
    if not rows:
        raise errors.missing_resource("subscription_item", item)
    return rows[0]


def get_item(store: Store, p: Params, id: str) -> Obj:
    return next(item for item in _holding(store, id)["items"]["data"] if item["id"] == id)


def list_items(store: Store, p: Params) -> Obj:
    subscription = store.get("subscription", p.need("subscription"), param="subscription")
    p.known("limit")
    return listed(subscription["items"]["data"], "/v1/subscription_items")


def update_item(store: Store, p: Params, id: str) -> Obj:
    """A new price or quantity of one item: the same change as by its subscription."""
    subscription = _holding(store, id)
    proration = p.text("proration_behavior", "create_prorations", choices=PRORATIONS) or "create_prorations"
    at = p.number("proration_date", store.now()) or store.now()
    p.known("payment_behavior", "off_session")
    due = _change_items(store, [(id, p)], subscription, proration, at)
    store.save(subscription, "customer.subscription.updated")
    if due or proration == "always_invoice":
        _invoice_now(store, subscription)
    return get_item(store, p, id)
