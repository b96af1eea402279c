"""What a subscription at Stripe means for its account.

    apply    makes our plan what Stripe's subscriptions say
    align    does so again, where it was not the subscription that changed but who belongs to a team
    counts   the plan version that a subscription stands for
    coming   the move to a lower plan that it waits for

When a plan that is not paid is to be warned of and ended is written down here; :mod:`billing.dunning` does it.


=================================  ==================================================================
status at Stripe                   what counts
=================================  ==================================================================
``active``                         the plan
``trialing``                       the plan; its included credit comes with the first paid invoice
``past_due``                       the plan, for the product's days of grace from the first payment
                                   that failed; then the default plan. No new included credit
``incomplete``                     nothing yet: the account stays on the plan it has
``unpaid``, ``paused``             the default plan, until it is paid or resumed
``canceled``,                      the default plan, for ever: neither ever changes again
``incomplete_expired``
=================================  ==================================================================

Of several subscriptions that count, the plan of the highest rank is the account's, then the youngest. A price that is no plan's changes
nothing and is kept for staff. A lower plan that was chosen in the middle of a period is at Stripe at once, for the next invoice; the plan
that is paid for counts until then (:class:`billing.models.PlanChange`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import Q

from accounts import mails
from accounts.models import Account, Mail
from billing import ledger, stripe_api, stripe_prices, subscriptions, tiers
from billing.models import Checkout, PlanChange, Schedule, StripeCustomer, StripeSubscription, Subscription
from pricing.models import Plan, PlanVersion

ENDED = ("canceled", "incomplete_expired")
#: So long before the end of the grace the customer is told, where it is longer than that.
NOTICE = timedelta(days=2)


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
            agreed = stripe_prices.agreed(product=account.product, price_id=price)
            told = _before_change(truth, price) or _changed_to(truth, price) or agreed
            if told is None and version is None:
                told = _sold(truth, account, mapped)
            # Unless somebody chose another one, a version is kept for the whole subscription.
            if told is not None or version is None or version.plan_id != mapped.plan_id:
                version = told or mapped
            price_id, quantity = price, count
            break
    past_due_since = (truth.past_due_since or truth.period[0]) if truth.status == "past_due" else None
    grace_ends_at = None if past_due_since is None else past_due_since + timedelta(days=account.product.grace_days)
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
            "trial_ends_at": truth.trial_ends_at or (known.trial_ends_at if known else None),
            "ended_at": truth.ended_at,
            "past_due_since": past_due_since,
            "grace_ends_at": grace_ends_at,
            "next_step_at": _next_step(known, past_due_since, grace_ends_at, now),
            "discount_ppm": truth.discount.ppm,
            "discount_cents": truth.discount.cents,
            "discount_ends_at": truth.discount.ends_at,
            "read_number": read_number,
        },
    )
    align(customer=customer, now=now, unpaid=truth.unpaid)
    return "" if mapped is not None else f"The price {price_id} of {truth.id} is of no plan: its plan is as it was."


def counts(subscribed: StripeSubscription) -> PlanVersion | None:
    """The plan version that a subscription stands for: its price's, or until the period is over the one that is paid for."""
    change = waiting(subscribed)
    return change.from_version if change else subscribed.plan_version


def coming(subscribed: StripeSubscription) -> PlanChange | None:
    """The move to a lower plan that the customer chose and that waits for the end of the subscription's period."""
    change = waiting(subscribed)
    return change if change and change.to_version.plan_id != change.from_version.plan_id else None


def waiting(subscribed: StripeSubscription) -> PlanChange | None:
    """The same, or another price of the same plan (:mod:`billing.price_moves`)."""
    change = _last_change(subscribed.pk, subscribed.current_period_start)
    return change if change and change.to_price_id == subscribed.price_id else None


def _last_change(subscription_id: str, period_start: datetime) -> PlanChange | None:
    """The last downgrade that was asked for in the period that began at ``period_start``."""
    changes = PlanChange.objects.select_related("from_version__plan", "to_version__plan").order_by("-pk")
    return changes.filter(subscription_id=subscription_id, keeps_until__gt=period_start).first()


def _before_change(truth: stripe_api.Subscription, price_id: str) -> PlanVersion | None:
    """The version that the subscription had at this price before a downgrade that was undone."""
    change = _last_change(truth.id, truth.period[0])
    return change.from_version if change and change.from_price_id == price_id else None


def _changed_to(truth: stripe_api.Subscription, price_id: str) -> PlanVersion | None:
    """The version that the subscription was last moved to at this price."""
    changes = PlanChange.objects.select_related("to_version__plan").order_by("-pk")
    change = changes.filter(subscription_id=truth.id, to_price_id=price_id).first()
    return change.to_version if change else None


def _sold(truth: stripe_api.Subscription, account: Account, mapped: PlanVersion) -> PlanVersion | None:
    """The version that was sold at checkout, where it is of the plan that is subscribed to: Stripe's clock has whole seconds only, and who
    opened the page before there was a new version pays what it showed."""
    visit = Checkout.objects.select_related("plan_version__plan").filter(public_id=truth.checkout, account=account).first()
    bought = visit.plan_version if visit else None
    return bought if bought is not None and bought.plan_id == mapped.plan_id else None


def align(*, customer: StripeCustomer, now: datetime, unpaid: bool = False) -> None:
    """Puts the account on the best plan that its subscriptions at Stripe pay for, or where none does any longer on the default plan;
    ``unpaid`` tells the customer why.

    The caller holds the customer's lock, in a transaction.
    """
    account = customer.account
    paid = StripeSubscription.objects.filter(account=account, status__in=subscriptions.ENTITLED, plan_version__isnull=False)
    paid = paid.filter(Q(grace_ends_at=None) | Q(grace_ends_at__gt=now))
    standing = [(version, each) for each in paid.select_related("plan_version__plan") if (version := counts(each)) is not None]
    paid_version, best = max(standing, key=lambda pair: (pair[0].plan.rank, pair[1].started_at, pair[1].pk), default=(None, None))
    live = subscriptions.current(account_id=account.pk)
    before = live and _seen(live)
    if best is None or paid_version is None:
        if live is not None and live.stripe_id is not None:
            _end(customer, live, StripeSubscription.objects.get(pk=live.stripe_id), now, unpaid=unpaid)
        return
    kept = live.plan_version if live is not None and live.stripe_id == best.pk else None
    version = tiers.version(account=account, paid=paid_version, kept=kept, now=now)
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
    live.grace_ends_at = best.grace_ends_at
    begins = live.pk is None
    live.save()
    if begins:
        subscriptions.cap_rollovers(subscription=live)
    if _seen(live) != before:
        subscriptions.announce(subscription=live, now=now)


def _seen(live: Subscription) -> tuple[object, ...]:
    """What client apps are told of."""
    return live.pk, live.status, live.seats, live.cancel_at_period_end, live.current_period_start, live.current_period_end


def default_plan(customer: StripeCustomer) -> str:
    """The name of what the account goes to when nothing is paid."""
    product = customer.account.product
    return Plan.objects.get(product=product, slug=product.default_plan).name


def _next_step(
    known: StripeSubscription | None, past_due_since: datetime | None, grace_ends_at: datetime | None, now: datetime
) -> datetime | None:
    """A warning in good time, then the end; of the same grace each once."""
    if past_due_since is None or grace_ends_at is None or grace_ends_at <= now:
        return None
    if known is not None and known.grace_ends_at == grace_ends_at:
        return known.next_step_at
    return max(past_due_since, grace_ends_at - NOTICE) if grace_ends_at - past_due_since > NOTICE else grace_ends_at


def _end(customer: StripeCustomer, live: Subscription, lost: StripeSubscription, now: datetime, *, unpaid: bool) -> None:
    """The plan is over; the default plan begins now, or where a grace is over when that was, however late we are."""
    account = customer.account
    lapsed_at = None if lost.grace_ends_at is None else max(lost.grace_ends_at, live.started_at)
    ended_at = lapsed_at or lost.ended_at or now
    subscriptions.end(account=account, now=ended_at)
    subscriptions.start(account=account, plan=account.product.default_plan, now=lapsed_at or now)
    mails.queue(
        account=account,
        kind=Mail.Kind.PLAN_ENDED,
        key=f"{lost.pk}:{ended_at.isoformat()}",
        context={"plan": live.plan_version.plan.name, "ended_at": ended_at, "next_plan": default_plan(customer), "unpaid": unpaid},
        now=now,
    )


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
