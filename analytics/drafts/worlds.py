"""One account's real usage under the terms of then and under those of a draft, side by side. Pure: no database, no clock.

    replay    what its period comes to under both, and which of its uses the draft would have refused

Both worlds see the same uses, at the same times. What a limit refuses under the draft, and the same limit of then does not, is not done in
the draft's world: it costs nothing, brings in nothing and counts against no limit. So a draft that changes nothing leaves both worlds
alike, to the nano. Amounts are nanos of the wallet's unit, costs and values nano-USD, cash is cents. Times are aware and in order.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, NamedTuple
from uuid import UUID

from billing import periods, top_ups

NEVER: Final = datetime.max.replace(tzinfo=UTC)
#: So many faulty records are named; how many there are is said.
NAMED: Final = 20


class Charge(NamedTuple):
    """What a use costs us (nano-USD), what is charged for it (nanos of the unit), and that at list value (nano-USD)."""

    cost: int
    price: int
    value: int


class Use(NamedTuple):
    """Finished work. ``stored`` is what the books say of it, ``old`` what its own terms give when they are applied again, ``new`` what the
    draft's give; None: no price covers it there."""

    id: UUID
    at: datetime
    feature: str
    tokens: int
    counts: Mapping[str, int] | None
    stored: Charge
    old: Charge | None
    new: Charge | None


class Limit(NamedTuple):
    """A limit that refuses. ``key`` is a meter, ``requests`` or ``cost`` (nano-USD)."""

    layer: str
    key: str
    window: str
    limit: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan allows and costs in one world; limits in the order in which they are asked."""

    limits: tuple[Limit, ...] = ()
    request_tokens: int | None = None
    withheld: frozenset[str] = frozenset()
    #: What a period costs the customer, all seats; None: nothing that we collect.
    price_cents: int | None = None
    least_balance: int = 0
    work_in_debt: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """A subscription, from when until when it counts, its calendar, and its terms in both worlds."""

    begins: datetime
    ends: datetime
    anchor: datetime
    months: int
    period: periods.Period
    old: Terms
    new: Terms
    plan: str = ""
    #: The plan's included credit, in both worlds.
    included: tuple[int, int] = (0, 0)

    def period_at(self, at: datetime) -> periods.Period:
        return self.period if self.period[0] <= at < self.period[1] else periods.period_at(self.anchor, at, months=self.months)


@dataclass(slots=True, eq=False)
class Lot:
    """Credits that arrived together. ``rolls``: until when, under which cap and with which priority what is left rolls over."""

    priority: int
    expires_at: datetime
    id: int
    left: int
    rolls: tuple[datetime, int | None, int] | None = None
    rolled: bool = False

    @property
    def order(self) -> tuple[int, datetime, int]:
        return self.priority, self.expires_at, self.id

    def __lt__(self, other: Lot) -> bool:
        return self.order < other.order


@dataclass(slots=True)
class Counter:
    """What the window of a limit that is open has used of its meter."""

    key: str
    ends: datetime
    used: int


class Movement(NamedTuple):
    """Credits that came or went otherwise than by usage: a new lot with its amount in both worlds, or something on one there is. ``cents``
    is the cash that was paid for it, in both worlds."""

    at: datetime
    lot: Lot
    old: int
    new: int
    old_cents: int = 0
    new_cents: int = 0
    arrives: bool = True


@dataclass(frozen=True, slots=True)
class TopUp:
    """An account's rule: below the threshold packs are bought, for at most so many cents a day (UTC)."""

    threshold: int
    price_cents: int
    credit: int
    cap_cents: int
    priority: int
    expires_after: timedelta | None


@dataclass(frozen=True, slots=True)
class Opening:
    """An account as its period begins. ``used`` is what windows that had begun already had counted, by meter."""

    account_id: int
    zone: tzinfo
    spans: Sequence[Span]
    lots: Sequence[Lot]
    debt: int
    rollover_cap: int | None
    movements: Sequence[Movement]
    used: Mapping[str, int]
    old_top_up: TopUp | None = None
    new_top_up: TopUp | None = None


@dataclass(slots=True)
class Figures:
    """What a period came to in one world."""

    records: int = 0
    price: int = 0
    value: int = 0
    cost: int = 0
    breakage: int = 0
    top_ups: int = 0
    top_up_cents: int = 0
    pack_cents: int = 0
    plan_cents: int = 0
    debt: int = 0

    @property
    def margin(self) -> int:
        return self.value - self.cost


@dataclass(slots=True)
class Refusals:
    """What one limit of the draft would have refused."""

    count: int = 0
    value: int = 0
    first: datetime = NEVER
    last: datetime = NEVER


@dataclass(slots=True)
class Outcome:
    """Both worlds. ``stored`` is the sum of the books; where ``wrong`` is not 0, ``faults`` names records whose own terms give another
    charge than the books have."""

    account_id: int
    old: Figures = field(default_factory=Figures)
    new: Figures = field(default_factory=Figures)
    refused: dict[str, Refusals] = field(default_factory=dict)
    stored: int = 0
    replayed: int = 0
    wrong: int = 0
    faults: list[UUID] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.old == self.new and not self.refused


def replay(opening: Opening, uses: Iterable[Use], *, since: datetime, until: datetime) -> Outcome:
    """Both worlds of the account in ``[since, until)``; ``uses`` are in order of time."""
    found = Outcome(opening.account_id)
    old = World(opening, opening.old_top_up, found.old, since)
    new = World(opening, opening.new_top_up, found.new, since)
    coming, at = iter([*opening.movements, None]), 0
    next_move = next(coming)
    spans = [span for span in opening.spans if span.ends > since and span.begins < until]
    for use in uses:
        now = use.at
        while next_move is not None and next_move.at <= now:
            old.move(next_move, next_move.old, next_move.old_cents)
            new.move(next_move, next_move.new, next_move.new_cents)
            next_move = next(coming)
        while at < len(spans) and spans[at].ends <= now:
            at += 1
        span = spans[at] if at < len(spans) and spans[at].begins <= now else None
        found.stored += use.stored.price
        was = use.old
        if was is None or was.price != use.stored.price or was.cost != use.stored.cost:
            found.wrong += 1
            if len(found.faults) < NAMED:
                found.faults.append(use.id)
            was = was or use.stored
        found.replayed += was.price
        old.now(now)
        new.now(now)
        if span is None:
            old.take(use, was)
            new.take(use, use.new or was)
            continue
        old.open(span.old, span, now)
        new.open(span.new, span, now)
        layer = new.refuses(use, use.new, span.new)
        if layer and layer == old.refuses(use, was, span.old):
            layer = ""
        old.take(use, was)
        if not layer:
            new.take(use, use.new or was)
            continue
        said = found.refused.setdefault(layer, Refusals(first=now))
        said.count += 1
        said.value += use.stored.value
        said.last = now
    while next_move is not None:
        old.move(next_move, next_move.old, next_move.old_cents)
        new.move(next_move, next_move.new, next_move.new_cents)
        next_move = next(coming)
    last = until - timedelta.resolution
    for world in (old, new):
        world.now(last)
        world.figures.breakage, world.figures.debt = world.breakage, world.debt
    for span in spans:
        begun = _periods_begun(span, since, until)
        found.old.plan_cents += begun * (span.old.price_cents or 0)
        found.new.plan_cents += begun * (span.new.price_cents or 0)
    return found


def _periods_begun(span: Span, since: datetime, until: datetime) -> int:
    """How many periods of the subscription begin in the stretch: each is paid for as it begins."""
    at, count = span.period_at(max(since, span.begins)), 0
    while at[0] < min(until, span.ends):
        count += at[0] >= max(since, span.begins)
        at = span.period_at(at[1])
    return count


class World:
    """A wallet, its counters and what was added up, under one set of terms."""

    __slots__ = (
        "begun", "breakage", "cap", "counters", "debt", "due", "figures", "free", "lots", "since", "spent", "terms", "top_up",
        "turns", "zone",
    )  # fmt: skip

    def __init__(self, opening: Opening, top_up: TopUp | None, figures: Figures, since: datetime) -> None:
        self.lots = sorted(
            Lot(lot.priority, lot.expires_at, lot.id, lot.left, lot.rolls, lot.rolled) for lot in opening.lots if lot.left > 0
        )
        self.free = sum(lot.left for lot in self.lots)
        self.debt, self.cap, self.zone, self.top_up = opening.debt, opening.rollover_cap, opening.zone, top_up
        self.due = min((lot.expires_at for lot in self.lots), default=NEVER)
        self.counters: dict[tuple[str, str], Counter] = {}
        self.terms: Terms | None = None
        self.turns = since
        self.begun, self.since = opening.used, since
        self.spent: tuple[date, int] = (date.min, 0)
        self.breakage = 0
        self.figures = figures

    # Credits -----------------------------------------------------------------------------------------------------------------

    def now(self, at: datetime) -> None:
        """What is over by ``at`` expires or rolls over, oldest first."""
        while self.due <= at:
            moment = self.due
            over = [lot for lot in self.lots if lot.expires_at <= moment]
            self.lots = [lot for lot in self.lots if lot.expires_at > moment]
            self.free -= sum(lot.left for lot in over)
            for lot in over:
                self._end(lot)
            self.due = min((lot.expires_at for lot in self.lots), default=NEVER)

    def _end(self, lot: Lot) -> None:
        rolled = 0
        if lot.rolls is not None and lot.rolls[0] > lot.expires_at:
            until, cap, priority = lot.rolls
            cap = cap if self.cap is None else self.cap
            there = sum(each.left for each in self.lots if each.rolled)
            rolled = lot.left if cap is None else min(lot.left, max(0, cap - there))
            if rolled:
                self.receive(Lot(priority, until, lot.id, rolled, None, True))
        self.breakage += lot.left - rolled

    def receive(self, lot: Lot) -> None:
        """A lot arrives; it repays debt first."""
        insort(self.lots, lot)
        self.free += lot.left
        self.due = min(self.due, lot.expires_at)
        if self.debt:
            repaid = min(self.debt, self.free)
            self.debt -= repaid
            self._burn(repaid)

    def move(self, movement: Movement, amount: int, cents: int) -> None:
        self.now(movement.at)
        self.figures.pack_cents += cents
        lot = movement.lot
        if movement.arrives:
            if amount > 0:
                self.receive(Lot(lot.priority, lot.expires_at, lot.id, amount, lot.rolls, lot.rolled))
            return
        there = next((each for each in self.lots if each.id == lot.id), None)
        if there is None:
            if amount > 0 and lot.expires_at > movement.at:
                self.receive(Lot(lot.priority, lot.expires_at, lot.id, amount, lot.rolls, lot.rolled))
            return
        change = max(amount, -there.left)
        there.left += change
        self.free += change
        if not there.left:
            self.lots.remove(there)

    def _burn(self, amount: int) -> None:
        self.free -= amount
        while amount:
            first = self.lots[0]
            if first.left > amount:
                first.left -= amount
                return
            amount -= first.left
            del self.lots[0]

    # Work --------------------------------------------------------------------------------------------------------------------

    def open(self, terms: Terms, span: Span, at: datetime) -> None:
        """Has a counter for each limit of ``terms``, in the window of ``at``."""
        if terms is self.terms and at < self.turns:
            return
        for limit in terms.limits:
            counter = self.counters.get((limit.key, limit.window))
            if counter is None or at >= counter.ends:
                begins, ends = window_at(limit.window, at, span, self.zone)
                used = self.begun.get(f"{limit.key}/{limit.window}", 0) if begins < self.since else 0
                self.counters[limit.key, limit.window] = Counter(limit.key, ends, used)
        self.terms, self.turns = terms, min((counter.ends for counter in self.counters.values() if counter.ends > at), default=NEVER)

    def refuses(self, use: Use, charge: Charge | None, terms: Terms) -> str:
        """The first layer that says no, ``""`` where none does."""
        if charge is None:
            return "unknown_model"
        if use.feature and use.feature in terms.withheld:
            return "entitlement"
        if terms.request_tokens is not None and use.tokens > terms.request_tokens:
            return "request_size"
        for limit in terms.limits:
            amount = _amount(use, limit.key, charge.cost, asked=True)
            if amount and self.counters[limit.key, limit.window].used + amount > limit.limit:
                return f"{limit.key}/{limit.window}"
        broke = self.free < max(charge.price, terms.least_balance) or (self.debt and not terms.work_in_debt)
        return "credits" if charge.price and broke else ""

    def take(self, use: Use, charge: Charge) -> None:
        """It is done: counted, charged, topped up."""
        figures = self.figures
        figures.records += 1
        figures.price += charge.price
        figures.value += charge.value
        figures.cost += charge.cost
        for counter in self.counters.values():
            if use.at < counter.ends:
                counter.used += _amount(use, counter.key, charge.cost)
        if charge.price:
            paid = min(charge.price, self.free)
            if paid:
                self._burn(paid)
            self.debt += charge.price - paid
        if self.top_up is not None and self.free - self.debt < self.top_up.threshold:
            self._buy(self.top_up, use.at)

    def _buy(self, rule: TopUp, at: datetime) -> None:
        day, spent = self.spent if self.spent[0] == at.date() else (at.date(), 0)
        wanted = top_ups.wanted(funds_nanos=self.free - self.debt, threshold_nanos=rule.threshold, credit_nanos=rule.credit)
        copies = top_ups.affordable(copies=wanted, price_cents=rule.price_cents, spent_cents=spent, cap_cents=rule.cap_cents)
        self.spent = day, spent + copies * rule.price_cents
        if copies:
            self.figures.top_ups += 1
            self.figures.top_up_cents += copies * rule.price_cents
            expires_at = NEVER if rule.expires_after is None else at + rule.expires_after
            self.receive(Lot(rule.priority, expires_at, 2**62 + self.figures.top_ups, copies * rule.credit))


def window_at(window: str, at: datetime, span: Span, zone: tzinfo) -> periods.Period:
    """The window of a limit that contains ``at``."""
    match window:
        case "hour":
            return periods.hour_at(at)
        case "day":
            return periods.day_at(at, zone)
        case "period":
            return span.period_at(at)
    return periods.LIFETIME


def _amount(use: Use, key: str, cost: int, *, asked: bool = False) -> int:
    """What the use counts of a meter. Even one that costs nothing asks for some of a limit on cost."""
    if key == "cost":
        return max(cost, 1) if asked else cost
    if key == "requests":
        return 1
    if use.counts is None:
        return 1 if key == "messages" else 0
    return use.counts.get(key, 0)
