"""Changes of plan on the double: up at once and prorated, down at the end of the period, cancelled and resumed, in any order of events."""

from __future__ import annotations

import random
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from accounts.models import Account
from billing import checkout, stripe_api, stripe_requests, subscriptions
from billing.models import Grant, PlanChange, StripeEvent, StripeSubscription, Subscription
from billing.tests.selling import Shop
from pricing import catalog
from pricing.models import PlanVersion
from tests.factories import NANOS


def plan_of(account: Account) -> str:
    live = subscriptions.current(account_id=account.pk)
    assert live is not None
    return str(live.plan_version.plan.slug)


def on_plan(shop: Shop, plan: str) -> Account:
    account = shop.account()
    shop.pay(shop.subscribe(account, plan))
    assert shop.settle() == set()
    assert plan_of(account) == plan
    return account


def change(account: Account, plan: str) -> checkout.Change:
    return checkout.change_plan(account=account, plan=plan, actor="test", now=timezone.now())


def paid(shop: Shop, account: Account) -> list[int]:
    """What the account's invoices asked for, the oldest first."""
    invoices = shop.client.v1.invoices.list({"customer": account.stripe_customer.pk, "limit": 100})
    return [invoice.amount_paid for invoice in invoices.data][::-1]


def test_an_upgrade_is_charged_at_once_for_the_rest_of_the_period_and_counts_at_once(shop: Shop) -> None:
    account = on_plan(shop, "core")
    preview = checkout.preview_change(account=account, plan="pro", now=timezone.now())
    assert (preview.kind, preview.price_cents) == ("upgrade", 3_000)
    assert 1_990 <= preview.due_now_cents <= 2_000
    assert change(account, "pro").kind == "upgrade"
    assert plan_of(account) == "pro"
    assert shop.settle() == set()
    assert plan_of(account) == "pro"
    assert paid(shop, account) == [1_000, preview.due_now_cents]
    assert change(account, "pro").kind == "none"
    assert paid(shop, account) == [1_000, preview.due_now_cents]


def test_a_downgrade_keeps_the_plan_until_the_period_ends_and_then_costs_the_lower_price(shop: Shop) -> None:
    account = on_plan(shop, "pro")
    assert checkout.preview_change(account=account, plan="core", now=timezone.now()).kind == "downgrade"
    done = change(account, "core")
    assert (done.kind, done.due_now_cents, done.price_cents) == ("downgrade", 0, 1_000)
    assert plan_of(account) == "pro"
    assert shop.settle() == set()
    assert plan_of(account) == "pro"
    coming = checkout.coming_change(account=account)
    assert coming is not None
    assert (coming.to_version.plan.slug, coming.keeps_until) == ("core", done.effective_at)
    shop.client.advance(days=32)
    assert shop.settle() == set()
    assert plan_of(account) == "core"
    assert paid(shop, account) == [3_000, 1_000]
    granted = Grant.objects.filter(account=account).order_by("pk").values_list("granted", flat=True)
    assert list(granted) == [40 * NANOS, 10 * NANOS]
    assert checkout.coming_change(account=account) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_downgrade_ends_the_same_whatever_order_its_events_come_in(shop: Shop, seed: int) -> None:
    account = on_plan(shop, "pro")
    shop.client.control("POST", "/settings", webhooks_paused=True)
    change(account, "core")
    shop.client.advance(days=32)
    shop.client.control("POST", "/settings", webhooks_paused=False)
    assert shop.settle() == set()
    events = list(StripeEvent.objects.filter(endpoint="/api/v1/billing/webhook"))
    order = random.Random(seed)
    for _ in range(2):
        order.shuffle(events)
        for place, event in enumerate(events):
            due_at = timezone.now() - timedelta(seconds=len(events) - place)
            StripeEvent.objects.filter(pk=event.pk).update(state="pending", done_at=None, attempts=0, next_attempt_at=due_at)
        assert shop.settle() == set()
        assert plan_of(account) == "core"
    assert sorted(Grant.objects.filter(account=account).values_list("granted", flat=True)) == [10 * NANOS, 40 * NANOS]


def test_a_later_upgrade_undoes_the_downgrade_and_prorates_from_what_was_paid(shop: Shop) -> None:
    account = on_plan(shop, "pro")
    change(account, "core")
    assert change(account, "max").kind == "upgrade"
    assert plan_of(account) == "max"
    assert shop.settle() == set()
    assert plan_of(account) == "max"
    [first, second] = paid(shop, account)
    assert first == 3_000
    assert 5_980 <= second <= 6_000
    assert checkout.coming_change(account=account) is None


def test_the_plan_that_was_left_is_kept_when_it_is_chosen_again(shop: Shop) -> None:
    account = on_plan(shop, "pro")
    before = Subscription.objects.get(account=account, status="active")
    change(account, "core")
    assert change(account, "pro").kind == "keep"
    assert shop.settle() == set()
    assert Subscription.objects.get(account=account, status="active").pk == before.pk
    shop.client.advance(days=32)
    assert shop.settle() == set()
    assert (plan_of(account), paid(shop, account)) == ("pro", [3_000, 3_000])


def test_a_cancellation_undoes_the_downgrade_and_comes_at_the_end_of_the_period(shop: Shop) -> None:
    account = on_plan(shop, "pro")
    change(account, "core")
    live = checkout.cancel(account=account, actor="test", now=timezone.now())
    assert live is not None
    assert (live.plan_version.plan.slug, live.cancel_at_period_end) == ("pro", True)
    live = checkout.resume(account=account, actor="test", now=timezone.now())
    assert live is not None
    assert (live.plan_version.plan.slug, live.cancel_at_period_end) == ("pro", False)
    assert checkout.coming_change(account=account) is None
    assert change(account, "free").kind == "cancel"
    assert plan_of(account) == "pro"
    shop.client.advance(days=32)
    assert shop.settle() == set()
    assert (plan_of(account), paid(shop, account)) == ("free", [3_000])


def test_a_declined_upgrade_changes_nothing(shop: Shop) -> None:
    account = on_plan(shop, "core")
    customer = account.stripe_customer.pk
    shop.client.use_card(customer, "pm_card_chargeCustomerFail")
    live = StripeSubscription.objects.get(account=account)
    card = shop.client.v1.payment_methods.list({"customer": customer}).data[0].id
    shop.client.v1.subscriptions.update(live.pk, {"default_payment_method": card})
    with pytest.raises(checkout.Declined):
        change(account, "pro")
    assert shop.settle() == set()
    assert plan_of(account) == "core"
    assert stripe_api.subscription(live.pk).items[0][0] == shop.prices["core"]


def test_a_plan_that_is_paid_by_the_year_is_not_a_downgrade_in_the_middle_of_a_month(shop: Shop) -> None:
    shop.plan("basic", 5_000, 10, rank=1, interval="year")
    account = on_plan(shop, "pro")
    with pytest.raises(checkout.NotPossible, match="cancel, and subscribe"):
        change(account, "basic")
    assert PlanChange.objects.filter(account=account).count() == 0


def decline(shop: Shop, account: Account) -> None:
    """Every charge of the account's subscription is declined from now on."""
    customer = account.stripe_customer.pk
    shop.client.use_card(customer, "pm_card_chargeCustomerFail")
    card = shop.client.v1.payment_methods.list({"customer": customer}).data[0].id
    shop.client.v1.subscriptions.update(StripeSubscription.objects.get(account=account).pk, {"default_payment_method": card})


def version_of(account: Account) -> int:
    live = subscriptions.current(account_id=account.pk)
    assert live is not None
    return int(live.plan_version.version)


def granted(account: Account) -> list[int]:
    return [lot.granted // NANOS for lot in Grant.objects.defer("expires_at").filter(account=account).order_by("pk")]


def test_an_upgrade_is_to_the_terms_that_are_on_sale_though_the_period_began_under_others_at_the_same_price(shop: Shop) -> None:
    account = on_plan(shop, "core")
    time.sleep(1.1)  # Stripe's times are whole seconds
    earlier = PlanVersion.objects.get(plan__product=shop.product, plan__slug="pro")
    PlanVersion.objects.create(
        plan=earlier.plan, version=2, valid_from=timezone.now(), rate_card="standard", price_cents=earlier.price_cents,
        included_credit_nanos=60 * NANOS, stripe_price_setting=earlier.stripe_price_setting,
    )  # fmt: skip
    catalog.clear()
    assert change(account, "pro").kind == "upgrade"
    assert version_of(account) == 2
    shop.client.advance(days=32)
    assert shop.settle() == set()
    assert (version_of(account), granted(account)) == (2, [10, 60])


def test_a_declined_upgrade_leaves_the_downgrade_to_come_as_it_was(shop: Shop) -> None:
    account = on_plan(shop, "pro")
    change(account, "core")
    decline(shop, account)
    with pytest.raises(checkout.Declined):
        change(account, "max")
    assert shop.settle() == set()
    coming = checkout.coming_change(account=account)
    assert coming is not None
    assert (plan_of(account), coming.to_version.plan.slug) == ("pro", "core")
    live = StripeSubscription.objects.get(account=account)
    assert stripe_api.subscription(live.pk).items[0][0] == shop.prices["core"]


def test_a_preview_while_a_downgrade_waits_counts_from_what_was_paid(shop: Shop) -> None:
    account = on_plan(shop, "pro")
    change(account, "core")
    due = checkout.preview_change(account=account, plan="max", now=timezone.now()).due_now_cents
    change(account, "max")
    assert abs(due - paid(shop, account)[-1]) <= 1  # a second may have passed


@pytest.mark.failure(74)
def test_a_downgrade_that_stripe_hears_of_after_the_renewal_keeps_what_that_has_paid_for(shop: Shop) -> None:
    account = on_plan(shop, "pro")
    shop.client.control("POST", "/fault", mode="dead_before", method="POST", path="/v1/subscriptions")
    with pytest.raises(checkout.Unavailable):
        change(account, "core")
    shop.client.control("DELETE", "/fault")
    shop.client.advance(days=32)
    assert shop.settle() == set()
    assert paid(shop, account) == [3_000, 3_000]
    stripe_requests.sweep(now=timezone.now() + timedelta(hours=1))
    assert shop.settle() == set()
    assert plan_of(account) == "pro"
    shop.client.advance(days=32)
    assert shop.settle() == set()
    assert (plan_of(account), paid(shop, account), granted(account)) == ("core", [3_000, 3_000, 1_000], [40, 40, 10])


def test_a_closed_account_pays_no_further_period(shop: Shop) -> None:
    account = on_plan(shop, "core")
    Account.objects.filter(pk=account.pk).update(closed_at=timezone.now())
    shop.client.control("POST", "/fault", mode="dead_before")
    assert checkout.leave_closed(now=timezone.now()) == 0
    shop.client.control("DELETE", "/fault")
    assert checkout.leave_closed(now=timezone.now()) == 1
    assert checkout.leave_closed(now=timezone.now()) == 0
    shop.client.advance(days=32)
    assert shop.settle() == set()
    assert (paid(shop, account), plan_of(account)) == ([1_000], "free")
