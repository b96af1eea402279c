"""What becomes of the events that Stripe sent.

    work_next    works the event that is due first
    work_again   has staff's choice of events worked anew
    set_aside    takes events out of the queue for good
    look_at      does what an event about an object would do, at once: for who has just changed it
    hand_over    does the same with an object that is at hand: for simulations, which ask nobody

An event only says that something happened to an object. What counts is the object, which is read from Stripe anew each time, outside of any
transaction; then one transaction brings our rows to what was read and marks the event done. So an event that comes twice, late or in
another order changes nothing that the object does not say, and one that failed is worked again. The number of a read is taken before
the read begins: of two at the same time the later one wins, and the event of the last change is always read after it.

After ``MAX_ATTEMPTS`` an event is dead: kept, shown to staff, and worked again when they say so. Others do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta

import stripe
import structlog
from django.db import connection, transaction
from prometheus_client import Counter

from billing import stripe_api, stripe_checkouts, stripe_invoices, stripe_mails, stripe_payments, stripe_prices, stripe_subscriptions
from billing.models import StripeCustomer, StripeEvent, StripePayment

MAX_ATTEMPTS = 15
FIRST_DELAY = timedelta(seconds=10)
LONGEST_DELAY = timedelta(hours=1)
#: For so long nobody else works an event that is being worked: longer than all its reads may take.
LEASE = timedelta(minutes=5)

State = StripeEvent.State
#: What became of an event, and why.
Outcome = tuple[State, str]
#: Brings our rows to what was read. Runs in a transaction.
Effect = Callable[[datetime, int], Outcome]

log = structlog.get_logger(__name__)
WORKED = Counter("stripe_events_worked", "Attempts to work an event of the inbox, by what became of it.", ["outcome"])


def work_next(*, now: datetime) -> StripeEvent | None:
    """Works the pending event that is due first and nobody else is working; None where there is none. Opens its own transactions."""
    event = _claim(now)
    if event is None or event.state != State.PENDING:
        return event
    try:
        read_number = _read_number()
        effect = _read(event)
        with transaction.atomic():
            state, reason = effect(now, read_number)
            _finish(event, state, reason, now)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is kept with the event, and the next event must not wait for it)
        _failed(event, error, now)
    WORKED.labels(event.state).inc()
    return event


def work_again(*, event_ids: Collection[str], now: datetime) -> list[StripeEvent]:
    """Makes these events pending again, whatever became of them before; returns them. What was done already is found done."""
    with transaction.atomic():
        chosen = list(StripeEvent.objects.select_for_update().filter(event_id__in=event_ids).order_by("pk"))
        for event in chosen:
            event.state, event.attempts, event.next_attempt_at, event.done_at = State.PENDING, 0, now, None
            event.save(update_fields=["state", "attempts", "next_attempt_at", "done_at"])
    return chosen


def set_aside(*, event_ids: Collection[str], reason: str, now: datetime) -> list[StripeEvent]:
    """Ignores these events, unless they are done or ignored already; returns those that were not."""
    with transaction.atomic():
        found = StripeEvent.objects.select_for_update().filter(event_id__in=event_ids).exclude(state__in=[State.DONE, State.IGNORED])
        chosen = list(found.order_by("pk"))
        for event in chosen:
            _finish(event, State.IGNORED, f"Set aside: {reason}", now)
    return chosen


def look_at(*, session: str = "", subscription: str = "", invoice: str = "", intent: str = "", now: datetime) -> Outcome:
    """Reads one object and brings our rows to what was read, as an event about it would. Calls the network: not inside a transaction.

    :raises stripe.StripeError: Stripe did not say.
    """
    read_number = _read_number()
    if session:
        effect = _session(session)
    elif subscription:
        effect = _subscription(subscription)
    else:
        effect = _invoice(invoice) if invoice else _intent(intent)
    with transaction.atomic():
        return effect(now, read_number)


def hand_over(*, truth: stripe_api.Payment | stripe_api.Subscription | stripe_api.Session, now: datetime) -> Outcome:
    """Brings our rows to ``truth``, as if it had just been read for an event about it. Opens its own transaction; no network."""
    read_number = _read_number()
    if isinstance(truth, stripe_api.Payment):
        effect = _payment(truth)
    elif isinstance(truth, stripe_api.Subscription):
        effect = _subscribed(truth)
    else:
        effect = _visited(truth, _ignore(f"{truth.id} has neither a payment nor a subscription."))
    with transaction.atomic():
        return effect(now, read_number)


def _claim(now: datetime) -> StripeEvent | None:
    """Takes the next due event for the length of a lease. One whose workers never came back as often as is allowed is dead."""
    with transaction.atomic():
        due = StripeEvent.objects.filter(state=State.PENDING, next_attempt_at__lte=now).order_by("next_attempt_at", "pk")
        event = due.select_for_update(skip_locked=True).first()
        if event is None:
            return None
        if event.attempts >= MAX_ATTEMPTS:
            _finish(event, State.DEAD, event.last_error or "Its workers never came back.", now)
            return event
        event.attempts += 1
        event.next_attempt_at = now + LEASE
        event.save(update_fields=["attempts", "next_attempt_at"])
    return event


def _finish(event: StripeEvent, state: State, reason: str, now: datetime) -> None:
    event.state, event.last_error, event.done_at = state, reason, now
    event.save(update_fields=["state", "last_error", "done_at"])
    if state in (State.QUARANTINED, State.DEAD):
        log.error("stripe event needs staff", event_id=event.event_id, type=event.type, state=str(state), why=reason)


def _failed(event: StripeEvent, error: Exception, now: datetime) -> None:
    """Keeps the error, and tries again later or never."""
    if isinstance(error, stripe.InvalidRequestError) and error.code == "resource_missing":
        # Stripe signed it, so it has it: the key that we ask with is another account's, or somebody deleted what this is about.
        _finish(event, State.QUARANTINED, f"Stripe has not what this is about, for our key: {error.user_message}", now)
        return
    reason = f"{type(error).__name__}: {error}"[:2_000].replace("\0", "\\0")
    log.warning("stripe event failed", event_id=event.event_id, type=event.type, attempt=event.attempts, exc_info=error)
    if event.attempts >= MAX_ATTEMPTS:
        _finish(event, State.DEAD, reason, now)
        return
    event.state, event.last_error, event.done_at = State.PENDING, reason, None
    event.next_attempt_at = now + min(LONGEST_DELAY, FIRST_DELAY * 2 ** (event.attempts - 1))
    event.save(update_fields=["state", "last_error", "done_at", "next_attempt_at"])


def _read_number() -> int:
    with connection.cursor() as cursor:
        cursor.execute("select nextval('stripe_read_number')")
        [number] = cursor.fetchone()
    return int(number)


# What an event's object is, and what it changes ---------------------------------------------------------------------------------


def _read(event: StripeEvent) -> Effect:
    """Asks Stripe for the object as it is now. Calls the network; the effect does not."""
    reader = _READERS.get(event.type)
    return reader(event.object_id) if reader else _ignore("Nothing here depends on events of this type.")


def _ignore(reason: str) -> Effect:
    return lambda now, read_number: (State.IGNORED, reason)


def _payment(truth: stripe_api.Payment) -> Effect:
    """A payment, its invoice, and the subscription that this bills: that first, because it says which plan was bought."""
    if truth.customer_id is None:
        return _ignore(f"{truth.id} has no customer.")
    if truth.due is None:
        return _ignore(f"{truth.id} paid no session and no invoice.")
    customer_id = truth.customer_id

    def effect(now: datetime, read_number: int) -> Outcome:
        customer = _owner(customer_id)
        if customer is None:
            return State.IGNORED, f"{customer_id} is no customer of ours."
        notes = []
        if truth.session is not None:
            stripe_checkouts.apply(truth=truth.session, customer=customer, read_number=read_number)
        if truth.subscription is not None:
            notes.append(stripe_subscriptions.apply(truth=truth.subscription, customer=customer, read_number=read_number, now=now))
        if truth.invoice is not None:
            stripe_invoices.apply(truth=truth.invoice, customer=customer, read_number=read_number)
        if truth.is_paid or truth.invoice is None or truth.id != truth.invoice.id:  # else nobody has begun to pay the invoice
            note = stripe_payments.apply(truth=truth, customer=customer, read_number=read_number)
            StripePayment.objects.filter(pk=truth.id, read_number=read_number).update(note=note[:1_000])
            notes.append(note)
        if not any(notes):
            stripe_mails.of_payment(truth=truth, customer=customer, read_number=read_number, now=now)
        return _verdict(notes)

    return effect


def _intent(intent_id: str) -> Effect:
    return _payment(stripe_api.payment(intent_id))


def _invoice(invoice_id: str) -> Effect:
    return _payment(stripe_api.invoice(invoice_id))


def _charge(charge_id: str) -> Effect:
    return _intent_of("charge", charge_id)


def _refund(refund_id: str) -> Effect:
    return _intent_of("refund", refund_id)


def _dispute(dispute_id: str) -> Effect:
    return _intent_of("dispute", dispute_id)


def _intent_of(kind: stripe_api.Kind, object_id: str) -> Effect:
    intent_id = stripe_api.intent_of(kind, object_id)
    return _intent(intent_id) if intent_id else _ignore(f"{object_id} is of no payment intent.")


def _session(session_id: str) -> Effect:
    """A session, and what it led to."""
    truth = stripe_api.session(session_id)
    if truth.intent_id:
        led_to = _intent(truth.intent_id)
    elif truth.subscription_id:
        led_to = _subscription(truth.subscription_id)
    else:
        led_to = _ignore(f"{session_id} has neither a payment nor a subscription.")
    return _visited(truth, led_to)


def _visited(truth: stripe_api.Session, led_to: Effect) -> Effect:
    def effect(now: datetime, read_number: int) -> Outcome:
        customer = _owner(truth.customer_id) if truth.customer_id else None
        ours = customer and stripe_checkouts.apply(truth=truth, customer=customer, read_number=read_number)
        state, reason = led_to(now, read_number)
        return (State.DONE, "") if ours and state == State.IGNORED else (state, reason)

    return effect


def _subscription(subscription_id: str) -> Effect:
    return _subscribed(stripe_api.subscription(subscription_id))


def _subscribed(truth: stripe_api.Subscription) -> Effect:
    def effect(now: datetime, read_number: int) -> Outcome:
        customer = _owner(truth.customer_id)
        if customer is None:
            return State.IGNORED, f"{truth.customer_id} is no customer of ours."
        note = stripe_subscriptions.apply(truth=truth, customer=customer, read_number=read_number, now=now)
        stripe_mails.of_subscription(truth=truth, customer=customer, read_number=read_number, now=now)
        return _verdict([note])

    return effect


def _price(price_id: str) -> Effect:
    """A price that our catalogs name: staff are told when nobody can buy it any more."""
    return _unavailable({price_id: _price_now(price_id)})


def _product(product_id: str) -> Effect:
    return _unavailable({each["id"]: _price_now(each["id"]) for each in stripe_api.prices(product_id)})


def _price_now(price_id: str) -> stripe_api.Price | None:
    try:
        return stripe_api.price(price_id)
    except stripe.InvalidRequestError as error:
        if error.code == "resource_missing":
            return None
        raise


def _unavailable(prices: Mapping[str, stripe_api.Price | None]) -> Effect:
    def effect(now: datetime, read_number: int) -> Outcome:
        return _verdict([stripe_prices.unavailable(price=price, price_id=id_, at=now) for id_, price in prices.items()])

    return effect


def _customer(customer_id: str) -> Effect:
    """What was paid stays; who was deleted there can buy nothing, which staff have to know. Subscriptions end by their own events."""
    is_there = stripe_api.has_customer(customer_id)

    def effect(now: datetime, read_number: int) -> Outcome:
        customer = _owner(customer_id)
        if customer is None:
            return State.IGNORED, f"{customer_id} is no customer of ours."
        gone = f"{customer_id}, the customer of {customer.account.public_id}, is not at Stripe any more: it can buy nothing."
        return _verdict([] if is_there else [gone])

    return effect


def _owner(customer_id: str) -> StripeCustomer | None:
    """Whose it is, by our own map. Locks the row: all that comes from Stripe for one customer happens one after the other."""
    customers = StripeCustomer.objects.select_for_update(of=("self",)).select_related("account__product")
    return customers.filter(pk=customer_id).first()


def _verdict(notes: Collection[str]) -> Outcome:
    reason = " ".join(note for note in notes if note)
    return (State.QUARANTINED, reason) if reason else (State.DONE, "")


#: Every type of event that changes something here, and what its object is.
_READERS: dict[str, Callable[[str], Effect]] = {
    "charge.dispute.closed": _dispute,
    "charge.dispute.created": _dispute,
    "charge.dispute.funds_reinstated": _dispute,
    "charge.dispute.funds_withdrawn": _dispute,
    "charge.dispute.updated": _dispute,
    "charge.refund.updated": _refund,
    "charge.refunded": _charge,
    "checkout.session.async_payment_failed": _session,
    "checkout.session.async_payment_succeeded": _session,
    "checkout.session.completed": _session,
    "checkout.session.expired": _session,
    "customer.deleted": _customer,
    "customer.subscription.created": _subscription,
    "customer.subscription.deleted": _subscription,
    "customer.subscription.paused": _subscription,
    "customer.subscription.resumed": _subscription,
    "customer.subscription.trial_will_end": _subscription,
    "customer.subscription.updated": _subscription,
    "customer.updated": _customer,
    "invoice.created": _invoice,
    "invoice.finalized": _invoice,
    "invoice.marked_uncollectible": _invoice,
    "invoice.overdue": _invoice,
    "invoice.paid": _invoice,
    "invoice.payment_action_required": _invoice,
    "invoice.payment_failed": _invoice,
    "invoice.payment_succeeded": _invoice,
    "invoice.updated": _invoice,
    "invoice.voided": _invoice,
    "payment_intent.canceled": _intent,
    "payment_intent.payment_failed": _intent,
    "payment_intent.succeeded": _intent,
    "price.deleted": _price,
    "price.updated": _price,
    "product.deleted": _product,
    "product.updated": _product,
    "refund.created": _refund,
    "refund.failed": _refund,
    "refund.updated": _refund,
}
