"""Checkout on the double: packs and plans are sold at the catalog's price, once, and how a visit ended is what Stripe says."""

from __future__ import annotations

import pytest

from billing import audit, subscriptions
from billing.models import Grant
from billing.tests.selling import BANK_FAILS, BANK_WORKS, ORIGIN, Shop, double, shop  # noqa: F401 (fixtures)
from billing.tests.test_stripe_inbox import balance
from tests.factories import NANOS

pytestmark = pytest.mark.usefixtures("double")


def test_a_pack_is_bought_on_the_hosted_page_and_granted_once(shop: Shop) -> None:  # noqa: F811
    account = shop.account()
    visit = shop.buy(account, success_url=f"{ORIGIN}/done/{{CHECKOUT_ID}}")
    assert (visit.state, visit.completed, visit.amount_cents, visit.name) == ("open", False, 500, "Small")
    assert visit.success_url == f"{ORIGIN}/done/{visit.public_id}"
    shop.pay(visit)
    visit.refresh_from_db()
    assert visit.state == "open"  # a browser says nothing
    assert shop.settle() == set()
    visit.refresh_from_db()
    assert (visit.state, visit.completed, visit.url) == ("paid", True, "")
    assert balance(account) == (6 * NANOS, 0, 0)
    lot = Grant.objects.defer("expires_at").get(account=account)
    assert (lot.cash_nanos, lot.fee_nanos) == (5 * NANOS, 450_000_000)
    assert audit.run() == []


def test_a_plan_is_subscribed_to_on_the_hosted_page(shop: Shop) -> None:  # noqa: F811
    account = shop.account()
    visit = shop.subscribe(account, "pro")
    shop.pay(visit)
    assert shop.settle() == set()
    visit.refresh_from_db()
    live = subscriptions.current(account_id=account.pk)
    assert visit.state == "paid"
    assert live is not None
    assert live.plan_version.plan.slug == "pro"
    assert balance(account) == (40 * NANOS, 0, 0)
