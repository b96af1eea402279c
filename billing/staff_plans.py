"""Another plan for an account, put there by staff.

    choices   the plans that staff may put it on
    preview   what that would do, in sentences
    move      does it

Where Stripe collects, it is the change that the customer could make: up at once and prorated, down from the next period on. Where nobody
pays, a free plan counts at once, and one with a price is tried until a day, free and without its included credit. A plan with a price that
is paid outside of Stripe is agreed upon instead (:mod:`billing.agreements`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from django.db import IntegrityError, transaction
from django.db.models import Q

from accounts import acts
from accounts.models import Account, User
from billing import checkout, ledger, subscriptions
from billing.models import Schedule, Subscription
from pricing import catalog
from pricing.models import Plan, PlanVersion

LONGEST_TRIAL: Final = timedelta(days=90)


class NotPossible(Exception):
    """The account cannot be put on this plan now. The message says why, as people read it."""


def choices(*, account: Account, now: datetime) -> list[tuple[str, str]]:
    """Slugs and names of the plans that are on sale and whose price is not agreed upon, the highest first."""
    found = []
    for plan in Plan.objects.filter(product=account.product, available=True).order_by("-rank"):
        try:
            version = catalog.plan_version(product_id=account.product_id, slug=plan.slug, at=now).version
        except catalog.NotInCatalog:
            continue
        if version.price_cents is not None:
            found.append((plan.slug, plan.name))
    return found


def preview(*, account: Account, plan: str, until: datetime | None, now: datetime) -> list[str]:
    """:raises NotPossible: :raises checkout.Refusal: Stripe's side refuses, or does not answer. Calls the network."""
    live = _live(account)
    if live is None or live.stripe_id is None:
        version = _local(account, live, plan, until, now)
        if until is None:
            return [f"{version.plan.name} counts from now on. Nobody pays for it.", *_credit(version)]
        return [
            f"{version.plan.name} counts from now on and until {until:%Y-%m-%d %H:%M} UTC, free and without its included credit.",
            f"Then the account is on {account.product.default_plan}. Its customer is told by mail.",
        ]
    if until is not None:
        raise NotPossible("Stripe collects for this account: a plan is paid for, not tried until a day.")
    change = checkout.preview_change(account=account, plan=plan, now=now)
    each = f"{_money(change.price_cents, change.currency)} each {change.plan.interval}"
    match change.kind:
        case "upgrade":
            charged = _money(change.due_now_cents, change.currency)
            return [f"{change.plan.plan.name} counts at once, at {each}.", f"The customer’s card is charged {charged} now."]
        case "downgrade":
            return [f"{change.plan.plan.name} counts from {change.effective_at:%Y-%m-%d %H:%M} UTC, at {each}. Nothing is charged now."]
        case "cancel":
            return [f"The subscription ends on {change.effective_at:%Y-%m-%d %H:%M} UTC; then the account is on {change.plan.plan.name}."]
        case "keep":
            return [f"{change.plan.plan.name} goes on; the change or cancellation that was to come is undone."]
    raise NotPossible("The account is on this plan already, or about to be.")


def move(*, account: Account, plan: str, until: datetime | None, by: User, reason: str, now: datetime) -> None:
    """Its line in the audit log is written with the change, or where Stripe makes it, before Stripe is asked. Calls the network.

    :raises NotPossible: :raises checkout.Refusal: see :func:`preview`; nothing has changed, or Stripe has not answered yet.
    """
    live = _live(account)
    said = f"Plan {plan}{f' until {until:%Y-%m-%d %H:%M} UTC' if until else ''}: {reason}"
    if live is not None and live.stripe_id is not None:
        preview(account=account, plan=plan, until=until, now=now)
        acts.note(account=account, actor=by, what=said, now=now)
        checkout.change_plan(account=account, plan=plan, actor=by.email, now=now)
        return
    version = _local(account, live, plan, until, now)
    try:
        with transaction.atomic():
            subscriptions.end(account=account, now=now)
            if until is None:
                _end_schedule(account, by, f"Put on {version.plan.name}", now)
            subscriptions.start(account=account, plan=plan, now=now, trial_ends_at=until)
            acts.note(account=account, actor=by, what=said, now=now)
    except IntegrityError:
        raise NotPossible("Its plan was changed by somebody else just now. Look again.") from None


def _live(account: Account) -> Subscription | None:
    return Subscription.objects.filter(account=account).exclude(status=Subscription.Status.CANCELED).first()


def _local(account: Account, live: Subscription | None, plan: str, until: datetime | None, now: datetime) -> PlanVersion:
    """What an account that nobody pays for at Stripe is put on. :raises NotPossible:"""
    if account.closed_at is not None or account.kind == Account.Kind.GUEST:
        raise NotPossible("A closed account, and a guest, are on the plan that they have.")
    try:
        version = catalog.plan_version(product_id=account.product_id, slug=plan, at=now).version
    except catalog.NotInCatalog as error:
        raise NotPossible(str(error)) from None
    if version.price_cents is None:
        raise NotPossible("The price of this plan is agreed upon: agree terms instead.")
    if version.price_cents == 0 and until is not None:
        raise NotPossible("A free plan has no end: leave the day empty.")
    if version.price_cents and until is None:
        raise NotPossible("Nobody would pay for this plan: say until when it is tried, agree terms, or have the customer subscribe.")
    if until is not None and not now < until <= now + LONGEST_TRIAL:
        raise NotPossible(f"A plan is tried for {LONGEST_TRIAL.days} days at most.")
    if live is not None and live.plan_version.plan_id == version.plan_id and live.trial_ends_at == until:
        raise NotPossible("The account is on this plan already.")
    return version


def _end_schedule(account: Account, by: User, reason: str, now: datetime) -> None:
    """What the plan that is left grants by itself ends with it."""
    unit_id = account.product.unit_id
    running = Schedule.objects.filter(Q(ends_at=None) | Q(ends_at__gt=now), account=account, unit_id=unit_id).first()
    if running is not None:
        key = f"plan:{account.pk}:{running.source_key}:{now.isoformat()}"
        ledger.end_schedule(account_id=account.pk, unit_id=unit_id, ends_at=now, key=key, actor=by.email, reason=reason)


def _credit(version: PlanVersion) -> list[str]:
    return ["Its included credit is granted by the calendar."] if version.included_credit_nanos else []


def _money(cents: int, currency: str) -> str:
    return f"{cents // 100:,}.{cents % 100:02d} {currency.upper()}"
