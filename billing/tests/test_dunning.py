"""A plan that is not paid lasts for its grace, is warned of, ends at its time whoever is late, and comes back when it is paid."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from django.db import IntegrityError, connection, transaction

from accounts.models import Account, Mail
from billing import audit, dunning, subscriptions
from billing.models import Grant, StripeSubscription, Subscription
from billing.tests.stripe_stub import Obj, Stub
from billing.tests.test_stripe_inbox import receive, shop, stub, work
from billing.tests.test_stripe_subscriptions import core, customer, plan_of
from pricing import catalog
from pricing.models import PlanVersion, Product
from tests.factories import NANOS

__all__ = ["core", "customer", "shop", "stub"]  # fixtures

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
#: The real time, by which the hot path and the ledger decide.
NOW = datetime.now(UTC).replace(microsecond=0)
BEGAN = NOW - 10 * DAY
FAILED = BEGAN + timedelta(hours=1)  # when the stub's invoices are to be paid


@pytest.fixture
def owed(stub: Stub, customer: str) -> tuple[Obj, Obj]:
    """A subscription whose payment failed an hour after its period began ten days ago, and the invoice."""
    start = int(BEGAN.timestamp())
    subscription = stub.subscription(customer, "price_core", status="past_due", start=start, end=start + 30 * 86_400)
    return subscription, stub.invoice(subscription, 2_500, status="open")


def happen(type: str, obj: Obj, *, now: datetime = NOW) -> list[tuple[str, str]]:
    receive(type, obj, now=now)
    return [(str(one.state), one.last_error) for one in work(now)]


def pay(stub: Stub, subscription: Obj, invoice: Obj) -> None:
    [payment] = invoice["payments"]["data"]
    subscription["status"], payment["status"] = "active", "paid"
    invoice.update(status="paid", amount_paid=2_500)
    stub.objects[payment["payment"]["payment_intent"]].update(status="succeeded", amount_received=2_500)


def allowed_plan(account: Account) -> str:
    allowed = subscriptions.allowed(account=account)
    assert allowed is not None
    return allowed.plan.version.plan.slug


def take_steps(*, now: datetime = NOW) -> int:
    return dunning.take_steps(now=now, failed=fail)


def fail(subject: str, error: Exception) -> None:
    raise error


def mails(account: Account) -> list[tuple[str, object]]:
    found = Mail.objects.filter(account=account, kind__in=["grace_ending", "plan_ended"]).order_by("pk")
    return [(mail.kind, mail.context) for mail in found]


class TestGrace:
    @pytest.mark.failure(65)
    @pytest.mark.parametrize(
        ("status", "days", "plan"),
        [
            ("past_due", 0, "core"),
            ("past_due", 6, "core"),
            ("past_due", 7, "free"),
            ("past_due", 30, "free"),
            ("active", 30, "core"),
            ("trialing", 30, "core"),
            ("incomplete", 0, "free"),
            ("incomplete_expired", 0, "free"),
            ("unpaid", 0, "free"),
            ("paused", 0, "free"),
            ("canceled", 0, "free"),
        ],
    )
    def test_the_entitlement_table_days_after_the_first_payment_that_failed(
        self, stub: Stub, shop: Account, owed: tuple[Obj, Obj], status: str, days: int, plan: str
    ) -> None:
        owed[0]["status"] = status
        happen("customer.subscription.updated", owed[0], now=FAILED + days * DAY)
        assert plan_of(shop) == plan

    def test_it_counts_from_the_first_of_the_payments_that_are_owed(self, stub: Stub, shop: Account, customer: str) -> None:
        start = int(BEGAN.timestamp()) - 90 * 86_400
        subscription = stub.subscription(customer, "price_core", status="past_due", start=start)
        item = subscription["items"]["data"][0]
        for month, status in enumerate(("open", "paid", "void", "open", "uncollectible", "draft")):
            item.update(current_period_start=start + month * 30 * 86_400, current_period_end=start + (month + 1) * 30 * 86_400)
            stub.invoice(subscription, 2_500, status=status)
        happen("customer.subscription.updated", subscription)
        row = StripeSubscription.objects.get()
        assert row.past_due_since == BEGAN + timedelta(hours=1)  # the fourth: the first was another story, the third is void

    def test_an_invoice_that_is_sent_is_owed_from_its_due_date(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        owed[1].update(attempted=False, due_date=int((BEGAN + 5 * DAY).timestamp()))
        happen("customer.subscription.updated", owed[0])
        assert StripeSubscription.objects.get().grace_ends_at == BEGAN + 12 * DAY
        owed[1].update(due_date=None)  # nothing has failed that we could name: from the period's beginning
        happen("customer.subscription.updated", owed[0])
        assert StripeSubscription.objects.get().past_due_since == BEGAN

    def test_every_order_of_the_events_ends_in_the_same_grace(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        subscription, invoice = owed
        ends = set()
        types = [("invoice.payment_failed", invoice), ("customer.subscription.updated", subscription), ("invoice.updated", invoice)]
        for order in permutations(types):
            for hours, (type, obj) in enumerate(order):
                happen(type, obj, now=FAILED + timedelta(hours=hours))
            row = StripeSubscription.objects.get()
            ends.add((row.past_due_since, row.grace_ends_at, row.next_step_at))
        assert ends == {(FAILED, FAILED + 7 * DAY, FAILED + 5 * DAY)}

    def test_a_product_may_give_no_grace_or_a_longer_one(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        Product.objects.filter(pk=shop.product_id).update(grace_days=0)
        happen("customer.subscription.updated", owed[0], now=FAILED)
        assert plan_of(shop) == "free"
        Product.objects.filter(pk=shop.product_id).update(grace_days=30)
        happen("customer.subscription.updated", owed[0])
        assert plan_of(shop) == "core"

    def test_it_is_no_grace_where_nothing_is_owed(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        happen("customer.subscription.updated", owed[0])
        row = StripeSubscription.objects.get()
        with pytest.raises(IntegrityError, match="stripe_subscription_grace"), transaction.atomic():
            StripeSubscription.objects.filter(pk=row.pk).update(status="active")
        with pytest.raises(IntegrityError, match="stripe_subscription_grace"), transaction.atomic():
            StripeSubscription.objects.filter(pk=row.pk).update(grace_ends_at=None)


class TestEnd:
    def test_the_job_warns_once_and_ends_it_at_its_time_however_late(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        happen("invoice.payment_failed", owed[1], now=FAILED)
        assert take_steps(now=FAILED + 5 * DAY - timedelta(seconds=1)) == 0
        for _ in range(3):
            take_steps(now=FAILED + 5 * DAY)
            happen("customer.subscription.updated", owed[0], now=FAILED + 5 * DAY)
        end = FAILED + 7 * DAY
        assert mails(shop) == [("grace_ending", {"plan": "Core", "ends_at": end.isoformat(), "next_plan": "Free"})]
        assert plan_of(shop) == "core"
        assert take_steps() == 1  # three days late
        assert take_steps() == 0
        live = Subscription.objects.exclude(status="canceled").get(account=shop)
        ended = Subscription.objects.get(account=shop, stripe_id=owed[0]["id"])
        assert (live.plan_version.plan.slug, live.started_at, ended.ended_at) == ("free", end, end)
        assert mails(shop)[1:] == [("plan_ended", {"plan": "Core", "ended_at": end.isoformat(), "next_plan": "Free", "unpaid": True})]
        assert audit.run() == []

    def test_who_was_never_heard_of_in_time_is_not_warned_of_what_is_over(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        owed[0]["status"] = "active"
        happen("customer.subscription.created", owed[0], now=BEGAN)
        owed[0]["status"] = "past_due"
        happen("customer.subscription.updated", owed[0])  # ten days later: all of the grace has passed
        assert (plan_of(shop), [kind for kind, _ in mails(shop)]) == ("free", ["plan_ended"])
        assert Subscription.objects.exclude(status="canceled").get(account=shop).started_at == FAILED + 7 * DAY
        assert take_steps() == 0

    def test_a_short_grace_is_not_warned_of(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        Product.objects.filter(pk=shop.product_id).update(grace_days=2)
        happen("customer.subscription.updated", owed[0], now=FAILED)
        assert StripeSubscription.objects.get().next_step_at == FAILED + 2 * DAY

    def test_while_the_job_is_late_the_default_plan_counts_all_the_same(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        happen("invoice.payment_failed", owed[1], now=FAILED)
        assert plan_of(shop) == "core"  # nobody has ended it
        assert allowed_plan(shop) == "free"
        allowed = subscriptions.allowed(account=shop)
        assert allowed is not None
        assert allowed.period_start <= FAILED + 7 * DAY < allowed.period_end
        assert allowed.rate_card == "standard"
        first = Subscription.objects.filter(account=shop).earliest("pk")
        assert allowed.anchor_at == first.anchor_at  # as if the account had never been away from its free plan
        payer = subscriptions.payer(shop.product_id, shop.public_id)
        assert payer is not None
        assert allowed_plan(payer) == "free"
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("select set_config('tollgate.now', %s, true)", [(FAILED + 6 * DAY).isoformat()])
            assert allowed_plan(shop) == "core"
            cursor.execute("select set_config('tollgate.now', '', true)")

    def test_the_default_plans_credit_of_its_period_is_granted_once(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        free = PlanVersion.objects.get(plan__product=shop.product, plan__slug="free")
        PlanVersion.objects.create(
            plan=free.plan, version=2, valid_from=BEGAN - DAY, rate_card="standard", price_cents=0, included_credit_nanos=3 * NANOS
        )
        catalog.clear()
        happen("invoice.payment_failed", owed[1], now=FAILED)
        take_steps()
        lot = Grant.objects.defer("expires_at").get(account=shop, source="monthly")
        assert lot.granted == 3 * NANOS

    def test_one_customers_broken_step_does_not_stop_the_others(
        self, stub: Stub, shop: Account, owed: tuple[Obj, Obj], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        happen("invoice.payment_failed", owed[1], now=FAILED)
        row = StripeSubscription.objects.get()
        broken = StripeSubscription.objects.create(
            id="sub_0", account=shop, status="past_due", price_id="price_core", anchor_at=BEGAN, current_period_start=BEGAN,
            current_period_end=NOW, started_at=BEGAN, past_due_since=BEGAN, grace_ends_at=BEGAN, next_step_at=BEGAN, read_number=1,
        )  # fmt: skip
        take = dunning._take_step

        def fail_first(subscription_id: str, account_id: int, now: datetime) -> bool:
            if subscription_id == broken.pk:
                raise RuntimeError("boom")
            return take(subscription_id, account_id, now)

        monkeypatch.setattr(dunning, "_take_step", fail_first)
        failed: list[str] = []
        assert dunning.take_steps(now=NOW, failed=lambda subject, error: failed.append(subject)) == 1
        assert failed == ["sub_0"]
        assert dunning.take_steps(now=NOW, given_up={"sub_0"}, failed=fail) == 0
        row.refresh_from_db()
        broken.refresh_from_db()
        assert (row.next_step_at, broken.next_step_at) == (None, BEGAN)


class TestRecovery:
    @pytest.mark.parametrize("ended", [False, True])
    def test_what_is_paid_brings_the_plan_and_the_periods_credit_once(
        self, stub: Stub, shop: Account, owed: tuple[Obj, Obj], ended: bool
    ) -> None:
        happen("invoice.payment_failed", owed[1], now=FAILED)
        if ended:
            take_steps()
        assert plan_of(shop) == ("free" if ended else "core")
        assert not Grant.objects.filter(account=shop).exists()  # no new included credit while it is not paid
        pay(stub, *owed)
        for type, obj in (("invoice.paid", owed[1]), ("customer.subscription.updated", owed[0])) * 2:
            assert happen(type, obj) == [("done", "")]
        assert (plan_of(shop), allowed_plan(shop)) == ("core", "core")
        assert Grant.objects.defer("expires_at").get(account=shop).granted == 20 * NANOS
        row = StripeSubscription.objects.get()
        assert (row.past_due_since, row.grace_ends_at, row.next_step_at) == (None, None, None)
        assert take_steps() == 0
        assert audit.run() == []

    def test_a_second_failure_has_a_grace_and_a_warning_of_its_own(self, stub: Stub, shop: Account, owed: tuple[Obj, Obj]) -> None:
        happen("invoice.payment_failed", owed[1], now=FAILED)
        take_steps(now=FAILED + 5 * DAY)
        pay(stub, *owed)
        happen("invoice.paid", owed[1], now=FAILED + 5 * DAY)
        item = owed[0]["items"]["data"][0]
        item.update(current_period_start=item["current_period_end"], current_period_end=item["current_period_end"] + 30 * 86_400)
        owed[0]["status"] = "past_due"
        second = stub.invoice(owed[0], 2_500, status="open")
        failed_again = FAILED + 30 * DAY
        happen("invoice.payment_failed", second, now=failed_again)
        take_steps(now=failed_again + 5 * DAY)
        assert [kind for kind, _ in mails(shop)] == ["grace_ending", "grace_ending"]
