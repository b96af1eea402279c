"""What Stripe says now, read through its SDK at the pinned API version. Nothing here writes rows; ``post`` alone changes something there.

    payment       a payment intent: what of it was paid, refunded and disputed, and what it was paid for
    invoice       the same, from the invoice
    subscription  a subscription
    session       a checkout session, and what it led to
    price         a price, and whether its product is still sold
    preview       what a change of a subscription would cost
    intent_of     the payment intent that a charge, a refund or a dispute is about
    events        what Stripe has announced, the newest first; it keeps 30 days
    product       a product, and ``prices`` all prices of one, the newest first
    saved_card    the card that a customer may be charged with while nobody is there
    bill          how far an invoice is on its way to be paid
    portal        the address of a customer portal session
    post          a change at Stripe: for :mod:`billing.stripe_requests`, which everybody else asks
    within        a time limit for all calls of a block together

Amounts are in the smallest unit of their currency. Every function calls the network, so none is called inside a transaction; they raise
:class:`stripe.StripeError`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import cache
from typing import Any, Literal

import stripe
from django.conf import settings

TIMEOUT_SECONDS = 8
OPEN_DISPUTE = {"needs_response", "under_review"}
Obj = dict[str, Any]
Kind = Literal["charge", "refund", "dispute"]
Listed = Literal["subscriptions", "invoices", "payment_intents", "refunds", "disputes"]


@dataclass(frozen=True, slots=True)
class Line:
    """What was paid for. ``subtotal`` is before discounts, ``net`` after them; ``cash`` is what of that is no tax.

    ``period`` is set where the line is a whole period of a subscription, and not a proration.
    """

    price_id: str
    quantity: int
    subtotal: int
    net: int
    cash: int
    currency: str
    period: tuple[datetime, datetime] | None = None
    is_proration: bool = False


@dataclass(frozen=True, slots=True)
class Discount:
    """What is taken off every invoice: parts per million, and cents beside them. A coupon that holds once is none. ``ends_at`` is when the
    first of several ends; the subscription is read again then."""

    ppm: int = 0
    cents: int = 0
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """``past_due_since`` is when the first of the payments failed that it owes, where an invoice says so; ``unpaid``: it is in arrears, or
    ended because it was; ``checkout``: the public id of our visit that it began with."""

    id: str
    customer_id: str
    status: str
    items: Sequence[tuple[str, int]]  # price and quantity
    anchor_at: datetime
    period: tuple[datetime, datetime]
    cancel_at_period_end: bool
    started_at: datetime
    ended_at: datetime | None
    trial_ends_at: datetime | None = None
    item_id: str = ""
    past_due_since: datetime | None = None
    unpaid: bool = False
    checkout: str = ""
    discount: Discount = Discount()


@dataclass(frozen=True, slots=True)
class Session:
    """A checkout session. ``failed``: the customer has finished the page, and the bank refused afterwards."""

    id: str
    customer_id: str | None
    status: str
    payment_status: str
    failed: bool
    url: str
    expires_at: datetime
    intent_id: str | None
    subscription_id: str | None

    @property
    def is_paid(self) -> bool:
        return self.status == "complete" and self.payment_status in ("paid", "no_payment_required")


@dataclass(frozen=True, slots=True)
class Price:
    """``amount`` None: it is chosen at checkout, from ``least`` to ``most`` (None = Stripe's own limits). ``interval`` None: paid once."""

    id: str
    product_id: str
    is_sold: bool
    currency: str
    amount: int | None
    least: int | None
    most: int | None
    interval: str | None


@dataclass(frozen=True, slots=True)
class Preview:
    """The invoice that would be written: ``due`` is what the customer would be asked for, ``total`` without what their balance covers."""

    due: int
    total: int
    currency: str


@dataclass(frozen=True, slots=True)
class Dispute:
    id: str
    status: str
    amount: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """``period`` is that of the subscription which it bills, ``tax`` is inside ``total``. A draft has no number and no pages.

    ``next_attempt_at`` is when Stripe tries by itself to have it paid; None: it does not.
    """

    id: str
    number: str
    status: str
    description: str
    currency: str
    total: int
    tax: int
    paid: int
    created_at: datetime
    period: tuple[datetime, datetime]
    hosted_url: str
    pdf_url: str
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Payment:
    """``id`` is the payment intent's, or the invoice's where it was paid without one. ``fee`` None: Stripe has not said it yet.

    ``due`` is what was to be paid, taxes included. None: Stripe knows no session or invoice for this payment. ``invoice`` is what asked for
    it; a payment without one has a receipt of its own.
    """

    id: str
    customer_id: str | None
    status: str
    is_paid: bool
    currency: str
    paid: int
    refunded: int
    fee: int | None
    disputes: Sequence[Dispute]
    created_at: datetime
    due: int | None
    lines: Sequence[Line]
    subscription: Subscription | None
    description: str = ""
    receipt_url: str = ""
    invoice: Invoice | None = None
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """``fingerprint`` is the same for the same card, however often it is added."""

    method_id: str
    fingerprint: str
    label: str


@dataclass(frozen=True, slots=True)
class Bill:
    """``declined`` says why the last attempt failed; empty while none did. ``is_processing``: a payment of it is under way."""

    id: str
    status: str
    has_lines: bool
    is_processing: bool
    declined: str
    intent_id: str | None


_deadline: ContextVar[float] = ContextVar("stripe_deadline")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """All calls to Stripe of the block together take no longer; what does not fit any more fails like a cut line."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class _Http(stripe.RequestsClient):
    """The SDK's client, whose timeout is what is left of :func:`within`."""

    @property
    def _timeout(self) -> tuple[float, float]:
        left = _deadline.get(time.monotonic() + TIMEOUT_SECONDS) - time.monotonic()
        # Connecting and reading have a limit each; a host that does not answer at all is given up soon.
        return max(0.001, min(2.0, left)), max(0.001, min(TIMEOUT_SECONDS, left))

    @_timeout.setter
    def _timeout(self, seconds: object) -> None:
        """The SDK sets what it is constructed with."""


#: What Stripe's SDK raises, for the apps that know Stripe only through this one.
StripeError = stripe.StripeError


class Unsettled(stripe.StripeError):
    """Stripe answers, and is between two states of an object. A little later it is not: to be asked again, as if it had not answered."""


@cache
def client() -> stripe.StripeClient:
    """Our one client. It does not retry by itself: the inbox does, and checkout has a customer waiting."""
    host: str | None = getattr(settings, "STRIPE_API_HOST", None)
    return stripe.StripeClient(
        settings.STRIPE_SECRET_KEY,
        stripe_version=settings.STRIPE_API_VERSION,
        base_addresses={"api": host} if host else {},
        max_network_retries=0,
        http_client=_Http(),
    )


def payment(intent_id: str) -> Payment:
    """A payment intent, its charge, its disputes, and the session or invoice that it paid."""
    v1 = client().v1
    intent = v1.payment_intents.retrieve(intent_id, {"expand": ["latest_charge.balance_transaction"]}).to_dict()
    links = v1.invoice_payments.list({"payment": {"type": "payment_intent", "payment_intent": intent_id}, "limit": 100})
    invoices = [link.to_dict()["invoice"] for link in links.data]
    if invoices:
        return _of_invoice(_invoice(invoices[0]), intent)
    found = _session_of(intent_id)
    if found is None:
        return _payment(intent, due=None, lines=[], subscription=None)
    lines = [_session_line(line) for line in found["line_items"]["data"]]
    paid = _payment(intent, due=found["amount_total"], lines=lines, subscription=None)
    description = ", ".join(line["description"] for line in found["line_items"]["data"])
    return replace(paid, description=description, session=as_session(found, intent))


def invoice(invoice_id: str) -> Payment:
    """An invoice with the payment intent that paid it, or while it is unpaid with the one that is to. Neither need exist.

    :raises Unsettled: it is paid, and its payment is still open. What is granted has the payment's id for its key: it must not be guessed.
    """
    found = _invoice(invoice_id)
    if found["status"] == "paid" and any(each["status"] == "open" for each in found["payments"]["data"]):
        raise Unsettled(f"{invoice_id} is paid, and Stripe does not say yet by which payment.")
    payments = [each for each in found["payments"]["data"] if found["status"] != "paid" or each["status"] == "paid"]
    intent_id = next((_id(named) for each in payments if (named := each["payment"].get("payment_intent"))), None)
    intent: Obj | None = None
    if intent_id:
        intent = client().v1.payment_intents.retrieve(intent_id, {"expand": ["latest_charge.balance_transaction"]}).to_dict()
    return _of_invoice(found, intent)


def subscription(subscription_id: str) -> Subscription:
    whole: Any = {"expand": ["discounts", "discounts.source.coupon"]}
    found = client().v1.subscriptions.retrieve(subscription_id, whole).to_dict()
    items = found["items"]["data"]
    status = found["status"]
    return Subscription(
        id=found["id"],
        customer_id=_id(found["customer"]),
        status=status,
        items=[(item["price"]["id"], item.get("quantity") or 1) for item in items],
        anchor_at=_time(found["billing_cycle_anchor"]),
        period=(
            _time(min(item["current_period_start"] for item in items)),
            _time(max(item["current_period_end"] for item in items)),
        ),
        cancel_at_period_end=found["cancel_at_period_end"] or found.get("cancel_at") is not None,
        started_at=_time(found["start_date"]),
        ended_at=_time(found["ended_at"]) if found.get("ended_at") else None,
        trial_ends_at=_time(found["trial_end"]) if found.get("trial_end") else None,
        item_id=items[0]["id"],
        past_due_since=_first_failure(subscription_id) if status == "past_due" else None,
        unpaid=status in ("past_due", "unpaid") or (found.get("cancellation_details") or {}).get("reason") == "payment_failed",
        checkout=(found.get("metadata") or {}).get("checkout", ""),
        discount=_discount(found.get("discounts") or [], currency=found.get("currency") or "usd"),
    )


def _discount(discounts: Sequence[Obj], *, currency: str) -> Discount:
    """What the discounts of a subscription together take off each invoice, one after the other as Stripe does."""
    left, cents, ends = Fraction(1), 0, []
    for discount in discounts:
        coupon: Obj = discount["source"]["coupon"]
        if coupon.get("duration", "once") == "once":
            continue
        if coupon.get("percent_off"):
            left *= 1 - Fraction(str(coupon["percent_off"])) / 100
        elif coupon.get("currency") == currency:
            cents += coupon["amount_off"]
        if discount.get("end"):
            ends.append(_time(discount["end"]))
    return Discount(ppm=round((1 - left) * 1_000_000), cents=cents, ends_at=min(ends, default=None))


def _first_failure(subscription_id: str) -> datetime | None:
    """When the oldest of the newest invoices that all are unpaid was to be paid. An older one before a paid one is another story."""
    first: int | None = None
    for found in client().v1.invoices.list({"subscription": subscription_id, "limit": 100}).data:
        invoice = found.to_dict()
        if invoice["status"] == "paid":
            break
        if invoice["status"] in ("open", "uncollectible") and (invoice["attempted"] or invoice["due_date"]):
            first = invoice["due_date"] or invoice["status_transitions"]["finalized_at"]
    return None if first is None else _time(first)


def session(session_id: str) -> Session:
    """A checkout session; it has at most one of a payment intent and a subscription."""
    return as_session(client().v1.checkout.sessions.retrieve(session_id, {"expand": ["payment_intent", "subscription"]}).to_dict())


def price(price_id: str) -> Price:
    found = client().v1.prices.retrieve(price_id, {"expand": ["product"]}).to_dict()
    product: Obj = found["product"]
    chosen = found.get("custom_unit_amount")
    recurring = found.get("recurring")
    return Price(
        id=found["id"],
        product_id=product["id"],
        is_sold=found["active"] and not product.get("deleted") and product["active"],
        currency=found["currency"],
        amount=None if chosen else found["unit_amount"],
        least=chosen["minimum"] if chosen else None,
        most=chosen["maximum"] if chosen else None,
        interval=None if not recurring else recurring["interval"] if recurring["interval_count"] == 1 else "other",
    )


def preview(*, subscription_id: str, item: Mapping[str, Any], proration: str) -> Preview:
    """The invoice that a change of the subscription's ``item`` would bring."""
    details: Any = {"items": [dict(item)], "proration_behavior": proration}
    found = client().v1.invoices.create_preview({"subscription": subscription_id, "subscription_details": details}).to_dict()
    return Preview(due=found["amount_due"], total=found["total"], currency=found["currency"])


def portal(*, customer_id: str, return_url: str) -> str:
    """The address of a customer portal session. It changes nothing by itself, and ends by itself."""
    return str(client().v1.billing_portal.sessions.create({"customer": customer_id, "return_url": return_url}).url)


def post(path: str, params: Mapping[str, Any], *, key: str) -> Obj:
    """Asks Stripe for a change, under an idempotency key; what it answers."""
    return _raw("post", path, **params, idempotency_key=key)


def fetch(path: str) -> Obj:
    """The object at an address."""
    return _raw("get", path)


def created_with(path: str, name: str, value: str, *, customer_id: str | None, since: datetime) -> Obj | None:
    """The object of the list at ``path`` that has this metadata, made at or after ``since``; None where none has."""
    page: Obj = {"limit": 100, "created": {"gte": int(since.timestamp())}} | ({"customer": customer_id} if customer_id else {})
    while True:
        found = _raw("get", path, **page)
        for each in found["data"]:
            if (each.get("metadata") or {}).get(name) == value:
                return dict(each)
        if not found["has_more"]:
            return None
        page["starting_after"] = found["data"][-1]["id"]


def _raw(method: str, path: str, **params: Any) -> Obj:
    answer: Any = client().raw_request(method, path, **params)
    return dict(answer.data)


def intent_of(kind: Kind, object_id: str) -> str | None:
    """The payment intent that a charge, refund or dispute is about. None: a charge that was made without one."""
    v1 = client().v1
    service: Any = {"charge": v1.charges, "refund": v1.refunds, "dispute": v1.disputes}[kind]
    found = service.retrieve(object_id).to_dict().get("payment_intent")
    return _id(found) if found else None


def events(*, since: datetime) -> Iterator[Obj]:
    """All events made at or after ``since``, as they were sent."""
    for event in client().v1.events.list({"limit": 100, "created": {"gte": int(since.timestamp())}}).auto_paging_iter():
        yield event.to_dict(for_json=True)


def listed(kind: Listed, **params: Any) -> Iterator[Obj]:
    """All objects of a kind that fit, the newest first; of subscriptions those that are not over."""
    service: Any = getattr(client().v1, kind)
    for each in service.list({"limit": 100} | params).auto_paging_iter():
        yield each.to_dict()


def has_customer(customer_id: str) -> bool:
    """Whether Stripe has this customer, and has not deleted it."""
    try:
        return not client().v1.customers.retrieve(customer_id).to_dict().get("deleted")
    except stripe.InvalidRequestError as error:
        if error.code == "resource_missing":
            return False
        raise


def product(product_id: str) -> Obj | None:
    """None: Stripe has none of this id, or has it no longer."""
    try:
        found = client().v1.products.retrieve(product_id).to_dict()
    except stripe.InvalidRequestError as error:
        if error.code == "resource_missing":
            return None
        raise
    return None if found.get("deleted") else found


def prices(product_id: str) -> Sequence[Obj]:
    return [price.to_dict() for price in client().v1.prices.list({"product": product_id, "limit": 100}).auto_paging_iter()]


def saved_card(customer_id: str) -> Card | None:
    """The customer's default card; else the one that was added last. None: there is no card, or no such customer any longer."""
    v1 = client().v1
    customer = v1.customers.retrieve(customer_id, {"expand": ["invoice_settings.default_payment_method"]}).to_dict()
    if customer.get("deleted"):
        return None
    method = customer["invoice_settings"].get("default_payment_method")
    if not method or method["type"] != "card":
        cards = v1.payment_methods.list({"customer": customer_id, "type": "card", "limit": 1}).data
        method = cards[0].to_dict() if cards else None
    if not method:
        return None
    card = method["card"]
    return Card(method["id"], card["fingerprint"] or method["id"], f"{card['brand'].title()} ending {card['last4']}")


def bill(invoice_id: str) -> Bill:
    found = client().v1.invoices.retrieve(invoice_id, {"expand": ["payments.data.payment.payment_intent"]}).to_dict()
    intents = [named for each in found["payments"]["data"] if (named := each["payment"].get("payment_intent"))]
    intent: Obj = intents[0] if intents else {}
    error: Obj = intent.get("last_payment_error") or {}
    return Bill(
        id=found["id"],
        status=found["status"],
        has_lines=bool(found["lines"]["data"]),
        is_processing=intent.get("status") == "processing",
        declined=error.get("message") or ("The card was declined." if error else ""),
        intent_id=intent.get("id"),
    )


def _invoice(invoice_id: str) -> Obj:
    found = client().v1.invoices.retrieve(invoice_id, {"expand": ["payments"]}).to_dict()
    if found["lines"]["has_more"]:
        lines = client().v1.invoices.line_items.list(invoice_id, {"limit": 100})
        found["lines"]["data"] = [line.to_dict() for line in lines.auto_paging_iter()]
    return found


def _session_of(intent_id: str) -> Obj | None:
    sessions = client().v1.checkout.sessions.list({"payment_intent": intent_id, "limit": 1, "expand": ["data.line_items"]}).data
    return sessions[0].to_dict() if sessions else None


def as_session(found: Obj, intent: Obj | None = None) -> Session:
    """A session as Stripe says it; ``intent`` in place of the session's, where that is not expanded."""
    paying, subscribed = intent or found.get("payment_intent"), found.get("subscription")
    refused = isinstance(paying, dict) and paying["status"] in ("requires_payment_method", "canceled")
    over = isinstance(subscribed, dict) and subscribed["status"] in ("incomplete_expired", "canceled")
    unpaid = found["status"] == "complete" and found["payment_status"] == "unpaid"
    return Session(
        id=found["id"],
        customer_id=_id(found["customer"]) if found.get("customer") else None,
        status=found["status"],
        payment_status=found["payment_status"],
        failed=unpaid and (refused or over),
        url=found.get("url") or "",
        expires_at=_time(found["expires_at"]),
        intent_id=_id(paying) if paying else None,
        subscription_id=_id(subscribed) if subscribed else None,
    )


def _of_invoice(found: Obj, intent: Obj | None) -> Payment:
    parent = (found.get("parent") or {}).get("subscription_details") or {}
    subscribed = subscription(_id(parent["subscription"])) if parent.get("subscription") else None
    lines = [_invoice_line(line) for line in found["lines"]["data"] if (line.get("pricing") or {}).get("price_details")]
    if intent is not None:
        paid = _payment(intent, due=found["amount_due"], lines=lines, subscription=subscribed)
        sold = None if subscribed else _session_of(intent["id"])
        return replace(
            paid,
            is_paid=paid.is_paid and found["status"] == "paid",
            invoice=_document(found),
            description="",
            receipt_url="",
            session=as_session(sold, intent) if sold else None,
        )
    return Payment(
        id=found["id"],
        customer_id=_id(found["customer"]),
        status=found["status"],
        is_paid=found["status"] == "paid",
        currency=found["currency"],
        paid=found["amount_paid"] + (found.get("amount_paid_off_stripe") or 0) if found["status"] == "paid" else 0,
        refunded=0,
        fee=0,
        disputes=[],
        created_at=_time(found["created"]),
        due=found["amount_due"],
        lines=lines,
        subscription=subscribed,
        invoice=_document(found),
    )


def _document(found: Obj) -> Invoice:
    lines = found["lines"]["data"]
    billed = [line for line in lines if (line.get("parent") or {}).get("subscription_item_details")] or lines
    starts = [line["period"]["start"] for line in billed] or [found["period_start"]]
    ends = [line["period"]["end"] for line in billed] or [found["period_end"]]
    return Invoice(
        id=found["id"],
        number=found["number"] or "",
        status=found["status"] or "draft",
        description=", ".join(line["description"] for line in lines if line["description"]),
        currency=found["currency"],
        total=found["total"],
        tax=sum(tax["amount"] for tax in found["total_taxes"] or []),
        paid=found["amount_paid"],
        created_at=_time(found["created"]),
        period=(_time(min(starts)), _time(max(ends))),
        hosted_url=found["hosted_invoice_url"] or "",
        pdf_url=found["invoice_pdf"] or "",
        next_attempt_at=_time(found["next_payment_attempt"]) if found["next_payment_attempt"] else None,
    )


def _payment(intent: Obj, *, due: int | None, lines: Sequence[Line], subscription: Subscription | None) -> Payment:
    charge: Obj = intent.get("latest_charge") or {}
    is_paid = intent["status"] == "succeeded"
    disputes = client().v1.disputes.list({"payment_intent": intent["id"], "limit": 100}).data if charge.get("disputed") else []
    return Payment(
        id=intent["id"],
        customer_id=_id(intent["customer"]) if intent.get("customer") else None,
        status=intent["status"],
        is_paid=is_paid,
        currency=intent["currency"],
        paid=intent["amount_received"] if is_paid else 0,
        refunded=charge.get("amount_refunded", 0) if is_paid else 0,
        fee=_fee(charge),
        disputes=[Dispute(dispute.id, dispute.status, dispute.amount) for dispute in disputes],
        created_at=_time(intent["created"]),
        due=due,
        lines=lines,
        subscription=subscription,
        description=intent.get("description") or "",
        receipt_url=charge.get("receipt_url") or "",
    )


def _fee(charge: Obj) -> int | None:
    """What Stripe kept of the charge, in the charge's currency, rounded up; None while its balance transaction is not there yet."""
    settled = charge.get("balance_transaction")
    if not settled:
        return None
    fee: int = settled["fee"]
    return fee if settled["currency"] == charge["currency"] else -(-fee * charge["amount"] // settled["amount"])


def _session_line(line: Obj) -> Line:
    return Line(
        price_id=line["price"]["id"],
        quantity=line["quantity"] or 1,
        subtotal=line["amount_subtotal"],
        net=line["amount_subtotal"] - line["amount_discount"],
        cash=line["amount_total"] - line["amount_tax"],
        currency=line["currency"],
    )


def _invoice_line(line: Obj) -> Line:
    net = line["amount"] - sum(discount["amount"] for discount in line.get("discount_amounts") or [])
    included_tax = sum(tax["amount"] for tax in line.get("taxes") or [] if tax["tax_behavior"] == "inclusive")
    parent = line.get("parent") or {}
    item = parent.get("subscription_item_details")
    return Line(
        price_id=_id(line["pricing"]["price_details"]["price"]),
        quantity=line["quantity"] or 1,
        subtotal=line["amount"],
        net=net,
        cash=net - included_tax,
        currency=line["currency"],
        period=(_time(line["period"]["start"]), _time(line["period"]["end"])) if item and not item["proration"] else None,
        is_proration=(item or parent.get("invoice_item_details") or {}).get("proration", False),
    )


def _id(reference: Any) -> str:
    """The id of what may be expanded or not."""
    return str(reference["id"] if isinstance(reference, dict) else reference)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
