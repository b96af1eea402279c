"""Reads are of an instant, are kept for a minute at most, and never show what a transaction has not committed."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.test.utils import CaptureQueriesContext

from pricing import catalog
from pricing.models import (
    CostTier,
    CreditPack,
    Entitlement,
    Plan,
    PlanVersion,
    PriceRow,
    Product,
    RateCard,
    RateCardModel,
    RateCardPrice,
    Unit,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = datetime(2026, 2, 1, tzinfo=UTC)
JUST_BEFORE = SECOND - timedelta(microseconds=1)


def make_product() -> Product:
    unit, _ = Unit.objects.get_or_create(code="USD", defaults={"name": "US dollar"})
    slug = f"read-{secrets.token_hex(4)}"
    return Product.objects.create(slug=slug, name=slug, unit=unit, default_plan="free")


def make_prices() -> str:
    name = f"m-{secrets.token_hex(4)}"
    for lower, upper, nanos in ((START, SECOND, 3), (SECOND, None, 2)):
        PriceRow.objects.create(
            provider="acme",
            model=name,
            component="input_tokens",
            price_nanos=nanos,
            per_units=1,
            valid=DateTimeTZRange(lower, upper),
            source="test",
        )
    return f"acme:{name}"


def input_price(model: str, at: datetime) -> Any:
    levels = catalog.price_book(model=model, at=at).levels
    return levels["standard"][0].prices["input_tokens"].price_nanos if levels else None


@pytest.mark.django_db
class TestInstants:
    def test_a_price_is_the_one_of_the_instant_and_a_new_one_begins_on_its_first_moment(self) -> None:
        model = make_prices()
        asked = [START - timedelta(microseconds=1), START, JUST_BEFORE, SECOND, SECOND + timedelta(days=999)]
        assert [input_price(model, at) for at in asked] == [None, 3, 3, 2, 2]

    def test_a_withdrawn_price_is_in_no_book_but_still_explains_its_charges(self) -> None:
        model = make_prices()
        rows = PriceRow.objects.filter(model=model.partition(":")[2]).order_by("id")
        rows.filter(price_nanos=3).update(withdrawn_at=SECOND)
        assert input_price(model, START) is None
        assert catalog.book_of_rows(model=model, row_ids=[rows[0].id]).row_ids == (rows[0].id,)

    def test_rows_of_another_model_are_not_in_a_book_of_rows(self) -> None:
        row = PriceRow.objects.get(model=make_prices().partition(":")[2], price_nanos=2)
        assert catalog.book_of_rows(model=make_prices(), row_ids=[row.id]).row_ids == ()

    def test_a_rate_card_is_the_version_of_the_instant(self) -> None:
        product = make_product()
        first = RateCard.objects.create(product=product, slug="c", valid_from=START, mode="markup", markup_ppm=500_000)
        second = RateCard.objects.create(product=product, slug="c", version=2, valid_from=SECOND, mode="markup", markup_ppm=350_000)
        cards = [catalog.rate_card(product_id=product.pk, slug="c", at=at) for at in (START, JUST_BEFORE, SECOND)]
        assert [card.id for card in cards] == [first.pk, first.pk, second.pk]
        assert catalog.rate_card_by_id(rate_card_id=first.pk).markup_ppm == 500_000
        with pytest.raises(catalog.NotInCatalog):
            catalog.rate_card(product_id=product.pk, slug="c", at=START - timedelta(seconds=1))

    def test_a_rate_card_has_its_models_and_retail_prices(self) -> None:
        card = RateCard.objects.create(product=make_product(), slug="c", valid_from=START, mode="price_book")
        RateCardModel.objects.create(card=card, provider="acme", model="a", multiplier_ppm=5_000_000)
        RateCardModel.objects.create(card=card, provider="acme", model="b", markup_ppm=350_000)
        RateCardPrice.objects.create(card=card, provider="acme", model="a:free", component="images", price_nanos=7, per_units=2)
        terms = catalog.rate_card_by_id(rate_card_id=card.pk)
        assert (terms.multipliers, terms.markups) == ({"acme:a": 5_000_000}, {"acme:b": 350_000})
        assert terms.retail["acme:a:free"].prices["images"].per_units == 2

    def test_a_plan_has_the_allowances_of_the_instant(self) -> None:
        product = make_product()
        tier = CostTier.objects.create(product=product, slug="free", monthly_cost_nanos=500_000_000)
        plan = Plan.objects.create(product=product, slug="free", name="Free", rank=0)
        first = PlanVersion.objects.create(plan=plan, valid_from=START, price_cents=0, rate_card="c", cost_tier=tier)
        PlanVersion.objects.create(plan=plan, version=2, valid_from=SECOND, price_cents=100, rate_card="c")
        for fields in (
            {"key": "api_access", "kind": "flag", "enabled": False},
            {"key": "support", "kind": "text", "text": "email"},
            {"key": "messages", "kind": "limit", "window": "day", "limit": 100},
            {"key": "agents", "kind": "limit", "window": "count", "limit": None, "mode": "soft"},
        ):
            Entitlement.objects.create(plan_version=first, **fields)
        terms = catalog.plan_version(product_id=product.pk, slug="free", at=JUST_BEFORE)
        assert (terms.version, terms.cost_tier, terms.flags, terms.texts) == (first, tier, {"api_access": False}, {"support": "email"})
        assert terms.limit("messages", "day") == catalog.Limit("messages", "day", 100, "hard")
        assert terms.limit("agents", "count") == catalog.Limit("agents", "count", None, "soft")
        assert terms.limit("messages", "hour") is None
        assert catalog.plan_version(product_id=product.pk, slug="free", at=SECOND).version.price_cents == 100
        assert catalog.plan_version_by_id(plan_version_id=first.pk).version == first

    def test_packs_on_sale_are_those_of_the_instant(self) -> None:
        product = make_product()
        fields = {"product": product, "name": "P", "credit_nanos": 1}
        CreditPack.objects.create(slug="small", valid_from=START, price_cents=500, **fields)
        CreditPack.objects.create(slug="small", version=2, valid_from=SECOND, price_cents=2_000, **fields)
        CreditPack.objects.create(slug="medium", valid_from=START, price_cents=1_000, **fields)
        CreditPack.objects.create(slug="gone", valid_from=START, price_cents=1, available=False, **fields)
        assert [pack.slug for pack in catalog.packs(product_id=product.pk, at=START)] == ["small", "medium"]
        assert [pack.price_cents for pack in catalog.packs(product_id=product.pk, at=SECOND)] == [1_000, 2_000]
        assert catalog.pack(product_id=product.pk, slug="small", at=JUST_BEFORE).price_cents == 500
        with pytest.raises(catalog.NotInCatalog):
            catalog.pack(product_id=product.pk, slug="gone", at=SECOND)

    def test_prices_are_found_by_an_index(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("set local enable_seqscan = off")  # the planner's choice on a table of a few rows
        for prices in (
            PriceRow.objects.filter(provider="openai", model="gpt-4o", withdrawn_at=None),
            RateCardPrice.objects.filter(card_id=1, provider="openai", model="gpt-4o"),
        ):
            assert "Seq Scan" not in prices.explain()

    def test_what_is_not_there_is_said_so(self) -> None:
        product = make_product()
        for read in (
            lambda: catalog.product(slug="nobody"),
            lambda: catalog.product_by_id(product_id=0),
            lambda: catalog.plan_version(product_id=product.pk, slug="gold", at=SECOND),
            lambda: catalog.plan_version_by_id(plan_version_id=0),
            lambda: catalog.rate_card(product_id=product.pk, slug="gold", at=SECOND),
            lambda: catalog.rate_card_by_id(rate_card_id=0),
        ):
            with pytest.raises(catalog.NotInCatalog):
                read()
        assert catalog.product(slug=product.slug) == product
        assert catalog.price_book(model="acme:nobody", at=SECOND).levels == {}


@pytest.mark.usefixtures("committed")
class TestKeeping:
    """Outside of transactions, with rows of their own."""

    def test_a_second_read_asks_the_database_nothing_whatever_the_instant(self) -> None:
        catalog.clear()
        model, product = make_prices(), make_product()
        RateCard.objects.create(product=product, slug="c", valid_from=START, mode="byo")

        def read(at: datetime) -> None:
            input_price(model, at)
            catalog.rate_card(product_id=product.pk, slug="c", at=at)
            catalog.product_by_id(product_id=product.pk)

        read(START)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            read(START)
            read(SECOND)
        assert len(queries) == 0

    def test_what_is_kept_answers_each_instant_with_its_own_price(self) -> None:
        model = make_prices()
        assert [input_price(model, at) for at in (SECOND, START, JUST_BEFORE, SECOND)] == [2, 3, 3, 2]

    def test_hits_and_misses_are_counted(self) -> None:
        model = make_prices()

        def counted(outcome: str) -> float:
            return float(catalog.READS.labels("price_book", outcome)._value.get())

        before = counted("hit"), counted("miss")
        for _ in range(3):
            catalog.price_book(model=model, at=SECOND)
        assert (counted("hit") - before[0], counted("miss") - before[1]) == (2, 1)

    def test_an_edit_is_seen_within_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        product = make_product()
        catalog.product(slug=product.slug)
        Product.objects.filter(pk=product.pk).update(name="Renamed")
        assert catalog.product(slug=product.slug).name == product.name
        monkeypatch.setattr(catalog, "MAX_AGE_SECONDS", -1)
        assert catalog.product(slug=product.slug).name == "Renamed"
        assert catalog.MAX_AGE_SECONDS <= 60

    def test_clear_forgets_at_once(self) -> None:
        product = make_product()
        catalog.product(slug=product.slug)
        Product.objects.filter(pk=product.pk).update(name="Renamed")
        catalog.clear()
        assert catalog.product(slug=product.slug).name == "Renamed"

    def test_a_transaction_sees_its_own_rows_and_shows_them_to_nobody(self) -> None:
        product = make_product()
        kept = catalog.product(slug=product.slug).name
        with transaction.atomic():
            Product.objects.filter(pk=product.pk).update(name="Never committed")
            assert catalog.product(slug=product.slug).name == "Never committed"
            transaction.set_rollback(True)
        assert catalog.product(slug=product.slug).name == kept

    def test_made_up_model_names_do_not_fill_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(catalog, "MAX_ANSWERS", 10)
        for number in range(25):
            catalog.price_book(model=f"acme:made-up-{number}", at=SECOND)
        assert len(catalog._answers) <= 10


class TestModelIdentifiers:
    @pytest.mark.parametrize(
        ("model", "parts"),
        [
            ("anthropic:claude-sonnet-4-5", ("anthropic", "claude-sonnet-4-5")),
            ("openai:ft:gpt-4o:acme", ("openai", "ft:gpt-4o:acme")),
            ("meta:llama/3:70b", ("meta", "llama/3:70b")),
        ],
    )
    def test_the_first_colon_splits(self, model: str, parts: tuple[str, str]) -> None:
        assert catalog.split_model(model) == parts

    @pytest.mark.parametrize("model", ["", ":", "gpt-4o", ":gpt-4o", "openai:", "a" * 65 + ":m", "p:" + "m" * 129, "p:m\0", "p:m\n"])
    def test_anything_else_is_refused(self, model: str) -> None:
        with pytest.raises(catalog.InvalidModel):
            catalog.split_model(model)
