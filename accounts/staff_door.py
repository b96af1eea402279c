"""Staff's door: nobody uses admin without a second factor, and nobody moves money hours after they signed in.

    second_factor   middleware: sends staff to set up their second factor, or to show it, before any page of admin
    fresh           for acts on money: who signed in or confirmed themselves longer than ``FRESH`` ago does so again, and goes on
    forget_factor   somebody lost their phone: they set up another one

All of it holds where ``STAFF_MFA_REQUIRED`` is on: everywhere but on a developer's machine and in the tests of other things. The factor
itself (TOTP and recovery codes) is allauth's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlencode

from allauth.account.authentication import get_authentication_records
from allauth.core.exceptions import ReauthenticationRequired
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from accounts import acts
from accounts.models import User

FRESH: Final = timedelta(minutes=5)


def second_factor(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware, behind the one that finds out who is signed in and the one of messages."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if settings.STAFF_MFA_REQUIRED and request.path.startswith(reverse("admin:index")):
            user = request.user
            if isinstance(user, User) and user.is_active and user.is_staff:
                if not Authenticator.objects.filter(user=user, type=Authenticator.Type.TOTP).exists():
                    messages.warning(request, "Staff pages need a second factor. Set it up here, with an app on your phone; then go on.")
                    return HttpResponseRedirect(reverse("mfa_activate_totp"))
                if not any(record.get("method") == "mfa" for record in get_authentication_records(request, user)):
                    query = urlencode({"next": request.get_full_path() if request.method == "GET" else reverse("admin:index")})
                    return HttpResponseRedirect(f"{reverse('mfa_reauthenticate')}?{query}")
        return get_response(request)

    return middleware


def fresh(request: HttpRequest, *, now: datetime) -> None:
    """:raises ReauthenticationRequired: it was longer than ``FRESH`` ago. allauth asks for the password and goes on with this request."""
    if not settings.STAFF_MFA_REQUIRED:
        return
    records = get_authentication_records(request, request.user if isinstance(request.user, User) else None)
    if not any(0 <= now.timestamp() - record["at"] < FRESH.total_seconds() for record in records):
        raise ReauthenticationRequired


def forget_factor(*, user: User, actor: User, reason: str, now: datetime) -> bool:
    """Removes the second factor and the recovery codes of ``user``; False where there were none."""
    with transaction.atomic():
        removed, _ = Authenticator.objects.filter(user=user).delete()
        if removed:
            acts.note(actor=actor, subject=user, what=f"Forgot the second factor of {user.email}: {reason}", reason=reason, now=now)
    return bool(removed)
