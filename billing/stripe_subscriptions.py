"""What a subscription at Stripe means for its account.

    apply  makes our plan what Stripe's subscriptions say
    align  does so again, where it was not the subscription that changed but who belongs to a team


=================================  ==================================================================
status at Stripe                   what counts
=================================  ==================================================================
``active``                         the plan
``trialing``                       the plan; its included credit comes with the first paid invoice
``past_due``                       the plan, while Stripe tries the card again; no new included credit
``incomplete``                     nothing yet: the account stays on the plan it has
``unpaid``, ``paused``             the default plan, until it is paid or resumed
``canceled``,                      the default plan, for ever: neither ever changes again
``incomplete_expired``
=================================  ==================================================================

Of several subscriptions that count, the plan of the highest rank is the account's, then the youngest. A price that is no plan's changes
nothing and is kept for staff.
"""

from __future__ import annotations

from datetime import datetime

from django.db.models import Q

from billing import ledger, stripe_api, stripe_prices, subscriptions, tiers
from billing.models import Schedule, StripeCustomer, StripeSubscription, Subscription

ENDED = ("canceled", "incomplete_expired")


def apply(*, truth: stripe_api.Subscription, customer: StripeCustomer, read_number: int, now: datetime) -> str:
    """Takes a subscription over as it was read; what was read before what is known already changes nothing. The caller holds the
    customer's lock, in a transaction.

    :return: why staff should look at it; empty where they need not.
    """
    account = customer.account
    known = StripeSubscription.objects.select_related("plan_version").filter(pk=truth.id).first()
    if known is not None and (known.account_id != account.pk or known.status in ENDED or known.read_number >= read_number):
        return ""
    version = known.plan_version if known is not None else None
    price_id, quantity = truth.items[0]
    mapped = None
    for price, count in truth.items:
        mapped = stripe_prices.plan_version(product=account.product, price_id=price, at=truth.period[0])
        if mapped is not None:
            if version is None or version.plan_id != mapped.plan_id:  # else a version is kept for the whole subscription
                version = mapped
            price_id, quantity = price, count
            break
    StripeSubscription.objects.update_or_create(
        pk=truth.id,
        defaults={
            "account": account,
            "status": truth.status,
            "price_id": price_id,
            "quantity": quantity,
            "plan_version": version,
            "anchor_at": truth.anchor_at,
            "current_period_start": truth.period[0],
            "current_period_end": truth.period[1],
            "cancel_at_period_end": truth.cancel_at_period_end,
            "started_at": truth.started_at,
            "ended_at": truth.ended_at,
            "read_number": read_number,
        },
    )
    align(customer=customer, now=now)
    return "" if mapped is not None else f"The price {price_id} of {truth.id} is of no plan: its plan is as it was."


def align(*, customer: StripeCustomer, now: datetime) -> None:
    """Puts the account on the best plan that its subscriptions at Stripe pay for, or where none does any longer on the default plan.

    The caller holds the customer's lock, in a transaction.
    """
    account = customer.account
    paid = StripeSubscription.objects.filter(account=account, status__in=subscriptions.ENTITLED, plan_version__isnull=False)
    best = paid.select_related("plan_version__plan").order_by("-plan_version__plan__rank", "-started_at", "-pk").first()
    live = subscriptions.current(account_id=account.pk)
    if best is None:
        if live is not None and live.stripe_id is not None:
            ended = StripeSubscription.objects.get(pk=live.stripe_id).ended_at or now
            subscriptions.end(account=account, now=ended)
            subscriptions.start(account=account, plan=account.product.default_plan, now=now)
        return
    assert best.plan_version is not None
    kept = live.plan_version if live is not None and live.stripe_id == best.pk else None
    version = tiers.version(account=account, paid=best.plan_version, kept=kept, now=now)
    if live is None or (live.stripe_id, live.plan_version_id) != (best.pk, version.pk):
        subscriptions.end(account=account, now=now)
        _end_schedule(customer, best, now)
        since = now if live is not None and live.stripe_id == best.pk else best.started_at
        live = Subscription(account=account, plan_version=version, stripe=best, started_at=since)
    live.status = best.status
    live.anchor_at = best.anchor_at
    live.current_period_start = best.current_period_start
    live.current_period_end = best.current_period_end
    live.cancel_at_period_end = best.cancel_at_period_end
    live.seats = max(best.quantity, 1) if version.per_seat else 1
    live.save()


def _end_schedule(customer: StripeCustomer, best: StripeSubscription, now: datetime) -> None:
    """The plan that was left grants nothing by itself any longer."""
    account = customer.account
    unit_id = account.product.unit_id
    running = Schedule.objects.filter(Q(ends_at=None) | Q(ends_at__gt=now), account=account, unit_id=unit_id).first()
    if running is not None:
        ledger.end_schedule(
            account_id=account.pk,
            unit_id=unit_id,
            ends_at=now,
            key=f"{best.pk}:{running.source_key}",
            actor="stripe",
            reason=f"{best.pk} pays for {best.plan_version}",
        )
