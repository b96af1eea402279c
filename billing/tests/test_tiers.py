"""Who has which tier, by PRPM's own catalog: each combination of subscription and membership, and each change of one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from accounts.models import Account, Membership, User
from billing import stripe_api, stripe_subscriptions, subscriptions, tiers
from billing.models import StripeCustomer, StripeSubscription, Subscription
from billing.tests.stripe_stub import new
from metering import limits
from pricing import catalog, catalog_file
from pricing.models import CostTier, Entitlement, Product
from tests.factories import NANOS, START, make_account

pytestmark = pytest.mark.django_db
CATALOG = Path(catalog_file.__file__).parent / "catalogs" / "prpm.toml"
TIERS = {"free": 500_000_000, "prpm_plus_individual": 5 * NANOS, "prpm_plus_org": 2_500_000_000, "unlimited": None}


@pytest.fixture
def prpm(monkeypatch: pytest.MonkeyPatch) -> Product:
    monkeypatch.setenv("STRIPE_PRPM_PLUS_PRICE_ID", "price_individual")
    monkeypatch.setenv("STRIPE_PRPM_PLUS_ORG_MEMBER_PRICE_ID", "price_member")
    catalog_file.apply(catalog_file.parse(CATALOG.read_bytes()), actor="ada", effective=START)
    return Product.objects.get(slug="prpm")


@pytest.fixture
def ada(prpm: Product) -> User:
    return User.objects.create_user("ada@example.com")


@pytest.fixture
def person(prpm: Product, ada: User) -> Account:
    account = make_account(prpm, owner=ada)
    StripeCustomer.objects.create(id=new("cus"), account=account)
    return account


def subscribe(
    account: Account, price: str = "price_individual", *, status: str = "active", quantity: int = 1, id: str = "", read: int = 1
) -> str:
    """What Stripe says of a subscription, taken over as the inbox does."""
    now = datetime.now(UTC)
    truth: Any = stripe_api.Subscription(
        id=id or new("sub"), customer_id=account.stripe_customer.pk, status=status, items=[(price, quantity)], anchor_at=now,
        period=(now - timedelta(days=1), now + timedelta(days=29)), cancel_at_period_end=False, started_at=now - timedelta(days=1),
        ended_at=now if status == "canceled" else None, trial_ends_at=None,
    )  # fmt: skip
    stripe_subscriptions.apply(truth=truth, customer=account.stripe_customer, read_number=read, now=now)
    return str(truth.id)


def join_team(user: User, product: Product, **fields: Any) -> Account:
    team = make_account(product, kind="team", **fields)
    Membership.objects.create(account=team, user=user, role=Membership.Role.MEMBER)
    return team


def realign(account: Account) -> None:
    stripe_subscriptions.align(customer=account.stripe_customer, now=datetime.now(UTC))


def tier_of(account: Account) -> CostTier:
    allowed = subscriptions.allowed(account=Account.objects.select_related("product").get(pk=account.pk))
    assert allowed is not None
    assert allowed.plan.cost_tier is not None
    return allowed.plan.cost_tier


class TestRule:
    @pytest.mark.parametrize(
        ("status", "member", "tier"),
        [
            (None, False, "free"),
            (None, True, "free"),
            ("active", False, "prpm_plus_individual"),
            ("active", True, "prpm_plus_org"),
            ("trialing", False, "prpm_plus_individual"),
            ("trialing", True, "prpm_plus_org"),
            ("past_due", True, "prpm_plus_org"),
            ("incomplete", True, "free"),
            ("unpaid", True, "free"),
            ("paused", False, "free"),
            ("canceled", True, "free"),
            ("canceled", False, "free"),
        ],
    )
    @pytest.mark.parametrize("price", ["price_individual", "price_member"])
    def test_subscription_and_membership_decide(
        self, prpm: Product, ada: User, person: Account, status: str | None, member: bool, tier: str, price: str
    ) -> None:
        if member:
            join_team(ada, prpm)
        if status:
            subscribe(person, price, status=status)
        assert (tier_of(person).slug, tier_of(person).monthly_cost_nanos) == (tier, TIERS[tier])

    @pytest.mark.parametrize("status", [None, "active"])
    @pytest.mark.parametrize("member", [False, True])
    def test_what_staff_assigned_counts_before_the_rule(
        self, prpm: Product, ada: User, person: Account, status: str | None, member: bool
    ) -> None:
        if member:
            join_team(ada, prpm)
        if status:
            subscribe(person, status=status)
        Account.objects.filter(pk=person.pk).update(cost_tier="unlimited")
        tier = tier_of(person)
        assert (tier.slug, tier.monthly_cost_nanos, tier.daily_cost_nanos, tier.requests_per_hour) == ("unlimited", None, None, None)

    def test_staff_assign_no_tier_that_the_product_has_not(self, person: Account) -> None:
        person.cost_tier = "platinum"
        with pytest.raises(ValidationError, match="free, prpm_plus_individual, prpm_plus_org, unlimited"):
            person.full_clean()
        person.cost_tier = "unlimited"
        person.full_clean()

    def test_the_tier_is_what_the_ledger_limits_by(self, prpm: Product, ada: User, person: Account) -> None:
        subscribe(person)
        join_team(ada, prpm)
        realign(person)
        account = Account.objects.select_related("product").get(pk=person.pk)
        counted = limits.counted(
            account=account, allowed=subscriptions.allowed(account=account), counts=None, cost_nanos=1, now=datetime.now(UTC)
        )
        assert {each.limit.meter: each.limit.allowed for each in counted} == {
            "requests/hour": 100, "cost/day": 500_000_000, "cost/period": 2_500_000_000
        }  # fmt: skip


class TestChanges:
    def test_who_joins_a_team_in_the_middle_of_a_period_has_its_tier_and_who_leaves_has_it_no_longer(
        self, prpm: Product, ada: User, person: Account
    ) -> None:
        subscription = subscribe(person)
        team = join_team(ada, prpm)
        assert tier_of(person).slug == "prpm_plus_individual"
        realign(person)
        assert tier_of(person).slug == "prpm_plus_org"
        assert StripeSubscription.objects.get(pk=subscription).plan_version.plan.slug == "individual"  # type: ignore[union-attr]
        Membership.objects.filter(account=team).delete()
        realign(person)
        assert tier_of(person).slug == "prpm_plus_individual"
        assert Subscription.objects.filter(account=person).exclude(status="canceled").count() == 1

    def test_a_subscription_that_ends_while_its_owner_is_in_a_team_leaves_the_free_tier(
        self, prpm: Product, ada: User, person: Account
    ) -> None:
        join_team(ada, prpm)
        subscription = subscribe(person)
        assert tier_of(person).slug == "prpm_plus_org"
        subscribe(person, id=subscription, status="canceled", read=2)
        assert tier_of(person).slug == "free"

    def test_looking_again_changes_nothing(self, prpm: Product, ada: User, person: Account) -> None:
        join_team(ada, prpm)
        subscribe(person)
        rows = list(Subscription.objects.filter(account=person).values())
        realign(person)
        assert list(Subscription.objects.filter(account=person).values()) == rows

    def test_a_closed_team_and_one_of_another_product_count_for_nobody(self, prpm: Product, ada: User, person: Account) -> None:
        other = make_account(kind="team")
        Membership.objects.create(account=other, user=ada)
        closed = join_team(ada, prpm)
        Account.objects.filter(pk=closed.pk).update(closed_at=datetime.now(UTC))
        subscribe(person)
        assert tier_of(person).slug == "prpm_plus_individual"


class TestPrice:
    @pytest.mark.parametrize("asked", ["individual", "org_member"])
    def test_checkout_asks_6_dollars_of_who_is_alone_and_3_of_a_member(self, prpm: Product, ada: User, person: Account, asked: str) -> None:
        now = timezone.now()
        assert tiers.offered(account=person, plan=asked, now=now).version.price_cents == 600
        join_team(ada, prpm)
        assert tiers.offered(account=person, plan=asked, now=now).version.price_cents == 300

    def test_a_team_is_asked_3_dollars_a_member(self, prpm: Product) -> None:
        version = tiers.offered(account=make_account(prpm, kind="team"), plan="individual", now=timezone.now()).version
        assert (version.price_cents, version.per_seat) == (300, True)

    def test_plans_without_faces_are_themselves_and_unknown_ones_are_refused(self, prpm: Product, person: Account) -> None:
        now = timezone.now()
        assert tiers.offered(account=person, plan="free", now=now).version.plan.slug == "free"
        with pytest.raises(catalog.NotInCatalog):
            tiers.offered(account=person, plan="golden", now=now)


class TestSeats:
    @pytest.fixture
    def team(self, prpm: Product) -> Account:
        team = make_account(prpm, kind="team")
        StripeCustomer.objects.create(id=new("cus"), account=team)
        return team

    def test_three_members_that_are_paid_for_have_three_times_the_limits_and_one_size_of_request(self, team: Account) -> None:
        subscribe(team, "price_member", quantity=3)
        allowed = subscriptions.allowed(account=team)
        assert allowed is not None
        assert allowed.plan.cost_tier is not None
        tier = allowed.plan.cost_tier
        assert (tier.monthly_cost_nanos, tier.daily_cost_nanos, tier.requests_per_hour) == (7_500_000_000, 1_500_000_000, 300)
        size = allowed.plan.limit("request_tokens", Entitlement.Window.REQUEST)
        assert size is not None
        assert size.limit == 20_000
        assert CostTier.objects.get(product=team.product, slug="prpm_plus_org").monthly_cost_nanos == 2_500_000_000

    def test_a_tier_that_staff_assigned_is_the_whole_accounts(self, team: Account) -> None:
        subscribe(team, "price_member", quantity=3)
        Account.objects.filter(pk=team.pk).update(cost_tier="prpm_plus_individual")
        assert tier_of(team).monthly_cost_nanos == 5 * NANOS

    def test_nobody_is_allowed_nothing_for_a_subscription_without_members(self, team: Account) -> None:
        subscribe(team, "price_member", quantity=0)
        assert tier_of(team).monthly_cost_nanos == 2_500_000_000

    def test_a_plan_that_is_not_paid_per_member_allows_once_whatever_the_quantity(self, person: Account) -> None:
        subscribe(person, quantity=5)
        assert tier_of(person).monthly_cost_nanos == 5 * NANOS
