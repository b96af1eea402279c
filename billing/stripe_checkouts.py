"""What a checkout session at Stripe means for our row of it. One verb, :func:`apply`. What was bought is granted by what was paid for it
(:mod:`billing.stripe_payments`), never from here.
"""

from __future__ import annotations

from billing import stripe_api
from billing.models import Checkout, StripeCustomer

State = Checkout.State


def apply(*, truth: stripe_api.Session, customer: StripeCustomer, read_number: int) -> Checkout | None:
    """Takes a session over as it was read; what was read before what is known already changes nothing. The caller holds the customer's
    lock, in a transaction.

    :return: our row; None where the session is none of ours.
    """
    checkout = Checkout.objects.filter(session_id=truth.id, account=customer.account).first()
    if checkout is None or checkout.read_number >= read_number:
        return checkout
    checkout.state = _state(truth)
    checkout.completed = truth.status == "complete"
    checkout.url = truth.url if truth.status == "open" else ""
    checkout.expires_at = truth.expires_at
    checkout.read_number = read_number
    checkout.save(update_fields=["state", "completed", "url", "expires_at", "read_number"])
    return checkout


def _state(truth: stripe_api.Session) -> State:
    if truth.status == "expired":
        return State.EXPIRED
    if truth.is_paid:
        return State.PAID
    return State.FAILED if truth.failed else State.OPEN
