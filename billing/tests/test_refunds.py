"""When money goes back its credits go back: from the grant, from what rolled over from it, and else as debt."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import Account
from billing import audit, ledger
from billing.models import Grant, LedgerEntry, Operation, Wallet
from billing.tests.test_ledger import capture, hold, record, wallet
from tests.factories import give, make_account

pytestmark = pytest.mark.django_db
PAYMENT = {"source": "purchased", "source_key": "pi_1"}


@pytest.fixture
def account() -> Account:
    return make_account()


@pytest.fixture(autouse=True)
def audited(account: Account) -> Iterator[None]:
    yield
    assert audit.run() == []


def buy(account: Account, nanos: int, **fields: Any) -> ledger.Operation:
    return give(account, nanos, **PAYMENT | fields)


def refund(account: Account, refunded: int, *, paid: int = 100, key: str = "") -> ledger.Operation:
    key = key or f"re {refunded}/{paid}"
    return ledger.refund(account_id=account.pk, refunded=refunded, paid=paid, key=key, actor="stripe", reason="asked for", **PAYMENT)


def dispute(account: Account, key: str = "dp_1") -> ledger.Operation:
    return ledger.freeze(account_id=account.pk, key=key, actor="stripe", reason="dispute opened", **PAYMENT)


def win(account: Account, key: str = "dp_1") -> ledger.Operation:
    return ledger.unfreeze(account_id=account.pk, key=key, actor="stripe", reason="dispute won", **PAYMENT)


def lot(account: Account) -> tuple[int, int, int, int]:
    return Grant.objects.values_list("remaining", "frozen", "clawed", "refunded").get(account=account, **PAYMENT)


def kinds(account: Account) -> list[tuple[str, int, int]]:
    return list(LedgerEntry.objects.filter(account=account).order_by("seq").values_list("kind", "amount", "debt_delta"))


class TestRefund:
    def test_refund_takes_its_share_from_the_grant_that_was_paid_for(self, account: Account) -> None:
        give(account, 50, priority=0)
        buy(account, 1_000)
        done = refund(account, 33)
        assert (done.amount_nanos, done.balance_nanos, done.debt_nanos, done.available_nanos) == (-330, 720, 0, 720)
        assert lot(account) == (670, 0, 330, 330)
        assert kinds(account)[-1] == ("refund", -330, 0)
        operation = Operation.objects.get(account=account, verb="refund")
        assert (operation.actor, operation.reason, operation.grant_id) == ("stripe", "asked for", done.grant_id)

    @pytest.mark.failure(12)
    def test_what_was_spent_is_owed_and_repaid_at_once_from_what_else_is_free(self, account: Account) -> None:
        buy(account, 100, priority=0)
        record(account, 80)
        give(account, 30)
        done = refund(account, 100)
        assert (done.amount_nanos, done.balance_nanos, done.debt_nanos) == (-100, 0, 50)
        assert lot(account) == (0, 0, 20, 100)
        assert kinds(account)[-3:] == [("refund", -20, 0), ("debt", 0, 80), ("debt_repaid", -30, -30)]
        give(account, 60)
        assert wallet(account) == (10, 0, 0)

    def test_refund_leaves_what_holds_cover_and_takes_it_when_they_end(self, account: Account) -> None:
        buy(account, 100)
        opened = hold(account, 70)
        assert refund(account, 100).debt_nanos == 70
        assert wallet(account) == (70, 70, 70)
        ledger.release(account_id=account.pk, authorization_id=opened.id)
        assert wallet(account) == (0, 0, 0)

    def test_work_that_a_hold_covered_is_still_paid_for_after_the_refund(self, account: Account) -> None:
        buy(account, 100)
        opened = hold(account, 70)
        refund(account, 100)
        assert capture(account, opened.id, 70).owed_nanos == 0
        assert wallet(account) == (0, 0, 70)

    @pytest.mark.failure(13)
    def test_two_partial_refunds_come_to_the_same_in_any_order_and_however_often_they_are_told(self, account: Account) -> None:
        ends = []
        for order in permutations([33, 33, 67, 100]):
            other = make_account(account.product)
            buy(other, 1_001)
            record(other, 500)
            for number, refunded in enumerate(order):
                refund(other, refunded, key=f"{number}")
            ends.append((lot(other), wallet(other)))
        assert set(ends) == {((0, 0, 501, 1_001), (0, 0, 500))}

    @pytest.mark.failure(13)
    def test_a_refund_that_is_told_late_takes_nothing_and_gives_nothing_back(self, account: Account) -> None:
        buy(account, 100)
        refund(account, 60)
        late = refund(account, 20)
        assert (late.amount_nanos, late.replayed) == (0, False)
        assert lot(account) == (40, 0, 60, 60)

    def test_repeated_key_takes_back_once_and_is_answered_as_the_first_time(self, account: Account) -> None:
        buy(account, 100)
        first = refund(account, 50, key="re_1")
        again = refund(account, 50, key="re_1")
        assert again.replayed
        assert (again.id, again.grant_id, again.amount_nanos, again.balance_nanos) == (first.id, first.grant_id, -50, 50)
        with pytest.raises(ledger.KeyReused):
            refund(account, 51, key="re_1")
        assert lot(account) == (50, 0, 50, 50)

    def test_cash_goes_with_the_credits_and_the_fee_with_it_so_that_parts_sum_to_the_whole(self, account: Account) -> None:
        buy(account, 7, cash_nanos=100, fee_nanos=10)
        for refunded in (20, 45, 70, 100):
            refund(account, refunded)
        moved = LedgerEntry.objects.filter(account=account, kind="refund").order_by("seq")
        assert list(moved.values_list("amount", "cash_nanos", "fee_nanos")) == [(-1, 14, 1), (-2, 28, 3), (-1, 15, 1), (-3, 43, 5)]

    def test_reversal_of_work_paid_from_a_refunded_grant_repays_the_debt(self, account: Account) -> None:
        buy(account, 100)
        done = record(account, 80)
        refund(account, 100)
        assert wallet(account) == (0, 0, 80)
        ledger.reverse(account_id=account.pk, usage_id=done.id, key="r", actor="ann", reason="wrong model")
        assert wallet(account) == (0, 0, 0)

    def test_refund_takes_what_rolled_over_too(self, account: Account) -> None:
        end = datetime.now(UTC) + timedelta(days=1)
        buy(account, 100, expires_at=end, rollover=ledger.Rollover(end + timedelta(days=30), 60, 0), cash_nanos=1_000)
        with ledger.clock(at=end + timedelta(hours=1)):
            done = refund(account, 50)
            assert (done.balance_nanos, done.debt_nanos) == (10, 0)
            child = Grant.objects.get(account=account, source="rollover")
            assert (child.remaining, child.clawed, child.refunded, child.cash_nanos) == (10, 50, 0, 600)
            assert refund(account, 100).debt_nanos == 40
        assert lot(account) == (0, 0, 0, 100)
        assert kinds(account)[1:4] == [("rollover", -60, 0), ("rollover", 60, 0), ("expiry", -40, 0)]

    @pytest.mark.parametrize(
        ("source", "source_key"), [("purchased", "pi_2"), ("promo", "pi_1"), ("rollover", "1"), ("", ""), ("\N{SNOWMAN}", "%")]
    )
    def test_what_was_never_granted_is_not_found(self, account: Account, source: str, source_key: str) -> None:
        buy(account, 100)
        for verb, terms in ((ledger.refund, {"refunded": 1, "paid": 1}), (ledger.freeze, {}), (ledger.unfreeze, {})):
            with pytest.raises(ledger.NotFound):
                verb(account_id=account.pk, source=source, source_key=source_key, key="k", actor="ann", reason="r", **terms)
        assert not Operation.objects.filter(account=account, verb__in=["refund", "freeze", "unfreeze"]).exists()

    def test_another_accounts_payment_is_not_found(self, account: Account) -> None:
        buy(make_account(account.product), 100)
        with pytest.raises(ledger.NotFound):
            refund(account, 1)

    def test_a_rollover_is_refunded_by_its_payment_alone(self, account: Account) -> None:
        end = datetime.now(UTC) + timedelta(days=1)
        buy(account, 100, expires_at=end, rollover=ledger.Rollover(end + timedelta(days=30), None, 0))
        with ledger.clock(at=end):
            give(account, 1)
            child = Grant.objects.get(account=account, source="rollover")
            with pytest.raises(ledger.NotFound):
                ledger.refund(
                    account_id=account.pk, source="rollover", source_key=child.source_key, refunded=1, paid=1, key="k", actor="a", reason=""
                )  # fmt: skip

    @pytest.mark.parametrize(("refunded", "paid"), [(101, 100), (-1, 100), (0, 0), (1, 0), (1, -1), (-2, -1)])
    def test_refund_of_more_than_was_paid_or_of_nothing_paid_is_refused(self, account: Account, refunded: int, paid: int) -> None:
        buy(account, 100)
        with pytest.raises(ValueError, match="was paid"):
            refund(account, refunded, paid=paid)
        assert lot(account) == (100, 0, 0, 0)

    def test_the_largest_amounts_are_exact(self, account: Account) -> None:
        most = 2**63 - 1
        buy(account, most)
        assert refund(account, most - 1, paid=most).balance_nanos == 1
        assert refund(account, most, paid=most).balance_nanos == 0

    def test_debt_that_does_not_fit_is_refused_whole(self, account: Account) -> None:
        most = 2**63 - 1
        buy(account, most)
        record(account, most)
        record(account, 1)
        with pytest.raises(ledger.AmountOverflow), transaction.atomic():
            refund(account, 100)
        assert wallet(account) == (0, 0, 1)


class TestDispute:
    @pytest.mark.failure(14)
    def test_opening_freezes_what_is_left_and_winning_returns_exactly_that(self, account: Account) -> None:
        give(account, 10, priority=90)
        buy(account, 100, cash_nanos=1_000)
        record(account, 30)
        opened = dispute(account)
        assert (opened.amount_nanos, opened.balance_nanos) == (-70, 10)
        assert lot(account) == (0, 70, 0, 0)
        assert list(Grant.objects.filter(account=account, **PAYMENT).values_list("closed", flat=True)) == [False]
        assert dispute(account).replayed
        won = win(account)
        assert (won.amount_nanos, won.balance_nanos) == (70, 80)
        assert lot(account) == (70, 0, 0, 0)
        assert sum(LedgerEntry.objects.filter(account=account, kind__in=["freeze", "unfreeze"]).values_list("cash_nanos", flat=True)) == 0

    def test_frozen_credits_cannot_be_spent(self, account: Account) -> None:
        buy(account, 100)
        dispute(account)
        with pytest.raises(ledger.InsufficientCredits):
            hold(account, 1)

    def test_opening_leaves_what_holds_cover(self, account: Account) -> None:
        buy(account, 100)
        opened = hold(account, 40)
        assert dispute(account).amount_nanos == -60
        assert capture(account, opened.id, 40).owed_nanos == 0
        assert win(account).balance_nanos == 60

    @pytest.mark.failure(14)
    def test_losing_takes_what_is_frozen_first(self, account: Account) -> None:
        buy(account, 100)
        record(account, 30)
        dispute(account)
        done = refund(account, 100)
        assert (done.balance_nanos, done.debt_nanos) == (0, 30)
        assert lot(account) == (0, 0, 70, 100)
        assert kinds(account)[-3:] == [("unfreeze", 70, 0), ("refund", -70, 0), ("debt", 0, 30)]
        assert win(account).amount_nanos == 0

    @pytest.mark.failure(14)
    def test_a_won_dispute_and_a_later_refund_take_all_of_it_once(self, account: Account) -> None:
        buy(account, 100)
        dispute(account)
        refund(account, 25)
        assert win(account).amount_nanos == 75
        refund(account, 100)
        assert (lot(account), wallet(account)) == ((0, 0, 100, 100), (0, 0, 0))

    def test_what_comes_back_overdue_expires_at_once(self, account: Account) -> None:
        end = datetime.now(UTC) + timedelta(days=1)
        buy(account, 100, expires_at=end)
        dispute(account)
        with ledger.clock(at=end + timedelta(days=2)):
            assert wallet(account) == (0, 0, 0)
            assert win(account).balance_nanos == 0
        assert kinds(account)[-2:] == [("unfreeze", 100, 0), ("expiry", -100, 0)]
        assert LedgerEntry.objects.get(account=account, kind="expiry").effective_at == end

    def test_what_comes_back_repays_debt_first(self, account: Account) -> None:
        buy(account, 100)
        dispute(account)
        record(account, 30)
        assert win(account).balance_nanos == 70
        assert wallet(account) == (70, 0, 0)

    def test_rollovers_are_frozen_with_their_payment(self, account: Account) -> None:
        end = datetime.now(UTC) + timedelta(days=1)
        buy(account, 100, expires_at=end, rollover=ledger.Rollover(end + timedelta(days=30), 60, 0))
        with ledger.clock(at=end):
            assert dispute(account).amount_nanos == -60
            assert win(account).amount_nanos == 60

    def test_a_frozen_rollover_keeps_its_place_under_the_cap(self, account: Account) -> None:
        end = datetime.now(UTC) + timedelta(days=1)
        rollover = ledger.Rollover(end + timedelta(days=90), 60, 0)
        buy(account, 50, expires_at=end, rollover=rollover)
        give(account, 50, expires_at=end + timedelta(days=1), rollover=rollover)
        with ledger.clock(at=end):
            dispute(account)
        with ledger.clock(at=end + timedelta(days=1)):
            assert win(account).balance_nanos == 60


ACTS = st.lists(
    st.sampled_from(["freeze", "unfreeze", "record 9", "record 30", "give 20", "hold 25", "release", "day"])
    | st.tuples(st.integers(0, 97), st.just(97)),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(acts=ACTS, rolls=st.booleans())
def test_whatever_happens_between_a_full_refund_takes_the_whole_grant_once(account: Account, acts: list[Any], rolls: bool) -> None:
    """What refunds took is the share of the highest one that was told; taken + owed for it = granted in the end."""
    with transaction.atomic():
        now = datetime.now(UTC)
        end = now + timedelta(days=2)
        buy(account, 101, expires_at=end, rollover=ledger.Rollover(end + timedelta(days=3), 70, 5) if rolls else None)
        holds: list[ledger.Usage] = []
        highest = 0
        for number, act in enumerate([*acts, (97, 97)]):
            with ledger.clock(at=now):
                if isinstance(act, tuple):
                    highest = max(highest, act[0])
                    refund(account, *act[:1], paid=97, key=str(number))
                    assert lot(account)[3] == 101 * highest // 97
                elif act == "freeze":
                    dispute(account, str(number))
                elif act == "unfreeze":
                    win(account, str(number))
                elif act == "day":
                    now += timedelta(days=1)
                elif act == "release":
                    if holds:
                        ledger.release(account_id=account.pk, authorization_id=holds.pop().id)
                elif act == "hold 25":
                    if (row := Wallet.objects.get(account=account)).available >= 25 and not row.debt:
                        try:
                            holds.append(hold(account, 25))
                        except ledger.InsufficientCredits:
                            assert row.due_at
                else:
                    verb, nanos = act.split()
                    {"record": record, "give": give}[verb](account, int(nanos))  # type: ignore[operator]
        with ledger.clock(at=now):
            assert audit.run() == []
        taken = -sum(LedgerEntry.objects.filter(account=account, kind="refund").values_list("amount", flat=True))
        operations = list(Operation.objects.filter(account=account, verb="refund").values_list("id", flat=True))
        owed = sum(
            LedgerEntry.objects.filter(account=account, operation_id__in=operations, kind="debt").values_list("debt_delta", flat=True)
        )
        assert taken + owed == 101
        transaction.set_rollback(True)
