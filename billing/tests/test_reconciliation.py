"""What never came to our ears is found by comparing with the double of Stripe; what no reading can put right is told."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import stripe as sdk
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import transaction
from django.test import Client as Browser
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from accounts.models import Account, User
from billing import audit, ledger, reconciliation, stripe_api, stripe_inbox, stripe_receiver, tasks
from billing.models import Grant, StripeCustomer, StripeEvent, StripePayment, StripeReconciliation, StripeSubscription
from billing.tests.test_stripe_inbox import balance
from pricing.models import CreditPack, Plan, PlanVersion
from stripe_double.server import Double
from stripe_double.tests.conftest import Client, double
from tests.factories import NANOS, START, make_account, make_product
from tests.webhooks.digest import WHOLE, digest

__all__ = ["double"]  # a fixture

pytestmark = pytest.mark.django_db
CARD = "4242424242424242"


class Undone(Exception):
    """Rolls a history back."""


@pytest.fixture
def client(double: Double, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A double that delivers nothing to anybody."""
    settings.STRIPE_API_HOST = double.address
    stripe_api.client.cache_clear()
    monkeypatch.setattr(stripe_receiver, "ring", lambda: None)
    yield Client(double.address)
    stripe_api.client.cache_clear()


@dataclass
class World:
    client: Client
    accounts: list[Account]
    pack: str
    plan: str

    def customer(self, card: str = "pm_card_visa") -> str:
        customer = self.client.customer(card).id
        account = make_account(self.accounts[0].product) if self.accounts else None
        assert account is not None
        StripeCustomer.objects.create(id=customer, account=account)
        self.accounts.append(account)
        return customer

    def buy(self, customer: str) -> str:
        """A pack, paid. Returns the payment intent."""
        session = self.client.v1.checkout.sessions.create({
            "mode": "payment", "customer": customer, "success_url": "http://x.test", "line_items": [{"price": self.pack, "quantity": 1}],
        })  # fmt: skip
        assert self.client.post(str(session.url), number=CARD, email="ada@example.com")[0] == 303
        return str(self.client.v1.checkout.sessions.retrieve(session.id).payment_intent)

    def digest(self) -> str:
        return digest([account.pk for account in self.accounts], WHOLE)


@pytest.fixture
def world(client: Client, monkeypatch: pytest.MonkeyPatch) -> World:
    """A shop whose customers bought, subscribed, failed to pay, were refunded, disputed and left, all unheard."""
    product = make_product(burn_order=["monthly", "purchased"])
    pack, plan = client.price(1_000, None).id, client.price(2_500).id
    monkeypatch.setenv("TEST_PACK", pack)
    monkeypatch.setenv("TEST_CORE", plan)
    CreditPack.objects.create(
        product=product, slug="starter", name="Starter", valid_from=START, price_cents=1_000, credit_nanos=12 * NANOS,
        stripe_price_setting="TEST_PACK",
    )  # fmt: skip
    PlanVersion.objects.create(
        plan=Plan.objects.create(product=product, slug="core", name="Core", rank=2), valid_from=START, rate_card="standard",
        price_cents=2_500, included_credit_nanos=20 * NANOS, stripe_price_setting="TEST_CORE",
    )  # fmt: skip
    world = World(client, [make_account(product)], pack, plan)
    client.control("POST", "/settings", finalize_seconds=60)
    fails, leaves, stays, refunded, disputed, won = (world.customer() for _ in range(6))
    for customer in (fails, leaves, stays):
        client.subscribe(customer, plan)
    client.use_card(fails, "pm_card_chargeCustomerFail")
    client.advance(days=32)  # one renews, one is past due
    client.v1.subscriptions.cancel(str(client.v1.subscriptions.list({"customer": leaves}).data[0].id))
    for intent in (world.buy(refunded), world.buy(refunded)):
        client.v1.refunds.create({"payment_intent": intent, "amount": 250})
    for customer, outcome in ((disputed, "lost"), (won, "won")):
        charge = client.v1.payment_intents.retrieve(world.buy(customer)).latest_charge
        opened = client.control("POST", "/disputes", charge=str(charge))
        client.control("POST", f"/disputes/{opened['id']}/close", outcome=outcome)
    return world


def deliver_everything(now: datetime) -> None:
    for event in stripe_api.events(since=now - timedelta(days=2)):
        stripe_receiver.store(stripe_receiver.parse(json.dumps(event)), endpoint="/test", now=now)
    while stripe_inbox.work_next(now=now) is not None:
        pass


@pytest.mark.failure(71)
def test_with_all_deliveries_dropped_it_ends_where_all_deliveries_would_have_and_then_finds_nothing(world: World) -> None:
    now = timezone.now()
    before = world.digest()
    delivered = ""
    try:
        with transaction.atomic():
            deliver_everything(now)
            delivered = world.digest()
            raise Undone
    except Undone:
        assert world.digest() == before
    run = reconciliation.run(since=now - timedelta(days=3), now=now)
    assert world.digest() == delivered
    assert (run.problems, len(run.healed) > 8, run.finished_at is not None) == ([], True, True)
    assert {"active", "past_due"} <= set(StripeSubscription.objects.values_list("status", flat=True))
    again = reconciliation.run(since=now - timedelta(days=3), now=now)
    assert (again.healed, again.problems, again.compared > 8) == ([], [], True)
    assert world.digest() == delivered
    assert audit.run() == []


def test_after_all_deliveries_there_is_nothing_to_do(world: World) -> None:
    now = timezone.now()
    deliver_everything(now)
    run = reconciliation.run(since=now - timedelta(days=3), now=now)
    assert (run.healed, run.problems) == ([], [])


def test_what_changed_after_we_last_looked_is_healed_however_old_it_is(world: World) -> None:
    now = timezone.now()
    reconciliation.run(since=now - timedelta(days=3), now=now)
    client = world.client
    [active] = StripeSubscription.objects.filter(status="active")
    client.v1.subscriptions.cancel(active.pk)
    whole = StripePayment.objects.filter(refunded=0, paid=2_500).order_by("created_at").first()
    assert whole is not None
    client.v1.refunds.create({"payment_intent": whole.pk})
    later = datetime.fromtimestamp(client.now(), UTC) - timedelta(minutes=1)
    client.control("POST", "/clock", advance=120)
    run = reconciliation.run(since=later, now=now)
    assert set(run.healed) >= {active.pk, whole.pk}
    whole.refresh_from_db()
    active.refresh_from_db()
    assert (whole.refunded, active.status, run.problems) == (2_500, "canceled", [])


class TestProblems:
    def test_money_without_credits_and_credits_without_money_are_told_each_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = timezone.now()
        monkeypatch.setenv("TEST_PACK", "price_of_something_else")
        stranger = world.client.customer().id
        unknown = world.buy(stranger)
        account = world.accounts[0]
        ledger.grant(
            account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=NANOS, source="purchased", source_key="pi_invented",
            key="invented", actor="eve", reason="a gift", priority=20,
        )  # fmt: skip
        for _ in range(2):
            run = reconciliation.run(since=now - timedelta(days=3), now=now)
            told = "\n".join(run.problems)
            assert f"{unknown}, 1000 usd, was paid by {stranger}, who is no customer of ours." in told
            assert f"of {account.public_id} has no payment pi_invented." in told
            assert told.count("is of no pack") == 4
        assert not Grant.objects.filter(source="purchased", source_key__startswith="pi_").exclude(source_key="pi_invented").exists()
        monkeypatch.setenv("TEST_PACK", world.pack)
        for payment in StripePayment.objects.exclude(note=""):
            stripe_inbox.look_at(intent=payment.pk, now=now)
        told = "\n".join(reconciliation.run(since=now - timedelta(days=3), now=now).problems)
        assert "is of no pack" not in told

    def test_a_price_of_no_plan_a_customer_that_was_deleted_and_a_payment_that_is_gone_are_told(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = timezone.now()
        reconciliation.run(since=now - timedelta(days=3), now=now)
        monkeypatch.setenv("TEST_CORE", "price_of_something_else")
        account = world.accounts[0]
        StripePayment.objects.create(
            id="pi_gone", account=account, status="succeeded", currency="usd", paid=1, refunded=0, disputed=False, created_at=now,
            read_number=1,
        )  # fmt: skip
        customer = world.client.customer().id
        StripeCustomer.objects.create(id=customer, account=account)
        world.client.v1.customers.delete(customer)
        told = "\n".join(reconciliation.run(since=now - timedelta(days=3), now=now).problems)
        assert "pi_gone is not at Stripe any more." in told
        assert f"{customer}, the customer of {account.public_id}, is not at Stripe any more." in told
        assert told.count(f"The price {world.plan} of sub_") == 2

    def test_an_object_that_cannot_be_read_does_not_stop_the_others(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        now = timezone.now()
        look_at = stripe_inbox.look_at

        def fail_for_subscriptions(**which: object) -> object:
            if which.get("subscription"):
                raise KeyError("items")
            return look_at(**which)  # type: ignore[arg-type]

        monkeypatch.setattr(stripe_inbox, "look_at", fail_for_subscriptions)
        run = reconciliation.run(since=now - timedelta(days=3), now=now)
        assert any("cannot be taken over: KeyError" in problem for problem in run.problems)
        assert sum(balance(account)[0] for account in world.accounts) > 0


class TestWhen:
    def test_it_runs_once_a_day_and_looks_back_to_the_last_run(self, client: Client) -> None:
        now = datetime(2026, 6, 1, tzinfo=UTC)
        first = reconciliation.run_due(now=now)
        assert first is not None
        assert first.since == now - timedelta(days=4)
        assert reconciliation.run_due(now=now + timedelta(hours=23)) is None
        late = reconciliation.run_due(now=now + timedelta(days=9))
        assert late is not None
        assert late.since == now - timedelta(days=1)
        very_late = reconciliation.run_due(now=now + timedelta(days=400))
        assert very_late is not None
        assert very_late.since == now + timedelta(days=370)

    def test_where_stripe_is_dead_it_is_tried_again_in_an_hour(self, client: Client) -> None:
        now = timezone.now()
        client.control("POST", "/fault", mode="500_before")
        with pytest.raises(sdk.StripeError):
            reconciliation.run_due(now=now)
        assert StripeReconciliation.objects.get().finished_at is None
        client.control("DELETE", "/fault")
        assert reconciliation.run_due(now=now + timedelta(minutes=59)) is None
        assert reconciliation.run_due(now=now + timedelta(minutes=61)) is not None

    def test_the_task_runs_it(self, client: Client) -> None:
        assert tasks.reconcile_stripe() is True
        assert tasks.reconcile_stripe() is False


class TestCommand:
    def test_it_tells_what_it_healed_and_fails_where_something_is_left(self, world: World) -> None:
        out = io.StringIO()
        call_command("stripe", "reconcile", stdout=out)
        assert "healed: sub_" in out.getvalue()
        world.buy(world.client.customer().id)
        with pytest.raises(SystemExit) as ended:
            call_command("stripe", "reconcile", "--days", "1", stdout=out)
        assert ended.value.code == 1
        assert "for staff: pi_" in out.getvalue()
        user = User.objects.create_user("staff@example.com", "correct horse battery", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename="view_stripereconciliation"))
        browser = Browser()
        browser.force_login(user)
        assert browser.get(reverse("admin:billing_stripereconciliation_changelist")).status_code == 200
        newest = StripeReconciliation.objects.first()
        assert newest is not None
        assert (
            "who is no customer of ours"
            in browser.get(reverse("admin:billing_stripereconciliation_change", args=[newest.pk])).content.decode()
        )

    def test_while_stripe_is_dead_it_says_so(self, client: Client) -> None:
        client.control("POST", "/fault", mode="500_before")
        with pytest.raises(CommandError, match="Stripe does not answer"):
            call_command("stripe", "reconcile")

    @pytest.mark.parametrize("days", ["0", "31", "-1", "1.5", "x", "１", "9" * 5_000])
    def test_days_that_are_none_are_refused(self, days: str) -> None:
        with pytest.raises(CommandError, match="expected a whole number"):
            call_command("stripe", "reconcile", f"--days={days}")


def test_no_event_is_made_by_comparing(world: World) -> None:
    reconciliation.run(since=timezone.now() - timedelta(days=3), now=timezone.now())
    assert not StripeEvent.objects.exists()
