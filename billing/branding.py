"""What a page, a mail or a widget looks like: the product's brand, or a team's own where its plan is white-label.

:func:`of` decides it for all of them; templates call it by ``{% load brand %}{% brand product account as brand %}``.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings
from django.urls import reverse

from accounts import colours
from accounts.models import Account, Brand
from billing import subscriptions
from pricing.models import Product

FEATURE = "white_label"


@dataclass(frozen=True, slots=True)
class Look:
    """``colour`` is empty where the style sheet's own serves; ``logo`` is a path here, empty where there is none."""

    name: str
    colour: str
    logo: str

    @property
    def logo_url(self) -> str:
        """The logo's whole address, for mails and for other sites' pages."""
        return settings.PUBLIC_URL + self.logo if self.logo else ""

    @property
    def ink(self) -> str:
        """Text on a ground of just this colour, where there is no style sheet: in mails. White where there is no colour."""
        return colours.ink(self.colour) if self.colour else colours.WHITE


def of(*, product: Product, account: Account | None = None) -> Look:
    """The brand of ``account``, where it is a team that has one and its plan has ``white_label``; else that of ``product``. At most three
    queries, two of them only for teams that have a brand.

    What the account leaves open, its logo or its colour, is not filled up from the product: a white label shows nobody else's.
    """
    brands = Brand.objects.defer("logo")
    if account is not None and account.kind == Account.Kind.TEAM:
        own = brands.filter(account=account).first()
        if own is not None and (own.colour or own.logo_digest) and entitled(account):
            return Look(account.name, own.colour, _path(own))
    theirs = brands.filter(product=product).first()
    return Look(product.name, product.brand_colour, _path(theirs) if theirs else "")


def entitled(account: Account) -> bool:
    """Whether the account's plan has ``white_label``, switched on."""
    allowed = subscriptions.allowed(account=account)
    return allowed is not None and allowed.plan.flags.get(FEATURE, False)


def _path(brand: Brand) -> str:
    return reverse("logo", args=[brand.logo_digest]) if brand.logo_digest else ""
