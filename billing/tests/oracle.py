"""What the ledger should do, in plain Python: an account as a dict of lots and a list of work, written from the design, not from the SQL.

It has no entries, no locks and no numbers of rows. Time does not wait for a verb here: :meth:`Account.due` may be called at any moment, and
must change nothing that a verb called later would not have found anyway: what is due happens at its due time, oldest first. Each verb
returns what its answer must say, or raises :class:`Refusal`. Amounts are nanos of the wallet's unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from billing import periods

NEVER = datetime.max.replace(tzinfo=UTC)
MOST = 2**63 - 1
#: How long a hold that timed out still takes its capture.
LATE = timedelta(days=7)
#: What a repeated key is told as it is by now: what is free, and how the work that it began stands.
MOVES_ON = ("available_nanos", "state")

Answer = dict[str, Any]


class Refusal(Exception):
    """The verb says no. Its name is that of the ledger's exception."""

    def __init__(self, name: str, **says: Any) -> None:
        super().__init__(name)
        self.name = name
        self.says = says


#: Until when what is left rolls over, the cap, and the priority then.
Rollover = tuple[datetime, int | None, int]


@dataclass(eq=False)
class Lot:
    """Credits that arrived together. ``age`` orders what priority and expiry do not. ``id`` is the ledger's, once it has told."""

    source: str
    source_key: str
    granted: int
    left: int
    priority: int
    begun: datetime
    ends_at: datetime
    age: int
    cash: int
    fee: int
    rolls: Rollover | None = None
    root: Lot | None = None
    frozen: int = 0
    clawed: int = 0
    refunded: int = 0
    id: int | None = None


@dataclass(eq=False)
class Schedule:
    """What is granted by itself. ``rolls``: for how many periods what is left rolls over, the cap, and the priority then."""

    source: str
    source_key: str
    amount: int
    priority: int
    anchor: datetime
    months: int
    ends_at: datetime
    rolls: tuple[int, int | None, int] | None
    granted: int = 0
    stopped: bool = False
    released_through: datetime | None = None

    def start(self, periods_on: int = 0) -> datetime:
        return periods.anniversary(self.anchor, months=(self.granted + periods_on) * self.months)

    @property
    def next(self) -> datetime:
        return self.start() if not self.stopped and self.start() < self.ends_at else NEVER


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
    """One unit's credits. ``moved`` and ``owed`` sum up, by kind and effective time, what should have been entered; in is not out."""

    ages: Iterator[int]
    lots: dict[int, Lot] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    schedule: Schedule | None = None
    cap: int | None = None
    debt: int = 0
    moved: Counter[tuple[str, datetime, bool]] = field(default_factory=Counter)
    owed: Counter[tuple[str, datetime]] = field(default_factory=Counter)
    at: datetime = NEVER

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
        at = lot.ends_at if kind == "expiry" or (kind == "rollover" and amount < 0) else self.at
        self.moved[kind, at, amount > 0] += amount

    def owe(self, kind: str, amount: int) -> None:
        self.debt += amount
        self.owed[kind, self.at] += amount

    def receive(
        self, kind: str, amount: int, source: str, source_key: str, priority: int, ends_at: datetime, cash: int = 0, fee: int = 0,
        rolls: Rollover | None = None, begun: datetime | None = None, root: Lot | None = None,
    ) -> Lot:  # fmt: skip
        lot = Lot(source, source_key, amount, 0, priority, begun or self.at, ends_at, next(self.ages), cash, fee, rolls, root)
        self.lots[lot.age] = lot
        now, self.at = self.at, lot.begun
        self.move(lot, kind, amount)
        self.at = now
        return lot

    def uncovered(self, lot: Lot) -> int:
        """How much of a lot open holds do not cover: they stand at the front of the queue."""
        queue = self.queue()
        return max(0, lot.left - max(0, self.held - sum(each.left for each in queue[: queue.index(lot)]))) if lot.left else 0

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

    def due(self, now: datetime) -> None:
        """Moment by moment: holds end; what is overdue goes, but for what open holds cover; then the schedule grants."""
        moment = min(self.moments(), default=NEVER)
        while moment <= now and moment < NEVER:
            self.at = moment
            self.unhold()
            self.clear()
            if self.schedule and self.schedule.next == moment:
                self.grant_scheduled(self.schedule)
                self.repay()
                self.clear()
            moment = min((each for each in self.moments() if each > moment), default=NEVER)
        self.at = now

    def moments(self) -> list[datetime]:
        ends = [lot.ends_at for lot in self.lots.values() if lot.left] + [work.ends_at for work in self.open if work.ends_at]
        return ends + ([self.schedule.next] if self.schedule else [])

    @property
    def open(self) -> list[Work]:
        return [work for work in self.work if work.state == "authorized"]

    def unhold(self) -> None:
        """Holds that end at this moment come back and pay what is owed; their work may still be captured."""
        if ended := [work for work in self.open if work.ends_at == self.at]:
            for work in ended:
                work.held, work.state = 0, "late"
            self.repay()

    def clear(self) -> None:
        """What is overdue at this moment expires, then rolls over, until nothing more does: what rolls over may change what is covered."""
        overdue = [lot for lot in self.queue() if lot.ends_at <= self.at and self.uncovered(lot)]
        while overdue:
            for lot in [lot for lot in overdue if not lot.rolls]:
                self.move(lot, "expiry", -self.uncovered(lot))
            for lot, amount in [(lot, self.uncovered(lot)) for lot in overdue if lot.rolls]:
                self.roll(lot, amount)
            overdue = [lot for lot in self.queue() if lot.ends_at <= self.at and self.uncovered(lot)]

    def roll(self, lot: Lot, amount: int) -> None:
        """Into a lot of its own, with its cash, as far as there is room under the cap; the rest expires."""
        assert lot.rolls
        until, own_cap, priority = lot.rolls
        cap = own_cap if self.cap is None else self.cap
        there = sum(each.left + each.frozen for each in self.lots.values() if each.source == "rollover")
        rolled = amount if cap is None else min(amount, max(0, cap - there))
        if rolled:
            gone = lot.granted - lot.left
            cash, fee = (lump * (gone + rolled) // lot.granted - lump * gone // lot.granted for lump in (lot.cash, lot.fee))
            self.move(lot, "rollover", -rolled)
            self.receive("rollover", rolled, "rollover", "", priority, until, cash, fee, begun=lot.ends_at, root=lot.root or lot)
        if rolled < amount:
            self.move(lot, "expiry", rolled - amount)

    def grant_scheduled(self, schedule: Schedule) -> None:
        """Never a third time for one day, unless staff have looked."""
        today = [lot for lot in self.lots.values() if lot.source == schedule.source and not lot.cash and lot.begun.date() == self.at.date()]
        if len(today) >= 2 and (schedule.released_through is None or self.at > schedule.released_through):
            schedule.stopped = True
            return
        rolls = schedule.rolls and (schedule.start(1 + schedule.rolls[0]), *schedule.rolls[1:])
        self.receive("grant", schedule.amount, schedule.source, schedule.source_key, schedule.priority, schedule.start(1), rolls=rolls)
        schedule.granted += 1

    def repay(self) -> None:
        if repaid := min(self.debt, self.free):
            self.burn("debt_repaid", repaid)
            self.owe("debt_repaid", -repaid)

    def settle(self, now: datetime) -> None:
        """What has come free repays debt, and only then may expire."""
        self.repay()
        self.due(now)

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
    ages: Iterator[int] = field(default_factory=lambda: count(1))

    def wallet(self, unit: int, now: datetime) -> Wallet:
        """The wallet as it is at ``now``."""
        wallet = self.wallets.setdefault(unit, Wallet(self.ages))
        wallet.due(now)
        return wallet

    def due(self, now: datetime) -> None:
        for wallet in self.wallets.values():
            wallet.due(now)

    def family(self, source: str, source_key: str, now: datetime) -> tuple[Wallet, list[Lot]]:
        """The lot that was paid for, then what rolled over from it."""
        for wallet in self.wallets.values():
            for root in list(wallet.lots.values()):
                if (root.source, root.source_key, root.root) == (source, source_key, None):
                    wallet.due(now)
                    return wallet, [root, *(lot for lot in wallet.lots.values() if lot.root is root)]
        raise Refusal("NotFound")

    @property
    def open_count(self) -> int:
        return sum(work.state == "authorized" for wallet in self.wallets.values() for work in wallet.work)

    # Credits in and out, by hand -------------------------------------------------------------------------------------------------

    def grant(
        self, *, now: datetime, key: str, unit: int, source: str, source_key: str, amount: int, priority: int, ends_at: datetime | None,
        cash: int, fee: int, rolls: Rollover | None = None, verb: str = "grant", kind: str = "grant",
    ) -> Answer:  # fmt: skip
        command = (unit, source, source_key, amount, priority, ends_at, cash, fee, rolls)
        if first := self._first(verb, key, command):
            return first
        if any((lot.source, lot.source_key) == (source, source_key) for each in self.wallets.values() for lot in each.lots.values()):
            raise Refusal("SourceReused")
        wallet = self.wallet(unit, now)
        if wallet.balance + amount > MOST:
            raise Refusal("AmountOverflow")
        lot = wallet.receive(kind, amount, source, source_key, priority, ends_at or NEVER, cash, fee, rolls)
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
            answer["lot"] = wallet.receive("reversal", repaid, "reversal", str(id), 0, NEVER)
        work.reversed = True
        wallet.settle(now)
        return self._done("reverse", key, id, answer | self._money(wallet) | {"available_nanos": wallet.free})

    def refund(self, *, now: datetime, key: str, source: str, source_key: str, refunded: int, paid: int) -> Answer:
        """Frozen credits first, then what no hold covers, of the lot and then of its rollovers; the rest is owed."""
        command = (source, source_key, refunded, paid)
        if first := self._first("refund", key, command):
            return first
        wallet, family = self.family(source, source_key, now)
        amount = left = max(0, family[0].granted * refunded // paid - family[0].refunded)
        family[0].refunded += amount
        for lot in family:
            if part := min(left, lot.frozen):
                lot.frozen -= part
                lot.clawed += part
                wallet.move(lot, "unfreeze", part)
                wallet.move(lot, "refund", -part)
                left -= part
        for lot in family:
            if part := min(left, wallet.uncovered(lot)):
                lot.clawed += part
                wallet.move(lot, "refund", -part)
                left -= part
        if left:
            wallet.owe("debt", left)
        wallet.settle(now)
        return self._done("refund", key, command, self._money(wallet) | {"amount_nanos": -amount, "available_nanos": wallet.free})

    def freeze(self, *, now: datetime, key: str, source: str, source_key: str) -> Answer:
        command = (source, source_key)
        if first := self._first("freeze", key, command):
            return first
        wallet, family = self.family(source, source_key, now)
        frozen = 0
        for lot in family:
            if part := wallet.uncovered(lot):
                wallet.move(lot, "freeze", -part)
                lot.frozen += part
                frozen += part
        wallet.settle(now)
        return self._done("freeze", key, command, self._money(wallet) | {"amount_nanos": -frozen, "available_nanos": wallet.free})

    def unfreeze(self, *, now: datetime, key: str, source: str, source_key: str) -> Answer:
        command = (source, source_key)
        if first := self._first("unfreeze", key, command):
            return first
        wallet, family = self.family(source, source_key, now)
        back = sum(lot.frozen for lot in family)
        for lot in family:
            if lot.frozen:
                wallet.move(lot, "unfreeze", lot.frozen)
                lot.frozen = 0
        wallet.settle(now)
        return self._done("unfreeze", key, command, self._money(wallet) | {"amount_nanos": back, "available_nanos": wallet.free})

    def schedule(
        self, *, now: datetime, key: str, unit: int, source: str, source_key: str, amount: int, priority: int, anchor: datetime,
        months: int, ends_at: datetime | None, rolls: tuple[int, int | None, int] | None,
    ) -> Answer:  # fmt: skip
        command = (unit, source, source_key, amount, priority, anchor, months, ends_at, rolls)
        if first := self._first("schedule", key, command):
            return first
        wallet = self.wallet(unit, now)
        wallet.schedule = Schedule(source, source_key, amount, priority, anchor, months, ends_at or NEVER, rolls)
        wallet.settle(now)
        return self._done("schedule", key, command, self._money(wallet) | {"amount_nanos": amount, "available_nanos": wallet.free})

    def restart_schedule(self, *, now: datetime, key: str, unit: int, grants: bool) -> Answer:
        command = (unit, grants)
        if first := self._first("restart_schedule", key, command):
            return first
        wallet = self.wallet(unit, now)
        if wallet.schedule is None or not wallet.schedule.stopped:
            raise Refusal("NotFound")
        wallet.schedule.stopped = False
        if grants:
            wallet.schedule.released_through = now
        while not grants and wallet.schedule.start() <= now:
            wallet.schedule.granted += 1
        wallet.settle(now)
        return self._done("restart_schedule", key, command, self._money(wallet) | {"amount_nanos": 0, "available_nanos": wallet.free})

    def cap_rollovers(self, *, now: datetime, key: str, unit: int, cap: int | None) -> Answer:
        """What is above the cap and not covered by holds is gone, from the front of the queue."""
        command = (unit, cap)
        if first := self._first("cap_rollovers", key, command):
            return first
        wallet = self.wallet(unit, now)
        wallet.cap = MOST if cap is None else cap
        above = sum(lot.left + lot.frozen for lot in wallet.lots.values() if lot.source == "rollover") - wallet.cap
        free = {lot.age: wallet.uncovered(lot) for lot in wallet.queue()}
        for lot in wallet.queue():
            if lot.source == "rollover" and (cut := max(0, min(above, free[lot.age]))):
                lot.left -= cut
                wallet.moved["expiry", now, False] -= cut
                above -= cut
        wallet.settle(now)
        return self._done("cap_rollovers", key, command, self._money(wallet) | {"amount_nanos": wallet.cap, "available_nanos": wallet.free})

    def end_schedule(self, *, now: datetime, key: str, unit: int, ends_at: datetime | None) -> Answer:
        command = (unit, ends_at)
        if first := self._first("end_schedule", key, command):
            return first
        schedule = self.wallets[unit].schedule if unit in self.wallets else None
        if schedule is None or schedule.ends_at <= now:
            raise Refusal("NotFound")
        wallet = self.wallet(unit, now)
        schedule.ends_at = ends_at or NEVER
        wallet.settle(now)
        return self._done("end_schedule", key, command, self._money(wallet) | {"amount_nanos": 0, "available_nanos": wallet.free})

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
            raise Refusal("InsufficientCredits", needed_nanos=needed, available_nanos=wallet.free, debt_nanos=wallet.debt)
        work = Work(unit=unit, hold=amount, held=amount, ends_at=now + lifetime, hard_end=now + longest)
        wallet.work.append(work)
        answer = {"hold_nanos": amount, "remaining": [None, wallet.free], "created_at": now, "expires_at": work.ends_at}
        return self._done("usage", key, command, answer | {"state": "authorized", "work": work})

    def capture(self, *, now: datetime, id: UUID, quantities: tuple[int, ...], price: int, overage: str) -> Answer:
        work = self._authorization(id, now)
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
        work = self._authorization(id, now)
        if not work.unfinished:
            return self._again(work, "captured", quantities)
        if work.state == "awaiting_price" and work.quantities != quantities:
            raise Refusal("AlreadyResolved", state="awaiting_price")
        replayed = work.state == "awaiting_price"
        work.state, work.quantities = "awaiting_price", quantities
        return {"state": "awaiting_price", "hold_nanos": work.hold, "replayed": replayed}

    def release(self, *, now: datetime, id: UUID) -> Answer:
        work = self._authorization(id, now)
        if not work.unfinished:
            return self._again(work, "released", ())
        if work.state == "awaiting_price":
            raise Refusal("AlreadyResolved", state="awaiting_price")
        self._end(work, "released", now)
        return {"state": "released", "hold_nanos": work.hold, "price_nanos": 0, "owed_nanos": 0}

    def extend(self, *, now: datetime, id: UUID, lifetime: timedelta) -> Answer:
        work = self._authorization(id, now)
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
        """Work whose hold ended a week ago is over."""
        self.due(now)
        for wallet in self.wallets.values():
            for work in wallet.work:
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

    def _authorization(self, id: UUID, now: datetime) -> Work:
        self.due(now)
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
