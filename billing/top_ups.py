"""Automatic top-ups: below a threshold a pack is bought with the saved card, as many as bring the account above it.

    choose      what a customer wants: threshold, pack, cap of a day; on or off
    try_again   tries declined cards once more, because somebody says so
    work_next   charges the account whose turn it is, or says why not
    go_on_next  goes on with the top-up that is due first and not at its end

    wanted      how many packs are due; pure
    affordable  how many of them the day's cap allows; pure

A top-up is a row before Stripe is asked, and its id is the key of all that is asked; it is one invoice with one line, which Stripe collects
once however often it is asked to. What is pending counts as funds and an account has one at most (a unique index), so neither a lost answer
nor a late event makes a second charge. The cap of a day (UTC) is kept by a trigger, whoever charges.

Before the charge comes a last look at what the customer is buying by hand: a paid or processing checkout is waited for, an open one
expired. After it comes another: where the customer paid by hand while we charged, theirs settles and ours is refunded.

A card that is declined is left alone for an hour, then for four, then until it is replaced or somebody says to try it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import stripe
import structlog
from django.db import IntegrityError, transaction
from django.db.models import F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from prometheus_client import Counter

from accounts import mails, webhooks
from accounts.models import Account
from billing import balances, checkout, stripe_api, stripe_inbox, stripe_prices, stripe_requests
from billing.models import AutoTopUp, CardDecline, Checkout, Operation, StripeCustomer, StripePayment, StripeRequest, TopUp, Wallet
from pricing import catalog
from pricing.models import CreditPack

#: For so long nobody else looks at an account that is being looked at.
LEASE = timedelta(minutes=2)
#: What is switched off is looked at again so soon: it goes on within a minute of the switch's end.
AGAIN = timedelta(minutes=1)
#: An account that could not be charged is looked at again after so long, sooner if its customer changes something.
PAUSE = timedelta(minutes=10)
MAX_COPIES = 100
MAX_CAP_CENTS = 1_000_000
MAX_THRESHOLD_NANOS = 10**15
BACK_OFF = (timedelta(hours=1), timedelta(hours=4))
FIRST_DELAY = timedelta(seconds=30)
LONGEST_DELAY = timedelta(hours=1)
KIND: Final = "top_up"
PAID_TWICE: Final = "You were paying by hand at the same moment, so this one was given back."
UNDECIDED: Final = "You were paying by hand at the same moment. We have been told, and see to it."

#: Why top-ups of an account are switched off; empty where they are not.
Stopped = Callable[[Account], str]

log = structlog.get_logger(__name__)
ENDED = Counter("top_ups", "Automatic top-ups, by what became of them.", ["outcome"])


class InvalidTopUp(ValueError):
    """Such a top-up cannot be chosen. ``field`` is what is wrong, the message says how."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Buying:
    """What is to be bought now."""

    pack: CreditPack
    copies: int

    @property
    def amount_cents(self) -> int:
        return self.pack.price_cents * self.copies


class NotForSale(Exception):
    """Stripe does not sell the pack at the price that the catalog says."""


class NotNow(Exception):
    """There is no charge, and the message tells the customer why. ``again_at`` is when it is worth another look."""

    def __init__(self, message: str, again_at: datetime) -> None:
        super().__init__(message)
        self.again_at = again_at


def wanted(*, funds_nanos: int, threshold_nanos: int, credit_nanos: int) -> int:
    """How many packs bring ``funds_nanos`` above the threshold; 0 where they are not below it. Debt makes funds negative."""
    return 0 if funds_nanos >= threshold_nanos else (threshold_nanos - funds_nanos) // credit_nanos + 1


def affordable(*, copies: int, price_cents: int, spent_cents: int, cap_cents: int) -> int:
    """How many of ``copies`` the day's cap still allows."""
    return max(0, min(copies, MAX_COPIES, (cap_cents - spent_cents) // price_cents))


def dollars(cents: int) -> str:
    return f"${cents // 100:,}.{cents % 100:02}"


# What the customer wants --------------------------------------------------------------------------------------------------------


def choose(
    *, account: Account, enabled: bool, threshold_nanos: int, pack: str, daily_cap_cents: int, actor: str, now: datetime
) -> AutoTopUp:
    """Turns the account's top-up on, off or to other terms. On needs a saved card, so Stripe is asked; then opens a transaction.

    :raises InvalidTopUp: a term is wrong, or there is no saved card.
    :raises stripe.StripeError: Stripe cannot be asked.
    """
    if not 0 <= threshold_nanos <= MAX_THRESHOLD_NANOS:
        raise InvalidTopUp("threshold", "The threshold is from 0 to 1,000,000.")
    if not 0 < daily_cap_cents <= MAX_CAP_CENTS:
        raise InvalidTopUp("daily_cap", f"The cap of a day is more than nothing and at most {MAX_CAP_CENTS // 100:,}.")
    if enabled:
        try:
            price_cents = catalog.pack(product_id=account.product_id, slug=pack, at=now).price_cents
        except catalog.NotInCatalog:
            raise InvalidTopUp("pack", "There is no such pack on sale.") from None
        if daily_cap_cents < price_cents:
            raise InvalidTopUp("daily_cap", f"One pack costs {dollars(price_cents)}; a smaller cap never buys any.")
        if account.closed_at is not None:
            raise InvalidTopUp("enabled", "The account is closed.")
        if card_of(account) is None:
            raise InvalidTopUp("enabled", "There is no saved card to charge. Add one first.")
    with transaction.atomic():
        AutoTopUp.objects.select_for_update().filter(account=account).first()
        chosen, _ = AutoTopUp.objects.update_or_create(
            account=account,
            defaults={
                "enabled": enabled,
                "threshold_nanos": threshold_nanos,
                "pack": pack,
                "daily_cap_cents": daily_cap_cents,
                "changed_at": now,
                "changed_by": actor,
                "look_again_at": now,
            },
        )
    return chosen


def try_again(*, account: Account, now: datetime) -> int:
    """Forgets that cards of the account were declined; how many. The next look charges again."""
    with transaction.atomic():
        AutoTopUp.objects.filter(account=account).update(look_again_at=now)
        return CardDecline.objects.filter(account=account, declines__gt=0).update(declines=0, retry_at=None)


def card_of(account: Account) -> stripe_api.Card | None:
    """The card that would be charged. Calls the network. :raises stripe.StripeError:"""
    customer = StripeCustomer.objects.filter(account=account).first()
    return stripe_api.saved_card(customer.pk) if customer else None


# The charge ---------------------------------------------------------------------------------------------------------------------


def work_next(*, now: datetime, stopped: Stopped) -> bool:
    """Charges the account that is below its threshold and whose turn it is, or keeps why it is not charged; False where none is due.

    Opens its own transactions and calls the network between them. What goes wrong on the way is kept for the next look.
    """
    rule = _claim(now)
    if rule is None:
        return False
    try:
        top_up = _begin(rule, stopped(rule.account), now)
    except NotNow as no:
        _skip(rule.account, str(no), no.again_at, now)
    except (checkout.Refusal, stripe.StripeError) as error:
        log.warning("top-up waits for stripe", account=rule.account.public_id, exc_info=error)
        _skip(rule.account, "The payment provider cannot be reached; we will try again.", now + LEASE, now)
    else:
        _go_on(top_up, now)
    return True


def go_on_next(*, now: datetime) -> bool:
    """Goes on with the top-up that is due first; False where none is. Opens its own transactions and calls the network between them."""
    with transaction.atomic():
        due = TopUp.objects.filter(next_attempt_at__lte=now).order_by("next_attempt_at")
        top_up = due.select_related("account__product", "pack").select_for_update(skip_locked=True, of=("self",)).first()
        if top_up is None:
            return False
        top_up.attempts += 1
        top_up.next_attempt_at = now + min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(top_up.attempts, 20))
        top_up.save(update_fields=["attempts", "next_attempt_at"])
    _go_on(top_up, now)
    return True


def _claim(now: datetime) -> AutoTopUp | None:
    """The account below its threshold that waits the longest, for the length of a lease."""
    wallet = Wallet.objects.filter(account_id=OuterRef("account_id"), unit_id=OuterRef("account__product__unit_id"))
    free = Coalesce(Subquery(wallet.values(free=F("balance") - F("held") - F("debt"))[:1]), 0)
    on = AutoTopUp.objects.filter(enabled=True, look_again_at__lte=now, account__closed_at=None).alias(free=free)
    with transaction.atomic():
        low = on.filter(free__lt=F("threshold_nanos")).exclude(account__top_ups__state=TopUp.State.PENDING)
        rule = (
            low.select_related("account__product__unit").order_by("look_again_at").select_for_update(skip_locked=True, of=("self",)).first()
        )
        if rule is not None:
            rule.look_again_at = now + LEASE
            rule.save(update_fields=["look_again_at"])
    return rule


def _begin(rule: AutoTopUp, stop_reason: str, now: datetime) -> TopUp:
    """The row of a charge that is due. :raises NotNow: it is not."""
    account = rule.account
    if stop_reason:
        raise NotNow(f"Automatic top-ups are switched off at the moment: {stop_reason}", now + AGAIN)
    _check_goodwill(rule, now)
    _buying(rule, now)
    customer = StripeCustomer.objects.filter(account=account).first()
    card = stripe_api.saved_card(customer.pk) if customer else None
    if customer is None or card is None:
        raise NotNow("There is no saved card.", now + PAUSE)
    _check_breaker(account, card, now)
    _last_look(account, now)
    try:
        with transaction.atomic():
            rule = AutoTopUp.objects.select_for_update(of=("self",)).select_related("account__product__unit").get(pk=account.pk)
            if not rule.enabled:
                raise NotNow("It was turned off.", now + PAUSE)
            if _is_buying(account):
                raise NotNow("You were just paying by hand.", now + FIRST_DELAY)
            buying = _buying(rule, now)
            top_up = TopUp.objects.create(
                account=account,
                pack=buying.pack,
                copies=buying.copies,
                amount_cents=buying.amount_cents,
                credit_nanos=buying.pack.credit_nanos * buying.copies,
                currency=buying.pack.currency,
                day=now.astimezone(UTC).date(),
                card=card.label,
                fingerprint=card.fingerprint,
                created_at=now,
                attempts=1,
                next_attempt_at=now + FIRST_DELAY,
            )
            _ask(
                top_up,
                "invoice",
                "/v1/invoices",
                {
                    "customer": customer.pk,
                    "auto_advance": False,
                    "collection_method": "charge_automatically",
                    "currency": buying.pack.currency,
                    "default_payment_method": card.method_id,
                    "description": f"Automatic top-up of {account.name}",
                    "pending_invoice_items_behavior": "exclude",
                },
                now,
            )
            return top_up
    except IntegrityError:
        raise NotNow("Another charge was faster.", now + LEASE) from None


def _buying(rule: AutoTopUp, now: datetime) -> Buying:
    """What the rule says is to be bought, by what the account has now. :raises NotNow:"""
    account = rule.account
    try:
        pack = catalog.pack(product_id=account.product_id, slug=rule.pack, at=now)
    except catalog.NotInCatalog:
        raise NotNow("The chosen pack is no longer on sale; choose another one.", now + PAUSE) from None
    if not stripe_prices.on_sale(pack.stripe_price_setting):
        raise NotNow("The chosen pack cannot be paid for at the moment.", now + PAUSE)
    copies = wanted(funds_nanos=funds(account, now=now), threshold_nanos=rule.threshold_nanos, credit_nanos=pack.credit_nanos)
    if copies == 0:
        raise NotNow("", now + LEASE)  # what is due by now brings enough, or something is on its way
    spent = spent_cents(account, now=now)
    copies = affordable(copies=copies, price_cents=pack.price_cents, spent_cents=spent, cap_cents=rule.daily_cap_cents)
    if copies == 0:
        midnight = datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)
        raise NotNow(f"The cap of {dollars(rule.daily_cap_cents)} a day does not allow another pack today (UTC).", midnight)
    return Buying(pack, copies)


def funds(account: Account, *, now: datetime) -> int:
    """What the account can spend, less what it owes, with the credit of pending top-ups; nanos of the product's unit."""
    wallets = balances.of_account(account, now=now)
    free = sum(wallet.available - wallet.debt for wallet in wallets if wallet.unit_id == account.product.unit_id)
    pending = TopUp.objects.filter(account=account, state=TopUp.State.PENDING).aggregate(total=Sum("credit_nanos"))["total"]
    return free + (pending or 0)


def spent_cents(account: Account, *, now: datetime) -> int:
    """What counts against today's cap."""
    charged = Q(state__in=[TopUp.State.PENDING, TopUp.State.PAID, TopUp.State.REFUNDED])
    today = TopUp.objects.filter(charged, account=account, day=now.astimezone(UTC).date())
    return today.aggregate(total=Sum("amount_cents"))["total"] or 0


def _check_goodwill(rule: AutoTopUp, now: datetime) -> None:
    """Who disputes a payment, or was given a top-up back, is not charged again by itself: an owner says so first. :raises NotNow:"""
    account = rule.account
    if StripePayment.objects.filter(account=account, disputed=True).exists():
        raise NotNow("A payment is disputed; nothing is charged before that is decided.", now + PAUSE)
    if Operation.objects.filter(account=account, verb="freeze", created_at__gt=rule.changed_at).exists():
        raise NotNow("A payment was disputed. Save your choice again to go on.", now + PAUSE)
    refunded = TopUp.objects.filter(account=account, state=TopUp.State.REFUNDED, created_at__gt=rule.changed_at, next_attempt_at=None)
    if refunded.exclude(reason=PAID_TWICE).exists():
        raise NotNow("A top-up was refunded. Save your choice again to go on.", now + PAUSE)


def _check_breaker(account: Account, card: stripe_api.Card, now: datetime) -> None:
    breaker = CardDecline.objects.filter(account=account, fingerprint=card.fingerprint, declines__gt=0).first()
    if breaker is None:
        return
    if breaker.retry_at is None:
        raise NotNow(f"{card.label} was declined {breaker.declines} times. Replace it, or have it tried again.", now + PAUSE)
    if now < breaker.retry_at:
        raise NotNow(f"{card.label} was declined. It is tried again at {breaker.retry_at:%H:%M} UTC.", min(breaker.retry_at, now + PAUSE))


def _last_look(account: Account, now: datetime) -> None:
    """What the customer buys by hand comes first. :raises NotNow: they have paid, or are about to, and the credit is on its way."""
    if checkout.expire_open(account=account, now=now):
        raise NotNow("You were just paying by hand.", now + FIRST_DELAY)


def _is_buying(account: Account) -> bool:
    return Checkout.objects.filter(account=account, pack__isnull=False, state=Checkout.State.OPEN).exists()


def _go_on(top_up: TopUp, now: datetime) -> None:
    """Brings a top-up as far as it gets: invoice, payment, credit, look back. Each step may be done again; what fails is tried later."""
    try:
        if top_up.state == TopUp.State.PENDING and top_up.charged_at is None:
            _charge(top_up, now)
        if top_up.state == TopUp.State.PENDING and top_up.charged_at is not None:
            stripe_inbox.look_at(invoice=top_up.invoice_id, now=now)
            top_up.refresh_from_db(fields=["state", "finished_at"])
        if top_up.state in (TopUp.State.PAID, TopUp.State.REFUNDED):
            _look_back(top_up, now)
    except (NotForSale, stripe_requests.Refused) as error:
        _end(top_up, "The payment provider refused the charge. We have been told.", now)
        log.error("top-up refused", top_up=str(top_up.pk), why=str(error))
    except (checkout.Refusal, stripe_requests.Unanswered, stripe.StripeError) as error:
        log.warning("top-up is not at its end", top_up=str(top_up.pk), exc_info=error)


def _charge(top_up: TopUp, now: datetime) -> None:
    """Has Stripe make the invoice and collect it, as far as that has not happened. :raises Refused, Unanswered, StripeError:"""
    if not top_up.invoice_id:
        invoice = _send(top_up, "invoice", "/v1/invoices", {}, now)
        top_up.invoice_id = invoice["id"]
        top_up.save(update_fields=["invoice_id"])
    bill = stripe_api.bill(top_up.invoice_id)
    if bill.status == "draft" and not bill.has_lines:
        _send(top_up, "line", "/v1/invoiceitems", _line(top_up), now)
    if bill.status in ("draft", "open") and not bill.declined and not bill.is_processing:
        try:
            address = f"/v1/invoices/{top_up.invoice_id}"
            _send(top_up, "pay", f"{address}/pay", {"off_session": True}, now, changes=address)
        except stripe_requests.Refused as error:  # the invoice says more: it may have been paid by an earlier attempt
            log.info("top-up not collected", top_up=str(top_up.pk), why=str(error))
        bill = stripe_api.bill(top_up.invoice_id)
    if bill.status == "paid":
        top_up.charged_at = now
        top_up.save(update_fields=["charged_at"])
    elif bill.status != "open" or bill.declined:
        _declined(top_up, bill.declined or f"The invoice is {bill.status}.", now)


def _line(top_up: TopUp) -> dict[str, Any]:
    """The invoice's one line, at the pack's price at Stripe; where customers choose its amount, at the catalog's. :raises NotForSale:"""
    assert top_up.pack is not None
    customer_id = StripeCustomer.objects.values_list("pk", flat=True).get(account_id=top_up.account_id)
    line: dict[str, Any] = {"customer": customer_id, "invoice": top_up.invoice_id, "quantity": top_up.copies}
    prices = [stripe_api.price(price_id) for price_id in stripe_prices.named(top_up.pack.stripe_price_setting)]
    for price in prices:
        if (price.is_sold, price.amount, price.currency) == (True, top_up.pack.price_cents, top_up.currency):
            return line | {"pricing": {"price": price.id}}
    chosen = next((price for price in prices if price.is_sold and price.amount is None), None)
    if chosen is None:
        raise NotForSale(f"No price of {top_up.pack} at Stripe is {top_up.pack.price_cents} {top_up.currency}.")
    inline = {"currency": top_up.currency, "product": chosen.product_id, "unit_amount_decimal": str(top_up.pack.price_cents)}
    return line | {"price_data": inline}


def _declined(top_up: TopUp, why: str, now: datetime) -> None:
    """The breaker counts it, the customer is told, and the invoice is voided: nobody is to pay it later."""
    with transaction.atomic():
        breaker, _ = CardDecline.objects.select_for_update().get_or_create(account_id=top_up.account_id, fingerprint=top_up.fingerprint)
        breaker.declines += 1
        breaker.retry_at = now + BACK_OFF[breaker.declines - 1] if breaker.declines <= len(BACK_OFF) else None
        breaker.save(update_fields=["declines", "retry_at"])
        _end(top_up, why, now)
        void = _ask(top_up, "void", f"/v1/invoices/{top_up.invoice_id}/void", {}, now, changes=f"/v1/invoices/{top_up.invoice_id}")
        mails.queue(
            account=top_up.account,
            kind="top_up_failed",
            key=str(top_up.pk),
            context={"amount_cents": top_up.amount_cents, "currency": top_up.currency, "why": top_up.reason, "retry_at": breaker.retry_at},
            now=now,
        )
        told = {
            "amount": f"{top_up.amount_cents // 100}.{top_up.amount_cents % 100:02}",
            "currency": top_up.currency,
            "reason": top_up.reason,
            "retry_at": breaker.retry_at.isoformat() if breaker.retry_at else None,
        }
        webhooks.queue(account=top_up.account, kind=webhooks.Kind.TOP_UP_FAILED, key=str(top_up.pk), data=told, now=now)
    stripe_requests.send(void, now=now)


def _end(top_up: TopUp, why: str, now: datetime) -> None:
    """It did not happen. Unless, by now, it did: a payment that was heard of meanwhile counts."""
    declined = {"state": TopUp.State.DECLINED, "reason": why[:300], "finished_at": now, "next_attempt_at": None}
    TopUp.objects.filter(pk=top_up.pk, state=TopUp.State.PENDING).update(**declined)
    top_up.refresh_from_db()
    ENDED.labels(top_up.state).inc()


def _look_back(top_up: TopUp, now: datetime) -> None:
    """Where the customer paid by hand while we charged, theirs settles and ours is given back; what was open then is expired."""
    account = top_up.account
    while_charging = _while_charging(top_up)
    if while_charging.filter(state=Checkout.State.OPEN).exists():
        for visit in checkout.expire_open(account=account, now=now):
            if visit.session_id:
                stripe_inbox.look_at(session=visit.session_id, now=now)
        if while_charging.filter(state=Checkout.State.OPEN).exists():
            return  # the bank takes its time over theirs: looked at again
    theirs, reason = paid_by_hand(top_up), ""
    if theirs is not None:
        reason = PAID_TWICE if top_up.state == TopUp.State.REFUNDED or _give_back(top_up, theirs, now) else UNDECIDED
    with transaction.atomic():
        TopUp.objects.filter(pk=top_up.pk).update(next_attempt_at=None, reason=reason)
        CardDecline.objects.filter(account=account, fingerprint=top_up.fingerprint).update(declines=0, retry_at=None)
        AutoTopUp.objects.filter(account=account).update(look_again_at=now)
    top_up.refresh_from_db()
    ENDED.labels(top_up.state).inc()


def paid_by_hand(top_up: TopUp) -> Checkout | None:
    """What the customer bought by hand and paid while the top-up was charged; None before that, and where it was nothing."""
    return _while_charging(top_up).filter(state=Checkout.State.PAID).first() if top_up.charged_at else None


def _while_charging(top_up: TopUp) -> QuerySet[Checkout]:
    assert top_up.charged_at is not None
    began = Checkout.objects.filter(account_id=top_up.account_id, pack__isnull=False, created_at__gte=top_up.created_at)
    return began.filter(created_at__lte=top_up.charged_at)


def _give_back(top_up: TopUp, theirs: Checkout, now: datetime) -> bool:
    """False where there is no payment to give back, and staff decide."""
    intent_id = stripe_api.bill(top_up.invoice_id).intent_id
    if intent_id is None:
        log.error(
            "paid by hand and by top-up out of the customer's credit at stripe: staff decide", top_up=str(top_up.pk), visit=theirs.public_id
        )
        return False
    _send(top_up, "refund", "/v1/refunds", {"payment_intent": intent_id, "reason": "duplicate"}, now)
    stripe_inbox.look_at(invoice=top_up.invoice_id, now=now)
    log.error("paid by hand and by top-up: the top-up was refunded", top_up=str(top_up.pk), visit=theirs.public_id)
    return True


def _skip(account: Account, why: str, again_at: datetime, now: datetime) -> None:
    """Keeps why there is no charge, once a day and reason. ``why`` empty: none is needed."""
    AutoTopUp.objects.filter(account=account).update(look_again_at=again_at)
    if why:
        day = now.astimezone(UTC).date()
        skipped = TopUp(account=account, day=day, state=TopUp.State.SKIPPED, reason=why[:300], created_at=now, finished_at=now)
        TopUp.objects.bulk_create([skipped], ignore_conflicts=True)
        ENDED.labels(TopUp.State.SKIPPED).inc()


def _ask(top_up: TopUp, step: str, path: str, params: dict[str, Any], now: datetime, *, changes: str = "") -> StripeRequest:
    key = f"top_up:{top_up.pk}:{step}"
    return stripe_requests.ask(key=key, kind=f"{KIND}_{step}", path=path, params=params, account=top_up.account, now=now, changes=changes)


def _send(top_up: TopUp, step: str, path: str, params: dict[str, Any], now: datetime, *, changes: str = "") -> stripe_api.Obj:
    return stripe_requests.send(_ask(top_up, step, path, params, now, changes=changes), now=now)
