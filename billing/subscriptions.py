"""Which plan an account is on.

    start     puts an account on a plan
    current   the subscription that counts now
    allowed   what its plan allows, and the rate card that prices its usage; allowed_many for several accounts at once

A plan version is kept for the whole subscription: a later version is for later subscribers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction

from accounts.models import Account
from billing import ledger, periods
from billing.models import Subscription
from pricing import catalog
from pricing.models import PlanVersion, Product

#: In any other status the plan's allowances do not count.
ENTITLED = (Subscription.Status.ACTIVE, Subscription.Status.TRIALING, Subscription.Status.PAST_DUE)
MONTHS = {PlanVersion.Interval.MONTH: 1, PlanVersion.Interval.YEAR: 12}
SYSTEM = "tollgate"


@dataclass(frozen=True, slots=True)
class Allowed:
    """What an account may do: the terms of its plan, and the slug of the rate card that prices its usage."""

    plan: catalog.PlanTerms
    rate_card: str
    subscription_id: int
    anchor_at: datetime
    period_start: datetime
    period_end: datetime

    def period_at(self, at: datetime) -> tuple[datetime, datetime]:
        """The billing period that contains ``at``, also while the job that moves the subscription on is late."""
        return running(period=(self.period_start, self.period_end), anchor_at=self.anchor_at, version=self.plan.version, at=at)


def start(*, account: Account, plan: str, now: datetime) -> Subscription:
    """Puts ``account`` on the version of ``plan`` that is sold at ``now``. A free plan's included credit is granted by itself from now on.

    :raises catalog.NotInCatalog: the product has no such plan, or none yet.
    :raises IntegrityError: the account has a live subscription.
    """
    terms = catalog.plan_version(product_id=account.product_id, slug=plan, at=now)
    version = terms.version
    period_start, period_end = periods.period_at(now, now, months=MONTHS[PlanVersion.Interval(version.interval)])
    with transaction.atomic():
        subscription = Subscription.objects.create(
            account=account,
            plan_version=version,
            anchor_at=now,
            started_at=now,
            current_period_start=period_start,
            current_period_end=period_end,
        )
        if version.price_cents == 0 and version.included_credit_nanos:
            schedule_included_credit(subscription=subscription)
    return subscription


def schedule_included_credit(*, subscription: Subscription) -> ledger.Operation:
    """Has the ledger grant the plan's included credit at the anchor and in each period after it, by itself.

    It lives for its period; what is left of it then rolls over as the plan says. For plans without a price: paid ones are granted for each
    invoice that was paid.
    """
    account, version = subscription.account, subscription.plan_version
    return ledger.schedule(
        account_id=account.pk,
        unit_id=account.product.unit_id,
        amount_nanos=version.included_credit_nanos,
        source="monthly",
        source_key=str(subscription.pk),
        anchor_at=subscription.anchor_at,
        months=MONTHS[PlanVersion.Interval(version.interval)],
        priority=priority(product=account.product, source="monthly"),
        rollover_periods=version.rollover_periods,
        rollover_cap_nanos=version.rollover_cap_nanos,
        rollover_priority=priority(product=account.product, source="rollover"),
        key=f"monthly:{subscription.pk}",
        actor=SYSTEM,
        reason=f"Included in {version.plan.name}",
    )


def grant_welcome_credit(*, account: Account) -> ledger.Operation:
    """Grants the product's welcome credit, once for ever."""
    return ledger.grant(
        account_id=account.pk,
        unit_id=account.product.unit_id,
        amount_nanos=account.product.welcome_credit_nanos,
        source="welcome",
        source_key="welcome",
        key="welcome",
        actor=SYSTEM,
        reason="Welcome credit",
        priority=priority(product=account.product, source="welcome"),
    )


def running(*, period: tuple[datetime, datetime], anchor_at: datetime, version: PlanVersion, at: datetime) -> tuple[datetime, datetime]:
    """The billing period that contains ``at``: ``period`` as it is stored, or where that is over the one that follows from the anchor."""
    start, end = period
    return period if start <= at < end else periods.period_at(anchor_at, at, months=MONTHS[PlanVersion.Interval(version.interval)])


def priority(*, product: Product, source: str) -> int:
    """Where a grant from ``source`` stands in the product's burn order; a source that it does not name burns before all that it does."""
    return 10 * (product.burn_order.index(source) + 1) if source in product.burn_order else 0


def current(*, account_id: int) -> Subscription | None:
    """The account's live subscription; None where it has none."""
    live = Subscription.objects.exclude(status=Subscription.Status.CANCELED)
    return live.select_related("account", "plan_version__plan").filter(account_id=account_id).first()


def allowed(*, account: Account) -> Allowed | None:
    """What the account's plan allows; None where no subscription counts."""
    return allowed_many(accounts=[account]).get(account.pk)


def allowed_many(*, accounts: Collection[Account]) -> dict[int, Allowed]:
    """What their plans allow, by account id, in one query; an account that no subscription counts for is not in it."""
    cards = {account.pk: account.rate_card for account in accounts}
    found: dict[int, Allowed] = {}
    rows = Subscription.objects.filter(account_id__in=cards, status__in=ENTITLED)
    for account_id, id_, plan_version_id, anchor_at, start, end in rows.values_list(
        "account_id", "id", "plan_version_id", "anchor_at", "current_period_start", "current_period_end"
    ):
        plan = catalog.plan_version_by_id(plan_version_id=plan_version_id)
        found[account_id] = Allowed(plan, cards[account_id] or plan.version.rate_card, id_, anchor_at, start, end)
    return found
