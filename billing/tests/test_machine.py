"""The real ledger beside a plain one (:mod:`billing.tests.oracle`): whatever is done, in whatever order, they answer and hold the same.

After every step: balance = Σ remaining = Σ entries, held = Σ open holds, 0 ≤ held ≤ balance, no debt beside free credit, entries numbered
without gaps with their running balance and due times, every lot as full, frozen and clawed as the oracle's, cash and fees where the credits
went. After the last: the audit.

A new verb of the ledger is three things here: a method of the oracle, ``ledger_<verb>`` with the same arguments, and a rule. ``make test``
lives the same lives each time; ``pytest billing/tests/test_machine.py --hypothesis-profile=soak`` looks for new ones and shrinks them.
"""

from __future__ import annotations

import secrets
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from accounts.models import Account
from billing import audit, balances, ledger
from billing.models import LedgerEntry
from billing.tests import oracle
from pricing.models import Unit
from tests.factories import make_account

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
SHORT = settings(
    max_examples=50,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
AMOUNTS = st.integers(1, 100)
HOLDS = st.integers(0, 60)
PRIORITIES = st.integers(0, 2)
#: Mostly one wallet, so that things meet there; (0, 1) is another unit of its account, (1, 0) somebody else's.
WALLETS = st.sampled_from([(0, 0)] * 6 + [(0, 1), (1, 0)])
#: How many steps back.
BACK = st.integers(0, 6)
LIFETIMES = st.sampled_from([timedelta(minutes=1), timedelta(minutes=15), timedelta(hours=20)])
SPANS = st.sampled_from([timedelta(minutes=1), timedelta(minutes=20), timedelta(hours=3), timedelta(days=1), timedelta(days=4)])
OVERAGES = st.sampled_from(["charge", "charge", "cap", "reject"])
CAPS = st.none() | st.integers(0, 80)
ROLLOVERS = st.none() | st.tuples(SPANS, CAPS, PRIORITIES)

#: A verb, the account that it is for (0 or 1), and its arguments.
Command = tuple[str, int, dict[str, Any]]
T = TypeVar("T")


class LedgerMachine(RuleBasedStateMachine):
    """Every rule makes one command, which the ledger and the oracle are both given. Accounts begin empty; each life is rolled back."""

    accounts: ClassVar[list[Account]]
    units: ClassVar[list[int]]

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.oracles = [oracle.Account(), oracle.Account()]
        self.keys = 0
        self.commands: list[Command] = []
        self.work: list[tuple[int, oracle.Work]] = []
        self.well = True
        self.books: dict[tuple[int, int], Books] = {}
        self.life = ExitStack()
        self.life.enter_context(transaction.atomic())
        self.clock = self.life.enter_context(ExitStack())
        self.clock.enter_context(ledger.clock(at=self.now))

    def teardown(self) -> None:
        try:
            if self.well:
                assert audit.run() == []
                for number in range(2):
                    self.compare(number, also_as_read=True)
        finally:
            self.life.__exit__(_Over, _Over(), None)

    # In and out ------------------------------------------------------------------------------------------------------------------

    @initialize(amounts=st.lists(st.integers(50, 300), max_size=3))
    def begin_with_credit(self, amounts: list[int]) -> None:
        for amount in amounts:
            self.grant((0, 0), amount, priority=1, ends_in=None, cash=amount, fee=3)

    @rule(
        wallet=WALLETS,
        amount=AMOUNTS,
        priority=PRIORITIES,
        ends_in=SPANS | st.none(),
        cash=st.integers(0, 99),
        fee=st.integers(0, 9),
        rolls=ROLLOVERS,
    )
    def grant(
        self, wallet: tuple[int, int], amount: int, priority: int, ends_in: timedelta | None, cash: int, fee: int,
        rolls: tuple[timedelta, int | None, int] | None = None,
    ) -> None:  # fmt: skip
        key = self.new_key()
        self.do(
            "grant", wallet, key=key, source="promo", source_key=key, amount=amount, priority=priority,
            ends_at=self.now + ends_in if ends_in else None, cash=cash, fee=fee, rolls=self.rollover(ends_in, rolls),
        )  # fmt: skip

    @rule(wallet=WALLETS, amount=AMOUNTS, invoice=st.integers(1, 9), ends_in=SPANS | st.none(), rolls=ROLLOVERS)
    def grant_what_was_paid(
        self, wallet: tuple[int, int], amount: int, invoice: int, ends_in: timedelta | None, rolls: tuple[timedelta, int | None, int] | None
    ) -> None:
        """Two events may tell of one invoice: whichever is first makes the grant."""
        self.do(
            "grant", wallet, key=self.new_key(), source="purchased", source_key=f"invoice {invoice}", amount=amount, priority=1,
            ends_at=self.now + ends_in if ends_in else None, cash=7 * amount, fee=amount, rolls=self.rollover(ends_in, rolls),
        )  # fmt: skip

    def rollover(self, ends_in: timedelta | None, rolls: tuple[timedelta, int | None, int] | None) -> oracle.Rollover | None:
        return (self.now + ends_in + rolls[0], *rolls[1:]) if ends_in and rolls else None

    @precondition(lambda self: self.payments())
    @rule(back=BACK, refunded=st.sampled_from([0, 20, 33, 50, 100]))
    def refund(self, back: int, refunded: int) -> None:
        self.about_a_payment("refund", back, refunded=refunded, paid=100)

    @precondition(lambda self: self.payments())
    @rule(back=BACK, won=st.booleans())
    def dispute(self, back: int, won: bool) -> None:
        self.about_a_payment("unfreeze" if won else "freeze", back)

    @rule(number=st.integers(0, 1), verb=st.sampled_from(["refund", "freeze", "unfreeze"]))
    def tell_of_a_payment_that_never_was(self, number: int, verb: str) -> None:
        more = {"refunded": 1, "paid": 1} if verb == "refund" else {}
        self.give(verb, number, {"key": self.new_key(), "source": "rollover", "source_key": "invoice 1"} | more)

    def payments(self) -> list[tuple[int, str]]:
        return [(number, said["source_key"]) for verb, number, said in self.commands if verb == "grant" and said["source"] == "purchased"]

    def about_a_payment(self, verb: str, back: int, **more: int) -> None:
        number, source_key = _recent(self.payments(), back)
        arguments = {"key": self.new_key(), "source": "purchased", "source_key": source_key} | more
        self.commands.append((verb, number, arguments))
        self.give(verb, number, arguments)

    # By itself -------------------------------------------------------------------------------------------------------------------

    @rule(
        wallet=WALLETS,
        amount=AMOUNTS,
        priority=PRIORITIES,
        days=st.integers(-40, 20),
        months=st.sampled_from([1, 1, 2]),
        ends_in=st.none() | st.integers(0, 90),
        rolls=st.none() | st.tuples(st.integers(1, 2), CAPS, PRIORITIES),
    )
    def schedule(
        self, wallet: tuple[int, int], amount: int, priority: int, days: int, months: int, ends_in: int | None,
        rolls: tuple[int, int | None, int] | None,
    ) -> None:  # fmt: skip
        key = self.new_key()
        self.do(
            "schedule", wallet, key=key, source="monthly", source_key=key, amount=amount, priority=priority,
            anchor=self.now + timedelta(days=days), months=months, rolls=rolls,
            ends_at=None if ends_in is None else self.now + timedelta(days=ends_in),
        )  # fmt: skip

    @rule(wallet=WALLETS, ends_in=st.none() | st.integers(0, 60))
    def end_schedule(self, wallet: tuple[int, int], ends_in: int | None) -> None:
        self.do("end_schedule", wallet, key=self.new_key(), ends_at=None if ends_in is None else self.now + timedelta(days=ends_in))

    @rule(wallet=WALLETS, amount=AMOUNTS, months=st.sampled_from([1, 2]))
    def schedule_once_too_often(self, wallet: tuple[int, int], amount: int, months: int) -> None:
        """Three of one day: the third is stopped, and whatever else is due still happens."""
        for _ in range(3):
            key = self.new_key()
            self.do(
                "schedule", wallet, key=key, source="monthly", source_key=key, amount=amount, priority=1, anchor=self.now, months=months,
                rolls=None, ends_at=None,
            )  # fmt: skip

    @rule(wallet=WALLETS, grants=st.booleans())
    def restart_schedule(self, wallet: tuple[int, int], grants: bool) -> None:
        self.do("restart_schedule", wallet, key=self.new_key(), grants=grants)

    @rule(wallet=WALLETS, cap=CAPS)
    def cap_rollovers(self, wallet: tuple[int, int], cap: int | None) -> None:
        self.do("cap_rollovers", wallet, key=self.new_key(), cap=cap)

    @rule(days=st.sampled_from([10, 31, 75]))
    def wait_for_weeks(self, days: int) -> None:
        self.wait(timedelta(days=days), sweep=False)

    @rule(limit=st.integers(1, 2))
    def catch_up(self, limit: int) -> None:
        """The job that touches idle accounts changes nothing that they would not have found."""
        after: int | None = 0
        while after is not None:
            after = ledger.catch_up(after=after, limit=limit)
        for number in range(2):
            self.compare(number)

    @rule(wallet=WALLETS)
    def grant_more_than_fits(self, wallet: tuple[int, int]) -> None:
        """Given, not done: it would fit when repeated on a wallet that is empty by then."""
        number, unit = wallet[0], self.units[wallet[1]]
        if self.oracles[number].wallet(unit, self.now).balance:
            key, most = self.new_key(), oracle.MOST
            terms = {"source": "promo", "source_key": key, "amount": most, "priority": 0, "ends_at": None, "cash": most, "fee": 0}
            self.give("grant", number, {"key": key, "unit": unit, "rolls": None} | terms)

    @rule(wallet=WALLETS, amount=st.integers(-40, 20).filter(bool), priority=PRIORITIES)
    def adjust(self, wallet: tuple[int, int], amount: int, priority: int) -> None:
        self.do("adjust", wallet, key=self.new_key(), amount=amount, priority=priority)

    @precondition(lambda self: self.work)
    @rule(back=BACK)
    def reverse(self, back: int) -> None:
        charged = [(number, work) for number, work in self.work if work.price]
        number, work = _recent(charged or self.work, back)
        self.do("reverse", (number, 0), key=self.new_key(), id=work.id)

    # Work ------------------------------------------------------------------------------------------------------------------------

    @rule(wallet=WALLETS, amount=HOLDS, lifetime=LIFETIMES)
    def hold(self, wallet: tuple[int, int], amount: int, lifetime: timedelta, minimum: int = 0, refusal: str | None = None) -> None:
        self.do(
            "hold",
            wallet,
            key=self.new_key(),
            amount=amount,
            minimum=minimum,
            refusal=refusal,
            lifetime=lifetime,
            longest=timedelta(days=1),
        )

    @rule(amount=HOLDS, lifetime=LIFETIMES)
    def hold_more(self, amount: int, lifetime: timedelta) -> None:
        """A rule of its own so that several holds are often open at once."""
        self.hold((0, 0), amount, lifetime)

    @rule(wallet=WALLETS, amount=HOLDS, minimum=st.sampled_from([0, 60]), refusal=st.sampled_from([None, "request_size"]))
    def hold_under_a_condition(self, wallet: tuple[int, int], amount: int, minimum: int, refusal: str | None) -> None:
        self.hold(wallet, amount, timedelta(minutes=15), minimum, refusal)

    @precondition(lambda self: self.unfinished())
    @rule(back=BACK, above=st.just(0) | st.integers(-60, 60), overage=OVERAGES)
    def capture(self, back: int, above: int, overage: str) -> None:
        number, work = _recent(self.unfinished(), back)
        price = max(0, work.hold + above)
        if work.state == "awaiting_price" and above < 30:  # else it is another report than the one that waits
            price = work.quantities[0]
        self.do("capture", (number, 0), id=work.id, quantities=(price,), price=price, overage=overage)

    @precondition(lambda self: self.unfinished())
    @rule(back=BACK)
    def release(self, back: int) -> None:
        number, work = _recent(self.unfinished(), back)
        self.do("release", (number, 0), id=work.id)

    @precondition(lambda self: self.unfinished())
    @rule(back=BACK, price=st.integers(1, 60))
    def await_price(self, back: int, price: int) -> None:
        number, work = _recent(self.unfinished(), back)
        self.do("await_price", (number, 0), id=work.id, quantities=(price,))

    @precondition(lambda self: self.unfinished())
    @rule(back=BACK, lifetime=LIFETIMES)
    def extend(self, back: int, lifetime: timedelta) -> None:
        number, work = _recent(self.unfinished(), back)
        self.do("extend", (number, 0), id=work.id, lifetime=lifetime)

    @precondition(lambda self: self.work)
    @rule(back=BACK, mine=st.booleans(), verb=st.sampled_from(["capture", "release", "await_price", "extend", "reverse", "rate"]))
    def name_what_is_over_or_is_another_accounts(self, back: int, mine: bool, verb: str) -> None:
        number, work = _recent(self.work, back)
        more: dict[str, dict[str, Any]] = {
            "capture": {"quantities": (1,), "price": 1, "overage": "charge"},
            "release": {},
            "await_price": {"quantities": (1,)},
            "extend": {"lifetime": timedelta(minutes=1)},
            "reverse": {"key": self.new_key()},
            "rate": {"price": 1, "charged": True},
        }
        self.do(verb, (number if mine else 1 - number, 0), id=work.id, **more[verb])

    @rule(wallet=WALLETS, price=st.none() | st.integers(0, 60))
    def record(self, wallet: tuple[int, int], price: int | None) -> None:
        self.do("record", wallet, key=self.new_key(), price=price)

    @precondition(lambda self: self.unpriced())
    @rule(back=BACK, price=st.integers(0, 60), charged=st.sampled_from([True, True, False]))
    def rate(self, back: int, price: int, charged: bool) -> None:
        number, work = _recent(self.unpriced(), back)
        self.do("rate", (number, 0), id=work.id, price=price, charged=charged)

    @rule(events=st.lists(st.tuples(WALLETS, st.none() | st.integers(0, 40)), min_size=2, max_size=6), back=BACK, again=st.booleans())
    def record_a_set(self, events: list[tuple[tuple[int, int], int | None]], back: int, again: bool) -> None:
        """As if one after the other, for several accounts; what is in it twice, or was recorded before, counts once."""
        set_: list[Command] = [
            ("record", number, {"key": self.new_key(), "unit": self.units[unit], "price": price}) for (number, unit), price in events
        ]
        before = [command for command in self.commands if command[0] == "record"]
        if again:
            set_ += [set_[0], *before[-1 - back : -back or None]]
        self.commands += set_[: len(events)]
        wanted = [self.ask_oracle(*command) for command in set_]
        self.well = False
        got = ledger.record_many([self.event(self.accounts[number].pk, **arguments) for _, number, arguments in set_])
        for (_, number, _), want, answer in zip(set_, wanted, got, strict=True):
            reused = isinstance(answer, ledger.Usage) and answer.outcome == "key_reused"
            self.check_answer(number, want, ledger.KeyReused() if reused else answer)
        for number in range(2):
            self.compare(number)
        self.well = True

    # Again, and later ------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.commands)
    @rule(back=BACK)
    def repeat(self, back: int) -> None:
        """A client that never heard the answer sends the same once more."""
        verb, number, arguments = _recent(self.commands, back)
        self.give(verb, number, arguments)

    @precondition(lambda self: any("key" in arguments for _, _, arguments in self.commands))
    @rule(back=BACK, more=st.integers(1, 3), record=st.booleans())
    def use_a_key_again(self, back: int, more: int, record: bool) -> None:
        """The same key for another amount, another record, or the other verb that shares its keys."""
        verb, number, arguments = _recent([command for command in self.commands if "key" in command[2]], back)
        if verb == "hold" and record:
            verb, arguments = "record", {"key": arguments["key"], "unit": arguments["unit"], "price": more}
        elif verb == "record":
            arguments = arguments | {"price": (arguments["price"] or 0) + more}
        elif verb == "reverse":
            arguments = arguments | {"id": _recent(self.work, more)[1].id}
        elif verb == "refund":
            arguments = arguments | {"refunded": (arguments["refunded"] + more) % 100}
        elif verb in ("freeze", "unfreeze"):
            arguments = arguments | {"source_key": f"invoice {10 + more}"}
        elif verb == "restart_schedule":
            arguments = arguments | {"grants": not arguments["grants"]}
        elif verb == "cap_rollovers":
            arguments = arguments | {"cap": 100 + more}
        elif verb == "end_schedule":
            arguments = arguments | {"ends_at": self.now + timedelta(days=100 + more)}
        else:
            arguments = arguments | {"amount": arguments["amount"] + more or 1}
        self.give(verb, number, arguments)

    @rule(span=SPANS, sweep=st.booleans())
    def wait(self, span: timedelta, sweep: bool) -> None:
        self.now += span
        self.clock.close()
        self.clock.enter_context(ledger.clock(at=self.now))
        for account in self.oracles:
            account.due(self.now)
        # The sweeper is a job and may be late, but not by the week that a hold's late capture has.
        if sweep or any(work.unfinished and work.ends_at and work.ends_at + oracle.LATE <= self.now for _, work in self.work):
            self.sweep()

    @rule()
    def sweep(self) -> None:
        while ledger.sweep(limit=2):
            pass
        for number, account in enumerate(self.oracles):
            account.sweep(now=self.now)
            self.compare(number)

    # One command, given to both --------------------------------------------------------------------------------------------------

    def new_key(self) -> str:
        self.keys += 1
        return f"key {self.keys}"

    def unfinished(self) -> list[tuple[int, oracle.Work]]:
        return [(number, work) for number, work in self.work if work.unfinished]

    def unpriced(self) -> list[tuple[int, oracle.Work]]:
        return [(number, work) for number, work in self.work if work.state == "unpriced"]

    def do(self, verb: str, wallet: tuple[int, int], **arguments: Any) -> None:
        number, unit = wallet
        if "id" not in arguments:
            arguments["unit"] = self.units[unit]
        self.commands.append((verb, number, arguments))
        self.give(verb, number, arguments)

    def ask_oracle(self, verb: str, number: int, arguments: dict[str, Any]) -> oracle.Answer | oracle.Refusal:
        try:
            answer: oracle.Answer = getattr(self.oracles[number], verb)(now=self.now, **arguments)
        except oracle.Refusal as refusal:
            return refusal
        return answer

    def give(self, verb: str, number: int, arguments: dict[str, Any]) -> None:
        got: ledger.Usage | ledger.Operation | ledger.LedgerError
        wanted = self.ask_oracle(verb, number, arguments)
        ended = self.ended(number, arguments["unit"]) if verb == "hold" else 0
        self.well = False
        try:
            got = getattr(self, f"ledger_{verb}")(self.accounts[number].pk, **arguments)
        except ledger.LedgerError as error:
            got = error
        if ended and isinstance(wanted, dict) and isinstance(got, ledger.Usage) and got.remaining and got.remaining != wanted["remaining"]:
            wanted["remaining"][-1] -= (
                ended  # where enough is free nobody looks for holds that have ended: what is left is told without them
            )
        self.check_answer(number, wanted, got)
        self.compare(number)
        self.well = True

    def ended(self, number: int, unit: int) -> int:
        """What holds that have ended still keep in the wallet, until something needs it."""
        with connection.cursor() as cursor:
            cursor.execute(
                "select coalesce(sum(held), 0)::bigint from open_authorization where account_id = %s and unit_id = %s and state = 'open'"
                " and coalesce(extended_to, expires_at) <= app_now()",
                [self.accounts[number].pk, unit],
            )
            [(held,)] = cursor.fetchall()
        return int(held)

    def check_answer(
        self, number: int, wanted: oracle.Answer | oracle.Refusal, got: ledger.Usage | ledger.Operation | ledger.LedgerError
    ) -> None:
        if isinstance(wanted, oracle.Refusal):
            assert type(got).__name__ == wanted.name, f"expected {wanted.name}, got {got!r}"
            assert {name: getattr(got, name) for name in wanted.says} == wanted.says
            return
        assert not isinstance(got, ledger.LedgerError), f"expected {wanted}, got {got!r}"
        wanted = dict(wanted)
        made = wanted.pop("work", None) or wanted.pop("lot", None)
        assert {name: getattr(got, name) for name in wanted} == wanted
        if isinstance(made, oracle.Work):
            assert made.id in (None, got.id)
            if made.id is None:
                assert isinstance(got, ledger.Usage)
                made.id = got.id
                self.oracles[number].work[got.id] = made
                self.work.append((number, made))
        elif isinstance(made, oracle.Lot):
            assert isinstance(got, ledger.Operation)
            assert made.id in (None, got.grant_id)
            made.id = got.grant_id

    def ledger_grant(
        self, account: int, *, key: str, unit: int, source: str, source_key: str, amount: int, priority: int, ends_at: datetime | None,
        cash: int, fee: int, rolls: oracle.Rollover | None,
    ) -> ledger.Operation:  # fmt: skip
        with transaction.atomic():  # an amount that does not fit breaks the transaction
            return ledger.grant(
                account_id=account, unit_id=unit, amount_nanos=amount, source=source, source_key=source_key, key=key, actor="ann",
                reason="test", priority=priority, expires_at=ends_at, cash_nanos=cash, fee_nanos=fee,
                rollover=ledger.Rollover(*rolls) if rolls else None,
            )  # fmt: skip

    def ledger_refund(self, account: int, **terms: Any) -> ledger.Operation:
        return ledger.refund(account_id=account, actor="ann", reason="test", **terms)

    def ledger_freeze(self, account: int, **terms: Any) -> ledger.Operation:
        return ledger.freeze(account_id=account, actor="ann", reason="test", **terms)

    def ledger_unfreeze(self, account: int, **terms: Any) -> ledger.Operation:
        return ledger.unfreeze(account_id=account, actor="ann", reason="test", **terms)

    def ledger_schedule(
        self, account: int, *, unit: int, amount: int, anchor: datetime, rolls: tuple[int, int | None, int] | None, **terms: Any
    ) -> ledger.Operation:
        periods, cap, priority = rolls or (0, None, 0)
        return ledger.schedule(
            account_id=account, unit_id=unit, amount_nanos=amount, anchor_at=anchor, rollover_periods=periods, rollover_cap_nanos=cap,
            rollover_priority=priority, actor="ann", reason="test", **terms,
        )  # fmt: skip

    def ledger_end_schedule(self, account: int, *, unit: int, **terms: Any) -> ledger.Operation:
        return ledger.end_schedule(account_id=account, unit_id=unit, actor="ann", reason="test", **terms)

    def ledger_restart_schedule(self, account: int, *, unit: int, **terms: Any) -> ledger.Operation:
        return ledger.restart_schedule(account_id=account, unit_id=unit, actor="ann", reason="test", **terms)

    def ledger_cap_rollovers(self, account: int, *, unit: int, cap: int | None, key: str) -> ledger.Operation:
        return ledger.cap_rollovers(account_id=account, unit_id=unit, cap_nanos=cap, key=key, actor="ann", reason="test")

    def ledger_adjust(self, account: int, *, key: str, unit: int, amount: int, priority: int) -> ledger.Operation:
        return ledger.adjust(
            account_id=account, unit_id=unit, amount_nanos=amount, key=key, actor="ann", reason="test", priority=priority
        )  # fmt: skip

    def ledger_reverse(self, account: int, *, key: str, id: UUID) -> ledger.Operation:
        return ledger.reverse(account_id=account, usage_id=id, key=key, actor="ann", reason="test")

    def ledger_hold(
        self, account: int, *, key: str, unit: int, amount: int, minimum: int, refusal: str | None, lifetime: timedelta, longest: timedelta
    ) -> ledger.Usage:
        return ledger.hold(
            account_id=account, key=ledger.key_hash("usage", key), fingerprint=ledger.fingerprint({"hold": amount, "unit": unit}),
            refusal=refusal, call=CALL, unit_id=unit, amount_nanos=amount, cost_nanos=amount, minimum_nanos=minimum, remaining=[None],
            lifetime=lifetime, hard_lifetime=longest,
        )  # fmt: skip

    def ledger_capture(self, account: int, *, id: UUID, quantities: tuple[int, ...], price: int, overage: str) -> ledger.Usage:
        charge = ledger.Charge(cost_nanos=price, price_nanos=price, value_nanos=price, tokens=1)
        return ledger.capture(
            account_id=account, authorization_id=id, quantities=quantities, price_ids=[1], charge=charge, overage=overage
        )  # fmt: skip

    def ledger_await_price(self, account: int, *, id: UUID, quantities: tuple[int, ...]) -> ledger.Usage:
        return ledger.await_price(account_id=account, authorization_id=id, quantities=quantities)

    def ledger_release(self, account: int, *, id: UUID) -> ledger.Usage:
        return ledger.release(account_id=account, authorization_id=id)

    def ledger_extend(self, account: int, *, id: UUID, lifetime: timedelta) -> ledger.Usage:
        return ledger.extend(account_id=account, authorization_id=id, lifetime=lifetime)

    def ledger_record(self, account: int, *, key: str, unit: int, price: int | None) -> ledger.Usage:
        return ledger.record(self.event(account, key=key, unit=unit, price=price))

    def ledger_rate(self, account: int, *, id: UUID, price: int, charged: bool) -> ledger.Usage:
        [unit] = {work.unit for _, work in self.work if work.id == id}
        charge = ledger.Charge(cost_nanos=price, price_nanos=price, value_nanos=price, tokens=1)
        return ledger.rate(
            account_id=account, usage_id=id, rate_card_id=1, price_ids=[1], unit_id=unit, charge=charge, charged=charged
        )  # fmt: skip

    def event(self, account: int, *, key: str, unit: int, price: int | None) -> ledger.Event:
        return ledger.Event(
            account_id=account, key=ledger.key_hash("usage", key), fingerprint=ledger.fingerprint({"record": price, "unit": unit}),
            call=CALL, unit_id=unit, event_at=BEGIN, charge=ledger.Charge(price, price, price, 1),
        )  # fmt: skip

    # What is true after every step -----------------------------------------------------------------------------------------------

    def compare(self, number: int, *, also_as_read: bool = False) -> None:
        """The account's rows against each other and against the oracle, in which everything that is due has happened already."""
        account, expected = self.accounts[number], self.oracles[number]
        expected.due(self.now)
        with connection.cursor() as cursor:
            cursor.execute(STATE, {"account": account.pk})
            [(open_count, ended_count, wallets)] = cursor.fetchall()
        assert open_count - ended_count == expected.open_count
        late = False
        for unit, balance, held, debt, seq, open_holds, ended_holds, lots in wallets or ():
            want, left = expected.wallets[unit], {id: of_it for id, *of_it in lots or ()}
            # What began by itself has its id from the ledger when that has got there, in the order in which it began.
            known = {lot.id for lot in want.lots.values()}
            for id, lot in zip(sorted(left.keys() - known), [lot for lot in want.lots.values() if lot.id is None], strict=False):
                lot.id = id
            books = self.books.setdefault((number, unit), Books())
            changed = books.read(account.pk, unit, seq, held, self.now)
            assert (balance, debt) == (books.balance, books.debt)
            assert balance == sum(remaining for remaining, *_ in left.values())
            assert held == open_holds
            assert 0 <= held <= balance
            assert debt == 0 or balance == held
            for lot in want.lots.values():
                if lot.id is not None:
                    gone = lot.granted - left[lot.id][0]
                    assert (books.cash[lot.id], books.fee[lot.id]) == (lot.cash * gone // lot.granted, lot.fee * gone // lot.granted)
            assert held - ended_holds == want.held
            late = late or bool(ended_holds)
            if left != {lot.id: [lot.left, lot.frozen, lot.clawed, lot.refunded] for lot in want.lots.values()} or debt != want.debt:
                late = True
                assert not changed, f"whoever wrote the wallet left {left}, expected {want.lots}"
            else:
                assert (books.moved, books.owed) == (want.moved, want.owed)
        if late or also_as_read:  # the next verb will find, and pages show, what is due as done
            for seen in balances.of_account(account, now=self.now):
                want = expected.wallets[seen.unit_id]
                assert (seen.balance, seen.held, seen.debt) == (want.balance, want.held, want.debt)
                assert [
                    (lot.id, lot.source, lot.granted, lot.remaining, lot.starts_at, lot.ends_at or oracle.NEVER) for lot in seen.lots
                ] == [(lot.id, lot.source, lot.granted, lot.left, lot.begun, lot.ends_at) for lot in want.queue()]


#: An account in one read: what is open, and for each wallet its row, what open work holds in it and what is left of each lot.
STATE = """
select (select case when counted then open_count else
    (select count(*) from open_authorization a where a.account_id = s.account_id and a.state = 'open') end
   from account_state s where account_id = %(account)s),
  (select count(*) from open_authorization a
   where a.account_id = %(account)s and a.state = 'open' and coalesce(extended_to, expires_at) <= app_now()),
  (select json_agg(json_build_array(w.unit_id, w.balance, w.held, w.debt, w.seq,
    (select coalesce(sum(a.held), 0) from open_authorization a where a.account_id = w.account_id and a.unit_id = w.unit_id),
    (select coalesce(sum(a.held), 0) from open_authorization a where a.account_id = w.account_id and a.unit_id = w.unit_id
      and a.state = 'open' and coalesce(extended_to, expires_at) <= app_now()),
    (select json_agg(json_build_array(g.id, g.remaining, g.frozen, g.clawed, g.refunded)) from credit_grant g
     where g.account_id = w.account_id and g.unit_id = w.unit_id)))
   from wallet w where w.account_id = %(account)s)
"""


@dataclass
class Books:
    """What the entries of one wallet say, read as they are written."""

    seq: int = 0
    held: int = 0
    balance: int = 0
    debt: int = 0
    moved: Counter[tuple[str, datetime, bool]] = field(default_factory=Counter)
    owed: Counter[tuple[str, datetime]] = field(default_factory=Counter)
    cash: Counter[int] = field(default_factory=Counter)
    fee: Counter[int] = field(default_factory=Counter)

    def read(self, account: int, unit: int, seq: int, held: int, now: datetime) -> bool:
        """Reads the entries that are new, up to ``seq``. Whether the wallet has changed since the last time."""
        changed = (seq, held) != (self.seq, self.held)
        self.held = held
        new = LedgerEntry.objects.filter(account_id=account, unit_id=unit, seq__gt=self.seq).order_by("seq")
        for entry in new if seq > self.seq else ():
            self.seq += 1
            self.balance += entry.amount
            self.debt += entry.debt_delta
            self.moved[entry.kind, entry.effective_at, entry.amount > 0] += entry.amount
            self.owed[entry.kind, entry.effective_at] += entry.debt_delta
            if entry.grant_id is not None:
                self.cash[entry.grant_id] += entry.cash_nanos
                self.fee[entry.grant_id] += entry.fee_nanos
            assert (entry.seq, entry.balance_after, entry.debt_after) == (self.seq, self.balance, self.debt)
            assert entry.recorded_at == now
        assert self.seq == seq
        return changed


def _recent(items: list[T], back: int) -> T:
    """The item that many steps back, round and round."""
    return items[-1 - back % len(items)]


class _Over(Exception):
    """Ends a life: what it wrote is rolled back."""


CALL = ledger.Call(model_id=1, feature_id=None, api_key_id=None, rate_card_id=1, price_ids=[1], quantities=[1])


@pytest.mark.failure(16, 17, 18)
@pytest.mark.usefixtures("committed")
def test_the_ledger_and_the_oracle_agree_whatever_is_done_in_whatever_order() -> None:
    accounts, (usd, credit) = (
        [make_account(), make_account()],
        (
            Unit.objects.get_or_create(code="USD")[0],
            Unit.objects.create(code=f"machine-{secrets.token_hex(4)}.credit", name="Credit"),
        ),
    )
    LedgerMachine.accounts, LedgerMachine.units = accounts, [usd.pk, credit.pk]
    profile = settings.get_current_profile_name()
    run_state_machine_as_test(LedgerMachine, settings=settings.default if profile == "soak" else SHORT)
