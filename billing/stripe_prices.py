"""Which of our plans and packs a price at Stripe is.

A catalog names, for each plan and pack, the environment variable that holds its price id; after a comma follow those of earlier prices that
customers still pay. A price that was agreed with one customer is a row. Several packs may share one whose amount is chosen at checkout.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypeVar

from billing import stripe_api
from billing.models import StripePrice
from pricing.models import CreditPack, PlanVersion, Product

V = TypeVar("V", PlanVersion, CreditPack)


def plan_version(*, product: Product, price_id: str, at: datetime) -> PlanVersion | None:
    """The version of the plan with this price that was sold at ``at`` (of none yet, the first); None where the price is no plan's."""
    if (version := agreed(product=product, price_id=price_id)) is not None:
        return version
    versions = PlanVersion.objects.select_related("plan").filter(plan__product=product).exclude(stripe_price_setting="")
    return _sold([version for version in versions if _has(version.stripe_price_setting, price_id)], at)


def agreed(*, product: Product, price_id: str) -> PlanVersion | None:
    """The version that this price was made for, where it was agreed with one customer."""
    found = StripePrice.objects.select_related("plan_version__plan").filter(pk=price_id, plan_version__plan__product=product).first()
    return found.plan_version if found else None


def is_of_a_pack(*, product: Product, price_id: str) -> bool:
    return any(_has(pack.stripe_price_setting, price_id) for pack in _packs(product))


def pack(*, product: Product, price_id: str, amount: int, quantity: int, currency: str, at: datetime) -> tuple[CreditPack, int] | None:
    """The pack that costs ``amount`` at this price, and how many of it; None where none does. Packs off sale count: they were paid for."""
    by_slug: dict[str, list[CreditPack]] = {}
    for each in _packs(product):
        if _has(each.stripe_price_setting, price_id):
            by_slug.setdefault(each.slug, []).append(each)
    sold = [found for versions in by_slug.values() if (found := _sold(versions, at)) and found.currency == currency]
    for copies in dict.fromkeys((1, quantity)):
        for found in sorted(sold, key=lambda each: each.slug):
            if found.price_cents * copies == amount:
                return found, copies
    return None


def unavailable(*, price: stripe_api.Price | None, price_id: str, at: datetime) -> str:
    """Why a price that is sold today cannot be bought, for staff; empty where it can, or where the price is not sold today."""
    versions = PlanVersion.objects.exclude(stripe_price_setting="").filter(valid_from__lte=at).order_by("valid_from")
    plans = {each.plan_id: each for each in versions.select_related("plan__product")}
    rows = CreditPack.objects.exclude(stripe_price_setting="").filter(valid_from__lte=at, available=True).order_by("valid_from")
    packs = {(each.product_id, each.slug): each for each in rows.select_related("product")}
    offers: list[PlanVersion | CreditPack] = [*plans.values(), *packs.values()]
    sold = [each for each in offers if on_sale(each.stripe_price_setting) == price_id]
    if not sold:
        return ""
    names = ", ".join(str(each) for each in sold)
    if price is None or not price.is_sold:
        return f"Nobody can buy {names}: the price {price_id} is {'archived' if price else 'not there any more'}."
    for each in sold:
        interval = each.interval if isinstance(each, PlanVersion) else None
        asked = each.price_cents if price.amount is None and interval is None else price.amount
        if each.price_cents is not None and (asked, price.currency, price.interval) != (each.price_cents, each.currency, interval):
            says = f"{asked} {price.currency}, the catalog says {each.price_cents} {each.currency}"
            return f"Nobody can buy {each}: the price {price_id} is {says}."
    return ""


def on_sale(setting: str) -> str:
    """The id of the price that is sold today by this environment variable; empty where it names none."""
    return os.environ.get(setting, "").partition(",")[0].strip() if setting else ""


def named(setting: str) -> list[str]:
    """The ids of all prices that an environment variable names, those that are sold today first."""
    return [each for part in os.environ.get(setting, "").split(",") if (each := part.strip())] if setting else []


def _packs(product: Product) -> Iterable[CreditPack]:
    return CreditPack.objects.filter(product=product).exclude(stripe_price_setting="")


def _has(setting: str, price_id: str) -> bool:
    return bool(price_id) and price_id in [each.strip() for each in os.environ.get(setting, "").split(",")]


def _sold(versions: Sequence[V], at: datetime) -> V | None:
    ordered = sorted(versions, key=lambda version: version.valid_from)
    begun = [version for version in ordered if version.valid_from <= at]
    return begun[-1] if begun else next(iter(ordered), None)
