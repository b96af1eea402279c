"""``manage.py stripe push-catalog``: products and prices at the double of Stripe, and the lines for our environment."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone
from pytest_django import Settings

from billing import checkout, stripe_api, stripe_prices
from pricing import catalog
from pricing.models import CreditPack, Plan, PlanVersion, Product
from stripe_double.server import Double
from stripe_double.tests.conftest import Client, double
from tests.factories import NANOS, START, make_account, make_product

__all__ = ["double"]  # a fixture

pytestmark = pytest.mark.django_db
_versions = count(2)


@pytest.fixture
def stripe(double: Double, settings: Settings) -> Iterator[Client]:
    settings.STRIPE_API_HOST = double.address
    stripe_api.client.cache_clear()
    yield Client(double.address)
    stripe_api.client.cache_clear()


@pytest.fixture
def product() -> Product:
    """Sells a plan for $25 a month, a pack for $20, and two for $10 and $50 that share one setting; what is free or agreed upon is not at
    Stripe."""
    product = make_product()
    plan = Plan.objects.create(product=product, slug="core", name="Core", rank=2)
    PlanVersion.objects.create(plan=plan, valid_from=START, rate_card="standard", price_cents=2_500, stripe_price_setting="TEST_CORE")
    custom = Plan.objects.create(product=product, slug="enterprise", name="Enterprise", rank=3)
    PlanVersion.objects.create(plan=custom, valid_from=START, rate_card="standard", price_cents=None, stripe_price_setting="TEST_CUSTOM")
    for slug, cents, setting in (("starter", 1_000, "TEST_PACKS"), ("pro", 5_000, "TEST_PACKS"), ("single", 2_000, "TEST_SINGLE")):
        CreditPack.objects.create(
            product=product, slug=slug, name=slug.title(), valid_from=START, price_cents=cents, credit_nanos=12 * NANOS,
            stripe_price_setting=setting,
        )  # fmt: skip
    catalog.clear()
    return product


def push(product: Product, *options: str) -> tuple[list[str], dict[str, list[str]]]:
    """What it says it did, and the environment lines."""
    out = io.StringIO()
    call_command("stripe", "push-catalog", product.slug, *options, stdout=out)
    lines = out.getvalue().splitlines()
    values = dict(line.split("=") for line in lines if not line.startswith("#"))
    return [line for line in lines if line.startswith("#")][:-1], {name: value.split(",") for name, value in values.items()}


def reprice(product: Product, cents: int) -> None:
    plan = Plan.objects.get(product=product, slug="core")
    number = next(_versions)
    PlanVersion.objects.create(
        plan=plan, version=number, valid_from=START + timedelta(minutes=number), rate_card="standard", price_cents=cents,
        stripe_price_setting="TEST_CORE",
    )  # fmt: skip


def test_what_has_a_price_is_made_once_and_its_ids_are_what_our_environment_needs(
    stripe: Client, product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, lines = push(product)
    assert len(steps) == 6
    assert f"# {product.slug}:plan:core: make the price 25.00 usd a month" in steps
    assert {name: len(ids) for name, ids in lines.items()} == {"TEST_CORE": 1, "TEST_PACKS": 1, "TEST_SINGLE": 1}
    core = stripe.v1.prices.retrieve(lines["TEST_CORE"][0])
    assert core.recurring is not None
    assert (core.unit_amount, core.currency, core.recurring.interval, core.lookup_key) == (
        2_500, "usd", "month", f"{product.slug}:plan:core",
    )  # fmt: skip
    chosen, single = (stripe.v1.prices.retrieve(lines[name][0]) for name in ("TEST_PACKS", "TEST_SINGLE"))
    assert chosen.custom_unit_amount is not None  # Rover's packs: one price, whose amount is the pack's
    assert (single.unit_amount, single.custom_unit_amount) == (2_000, None)
    for name, ids in lines.items():
        monkeypatch.setenv(name, ",".join(ids))
    version = stripe_prices.plan_version(product=product, price_id=lines["TEST_CORE"][0], at=timezone.now())
    assert version is not None
    assert version.plan.slug == "core"
    events = stripe.events()
    assert push(product) == ([], lines)
    assert stripe.events() == events


def test_a_dry_run_says_the_same_and_does_nothing(stripe: Client, product: Product) -> None:
    steps, lines = push(product, "--dry-run")
    assert lines == {"TEST_CORE": ["price_…"], "TEST_PACKS": ["price_…"], "TEST_SINGLE": ["price_…"]}
    assert stripe.events() == []
    assert [step.replace("# would ", "# ") for step in steps] == push(product)[0]


def test_a_changed_price_is_made_anew_and_the_one_before_stays_for_those_who_pay_it(stripe: Client, product: Product) -> None:
    [first] = push(product)[1]["TEST_CORE"]
    reprice(product, 3_000)
    steps, lines = push(product)
    assert steps == [f"# {product.slug}:plan:core: make the price 30.00 usd a month"]
    assert lines["TEST_CORE"][1:] == [first]
    second = lines["TEST_CORE"][0]
    assert (stripe.v1.prices.retrieve(first).active, stripe.v1.prices.retrieve(first).lookup_key) == (True, None)
    reprice(product, 2_500)
    steps, lines = push(product)
    assert steps == [f"# {product.slug}:plan:core: make {first}, 25.00 usd a month, the present price"]
    assert lines["TEST_CORE"] == [first, second]
    stripe.v1.prices.update(first, {"active": False})
    assert push(product)[0] == [f"# {product.slug}:plan:core: sell {first}, 25.00 usd a month, again"]
    assert stripe.v1.prices.retrieve(first).active


def test_what_it_did_not_make_is_left_alone_and_what_we_know_already_is_kept(
    stripe: Client, product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_CORE", "price_by_hand, price_older")
    made = push(product)[1]["TEST_CORE"]
    assert made[1:] == ["price_by_hand", "price_older"]
    terms: Any = {"unit_amount": 2_500, "currency": "usd", "recurring": {"interval": "month"}}
    theirs = stripe.v1.prices.create({"product": f"tollgate_{product.slug}_plan_core"} | terms)
    steps, lines = push(product)
    assert (steps, lines["TEST_CORE"]) == ([], made)
    assert stripe.v1.prices.retrieve(theirs.id).lookup_key is None
    stripe.v1.products.update(f"tollgate_{product.slug}_pack_single", {"metadata": {"tollgate": ""}})
    reprice(product, 9_900)
    with pytest.raises(CommandError, match="was not made by this command"):
        push(product)


def test_an_archived_or_renamed_product_of_ours_is_as_the_catalog_says_again(stripe: Client, product: Product) -> None:
    push(product)
    id = f"tollgate_{product.slug}_pack_single"
    stripe.v1.products.update(id, {"active": False, "name": "Something else"})
    assert [step.split(": ")[1] for step in push(product)[0]] == ["sell the product again", f"rename the product to {product.name} Single"]
    assert (stripe.v1.products.retrieve(id).active, push(product)[0]) == (True, [])


def test_a_live_key_asks_for_a_yes(stripe: Client, product: Product, settings: Settings) -> None:
    settings.STRIPE_LIVE_MODE = True
    with pytest.raises(CommandError, match="for real money"):
        push(product)
    assert len(push(product, "--dry-run")[0]) == 6
    assert stripe.events() == []
    assert len(push(product, "--live")[0]) == 6


@pytest.mark.parametrize("slug", ["nobody", "", "\0", "a" * 5_000, "'; drop table pricing_product; --"])
def test_a_product_that_is_none_is_refused(slug: str) -> None:
    with pytest.raises(CommandError, match="there is no product"):
        call_command("stripe", "push-catalog", slug)


def test_while_stripe_is_dead_it_says_so(stripe: Client, product: Product) -> None:
    push(product)
    stripe.control("POST", "/fault", mode="500_before")
    with pytest.raises(CommandError, match="Stripe does not answer as it should"):
        push(product)


def test_a_push_that_broke_off_is_finished_by_the_next(stripe: Client, product: Product) -> None:
    stripe.control("POST", "/fault", mode="dead_after", path="/v1/prices", method="POST", count=1)
    with pytest.raises(CommandError, match="do it again"):
        push(product)
    steps, lines = push(product)
    assert len(steps) == 4
    assert sum(len(ids) for ids in lines.values()) == len({id for ids in lines.values() for id in ids}) == 3


def test_what_was_pushed_can_be_bought(stripe: Client, product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, ids in push(product)[1].items():
        monkeypatch.setenv(name, ",".join(ids))
    Product.objects.filter(pk=product.pk).update(allowed_origins=["https://shop.test"])
    account = make_account(Product.objects.get(pk=product.pk))
    ways: dict[str, Any] = {"success_url": "https://shop.test/done", "cancel_url": "https://shop.test/back", "actor": "test"}
    for pack, cents in (("starter", 1_000), ("pro", 5_000), ("single", 2_000)):
        visit = checkout.buy(account=account, pack=pack, now=timezone.now(), **ways)
        assert stripe.v1.checkout.sessions.retrieve(str(visit.session_id)).amount_total == cents
    visit = checkout.subscribe(account=account, plan="core", now=timezone.now(), **ways)
    assert stripe.v1.checkout.sessions.retrieve(str(visit.session_id)).amount_total == 2_500
