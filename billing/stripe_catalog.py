"""Our catalog at Stripe: a product there for each plan and pack that has a price and names a setting, and a price for its present terms.

    push      makes Stripe sell what our catalog sells, or says what that would take
    settings  the environment lines that tell our processes of the prices

What is there is looked at each time, so that a push that broke off is simply done again. A price never changes at Stripe: for other terms a
new one is made, and the one before stays as it is for the customers who pay it. Ours is what carries our metadata: nothing else is touched.
Packs that share a setting share one price, whose amount is chosen when a pack is bought.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing import stripe_api
from pricing import catalog
from pricing.models import CreditPack, Plan, PlanVersion, Product

MARK = "tollgate"
#: Stands for the id of a price that a dry run did not make.
UNMADE = "price_…"


class NotOurs(Exception):
    """What has the id of one of our products at Stripe was not made by :func:`push`. The message names it."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is sold by one price at Stripe. ``earlier`` are our prices for former terms, the newest first; ``steps`` is what was done."""

    setting: str
    current: str
    earlier: Sequence[str]
    steps: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Offer:
    """A plan, a pack or several packs as Stripe is to sell them. ``key`` is the lookup key of the price, ``id`` the id of its product;
    ``cents`` None: the amount is chosen."""

    key: str
    name: str
    setting: str
    cents: int | None
    currency: str
    interval: str | None = None

    @property
    def id(self) -> str:
        return f"{MARK}_{self.key.replace(':', '_')}"

    @property
    def terms(self) -> str:
        if self.cents is None:
            return f"a chosen amount of {self.currency}"
        whole, part = divmod(self.cents, 100)
        return f"{whole}.{part:02} {self.currency}" + (f" a {self.interval}" if self.interval else "")

    def is_sold_by(self, price: stripe_api.Obj) -> bool:
        recurring = price.get("recurring") or {}
        interval = recurring.get("interval") if recurring.get("interval_count", 1) == 1 else "other"
        is_chosen = price.get("custom_unit_amount") is not None
        terms = price["unit_amount"], price["currency"], interval, is_chosen
        return terms == (self.cents, self.currency, self.interval, self.cents is None)

    @property
    def params(self) -> dict[str, Any]:
        amount: dict[str, Any] = {"custom_unit_amount": {"enabled": True}} if self.cents is None else {"unit_amount": self.cents}
        return amount | {"currency": self.currency} | ({"recurring": {"interval": self.interval}} if self.interval else {})


def push(*, product: Product, now: datetime, dry_run: bool) -> Sequence[Pushed]:
    """Brings Stripe to what ``product`` sells at ``now``. A dry run changes nothing and says the same steps. Calls the network.

    :raises NotOurs: nothing of that offer was changed.
    :raises stripe.StripeError: what was done until then is found done the next time.
    """
    return [_push(offer, dry_run) for offer in _offers(product, now)]


def settings(pushed: Iterable[Pushed]) -> dict[str, str]:
    """The value of each setting: present prices, then those that our processes know already and earlier ones, which customers still pay."""
    current: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for each in pushed:
        current.setdefault(each.setting, []).append(each.current)
        others.setdefault(each.setting, []).extend(each.earlier)
    known = {name: [each.strip() for each in os.environ.get(name, "").split(",") if each.strip()] for name in current}
    return {name: ",".join(dict.fromkeys([*current[name], *known[name], *others[name]])) for name in current}


def _offers(product: Product, now: datetime) -> Sequence[_Offer]:
    """Plans by their rank, then packs by their price."""
    offers = []
    for plan in Plan.objects.filter(product=product).order_by("rank", "slug"):
        version = plan.versions.filter(valid_from__lte=now).order_by("-version").first()
        if version is not None and version.stripe_price_setting and version.price_cents:
            offers.append(_of_plan(product, plan, version, version.price_cents))
    packs: dict[tuple[str, str], list[CreditPack]] = {}
    for pack in catalog.packs(product_id=product.pk, at=now):
        if pack.stripe_price_setting and pack.price_cents:
            packs.setdefault((pack.stripe_price_setting, pack.currency), []).append(pack)
    return offers + [_of_packs(product, *sharing) for sharing in packs.values()]


def _of_plan(product: Product, plan: Plan, version: PlanVersion, cents: int) -> _Offer:
    name = version.stripe_product or f"{product.name} {plan.name}"
    return _Offer(f"{product.slug}:plan:{plan.slug}", name, version.stripe_price_setting, cents, version.currency, version.interval)


def _of_packs(product: Product, first: CreditPack, *others: CreditPack) -> _Offer:
    setting, currency = first.stripe_price_setting, first.currency
    if others:
        return _Offer(f"{product.slug}:packs:{setting.lower()}:{currency}", f"{product.name} credits", setting, None, currency)
    return _Offer(f"{product.slug}:pack:{first.slug}", f"{product.name} {first.name}", setting, first.price_cents, currency)


def _push(offer: _Offer, dry_run: bool) -> Pushed:
    steps: list[str] = []

    def do(step: str, call: Callable[[], Any]) -> Any:
        steps.append(f"{offer.key}: {step}")
        return None if dry_run else call()

    v1 = stripe_api.client().v1
    metadata = {MARK: offer.key}
    found = stripe_api.product(offer.id)
    if found is None:
        do(f"make the product {offer.name}", lambda: v1.products.create({"id": offer.id, "name": offer.name, "metadata": metadata}))
    elif (found.get("metadata") or {}).get(MARK) != offer.key:
        raise NotOurs(f"{offer.id} at Stripe was not made by this command: rename it there, or the plan or pack here.")
    else:
        if not found["active"]:
            do("sell the product again", lambda: v1.products.update(offer.id, {"active": True}))
        if found["name"] != offer.name:
            do(f"rename the product to {offer.name}", lambda: v1.products.update(offer.id, {"name": offer.name}))
    prices = [each for each in stripe_api.prices(offer.id) if (each.get("metadata") or {}).get(MARK) == offer.key] if found else []
    fitting = sorted((each for each in prices if offer.is_sold_by(each)), key=lambda each: not each["active"])
    if not fitting:
        named: Any = {"product": offer.id, "lookup_key": offer.key, "transfer_lookup_key": True, "metadata": metadata}
        made = do(f"make the price {offer.terms}", lambda: v1.prices.create(named | offer.params))
        return Pushed(offer.setting, made.id if made else UNMADE, [each["id"] for each in prices], steps)
    price = fitting[0]
    if not price["active"]:
        do(f"sell {price['id']}, {offer.terms}, again", lambda: v1.prices.update(price["id"], {"active": True}))
    if price["lookup_key"] != offer.key:
        wish: Any = {"lookup_key": offer.key, "transfer_lookup_key": True}
        do(f"make {price['id']}, {offer.terms}, the present price", lambda: v1.prices.update(price["id"], wish))
    return Pushed(offer.setting, price["id"], [each["id"] for each in prices if each is not price], steps)
