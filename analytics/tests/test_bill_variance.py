"""A bill against our record, pure: the split sums to the nano, names pair, and each planted cause is told from the others."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics import bill_findings, bill_variance
from analytics.bill_findings import Evidence, Finding, Kind
from analytics.bill_variance import Billed, Key, Recorded, Row, Variance

DAY = date(2026, 3, 5)
NANOS = 1_000_000_000
DATED = "b-2024-01-01"
#: $10 and $2.50 per 1,000,000.
OUT = Row(7, 10 * NANOS, 1_000_000)
IN = Row(8, 2_500_000_000, 1_000_000)


def billed(
    quantity: int | None, nanos: int, *, day: int = 0, model: str = "m", component: str = "output_tokens", level: str = ""
) -> Billed:
    return Billed(Key(DAY + timedelta(days=day), model, component, level), quantity, nanos)


def recorded(quantity: int, *, row: Row = OUT, day: int = 0, model: str = "m", component: str = "output_tokens", level: str = "standard",
             unpriced: int = 0) -> Recorded:  # fmt: skip
    key = Key(DAY + timedelta(days=day), model, component, level)
    cost = -(-quantity * row.price_nanos // row.per_units)
    return Recorded(key, quantity, cost, ((row, quantity),) if quantity else (), unpriced)


def compare(bill: list[Billed], ours: list[Recorded], book: Row | None = OUT) -> list[Variance]:
    return bill_variance.compare(billed=bill, recorded=ours, book=lambda key: book)


def diagnose(bill: list[Billed], ours: list[Recorded], book: Row | None = OUT, **evidence: Evidence) -> list[Finding]:
    found = {(DAY, model): one for model, one in evidence.items()}
    return bill_findings.diagnose(variances=compare(bill, ours, book), known={"m", "n"}, evidence=found)


class TestSplit:
    def test_more_at_our_price_is_volume_and_the_same_at_another_price_is_price(self) -> None:
        [more] = compare([billed(3_000_000, 30 * NANOS)], [recorded(1_000_000)])
        assert (more.volume_nanos, more.price_nanos) == (20 * NANOS, 0)
        [dearer] = compare([billed(1_000_000, 12 * NANOS)], [recorded(1_000_000)])
        assert (dearer.volume_nanos, dearer.price_nanos) == (0, 2 * NANOS)

    def test_both_at_once_take_our_price_for_the_volume_and_the_billed_quantity_for_the_price(self) -> None:
        [both] = compare([billed(2_000_000, 24 * NANOS)], [recorded(1_000_000)])
        assert (both.volume_nanos, both.price_nanos) == (10 * NANOS, 4 * NANOS)

    def test_without_a_record_the_price_books_price_counts_and_without_one_the_bills(self) -> None:
        [one] = compare([billed(1_000_000, 12 * NANOS)], [])
        assert (one.volume_nanos, one.price_nanos) == (10 * NANOS, 2 * NANOS)
        [one] = compare([billed(1_000_000, 12 * NANOS)], [], book=None)
        assert (one.volume_nanos, one.price_nanos) == (12 * NANOS, 0)

    def test_without_quantities_nothing_is_guessed(self) -> None:
        [one] = compare([billed(None, 12 * NANOS)], [recorded(1_000_000)])
        assert (one.volume_nanos, one.price_nanos, one.unsplit_nanos) == (0, 0, 2 * NANOS)

    def test_the_coarser_side_decides(self) -> None:
        ours = [recorded(1_000_000), recorded(1_000_000, level="batch"), recorded(4_000_000, row=IN, component="input_tokens")]
        assert [one.key.component for one in compare([billed(None, 30 * NANOS, component="")], ours)] == [""]
        lines = compare([billed(2_000_000, 20 * NANOS), billed(4_000_000, 10 * NANOS, component="input_tokens")], ours)
        assert [(one.key.component, one.key.level, one.difference_nanos) for one in lines] == [
            ("input_tokens", "", 0),
            ("output_tokens", "", 0),
        ]

    def test_reasoning_is_output_unless_the_bill_has_it_apart(self) -> None:
        ours = [recorded(1_000_000), recorded(500_000, component="reasoning_tokens")]
        [one] = compare([billed(1_500_000, 15 * NANOS)], ours)
        assert one.difference_nanos == 0
        assert len(compare([billed(1, 0), billed(1, 0, component="reasoning_tokens")], ours)) == 2

    quantities = st.integers(0, 10**15)
    keys = st.tuples(st.integers(0, 3), st.sampled_from(["m", "n"]), st.sampled_from(["output_tokens", "input_tokens", ""]))
    bills = st.lists(st.tuples(keys, st.none() | quantities, st.integers(0, 10**18)), max_size=12)
    parts = st.tuples(st.integers(0, 3), st.sampled_from(["m", "n"]), st.sampled_from(["output_tokens", "input_tokens"]))
    records = st.lists(st.tuples(parts, quantities, st.integers(0, 10**15), quantities), max_size=12)

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(bills, records, st.booleans())
    def test_volume_price_and_unsplit_sum_to_the_difference_to_the_nano(
        self,
        bills: list[tuple[tuple[int, str, str], int | None, int]],
        records: list[tuple[tuple[int, str, str], int, int, int]],
        book: bool,
    ) -> None:
        said = [billed(quantity, nanos, day=day, model=model, component=part) for (day, model, part), quantity, nanos in bills]
        ours = [
            replace(recorded(quantity, day=day, model=model, component=part, unpriced=more), cost_nanos=cost if quantity else 0)
            for (day, model, part), quantity, cost, more in records
        ]
        found = compare(said, ours, OUT if book else None)
        for one in found:
            assert one.volume_nanos + one.price_nanos + one.unsplit_nanos == one.billed_nanos - one.recorded_nanos
            assert one.unsplit_nanos == 0 or one.billed_quantity is None
        assert sum(one.billed_nanos for one in found) == sum(one.amount_nanos for one in said)
        assert sum(one.recorded_nanos for one in found) == sum(one.cost_nanos for one in ours)
        findings = bill_findings.diagnose(variances=found, known={"m"}, evidence={})
        unknown = sum(one.difference_nanos for one in found if one.key.model == "n")
        assert sum(one.amount_nanos for one in findings if one.kind == Kind.UNKNOWN_MODEL) in (0, unknown)


class TestFindings:
    def test_a_wrong_row_is_named_with_both_prices_and_the_roundest_price_that_explains_the_bill(self) -> None:
        bill = [billed(1_234_567, 14_814_804_000 + day, day=day) for day in range(3)]
        [one] = diagnose(bill, [recorded(1_234_567, day=day) for day in range(3)])
        assert (one.kind, one.rows, one.implied) == (Kind.PRICE, (OUT,), Decimal("0.000012"))
        assert one.text == (
            "m output_tokens: billed at $12.00 per 1,000,000; our price row 7 says $10.00 per 1,000,000. "
            "On 3 days from 2026-03-05 to 2026-03-07."
        )
        assert (one.first_day, one.last_day) == (DAY, DAY + timedelta(days=2))

    def test_a_price_that_changed_in_the_middle_is_named_for_its_own_days(self) -> None:
        bill = [billed(1_000_000, (10 if day < 2 else 12) * NANOS, day=day) for day in range(4)]
        [one] = diagnose(bill, [recorded(1_000_000, day=day) for day in range(4)])
        assert (one.first_day, one.last_day, one.amount_nanos) == (DAY + timedelta(days=2), DAY + timedelta(days=3), 4 * NANOS)

    def test_a_multiple_is_said(self) -> None:
        [one] = diagnose([billed(1_000_000, 20 * NANOS)], [recorded(1_000_000)])
        assert "billed at $20.00 per 1,000,000, 2 times ours; " in one.text

    def test_what_the_bill_rounds_to_cents_accuses_no_row(self) -> None:
        bill = [replace(billed(1_300, 10_000_000, day=day), precision_nanos=5_000_000) for day in range(30)]
        assert diagnose(bill, [recorded(1_300, day=day) for day in range(30)]) == []

    def test_a_day_without_records_is_missing_with_its_holds(self) -> None:
        bill = [billed(1_000_000, 10 * NANOS, day=day) for day in range(-1, 2)]
        ours = [recorded(1_000_000, day=day) for day in (-1, 1)]
        [one] = diagnose(bill, ours, m=Evidence(timed_out=3))
        assert (one.kind, one.amount_nanos) == (Kind.MISSING, 10 * NANOS)
        assert one.text == (
            "m: the bill has 1,000,000 output tokens, and nothing is recorded, $10.00. On 2026-03-05. "
            "3 holds of it timed out and were never captured."
        )

    def test_a_part_is_missing_in_every_component_as_one_finding(self) -> None:
        bill = [billed(1_000_000, 10 * NANOS), billed(1_000_000, 2_500_000_000, component="input_tokens")]
        [one] = diagnose(bill, [recorded(900_000), recorded(900_000, row=IN, component="input_tokens")])
        assert (one.kind, one.amount_nanos) == (Kind.MISSING, 1_250_000_000)
        assert "the bill has 100,000 input tokens, 100,000 output tokens more than is recorded" in one.text

    def test_traffic_of_one_day_recorded_on_the_next_is_late_and_not_missing(self) -> None:
        bill = [billed(1_000_000, 10 * NANOS, day=day) for day in range(4)]
        ours = [recorded(quantity, day=day) for day, quantity in enumerate((1_000_000, 400_000, 1_600_000, 1_000_000))]
        [one] = diagnose(bill, ours)
        assert (one.kind, one.amount_nanos) == (Kind.SHIFTED, 0)
        assert one.text == (
            "m: $6.00 of traffic that the bill has on 2026-03-06 is recorded on 2026-03-07. Its events carry a late time, or the "
            "provider's day does not begin at 00:00 UTC."
        )

    def test_what_has_no_price_is_not_missing(self) -> None:
        [one] = diagnose([billed(1_000_000, 10 * NANOS)], [recorded(250_000), recorded(0, unpriced=750_000)])
        assert (one.kind, one.amount_nanos) == (Kind.UNPRICED, 7_500_000_000)

    def test_what_is_recorded_twice_or_three_times_is_told_with_the_records_that_look_so(self) -> None:
        [one] = diagnose([billed(1_000_000, 10 * NANOS)], [recorded(3_000_000)], m=Evidence(duplicates=2))
        assert (one.kind, one.amount_nanos) == (Kind.DOUBLED, -20 * NANOS)
        assert one.text == (
            "m: 3 times what was billed is recorded, $20.00. On 2026-03-05. 2 records of it equal another in all but the key."
        )
        [some] = diagnose([billed(1_000_000, 10 * NANOS)], [recorded(1_200_000)])
        assert "m: 200,000 output tokens more is recorded than billed, $2.00." in some.text

    def test_a_model_that_is_not_billed_and_one_that_nobody_knows_are_listed(self) -> None:
        found = diagnose([billed(None, 3 * NANOS, model="web search", component="")], [recorded(1_000_000, model="n")])
        assert {(one.kind, one.model, one.amount_nanos) for one in found} == {
            (Kind.NOT_BILLED, "n", -10 * NANOS), (Kind.UNKNOWN_MODEL, "web search", 3 * NANOS),
        }  # fmt: skip

    def test_nothing_is_found_where_nothing_differs(self) -> None:
        assert diagnose([billed(1_000_000, 10 * NANOS)], [recorded(1_000_000)]) == []


class TestNames:
    @pytest.mark.parametrize(
        ("billed", "recorded", "book", "expected"),
        [
            (["gpt-4o-2024-08-06"], ["gpt-4o"], [], ({"gpt-4o-2024-08-06": "gpt-4o"}, {"gpt-4o": "gpt-4o"})),
            (["Claude Haiku 4.5"], ["claude-haiku-4-5-20251001"], [], ({"Claude Haiku 4.5": "claude-haiku-4-5-20251001"}, None)),
            (["Claude Haiku 3.5"], ["claude-3-5-haiku-latest"], [], ({"Claude Haiku 3.5": "claude-3-5-haiku-latest"}, None)),
            ([DATED], ["b", DATED], [], ({DATED: DATED}, {"b": DATED, DATED: DATED})),
            (["a-2024-01-01", "a-2025-01-01"], ["a"], [], (dict.fromkeys(["a-2024-01-01", "a-2025-01-01"], "a"), None)),
            (["a", "a-2024-01-01"], ["a", "a-2024-01-01"], [], ({"a": "a", "a-2024-01-01": "a-2024-01-01"}, None)),
            (["gpt-4o-mini"], ["gpt-4o"], [], ({}, None)),
            (["a-2024-01-01"], [], ["a"], ({"a-2024-01-01": "a"}, None)),
        ],
    )  # fmt: skip
    def test_names_that_differ_by_date_and_punctuation_are_one_where_that_is_clear(
        self, billed: list[str], recorded: list[str], book: list[str], expected: tuple[dict[str, str], dict[str, str] | None]
    ) -> None:
        of_bill, of_record = bill_variance.paired(billed=billed, recorded=recorded, book=book)
        assert of_bill == expected[0]
        assert of_record == (expected[1] if expected[1] is not None else {name: name for name in recorded})


class TestImplied:
    @given(st.integers(1, 10**6), st.integers(1, 10**12))
    def test_the_roundest_price_is_within_the_bounds(self, price: int, quantity: int) -> None:
        low, high = (Fraction(price * quantity + way, quantity) for way in (-1, 1))
        assert low <= Fraction(bill_findings.implied(low, high)) * NANOS <= high

    def test_it_is_what_a_price_list_would_say(self) -> None:
        assert bill_findings.implied(Fraction(11_950), Fraction(12_040)) == Decimal("0.000012")
        assert bill_findings.implied(Fraction("37.499"), Fraction("37.501")) == Decimal("0.0000000375")
