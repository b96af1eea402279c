"""What Stripe would say of the simulated customers, and how it reaches us: as the objects that our inbox hands over once it has read them.

Nothing here decides what a payment means for an account: :func:`billing.stripe_inbox.hand_over` does, as for real ones. Times are whole
seconds, as Stripe's are. While we are out, news waits; each is read as it is when it is delivered.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from accounts.models import Account
from billing import stripe_api, stripe_inbox, stripe_prices
from billing.models import Checkout, StripeCustomer, StripeEvent, TopUp
from pricing.models import CreditPack, PlanVersion, Product

DONE: Final = (StripeEvent.State.DONE, StripeEvent.State.IGNORED)
#: How long a page of Stripe's is open.
VISIT: Final = timedelta(days=1)


class Refused(Exception):
    """Our inbox did not take over what this Stripe says: a fault of the simulation, or a bug."""


@dataclass(slots=True)
class Subscription:
    """A subscription at Stripe, as it is now. ``prorated`` are the lines that its next invoice will have beside the period."""

    id: str
    customer_id: str
    version: PlanVersion
    quantity: int
    started_at: datetime
    anchor_at: datetime
    period: tuple[datetime, datetime]
    status: str = "active"
    trial_ends_at: datetime | None = None
    cancel_at_period_end: bool = False
    ended_at: datetime | None = None
    past_due_since: datetime | None = None
    unpaid: bool = False
    prorated: list[stripe_api.Line] = field(default_factory=list)

    @property
    def price_id(self) -> str:
        return stripe_prices.on_sale(self.version.stripe_price_setting)

    @property
    def price_cents(self) -> int:
        """Of one interval, for all members."""
        assert self.version.price_cents is not None
        return self.version.price_cents * self.quantity

    def truth(self) -> stripe_api.Subscription:
        return stripe_api.Subscription(
            id=self.id,
            customer_id=self.customer_id,
            status=self.status,
            items=[(self.price_id, self.quantity)],
            anchor_at=self.anchor_at,
            period=self.period,
            cancel_at_period_end=self.cancel_at_period_end,
            started_at=self.started_at,
            ended_at=self.ended_at,
            trial_ends_at=self.trial_ends_at,
            past_due_since=self.past_due_since if self.status == "past_due" else None,
            unpaid=self.unpaid,
        )

    def line(self) -> stripe_api.Line:
        """What the period that has begun costs."""
        return _line(self.price_id, self.quantity, self.price_cents, self.version.currency, period=self.period)

    def proration(self, cents: int) -> stripe_api.Line:
        return _line(self.price_id, self.quantity, cents, self.version.currency, is_proration=True)


@dataclass(slots=True)
class Payment:
    """A payment at Stripe, as it is now. ``kind`` is for counting: plan, pack or top_up."""

    id: str
    customer_id: str
    kind: str
    created_at: datetime
    lines: Sequence[stripe_api.Line]
    fee_cents: int
    subscription: Subscription | None = None
    invoice_id: str = ""
    session_id: str = ""
    is_paid: bool = False
    refunded: int = 0
    disputes: list[stripe_api.Dispute] = field(default_factory=list)
    #: What our inbox took over of it last: paid, given back or lost, and kept by Stripe.
    told: tuple[int, int, int] = (0, 0, 0)

    @property
    def due(self) -> int:
        return max(sum(line.subtotal for line in self.lines), 0)

    def truth(self) -> stripe_api.Payment:
        document = session = None
        if self.invoice_id:
            document = stripe_api.Invoice(
                id=self.invoice_id,
                number=self.invoice_id.removeprefix("in_").upper(),
                status="paid" if self.is_paid else "open",
                description="",
                currency="usd",
                total=self.due,
                tax=0,
                paid=self.due if self.is_paid else 0,
                created_at=self.created_at,
                period=next((line.period for line in self.lines if line.period), (self.created_at, self.created_at)),
                hosted_url="",
                pdf_url="",
                next_attempt_at=None,
            )
        if self.session_id:
            session = visit(self.session_id, self.customer_id, self.created_at, intent_id=self.id, is_paid=self.is_paid)
        return stripe_api.Payment(
            id=self.id,
            customer_id=self.customer_id,
            status="succeeded" if self.is_paid else "requires_payment_method",
            is_paid=self.is_paid,
            currency="usd",
            paid=self.due if self.is_paid else 0,
            refunded=self.refunded,
            fee=self.fee_cents if self.is_paid else 0,
            disputes=list(self.disputes),
            created_at=self.created_at,
            due=self.due,
            lines=list(self.lines),
            subscription=self.subscription.truth() if self.subscription else None,
            invoice=document,
            session=session,
        )


#: What there is to hear of.
News: TypeAlias = Payment | Subscription | stripe_api.Session


class Stripe:
    """All of it, for one product. ``tag`` keeps the ids of two runs in one database apart."""

    def __init__(self, *, product: Product, tag: str) -> None:
        self.product = product
        self.tag = tag
        self.payments: list[Payment] = []
        self.declined = 0
        self._waiting: list[News] = []

    def customer(self, account: Account, now: datetime) -> str:
        customer_id = self.id("cus", account, 0)
        StripeCustomer.objects.get_or_create(id=customer_id, defaults={"account": account, "created_at": now})
        return customer_id

    def id(self, kind: str, account: Account, number: int) -> str:
        return f"{kind}_{self.tag}_{account.external_id}_{number}"

    def fee(self, cents: int) -> int:
        """What Stripe keeps, rounded up."""
        return -(-cents * self.product.payment_fee_ppm // 1_000_000) + self.product.payment_fee_cents if cents else 0

    def charge(self, payment: Payment, *, paid: bool) -> None:
        """The outcome of an attempt to be paid; to be told."""
        payment.is_paid = paid
        payment.fee_cents = self.fee(payment.due)
        self.declined += not paid
        if paid:
            self.payments.append(payment)

    def tell(self, news: News, *, now: datetime, out: bool) -> None:
        """Has our inbox take it over; later, where we are ``out``. :raises Refused: it does not."""
        self._waiting.append(news)
        if out:
            return
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            truth = each if isinstance(each, stripe_api.Session) else each.truth()
            state, reason = stripe_inbox.hand_over(truth=truth, now=now)
            if state not in DONE:
                raise Refused(f"{truth.id}: {state}: {reason}")
            if isinstance(each, Payment) and each.is_paid:
                lost = sum(dispute.amount for dispute in each.disputes if dispute.status == "lost")
                each.told = (each.due, min(each.due, each.refunded + lost), each.fee_cents)

    def catch_up(self, *, now: datetime) -> None:
        """We are back: what waited comes now."""
        if self._waiting:
            self.tell(self._waiting.pop(), now=now, out=False)

    def told(self) -> tuple[int, int, int]:
        """In cents, what our inbox has heard of: paid, given back or lost, and kept by Stripe."""
        paid, back, fees = (
            (sum(column) for column in zip(*(payment.told for payment in self.payments), strict=True)) if self.payments else (0, 0, 0)
        )
        return paid, back, fees


def visit(
    session_id: str, customer_id: str, at: datetime, *, intent_id: str = "", is_paid: bool = False, is_over: bool = False
) -> stripe_api.Session:
    """A checkout session."""
    return stripe_api.Session(
        id=session_id,
        customer_id=customer_id,
        status="complete" if is_paid else "expired" if is_over else "open",
        payment_status="paid" if is_paid else "unpaid",
        failed=False,
        url="",
        expires_at=at + VISIT,
        intent_id=intent_id or None,
        subscription_id=None,
    )


def open_visit(account: Account, pack: CreditPack, session_id: str, now: datetime) -> None:
    """Our own row of a visit to Stripe's page, as :mod:`billing.checkout` leaves it when Stripe has answered."""
    Checkout.objects.create(
        account=account, pack=pack, thing=f"pack:{pack.slug}", name=pack.name, amount_cents=pack.price_cents, currency=pack.currency,
        session_id=session_id, success_url="https://example.com/", cancel_url="https://example.com/", actor="simulation", created_at=now,
        expires_at=now + VISIT,
    )  # fmt: skip


def pack_line(pack: CreditPack, copies: int = 1) -> stripe_api.Line:
    return _line(stripe_prices.on_sale(pack.stripe_price_setting), copies, pack.price_cents * copies, pack.currency)


def top_up(account: Account, pack: CreditPack, copies: int, invoice_id: str, now: datetime) -> None:
    """Our own row of an automatic top-up, as :mod:`billing.top_ups` leaves it when Stripe has made the invoice."""
    TopUp.objects.create(
        account=account, pack=pack, copies=copies, amount_cents=pack.price_cents * copies, credit_nanos=pack.credit_nanos * copies,
        currency=pack.currency, day=now.date(), invoice_id=invoice_id, created_at=now, attempts=1,
    )  # fmt: skip


@contextmanager
def prices(product: Product) -> Iterator[None]:
    """The environment names a price for each plan and pack of ``product`` that has a variable for it; those that are set stay."""
    settings = {row.stripe_price_setting for row in PlanVersion.objects.filter(plan__product=product)}
    settings |= {row.stripe_price_setting for row in CreditPack.objects.filter(product=product)}
    added = {setting: f"price_simulated_{setting.lower()}" for setting in sorted(settings - {""}) if not stripe_prices.on_sale(setting)}
    before = {setting: os.environ.get(setting) for setting in added}
    os.environ |= added
    try:
        yield
    finally:
        for setting, value in before.items():
            if value is None:
                del os.environ[setting]
            else:
                os.environ[setting] = value


def _line(
    price_id: str, quantity: int, cents: int, currency: str, *, period: tuple[datetime, datetime] | None = None, is_proration: bool = False
) -> stripe_api.Line:
    line = stripe_api.Line(price_id=price_id, quantity=quantity, subtotal=cents, net=cents, cash=cents, currency=currency)
    return replace(line, period=period, is_proration=is_proration)
