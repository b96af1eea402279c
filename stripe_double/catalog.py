"""What is sold: products, prices, and the coupons, promotion codes and discounts that make them cheaper."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from stripe_double import errors, periods
from stripe_double.params import Params
from stripe_double.store import Obj, Store

INTERVALS = ("day", "week", "month", "year")


def create_product(store: Store, p: Params) -> Obj:
    product = store.new("product", "prod", name=p.need("name"), active=p.flag("active", True), metadata=p.metadata())
    product["id"] = p.text("id") or product["id"]
    product |= dict.fromkeys(
        ("default_price", "description", "package_dimensions", "shippable", "statement_descriptor", "unit_label", "url")
    )
    product |= {"images": p.texts("images"), "marketing_features": [], "tax_code": p.text("tax_code"), "type": "service"}
    product["updated"] = product["created"]
    p.put(product, "description", "statement_descriptor", "unit_label", "url")
    store.add(product, "product.created")
    if data := p.child("default_price_data"):
        product["default_price"] = _add_price(store, data, product["id"])["id"]
        store.save(product)
    return product


def update_product(store: Store, p: Params, id: str) -> Obj:
    product = store.get("product", id)
    product |= {"active": p.flag("active", product["active"]), "metadata": p.metadata(product["metadata"])}
    if p.has("name"):
        product["name"] = p.need("name")
    if p.has("images"):
        product["images"] = p.texts("images")
    p.put(product, "description", "statement_descriptor", "unit_label", "url", "tax_code")
    if (price := p.text("default_price")) and store.get("price", price, param="default_price")["product"] == id:
        product["default_price"] = price
    return store.save(product, "product.updated")


def delete_product(store: Store, p: Params, id: str) -> Obj:
    product = store.get("product", id)
    if store.find("price", {"product": id}):
        raise errors.invalid("This product cannot be deleted because it has one or more user-created prices.")
    return store.delete(product, "product.deleted")


def create_price(store: Store, p: Params) -> Obj:
    if data := p.child("product_data"):
        product = create_product(store, data)["id"]
    else:
        product = store.get("product", p.need("product"), param="product")["id"]
    return _add_price(store, p, product)


def inline_price(store: Store, p: Params) -> Obj:
    """The price of a ``price_data``: a row like the others, but not active."""
    price = create_price(store, p)
    price["active"] = False
    return store.save(price)


def _add_price(store: Store, p: Params, product: str) -> Obj:
    price = store.new("price", "price", product=product, currency=p.need("currency").lower(), active=p.flag("active", True))
    price |= {"billing_scheme": "per_unit", "metadata": p.metadata(), "nickname": p.text("nickname"), "recurring": None}
    price |= {"tiers_mode": None, "transform_quantity": None, "custom_unit_amount": None, "lookup_key": None}
    price["tax_behavior"] = p.text("tax_behavior", "unspecified", choices=("exclusive", "inclusive", "unspecified"))
    if recurring := p.child("recurring"):
        price["recurring"] = {
            "interval": recurring.need("interval", choices=INTERVALS),
            "interval_count": recurring.number("interval_count", 1, least=1, most=1095),
            "meter": None,
            "trial_period_days": recurring.number("trial_period_days"),
            "usage_type": recurring.text("usage_type", "licensed", choices=("licensed",)),
        }
    price["type"] = "recurring" if price["recurring"] else "one_time"
    if (custom := p.child("custom_unit_amount")) and custom.flag("enabled"):
        price["custom_unit_amount"] = {name: custom.number(name, least=0) for name in ("maximum", "minimum", "preset")}
    fraction = p.decimal("unit_amount_decimal", least=Decimal(0), most=Decimal(99_999_999))
    if fraction is not None and fraction != int(fraction):
        raise errors.invalid("The double has whole cents only.", param="unit_amount_decimal")
    if price["custom_unit_amount"]:
        price |= {"unit_amount": None, "unit_amount_decimal": None}
    else:
        price["unit_amount"] = int(fraction) if fraction is not None else p.need_number("unit_amount")
        price["unit_amount_decimal"] = str(price["unit_amount"])
    _take_lookup_key(store, p, price)
    return store.add(price, "price.created")


def update_price(store: Store, p: Params, id: str) -> Obj:
    price = store.get("price", id)
    price |= {"active": p.flag("active", price["active"]), "metadata": p.metadata(price["metadata"])}
    p.put(price, "nickname", "tax_behavior")
    _take_lookup_key(store, p, price)
    return store.save(price, "price.updated")


def _take_lookup_key(store: Store, p: Params, price: Obj) -> None:
    transfer = p.flag("transfer_lookup_key")
    if not (key := p.text("lookup_key", longest=200)):
        return
    for other in store.find("price", {"lookup_key": key}):
        if other["id"] != price["id"]:
            if not transfer:
                raise errors.invalid(f"A price ({other['id']}) already uses that lookup key.", param="lookup_key")
            other["lookup_key"] = None
            store.save(other, "price.updated")
    price["lookup_key"] = key


def currency_option(price: Obj) -> Obj:
    """The price in its one currency, as ``currency_options`` has it."""
    return {name: price[name] for name in ("custom_unit_amount", "tax_behavior", "unit_amount", "unit_amount_decimal")}


def plan(price: Obj) -> Obj:
    """A recurring price under its old name, which subscription items still carry."""
    same = {name: price[name] for name in ("id", "active", "created", "currency", "livemode", "metadata", "nickname", "product")}
    recurring = {name: price["recurring"][name] for name in ("interval", "interval_count", "meter", "trial_period_days", "usage_type")}
    amounts = {"amount": price["unit_amount"], "amount_decimal": price["unit_amount_decimal"], "billing_scheme": price["billing_scheme"]}
    return same | recurring | amounts | {"object": "plan", "tiers_mode": None, "transform_usage": None}


def get_plan(store: Store, p: Params, id: str) -> Obj:
    price = store.get("price", id)
    if not price["recurring"]:
        raise errors.missing_resource("plan", id)
    return plan(price)


def create_coupon(store: Store, p: Params) -> Obj:
    coupon = store.new("coupon", "coupon", name=p.text("name"), metadata=p.metadata(), times_redeemed=0, valid=True)
    coupon["id"] = p.text("id") or coupon["id"]
    percent = p.decimal("percent_off", least=Decimal("0.01"), most=Decimal(100))
    coupon |= {"percent_off": None if percent is None else float(percent), "amount_off": p.number("amount_off", least=1)}
    if (coupon["percent_off"] is None) == (coupon["amount_off"] is None):
        raise errors.invalid("You must pass exactly one of percent_off and amount_off.", param="percent_off")
    coupon["currency"] = p.need("currency").lower() if coupon["amount_off"] else None
    coupon["duration"] = p.text("duration", "once", choices=("forever", "once", "repeating"))
    coupon["duration_in_months"] = p.need_number("duration_in_months", least=1) if coupon["duration"] == "repeating" else None
    coupon |= {"max_redemptions": p.number("max_redemptions", least=1), "redeem_by": p.number("redeem_by", least=1)}
    return store.add(coupon, "coupon.created")


def update_named(kind: str) -> Callable[[Store, Params, str], Obj]:
    """The update of an object of which little may change: coupons and promotion codes."""

    def update(store: Store, p: Params, id: str) -> Obj:
        obj = store.get(kind, id)
        obj["metadata"] = p.metadata(obj["metadata"])
        if kind == "coupon":
            p.put(obj, "name")
        else:
            obj["active"] = p.flag("active", obj["active"])
        return store.save(obj, f"{kind}.updated")

    return update


def delete_coupon(store: Store, p: Params, id: str) -> Obj:
    return store.delete(store.get("coupon", id), "coupon.deleted")


def create_promotion_code(store: Store, p: Params) -> Obj:
    promotion = p.child("promotion")
    coupon = store.get("coupon", promotion.need("coupon") if promotion else p.need("promotion"), param="promotion[coupon]")
    if promotion:
        promotion.text("type", choices=("coupon",))
    code = store.new("promotion_code", "promo", active=p.flag("active", True), metadata=p.metadata(), times_redeemed=0)
    code |= {"code": p.text("code") or code["id"][-8:].upper(), "customer": p.text("customer"), "customer_account": None}
    code |= {"expires_at": p.number("expires_at"), "max_redemptions": p.number("max_redemptions", least=1)}
    code["promotion"] = {"type": "coupon", "coupon": coupon["id"]}
    code["restrictions"] = {"first_time_transaction": False, "minimum_amount": None, "minimum_amount_currency": None}
    if store.find("promotion_code", {"code": code["code"], "active": True}):
        raise errors.invalid("An active promotion code with that code already exists.", param="code")
    return store.add(code, "promotion_code.created")


def discounts(store: Store, p: Params, customer: str | None, **target: str | None) -> list[str]:
    """Redeem the coupons and promotion codes of the list ``discounts``; the ids of the new discounts."""
    return [redeem(store, offer_of(store, wish), customer, **target)["id"] for wish in p.children("discounts")]


def offer_of(store: Store, wish: Params) -> Obj:
    """The coupon or promotion code that one entry of ``discounts`` names, if it can be redeemed."""
    for kind in ("promotion_code", "coupon"):
        if id := wish.text(kind):
            return redeemable(store, store.get(kind, id, param=wish.path(kind)))
    raise errors.invalid("Pass a coupon or a promotion_code.", param=wish.path("coupon"), code="parameter_missing")


def coupon_of(store: Store, offer: Obj) -> Obj:
    return offer if offer["object"] == "coupon" else store.get("coupon", offer["promotion"]["coupon"])


def redeemable(store: Store, offer: Obj) -> Obj:
    """:raises StripeError: 400 for an offer that is used up, over or switched off."""
    for one in (offer, coupon_of(store, offer)):
        most, until = one["max_redemptions"], one.get("redeem_by") or one.get("expires_at")
        if (most and one["times_redeemed"] >= most) or (until and until <= store.now()) or not one.get("active", True):
            message = f"This {offer['object'].replace('_', ' ')} cannot be redeemed any more."
            raise errors.invalid(message, param="discounts", code="coupon_expired")
    return offer


def redeem(store: Store, offer: Obj, customer: str | None, **target: str | None) -> Obj:
    """Count the redemption of a coupon or promotion code; the discount that it gives."""
    coupon, code = coupon_of(store, redeemable(store, offer)), None
    coupon["times_redeemed"] += 1
    store.save(coupon)
    if offer["object"] == "promotion_code":
        offer["times_redeemed"] += 1
        code = store.save(offer)["id"]
    discount: Obj = {"id": store.new("discount", "di")["id"], "object": "discount", "customer": customer, "customer_account": None}
    discount |= {"checkout_session": None, "invoice": None, "invoice_item": None, "subscription": None, "subscription_item": None} | target
    discount |= {"promotion_code": code, "source": {"type": "coupon", "coupon": coupon["id"]}, "start": store.now(), "end": None}
    if coupon["duration"] == "repeating":
        discount["end"] = periods.boundary(store.now(), "month", coupon["duration_in_months"], 1)
    return store.add(discount, "customer.discount.created")


def reduction(store: Store, discount: Obj, subtotal: int) -> int:
    """How many cents the discount takes off ``subtotal`` now: rounded half up, and never more than all of it."""
    coupon = store.get("coupon", discount["source"]["coupon"], deleted=True)
    if subtotal <= 0 or (discount["end"] and discount["end"] <= store.now()):
        return 0
    if coupon["amount_off"]:
        return min(int(coupon["amount_off"]), subtotal)
    return periods.share(subtotal, int(Decimal(str(coupon["percent_off"])) * 100), 10_000)
