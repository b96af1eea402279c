"""The margin lint finds what the five businesses' own documents sell at a loss, with its arithmetic, and never refuses what only improves.

The figures are those of the requirements' table of contradictions (C-01 … C-33), typed in by hand; what is sold is read from the shipped
catalogs. Upstream prices are Sonnet's $3 and $15 per million tokens, on which the documents calculate.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing import catalog_file, margin_lint, margin_terms, rating
from pricing.margin_lint import Fee, Finding, Mix
from pricing.rating import Price

CATALOGS = Path(__file__).parents[1] / "catalogs"
SONNET, OPUS, NANO = "anthropic:claude-sonnet-4-5", "anthropic:claude-opus-4-1", "openai:gpt-5-nano"
STRIPE = Fee(Fraction(29, 1000), Fraction("0.30"))
Document = dict[str, Any]


def book(model: str, cents_in: int, cents_out: int) -> rating.Book:
    prices = [Price(name, cents * 10**7, 10**6) for name, cents in (("input_tokens", cents_in), ("output_tokens", cents_out))]
    return rating.compile_book(model=model, prices=prices)


BOOKS = {SONNET: book(SONNET, 3_00, 15_00), OPUS: book(OPUS, 15_00, 75_00), NANO: book(NANO, 5, 40)}


def shipped(slug: str, *changes: tuple[str, Any]) -> Document:
    """A shipped catalog, with other values where ``changes`` name a path."""
    document = catalog_file.parse((CATALOGS / f"{slug}.toml").read_bytes())
    for path, value in changes:
        document = catalog_file.with_value(document, path.split("."), value)
    return document


def findings(document: Document, mix: Mix | None = None) -> dict[tuple[str, str, str], Finding]:
    found = margin_terms.find(document, books=BOOKS, mix=mix or margin_terms.expected_mix(document))
    return {finding.key: finding for finding in found}


def shown(margin: Fraction | None) -> str:
    return margin_lint.percent(margin)


ROVER = [  # C-03: without and with Stripe's fee
    ("starter", "standard", "20.0 %", "14.1 %"),
    ("standard", "standard", "14.7 %", "10.6 %"),
    ("pro", "standard", "6.7 %", "3.2 %"),
    ("enterprise", "standard", "0.0 %", "−3.2 %"),
    ("starter", "reduced", "11.1 %", "5.2 %"),
    ("standard", "reduced", "5.2 %", "1.1 %"),
    ("pro", "reduced", "−3.7 %", "−7.2 %"),
    ("enterprise", "reduced", "−11.1 %", "−14.3 %"),
]
PRPM = [("small", "22.0 %", "13.1 %"), ("medium", "2.5 %", "−3.4 %"), ("large", "−17.0 %", "−21.4 %")]  # C-02
LIMITS = [  # C-01, C-18
    ("prpm", "plans.individual", "16.7 %", "8.8 %", "83 %"),
    ("prpm", "plans.org_member", "16.7 %", "3.8 %", "83 %"),
    ("elite", "plans.elite", "70.0 %", "66.5 %", "78 %"),
]
AT_COST = [  # C-33
    ("teach_charlie", "top_up_20", "at_cost", "−4.4 %"),
    ("supabase_chat", "top_up_10", "retail", "−5.9 %"),
]


class TestBusinesses:
    @pytest.mark.parametrize(("pack", "card", "before", "after"), ROVER)
    def test_rovers_packs_miss_their_target_and_the_largest_lose(self, pack: str, card: str, before: str, after: str) -> None:
        found = findings(shipped("rover"))[f"packs.{pack}", "credit", card]
        assert [shown(case.before_fee) for case in found.cases] == [before] * 3
        assert [shown(case.margin) for case in found.cases] == [after] * 3
        assert found.target == Fraction(40, 100)
        assert found.is_below_target
        assert found.is_below_floor == after.startswith("−")

    @pytest.mark.parametrize(("pack", "before", "after"), PRPM)
    def test_prpms_large_pack_loses_on_sonnet(self, pack: str, before: str, after: str) -> None:
        document = catalog_file.with_value(shipped("prpm"), ["rate_cards", "tokens", "multipliers"], None)
        found = findings(document)[f"packs.{pack}", "credit", "tokens"]
        assert (shown(found.expected.before_fee), shown(found.expected.margin)) == (before, after)
        assert found.is_below_floor == after.startswith("−")

    def test_a_hundred_credits_cost_more_than_the_plan_for_three_dollars(self) -> None:
        document = shipped("prpm", ("plans.org_member.included_credit", "100"))
        found = findings(document)["plans.org_member", "included credit", "tokens"]
        assert shown(found.expected.before_fee) == "−30.0 %"
        assert "The cost limit of $2.50 a month may stop use before." in found.assumptions
        assert findings(shipped("prpm"))["plans.org_member", "included credit", "tokens"].expected.before_fee == Fraction(35, 100)

    @pytest.mark.parametrize(("product", "plan", "before", "after", "target"), LIMITS)
    def test_a_target_is_not_the_margin_at_the_limit(self, product: str, plan: str, before: str, after: str, target: str) -> None:
        found = findings(shipped(product))[plan, "cost limit", ""]
        assert (shown(found.worst.before_fee), shown(found.margin)) == (before, after)
        assert margin_lint.percent(found.target, 0) == target
        assert found.is_below_target
        assert not found.is_below_floor

    def test_elites_limit_that_is_only_measured_says_so(self) -> None:
        found = findings(shipped("elite"))["plans.elite", "cost limit", ""]
        assert "The limit is measured and does not stop use: beyond it the margin is lower still." in found.assumptions

    @pytest.mark.parametrize(("product", "pack", "card", "after"), AT_COST)
    def test_what_is_passed_on_at_cost_loses_the_fee(self, product: str, pack: str, card: str, after: str) -> None:
        document = shipped(product)
        mix = Mix({NANO: 1}, Fraction(3, 5), "They use one model.")
        found = findings(document, mix)[f"packs.{pack}", "credit", card]
        assert (shown(found.expected.before_fee), shown(found.margin)) == ("0.0 %", after)
        assert found.is_loss
        assert not found.is_below_floor  # neither product has a floor: they do not mean to earn on use

    def test_a_top_up_of_ten_dollars_at_cost_loses_59_cents(self) -> None:
        document = shipped("teach_charlie", ("packs.top_up_20.price", "10.00"), ("packs.top_up_20.credit", "10.00"))
        found = findings(document)["packs.top_up_20", "credit", "at_cost"]
        assert shown(found.margin) == "−5.9 %"
        assert found.worst.fee == Fraction("0.59")

    def test_every_other_thing_on_sale_is_looked_at_too(self) -> None:
        kinds = {(slug, one[0], one[1]) for slug in ("rover", "prpm", "elite") for one in findings(shipped(slug))}
        assert kinds >= {
            ("rover", "plans.core", "included credit"),
            ("rover", "plans.pro", "included credit"),
            ("prpm", "plans.individual", "included credit"),
            ("prpm", "plans.free", "cost limit"),
        }
        assert findings(shipped("prpm"))["plans.free", "cost limit", ""].headline.endswith("given away, up to $0.50 of cost.")

    def test_a_cap_of_ten_dollars_that_raises_every_limit_is_found(self) -> None:
        before = shipped("prpm")
        tiers = ("free", "prpm_plus_individual", "prpm_plus_org", "unlimited")
        after = shipped("prpm", *((f"cost_tiers.{slug}.monthly_cost", "10.00") for slug in tiers))
        found = {finding.offer: finding.unknown for finding in margin_terms.raised(before, after)}
        assert found == {
            "cost_tiers.free.monthly_cost": "It is $0.50 and would be $10.00, 20 times as much. That is above the price of $0.00."
            " A cap is the lower of the two: $0.50 stays.",
            "cost_tiers.prpm_plus_individual.monthly_cost": "It is $5.00 and would be $10.00, 2 times as much. That is above the price of"
            " $6.00. A cap is the lower of the two: $5.00 stays.",
            "cost_tiers.prpm_plus_org.monthly_cost": "It is $2.50 and would be $10.00, 4 times as much. That is above the price of $3.00."
            " A cap is the lower of the two: $2.50 stays.",
        }
        assert margin_terms.raised(after, before) == []

    def test_limits_that_were_the_same_and_rise_together_are_no_cap(self) -> None:
        paths = [f"cost_tiers.{slug}.monthly_cost" for slug in ("free", "prpm_plus_individual")]
        before, after = (shipped("prpm", *((path, amount) for path in paths)) for amount in ("5.00", "6.00"))
        assert margin_terms.raised(before, after) == []

    def test_a_cap_that_raises_needs_a_second_person_with_or_without_a_floor(self) -> None:
        found = margin_terms.raised(
            shipped("prpm"), shipped("prpm", *((f"cost_tiers.{slug}.daily_cost", "1.00") for slug in ("free", "prpm_plus_org")))
        )
        assert margin_lint.refused(before=[], after=found) == found != []


class TestArithmetic:
    def test_a_person_can_follow_rovers_enterprise_pack(self) -> None:
        found = findings(shipped("rover"))["packs.enterprise", "credit", "standard"]
        assert found.headline == "Enterprise Pack at the rate card standard: −3.2 % at worst, below the floor of 0 %."
        assert found.worst.says == (
            "$150.00 of credit ÷ 1.5 (50 % markup) = $100.00 upstream.",
            "Without the fee: $100.00 − $100.00 = $0.00; ÷ $100.00 = 0.0 %.",
            "Payment fee: 2.9 % of $100.00 + $0.30 = $3.20.",
            "Left: $100.00 − $3.20 − $100.00 = −$3.20; ÷ $100.00 = −3.2 %.",
        )
        assert found.assumptions == ("All of it is used.", "Every model earns the same: the price is its cost and the markup.")
        assert found.change == (
            "For 40 % at worst: a price of $175.66, or at most $85.00 for this price, or at least 43.2 % of it never used.",
        )

    def test_a_person_can_follow_prpms_large_pack(self) -> None:
        document = catalog_file.with_value(shipped("prpm"), ["rate_cards", "tokens", "multipliers"], None)
        found = findings(document)["packs.large", "credit", "tokens"]
        assert found.expected.says[:3] == (
            f"A million tokens on {SONNET}, input and output by their share: 0.6 × $3.00 + 0.4 × $15.00 = $7.80.",
            "600 credits × 5,000 tokens × $7.80 per million = $23.40 upstream.",
            "Without the fee: $20.00 − $23.40 = −$3.40; ÷ $20.00 = −17.0 %.",
        )

    def test_a_mix_lies_between_its_models(self) -> None:
        mix = Mix({SONNET: 3, NANO: 1}, Fraction(3, 5), "As used.")
        found = findings(shipped("prpm"), mix)["packs.small", "credit", "tokens"]
        assert (found.best.model, found.expected.model) == (NANO, margin_lint.MIX)
        # 3/4 × $7.80 + 1/4 × $0.19 = $5.8975 a million tokens, 0.5 million of them
        assert found.expected.cost == Fraction("5.8975") / 2
        assert found.worst.cost == Fraction("3.90")  # Opus at $39.00, five times the credits

    def test_a_model_without_a_price_is_named_and_left_out(self) -> None:
        found = findings(shipped("prpm"))["packs.small", "credit", "tokens"]
        assert any("anthropic:claude-opus-5-5" in said for said in found.assumptions)

    def test_without_any_price_nothing_is_guessed(self) -> None:
        [found] = [one for one in margin_terms.find(shipped("prpm"), books={}, mix=None) if one.offer == "packs.large"]
        assert found.headline.startswith("Large Pack at the rate card tokens: cannot be computed, no model that its rate card names")
        assert not found.is_below_floor

    def test_a_price_in_another_currency_is_not_compared_with_dollars(self) -> None:
        found = findings(shipped("rover", ("packs.pro.currency", "eur")))["packs.pro", "credit", "standard"]
        assert found.unknown == "sold in EUR, while costs are in dollars."

    def test_a_yearly_plan_pays_for_twelve_limits(self) -> None:
        found = findings(shipped("elite", ("plans.elite.interval", "year"), ("plans.elite.price", "500.00")))[
            "plans.elite", "cost limit", ""
        ]
        assert found.worst.cost == 180


class TestRefusal:
    def refused(self, before: Document, after: Document) -> set[str]:
        there, found = (margin_terms.find(one, books=BOOKS, mix=margin_terms.expected_mix(one)) for one in (before, after))
        return {finding.offer for finding in margin_lint.refused(before=there, after=found)}

    def test_what_is_below_the_floor_already_may_stay_and_may_improve(self) -> None:
        rover = shipped("rover")
        assert self.refused(rover, rover) == set()
        assert self.refused(rover, shipped("rover", ("packs.enterprise.price", "101.00"))) == set()
        assert self.refused(rover, shipped("rover", ("packs.enterprise.credit", "149.00"))) == set()

    @pytest.mark.parametrize(
        ("change", "offers"),
        [
            (("packs.enterprise.credit", "151.00"), {"packs.enterprise"}),
            (("packs.starter.price", "7.00"), {"packs.starter"}),
            (("rate_cards.standard.markup_percent", "35"), {"packs.pro", "packs.enterprise"}),
            (("rate_cards.standard.markup_percent", "60"), set()),
            (("plans.core.included_credit", "40.00"), {"plans.core"}),
        ],
    )
    def test_what_gets_worse_below_the_floor_is_refused(self, change: tuple[str, str], offers: set[str]) -> None:
        assert self.refused(shipped("rover"), shipped("rover", change)) == offers

    def test_something_new_below_the_floor_is_refused(self) -> None:
        rover = shipped("rover")
        before = catalog_file.with_value(rover, ["packs", "enterprise"], None)
        assert self.refused(before, rover) == {"packs.enterprise"}

    def test_another_card_is_held_against_the_worst_of_the_same_offer(self) -> None:
        rover = shipped("rover")
        cards = rover["rate_cards"] | {"kind": {"mode": "markup", "markup_percent": "45"}}
        plans = {slug: plan | {"alternative_rate_cards": ["reduced", "kind"]} for slug, plan in rover["plans"].items()}
        assert self.refused(rover, rover | {"rate_cards": cards, "plans": plans}) == set()

    def test_without_a_floor_nothing_is_refused(self) -> None:
        before = shipped("rover", ("product.floor_margin_percent", None))
        assert self.refused(before, shipped("rover", ("product.floor_margin_percent", None), ("packs.pro.credit", "500.00"))) == set()

    def test_a_limit_above_the_price_is_refused(self) -> None:
        after = shipped("prpm", ("cost_tiers.prpm_plus_individual.monthly_cost", "10.00"))
        assert self.refused(shipped("prpm"), after) == {"plans.individual"}


PRICES = st.integers(1, 10**6).map(lambda cents: Fraction(cents, 100))
CREDIT = st.integers(1, 10**6).map(Fraction)
MODELS = [SONNET, OPUS, NANO]
MIXES = st.dictionaries(st.sampled_from(MODELS), st.integers(1, 10**12), min_size=1)
CARDS = st.one_of(
    st.builds(lambda ppm: rating.RateCard(id=0, mode="markup", markup_ppm=ppm), st.integers(0, 5_000_000)),
    st.builds(
        lambda ppm, own: rating.RateCard(id=0, mode="markup", markup_ppm=ppm, markups=own),
        st.integers(0, 5_000_000),
        st.dictionaries(st.sampled_from(MODELS), st.integers(0, 5_000_000)),
    ),
    st.builds(
        lambda tokens, usual, own: rating.RateCard(
            id=0, mode="credit_rate", tokens_per_credit=tokens, default_multiplier_ppm=usual, multipliers=own
        ),
        st.integers(1, 10**6),
        st.integers(1, 10**7),
        st.dictionaries(st.sampled_from(MODELS), st.integers(1, 10**7)),
    ),
)


def sold(card: rating.RateCard, tokens: dict[str, int], price: Fraction, amount: Fraction, floor: Fraction = Fraction(0)) -> Finding:
    rates = margin_lint.rates(card=card, books=BOOKS, mix=Mix(tokens, Fraction(3, 5), "As used."))
    return margin_lint.credit(
        offer="packs.one", about="credit", name="One", card="card", price=price, amount=amount, shown=margin_lint.plain, rates=rates,
        fee=STRIPE, target=None, floor=floor,
    )  # fmt: skip


class TestProperties:
    @given(CARDS, MIXES, PRICES, CREDIT)
    def test_expected_lies_between_worst_and_best(
        self, card: rating.RateCard, tokens: dict[str, int], price: Fraction, amount: Fraction
    ) -> None:
        found = sold(card, tokens, price, amount)
        assert found.worst.cost >= found.expected.cost >= found.best.cost

    @given(CARDS, MIXES, PRICES, PRICES, CREDIT, st.integers(-100, 99))
    def test_a_higher_price_is_never_worse_and_never_refused(
        self, card: rating.RateCard, tokens: dict[str, int], price: Fraction, more: Fraction, amount: Fraction, floor: int
    ) -> None:
        before, after = (sold(card, tokens, each, amount, Fraction(floor, 100)) for each in (price, price + more))
        for old, new in zip(before.cases, after.cases, strict=True):
            assert old.margin is not None
            assert new.margin is not None
            assert new.margin >= old.margin
        assert margin_lint.refused(before=[before], after=[after]) == []

    @given(MIXES, PRICES, CREDIT, st.integers(0, 10**6), st.integers(0, 10**6))
    def test_a_higher_markup_is_never_worse(
        self, tokens: dict[str, int], price: Fraction, amount: Fraction, markup: int, more: int
    ) -> None:
        low, high = (rating.RateCard(id=0, mode="markup", markup_ppm=ppm) for ppm in (markup, markup + more))
        assert sold(high, tokens, price, amount).worst.cost <= sold(low, tokens, price, amount).worst.cost

    @given(CARDS, MIXES, PRICES, CREDIT, st.integers(-50, 90))
    def test_the_price_that_is_advised_reaches_the_floor(
        self, card: rating.RateCard, tokens: dict[str, int], price: Fraction, amount: Fraction, floor: int
    ) -> None:
        goal, found = Fraction(floor, 100), sold(card, tokens, price, amount, Fraction(floor, 100))
        for advice in found.change:
            head, _, rest = advice.partition("a price of $")
            if head != advice:
                dearer = sold(card, tokens, Fraction(rest.split(",  ")[0].split(" ")[0].rstrip(",.").replace(",", "")), amount, goal)
                assert not dearer.is_below_floor

    @given(st.integers(-(10**9), 10**9))
    def test_percentages_read_back_within_half_a_tenth(self, ppm: int) -> None:
        said = margin_lint.percent(Fraction(ppm, 10**6)).replace("−", "-").replace(",", "").removesuffix(" %")
        assert abs(Fraction(said) - Fraction(ppm, 10**4)) <= Fraction(5, 100)
