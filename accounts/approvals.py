"""A second person for acts that touch everybody, or much money: one of staff asks, another approves within a day, and it happens once.

    register  names an act: who may do it, what it would change, and the function that does it
    ask       one of staff wants it
    approve   another one has it done, now
    refuse    it is not done; who asked takes it back the same way
    change    what it would change, as things are now

An act is carried out in the transaction that approves it, so it is done and approved or neither; it talks to nobody over a network (a row
that says what is due is enough). Asking and deciding each leave a line in the audit log. That nobody approves what they asked for, that
nothing is decided twice or too late, and that the same waits only once, is also a constraint of the database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, transaction

from accounts import acts
from accounts.models import Account, Approval, AuditEvent, User

Kind = AuditEvent.Kind
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
    """``name`` follows "Asked for:". ``permission`` is what who asks needs, and who decides too unless ``decides`` names another.
    ``carry_out`` gets the approval, who approved and the time, and returns what it did in words; it raises :class:`Impossible`.
    ``account`` finds the account that a payload is about, for the audit log.
    """

    name: str
    permission: str
    change: Callable[[Mapping[str, Any], datetime], Change]
    carry_out: Callable[[Approval, User, datetime], str]
    decides: str = ""
    account: Callable[[Mapping[str, Any]], Account | None] = lambda payload: None

    def may_ask(self, actor: User) -> bool:
        return _may(actor, self.permission)

    def may_approve(self, actor: User) -> bool:
        return _may(actor, self.decides or self.permission)


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
    wanted = _acts[kind]
    if not wanted.may_ask(actor):
        raise _not_allowed(wanted.permission, "ask for this")
    mark = hashlib.sha256(json.dumps(dict(payload if same is None else same), sort_keys=True).encode()).hexdigest()
    waiting = Approval.objects.filter(kind=kind, mark=mark, state=Approval.State.PENDING, expires_at__gt=now)
    with transaction.atomic():
        if earlier := waiting.first():
            raise _already_asked(earlier)
        change = wanted.change(payload, now)
        try:
            with transaction.atomic():
                approval = Approval.objects.create(
                    kind=kind, mark=mark, payload=dict(payload), before=change.before, after=change.after, reason=reason, asked_by=actor,
                    asked_at=now, expires_at=now + LIFETIME,
                )  # fmt: skip
        except IntegrityError as error:  # somebody asked for the same between our look and our row
            if "approval_asked_once" not in str(error):
                raise
            raise _already_asked(waiting.get()) from error
        _log(approval, actor, Kind.ASKED, f"Asked for: {change.after}. {reason}", reason, now)
    return approval


def approve(*, approval: Approval, actor: User, now: datetime, note: str = "") -> str:
    """Carries the act out; returns what was done, in words.

    :raises NotAllowed: the actor asked for it, or is no staff with the right to decide.
    :raises NotPending: it was decided before, or its day is over.
    :raises Impossible: the act cannot be done now.
    """
    with transaction.atomic():
        approval = _pending(approval, now)
        wanted = _acts[approval.kind]
        if approval.asked_by_id == actor.pk:
            raise NotAllowed("Somebody else has to approve what you asked for.")
        if not wanted.may_approve(actor):
            raise _not_allowed(wanted.decides or wanted.permission, "approve this")
        _decide(approval, Approval.State.APPROVED, actor, note, now)
        done = wanted.carry_out(approval, actor, now)
        _log(approval, actor, Kind.APPROVED, f"Approved: {done}{f' {note}' if note else ''}", note, now)
    return done


def refuse(*, approval: Approval, actor: User, now: datetime, note: str) -> None:
    """Nothing is done. Who asked may refuse too: that takes it back.

    :raises NotAllowed: the actor neither asked for it nor is staff with the right to decide.
    :raises NotPending: it was decided before, or its day is over.
    """
    with transaction.atomic():
        approval = _pending(approval, now)
        if not _may_refuse(approval, actor):
            wanted = _acts[approval.kind]
            raise _not_allowed(wanted.decides or wanted.permission, "refuse this")
        _decide(approval, Approval.State.REFUSED, actor, note, now)
        _log(approval, actor, Kind.REFUSED, f"Refused: {note}", note, now)


def change(*, approval: Approval, now: datetime) -> Change:
    """What it would change as things are now, which may be more or less than when it was asked."""
    return _acts[approval.kind].change(approval.payload, now)


def may_decide(*, approval: Approval, actor: User, now: datetime) -> bool:
    """Whether this person may approve or, if it is their own, take it back."""
    return approval.is_pending(now) and _may_refuse(approval, actor)


def _pending(approval: Approval, now: datetime) -> Approval:
    """The row, locked: of two who decide at once the second finds it decided."""
    locked = Approval.objects.select_for_update(of=("self",)).select_related("asked_by").get(pk=approval.pk)
    if not locked.is_pending(now):
        raise NotPending("It was decided already." if locked.decided_at else "Nobody approved it within a day. Ask again.")
    return locked


def _decide(approval: Approval, state: Approval.State, actor: User, note: str, now: datetime) -> None:
    approval.state, approval.decided_by, approval.decided_at, approval.note = state, actor, now, note
    approval.save(update_fields=["state", "decided_by", "decided_at", "note"])


def _may_refuse(approval: Approval, actor: User) -> bool:
    """Who may decide; and who asked, who takes it back."""
    wanted = _acts[approval.kind]
    return wanted.may_approve(actor) or (approval.asked_by_id == actor.pk and wanted.may_ask(actor))


def _may(actor: User, permission: str) -> bool:
    return actor.is_active and actor.is_staff and actor.has_perm(permission)


def _not_allowed(permission: str, what: str) -> NotAllowed:
    return NotAllowed(f"Only staff with the right “{permission}” may {what}.")


def _already_asked(earlier: Approval) -> AlreadyAsked:
    return AlreadyAsked(f"{earlier.asked_by} asked for the same, and it waits for somebody else to approve it.")


def _log(approval: Approval, actor: User, kind: str, message: str, reason: str, now: datetime) -> None:
    account = _acts[approval.kind].account(approval.payload)
    acts.note(
        actor=actor, subject=approval, account=account, what=message, kind=kind, reason=reason, now=now,
        before={"as it was": approval.before}, after={"effect": approval.after, "state": approval.state},
    )  # fmt: skip
