"""What opening an account gives it: a ledger, the default plan, the credits that come with both."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.db import IntegrityError, transaction

from accounts.models import WebhookEvent
from accounts.tests.webhook_page import as_documented
from billing import subscriptions
from billing.models import Grant, Subscription
from pricing.models import PlanVersion
from tests.factories import NANOS, make_account, make_product

pytestmark = pytest.mark.django_db


def test_new_account_is_on_the_default_plan_with_its_welcome_credit_once() -> None:
    product = make_product(welcome_credit_nanos=10 * NANOS)
    account = make_account(product, external_id="ada")
    make_account(product, external_id="ada")
    subscription = Subscription.objects.get(account=account)
    assert (subscription.plan_version.plan.slug, subscription.status) == ("free", "active")
    assert list(Grant.objects.filter(account=account).values_list("source", "granted", "cash_nanos")) == [("welcome", 10 * NANOS, 0)]


def test_client_apps_hear_of_an_accounts_first_plan_and_of_no_guests() -> None:
    product = make_product(guest_plan="free")
    account = make_account(product)
    subscription = Subscription.objects.get(account=account)
    event = WebhookEvent.objects.get(account=account)
    assert (event.kind, as_documented(event.kind, event.data)) == ("subscription.changed", True)
    assert event.data == {
        "plan": "free",
        "status": "active",
        "period_start": subscription.current_period_start.isoformat(),
        "period_end": subscription.current_period_end.isoformat(),
        "cancel_at_period_end": False,
        "seats": 1,
    }
    guest = make_account(product, kind="guest")
    assert not WebhookEvent.objects.filter(account=guest).exists()


def test_included_credit_of_a_free_plan_is_granted_for_the_period_and_expires_with_it() -> None:
    product = make_product(burn_order=["monthly", "purchased"])
    version = PlanVersion.objects.get(plan__product=product)
    paid = PlanVersion.objects.create(
        plan=version.plan,
        version=2,
        valid_from=datetime(2026, 2, 1, tzinfo=UTC),
        price_cents=0,
        rate_card="standard",
        included_credit_nanos=5 * NANOS,
    )
    account = make_account(product)
    subscription = Subscription.objects.get(account=account)
    assert subscription.plan_version == paid
    grant = Grant.objects.get(account=account)
    assert (grant.source, grant.granted, grant.expires_at, grant.priority) == ("monthly", 5 * NANOS, subscription.current_period_end, 10)
    assert subscriptions.schedule_included_credit(subscription=subscription).replayed


def test_paid_plan_grants_nothing_before_it_is_paid() -> None:
    product = make_product()
    version = PlanVersion.objects.get(plan__product=product)
    PlanVersion.objects.create(
        plan=version.plan,
        version=2,
        valid_from=datetime(2026, 2, 1, tzinfo=UTC),
        price_cents=2_500,
        rate_card="standard",
        included_credit_nanos=NANOS,
    )
    assert not Grant.objects.filter(account=make_account(product)).exists()


def test_account_has_one_live_subscription() -> None:
    account = make_account()
    with pytest.raises(IntegrityError), transaction.atomic():
        subscriptions.start(account=account, plan="free", now=datetime.now(UTC))


def test_account_without_a_live_subscription_is_allowed_nothing() -> None:
    account = make_account()
    Subscription.objects.filter(account=account).update(status="canceled", ended_at=datetime.now(UTC))
    assert subscriptions.allowed(account=account) is None
