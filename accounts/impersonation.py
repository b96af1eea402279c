"""Staff looks at an account through the eyes of one of its people: to see what they see, and to do nothing.

    begin        from the account's page, with a reason, for ``LASTS`` at most
    end          before its time
    look         middleware: for as long as it lasts, the account's pages are shown as that person sees them
    of           the one that goes on in this session

The session stays staff's. On the pages of that one account, and only there, ``request.user`` is the person and ``request.impersonator`` who
of staff; whatever is not plain reading is refused there, and so is every other page but admin. It ends with its time, with the
right to it, and with either log-in. Who looked, at what, why, and until when are in the audit log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone

from accounts import acts
from accounts.models import Account, AuditEvent, Membership, User

LASTS: Final = timedelta(minutes=30)
PERMISSION: Final = "accounts.impersonate_account"
_KEY: Final = "impersonation"
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
#: What pages are made of, and what knows nobody: anybody's.
_OPEN: Final = ("/logo/", "/colour/", "/pricing/", "/health", "/api/")


class Refused(Exception):
    """Nobody is looked through the eyes of: the message says why."""


@dataclass(frozen=True, slots=True)
class Look:
    """Whose eyes, at which account, why, until when."""

    user_id: str
    account: str
    reason: str
    until: datetime


def begin(*, request: HttpRequest, actor: User, member: Membership, reason: str, now: datetime) -> Look:
    """Through the eyes of ``member``, at their account.

    :raises Refused: the actor may not, the person is staff, inactive or the actor, or the account is closed.
    """
    person, account = member.user, member.account
    if not _may(actor):
        raise Refused("Your role does not look as a customer.")
    if person.is_staff or person.is_superuser or not person.is_active or person == actor:
        raise Refused("Nobody looks through the eyes of staff, or of somebody who cannot sign in.")
    if account.closed_at:
        raise Refused("The account is closed.")
    look = Look(str(person.pk), account.public_id, reason, now + LASTS)
    with transaction.atomic():
        _note(actor, person, account, f"Began to look as {person.email}, until {look.until:%H:%M} UTC: {reason}", reason, now)
        request.session[_KEY] = [look.user_id, look.account, look.reason, look.until.isoformat()]
    return look


def of(request: HttpRequest) -> Look | None:
    """What goes on in this session, whether its time is over or not."""
    kept = request.session.get(_KEY)
    return Look(kept[0], kept[1], kept[2], datetime.fromisoformat(kept[3])) if kept else None


def end(*, request: HttpRequest, actor: User, why: str, now: datetime) -> None:
    """Again changes nothing."""
    look = of(request)
    if look is None:
        return
    person, account = User.objects.get(pk=look.user_id), Account.objects.get(public_id=look.account)
    with transaction.atomic():
        _note(actor, person, account, f"Looks no more as {person.email}: {why}", look.reason, now)
        del request.session[_KEY]


def look(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware, behind the one that finds out who is signed in, before whatever asks who that is."""

    def middleware(request: HttpRequest) -> HttpResponse:
        path = request.path
        if settings.SESSION_COOKIE_NAME not in request.COOKIES:  # what nobody is signed in to does not differ by who is
            return get_response(request)
        if path.startswith((reverse("admin:index"), *_OPEN, settings.STATIC_URL)) or _KEY not in request.session:
            return get_response(request)
        actor, now, looking = request.user, timezone.now(), of(request)
        if not isinstance(actor, User) or looking is None:  # the log-in is over, and with it the session that knew of this
            return get_response(request)
        person = User.objects.filter(pk=looking.user_id, is_active=True, is_staff=False, is_superuser=False).first()
        if now >= looking.until or not _may(actor) or person is None:
            end(request=request, actor=actor, why="its time is over" if now >= looking.until else "it is not allowed any more", now=now)
            return _refuse(request, "You do not look through a customer’s eyes any more. Nothing was done.")
        if request.method not in _SAFE:
            return _refuse(
                request, "You look through a customer’s eyes, so nothing can be changed or bought here. Nothing was done.", looking
            )
        if not path.startswith(f"/a/{looking.account}/"):
            return _refuse(request, "You look through a customer’s eyes: at this one account, and at nothing else of theirs.", looking)
        request.user, request.impersonator, request.look = person, actor, looking  # type: ignore[attr-defined]
        return get_response(request)

    return middleware


def _refuse(request: HttpRequest, says: str, looking: Look | None = None) -> HttpResponse:
    return render(request, "accounts/looking_refused.html", {"says": says, "look": looking}, status=403)


def _may(actor: User) -> bool:
    return actor.is_active and actor.is_staff and actor.has_perm(PERMISSION)


def _note(actor: User, person: User, account: Account, what: str, reason: str, now: datetime) -> None:
    acts.note(
        actor=actor, subject=person, account=account, what=what, reason=reason, kind=AuditEvent.Kind.LOOKED, now=now,
        after={"through the eyes of": person.email, "at": account.public_id},
    )  # fmt: skip
