"""Every address of the API on one page, and what is the same for all of them: lists, ``expand``, parameters that nobody knows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from stripe_double import catalog, checkout, collection, customers, errors, invoices, payments, subscriptions, webhooks
from stripe_double.params import Params
from stripe_double.store import Obj, Store, listed, public

Handler = Callable[..., Obj]
EXPANDED_AT_MOST = 20


def retrieve(kind: str, *, deleted: bool = False) -> Handler:
    return lambda store, p, id: store.get(kind, id, deleted=deleted)


def listing(
    kind: str, *filters: str, lists: Sequence[str] = (), flags: Sequence[str] = (), tail: Callable[[Params], str] | None = None
) -> Handler:
    """The list of a kind, newest first. A filter is a parameter, or ``parameter=path.in.the.object``; ``lists`` take several values."""

    def handler(store: Store, p: Params, owner: str | None = None) -> Obj:
        where: Obj = {"customer": owner} if owner else {}
        clauses = tail(p) if tail else ""
        values: list[str | int] = []
        for name, path in (_split(wish) for wish in filters):
            if value := p.text(name):
                where[path] = value
        where |= {name: p.flag(name) for name in flags if p.has(name)}
        for name, path in (_split(wish) for wish in lists):
            if wanted := p.texts(name):
                clauses += f" and json_extract(body, '$.{path}') in ({', '.join('?' for _ in wanted)})"
                values += wanted
        created = p.child("created")
        for name, sign in (("gt", ">"), ("gte", ">="), ("lt", "<"), ("lte", "<=")):
            if created and (at := created.number(name)) is not None:
                clauses += f" and json_extract(body, '$.created') {sign} ?"
                values.append(at)
        return _page(store, p, kind, where, clauses, values)

    return handler


def _split(wish: str) -> tuple[str, str]:
    name, _, path = wish.partition("=")
    return name, path or name


def _page(store: Store, p: Params, kind: str, where: Obj, clauses: str, values: list[str | int]) -> Obj:
    limit = p.number("limit", 10, least=1, most=100) or 10
    after, before = p.text("starting_after"), p.text("ending_before")
    if after and before:
        raise errors.invalid("Pass starting_after or ending_before, not both.", param="starting_after")
    order = "desc"
    for name, cursor, sign in (("starting_after", after, "<"), ("ending_before", before, ">")):
        if cursor:
            store.get(kind, cursor, param=name, deleted=True)
            clauses += f" and seq {sign} (select seq from object where kind = ? and id = ?)"  # noqa: S608
            values += [kind, cursor]
            order = "asc" if name == "ending_before" else "desc"
    found = store.find(kind, where, tail=f"{clauses} order by seq {order} limit ?", tail_values=(*values, limit + 1))
    more, found = len(found) > limit, found[:limit]
    return listed([public(obj) for obj in (found if order == "desc" else found[::-1])], "", more=more)


def _subscription_tail(p: Params) -> str:
    status = p.text("status", choices=("all", "ended", *collection.ALIVE, "canceled", "incomplete_expired"))
    ended = "json_extract(body, '$.status') in ('canceled', 'incomplete_expired')"
    clause = {None: f"and not {ended}", "all": "", "ended": f"and {ended}"}.get(status, f"and json_extract(body, '$.status') = '{status}'")
    if price := p.text("price"):
        if not re.fullmatch(r"[\w-]+", price):
            raise errors.missing_resource("price", price, param="price")
        clause += f" and exists (select 1 from json_each(body, '$.items.data') where json_extract(value, '$.price.id') = '{price}')"  # noqa: S608
    return clause


def _invoice_payment_tail(p: Params) -> str:
    child = p.child("payment")
    if not child:
        return ""
    child.text("type", choices=("payment_intent",))
    intent = child.text("payment_intent") or ""
    if not re.fullmatch(r"[\w-]+", intent):
        raise errors.missing_resource("payment_intent", intent, param="payment[payment_intent]")
    return f"and json_extract(body, '$.payment.payment_intent') = '{intent}'"


def invoice_lines(store: Store, p: Params, id: str) -> Obj:
    p.known("limit")
    return dict(store.get("invoice", id)["lines"])


def _no_features(store: Store, p: Params, product: str) -> Obj:
    """dj-stripe asks for them with every product."""
    store.get("product", product)
    p.known("limit")
    return listed([], "")


def _methods_of(store: Store, p: Params, customer: str) -> Obj:
    store.get("customer", customer)
    return _LISTS["payment_method"](store, p, customer)


_LISTS: dict[str, Handler] = {
    "payment_method": listing("payment_method", "customer", "type"),
    "invoice_payment": listing("invoice_payment", "invoice", "status", tail=_invoice_payment_tail),
}

_INTENT, _SETUP, _SUBSCRIPTION, _INVOICE = "/v1/payment_intents", "/v1/setup_intents", "/v1/subscriptions", "/v1/invoices"
_ITEM, _METHOD, _CONFIG, _SESSION = (
    "/v1/subscription_items",
    "/v1/payment_methods",
    "/v1/billing_portal/configurations",
    "/v1/checkout/sessions",
)

ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/v1/account", customers.account),
    ("GET", "/v1/accounts/{id}", lambda store, p, id: customers.account(store, p)),
    ("GET", "/v1/balance", payments.balance),
    ("GET", "/v1/balance_transactions", listing("balance_transaction", "type", "source", "currency")),
    ("GET", "/v1/balance_transactions/{id}", retrieve("balance_transaction")),
    ("POST", "/v1/products", catalog.create_product),
    ("GET", "/v1/products", listing("product", lists=("ids=id",), flags=("active",))),
    ("GET", "/v1/products/{id}", retrieve("product", deleted=True)),
    ("POST", "/v1/products/{id}", catalog.update_product),
    ("DELETE", "/v1/products/{id}", catalog.delete_product),
    ("GET", "/v1/products/{id}/features", _no_features),
    ("POST", "/v1/prices", catalog.create_price),
    ("GET", "/v1/prices", listing("price", "product", "currency", "type", lists=("lookup_keys=lookup_key",), flags=("active",))),
    ("GET", "/v1/prices/{id}", retrieve("price")),
    ("POST", "/v1/prices/{id}", catalog.update_price),
    ("GET", "/v1/plans/{id}", catalog.get_plan),
    ("POST", "/v1/coupons", catalog.create_coupon),
    ("GET", "/v1/coupons", listing("coupon")),
    ("GET", "/v1/coupons/{id}", retrieve("coupon")),
    ("POST", "/v1/coupons/{id}", catalog.update_named("coupon")),
    ("DELETE", "/v1/coupons/{id}", catalog.delete_coupon),
    ("POST", "/v1/promotion_codes", catalog.create_promotion_code),
    ("GET", "/v1/promotion_codes", listing("promotion_code", "code", "coupon=promotion.coupon", "customer", flags=("active",))),
    ("GET", "/v1/promotion_codes/{id}", retrieve("promotion_code")),
    ("POST", "/v1/promotion_codes/{id}", catalog.update_named("promotion_code")),
    ("POST", "/v1/customers", customers.add),
    ("GET", "/v1/customers", listing("customer", "email")),
    ("GET", "/v1/customers/{id}", retrieve("customer", deleted=True)),
    ("POST", "/v1/customers/{id}", customers.update),
    ("DELETE", "/v1/customers/{id}", subscriptions.delete_customer),
    ("GET", "/v1/customers/{id}/payment_methods", _methods_of),
    ("GET", "/v1/customers/{id}/payment_methods/{method}", customers.get_method),
    ("GET", "/v1/customers/{id}/tax_ids", listing("tax_id")),
    ("POST", "/v1/customers/{id}/tax_ids", lambda store, p, id: customers.create_tax_id(store, p, id)),
    ("DELETE", "/v1/customers/{id}/tax_ids/{tax}", customers.delete_tax_id),
    ("GET", "/v1/tax_ids/{id}", retrieve("tax_id")),
    ("POST", _METHOD, customers.create_method),
    ("GET", _METHOD, _LISTS["payment_method"]),
    ("GET", _METHOD + "/{id}", retrieve("payment_method")),
    ("POST", _METHOD + "/{id}", customers.update_method),
    ("POST", _METHOD + "/{id}/attach", customers.attach_route),
    ("POST", _METHOD + "/{id}/detach", customers.detach),
    ("POST", _SETUP, customers.create_setup),
    ("GET", _SETUP, listing("setup_intent", "customer", "payment_method")),
    ("GET", _SETUP + "/{id}", retrieve("setup_intent")),
    ("POST", _SETUP + "/{id}/confirm", customers.confirm_setup),
    ("POST", _SETUP + "/{id}/cancel", customers.cancel_setup),
    ("POST", _INTENT, payments.create),
    ("GET", _INTENT, listing("payment_intent", "customer")),
    ("GET", _INTENT + "/{id}", retrieve("payment_intent")),
    ("POST", _INTENT + "/{id}", payments.update),
    ("POST", _INTENT + "/{id}/confirm", checkout.confirm_intent),
    ("POST", _INTENT + "/{id}/cancel", payments.cancel),
    ("GET", "/v1/charges", listing("charge", "customer", "payment_intent")),
    ("GET", "/v1/charges/{id}", retrieve("charge")),
    ("POST", "/v1/charges/{id}", payments.update_charge),
    ("POST", "/v1/refunds", payments.create_refund),
    ("GET", "/v1/refunds", listing("refund", "charge", "payment_intent")),
    ("GET", "/v1/refunds/{id}", retrieve("refund")),
    ("POST", "/v1/refunds/{id}", payments.update_refund),
    ("GET", "/v1/disputes", listing("dispute", "charge", "payment_intent")),
    ("GET", "/v1/disputes/{id}", retrieve("dispute")),
    ("POST", "/v1/disputes/{id}", payments.update_dispute),
    ("POST", "/v1/disputes/{id}/close", payments.close_dispute_route),
    ("POST", _SUBSCRIPTION, subscriptions.create),
    ("GET", _SUBSCRIPTION, listing("subscription", "customer", "collection_method", tail=_subscription_tail)),
    ("GET", _SUBSCRIPTION + "/{id}", retrieve("subscription")),
    ("POST", _SUBSCRIPTION + "/{id}", subscriptions.update),
    ("DELETE", _SUBSCRIPTION + "/{id}", subscriptions.cancel),
    ("POST", _SUBSCRIPTION + "/{id}/resume", subscriptions.resume),
    ("GET", _ITEM, subscriptions.list_items),
    ("GET", _ITEM + "/{id}", subscriptions.get_item),
    ("POST", _ITEM + "/{id}", subscriptions.update_item),
    ("POST", "/v1/invoiceitems", invoices.create_item),
    ("GET", "/v1/invoiceitems", listing("invoiceitem", "customer", "invoice")),
    ("GET", "/v1/invoiceitems/{id}", retrieve("invoiceitem")),
    ("POST", "/v1/invoiceitems/{id}", invoices.update_item),
    ("DELETE", "/v1/invoiceitems/{id}", invoices.delete_item),
    ("POST", _INVOICE, invoices.create),
    ("POST", _INVOICE + "/create_preview", subscriptions.preview),
    (
        "GET",
        _INVOICE,
        listing("invoice", "customer", "status", "collection_method", "subscription=parent.subscription_details.subscription"),
    ),
    ("GET", _INVOICE + "/{id}", retrieve("invoice")),
    ("POST", _INVOICE + "/{id}", invoices.update),
    ("DELETE", _INVOICE + "/{id}", invoices.delete),
    ("GET", _INVOICE + "/{id}/lines", invoice_lines),
    ("POST", _INVOICE + "/{id}/finalize", invoices.finalize_route),
    ("POST", _INVOICE + "/{id}/pay", collection.pay_route),
    ("POST", _INVOICE + "/{id}/send", invoices.send),
    ("POST", _INVOICE + "/{id}/void", invoices.void),
    ("POST", _INVOICE + "/{id}/mark_uncollectible", invoices.write_off),
    ("GET", "/v1/invoice_payments", _LISTS["invoice_payment"]),
    ("GET", "/v1/invoice_payments/{id}", retrieve("invoice_payment")),
    ("POST", _SESSION, checkout.create),
    ("GET", _SESSION, listing("checkout.session", "customer", "payment_intent", "subscription", "status")),
    ("GET", _SESSION + "/{id}", retrieve("checkout.session")),
    ("POST", _SESSION + "/{id}", checkout.update),
    ("POST", _SESSION + "/{id}/expire", checkout.expire_route),
    ("GET", _SESSION + "/{id}/line_items", checkout.get_line_items),
    ("POST", "/v1/billing_portal/sessions", checkout.create_portal),
    ("POST", _CONFIG, checkout.add_configuration),
    ("GET", _CONFIG, listing("billing_portal.configuration", flags=("active", "is_default"))),
    ("GET", _CONFIG + "/{id}", retrieve("billing_portal.configuration")),
    ("POST", _CONFIG + "/{id}", checkout.update_configuration),
    ("GET", "/v1/events", listing("event", "type", lists=("types=type",))),
    ("GET", "/v1/events/{id}", retrieve("event")),
    ("POST", "/v1/webhook_endpoints", webhooks.create),
    ("GET", "/v1/webhook_endpoints", listing("webhook_endpoint")),
    ("GET", "/v1/webhook_endpoints/{id}", retrieve("webhook_endpoint")),
    ("POST", "/v1/webhook_endpoints/{id}", webhooks.update),
    ("DELETE", "/v1/webhook_endpoints/{id}", webhooks.delete),
]
_COMPILED = [(method, re.compile(re.sub(r"\{\w+\}", "([^/]+)", path)), handler) for method, path, handler in ROUTES]


def route(method: str, path: str) -> tuple[Handler, tuple[str, ...]]:
    """:raises StripeError: 404 for an address that is not here."""
    for its_method, pattern, handler in _COMPILED:
        if method == its_method and (found := pattern.fullmatch(path)):
            return handler, found.groups()
    raise errors.invalid(f"Unrecognized request URL ({method}: {path[:200]}).", status=404)


def call(store: Store, handler: Handler, ids: tuple[str, ...], p: Params, path: str) -> Obj:
    """Run a handler inside the transaction of the caller; its answer as the client is to see it."""
    wishes = p.texts("expand")
    found = handler(store, p, *ids)
    if unknown := next(p.unknown(), None):
        raise errors.invalid(f"Received unknown parameter: {unknown}", param=unknown, code="parameter_unknown")
    if found["object"] == "list":
        found = found | {"url": path}
    answer: Obj = json.loads(json.dumps(public(found)))
    if len(wishes) > EXPANDED_AT_MOST:
        raise errors.invalid("Too many properties to expand.", param="expand")
    for wish in wishes:
        _expand(store, answer, wish.split("."), wish)
    return answer


# What an object has only when it is asked for
_INCLUDED: dict[tuple[str, str], Callable[[Store, Obj], Obj | list[Obj] | None]] = {
    ("customer", "subscriptions"): lambda store, obj: _all(store, "subscription", customer=obj["id"]),
    ("customer", "sources"): lambda store, obj: listed([], f"/v1/customers/{obj['id']}/sources"),
    ("customer", "tax_ids"): lambda store, obj: _all(store, "tax_id", customer=obj["id"]),
    ("price", "currency_options"): lambda store, obj: {obj["currency"]: catalog.currency_option(obj)},
    ("price", "tiers"): lambda store, obj: None,
    ("coupon", "applies_to"): lambda store, obj: None,
    ("coupon", "currency_options"): lambda store, obj: None,
    ("charge", "refunds"): lambda store, obj: _all(store, "refund", charge=obj["id"]),
    ("invoice", "payments"): lambda store, obj: _all(store, "invoice_payment", invoice=obj["id"]),
    ("", "breakdown"): lambda store, obj: {"discounts": [], "taxes": []},  # of a session's total_details
    ("item", "discounts"): lambda store, obj: [],
    ("checkout.session", "line_items"): lambda store, obj: checkout.line_items(store, store.get("checkout.session", obj["id"])),
}


def _all(store: Store, kind: str, **where: str) -> Obj:
    return listed([public(obj) for obj in store.find(kind, where)[:10]], f"/v1/{kind}s")


def _expand(store: Store, value: Any, path: list[str], wish: str) -> None:
    head, rest = path[0], path[1:]
    if isinstance(value, list):
        for entry in value:
            _expand(store, entry, path, wish)
        return
    if not isinstance(value, dict) or value.get("deleted"):
        return
    include = _INCLUDED.get((value.get("object", ""), head))
    if head not in value and include is None:
        raise errors.invalid(f"This property cannot be expanded ({wish}).", param="expand")
    if head not in value and include:
        value[head] = json.loads(json.dumps(include(store, value)))
    value[head] = _whole(store, value.get(head), wish, last=not rest)
    if rest:
        _expand(store, value[head], rest, wish)


def _whole(store: Store, value: Any, wish: str, *, last: bool) -> Any:
    """The object or objects that ``value`` names."""
    if isinstance(value, list) and last:
        return [_whole(store, entry, wish, last=last) for entry in value]
    if not isinstance(value, str):
        return value
    if (found := store.lookup(value)) is None:
        raise errors.invalid(f"This property cannot be expanded ({wish}).", param="expand")
    return json.loads(json.dumps(public(found)))
