"""Terms that are agreed with one customer: through Stripe by card or invoice, or outside of it; and that garbage agrees nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.models import Account
from billing import agreements, audit, ledger, stripe_customers, subscriptions
from billing.models import Agreement, Grant, StripePrice, StripeSubscription
from billing.tests.selling import Shop, double, shop
from pricing import catalog
from pricing.models import CostTier, Entitlement, Plan, PlanVersion, RateCard
from tests.factories import NANOS, START

__all__ = ["double", "shop"]  # fixtures


@pytest.fixture
def enterprise(shop: Shop) -> PlanVersion:
    """A plan without a price, with three tasks at a time, a feature and a tier; and a cheaper rate card."""
    tier = CostTier.objects.create(product=shop.product, slug="large", monthly_cost_nanos=100 * NANOS)
    RateCard.objects.create(product=shop.product, slug="reduced", valid_from=START, mode="markup", markup_ppm=100_000)
    with transaction.atomic():
        version = PlanVersion.objects.create(
            plan=Plan.objects.create(product=shop.product, slug="enterprise", name="Enterprise", rank=20), valid_from=START,
            rate_card="standard", price_cents=None, charge_automatically=False, cost_tier=tier,
        )  # fmt: skip
        Entitlement.objects.create(plan_version=version, key="concurrent_tasks", kind="limit", window="open", limit=3)
        Entitlement.objects.create(plan_version=version, key="api_access", kind="flag", enabled=True)
    catalog.clear()
    return version


@pytest.fixture
def account(shop: Shop) -> Account:
    return shop.account()


def agree(account: Account, *, key: str = "", **terms: Any) -> Agreement:
    said: dict[str, Any] = {
        "base": "enterprise", "price_cents": 123_400, "included_credit_nanos": 900 * NANOS, "collection": "card", "rate_card": "reduced",
        "limits": {("concurrent_tasks", "open"): 40},
    } | terms  # fmt: skip
    return agreements.agree(
        account=account, terms=agreements.Terms(**said), key=key or uuid4().hex, actor="ann", reason="signed on Monday", now=timezone.now()
    )


def has(account: Account) -> tuple[str, str, int | None, int | None]:
    """The account's plan, rate card, concurrent tasks, and wholesale cost a month."""
    allowed = subscriptions.allowed(account=account)
    assert allowed is not None
    limit = allowed.plan.limit("concurrent_tasks", "open")
    tier = allowed.plan.cost_tier
    return allowed.plan.version.plan.name, allowed.rate_card, limit.limit if limit else None, tier.monthly_cost_nanos if tier else None


def granted(account: Account) -> list[int]:
    return [lot.granted // NANOS for lot in Grant.objects.defer("expires_at").filter(account=account).order_by("id")]


def card(shop: Shop, account: Account) -> None:
    shop.client.use_card(stripe_customers.of(account=account, now=timezone.now()).pk, "pm_card_visa")


@pytest.mark.usefixtures("enterprise")
class TestThroughStripe:
    def test_the_saved_card_pays_the_agreed_price_and_the_terms_hold(self, shop: Shop, account: Account) -> None:
        card(shop, account)
        made = agree(account)
        assert agreements.go_on(now=timezone.now()) == 1
        assert shop.settle() == set()
        [charge] = shop.client.v1.charges.list().data
        assert (charge.amount, has(account), granted(account)) == (123_400, ("Enterprise", "reduced", 40, 100 * NANOS), [900])
        assert agreements.go_on(now=timezone.now() + timedelta(days=1)) == 0
        made.refresh_from_db()
        assert (made.last_error, made.next_attempt_at, StripePrice.objects.get(plan_version=made.plan_version).pk[:6]) == (
            "",
            None,
            "price_",
        )
        shop.client.advance(days=32)
        assert shop.settle() == set()
        assert granted(account) == [900, 900]
        assert audit.run() == []

    def test_an_invoice_is_sent_and_its_credit_comes_when_it_is_paid(self, shop: Shop, account: Account) -> None:
        agree(account, collection="invoice", days_until_due=14)
        agreements.go_on(now=timezone.now())
        assert shop.settle() == set()
        [invoice] = shop.client.v1.invoices.list().data
        assert (invoice.status, invoice.collection_method, granted(account)) == ("open", "send_invoice", [])
        [subscription] = shop.client.v1.subscriptions.list().data
        assert subscription.days_until_due == 14
        assert has(account)[0] == "Enterprise"
        shop.client.v1.invoices.pay(str(invoice.id), {"paid_out_of_band": True})
        shop.settle()
        assert has(account)[0] == "Enterprise"

    def test_who_pays_for_a_plan_by_card_and_agrees_to_invoices_is_sent_them(self, shop: Shop, account: Account) -> None:
        shop.pay(shop.subscribe(account, "core"))
        assert shop.settle() == set()
        agree(account, collection="invoice", days_until_due=14)
        agreements.go_on(now=timezone.now())
        [subscription] = shop.client.v1.subscriptions.list().data
        assert (subscription.collection_method, subscription.days_until_due) == ("send_invoice", 14)
        agree(account)
        agreements.go_on(now=timezone.now())
        [subscription] = shop.client.v1.subscriptions.list().data
        assert (subscription.collection_method, subscription.days_until_due) == ("charge_automatically", None)

    @pytest.mark.failure(73)
    def test_a_visit_to_checkout_that_is_open_ends_before_a_second_subscription_could_come_of_it(
        self, shop: Shop, account: Account
    ) -> None:
        visit = shop.subscribe(account, "core")
        card(shop, account)
        agree(account)
        agreements.go_on(now=timezone.now())
        visit.refresh_from_db()
        assert visit.state == "expired"
        assert shop.settle() == set()
        assert StripeSubscription.objects.filter(account=account).count() == 1
        assert has(account)[0] == "Enterprise"

    def test_who_pays_for_a_plan_already_is_moved_and_other_terms_are_another_version(self, shop: Shop, account: Account) -> None:
        shop.pay(shop.subscribe(account, "core"))
        assert shop.settle() == set()
        agree(account)
        agreements.go_on(now=timezone.now())
        assert shop.settle() == set()
        assert has(account)[:3] == ("Enterprise", "reduced", 40)
        agree(account, price_cents=200_000, limits={("concurrent_tasks", "open"): None})
        agreements.go_on(now=timezone.now())
        assert shop.settle() == set()
        assert has(account)[2] is None
        assert StripeSubscription.objects.filter(account=account).count() == 1
        assert [version.version for version in account.product.plans.get(slug__startswith="enterprise-").versions.order_by("version")] == [
            1,
            2,
        ]

    @pytest.mark.failure(74)
    @pytest.mark.parametrize("path", ["/v1/customers", "/v1/prices", "/v1/subscriptions"])
    def test_a_lost_answer_makes_neither_a_second_price_nor_a_second_subscription(self, shop: Shop, account: Account, path: str) -> None:
        agree(account, collection="invoice")
        shop.client.control("POST", "/fault", mode="dead_after", path=path, count=1, method="POST")
        now = timezone.now()
        for _ in range(4):
            agreements.go_on(now=now)
            now += timedelta(minutes=10)
        shop.client.control("DELETE", "/fault")
        assert shop.settle() == set()
        assert len(shop.client.v1.subscriptions.list().data) == 1
        agreed = account.product.plans.get(slug__startswith="enterprise-").versions.get()
        assert StripePrice.objects.filter(plan_version=agreed).count() == 1
        assert has(account)[0] == "Enterprise"


@pytest.mark.usefixtures("enterprise")
class TestOutside:
    def test_the_account_is_on_the_terms_at_once_and_its_credit_comes_by_the_calendar(self, shop: Shop, account: Account) -> None:
        made = agree(account, collection="none", cost_tier="large")
        assert (has(account), made.next_attempt_at) == (("Enterprise", "reduced", 40, 100 * NANOS), None)
        ledger.catch_up(after=0, limit=10_000)
        assert granted(account) == [900]
        assert (shop.client.v1.subscriptions.list().data, agreements.go_on(now=timezone.now())) == ([], 0)

    def test_sent_twice_it_is_one_agreement(self, account: Account) -> None:
        key = uuid4().hex
        first, again = agree(account, key=key, collection="none"), agree(account, key=key, collection="none", price_cents=1)
        assert (first.pk, Agreement.objects.filter(account=account).count()) == (again.pk, 1)

    def test_nobody_else_can_have_it_and_it_says_who_agreed_and_why(self, shop: Shop, account: Account) -> None:
        made = agree(account, collection="none")
        assert (made.plan_version.plan.public, made.plan_version.plan.available) == (False, False)
        assert (made.actor, made.reason) == ("ann", "signed on Monday")
        with pytest.raises(IntegrityError):
            Agreement.objects.filter(pk=made.pk).update(reason="")


class TestGarbage:
    @pytest.mark.parametrize(
        ("terms", "field"),
        [
            ({"price_cents": -1}, "price"), ({"price_cents": 10**9}, "price"), ({"price_cents": 0}, "price"),
            ({"included_credit_nanos": -1}, "included_credit"), ({"included_credit_nanos": 10**18}, "included_credit"),
            ({"collection": "barter"}, "collection"), ({"interval": "week"}, "interval"), ({"base": "golden"}, "base"),
            ({"rate_card": "free"}, "rate_card"), ({"cost_tier": "huge"}, "cost_tier"), ({"days_until_due": -1}, "days_until_due"),
            ({"days_until_due": 1_000}, "days_until_due"), ({"limits": {("agents", "count"): 5}}, "limits"),
            ({"limits": {("concurrent_tasks", "open"): -1}}, "limits"), ({"limits": {("concurrent_tasks", "open"): 10**16}}, "limits"),
        ],
    )  # fmt: skip
    def test_it_is_refused_by_its_field_and_agrees_nothing(
        self, account: Account, enterprise: PlanVersion, terms: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(agreements.InvalidTerms) as refusal:
            agree(account, **terms)
        assert refusal.value.field == field
        assert not Agreement.objects.filter(account=account).exists()
        assert not Plan.objects.filter(slug__startswith="enterprise-").filter(product=account.product).exists()

    def test_a_closed_account_and_one_that_pays_at_stripe_agree_nothing_outside(
        self, shop: Shop, account: Account, enterprise: PlanVersion
    ) -> None:
        shop.pay(shop.subscribe(account, "core"))
        assert shop.settle() == set()
        with pytest.raises(agreements.InvalidTerms, match="End that first"):
            agree(account, collection="none")
        Account.objects.filter(pk=account.pk).update(closed_at=timezone.now())
        with pytest.raises(agreements.InvalidTerms, match="closed"):
            agree(account)
