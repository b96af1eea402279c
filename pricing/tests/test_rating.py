"""Rating is exact: the figures of the source documents to the nano, every mode, every refusal."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing import rating
from pricing.rating import NANOS, Price, RateCard, compile_book, compile_table, explain, rate

SONNET = "anthropic:claude-sonnet-4-5"
OPUS = "anthropic:claude-opus-4-1"
BOOK = compile_book(
    model=SONNET,
    prices=[
        Price("input_tokens", 3 * NANOS, 1_000_000, row_id=1),
        Price("output_tokens", 15 * NANOS, 1_000_000, row_id=2),
        Price("cached_input_tokens", 300_000_000, 1_000_000, row_id=3),
        Price("cache_write_tokens", 3_750_000_000, 1_000_000, row_id=4),
        Price("images", 40_000_000, 1, row_id=5),
        Price("seconds", 150_000_000, 3_600, row_id=6),
        Price("input_tokens", 1_500_000_000, 1_000_000, row_id=7, service_level="batch"),
    ],
)
LONG = compile_book(
    model=SONNET,
    prices=[
        Price("input_tokens", 3 * NANOS, 1_000_000, row_id=1),
        Price("output_tokens", 15 * NANOS, 1_000_000, row_id=2),
        Price("cached_input_tokens", 300_000_000, 1_000_000, row_id=3),
        Price("input_tokens", 6 * NANOS, 1_000_000, row_id=4, context_above=200_000),
        Price("cached_input_tokens", 600_000_000, 1_000_000, row_id=5, context_above=200_000),
    ],
)
ROVER = RateCard(id=1, mode="markup", markup_ppm=500_000)
PRPM = RateCard(
    id=2,
    mode="credit_rate",
    tokens_per_credit=5_000,
    default_multiplier_ppm=1_000_000,
    quantum_nanos=NANOS,
    minimum_nanos=NANOS,
    credit_value_nanos=50_000_000,
    multipliers={OPUS: 5_000_000},
)
BYO = RateCard(id=3, mode="byo")
INCLUDED = RateCard(id=4, mode="included")
AT_COST = RateCard(id=5, mode="pass_through")
RETAIL = RateCard(
    id=6,
    mode="price_book",
    retail={SONNET: compile_table([Price("input_tokens", 4 * NANOS, 1_000_000), Price("output_tokens", 20 * NANOS, 1_000_000)])},
)

tokens = st.integers(0, 10**9)
quantities_of_book = st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": tokens,
        "output_tokens": tokens,
        "cached_input_tokens": tokens,
        "cache_write_tokens": tokens,
        "seconds": tokens,
    },
)
cards = st.sampled_from([ROVER, AT_COST, INCLUDED, RateCard(id=9, mode="markup", markup_ppm=333_333, quantum_nanos=1_000)])


def rated(card: RateCard, quantities: Any, *, book: rating.Book = BOOK, **more: Any) -> rating.Rated:
    return rate(card=card, book=book, model=book.model, quantities=quantities, **more)


class TestWorkedExamples:
    def test_rover_charges_45_cents_for_100_000_sonnet_tokens_that_cost_30(self) -> None:
        answer = rated(ROVER, {"input_tokens": 100_000})
        assert (answer.price_nanos, answer.cost_nanos, answer.list_value_nanos) == (450_000_000, 300_000_000, 450_000_000)
        assert answer.list_value_nanos - answer.cost_nanos == 150_000_000

    def test_one_token_costs_4_500_nanos_and_ten_thousand_records_sum_to_exactly_45_000_000(self) -> None:
        assert rated(ROVER, {"input_tokens": 1}).price_nanos == 4_500
        assert sum(rated(ROVER, {"input_tokens": 1}).price_nanos for _ in range(10_000)) == 45_000_000

    @pytest.mark.failure(19)
    def test_a_thousand_records_of_137_tokens_at_4_dollars_50_a_million_are_61_65_cents_and_not_nothing(self) -> None:
        assert sum(rated(ROVER, {"input_tokens": 137}).price_nanos for _ in range(1_000)) == 616_500_000

    def test_cached_input_has_its_own_price(self) -> None:
        answer = rated(AT_COST, {"input_tokens": 1_000, "cached_input_tokens": 9_000})
        assert answer.cost_nanos == 1_000 * 3_000 + 9_000 * 300

    def test_prpm_charges_whole_credits_of_5_000_tokens_and_five_times_for_opus(self) -> None:
        opus = compile_book(model=OPUS, prices=[Price("input_tokens", 15 * NANOS, 1_000_000, 1)])
        assert rated(PRPM, {"input_tokens": 5_000}).price_nanos == NANOS
        assert rated(PRPM, {"input_tokens": 4_000, "output_tokens": 1_001}).price_nanos == 2 * NANOS
        assert rated(PRPM, {"input_tokens": 1}).price_nanos == NANOS
        assert rated(PRPM, {"input_tokens": 5_000}, book=opus).price_nanos == 5 * NANOS
        assert rated(PRPM, {"input_tokens": 5_000}).list_value_nanos == 50_000_000

    def test_a_price_comes_from_the_exact_cost_not_from_the_rounded_one(self) -> None:
        book = compile_book(model=SONNET, prices=[Price("input_tokens", 1, 3, 1)])
        answer = rated(RateCard(id=1, mode="markup", markup_ppm=2_000_000), {"input_tokens": 1}, book=book)
        assert (answer.cost_nanos, answer.price_nanos) == (1, 1)  # ⌈1/3⌉ and ⌈3 × 1/3⌉, not 3 × ⌈1/3⌉

    def test_prices_over_different_units_are_added_before_rounding(self) -> None:
        book = compile_book(
            model=SONNET, prices=[Price("input_tokens", 1, 3, 1), Price("output_tokens", 1, 6, 2), Price("seconds", 1, 2, 3)]
        )
        assert rated(AT_COST, {"input_tokens": 1, "output_tokens": 1, "seconds": 1}, book=book).cost_nanos == 1


class TestModes:
    def test_own_keys_cost_and_charge_nothing_even_on_a_model_that_nobody_priced(self) -> None:
        empty = compile_book(model="acme:unknown", prices=[])
        assert rated(BYO, {"input_tokens": 100}, book=empty) == (0, 0, 0, ("input_tokens",), ())

    def test_included_usage_costs_us_and_charges_nothing(self) -> None:
        answer = rated(INCLUDED, {"seconds": 3_600})
        assert (answer.cost_nanos, answer.price_nanos, answer.price_row_ids) == (150_000_000, 0, (6,))

    def test_at_cost_the_price_is_the_cost(self) -> None:
        answer = rated(AT_COST, {"input_tokens": 7, "images": 2})
        assert answer.price_nanos == answer.cost_nanos == 7 * 3_000 + 80_000_000

    def test_a_retail_card_charges_its_own_prices_and_keeps_the_cost_real(self) -> None:
        answer = rated(RETAIL, {"input_tokens": 1_000_000})
        assert (answer.cost_nanos, answer.price_nanos) == (3 * NANOS, 4 * NANOS)

    def test_a_model_may_have_its_own_markup(self) -> None:
        card = RateCard(id=1, mode="markup", markup_ppm=500_000, markups={SONNET: 350_000})
        assert rated(card, {"input_tokens": 1_000_000}).price_nanos == 4_050_000_000

    def test_a_markup_in_another_unit_than_usd_is_worth_the_same(self) -> None:
        card = RateCard(id=1, mode="markup", markup_ppm=500_000, credit_value_nanos=50_000_000)
        answer = rated(card, {"input_tokens": 1_000_000})
        assert (answer.price_nanos, answer.list_value_nanos) == (90 * NANOS, 4_500_000_000)

    def test_the_minimum_is_for_records_that_used_something(self) -> None:
        card = RateCard(id=1, mode="markup", minimum_nanos=10_000)
        assert rated(card, {"input_tokens": 1}).price_nanos == 10_000
        assert rated(card, {"input_tokens": 0}).price_nanos == 0

    def test_a_price_is_rounded_up_to_the_quantum(self) -> None:
        card = RateCard(id=1, mode="pass_through", quantum_nanos=10_000_000)
        assert rated(card, {"input_tokens": 1}).price_nanos == 10_000_000
        assert rated(card, {"input_tokens": 10_000}).price_nanos == 30_000_000

    def test_an_unknown_mode_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no mode 'free'"):
            rated(RateCard(id=1, mode="free"), {"input_tokens": 1})


class TestContextAndLevels:
    @pytest.mark.failure(42)
    def test_a_long_context_prices_all_tokens_at_the_row_above_its_threshold(self) -> None:
        assert rated(AT_COST, {"input_tokens": 200_000}, book=LONG).price_row_ids == (1,)
        assert rated(AT_COST, {"input_tokens": 200_001}, book=LONG) == (
            1_200_006_000,
            1_200_006_000,
            1_200_006_000,
            ("input_tokens",),
            (4,),
        )

    def test_the_context_is_all_that_the_model_reads(self) -> None:
        below = {"input_tokens": 100_000, "cached_input_tokens": 100_000, "output_tokens": 10**6}
        assert rated(AT_COST, below, book=LONG).price_row_ids == (1, 3, 2)
        assert rated(AT_COST, below | {"cached_input_tokens": 100_001}, book=LONG).price_row_ids == (4, 5, 2)

    def test_a_batch_has_its_own_prices_and_never_the_standard_ones(self) -> None:
        assert rated(AT_COST, {"input_tokens": 1_000_000}, service_level="batch").cost_nanos == 1_500_000_000
        with pytest.raises(rating.UnpricedUsage) as refusal:
            rated(AT_COST, {"input_tokens": 1, "output_tokens": 1}, service_level="batch")
        assert refusal.value.components == ("output_tokens",)


class TestNothingIsGuessed:
    @pytest.mark.failure(31)
    @pytest.mark.parametrize("card", [ROVER, PRPM, INCLUDED, AT_COST, RETAIL])
    def test_an_unknown_model_has_no_cost(self, card: RateCard) -> None:
        with pytest.raises(rating.UnpricedUsage) as refusal:
            rated(card, {"input_tokens": 1}, book=compile_book(model="acme:unknown", prices=[]))
        assert (refusal.value.model, refusal.value.components) == ("acme:unknown", ("input_tokens",))

    @pytest.mark.failure(32)
    def test_every_component_without_a_price_is_named(self) -> None:
        with pytest.raises(rating.UnpricedUsage) as refusal:
            rated(ROVER, {"input_tokens": 1, "reasoning_tokens": 2, "cache_write_1h_tokens": 3, "egress_gb": 0})
        assert refusal.value.components == ("reasoning_tokens", "cache_write_1h_tokens")

    def test_a_component_without_a_retail_price_is_refused_though_its_cost_is_known(self) -> None:
        with pytest.raises(rating.UnpricedUsage, match="retail price"):
            rated(RETAIL, {"input_tokens": 1, "cached_input_tokens": 1})

    def test_a_model_that_a_retail_card_does_not_sell_is_refused(self) -> None:
        with pytest.raises(rating.UnpricedUsage, match="retail price"):
            rated(RateCard(id=1, mode="price_book"), {"input_tokens": 1})

    def test_a_credit_card_refuses_what_has_no_tokens_and_models_without_a_multiplier(self) -> None:
        with pytest.raises(rating.UnpricedUsage) as refusal:
            rated(PRPM, {"input_tokens": 1, "images": 1})
        assert refusal.value.components == ("images",)
        with pytest.raises(rating.UnpricedUsage):
            rated(RateCard(id=1, mode="credit_rate", tokens_per_credit=5_000), {"input_tokens": 1})

    def test_another_models_book_is_refused(self) -> None:
        with pytest.raises(ValueError, match=f"price book of {SONNET} cannot rate {OPUS}"):
            rate(card=ROVER, book=BOOK, model=OPUS, quantities={"input_tokens": 1})


class TestGarbage:
    @pytest.mark.failure(29)
    @pytest.mark.parametrize("card", [ROVER, BYO, PRPM])
    @pytest.mark.parametrize("garbage", [-1, 1.5, True, "５", "5", float("nan"), None, [], 10**24])
    def test_a_quantity_is_a_whole_number_from_0_to_10_to_the_12(self, card: RateCard, garbage: Any) -> None:
        with pytest.raises(rating.InvalidQuantity, match="output_tokens"):
            rated(card, {"input_tokens": 1, "output_tokens": garbage})

    @pytest.mark.parametrize("card", [ROVER, BYO])
    @pytest.mark.parametrize("quantity", [0, 1])
    def test_an_unknown_component_is_refused_even_at_0(self, card: RateCard, quantity: int) -> None:
        with pytest.raises(rating.InvalidQuantity, match="'tokens' is no component"):
            rated(card, {"tokens": quantity})

    def test_10_to_the_12_is_a_quantity_and_one_more_overflows(self) -> None:
        book = compile_book(model=SONNET, prices=[Price("input_tokens", 1, 1, 1)])
        assert rated(AT_COST, {"input_tokens": 10**12}, book=book).cost_nanos == 10**12
        with pytest.raises(rating.QuantityOverflow):
            rated(AT_COST, {"input_tokens": 10**12 + 1}, book=book)

    @pytest.mark.failure(30)
    def test_10_to_the_9_tokens_at_75_dollars_a_million_are_75_000_dollars_exactly(self) -> None:
        book = compile_book(model=SONNET, prices=[Price("output_tokens", 75 * NANOS, 1_000_000, 1)])
        assert rated(AT_COST, {"output_tokens": 10**9}, book=book).cost_nanos == 75_000 * NANOS

    def test_a_record_above_a_million_dollars_overflows(self) -> None:
        book = compile_book(model=SONNET, prices=[Price("images", 10**15, 1, 1)])
        assert rated(AT_COST, {"images": 1}, book=book).cost_nanos == 10**15
        with pytest.raises(rating.QuantityOverflow):
            rated(AT_COST, {"images": 2}, book=book)
        with pytest.raises(rating.QuantityOverflow):
            rated(RateCard(id=1, mode="markup", markup_ppm=1_000_000), {"images": 1}, book=book)


class TestProperties:
    @given(quantities=quantities_of_book, card=cards)
    def test_rounding_adds_less_than_one_nano_to_the_cost_and_one_quantum_to_the_price(
        self, quantities: dict[str, int], card: RateCard
    ) -> None:
        answer = rated(card, quantities)
        lines = explain(card=card, book=BOOK, model=SONNET, quantities=quantities)
        assert 0 <= answer.cost_nanos - sum((line.cost for line in lines), Fraction(0)) < 1
        assert 0 <= answer.price_nanos - sum((line.charge for line in lines), Fraction(0)) < card.quantum_nanos

    @given(quantities=quantities_of_book, more=quantities_of_book, card=st.one_of(cards, st.just(PRPM)))
    def test_more_usage_never_costs_less(self, quantities: dict[str, int], more: dict[str, int], card: RateCard) -> None:
        if card is PRPM:
            quantities, more = ({name: value for name, value in given.items() if name != "seconds"} for given in (quantities, more))
        both = {name: quantities.get(name, 0) + more.get(name, 0) for name in {*quantities, *more}}
        assert rated(card, both).cost_nanos >= rated(card, quantities).cost_nanos
        assert rated(card, both).price_nanos >= rated(card, quantities).price_nanos

    @given(quantities=quantities_of_book, card=cards)
    def test_the_order_of_components_does_not_matter(self, quantities: dict[str, int], card: RateCard) -> None:
        assert rated(card, dict(reversed(quantities.items())))[:3] == rated(card, quantities)[:3]

    @pytest.mark.failure(19)
    @given(records=st.lists(quantities_of_book, max_size=20))
    def test_one_record_of_all_costs_at_most_as_much_as_its_parts_and_at_least_that_less_a_nano_each(
        self, records: list[dict[str, int]]
    ) -> None:
        parts = sum(rated(ROVER, record).price_nanos for record in records)
        whole = {name: sum(record.get(name, 0) for record in records) for name in {name for record in records for name in record}}
        assert parts - len(records) <= rated(ROVER, whole).price_nanos <= parts

    @given(quantities=quantities_of_book)
    def test_a_component_that_was_used_has_the_row_it_was_priced_with(self, quantities: dict[str, int]) -> None:
        answer = rated(ROVER, quantities)
        assert answer.components == tuple(name for name, quantity in quantities.items() if quantity)
        rows = {"input_tokens": 1, "output_tokens": 2, "cached_input_tokens": 3, "cache_write_tokens": 4, "seconds": 6}
        assert answer.price_row_ids == tuple(rows[name] for name in answer.components)


class TestExplain:
    def test_lines_say_quantity_row_price_and_exact_cost_and_charge(self) -> None:
        lines = explain(card=ROVER, book=BOOK, model=SONNET, quantities={"input_tokens": 1, "seconds": 1, "images": 0})
        assert lines == (
            ("input_tokens", 1, 1, 3 * NANOS, 1_000_000, Fraction(3_000), Fraction(4_500)),
            ("seconds", 1, 6, 150_000_000, 3_600, Fraction(125_000, 3), Fraction(62_500)),
        )

    def test_retail_lines_charge_retail_and_cost_wholesale(self) -> None:
        (line,) = explain(card=RETAIL, book=BOOK, model=SONNET, quantities={"output_tokens": 1})
        assert (line.cost, line.charge) == (Fraction(15_000), Fraction(20_000))

    @pytest.mark.parametrize("card", [BYO, INCLUDED])
    def test_lines_that_charge_nothing_say_so(self, card: RateCard) -> None:
        (line,) = explain(card=card, book=BOOK, model=SONNET, quantities={"output_tokens": 1})
        assert (line.component, line.charge) == ("output_tokens", Fraction(0))

    def test_what_cannot_be_rated_cannot_be_explained(self) -> None:
        with pytest.raises(rating.UnpricedUsage):
            explain(card=ROVER, book=BOOK, model=SONNET, quantities={"reasoning_tokens": 1})


def test_the_rows_of_a_book_are_all_that_rating_may_use() -> None:
    assert LONG.row_ids == (1, 2, 3, 4, 5)
    assert compile_book(model="acme:unknown", prices=[]).row_ids == ()


def test_positions_of_components_never_change() -> None:
    """Stored arrays are in this order: append, never insert or rename."""
    assert rating.COMPONENTS[:15] == (
        *("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"),
        *("input_audio_tokens", "output_audio_tokens", "images", "seconds", "gb_months", "requests"),
        *("cached_input_audio_tokens", "egress_gb", "web_searches"),
    )
