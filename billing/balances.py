"""What an account has, as the next verb of the ledger will find it: read only, nothing is locked or written.

What is due by now is counted as if it had happened already, as ``billing/sql/calendar.sql`` will do it: holds that nobody resolved end,
grants expire or roll over, and the schedule grants, each at its due time, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from django.db import connection
from django.db.models import DateTimeField, Q, Value
from django.db.models.functions import Cast, NullIf

from accounts.models import Account
from billing import periods
from billing.models import Grant, Schedule, Wallet

#: ``expires_at`` for Python, which has no infinity: None = never.
ENDS_AT = NullIf("expires_at", Cast(Value("infinity"), DateTimeField()))


@dataclass(frozen=True, slots=True)
class Lot:
    """What is left of one grant, in nanos. ``ends_at`` None = never; ``id`` None = due, but not written yet."""

    id: int | None
    source: str
    granted: int
    remaining: int
    starts_at: datetime
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class Balance:
    """One wallet, in nanos of its unit. ``lots`` in the order in which they burn. ``seq`` is the last entry that is written."""

    unit_id: int
    balance: int
    held: int
    debt: int
    seq: int
    lots: tuple[Lot, ...]

    @property
    def available(self) -> int:
        return self.balance - self.held


def of_account(account: Account, *, now: datetime) -> list[Balance]:
    """The account's wallets, by unit, with what is due at ``now`` done; what holds keep alive is still there."""
    grants: dict[int, list[_Grant]] = {}
    rows = Grant.objects.filter(Q(remaining__gt=0) | Q(source="rollover"), account=account, closed=False).annotate(ends_at=ENDS_AT)
    for age, (unit_id, *values) in enumerate(rows.order_by("id").values_list("unit_id", *_COLUMNS)):
        grants.setdefault(unit_id, []).append(_Grant(age, *values))
    balances = []
    for wallet in Wallet.objects.filter(account=account).order_by("unit_id"):
        ends = _hold_ends(wallet, now)
        seen = _Wallet(wallet.held, wallet.debt, grants.get(wallet.unit_id, []), wallet.rollover_cap, ends)
        if ends or (wallet.due_at is not None and wallet.due_at <= now):
            schedules = Schedule.objects.filter(account=account, unit_id=wallet.unit_id)
            seen.apply(schedules.defer(*Schedule.STAFFS_OWN).first(), now)
        balances.append(
            Balance(
                unit_id=wallet.unit_id,
                balance=sum(grant.left for grant in seen.grants),
                held=seen.held,
                debt=seen.debt,
                seq=wallet.seq,
                lots=tuple(Lot(lot.id, lot.source, lot.granted, lot.left, lot.starts_at, lot.ends_at) for lot in seen.queue()),
            )
        )
    return balances


@dataclass(slots=True)
class _Grant:
    """A grant while time passes. ``age`` orders what priority and expiry do not."""

    age: int
    id: int | None
    source: str
    granted: int
    left: int
    frozen: int
    priority: int
    starts_at: datetime
    ends_at: datetime | None
    rolls_until: datetime | None = None
    cap: int | None = None
    rollover_priority: int | None = None


_COLUMNS = (
    "id",
    "source",
    "granted",
    "remaining",
    "frozen",
    "priority",
    "starts_at",
    "ends_at",
    "rollover_expires_at",
    "rollover_cap",
    "rollover_priority",
)


@dataclass(slots=True)
class _Wallet:
    """A wallet while time passes, as in ``billing/sql/calendar.sql``: the functions there have the same names, or nearly."""

    held: int
    debt: int
    grants: list[_Grant]
    cap: int | None
    hold_ends: list[tuple[datetime, int]]

    def queue(self) -> list[_Grant]:
        """What is left, in the order in which it burns."""
        never = datetime.max.replace(tzinfo=UTC)
        return sorted((grant for grant in self.grants if grant.left), key=lambda grant: (grant.priority, grant.ends_at or never, grant.age))

    def apply(self, schedule: Schedule | None, now: datetime) -> None:
        """Does what is due by ``now``, oldest first."""
        grants = _due_grants(schedule)
        coming = next(grants, None)
        at: datetime | None = None
        while True:
            ends = [grant.ends_at for grant in self.grants if grant.left and grant.ends_at and (at is None or grant.ends_at > at)]
            at = min([*ends, *(end for end, _ in self.hold_ends), *([coming.starts_at] if coming else [])], default=None)
            if at is None or at > now:
                return
            while self.hold_ends and self.hold_ends[0][0] == at:
                self.held -= self.hold_ends.pop(0)[1]
                self.repay()
            self.expire(at)
            if coming and coming.starts_at == at:
                self.add(coming)
                self.repay()
                self.expire(at)
                coming = next(grants, None)

    def add(self, grant: _Grant) -> None:
        grant.age = len(self.grants)
        self.grants.append(grant)

    def expire(self, at: datetime) -> None:
        """Ends what is over and not covered by holds, which cover the front of the queue: first what expires, then what rolls over."""
        ended = True
        while ended:
            ended = False
            for rolls in (False, True):
                covered = self.held
                for grant in self.queue():
                    free = max(0, grant.left - covered)
                    covered -= min(covered, grant.left)
                    if free and grant.ends_at and grant.ends_at <= at and (grant.rolls_until is not None) is rolls:
                        ended = True
                        grant.left -= free
                        self.roll(grant, free)

    def roll(self, grant: _Grant, amount: int) -> None:
        """Rolls ``amount`` over, as far as the grant's terms and its cap allow; the rest is gone."""
        if grant.rolls_until is None or grant.ends_at is None or grant.rollover_priority is None:
            return
        rollovers = sum(each.left + each.frozen for each in self.grants if each.source == "rollover")
        cap = grant.cap if self.cap is None else self.cap
        rolled = amount if cap is None else min(amount, max(0, cap - rollovers))
        if rolled:
            self.add(_Grant(0, None, "rollover", rolled, rolled, 0, grant.rollover_priority, grant.ends_at, grant.rolls_until))

    def repay(self) -> None:
        """What is free repays debt."""
        for grant in self.queue():
            repaid = min(self.debt, grant.left, sum(each.left for each in self.grants) - self.held)
            if repaid <= 0:
                return
            grant.left -= repaid
            self.debt -= repaid


def _hold_ends(wallet: Wallet, now: datetime) -> list[tuple[datetime, int]]:
    """When holds of the wallet ended that are not given back yet, and how much each holds, oldest first."""
    if wallet.held == 0:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            "select coalesce(extended_to, expires_at) as ended_at, held from open_authorization where account_id = %s and unit_id = %s"
            " and state = 'open' and held > 0 and coalesce(extended_to, expires_at) <= %s order by ended_at, id",
            [wallet.account_id, wallet.unit_id, now],
        )
        return list(cursor.fetchall())


def _due_grants(schedule: Schedule | None) -> Iterator[_Grant]:
    """What a schedule grants from now on, without end where it has none; one that was stopped nothing."""
    while schedule and schedule.stopped_at is None:
        begin, end, rolls_until = (
            periods.anniversary(
                schedule.anchor_at.astimezone(UTC), months=(schedule.skipped + schedule.granted + periods_on) * schedule.months
            )
            for periods_on in (0, 1, 1 + schedule.rollover_periods)
        )
        if schedule.ends_at is not None and begin >= schedule.ends_at:
            return
        terms = (rolls_until, schedule.rollover_cap, schedule.rollover_priority) if schedule.rollover_periods else ()
        yield _Grant(0, None, schedule.source, schedule.amount, schedule.amount, 0, schedule.priority, begin, end, *terms)
        schedule.granted += 1
