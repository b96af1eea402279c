"""Who belongs to an account: invitations, roles, and leaving.

    make_team    makes a person's account a team's
    invite       offers an address a place; an open invitation of that address is renewed
    resend       sends an invitation again, for another seven days; the earlier link ends
    revoke       takes an invitation back
    read         the invitation that a link is about
    accept       takes the place, once
    change_role  gives a member another role
    remove       ends a membership, somebody's or one's own

Owners may do all of it with everybody, admins with admins and members; members may leave. Every act reads the actor's own role under the
lock of the account, so that whoever was removed a moment ago does nothing more, and leaves a line in the audit log. An account that has an
owner keeps one: the database refuses the rest (``sql/team.sql``).

A link carries the invitation and which of its mails it was in, signed: it cannot be guessed or altered, and is not stored.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from allauth.account.models import EmailAddress
from django.core import signing
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.validators import validate_email
from django.db import models, transaction
from django.urls import reverse

from accounts import acts, mails
from accounts.models import Account, Invitation, Membership, User

LIFETIME: Final = timedelta(days=7)
MAX_OPEN: Final = 100
MAX_A_DAY: Final = 100
MAX_SENT: Final = 5
MAX_EMAIL: Final = 254
_OWNER, _ADMIN, _MEMBER = Membership.Role.OWNER, Membership.Role.ADMIN, Membership.Role.MEMBER
#: The roles that each role may give, and whose holders it may change.
RANKS: Final[dict[str, tuple[Membership.Role, ...]]] = {_OWNER: (_MEMBER, _ADMIN, _OWNER), _ADMIN: (_MEMBER, _ADMIN), _MEMBER: ()}
_signer = signing.Signer(salt="accounts.invitation")


class Refused(ValueError):
    """It cannot be done; the message says why, and ``field`` what of the form it is about, if anything."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class LastOwner(Refused):
    """The account would have no owner."""

    def __init__(self) -> None:
        super().__init__("An account keeps at least one owner. Make somebody else an owner first.")


class NoInvitation(LookupError):
    """The link is not ours, or its invitation is over. The message says which, and no more."""


class WrongAddress(PermissionDenied):
    """The invitation is for an address that the user has not shown to be theirs."""


def make_team(*, account: Account, actor: User, now: datetime) -> None:
    """Whether the plan allows it is the caller's to ask. Doing it again changes nothing.

    :raises PermissionDenied: the actor is no owner.
    """
    with transaction.atomic():
        if _role(account, actor) != _OWNER:
            raise PermissionDenied("Only an owner may make this a team account.")
        if Account.objects.filter(pk=account.pk, kind=Account.Kind.PERSON).update(kind=Account.Kind.TEAM):
            acts.note(account=account, actor=actor, what="Made a team account.", now=now)


def invite(*, account: Account, email: str, role: str, actor: User, now: datetime) -> Invitation:
    """Offers ``email`` a place as ``role``, and sends it the link. An open invitation of that address is renewed, with this role.

    :raises Refused: no address, a member's, a role that is none, an account that is no team's, or too many invitations.
    :raises PermissionDenied: the actor may not give that role.
    """
    email = email.strip().lower()
    try:
        validate_email(email)
    except ValidationError as error:
        raise Refused("Write an email address such as ada@example.com.", field="email") from error
    if len(email) > MAX_EMAIL:
        raise Refused("The address is too long.", field="email")
    if role not in Membership.Role.values:
        raise Refused("Choose a role.", field="role")
    with transaction.atomic():
        _require(account, actor, role)
        if Account.objects.filter(pk=account.pk).exclude(kind=Account.Kind.TEAM).exists():
            raise Refused("Only a team account has members. Make this one a team account first.")
        if Membership.objects.filter(account=account, user__email=email).exists():
            raise Refused("This person is a member already.", field="email")
        invitation = _open(account).filter(email=email).first()
        if invitation is not None:
            _require(account, actor, invitation.role)
            invitation.role = role
            return _send_again(invitation, actor, now)
        if _open(account).filter(expires_at__gt=now).count() >= MAX_OPEN:
            raise Refused(f"There are {MAX_OPEN} open invitations. Wait for some to be accepted, or revoke some.")
        if Invitation.objects.filter(account=account, created_at__gt=now - timedelta(days=1)).count() >= MAX_A_DAY:
            raise Refused(f"An account may invite {MAX_A_DAY} people a day. Go on tomorrow.")
        invitation = Invitation.objects.create(
            account=account, email=email, role=role, created_at=now, sent_at=now, created_by=actor, expires_at=now + LIFETIME
        )
        acts.note(account=account, actor=actor, what=f"Invited {email} as {role}.", now=now)
        _mail(invitation, actor, now)
    return invitation


def resend(*, invitation: Invitation, actor: User, now: datetime) -> Invitation:
    """Sends another link that works for seven days from ``now``; the earlier ones end.

    :raises Refused: it was accepted or revoked, or was sent ``MAX_SENT`` times.
    :raises PermissionDenied: the actor may not give its role.
    """
    with transaction.atomic():
        _require(invitation.account, actor, invitation.role)
        return _send_again(_still_open(invitation), actor, now)


def revoke(*, invitation: Invitation, actor: User, now: datetime) -> None:
    """Ends an invitation; its link works no more.

    :raises Refused: it was accepted or revoked before.
    :raises PermissionDenied: the actor may not give its role.
    """
    with transaction.atomic():
        _require(invitation.account, actor, invitation.role)
        invitation = _still_open(invitation)
        invitation.revoked_at, invitation.revoked_by = now, actor
        invitation.save(update_fields=["revoked_at", "revoked_by"])
        acts.note(account=invitation.account, actor=actor, what=f"Revoked the invitation of {invitation.email}.", now=now)


def token(invitation: Invitation) -> str:
    """What the link in the last mail of ``invitation`` carries."""
    return _signer.sign(f"{invitation.pk}.{invitation.sent}")


def read(*, token: str, now: datetime) -> Invitation:
    """The invitation that ``token`` is about, if it can still be accepted, its account and product read along.

    :raises NoInvitation: an altered link, an earlier one, or an invitation that is over.
    """
    return _acceptable(_named(token), token, now)


def accept(*, token: str, user: User, now: datetime, proven: bool = False) -> Membership:
    """Makes ``user`` a member, and the invitation used. Whoever accepted it before, or belongs to the account, keeps the role they have.

    ``proven``: the user has just come with this very link, so the address that it was sent to is theirs; otherwise it has to be among
    their confirmed ones.

    :raises NoInvitation: as :func:`read`; also where somebody else was faster.
    :raises WrongAddress: it is for an address that is not the user's.
    """
    invitation = _named(token)
    with transaction.atomic():
        Account.objects.select_for_update(no_key=True).get(pk=invitation.account_id)
        invitation.refresh_from_db(fields=["sent", "expires_at", "accepted_at", "accepted_by", "revoked_at"])
        if invitation.accepted_by_id == user.pk and (before := _membership(invitation.account, user)):
            return before
        invitation = _acceptable(invitation, token, now)
        if not proven and not has_address(user, invitation.email):
            raise WrongAddress(f"This invitation is for {invitation.email}.")
        membership, _ = Membership.objects.get_or_create(
            account=invitation.account, user=user, defaults={"role": invitation.role, "created_at": now}
        )
        invitation.accepted_at, invitation.accepted_by = now, user
        invitation.save(update_fields=["accepted_at", "accepted_by"])
        acts.note(account=invitation.account, actor=user, what=f"Joined as {membership.role}.", now=now)
    return membership


def has_address(user: User, email: str) -> bool:
    """Whether ``user`` has confirmed that ``email`` is theirs."""
    return bool(EmailAddress.objects.filter(user=user, email__iexact=email, verified=True).exists())


def change_role(*, membership: Membership, role: str, actor: User, now: datetime) -> None:
    """Gives the member another role; their own role nobody but an owner changes.

    :raises Refused: a role that is none, or a member who has left.
    :raises LastOwner: the account would have no owner.
    :raises PermissionDenied: the actor may not change this member, or not give that role.
    """
    if role not in Membership.Role.values:
        raise Refused("Choose a role.", field="role")
    with transaction.atomic():
        member = _member(membership, actor)
        _require(member.account, actor, member.role, role)
        if member.role == role:
            return
        _keep_an_owner(member, role)
        before, member.role = member.role, role
        member.save(update_fields=["role"])
        acts.note(account=member.account, actor=actor, what=f"Made {member.user.email} {role}, was {before}.", now=now)


def remove(*, membership: Membership, actor: User, now: datetime) -> None:
    """Ends the membership. The person stays, and so does what they did.

    :raises Refused: the member has left already.
    :raises LastOwner: the account would have no owner.
    :raises PermissionDenied: somebody else's membership that the actor may not change.
    """
    with transaction.atomic():
        member = _member(membership, actor)
        if member.user_id != actor.pk:
            _require(member.account, actor, member.role)
        _keep_an_owner(member, "")
        member.delete()
        what = "Left." if member.user_id == actor.pk else f"Removed {member.user.email}, was {member.role}."
        acts.note(account=member.account, actor=actor, what=what, now=now)


def _role(account: Account, actor: User) -> str:
    """The actor's role; from here to the end of the transaction nobody else changes who belongs to the account.

    :raises Refused: the account is closed.
    :raises PermissionDenied: the actor is no member.
    """
    if Account.objects.select_for_update(no_key=True).get(pk=account.pk).closed_at:
        raise Refused("This account was closed.")
    membership = _membership(account, actor)
    if membership is None:
        raise PermissionDenied("Only members of the account may do this.")
    return membership.role


def _require(account: Account, actor: User, *roles: str) -> None:
    """:raises PermissionDenied: the actor may not give one of ``roles``, or change who has it."""
    if not set(roles) <= set(RANKS[_role(account, actor)]):
        raise PermissionDenied("Your role in this account does not allow it.")


def _membership(account: Account, user: User) -> Membership | None:
    return Membership.objects.filter(account=account, user=user).first()


def _member(membership: Membership, actor: User) -> Membership:
    _role(membership.account, actor)
    member = Membership.objects.select_related("user", "account").filter(pk=membership.pk).first()
    if member is None:
        raise Refused("This person has left already.")
    return member


def _keep_an_owner(member: Membership, role: str) -> None:
    if member.role == _OWNER and role != _OWNER:
        others = Membership.objects.filter(account_id=member.account_id, role=_OWNER).exclude(pk=member.pk)
        if not others.exists():
            raise LastOwner


def _open(account: Account) -> models.QuerySet[Invitation]:
    return Invitation.objects.filter(account=account, accepted_at=None, revoked_at=None)


def _still_open(invitation: Invitation) -> Invitation:
    found = _open(invitation.account).filter(pk=invitation.pk).first()
    if found is None:
        raise Refused("This invitation was accepted or revoked in the meantime.")
    return found


def _send_again(invitation: Invitation, actor: User, now: datetime) -> Invitation:
    if invitation.sent >= MAX_SENT:
        raise Refused(f"This invitation was sent {MAX_SENT} times. Revoke it, and tell the person in another way.", field="email")
    invitation.sent += 1
    invitation.sent_at, invitation.expires_at = now, now + LIFETIME
    invitation.save(update_fields=["role", "sent", "sent_at", "expires_at"])
    acts.note(
        account=invitation.account, actor=actor, what=f"Sent the invitation of {invitation.email} again, as {invitation.role}.", now=now
    )
    _mail(invitation, actor, now)
    return invitation


def _named(token: str) -> Invitation:
    try:
        pk, _, _ = _signer.unsign(token).partition(".")
    except signing.BadSignature as error:
        raise NoInvitation("This link is incomplete or was altered. Open it from the mail once more.") from error
    invitation = Invitation.objects.select_related("account__product", "created_by").filter(pk=int(pk)).first()
    if invitation is None:
        raise NoInvitation("This invitation does not exist any more. Ask for a new one.")
    return invitation


def _acceptable(invitation: Invitation, token: str, now: datetime) -> Invitation:
    if invitation.accepted_at:
        raise NoInvitation("This invitation was used already.")
    if invitation.revoked_at or invitation.account.closed_at:
        raise NoInvitation("This invitation was taken back. Ask for a new one.")
    if _signer.unsign(token) != f"{invitation.pk}.{invitation.sent}":
        raise NoInvitation("A newer mail with another link was sent since. Use that one.")
    if invitation.expires_at <= now:
        raise NoInvitation("This invitation has expired. Ask for a new one.")
    return invitation


def _mail(invitation: Invitation, actor: User, now: datetime) -> None:
    mails.queue(
        account=invitation.account,
        kind="invitation",
        key=f"{invitation.pk}.{invitation.sent}",
        recipient=invitation.email,
        useless_at=invitation.expires_at,
        now=now,
        context={
            "invited_by": str(actor.pk),
            "role": invitation.role,
            "url": reverse("invitation", args=[token(invitation)]),
            "expires_at": invitation.expires_at,
        },
    )
