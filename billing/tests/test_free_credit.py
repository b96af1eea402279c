"""The free credit of the default plan follows one calendar for the account, however often it leaves the plan and comes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from accounts import registration
from accounts.models import Account
from billing import audit, balances, ledger, periods, subscriptions
from billing.models import Grant, Schedule, StripeCustomer, Subscription
from billing.tests.selling import Shop
from pricing import catalog
from pricing.models import Plan, PlanVersion, Product
from tests.factories import NANOS, START, make_account, make_product


def with_free_credit(product: Product, credit: int = 5) -> None:
    plan = Plan.objects.get(product=product, slug="free")
    PlanVersion.objects.create(
        plan=plan,
        version=2,
        valid_from=START + timedelta(days=1),
        price_cents=0,
        rate_card="standard",
        included_credit_nanos=credit * NANOS,
    )
    catalog.clear()


def free_grants(account: Account) -> list[int]:
    found = Grant.objects.filter(account=account, source="monthly").exclude(source_key__startswith="sub_")
    return list(found.order_by("pk").values_list("granted", flat=True))


def leave(account: Account, now: datetime) -> None:
    """As a paid plan takes its place."""
    subscriptions.end(account=account, now=now)
    key = f"leave:{Subscription.objects.filter(account=account).count()}"
    unit_id = account.product.unit_id
    ledger.end_schedule(account_id=account.pk, unit_id=unit_id, ends_at=now, key=key, actor="test", reason="test")


def test_who_subscribes_and_cancels_five_times_in_a_month_has_the_free_credit_once(shop: Shop) -> None:
    with_free_credit(shop.product)
    account = shop.account()
    assert free_grants(account) == [5 * NANOS]
    first = Subscription.objects.get(account=account)
    customer = StripeCustomer.objects.create(id=shop.client.customer().id, account=account)
    for _ in range(5):
        subscription = shop.client.subscribe(customer.pk, shop.prices["core"])
        assert shop.settle() == set()
        shop.client.v1.subscriptions.cancel(subscription.id)
        assert shop.settle() == set()
        live = subscriptions.current(account_id=account.pk)
        assert live is not None
        assert (live.plan_version.plan.slug, live.anchor_at, live.current_period_end) == ("free", first.anchor_at, first.current_period_end)
    assert free_grants(account) == [5 * NANOS]
    with ledger.clock(at=first.current_period_end + timedelta(hours=1)):
        ledger.catch_up(after=account.pk - 1, limit=1)
    assert free_grants(account) == [5 * NANOS] * 2
    assert audit.run() == []


@pytest.mark.django_db
class TestCalendar:
    """Within one transaction, on a clock of its own."""

    @pytest.fixture
    def account(self) -> Account:
        product = make_product()
        with_free_credit(product)
        at = datetime(2027, 1, 31, 12, tzinfo=UTC)
        with ledger.clock(at=at):
            return registration.open_account(product=product, external_id="ada", name="Ada", now=at)

    def back(self, account: Account, left: datetime, returned: datetime) -> list[int]:
        with ledger.clock(at=left):
            leave(account, left)
        with ledger.clock(at=returned):
            subscriptions.start(account=account, plan="free", now=returned)
        return free_grants(account)

    def test_who_comes_back_in_the_same_period_waits_for_the_next(self, account: Account) -> None:
        assert self.back(account, datetime(2027, 2, 3, tzinfo=UTC), datetime(2027, 2, 20, tzinfo=UTC)) == [5 * NANOS]
        schedule = Schedule.objects.get(account=account)
        assert (schedule.granted, schedule.skipped) == (0, 1)
        for day, count in ((27, 1), (28, 1)):
            with ledger.clock(at=datetime(2027, 2, day, 11, 59, tzinfo=UTC)):
                ledger.catch_up(after=account.pk - 1, limit=1)
            assert len(free_grants(account)) == count
        for month, day, count in ((2, 28, 2), (3, 31, 3), (4, 30, 4)):  # the 31st stays a 31st
            with ledger.clock(at=datetime(2027, month, day, 11, 59, tzinfo=UTC)):
                ledger.catch_up(after=account.pk - 1, limit=1)
            assert len(free_grants(account)) == count - 1
            at = datetime(2027, month, day, 12, tzinfo=UTC)
            assert [each.balance for each in balances.of_account(account, now=at)] == [5 * NANOS]
            with ledger.clock(at=at):
                ledger.catch_up(after=account.pk - 1, limit=1)
            assert len(free_grants(account)) == count
        assert audit.run() == []

    def test_who_comes_back_months_later_has_that_period_and_none_that_is_over(self, account: Account) -> None:
        assert self.back(account, datetime(2027, 2, 3, tzinfo=UTC), datetime(2027, 5, 20, tzinfo=UTC)) == [5 * NANOS] * 2
        newest = Grant.objects.filter(account=account).order_by("-pk")[0]
        assert newest.starts_at == periods.anniversary(datetime(2027, 1, 31, 12, tzinfo=UTC), months=3)
        assert newest.expires_at == periods.anniversary(datetime(2027, 1, 31, 12, tzinfo=UTC), months=4)
        assert audit.run() == []

    def test_a_job_that_is_late_gives_what_was_due_before_and_nothing_twice(self, account: Account) -> None:
        # The period of 28 February began while nobody looked; leaving and coming back at once finds it granted.
        now = datetime(2027, 3, 3, tzinfo=UTC)
        assert self.back(account, now, now) == [5 * NANOS] * 2

    def test_a_default_plan_that_includes_nothing_keeps_its_calendar_too(self) -> None:
        account = make_account()
        first = Subscription.objects.get(account=account)
        subscriptions.end(account=account, now=timezone.now())
        later = first.anchor_at + timedelta(days=40)
        again = subscriptions.start(account=account, plan="free", now=later)
        assert (again.anchor_at, again.started_at) == (first.anchor_at, later)
        assert again.current_period_start <= later < again.current_period_end
        assert not Schedule.objects.filter(account=account).exists()

    def test_a_guest_who_signs_up_has_the_free_credit_at_once_and_once(self) -> None:
        product = make_product(guest_plan="guest")
        with_free_credit(product)
        plan = Plan.objects.create(product=product, slug="guest", name="Guest", rank=0)
        PlanVersion.objects.create(plan=plan, valid_from=START, price_cents=0, rate_card="standard")
        account = make_account(product, kind="guest", external_id="visitor")
        assert free_grants(account) == []
        for _ in range(2):
            account = make_account(product, external_id="visitor")
            assert free_grants(account) == [5 * NANOS]
        now = timezone.now() + timedelta(seconds=1)
        assert self.back(account, now, now) == [5 * NANOS]
