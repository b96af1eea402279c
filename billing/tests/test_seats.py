"""Subscriptions follow the members of their accounts, on the double of Stripe: quantity, price, proration and what a period includes."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from accounts.models import Account, Membership, User
from billing import audit, checkout, seats, stripe_requests, subscriptions, tasks
from billing.models import Grant, StripeRequest, StripeSubscription
from billing.tests.selling import Shop, double, shop
from pricing.models import Plan
from tests.factories import NANOS

__all__ = ["double", "shop"]  # fixtures


@pytest.fixture(autouse=True)
def org(shop: Shop) -> None:
    """PRPM's two prices: $6 for who is alone, $3 a member."""
    shop.plan("org_member", 300, 50, rank=11, per_seat=True)
    shop.plan("individual", 600, 100, rank=12)
    Plan.objects.filter(product=shop.product, slug="individual").update(member_plan="org_member")


def join(team: Account, count: int = 1) -> list[User]:
    users = [User.objects.create_user(f"m{User.objects.count()}-{team.public_id}@example.com") for _ in range(count)]
    for user in users:
        Membership.objects.create(account=team, user=user, role=Membership.Role.MEMBER)
    return users


def subscribed(shop: Shop, account: Account, plan: str) -> StripeSubscription:
    shop.pay(shop.subscribe(account, plan))
    assert shop.settle() == set()
    return StripeSubscription.objects.get(account=account)


def paid(shop: Shop, subscription: StripeSubscription) -> tuple[str, int]:
    """The price and quantity at Stripe."""
    item = shop.client.v1.subscriptions.retrieve(subscription.pk)["items"].data[0]
    return next(slug for slug, price in shop.prices.items() if price == item.price.id), int(item.quantity)


def granted(account: Account) -> list[int]:
    lots = Grant.objects.defer("expires_at").filter(account=account, source="monthly").order_by("id")
    return [lot.granted // NANOS for lot in lots]


def test_a_coupon_that_lasts_is_known_with_the_subscription(shop: Shop) -> None:
    person = shop.account()
    subscription = subscribed(shop, person, "individual")
    coupon = shop.client.v1.coupons.create({"percent_off": 33.33, "duration": "forever"})
    shop.client.v1.subscriptions.update(subscription.pk, {"discounts": [{"coupon": coupon.id}]})
    assert shop.settle() == set()
    subscription.refresh_from_db()
    assert (subscription.discount_ppm, subscription.discount_cents, subscription.discount_ends_at) == (333_300, 0, None)


class TestSeats:
    def test_the_quantity_follows_the_members_prorated_and_each_period_includes_credit_for_each(self, shop: Shop) -> None:
        team = shop.account(kind="team")
        join(team, 2)
        subscription = subscribed(shop, team, "org_member")
        assert (paid(shop, subscription), granted(team)) == (("org_member", 2), [100])
        join(team, 2)
        tasks.follow_members()
        assert paid(shop, subscription) == ("org_member", 4)
        live = subscriptions.current(account_id=team.pk)
        assert live is not None
        assert live.seats == 4
        shop.client.advance(days=32)
        assert shop.settle() == set()
        invoice = shop.client.v1.invoices.list({"subscription": subscription.pk, "limit": 1}).data[0]
        assert invoice.total == 4 * 300 + 2 * 300  # two more members for nearly all of the period before
        assert granted(team) == [100, 200]
        assert audit.run() == []

    def test_it_is_never_below_one_and_looking_again_asks_nothing(self, shop: Shop) -> None:
        team = shop.account(kind="team")
        users = join(team, 3)
        subscription = subscribed(shop, team, "org_member")
        Membership.objects.filter(account=team, user__in=users).delete()
        tasks.follow_members()
        assert paid(shop, subscription) == ("org_member", 1)
        asked = StripeRequest.objects.filter(account=team).count()
        tasks.follow_members()
        assert StripeRequest.objects.filter(account=team).count() == asked
        live = subscriptions.current(account_id=team.pk)
        assert live is not None
        assert live.seats == 1

    def test_up_and_down_and_up_again_are_three_changes(self, shop: Shop) -> None:
        team = shop.account(kind="team")
        [user] = join(team)
        subscription = subscribed(shop, team, "org_member")
        for count in (2, 1, 2, 1):
            if count == 2:
                join(team)
            else:
                Membership.objects.filter(account=team).exclude(user=user).delete()
            tasks.follow_members()
            assert paid(shop, subscription) == ("org_member", count)

    def test_while_stripe_is_away_nothing_is_lost_and_what_is_asked_late_is_asked_once(self, shop: Shop) -> None:
        team = shop.account(kind="team")
        join(team)
        subscription = subscribed(shop, team, "org_member")
        join(team, 2)
        shop.client.control("POST", "/fault", mode="dead_before", path="/v1/")
        tasks.follow_members()
        shop.client.control("DELETE", "/fault")
        assert paid(shop, subscription) == ("org_member", 1)
        tasks.follow_members()
        assert paid(shop, subscription) == ("org_member", 3)

    def test_one_team_that_cannot_be_looked_at_does_not_stop_the_others(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        teams = [shop.account(kind="team") for _ in range(2)]
        for team in teams:
            join(team)
        [poisoned, good] = sorted((subscribed(shop, team, "org_member") for team in teams), key=lambda each: each.pk)
        for team in teams:
            join(team)
        follow, failed = seats._follow, dict[str, str]()

        def poison(found: StripeSubscription, members: int, now: datetime) -> None:
            if found == poisoned:
                raise KeyError("poison")
            follow(found, members, now)

        monkeypatch.setattr(seats, "_follow", poison)
        tasks.follow_members(failed=lambda account, error: failed.update({account: type(error).__name__}))
        assert failed == {poisoned.account.public_id: "KeyError"}
        assert (paid(shop, poisoned), paid(shop, good)) == (("org_member", 1), ("org_member", 2))
        failed.clear()
        tasks.follow_members(given_up={poisoned.account.public_id}, failed=lambda account, error: failed.update({account: ""}))
        assert failed == {}

    def test_the_team_page_is_told_members_price_and_what_is_paid_for(self, shop: Shop) -> None:
        team = shop.account(kind="team")
        assert seats.of_account(account=team, live=subscriptions.current(account_id=team.pk)) is None
        join(team, 2)
        subscribed(shop, team, "org_member")
        join(team)
        shown = seats.of_account(account=team, live=subscriptions.current(account_id=team.pk))
        assert shown is not None
        assert (shown.members, shown.paid, shown.price_cents, shown.total_cents, shown.interval) == (3, 2, 300, 900, "month")


class TestFaces:
    def test_who_joins_a_team_pays_the_members_price_from_then_on_and_who_leaves_the_other(self, shop: Shop) -> None:
        user = User.objects.create_user(f"ada-{shop.suffix.lower()}@example.com")
        person, team = shop.account(owner=user), shop.account(kind="team")
        subscription = subscribed(shop, person, "individual")
        assert paid(shop, subscription) == ("individual", 1)
        membership = Membership.objects.create(account=team, user=user, role=Membership.Role.MEMBER)
        tasks.follow_members()
        live = subscriptions.current(account_id=person.pk)
        assert live is not None
        assert (live.plan_version.plan.slug, paid(shop, subscription)) == ("org_member", ("org_member", 1))
        assert shop.settle() == set()
        membership.delete()
        tasks.follow_members()
        assert paid(shop, subscription) == ("individual", 1)
        assert shop.settle() == set()
        live = subscriptions.current(account_id=person.pk)
        assert live is not None
        assert live.plan_version.plan.slug == "individual"
        assert granted(person) == [100]

    def test_a_member_is_asked_three_dollars_at_checkout(self, shop: Shop) -> None:
        user = User.objects.create_user(f"ada-{shop.suffix.lower()}@example.com")
        person = shop.account(owner=user)
        Membership.objects.create(account=shop.account(kind="team"), user=user)
        visit = shop.subscribe(person, "individual")
        assert (visit.amount_cents, visit.quantity) == (300, 1)

    def test_subscriptions_that_depend_on_nobody_are_left_alone(self, shop: Shop) -> None:
        account = shop.account()
        subscription = subscribed(shop, account, "core")
        join(account, 3)
        before = shop.client.events()
        assert seats.follow(after="", now=timezone.now(), limit=1) in (None, *StripeSubscription.objects.values_list("pk", flat=True))
        assert (paid(shop, subscription), shop.client.events()) == (("core", 1), before)


class TestBesidesACustomer:
    @pytest.mark.failure(74)
    def test_a_number_that_was_never_answered_does_not_take_a_later_upgrade_back(self, shop: Shop) -> None:
        shop.plan("big", 900, 50, rank=13, per_seat=True)
        team = shop.account(kind="team")
        join(team, 2)
        subscription = subscribed(shop, team, "org_member")
        join(team)
        shop.client.control("POST", "/fault", mode="dead_before", method="POST", path="/v1/subscriptions")
        tasks.follow_members()
        shop.client.control("DELETE", "/fault")
        assert StripeRequest.objects.get(account=team, kind="seats").state == "pending"
        checkout.change_plan(account=team, plan="big", actor="test", now=timezone.now())
        stripe_requests.sweep(now=timezone.now() + timedelta(hours=1))
        assert shop.settle() == set()
        assert paid(shop, subscription) == ("big", 3)

    @pytest.mark.failure(74)
    def test_it_waits_for_the_answer_to_what_a_customer_has_chosen(self, shop: Shop) -> None:
        shop.plan("big", 900, 50, rank=13, per_seat=True)
        team = shop.account(kind="team")
        subscription = subscribed(shop, team, "org_member")
        shop.client.control("POST", "/fault", mode="dead_before", method="POST", path="/v1/subscriptions")
        with pytest.raises(checkout.Unavailable):
            checkout.change_plan(account=team, plan="big", actor="test", now=timezone.now())
        shop.client.control("DELETE", "/fault")
        join(team, 3)
        tasks.follow_members()
        stripe_requests.sweep(now=timezone.now() + timedelta(hours=1))
        assert shop.settle() == set()
        tasks.follow_members()
        assert paid(shop, subscription) == ("big", 3)
