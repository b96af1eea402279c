"""An account's own API keys, where its plan has ``api_access``. The keys of its product are no customer's, and are not shown."""

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

from accounts import api_keys, forms, pages
from accounts.models import Account, ApiKey
from billing import features

FEATURE: Final = "api_access"
#: Keys that ended are shown to recognise them in a log; the latest are enough.
ENDED_SHOWN: Final = 20


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def api_keys_page(request: HttpRequest, public_id: str) -> HttpResponse:
    """The list, and the form for a new key. The key itself is in the answer to that form and nowhere else: not in an address, a cookie or
    a session. To send the form again makes no second key, because two working keys never have one name.
    """
    now, user = timezone.now(), pages.signed_in(request)
    with pages.tenant(request, public_id, managing=request.method == "POST") as account:
        manages = pages.manages(user, account)
        keys = _readable(account)
    feature = features.of(account=account, key=FEATURE, now=now)
    allowed = feature.open and account.closed_at is None
    form = forms.KeyForm.of(request, scopes=forms.SCOPES)
    issued = None
    if form.is_bound:
        if not allowed:
            raise PermissionDenied("The plan of this account has no API access.")
        if form.is_valid():
            data = form.cleaned_data
            try:
                issued = api_keys.issue_own(
                    account=account, name=data["name"], scopes=data["scopes"], actor=user, now=now, expires_at=form.expires_at(now)
                )
            except api_keys.InvalidGrant as error:
                form.add_error("name", str(error))
            else:
                keys.insert(0, issued.key)
                form = forms.KeyForm(scopes=forms.SCOPES)
    working = [key for key in keys if not _ended(key, now)]
    context = {
        "working": [(key, _words(key)) for key in working],
        "ended": [key for key in keys if _ended(key, now)][:ENDED_SHOWN],
        "manages": manages,
        "allowed": allowed,
        "feature": feature,
        "form": form,
        "issued": issued,
    }
    response = pages.answer(request, "accounts/api_keys.html", account=account, now=now, context=context)
    if issued is not None:
        response.status_code = 201
    return response


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def revoke(request: HttpRequest, public_id: str, key_id: str) -> HttpResponse:
    """Says what ends with the key, and ends it. Revoking needs no plan: a key can always be stopped."""
    now, user = timezone.now(), pages.signed_in(request)
    with pages.tenant(request, public_id, managing=True) as account:
        key = next((each for each in _readable(account) if each.pk == int(key_id)), None)
    if key is None:
        raise Http404("There is no such key here.")
    key.account = account
    form = forms.RevokeForm.of(request)
    if form.is_bound and form.is_valid():
        api_keys.revoke_own(key=key, actor=user, now=now)
        messages.success(request, f"{key.name} is revoked. It is refused everywhere from now on.")
        return redirect("api_keys", account.public_id)
    context = {"key": key, "words": _words(key), "form": form, "ended": _ended(key, now)}
    return pages.answer(request, "accounts/revoke_key.html", account=account, now=now, context=context)


def _readable(account: Account) -> list[ApiKey]:
    """The account's keys, without what only the program may read of them; the newest first."""
    return list(ApiKey.objects.filter(account=account).defer("digest"))


def _ended(key: ApiKey, now: datetime) -> bool:
    return key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now)


def _words(key: ApiKey) -> list[str]:
    return [forms.SCOPES[scope] for scope in forms.SCOPES if scope in key.scopes]
