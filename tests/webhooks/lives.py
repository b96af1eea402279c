"""Five customers, each with a life at Stripe that is told in steps, and with what it leaves behind.

A life is a generator: between two steps other lives go on, and deliveries come. The ends are worked out by hand, not by the code they test.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from accounts.models import Account
from billing import subscriptions
from billing.models import Grant, StripeCustomer, Wallet
from pricing.models import CreditPack, Plan, PlanVersion, Product
from stripe_double.tests.conftest import Client
from tests.factories import NANOS, START, make_account, make_product

#: A dollar of credit costs a dollar, in nanos.
DOLLAR = NANOS
VISA = "4242424242424242"


@dataclass(frozen=True)
class Shop:
    """What is sold, by its price at Stripe: ``core`` costs $25 and includes $20, ``pro`` $50 and $45, the pack is $12 for $10."""

    product_id: int
    pack: str
    core: str
    pro: str


@dataclass(frozen=True)
class Person:
    """A customer at Stripe and its account here."""

    account_id: int
    customer: str
    life: str


@dataclass(frozen=True)
class End:
    """What an account has when all is over. Amounts in whole cents of credit; ``plan`` is a slug."""

    balance: int
    debt: int
    frozen: int
    grants: int
    plan: str


def open_shop(client: Client) -> Shop:
    """A product with two plans and a pack, and their prices at Stripe. The prices stand in the environment, as an operator puts them."""
    product = make_product(burn_order=["monthly", "purchased"])
    pack, core, pro = client.price(1_000, None).id, client.price(2_500).id, client.price(5_000).id
    suffix = secrets.token_hex(4).upper()
    os.environ |= {f"PACK_{suffix}": pack, f"CORE_{suffix}": core, f"PRO_{suffix}": pro}
    CreditPack.objects.create(
        product=product, slug="starter", name="Starter", valid_from=START, price_cents=1_000, credit_nanos=12 * NANOS,
        stripe_price_setting=f"PACK_{suffix}",
    )  # fmt: skip
    for rank, (slug, cents, credit) in enumerate((("core", 2_500, 20), ("pro", 5_000, 45)), 2):
        PlanVersion.objects.create(
            plan=Plan.objects.create(product=product, slug=slug, name=slug.title(), rank=rank), valid_from=START, rate_card="standard",
            price_cents=cents, included_credit_nanos=credit * NANOS, stripe_price_setting=f"{slug.upper()}_{suffix}",
        )  # fmt: skip
    return Shop(product.pk, pack, core, pro)


def move_in(client: Client, shop: Shop, life: str) -> Person:
    account = make_account(Product.objects.get(pk=shop.product_id))
    customer = StripeCustomer.objects.create(id=client.customer().id, account=account)
    return Person(account.pk, customer.pk, life)


def buy(client: Client, shop: Shop, person: Person) -> str:
    """Buys a pack on the hosted page. Returns the payment intent."""
    session = check_out(client, person, "payment", shop.pack)
    return str(client.v1.checkout.sessions.retrieve(session).payment_intent)


def check_out(client: Client, person: Person, mode: Literal["payment", "subscription"], price: str) -> str:
    """Pays for one of this on the hosted page. Returns the session."""
    session = client.v1.checkout.sessions.create(
        {"mode": mode, "success_url": "http://x.test", "customer": person.customer, "line_items": [{"price": price, "quantity": 1}]}
    )
    assert client.post(str(session.url), number=VISA, email="ada@example.com")[0] == 303
    return session.id


def charge_of(client: Client, intent: str) -> str:
    return client.v1.charges.list({"payment_intent": intent}).data[0].id


def refunded(client: Client, shop: Shop, person: Person) -> Iterator[None]:
    """Buys a pack; $2 are given back, then $3: half of $12 is left."""
    intent = buy(client, shop, person)
    yield
    client.v1.refunds.create({"payment_intent": intent, "amount": 200})
    yield
    client.v1.refunds.create({"payment_intent": intent, "amount": 300})
    yield


def disputed(client: Client, shop: Shop, person: Person) -> Iterator[None]:
    """Buys a pack, disputes it, and loses to us: all of it is back."""
    intent = buy(client, shop, person)
    yield
    dispute = client.control("POST", "/disputes", charge=charge_of(client, intent))["id"]
    yield
    client.control("POST", f"/disputes/{dispute}/close", outcome="won")
    yield


def upgraded(client: Client, shop: Shop, person: Person) -> Iterator[None]:
    """Subscribes to core, wants to leave, stays, moves up to pro: the period's $20, and pro's credit comes with its next invoice."""
    subscription = client.subscribe(person.customer, shop.core)
    yield
    client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    yield
    client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": False})
    yield
    item = subscription.to_dict()["items"]["data"][0]["id"]
    client.v1.subscriptions.update(subscription.id, {"items": [{"id": item, "price": shop.pro}], "proration_behavior": "always_invoice"})
    yield


def canceled(client: Client, shop: Shop, person: Person) -> Iterator[None]:
    """Subscribes to core and ends it at once, gets $5 of $25 back: $16 of $20, and the default plan."""
    subscription = client.subscribe(person.customer, shop.core)
    yield
    client.v1.subscriptions.cancel(subscription.id)
    yield
    [intent] = client.v1.payment_intents.list({"customer": person.customer}).data
    client.v1.refunds.create({"payment_intent": intent.id, "amount": 500})
    yield


def mixed(client: Client, shop: Shop, person: Person) -> Iterator[None]:
    """Subscribes to core on the hosted page and buys a pack, whose dispute is lost: $20."""
    check_out(client, person, "subscription", shop.core)
    yield
    intent = buy(client, shop, person)
    yield
    dispute = client.control("POST", "/disputes", charge=charge_of(client, intent))["id"]
    yield
    client.control("POST", f"/disputes/{dispute}/close", outcome="lost")
    yield


Life = Callable[[Client, Shop, Person], Iterator[None]]
LIVES: dict[str, tuple[Life, End]] = {
    "refunded": (refunded, End(balance=600, debt=0, frozen=0, grants=1, plan="free")),
    "disputed": (disputed, End(balance=1_200, debt=0, frozen=0, grants=1, plan="free")),
    "upgraded": (upgraded, End(balance=2_000, debt=0, frozen=0, grants=1, plan="pro")),
    "canceled": (canceled, End(balance=1_600, debt=0, frozen=0, grants=1, plan="free")),
    "mixed": (mixed, End(balance=2_000, debt=0, frozen=0, grants=2, plan="core")),
}


def wrong(people: list[Person]) -> list[str]:
    """Whose account is not what its life leaves behind, and how."""
    found = []
    for person in people:
        account = Account.objects.get(pk=person.account_id)
        wallet = Wallet.objects.filter(account=account).first()
        lots = Grant.objects.defer("expires_at").filter(account=account)
        live = subscriptions.current(account_id=account.pk)
        has = End(
            balance=wallet.balance * 100 // DOLLAR if wallet else 0,
            debt=wallet.debt * 100 // DOLLAR if wallet else 0,
            frozen=sum(lot.frozen for lot in lots) * 100 // DOLLAR,
            grants=len(lots),
            plan=live.plan_version.plan.slug if live else "",
        )
        if has != LIVES[person.life][1]:
            found.append(f"{person.life} {person.customer}: {has} instead of {LIVES[person.life][1]}")
    return found
