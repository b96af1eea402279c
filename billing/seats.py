"""Who is paid for: subscriptions follow the members of their accounts.

    of_account   what a team pays for, for its page
    follow       makes the subscriptions that come after one follow their members

A plan per member is paid for as many members as the team has, never fewer than one; a plan with a face for members is paid at the price
of the face that is due (:mod:`billing.tiers`). Plan and tier change at once; at Stripe the price or the number is changed with proration,
so that what is paid for is what was had. What is allowed and included per member counts the members that are paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import stripe
import structlog
from django.db import connection, transaction
from django.db.models import Count, Q

from accounts.models import Account
from billing import stripe_api, stripe_inbox, stripe_prices, stripe_requests, stripe_subscriptions, subscriptions, tiers
from billing.models import PlanChange, StripeCustomer, StripeSubscription, Subscription
from pricing.models import Plan, PlanVersion

KIND: Final = "seats"
BATCH: Final = 500
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seats:
    """``price_cents`` is of one member and interval. ``paid`` follows ``members`` within a minute or two."""

    plan: str
    members: int
    paid: int
    price_cents: int
    currency: str
    interval: str

    @property
    def total_cents(self) -> int:
        return self.price_cents * max(self.members, 1)


def of_account(*, account: Account, live: Subscription | None) -> Seats | None:
    """None where the ``live`` plan of the account is not paid per member, or by nobody because staff gave it."""
    version = live.plan_version if live else None
    if live is None or live.stripe_id is None or version is None or not version.per_seat or version.price_cents is None:
        return None
    return Seats(
        plan=version.plan.name,
        members=account.memberships.count(),
        paid=live.seats,
        price_cents=version.price_cents,
        currency=version.currency,
        interval=version.interval,
    )


def log_failed(account: str, error: Exception) -> None:
    log.error("subscription does not follow its members", account=account, exc_info=error)


def follow(
    *,
    after: str,
    now: datetime,
    limit: int = BATCH,
    given_up: Collection[str] = (),
    failed: Callable[[str, Exception], None] = log_failed,
) -> str | None:
    """Looks at the next subscriptions whose plan depends on members; the id of the last one, None at the end. Calls the network for those
    that are to be changed; what Stripe does not answer is sent again by the outbox or found at the next look.

    One that fails for any other reason stops no other: ``failed`` is told of it, by the public id of its account. Accounts in ``given_up``
    are left out.

    :raises django.db.DatabaseError: the database is gone.
    """
    member_plans = Plan.objects.exclude(member_plan="")
    is_face = Q(plan_version__plan__slug__in=member_plans.values("member_plan"))
    depends = Q(plan_version__per_seat=True) | ~Q(plan_version__plan__member_plan="") | is_face
    open_ones = StripeSubscription.objects.filter(depends, pk__gt=after, status__in=subscriptions.ENTITLED, account__closed_at=None)
    found = open_ones.select_related("account__product", "plan_version__plan").annotate(members=Count("account__memberships"))
    batch = list(found.exclude(account__public_id__in=given_up).order_by("pk")[:limit])
    for subscribed in batch:
        try:
            _follow(subscribed, subscribed.members, now)
        except (stripe_requests.Refused, stripe_requests.Unanswered, stripe.StripeError) as error:
            log.warning("subscription does not follow its members", subscription=subscribed.pk, why=str(error))
        except Exception as error:  # whatever it is, the others' seats do not wait for it
            if not connection.in_atomic_block and not connection.is_usable():
                raise
            failed(subscribed.account.public_id, error)
    return batch[-1].pk if batch else None


def _follow(subscribed: StripeSubscription, members: int, now: datetime) -> None:
    assert subscribed.plan_version is not None
    live = subscriptions.current(account_id=subscribed.account_id)
    kept = live.plan_version if live is not None and live.stripe_id == subscribed.pk else None
    due = tiers.version(account=subscribed.account, paid=subscribed.plan_version, kept=kept, now=now)
    if kept is not None and due.pk != kept.pk:
        _realign(subscribed.account, now)
    quantity = max(members, 1) if due.per_seat and subscribed.account.kind == Account.Kind.TEAM else 1
    price_id = _price(subscribed, due)
    if price_id is None or (price_id, quantity) == (subscribed.price_id, subscribed.quantity):
        return
    address = f"/v1/subscriptions/{subscribed.pk}"
    if stripe_requests.under_way(changes=address, beside=KIND):
        return  # what somebody has chosen comes first
    truth = stripe_api.subscription(subscribed.pk)
    if truth.items == [(price_id, quantity)]:
        return  # it was changed already, and its event is on the way
    item: dict[str, Any] = {"id": truth.item_id, "quantity": quantity}
    with transaction.atomic():
        if price_id != subscribed.price_id:
            item["price"] = price_id
            PlanChange.objects.create(
                account=subscribed.account,
                subscription_id=subscribed.pk,
                from_version=subscribed.plan_version,
                from_price_id=subscribed.price_id,
                to_version=due,
                to_price_id=price_id,
                keeps_until=truth.period[0],
                actor=subscriptions.SYSTEM,
                created_at=now,
            )
        request = stripe_requests.ask(
            key=f"seats:{subscribed.pk}:{price_id}:{quantity}:{subscribed.read_number}",
            kind=KIND,
            path=address,
            changes=address,
            params={"items": [item], "proration_behavior": "create_prorations"},
            account=subscribed.account,
            now=now,
        )
    stripe_requests.send(request, now=now)
    stripe_inbox.look_at(subscription=subscribed.pk, now=now)


def _price(subscribed: StripeSubscription, due: PlanVersion) -> str | None:
    """The price of the face that is due; what is paid now where that is its own."""
    assert subscribed.plan_version is not None
    return (
        subscribed.price_id if due.plan_id == subscribed.plan_version.plan_id else stripe_prices.on_sale(due.stripe_price_setting) or None
    )


def _realign(account: Account, now: datetime) -> None:
    """Puts the account on the plan that is due now, under its customer's lock."""
    with transaction.atomic():
        customer = StripeCustomer.objects.select_for_update(of=("self",)).select_related("account__product").get(account=account)
        stripe_subscriptions.align(customer=customer, now=now)
