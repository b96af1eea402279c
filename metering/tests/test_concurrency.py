"""Many clients at once, on committed data: what only real transactions can show."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from django.db import DatabaseError, connection, connections, transaction

from billing import audit, ledger
from billing.models import Wallet
from metering import usage
from metering.models import UsageRecord
from tests.factories import NANOS, make_account, make_model

pytestmark = pytest.mark.usefixtures("committed")


def at_once(count: int, work: Any) -> list[Any]:
    """Runs ``work(number)`` in ``count`` threads that start together; what each returned or raised."""
    barrier = Barrier(count)

    def run(number: int) -> Any:
        barrier.wait()
        try:
            return work(number)
        except (usage.UsageError, ledger.LedgerError) as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.failure(1)
def test_fifty_parallel_authorizations_of_a_tenth_on_a_balance_of_one_pass_exactly_ten_times() -> None:
    account = make_account(credit=1)
    model = make_model(input_price=100_000_000_000 * 2 // 3, output_price=0)
    ask = usage.Ask(model, {"input_tokens": 1_000})

    def work(number: int) -> usage.Authorization:
        return usage.authorize(account=account, ask=ask, key=f"k{number}", now=datetime.now(UTC))

    answers = at_once(50, work)
    granted = [answer for answer in answers if isinstance(answer, usage.Authorization)]
    refused = [answer for answer in answers if isinstance(answer, usage.Refused) and answer.layer.name == "credits"]
    assert {answer.usage.hold_nanos for answer in granted} == {100_000_000}
    assert (len(granted), len(refused)) == (10, 40)
    wallet = Wallet.objects.get(account=account)
    assert (wallet.balance, wallet.available) == (NANOS, 0)
    assert audit.run() == []


def test_a_transaction_that_goes_on_reading_the_past_is_refused() -> None:
    account, model = make_account(credit=1), make_model()
    event = usage.Event("e", account, datetime.now(UTC), model, {"input_tokens": 1})

    def in_the_past(work: Callable[[], object]) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("set transaction isolation level repeatable read")
            work()

    for work in (
        lambda: usage.authorize(account=account, ask=usage.Ask(model, {"input_tokens": 1}), key="k", now=datetime.now(UTC)),
        lambda: usage.record(events=[event], now=datetime.now(UTC)),
    ):
        with pytest.raises(DatabaseError, match="READ COMMITTED"):
            in_the_past(work)


@pytest.mark.failure(4)
def test_one_key_from_twenty_clients_at_once_is_one_hold() -> None:
    account = make_account(credit=1)
    ask = usage.Ask(make_model(), {"input_tokens": 1_000})
    key = str(uuid4())
    answers = at_once(20, lambda _: usage.authorize(account=account, ask=ask, key=key, now=datetime.now(UTC)))
    assert len({answer.usage.id for answer in answers}) == 1
    assert sum(not answer.usage.replayed for answer in answers) == 1
    assert Wallet.objects.get(account=account).held == answers[0].usage.hold_nanos


@pytest.mark.failure(7)
def test_capture_and_release_at_once_move_the_money_once() -> None:
    account = make_account(credit=1)
    model = make_model()
    held = usage.authorize(account=account, ask=usage.Ask(model, {"input_tokens": 1_000}), key="k", now=datetime.now(UTC)).usage

    def work(number: int) -> ledger.Usage:
        if number % 2:
            return usage.release(account=account, authorization_id=held.id)
        return usage.capture(account=account, authorization_id=held.id, quantities={"input_tokens": 1_000})

    answers = at_once(16, work)
    done = [answer for answer in answers if isinstance(answer, ledger.Usage)]
    assert sum(not answer.replayed for answer in done) == 1
    assert len({answer.state for answer in done}) == 1
    assert all(isinstance(answer, (ledger.Usage, ledger.AlreadyResolved)) for answer in answers)
    wallet = Wallet.objects.get(account=account)
    assert (wallet.held, NANOS - wallet.balance) == (0, UsageRecord.objects.get(account=account).price_nanos)


@pytest.mark.failure(7)
def test_two_captures_a_release_and_the_time_out_at_once_move_the_money_once() -> None:
    account = make_account(credit=1)
    model = make_model()
    now = datetime.now(UTC)
    held = usage.authorize(account=account, ask=usage.Ask(model, {"input_tokens": 1_000}), key="k", now=now).usage

    def work(number: int) -> ledger.Usage | None:
        if number % 4 == 3:
            with ledger.clock(at=now + timedelta(minutes=16)):
                ledger.sweep(limit=100)
            return None
        if number % 4 == 2:
            return usage.release(account=account, authorization_id=held.id)
        return usage.capture(account=account, authorization_id=held.id, quantities={"input_tokens": 1_000 * (number % 4 + 1)})

    answers = at_once(16, work)
    heard = [{type(answer) for answer in answers[way::4]} for way in range(4)]
    assert heard.pop() == {type(None)}
    assert (heard.count({ledger.Usage}), heard.count({ledger.AlreadyResolved})) == (1, 2)
    done = [answer for answer in answers if isinstance(answer, ledger.Usage)]
    assert sum(not answer.replayed for answer in done) == 1
    wallet = Wallet.objects.get(account=account)
    record = UsageRecord.objects.get(account=account)
    assert {(answer.state, answer.price_nanos) for answer in done} == {(record.outcome, record.price_nanos)}
    assert (wallet.held, NANOS - wallet.balance) == (0, record.price_nanos)
    assert audit.run() == []


@pytest.mark.failure(21)
def test_the_same_batches_from_several_clients_count_once() -> None:
    accounts = [make_account(credit=1) for _ in range(3)]
    model = make_model()
    now = datetime.now(UTC)
    events = [usage.Event(f"e{number}", accounts[number % 3], now, model, {"input_tokens": 1_000 + number}) for number in range(120)]

    def work(number: int) -> list[Any]:
        mine = events[number * 20 :] + events[: number * 20]
        return list(usage.record(events=mine, now=now))

    answers = [answer for batch in at_once(4, work) for answer in batch]
    assert sum(answer.outcome == "done" for answer in answers) == 120
    charged = sum(record.price_nanos or 0 for record in UsageRecord.objects.filter(account__in=accounts))
    assert charged == sum((1_000 + number) * 4_500 for number in range(120))
    assert sum(NANOS - wallet.balance for wallet in Wallet.objects.filter(account__in=accounts)) == charged
    assert audit.run() == []


@pytest.mark.failure(19)
def test_ten_thousand_records_of_one_token_sum_to_exactly_their_price() -> None:
    account = make_account(credit=1)
    model = make_model()
    now = datetime.now(UTC)
    events = [usage.Event(f"t{number}", account, now, model, {"input_tokens": 1}) for number in range(10_000)]
    charged = [answer.price_nanos for answer in usage.record(events=events, now=now) if isinstance(answer, ledger.Usage)]
    assert (len(charged), set(charged)) == (10_000, {4_500})
    assert NANOS - Wallet.objects.get(account=account).balance == 45_000_000


def test_a_million_records_and_their_entries_are_less_than_a_gigabyte() -> None:
    """Ten thousand of them, with their indexes."""

    def size() -> int:
        with connection.cursor() as cursor:
            cursor.execute("select pg_total_relation_size('usage_record') + pg_total_relation_size('ledger_entry')")
            [(bytes_,)] = cursor.fetchall()
            return int(bytes_)

    accounts, model, now = [make_account(credit=1) for _ in range(10)], make_model(), datetime.now(UTC)
    before = size()
    events = [
        usage.Event(f"s{number}", accounts[number % 10], now, model, {"input_tokens": 1_000 + number, "output_tokens": 1}, feature="chat")
        for number in range(10_000)
    ]
    assert {answer.outcome for answer in usage.record(events=events, now=now) if isinstance(answer, ledger.Usage)} == {"done"}
    assert 0 < (size() - before) / len(events) < 1_000
