"""Features that a plan switches on, such as ``api_access``: what an account has, and which plans would give it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from accounts.models import Account
from billing import subscriptions
from pricing import catalog
from pricing.models import Plan


@dataclass(frozen=True, slots=True)
class Feature:
    """``sold``: some plan of the product grants or withholds it; a feature that no plan speaks of is nobody's to withhold. ``included``:
    the account's plan grants it. ``plans``: names of plans on sale that grant it, the lowest first.
    """

    key: str
    sold: bool
    included: bool
    plans: tuple[str, ...]

    @property
    def open(self) -> bool:
        return self.included or not self.sold


def of(*, account: Account, key: str, now: datetime) -> Feature:
    """The feature ``key`` for ``account``. Call it outside of ``tenancy.acting_as``: plans are no tenant's."""
    allowed = subscriptions.allowed(account=account)
    included = allowed is not None and allowed.plan.flags.get(key, False)
    sold = key in catalog.flags(product_id=account.product_id)
    return Feature(key, sold, included, _granting(account.product_id, key, now) if sold and not included else ())


def _granting(product_id: int, key: str, now: datetime) -> tuple[str, ...]:
    names = []
    for slug, name in Plan.objects.filter(product_id=product_id, public=True, available=True).order_by("rank").values_list("slug", "name"):
        try:
            terms = catalog.plan_version(product_id=product_id, slug=slug, at=now)
        except catalog.NotInCatalog:
            continue  # it will be sold later
        if terms.flags.get(key, False):
            names.append(name)
    return tuple(names)
