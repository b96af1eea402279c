"""What the ledger should do, in plain Python: an account as a dict of lots and a list of work, written from the design, not from the SQL.

It has no entries, no locks and no numbers of rows. Time does not wait for a verb here: :meth:`Account.due` may be called at any moment, and
must change nothing that a verb called later would not have found anyway. Each verb returns what its answer must say, or raises
:class:`Refusal`. Amounts are nanos of the wallet's unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

NEVER = datetime.max.replace(tzinfo=UTC)
MOST = 2**63 - 1
#: How long a hold that timed out still takes its capture.
LATE = timedelta(days=7)
#: What a repeated key is told as it is by now: what is free, and how the work that it began stands.
MOVES_ON = ("available_nanos", "state", "expires_at")

Answer = dict[str, Any]


class Refusal(Exception):
    """The verb says no. Its name is that of the ledger's exception."""

    def __init__(self, name: str, **says: Any) -> None:
        super().__init__(name)
        self.name = name
        self.says = says


@dataclass(eq=False)
class Lot:
    """Credits that arrived together. ``age`` orders what priority and expiry do not. ``id`` is the ledger's, once it has told."""

    granted: int
    left: int
    priority: int
    ends_at: datetime
    age: int
    cash: int
    fee: int
    id: int | None = None


@dataclass(eq=False)
class Work:
    """An authorization or a usage record, open or finished. ``taken`` is what its charge took from which lot, ``owed`` the debt it made."""

    unit: int
    hold: int = 0
    held: int = 0
    ends_at: datetime | None = None
    hard_end: datetime = NEVER
    state: str = "authorized"
    quantities: tuple[int, ...] = ()
    price: int = 0
    owed: int = 0
    taken: dict[int, int] = field(default_factory=dict)
    rated: bool = False
    reversed: bool = False
    id: UUID | None = None

    @property
    def unfinished(self) -> bool:
        """Whether it can still be captured."""
        return self.state in ("authorized", "late", "awaiting_price")


@dataclass
class Wallet:
    """One unit's credits. ``moved`` and ``owed`` sum up, by kind, what should have been entered."""

    lots: dict[int, Lot] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    debt: int = 0
    moved: Counter[str] = field(default_factory=Counter)
    owed: Counter[str] = field(default_factory=Counter)

    @property
    def held(self) -> int:
        return sum(work.held for work in self.work)

    @property
    def balance(self) -> int:
        return sum(lot.left for lot in self.lots.values())

    @property
    def free(self) -> int:
        return self.balance - self.held

    def queue(self) -> list[Lot]:
        """What is left, in the order in which it burns."""
        return sorted((lot for lot in self.lots.values() if lot.left), key=lambda lot: (lot.priority, lot.ends_at, lot.age))

    def move(self, lot: Lot, kind: str, amount: int) -> None:
        lot.left += amount
        self.moved[kind] += amount

    def owe(self, kind: str, amount: int) -> None:
        self.debt += amount
        self.owed[kind] += amount

    def burn(self, kind: str, amount: int) -> dict[int, int]:
        """Takes ``amount`` from the front of the queue; how much from which lot."""
        taken = {}
        for lot in self.queue():
            if part := min(lot.left, amount):
                taken[lot.age] = part
                amount -= part
                self.move(lot, kind, -part)
        assert amount == 0, "the oracle burnt more than there is"
        return taken

    def expire(self, now: datetime) -> None:
        """What is overdue goes, but for what open holds cover: they stand at the front of the queue."""
        covered = self.held
        for lot in self.queue():
            keep = min(lot.left, covered)
            covered -= keep
            if lot.ends_at <= now:
                self.move(lot, "expiry", keep - lot.left)

    def settle(self, now: datetime) -> None:
        """What has come free repays debt, and only then may expire."""
        if repaid := min(self.debt, self.free):
            self.burn("debt_repaid", repaid)
            self.owe("debt_repaid", -repaid)
        self.expire(now)

    def charge(self, work: Work, price: int) -> None:
        """Burns what is free; the rest is owed."""
        paid = min(price, self.free)
        work.price, work.owed = price, price - paid
        work.taken = self.burn("usage", paid)
        if work.owed:
            self.owe("debt", work.owed)


@dataclass
class Account:
    """Wallets by unit, work by the ledger's id, and every key that was ever answered."""

    wallets: dict[int, Wallet] = field(default_factory=dict)
    work: dict[UUID, Work] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[Hashable, Answer]] = field(default_factory=dict)
    sources: set[tuple[str, str]] = field(default_factory=set)
    lots: int = 0

    def wallet(self, unit: int, now: datetime) -> Wallet:
        """The wallet as it is at ``now``."""
        wallet = self.wallets.setdefault(unit, Wallet())
        wallet.expire(now)
        return wallet

    def due(self, now: datetime) -> None:
        for wallet in self.wallets.values():
            wallet.expire(now)

    @property
    def open_count(self) -> int:
        return sum(work.state == "authorized" for wallet in self.wallets.values() for work in wallet.work)

    # Credits in and out, by hand -------------------------------------------------------------------------------------------------

    def grant(
        self, *, now: datetime, key: str, unit: int, source: str, source_key: str, amount: int, priority: int, ends_at: datetime | None,
        cash: int, fee: int, verb: str = "grant", kind: str = "grant",
    ) -> Answer:  # fmt: skip
        command = (unit, source, source_key, amount, priority, ends_at, cash, fee)
        if first := self._first(verb, key, command):
            return first
        if (source, source_key) in self.sources:
            raise Refusal("SourceReused")
        wallet = self.wallet(unit, now)
        if wallet.balance + amount > MOST:
            raise Refusal("AmountOverflow")
        lot = self._receive(wallet, kind, amount, source, source_key, priority, ends_at or NEVER, cash, fee)
        wallet.settle(now)
        return self._done(verb, key, command, self._money(wallet) | {"amount_nanos": amount, "available_nanos": wallet.free, "lot": lot})

    def adjust(self, *, now: datetime, key: str, unit: int, amount: int, priority: int) -> Answer:
        if amount > 0:
            return self.grant(
                now=now, key=key, unit=unit, source="adjustment", source_key=key, amount=amount, priority=priority, ends_at=None, cash=0,
                fee=0, verb="adjust", kind="adjustment",
            )  # fmt: skip
        command = (unit, amount)
        if first := self._first("adjust", key, command):
            return first
        wallet = self.wallet(unit, now)
        if wallet.free < -amount:
            raise Refusal("InsufficientCredits", available_nanos=wallet.free, debt_nanos=wallet.debt, needed_nanos=-amount)
        wallet.burn("adjustment", -amount)
        wallet.settle(now)
        return self._done("adjust", key, command, self._money(wallet) | {"amount_nanos": amount, "available_nanos": wallet.free})

    def reverse(self, *, now: datetime, key: str, id: UUID) -> Answer:
        """Credits go back to where they came from, its debt is forgiven; what of that was repaid comes back as a lot of its own."""
        if first := self._first("reverse", key, id):
            return first
        work = self.work.get(id)
        if work is None or work.unfinished or work.price == 0:
            raise Refusal("NotFound")
        if work.reversed:
            raise Refusal("AlreadyReversed")
        wallet = self.wallet(work.unit, now)
        for age, amount in work.taken.items():
            wallet.move(wallet.lots[age], "reversal", amount)
        forgiven = min(work.owed, wallet.debt)
        wallet.owe("reversal", -forgiven)
        answer: Answer = {"amount_nanos": work.price}
        if repaid := work.owed - forgiven:
            answer["lot"] = self._receive(wallet, "reversal", repaid, "reversal", str(id), 0, NEVER, 0, 0)
        work.reversed = True
        wallet.settle(now)
        return self._done("reverse", key, id, answer | self._money(wallet) | {"available_nanos": wallet.free})

    # Work ------------------------------------------------------------------------------------------------------------------------

    def hold(
        self, *, now: datetime, key: str, unit: int, amount: int, minimum: int, refusal: str | None, lifetime: timedelta, longest: timedelta
    ) -> Answer:
        command = ("hold", unit, amount)
        if first := self._first("usage", key, command):
            return first
        if refusal:
            raise Refusal("Refused", layer=refusal)
        wallet = self.wallet(unit, now)
        needed = max(amount, minimum)
        if wallet.debt or wallet.free < needed:
            self.sweep(now=now)  # nobody is refused for what holds of crashed clients keep
        if wallet.debt or wallet.free < needed:
            raise Refusal("InsufficientCredits", needed_nanos=needed, available_nanos=wallet.free, debt_nanos=wallet.debt)
        work = Work(unit=unit, hold=amount, held=amount, ends_at=now + lifetime, hard_end=now + longest)
        wallet.work.append(work)
        answer = {"hold_nanos": amount, "remaining": [None, wallet.free], "created_at": now, "expires_at": work.ends_at}
        return self._done("usage", key, command, answer | {"state": "authorized", "work": work})

    def capture(self, *, now: datetime, id: UUID, quantities: tuple[int, ...], price: int, overage: str) -> Answer:
        work = self._authorization(id)
        if not work.unfinished:
            return self._again(work, "captured", quantities)
        if work.state == "awaiting_price" and work.quantities != quantities:
            raise Refusal("AlreadyResolved", state="awaiting_price")
        if overage == "reject" and price > work.hold:
            raise Refusal("HoldExceeded")
        wallet = self.wallet(work.unit, now)
        charged = min(price, work.hold) if overage == "cap" else price
        work.held = 0
        work.state, work.quantities = "captured", quantities
        wallet.charge(work, charged)
        wallet.settle(now)
        return self._money(wallet) | {
            "state": "captured", "hold_nanos": work.hold, "price_nanos": charged, "waived_nanos": price - charged, "owed_nanos": work.owed,
        }  # fmt: skip

    def await_price(self, *, now: datetime, id: UUID, quantities: tuple[int, ...]) -> Answer:
        work = self._authorization(id)
        if not work.unfinished:
            return self._again(work, "captured", quantities)
        if work.state == "awaiting_price" and work.quantities != quantities:
            raise Refusal("AlreadyResolved", state="awaiting_price")
        replayed = work.state == "awaiting_price"
        work.state, work.quantities = "awaiting_price", quantities
        return {"state": "awaiting_price", "hold_nanos": work.hold, "replayed": replayed}

    def release(self, *, now: datetime, id: UUID) -> Answer:
        work = self._authorization(id)
        if not work.unfinished:
            return self._again(work, "released", ())
        if work.state == "awaiting_price":
            raise Refusal("AlreadyResolved", state="awaiting_price")
        self._end(work, "released", now)
        return {"state": "released", "hold_nanos": work.hold, "price_nanos": 0, "owed_nanos": 0}

    def extend(self, *, now: datetime, id: UUID, lifetime: timedelta) -> Answer:
        work = self._authorization(id)
        if work.state != "authorized":
            raise Refusal("AlreadyResolved")
        assert work.ends_at is not None
        work.ends_at = max(work.ends_at, min(work.hard_end, now + lifetime))
        return {"state": "authorized", "expires_at": work.ends_at}

    def record(self, *, now: datetime, key: str, unit: int, price: int | None) -> Answer:
        command = ("record", unit, price)
        if first := self._first("usage", key, command):
            return first
        work = Work(unit=unit, state="unpriced" if price is None else "recorded")
        wallet = self.wallet(unit, now)
        wallet.charge(work, price or 0)
        wallet.settle(now)
        wallet.work.append(work)
        answer = {"state": work.state, "price_nanos": price, "owed_nanos": work.owed, "hold_nanos": 0, "work": work}
        return self._done("usage", key, command, answer)

    def rate(self, *, now: datetime, id: UUID, price: int, charged: bool) -> Answer:
        """Charges, or waives, what had no price when it was recorded; the first rating is the only one."""
        work = self.work.get(id)
        if work is None or work.state != "unpriced":
            raise Refusal("NotFound")
        replayed = work.rated
        if not replayed:
            work.rated = True
            wallet = self.wallet(work.unit, now)
            wallet.charge(work, price if charged else 0)
            wallet.settle(now)
        return {"price_nanos": work.price, "owed_nanos": work.owed, "replayed": replayed}

    def sweep(self, *, now: datetime) -> None:
        """Holds past their end come back but may still be captured; a week later they are over."""
        for wallet in self.wallets.values():
            for work in wallet.work:
                if work.state == "authorized" and work.ends_at is not None and work.ends_at <= now:
                    self._end(work, "late", now)
                if work.state == "late" and work.ends_at is not None and work.ends_at + LATE <= now:
                    work.state = "timed_out"

    # Parts -----------------------------------------------------------------------------------------------------------------------

    def _first(self, verb: str, key: str, command: Hashable) -> Answer | None:
        """The first answer to this key, None for a new key."""
        known = self.keys.get((verb, key))
        if known is None:
            return None
        if known[0] != command:
            raise Refusal("KeyReused")
        return {name: value for name, value in known[1].items() if name not in MOVES_ON} | {"replayed": True}

    def _done(self, verb: str, key: str, command: Hashable, answer: Answer) -> Answer:
        self.keys[verb, key] = command, answer
        return answer | {"replayed": False}

    def _receive(
        self, wallet: Wallet, kind: str, amount: int, source: str, source_key: str, priority: int, ends_at: datetime, cash: int, fee: int
    ) -> Lot:
        self.sources.add((source, source_key))
        self.lots += 1
        lot = Lot(granted=amount, left=0, priority=priority, ends_at=ends_at, age=self.lots, cash=cash, fee=fee)
        wallet.lots[lot.age] = lot
        wallet.move(lot, kind, amount)
        return lot

    def _authorization(self, id: UUID) -> Work:
        work = self.work.get(id)
        if work is None or work.ends_at is None:
            raise Refusal("NotFound")
        return work

    def _again(self, work: Work, state: str, quantities: tuple[int, ...]) -> Answer:
        """Ending again what has ended: the same is answered again, anything else refused."""
        if work.state != state or work.quantities != quantities:
            raise Refusal("AlreadyResolved", state=work.state)
        return {"state": state, "hold_nanos": work.hold, "price_nanos": work.price, "owed_nanos": work.owed, "replayed": True}

    def _end(self, work: Work, state: str, now: datetime) -> None:
        wallet = self.wallet(work.unit, now)
        work.held, work.state = 0, state
        wallet.settle(now)

    @staticmethod
    def _money(wallet: Wallet) -> Answer:
        return {"balance_nanos": wallet.balance, "debt_nanos": wallet.debt}
