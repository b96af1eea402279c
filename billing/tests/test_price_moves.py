"""A new price for those who subscribe already, by the double's clock: they keep theirs, or are moved with the first renewal from a date."""

from __future__ import annotations

from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.models import Account, Mail
from billing import audit, checkout, price_moves, subscriptions
from billing.models import Grant, PriceMove, StripeSubscription
from billing.tests.selling import Shop, double, shop
from billing.tests.test_stripe_inbox import balance
from pricing import catalog
from pricing.models import PlanVersion
from tests.factories import NANOS, START

__all__ = ["double", "shop"]  # fixtures
NOTICE = price_moves.NOTICE + timedelta(minutes=5)


def raise_price(shop: Shop, slug: str = "core", cents: int = 1_200) -> PlanVersion:
    """The next version of a plan, with a price of its own at Stripe; the earlier price is kept for those who pay it."""
    earlier = PlanVersion.objects.get(plan__product=shop.product, plan__slug=slug)
    old = shop.prices[slug]
    new = shop.client.price(cents, name=slug).id
    shop.monkeypatch.setenv(earlier.stripe_price_setting, f"{new},{old}")
    shop.prices[slug] = new
    catalog.clear()
    return PlanVersion.objects.create(
        plan=earlier.plan, version=2, valid_from=timezone.now(), rate_card="standard", price_cents=cents,
        included_credit_nanos=15 * NANOS, stripe_price_setting=earlier.stripe_price_setting,
    )  # fmt: skip


def subscriber(shop: Shop, plan: str = "core") -> tuple[Account, StripeSubscription]:
    account = shop.account()
    shop.pay(shop.subscribe(account, plan))
    assert shop.settle() == set()
    return account, StripeSubscription.objects.get(account=account)


def move(to: PlanVersion, at: datetime) -> PriceMove:
    return price_moves.plan(to=to, effective_at=at, actor="ann", reason="margin is thin", now=timezone.now())


def bills(shop: Shop, subscription: StripeSubscription) -> list[int]:
    """What each period cost, the first first."""
    return [invoice.total for invoice in shop.client.v1.invoices.list({"subscription": subscription.pk}).data][::-1]


def version_of(account: Account) -> int:
    live = subscriptions.current(account_id=account.pk)
    assert live is not None
    return live.plan_version.version


def granted(account: Account) -> list[int]:
    lots = Grant.objects.defer("expires_at").filter(account=account, source="monthly").order_by("id")
    return [lot.granted // NANOS for lot in lots]


def until(shop: Shop, days: int) -> None:
    """Days of the double's clock go by, with the job every day."""
    for _ in range(days):
        shop.client.advance(days=1)
        shop.settle()
        price_moves.go_on(now=shop.now())
    assert shop.settle() == set()


class TestMove:
    def test_without_a_move_a_subscriber_keeps_the_price_and_new_ones_pay_the_new_one(self, shop: Shop) -> None:
        account, subscription = subscriber(shop)
        raise_price(shop)
        _, later = subscriber(shop)
        until(shop, 33)
        assert (bills(shop, subscription), bills(shop, later)) == ([1_000, 1_000], [1_200, 1_200])
        assert version_of(account) == 1

    def test_who_opened_the_page_at_the_old_price_and_pays_after_the_new_one_came_has_what_was_shown(self, shop: Shop) -> None:
        account = shop.account()
        visit = shop.subscribe(account)
        raise_price(shop)
        shop.pay(visit)
        assert shop.settle() == set()
        subscription = StripeSubscription.objects.get(account=account)
        assert (bills(shop, subscription), version_of(account), balance(account)) == ([1_000], 1, (10 * NANOS, 0, 0))
        until(shop, 32)
        assert (bills(shop, subscription), version_of(account), granted(account)) == ([1_000] * 2, 1, [10, 10])

    def test_who_moves_up_to_a_plan_after_its_new_price_came_has_the_new_terms(self, shop: Shop) -> None:
        account, subscription = subscriber(shop)
        shop.client.advance(days=10)
        assert shop.settle() == set()
        raise_price(shop, "pro", 3_500)
        checkout.change_plan(account=account, plan="pro", actor="test", now=timezone.now())
        assert shop.settle() == set()
        assert version_of(account) == 2
        until(shop, 25)
        assert (bills(shop, subscription)[-1], version_of(account), granted(account)) == (3_500, 2, [10, 15])

    def test_each_renewal_from_the_date_on_is_at_the_new_price_and_the_terms_change_with_it(self, shop: Shop) -> None:
        account, subscription = subscriber(shop)
        version = raise_price(shop)
        assert price_moves.preview(to=version) == price_moves.Preview(1, 1, 200, "usd", "month")
        move(version, subscription.current_period_end + timedelta(days=5))  # after the first renewal
        price_moves.go_on(now=shop.now())
        price_moves.go_on(now=shop.now())
        assert Mail.objects.filter(account=account, kind="price_change").count() == 1
        until(shop, 33)
        assert (bills(shop, subscription), version_of(account)) == ([1_000, 1_000], 1)
        until(shop, 31)
        assert (bills(shop, subscription), version_of(account)) == ([1_000, 1_000, 1_200], 2)
        assert price_moves.preview(to=version).subscriptions == 0
        assert shop.client.v1.invoice_items.list().data == []  # nothing was prorated
        assert audit.run() == []

    def test_shortly_before_the_renewal_the_old_terms_still_hold_and_keeping_the_plan_does_not_keep_the_price(self, shop: Shop) -> None:
        account, subscription = subscriber(shop)
        version = raise_price(shop)
        move(version, timezone.now() + NOTICE)
        shop.client.advance(days=28)
        assert price_moves.go_on(now=shop.now()) == 1
        assert (version_of(account), price_moves.go_on(now=shop.now())) == (1, 0)
        assert checkout.change_plan(account=account, plan="core", actor="ada", now=shop.now()).kind == "none"
        until(shop, 4)
        assert (bills(shop, subscription), version_of(account)) == ([1_000, 1_200], 2)

    def test_who_cancels_is_not_moved_and_a_canceled_move_moves_nobody(self, shop: Shop) -> None:
        leaver, ending = subscriber(shop)
        _, staying = subscriber(shop)
        planned = move(raise_price(shop), timezone.now() + NOTICE)
        checkout.cancel(account=leaver, actor="ada", now=timezone.now())
        assert price_moves.cancel(move=planned, actor="ann", now=timezone.now())
        assert not price_moves.cancel(move=planned, actor="ann", now=timezone.now())
        until(shop, 33)
        assert (bills(shop, ending), bills(shop, staying)) == ([1_000], [1_000, 1_000])

    def test_one_subscription_that_cannot_be_moved_does_not_stop_the_others(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        found = sorted((subscriber(shop) for _ in range(2)), key=lambda each: (each[1].current_period_end, each[1].pk))
        [poisoned, _] = [subscription for _, subscription in found]
        planned, failed = move(raise_price(shop), timezone.now() + NOTICE), dict[str, str]()
        shop.client.advance(days=28)
        go, account = price_moves._move, found[0][0].public_id

        def poison(move: PriceMove, subscribed: StripeSubscription, now: datetime) -> bool:
            if subscribed.pk == poisoned.pk:
                raise IndexError("poison")
            return go(move, subscribed, now)

        monkeypatch.setattr(price_moves, "_move", poison)
        moved = price_moves.go_on(now=shop.now(), failed=lambda subject, error: failed.update({subject: str(error)}))
        assert (moved, failed, planned.canceled_at) == (1, {account: "poison"}, None)
        monkeypatch.setattr(price_moves, "_move", go)
        assert price_moves.go_on(now=shop.now(), given_up={account}) == 0
        assert price_moves.go_on(now=shop.now()) == 1

    @pytest.mark.failure(49)
    def test_it_goes_on_where_stripe_was_away(self, shop: Shop) -> None:
        _, subscription = subscriber(shop)
        move(raise_price(shop), timezone.now() + NOTICE)
        shop.client.advance(days=28)
        shop.client.control("POST", "/fault", mode="dead_before", path="/v1/")
        assert price_moves.go_on(now=shop.now()) == 0
        shop.client.control("DELETE", "/fault")
        until(shop, 4)
        assert bills(shop, subscription) == [1_000, 1_200]


class TestRefusals:
    @pytest.mark.failure(53)
    def test_nothing_past_is_moved_and_a_higher_price_needs_notice(self, shop: Shop) -> None:
        subscriber(shop)
        version = raise_price(shop)
        now = timezone.now()
        for at in (now - timedelta(days=1), now, now + timedelta(days=13)):
            with pytest.raises(price_moves.InvalidMove, match="the earliest is"):
                move(version, at)
        with pytest.raises(IntegrityError), transaction.atomic():
            PriceMove.objects.create(to_version=version, effective_at=START, actor="ann", reason="no", created_at=now)
        assert move(version, now + NOTICE).pk

    def test_a_lower_price_needs_none_and_one_move_at_a_time_is_planned(self, shop: Shop) -> None:
        subscriber(shop)
        version = raise_price(shop, cents=800)
        assert price_moves.preview(to=version).difference_cents == -200
        move(version, timezone.now() + timedelta(minutes=1))
        with pytest.raises(price_moves.InvalidMove, match="planned already"):
            move(version, timezone.now() + NOTICE)

    def test_a_version_that_stripe_does_not_sell_moves_nobody(self, shop: Shop) -> None:
        version = raise_price(shop)
        shop.monkeypatch.delenv(version.stripe_price_setting)
        with pytest.raises(price_moves.InvalidMove, match="no price"):
            move(version, timezone.now() + NOTICE)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["move", "nothing"], ["move", "a/b"], ["preview", "a/b"], ["move", "a/b", "--from", "soon", "--actor", "ann", "--reason", "x"],
            ["move", "a/b", "--from", "2020-01-01", "--actor", "", "--reason", "x"], ["cancel", "a/b", "--actor", "ann"], ["explode"], [],
        ],
    )  # fmt: skip
    def test_a_garbled_command_plans_nothing(self, shop: Shop, arguments: list[str]) -> None:
        with pytest.raises((CommandError, SystemExit)):
            call_command("plan_price", *arguments, stdout=StringIO())
        assert not PriceMove.objects.filter(to_version__plan__product=shop.product).exists()

    def test_the_command_previews_plans_lists_and_cancels(self, shop: Shop) -> None:
        subscriber(shop)
        raise_price(shop)
        name = f"{shop.product.slug}/core"

        def said(*arguments: Any) -> str:
            out = StringIO()
            call_command("plan_price", *arguments, stdout=out)
            return out.getvalue()

        assert "1 subscriptions, 1 seats, +2.00 usd each month" in said("preview", name)
        with pytest.raises(CommandError, match="earliest"):
            said("move", name, "--from", "2020-01-01", "--actor", "ann", "--reason", "x")
        at = (timezone.now() + NOTICE).isoformat()
        assert "is planned" in said("move", name, "--from", at, "--actor", "ann", "--reason", "margin")
        assert "by ann: margin; 1 to come" in said("list")
        assert "is canceled" in said("cancel", name, "--actor", "ann")


def test_a_downgrade_to_come_keeps_its_plan_though_the_price_that_it_goes_to_is_moved(shop: Shop) -> None:
    account, subscription = subscriber(shop, "pro")
    checkout.change_plan(account=account, plan="core", actor="test", now=timezone.now())
    version = raise_price(shop)
    move(version, subscription.current_period_end - timedelta(days=1))
    until(shop, 29)
    live = subscriptions.current(account_id=account.pk)
    assert live is not None
    assert live.plan_version.plan.slug == "pro"
    until(shop, 4)
    assert (bills(shop, subscription), version_of(account)) == ([3_000, 1_200], 2)
