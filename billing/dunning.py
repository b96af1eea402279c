"""What happens by itself to a plan that is not paid. One verb, :func:`take_steps`: it warns of the end and ends it, each once and in time.

:mod:`billing.stripe_subscriptions` says when that is, and puts an end to it when the plan is paid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from django.db import transaction

from accounts import mails
from accounts.models import Mail
from billing import stripe_subscriptions, subscriptions
from billing.models import StripeCustomer, StripeSubscription

MAX_STEPS = 1_000


def take_steps(*, now: datetime, given_up: Collection[str] = (), failed: Callable[[str, Exception], None]) -> int:
    """Takes the steps that are due, each in a transaction of its own that it opens; returns how many. One that fails stays due, ``failed``
    is told of its subscription's id, and the others do not wait for it; subscriptions in ``given_up`` are left out."""
    due = StripeSubscription.objects.filter(next_step_at__lte=now).exclude(pk__in=given_up).order_by("next_step_at", "pk")
    taken = 0
    for subscription_id, account_id in due.values_list("pk", "account_id")[:MAX_STEPS]:
        try:
            taken += _take_step(subscription_id, account_id, now)
        except Exception as error:  # noqa: BLE001 (whatever it is, the next customer's plan does not wait for it)
            failed(subscription_id, error)
    return taken


@transaction.atomic
def _take_step(subscription_id: str, account_id: int, now: datetime) -> bool:
    """The step that is due now; False where an event or another worker was faster."""
    customers = StripeCustomer.objects.select_for_update(of=("self",)).select_related("account__product")
    customer = customers.get(account_id=account_id)
    subscription = StripeSubscription.objects.filter(pk=subscription_id, next_step_at__lte=now).first()
    if subscription is None or subscription.grace_ends_at is None:
        return False
    if now < subscription.grace_ends_at:
        _warn(customer, subscription, now)
        subscription.next_step_at = subscription.grace_ends_at
    else:
        stripe_subscriptions.align(customer=customer, now=now, unpaid=True)
        subscription.next_step_at = None
    subscription.save(update_fields=["next_step_at"])
    return True


def _warn(customer: StripeCustomer, subscription: StripeSubscription, now: datetime) -> None:
    live = subscriptions.current(account_id=customer.account_id)
    if live is None or live.stripe_id != subscription.pk or subscription.grace_ends_at is None:
        return  # the account does not live on this plan
    ends_at = subscription.grace_ends_at
    mails.queue(
        account=customer.account,
        kind=Mail.Kind.GRACE_ENDING,
        key=f"{subscription.pk}:{ends_at.isoformat()}",
        context={"plan": live.plan_version.plan.name, "ends_at": ends_at, "next_plan": stripe_subscriptions.default_plan(customer)},
        now=now,
        useless_at=ends_at,
    )
