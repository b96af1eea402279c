"""The guards of ``pricing/sql/price_book.sql``: each refuses what it is there for, and lets pass what must pass.

Where a guard is tried, it is tried as the owner of the tables, whom no privilege stops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange

from pricing.models import (
    CatalogChange,
    CostTier,
    CreditPack,
    Entitlement,
    Plan,
    PlanVersion,
    PriceProposal,
    PriceRow,
    Product,
    RateCard,
    RateCardModel,
    RateCardPrice,
    Unit,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2099, 1, 1, tzinfo=UTC)


@contextmanager
def refused(message: str) -> Iterator[None]:
    """The statement inside is refused by the database with this message, and the test goes on."""
    with pytest.raises(IntegrityError, match=message), transaction.atomic():
        yield


def price(**fields: Any) -> PriceRow:
    given = {"provider": "acme", "model": "m", "component": "input_tokens", "price_nanos": 3, "source": "test"} | fields
    return PriceRow.objects.create(**{"valid": DateTimeTZRange(START, None)} | given)


@pytest.fixture
def as_owner(db: None) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(tableowner) FROM pg_tables WHERE tablename = 'price_book'")
        cursor.execute(f"SET LOCAL ROLE {cursor.fetchone()[0]}")
        yield
        cursor.execute("RESET ROLE")


@pytest.fixture
def product() -> Product:
    unit = Unit.objects.create(code="guarded.credit", name="credit")
    return Product.objects.create(slug="guarded", name="Guarded", unit=unit, default_plan="free")


@pytest.fixture
def card(product: Product) -> RateCard:
    card = RateCard.objects.create(product=product, slug="retail", valid_from=START, mode="price_book")
    RateCardPrice.objects.create(card=card, provider="acme", model="m", component="input_tokens", price_nanos=4)
    RateCardModel.objects.create(card=card, provider="acme", model="m", markup_ppm=1)
    return card


@pytest.fixture
def version(product: Product) -> PlanVersion:
    plan = Plan.objects.create(product=product, slug="free", name="Free", rank=0)
    version = PlanVersion.objects.create(plan=plan, valid_from=START, price_cents=0, rate_card="retail")
    Entitlement.objects.create(plan_version=version, key="api_access", kind="flag", enabled=True)
    return version


def sql(statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


@pytest.mark.usefixtures("as_owner")
class TestPriceBook:
    @pytest.mark.failure(33)
    @pytest.mark.parametrize(
        "change",
        [
            {"price_nanos": 4},
            {"per_units": 1},
            {"provider": "other"},
            {"model": "other"},
            {"component": "output_tokens"},
            {"context_above": 1},
            {"service_level": "batch"},
            {"source": "other"},
            {"catalog": "other"},
            {"recorded_at": START},
            {"valid": DateTimeTZRange(START - timedelta(days=1), None)},
            {"valid": DateTimeTZRange(START + timedelta(days=1), None)},
        ],
    )
    def test_amount_and_identity_never_change(self, change: dict[str, Any]) -> None:
        row = price()
        with refused("amount and identity of row .* never change"):
            PriceRow.objects.filter(id=row.id).update(**change)

    def test_a_row_is_never_deleted_nor_the_table_emptied(self) -> None:
        row = price()
        with refused("never deleted"):
            PriceRow.objects.filter(id=row.id).delete()
        with refused("never deleted"):
            sql("TRUNCATE price_book CASCADE")
        assert PriceRow.objects.filter(id=row.id).exists()

    def test_an_open_end_is_closed_once_at_the_earliest_now(self) -> None:
        row = price()
        with refused("into the past"):
            PriceRow.objects.filter(id=row.id).update(valid=DateTimeTZRange(START, START + timedelta(days=1)))
        PriceRow.objects.filter(id=row.id).update(valid=DateTimeTZRange(START, LATER))
        for again in (LATER + timedelta(days=1), LATER - timedelta(days=1), None):
            with refused("closed already"):
                PriceRow.objects.filter(id=row.id).update(valid=DateTimeTZRange(START, again))

    def test_a_row_may_be_closed_at_the_time_its_transaction_began(self) -> None:
        row = price()
        sql("UPDATE price_book SET valid = tstzrange(lower(valid), transaction_timestamp()) WHERE id = %s", row.id)
        row.refresh_from_db()
        assert row.valid.upper is not None

    def test_a_row_is_withdrawn_once_and_for_ever(self) -> None:
        row = price()
        PriceRow.objects.filter(id=row.id).update(withdrawn_at=START)
        for change in ({"withdrawn_at": None}, {"withdrawn_at": LATER}, {"valid": DateTimeTZRange(START, LATER)}):
            with refused("is withdrawn"):
                PriceRow.objects.filter(id=row.id).update(**change)

    def test_a_new_row_is_not_withdrawn_and_was_recorded_now(self) -> None:
        with refused("a new row is not withdrawn"):
            price(withdrawn_at=START)
        row = price(recorded_at=START)
        row.refresh_from_db()
        assert row.recorded_at > START

    @pytest.mark.failure(34)
    def test_two_prices_never_overlap_unless_one_is_withdrawn(self) -> None:
        row = price()
        with refused("price_never_overlaps"):
            price(valid=DateTimeTZRange(LATER, None))
        price(service_level="batch")
        price(context_above=200_000)
        price(valid=DateTimeTZRange(START - timedelta(days=1), START))
        PriceRow.objects.filter(id=row.id).update(withdrawn_at=START)
        price()

    @pytest.mark.failure(11)
    @pytest.mark.parametrize(
        ("wrong", "constraint"),
        [
            ({"price_nanos": -1}, "price_amounts"),
            ({"per_units": 0}, "price_amounts"),
            ({"valid": DateTimeTZRange(None, None)}, "price_valid_is_half_open"),
            ({"valid": DateTimeTZRange(START, LATER, "(]")}, "price_valid_is_half_open"),
            ({"valid": DateTimeTZRange(START, START)}, "price_valid_is_half_open"),
        ],
    )
    def test_a_row_has_a_real_amount_and_a_half_open_range(self, wrong: dict[str, Any], constraint: str) -> None:
        with refused(constraint):
            price(**wrong)


@pytest.mark.usefixtures("as_owner")
class TestTerms:
    def test_a_rate_card_is_never_edited_or_deleted(self, card: RateCard) -> None:
        with refused("pricing_ratecard refused: terms never change"):
            RateCard.objects.filter(id=card.id).update(markup_ppm=0)
        with refused("pricing_ratecardprice refused"):
            card.prices.update(price_nanos=5)
        with refused("pricing_ratecardmodel refused"):
            card.models.update(markup_ppm=2)
        with refused("pricing_ratecardprice refused"):
            card.prices.all().delete()
        with refused("pricing_ratecardmodel refused"):
            card.models.all().delete()
        with refused("pricing_ratecard refused"):
            sql("DELETE FROM pricing_ratecard WHERE id = %s", card.id)

    def test_a_plan_version_is_never_edited_or_deleted(self, version: PlanVersion) -> None:
        with refused("pricing_planversion refused: terms never change"):
            PlanVersion.objects.filter(id=version.id).update(price_cents=1)
        with refused("pricing_entitlement refused"):
            version.entitlements.update(enabled=False)
        with refused("pricing_entitlement refused"):
            version.entitlements.all().delete()
        with refused("pricing_planversion refused"):
            sql("DELETE FROM pricing_planversion WHERE id = %s", version.id)

    def test_a_pack_is_taken_off_sale_and_nothing_else(self, product: Product) -> None:
        pack = CreditPack.objects.create(product=product, slug="small", valid_from=START, name="Small", price_cents=500, credit_nanos=1)
        CreditPack.objects.filter(id=pack.id).update(available=False)
        for change in ({"price_cents": 1}, {"credit_nanos": 2}, {"valid_from": LATER}, {"stripe_price_setting": "X"}, {"name": "Big"}):
            with refused("terms never change"):
                CreditPack.objects.filter(id=pack.id).update(**change)
        with refused("never deleted"):
            CreditPack.objects.filter(id=pack.id).delete()

    @pytest.mark.parametrize(
        "table",
        [
            *("pricing_ratecard", "pricing_ratecardmodel", "pricing_ratecardprice", "pricing_planversion", "pricing_entitlement"),
            *("pricing_catalogchange", "pricing_creditpack", "price_book"),
        ],
    )
    def test_no_table_of_terms_is_ever_emptied(self, table: str) -> None:
        with refused("TRUNCATE on .* refused"):
            sql(f"TRUNCATE {table} CASCADE")

    def test_a_catalog_change_is_kept_as_it_was_written(self, product: Product) -> None:
        change = CatalogChange.objects.create(product=product, actor="ada", applied_at=START, effective_at=START, digest="0", diff="+")
        with refused("pricing_catalogchange refused"):
            CatalogChange.objects.filter(id=change.id).update(actor="bob")
        with refused("pricing_catalogchange refused"):
            CatalogChange.objects.filter(id=change.id).delete()

    def test_the_unit_of_a_product_is_fixed_for_ever(self, product: Product) -> None:
        other = Unit.objects.create(code="guarded.other", name="other")
        with refused("fixed for ever"):
            Product.objects.filter(id=product.id).update(unit=other)
        with refused("fixed for ever"):
            Unit.objects.filter(id=other.id).update(code="guarded.renamed")
        Product.objects.filter(id=product.id).update(name="Renamed")
        Unit.objects.filter(id=other.id).update(name="Renamed")

    def test_the_time_of_recording_is_the_databases_own(self, product: Product) -> None:
        card = RateCard.objects.create(product=product, slug="c", valid_from=START, mode="byo", recorded_at=START)
        card.refresh_from_db()
        assert card.recorded_at > START


@pytest.mark.usefixtures("committed")
class TestTermsAreCompleteWhenTheyAreWritten:
    """Over several transactions, with a product of its own."""

    def test_nothing_is_added_to_a_version_of_an_earlier_transaction(self) -> None:
        with transaction.atomic():
            unit, _ = Unit.objects.get_or_create(code="USD", defaults={"name": "US dollar"})
            slug = f"late-{datetime.now(UTC):%H%M%S%f}"
            product = Product.objects.create(slug=slug, name="Late", unit=unit, default_plan="free")
            plan = Plan.objects.create(product=product, slug="free", name="Free", rank=0)
            version = PlanVersion.objects.create(plan=plan, valid_from=START, price_cents=0, rate_card="c")
            with transaction.atomic():  # a savepoint is the same transaction
                Entitlement.objects.create(plan_version=version, key="api_access", kind="flag", enabled=True)
            card = RateCard.objects.create(product=product, slug="c", valid_from=START, mode="price_book")
        with refused("pricing_entitlement refused: terms are complete"):
            Entitlement.objects.create(plan_version=version, key="white_label", kind="flag", enabled=True)
        with refused("pricing_ratecardprice refused: terms are complete"):
            RateCardPrice.objects.create(card=card, provider="acme", model="m", component="input_tokens", price_nanos=1)
        with refused("pricing_ratecardmodel refused: terms are complete"):
            RateCardModel.objects.create(card=card, provider="acme", model="m", markup_ppm=1)


@pytest.mark.usefixtures("as_owner")
class TestConstraints:
    @pytest.mark.parametrize(
        ("wrong", "constraint"),
        [
            ({"mode": "byo", "markup_ppm": 1}, "rate_card_markup_only_for_markup"),
            ({"mode": "markup", "markup_ppm": -1}, "rate_card_amounts"),
            ({"mode": "markup", "quantum_nanos": 0}, "rate_card_amounts"),
            ({"mode": "markup", "credit_value_nanos": 0}, "rate_card_amounts"),
            ({"mode": "credit_rate"}, "rate_card_credits_only_for_credit_rate"),
            ({"mode": "markup", "tokens_per_credit": 5}, "rate_card_credits_only_for_credit_rate"),
            ({"mode": "markup", "default_multiplier_ppm": 5}, "rate_card_credits_only_for_credit_rate"),
        ],
    )
    def test_a_rate_card_has_the_terms_of_its_mode(self, product: Product, wrong: dict[str, Any], constraint: str) -> None:
        with refused(constraint):
            RateCard.objects.create(product=product, slug="c", valid_from=START, **wrong)

    def test_a_models_own_term_is_one_of_two(self, card: RateCard) -> None:
        for wrong in ({}, {"multiplier_ppm": 1, "markup_ppm": 1}, {"multiplier_ppm": 0}):
            with refused("rate_card_model_has_one_term"):
                RateCardModel.objects.create(card=card, provider="acme", model="n", **wrong)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"kind": "flag"},
            {"kind": "flag", "enabled": True, "limit": 1},
            {"kind": "text", "text": ""},
            {"kind": "limit", "limit": 1},
            {"kind": "limit", "window": "day", "limit": -1},
            {"kind": "limit", "window": "day", "enabled": True},
            {"kind": "other", "enabled": True},
        ],
    )
    def test_an_entitlement_says_what_its_kind_needs(self, version: PlanVersion, wrong: dict[str, Any]) -> None:
        with refused("entitlement_says_what_its_kind_needs"):
            Entitlement.objects.create(plan_version=version, key="k", **wrong)

    def test_a_limit_may_be_none_or_nothing(self, version: PlanVersion) -> None:
        Entitlement.objects.create(plan_version=version, key="agents", kind="limit", window="count", limit=None)
        Entitlement.objects.create(plan_version=version, key="agents", kind="limit", window="day", limit=0)

    def test_a_cost_tier_has_no_negative_limit(self, product: Product) -> None:
        for wrong in ({"monthly_cost_nanos": -1}, {"daily_cost_nanos": -1}, {"requests_per_hour": -1}):
            with refused("cost_tier_not_negative"):
                CostTier.objects.create(product=product, slug="t", **wrong)

    @pytest.mark.failure(10)
    @pytest.mark.parametrize("wrong", [{"hold_max_seconds": 86_401}, {"hold_lifetime_seconds": 0}, {"hold_lifetime_seconds": 86_401}])
    def test_a_hold_lives_a_day_at_most(self, product: Product, wrong: dict[str, int]) -> None:
        with refused("product_hold_lifetimes"):
            Product.objects.filter(id=product.id).update(**wrong)

    @pytest.mark.failure(34)
    def test_two_versions_never_begin_together(self, product: Product, version: PlanVersion, card: RateCard) -> None:
        with refused("plan_version_start_once"):
            PlanVersion.objects.create(plan=version.plan, version=2, valid_from=START, rate_card="c")
        with refused("rate_card_start_once"):
            RateCard.objects.create(product=product, slug=card.slug, version=2, valid_from=START, mode="byo")

    def test_a_figure_is_pending_once(self) -> None:
        fields = {"provider": "acme", "model": "m", "component": "images", "price_nanos": 1, "source": "test", "proposed_at": START}
        PriceProposal.objects.create(**fields)
        with refused("price_proposal_pending_once"):
            PriceProposal.objects.create(**fields | {"price_nanos": 2})
        with refused("price_proposal_decided_by_somebody"):
            PriceProposal.objects.create(**fields, state="approved")
        with refused("price_proposal_amounts"):
            PriceProposal.objects.create(**fields | {"price_nanos": -1, "model": "n"})
