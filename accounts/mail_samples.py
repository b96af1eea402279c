"""What staff's preview of the mails is about: a customer who does not exist, and facts that could be."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from accounts import letters
from accounts.models import Account, Mail, User
from pricing.models import CreditPack, Plan, Product


def mail(*, kind: str, product: Product, person: User, now: datetime) -> Mail:
    """A mail of this kind from ``product``, not saved. ``person`` is who invites."""
    account = Account(product=product, public_id=f"acct_{'0' * 20}", name="Lovelace & Daughters", time_zone=product.time_zone)
    return Mail(pk=0, account=account, kind=kind, context=letters.to_json(kind, _facts(product, person, now)[kind]))


def _facts(product: Product, person: User, now: datetime) -> dict[str, dict[str, Any]]:
    plans = list(Plan.objects.filter(product=product, public=True).order_by("rank").values_list("name", flat=True)) or ["Free"]
    pack = CreditPack.objects.filter(product=product, available=True).order_by("price_cents", "-version").first()
    best, least = plans[-1], plans[0]
    credit = pack.credit_nanos if pack else product.welcome_credit_nanos or 25_000_000_000
    price = {"currency": pack.currency if pack else "usd"}
    month, week = now + timedelta(days=30), now + timedelta(days=7)
    return {
        Mail.Kind.RECEIPT: price
        | {
            "paid_cents": pack.price_cents if pack else 2_500,
            "paid_at": now,
            "what": pack.name if pack else best,
            "granted_nanos": credit,
            "balance_nanos": credit + credit // 7,
            "receipt_url": "https://pay.example.com/receipts/1234",
        },
        Mail.Kind.PAYMENT_FAILED: price | {"amount_cents": 2_900, "plan": best, "retry_at": now + timedelta(days=3), "until": week},
        Mail.Kind.TRIAL_ENDING: price | {"plan": best, "ends_at": now + timedelta(days=3), "price_cents": 2_900},
        Mail.Kind.LIMIT_WARNING: {
            "what": "messages", "window": "period", "percent": 80, "stops": True, "used": 800, "allowed": 1_000, "resets_at": week,
            "upgrade": best,
        },
        Mail.Kind.LOW_BALANCE: {"balance_nanos": credit // 6},
        Mail.Kind.ACCOUNT_CREDITS: {"granted_nanos": credit, "balance_nanos": credit, "expires_at": month},
        Mail.Kind.GRACE_ENDING: {"plan": best, "ends_at": now + timedelta(days=2), "next_plan": least},
        Mail.Kind.PLAN_ENDED: {"plan": best, "ended_at": now, "next_plan": least, "unpaid": True},
        Mail.Kind.TOP_UP_FAILED: price | {"amount_cents": 2_000, "balance_nanos": credit // 6, "why": "Your card has expired."},
        Mail.Kind.PRICE_CHANGE: {
            "plan": best, "old_cents": 600, "new_cents": 700, "currency": "usd", "interval": "month", "effective_at": month,
        },
        Mail.Kind.INVITATION: {"invited_by": person.pk, "role": "admin", "url": "/invitations/example/", "expires_at": week},
        Mail.Kind.GUARD: {
            "step": "block", "subject": "session", "ref": "agent-7", "ends_at": now + timedelta(minutes=30),
            "reason": "This session has spent 12.40 USD in 10 minutes; usual is 1.10 USD at most.",
        },
    }  # fmt: skip
