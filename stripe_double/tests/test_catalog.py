"""Products, prices, coupons, and what every object of the API has in common: lists, metadata, expand."""

from __future__ import annotations

import pytest
import stripe

from stripe_double.tests.conftest import Client


def test_a_product_is_made_changed_listed_and_deleted(client: Client) -> None:
    product = client.v1.products.create({"name": "Core", "metadata": {"tier": "core"}})
    client.v1.products.update(product.id, {"name": "Core plan", "active": False})
    assert [(one.id, one.name) for one in client.v1.products.list({"active": False}).data] == [(product.id, "Core plan")]
    assert client.v1.products.list({"active": True}).data == []
    assert client.v1.products.delete(product.id).deleted
    assert client.v1.products.retrieve(product.id).deleted
    assert client.events() == ["product.created", "product.updated", "product.deleted"]


def test_a_product_with_a_price_cannot_be_deleted(client: Client) -> None:
    price = client.price(2500)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be deleted"):
        client.v1.products.delete(str(price.product))


def test_a_lookup_key_names_one_price_and_can_be_transferred(client: Client) -> None:
    old = client.price(2500, lookup_key="core")
    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        client.price(2900, lookup_key="core")
    new = client.price(2900, lookup_key="core", transfer_lookup_key=True)
    assert [one.id for one in client.v1.prices.list({"lookup_keys": ["core"]}).data] == [new.id]
    assert client.v1.prices.retrieve(old.id).lookup_key is None


def test_metadata_is_merged_key_by_key_and_emptied_at_once(client: Client) -> None:
    customer = client.v1.customers.create({"metadata": {"a": "1", "b": "2"}})
    merged = client.v1.customers.update(customer.id, {"metadata": {"b": "", "c": "3"}})
    assert merged.metadata is not None
    assert merged.metadata.to_dict() == {"a": "1", "c": "3"}
    emptied = client.v1.customers.update(customer.id, {"metadata": ""})
    assert emptied.metadata is not None
    assert emptied.metadata.to_dict() == {}


def test_an_update_says_what_was_there_before_and_no_change_makes_no_event(client: Client) -> None:
    customer = client.v1.customers.create({"name": "Ada", "metadata": {"a": "1"}})
    client.v1.customers.update(customer.id, {"name": "Grace", "metadata": {"a": "2"}})
    client.v1.customers.update(customer.id, {"name": "Grace"})
    event, created = client.v1.events.list().data
    assert created.type == "customer.created"
    assert event.data.previous_attributes is not None
    assert event.data.previous_attributes.to_dict() == {"name": "Ada", "metadata": {"a": "1"}}


def test_lists_are_paged_both_ways_newest_first(client: Client) -> None:
    made = [client.v1.customers.create({"name": str(n)}).id for n in range(5)][::-1]
    first = client.v1.customers.list({"limit": 2})
    assert ([one.id for one in first.data], first.has_more) == (made[:2], True)
    rest = client.v1.customers.list({"limit": 3, "starting_after": made[1]})
    assert ([one.id for one in rest.data], rest.has_more) == (made[2:], False)
    back = client.v1.customers.list({"limit": 2, "ending_before": made[3]})
    assert ([one.id for one in back.data], back.has_more) == (made[1:3], True)
    assert [one.id for one in client.v1.customers.list({"limit": 2}).auto_paging_iter()] == made


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=%C3%A9", "starting_after=cus_none", "created[gte]=soon", "a=1"]
)
def test_bad_pagination_is_refused(client: Client, query: str) -> None:
    status, body, _ = client.raw("GET", f"/v1/customers?{query}")
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")


def test_expand_follows_ids_through_objects_and_lists(client: Client) -> None:
    customer, price = client.customer(), client.price(2500)
    client.subscribe(customer.id, price.id)
    path = "data.latest_invoice.payments.data.payment.payment_intent.latest_charge.balance_transaction"
    (subscription,) = client.v1.subscriptions.list({"expand": [path, "data.customer", "data.items.data.price.product"]}).data
    assert isinstance(subscription.customer, stripe.Customer)
    assert subscription.customer.email == "ada@example.com"
    assert subscription["items"].data[0].price.product.name == "Pro"
    invoice = subscription.latest_invoice
    assert invoice.payments.data[0].payment.payment_intent.latest_charge.balance_transaction.fee == 103  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["name", "nothing", "invoice_settings.nothing"])
def test_expanding_what_is_no_object_is_refused(client: Client, path: str) -> None:
    customer = client.customer(card=None)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        client.v1.customers.retrieve(customer.id, {"expand": [path]})


def test_a_discount_by_code_takes_part_of_the_first_invoice_only(client: Client) -> None:
    coupon = client.v1.coupons.create({"percent_off": 33.33, "duration": "once", "name": "A third"})
    code = client.v1.promotion_codes.create({"promotion": {"type": "coupon", "coupon": coupon.id}, "code": "THIRD"})
    price = client.price(999)
    subscription = client.subscribe(client.customer().id, price.id, discounts=[{"promotion_code": code.id}])
    client.advance(days=32)
    second, first = client.v1.invoices.list({"subscription": subscription.id}).data
    assert (first.subtotal, first.total, second.total) == (999, 666, 999)
    assert client.v1.coupons.retrieve(coupon.id).times_redeemed == 1


def test_a_repeating_coupon_ends_after_its_months(client: Client) -> None:
    client.v1.coupons.create({"id": "five", "amount_off": 500, "currency": "usd", "duration": "repeating", "duration_in_months": 2})
    subscription = client.subscribe(client.customer().id, client.price(2500).id, discounts=[{"coupon": "five"}])
    client.advance(days=130)
    assert [invoice.total for invoice in client.v1.invoices.list({"subscription": subscription.id}).data][::-1][:4] == [
        2000,
        2000,
        2500,
        2500,
    ]


@pytest.mark.parametrize(
    "coupon",
    [{}, {"percent_off": "101"}, {"percent_off": "NaN"}, {"amount_off": "5"}, {"percent_off": "5", "amount_off": "5", "currency": "usd"}],
)
def test_a_coupon_that_makes_no_sense_is_refused(client: Client, coupon: dict[str, str]) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.coupons.create(coupon)  # type: ignore[arg-type]
