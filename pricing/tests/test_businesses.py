"""The five shipped catalogs say what their source documents say: each figure typed in by hand, and read back as the program reads it.

A case is named by the requirement that asks for it and by the path of the figure in its file. The last word of a path is the column, so
that its unit shows: ``_cents``, ``_nanos`` (10⁻⁹ of a dollar, or of the product's unit), ``_ppm`` (parts per million).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone
from pytest_django.plugin import DjangoDbBlocker

from pricing import catalog, catalog_file, price_import, rating
from pricing.models import CostTier, CreditPack, Plan, PlanVersion, RateCardPrice
from pricing.rating import NANOS, TOKEN_COMPONENTS, Price, Quantities, Rated, compile_book

CATALOGS = Path(__file__).parents[1] / "catalogs"
REQUIREMENTS = Path(__file__).parents[2] / "docs" / "requirements.md"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
UNLIMITED = None

Figure = tuple[str, str, object]

ROVER: list[Figure] = [
    ("R-002", "plans.core.price_cents", 25_00),
    ("R-002", "plans.core.interval", "month"),
    ("R-002", "plans.core.entitlements.concurrent_tasks.open", 3),
    ("R-002", "plans.core.entitlements.automations.count", 5),
    ("R-003", "plans.pro.price_cents", 50_00),
    ("R-003", "plans.pro.interval", "month"),
    ("R-003", "plans.pro.entitlements.concurrent_tasks.open", 10),
    ("R-003", "plans.pro.entitlements.automations.count", UNLIMITED),
    ("R-004", "plans.enterprise.price_cents", None),
    ("R-006", "packs.starter.price_cents", 10_00),
    ("R-006", "packs.starter.credit_nanos", 12 * NANOS),
    ("R-007", "packs.standard.price_cents", 25_00),
    ("R-007", "packs.standard.credit_nanos", 32 * NANOS),
    ("R-008", "packs.pro.price_cents", 50_00),
    ("R-008", "packs.pro.credit_nanos", 70 * NANOS),
    ("R-009", "packs.enterprise.price_cents", 100_00),
    ("R-009", "packs.enterprise.credit_nanos", 150 * NANOS),
    ("R-010", "packs.starter.stripe_price_setting", "STRIPE_PRICE_CREDIT_PACK"),
    ("R-010", "packs.standard.stripe_price_setting", "STRIPE_PRICE_CREDIT_PACK"),
    ("R-010", "packs.pro.stripe_price_setting", "STRIPE_PRICE_CREDIT_PACK"),
    ("R-010", "packs.enterprise.stripe_price_setting", "STRIPE_PRICE_CREDIT_PACK"),
    ("R-044", "rate_cards.reduced.markup_ppm", 350_000),
    ("R-044", "rate_cards.standard.markup_ppm", 500_000),
    ("R-044", "plans.core.rate_card", "standard"),
    ("R-044", "plans.core.alternative_rate_cards", ["reduced"]),
    ("R-046", "product.visibility", "depletion_only"),
    ("R-164", "plans.core.stripe_price_setting", "STRIPE_PRICE_CORE_MONTHLY"),
    ("R-164", "plans.pro.stripe_price_setting", "STRIPE_PRICE_PRO_MONTHLY"),
    ("R-237", "product.target_margin_ppm", 400_000),
    ("R-242", "product.alert_margin_ppm", 350_000),
]

PRPM: list[Figure] = [
    ("R-014", "plans.individual.name", "PRPM+ Individual"),
    ("R-014", "plans.individual.price_cents", 6_00),
    ("R-014", "plans.individual.currency", "usd"),
    ("R-014", "plans.individual.interval", "month"),
    ("R-014", "plans.individual.per_seat", False),
    ("R-015", "plans.org_member.name", "PRPM+ Org Member"),
    ("R-015", "plans.org_member.price_cents", 3_00),
    ("R-015", "plans.org_member.currency", "usd"),
    ("R-015", "plans.org_member.interval", "month"),
    ("R-015", "plans.org_member.per_seat", True),
    ("R-016", "packs.small.price_cents", 5_00),
    ("R-016", "packs.small.credit_nanos", 100 * NANOS),
    ("R-017", "packs.medium.price_cents", 10_00),
    ("R-017", "packs.medium.credit_nanos", 250 * NANOS),
    ("R-018", "packs.large.price_cents", 20_00),
    ("R-018", "packs.large.credit_nanos", 600 * NANOS),
    ("R-020", "cost_tiers.free.staff_only", False),
    ("R-020", "cost_tiers.prpm_plus_individual.staff_only", False),
    ("R-020", "cost_tiers.prpm_plus_org.staff_only", False),
    ("R-020", "cost_tiers.unlimited.staff_only", True),
    ("R-025", "plans.individual.legacy_price_cents", 5_00),
    ("R-025", "plans.org_member.legacy_price_cents", 2_00),
    ("R-053", "product.unit", "prpm.credit"),
    ("R-053", "rate_cards.tokens.tokens_per_credit", 5_000),
    ("R-053", "rate_cards.tokens.default_multiplier_ppm", 1_000_000),
    ("R-055", "plans.free.entitlements.request_tokens.request", 20_000),
    ("R-055", "plans.org_member.entitlements.request_tokens.request", 20_000),
    ("R-055", "plans.individual.entitlements.request_tokens.request", 20_000),
    ("R-060", "rate_cards.tokens.quantum_nanos", NANOS),
    ("R-060", "rate_cards.tokens.minimum_nanos", NANOS),
    ("R-110", "plans.individual.rollover_cap_nanos", 200 * NANOS),
    ("R-110", "plans.individual.rollover_periods", 1),
    ("R-110", "plans.org_member.rollover_cap_nanos", 200 * NANOS),
    ("R-110", "plans.org_member.rollover_periods", 1),
    ("R-123", "cost_tiers.free.monthly_cost_nanos", 500_000_000),
    ("R-123", "cost_tiers.free.daily_cost_nanos", 100_000_000),
    ("R-123", "cost_tiers.free.requests_per_hour", 10),
    ("R-123", "plans.free.cost_tier", "free"),
    ("R-124", "cost_tiers.prpm_plus_individual.monthly_cost_nanos", 5 * NANOS),
    ("R-124", "cost_tiers.prpm_plus_individual.daily_cost_nanos", 1 * NANOS),
    ("R-124", "cost_tiers.prpm_plus_individual.requests_per_hour", 100),
    ("R-124", "plans.individual.cost_tier", "prpm_plus_individual"),
    ("R-125", "cost_tiers.prpm_plus_org.monthly_cost_nanos", 2_500_000_000),
    ("R-125", "cost_tiers.prpm_plus_org.daily_cost_nanos", 500_000_000),
    ("R-125", "cost_tiers.prpm_plus_org.requests_per_hour", 100),
    ("R-125", "plans.org_member.cost_tier", "prpm_plus_org"),
    ("R-126", "cost_tiers.unlimited.monthly_cost_nanos", UNLIMITED),
    ("R-126", "cost_tiers.unlimited.daily_cost_nanos", UNLIMITED),
    ("R-126", "cost_tiers.unlimited.requests_per_hour", UNLIMITED),
    ("R-129", "cost_tiers.free.warn_at_ppm", [750_000, 800_000]),
    ("R-129", "cost_tiers.prpm_plus_individual.warn_at_ppm", [750_000, 900_000]),
    ("R-129", "cost_tiers.prpm_plus_org.warn_at_ppm", [750_000, 900_000]),
    ("R-133", "cost_tiers.free.throttle_on_exceed", True),
    ("R-165", "plans.individual.stripe_price_setting", "STRIPE_PRPM_PLUS_PRICE_ID"),
    ("R-165", "plans.org_member.stripe_price_setting", "STRIPE_PRPM_PLUS_ORG_MEMBER_PRICE_ID"),
    ("R-165", "packs.small.stripe_price_setting", "STRIPE_SMALL_PACK_PRICE_ID"),
    ("R-165", "packs.medium.stripe_price_setting", "STRIPE_MEDIUM_PACK_PRICE_ID"),
    ("R-165", "packs.large.stripe_price_setting", "STRIPE_LARGE_PACK_PRICE_ID"),
    ("R-250", "product.alert_margin_ppm", 700_000),
    ("R-256", "product.target_margin_ppm", 800_000),
    ("R-257", "cost_tiers.prpm_plus_individual.target_margin_ppm", 830_000),
    ("R-257", "cost_tiers.prpm_plus_org.target_margin_ppm", 830_000),
]

SUPABASE_CHAT: list[Figure] = [
    ("R-027", "product.unit", "USD"),
    ("R-027", "plans.pay_per_use.price_cents", 0),
    ("R-028", "product.guest_plan", "guest"),
    ("R-028", "plans.guest.entitlements.messages.lifetime", 3),
    ("R-028", "plans.guest.public", False),
    ("R-086", "plans.guest.rate_card", "guest"),
    ("R-086", "rate_cards.guest.mode", "included"),
    ("R-061", "rate_cards.retail.mode", "price_book"),
    ("R-066", "product.visibility", "full_breakdown"),
    ("R-208", "product.visibility", "full_breakdown"),
    ("R-114", "product.welcome_credit_nanos", 10 * NANOS),
    ("R-115", "product.announcement_credit_nanos", 5 * NANOS),
    ("R-116", "product.minimum_balance_nanos", 10_000_000),
]

ELITE: list[Figure] = [
    ("R-029", "plans.elite.price_cents", 50_00),
    ("R-029", "plans.elite.interval", "month"),
    ("R-029", "plans.elite.entitlements.cloud_execution", True),
    ("R-030", "plans.browser.entitlements.cloud_execution", False),
    ("R-070", "rate_cards.included.mode", "included"),
    ("R-264", "product.target_margin_ppm", 780_000),
    ("R-280", "plans.elite.entitlements.machines.count", 1),
    ("R-281", "cost_tiers.elite.monthly_cost_nanos", 15 * NANOS),
    ("R-281", "cost_tiers.elite.throttle_on_exceed", False),
    ("R-281", "plans.elite.cost_tier", "elite"),
]

SUPPORT = {"free": "community", "pro": "email", "team": "priority"}
TEACH_CHARLIE: list[Figure] = [
    ("R-031", "plans.free.price_cents", 0),
    ("R-031", "plans.free.entitlements.agents.count", 3),
    ("R-031", "plans.free.entitlements.messages.day", 100),
    ("R-031", "plans.free.entitlements.projects.count", 1),
    ("R-031", "plans.free.entitlements.playground_only", True),
    ("R-032", "plans.pro.price_cents", 29_00),
    ("R-032", "plans.pro.interval", "month"),
    ("R-032", "plans.pro.entitlements.agents.count", 10),
    ("R-032", "plans.pro.entitlements.messages.day", 1_000),
    ("R-032", "plans.pro.entitlements.projects.count", 5),
    ("R-032", "plans.pro.entitlements.playground_only", False),
    ("R-032", "plans.pro.entitlements.custom_components", True),
    ("R-032", "plans.pro.entitlements.canvas_unlock", True),
    ("R-032", "plans.pro.entitlements.export_embed", True),
    ("R-033", "plans.team.price_cents", 79_00),
    ("R-033", "plans.team.interval", "month"),
    ("R-033", "plans.team.entitlements.agents.count", UNLIMITED),
    ("R-033", "plans.team.entitlements.messages.day", 5_000),
    ("R-033", "plans.team.entitlements.projects.count", UNLIMITED),
    ("R-033", "plans.team.entitlements.team_collaboration", True),
    ("R-033", "plans.team.entitlements.api_access", True),
    ("R-033", "plans.team.entitlements.white_label", True),
    # A feature that the checklist gives to a higher plan is named in the lower ones too, as off: so it is refused there by name.
    *(
        ("R-034", f"plans.free.entitlements.{feature}", False)
        for feature in ("custom_components", "canvas_unlock", "export_embed", "team_collaboration", "api_access", "white_label")
    ),
    *(("R-034", f"plans.pro.entitlements.{feature}", False) for feature in ("team_collaboration", "api_access", "white_label")),
    ("R-034", "plans.team.entitlements.playground_only", False),
    *(("R-034", f"plans.team.entitlements.{feature}", True) for feature in ("custom_components", "canvas_unlock", "export_embed")),
    ("R-035", "rate_cards.at_cost.mode", "pass_through"),
    ("R-035", "rate_cards.own_keys.mode", "byo"),
    *(("R-035", f"plans.{plan}.rate_card", "at_cost") for plan in ("free", "pro", "team")),
    *(("R-035", f"plans.{plan}.alternative_rate_cards", ["own_keys"]) for plan in ("free", "pro", "team")),
    ("R-036", "product.default_plan", "free"),
    ("R-040", "plans.pro.stripe_product", "Teach Charlie Pro"),
    ("R-040", "plans.team.stripe_product", "Teach Charlie Team"),
    ("R-071", "product.payment_fee_ppm", 29_000),
    ("R-071", "product.payment_fee_cents", 30),
    *(("R-351", f"plans.{plan}.entitlements.support", level) for plan, level in SUPPORT.items()),
    ("R-166", "plans.pro.stripe_price_setting", "STRIPE_PRO_PRICE_ID"),
    ("R-166", "plans.team.stripe_price_setting", "STRIPE_TEAM_PRICE_ID"),
]

#: What each catalog has, and nothing besides: what the documents name, and the plan that an account without a subscription is on.
WHOLE: list[tuple[str, str, str, list[str]]] = [
    ("R-002", "rover", "plans", ["pay_as_you_go", "core", "pro", "enterprise"]),
    ("R-006", "rover", "packs", ["starter", "standard", "pro", "enterprise"]),
    ("R-014", "prpm", "plans", ["free", "org_member", "individual"]),
    ("R-016", "prpm", "packs", ["small", "medium", "large"]),
    ("R-020", "prpm", "cost_tiers", ["free", "prpm_plus_individual", "prpm_plus_org", "unlimited"]),
    ("R-029", "elite", "plans", ["browser", "elite"]),
    ("R-028", "supabase_chat", "plans", ["guest", "pay_per_use"]),
    ("R-036", "teach_charlie", "plans", ["free", "pro", "team"]),
]


def cases(figures: list[Figure]) -> list[Any]:
    return [pytest.param(path, expected, id=f"{requirement}-{path}") for requirement, path, expected in figures]


@pytest.fixture(scope="module")
def shipped(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """All five catalogs, applied once for the tests that only read them, in a transaction that is rolled back."""
    with django_db_blocker.unblock(), transaction.atomic():
        for path in sorted(CATALOGS.glob("*.toml")):
            apply(path.stem)
        yield
        transaction.set_rollback(True)


def apply(product: str) -> None:
    catalog_file.apply(catalog_file.parse((CATALOGS / f"{product}.toml").read_bytes()), actor="ada", effective=BEGIN)


def figure(product: str, path: str, *, at: datetime | None = None) -> object:
    """What stands at ``path`` of the product's catalog at ``at`` (now, if left out), by the reads that charge and decide."""
    at = at or timezone.now()
    row = catalog.product(slug=product)
    match path.split("."):
        case ["product", "unit"]:
            return row.unit.code
        case ["product", column]:
            return getattr(row, column)
        case ["packs", slug, column]:
            return getattr(catalog.pack(product_id=row.pk, slug=slug, at=at), column)
        case ["rate_cards", slug, column]:
            return getattr(catalog.rate_card(product_id=row.pk, slug=slug, at=at), column)
        case ["cost_tiers", slug, column]:
            return getattr(CostTier.objects.get(product=row, slug=slug), column)
        case ["plans", slug, *rest]:
            return _of_plan(catalog.plan_version(product_id=row.pk, slug=slug, at=at), rest)
    raise ValueError(path)


def _of_plan(terms: catalog.PlanTerms, path: list[str]) -> object:
    match path:
        case ["entitlements", key]:
            return (terms.flags | terms.texts)[key]
        case ["entitlements", key, window]:
            limit = terms.limit(key, window)
            assert limit is not None, "not entitled, which is another thing than without limit"
            return limit.limit
        case ["cost_tier"]:
            return terms.cost_tier and terms.cost_tier.slug
        case ["name" | "public" as column]:
            return getattr(terms.version.plan, column)
        case [column]:
            return getattr(terms.version, column)
    raise ValueError(path)


@pytest.mark.usefixtures("shipped")
class TestFigures:
    @pytest.mark.parametrize(("path", "expected"), cases(ROVER))
    def test_rover_sells_what_its_guide_says(self, path: str, expected: object) -> None:
        assert figure("rover", path) == expected

    @pytest.mark.parametrize(("path", "expected"), cases(PRPM))
    def test_prpm_sells_and_limits_what_its_guide_says(self, path: str, expected: object) -> None:
        assert figure("prpm", path) == expected

    @pytest.mark.parametrize(("path", "expected"), cases(SUPABASE_CHAT))
    def test_the_chat_gives_and_asks_for_what_its_guide_says(self, path: str, expected: object) -> None:
        assert figure("supabase_chat", path) == expected

    @pytest.mark.parametrize(("path", "expected"), cases(ELITE))
    def test_elite_sells_what_its_plan_says(self, path: str, expected: object) -> None:
        assert figure("elite", path) == expected

    @pytest.mark.parametrize(("path", "expected"), cases(TEACH_CHARLIE))
    def test_teach_charlie_sells_what_its_checklist_says(self, path: str, expected: object) -> None:
        assert figure("teach_charlie", path) == expected

    @pytest.mark.parametrize(
        ("product", "section", "expected"), [pytest.param(*rest, id=f"{requirement}-{rest[0]}.{rest[1]}") for requirement, *rest in WHOLE]
    )
    def test_a_catalog_has_what_its_document_names_and_nothing_else(self, product: str, section: str, expected: list[str]) -> None:
        row = catalog.product(slug=product)
        found = {
            "plans": [plan.slug for plan in Plan.objects.filter(product=row)],  # by rank
            "packs": [pack.slug for pack in catalog.packs(product_id=row.pk, at=timezone.now())],  # the cheapest first
            "cost_tiers": [tier.slug for tier in CostTier.objects.filter(product=row).order_by("slug")],
        }
        assert found[section] == expected

    def test_no_plan_leads_to_the_tier_that_only_staff_assign(self) -> None:
        tiers = PlanVersion.objects.filter(plan__product__slug="prpm").values_list("cost_tier__slug", "cost_tier__staff_only")
        assert sorted(tiers) == [("free", False), ("prpm_plus_individual", False), ("prpm_plus_org", False)]

    def test_the_chat_sells_23_models_and_gpt_4o_of_openai_is_found_by_both_its_names(self) -> None:
        prices = RateCardPrice.objects.filter(card__product__slug="supabase_chat")
        assert prices.values("provider", "model").distinct().count() == 23
        found = prices.filter(provider="openai", model="gpt-4o").values_list("component", "price_nanos", "per_units")
        assert sorted(found) == [
            ("cached_input_tokens", 1_250_000_000, 1_000_000),
            ("input_tokens", 2_500_000_000, 1_000_000),
            ("output_tokens", 10 * NANOS, 1_000_000),
        ]

    def test_one_slug_in_two_businesses_is_two_plans_and_two_packs(self) -> None:
        ours = ["rover", "prpm", "supabase_chat", "elite", "teach_charlie"]  # beside those that other tests made
        pro = Plan.objects.filter(slug="pro", product__slug__in=ours).order_by("product__slug")
        assert [plan.product.slug for plan in pro] == ["rover", "teach_charlie"]
        assert [figure(plan.product.slug, "plans.pro.price_cents") for plan in pro] == [50_00, 29_00]
        assert CreditPack.objects.filter(slug="pro", product__slug__in=ours).count() == 1
        free = Plan.objects.filter(slug="free", product__slug__in=ours)
        assert sorted(plan.product.slug for plan in free) == ["prpm", "teach_charlie"]


def rated(product: str, card: str, model: str, quantities: Quantities, *, book: rating.Book | None = None) -> Rated:
    """What ``quantities`` cost and are charged now; at the prices that the catalog itself carries, unless a ``book`` is given."""
    now = timezone.now()
    return rating.rate(
        card=catalog.rate_card(product_id=catalog.product(slug=product).pk, slug=card, at=now),
        book=book or catalog.price_book(model=model, at=now),
        model=model,
        quantities=quantities,
    )


HOUR = 3_600
MONTH = 30 * 24 * HOUR


@pytest.mark.usefixtures("shipped")
class TestWhatUseCosts:
    """The prices and rates of the catalogs, through the arithmetic that charges."""

    @pytest.mark.parametrize(
        ("product", "card", "model", "quantities", "cost_nanos", "price_nanos"),
        [
            pytest.param("rover", "standard", "e2b:2cpu-4gb", {"seconds": HOUR}, 150_000_000, 225_000_000, id="R-051-e2b"),
            pytest.param("rover", "standard", "daytona:2cpu-4gb", {"seconds": HOUR}, 150_000_000, 225_000_000, id="R-051-daytona"),
            pytest.param("rover", "standard", "cloudflare-r2:standard", {"gb_months": 1}, 15_000_000, 22_500_000, id="R-052-storage"),
            pytest.param("rover", "standard", "cloudflare-r2:standard", {"egress_gb": 1_000}, 0, 0, id="R-052-egress"),
            pytest.param("elite", "included", "fly:shared-cpu-1x", {"seconds": MONTH}, 10 * NANOS, 0, id="R-070-machine"),
            pytest.param("elite", "included", "supabase:edge-functions", {"requests": 499_999}, 999_998_000, 0, id="R-070-functions"),
            pytest.param("elite", "included", "supabase:platform", {"requests": 10**9}, 0, 0, id="R-070-platform"),
            pytest.param("teach_charlie", "at_cost", "openai:dall-e-3", {"images": 2}, 80_000_000, 80_000_000, id="R-073-images"),
            pytest.param("teach_charlie", "own_keys", "openai:dall-e-3", {"images": 2}, 0, 0, id="R-035-own-keys"),
        ],
    )
    def test_what_a_document_prices_costs_and_charges_that(
        self, product: str, card: str, model: str, quantities: Quantities, cost_nanos: int, price_nanos: int
    ) -> None:
        assert rated(product, card, model, quantities)[:2] == (cost_nanos, price_nanos)

    @pytest.mark.parametrize(
        ("model", "tokens", "credits"),
        [
            ("anthropic:claude-sonnet-4-5", 5_000, 1),
            ("anthropic:claude-sonnet-4-5", 5_001, 2),
            ("anthropic:claude-sonnet-4-5", 1, 1),
            ("anthropic:claude-sonnet-4-5", 20_000, 4),
            ("anthropic:claude-opus-4-1", 5_000, 5),
            ("anthropic:claude-opus-4-1", 20_000, 20),
            ("anthropic:claude-opus-4-1", 1, 1),
        ],
    )
    def test_prpm_charges_a_credit_for_5_000_tokens_and_five_on_opus(self, model: str, tokens: int, credits: int) -> None:
        book = compile_book(model=model, prices=[Price(component, 1, 1) for component in TOKEN_COMPONENTS])
        half = {"input_tokens": tokens // 2, "output_tokens": tokens - tokens // 2}
        assert rated("prpm", "tokens", model, half, book=book).price_nanos == credits * NANOS

    def test_every_opus_that_can_be_priced_counts_five_times_and_nothing_else_does(self) -> None:
        stretches, _ = price_import.read(providers=["anthropic"])
        opus = {f"anthropic:{stretch.key.model}" for stretch in stretches if "opus" in stretch.key.model}
        assert figure("prpm", "rate_cards.tokens.multipliers") == dict.fromkeys(opus, 5_000_000)

    def test_a_month_of_an_elite_user_costs_between_5_and_11_dollars(self) -> None:
        machine = rated("elite", "included", "fly:shared-cpu-1x", {"seconds": MONTH}).cost_nanos
        calls = rated("elite", "included", "supabase:edge-functions", {"requests": 100_000}).cost_nanos
        assert 5 * NANOS <= machine <= 10 * NANOS
        assert calls < NANOS
        assert 5 * NANOS <= machine + calls <= 11 * NANOS


PREMIUM = """
[cost_tiers.premium]
monthly_cost = "8.00"
daily_cost = "unlimited"
requests_per_hour = 100

[plans.premium]
name = "PRPM+ Premium"
rank = 3
price = "10.00"
included_credit = "150"
rate_card = "tokens"
cost_tier = "premium"
"""


@pytest.mark.django_db
class TestLevers:
    """What staff change by editing a file and running one command, while the program runs."""

    def pull(self, product: str, text: str, folder: Path, *, effective: datetime) -> None:
        path = folder / f"{product}.toml"
        path.write_text(text)
        call_command("catalog", "apply", str(path), actor="ada", effective=effective, stdout=StringIO())

    @pytest.mark.parametrize(
        ("product", "old", "new", "path", "before", "after"),
        [
            pytest.param("rover", "trial_days = 14", "trial_days = 7", "plans.core.trial_days", 14, 7, id="R-011"),
            pytest.param("rover", 'price = "100.00"', 'price = "110.00"', "packs.enterprise.price_cents", 100_00, 110_00, id="R-013"),
            pytest.param("prpm", 'price = "6.00"', 'price = "7.00"', "plans.individual.price_cents", 6_00, 7_00, id="R-024"),
            pytest.param("rover", 'percent = "50"', 'percent = "55"', "rate_cards.standard.markup_ppm", 500_000, 550_000, id="R-048"),
            pytest.param(
                "prpm", "request = 20000", "request = 15000", "plans.free.entitlements.request_tokens.request", 20_000, 15_000, id="R-056"
            ),
            pytest.param(
                "rover", 'rate_card = "standard"', 'rate_card = "reduced"', "plans.pro.rate_card", "standard", "reduced", id="R-072"
            ),
            pytest.param("prpm", 'price = "6.00"', 'price = "5.00"', "plans.individual.price_cents", 6_00, 5_00, id="R-295-individual"),
            pytest.param("prpm", 'price = "3.00"', 'price = "2.00"', "plans.org_member.price_cents", 3_00, 2_00, id="R-295-org"),
        ],
    )
    def test_terms_change_from_a_date_and_stay_as_they_were_before_it(
        self, product: str, old: str, new: str, path: str, before: object, after: object, tmp_path: Path
    ) -> None:
        apply(product)
        text, day = (CATALOGS / f"{product}.toml").read_text(), timezone.now() + timedelta(days=1)
        assert old in text
        self.pull(product, text.replace(old, new), tmp_path, effective=day)
        assert figure(product, path) == figure(product, path, at=day - timedelta(microseconds=1)) == before
        assert figure(product, path, at=day) == after

    def test_a_cost_limit_is_lowered_at_once(self, tmp_path: Path) -> None:
        apply("prpm")
        text = (CATALOGS / "prpm.toml").read_text()
        self.pull("prpm", text.replace('monthly_cost = "2.50"', 'monthly_cost = "2.00"'), tmp_path, effective=timezone.now())
        assert figure("prpm", "cost_tiers.prpm_plus_org.monthly_cost_nanos") == 2 * NANOS
        assert figure("prpm", "cost_tiers.prpm_plus_individual.monthly_cost_nanos") == 5 * NANOS

    def test_a_tier_of_10_dollars_with_8_of_cost_is_added_beside_the_others(self, tmp_path: Path) -> None:
        apply("prpm")
        self.pull("prpm", (CATALOGS / "prpm.toml").read_text() + PREMIUM, tmp_path, effective=timezone.now())
        assert figure("prpm", "plans.premium.price_cents") == 10_00
        assert figure("prpm", "plans.premium.cost_tier") == "premium"
        assert figure("prpm", "cost_tiers.premium.monthly_cost_nanos") == 8 * NANOS
        assert figure("prpm", "plans.individual.price_cents") == 6_00

    @pytest.mark.parametrize("plan", ["core", "pro"])
    def test_a_plan_includes_credit_and_its_amount_cannot_be_left_out(self, plan: str) -> None:
        apply("rover")
        included = figure("rover", f"plans.{plan}.included_credit_nanos")
        assert isinstance(included, int)
        assert included > 0
        before, table, after = (CATALOGS / "rover.toml").read_text().partition(f"[plans.{plan}]\n")
        with pytest.raises(catalog_file.InvalidCatalog) as refusal:
            catalog_file.parse((before + table + re.sub(r'included_credit = "[0-9.]+"\n', "", after, count=1)).encode())
        assert [problem.partition("; found")[0] for problem in refusal.value.problems] == [
            f"plans.{plan}.included_credit: expected a value; this key is required"
        ]


@pytest.mark.parametrize("tests", [TestFigures, TestWhatUseCosts, TestLevers])
def test_a_requirement_that_names_a_test_here_as_its_proof_has_a_case_of_it(tests: type) -> None:
    """docs/requirements.md names whole tests; which requirements their cases are for is said here."""
    rows = [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("| R-")]
    wrong = []
    for name, test in vars(tests).items():
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        proven = {case.id[:5] for mark in marks for case in mark.args[1] if str(getattr(case, "id", None)).startswith("R-")}
        named = {row[2:7] for row in rows if f"::{name}`" in row}
        wrong += [(name, requirement) for requirement in sorted(named - proven) if proven]
    assert wrong == []
