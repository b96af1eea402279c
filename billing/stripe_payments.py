"""What a payment at Stripe means for the ledger. One verb, :func:`apply`: it makes the ledger what Stripe says of that payment.

* A payment that succeeded grants, once, what it was paid for: a pack in proportion to what was paid of its price, or a plan's included
  credit for the period that the invoice covers.
* What of it bought no credit but a plan's time is booked beside the ledger, for the books (:class:`~billing.models.PaidTime`).
* What was refunded, or lost in disputes, takes back its share of the credits; both are cumulative, so no order matters.
* An open dispute freezes what is left of them; when the last one is closed, what is still frozen and not lost comes back.

All of it is looked at each time, whatever the event was that rang: the first event of a payment does everything that is due by then, the
others find it done. Inquiries (``warning_…``) move no money and do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.db.models import DateTimeField, Func, Q
from django.db.models.functions import Coalesce

from billing import ledger, periods, stripe_api, stripe_prices, subscriptions
from billing.models import Checkout, Grant, PaidTime, StripeCustomer, StripePayment, StripeSubscription, TopUp
from pricing.models import CreditPack, PlanVersion

ACTOR = "stripe"
#: Nanos in the smallest unit of a currency that has two decimals; prices in others are not sold.
NANOS_PER_CENT = 10_000_000


class Mismatch(Exception):
    """A payment is not what its price says. Nothing is granted for it; the message tells staff why."""


@dataclass(frozen=True, slots=True)
class Bought:
    """A grant that a payment makes. ``cash_nanos`` is what was paid for it without taxes."""

    source: str
    source_key: str
    amount_nanos: int
    cash_nanos: int
    reason: str
    expires_at: datetime | None = None
    rollover: ledger.Rollover | None = None


def apply(*, truth: stripe_api.Payment, customer: StripeCustomer, read_number: int) -> str:
    """Takes a payment over as it was read; what was read before what is known already changes nothing. The caller holds the customer's
    lock, in a transaction.

    :return: why staff should look at it; empty where they need not.
    """
    account = customer.account
    known = StripePayment.objects.filter(pk=truth.id).first()
    if known is not None and (known.account_id != account.pk or known.read_number >= read_number):
        return ""
    lost = sum(dispute.amount for dispute in truth.disputes if dispute.status == "lost")
    refunded = min(truth.paid, truth.refunded + lost)
    disputed = any(dispute.status in stripe_api.OPEN_DISPUTE for dispute in truth.disputes)
    StripePayment.objects.update_or_create(
        pk=truth.id,
        defaults={
            "account": account,
            "status": truth.status,
            "currency": truth.currency,
            "paid": truth.paid,
            "refunded": refunded,
            "disputed": disputed,
            "description": truth.description[:500],
            "receipt_url": truth.receipt_url[:500],
            "created_at": truth.created_at,
            "read_number": read_number,
        },
    )
    if not truth.is_paid:
        return ""
    try:
        bought = _bought(truth, customer)
    except Mismatch as error:
        return str(error)
    rest_nanos = _rest(truth, bought)
    *fees, rest_fee = _split(_fee_nanos(truth, customer), [*(each.cash_nanos for each in bought), max(0, rest_nanos)])
    notes = [_not_sold(truth, customer)]
    for each, fee_nanos in zip(bought, fees, strict=True):
        _grant(each, fee_nanos, truth, customer)
        notes.append(_take_back(each, refunded, truth, customer))
        _freeze_or_unfreeze(each, truth, customer)
    _book_time(truth, customer, cash_nanos=rest_nanos, fee_nanos=rest_fee, refunded=refunded)
    if bought and truth.invoice is not None:
        _finish_top_up(truth.invoice.id, TopUp.State.REFUNDED if 0 < truth.paid == refunded else TopUp.State.PAID)
    return " ".join(note for note in notes if note)


def _finish_top_up(invoice_id: str, state: TopUp.State) -> None:
    """With its credit in the ledger a top-up no longer counts as funds of its own. What is left to do for it, its worker does."""
    found = TopUp.objects.filter(invoice_id=invoice_id).exclude(state=state)
    now = Func(function="app_now", output_field=DateTimeField())
    found.update(state=state, finished_at=Coalesce("finished_at", now), charged_at=Coalesce("charged_at", now))


def _bought(truth: stripe_api.Payment, customer: StripeCustomer) -> Sequence[Bought]:
    """What the payment was for. :raises Mismatch:"""
    if any(line.currency != truth.currency for line in truth.lines):
        raise Mismatch(f"{truth.id} was paid in {truth.currency}, what it is for is priced in another currency.")
    if truth.due != truth.paid:
        raise Mismatch(f"{truth.paid} {truth.currency} were paid, {truth.due} were due.")
    if truth.subscription is None:
        topped_up = truth.is_paid and _top_up(truth, customer) is not None  # credit of the customer's at Stripe may pay all of it
        return [_pack(truth, customer)] if truth.paid or topped_up else []
    found = (_included(line, truth.subscription.id, customer) for line in truth.lines if line.period is not None and line.subtotal > 0)
    return [each for each in found if each is not None]


def _pack(truth: stripe_api.Payment, customer: StripeCustomer) -> Bought:
    """The pack that was paid for: of a discounted one, the share that was paid."""
    if len(truth.lines) != 1:
        raise Mismatch(f"{truth.id} paid for {len(truth.lines)} things; packs are sold one at a time.")
    [line] = truth.lines
    pack, copies = _sold(truth, line, customer)
    amount_nanos = pack.credit_nanos * copies * line.net // line.subtotal
    if amount_nanos <= 0:
        raise Mismatch(f"{line.net} of {line.subtotal} {truth.currency} buy nothing.")
    return Bought(
        source="purchased",
        source_key=truth.id,
        amount_nanos=amount_nanos,
        cash_nanos=line.cash * NANOS_PER_CENT,
        reason=pack.name if copies == 1 else f"{copies} × {pack.name}",
        expires_at=None if pack.expires_after_days is None else truth.created_at + timedelta(days=pack.expires_after_days),
    )


def _sold(truth: stripe_api.Payment, line: stripe_api.Line, customer: StripeCustomer) -> tuple[CreditPack, int]:
    """Which pack, and how many of it: as our own row of the session says, else by the price. :raises Mismatch:"""
    product = customer.account.product
    session_id = truth.session.id if truth.session else None
    ours = Checkout.objects.select_related("pack").filter(session_id=session_id, account=customer.account).first() if session_id else None
    if ours is not None and ours.pack is not None:
        if (line.subtotal, line.currency) != (ours.amount_cents, ours.currency):
            raise Mismatch(f"{ours} costs {ours.amount_cents} {ours.currency}, {line.subtotal} {line.currency} were asked for.")
        return ours.pack, ours.quantity
    top_up = _top_up(truth, customer)
    if top_up is not None and top_up.pack is not None:
        if (line.subtotal, line.currency) != (top_up.amount_cents, top_up.currency):
            raise Mismatch(f"{top_up} costs {top_up.amount_cents} {top_up.currency}, {line.subtotal} {line.currency} were asked for.")
        return top_up.pack, top_up.copies
    if not stripe_prices.is_of_a_pack(product=product, price_id=line.price_id):
        raise Mismatch(f"The price {line.price_id} is of no pack of {product}.")
    found = stripe_prices.pack(
        product=product,
        price_id=line.price_id,
        amount=line.subtotal,
        quantity=line.quantity,
        currency=truth.currency,
        at=truth.created_at,
    )
    if found is None:
        raise Mismatch(f"No pack of {product} with the price {line.price_id} costs {line.subtotal} {truth.currency}.")
    return found


def _top_up(truth: stripe_api.Payment, customer: StripeCustomer) -> TopUp | None:
    """The automatic top-up that an invoice collects: our own row says so."""
    if truth.invoice is None:
        return None
    return TopUp.objects.select_related("pack").filter(invoice_id=truth.invoice.id, account=customer.account).first()


def _included(line: stripe_api.Line, subscription_id: str, customer: StripeCustomer) -> Bought | None:
    """The included credit of the period that a line pays for; None where the plan includes none, or the price is no plan's."""
    assert line.period is not None
    account = customer.account
    start, end = line.period
    version = _version(line, subscription_id, customer)
    if version is None or version.included_credit_nanos == 0:
        return None
    if version.price_cents is not None and (version.price_cents * line.quantity, version.currency) != (line.subtotal, line.currency):
        raise Mismatch(f"{line.subtotal} {line.currency} were asked for {version}, its price is {version.price_cents * line.quantity}.")
    rollover = None
    if version.rollover_periods:
        months = subscriptions.MONTHS[PlanVersion.Interval(version.interval)] * version.rollover_periods
        rollover = ledger.Rollover(
            expires_at=periods.anniversary(end, months=months),
            cap_nanos=version.rollover_cap_nanos,
            priority=subscriptions.priority(product=account.product, source="rollover"),
        )
    return Bought(
        source="monthly",
        source_key=f"{subscription_id}:{start.isoformat()}",
        amount_nanos=version.included_credit_nanos * (line.quantity if version.per_seat else 1),
        cash_nanos=line.cash * NANOS_PER_CENT,
        reason=f"Included in {version.plan.name}",
        expires_at=end,
        rollover=rollover,
    )


def _version(line: stripe_api.Line, subscription_id: str, customer: StripeCustomer) -> PlanVersion | None:
    """The version of the plan that a line pays a period of; None where its price is no plan's."""
    assert line.period is not None
    subscribed = StripeSubscription.objects.select_related("plan_version__plan").filter(pk=subscription_id, price_id=line.price_id).first()
    kept = subscribed.plan_version if subscribed else None
    return kept or stripe_prices.plan_version(product=customer.account.product, price_id=line.price_id, at=line.period[0])


def _rest(truth: stripe_api.Payment, bought: Sequence[Bought]) -> int:
    """What of an invoice's payment is neither tax nor the cash of the credit that it brought: a plan's time, prorations, balances."""
    if truth.invoice is None:
        return 0
    return (truth.paid - truth.invoice.tax) * NANOS_PER_CENT - sum(each.cash_nanos for each in bought)


def _book_time(truth: stripe_api.Payment, customer: StripeCustomer, *, cash_nanos: int, fee_nanos: int, refunded: int) -> None:
    """Books what was paid for time, once, and what was given back of it, as often as that changes."""
    assert truth.invoice is not None or cash_nanos == 0
    if cash_nanos == 0 or truth.invoice is None:
        return
    starts_at, ends_at = truth.invoice.period if truth.subscription else (truth.created_at, truth.created_at)
    booked = list(PaidTime.objects.filter(payment_id=truth.id, account=customer.account))
    if booked:
        cash_nanos, starts_at, ends_at = booked[0].cash_nanos, booked[0].starts_at, booked[0].ends_at
    back_nanos = max(0, cash_nanos) * refunded // truth.paid - sum(row.back_nanos for row in booked) if truth.paid else 0
    if booked and back_nanos == 0:
        return
    now = Func(function="app_now", output_field=DateTimeField())
    terms = {"account": customer.account, "payment_id": truth.id, "currency": truth.currency, "starts_at": starts_at, "ends_at": ends_at}
    if not booked:
        PaidTime.objects.create(**terms, cash_nanos=cash_nanos, fee_nanos=fee_nanos, back_nanos=0, booked_at=now)
    if back_nanos:
        PaidTime.objects.create(**terms, cash_nanos=0, fee_nanos=0, back_nanos=back_nanos, booked_at=now)


def _not_sold(truth: stripe_api.Payment, customer: StripeCustomer) -> str:
    """:return: what an invoice of a subscription was paid for that brings nothing: a pack among its lines, periods of no plan at all."""
    if truth.subscription is None:
        return ""
    whole = [line for line in truth.lines if line.subtotal > 0 and not line.is_proration]
    paid_periods = [line for line in whole if line.period is not None]
    of_a_plan = any(_version(line, truth.subscription.id, customer) for line in paid_periods)
    lost = [line for line in whole if line.period is None or not of_a_plan]
    return " ".join(
        f"{truth.id} also paid {line.subtotal} {line.currency} for {line.price_id}: nothing is granted for that." for line in lost
    )


def _grant(bought: Bought, fee_nanos: int, truth: stripe_api.Payment, customer: StripeCustomer) -> None:
    """Once for ever: what was granted is not compared with what would be granted by now."""
    account = customer.account
    if _granted(bought, customer) is not None:
        return
    expires_at, rollover = _still_open(bought)
    ledger.grant(
        account_id=account.pk,
        unit_id=account.product.unit_id,
        amount_nanos=bought.amount_nanos,
        source=bought.source,
        source_key=bought.source_key,
        key=f"{bought.source}:{bought.source_key}",
        actor=ACTOR,
        reason=f"{bought.reason}, {truth.id}",
        priority=subscriptions.priority(product=account.product, source=bought.source),
        expires_at=expires_at,
        cash_nanos=bought.cash_nanos,
        fee_nanos=fee_nanos,
        currency=truth.currency,
        rollover=rollover,
    )


def _still_open(bought: Bought) -> tuple[datetime | None, ledger.Rollover | None]:
    """When the grant expires and rolls over. One whose time is over already lives for a minute more: then it expires or rolls over as it
    would have, and the cash that was paid for it is in the books."""
    if bought.expires_at is None:
        return None, None
    with connection.cursor() as cursor:
        cursor.execute("select greatest(%s, app_now() + interval '1 minute')", [bought.expires_at])
        [expires_at] = cursor.fetchone()
    rolls = bought.rollover is not None and bought.rollover.expires_at > expires_at
    return expires_at, bought.rollover if rolls else None


def _granted(bought: Bought, customer: StripeCustomer) -> Grant | None:
    lots = Grant.objects.defer("expires_at").filter(account=customer.account, root_id=None)
    return lots.filter(source=bought.source, source_key=bought.source_key).first()


def _take_back(bought: Bought, refunded: int, truth: stripe_api.Payment, customer: StripeCustomer) -> str:
    """:return: what staff has to give back by hand: a refund that failed after its credits were taken."""
    lot = _granted(bought, customer)
    assert lot is not None
    due = lot.granted * refunded // truth.paid if truth.paid else 0
    if due > lot.refunded:
        ledger.refund(
            account_id=customer.account_id,
            source=bought.source,
            source_key=bought.source_key,
            refunded=refunded,
            paid=truth.paid,
            key=f"{bought.source}:{bought.source_key}:{truth.id}:{refunded}",
            actor=ACTOR,
            reason=f"Refund of {truth.id}",
        )
    if due < lot.refunded:
        return f"A refund of {truth.id} failed: {lot.refunded - due} nanos that it took are to be given back by an adjustment."
    return ""


def _freeze_or_unfreeze(bought: Bought, truth: stripe_api.Payment, customer: StripeCustomer) -> None:
    lot = _granted(bought, customer)
    assert lot is not None
    lots = Grant.objects.filter(Q(pk=lot.pk) | Q(root_id=lot.pk), account=customer.account)
    still_open = [dispute for dispute in truth.disputes if dispute.status in stripe_api.OPEN_DISPUTE]
    closed = [dispute for dispute in truth.disputes if dispute not in still_open]
    for dispute in still_open:
        ledger.freeze(
            account_id=customer.account_id,
            source=bought.source,
            source_key=bought.source_key,
            key=f"{dispute.id}:{bought.source_key}",
            actor=ACTOR,
            reason=f"Dispute {dispute.id} of {truth.id} was opened",
        )
    if closed and not still_open and lots.filter(frozen__gt=0).exists():
        ledger.unfreeze(
            account_id=customer.account_id,
            source=bought.source,
            source_key=bought.source_key,
            key=":".join([*sorted(dispute.id for dispute in closed), bought.source_key]),
            actor=ACTOR,
            reason=f"No dispute of {truth.id} is open",
        )


def _fee_nanos(truth: stripe_api.Payment, customer: StripeCustomer) -> int:
    """Stripe's fee; the product's estimate of it where Stripe takes its time."""
    if truth.fee is not None:
        return truth.fee * NANOS_PER_CENT
    product = customer.account.product
    return truth.paid * product.payment_fee_ppm * NANOS_PER_CENT // 1_000_000 + product.payment_fee_cents * NANOS_PER_CENT


def _split(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in proportion to the weights, by cumulative floor: the parts sum to the whole."""
    parts: list[int] = []
    whole, before = sum(weights), 0
    for weight in weights:
        before += weight
        parts.append(total * before // whole - sum(parts) if whole else 0)
    return parts
