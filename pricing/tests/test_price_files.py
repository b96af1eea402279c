"""Price files: LiteLLM's JSON and CSV become exact prices, and garbage is named with its line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from pricing import price_files
from pricing.price_import import Key

PROVIDERS = ("anthropic", "openai", "google")
HEAD = "provider,model,component,price_usd,per_units"
ENTRY: dict[str, Any] = {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05}


def figures(data: str | bytes) -> dict[Key, Decimal]:
    """USD for a million units."""
    found = price_files.read(data.encode() if isinstance(data, str) else data, providers=PROVIDERS)
    return {one.key: Decimal(one.price_nanos) / one.per_units / 1_000 for one in found.stretches}


def problems(data: str | bytes) -> list[str]:
    with pytest.raises(price_files.InvalidPriceFile) as refused:
        figures(data)
    return refused.value.problems


def litellm(**more: Any) -> str:
    return json.dumps({"sample_spec": {"input_cost_per_token": "a number"}, "gpt-x": ENTRY | more}, indent=1)


class TestLiteLlm:
    def test_prices_are_exact_and_reasoning_costs_what_output_does(self) -> None:
        assert figures(litellm()) == {
            Key("openai", "gpt-x", "input_tokens", 0, "standard"): Decimal("2.5"),
            Key("openai", "gpt-x", "output_tokens", 0, "standard"): 10,
            Key("openai", "gpt-x", "reasoning_tokens", 0, "standard"): 10,
        }

    def test_contexts_levels_and_caches_have_their_own_rows(self) -> None:
        found = figures(
            litellm(
                input_cost_per_token_above_200k_tokens=5e-06, input_cost_per_token_batches=1.25e-06, cache_read_input_token_cost=2.5e-07,
                search_context_cost_per_query={"low": 0.03}, output_cost_per_reasoning_token=2e-05,
            )
        )  # fmt: skip
        assert found[Key("openai", "gpt-x", "input_tokens", 200_000, "standard")] == 5
        assert found[Key("openai", "gpt-x", "input_tokens", 0, "batch")] == Decimal("1.25")
        assert found[Key("openai", "gpt-x", "cached_input_tokens", 0, "standard")] == Decimal("0.25")
        assert found[Key("openai", "gpt-x", "reasoning_tokens", 0, "standard")] == 20

    def test_other_providers_and_prices_without_a_component_are_left_out_whole(self) -> None:
        both = json.loads(litellm()) | {"x": ENTRY | {"litellm_provider": "bedrock"}, "gpt-i": ENTRY | {"output_cost_per_image": 1}}
        found = price_files.read(json.dumps(both).encode(), providers=PROVIDERS)
        assert {one.key.model for one in found.stretches} == {"gpt-x"}
        assert found.skipped == ("openai:gpt-i: no component for output_cost_per_image",)

    def test_googles_models_are_known_by_their_own_names(self) -> None:
        [model] = {key.model for key in figures(json.dumps({"gemini/gemini-x": ENTRY | {"litellm_provider": "gemini"}}))}
        assert model == "gemini-x"

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            ('{\n "a": 1,\n}', "line 3: not JSON"),
            ("[1]", "line 1: expected an object"),
            ("{", "line 1: not JSON"),
            (litellm(input_cost_per_token=-1), "line 5: gpt-x: expected a price that is 0 or more"),
            (litellm(input_cost_per_token=float("nan")), "NaN is none"),
            (litellm(input_cost_per_token="1"), "a number for input_cost_per_token"),
            (litellm(input_cost_per_token=True), "a number for input_cost_per_token"),
            (litellm().replace("2.5e-06", "1e400"), "at most 1,000,000 USD"),
            (litellm().replace("2.5e-06", "1e-400"), "at most 20 decimals"),
            (litellm().replace("2.5e-06", "1e999999999999999999999"), "not JSON"),
            (litellm().replace("2.5e-06", "9" * 5_000), "at most 30 digits"),
            (litellm().replace("2.5e-06", "0.0000000000000000333333333333333333333"), "fewer digits"),
            ('{"gpt-x": {}, \n"gpt-x": {}}', "line 2: gpt-x: expected every key once"),
            (json.dumps({"gpt-x": ENTRY | {"litellm_provider": "nobody"}}), "there is none"),
            (json.dumps({"gpt-x": 5}), "an object of prices"),
            ("[" * 100_000, "nested too deeply"),
            ("", "the file is empty"),
            (b"\xff\xfe{", "line 1: not UTF-8"),
        ],
    )
    def test_garbage_is_named(self, data: str | bytes, expected: str) -> None:
        assert expected in "\n".join(problems(data))

    def test_a_file_beyond_its_size_is_refused_unread(self) -> None:
        assert "expected at most" in problems(b" " * (price_files.MAX_BYTES + 1))[0]


class TestCsv:
    def test_rows_have_their_units_levels_and_days_and_a_byte_order_mark_is_no_matter(self) -> None:
        text = f"\ufeff{HEAD},service_level,context_above,valid_from\r\nopenai,gpt-x,input_tokens,3.00,1000000,batch,200000,2027-01-01\r\n"
        [one] = price_files.read(text.encode(), providers=PROVIDERS).stretches
        assert one.key == Key("openai", "gpt-x", "input_tokens", 200_000, "batch")
        assert (one.price_nanos, one.per_units, one.start) == (3_000_000_000, 1_000_000, datetime(2027, 1, 1, tzinfo=UTC))

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ('openai,m,input_tokens,"3,00",1000000', "a plain decimal with a point, such as 3.00; found '3,00'"),
            ("openai,m,input_tokens,3e-6,1000000", "a plain decimal"),
            ("openai,m,input_tokens,-3,1000000", "a plain decimal"),
            ("openai,m,input_tokens,NaN,1000000", "a plain decimal"),
            ("openai,m,input_tokens,,1000000", "a plain decimal"),
            ("openai,m,input_tokens,٣,1000000", "a plain decimal"),
            ("openai,m,input_tokens,99999999999,1", "at most 1,000,000 USD"),
            ("openai,m,input_tokens,3,0", "a whole number from 1 as per_units"),
            ("openai,m,input_tokens,3,1.5", "a whole number from 1 as per_units"),
            ("openai,m,tokens,3,1", "a component"),
            ("nobody,m,input_tokens,3,1", "a provider of the price book"),
            ("openai,,input_tokens,3,1", "a model's name"),
            ("openai,m,input_tokens,3", "5 columns; found 4"),
            ("openai,m,input_tokens,3,1\nopenai,m,input_tokens,4,1", "line 3: expected one price for openai:m input_tokens"),
            ('openai,"m,input_tokens,3,1', "not CSV"),
        ],
    )  # fmt: skip
    def test_garbage_is_named_with_its_line(self, row: str, expected: str) -> None:
        [problem] = problems(f"{HEAD}\n{row}\n")
        assert expected in problem
        assert problem.startswith("line ")

    @pytest.mark.parametrize("head", ["provider,model", f"{HEAD},price", f"{HEAD},model", "x"])
    def test_headings_are_checked_first(self, head: str) -> None:
        assert problems(f"{head}\n1,2\n")[0].startswith("line 1: expected the headings")

    def test_every_wrong_line_is_told_up_to_fifty(self) -> None:
        found = problems(HEAD + "\n" + "openai,m,input_tokens,x,1\n" * 80)
        assert len(found) == price_files.MAX_PROBLEMS + 1
