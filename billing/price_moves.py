"""A new price for those who subscribe already. Without a move they keep the version that they subscribed to: that is grandfathering.

    preview  whom a move would concern, and what it would change
    plan     plans it, from a date on
    cancel   takes it back for everybody who has not been moved yet
    go_on    announces moves by mail, and moves who is due

From the date of a move each subscription has the new price with its first renewal: shortly before it the price is changed at Stripe,
without proration, so nobody pays for a period twice and the terms of the running one stay. What happened is never moved: a date in the past
is refused. Who cancels, or leaves the plan, before their renewal is not moved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import stripe
import structlog
from django.db import connection, transaction
from django.db.models import F, QuerySet, Sum

from accounts import mails
from accounts.models import Mail
from billing import stripe_api, stripe_inbox, stripe_prices, stripe_requests, stripe_subscriptions, subscriptions
from billing.models import PlanChange, PriceMove, StripeSubscription
from pricing.models import PlanVersion

KIND: Final = "price_move"
BATCH: Final = 100
#: So long before a renewal its price is changed at Stripe: a weekend of failures fits in.
LEAD: Final = timedelta(days=3)
#: Who is told of a price has so long to decide, unless it falls.
NOTICE: Final = timedelta(days=14)

log = structlog.get_logger(__name__)


class InvalidMove(ValueError):
    """Such a move cannot be planned. The message says why."""


@dataclass(frozen=True, slots=True)
class Preview:
    """``difference_cents`` is what all of them together will pay more, or less, each interval."""

    subscriptions: int
    seats: int
    difference_cents: int
    currency: str
    interval: str

    @property
    def sentence(self) -> str:
        """The same for staff."""
        sign, cents = "-" if self.difference_cents < 0 else "+", abs(self.difference_cents)
        difference = f"{sign}{cents // 100}.{cents % 100:02} {self.currency} each {self.interval}"
        return f"{self.subscriptions} subscriptions, {self.seats} seats, {difference}"


def preview(*, to: PlanVersion) -> Preview:
    """What moving everybody to this version would mean, as things stand."""
    found = _concerned(to).aggregate(
        seats=Sum("quantity"), difference=Sum((to.price_cents or 0) * F("quantity") - F("plan_version__price_cents") * F("quantity"))
    )
    return Preview(_concerned(to).count(), found["seats"] or 0, found["difference"] or 0, to.currency, to.interval)


def plan(*, to: PlanVersion, effective_at: datetime, actor: str, reason: str, now: datetime) -> PriceMove:
    """Plans to move all other subscribers of the plan to ``to``, each with the first renewal from ``effective_at`` on.

    :raises InvalidMove: the date is past or too soon for the notice that a higher price needs; the version has no price, or other money or
        interval than theirs; Stripe sells nothing at it; or another move of the plan is under way.
    """
    if to.price_cents is None or not stripe_prices.on_sale(to.stripe_price_setting):
        raise InvalidMove(f"{to} has no price at Stripe.")
    others = _concerned(to)
    if others.exclude(plan_version__currency=to.currency, plan_version__interval=to.interval).exists():
        raise InvalidMove("Some pay in another currency or interval; they cannot be moved.")
    earliest = now + NOTICE if others.filter(plan_version__price_cents__lt=to.price_cents).exists() else now
    if effective_at < earliest:
        raise InvalidMove(
            f"The date is {effective_at:%Y-%m-%d %H:%M} UTC; the earliest is {earliest:%Y-%m-%d %H:%M}. Nothing past is moved."
        )
    with transaction.atomic():
        PlanVersion.objects.select_for_update().get(pk=to.pk)
        if PriceMove.objects.filter(to_version__plan=to.plan_id, canceled_at=None).exclude(to_version=to).exists():
            raise InvalidMove("Another move of this plan is under way. Cancel it first.")
        if PriceMove.objects.filter(to_version=to, canceled_at=None).exists():
            raise InvalidMove("This move is planned already.")
        return PriceMove.objects.create(
            to_version=to, effective_at=effective_at, actor=actor, reason=reason, created_at=now, announced_to=""
        )


def cancel(*, move: PriceMove, actor: str, now: datetime) -> bool:
    """Moves nobody any more. False where it was canceled before. Who was moved keeps the new price."""
    return PriceMove.objects.filter(pk=move.pk, canceled_at=None).update(canceled_at=now, canceled_by=actor) == 1


def log_failed(account: str, error: Exception) -> None:
    log.error("subscription is not at its new price", account=account, exc_info=error)


def go_on(*, now: datetime, given_up: Collection[str] = (), failed: Callable[[str, Exception], None] = log_failed) -> int:
    """Announces and moves what is due, so many at once; returns how many subscriptions were moved. Calls the network.

    What Stripe refuses or does not answer is tried again with the next run. One that fails for any other reason stops no other: ``failed``
    is told of it, by the public id of its account. Accounts in ``given_up`` are not moved.

    :raises django.db.DatabaseError: the database is gone.
    """
    moved = 0
    for move in PriceMove.objects.filter(canceled_at=None).select_related("to_version__plan").order_by("pk"):
        _announce(move, now)
        due = _concerned(move.to_version).filter(
            cancel_at_period_end=False, current_period_end__gte=move.effective_at, current_period_end__lte=now + LEAD
        )
        due = due.exclude(account__public_id__in=given_up).select_related("account", "plan_version")
        for subscribed in due.order_by("current_period_end", "pk")[:BATCH]:
            try:
                moved += _move(move, subscribed, now)
            except (stripe_requests.Refused, stripe_requests.Unanswered, stripe.StripeError) as error:
                log.warning("subscription is not at its new price", subscription=subscribed.pk, why=str(error))
            except Exception as error:  # whatever it is, the others' renewals do not wait for it
                if not connection.in_atomic_block and not connection.is_usable():
                    raise
                failed(subscribed.account.public_id, error)
    return moved


def _concerned(to: PlanVersion) -> QuerySet[StripeSubscription]:
    """Live subscriptions of the plan that pay by another version and were not told to change."""
    told = PlanChange.objects.filter(to_version=to).values("subscription_id")
    live = StripeSubscription.objects.filter(status__in=subscriptions.ENTITLED, plan_version__plan_id=to.plan_id, account__closed_at=None)
    return live.exclude(plan_version=to).exclude(pk__in=told)


def _announce(move: PriceMove, now: datetime) -> None:
    """A mail to each, once, in the order of their ids; where it broke off it goes on."""
    while move.announced_to is not None:
        batch = list(
            _concerned(move.to_version).filter(pk__gt=move.announced_to).select_related("account", "plan_version").order_by("pk")[:BATCH]
        )
        with transaction.atomic():
            for subscribed in batch:
                version = subscribed.plan_version
                if version is None or subscribed.cancel_at_period_end:
                    continue
                mails.queue(
                    account=subscribed.account,
                    kind=Mail.Kind.PRICE_CHANGE,
                    key=f"{move.pk}:{subscribed.pk}",
                    context={
                        "plan": move.to_version.plan.name,
                        "old_cents": (version.price_cents or 0) * subscribed.quantity,
                        "new_cents": (move.to_version.price_cents or 0) * subscribed.quantity,
                        "currency": move.to_version.currency,
                        "interval": move.to_version.interval,
                        "effective_at": move.effective_at,
                    },
                    now=now,
                )
            move.announced_to = batch[-1].pk if batch else None
            move.save(update_fields=["announced_to"])


def _move(move: PriceMove, subscribed: StripeSubscription, now: datetime) -> bool:
    """Changes the price at Stripe for the next renewal. The row that says so is written first, in one transaction with the request."""
    truth = stripe_api.subscription(subscribed.pk)
    price_id, to = stripe_prices.on_sale(move.to_version.stripe_price_setting), move.to_version
    price = stripe_api.price(price_id)
    if (price.amount, price.currency, price.interval, price.is_sold) != (to.price_cents, to.currency, to.interval, True):
        log.error("the price of a move is not what the catalog says", move=str(move), price=price_id)
        return False
    if truth.period[1] != subscribed.current_period_end or truth.items[0][0] != subscribed.price_id:
        return False  # it has changed meanwhile; its event is on the way
    address = f"/v1/subscriptions/{subscribed.pk}"
    if stripe_requests.under_way(changes=address, beside=KIND):
        return False  # what somebody has chosen comes first
    downgrade = stripe_subscriptions.coming(subscribed)  # what it keeps until the renewal it goes on keeping
    with transaction.atomic():
        assert subscribed.plan_version is not None
        PlanChange.objects.create(
            account=subscribed.account,
            subscription_id=subscribed.pk,
            from_version=downgrade.from_version if downgrade else subscribed.plan_version,
            from_price_id=downgrade.from_price_id if downgrade else subscribed.price_id,
            to_version=to,
            to_price_id=price_id,
            keeps_until=truth.period[1],
            actor=move.actor,
            created_at=now,
        )
        request = stripe_requests.ask(
            key=f"price_move:{subscribed.pk}:{to.pk}", kind=KIND, path=address, changes=address,
            params={"items": [{"id": truth.item_id, "price": price_id}], "proration_behavior": "none"}, account=subscribed.account, now=now,
        )  # fmt: skip
    stripe_requests.send(request, now=now)
    stripe_inbox.look_at(subscription=subscribed.pk, now=now)
    return True
