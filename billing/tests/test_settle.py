"""A set of events settles as its events do one by one: the same entries, grants, wallets, records, counters and answers.

Two twins live the same life (grants, some of which are over; holds; debt; counters). Then one is given the events singly, the other as a
set, at the same instant, and everything that the ledger says about them is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import Account
from billing import audit, ledger
from tests.factories import give, make_account, make_product

pytestmark = pytest.mark.django_db
BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = BEGIN + timedelta(hours=2)
MOST = 2**63 - 1

BOOL = st.booleans()
PRICES = st.one_of(st.integers(0, 40), st.integers(0, 40), st.none(), st.sampled_from([MOST, MOST - 20, 2**62]))


@dataclass(frozen=True)
class Lot:
    amount: int
    priority: int
    hours: int | None
    cash: int


@dataclass(frozen=True)
class Work:
    """An event for account 0, 1 or 2 of a twin."""

    account: int
    key: int
    version: int
    price: int | None
    charged: bool
    late: bool


LOTS = st.lists(st.builds(Lot, st.integers(1, 60), st.integers(0, 2), st.sampled_from([None, 1, 3, 4]), st.integers(0, 100)), max_size=5)
LIVES = st.tuples(LOTS, st.integers(0, 30), st.integers(0, 50))
EVENTS = st.lists(
    st.builds(Work, st.integers(0, 2), st.integers(0, 9), st.sampled_from([0, 0, 1]), PRICES, st.sampled_from([True, True, False]), BOOL),
    min_size=1,
    max_size=25,
)  # fmt: skip


class Over(Exception):
    """Ends an example: everything of it is rolled back."""


def call(quantity: int = 1) -> ledger.Call:
    return ledger.Call(1, None, None, 1, [1, 2], [quantity, 0, 3], "ann", None, 'a "run", {1}', {"messages": 2})


def lived(account: Account, life: tuple[list[Lot], int, int]) -> None:
    lots, spent, held = life
    unit = account.product.unit_id
    for number, lot in enumerate(lots):
        ends = None if lot.hours is None else BEGIN + timedelta(hours=lot.hours)
        give(
            account,
            lot.amount,
            priority=lot.priority,
            expires_at=ends,
            cash_nanos=lot.cash,
            fee_nanos=lot.cash // 7,
            source=f"s{'x' * number}",
        )
    day = ledger.Limit("quota", "messages/day", BEGIN.replace(hour=0), BEGIN.replace(hour=0) + timedelta(days=1), 10**6, 0, True)
    cost = ledger.Limit("cost", "cost/day", day.window_start, day.window_end, MOST, 0, True)
    terms: dict[str, Any] = {"refusal": None, "call": call(), "unit_id": unit, "cost_nanos": 1, "minimum_nanos": 0, "remaining": [None]}
    with suppress(ledger.InsufficientCredits):
        ledger.hold(
            account_id=account.pk, key=ledger.key_hash("0"), fingerprint=ledger.key_hash("hold"), amount_nanos=held,
            lifetime=timedelta(hours=9), hard_lifetime=timedelta(hours=9), limits=[day, cost], **terms,
        )  # fmt: skip
    if spent:
        ledger.record(event(account, Work(0, 99, 0, spent, True, False)))


def event(account: Account, work: Work) -> ledger.Event:
    price = work.price
    return ledger.Event(
        account_id=account.pk,
        key=ledger.key_hash(str(work.key)),
        fingerprint=ledger.key_hash(f"{work.key} {work.version}"),
        call=call(work.key),
        unit_id=account.product.unit_id if work.charged else None,
        event_at=LATER - timedelta(hours=26 if work.late else 1),
        charge=ledger.Charge(None if price is None else min(price, 1_000), price, price, 7),
        service_level="batch" if work.late else None,
        closes_at=LATER - timedelta(hours=2) if work.late else None,
    )


def one_by_one(events: Sequence[ledger.Event]) -> list[ledger.Usage | ledger.LedgerError]:
    answers: list[ledger.Usage | ledger.LedgerError] = []
    for each in events:
        try:
            with transaction.atomic():
                answers.append(ledger.record(each))
        except (ledger.KeyReused, ledger.AmountOverflow) as error:
            answers.append(error)
    return answers


def as_a_set(events: Sequence[ledger.Event]) -> list[ledger.Usage | ledger.LedgerError]:
    return [
        ledger.KeyReused() if isinstance(answer, ledger.Usage) and answer.outcome == "key_reused" else answer
        for answer in ledger.record_many(events)
    ]


def said(answer: ledger.Usage | ledger.LedgerError) -> Any:
    if isinstance(answer, ledger.LedgerError):
        return type(answer).__name__
    return (
        answer.outcome, answer.state, answer.price_nanos, answer.cost_nanos, answer.waived_nanos, answer.owed_nanos, answer.balance_nanos,
        answer.debt_nanos, answer.created_at, answer.hold_nanos, answer.expires_at, answer.remaining,
    )  # fmt: skip


#: What is compared, with ids replaced by what they stand for.
STATE = {
    "wallets": "select unit_id, balance, held, debt, seq from wallet where account_id = %s order by 1",
    "grants": """select source, granted, remaining, frozen, clawed, closed from credit_grant where account_id = %s order by id""",
    "entries": """
        select e.unit_id, e.seq, g.source, e.kind, e.amount, e.debt_delta, e.balance_after, e.debt_after, e.cash_nanos, e.fee_nanos,
          u.key_hash, e.operation_id is null, e.effective_at, e.recorded_at
        from ledger_entry e
        left join credit_grant g on g.account_id = e.account_id and g.id = e.grant_id
        left join usage_record u on u.account_id = e.account_id and u.id = e.usage_id
        where e.account_id = %s order by 1, 2""",
    "records": """
        select to_jsonb(u) - 'account_id' - 'id' - 'seal', seal = usage_seal(usage_sealed_record(u))
        from usage_record u where account_id = %s order by key_hash""",
    "deltas": """
        select day, model_id, feature_id, sum(records), sum(tokens), sum(cost_nanos), sum(price_nanos), sum(value_nanos), sum(cash_nanos),
          sum(fee_nanos)
        from rollup_delta where account_id = %s group by 1, 2, 3 order by 1""",
    "counters": "select meter, window_start, used from usage_counter where account_id = %s order by 1, 2",
    "account": "select open_count, open_cost_nanos from account_state where account_id = %s",
}


def state(account: Account) -> dict[str, list[Any]]:
    found = {}
    with connection.cursor() as cursor:
        for what, sql in STATE.items():
            cursor.execute(sql, [account.pk])
            found[what] = cursor.fetchall()
    return found


Twins = list[list[Account]]


@pytest.fixture
def twins() -> Twins:
    product = make_product()
    return [[make_account(product) for _ in range(3)] for _ in range(2)]


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(lives=st.tuples(LIVES, LIVES, LIVES), works=EVENTS)
def test_a_set_is_its_events_one_by_one(twins: Twins, lives: tuple[Any, ...], works: list[Work]) -> None:
    compare(twins, lives, works)


def compare(twins: Twins, lives: Sequence[Any], works: Sequence[Work]) -> list[Any]:
    """Both twins' life, then the events; the answers, once they are known to be the same."""
    answers: list[list[Any]] = []
    ways: list[Callable[[Sequence[ledger.Event]], list[Any]]] = [one_by_one, as_a_set]
    try:
        with transaction.atomic():
            for twin, way in zip(twins, ways, strict=True):
                with ledger.clock(at=BEGIN):
                    for account, life in zip(twin, lives, strict=True):
                        lived(account, life)
                with ledger.clock(at=LATER):
                    answers.append([said(answer) for answer in way([event(twin[work.account], work) for work in works])])
            assert answers[0] == answers[1]
            for one, other in zip(*twins, strict=True):
                singly, together = state(one), state(other)
                for what in STATE:
                    assert singly[what] == together[what], what
            with ledger.clock(at=LATER):
                assert audit.run() == []
            raise Over
    except Over:
        return answers[0]


QUIET: tuple[list[Lot], int, int] = ([], 0, 0)


def life(*lots: Lot, spent: int = 0, held: int = 0) -> tuple[list[Lot], int, int]:
    return list(lots), spent, held


def work(key: int, price: int | None, **fields: Any) -> Work:
    return Work(**{"account": 0, "key": key, "version": 0, "price": price, "charged": True, "late": False} | fields)


class TestByName:
    """What the property would find, said once each."""

    def test_duplicates_inside_a_set_count_once(self, twins: Twins) -> None:
        answers = compare(twins, [life(Lot(50, 0, None, 50)), QUIET, QUIET], [work(1, 10), work(1, 10), work(1, 10, version=1)])
        assert [answer if isinstance(answer, str) else answer[0] for answer in answers] == ["done", "replayed", "KeyReused"]

    def test_a_key_of_an_open_authorization_is_refused(self, twins: Twins) -> None:
        assert compare(twins, [life(Lot(50, 0, None, 50), held=5), QUIET, QUIET], [work(0, 10)]) == ["KeyReused"]

    def test_one_event_burns_several_grants_and_makes_debt(self, twins: Twins) -> None:
        lots = [Lot(10, 2, None, 10), Lot(10, 1, None, 3), Lot(10, 0, 3, 0)]
        [answer] = compare(twins, [life(*lots, held=4), QUIET, QUIET], [work(1, 40)])
        assert answer[5:8] == (14, 4, 14)  # owed, balance, debt

    def test_of_grants_of_one_priority_the_one_that_ends_first_is_burnt_first(self, twins: Twins) -> None:
        lots = [Lot(10, 0, None, 10), Lot(10, 0, 4, 20), Lot(10, 0, 3, 30)]
        compare(twins, [life(*lots), QUIET, QUIET], [work(1, 5), work(2, 7), work(3, 9)])

    def test_an_expired_grant_is_not_burnt_but_where_holds_keep_it(self, twins: Twins) -> None:
        [first, second] = compare(twins, [life(Lot(10, 0, 1, 10), Lot(10, 1, None, 0), held=3), QUIET, QUIET], [work(1, 5), work(2, 9)])
        assert (first[6], second[5:8]) == (8, (4, 3, 4))

    def test_an_overflow_takes_no_other_event_along(self, twins: Twins) -> None:
        answers = compare(
            twins, [life(Lot(50, 0, None, 0)), QUIET, QUIET], [work(1, 10), work(2, MOST), work(3, MOST), work(4, 2), work(5, 3, account=1)]
        )
        assert [answer if isinstance(answer, str) else answer[0] for answer in answers] == [
            "done",
            "done",
            "AmountOverflow",
            "done",
            "done",
        ]

    def test_unpriced_and_free_events_touch_no_wallet(self, twins: Twins) -> None:
        answers = compare(twins, [life(Lot(5, 0, 1, 5)), QUIET, QUIET], [work(1, None), work(2, 0), work(3, 9, charged=False)])
        assert [answer[1] for answer in answers] == ["unpriced", "recorded", "recorded"]


def test_a_set_of_nothing_is_nothing() -> None:
    assert ledger.record_many([]) == []


def test_answers_keep_their_order_over_many_chunks() -> None:
    account = make_account(credit=1)
    events = [event(account, work(number, number % 5)) for number in range(2 * ledger.CHUNK + 1)]
    answers = ledger.record_many(events)
    assert [answer.price_nanos for answer in answers if isinstance(answer, ledger.Usage)] == [number % 5 for number in range(len(events))]
    assert audit.run() == []
