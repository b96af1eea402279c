"""Subscribers with a history: rows as Stripe's readings leave them, at whatever time a test is about. Terms are the trigger's work."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from accounts.models import Account
from billing import ledger
from billing.models import StripeSubscription, Subscription
from pricing.models import Plan, PlanVersion, Product
from tests.factories import START, make_product

MONTH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)


def day(number: int, month: int = 3) -> datetime:
    return datetime(2026, month, number, 12, tzinfo=UTC)


def plan(product: Product, cents: int | None, **terms: Any) -> PlanVersion:
    slug = f"plan-{secrets.token_hex(4)}"
    made = Plan.objects.create(product=product, slug=slug, name=terms.pop("name", slug.title()), rank=5)
    return PlanVersion.objects.create(plan=made, valid_from=START, price_cents=cents, rate_card="standard", **terms)


def account(product: Product | None = None, *, at: datetime = START, **fields: Any) -> Account:
    """An account that signed up ``at``, with a ledger and without a plan."""
    made = Account.objects.create(product=product or make_product(), external_id=secrets.token_hex(8), name="Ada", created_at=at, **fields)
    ledger.open_account(account_id=made.pk)
    return made


def subscribe(who: Account, version: PlanVersion, *, at: datetime, discount: dict[str, Any] | None = None, **fields: Any) -> Subscription:
    """A subscription that is paid at Stripe, from ``at`` on."""
    period = {"anchor_at": at, "current_period_start": at, "current_period_end": at.replace(year=at.year + 1), "started_at": at}
    paid = StripeSubscription.objects.create(
        id=f"sub_{secrets.token_hex(8)}", account=who, status="active", price_id="price_1", plan_version=version, read_number=1,
        **period, **discount or {},
    )  # fmt: skip
    return Subscription.objects.create(account=who, plan_version=version, stripe=paid, **period, **fields)


def change(subscription: Subscription, *, at: datetime, **fields: Any) -> None:
    """Changes its row, as of ``at``."""
    with ledger.clock(at=at):
        Subscription.objects.filter(pk=subscription.pk).update(**fields)


def end(subscription: Subscription, *, at: datetime) -> None:
    Subscription.objects.filter(pk=subscription.pk).update(status="canceled", ended_at=at)
