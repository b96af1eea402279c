"""The checker of the contract notices what is wrong; what it checks is everything that the other tests leave in their doubles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stripe_double.api import ROUTES
from stripe_double.tests.conftest import Client
from stripe_double.tests.contract import problems

Spoil = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda sub: sub.update(current_period_end=1), "subscription.current_period_end is not declared"),
        (lambda sub: sub.pop("collection_method"), "subscription.collection_method is missing"),
        (lambda sub: sub["items"]["data"][0].pop("current_period_end"), "subscription.items.data[0].current_period_end is missing"),
        (lambda sub: sub.update(status="alive"), "subscription.status: 'alive' is not one of"),
        (lambda sub: sub.update(created="now"), "subscription.created: 'now' is no int"),
        (lambda sub: sub.update(livemode=0), "subscription.livemode: 0 is no bool"),
        (lambda sub: sub.update(customer=None), "subscription.customer is null"),
        (lambda sub: sub.update(customer={"object": "charge"}), "subscription.customer: {'object': 'charge'} is no"),
        (lambda sub: sub["metadata"].update(a=1), "subscription.metadata.a: 1 is no str"),
        (lambda sub: sub["items"].pop("has_more"), "is no list object"),
        (lambda sub: sub["items"]["data"][0]["price"].update(unit_amount_decimal=25.0), "unit_amount_decimal: 25.0 is no Decimal"),
    ],
)
def test_the_checker_notices(client: Client, spoil: Spoil, said: str) -> None:
    subscription = client.subscribe(client.customer().id, client.price(2500).id)
    _, whole, _ = client.raw("GET", f"/v1/subscriptions/{subscription.id}")
    assert problems(whole) == []
    event = client.v1.events.list({"type": "customer.subscription.created"}).data[0]
    _, event_whole, _ = client.raw("GET", f"/v1/events/{event.id}")
    for obj, spoiled in ((whole, whole), (event_whole, event_whole["data"]["object"])):
        spoil(spoiled)
        (problem,) = problems(obj)
        assert said in problem


def test_what_is_expanded_keeps_the_contract_too(client: Client) -> None:
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(2500).id)
    client.v1.refunds.create({"charge": client.v1.charges.list().data[0].id, "amount": 100})
    expand = [
        *("customer.subscriptions", "customer.tax_ids", "customer.sources", "customer.invoice_settings.default_payment_method"),
        *("latest_invoice.payments.data.payment.payment_intent.latest_charge.refunds", "default_payment_method"),
    ]
    query = "&".join(f"expand[]={path}" for path in expand)
    _, whole, _ = client.raw("GET", f"/v1/subscriptions/{subscription.id}?{query}")
    assert whole["customer"]["subscriptions"]["data"][0]["id"] == subscription.id
    intent = whole["latest_invoice"]["payments"]["data"][0]["payment"]["payment_intent"]
    assert intent["latest_charge"]["refunds"]["data"][0]["amount"] == 100
    assert problems(whole) == []


def test_what_is_no_row_keeps_the_contract_too(client: Client) -> None:
    price = client.price(2500)
    subscription = client.subscribe(client.customer().id, price.id)
    session = client.v1.checkout.sessions.create(
        {"mode": "subscription", "success_url": "http://x.test/", "line_items": [{"price": price.id, "quantity": 1}]}
    )
    item = subscription["items"].data[0].id
    for path in (
        *("/v1/account", "/v1/balance", f"/v1/plans/{price.id}", f"/v1/subscription_items?subscription={subscription.id}"),
        *(
            f"/v1/subscription_items/{item}",
            f"/v1/checkout/sessions/{session.id}/line_items",
            f"/v1/invoices/{subscription.latest_invoice}/lines",
        ),
    ):
        status, whole, _ = client.raw("GET", path)
        assert status == 200
        objects = whole["data"] if whole["object"] == "list" else [whole]
        assert objects
        assert [problem for obj in objects for problem in problems(obj)] == []
    status, upcoming, _ = client.raw(
        "POST", "/v1/invoices/create_preview", f"subscription={subscription.id}".encode(), Content_Type="application/x-www-form-urlencoded"
    )
    assert (status, problems(upcoming)) == (200, [])


@pytest.mark.parametrize("path", sorted({path for method, path, _ in ROUTES if method == "GET" and "{" not in path}))
def test_every_list_answers_with_a_list_that_names_itself(client: Client, path: str) -> None:
    if path in {"/v1/account", "/v1/balance", "/v1/subscription_items"}:
        return
    status, body, _ = client.raw("GET", path)
    assert (status, body) == (200, {"object": "list", "data": [], "has_more": False, "url": path})


@pytest.mark.parametrize("path", sorted({path for method, path, _ in ROUTES if method == "GET" and "{id}" in path}))
def test_what_is_not_there_is_a_resource_missing(client: Client, path: str) -> None:
    if path == "/v1/accounts/{id}":
        return
    status, body, _ = client.raw("GET", path.replace("{id}", "none_0000").replace("{method}", "pm_0000"))
    if path == "/v1/customers/{id}/tax_ids":
        assert (status, body["data"]) == (200, [])
    else:
        assert (status, body["error"]["code"]) == (404, "resource_missing")
