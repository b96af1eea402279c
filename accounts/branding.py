"""How an account's pages, or all of a product's, are made to look: a logo and a colour.

    dress         changes an account's own colour, logo or both
    dress_product changes a product's logo (its colour is in its catalog)
    logo          a logo, to anybody who has its address
    stylesheet    what a colour changes of our style sheet

Whether an account's own brand is shown is for :mod:`billing.branding`, which knows its plan.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from accounts import acts, colours, logos
from accounts.models import Account, Brand, User
from pricing.models import Product

_FOREVER: Final = "public, max-age=31536000, immutable"


def dress(*, account: Account, colour: str, logo: logos.Logo | None, keep_logo: bool, actor: User, now: datetime) -> Brand:
    """Gives ``account`` this colour (``#rrggbb``, or empty for the product's) and ``logo``; without one the present logo stays where it is
    to be kept, and else goes.
    """
    with transaction.atomic():
        brand = Brand.objects.select_for_update().filter(account=account).first() or Brand(account=account)
        brand.colour = colour
        acts.note(account=account, actor=actor, what="Changed the branding.", now=now)
        return _store(brand, logo, keep_logo, actor, now)


def dress_product(*, product: Product, logo: logos.Logo | None, actor: User, now: datetime) -> Brand:
    """Gives ``product`` this logo, or none."""
    with transaction.atomic():
        brand = Brand.objects.select_for_update().filter(product=product).first() or Brand(product=product)
        return _store(brand, logo, False, actor, now)


def _store(brand: Brand, logo: logos.Logo | None, keep_logo: bool, actor: User, now: datetime) -> Brand:
    if logo is not None:
        brand.logo, brand.logo_type, brand.logo_digest = logo.content, logo.type, logo.digest
    elif not keep_logo:
        brand.logo, brand.logo_type, brand.logo_digest = None, "", ""
    brand.updated_at, brand.updated_by = now, actor
    brand.save()
    return brand


@require_safe
def logo(request: HttpRequest, digest: str) -> HttpResponse:
    """The logo with this content. Mails show it to people who are not signed in, so its address is all that it takes. An image that was
    replaced is gone.
    """
    brand = Brand.objects.filter(logo_digest=digest).only("logo", "logo_type").first()
    if brand is None or brand.logo is None:
        raise Http404("There is no such logo.")
    headers = {
        "Cache-Control": _FOREVER,
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
        "Content-Disposition": "inline",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    return HttpResponse(bytes(brand.logo), content_type=brand.logo_type, headers=headers)


@require_safe
def stylesheet(request: HttpRequest, colour: str) -> HttpResponse:
    """The custom properties that the colour ``rrggbb`` changes, in light and in dark. The same for ever, so it is asked for once."""
    if not re.fullmatch(r"[0-9a-f]{6}", colour):
        raise Http404("There is no such colour.")
    return HttpResponse(colours.stylesheet(f"#{colour}"), content_type="text/css", headers={"Cache-Control": _FOREVER})
