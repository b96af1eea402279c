"""The verbs of the ledger, one sentence a test. Every test ends with a clean audit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError, transaction

from accounts.models import Account
from billing import audit, ledger
from billing.models import Grant, LedgerEntry, Wallet
from metering.models import OpenAuthorization, Throttle, UsageRecord
from tests.factories import give, make_account

pytestmark = pytest.mark.django_db
MINUTES_15 = timedelta(minutes=15)


@pytest.fixture
def account() -> Account:
    return make_account()


@pytest.fixture(autouse=True)
def audited(account: Account) -> Iterator[None]:
    yield
    assert audit.run() == []


def wallet(account: Account) -> tuple[int, int, int]:
    row = Wallet.objects.get(account=account)
    return row.balance, row.held, row.debt


def call(quantities: tuple[int, ...] = (10,)) -> ledger.Call:
    return ledger.Call(model_id=1, feature_id=None, api_key_id=None, rate_card_id=1, price_ids=[1], quantities=list(quantities))


def hold(
    account: Account, amount: int, *, key: str = "", refusal: str | None = None, minimum: int = 0, lifetime: timedelta = MINUTES_15,
    closes_at: datetime | None = None, in_debt: bool = False,
) -> ledger.Usage:  # fmt: skip
    key = key or str(uuid4())
    return ledger.hold(
        account_id=account.pk,
        key=ledger.key_hash("usage", key),
        fingerprint=ledger.fingerprint({"amount": amount}),
        refusal=refusal,
        call=call(),
        unit_id=account.product.unit_id,
        amount_nanos=amount,
        cost_nanos=amount,
        minimum_nanos=minimum,
        remaining=[None],
        lifetime=lifetime,
        hard_lifetime=max(lifetime, timedelta(hours=24)),
        closes_at=closes_at,
        in_debt=in_debt,
    )


def charge(price: int) -> ledger.Charge:
    return ledger.Charge(cost_nanos=price // 2, price_nanos=price, value_nanos=price, tokens=10)


def capture(
    account: Account, authorization: UUID, price: int, *, overage: str = "charge", quantities: tuple[int, ...] = (10,)
) -> ledger.Usage:
    return ledger.capture(
        account_id=account.pk, authorization_id=authorization, quantities=quantities, price_ids=[1], charge=charge(price), overage=overage
    )


def record(account: Account, price: int | None, *, key: str = "") -> ledger.Usage:
    key = key or str(uuid4())
    return ledger.record(
        ledger.Event(
            account_id=account.pk,
            key=ledger.key_hash("usage", key),
            fingerprint=ledger.fingerprint({"price": price}),
            call=call(),
            unit_id=account.product.unit_id,
            event_at=datetime.now(UTC),
            charge=charge(price) if price is not None else ledger.Charge(None, None, None, 10),
        )
    )


def kinds(account: Account) -> list[tuple[str, int, int]]:
    return list(LedgerEntry.objects.filter(account=account).order_by("seq").values_list("kind", "amount", "debt_delta"))


class TestGrant:
    def test_grant_adds_to_the_balance_and_writes_one_entry(self, account: Account) -> None:
        done = give(account, 100)
        assert (done.balance_nanos, done.debt_nanos, done.available_nanos, done.replayed) == (100, 0, 100, False)
        assert kinds(account) == [("grant", 100, 0)]

    @pytest.mark.failure(3)
    def test_repeated_key_grants_once_and_returns_the_first_answer(self, account: Account) -> None:
        arguments: dict[str, Any] = {
            "account_id": account.pk,
            "unit_id": account.product.unit_id,
            "amount_nanos": 100,
            "source": "staff",
            "source_key": "s1",
            "key": "k",
            "actor": "ann",
            "reason": "sorry",
            "priority": 0,
        }
        first = ledger.grant(**arguments)
        second = ledger.grant(**arguments)
        assert second.replayed
        assert (second.id, second.grant_id, second.balance_nanos) == (first.id, first.grant_id, 100)
        assert wallet(account) == (100, 0, 0)
        with pytest.raises(ledger.KeyReused):
            ledger.grant(**arguments | {"amount_nanos": 101})

    def test_one_source_is_granted_once_under_whatever_key(self, account: Account) -> None:
        arguments: dict[str, Any] = {
            "account_id": account.pk,
            "unit_id": account.product.unit_id,
            "amount_nanos": 100,
            "source": "purchased",
            "source_key": "pi_1",
            "actor": "stripe",
            "reason": "pack",
            "priority": 0,
        }
        ledger.grant(**arguments, key="invoice.paid")
        with pytest.raises(ledger.SourceReused):
            ledger.grant(**arguments, key="payment_intent.succeeded")
        assert wallet(account) == (100, 0, 0)

    @pytest.mark.failure(12)
    def test_grant_repays_debt_before_anything_is_free(self, account: Account) -> None:
        record(account, 70)
        assert wallet(account) == (0, 0, 70)
        done = give(account, 100)
        assert (done.balance_nanos, done.debt_nanos) == (30, 0)
        assert kinds(account)[-2:] == [("grant", 100, 0), ("debt_repaid", -70, -70)]

    @pytest.mark.parametrize("amount", [0, -1])
    def test_grant_of_nothing_or_less_is_refused(self, account: Account, amount: int) -> None:
        with pytest.raises(ValueError, match="more than nothing"):
            give(account, amount)

    def test_balance_beyond_the_ledger_is_refused_whole(self, account: Account) -> None:
        give(account, 2**63 - 1)
        with pytest.raises(ledger.AmountOverflow), transaction.atomic():
            give(account, 1)
        assert wallet(account) == (2**63 - 1, 0, 0)


class TestHold:
    def test_hold_reserves_without_an_entry(self, account: Account) -> None:
        give(account, 100)
        usage = hold(account, 60)
        assert (usage.hold_nanos, usage.available_nanos, usage.remaining) == (60, 40, [None, 40])
        assert wallet(account) == (100, 60, 0)
        assert len(kinds(account)) == 1

    def test_hold_above_what_is_free_is_refused_and_leaves_nothing(self, account: Account) -> None:
        give(account, 100)
        hold(account, 60)
        with pytest.raises(ledger.InsufficientCredits) as refused:
            hold(account, 41)
        assert refused.value.available_nanos == 40
        assert wallet(account) == (100, 60, 0)

    def test_minimum_balance_is_asked_for_even_by_a_smaller_hold(self, account: Account) -> None:
        give(account, 9)
        with pytest.raises(ledger.InsufficientCredits):
            hold(account, 1, minimum=10)

    @pytest.mark.failure(12)
    def test_open_debt_refuses_every_hold(self, account: Account) -> None:
        record(account, 5)
        with pytest.raises(ledger.InsufficientCredits) as refused:
            hold(account, 0)
        assert refused.value.debt_nanos == 5

    def test_where_the_product_lets_debtors_work_only_what_costs_nothing_beforehand_passes(self, account: Account) -> None:
        give(account, 10)
        record(account, 15)
        assert hold(account, 0, in_debt=True).state == "authorized"
        with pytest.raises(ledger.InsufficientCredits):
            hold(account, 1, in_debt=True)
        with pytest.raises(ledger.InsufficientCredits):
            hold(account, 0)
        assert wallet(account) == (0, 0, 5)

    @pytest.mark.failure(5)
    def test_repeated_key_returns_the_first_hold_even_when_the_wallet_is_now_empty(self, account: Account) -> None:
        give(account, 100)
        first = hold(account, 100, key="k")
        again = hold(account, 100, key="k", refusal="request_size")
        assert again.replayed
        assert (again.id, again.hold_nanos, again.created_at, again.expires_at, again.remaining) == (
            first.id,
            first.hold_nanos,
            first.created_at,
            first.expires_at,
            first.remaining,
        )
        assert wallet(account) == (100, 100, 0)

    def test_repeated_key_is_answered_after_capture_and_after_release_too(self, account: Account) -> None:
        give(account, 100)
        one, two = hold(account, 10, key="one"), hold(account, 20, key="two")
        capture(account, one.id, 10)
        ledger.release(account_id=account.pk, authorization_id=two.id)
        for first, key, amount in [(one, "one", 10), (two, "two", 20)]:
            again = hold(account, amount, key=key)
            assert (again.replayed, again.id, again.hold_nanos, again.created_at, again.expires_at, again.remaining) == (
                True,
                first.id,
                first.hold_nanos,
                first.created_at,
                first.expires_at,
                first.remaining,
            )

    @pytest.mark.failure(3)
    def test_same_key_for_another_command_is_refused(self, account: Account) -> None:
        give(account, 100)
        hold(account, 10, key="k")
        with pytest.raises(ledger.KeyReused):
            hold(account, 11, key="k")
        with pytest.raises(ledger.KeyReused):
            record(account, 1, key="k")

    def test_outside_verdict_refuses_a_new_key(self, account: Account) -> None:
        give(account, 100)
        with pytest.raises(ledger.Refused, match="request_size"):
            hold(account, 1, refusal="request_size")
        assert wallet(account) == (100, 0, 0)

    def test_stop_refuses_an_account_without_limits_until_it_is_lifted_or_has_run_out(self, account: Account) -> None:
        give(account, 100)
        ledger.throttle(account_id=account.pk, actor="ann", reason="fraud")
        with pytest.raises(ledger.Refused) as error:
            hold(account, 1)
        assert error.value.layer == "throttle"
        assert wallet(account) == (100, 0, 0)
        assert ledger.resume(account_id=account.pk, actor="ann")
        hold(account, 1)
        now = datetime.now(UTC)
        ledger.throttle(account_id=account.pk, actor="ann", reason="fraud", ends_at=now + timedelta(hours=1))
        with ledger.clock(at=now + timedelta(hours=1)):
            hold(account, 1)
        assert not ledger.resume(account_id=account.pk, actor="ann")

    def test_repeated_key_stops_nothing_anew(self, account: Account) -> None:
        for _ in range(2):
            assert ledger.throttle(account_id=account.pk, actor="ann", reason="fraud", key="k")
            ledger.resume(account_id=account.pk, actor="ann")
        give(account, 100)
        hold(account, 1)
        assert Throttle.objects.filter(account=account).count() == 1

    def test_stop_whose_end_is_over_stops_nothing(self, account: Account) -> None:
        give(account, 100)
        assert not ledger.throttle(account_id=account.pk, actor="ann", reason="fraud", ends_at=datetime.now(UTC))
        hold(account, 1)

    def test_account_that_nobody_opened_a_ledger_for_is_an_error(self, account: Account) -> None:
        nobody = Account(pk=account.pk + 1_000_000, product=account.product)
        with pytest.raises(DatabaseError, match="has no ledger"), transaction.atomic():
            hold(nobody, 1)

    def test_hold_of_nothing_is_allowed(self, account: Account) -> None:
        give(account, 1)
        assert hold(account, 0).hold_nanos == 0


class TestCapture:
    @pytest.mark.parametrize("price", [0, 1, 59, 60])
    def test_capture_up_to_the_hold_spends_it_and_gives_the_rest_back(self, account: Account, price: int) -> None:
        give(account, 100)
        done = capture(account, hold(account, 60).id, price)
        assert (done.state, done.price_nanos, done.owed_nanos, done.balance_nanos) == ("captured", price, 0, 100 - price)
        assert wallet(account) == (100 - price, 0, 0)

    def test_capture_above_the_hold_burns_what_is_free(self, account: Account) -> None:
        give(account, 100)
        done = capture(account, hold(account, 60).id, 90)
        assert (done.price_nanos, done.owed_nanos) == (90, 0)
        assert wallet(account) == (10, 0, 0)

    def test_capture_above_all_that_is_free_leaves_debt_and_other_holds_alone(self, account: Account) -> None:
        give(account, 100)
        mine, other = hold(account, 60), hold(account, 30)
        done = capture(account, mine.id, 90)
        assert done.owed_nanos == 20
        assert wallet(account) == (30, 30, 20)
        capture(account, other.id, 30)
        assert wallet(account) == (0, 0, 20)

    def test_cap_charges_at_most_the_hold_and_reports_the_difference(self, account: Account) -> None:
        give(account, 100)
        done = capture(account, hold(account, 60).id, 90, overage="cap")
        assert (done.price_nanos, done.waived_nanos) == (60, 30)
        assert wallet(account) == (40, 0, 0)

    def test_reject_refuses_and_keeps_the_hold_open(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        with pytest.raises(ledger.HoldExceeded):
            capture(account, opened.id, 61, overage="reject")
        assert wallet(account) == (100, 60, 0)
        capture(account, opened.id, 60, overage="reject")
        assert wallet(account) == (40, 0, 0)

    @pytest.mark.failure(7)
    def test_same_capture_again_is_answered_and_another_one_refused(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        first = capture(account, opened.id, 50)
        again = capture(account, opened.id, 50)
        assert again.replayed
        assert (again.price_nanos, again.balance_nanos) == (first.price_nanos, first.balance_nanos)
        with pytest.raises(ledger.AlreadyResolved, match="captured"):
            capture(account, opened.id, 50, quantities=(11,))
        with pytest.raises(ledger.AlreadyResolved, match="captured"):
            ledger.release(account_id=account.pk, authorization_id=opened.id)
        assert wallet(account) == (50, 0, 0)

    def test_unknown_authorization_is_not_found(self, account: Account) -> None:
        with pytest.raises(ledger.NotFound):
            capture(account, uuid4(), 1)

    @pytest.mark.failure(16)
    def test_grants_burn_by_priority_then_expiry_then_age(self, account: Account) -> None:
        soon = datetime.now(UTC) + timedelta(days=1)
        give(account, 10, source="last", priority=30)
        give(account, 10, source="third", priority=20, expires_at=soon + timedelta(days=1))
        give(account, 10, source="first", priority=10)
        give(account, 10, source="second", priority=20, expires_at=soon)
        capture(account, hold(account, 25).id, 25)
        remaining = dict(Grant.objects.filter(account=account).values_list("source", "remaining"))
        assert remaining == {"first": 0, "second": 0, "third": 5, "last": 10}

    @pytest.mark.failure(16)
    def test_whatever_order_grants_came_in_the_same_ones_are_burnt(self, account: Account) -> None:
        now = datetime.now(UTC)
        terms: list[tuple[str, int, timedelta | None]] = [
            ("a", 10, None), ("b", 20, timedelta(days=1)), ("c", 20, timedelta(days=2)), ("d", 30, timedelta(days=1)),
        ]  # fmt: skip
        for order in permutations(terms):
            other = make_account(account.product)
            for source, priority, ends_in in order:
                give(other, 10, source=source, priority=priority, expires_at=now + ends_in if ends_in else None)
            record(other, 25)
            assert dict(Grant.objects.filter(account=other).values_list("source", "remaining")) == {"a": 0, "b": 0, "c": 5, "d": 10}

    @pytest.mark.failure(16)
    def test_capture_that_one_grant_covers_burns_the_first_in_burn_order(self, account: Account) -> None:
        soon, now = datetime.now(UTC) + timedelta(days=1), datetime.now(UTC)
        late = give(account, 10, priority=1, expires_at=soon)
        young = give(account, 10, priority=0, expires_at=now + timedelta(days=9))
        first = give(account, 10, priority=0, expires_at=soon)
        same = give(account, 10, priority=0, expires_at=soon)
        capture(account, hold(account, 12).id, 4)
        capture(account, hold(account, 12).id, 6)
        capture(account, hold(account, 12).id, 3)
        left = dict(Grant.objects.filter(account=account).values_list("id", "remaining"))
        assert left == {late.grant_id: 10, young.grant_id: 10, first.grant_id: 0, same.grant_id: 7}

    def test_cap_refuses_no_price_however_far_it_is_above_the_hold(self, account: Account) -> None:
        give(account, 1_000, cash_nanos=1_000_000)
        done = capture(account, hold(account, 10).id, 2**62, overage="cap")
        assert (done.price_nanos, done.waived_nanos) == (10, 2**62 - 10)

    def test_fee_moves_with_the_credits_of_a_grant_that_brought_no_cash(self, account: Account) -> None:
        give(account, 100, cash_nanos=0, fee_nanos=50)
        capture(account, hold(account, 50).id, 50)
        hold(account, 50)
        record(account, 50)
        for open_ in OpenAuthorization.objects.filter(account=account):
            capture(account, open_.id, 50)
        moved = LedgerEntry.objects.filter(account=account, kind="usage").values_list("fee_nanos", flat=True)
        assert list(moved) == [25, 25]

    @pytest.mark.parametrize("late", [timedelta(), timedelta(days=3)])
    def test_capture_after_its_period_was_closed_counts_when_it_comes(self, account: Account, late: timedelta) -> None:
        give(account, 100)
        now = datetime.now(UTC)
        held = hold(account, 10, closes_at=now + timedelta(hours=2))
        with ledger.clock(at=now + late):
            capture(account, held.id, 10)
        record = UsageRecord.objects.get(pk=held.id)
        assert record.event_at == held.created_at
        assert record.counted_at == (now + late if late else None)

    @pytest.mark.failure(19)
    def test_cash_moves_with_the_credits_and_its_parts_sum_to_the_whole(self, account: Account) -> None:
        give(account, 7, cash_nanos=100, fee_nanos=10)
        for _ in range(7):
            record(account, 1)
        moved = LedgerEntry.objects.filter(account=account, kind="usage").order_by("seq").values_list("cash_nanos", "fee_nanos")
        assert [cash for cash, _ in moved] == [14, 14, 14, 15, 14, 14, 15]
        assert (sum(cash for cash, _ in moved), sum(fee for _, fee in moved)) == (100, 10)


class TestRelease:
    def test_release_gives_the_whole_hold_back_once(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        assert ledger.release(account_id=account.pk, authorization_id=opened.id).state == "released"
        assert ledger.release(account_id=account.pk, authorization_id=opened.id).replayed
        assert wallet(account) == (100, 0, 0)
        with pytest.raises(ledger.AlreadyResolved, match="released"):
            capture(account, opened.id, 1)

    def test_release_repays_debt(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        record(account, 50)
        assert wallet(account) == (60, 60, 10)
        ledger.release(account_id=account.pk, authorization_id=opened.id)
        assert wallet(account) == (50, 0, 0)


class TestUnpriced:
    def test_unpriced_record_is_stored_and_charges_nothing(self, account: Account) -> None:
        give(account, 10)
        done = record(account, None)
        assert (done.state, done.price_nanos) == ("unpriced", None)
        assert UsageRecord.objects.get(account=account).cost_nanos is None
        assert wallet(account) == (10, 0, 0)

    def test_capture_without_a_price_keeps_its_hold_until_there_is_one(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        for replayed in (False, True):
            waiting = ledger.await_price(account_id=account.pk, authorization_id=opened.id, quantities=[5, 5])
            assert (waiting.state, waiting.replayed) == ("awaiting_price", replayed)
        with pytest.raises(ledger.AlreadyResolved):
            ledger.await_price(account_id=account.pk, authorization_id=opened.id, quantities=[6])
        with pytest.raises(ledger.AlreadyResolved):
            ledger.release(account_id=account.pk, authorization_id=opened.id)
        assert wallet(account) == (100, 60, 0)
        capture(account, opened.id, 30, quantities=(5, 5))
        assert wallet(account) == (70, 0, 0)


class TestExpiry:
    def test_what_is_due_expires_in_the_next_verb_with_the_due_time_as_its_effective_time(self, account: Account) -> None:
        due = datetime.now(UTC) + timedelta(days=1)
        give(account, 100, expires_at=due)
        with ledger.clock(at=due + timedelta(days=3)):
            give(account, 1)
        entry = LedgerEntry.objects.get(account=account, kind="expiry")
        assert (entry.amount, entry.effective_at) == (-100, due)
        assert wallet(account) == (1, 0, 0)

    @pytest.mark.failure(17)
    def test_expiry_skips_what_a_hold_covers_and_takes_what_the_hold_leaves_at_once(self, account: Account) -> None:
        due = datetime.now(UTC) + timedelta(minutes=5)
        give(account, 100, expires_at=due)
        opened = hold(account, 60)
        with ledger.clock(at=due + timedelta(minutes=1)):
            with pytest.raises(ledger.InsufficientCredits):
                hold(account, 1)
            assert wallet(account) == (60, 60, 0)
            capture(account, opened.id, 45)
            assert wallet(account) == (0, 0, 0)
        assert kinds(account) == [("grant", 100, 0), ("expiry", -40, 0), ("usage", -45, 0), ("expiry", -15, 0)]


class TestAdjust:
    def test_adjustment_up_and_down_have_their_own_kind(self, account: Account) -> None:
        common: dict[str, Any] = {"account_id": account.pk, "unit_id": account.product.unit_id, "actor": "ann", "reason": "typo"}
        ledger.adjust(amount_nanos=50, key="up", **common)
        down = ledger.adjust(amount_nanos=-20, key="down", **common)
        assert ledger.adjust(amount_nanos=-20, key="down", **common).replayed
        assert (down.amount_nanos, down.balance_nanos) == (-20, 30)
        assert kinds(account) == [("adjustment", 50, 0), ("adjustment", -20, 0)]

    def test_adjustment_takes_no_more_than_is_free(self, account: Account) -> None:
        give(account, 100)
        hold(account, 60)
        with pytest.raises(ledger.InsufficientCredits):
            ledger.adjust(account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=-41, key="k", actor="ann", reason="typo")
        assert wallet(account) == (100, 60, 0)


class TestReverse:
    def reverse(self, account: Account, usage_id: UUID, key: str = "r") -> ledger.Operation:
        return ledger.reverse(account_id=account.pk, usage_id=usage_id, key=key, actor="ann", reason="wrong model")

    def test_reversal_returns_credits_and_cash_to_the_grants_they_came_from(self, account: Account) -> None:
        give(account, 10, source="first", priority=1, cash_nanos=7)
        give(account, 10, source="second", priority=2)
        done = record(account, 15)
        self.reverse(account, done.id)
        assert list(Grant.objects.filter(account=account).values_list("remaining", "closed")) == [(10, False), (10, False)]
        assert sum(LedgerEntry.objects.filter(account=account).values_list("cash_nanos", flat=True)) == 0
        assert wallet(account) == (20, 0, 0)

    def test_record_is_reversed_once(self, account: Account) -> None:
        give(account, 10)
        done = record(account, 5)
        self.reverse(account, done.id)
        assert self.reverse(account, done.id).replayed
        with pytest.raises(ledger.AlreadyReversed):
            self.reverse(account, done.id, key="another")
        assert wallet(account) == (10, 0, 0)

    def test_reversal_forgives_the_debt_it_made(self, account: Account) -> None:
        give(account, 10)
        done = record(account, 25)
        assert wallet(account) == (0, 0, 15)
        self.reverse(account, done.id)
        assert wallet(account) == (10, 0, 0)

    def test_reversal_gives_back_debt_that_was_repaid_meanwhile(self, account: Account) -> None:
        give(account, 10)
        done = record(account, 25)
        give(account, 12)
        assert wallet(account) == (0, 0, 3)
        self.reverse(account, done.id)
        assert wallet(account) == (22, 0, 0)

    def test_reversal_into_an_expired_grant_expires_at_once(self, account: Account) -> None:
        due = datetime.now(UTC) + timedelta(days=1)
        give(account, 10, expires_at=due)
        done = record(account, 10)
        with ledger.clock(at=due + timedelta(days=1)):
            self.reverse(account, done.id)
        assert wallet(account) == (0, 0, 0)
        assert [kind for kind, _, _ in kinds(account)] == ["grant", "usage", "reversal", "expiry"]

    def test_what_was_not_charged_cannot_be_reversed(self, account: Account) -> None:
        done = record(account, None)
        with pytest.raises(ledger.NotFound):
            self.reverse(account, done.id)


class TestSweep:
    @pytest.mark.failure(9, 10)
    def test_hold_past_its_end_comes_back_and_its_capture_is_still_taken(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        with ledger.clock(at=datetime.now(UTC) + timedelta(minutes=16)):
            while ledger.sweep(limit=100):
                pass
            assert wallet(account) == (100, 0, 0)
            assert OpenAuthorization.objects.get(account=account).state == "timed_out"
            capture(account, opened.id, 50)
        assert wallet(account) == (50, 0, 0)

    def test_after_seven_days_the_authorization_is_over(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        with ledger.clock(at=datetime.now(UTC) + timedelta(days=8)):
            while ledger.sweep(limit=100):
                pass
            with pytest.raises(ledger.AlreadyResolved, match="timed out"):
                capture(account, opened.id, 50)
        assert wallet(account) == (100, 0, 0)

    @pytest.mark.failure(9)
    def test_eight_days_late_a_capture_is_too_late_whether_the_hold_was_swept_or_not(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        with ledger.clock(at=datetime.now(UTC) + timedelta(days=8)), pytest.raises(ledger.AlreadyResolved, match="timed out"):
            capture(account, opened.id, 50)
        with ledger.clock(at=datetime.now(UTC) + timedelta(days=8)):
            ledger.sweep(limit=100)
        assert wallet(account) == (100, 0, 0)
        assert audit.run() == []

    def test_a_repeated_key_hears_the_first_end_also_after_the_hold_was_extended(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60, key="k")
        ledger.extend(account_id=account.pk, authorization_id=opened.id, lifetime=timedelta(hours=3))
        assert hold(account, 60, key="k").expires_at == opened.expires_at
        capture(account, opened.id, 50)
        assert hold(account, 60, key="k").expires_at == opened.expires_at

    def test_extended_hold_outlives_the_sweep_but_not_its_hard_end(self, account: Account) -> None:
        give(account, 100)
        opened = hold(account, 60)
        later = ledger.extend(account_id=account.pk, authorization_id=opened.id, lifetime=timedelta(days=9))
        assert later.expires_at == opened.created_at + timedelta(hours=24)
        with ledger.clock(at=datetime.now(UTC) + timedelta(hours=1)):
            ledger.sweep(limit=100)
        assert wallet(account) == (100, 60, 0)


class TestKeys:
    def test_parts_of_a_key_do_not_run_together(self) -> None:
        assert ledger.key_hash("a", "bc") != ledger.key_hash("ab", "c")
        assert ledger.key_hash("a", "bc") == ledger.key_hash("a", "bc")


class TestRecordMany:
    @pytest.mark.parametrize("prices", [(7, 9), (5, 9), (4, 9), (5, 0), (0, 6)])
    def test_a_set_that_goes_past_what_is_free_leaves_the_holds_alone(self, account: Account, prices: tuple[int, int]) -> None:
        give(account, 100)
        hold(account, 95)
        events = [
            ledger.Event(
                account_id=account.pk, key=ledger.key_hash("usage", str(number)), fingerprint=ledger.key_hash(str(price)), call=call(),
                unit_id=account.product.unit_id, event_at=datetime.now(UTC), charge=charge(price),
            )
            for number, price in enumerate(prices)
        ]  # fmt: skip
        ledger.record_many(events)
        assert wallet(account) == (100 - min(sum(prices), 5), 95, max(sum(prices) - 5, 0))
        assert audit.run() == []

    def test_a_set_answers_in_its_order_and_again_changes_nothing(self, account: Account) -> None:
        other = make_account(account.product, credit=1)
        give(account, 100)
        events = [
            ledger.Event(
                account_id=(account, other)[number % 2].pk,
                key=ledger.key_hash("usage", str(number)),
                fingerprint=ledger.fingerprint({"n": number}),
                call=call(),
                unit_id=account.product.unit_id,
                event_at=datetime.now(UTC),
                charge=charge(number),
            )
            for number in range(10)
        ]
        first, again = ([usage for usage in ledger.record_many(events) if isinstance(usage, ledger.Usage)] for _ in range(2))
        assert [usage.price_nanos for usage in first] == list(range(10))
        assert [(usage.outcome, usage.id) for usage in again] == [("replayed", usage.id) for usage in first]
        assert wallet(account) == (80, 0, 0)
