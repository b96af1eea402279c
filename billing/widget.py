"""The balance in somebody else's page: a small document that a product shows in a frame of its own, without sign-in or cookies.

    mint     POST /api/v1/billing/widget: the product's server asks for an address, with its key
    widget   GET /a/<account>/widget/?token=…: what the frame shows

The token in the address is the permission: signed by us, for one account, to read its balance, for ``LIFETIME`` at most and only as long as
the key that asked for it is good. Whatever is wrong with it, the answer is the same 404. Only pages from the product's allowed origins may
frame the document; it runs no script, and asks for nothing but its own style.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Final

from django.core import signing
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.clickjacking import xframe_options_exempt
from django.views.decorators.http import require_safe
from pydantic import Field

from accounts import api, api_keys, tenancy
from accounts.models import Account, ApiKey
from billing import balances
from pricing.models import Product

LIFETIME: Final = timedelta(hours=1)
_SALT: Final = "billing.widget"
#: An origin that may stand in a header as it is.
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")


class Mint(api.Command):
    """Asks for the address of the balance widget. An account key needs no `account`."""

    account: Annotated[str, Field(min_length=1, max_length=200)] | None = None


@api.endpoint(scope="billing:read")
def mint(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    body = api.parse(request, Mint)
    account = api.account_for(principal, body.account)
    now = timezone.now()
    token = signing.dumps([account.public_id, principal.key_id], salt=_SALT)
    address = reverse("widget", args=[account.public_id]) + f"?token={token}"
    return JsonResponse({"account": account.public_id, "url": request.build_absolute_uri(address), "expires_at": now + LIFETIME})


@require_safe
@never_cache
@xframe_options_exempt
def widget(request: HttpRequest, public_id: str) -> HttpResponse:
    """What is left, held and owed; nothing else. Only GET and HEAD, and no cookie is read or set."""
    now = timezone.now()
    account = _account(request.GET.get("token", ""), public_id)
    product = Product.objects.select_related("unit").get(pk=account.product_id)
    with tenancy.acting_as(account=account):
        wallets = balances.of_account(account, now=now)
    wallet = next((wallet for wallet in wallets if wallet.unit_id == product.unit_id), None)
    context = {"account": account, "product": product, "unit": product.unit, "wallet": wallet, "now": now}
    with timezone.override(account.time_zone):
        response = render(request, "billing/widget.html", context)
    framed_by = " ".join(_origins(product)) or "'none'"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {framed_by}"
    )
    response.headers["Referrer-Policy"] = "no-referrer"  # the address is the permission
    return response


def _account(token: str, public_id: str) -> Account:
    """The open account that the token and the address both name. :raises Http404: whatever is wrong, without a hint."""
    try:
        named, key_id = signing.loads(token, salt=_SALT, max_age=LIFETIME)
    except (signing.BadSignature, ValueError):
        raise Http404("There is no such page.") from None
    account = Account.objects.filter(public_id=public_id, closed_at=None).first() if named == public_id else None
    keys = ApiKey.objects.filter(Q(expires_at=None) | Q(expires_at__gt=timezone.now()), pk=key_id, revoked_at=None)
    if account is None or not keys.filter(product_id=account.product_id).exists():
        raise Http404("There is no such page.")
    return account


def _origins(product: Product) -> list[str]:
    return [origin for origin in product.allowed_origins if _ORIGIN.fullmatch(origin)]
