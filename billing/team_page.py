"""The team of an account: who belongs to it, who is invited, and the seats that it pays for.

The page lives here and not in ``accounts``, because what a team may do, and how many seats it has, is its plan's to say.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts import forms, members, pages
from accounts.models import Account, Invitation, Membership, User
from billing import features, seats, subscriptions
from pricing.models import PlanVersion

FEATURE: Final = "team_collaboration"
#: More members than this are on further pages nobody has needed yet; the count says how many there are.
SHOWN: Final = 200


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def team(request: HttpRequest, public_id: str) -> HttpResponse:
    """Everybody sees the team; owners and admins invite, and an owner makes a person's account a team's, where the plan allows it."""
    now, user = timezone.now(), pages.signed_in(request)
    with pages.tenant(request, public_id, managing=request.method == "POST") as account:
        memberships = list(Membership.objects.filter(account=account).order_by("created_at", "pk")[: SHOWN + 1])
        role = Membership.objects.get(account=account, user=user).role
        invitations = list(Invitation.objects.filter(account=account, accepted_at=None, revoked_at=None)[:SHOWN])
    subscription = subscriptions.current(account_id=account.pk)
    feature = features.of(account=account, key=FEATURE, now=now)
    per_seat = subscription is not None and subscription.plan_version.per_seat
    by_seat = PlanVersion.objects.filter(
        plan__product_id=account.product_id, plan__available=True, per_seat=True, valid_from__lte=now
    ).exists()
    together = feature.included or per_seat
    may = {
        # Who is to buy seats has to be a team first: its price is per member.
        "team": account.closed_at is None and account.kind != Account.Kind.GUEST and (together or by_seat),
        "invite": account.closed_at is None and (together or not (feature.sold or by_seat)),
    }
    invite = forms.InviteForm.of(request, roles=members.RANKS[role])
    make_team = forms.TeamForm.of(request)
    for form in (invite, make_team):
        if not form.is_bound:
            continue
        if not may[form.named]:
            raise PermissionDenied("The plan of this account has no team.")
        if form.is_valid() and (done := _act(form, account, user, now)):
            messages.success(request, done)
            return redirect("team", account.public_id)
    people = User.objects.in_bulk([membership.user_id for membership in memberships])
    context = {
        "members": [
            {"membership": each, "user": people[each.user_id], "mine": each.user_id == user.pk, "open": _may_change(role, each, user)}
            for each in memberships[:SHOWN]
        ],
        "many": len(memberships) > SHOWN,
        "invitations": [{"invitation": each, "open": each.role in members.RANKS[role]} for each in invitations],
        "role": role,
        "invite": invite,
        "make_team": make_team,
        "may": may,
        "by_seat": by_seat,
        "feature": feature,
        "seats": seats.of_account(account=account, live=subscription),
    }
    return pages.answer(request, "accounts/team.html", account=account, now=now, context=context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def member(request: HttpRequest, public_id: str, membership_id: str) -> HttpResponse:
    """One member: another role, or out. On one's own page: another role, or leaving. It says beforehand what each of them means."""
    now, user = timezone.now(), pages.signed_in(request)
    with pages.tenant(request, public_id) as account:
        mine = Membership.objects.get(account=account, user=user)
        chosen = Membership.objects.filter(account=account, pk=membership_id).first()
        if chosen is None:
            raise Http404("There is no such member here.")
        owners = Membership.objects.filter(account=account, role=Membership.Role.OWNER).count()
    if not _may_change(mine.role, chosen, user):
        raise PermissionDenied("Your role in this account does not allow it.")
    change = forms.RoleForm.of(request, roles=members.RANKS[mine.role], initial={"role": chosen.role})
    remove = forms.RemoveForm.of(request)
    try:
        if change.is_bound and change.is_valid():
            members.change_role(membership=chosen, role=change.cleaned_data["role"], actor=user, now=now)
            messages.success(request, "The role is changed.")
            return redirect("team", account.public_id)
        if remove.is_bound and remove.is_valid():
            members.remove(membership=chosen, actor=user, now=now)
            messages.success(request, f"You left {account.name}." if chosen.pk == mine.pk else "The member is removed.")
            return redirect("home") if chosen.pk == mine.pk else redirect("team", account.public_id)
    except members.Refused as error:
        _refuse(change if change.is_bound else remove, error)
    context = {
        "membership": chosen,
        "person": User.objects.get(pk=chosen.user_id),
        "mine": chosen.pk == mine.pk,
        "last_owner": chosen.role == Membership.Role.OWNER and owners == 1,
        "change": change if chosen.role in members.RANKS[mine.role] else None,
        "remove": remove,
    }
    return pages.answer(request, "accounts/member.html", account=account, now=now, context=context)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def invited(request: HttpRequest, public_id: str, invitation_id: str) -> HttpResponse:
    """One open invitation: sent again, or taken back."""
    now, user = timezone.now(), pages.signed_in(request)
    with pages.tenant(request, public_id, managing=True) as account:
        role = Membership.objects.get(account=account, user=user).role
        invitation = Invitation.objects.filter(account=account, pk=invitation_id).first()
    if invitation is None:
        raise Http404("There is no such invitation here.")
    if invitation.role not in members.RANKS[role]:
        raise PermissionDenied("Your role in this account does not allow it.")
    invitation.account = account
    resend, revoke = forms.ResendForm.of(request), forms.RevokeForm.of(request)
    try:
        if resend.is_bound and resend.is_valid():
            members.resend(invitation=invitation, actor=user, now=now)
            messages.success(request, f"Sent to {invitation.email} again. The link in the earlier mail has ended.")
            return redirect("team", account.public_id)
        if revoke.is_bound and revoke.is_valid():
            members.revoke(invitation=invitation, actor=user, now=now)
            messages.success(request, f"The invitation of {invitation.email} is revoked.")
            return redirect("team", account.public_id)
    except members.Refused as error:
        _refuse(resend if resend.is_bound else revoke, error)
    context = {"invitation": invitation, "inviter": User.objects.get(pk=invitation.created_by_id), "resend": resend, "revoke": revoke}
    return pages.answer(request, "accounts/invited.html", account=account, now=now, context=context)


def _act(form: forms.StrictForm, account: Account, user: User, now: datetime) -> str:
    """What was done; empty where the form says why not."""
    try:
        if isinstance(form, forms.InviteForm):
            data = form.cleaned_data
            invitation = members.invite(account=account, email=data["email"], role=data["role"], actor=user, now=now)
            return f"{invitation.email} is invited as {invitation.role}. The link in the mail works for seven days."
        members.make_team(account=account, actor=user, now=now)
    except members.Refused as error:
        _refuse(form, error)
        return ""
    return "This is a team account now. Invite the first colleague."


def _refuse(form: forms.StrictForm, error: members.Refused) -> None:
    form.add_error(error.field, str(error))


def _may_change(role: str, membership: Membership, user: User) -> bool:
    return membership.user_id == user.pk or membership.role in members.RANKS[role]
