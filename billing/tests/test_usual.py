"""The usual way of a call and the way by parts say and write the same: each life is lived twice, once with the usual way closed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction

from accounts.models import Account
from billing import audit, ledger
from config import roles
from tests.factories import make_account

pytestmark = pytest.mark.django_db
LIVES = 120
BEGUN = datetime(2026, 3, 1, tzinfo=UTC)
#: What closes the usual way of each verb.
CLOSED = {
    "usage_authorize": ("if f.pending or f.finished or f.usual is not true then", "if true then"),
    "usage_capture": ("if f.usual then", "if false then"),
}
#: What a life leaves, in an order that does not hang on random ids.
TABLES = {
    "account_state": "account_id", "wallet": "unit_id", "credit_grant": "id", "open_authorization": "key_hash", "usage_record": "key_hash",
    "ledger_entry": "seq", "usage_counter": "meter, window_start", "rollup_delta": "t::text", "output_delta": "t::text",
}  # fmt: skip
#: Columns that name rows by numbers which are never used twice, or are made of such numbers.
NAMES = ("id", "grant_id", "usage_id", "operation_id", "seal")


def acts(seed: int) -> list[tuple[int, tuple[Any, ...]]]:
    """A life: after how many minutes what is done, mostly holds and captures."""
    one_of = random.Random(seed)
    pick = one_of.choice

    def act() -> tuple[Any, ...]:
        which = pick([0, 0, 0, 1, 2, 9])
        match one_of.choices(
            ["grant", "hold", "capture", "release", "extend", "await", "again", "stop", "resume"], [6, 12, 12, 1, 1, 1, 1, 1, 1]
        )[0]:
            case "grant":
                return "grant", one_of.randint(1, 300), pick([0, 1, 2]), pick([None, None, 5, 60]), pick([0, 7, 999]), pick([0, 3, 50])
            case "hold":
                return (
                    "hold",
                    pick([0, 5, 30, 90]),
                    pick([0, 10]),
                    pick([True, True, False]),
                    pick([False, False, True]),
                    pick([None, 100]),
                    pick([1, 15, 120]),
                )
            case "capture":
                return "capture", which, pick([0, 1, 10, 30, 60, 90, 200, 2**62]), pick(["charge", "cap", "reject", "absorb"])
            case "stop" | "resume" as name:
                return (name,)
            case name:
                return name, which

    return [(1, ("grant", 1_000, 1, None, pick([0, 70]), 300)), *((pick([1, 1, 5, 30]), act()) for _ in range(one_of.randint(8, 40)))]


class Life:
    """One account's calls, one after another, by a clock of their own."""

    def __init__(self, account: Account) -> None:
        self.account, self.unit = account.pk, account.product.unit_id
        self.now, self.grants, self.held, self.keys = BEGUN, 0, list[UUID](), 0

    def live(self, acts: Sequence[tuple[int, tuple[Any, ...]]]) -> list[object]:
        return [self.answer(minutes, getattr(self, f"do_{name}"), arguments) for minutes, (name, *arguments) in acts]

    def answer(self, minutes: int, act: Callable[..., object], arguments: Sequence[Any]) -> object:
        self.now += timedelta(minutes=minutes)
        with ledger.clock(at=self.now):
            try:
                said = act(*arguments)
            except ledger.LedgerError as error:
                return type(error).__name__, str(error)
        return {key: value for key, value in asdict(said).items() if key not in ("id", *NAMES)} if isinstance(said, ledger.Usage) else said

    def do_grant(self, amount: int, priority: int, minutes: int | None, cash: int, fee: int) -> None:
        self.grants += 1
        key = f"g{self.grants}"
        ledger.grant(
            account_id=self.account, unit_id=self.unit, amount_nanos=amount, source="purchased", source_key=key, key=key, actor="ann",
            reason="r", priority=priority, expires_at=self.now + timedelta(minutes=minutes) if minutes else None, cash_nanos=cash,
            fee_nanos=fee,
        )  # fmt: skip

    def do_hold(self, amount: int, minimum: int, charged: bool, limited: bool, assumed: int | None, minutes: int) -> ledger.Usage:
        self.keys += 1
        usage = self.hold(f"k{self.keys}", amount, minimum, charged, limited, assumed, minutes)
        self.held.append(usage.id)
        return usage

    def hold(self, key: str, amount: int, minimum: int, charged: bool, limited: bool, assumed: int | None, minutes: int) -> ledger.Usage:
        day = self.now.replace(hour=0, minute=0)
        window = (day, day + timedelta(days=1))
        limits = [
            ledger.Limit("concurrency", "requests/open", None, None, 4, 1, True),
            ledger.Limit("cost", "cost/day", *window, 99, 7, True),
        ]
        return ledger.hold(
            account_id=self.account, key=ledger.key_hash(key), fingerprint=ledger.key_hash("f"), refusal=None,
            call=ledger.Call(1, None, None, 1, [1], [10, 20]), unit_id=self.unit if charged else None, amount_nanos=amount, cost_nanos=7,
            minimum_nanos=minimum, remaining=[None], limits=limits if limited else [], lifetime=timedelta(minutes=minutes),
            hard_lifetime=timedelta(minutes=3 * minutes), closes_at=BEGUN + timedelta(minutes=90), assumed_output_tokens=assumed,
        )  # fmt: skip

    def one(self, which: int) -> dict[str, Any]:
        """What names an authorization, the last but ``which``; at first, one that never was."""
        return {"account_id": self.account, "authorization_id": self.held[-1 - which % len(self.held)] if self.held else UUID(int=which)}

    def do_capture(self, which: int, price: int, overage: str) -> ledger.Usage:
        charge = ledger.Charge(cost_nanos=price // 2, price_nanos=price, value_nanos=price, tokens=9)
        return ledger.capture(**self.one(which), quantities=[price % 97], price_ids=[3], charge=charge, overage=overage)

    def do_release(self, which: int) -> ledger.Usage:
        return ledger.release(**self.one(which))

    def do_extend(self, which: int) -> ledger.Usage:
        return ledger.extend(**self.one(which), lifetime=timedelta(minutes=50))

    def do_await(self, which: int) -> ledger.Usage:
        return ledger.await_price(**self.one(which), quantities=[30])

    def do_again(self, which: int) -> ledger.Usage:
        return self.hold(f"k{which}", 1, 0, True, False, None, 5)

    def do_stop(self) -> bool:
        return ledger.throttle(account_id=self.account, actor="ann", reason="r", ends_at=self.now + timedelta(minutes=10))

    def do_resume(self) -> bool:
        return ledger.resume(account_id=self.account, actor="ann")

    def left(self) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {}
        with connection.cursor() as cursor:
            for table, order in TABLES.items():
                cursor.execute(f"select row_to_json(t)::text from {table} t where account_id = %s order by {order}", [self.account])
                found = [json.loads(row) for (row,) in cursor.fetchall()]
                rows[table] = [{key: value for key, value in row.items() if key not in NAMES} for row in found]
        return rows


def close_the_usual_way() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"set local role {roles.OWNER}")
        for verb, (find, replace) in CLOSED.items():
            cursor.execute("select pg_get_functiondef(%s::regproc)", [verb])
            [(text,)] = cursor.fetchall()
            assert text.count(find) == 1, verb
            cursor.execute(text.replace(find, replace))
        cursor.execute("reset role")


def test_a_life_by_parts_is_the_same_life() -> None:
    account = make_account()

    def lives() -> list[tuple[list[object], dict[str, list[Any]]]]:
        told = []
        for seed in range(LIVES):
            before, life = transaction.savepoint(), Life(account)
            told.append((life.live(acts(seed)), life.left()))
            if seed % 20 == 0:
                assert audit.run() == []
            transaction.savepoint_rollback(before)
        return told

    usual = lives()
    close_the_usual_way()
    for seed, (one, other) in enumerate(zip(usual, lives(), strict=True)):
        assert one == other, f"life {seed}"
    assert sum(row["outcome"] == "captured" and row["entries"] == 1 for _, rows in usual for row in rows["usage_record"]) > LIVES / 2
