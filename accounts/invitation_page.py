"""Where the link of an invitation leads: to sign in or to sign up, and then into the team. See :mod:`accounts.members`."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts import forms, members
from accounts.models import User


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """To look at it changes nothing, since mail programs open links by themselves; the button accepts."""
    now = timezone.now()
    user = request.user if isinstance(request.user, User) else None
    form = forms.AcceptForm.of(request)
    try:
        if user is not None and form.is_bound and form.is_valid():
            membership = members.accept(token=token, user=user, now=now)
            messages.success(request, f"You belong to {membership.account.name} now.")
            return redirect("overview", membership.account.public_id)
        invited = members.read(token=token, now=now)
    except members.NoInvitation as error:
        return render(request, "accounts/no_invitation.html", {"why": str(error)}, status=404)
    theirs = user is not None and members.has_address(user, invited.email)
    context = {"invitation": invited, "product": invited.account.product, "token": token, "form": form, "theirs": theirs, "now": now}
    return render(request, "accounts/invitation.html", context, status=422 if request.method == "POST" else 200)
