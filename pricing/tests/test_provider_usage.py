"""Reports of the three providers come out as the same disjoint quantities; what cannot be read is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.provider_usage import UnreadableUsage, normalise

CACHED = {"input_tokens": 1_000, "cached_input_tokens": 9_000, "output_tokens": 500}


class TestTenThousandInputTokensOfWhichNineThousandWereCached:
    def test_anthropic_counts_the_cached_ones_beside(self) -> None:
        usage = {"input_tokens": 1_000, "cache_read_input_tokens": 9_000, "cache_creation_input_tokens": 0, "output_tokens": 500}
        assert normalise(provider="anthropic", usage=usage) == CACHED

    def test_openai_chat_counts_them_within(self) -> None:
        usage = {
            "prompt_tokens": 10_000,
            "completion_tokens": 500,
            "total_tokens": 10_500,
            "prompt_tokens_details": {"cached_tokens": 9_000, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 200, "audio_tokens": 0},
        }
        assert normalise(provider="openai", usage=usage) == CACHED

    def test_openai_responses_counts_them_within(self) -> None:
        usage = {
            "input_tokens": 10_000,
            "input_tokens_details": {"cached_tokens": 9_000},
            "output_tokens": 500,
            "output_tokens_details": {"reasoning_tokens": 200},
        }
        assert normalise(provider="openai", usage=usage) == CACHED

    def test_google_counts_them_within_and_thoughts_beside(self) -> None:
        usage = {"promptTokenCount": 10_000, "cachedContentTokenCount": 9_000, "candidatesTokenCount": 300, "thoughtsTokenCount": 200}
        assert normalise(provider="google", usage=usage) == CACHED

    def test_google_by_its_openai_endpoint_counts_like_openai(self) -> None:
        usage = {"prompt_tokens": 10_000, "completion_tokens": 500, "prompt_tokens_details": {"cached_tokens": 9_000}}
        assert normalise(provider="google", usage=usage) == CACHED


class TestParts:
    def test_anthropic_cache_writes_of_an_hour_are_apart_from_those_of_five_minutes(self) -> None:
        usage = {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_creation_input_tokens": 300,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
            "server_tool_use": {"web_search_requests": 2},
        }
        expected = {"input_tokens": 10, "output_tokens": 5, "cache_write_tokens": 100, "cache_write_1h_tokens": 200, "web_searches": 2}
        assert normalise(provider="anthropic", usage=usage) == expected
        del usage["cache_creation_input_tokens"]
        assert normalise(provider="anthropic", usage=usage) == expected

    def test_openai_audio_is_apart_from_text(self) -> None:
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "prompt_tokens_details": {"audio_tokens": 60},
            "completion_tokens_details": {"audio_tokens": 40},
        }
        expected = {"input_tokens": 40, "input_audio_tokens": 60, "output_tokens": 10, "output_audio_tokens": 40}
        assert normalise(provider="openai", usage=usage) == expected

    def test_google_audio_is_apart_from_text_cached_or_not(self) -> None:
        usage = {
            "promptTokenCount": 100,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 40}, {"modality": "AUDIO", "tokenCount": 60}],
            "cachedContentTokenCount": 50,
            "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 20}, {"modality": "AUDIO", "tokenCount": 30}],
            "candidatesTokenCount": 9,
            "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 9}],
            "toolUsePromptTokenCount": 7,
        }
        assert normalise(provider="google", usage=usage) == {
            "input_tokens": 27,
            "cached_input_tokens": 20,
            "input_audio_tokens": 30,
            "cached_input_audio_tokens": 30,
            "output_audio_tokens": 9,
        }

    def test_reasoning_is_output_unless_it_is_asked_for_apart(self) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 500, "completion_tokens_details": {"reasoning_tokens": 200}}
        assert normalise(provider="openai", usage=usage)["output_tokens"] == 500
        apart = normalise(provider="openai", usage=usage, separate_reasoning=True)
        assert (apart["output_tokens"], apart["reasoning_tokens"]) == (300, 200)

    def test_embeddings_have_no_output(self) -> None:
        assert normalise(provider="openai", usage={"prompt_tokens": 8, "total_tokens": 8}) == {"input_tokens": 8}

    @given(whole=st.integers(0, 10**6), cached=st.integers(0, 10**6), output=st.integers(0, 10**6), reasoning=st.integers(0, 10**6))
    def test_no_token_is_counted_twice(self, whole: int, cached: int, output: int, reasoning: int) -> None:
        usage = {
            "input_tokens": whole,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": reasoning},
        }
        if cached > whole or reasoning > output:
            with pytest.raises(UnreadableUsage, match="less than its parts"):
                normalise(provider="openai", usage=usage)
        else:
            for separate in (False, True):
                assert sum(normalise(provider="openai", usage=usage, separate_reasoning=separate).values()) == whole + output


class TestGarbage:
    @pytest.mark.parametrize("garbage", [-1, 1.5, True, "５", "5", float("nan"), [], {}, 10**24])
    @pytest.mark.parametrize(
        ("provider", "whole"), [("anthropic", "input_tokens"), ("openai", "prompt_tokens"), ("google", "promptTokenCount")]
    )
    def test_a_count_is_a_whole_number(self, provider: str, whole: str, garbage: Any) -> None:
        with pytest.raises(UnreadableUsage, match=f"{whole} is .*expected a whole number from 0 to"):
            normalise(provider=provider, usage={whole: garbage, "output_tokens": 1, "completion_tokens": 1})

    @pytest.mark.parametrize(
        ("provider", "usage", "said"),
        [
            ("anthropic", {"output_tokens": 1}, "input_tokens is missing"),
            ("anthropic", {"input_tokens": 1}, "output_tokens is missing"),
            ("anthropic", {"input_tokens": None, "output_tokens": 1}, "input_tokens is missing"),
            ("openai", {}, "input_tokens is missing"),
            ("openai", {"input_tokens": 1}, "output_tokens is missing"),
            ("google", {"candidatesTokenCount": 1}, "promptTokenCount is missing"),
            ("openai", {"prompt_tokens": 1, "input_tokens": 1}, "expected one of them"),
            ("openai", {"prompt_tokens": 1, "prompt_tokens_details": 7}, "prompt_tokens_details is int; expected an object"),
            ("openai", {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}, "prompt_tokens is 1, less than its parts"),
            ("google", {"promptTokenCount": 1, "promptTokensDetails": "AUDIO"}, "promptTokensDetails is str; expected a list"),
            ("google", {"promptTokenCount": 1, "promptTokensDetails": [1]}, "promptTokensDetails has int; expected objects"),
            ("google", {"promptTokenCount": 1, "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1}]}, "IMAGE tokens"),
            ("acme", {"input_tokens": 1}, "no usage format is known for provider 'acme'"),
            ("openai", None, "usage is NoneType; expected an object"),
            ("openai", [1], "usage is list; expected an object"),
        ],
    )
    def test_what_cannot_be_read_is_refused_by_name(self, provider: str, usage: Any, said: str) -> None:
        with pytest.raises(UnreadableUsage, match=said):
            normalise(provider=provider, usage=usage)
