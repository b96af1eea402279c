"""The credit ledger. Every credit that enters or leaves a wallet goes through this module.

    open_account   makes an account's row; the first of all its ledger rows. unopened: who has none
    grant          adds a lot of credits
    adjust         corrects a wallet by hand, up or down
    reverse        undoes the charge of one usage record
    refund         takes back the credits of money that went back; freeze and unfreeze those of a disputed payment
    schedule       grants credits every so many months, by itself; end_schedule until when
    restart_schedule  lets a schedule that was stopped go on
    cap_rollovers  says how much of the plan's credit may roll over
    catch_up       applies what is due for accounts that nobody touches; apply_due for one
    hold           reserves credits for work about to happen
    capture        spends a hold and gives the rest back
    await_price    keeps a hold whose usage has no price yet
    release        gives a whole hold back
    extend         lets a hold live longer
    record         charges work that had no hold; record_many a set
    rate           charges recorded work that had no price, once it has
    seals          what a charge was sealed as, and what is stored of it now
    sweep          gives back the holds that nobody resolved in time
    limits         what an account's limits say now; costs what accounts cost in a window
    reserve        takes a place for an object that a plan limits in number; unreserve gives it back
    throttle       stops one account; resume lets it go on

After every function here:

* a wallet's balance is the sum of its entries, and of what remains in its grants;
* no wallet is overdrawn: ``0 <= held <= balance`` (also a database constraint);
* an account owes nothing while anything in its wallet is free;
* a repeated key changes nothing and returns what the first call made.

Each verb is one SQL function of ``billing/sql/ledger.sql`` and so one transaction of its own, unless the caller has opened one.
Before anything else, every verb applies to the wallet what is due: grants expire or roll over, its schedule grants, each at its due time.
The clock is the database's, read after the account was locked; :func:`clock` and :func:`set_clock` set it for tests and simulations.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

from django.db import DataError, connection, transaction

from accounts import prepared

#: At most this many events are recorded in one transaction: others that need its accounts wait for it.
CHUNK = 100
#: A cap that is none.
_EVERYTHING = 2**63 - 1
#: For whom something is due.
_DUE = "select distinct account_id from wallet where due_at <= app_now() and account_id > %s order by account_id limit %s"
_SEALS = """
    with asked as (select u from usage_record u where u.account_id = %s and u.id = any (%s::uuid[]))
    select (u).id, (u).seal, usage_sealed_record(u) from asked
    union all
    select r.usage_id, r.seal, usage_sealed_rating(u, r)
    from asked join usage_rating r on r.account_id = (u).account_id and r.usage_id = (u).id
"""


class LedgerError(Exception):
    """The base of what the ledger refuses."""


class InsufficientCredits(LedgerError):
    """Less is free than is needed, or the account has debt."""

    def __init__(self, *, needed_nanos: int, available_nanos: int, debt_nanos: int, look: Look | None = None) -> None:
        super().__init__("The account has debt to settle first." if debt_nanos else "The account does not have enough credits.")
        self.needed_nanos = needed_nanos
        self.available_nanos = available_nanos
        self.debt_nanos = debt_nanos
        self.look = look or Look((), (), None, None)


class Refused(LedgerError):
    """A limit of the ledger, or a verdict reached before it was asked. ``layer`` names it, ``look`` has what all limits said."""

    def __init__(self, layer: str, look: Look) -> None:
        super().__init__(f"Refused by {layer}.")
        self.layer = layer
        self.look = look


class OtherWindow(LedgerError):
    """A limit was asked about in a window that is not the one of the ledger's ``now``: ask again, by that."""

    def __init__(self, now: datetime) -> None:
        super().__init__("A window of a limit has ended, or has not begun.")
        self.now = now


class KeyReused(LedgerError):
    """The key was used before, for another command."""


class SourceReused(LedgerError):
    """Something was already granted for this source (a payment, a period), under another key."""


class NotFound(LedgerError):
    """No such authorization, charged usage record, grant or schedule in this account."""


class AlreadyResolved(LedgerError):
    """The authorization has ended, or was reported, otherwise. ``state`` says how."""

    def __init__(self, state: str) -> None:
        super().__init__(f"The authorization is already {state.replace('_', ' ')}.")
        self.state = state


class AlreadyReversed(LedgerError):
    """The usage record's charge was undone before."""


class HoldExceeded(LedgerError):
    """The price is above the hold, and the product's policy is to refuse that. The hold stays open."""


class AmountOverflow(LedgerError):
    """The amount, or the balance it would make, is larger than the ledger can hold (9.2 × 10⁹ units)."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a rare verb did: grant, adjust, reverse, refund … ``available_nanos`` is None for a replayed answer."""

    id: int
    grant_id: int | None
    amount_nanos: int
    balance_nanos: int
    debt_nanos: int
    available_nanos: int | None
    replayed: bool


@dataclass(frozen=True, slots=True)
class Rollover:
    """What is left of a grant at its expiry becomes a grant until ``expires_at``, burnt at ``priority``.

    ``cap_nanos``: the wallet's rollovers together come to no more; what does not fit expires. None = no cap.
    """

    expires_at: datetime
    cap_nanos: int | None
    priority: int


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked for or done, as metering describes it. ``quantities`` are in the order of ``pricing.rating.COMPONENTS``."""

    model_id: int
    feature_id: int | None
    api_key_id: int | None
    rate_card_id: int | None
    price_ids: Sequence[int]
    quantities: Sequence[int]
    user_ref: str | None = None
    session_ref: str | None = None
    run_ref: str | None = None
    counts: Mapping[str, int] | None = None

    def parameters(self) -> tuple[Any, ...]:
        return (
            self.model_id,
            self.feature_id,
            self.api_key_id,
            self.rate_card_id,
            list(self.price_ids),
            list(self.quantities),
            self.user_ref,
            self.session_ref,
            self.run_ref,
            None if self.counts is None else json.dumps(self.counts),
        )


@dataclass(frozen=True, slots=True)
class Charge:
    """A rated price: cost in nano-USD, price in nanos of the wallet's unit, its list value in nano-USD; None where there is no price."""

    cost_nanos: int | None
    price_nanos: int | None
    value_nanos: int | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Event:
    """Finished work to record: whose, when, under which key, what it was and what it costs.

    ``service_level`` None is the standard one. ``closes_at`` is when the period of ``event_at`` is closed for good, None while it is open:
    what is recorded later than that counts in the present, whenever it happened.
    """

    account_id: int
    key: UUID
    fingerprint: UUID
    call: Call
    unit_id: int | None
    event_at: datetime
    charge: Charge
    service_level: str | None = None
    closes_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``allowed`` of ``meter`` in ``[window_start, window_end)``, of which this call would use ``amount`` more.

    ``layer`` is ``requests``, ``concurrency`` (whose meter counts open work, in no window), ``quota``, ``cost`` (nano-USD) or ``cap``. One
    that is not ``enforced`` is counted and answered, and refuses nothing. A cap is on what ``subject`` spends (nanos of the wallet's
    unit): its meter is ``spend:<kind>/<window>``, where the kind is run, session, member, key or pool (of all, the subject empty).
    """

    layer: str
    meter: str
    window_start: datetime | None
    window_end: datetime | None
    allowed: int
    amount: int
    enforced: bool
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What limits said: for each of them in the order asked, how much is used and when that ends; and a throttle in force."""

    used: Sequence[int]
    resets_at: Sequence[datetime | None]
    throttle_reason: str | None
    throttled_until: datetime | None


@dataclass(frozen=True, slots=True)
class Places:
    """How many objects of one kind exist."""

    used: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """An authorization or usage record as it stands. ``remaining`` are the limits' remainders at authorization, in metering's order."""

    outcome: str
    id: UUID
    state: str
    hold_nanos: int
    price_nanos: int | None
    cost_nanos: int | None
    waived_nanos: int | None
    owed_nanos: int | None
    balance_nanos: int | None
    available_nanos: int | None
    debt_nanos: int | None
    created_at: datetime
    expires_at: datetime | None
    remaining: list[int | None] | None
    meters: list[str] | None = None
    used: list[int] | None = None
    resets_at: list[datetime | None] | None = None
    throttle_reason: str | None = None
    throttled_until: datetime | None = None

    @property
    def replayed(self) -> bool:
        return self.outcome == "replayed"

    @property
    def look(self) -> Look:
        return Look(self.used or (), self.resets_at or (), self.throttle_reason, self.throttled_until)


@dataclass(frozen=True, slots=True)
class Seal:
    """What was hashed when a charge was written, as it stands now (``text``), and the hash that was stored then."""

    stored: UUID
    text: str

    @property
    def now(self) -> UUID:
        """The first 128 bits of the SHA-256 of ``text``, as ``usage_seal`` in ``billing/sql/seal.sql`` has it."""
        return UUID(bytes=sha256(self.text.encode()).digest()[:16])

    @property
    def holds(self) -> bool:
        return self.now == self.stored


def key_hash(*parts: str) -> UUID:
    """The 128-bit hash that a key is stored as. Parts are length-prefixed, so that ("a", "bc") is not ("ab", "c")."""
    return UUID(bytes=sha256(b"".join(b"%d:%s" % (len(part.encode()), part.encode()) for part in parts)).digest()[:16])


def fingerprint(command: Mapping[str, Any]) -> UUID:
    """The 128-bit hash of a parsed command: equal for equal commands, whatever the order of their fields."""
    return UUID(bytes=sha256(json.dumps(command, sort_keys=True, separators=(",", ":"), default=str).encode()).digest()[:16])


@contextmanager
def clock(*, at: datetime) -> Iterator[None]:
    """Sets the ledger's clock inside one transaction, which it opens. For tests and simulations only."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("select set_config('tollgate.now', %s, true)", [at.isoformat()])
        yield
        with connection.cursor() as cursor:
            cursor.execute("select set_config('tollgate.now', '', true)")


@contextmanager
def throttling_off() -> Iterator[None]:
    """No stop on an account refuses inside, in one transaction, which it opens. For the kill switch on throttling only."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("select set_config('tollgate.throttling', 'off', true)")
        yield
        with connection.cursor() as cursor:
            cursor.execute("select set_config('tollgate.throttling', '', true)")


def set_clock(*, at: datetime | None) -> None:
    """Sets the ledger's clock for all that this connection does from now on; None is the database's own again.

    For simulations only, which live in a database of their own: a connection that goes back to its pool keeps the clock that it had.
    """
    with connection.cursor() as cursor:
        cursor.execute("select set_config('tollgate.now', %s, false)", [at.isoformat() if at else ""])


def open_account(*, account_id: int) -> None:
    """Makes the row of the account's open work, without which no verb works. Safe to repeat."""
    with connection.cursor() as cursor:
        cursor.execute("select ledger_open_account(%s)", [account_id])


def unopened(*, account_ids: Sequence[int]) -> set[int]:
    """Those of these accounts that have no ledger."""
    sql = "select asked.id from unnest(%s::bigint[]) asked (id) where not exists (select from account_state where account_id = asked.id)"
    return {id_ for (id_,) in _call(sql, [list(account_ids)])}


def grant(
    *,
    account_id: int,
    unit_id: int,
    amount_nanos: int,
    source: str,
    source_key: str,
    key: str,
    actor: str,
    reason: str,
    priority: int,
    expires_at: datetime | None = None,
    cash_nanos: int = 0,
    fee_nanos: int = 0,
    currency: str = "usd",
    rollover: Rollover | None = None,
) -> Operation:
    """Adds a grant of ``amount_nanos`` (> 0), for which ``cash_nanos`` was paid and ``fee_nanos`` of that went to the payment provider.

    Open debt is repaid from it first. One grant per (account, source, source_key), for ever. Without ``rollover`` what is left of it
    at ``expires_at`` (None = never) expires.

    :raises KeyReused: the key was used for another grant.
    :raises SourceReused: the source was granted before, under another key.
    :raises AmountOverflow: the amount or the new balance does not fit.
    """
    return _grant(
        account_id,
        "grant",
        key,
        actor,
        reason,
        unit_id,
        source,
        source_key,
        amount_nanos,
        priority,
        expires_at,
        cash_nanos,
        fee_nanos,
        currency,
        rollover,
    )


def adjust(*, account_id: int, unit_id: int, amount_nanos: int, key: str, actor: str, reason: str, priority: int = 0) -> Operation:
    """A correction by staff: adds a grant without cash basis, or takes free credits away in burn order.

    :raises InsufficientCredits: less is free than is to be taken; an adjustment never makes debt.
    :raises KeyReused: the key was used for another adjustment.
    :raises AmountOverflow: the amount or the new balance does not fit.
    """
    if amount_nanos > 0:
        return _grant(account_id, "adjust", key, actor, reason, unit_id, "adjustment", key, amount_nanos, priority, None, 0, 0, "usd", None)
    command = fingerprint({"unit": unit_id, "amount": amount_nanos})
    return _operation(
        "select * from ledger_take_back(%s, %s, %s, %s, %s, %s::smallint, %s)",
        [account_id, key_hash(key), command, actor, reason, unit_id, -amount_nanos],
        needed_nanos=-amount_nanos,
    )


def reverse(*, account_id: int, usage_id: UUID, key: str, actor: str, reason: str) -> Operation:
    """Undoes the whole charge of a usage record: credits go back to the grants that they came from.

    Credits of a grant that has expired meanwhile expire at once. The cost stays: we did pay it.

    :raises NotFound: the account has no such record, or it was charged nothing.
    :raises AlreadyReversed: it was undone before, under another key.
    :raises KeyReused: the key was used for another reversal.
    """
    return _operation(
        "select * from ledger_reverse(%s, %s, %s, %s, %s, %s)",
        [account_id, key_hash(key), fingerprint({"usage": usage_id}), actor, reason, usage_id],
    )


def refund(*, account_id: int, source: str, source_key: str, refunded: int, paid: int, key: str, actor: str, reason: str) -> Operation:
    """Takes back the credits of money that went back: ``refunded`` of the ``paid`` in all, in the smallest unit of the payment's currency.

    Both are cumulative, so refunds that are told twice or out of order come to the same: ``floor(granted × refunded ÷ paid)`` of the grant
    for ``(source, source_key)`` in all. Frozen credits are taken first, then what is left of the grant and no hold covers, then what
    rolled over from it; the rest is debt, repaid at once from what else is free. The payment's fee stays a cost. ``amount_nanos`` of the
    answer is negative, or 0 where it was told before. Nothing is ever given back: a refund that failed is an adjustment.

    :raises NotFound: nothing was granted for this source.
    :raises KeyReused: the key was used for another refund.
    :raises AmountOverflow: the debt does not fit.
    """
    if paid <= 0 or not 0 <= refunded <= paid:
        raise ValueError("A refund is of something that was paid, and of no more than that.")
    command = fingerprint({"source": source, "source_key": source_key, "refunded": refunded, "paid": paid})
    return _operation(
        "select * from ledger_refund(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [account_id, key_hash(key), command, actor, reason, source, source_key, refunded, paid],
    )


def freeze(*, account_id: int, source: str, source_key: str, key: str, actor: str, reason: str) -> Operation:
    """A payment is disputed: freezes what is left of its grant and its rollovers and no hold covers. ``amount_nanos`` is negative, or 0.

    :raises NotFound: nothing was granted for this source.
    :raises KeyReused: the key was used to freeze something else.
    """
    return _operation(
        "select * from ledger_freeze(%s, %s, %s, %s, %s, %s, %s)",
        [account_id, key_hash(key), fingerprint({"source": source, "source_key": source_key}), actor, reason, source, source_key],
    )


def unfreeze(*, account_id: int, source: str, source_key: str, key: str, actor: str, reason: str) -> Operation:
    """The dispute was won: exactly what is still frozen comes back, and expires (or rolls over) at once where it is overdue.

    :raises NotFound: nothing was granted for this source.
    :raises KeyReused: the key was used to unfreeze something else.
    """
    return _operation(
        "select * from ledger_unfreeze(%s, %s, %s, %s, %s, %s, %s)",
        [account_id, key_hash(key), fingerprint({"source": source, "source_key": source_key}), actor, reason, source, source_key],
    )


def schedule(
    *,
    account_id: int,
    unit_id: int,
    amount_nanos: int,
    source: str,
    source_key: str,
    anchor_at: datetime,
    months: int,
    priority: int,
    key: str,
    actor: str,
    reason: str,
    ends_at: datetime | None = None,
    rollover_periods: int = 0,
    rollover_cap_nanos: int | None = None,
    rollover_priority: int = 0,
    since: datetime | None = None,
) -> Operation:
    """Grants ``amount_nanos`` (> 0) at ``anchor_at`` and every ``months`` after it, counted from the anchor in UTC, until ``ends_at``.

    Each grant expires when the next is due; with ``rollover_periods`` what is left of it then rolls over for so many periods (see
    :class:`Rollover`). A wallet has one schedule: this one takes the place of the one it has. What is due already is granted at once, in
    its order. With ``since`` it goes on with the one it has, from the period that contains ``since`` on and with none that begins before
    the next of that one: so no period is granted twice. The grants have ``source``, the keys ``<source_key>:<due time>``, ``actor`` and
    ``reason``.

    :raises KeyReused: the key was used for another schedule.
    :raises SourceReused: there was a schedule for this source before, under another key.
    """
    if amount_nanos <= 0 or months <= 0 or rollover_periods < 0 or (rollover_cap_nanos or 0) < 0:
        raise ValueError("A schedule grants more than nothing, every month or more.")
    command = fingerprint(
        {
            "unit": unit_id,
            "amount": amount_nanos,
            "source": source,
            "source_key": source_key,
            "anchor": anchor_at,
            "months": months,
            "priority": priority,
            "ends": ends_at,
            "rollover": (rollover_periods, rollover_cap_nanos, rollover_priority),
            "since": since,
        }
    )
    return _operation(
        "select * from ledger_schedule(%s, %s, %s, %s, %s, %s::smallint, %s, %s, %s, %s::smallint, %s, %s::smallint, %s, %s::smallint, %s,"
        " %s::smallint, %s)",
        [
            account_id,
            key_hash(key),
            command,
            actor,
            reason,
            unit_id,
            source,
            source_key,
            amount_nanos,
            priority,
            anchor_at,
            months,
            ends_at,
            rollover_periods,
            rollover_cap_nanos,
            rollover_priority,
            since,
        ],
    )


def end_schedule(*, account_id: int, unit_id: int, ends_at: datetime | None, key: str, actor: str, reason: str) -> Operation:
    """The wallet's schedule grants nothing at ``ends_at`` or later; None takes an end back that has not come yet.

    :raises NotFound: the wallet has no schedule, or it has ended.
    :raises KeyReused: the key was used for another end.
    """
    return _operation(
        "select * from ledger_unschedule(%s, %s, %s, %s, %s, %s::smallint, %s)",
        [account_id, key_hash(key), fingerprint({"unit": unit_id, "ends": ends_at}), actor, reason, unit_id, ends_at],
    )


def restart_schedule(*, account_id: int, unit_id: int, grants: bool, key: str, actor: str, reason: str) -> Operation:
    """Lets a schedule go on that was stopped because it was about to grant too often (``Schedule.stopped_because``).

    What was granted is not granted again. With ``grants`` the periods that it missed are granted now, each at its due time; without, it
    goes on with the next one that begins.

    :raises NotFound: the wallet has no schedule that is stopped.
    :raises KeyReused: the key was used for another restart.
    """
    return _operation(
        "select * from ledger_restart(%s, %s, %s, %s, %s, %s::smallint, %s)",
        [account_id, key_hash(key), fingerprint({"unit": unit_id, "grants": grants}), actor, reason, unit_id, grants],
    )


def cap_rollovers(*, account_id: int, unit_id: int, cap_nanos: int | None, key: str, actor: str, reason: str) -> Operation:
    """From now on the wallet's rollovers together come to no more than ``cap_nanos`` (None: no cap), whatever the grants say that they come
    from. What there is above it expires now, but for what holds cover.

    :raises KeyReused: the key was used for another cap.
    """
    if cap_nanos is not None and cap_nanos < 0:
        raise ValueError("a cap is not negative")
    return _operation(
        "select * from ledger_recap(%s, %s, %s, %s, %s, %s::smallint, %s)",
        [
            account_id,
            key_hash(key),
            fingerprint({"unit": unit_id, "cap": cap_nanos}),
            actor,
            reason,
            unit_id,
            _EVERYTHING if cap_nanos is None else cap_nanos,
        ],
    )


def catch_up(*, after: int, limit: int) -> int | None:
    """Applies what is due for up to ``limit`` accounts with ids above ``after``, each in a transaction of its own.

    :return: the last of their ids, to go on after; None where nothing more is due.
    """
    due = [id_ for (id_,) in _call(_DUE, [after, limit])]
    for id_ in due:
        apply_due(account_id=id_)
    return due[-1] if due else None


def apply_due(*, account_id: int) -> None:
    """Applies what is due for one account, if anything is."""
    with transaction.atomic():
        _call("select ledger_catch_up(%s)", [account_id])


def hold(
    *,
    account_id: int,
    key: UUID,
    fingerprint: UUID,
    refusal: str | None,
    call: Call,
    unit_id: int | None,
    amount_nanos: int,
    cost_nanos: int,
    minimum_nanos: int,
    in_debt: bool = False,
    remaining: Sequence[int | None],
    lifetime: timedelta,
    hard_lifetime: timedelta,
    limits: Sequence[Limit] = (),
    closes_at: datetime | None = None,
    assumed_output_tokens: int | None = None,
) -> Usage:
    """Reserves ``amount_nanos`` (0 allowed) of free credits for ``call``; ``cost_nanos`` is its estimated wholesale cost.

    The key is answered before anything is decided, ``refusal`` and ``limits`` included. ``unit_id`` None: nothing is charged, no wallet
    is asked. What is captured after ``closes_at`` counts then, not in the period of the authorization. ``assumed_output_tokens`` is kept
    with the authorization and its record: None where the client app said them.

    :raises Refused: the key is new, and the account is throttled, ``refusal`` was given, or one of ``limits`` is reached.
    :raises InsufficientCredits: less than the amount, or than ``minimum_nanos``, is free, or the account has debt and may not work
        ``in_debt`` (then what costs nothing beforehand still passes: nothing is ever free beside a debt).
    :raises OtherWindow: the key is new, and one of ``limits`` has another window now.
    :raises KeyReused: the key was used for another command.
    """
    usage = _usage(
        "select * from usage_authorize(%s, %s, %s, %s, row(%s,%s,%s,%s,%s::int[],%s::bigint[],"  # noqa: S608 -- placeholders only
        "%s,%s,%s,%s::jsonb)::usage_call, %s::smallint, %s, %s, %s, %s,"
        f" %s::bigint[], {_limits_sql(limits)}, %s, %s, %s, %s)",
        [
            account_id,
            key,
            fingerprint,
            refusal,
            *call.parameters(),
            unit_id,
            amount_nanos,
            cost_nanos,
            minimum_nanos,
            in_debt,
            list(remaining),
            *_limits_parameters(limits),
            lifetime,
            hard_lifetime,
            closes_at,
            assumed_output_tokens,
        ],
    )
    if usage.outcome == "other_window":
        raise OtherWindow(usage.created_at)
    if usage.outcome == "refused":
        raise Refused(usage.state, usage.look)
    if usage.outcome in ("debt", "insufficient"):
        raise InsufficientCredits(
            needed_nanos=max(amount_nanos, minimum_nanos),
            available_nanos=usage.available_nanos or 0,
            debt_nanos=usage.debt_nanos or 0,
            look=usage.look,
        )
    return usage


def limits(*, account_id: int, limits: Sequence[Limit]) -> Look:
    """What :func:`hold` would find, without locking or counting anything."""
    sql = f"select used, resets_at, throttle_reason, throttled_until from usage_limits(%s, {_limits_sql(limits)})"  # noqa: S608
    [row] = _call(sql, [account_id, *_limits_parameters(limits)])
    return Look(*row)


def costs(*, windows: Mapping[int, tuple[datetime, datetime]]) -> dict[int, int]:
    """What the work of these accounts cost in ``[start, end)`` of each, in nano-USD, counted anew from their records."""
    sql = (
        "select asked.id, usage_recount(asked.id, 'cost/period', asked.since, asked.until)"
        " from unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[]) asked (id, since, until)"
    )
    columns = [list(windows), [start for start, _ in windows.values()], [end for _, end in windows.values()]]
    return dict(_call(sql, columns))


def reserve(*, account_id: int, meter: str, object_ref: str, refusal: str | None, allowed: int | None, enforced: bool) -> Places:
    """Takes a place for an object. ``allowed`` None = any number. What exists is never refused, ``refusal`` and ``allowed`` included.

    :raises Refused: the object is new, and the account is throttled, ``refusal`` was given, or that many exist already (``quota``).
    """
    sql = "select * from usage_reserve(%s, %s, %s, %s, %s, %s)"
    [(outcome, used, layer, reason, until)] = _call(sql, [account_id, meter, object_ref, refusal, allowed, enforced])
    if outcome == "refused":
        raise Refused(layer, Look([used], [None], reason, until))
    return Places(used, outcome == "replayed")


def unreserve(*, account_id: int, meter: str, object_ref: str) -> Places:
    """Gives an object's place back. :raises NotFound: there never was such an object."""
    [(outcome, used)] = _call("select outcome, used from usage_unreserve(%s, %s, %s)", [account_id, meter, object_ref])
    if outcome == "not_found":
        raise NotFound("No such object.")
    return Places(used, outcome == "replayed")


def throttle(*, account_id: int, actor: str, reason: str, ends_at: datetime | None = None, key: str | None = None) -> bool:
    """Stops an account until ``ends_at`` (None: until it is lifted); False, and nothing done, where that is over by now.

    A throttle in force is replaced; all are kept as history. A repeated ``key`` stops nothing anew; None is a new one.
    """
    hashed = key_hash("throttle", key or str(uuid4()))
    [(stopped,)] = _call("select usage_stop(%s, %s, %s, %s, %s)", [account_id, hashed, actor, reason, ends_at])
    return bool(stopped)


def resume(*, account_id: int, actor: str) -> bool:
    """Lifts the throttle in force. False where there is none."""
    [(lifted,)] = _call("select usage_resume(%s, %s)", [account_id, actor])
    return bool(lifted)


def with_closed_windows(*, after: int, limit: int) -> list[int]:
    """Up to ``limit`` accounts with ids above ``after`` for which :func:`close_windows` has something to do."""
    return [int(account_id) for (account_id,) in _call("select usage_with_closed_windows(%s, %s)", [after, limit])]


def close_windows(account_id: int) -> None:
    """Marks the throttle whose end is over as lifted then, and forgets the counters of windows that ended more than one window ago."""
    _call("select usage_close_windows(%s)", [account_id])


def _limits_sql(limits: Sequence[Limit]) -> str:
    if not limits:
        return "'{}'::usage_limit[]"
    return "array[" + ",".join(["row(%s,%s,%s,%s,%s,%s,%s,%s)::usage_limit"] * len(limits)) + "]"


def _limits_parameters(limits: Sequence[Limit]) -> list[Any]:
    return [value for limit in limits for value in astuple(limit)]


def capture(
    *, account_id: int, authorization_id: UUID, quantities: Sequence[int], price_ids: Sequence[int], charge: Charge, overage: str
) -> Usage:
    """Ends an authorization with work done: spends the price and gives the rest of the hold back.

    A price above the hold is, by ``overage``: ``charge`` charged (what is not free becomes debt), ``cap`` charged up to the hold (the
    rest is waived), ``reject`` refused. ``absorb`` waives every price.

    :raises NotFound: the account has no such authorization.
    :raises AlreadyResolved: it ended otherwise, or was captured with other quantities.
    :raises HoldExceeded: see ``reject``.
    :raises AmountOverflow: the debt does not fit.
    """
    return _usage(
        "select * from usage_capture(%s, %s, %s::bigint[], %s, %s::int[], %s, %s, %s, %s)",
        [
            account_id,
            authorization_id,
            list(quantities),
            charge.tokens,
            list(price_ids),
            charge.cost_nanos,
            charge.price_nanos,
            charge.value_nanos,
            overage,
        ],
    )


def await_price(*, account_id: int, authorization_id: UUID, quantities: Sequence[int]) -> Usage:
    """Stores what a capture reported when a component of it has no price yet; the hold stays until it has.

    :raises NotFound: the account has no such authorization.
    :raises AlreadyResolved: it ended before, or was reported with other quantities.
    """
    return _usage("select * from usage_await_price(%s, %s, %s::bigint[])", [account_id, authorization_id, list(quantities)])


def release(*, account_id: int, authorization_id: UUID) -> Usage:
    """Ends an authorization without work: the whole hold comes back.

    :raises NotFound: the account has no such authorization.
    :raises AlreadyResolved: it was captured, or its usage awaits a price.
    """
    return _usage("select * from usage_release(%s, %s)", [account_id, authorization_id])


def extend(*, account_id: int, authorization_id: UUID, lifetime: timedelta) -> Usage:
    """Moves the end of an open hold to ``lifetime`` from now, never earlier than it was and never past its hard end.

    :raises NotFound: the account has no such authorization.
    :raises AlreadyResolved: it is no longer open.
    """
    return _usage("select * from usage_extend(%s, %s, %s)", [account_id, authorization_id, lifetime])


def record(event: Event) -> Usage:
    """Records finished work that had no hold, and charges it: what is free is burnt, the rest is debt.

    :raises KeyReused: the key was used for another event.
    :raises AmountOverflow: the debt does not fit.
    """
    call, charge = event.call, event.charge
    return _usage(
        "select * from usage_record_one(%s, %s, %s, row(%s,%s,%s,%s,%s::int[],%s::bigint[],%s,%s,%s,%s::jsonb)::usage_call,"
        " %s::smallint, %s, %s, %s, %s, %s, %s, %s)",
        [
            event.account_id,
            event.key,
            event.fingerprint,
            *call.parameters(),
            event.unit_id,
            event.event_at,
            charge.tokens,
            charge.cost_nanos,
            charge.price_nanos,
            charge.value_nanos,
            event.service_level,
            event.closes_at,
        ],
    )


def record_many(events: Sequence[Event]) -> list[Usage | AmountOverflow]:
    """Records a set, ``CHUNK`` events a transaction; the same as :func:`record` of each in this order, and many times faster.

    Answers in the order of ``events``: with outcome ``done``, ``replayed`` or ``key_reused``, or an :class:`AmountOverflow` where a debt
    does not fit, in which case the others of the set are recorded all the same.
    """
    answers: dict[int, Usage | AmountOverflow] = {}
    # By account, each account's in the order given: a wallet and its grants are then written once for several events.
    order = sorted(range(len(events)), key=lambda number: events[number].account_id)
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        rows = _call(_RECORD_MANY, _columns([events[number] for number in chunk]))
        for number, row in zip(chunk, rows, strict=True):
            answers[number] = _too_large() if row[0] == "overflow" else Usage(*row)
    return [answers[number] for number in range(len(events))]


_RECORD_MANY = (
    "select * from usage_record_many(%s::bigint[], %s::uuid[], %s::uuid[], %s::int[], %s::int[], %s::bigint[], %s::int[], %s::text[],"
    " %s::text[], %s::text[], %s::text[], %s::text[], %s::text[]::jsonb[], %s::text[], %s::smallint[],"
    " %s::timestamptz[], %s::timestamptz[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
)


def _columns(events: Sequence[Event]) -> list[Any]:
    """The parameters of ``usage_record_many``: an array a column. Without text in them they are written here, ten times faster."""
    calls = [event.call for event in events]
    charges = [event.charge for event in events]
    return [
        _literal([event.account_id for event in events]),
        _literal([event.key for event in events]),
        _literal([event.fingerprint for event in events]),
        _literal([call.model_id for call in calls]),
        _literal([call.feature_id for call in calls]),
        _literal([call.api_key_id for call in calls]),
        _literal([call.rate_card_id for call in calls]),
        _literal([f'"{_literal(call.price_ids)}"' for call in calls]),
        _literal([f'"{_literal(call.quantities)}"' for call in calls]),
        _texts([call.user_ref for call in calls]),
        _texts([call.session_ref for call in calls]),
        _texts([call.run_ref for call in calls]),
        _texts([None if call.counts is None else json.dumps(call.counts) for call in calls]),
        _texts([event.service_level for event in events]),
        _literal([event.unit_id for event in events]),
        _literal([f'"{event.event_at.isoformat()}"' for event in events]),
        _literal([None if event.closes_at is None else f'"{event.closes_at.isoformat()}"' for event in events]),
        _literal([charge.tokens for charge in charges]),
        _literal([charge.cost_nanos for charge in charges]),
        _literal([charge.price_nanos for charge in charges]),
        _literal([charge.value_nanos for charge in charges]),
    ]


def _literal(values: Sequence[object]) -> str:
    """A PostgreSQL array of numbers, ids, or what is quoted already."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def _texts(values: Sequence[str | None]) -> str | list[str | None]:
    """A PostgreSQL array of texts; most often they are all missing."""
    return list(values) if any(value is not None for value in values) else _literal(values)


def rate(
    *,
    account_id: int,
    usage_id: UUID,
    rate_card_id: int,
    price_ids: Sequence[int],
    unit_id: int | None,
    charge: Charge,
    charged: bool,
) -> Usage:
    """Rates an unpriced record, once for ever: a later rating is answered with the first. The record itself never changes.

    :param charged: False waives the price: it came too late to be charged.
    :raises NotFound: the account has no such unpriced record.
    :raises AmountOverflow: the debt does not fit.
    """
    return _usage(
        "select * from usage_rate(%s, %s, %s, %s::int[], %s::smallint, %s, %s, %s, %s, %s)",
        [
            account_id,
            usage_id,
            rate_card_id,
            list(price_ids),
            unit_id,
            charge.tokens,
            charge.cost_nanos,
            charge.price_nanos,
            charge.value_nanos,
            charged,
        ],
    )


def seals(*, account_id: int, usage_ids: Collection[UUID]) -> dict[UUID, list[Seal]]:
    """The seals of these records, each with that of its later rating if it has one. Not for tenants: the texts say what work cost us."""
    found: dict[UUID, list[Seal]] = {}
    for id_, *sealed in _call(_SEALS, [account_id, list(usage_ids)]):
        found.setdefault(id_, []).append(Seal(*sealed))
    return found


def sweep(*, limit: int) -> int:
    """Gives back up to ``limit`` holds past their end, in one transaction; returns how many. Call until it returns 0."""
    [(swept,)] = _call("select usage_sweep(%s)", [limit])
    return int(swept)


def _grant(
    account_id: int,
    verb: str,
    key: str,
    actor: str,
    reason: str,
    unit_id: int,
    source: str,
    source_key: str,
    amount_nanos: int,
    priority: int,
    expires_at: datetime | None,
    cash_nanos: int,
    fee_nanos: int,
    currency: str,
    rollover: Rollover | None,
) -> Operation:
    if amount_nanos <= 0 or cash_nanos < 0 or fee_nanos < 0:
        raise ValueError("A grant is more than nothing, and its cash and fee are not negative.")
    if rollover and (expires_at is None or rollover.expires_at <= expires_at or (rollover.cap_nanos or 0) < 0):
        raise ValueError("What rolls over expires first, and later once more; a cap is not negative.")
    command = fingerprint(
        {
            "unit": unit_id,
            "source": source,
            "source_key": source_key,
            "amount": amount_nanos,
            "priority": priority,
            "expires": expires_at,
            "cash": cash_nanos,
            "fee": fee_nanos,
            "currency": currency,
            "rollover": rollover,
        }
    )
    return _operation(
        "select * from ledger_grant(%s, %s, %s, %s, %s, %s, %s::smallint, %s, %s, %s, %s::smallint, %s, %s, %s, %s, %s, %s, %s::smallint)",
        [
            account_id,
            verb,
            key_hash(key),
            command,
            actor,
            reason,
            unit_id,
            source,
            source_key,
            amount_nanos,
            priority,
            expires_at,
            cash_nanos,
            fee_nanos,
            currency,
            *(astuple(rollover) if rollover else (None, None, None)),
        ],
    )


def _operation(sql: str, parameters: Sequence[Any], *, needed_nanos: int = 0) -> Operation:
    [(outcome, id_, grant_id, amount, balance, debt, available)] = _call(sql, parameters)
    match outcome:
        case "done" | "replayed":
            return Operation(id_, grant_id, amount, balance, debt, available, outcome == "replayed")
        case "key_reused":
            raise KeyReused("The key was used before, for another command.")
        case "source_reused":
            raise SourceReused("This source was granted before.")
        case "insufficient":
            raise InsufficientCredits(needed_nanos=needed_nanos, available_nanos=available, debt_nanos=debt)
        case "already_reversed":
            raise AlreadyReversed("The charge was undone before.")
        case "not_found":
            raise NotFound("The account has no such charge, grant or schedule.")
    raise LedgerError(f"unknown outcome {outcome}")


def _usage(sql: str, parameters: Sequence[Any]) -> Usage:
    [row] = _call(sql, parameters)
    usage = Usage(*row)
    match usage.outcome:
        case "key_reused":
            raise KeyReused("The key was used before, for another command.")
        case "not_found":
            raise NotFound("No such authorization.")
        case "already_resolved":
            raise AlreadyResolved(usage.state)
        case "exceeds_hold":
            raise HoldExceeded("The price is above the hold.")
    return usage


def _call(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    try:
        return prepared.rows(sql, parameters)
    except DataError as error:
        if getattr(error.__cause__, "sqlstate", None) == "22003":  # numeric_value_out_of_range
            raise _too_large() from error
        raise


def _too_large() -> AmountOverflow:
    return AmountOverflow("The amount is larger than the ledger can hold.")
