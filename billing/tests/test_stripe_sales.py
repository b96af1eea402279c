"""What happens at Stripe to what our catalogs sell, and to whom: staff are told when nobody can buy any more."""

from __future__ import annotations

import pytest
from django.utils import timezone

from accounts.models import Account
from billing.models import StripeCustomer
from billing.tests.stripe_stub import Obj, Stub, new
from billing.tests.test_stripe_inbox import receive, shop, stub, work
from billing.tests.test_stripe_subscriptions import core, customer
from pricing.models import PlanVersion

__all__ = ["core", "customer", "shop", "stub"]  # fixtures

pytestmark = pytest.mark.django_db


def happen(type: str, obj: Obj) -> tuple[str, str]:
    receive(type, obj, now=timezone.now())
    [worked] = work(timezone.now())
    return str(worked.state), worked.last_error


@pytest.fixture
def price(stub: Stub, core: PlanVersion) -> Obj:
    product = stub.put({"id": "prod_core", "object": "product", "active": True})
    recurring = {"interval": "month", "interval_count": 1}
    return stub.put({
        "id": "price_core", "object": "price", "active": True, "product": product, "currency": "usd", "unit_amount": 2_500,
        "custom_unit_amount": None, "recurring": recurring,
    })  # fmt: skip


class TestPrice:
    @pytest.mark.failure(68)
    def test_one_that_is_sold_today_and_archived_is_told_and_when_it_is_back_all_is_well(self, stub: Stub, price: Obj) -> None:
        assert happen("price.updated", price) == ("done", "")
        price["active"] = False
        state, why = happen("price.updated", price)
        assert state == "quarantined"
        assert why.endswith("/core v1: the price price_core is archived.")
        price["active"] = True
        assert happen("price.updated", price) == ("done", "")
        price["product"]["active"] = False
        assert happen("price.updated", price)[0] == "quarantined"

    def test_one_of_another_amount_and_one_that_is_gone_are_told(self, stub: Stub, price: Obj) -> None:
        price["unit_amount"] = 9_900
        assert happen("price.updated", price)[1].endswith("is 9900 usd, the catalog says 2500 usd.")
        del stub.objects["price_core"]
        assert happen("price.deleted", price)[1].endswith("the price price_core is not there any more.")

    def test_an_earlier_price_may_be_archived_and_a_strangers_is_no_matter(
        self, stub: Stub, price: Obj, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STRIPE_TEST_CORE", "price_new,price_core")
        price["active"] = False
        assert happen("price.updated", price) == ("done", "")
        assert happen("price.updated", stub.put(price | {"id": "price_else"})) == ("done", "")

    def test_an_archived_product_tells_of_its_prices(self, stub: Stub, price: Obj) -> None:
        assert happen("product.updated", price["product"]) == ("done", "")
        price["product"]["active"] = False
        state, why = happen("product.updated", price["product"])
        assert (state, "the price price_core is archived" in why) == ("quarantined", True)


class TestCustomer:
    def test_one_that_was_deleted_is_told(self, stub: Stub, shop: Account, customer: str) -> None:
        there = stub.put({"id": customer, "object": "customer"})
        assert happen("customer.updated", there) == ("done", "")
        there["deleted"] = True
        state, why = happen("customer.deleted", there)
        assert (state, why.startswith(f"{customer}, the customer of {shop.public_id}, is not at Stripe any more")) == ("quarantined", True)
        del stub.objects[customer]
        assert happen("customer.deleted", there)[0] == "quarantined"
        assert StripeCustomer.objects.filter(pk=customer).exists()  # what it paid is still its account's

    def test_a_strangers_is_no_matter(self, stub: Stub, shop: Account) -> None:
        assert happen("customer.deleted", stub.put({"id": new("cus"), "object": "customer", "deleted": True}))[0] == "ignored"
