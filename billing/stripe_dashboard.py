"""The way from us to Stripe's own dashboard and back: addresses of its pages, and whose an id is that somebody copied from there.

page      where Stripe's dashboard shows an object
account   the account that an object belongs to
"""

from __future__ import annotations

import re
from typing import Final

import stripe
from django.conf import settings

from billing import stripe_api
from billing.models import Checkout, StripeCustomer, StripeInvoice, StripePayment, StripeSubscription

#: Whoever looks something up waits no longer than this for Stripe.
PATIENCE_SECONDS: Final = 3.0
_PAGES: Final = {"cus": "customers", "sub": "subscriptions", "pi": "payments", "in": "invoices", "evt": "events"}
#: What is asked of Stripe itself: we keep the payment that it belongs to, not the thing.
_ASKED: Final[dict[str, stripe_api.Kind]] = {"ch": "charge", "py": "charge", "re": "refund", "dp": "dispute", "du": "dispute"}
_ID: Final = re.compile(r"(cus|sub|pi|in|cs|ch|py|re|dp|du)_[A-Za-z0-9_]{1,120}", re.ASCII)


def page(object_id: str) -> str:
    """In the mode, live or test, of our key; empty where Stripe shows no such thing, or a local double stands for it."""
    kind = _PAGES.get(object_id.partition("_")[0])
    if kind is None or getattr(settings, "STRIPE_API_HOST", None):
        return ""
    return f"https://dashboard.stripe.com/{'' if settings.STRIPE_LIVE_MODE else 'test/'}{kind}/{object_id}"


def is_id(text: str) -> bool:
    """Whether this looks like the id of something at Stripe that belongs to an account."""
    return _ID.fullmatch(text) is not None


def account(object_id: str) -> int | None:
    """The id of the account that it belongs to; None: of none of ours. A charge, refund or dispute is asked of Stripe, so call it outside
    of transactions.

    :raises stripe.StripeError: Stripe did not answer.
    """
    match object_id.partition("_")[0]:
        case "cus":
            return StripeCustomer.objects.filter(pk=object_id).values_list("account_id", flat=True).first()
        case "sub":
            return StripeSubscription.objects.filter(pk=object_id).values_list("account_id", flat=True).first()
        case "cs":
            return Checkout.objects.filter(session_id=object_id).values_list("account_id", flat=True).first()
        case "pi" | "in":
            return _paid(object_id)
        case asked if asked in _ASKED:
            try:
                with stripe_api.within(PATIENCE_SECONDS):
                    intent = stripe_api.intent_of(_ASKED[asked], object_id)
            except stripe.InvalidRequestError:
                return None  # there is no such thing
            return _paid(intent) if intent else None
    return None


def _paid(object_id: str) -> int | None:
    payment = StripePayment.objects.filter(pk=object_id).values_list("account_id", flat=True).first()
    return payment or StripeInvoice.objects.filter(pk=object_id).values_list("account_id", flat=True).first()
