"""A random life of a few accounts over the real ledger, and what was paid, given back and kept of it, added up in plain Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from accounts.models import Account
from analytics.tests.world import NOON, World
from billing import ledger
from billing.models import PaidTime

ACTOR: dict[str, Any] = {"actor": "test", "reason": "test"}


@dataclass
class Payment:
    """One payment for credit: a grant of ``granted`` for ``cash``, of which ``refunded`` percent went back so far."""

    account: Account
    key: str
    granted: int
    cash: int
    refunded: int = 0

    @property
    def returned(self) -> int:
        """Of the cash, what belongs to the credits that a refund is for."""
        return self.cash * (self.granted * self.refunded // 100) // self.granted


@dataclass
class Life:
    """``at`` is where its clock stands. Everything it does it does with the verbs."""

    world: World
    chance: random.Random
    at: datetime = NOON
    accounts: list[Account] = field(default_factory=list)
    payments: list[Payment] = field(default_factory=list)
    fees: int = 0
    time_cash: int = 0
    time_fees: int = 0
    time_returned: int = 0
    times: list[PaidTime] = field(default_factory=list)
    work: list[tuple[Account, UUID]] = field(default_factory=list)
    holds: list[tuple[Account, UUID]] = field(default_factory=list)

    @property
    def cash(self) -> int:
        return self.time_cash + sum(payment.cash for payment in self.payments)

    @property
    def returned(self) -> int:
        return self.time_returned + sum(payment.returned for payment in self.payments)

    def steps(self, count: int) -> Iterator[datetime]:
        """Does ``count`` things, some minutes to days apart; yields the clock after each."""
        self.accounts = [self.world.account(f"Account {number}") for number in range(3)]
        verbs = [
            self.pay,
            self.promote,
            self.use,
            self.use,
            self.use_many,
            self.hold,
            self.end_hold,
            self.refund,
            self.dispute,
            self.reverse,
        ]
        verbs += [self.correct, self.pay_for_time, self.return_time, self.wait, self.cap]
        for _ in range(count):
            self.at += timedelta(seconds=self.chance.randrange(1, 40_000))
            account = self.chance.choice(self.accounts)
            with ledger.clock(at=self.at):
                self.chance.choice(verbs)(account)
            yield self.at

    def pay(self, account: Account) -> None:
        granted, cash, fee = self.chance.randrange(1, 500), self.chance.randrange(400), self.chance.randrange(40)
        ends_at = self.at + timedelta(hours=self.chance.randrange(1, 90)) if self.chance.random() < 0.6 else None
        rollover = None
        if ends_at and self.chance.random() < 0.5:
            rollover = ledger.Rollover(ends_at + timedelta(hours=50), self.chance.choice([None, 30]), self.chance.randrange(3))
        payment = Payment(account, uuid4().hex, granted, cash)
        self.grant(payment, "purchased", fee, ends_at, rollover)
        self.payments.append(payment)
        self.fees += fee

    def promote(self, account: Account) -> None:
        self.grant(Payment(account, uuid4().hex, self.chance.randrange(1, 200), 0), "promotion", 0, None, None)

    def grant(self, payment: Payment, source: str, fee: int, ends_at: datetime | None, rollover: ledger.Rollover | None) -> None:
        ledger.grant(
            account_id=payment.account.pk, unit_id=self.world.unit.pk, amount_nanos=payment.granted, source=source, source_key=payment.key,
            key=payment.key, priority=self.chance.randrange(3), expires_at=ends_at, cash_nanos=payment.cash, fee_nanos=fee,
            rollover=rollover, **ACTOR,
        )  # fmt: skip

    def event(self, account: Account) -> ledger.Event:
        price = self.chance.randrange(150)
        late = timedelta(days=self.chance.randrange(9)) if self.chance.random() < 0.3 else timedelta(0)
        return self.world.event(account, cost=self.chance.randrange(100), price=price, value=2 * price, at=self.at - late)

    def use(self, account: Account) -> None:
        self.work.append((account, ledger.record(self.event(account)).id))

    def use_many(self, account: Account) -> None:
        events = [self.event(self.chance.choice(self.accounts)) for _ in range(3)]
        for event, done in zip(events, ledger.record_many(events), strict=True):
            assert isinstance(done, ledger.Usage)
            self.work.append((next(one for one in self.accounts if one.pk == event.account_id), done.id))

    def hold(self, account: Account) -> None:
        with suppress(ledger.InsufficientCredits):
            self.holds.append((account, self.world.hold(account, self.chance.randrange(80)).id))

    def end_hold(self, account: Account) -> None:
        if self.holds:
            account, id_ = self.holds.pop(self.chance.randrange(len(self.holds)))
            if self.chance.random() < 0.3:
                ledger.release(account_id=account.pk, authorization_id=id_)
                return
            price = self.chance.randrange(120)
            ledger.capture(
                account_id=account.pk, authorization_id=id_, quantities=(100, 20), price_ids=[],
                charge=ledger.Charge(price // 2, price, price, 120), overage="charge",
            )  # fmt: skip
            self.work.append((account, id_))

    def refund(self, account: Account) -> None:
        if self.payments:
            payment = self.chance.choice(self.payments)
            refunded = self.chance.choice([10, 33, 50, 100])
            self.about(payment, ledger.refund, refunded=refunded, paid=100)
            payment.refunded = max(payment.refunded, refunded)

    def dispute(self, account: Account) -> None:
        if self.payments:
            self.about(self.chance.choice(self.payments), self.chance.choice([ledger.freeze, ledger.freeze, ledger.unfreeze]))

    def about(self, payment: Payment, verb: Any, **more: int) -> None:
        verb(account_id=payment.account.pk, source="purchased", source_key=payment.key, key=uuid4().hex, **more, **ACTOR)

    def reverse(self, account: Account) -> None:
        if self.work:
            account, id_ = self.chance.choice(self.work)
            with suppress(ledger.AlreadyReversed, ledger.NotFound):
                ledger.reverse(account_id=account.pk, usage_id=id_, key=uuid4().hex, **ACTOR)

    def correct(self, account: Account) -> None:
        amount = self.chance.choice([-30, -7, 20])
        with suppress(ledger.InsufficientCredits):
            ledger.adjust(account_id=account.pk, unit_id=self.world.unit.pk, amount_nanos=amount, key=uuid4().hex, **ACTOR)

    def cap(self, account: Account) -> None:
        ledger.cap_rollovers(
            account_id=account.pk, unit_id=self.world.unit.pk, cap_nanos=self.chance.choice([None, 10]), key=uuid4().hex, **ACTOR
        )

    def pay_for_time(self, account: Account) -> None:
        cash, fee = self.chance.randrange(-20, 400), self.chance.randrange(20)
        starts_at = self.at - timedelta(hours=self.chance.randrange(30))
        row = PaidTime.objects.create(
            account=account, payment_id=uuid4().hex, currency="usd", cash_nanos=cash, fee_nanos=fee, back_nanos=0, starts_at=starts_at,
            ends_at=starts_at + timedelta(hours=self.chance.choice([0, 24, 200])), booked_at=self.at,
        )  # fmt: skip
        self.times.append(row)
        self.time_cash += cash
        self.time_fees += fee

    def return_time(self, account: Account) -> None:
        if self.times:
            paid = self.times.pop()
            back = max(0, paid.cash_nanos) // self.chance.choice([1, 2, 3])
            if back:
                PaidTime.objects.create(
                    account=paid.account, payment_id=paid.payment_id, currency="usd", cash_nanos=0, fee_nanos=0, back_nanos=back,
                    starts_at=paid.starts_at, ends_at=paid.ends_at, booked_at=self.at,
                )  # fmt: skip
                self.time_returned += back

    def wait(self, account: Account) -> None:
        self.at += timedelta(days=self.chance.randrange(1, 4))
        with ledger.clock(at=self.at):
            ledger.sweep(limit=100)
            self.holds.clear()
            for one in self.accounts:
                ledger.apply_due(account_id=one.pk)
