"""Automatic top-ups against the double of Stripe, over HTTP both ways: one charge closes the gap, none comes twice, none passes the cap."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connections
from django.utils import timezone

from accounts.models import Account, Mail, WebhookEvent
from accounts.tests.webhook_page import as_documented
from billing import audit, ledger, stripe_customers, stripe_requests, top_ups
from billing.models import AutoTopUp, CardDecline, Checkout, Grant, TopUp, Wallet
from billing.tests.selling import Shop, double, shop
from metering import kill_switches, tasks
from tests.factories import NANOS, give

__all__ = ["double", "shop"]  # fixtures
#: Saved, and declined at every charge.
BAD_CARD = "pm_card_chargeCustomerFail"


class TestArithmetic:
    @pytest.mark.parametrize(
        ("funds", "threshold", "credit", "copies"),
        [
            (10, 10, 6, 0), (11, 10, 6, 0), (9, 10, 6, 1), (4, 10, 6, 2), (5, 10, 6, 1), (0, 10, 6, 2), (-30, 10, 6, 7), (0, 0, 6, 0),
            (-1, 0, 6, 1),
        ],
    )  # fmt: skip
    def test_as_many_packs_as_bring_the_funds_above_the_threshold(self, funds: int, threshold: int, credit: int, copies: int) -> None:
        assert top_ups.wanted(funds_nanos=funds, threshold_nanos=threshold, credit_nanos=credit) == copies
        if copies:
            assert funds + copies * credit > threshold >= funds + (copies - 1) * credit

    @pytest.mark.parametrize(
        ("copies", "spent", "cap", "bought"),
        [(2, 0, 1_000, 2), (3, 0, 1_000, 2), (2, 600, 1_000, 0), (2, 500, 1_000, 1), (2, 2_000, 1_000, 0), (0, 0, 1_000, 0)],
    )  # fmt: skip
    def test_and_never_more_than_the_cap_of_the_day_allows(self, copies: int, spent: int, cap: int, bought: int) -> None:
        assert top_ups.affordable(copies=copies, price_cents=500, spent_cents=spent, cap_cents=cap) == bought


def card(shop: Shop, account: Account, name: str = "pm_card_visa") -> None:
    shop.client.use_card(stripe_customers.of(account=account, now=timezone.now()).pk, name)


def turn_on(
    shop: Shop, account: Account, *, threshold: int = 10, cap: int = 5_000, pack: str = "small", method: str = "pm_card_visa"
) -> AutoTopUp:
    """Below ``threshold`` units, $5 packs of 6, for $50 a day."""
    card(shop, account, method)
    return top_ups.choose(
        account=account, enabled=True, threshold_nanos=threshold * NANOS, pack=pack, daily_cap_cents=cap, actor="ada", now=timezone.now()
    )


def run(now: datetime | None = None, stopped: Callable[[Account], str] = lambda _: "") -> None:
    """What the job does, at ``now``."""
    while top_ups.go_on_next(now=now or timezone.now()):
        pass
    while top_ups.work_next(now=now or timezone.now(), stopped=stopped):
        pass


def look(account: Account) -> None:
    """Has the account's turn come again."""
    AutoTopUp.objects.filter(account=account).update(look_again_at=timezone.now())


def last(account: Account) -> TopUp:
    return TopUp.objects.filter(account=account).latest("created_at")


def free(account: Account) -> int:
    wallet = Wallet.objects.filter(account=account).first()
    return wallet.available // NANOS if wallet else 0


def charges(shop: Shop) -> list[int]:
    """What Stripe took, in cents."""
    return [charge.amount for charge in shop.client.v1.charges.list({"limit": 100}).data if charge.paid]


@pytest.fixture
def account(shop: Shop) -> Account:
    return shop.account()


class TestCharge:
    def test_one_charge_closes_the_gap_and_its_credit_is_there_before_the_event(self, shop: Shop, account: Account) -> None:
        shop.client.control("POST", "/settings", webhooks_paused=True)
        turn_on(shop, account)
        run()
        made = last(account)
        assert (made.state, made.copies, made.amount_cents, made.card) == ("paid", 2, 1_000, "Visa ending 4242")
        assert (charges(shop), free(account)) == ([1_000], 12)
        lot = Grant.objects.defer("expires_at").get(account=account)
        assert (lot.source, lot.cash_nanos, lot.fee_nanos) == ("purchased", 10 * NANOS, 590_000_000)
        run()
        shop.client.control("POST", "/settings", webhooks_paused=False)
        assert shop.settle() == set()
        assert (charges(shop), free(account), TopUp.objects.filter(account=account).count()) == ([1_000], 12, 1)
        assert audit.run() == []

    def test_nothing_happens_at_or_above_the_threshold_and_where_it_is_off(self, shop: Shop, account: Account) -> None:
        give(account, 10 * NANOS)
        turn_on(shop, account)
        run()
        top_ups.choose(
            account=account, enabled=False, threshold_nanos=99 * NANOS, pack="small", daily_cap_cents=500, actor="ada", now=timezone.now()
        )
        run()
        assert (charges(shop), TopUp.objects.filter(account=account).count()) == ([], 0)

    @pytest.mark.failure(72)
    def test_while_the_credit_is_on_its_way_nothing_is_charged_again(self, shop: Shop, account: Account) -> None:
        """Stripe took the money and then did not let itself be asked; the event is late, too."""
        turn_on(shop, account)
        shop.client.control("POST", "/settings", webhooks_paused=True)
        shop.client.control("POST", "/fault", mode="500_before", path="/v1/invoice_payments")
        shop.client.control("POST", "/fault", mode="500_before", path="/v1/payment_intents")
        run()
        made = last(account)
        assert (made.state, charges(shop), free(account)) == ("pending", [1_000], 0)
        assert top_ups.funds(account, now=timezone.now()) == 12 * NANOS
        for _ in range(3):
            look(account)
            run()
        assert (charges(shop), TopUp.objects.filter(account=account).count()) == ([1_000], 1)
        shop.client.control("DELETE", "/fault")
        shop.client.control("POST", "/settings", webhooks_paused=False)
        assert shop.settle() == set()
        assert (last(account).state, free(account)) == ("paid", 12)
        assert top_ups.funds(account, now=timezone.now()) == 12 * NANOS

    @pytest.mark.failure(74)
    @pytest.mark.parametrize("mode", ["dead_after", "500_after", "dead_before"])
    @pytest.mark.parametrize("path", ["/v1/invoices", "/v1/invoiceitems", "/pay"])
    def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_charged_twice(
        self, shop: Shop, account: Account, mode: str, path: str
    ) -> None:
        turn_on(shop, account)
        now = timezone.now()
        shop.client.control("POST", "/fault", mode=mode, path=path, count=1, method="POST")
        run(now)
        shop.client.control("DELETE", "/fault")
        for _ in range(8):
            now += timedelta(hours=2)
            stripe_requests.sweep(now=now)
            run(now)
        shop.settle()
        assert (last(account).state, charges(shop), free(account)) == ("paid", [1_000], 12)
        assert TopUp.objects.filter(account=account).exclude(state="skipped").count() == 1

    def test_debt_is_closed_too(self, shop: Shop, account: Account) -> None:
        operation = give(account, 20 * NANOS, source="purchased", source_key="old")
        unit = account.product.unit_id
        ledger.adjust(account_id=account.pk, unit_id=unit, amount_nanos=-20 * NANOS, key="spent", actor="ann", reason="spent")
        ledger.refund(
            account_id=account.pk, source="purchased", source_key="old", refunded=1, paid=1, key="r", actor="ann", reason="refund"
        )
        assert operation.grant_id
        turn_on(shop, account, threshold=10)
        run()
        assert (last(account).copies, free(account)) == (6, 16)

    def test_a_price_whose_amount_customers_choose_is_charged_the_packs(self, shop: Shop, account: Account) -> None:
        price = shop.client.v1.prices.create(
            {"currency": "usd", "custom_unit_amount": {"enabled": True}, "product_data": {"name": "Credit"}}
        ).id
        shop.pack("any", 700, 9, price=price)
        turn_on(shop, account, pack="any")
        run()
        shop.settle()
        assert (charges(shop), free(account)) == ([1_400], 18)

    def test_credit_that_the_customer_has_at_stripe_pays_first_and_buys_as_much(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account)
        shop.client.v1.customers.update(account.stripe_customer.pk, {"balance": -5_000})
        run()
        assert shop.settle() == set()
        assert (last(account).state, charges(shop), free(account)) == ("paid", [], 12)


class TestCap:
    def test_the_cap_of_the_day_is_never_passed_and_the_customer_is_told(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account, threshold=100, cap=1_200)
        now = datetime.now(UTC).replace(hour=12) + timedelta(days=1)
        run(now)
        assert (charges(shop), last(account).copies) == ([1_000], 2)
        run(now + timedelta(minutes=1))
        skipped = TopUp.objects.get(account=account, state="skipped")
        assert (skipped.state, skipped.reason) == ("skipped", "The cap of $12.00 a day does not allow another pack today (UTC).")
        look(account)
        run(now + timedelta(hours=1))
        assert TopUp.objects.filter(account=account, state="skipped").count() == 1
        run(now + timedelta(days=1))
        assert charges(shop) == [1_000, 1_000]

    def test_the_database_keeps_the_cap_whoever_charges(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account, cap=1_000)
        pack = account.product.packs.get(slug="small")
        now = timezone.now()
        terms: dict[str, Any] = {"account": account, "pack": pack, "copies": 1, "credit_nanos": 1, "day": now.date(), "created_at": now}
        TopUp.objects.create(amount_cents=600, state="paid", finished_at=now, **terms)
        with pytest.raises(IntegrityError, match="would pass the cap of 1000"):
            TopUp.objects.create(amount_cents=500, **terms)
        made = TopUp.objects.create(amount_cents=400, **terms)
        with pytest.raises(IntegrityError, match="never changes"):
            TopUp.objects.filter(pk=made.pk).update(amount_cents=1)
        with pytest.raises(IntegrityError, match=r"top_up_one_under_way|would pass"):
            TopUp.objects.create(amount_cents=1, **terms)

    def test_eight_workers_at_once_charge_once(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account, cap=1_000)
        barrier = threading.Barrier(8)

        def worker(_: int) -> None:
            try:
                barrier.wait()
                for _again in range(3):
                    look(account)
                    top_ups.work_next(now=timezone.now(), stopped=lambda _: "")
            finally:
                connections.close_all()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(worker, range(8)))
        shop.settle()
        run()
        assert (charges(shop), free(account)) == ([1_000], 12)


class TestBreaker:
    @pytest.mark.failure(72)
    def test_a_declined_card_is_left_alone_for_an_hour_then_four_then_until_it_is_replaced(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account, method=BAD_CARD)
        now, tried = datetime.now(UTC), []
        for minutes in range(0, 60 * 8, 10):
            AutoTopUp.objects.filter(account=account).update(look_again_at=now)
            run(now + timedelta(minutes=minutes))
            tried.append(TopUp.objects.filter(account=account, state="declined").count())
        assert [index * 10 for index, count in enumerate(tried) if count != (tried[index - 1] if index else 0)] == [0, 60, 300]
        breaker = CardDecline.objects.get(account=account)
        assert (breaker.declines, breaker.retry_at) == (3, None)
        assert "Replace it" in last(account).reason
        assert Mail.objects.filter(account=account, kind="top_up_failed").count() == 3
        events = list(WebhookEvent.objects.filter(account=account, kind="top_up.failed").order_by("pk").values_list("data", flat=True))
        assert [(data["amount"], data["currency"], data["retry_at"] is None) for data in events] == [
            ("10.00", "usd", index == 2) for index in range(3)
        ]
        assert all(as_documented("top_up.failed", data) for data in events)
        card(shop, account, "pm_card_mastercard")
        look(account)
        run(now + timedelta(hours=8))
        assert (last(account).state, charges(shop)) == ("paid", [1_000])

    def test_the_invoice_of_a_declined_charge_is_voided_so_that_nobody_pays_it_later(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account, method=BAD_CARD)
        run()
        assert shop.client.v1.invoices.retrieve(last(account).invoice_id).status == "void"
        assert shop.settle() == set()
        assert (last(account).state, last(account).reason, free(account)) == ("declined", "Your card was declined.", 0)

    def test_the_same_card_added_again_is_the_same_card_and_somebody_may_have_it_tried_again(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account, method=BAD_CARD)
        run()
        card(shop, account, BAD_CARD)
        look(account)
        run()
        assert TopUp.objects.filter(account=account, state="declined").count() == 1
        assert top_ups.try_again(account=account, now=timezone.now()) == 1
        run()
        assert TopUp.objects.filter(account=account, state="declined").count() == 2

    def test_a_charge_that_succeeds_forgets_the_declines(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account)
        saved = top_ups.card_of(account)
        assert saved is not None
        CardDecline.objects.create(
            account=account, fingerprint=saved.fingerprint, declines=1, retry_at=timezone.now() - timedelta(minutes=1)
        )
        run()
        assert (last(account).state, CardDecline.objects.get(account=account).declines) == ("paid", 0)


class TestByHand:
    @pytest.mark.failure(73)
    def test_an_open_checkout_is_expired_before_the_charge(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account)
        visit = shop.buy(account)
        run()
        visit.refresh_from_db()
        assert (visit.state, last(account).state, charges(shop)) == ("expired", "paid", [1_000])
        assert shop.client.post(visit.url or f"{shop.client.address}/c/pay/{visit.session_id}", number="4242424242424242")[0] != 303

    @pytest.mark.failure(73)
    def test_a_checkout_that_was_paid_a_moment_ago_is_waited_for(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account)
        shop.client.control("POST", "/settings", webhooks_paused=True)
        visit = shop.buy(account, "large")
        shop.pay(visit)
        run()
        assert (last(account).state, last(account).reason) == ("skipped", "You were just paying by hand.")
        shop.client.control("POST", "/settings", webhooks_paused=False)
        assert shop.settle() == set()
        look(account)
        run()
        assert (charges(shop), free(account)) == ([2_000], 30)

    @pytest.mark.failure(73)
    def test_both_paid_one_settles_and_the_top_up_is_given_back(
        self, shop: Shop, account: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A checkout is opened and paid between the last look and the charge."""
        turn_on(shop, account)
        charge = top_ups._charge

        def paid_meanwhile(top_up: TopUp, now: datetime) -> None:
            shop.pay(shop.buy(account, "large"))
            charge(top_up, timezone.now())

        monkeypatch.setattr(top_ups, "_charge", paid_meanwhile)
        run()
        monkeypatch.undo()
        assert shop.settle() == set()
        made = last(account)
        assert (made.state, made.reason) == ("refunded", top_ups.PAID_TWICE)
        assert (sorted(charges(shop)), free(account)) == ([1_000, 2_000], 30)
        assert [refund.amount for refund in shop.client.v1.refunds.list().data] == [1_000]
        assert audit.run() == []
        assert Checkout.objects.get(account=account).state == "paid"

    @pytest.mark.failure(73)
    def test_what_the_customers_credit_at_stripe_paid_twice_is_for_staff_to_decide(
        self, shop: Shop, account: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        turn_on(shop, account)
        charge = top_ups._charge

        def paid_meanwhile(top_up: TopUp, now: datetime) -> None:
            shop.pay(shop.buy(account, "large"))
            shop.client.v1.customers.update(account.stripe_customer.pk, {"balance": -5_000})
            charge(top_up, timezone.now())

        monkeypatch.setattr(top_ups, "_charge", paid_meanwhile)
        run()
        monkeypatch.undo()
        assert shop.settle() == set()
        made = last(account)
        assert (made.state, made.reason, made.next_attempt_at) == ("paid", top_ups.UNDECIDED, None)
        assert shop.client.v1.refunds.list().data == []


class TestWhyNot:
    def test_without_a_card_by_a_switch_or_without_stripe_nothing_is_charged_and_the_reason_is_kept(
        self, shop: Shop, account: Account
    ) -> None:
        turn_on(shop, account)
        run(stopped=lambda _: "the bank is closed")
        assert last(account).reason == "Automatic top-ups are switched off at the moment: the bank is closed"
        look(account)
        shop.client.control("POST", "/fault", mode="dead_before", path="/v1/")
        run()
        shop.client.control("DELETE", "/fault")
        assert last(account).reason == "The payment provider cannot be reached; we will try again."
        for method in shop.client.v1.payment_methods.list({"customer": account.stripe_customer.pk}).data:
            shop.client.v1.payment_methods.detach(method.id)
        look(account)
        run()
        assert (last(account).reason, charges(shop)) == ("There is no saved card.", [])

    def test_the_kill_switch_of_the_product_stops_the_job(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account)
        now = timezone.now()
        switch = kill_switches.throw(
            wanted=kill_switches.Wanted(kind="top_ups", product=account.product), reason="fraud", actor="ann",
            ends_at=now + timedelta(hours=1), now=now,
        )  # fmt: skip
        monkey = kill_switches._kept
        kill_switches._kept = None
        try:
            assert tasks.top_up() == 1
            assert (last(account).state, charges(shop)) == ("skipped", [])
        finally:
            kill_switches.end(switch=switch, actor="ann", now=timezone.now())
            kill_switches._kept = monkey and None
        look(account)
        tasks.top_up()
        assert (last(account).state, charges(shop)) == ("paid", [1_000])


class TestChoice:
    @pytest.mark.parametrize(
        ("terms", "field"),
        [
            ({"threshold_nanos": -1}, "threshold"), ({"threshold_nanos": 10**16}, "threshold"), ({"daily_cap_cents": 0}, "daily_cap"),
            ({"daily_cap_cents": -5}, "daily_cap"), ({"daily_cap_cents": 10**9}, "daily_cap"), ({"daily_cap_cents": 499}, "daily_cap"),
            ({"pack": "golden"}, "pack"), ({"pack": ""}, "pack"),
        ],
    )  # fmt: skip
    def test_garbage_is_refused_by_its_field(self, shop: Shop, account: Account, terms: dict[str, Any], field: str) -> None:
        card(shop, account)
        said: dict[str, Any] = {"enabled": True, "threshold_nanos": NANOS, "pack": "small", "daily_cap_cents": 500} | terms
        with pytest.raises(top_ups.InvalidTopUp) as refusal:
            top_ups.choose(account=account, actor="ada", now=timezone.now(), **said)
        assert (refusal.value.field, AutoTopUp.objects.filter(account=account).exists()) == (field, False)

    def test_it_is_not_turned_on_without_a_saved_card(self, shop: Shop, account: Account) -> None:
        with pytest.raises(top_ups.InvalidTopUp, match="no saved card"):
            top_ups.choose(
                account=account, enabled=True, threshold_nanos=1, pack="small", daily_cap_cents=500, actor="ada", now=timezone.now()
            )


class TestGoodwill:
    @pytest.mark.parametrize("by_hand", [True, False])
    @pytest.mark.parametrize("outcome", ["won", "lost"])
    def test_who_disputes_a_payment_is_not_charged_again_before_they_say_so(
        self, shop: Shop, account: Account, by_hand: bool, outcome: str
    ) -> None:
        if by_hand:
            shop.pay(shop.buy(account, "large"))
            assert shop.settle() == set()
        turn_on(shop, account)
        run()
        [charge] = shop.client.v1.charges.list().data
        dispute = shop.client.control("POST", "/disputes", charge=charge.id)
        assert shop.settle() == set()
        look(account)
        run()
        assert (len(charges(shop)), "is disputed" in last(account).reason) == (1, True)
        shop.client.control("POST", f"/disputes/{dispute['id']}/close", outcome=outcome)
        assert shop.settle() == set()
        look(account)
        run()
        assert len(charges(shop)) == 1
        turn_on(shop, account, threshold=100)
        run()
        assert len(charges(shop)) == 2

    def test_a_top_up_that_staff_gave_back_is_not_charged_again_before_an_owner_says_so(self, shop: Shop, account: Account) -> None:
        turn_on(shop, account)
        run()
        [charge] = shop.client.v1.charges.list().data
        shop.client.v1.refunds.create({"charge": charge.id})
        assert shop.settle() == set()
        look(account)
        run()
        assert (charges(shop), last(account).reason) == ([1_000], "A top-up was refunded. Save your choice again to go on.")
        turn_on(shop, account)
        run()
        assert charges(shop) == [1_000, 1_000]
