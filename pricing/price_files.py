"""Price files → dated prices: LiteLLM's JSON (``model_prices_and_context_window.json``) and CSV.

    read    the prices of a file, and what is left out with the reason; or every problem, each with its line

A file is taken whole or not at all: one wrong line, and nothing of it is proposed. CSV has the columns ``provider``, ``model``,
``component``, ``price_usd``, ``per_units``, and may have ``context_above``, ``service_level``, ``valid_from`` and ``valid_until``, in ISO
8601; a date is its midnight in UTC. Amounts there are plain decimals; JSON numbers may have an exponent, as LiteLLM's do. Nothing goes
through a float.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, DecimalException
from itertools import pairwise
from typing import Any, Final

from pricing import catalog
from pricing.price_import import LEVELS, Key, Stretch
from pricing.rating import COMPONENTS

MAX_BYTES: Final = 8 * 1024 * 1024
MAX_ROWS: Final = 50_000
MAX_PROBLEMS: Final = 50
MAX_USD: Final = 1_000_000
MAX_NANOS: Final = 2**63 - 1
MAX_UNITS: Final = 10**12

#: LiteLLM's names of providers that have another name here.
_PROVIDERS: Final = {"gemini": "google"}
#: LiteLLM's price keys, what they are a price of, and for how many units.
_COMPONENTS: Final = {
    "input_cost_per_token": "input_tokens",
    "output_cost_per_token": "output_tokens",
    "cache_read_input_token_cost": "cached_input_tokens",
    "cache_creation_input_token_cost": "cache_write_tokens",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h_tokens",
    "output_cost_per_reasoning_token": "reasoning_tokens",
    "input_cost_per_audio_token": "input_audio_tokens",
    "output_cost_per_audio_token": "output_audio_tokens",
    "cache_read_input_audio_token_cost": "cached_input_audio_tokens",
    "input_cost_per_second": "seconds",
}
_LEVEL: Final = {"_batches": "batch", "_flex": "flex", "_priority": "priority"}
#: Tools and stores of the provider, which are neither reported with a response nor metered here.
_UNMETERED: Final = frozenset(
    (
        "search_context_cost_per_query",
        "file_search_cost_per_1k_calls",
        "file_search_cost_per_gb_per_day",
        "code_interpreter_cost_per_session",
        "vector_store_cost_per_gb_per_day",
        "computer_use_input_cost_per_1k_tokens",
        "computer_use_output_cost_per_1k_tokens",
    )
)
_COLUMNS: Final = ("provider", "model", "component", "price_usd", "per_units")
_MORE: Final = ("context_above", "service_level", "valid_from", "valid_until")


class InvalidPriceFile(ValueError):
    """The file cannot be taken. ``problems`` has a line for each thing wrong: where it is, and what was expected."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems[:MAX_PROBLEMS] + (["…"] if len(problems) > MAX_PROBLEMS else [])
        super().__init__("\n".join(self.problems))


class _Wrong(Exception):
    """A value is not what is expected; the text says what is."""


@dataclass(frozen=True, slots=True)
class PriceFile:
    """What a file says. ``kind`` is ``LiteLLM`` or ``CSV``; ``skipped`` what has no place here, each with the reason."""

    kind: str
    stretches: tuple[Stretch, ...]
    skipped: tuple[str, ...]


def read(data: bytes, *, providers: Collection[str]) -> PriceFile:
    """The prices of ``data`` for ``providers``. A CSV file that names another provider is wrong; LiteLLM's has all of the world's, and
    those that are not asked for are left out.

    :raises InvalidPriceFile: with every problem found; a syntax error hides what comes after it.
    """
    if len(data) > MAX_BYTES:
        raise InvalidPriceFile([f"the file has {len(data):,} bytes; expected at most {MAX_BYTES:,}"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidPriceFile([f"line {line}: not UTF-8"]) from None
    if not text.strip():
        raise InvalidPriceFile(["the file is empty"])
    return _LiteLlm(text, providers).read() if text.lstrip()[0] in "{[" else _Csv(text, providers).read()


def _figure(amount: Decimal, per_units: int) -> tuple[int, int]:
    """USD for ``per_units`` as whole nano-USD, for as many units as that takes."""
    if not amount.is_finite() or amount < 0:
        raise _Wrong("a price that is 0 or more")
    if amount > MAX_USD or (amount and amount.adjusted() < -20):
        raise _Wrong(f"a price of at most {MAX_USD:,} USD with at most 20 decimals")
    numerator, denominator = (amount * 10**9).as_integer_ratio()
    if numerator > MAX_NANOS or per_units * denominator > MAX_UNITS:
        raise _Wrong("a price with fewer digits")
    return numerator, per_units * denominator


class _LiteLlm:
    def __init__(self, text: str, providers: Collection[str]) -> None:
        self.text, self.providers = text, providers
        self.problems: list[str] = []
        self.skipped: list[str] = []

    def read(self) -> PriceFile:
        try:
            raw = json.loads(self.text, parse_float=Decimal, parse_int=_integer, parse_constant=_constant, object_pairs_hook=self._pairs)
        except json.JSONDecodeError as error:
            raise InvalidPriceFile([f"line {error.lineno}: not JSON: {error.msg}"]) from None
        except (RecursionError, DecimalException):
            raise InvalidPriceFile(["not JSON: nested too deeply, or a number has too many digits"]) from None
        except _Wrong as error:
            raise InvalidPriceFile([str(error)]) from None
        if not isinstance(raw, dict):
            raise InvalidPriceFile(["line 1: expected an object with a model a key"])
        found: list[Stretch] = []
        for name, entry in raw.items():
            if name != "sample_spec":
                found += self._model(name, entry)
        if not found and not self.problems:
            self.problems.append(f"expected a price of {', '.join(sorted(self.providers))}; there is none")
        if self.problems:
            raise InvalidPriceFile(self.problems)
        return PriceFile("LiteLLM", tuple(found), tuple(self.skipped))

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                self.problem(key, "every key once; there is one before")
            found[key] = value
        return found

    def problem(self, key: str, expected: str) -> None:
        self.problems.append(f"line {self._line(key)}: {key[:80]}: expected {expected}")

    def _line(self, key: str) -> int:
        """Of the last place where the key stands: of two, the one that repeats it."""
        places = [place.start() for place in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", self.text)]
        return self.text.count("\n", 0, places[-1]) + 1 if places else 1

    def _model(self, name: str, entry: Any) -> Iterator[Stretch]:
        if not isinstance(entry, dict):
            self.problem(name, "an object of prices")
            return
        theirs = entry.get("litellm_provider")
        provider = _PROVIDERS.get(theirs, theirs) if isinstance(theirs, str) else None
        if provider is None or provider not in self.providers:
            return
        model = name.removeprefix(f"{theirs}/")
        prices: dict[tuple[str, int, str], tuple[int, int]] = {}
        try:
            catalog.split_model(f"{provider}:{model}")
        except catalog.InvalidModel:
            self.problem(name, "a model's name")
            return
        for key, value in entry.items():
            if "cost" not in key or key in _UNMETERED or value is None:
                continue
            place = _place(key)
            if place is None:
                self.skipped.append(f"{provider}:{model}: no component for {key}")
                return
            if type(value) is not int and not isinstance(value, Decimal):
                self.problem(name, f"a number for {key}")
                return
            try:
                prices[place] = _figure(Decimal(value) * 10**6, 10**6) if place[0] != "seconds" else _figure(Decimal(value), 1)
            except (_Wrong, DecimalException) as error:
                self.problem(name, f"{error} for {key}")
                return
        for (component, above, level), figure in list(prices.items()):
            if component == "output_tokens":
                prices.setdefault(("reasoning_tokens", above, level), figure)
        for (component, above, level), figure in prices.items():
            yield Stretch(Key(provider, model, component, above, level), *figure, None, None)


def _place(key: str) -> tuple[str, int, str] | None:
    """Component, context and service level of one of LiteLLM's keys; None where there is none here."""
    level = "standard"
    for suffix, named in _LEVEL.items():
        if key.endswith(suffix):
            key, level = key.removesuffix(suffix), named
    above = re.fullmatch(r"(.+)_above_([0-9]{1,6})k_tokens", key)
    component = _COMPONENTS.get(above[1] if above else key)
    return (component, int(above[2]) * 1_000 if above else 0, level) if component else None


def _integer(text: str) -> int:
    if len(text) > 30:
        raise _Wrong(f"expected a number with at most 30 digits; found {text[:30]}…")
    return int(text)


def _constant(text: str) -> Any:
    raise _Wrong(f"expected numbers; {text} is none")


class _Csv:
    def __init__(self, text: str, providers: Collection[str]) -> None:
        self.text, self.providers = text, providers
        self.problems: list[str] = []

    def read(self) -> PriceFile:
        rows = csv.reader(io.StringIO(self.text, newline=""), strict=True)
        found: dict[tuple[Key, datetime | None], tuple[int, Stretch]] = {}
        line = 1
        try:
            head = [cell.strip().lower() for cell in next(rows)]
            self._head(head)
            for row in rows:
                line = rows.line_num
                if len(found) >= MAX_ROWS:
                    raise InvalidPriceFile([f"line {line}: expected at most {MAX_ROWS:,} prices"])
                if any(cell.strip() for cell in row):
                    self._row(line, head, row, found)
        except csv.Error as error:
            self.problems.append(f"line {line + 1}: not CSV: {error}")
        if not found and not self.problems:
            self.problems.append("expected at least one price below the headings")
        stretches = list(self._in_turn(found.values()))
        if self.problems:
            raise InvalidPriceFile(self.problems)
        return PriceFile("CSV", tuple(stretches), ())

    def _in_turn(self, found: Iterable[tuple[int, Stretch]]) -> Iterator[Stretch]:
        """One price of a thing at a time: one without an end ends where its next begins, and one with an end must end by then."""
        by_key: dict[Key, list[tuple[int, Stretch]]] = {}
        for line, stretch in found:
            by_key.setdefault(stretch.key, []).append((line, stretch))
        for prices in by_key.values():
            prices.sort(key=lambda one: one[1].start or datetime.min.replace(tzinfo=UTC))
            for (line, stretch), (after, following) in pairwise(prices):
                if stretch.end is not None and following.start is not None and stretch.end > following.start:
                    self.problems.append(f"line {after}: expected a price that begins when that of line {line} has ended")
                yield stretch if stretch.end else replace(stretch, end=following.start)
            yield prices[-1][1]

    def _head(self, head: list[str]) -> None:
        missing, unknown = [name for name in _COLUMNS if name not in head], [name for name in head if name not in _COLUMNS + _MORE]
        if missing or unknown or len(set(head)) != len(head):
            wrong = ", ".join(name[:40] or "a column without a name" for name in [*missing, *unknown] or head)
            raise InvalidPriceFile(
                [f"line 1: expected the headings {', '.join(_COLUMNS)}, and of {', '.join(_MORE)} what is needed; see {wrong}"]
            )

    def _row(self, line: int, head: list[str], row: list[str], found: dict[tuple[Key, datetime | None], tuple[int, Stretch]]) -> None:
        try:
            if len(row) != len(head):
                raise _Wrong(f"{len(head)} columns; found {len(row)}")
            said = dict(zip(head, (cell.strip() for cell in row), strict=True))
            stretch = self._stretch(said)
            before = found.get((stretch.key, stretch.start))
            if before is not None:
                raise _Wrong(f"one price for {stretch.key}; there is one in line {before[0]}")
        except _Wrong as error:
            self.problems.append(f"line {line}: expected {error}")
            return
        found[stretch.key, stretch.start] = line, stretch

    def _stretch(self, said: dict[str, str]) -> Stretch:
        if said["provider"] not in self.providers:
            raise _Wrong(f"a provider of the price book ({', '.join(sorted(self.providers))}); found {said['provider'][:40]!r}")
        try:
            catalog.split_model(f"{said['provider']}:{said['model']}")
        except catalog.InvalidModel:
            raise _Wrong("a model's name") from None
        if said["component"] not in COMPONENTS:
            raise _Wrong(f"a component ({', '.join(COMPONENTS)}); found {said['component'][:40]!r}")
        level = said.get("service_level") or "standard"
        if level not in LEVELS:
            raise _Wrong(f"a service level ({', '.join(LEVELS)}); found {level[:40]!r}")
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,20})?", said["price_usd"], re.ASCII):
            raise _Wrong(f"a price as a plain decimal with a point, such as 3.00; found {said['price_usd'][:40]!r}")
        per_units, above = _count(said["per_units"], 1, "per_units"), _count(said.get("context_above") or "0", 0, "context_above")
        start, end = (_instant(said.get(name, "")) for name in ("valid_from", "valid_until"))
        if start is not None and end is not None and end <= start:
            raise _Wrong("valid_until after valid_from")
        key = Key(said["provider"], said["model"], said["component"], above, level)
        return Stretch(key, *_figure(Decimal(said["price_usd"]), per_units), start, end)


def _count(text: str, least: int, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) or not least <= int(text) <= 2**31 - 1:
        raise _Wrong(f"a whole number from {least} as {name}; found {text[:40]!r}")
    return int(text)


def _instant(text: str) -> datetime | None:
    if not text:
        return None
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise _Wrong(f"a day or time such as 2027-01-01; found {text[:40]!r}") from None
