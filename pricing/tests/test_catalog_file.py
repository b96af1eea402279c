"""Catalog files: what they may say, what every mistake is told, and that file and database never differ after an apply."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from django.core.management import CommandError, call_command
from django.utils import timezone

from pricing import catalog, catalog_file, rating
from pricing.models import CatalogChange, CostTier, CreditPack, Plan, PlanVersion, PriceRow, Product, RateCard, Unit

CATALOGS = sorted((Path(__file__).parents[1] / "catalogs").glob("*.toml"))
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

SMALL = """
[product]
slug = "acme"
name = "Acme"
default_plan = "free"
visibility = "amount"
overage = "charge"
late_charging = "charge"
burn_order = [
    "purchased",
]

[unit]
code = "acme.credit"
name = "credit"
decimals = 0

[cost_tiers.free]
monthly_cost = "0.50"
daily_cost = "unlimited"
requests_per_hour = 10

[rate_cards.standard]
mode = "markup"
markup_percent = "50"

[plans.free]
name = "Free"
rank = 0
price = "0.00"
included_credit = "5"
rate_card = "standard"
cost_tier = "free"

[plans.free.entitlements]
api_access = false
support = "email"

[plans.free.entitlements.agents]
day = 3
count = "unlimited"
mode = "soft"

[packs.small]
name = "Small"
price = "5.00"
credit = "100"

[[prices]]
provider = "acme-cloud"
model = "box"
component = "seconds"
price = "0.15"
per = 3600
source = "price list"
"""


def parsed(text: str = SMALL) -> catalog_file.Document:
    return catalog_file.parse(text.encode())


def problems(text: str) -> list[str]:
    with pytest.raises(catalog_file.InvalidCatalog) as refusal:
        parsed(text)
    return refusal.value.problems


def edited(old: str, new: str) -> str:
    assert SMALL.count(old) == 1, f"{old!r} stands {SMALL.count(old)} times"
    return SMALL.replace(old, new)


def apply(text: str = SMALL, **more: Any) -> list[str]:
    return catalog_file.apply(parsed(text), actor="ada", **more)


class TestShippedFiles:
    @pytest.mark.parametrize("path", CATALOGS, ids=lambda path: path.stem)
    def test_a_shipped_file_is_canonical(self, path: Path) -> None:
        assert tomli_w.dumps(catalog_file.parse(path.read_bytes())).encode() == path.read_bytes()

    @pytest.mark.django_db
    def test_exporting_what_was_applied_gives_every_shipped_file_back_byte_for_byte(self) -> None:
        assert [path.stem for path in CATALOGS] == ["elite", "prpm", "rover", "supabase_chat", "teach_charlie"]
        for path in CATALOGS:
            assert catalog_file.apply(catalog_file.parse(path.read_bytes()), actor="ada")
        for path in CATALOGS:
            assert catalog_file.export(slug=path.stem) == path.read_bytes()
            assert catalog_file.apply(catalog_file.parse(path.read_bytes()), actor="ada") == []
        assert CatalogChange.objects.count() == len(CATALOGS)


class TestMistakes:
    """Each is named by line or path, with what was expected."""

    @pytest.mark.failure(41)
    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            (
                'slug = "acme"',
                'slug = "Acme"',
                'product.slug: expected lower-case letters, digits, - and _, at most 64 characters; found "Acme"',
            ),
            ('slug = "acme"', 'slug = "acme"\nsecret = 1', "product.secret: expected one of slug, name"),
            ('name = "Acme"\n', "", "product.name: expected a value; this key is required"),
            ('name = "Acme"', 'name = "\\u0000"', "product.name: expected a text"),
            ('visibility = "amount"', 'visibility = "open"', "product.visibility: expected one of depletion_only, amount, full_breakdown"),
            ('visibility = "amount"', 'visibility = "amount"\ntime_zone = "Mars/Base"', "product.time_zone: expected a time zone"),
            (
                'visibility = "amount"',
                'visibility = "amount"\nsupport_email = "nobody"',
                "product.support_email: expected an email address",
            ),
            (
                'visibility = "amount"',
                'visibility = "amount"\nallowed_origins = ["https://a.example/x"]',
                "product.allowed_origins: expected an origin",
            ),
            (
                'visibility = "amount"',
                'visibility = "amount"\nallowed_origins = ["http://a.example"]',
                "product.allowed_origins: expected an origin",
            ),
            (
                'visibility = "amount"',
                'visibility = "amount"\nallowed_origins = ["https://u:p@a.example"]',
                "product.allowed_origins: expected an origin",
            ),
            (
                'visibility = "amount"',
                'visibility = "amount"\nguest_plan = "guest"',
                'product.guest_plan: expected a plan of this file (free); found "guest"',
            ),
            (
                'visibility = "amount"',
                'visibility = "amount"\nguest_plan = "free"',
                'plans.free.rate_card: expected a card of mode included or byo; guests have no balance; found "standard"',
            ),
            (
                'visibility = "amount"',
                'visibility = "amount"\nguest_plan = "free"',
                'plans.free: expected the price "0.00" and no included_credit',
            ),
            ('visibility = "amount"', 'visibility = "amount"\nguest_plan = "free"', "plans.free.public: expected false"),
            ('visibility = "amount"', 'visibility = "amount"\nguest_plan = 3', "product.guest_plan: expected lower-case letters"),
            ('mode = "soft"', 'setting = "FREE"', "plans.free.entitlements.agents.setting: expected one window beside it"),
            ('mode = "soft"', "setting = 3", "plans.free.entitlements.agents.setting: expected the name of an environment variable"),
            ('mode = "soft"', 'setting = "free"', "plans.free.entitlements.agents.setting: expected the name of an environment variable"),
            ('mode = "soft"', 'setting = "A=B"', "plans.free.entitlements.agents.setting: expected the name of an environment variable"),
            ('day = 3\ncount = "unlimited"\nmode = "soft"', 'setting = "FREE"', "plans.free.entitlements.agents: expected a limit"),
            (
                'visibility = "amount"',
                'visibility = "amount"\nhold_max_seconds = 5',
                "product.hold_max_seconds: expected at least hold_lifetime",
            ),
            ('    "purchased",', '    "gold",', "product.burn_order: expected one of monthly, rollover"),
            ('    "purchased",', '    "staff", "staff",', "product.burn_order: expected a list without repetitions"),
            ('default_plan = "free"', 'default_plan = "gold"', 'product.default_plan: expected a plan of this file (free); found "gold"'),
            ('code = "acme.credit"', 'code = "other.credit"', 'unit.code: expected "USD" or "acme.<name>"'),
            ('code = "acme.credit"', 'code = "USD"', 'unit: expected the name "US dollar" and 2 decimals'),
            ("decimals = 0", "decimals = true", "unit.decimals: expected a whole number from 0 to 9; found true"),
            ('monthly_cost = "0.50"', "monthly_cost = 0.50", "cost_tiers.free.monthly_cost: expected an amount as a string"),
            (
                'monthly_cost = "0.50"',
                'monthly_cost = "999999.99"',
                'cost_tiers.free.monthly_cost: expected a real amount; a limit that is none is written "unlimited"',
            ),
            ('monthly_cost = "0.50"', 'monthly_cost = "-1"', "cost_tiers.free.monthly_cost: expected an amount"),
            ('monthly_cost = "0.50"', 'monthly_cost = "1e3"', "cost_tiers.free.monthly_cost: expected an amount"),
            ('monthly_cost = "0.50"', 'monthly_cost = "NaN"', "cost_tiers.free.monthly_cost: expected an amount"),
            ('monthly_cost = "0.50"', 'monthly_cost = "５"', "cost_tiers.free.monthly_cost: expected an amount"),
            (
                'monthly_cost = "0.50"',
                'monthly_cost = "0.0000000001"',
                "cost_tiers.free.monthly_cost: expected an amount as a string with at most 9 decimals",
            ),
            ('monthly_cost = "0.50"', 'monthly_cost = "10000000000"', "cost_tiers.free.monthly_cost: expected at most 9223372036"),
            ("requests_per_hour = 10", "requests_per_hour = 999999", "cost_tiers.free.requests_per_hour: expected a real number"),
            ("requests_per_hour = 10", "requests_per_hour = -1", "cost_tiers.free.requests_per_hour: expected a whole number from 0"),
            ("requests_per_hour = 10", "requests_per_hour = 1.5", "cost_tiers.free.requests_per_hour: expected a whole number from 0"),
            ('markup_percent = "50"', 'markup_percent = "50 %"', "rate_cards.standard.markup_percent: expected a percentage"),
            ('mode = "markup"', 'mode = "byo"', "rate_cards.standard.markup_percent: expected nothing; only mode markup has it"),
            (
                'mode = "markup"\nmarkup_percent = "50"',
                'mode = "credit_rate"',
                "rate_cards.standard.tokens_per_credit: expected a value; mode credit_rate requires it",
            ),
            (
                'mode = "markup"\nmarkup_percent = "50"',
                'mode = "price_book"',
                "rate_cards.standard.prices: expected a value; mode price_book requires it",
            ),
            ('markup_percent = "50"', 'quantum = "0"', "rate_cards.standard.quantum: expected more than 0"),
            ('markup_percent = "50"', 'quantum = "2"\nminimum = "3"', "rate_cards.standard.minimum: expected a multiple of quantum"),
            ('markup_percent = "50"', 'credit_value = "0"', "rate_cards.standard.credit_value: expected more than 0"),
            ('markup_percent = "50"', 'markup_percents = {"gpt-4o" = "5"}', "rate_cards.standard.markup_percents: expected provider:model"),
            ('markup_percent = "50"', 'multipliers = {"a:b" = "0"}', "rate_cards.standard.multipliers.a:b: expected a factor above 0"),
            ('markup_percent = "50"', 'prices = {"a:b" = {}}', "rate_cards.standard.prices.a:b: expected at least one price"),
            (
                'markup_percent = "50"',
                'prices = {"a:b" = {tokens = "1"}}',
                "rate_cards.standard.prices.a:b.tokens: expected one of per, input_tokens",
            ),
            (
                'price = "0.00"',
                'price = "0.001"',
                'plans.free.price: expected an amount as a string with at most 2 decimals, e.g. "25.00", or "custom"',
            ),
            ('price = "0.00"', 'price = "25000000.00"', "plans.free.price: expected at most 21474836"),
            ("rank = 0", 'rank = "0"', "plans.free.rank: expected a whole number"),
            (
                'rate_card = "standard"',
                'rate_card = "gold"',
                'plans.free.rate_card: expected a rate card of this file (standard); found "gold"',
            ),
            ('cost_tier = "free"', 'cost_tier = "gold"', "plans.free.cost_tier: expected a cost tier of this file"),
            ('cost_tier = "free"', 'rollover_cap = "5"', "plans.free.rollover_cap: expected rollover_periods above 0"),
            (
                "api_access = false",
                "api_access = 1",
                "plans.free.entitlements.api_access: expected true, false, a text, or a table of limits",
            ),
            ("api_access = false", '"API access" = false', "plans.free.entitlements.API access: expected lower-case"),
            ("day = 3", "day = -3", "plans.free.entitlements.agents.day: expected a whole number from 0"),
            ("day = 3", "week = 3", "plans.free.entitlements.agents.week: expected one of request, open, hour"),
            ('day = 3\ncount = "unlimited"\n', "", "plans.free.entitlements.agents: expected a limit for at least one of"),
            ('mode = "soft"', 'mode = "gentle"', "plans.free.entitlements.agents.mode: expected one of off, shadow, soft, hard"),
            ('price = "5.00"', 'price = "0.00"', "packs.small.price: expected more than 0"),
            ('credit = "100"', 'credit = "0"', "packs.small.credit: expected more than 0"),
            ("[packs.small]", "[packs.Small]", "packs.Small: expected lower-case letters"),
            ('component = "seconds"', 'component = "input_tokens"', "prices[0].component: expected one of images, seconds"),
            ("per = 3600", "per = 0", "prices[0].per: expected a whole number from 1"),
            ('source = "price list"', "", "prices[0].source: expected a value; this key is required"),
            ('provider = "acme-cloud"', 'provider = "acme cloud"', "prices[0].provider: expected a provider's name"),
            ("[[prices]]", "[prices]", "prices: expected tables written as [[prices]]"),
            ("[packs.small]", "[shop]\n[packs.small]", "shop: expected one of product, unit, cost_tiers"),
        ],
    )
    def test_a_mistake_is_told_with_its_path_and_what_was_expected(self, old: str, new: str, said: str) -> None:
        assert any(problem.startswith(said) for problem in problems(edited(old, new))), problems(edited(old, new))

    @pytest.mark.parametrize(
        ("value", "found"),
        [
            ("0x" + "f" * 9_000, "a larger number"),
            ("{" + "a." * 4_999 + "a = 1}", "a table"),
            ("[" * 300 + "]" * 300, "a list of 1"),
            ("nan", "NaN"),
            ('"' + "x" * 5_000 + '"', '"' + "x" * 79),
        ],
    )
    def test_a_monstrous_value_is_a_mistake_like_another(self, value: str, found: str) -> None:
        (problem,) = problems(edited('name = "Acme"', f"name = {value}"))
        assert problem == f"product.name: expected a text, at most 120 characters; found {found}"

    @pytest.mark.parametrize("value", ["-1", "3.0", "three", "unlimited", " 3", "1e3", "３", "0x3", "9" * 19, "nan"])
    def test_a_variable_that_says_no_number_is_told_with_the_limit_that_names_it(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FREE_AGENTS", value)
        (problem,) = problems(edited('count = "unlimited"\nmode = "soft"', 'setting = "FREE_AGENTS"'))
        assert problem == (
            f"plans.free.entitlements.agents.setting: The environment variable FREE_AGENTS is {value!r}; "
            "expected a whole number from 0, at most 18 digits."
        )

    def test_all_mistakes_are_told_at_once(self) -> None:
        text = edited('name = "Acme"', "name = 5").replace('price = "5.00"', "price = 5").replace("per = 3600", "per = -1")
        assert [problem.partition(":")[0] for problem in problems(text)] == ["product.name", "packs.small.price", "prices[0].per"]

    def test_a_missing_table_is_one_mistake_and_not_one_for_each_of_its_keys(self) -> None:
        assert problems(re.sub(r"\[unit\][^\[]*", "", SMALL)) == ["unit: expected a table"]
        assert len(problems("")) == 2

    @pytest.mark.parametrize("value", ["5", '"text"', "[]", "true"])
    def test_a_section_that_is_no_table_is_told(self, value: str) -> None:
        assert any(
            problem.startswith("plans: expected a table")
            for problem in problems(f"plans = {value}\n" + re.sub(r"\[plans[^\[]*", "", SMALL))
        )

    def test_two_plans_of_one_rank_and_two_prices_of_one_thing_are_told(self) -> None:
        second = '\n[plans.pro]\nname = "Pro"\nrank = 0\nprice = "1.00"\nincluded_credit = "0"\nrate_card = "standard"\n'
        prices = SMALL[SMALL.index("[[prices]]") :]
        found = problems(SMALL.replace("\n[packs.small]", second + "\n[packs.small]") + "\n" + prices)
        assert [problem.partition(":")[0] for problem in found] == ["plans.pro.rank", "prices[1]"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b'[product]\nslug = "a"\nslug = "b"\n', "not TOML: Cannot overwrite a value (at line 3"),
            (b"[product\n", "not TOML: .*at line 1"),
            (b'[product]\nname = "\xff"\n', "line 2: not UTF-8"),
            (b"a = " + b"[" * 20_000, "not TOML: "),
            (b"#" * (1024 * 1024 + 1), "the file has 1048577 bytes; expected at most 1048576"),
            (b"\x00", "not TOML: "),
            (b"a = " + b"1" * 5_000, "not TOML: a number has too many digits"),
        ],
    )
    def test_what_is_not_toml_is_told_with_its_line(self, text: bytes, said: str) -> None:
        with pytest.raises(catalog_file.InvalidCatalog) as refusal:
            catalog_file.parse(text)
        (problem,) = refusal.value.problems
        assert re.match(re.escape(said).replace(r"\.\*", ".*"), problem), problem

    def test_amounts_may_be_written_in_any_form_and_come_out_canonical(self) -> None:
        loose = edited('price = "5.00"', 'price = "5"').replace('credit = "100"', 'credit = "100.00"\ncurrency = "usd"')
        assert parsed(loose) == parsed()

    def test_a_file_in_another_order_says_the_same(self) -> None:
        parts = re.split(r"(?m)^(?=\[)", SMALL)
        assert tomli_w.dumps(parsed("".join(reversed(parts)))) == tomli_w.dumps(parsed())


@pytest.mark.django_db
class TestApply:
    def test_the_database_has_what_the_file_says(self) -> None:
        before = timezone.now()
        lines = apply()
        product = Product.objects.select_related("unit").get(slug="acme")
        version = PlanVersion.objects.select_related("cost_tier").get(plan__product=product)
        assert (product.unit.code, product.burn_order, product.welcome_credit_nanos) == ("acme.credit", ["purchased"], 0)
        assert (version.price_cents, version.included_credit_nanos, version.rollover_cap_nanos) == (0, 5 * rating.NANOS, None)
        assert version.cost_tier is not None
        assert (version.cost_tier.monthly_cost_nanos, version.cost_tier.daily_cost_nanos) == (500_000_000, None)
        limits = {(row.window, row.limit, row.mode) for row in version.entitlements.filter(kind="limit")}
        assert limits == {("day", 3, "soft"), ("count", None, "soft")}
        assert version.entitlements.get(key="api_access").enabled is False
        assert '+ plans.free.price = "0.00"' in lines
        change = CatalogChange.objects.get(product=product)
        assert (change.actor, change.diff) == ("ada", "\n".join(lines))
        assert abs(change.effective_at - before) < timedelta(minutes=5)

    def test_applying_again_changes_nothing(self) -> None:
        apply()
        counts = [model.objects.count() for model in (PlanVersion, RateCard, CreditPack, PriceRow, CatalogChange)]
        assert apply() == []
        assert [model.objects.count() for model in (PlanVersion, RateCard, CreditPack, PriceRow, CatalogChange)] == counts
        assert catalog_file.export(slug="acme").decode() == SMALL.lstrip()

    def test_changed_terms_are_a_new_version_and_the_old_one_stays_as_it_was(self) -> None:
        apply(effective=BEGIN)
        product = catalog.product(slug="acme")
        later = timezone.now() + timedelta(days=30)
        text = (
            edited('price = "0.00"', 'price = "7.00"')
            .replace('markup_percent = "50"', 'markup_percent = "35"')
            .replace("day = 3", "day = 4")
        )
        lines = apply(text.replace('credit = "100"', 'credit = "120"').replace('price = "0.15"', 'price = "0.20"'), effective=later)
        assert lines == [
            '~ rate_cards.standard.markup_percent = "50" → "35"',
            '~ plans.free.price = "0.00" → "7.00"',
            "~ plans.free.entitlements.agents.day = 3 → 4",
            '~ packs.small.credit = "100" → "120"',
            '~ prices[acme-cloud:box seconds].price = "0.15" → "0.20"',
        ]

        def seen(at: datetime) -> list[Any]:
            plan = catalog.plan_version(product_id=product.pk, slug="free", at=at)
            limit = plan.limit("agents", "day")
            assert limit is not None
            card = catalog.rate_card(product_id=product.pk, slug="standard", at=at)
            pack = catalog.pack(product_id=product.pk, slug="small", at=at)
            price = catalog.price_book(model="acme-cloud:box", at=at).levels["standard"][0].prices["seconds"]
            return [plan.version.price_cents, limit.limit, card.markup_ppm, pack.credit_nanos // rating.NANOS, price.price_nanos]

        assert seen(later - timedelta(microseconds=1)) == [0, 3, 500_000, 100, 150_000_000]
        assert seen(later) == [700, 4, 350_000, 120, 200_000_000]
        assert apply(text.replace('credit = "100"', 'credit = "120"').replace('price = "0.15"', 'price = "0.20"')) == []

    def test_what_did_not_change_gets_no_new_version(self) -> None:
        apply(effective=BEGIN)
        apply(edited('name = "Free"', 'name = "Gratis"'))
        assert Plan.objects.get(product__slug="acme").name == "Gratis"
        assert PlanVersion.objects.filter(plan__product__slug="acme").count() == 1
        assert RateCard.objects.filter(product__slug="acme").count() == 1

    def test_policies_and_cost_tiers_change_in_place(self) -> None:
        apply()
        apply(edited('monthly_cost = "0.50"', 'monthly_cost = "unlimited"').replace('overage = "charge"', 'overage = "cap"'))
        assert CostTier.objects.get(product__slug="acme").monthly_cost_nanos is None
        assert Product.objects.get(slug="acme").overage == "cap"

    def test_what_left_the_file_is_off_sale_and_its_price_closed_but_all_is_kept(self) -> None:
        apply(effective=BEGIN)
        text = SMALL[: SMALL.index("[packs.small]")]
        second = '[plans.pro]\nname = "Pro"\nrank = 1\nprice = "1.00"\nincluded_credit = "0"\nrate_card = "standard"\n'
        apply(text + second)
        apply(text)
        assert not CreditPack.objects.get(product__slug="acme").available
        assert Plan.objects.get(product__slug="acme", slug="pro").available is False
        assert PlanVersion.objects.get(plan__product__slug="acme", plan__slug="pro").price_cents == 100
        assert catalog_file.export(slug="acme").decode() == text.strip() + "\n"
        row = PriceRow.objects.get(catalog="acme")
        assert row.valid.lower == BEGIN
        assert row.valid.upper is not None
        apply(SMALL, effective=timezone.now() + timedelta(days=1))
        assert catalog_file.export(slug="acme").decode() == SMALL.lstrip()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (SMALL.replace('"acme.credit"', '"acme.token"'), "unit.code: expected 'acme.credit'; the unit of a product is fixed for ever"),
            (
                SMALL.replace("[cost_tiers.free]", "[cost_tiers.gold]").replace('cost_tier = "free"', 'cost_tier = "gold"'),
                "cost_tiers.free: expected to be kept",
            ),
            (
                SMALL.replace("rate_cards.standard", "rate_cards.gold").replace('"standard"', '"gold"'),
                "rate_cards.standard: expected to be kept",
            ),
        ],
    )
    def test_what_must_not_change_is_refused_and_nothing_of_the_file_is_applied(self, text: str, said: str) -> None:
        apply()
        with pytest.raises(catalog_file.InvalidCatalog) as refusal:
            apply(text.replace('name = "Acme"', 'name = "Renamed"'))
        assert refusal.value.problems[0].startswith(said)
        assert catalog_file.export(slug="acme").decode() == SMALL.lstrip()

    def test_new_terms_never_begin_in_the_past_or_before_scheduled_ones(self) -> None:
        apply(effective=BEGIN)
        dearer = edited('price = "0.00"', 'price = "7.00"').replace('price = "0.15"', 'price = "0.20"')
        with pytest.raises(catalog_file.InvalidCatalog) as refusal:
            apply(dearer, effective=timezone.now() - timedelta(days=1))
        assert [problem.partition(":")[0] for problem in refusal.value.problems] == ["plans.free", "prices[acme-cloud"]
        apply(dearer, effective=timezone.now() + timedelta(days=30))
        with pytest.raises(catalog_file.InvalidCatalog, match=r"plans\.free: expected an effective time after its version of"):
            apply(edited('price = "0.00"', 'price = "9.00"').replace('price = "0.15"', 'price = "0.20"'))

    def test_a_price_is_carried_by_one_catalog(self) -> None:
        apply()
        other = SMALL.replace("acme.credit", "other.credit").replace('slug = "acme"', 'slug = "other"')
        with pytest.raises(catalog_file.InvalidCatalog) as refusal:
            apply(other)
        assert refusal.value.problems == ["prices[acme-cloud:box seconds]: expected to be priced once; the catalog of acme has this price"]
        assert not Product.objects.filter(slug="other").exists()
        assert not Unit.objects.filter(code="other.credit").exists()

    def test_a_diff_changes_nothing(self) -> None:
        assert catalog_file.diff(parsed())
        assert not Product.objects.filter(slug="acme").exists()


@pytest.mark.django_db
class TestCommand:
    def run(self, *arguments: Any) -> str:
        out = StringIO()
        call_command("catalog", *map(str, arguments), stdout=out)
        return out.getvalue()

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "acme.toml"
        path.write_text(SMALL.lstrip())
        return path

    def test_a_file_goes_in_and_comes_out_again(self, path: Path, tmp_path: Path) -> None:
        assert "valid (1 plans, 1 packs, 1 rate cards)" in self.run("validate", path)
        assert '+ product.slug = "acme"' in self.run("diff", path)
        assert '+ product.slug = "acme"' in self.run("apply", path, "--actor", "ada", "--effective", "2026-01-01")
        assert PlanVersion.objects.get(plan__product__slug="acme").valid_from == BEGIN
        assert "nothing to change" in self.run("apply", path, "--actor", "ada")
        (tmp_path / "out").mkdir()
        self.run("export", tmp_path / "out" / "acme.toml")
        assert (tmp_path / "out" / "acme.toml").read_bytes() == path.read_bytes()

    def test_a_broken_file_is_told_by_name_and_stops_the_good_ones_beside_it(self, path: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken.toml"
        broken.write_text(edited('name = "Acme"', "name = 5").replace("rank = 0", "rank = -1"))
        with pytest.raises(CommandError) as refusal:
            self.run("apply", path, broken, "--actor", "ada")
        assert [line.split(": ")[:2] for line in str(refusal.value).splitlines()] == [
            [str(broken), "product.name"],
            [str(broken), "plans.free.rank"],
        ]
        assert not Product.objects.filter(slug="acme").exists()

    @pytest.mark.parametrize("verb", ["validate", "diff", "export"])
    def test_a_file_that_is_not_there_is_told(self, verb: str, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match=r"nobody\.toml: "):
            self.run(verb, tmp_path / "nobody.toml")

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--actor", "  "],
            ["--actor", "a" * 151],
            ["--actor", "ada", "--effective", "soon"],
            ["--actor", "ada", "--effective", "0001-01-01T00:00:00+23:00"],
            ["--actor", "ada", "--effective", "9999-12-31T23:59:59-23:00"],
        ],
    )
    def test_who_and_when_are_needed_and_readable(self, path: Path, arguments: list[str]) -> None:
        with pytest.raises(CommandError, match=r"--actor|--effective"):
            self.run("apply", path, *arguments)


GUARDED = SMALL.replace("burn_order = [", 'guard = "standard"\nburn_order = [').replace(
    "\n[rate_cards.standard]",
    """
[guards.standard]
floor = "20"
warn_at = "3"
degrade_at = "5"
slow_at = "8"
block_at = "12.5"
cheaper_models = [
    "acme:small",
]

[guards.standard.caps.run]
lifetime = "50"

[guards.standard.caps.member]
day = "10"
period = "100"

[rate_cards.standard]""",
)


class TestGuards:
    @pytest.mark.django_db
    def test_a_guard_is_applied_exported_edited_in_place_and_removed(self) -> None:
        text = tomli_w.dumps(catalog_file.parse(GUARDED.encode())).encode()
        catalog_file.apply(catalog_file.parse(text), actor="ada")
        assert catalog_file.export(slug="acme") == text
        product = Product.objects.get(slug="acme")
        terms = catalog.guard(product_id=product.pk, slug=product.guard)
        assert terms is not None
        assert (terms.guard.floor_nanos, terms.guard.block_at_ppm, terms.guard.mode) == (20 * 10**9, 12_500_000, "hard")
        assert terms.caps == {("run", "lifetime"): 50 * 10**9, ("member", "day"): 10 * 10**9, ("member", "period"): 100 * 10**9}
        changed = text.replace(b'lifetime = "50"', b'lifetime = "60"')
        assert catalog_file.apply(catalog_file.parse(changed), actor="ada") == ['~ guards.standard.caps.run.lifetime = "50" → "60"']
        catalog_file.apply(catalog_file.parse(SMALL.encode()), actor="ada")
        assert catalog.guard(product_id=product.pk, slug="standard") is None

    @pytest.mark.django_db
    def test_a_plan_has_a_guard_of_its_own_without_a_new_version(self) -> None:
        catalog_file.apply(catalog_file.parse(GUARDED.encode()), actor="ada")
        own = GUARDED.replace('name = "Free"\n', 'name = "Free"\nguard = "standard"\n')
        assert catalog_file.apply(catalog_file.parse(own.encode()), actor="ada") == ['+ plans.free.guard = "standard"']
        assert Plan.objects.get(product__slug="acme", slug="free").versions.count() == 1
        catalog_file.apply(catalog_file.parse(SMALL.encode()), actor="ada")
        assert catalog.guarded() == []

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ('guard = "standard"', 'guard = "other"', 'product.guard: expected a guard of this file; found "other"'),
            ('name = "Free"', 'name = "Free"\nguard = "other"', 'plans.free.guard: expected a guard of this file; found "other"'),
            (
                'warn_at = "3"',
                'warn_at = "6"',
                "guards.standard: expected factors above 1 in rising order for warn_at, degrade_at, slow_at",
            ),
            ('warn_at = "3"', 'warn_at = "1"', "guards.standard: expected factors above 1 in rising order"),
            ('warn_at = "3"', 'warn_at = "0"', "guards.standard.warn_at: expected a factor above 0"),
            ('warn_at = "3"', "warn_at = 3", "guards.standard.warn_at: expected a factor as a string"),
            ('floor = "20"\n', "", "guards.standard.floor: expected an amount above 0; below it nothing is unusual"),
            ('floor = "20"', 'floor = "0"', "guards.standard.floor: expected an amount above 0"),
            ('floor = "20"', 'floor = "-1"', "guards.standard.floor: expected an amount as a string"),
            ('floor = "20"', 'floor = "20"\nmode = "off"', "guards.standard.mode: expected one of shadow, soft, hard"),
            ('floor = "20"', 'floor = "20"\nwindow_minutes = 61', "guards.standard.window_minutes: expected a whole number from 1 to 60"),
            ('floor = "20"', 'floor = "20"\nslow_per_minute = 0', "guards.standard.slow_per_minute: expected a whole number from 1"),
            ('floor = "20"', 'floor = "20"\nrelease_below_percent = "100"', "guards.standard.release_below_percent: expected more than 0"),
            ('floor = "20"', 'floor = "20"\nrelease_below_percent = "0"', "guards.standard.release_below_percent: expected more than 0"),
            ('floor = "20"', 'floor = "20"\nblocks = 1', "guards.standard.blocks: expected one of mode, window_minutes"),
            ('"acme:small"', '"small"', "guards.standard.cheaper_models: expected provider:model"),
            ('"acme:small"', "7", "guards.standard.cheaper_models: expected provider:model"),
            ("caps.run]", "caps.team]", "guards.standard.caps.team: expected one of run, session, member, key, pool; this key is unknown"),
            ("lifetime =", "week =", "guards.standard.caps.run.week: expected one of hour, day, period, lifetime; this key is unknown"),
            ('lifetime = "50"', 'lifetime = "unlimited"', "guards.standard.caps.run.lifetime: expected an amount as a string"),
            ('lifetime = "50"', "lifetime = -5", "guards.standard.caps.run.lifetime: expected an amount as a string"),
            ('lifetime = "50"\n', "", "guards.standard.caps.run: expected a cap for at least one of hour, day, period, lifetime"),
        ],
    )
    def test_a_guard_that_makes_no_sense_is_refused_with_its_place(self, old: str, new: str, said: str) -> None:
        assert old in GUARDED
        found = problems(GUARDED.replace(old, new, 1))
        assert any(problem.startswith(said) for problem in found), found
