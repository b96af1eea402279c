"""An event is worked until it is done or dead, others never wait for it, and what it did is done once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction
from pytest_django import Settings

from accounts.models import Account
from billing import audit, stripe_api, stripe_inbox, stripe_receiver, tasks
from billing.models import Grant, StripeCustomer, StripeEvent, StripeSubscription, Wallet
from billing.tests import stripe_stub
from billing.tests.stripe_stub import Stub, event, new
from pricing.models import CreditPack
from tests.factories import NANOS, START, make_account, make_product

NOW = datetime(2026, 1, 10, tzinfo=UTC)


@pytest.fixture
def stub(settings: Settings) -> Iterator[Stub]:
    stub = Stub()
    with stripe_stub.served(stub) as address:
        settings.STRIPE_API_HOST = address
        stripe_api.client.cache_clear()
        yield stub
    stripe_api.client.cache_clear()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Account:
    return make_shop(monkeypatch)


def make_shop(monkeypatch: pytest.MonkeyPatch) -> Account:
    """A customer of a product that sells $12 of credit for $10."""
    product = make_product(burn_order=["monthly", "purchased"])
    monkeypatch.setenv("STRIPE_TEST_PACK", "price_pack")
    CreditPack.objects.create(
        product=product, slug="starter", name="Starter", valid_from=START, price_cents=1_000, credit_nanos=12 * NANOS,
        stripe_price_setting="STRIPE_TEST_PACK",
    )  # fmt: skip
    account = make_account(product)
    StripeCustomer.objects.create(id=new("cus"), account=account)
    return account


def receive(type: str, obj: dict[str, Any], *, now: datetime = NOW, **fields: Any) -> StripeEvent:
    """An event as the receiver stores it."""
    message = event(type, obj) | fields
    stripe_receiver.store(stripe_receiver.parse(json.dumps(message)), endpoint="/test", now=now)
    return StripeEvent.objects.get(event_id=message["id"])


def work(now: datetime = NOW) -> list[StripeEvent]:
    worked = []
    while (one := stripe_inbox.work_next(now=now)) is not None:
        worked.append(one)
    return worked


def balance(account: Account) -> tuple[int, int, int]:
    wallet = Wallet.objects.filter(account=account).first()
    return (wallet.balance, wallet.debt, wallet.held) if wallet else (0, 0, 0)


@pytest.mark.django_db
class TestWork:
    def test_a_paid_pack_is_granted_and_its_event_is_done(self, stub: Stub, shop: Account) -> None:
        intent = stub.pack(shop.stripe_customer.pk, "price_pack", 1_000)
        received = receive("payment_intent.succeeded", intent)
        [worked] = work()
        assert (worked.pk, worked.state, worked.attempts, worked.done_at) == (received.pk, "done", 1, NOW)
        assert balance(shop) == (12 * NANOS, 0, 0)
        assert work() == []

    def test_a_type_that_nobody_knows_is_ignored(self, stub: Stub, shop: Account) -> None:
        receive("moon.landed", {"id": "moon_1"})
        assert [(one.state, one.last_error) for one in work()] == [("ignored", "Nothing here depends on events of this type.")]

    @pytest.mark.failure(66, 67)
    def test_an_object_that_stripe_has_not_is_kept_for_staff_and_worked_again_when_our_key_is_put_right(
        self, stub: Stub, shop: Account
    ) -> None:
        """Stripe signed it, so it has it: for the key of another Stripe account it has not."""
        intent = stub.pack(shop.stripe_customer.pk, "price_pack", 1_000)
        received = receive("payment_intent.succeeded", intent)
        elsewhere = stub.objects.pop(intent["id"])
        [worked] = work()
        assert worked.state == "quarantined"
        assert worked.last_error.startswith("Stripe has not what this is about")
        assert balance(shop) == (0, 0, 0)
        stub.put(elsewhere)
        stripe_inbox.work_again(event_ids=[received.event_id], now=NOW)
        assert [one.state for one in work()] == ["done"]
        assert balance(shop) == (12 * NANOS, 0, 0)

    def test_it_is_the_object_at_stripe_that_counts_not_what_the_event_says(self, stub: Stub, shop: Account) -> None:
        intent = stub.pack(shop.stripe_customer.pk, "price_pack", 1_000, status="requires_payment_method", amount_received=0)
        receive("payment_intent.succeeded", intent | {"status": "succeeded", "amount_received": 99_999})
        assert [one.state for one in work()] == ["done"]
        assert balance(shop) == (0, 0, 0)

    @pytest.mark.failure(69)
    def test_an_event_of_another_api_version_works_like_any_other(self, stub: Stub, shop: Account) -> None:
        receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000), api_version="2099-01-01.zinnia")
        assert [one.state for one in work()] == ["done"]
        assert balance(shop) == (12 * NANOS, 0, 0)

    @pytest.mark.failure(70)
    def test_while_stripe_is_dead_it_is_tried_again_later_and_later_and_then_it_is_worked(self, stub: Stub, shop: Account) -> None:
        receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000))
        stub.trouble, now, delays = 500, NOW, []
        for _ in range(4):
            [failed] = work(now)
            delays.append(failed.next_attempt_at - now)
            assert (failed.state, failed.last_error) == ("pending", "APIError: out of order")
            assert work(failed.next_attempt_at - timedelta(microseconds=1)) == []
            now = failed.next_attempt_at
        assert delays == [timedelta(seconds=seconds) for seconds in (10, 20, 40, 80)]
        stub.trouble = None
        assert [one.state for one in work(now)] == ["done"]
        assert balance(shop) == (12 * NANOS, 0, 0)

    @pytest.mark.parametrize("trouble", [401, 402, 403, 429, 500, 503])
    def test_whatever_stripe_answers_the_event_stays(self, stub: Stub, shop: Account, trouble: int) -> None:
        receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000))
        stub.trouble = trouble
        assert [one.state for one in work()] == ["pending"]

    @pytest.mark.failure(82)
    def test_a_poisonous_event_is_dead_after_15_attempts_and_others_do_not_wait_for_it(self, stub: Stub, shop: Account) -> None:
        poison = receive("payment_intent.succeeded", stub.put({"id": new("pi"), "object": "payment_intent", "status": None}))
        good = receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000))
        assert {one.pk: one.state for one in work()} == {poison.pk: "pending", good.pk: "done"}
        now, attempts = NOW, 1
        while poison.state == "pending":
            poison.refresh_from_db()
            now = poison.next_attempt_at
            attempts += len(work(now))
            poison.refresh_from_db()
        assert (poison.state, poison.attempts, attempts) == ("dead", 15, 15)
        assert poison.last_error.startswith("KeyError")
        assert work(now + timedelta(days=9)) == []

    @pytest.mark.failure(62)
    def test_an_effect_that_fails_leaves_nothing_and_its_retry_does_all_of_it(
        self, stub: Stub, shop: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000))
        finish = stripe_inbox._finish

        def fail(*_: object) -> None:
            raise RuntimeError("after the grant")

        monkeypatch.setattr(stripe_inbox, "_finish", fail)
        [failed] = [stripe_inbox.work_next(now=NOW)]
        monkeypatch.setattr(stripe_inbox, "_finish", finish)
        assert failed is not None
        assert failed.last_error == "RuntimeError: after the grant"
        assert balance(shop) == (0, 0, 0)
        assert [one.state for one in work(failed.next_attempt_at)] == ["done"]
        assert balance(shop) == (12 * NANOS, 0, 0)

    @pytest.mark.failure(62)
    def test_a_worker_that_never_comes_back_is_replaced_when_its_lease_ends(self, stub: Stub, shop: Account) -> None:
        receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000))
        assert stripe_inbox._claim(NOW) is not None  # and there it dies
        assert work(NOW + stripe_inbox.LEASE - timedelta(seconds=1)) == []
        assert [one.attempts for one in work(NOW + stripe_inbox.LEASE)] == [2]
        assert balance(shop) == (12 * NANOS, 0, 0)

    @pytest.mark.failure(82)
    @pytest.mark.failure(62, 77)
    @pytest.mark.parametrize("place", ["_read_number", "_read", "_owner", "_verdict", "_finish"])
    def test_wherever_a_worker_is_killed_nothing_of_it_is_left_and_the_next_one_does_all_of_it(
        self, stub: Stub, shop: Account, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000))

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(stripe_inbox, place, killed)
            with pytest.raises(KeyboardInterrupt):
                stripe_inbox.work_next(now=NOW)
        assert (balance(shop), StripeEvent.objects.get().state) == ((0, 0, 0), "pending")
        assert [one.state for one in work(NOW + stripe_inbox.LEASE)] == ["done"]
        assert balance(shop) == (12 * NANOS, 0, 0)

    def test_an_event_that_kills_its_workers_is_dead_too(self, stub: Stub, shop: Account) -> None:
        killer = receive("payment_intent.succeeded", {"id": "pi_killer"})
        now = NOW
        for _ in range(15):
            assert stripe_inbox._claim(now) is not None
            now += stripe_inbox.LEASE
        assert [one.state for one in work(now)] == ["dead"]
        killer.refresh_from_db()
        assert killer.last_error == "Its workers never came back."
        assert stub.requests == []

    def test_dead_events_are_worked_again_when_staff_say_so(self, stub: Stub, shop: Account) -> None:
        received = receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000))
        StripeEvent.objects.filter(pk=received.pk).update(state="dead", attempts=15, done_at=NOW)
        assert work() == []
        again = stripe_inbox.work_again(event_ids=[received.event_id, "evt_unknown"], now=NOW)
        assert [one.event_id for one in again] == [received.event_id]
        assert [one.state for one in work()] == ["done"]
        stripe_inbox.work_again(event_ids=[received.event_id], now=NOW)
        assert [one.state for one in work()] == ["done"]
        assert balance(shop) == (12 * NANOS, 0, 0)

    def test_what_is_set_aside_is_not_worked_and_what_is_done_stays_done(self, stub: Stub, shop: Account) -> None:
        done = receive("moon.landed", {"id": "moon_1"})
        work()
        waiting = receive("payment_intent.succeeded", {"id": "pi_1"})
        ids = [done.event_id, waiting.event_id]
        assert [one.event_id for one in stripe_inbox.set_aside(event_ids=ids, reason="a test", now=NOW)] == [waiting.event_id]
        waiting.refresh_from_db()
        assert (waiting.state, waiting.last_error) == ("ignored", "Set aside: a test")
        assert work() == []

    @pytest.mark.failure(79)
    def test_the_sweepers_task_works_what_is_due(self, stub: Stub, shop: Account) -> None:
        receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000))
        assert tasks.work_stripe_inbox() == 1
        assert tasks.work_stripe_inbox() == 0
        assert balance(shop) == (12 * NANOS, 0, 0)


@pytest.mark.django_db
class TestWhose:
    @pytest.mark.failure(66)
    def test_the_owner_is_who_our_map_says_whatever_metadata_says(self, stub: Stub, shop: Account) -> None:
        other = make_account(shop.product)
        lies = {"account": other.public_id, "user_id": str(other.pk), "account_id": str(other.pk)}
        receive("payment_intent.succeeded", stub.pack(shop.stripe_customer.pk, "price_pack", 1_000, metadata=lies))
        work()
        assert balance(shop) == (12 * NANOS, 0, 0)
        assert balance(other) == (0, 0, 0)

    @pytest.mark.failure(66)
    @pytest.mark.parametrize("customer", [None, "cus_of_somebody_else"])
    def test_a_payment_of_no_customer_of_ours_is_ignored(self, stub: Stub, shop: Account, customer: str | None) -> None:
        intent = stub.pack(customer, "price_pack", 1_000, metadata={"account": shop.public_id})
        subscription = stub.subscription("cus_of_somebody_else", "price_plan")
        for type, obj in (
            ("payment_intent.succeeded", intent),
            ("charge.refunded", intent["latest_charge"]),
            ("checkout.session.completed", stub.session_of(intent)),
            ("customer.subscription.created", subscription),
            ("invoice.paid", stub.invoice(subscription, 2_500)),
        ):
            receive(type, obj)
        assert {one.state for one in work()} == {"ignored"}
        assert not Grant.objects.filter(account=shop).exists()

    def test_a_payment_that_paid_nothing_of_ours_is_ignored(self, stub: Stub, shop: Account) -> None:
        intent = stub.pack(shop.stripe_customer.pk, "price_pack", 1_000)
        del stub.objects[stub.session_of(intent)["id"]]
        receive("payment_intent.succeeded", intent)
        [worked] = work()
        assert (worked.state, worked.last_error) == ("ignored", f"{intent['id']} paid no session and no invoice.")

    def test_a_customer_and_a_subscription_at_stripe_are_one_accounts_and_an_account_is_one_customer(
        self, stub: Stub, shop: Account
    ) -> None:
        other = make_account(shop.product)
        with pytest.raises(IntegrityError, match="duplicate key"), transaction.atomic():
            StripeCustomer.objects.create(id=shop.stripe_customer.pk, account=other)
        with pytest.raises(IntegrityError, match="duplicate key"), transaction.atomic():
            StripeCustomer.objects.create(id=new("cus"), account=shop)
        subscription = stub.subscription(shop.stripe_customer.pk, "price_plan")
        receive("customer.subscription.created", subscription)
        subscription["customer"] = StripeCustomer.objects.create(id=new("cus"), account=other).pk
        receive("customer.subscription.updated", subscription)
        work()
        found = StripeSubscription.objects.get(pk=subscription["id"])
        assert found.account_id == other.pk  # as Stripe said when it was first read, and never another's afterwards
        subscription["customer"] = shop.stripe_customer.pk
        receive("customer.subscription.updated", subscription)
        work()
        assert StripeSubscription.objects.get().account_id == other.pk
        with pytest.raises(IntegrityError, match="duplicate key"), transaction.atomic():
            StripeSubscription.objects.bulk_create([found])


class TestAtOnce:
    @pytest.fixture
    def committed_shop(self, committed: None, monkeypatch: pytest.MonkeyPatch) -> Account:
        # Only this test's events are due at this time: others' are never pending when they end.
        monkeypatch.setattr(stripe_receiver, "ring", lambda: None)
        return make_shop(monkeypatch)

    @pytest.mark.failure(58)
    def test_many_workers_and_many_events_of_one_payment_make_one_grant(self, committed_shop: Account, stub: Stub) -> None:
        intent = stub.pack(committed_shop.stripe_customer.pk, "price_pack", 1_000)
        session, charge = stub.session_of(intent), intent["latest_charge"]
        stub.refund(intent, 250)
        for _ in range(4):
            receive("payment_intent.succeeded", intent)
            receive("checkout.session.completed", session)
            receive("charge.refunded", charge)

        def run(_: int) -> list[str]:
            try:
                return [str(one.state) for one in work()]
            finally:
                connections.close_all()

        with ThreadPoolExecutor(6) as pool:
            states = [state for states in pool.map(run, range(6)) for state in states]
        assert states == ["done"] * 12
        assert balance(committed_shop) == (9 * NANOS, 0, 0)
        assert Grant.objects.filter(account=committed_shop).count() == 1
        assert audit.run() == []

    def test_of_two_reads_at_once_the_older_one_never_overwrites_the_newer(self, committed_shop: Account, stub: Stub) -> None:
        intent = stub.pack(committed_shop.stripe_customer.pk, "price_pack", 1_000)
        dispute = stub.dispute(intent, 1_000)
        first = receive("charge.dispute.created", dispute)
        old = stripe_inbox._read_number(), stripe_inbox._read(first)  # reads that the dispute is open, and is slow
        dispute["status"] = "won"
        receive("charge.dispute.closed", dispute)
        stripe_inbox.set_aside(event_ids=[first.event_id], reason="worked by hand here", now=NOW)
        assert [one.state for one in work()] == ["done"]
        with transaction.atomic():
            assert old[1](NOW, old[0]) == ("done", "")
        assert balance(committed_shop) == (12 * NANOS, 0, 0)
        assert not Grant.objects.filter(account=committed_shop, frozen__gt=0).exists()

    def test_what_comes_for_one_customer_waits_for_what_is_being_done_for_it(self, committed_shop: Account, stub: Stub) -> None:
        receive("payment_intent.succeeded", stub.pack(committed_shop.stripe_customer.pk, "price_pack", 1_000))

        def run() -> list[str]:
            try:
                return [str(one.state) for one in work()]
            finally:
                connections.close_all()

        with ThreadPoolExecutor(1) as pool:
            with transaction.atomic():
                stripe_inbox._owner(committed_shop.stripe_customer.pk)
                working = pool.submit(run)
                with pytest.raises(TimeoutError):
                    working.result(timeout=1)
            assert working.result(timeout=10) == ["done"]
        assert balance(committed_shop) == (12 * NANOS, 0, 0)
