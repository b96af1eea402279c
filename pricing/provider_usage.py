"""What a provider reports → disjoint quantities.

Providers count differently. Anthropic's ``input_tokens`` leaves cache reads and writes out; OpenAI's and Google's prompt count contains
the cached part. OpenAI's and Anthropic's output contains reasoning; Google counts thoughts beside the candidates. After
:func:`normalise` no token is in two components, so 10,000 input tokens of which 9,000 were cached are 1,000 + 9,000 whoever says it.

Reports are read by the fields named here; what else a provider sends (totals, service tiers) is not a quantity and is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pricing.rating import MAX_QUANTITY

Report = Mapping[str, Any]


class UnreadableUsage(ValueError):
    """A usage report that cannot be turned into quantities. The message names the field and what was expected."""


def normalise(*, provider: str, usage: Report, separate_reasoning: bool = False) -> dict[str, int]:
    """The quantities of one response's usage report, disjoint, zeros left out.

    :param usage: the ``usage`` object of Anthropic's messages, OpenAI's chat, responses and embeddings, or Google's ``usageMetadata``.
    :param separate_reasoning: providers bill reasoning as output, so it is folded into ``output_tokens``. True keeps it apart as
        ``reasoning_tokens``, for a price book that has a price of its own for it.
    :raises UnreadableUsage: an unknown provider or shape, a count that is no whole number from 0 to 10¹², a part larger than its whole.
    """
    if not isinstance(usage, Mapping):
        raise UnreadableUsage(f"usage is {type(usage).__name__}; expected an object.")
    reader = _READERS.get(provider)
    if reader is None:
        raise UnreadableUsage(f"no usage format is known for provider {provider!r}; expected one of {', '.join(sorted(_READERS))}.")
    quantities = reader(usage)
    if not separate_reasoning:
        quantities["output_tokens"] += quantities.pop("reasoning_tokens", 0)
    return {component: quantity for component, quantity in quantities.items() if quantity}


def _anthropic(usage: Report) -> dict[str, int]:
    written = _count(usage, "cache_creation_input_tokens")
    written_1h = _count(usage, "cache_creation", "ephemeral_1h_input_tokens")
    if usage.get("cache_creation_input_tokens") is None:
        written = written_1h + _count(usage, "cache_creation", "ephemeral_5m_input_tokens")
    output = _count(usage, "output_tokens", required=True)
    reasoning = _count(usage, "output_tokens_details", "thinking_tokens")
    return {
        "input_tokens": _count(usage, "input_tokens", required=True),
        "cached_input_tokens": _count(usage, "cache_read_input_tokens"),
        "cache_write_tokens": _rest("cache_creation_input_tokens", written, written_1h),
        "cache_write_1h_tokens": written_1h,
        "output_tokens": _rest("output_tokens", output, reasoning),
        "reasoning_tokens": reasoning,
        "web_searches": _count(usage, "server_tool_use", "web_search_requests"),
    }


def _openai(usage: Report) -> dict[str, int]:
    if "prompt_tokens" in usage and "input_tokens" in usage:
        raise UnreadableUsage("both prompt_tokens (chat) and input_tokens (responses) are given; expected one of them.")
    incoming, outgoing = ("prompt", "completion") if "prompt_tokens" in usage else ("input", "output")
    cached = _count(usage, f"{incoming}_tokens_details", "cached_tokens")
    written = _count(usage, f"{incoming}_tokens_details", "cache_write_tokens")
    heard = _count(usage, f"{incoming}_tokens_details", "audio_tokens")
    reasoning = _count(usage, f"{outgoing}_tokens_details", "reasoning_tokens")
    spoken = _count(usage, f"{outgoing}_tokens_details", "audio_tokens")
    whole_input = _count(usage, f"{incoming}_tokens", required=True)
    # Embeddings report no output at all.
    whole_output = _count(usage, f"{outgoing}_tokens", required=incoming == "input")
    return {
        "input_tokens": _rest(f"{incoming}_tokens", whole_input, cached, written, heard),
        "cached_input_tokens": cached,
        "cache_write_tokens": written,
        "input_audio_tokens": heard,
        "output_tokens": _rest(f"{outgoing}_tokens", whole_output, reasoning, spoken),
        "reasoning_tokens": reasoning,
        "output_audio_tokens": spoken,
    }


def _google(usage: Report) -> dict[str, int]:
    if "prompt_tokens" in usage:
        return _openai(usage)
    prompt = _count(usage, "promptTokenCount", required=True)
    cached = _count(usage, "cachedContentTokenCount")
    heard = _modality(usage, "promptTokensDetails", "AUDIO")
    cached_heard = _modality(usage, "cacheTokensDetails", "AUDIO")
    candidates = _count(usage, "candidatesTokenCount")
    spoken = _modality(usage, "candidatesTokensDetails", "AUDIO")
    for drawn in ("IMAGE", "VIDEO"):
        if _modality(usage, "candidatesTokensDetails", drawn):
            raise UnreadableUsage(f"candidatesTokensDetails has {drawn} tokens; no component is known for them.")
    fresh_heard = _rest("promptTokensDetails AUDIO", heard, cached_heard)
    cached_read = _rest("cachedContentTokenCount", cached, cached_heard)
    return {
        "input_tokens": _rest("promptTokenCount", prompt, cached, fresh_heard) + _count(usage, "toolUsePromptTokenCount"),
        "cached_input_tokens": cached_read,
        "input_audio_tokens": fresh_heard,
        "cached_input_audio_tokens": cached_heard,
        "output_tokens": _rest("candidatesTokenCount", candidates, spoken),
        "reasoning_tokens": _count(usage, "thoughtsTokenCount"),
        "output_audio_tokens": spoken,
    }


_READERS: dict[str, Callable[[Report], dict[str, int]]] = {
    "anthropic": _anthropic,
    "azure": _openai,
    "google": _google,
    "openai": _openai,
    "openrouter": _openai,
}


def _count(report: Report, *path: str, required: bool = False) -> int:
    """The count at ``path``; absent or null is 0 unless required."""
    value: Any = report
    for depth, name in enumerate(path):
        if not isinstance(value, Mapping):
            raise UnreadableUsage(f"{'.'.join(path[:depth])} is {type(value).__name__}; expected an object.")
        value = value.get(name)
        if value is None:
            if required:
                raise UnreadableUsage(f"{'.'.join(path)} is missing.")
            return 0
    if type(value) is not int or not 0 <= value <= MAX_QUANTITY:
        raise UnreadableUsage(f"{'.'.join(path)} is {value!r}; expected a whole number from 0 to {MAX_QUANTITY}.")
    return value


def _modality(report: Report, field: str, modality: str) -> int:
    """Google's count of one modality in a list of ``{"modality": …, "tokenCount": …}``."""
    return sum(_count(detail, "tokenCount") for detail in _details(report, field) if detail.get("modality") == modality)


def _details(report: Report, field: str) -> Iterator[Report]:
    details = report.get(field)
    if details is None:
        return
    if not isinstance(details, Sequence) or isinstance(details, str):
        raise UnreadableUsage(f"{field} is {type(details).__name__}; expected a list.")
    for detail in details:
        if not isinstance(detail, Mapping):
            raise UnreadableUsage(f"{field} has {type(detail).__name__}; expected objects.")
        yield detail


def _rest(name: str, whole: int, *parts: int) -> int:
    """What is left of ``whole`` beside its parts."""
    rest = whole - sum(parts)
    if rest < 0:
        raise UnreadableUsage(f"{name} is {whole}, less than its parts {parts}.")
    return rest
