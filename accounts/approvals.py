"""A second person for acts that touch everybody, or much money: one of staff asks, another approves within a day, and it happens once.

    register  names an act: who may do it, what it would change, and the function that does it
    ask       one of staff wants it
    approve   another one has it done, now
    refuse    it is not done; who asked takes it back the same way
    change    what it would change, as things are now

An act is carried out in the transaction that approves it, so it is done and approved or neither; it talks to nobody over a network (a row
that says what is due is enough). Asking and deciding each leave a line in the audit log. That nobody approves what they asked for, and
that nothing is decided twice or too late, is also a constraint of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import transaction

from accounts.models import Approval, User

LIFETIME = timedelta(hours=24)


class ApprovalError(Exception):
    """The base of what is refused here. The message says why, as people read it."""


class NotAllowed(ApprovalError):
    """This person may not: no staff, without the act's permission, or the one who asked."""


class AlreadyAsked(ApprovalError):
    """The same is asked for and waits."""


class NotPending(ApprovalError):
    """It was decided, or its day is over."""


class Impossible(ApprovalError):
    """The act cannot be carried out as things are now. Raised by acts: nothing was changed, and the request still waits."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an act changes, as people read it."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Act:
    """``name`` follows "Asked for:". ``permission`` is what both people need. ``carry_out`` gets the approval, who approved and the time,
    and returns what it did in words; it raises :class:`Impossible`.
    """

    name: str
    permission: str
    change: Callable[[Mapping[str, Any], datetime], Change]
    carry_out: Callable[[Approval, User, datetime], str]


_acts: dict[str, Act] = {}


def register(*, kind: str, act: Act) -> None:
    """Called once, where the act is defined. ``kind`` is stored: never rename it."""
    if kind in _acts:
        raise ValueError(f"There is an act {kind} already.")
    _acts[kind] = act


def act(*, kind: str) -> Act:
    """:raises KeyError: no such act is registered."""
    return _acts[kind]


def ask(
    *, kind: str, payload: Mapping[str, Any], actor: User, reason: str, now: datetime, same: Mapping[str, Any] | None = None
) -> Approval:
    """Writes down that ``actor`` wants this done. ``payload`` is JSON that the act understands; ``same`` is the part of it by which two
    requests are the same, None: all of it.

    :raises NotAllowed: the actor is no staff with the act's permission.
    :raises AlreadyAsked: the same waits for its second person.
    """
    _check(_acts[kind], actor)
    waiting = Approval.objects.filter(kind=kind, state=Approval.State.PENDING, expires_at__gt=now)
    waiting = waiting.filter(payload=dict(payload)) if same is None else waiting.filter(payload__contains=dict(same))
    with transaction.atomic():
        if earlier := waiting.select_for_update().first():
            raise AlreadyAsked(f"{earlier.asked_by} asked for the same, and it waits for somebody else to approve it.")
        change = _acts[kind].change(payload, now)
        approval = Approval.objects.create(
            kind=kind, payload=dict(payload), before=change.before, after=change.after, reason=reason, asked_by=actor, asked_at=now,
            expires_at=now + LIFETIME,
        )  # fmt: skip
        _log(approval, actor, ADDITION, f"Asked for: {change.after}. {reason}", now)
    return approval


def approve(*, approval: Approval, actor: User, now: datetime, note: str = "") -> str:
    """Carries the act out; returns what was done, in words.

    :raises NotAllowed: the actor asked for it, or is no staff with the act's permission.
    :raises NotPending: it was decided before, or its day is over.
    :raises Impossible: the act cannot be done now.
    """
    with transaction.atomic():
        approval = _pending(approval, now)
        wanted = _acts[approval.kind]
        _check(wanted, actor)
        if approval.asked_by_id == actor.pk:
            raise NotAllowed("Somebody else has to approve what you asked for.")
        _decide(approval, Approval.State.APPROVED, actor, note, now)
        done = wanted.carry_out(approval, actor, now)
        _log(approval, actor, CHANGE, f"Approved: {done}{f' {note}' if note else ''}", now)
    return done


def refuse(*, approval: Approval, actor: User, now: datetime, note: str) -> None:
    """Nothing is done. Who asked may refuse too: that takes it back.

    :raises NotAllowed: the actor is no staff with the act's permission.
    :raises NotPending: it was decided before, or its day is over.
    """
    with transaction.atomic():
        approval = _pending(approval, now)
        _check(_acts[approval.kind], actor)
        _decide(approval, Approval.State.REFUSED, actor, note, now)
        _log(approval, actor, CHANGE, f"Refused: {note}", now)


def change(*, approval: Approval, now: datetime) -> Change:
    """What it would change as things are now, which may be more or less than when it was asked."""
    return _acts[approval.kind].change(approval.payload, now)


def may_decide(*, approval: Approval, actor: User, now: datetime) -> bool:
    """Whether this person may approve or, if it is their own, take it back."""
    return approval.is_pending(now) and _may(_acts[approval.kind], actor)


def _pending(approval: Approval, now: datetime) -> Approval:
    """The row, locked: of two who decide at once the second finds it decided."""
    locked = Approval.objects.select_for_update(of=("self",)).select_related("asked_by").get(pk=approval.pk)
    if not locked.is_pending(now):
        raise NotPending("It was decided already." if locked.decided_at else "Nobody approved it within a day. Ask again.")
    return locked


def _decide(approval: Approval, state: Approval.State, actor: User, note: str, now: datetime) -> None:
    approval.state, approval.decided_by, approval.decided_at, approval.note = state, actor, now, note
    approval.save(update_fields=["state", "decided_by", "decided_at", "note"])


def _may(act: Act, actor: User) -> bool:
    return actor.is_active and actor.is_staff and actor.has_perm(act.permission)


def _check(act: Act, actor: User) -> None:
    if not _may(act, actor):
        raise NotAllowed(f"Only staff with the right “{act.permission}” may ask for this or approve it.")


def _log(approval: Approval, actor: User, flag: int, message: str, now: datetime) -> None:
    LogEntry.objects.create(
        user=actor, content_type=ContentType.objects.get_for_model(Approval), object_id=str(approval.pk), object_repr=str(approval)[:200],
        action_flag=flag, change_message=message, action_time=now,
    )  # fmt: skip
