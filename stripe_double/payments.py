"""Money that moves: payment intents, charges, their fees in balance transactions, refunds and disputes."""

from __future__ import annotations

from typing import Any

from stripe_double import cards, customers, errors, periods
from stripe_double.params import Params
from stripe_double.store import Obj, Store

FEE_PER_MILLE, FEE_FIXED = 29, 30  # 2.9 % + $0.30, kept by Stripe when a charge is refunded
DISPUTE_FEE = 1500
LEAST = 50  # cents that can be charged
OPEN = ("requires_payment_method", "requires_confirmation", "requires_action")
REFUND_REASONS = ("duplicate", "fraudulent", "requested_by_customer")


def create(store: Store, p: Params) -> Obj:
    p.known(
        "automatic_payment_methods",
        "payment_method_types",
        "payment_method_options",
        "return_url",
        "mandate_data",
        "error_on_requires_action",
    )
    customer = p.text("customer")
    if customer:
        store.get("customer", customer, param="customer")
    p.text("capture_method", choices=("automatic", "automatic_async"))
    intent = add(store, p.need_number("amount", least=1), p.need("currency"), customer, p.metadata())
    p.put(intent, "description", "receipt_email", "setup_future_usage", "statement_descriptor_suffix")
    if method := p.text("payment_method"):
        intent |= {"payment_method": customers.method(store, method)["id"], "status": "requires_confirmation"}
    store.save(intent)
    if p.flag("confirm"):
        confirm(store, intent, off_session=p.flag("off_session"))
        raise_if_declined(intent)
    else:
        p.known("off_session")
    return intent


def add(store: Store, amount: int, currency: str, customer: str | None, metadata: dict[str, str], **own: Any) -> Obj:
    if amount < LEAST:
        raise errors.invalid("Amount must be at least $0.50 usd", param="amount", code="amount_too_small")
    intent = store.new("payment_intent", "pi", amount=amount, currency=currency.lower(), customer=customer, metadata=metadata)
    intent |= {
        "amount_capturable": 0,
        "amount_received": 0,
        "amount_details": {"tip": {}},
        "client_secret": f"{intent['id']}_secret_double",
    }
    intent |= {"capture_method": "automatic", "confirmation_method": "automatic", "status": "requires_payment_method"}
    nothing = "application application_fee_amount automatic_payment_methods canceled_at cancellation_reason customer_account"
    nothing += " description last_payment_error latest_charge next_action on_behalf_of payment_method processing review"
    nothing += " receipt_email setup_future_usage shipping source statement_descriptor statement_descriptor_suffix"
    intent |= dict.fromkeys(
        (*nothing.split(), "transfer_data", "transfer_group", "payment_method_options", "excluded_payment_method_types")
    )
    return store.add(intent | {"payment_method_types": ["card", "us_bank_account"]} | own, "payment_intent.created")


def update(store: Store, p: Params, id: str) -> Obj:
    intent = _open(store, id)
    intent["metadata"] = p.metadata(intent["metadata"])
    intent["amount"] = p.number("amount", intent["amount"], least=LEAST)
    p.put(intent, "description", "receipt_email")
    return store.save(intent)


def take_confirmation(store: Store, p: Params, id: str) -> Obj:
    """Confirm by the API; the caller tells who waits for the payment, then the card error is raised."""
    p.known("return_url", "mandate_data", "payment_method_options", "setup_future_usage", "error_on_requires_action")
    intent = _open(store, id)
    if method := p.text("payment_method"):
        intent["payment_method"] = customers.method(store, method)["id"]
    return confirm(store, intent, off_session=p.flag("off_session"))


def raise_if_declined(intent: Obj) -> None:
    if intent["last_payment_error"] and intent["status"] == "requires_payment_method":
        raise errors.declined(intent["last_payment_error"], payment_intent={"id": intent["id"], "object": "payment_intent"})


def cancel(store: Store, p: Params, id: str) -> Obj:
    intent = _open(store, id)
    reason = p.text("cancellation_reason", choices=("abandoned", "duplicate", "fraudulent", "requested_by_customer"))
    if intent.get("_invoice"):
        raise errors.invalid("A PaymentIntent of an invoice is canceled by voiding the invoice.", code="payment_intent_unexpected_state")
    return void(store, intent, reason)


def void(store: Store, intent: Obj, reason: str | None) -> Obj:
    intent |= {"status": "canceled", "canceled_at": store.now(), "cancellation_reason": reason, "next_action": None}
    return store.save(intent, "payment_intent.canceled")


def _open(store: Store, id: str) -> Obj:
    intent = store.get("payment_intent", id)
    if intent["status"] not in OPEN:
        raise errors.invalid(f"This PaymentIntent's status is {intent['status']}.", code="payment_intent_unexpected_state")
    return intent


def confirm(store: Store, intent: Obj, *, off_session: bool = False, authenticated: bool | None = None) -> Obj:
    """Charge the intent's payment method. How that went is the intent's status: succeeded, processing, requires_action or
    requires_payment_method with ``last_payment_error``. ``authenticated`` answers an earlier requires_action."""
    if not intent["payment_method"]:
        raise errors.invalid("A payment method is needed to confirm.", param="payment_method", code="payment_intent_unexpected_state")
    method = store.get("payment_method", intent["payment_method"])
    if method["customer"] and method["customer"] != intent["customer"]:
        raise errors.invalid("The PaymentMethod belongs to another Customer.", param="payment_method")
    end = cards.CARDS[method["_number"]].charge
    intent |= {"next_action": None, "last_payment_error": None}
    if end == "requires_action":
        if authenticated is None and not off_session:
            intent |= {"status": "requires_action", "next_action": {"type": "use_stripe_sdk", "use_stripe_sdk": {}}}
            return store.save(intent, "payment_intent.requires_action")
        end = "succeeded" if authenticated else "authentication_required"
    if method["type"] == "us_bank_account":
        intent |= {"status": "processing", "_ends": end}
        _charge(store, intent, method, status="pending")
        store.save(intent, "payment_intent.processing")
        store.schedule(store.now() + store.setting("settlement_seconds"), "settle", intent["id"])
        return intent
    if end != "succeeded":
        return _fail(store, intent, method, end)
    charge = _charge(store, intent, method, status="succeeded")
    if intent["customer"] and intent["setup_future_usage"] and cards.CARDS[method["_number"]].saves:
        customers.attach(store, method["id"], intent["customer"])
    return _succeed(store, intent, charge)


def settle(store: Store, intent: Obj, end: str | None = None) -> Obj:
    """The end of a bank debit: ``end`` or what its account number says."""
    charge = store.get("charge", intent["latest_charge"])
    end = end or intent["_ends"]
    if end == "succeeded":
        return _succeed(store, intent, charge)
    return _fail(store, intent, store.get("payment_method", intent["payment_method"]), end, charge)


def _succeed(store: Store, intent: Obj, charge: Obj) -> Obj:
    fee = periods.share(charge["amount"], FEE_PER_MILLE, 1000) + FEE_FIXED
    charge |= {"status": "succeeded", "paid": True, "captured": True, "amount_captured": charge["amount"]}
    charge["balance_transaction"] = _move(store, charge["amount"], "charge", charge, fee=fee)["id"]
    store.save(charge, "charge.succeeded")
    intent |= {"status": "succeeded", "amount_received": intent["amount"]}
    return store.save(intent, "payment_intent.succeeded")


def _fail(store: Store, intent: Obj, method: Obj, decline: str, charge: Obj | None = None) -> Obj:
    error = cards.error(method["_number"], decline)
    charge = charge or _charge(store, intent, method, status="failed")
    charge |= {"status": "failed", "failure_code": error["code"], "failure_message": error["message"], "paid": False}
    charge["outcome"] |= {
        "network_status": "declined_by_network",
        "reason": decline,
        "type": "issuer_declined",
        "network_decline_code": "05",
    }
    charge["outcome"] |= {"seller_message": "The bank did not return any further details with this decline."}
    store.save(charge, "charge.failed")
    shown = {name: value for name, value in method.items() if not name.startswith("_")}
    intent |= {"status": "requires_payment_method", "payment_method": None}
    intent["last_payment_error"] = error | {"charge": charge["id"], "payment_method": shown}
    return store.save(intent, "payment_intent.payment_failed")


def _charge(store: Store, intent: Obj, method: Obj, *, status: str) -> Obj:
    charge = store.new("charge", "ch", amount=intent["amount"], currency=intent["currency"], customer=intent["customer"], status=status)
    charge |= {"amount_captured": 0, "amount_refunded": 0, "captured": False, "disputed": False, "paid": False, "refunded": False}
    nothing = "application application_fee application_fee_amount balance_transaction description failure_code"
    nothing += " failure_balance_transaction failure_message on_behalf_of receipt_email receipt_number review shipping"
    nothing += " source source_transfer statement_descriptor statement_descriptor_suffix transfer_data transfer_group"
    charge |= dict.fromkeys(nothing.split()) | {
        "billing_details": method["billing_details"],
        "calculated_statement_descriptor": "STRIPE DOUBLE",
    }
    charge |= {"description": intent["description"], "fraud_details": {}, "metadata": dict(intent["metadata"]), "radar_options": {}}
    outcome = {"network_status": "approved_by_network", "reason": None, "risk_level": "normal", "risk_score": 20, "type": "authorized"}
    outcome |= {"advice_code": None, "network_advice_code": None, "network_decline_code": None}
    charge["outcome"] = outcome | {"seller_message": "Payment complete."}
    charge |= {"payment_intent": intent["id"], "payment_method": method["id"], "payment_method_details": cards.charged(method["_number"])}
    charge |= {"receipt_email": intent["receipt_email"], "receipt_url": f"{store.address}/receipts/{charge['id']}"}
    intent["latest_charge"] = charge["id"]
    return store.add(charge, *(["charge.pending"] if status == "pending" else []))


def update_charge(store: Store, p: Params, id: str) -> Obj:
    charge = store.get("charge", id)
    charge["metadata"] = p.metadata(charge["metadata"])
    p.put(charge, "description", "receipt_email")
    return store.save(charge, "charge.updated")


def _move(store: Store, amount: int, type: str, source: Obj, *, fee: int = 0, reporting: str | None = None) -> Obj:
    """A balance transaction of ``amount`` cents, of which ``fee`` goes to Stripe."""
    move = store.new("balance_transaction", "txn", amount=amount, currency=source["currency"], fee=fee, net=amount - fee, type=type)
    del move["livemode"]
    details = {
        "amount": fee,
        "application": None,
        "currency": source["currency"],
        "description": "Stripe processing fees",
        "type": "stripe_fee",
    }
    move |= {"available_on": move["created"] + 2 * periods.DAY, "balance_type": "payments", "description": None, "exchange_rate": None}
    move |= {"fee_details": [details] if fee else [], "reporting_category": reporting or type, "source": source["id"], "status": "pending"}
    return store.add(move)


def balance(store: Store, p: Params) -> Obj:
    moves = store.find("balance_transaction")
    pending = {
        currency: sum(move["net"] for move in moves if move["currency"] == currency) for currency in {move["currency"] for move in moves}
    }
    amounts = [{"amount": amount, "currency": currency, "source_types": {"card": amount}} for currency, amount in sorted(pending.items())]
    return {"object": "balance", "available": [entry | {"amount": 0} for entry in amounts], "livemode": False, "pending": amounts}


# Refunds


def create_refund(store: Store, p: Params) -> Obj:
    charge_id, intent_id = p.text("charge"), p.text("payment_intent")
    if intent_id:
        charge_id = store.get("payment_intent", intent_id, param="payment_intent")["latest_charge"] or charge_id
    if not charge_id:
        raise errors.invalid("One of the following params should be provided: payment_intent or charge.", code="parameter_missing")
    charge = store.get("charge", charge_id, param="charge")
    left = charge["amount_captured"] - charge["amount_refunded"]
    if not charge["paid"] or left == 0:
        already = charge["refunded"]
        why = "has already been refunded" if already else "has not been paid"
        raise errors.invalid(f"Charge {charge_id} {why}.", code="charge_already_refunded" if already else None)
    if charge["disputed"]:
        raise errors.invalid(f"Charge {charge_id} has been charged back; cannot issue a refund.", code="charge_disputed")
    amount = p.number("amount", left, least=1)
    if amount is None or amount > left:
        raise errors.invalid(f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", param="amount")
    refund = store.new("refund", "re", amount=amount, charge=charge["id"], currency=charge["currency"], metadata=p.metadata())
    del refund["livemode"]
    kind = charge["payment_method_details"]["type"]
    card = {"reference_status": "pending", "reference_type": "acquirer_reference_number", "type": "refund"}
    refund |= {"destination_details": {"type": kind} | ({"card": card} if kind == "card" else {"us_bank_transfer": {}})}
    refund |= {"payment_intent": charge["payment_intent"], "reason": p.text("reason", choices=REFUND_REASONS), "status": "succeeded"}
    refund |= {"receipt_number": None, "source_transfer_reversal": None, "transfer_reversal": None}
    refund["balance_transaction"] = _move(store, -amount, "refund", refund)["id"]
    store.add(refund, "refund.created")
    _count_refunds(store, charge, amount, "charge.refunded")
    return refund


def _count_refunds(store: Store, charge: Obj, amount: int, event: str) -> None:
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount_captured"]
    store.save(charge, event)


def update_refund(store: Store, p: Params, id: str) -> Obj:
    refund = store.get("refund", id)
    refund["metadata"] = p.metadata(refund["metadata"])
    return store.save(refund, "refund.updated", "charge.refund.updated")


def fail_refund(store: Store, refund: Obj) -> Obj:
    """The bank sends a refund back: its amount is ours again."""
    if refund["status"] != "succeeded":
        raise errors.invalid(f"This refund is {refund['status']}.")
    refund |= {"status": "failed", "failure_reason": "lost_or_stolen_card"}
    refund["failure_balance_transaction"] = _move(store, refund["amount"], "refund_failure", refund)["id"]
    store.save(refund, "refund.updated", "refund.failed", "charge.refund.updated")
    _count_refunds(store, store.get("charge", refund["charge"]), -refund["amount"], "charge.updated")
    return refund


# Disputes


def open_dispute(store: Store, charge: Obj, amount: int | None = None, reason: str = "fraudulent") -> Obj:
    if charge["disputed"] or not charge["paid"]:
        raise errors.invalid(f"Charge {charge['id']} cannot be disputed.")
    dispute = store.new("dispute", "du", amount=amount or charge["amount"], charge=charge["id"], currency=charge["currency"], metadata={})
    files = "customer_communication customer_signature duplicate_charge_documentation receipt refund_policy service_documentation"
    words = "access_activity_log billing_address cancellation_policy_disclosure cancellation_rebuttal customer_email_address customer_name"
    words += (
        " customer_purchase_ip duplicate_charge_explanation duplicate_charge_id product_description refund_policy_disclosure service_date"
    )
    words += " refund_refusal_explanation shipping_address shipping_carrier shipping_date shipping_tracking_number uncategorized_text"
    evidence = dict.fromkeys(f"{files} {words} cancellation_policy shipping_documentation uncategorized_file".split())
    due = {"due_by": store.now() + 7 * periods.DAY, "enhanced_eligibility": {}, "has_evidence": False, "past_due": False}
    dispute |= {"enhanced_eligibility_types": [], "evidence": evidence | {"enhanced_evidence": {}}, "is_charge_refundable": False}
    dispute |= {"evidence_details": due | {"submission_count": 0}, "payment_intent": charge["payment_intent"], "reason": reason}
    dispute["payment_method_details"] = {
        "type": "card",
        "card": {"brand": "visa", "case_type": "chargeback", "network": "visa", "network_reason_code": "10.4"},
    }
    dispute |= {"balance_transactions": [], "network_reason_code": "10.4", "status": "needs_response"}
    store.add(dispute, "charge.dispute.created")
    dispute["balance_transactions"] = [_adjust(store, -dispute["amount"], dispute, DISPUTE_FEE)]
    store.save(dispute, "charge.dispute.funds_withdrawn")
    charge["disputed"] = True
    store.save(charge, "charge.updated")
    return dispute


def _adjust(store: Store, amount: int, dispute: Obj, fee: int = 0) -> Obj:
    return _move(store, amount, "adjustment", dispute, fee=fee, reporting="dispute" if amount < 0 else "dispute_reversal")


def update_dispute(store: Store, p: Params, id: str) -> Obj:
    dispute = store.get("dispute", id)
    dispute["metadata"] = p.metadata(dispute["metadata"])
    if evidence := p.child("evidence"):
        evidence.put(dispute["evidence"], *(name for name in dispute["evidence"] if name != "enhanced_evidence"))
        dispute["evidence_details"]["has_evidence"] = True
    if p.flag("submit", True) and evidence:
        dispute["evidence_details"]["submission_count"] += 1
        dispute["status"] = "under_review"
    return store.save(dispute, "charge.dispute.updated")


def close_dispute_route(store: Store, p: Params, id: str) -> Obj:
    return close_dispute(store, store.get("dispute", id), "lost")


def close_dispute(store: Store, dispute: Obj, outcome: str) -> Obj:
    """``outcome`` is won or lost. Won money comes back; the fee does not."""
    if dispute["status"] not in {"needs_response", "under_review"}:
        raise errors.invalid(f"This dispute is already {dispute['status']}.")
    if outcome not in {"won", "lost"}:
        raise errors.invalid("The outcome of a dispute is won or lost.", param="outcome")
    dispute["status"] = outcome
    if outcome == "won":
        dispute["balance_transactions"].append(_adjust(store, dispute["amount"], dispute))
    return store.save(dispute, "charge.dispute.closed", *(["charge.dispute.funds_reinstated"] if outcome == "won" else []))
