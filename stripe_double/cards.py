"""Test cards and bank accounts, by Stripe's own numbers, and what paying with each of them leads to."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from stripe_double.store import Obj


class Card(NamedTuple):
    """``charge`` is a decline code, "succeeded", "requires_action", or how the bank debit ends; ``saves`` whether it can be kept."""

    name: str  # Stripe's own: pm_card_<name> and tok_<name>
    brand: str
    charge: str
    saves: bool
    says: str  # on the hosted page


CARDS = {
    "4242424242424242": Card("visa", "visa", "succeeded", True, "succeeds"),
    "5555555555554444": Card("mastercard", "mastercard", "succeeded", True, "succeeds (Mastercard)"),
    "4000000000000002": Card("chargeDeclined", "visa", "generic_decline", False, "is declined"),
    "4000000000009995": Card("chargeDeclinedInsufficientFunds", "visa", "insufficient_funds", False, "has not enough on it"),
    "4000000000009987": Card("chargeDeclinedLostCard", "visa", "lost_card", False, "was lost"),
    "4000000000000069": Card("chargeDeclinedExpiredCard", "visa", "expired_card", False, "has expired"),
    "4000000000000127": Card("chargeDeclinedIncorrectCvc", "visa", "incorrect_cvc", False, "has another security code"),
    "4000000000000119": Card("chargeDeclinedProcessingError", "visa", "processing_error", False, "cannot be processed"),
    "4000000000000341": Card("chargeCustomerFail", "visa", "generic_decline", True, "can be saved, then declines every charge"),
    "4000002760003184": Card("authenticationRequired", "visa", "requires_action", True, "asks for authentication every time"),
    "000123456789": Card("usBankAccount", "bank", "succeeded", True, "bank debit: processing, succeeds later"),
    "000222222227": Card("usBankAccountInsufficientFunds", "bank", "insufficient_funds", True, "bank debit: processing, fails later"),
}
NUMBERS = {card.name.lower(): number for number, card in CARDS.items()}
MESSAGES = {
    "insufficient_funds": "Your card has insufficient funds.",
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
    "authentication_required": "Your card was declined. This transaction requires authentication.",
}
OWN_CODES = {"expired_card", "incorrect_cvc", "processing_error", "authentication_required"}  # others come as card_declined


def number_of(name: str) -> str | None:
    """The number of ``pm_card_visa``, ``tok_visa``, ``pm_usBankAccount`` …, None for other ids."""
    for prefix in ("pm_card_", "tok_", "pm_"):
        if name.startswith(prefix):
            return NUMBERS.get(name.removeprefix(prefix).removeprefix("visa_").lower())
    return None


def details(number: str) -> Obj:
    """``{"type": …, "card" or "us_bank_account": {…}}`` of a payment method."""
    card = CARDS[number]
    fingerprint = hashlib.sha256(number.encode()).hexdigest()[:16]
    if card.brand == "bank":
        bank: Obj = {
            "account_holder_type": "individual",
            "account_type": "checking",
            "bank_name": "STRIPE TEST BANK",
            "fingerprint": fingerprint,
        }
        bank |= {"financial_connections_account": None, "last4": number[-4:], "routing_number": "110000000", "status_details": None}
        return {"type": "us_bank_account", "us_bank_account": bank | {"networks": {"preferred": "ach", "supported": ["ach"]}}}
    face: Obj = {"brand": card.brand, "country": "US", "display_brand": card.brand, "exp_month": 12, "exp_year": 2034, "funding": "credit"}
    face |= {"checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"}, "wallet": None}
    face |= {"fingerprint": fingerprint, "generated_from": None, "last4": number[-4:], "regulated_status": "unregulated"}
    face |= {"networks": {"available": [card.brand], "preferred": None}, "three_d_secure_usage": {"supported": True}}
    return {"type": "card", "card": face}


def charged(number: str) -> Obj:
    """The same as the ``payment_method_details`` of a charge."""
    face = details(number)
    kind = face["type"]
    kept = {"account_holder_type", "account_type", "bank_name", "routing_number"} | {
        *("brand", "country", "exp_month", "exp_year", "funding", "checks", "fingerprint", "last4", "regulated_status", "wallet")
    }
    shown = {name: value for name, value in face[kind].items() if name in kept}
    if kind == "card":
        brand = shown["brand"]
        shown |= {"network": brand, "three_d_secure": None, "installments": None, "mandate": None, "network_token": {"used": False}}
    else:
        shown |= {"expected_debit_date": None, "mandate": None, "payment_reference": None}
    return {"type": kind, kind: shown}


def error(number: str, decline: str) -> Obj:
    """The card error of a decline."""
    message = MESSAGES.get(decline, "Your card was declined.")
    code = decline if decline in OWN_CODES else "card_declined"
    found = {
        "type": "card_error",
        "code": code,
        "message": message,
        "doc_url": f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}",
    }
    return found if code in OWN_CODES - {"authentication_required"} else found | {"decline_code": decline}
