"""What customers are told of their payments and subscriptions at Stripe: a receipt, a payment that failed, a trial that ends.

Both functions look at what was just read and applied, whatever the event was, and queue what there is to say; the mail's key makes it once.
They write rows in the caller's transaction and send nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from accounts import mails
from accounts.models import Mail
from billing import stripe_api
from billing.models import Grant, Operation, StripeCustomer, StripePayment, StripeSubscription, Wallet

#: A receipt for what was paid longer ago is not sent: it was read for another reason.
RECEIPT_FOR = timedelta(days=7)
TRIAL_ENDS_WITHIN = timedelta(days=3)
#: A payment in one of these may still come without anybody's help, or will never be asked for.
UNDECIDED = ("processing", "requires_capture", "draft", "void", "uncollectible")


def of_payment(*, truth: stripe_api.Payment, customer: StripeCustomer, read_number: int, now: datetime) -> None:
    """A receipt for a payment, or that one for a running plan failed: once each. Nothing where a later read was taken over already."""
    account = customer.account
    if not StripePayment.objects.filter(pk=truth.id, account=account, read_number=read_number).exists():
        return
    known = _known(truth.subscription.id, customer) if truth.subscription else None
    plan = known.plan_version.plan.name if known and known.plan_version else ""
    if truth.is_paid and truth.paid:
        _receipt(truth, customer, plan, now)
    elif truth.due and known and plan and known.status in ("past_due", "unpaid") and truth.status not in UNDECIDED:
        retry_at = truth.invoice.next_attempt_at if truth.invoice else None
        context = {
            "amount_cents": truth.due,
            "currency": truth.currency,
            "plan": plan,
            "retry_at": retry_at if retry_at and retry_at > now else None,
            "until": known.grace_ends_at,
        }
        mails.queue(account=account, kind=Mail.Kind.PAYMENT_FAILED, key=_source_keys(truth)[0], context=context, now=now)


def of_subscription(*, truth: stripe_api.Subscription, customer: StripeCustomer, read_number: int, now: datetime) -> None:
    """That a trial ends within three days and is paid for then, once a trial. Nothing where a later read was taken over already."""
    known, ends_at = _known(truth.id, customer), truth.period[1]
    if known is None or known.plan_version is None or known.read_number != read_number:
        return
    if known.status != "trialing" or known.cancel_at_period_end or not now < ends_at <= now + TRIAL_ENDS_WITHIN:
        return
    version = known.plan_version
    context = {
        "plan": version.plan.name,
        "ends_at": ends_at,
        "price_cents": version.price_cents and version.price_cents * (known.quantity if version.per_seat else 1),
        "currency": version.currency,
        "interval": version.interval,
    }
    key = f"{truth.id}:{ends_at.isoformat()}"
    mails.queue(account=customer.account, kind=Mail.Kind.TRIAL_ENDING, key=key, context=context, now=now, useless_at=ends_at)


def _receipt(truth: stripe_api.Payment, customer: StripeCustomer, plan: str, now: datetime) -> None:
    """What was paid, what was granted for it, and what is there now."""
    account = customer.account
    granted = Grant.objects.defer("expires_at").filter(account=account, root_id=None, source_key__in=_source_keys(truth))
    lots = {lot.pk: lot for lot in granted.filter(source__in=("purchased", "monthly"))}
    act = Operation.objects.filter(account=account, verb="grant", grant_id__in=lots).order_by("pk").first()
    wallet = Wallet.objects.filter(account=account, unit_id=account.product.unit_id).first()
    context = {
        "paid_cents": truth.paid,
        "currency": truth.currency,
        "paid_at": truth.created_at,
        "what": plan or (act.reason.removesuffix(f", {truth.id}") if act else "Your purchase"),
        "granted_nanos": sum(lot.granted for lot in lots.values()),
        "balance_nanos": wallet.available if wallet else None,
        "receipt_url": truth.invoice.hosted_url if truth.invoice else truth.receipt_url,
    }
    useless_at = truth.created_at + RECEIPT_FOR
    mails.queue(account=account, kind=Mail.Kind.RECEIPT, key=truth.id, context=context, now=now, useless_at=useless_at)


def _source_keys(truth: stripe_api.Payment) -> list[str]:
    """The keys of the grants that a payment makes (:mod:`billing.stripe_payments`); that of the payment itself where it pays no period."""
    subscribed = truth.subscription
    keys = [f"{subscribed.id}:{line.period[0].isoformat()}" for line in truth.lines if subscribed and line.period is not None]
    return keys or [truth.id]


def _known(subscription_id: str, customer: StripeCustomer) -> StripeSubscription | None:
    found = StripeSubscription.objects.select_related("plan_version__plan")
    return found.filter(pk=subscription_id, account=customer.account).first()
