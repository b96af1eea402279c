"""Usage while its tracking may be switched off: then it is neither checked nor charged but written down, and charged once that is over.

    authorize, capture, release, extend, record    what client apps call: :mod:`metering.usage`, or what follows where tracking is off
    promised_model                                 the model that an authorization is for
    backfill                                       charges what was written down, for accounts whose tracking is on again

While the kill switch ``tracking`` covers an account:

* work is let go at once, without a hold; only layers that cached reads decide are asked: kill switches, entitlement, request size;
* what it used, finished events, and the ends of holds that began before are rows of ``SpooledUsage``, in the transaction of the request;
* the same key, the same end or the same event is one row, whoever repeats it, also just after the switch.

Afterwards each row is charged exactly once: the ledger knows its key, and the row is marked in the transaction that charges it. The rows
of an account are charged in the order of what happened, at the price of that time, under the rate card that was promised. What cannot be
charged keeps waiting, with the reason, and holds nothing else up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Q

from accounts.models import Account
from billing import ledger, subscriptions
from metering import estimates, kill_switches, limits, usage
from metering.kill_switches import Kind, Switches
from metering.models import OpenAuthorization, SpooledUsage, UsageRecord

What, State = SpooledUsage.What, SpooledUsage.State
#: What timed out still takes its capture for so long, as in the ledger.
LATE = timedelta(days=7)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Spooled:
    """What was written down instead of being charged. ``outcome`` is ``done``, ``replayed``, or ``key_reused`` of an event."""

    row: SpooledUsage
    outcome: str
    max_output_tokens: int = 0

    @property
    def replayed(self) -> bool:
        return self.outcome == "replayed"

    @property
    def record(self) -> UsageRecord | None:
        """The record that it became, once it was charged."""
        return UsageRecord.objects.filter(account_id=self.row.account_id, pk=self.row.record_id).first() if self.row.record_id else None


Recorded: TypeAlias = usage.Recorded | Spooled


# What client apps call --------------------------------------------------------------------------------------------------------


def authorize(*, account: Account, ask: usage.Ask, key: str, now: datetime, api_key_id: int | None = None) -> usage.Authorization | Spooled:
    """:func:`metering.usage.authorize`; where tracking is off, leave without a hold. Raises what that raises."""
    switches = _switches(account, now)
    off = switches.first(Kind.TRACKING)
    if off is None and not switches.settling:
        return usage.authorize(account=account, ask=ask, key=key, now=now, api_key_id=api_key_id)
    hashed = ledger.key_hash("usage", key)
    row, outcome = SpooledUsage.objects.filter(account=account, key_hash=hashed).first(), "replayed"
    if row is None:
        if off is None:
            return _authorize_after(account, ask, key, now, api_key_id)
        if _is_known(account, hashed):
            return usage.authorize(account=account, ask=ask, key=key, now=now, api_key_id=api_key_id)
        row, outcome = _let_go(account, ask, hashed, switches, now, api_key_id)
    if row.fingerprint != usage.fingerprint(ask):
        raise ledger.KeyReused("The key was used before, for another command.")
    output = estimates.worst_case(None) if ask.open_ended else ask.quantities.get("output_tokens", 0)
    return Spooled(row, outcome, output)


def capture(*, account: Account, authorization_id: UUID, quantities: Mapping[str, int], now: datetime) -> ledger.Usage | Spooled:
    """:func:`metering.usage.capture`; of what was let go, or while tracking is off, written down. Raises what that raises."""
    quantities = {name: quantity for name, quantity in quantities.items() if quantity}
    if (work := _work(account, authorization_id)) is not None:
        return _end_work(account, work, quantities, now)
    if not _spools_end(account, authorization_id, _switches(account, now)):
        return usage.capture(account=account, authorization_id=authorization_id, quantities=quantities)
    usage.check(model=promised_model(account=account, authorization_id=authorization_id), quantities=quantities)
    return _spool_end(account, authorization_id, What.CAPTURE, quantities, now)


def release(*, account: Account, authorization_id: UUID, now: datetime) -> ledger.Usage | Spooled:
    """:func:`metering.usage.release`; of what was let go, or while tracking is off, written down. Raises what that raises."""
    if (work := _work(account, authorization_id)) is not None:
        return _end_work(account, work, None, now)
    if not _spools_end(account, authorization_id, _switches(account, now)):
        return usage.release(account=account, authorization_id=authorization_id)
    return _spool_end(account, authorization_id, What.RELEASE, None, now)


def extend(*, account: Account, authorization_id: UUID, lifetime: timedelta, now: datetime) -> ledger.Usage | Spooled:
    """:func:`metering.usage.extend`; of what was let go, the time until which its end is awaited. Raises what that raises."""
    if (work := _work(account, authorization_id)) is None:
        return usage.extend(account=account, authorization_id=authorization_id, lifetime=lifetime)
    with transaction.atomic():
        work = SpooledUsage.objects.select_for_update().get(pk=work.pk)
        if work.state != State.OPEN:
            raise ledger.AlreadyResolved(_as_ledger_says(work))
        latest = work.at + timedelta(seconds=account.product.hold_max_seconds)
        work.expires_at = max(work.expires_at or now, min(latest, now + lifetime))
        work.save(update_fields=["expires_at"])
    return Spooled(work, "done")


def record(*, events: Sequence[usage.Event], now: datetime, api_key_id: int | None = None) -> list[Recorded]:
    """:func:`metering.usage.record`; the events of accounts whose tracking is off are written down."""
    if not kill_switches.any_tracking(now=now):
        return list(usage.record(events=events, now=now, api_key_id=api_key_id))
    off = {account.pk: _switches(account, now).first(Kind.TRACKING) for account in {event.account for event in events}}
    charged = iter(usage.record(events=[event for event in events if not off[event.account.pk]], now=now, api_key_id=api_key_id))
    spooled = iter(_spool_events([event for event in events if off[event.account.pk]], now, api_key_id))
    return [next(spooled if off[event.account.pk] else charged) for event in events]


def promised_model(*, account: Account, authorization_id: UUID) -> str:
    """The model that an authorization is for. :raises ledger.NotFound: no such authorization."""
    work = _work(account, authorization_id)
    return str(work.command["model"]) if work else usage.promised_model(account=account, authorization_id=authorization_id)


# Writing down -----------------------------------------------------------------------------------------------------------------


def _switches(account: Account, now: datetime) -> Switches:
    return kill_switches.covering(product_id=account.product_id, account_id=account.pk, now=now)


def _authorize_after(account: Account, ask: usage.Ask, key: str, now: datetime, api_key_id: int | None) -> usage.Authorization:
    """Just after the switch. Work whose end was written down still looks open to the ledger: what is refused is asked again without it."""
    try:
        return usage.authorize(account=account, ask=ask, key=key, now=now, api_key_id=api_key_id)
    except usage.Refused:
        if not _charge_account(account, now, most=ledger.CHUNK):
            raise
    return usage.authorize(account=account, ask=ask, key=key, now=now, api_key_id=api_key_id)


def _is_known(account: Account, key_hash: UUID) -> bool:
    """Whether the ledger has answered this key: it answers it again, and nothing is held anew."""
    return any(rows.filter(account=account, key_hash=key_hash).exists() for rows in (OpenAuthorization.objects, UsageRecord.objects))


def _let_go(
    account: Account, ask: usage.Ask, key_hash: UUID, switches: Switches, now: datetime, api_key_id: int | None
) -> tuple[SpooledUsage, str]:
    usage.check(model=ask.model, quantities=ask.quantities)
    allowed = subscriptions.allowed(account=account)
    decision = limits.Decision(
        limits.before(
            account=account, allowed=allowed, feature=ask.feature, quantities=ask.quantities, now=now, model=ask.model, switches=switches
        )
    )
    if (refusal := decision.refusal) is not None:
        usage.REFUSALS.labels(refusal.name).inc()
        raise usage.Refused(refusal, decision, allowed)
    row = SpooledUsage(
        account=account, what=What.WORK, state=State.OPEN, key_hash=key_hash, fingerprint=usage.fingerprint(ask), api_key_id=api_key_id,
        command=_command(ask, allowed.rate_card if allowed else account.rate_card), at=now, spooled_at=now,
        expires_at=now + timedelta(seconds=account.product.hold_lifetime_seconds),
    )  # fmt: skip
    return _once(row, account=account, key_hash=key_hash)


def _once(row: SpooledUsage, **same: Any) -> tuple[SpooledUsage, str]:
    """The row, or the one that somebody wrote just before."""
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        return SpooledUsage.objects.get(**same), "replayed"
    return row, "done"


def _command(ask: usage.Ask | usage.Event, rate_card: str) -> dict[str, Any]:
    names = ("model", "feature", "service_level", "user", "session", "run", "counts")
    return {name: getattr(ask, name) for name in names} | {"quantities": dict(ask.quantities), "rate_card": rate_card}


def _work(account: Account, authorization_id: UUID) -> SpooledUsage | None:
    """Work that was let go. Its ids are random; the ledger's tell the time, so those are not looked for here."""
    if authorization_id.version != 4:
        return None
    return SpooledUsage.objects.filter(account=account, ref=authorization_id, what=What.WORK).first()


def _end_work(account: Account, work: SpooledUsage, quantities: Mapping[str, int] | None, now: datetime) -> Spooled:
    """Work that was let go is over; ``quantities`` None: nothing was done.

    Where tracking is on again it is charged at once, unless much of the account's waits before it.
    """
    if quantities is not None:
        usage.check(model=work.command["model"], quantities=quantities)
    with transaction.atomic():
        work = SpooledUsage.objects.select_for_update().get(pk=work.pk)
        if work.state != State.OPEN:
            if (quantities is None) != (work.state == State.RELEASED) or work.quantities != quantities:
                raise ledger.AlreadyResolved(_as_ledger_says(work))
            return Spooled(work, "replayed")
        if quantities is None:
            work.state, work.done_at = State.RELEASED, now
        elif work.expires_at is not None and work.expires_at + LATE <= now:
            raise ledger.AlreadyResolved("timed_out")
        else:
            work.state, work.quantities = State.WAITING, dict(quantities)
        work.reported_at = now
        work.save(update_fields=["state", "done_at", "quantities", "reported_at"])
    if work.state == State.WAITING and not _switches(account, now).first(Kind.TRACKING):
        _charge_account(account, now, most=ledger.CHUNK)
        work.refresh_from_db()
    return Spooled(work, "done")


def _as_ledger_says(row: SpooledUsage) -> str:
    return "released" if row.state == State.RELEASED or row.what == What.RELEASE else "captured"


def _spools_end(account: Account, authorization_id: UUID, switches: Switches) -> bool:
    """Whether the end of a hold of before is written down: tracking is off and it is open, or its end was written down already."""
    if not switches.settling and not switches.first(Kind.TRACKING):
        return False
    if SpooledUsage.objects.filter(account=account, authorization_id=authorization_id).exists():
        return True
    return bool(switches.first(Kind.TRACKING)) and OpenAuthorization.objects.filter(account=account, pk=authorization_id).exists()


def _spool_end(
    account: Account, authorization_id: UUID, what: SpooledUsage.What, quantities: Mapping[str, int] | None, now: datetime
) -> Spooled:
    row = SpooledUsage(
        account=account, what=what, state=State.WAITING, authorization_id=authorization_id, at=now, spooled_at=now, reported_at=now,
        quantities=None if quantities is None else dict(quantities),
    )  # fmt: skip
    found = SpooledUsage.objects.filter(account=account, authorization_id=authorization_id).first()
    row, outcome = (found, "replayed") if found else _once(row, account=account, authorization_id=authorization_id)
    if (row.what, row.quantities) != (what, quantities):
        raise ledger.AlreadyResolved(_as_ledger_says(row))
    return Spooled(row, outcome)


def _spool_events(events: Sequence[usage.Event], now: datetime, api_key_id: int | None) -> list[Spooled | usage.InvalidUsage]:
    """One row an event and key; an event that cannot be is answered as an error."""
    plans = subscriptions.allowed_many(accounts={event.account.pk: event.account for event in events}.values())
    answers: list[Spooled | usage.InvalidUsage] = []
    for event in events:
        try:
            usage.check(model=event.model, quantities=event.quantities, at=event.at, now=now)
        except usage.InvalidUsage as error:
            answers.append(error)
            continue
        allowed, hashed, fingerprint = plans.get(event.account.pk), ledger.key_hash("usage", event.key), usage.fingerprint_of(event)
        row = SpooledUsage.objects.filter(account=event.account, key_hash=hashed).first()
        outcome = "replayed"
        if row is None:
            rate_card = allowed.rate_card if allowed else event.account.rate_card
            row = SpooledUsage(
                account=event.account, what=What.EVENT, state=State.WAITING, key_hash=hashed, fingerprint=fingerprint, at=event.at,
                api_key_id=api_key_id, command=_command(event, rate_card), quantities=dict(event.quantities), spooled_at=now,
                reported_at=now,
            )  # fmt: skip
            row, outcome = _once(row, account=event.account, key_hash=hashed)
        answers.append(Spooled(row, outcome if row.fingerprint == fingerprint else "key_reused"))
    return answers


# Charging it ------------------------------------------------------------------------------------------------------------------


def backfill(*, now: datetime, given_up: Collection[str] = (), failed: Callable[[str, Exception], None] | None = None) -> int:
    """Charges what was written down, for every account whose tracking is on again; returns how much. Late, twice or at once: the same end.

    :param given_up: public ids of accounts to leave out.
    :param failed: is told of an account that failed as a whole; without it the first failure is raised.
    """
    charged = 0
    waiting = SpooledUsage.objects.filter(state=State.WAITING).order_by("account_id").values_list("account_id", flat=True).distinct()
    for account in Account.objects.select_related("product__unit").filter(pk__in=list(waiting)).exclude(public_id__in=given_up):
        if _switches(account, now).first(Kind.TRACKING):
            continue
        try:
            charged += _charge_account(account, now)
        except Exception as error:
            if failed is None:
                raise
            failed(account.public_id, error)
    return charged


def _charge_account(account: Account, now: datetime, *, most: int | None = None) -> int:
    """In transactions of at most ``ledger.CHUNK`` rows; a second worker waits for the first one's rows and finds them charged.

    Stops after ``most`` rows or the transaction that reaches them: a request does not wait for all that its account has spooled.
    """
    charged, looked, after = 0, 0, Q()
    while True:
        with transaction.atomic():
            waiting = SpooledUsage.objects.select_for_update(of=("self",)).filter(after, account=account, state=State.WAITING)
            rows = list(waiting.order_by("at", "id")[: ledger.CHUNK])
            for start, end in _runs(rows):
                charged += _charge(account, rows[start:end], now)
        looked += len(rows)
        if not rows or (most is not None and looked >= most):
            return charged
        after = Q(at=rows[-1].at, id__gt=rows[-1].pk) | Q(at__gt=rows[-1].at)


def _runs(rows: Sequence[SpooledUsage]) -> list[tuple[int, int]]:
    """Neighbours that the ledger takes as one set, and each end of a hold for itself."""
    runs: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        alone = row.what in (What.CAPTURE, What.RELEASE)
        if runs and not alone and rows[number - 1].what not in (What.CAPTURE, What.RELEASE):
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _charge(account: Account, rows: Sequence[SpooledUsage], now: datetime) -> int:
    if rows[0].what in (What.CAPTURE, What.RELEASE):
        answers: list[usage.Recorded | ledger.LedgerError] = [_end_hold(account, rows[0], now)]
    else:
        answers = list(usage.record_late(items=[_late(account, row) for row in rows], now=now))
    charged = 0
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, ledger.Usage) and answer.outcome == "key_reused":
            # Other work has the same key in the ledger, begun by a process that felt the switch later. This was done too.
            [answer] = usage.record_late(items=[_late(account, row, key=ledger.key_hash("spooled", str(row.ref)))], now=now)
        row.error = "" if isinstance(answer, ledger.Usage) else str(answer)
        if isinstance(answer, ledger.Usage):
            row.state, row.done_at, row.record_id = State.DONE, now, answer.id
            charged += 1
        elif isinstance(answer, ledger.AlreadyResolved):  # the ledger has heard of its end: there is nothing left to charge
            row.state, row.done_at, row.record_id = State.DONE, now, row.authorization_id
        else:
            log.error("spooled usage cannot be charged", account=account.public_id, spooled=str(row.ref), why=row.error)
        row.save(update_fields=["state", "done_at", "record_id", "error"])
    return charged


def _late(account: Account, row: SpooledUsage, *, key: UUID | None = None) -> usage.Late:
    said = {name: value for name, value in row.command.items() if name not in ("quantities", "rate_card")}
    event = usage.Event(key=str(row.ref), account=account, at=row.at, quantities=row.quantities or {}, **said)
    key, fingerprint = key or row.key_hash, row.fingerprint
    assert key is not None
    assert fingerprint is not None
    return usage.Late(event, key, fingerprint, row.command["rate_card"], row.api_key_id)


def _end_hold(account: Account, row: SpooledUsage, now: datetime) -> usage.Recorded | ledger.LedgerError:
    """Ends a hold of before as was reported. One that has run out for good meanwhile is charged as an event: it was reported in time."""
    assert row.authorization_id is not None
    try:
        with transaction.atomic():
            if row.what == What.RELEASE:
                return usage.release(account=account, authorization_id=row.authorization_id)
            return usage.capture(account=account, authorization_id=row.authorization_id, quantities=row.quantities or {}, may_refuse=False)
    except ledger.AlreadyResolved as error:
        if row.what == What.RELEASE or error.state != "timed_out":
            return error
    except (ledger.NotFound, ledger.AmountOverflow, usage.InvalidUsage) as error:
        return error
    ended = UsageRecord.objects.select_related("model", "feature").get(account=account, pk=row.authorization_id)
    event = usage.Event(
        key=str(row.ref), account=account, at=ended.event_at, model=str(ended.model), quantities=row.quantities or {},
        feature=ended.feature.slug if ended.feature else None, user=ended.user_ref, session=ended.session_ref, run=ended.run_ref,
        counts=ended.counts,
    )  # fmt: skip
    key = ledger.key_hash("spooled", str(row.ref))
    [answer] = usage.record_late(items=[usage.Late(event, key, usage.fingerprint_of(event), None, ended.api_key_id)], now=now)
    return answer
