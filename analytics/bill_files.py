"""Providers' bills as files → lines. Pure; a file is read whole or refused with the lines that are wrong.

    read   the lines of one file, whichever of the known exports it is, or by a mapping of its columns

The exports are read by the columns named here; what else they have is not read. Days are UTC in all of them. As seen in files of 2025-10
(OpenAI, also the fields of https://platform.openai.com/docs/api-reference/usage) to 2026-09, and of 2026-03 to 2026-08 (Anthropic,
https://support.claude.com/en/articles/9534590); an export that gains columns is read as before.

* OpenAI, usage page, *Cost*, grouped by line item: one line a day and line item such as ``gpt-4o-2024-08-06, cached input``, with its
  amount and, in newer files, its quantity. Service levels are not told.
* OpenAI, usage page, *Activity*: completions, quantities alone. Cached and audio tokens are also in ``input_tokens`` and taken out here.
* Anthropic, Console, *Cost*: an amount for each day, model (by its display name) and kind of token, without quantities.
* Anthropic, Console, *Usage*: the quantities of it.

Costs without quantities can be compared, but not split; the usage file beside them gives them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

from pricing.rating import COMPONENTS

MAX_BYTES: Final = 5 * 1024 * 1024
MAX_LINES: Final = 50_000
MAX_DAYS: Final = 366
MAX_PROBLEMS: Final = 10
#: More of one line is a mistake: a hundred million dollars, and 10¹⁴ units.
MAX_NANOS: Final = 10**17
MAX_QUANTITY: Final = 10**14
_FIRST_DAY: Final = date(2020, 1, 1)
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
#: What is on a bill without being usage.
_OTHER = re.compile(r"\b(credits?|discount|tax|vat|gst|refund|adjustment|fee|prepaid|commitment|minimum|rounding)\b", re.IGNORECASE)
_WORDS_OF_OPENAI: Final = {
    "input": "input_tokens",
    "cached input": "cached_input_tokens",
    "input cached": "cached_input_tokens",
    "cache write": "cache_write_tokens",
    "input cache write": "cache_write_tokens",
    "output": "output_tokens",
    "audio input": "input_audio_tokens",
    "input audio": "input_audio_tokens",
    "cached audio input": "cached_input_audio_tokens",
    "input cached audio": "cached_input_audio_tokens",
    "audio output": "output_audio_tokens",
    "output audio": "output_audio_tokens",
}
_WORDS_OF_ANTHROPIC: Final = {
    "input_no_cache": "input_tokens",
    "input_cache_read": "cached_input_tokens",
    "input_cache_write_5m": "cache_write_tokens",
    "input_cache_write_1h": "cache_write_1h_tokens",
    "output": "output_tokens",
}


class UnreadableBill(ValueError):
    """A file that is no bill as expected. ``problems`` says why, one a line of the file; nothing of it is used."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a bill. ``other``: what is no usage (credit, discount, tax), by its own words in ``model``, and may be negative.

    ``component`` empty: of the model as a whole; ``level`` empty: not told. ``quantity`` or ``amount_nanos`` is None where the export has
    the other alone.
    """

    day: date
    model: str
    component: str = ""
    level: str = ""
    quantity: int | None = None
    amount_nanos: int | None = None
    other: bool = False


@dataclass(frozen=True, slots=True)
class Bill:
    """A file's lines. Each amount may be off by ``precision_nanos`` either way, by the digits that the file has."""

    export: str
    lines: tuple[Line, ...]
    precision_nanos: int


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of some other provider's CSV mean. Those that are empty are not there.

    :param components: the file's words for what was used, each a component of ours, or ``other``.
    :param quantity_scale: how many units the file's 1 is.
    """

    day: str
    model: str
    amount: str
    component: str = ""
    quantity: str = ""
    currency: str = ""
    day_format: str = "%Y-%m-%d"
    delimiter: str = ","
    decimal_comma: bool = False
    quantity_scale: int = 1
    components: Mapping[str, str] = field(default_factory=dict)


class _Wrong(ValueError):
    """One cell; the message begins with its column."""


@dataclass(slots=True)
class _Reader:
    """Cells of one file, checked. ``digits`` is the most that an amount has after its point."""

    today: date
    decimal_comma: bool = False
    digits: int = 0

    def number(self, row: Mapping[str, str], column: str) -> Decimal:
        text = row[column].strip()
        if self.decimal_comma:
            text = text.replace(",", ".") if "." not in text else f"{text}?"
        if not _NUMBER.fullmatch(text):
            raise _Wrong(f"{column} is {row[column][:40]!r}; expected a number such as {'12,50' if self.decimal_comma else '12.50'}.")
        return Decimal(text)

    def amount(self, row: Mapping[str, str], column: str) -> int:
        found = self.number(row, column)
        exponent = found.as_tuple().exponent
        assert isinstance(exponent, int)
        if abs(found) * 10**9 > MAX_NANOS:
            raise _Wrong(f"{column} is {row[column][:40]!r}, more than anybody is billed in a line.")
        self.digits = max(self.digits, -exponent)
        return round(found * 10**9)

    def quantity(self, row: Mapping[str, str], column: str, scale: int = 1) -> int:
        found = self.number(row, column) * scale
        if not 0 <= found <= MAX_QUANTITY or found != found.to_integral_value():
            raise _Wrong(f"{column} is {row[column][:40]!r}; expected a whole number from 0 to {MAX_QUANTITY}.")
        return int(found)

    def day(self, text: str, column: str, format_: str = "%Y-%m-%d") -> date:
        try:
            day = datetime.strptime(text.strip(), format_).date()  # noqa: DTZ007 (a day, not an instant)
        except ValueError:
            raise _Wrong(f"{column} is {text[:40]!r}; expected a day written as {format_}.") from None
        if not _FIRST_DAY <= day < self.today:
            raise _Wrong(f"{column} is {day}; expected a day that is over, from {_FIRST_DAY} on.")
        return day


def read(*, content: bytes, provider: str, today: date, columns: Columns | None = None) -> Bill:
    """The lines of ``content``: by ``columns``, or, without, of whichever export of ``provider`` has this heading.

    :param today: in UTC. Days that are not over are refused: their bill would still change.
    :raises UnreadableBill: not UTF-8, not such a file, or lines that are wrong (the first of them, by their number).
    """
    if len(content) > MAX_BYTES:
        raise UnreadableBill(
            [f"The file has {len(content) // 1024:,} KB; a bill has at most {MAX_BYTES // 1024:,} KB. Import it by months."]
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableBill(["The file is not UTF-8. Save it as CSV in UTF-8."]) from None
    if "\0" in text:
        raise UnreadableBill(["The file is no text: it has zero bytes."])
    heading = text.lstrip("\r\n").partition("\n")[0]
    if columns is not None:
        wanted = [
            name for name in (columns.day, columns.model, columns.amount, columns.component, columns.quantity, columns.currency) if name
        ]
        rows = _rows(text, columns.delimiter, wanted)
        reader = _Reader(today, columns.decimal_comma)
        return _read("mapping", rows, reader, lambda row: _mapped(row, reader, columns))
    exports = EXPORTS.get(provider, ())
    for export, needed, parse in exports:
        for delimiter in ",;\t":
            if set(needed) <= set(next(csv.reader([heading], delimiter=delimiter), [])):
                reader = _Reader(today)
                rows = _rows(text, delimiter, needed)
                return _read(export, rows, reader, lambda row, parse=parse, reader=reader: parse(row, reader))  # type: ignore[misc]
    if not exports:
        raise UnreadableBill([f"No export of {provider} is known; use a mapping of its columns. Known are {', '.join(sorted(EXPORTS))}."])
    known = "; ".join(f"{export}: {', '.join(needed)}" for export, needed, _ in exports)
    raise UnreadableBill([f"Line 1: these are not the columns of an export of {provider} ({heading[:200]!r}). Expected {known}."])


def _rows(text: str, delimiter: str, wanted: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row under its line number; empty lines are left out."""
    found = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        heading = [name.strip() for name in next(found, [])]
        if missing := [name for name in wanted if name not in heading]:
            raise UnreadableBill([f"Line 1: no column {', '.join(missing)}; the file has {', '.join(heading)[:300] or 'none'}."])
        if twice := {name for name in wanted if heading.count(name) > 1}:
            raise UnreadableBill([f"Line 1: the column {', '.join(sorted(twice))} is there twice."])
        for row in found:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(heading):
                raise UnreadableBill([f"Line {found.line_num}: {len(row)} columns, where the heading has {len(heading)}."])
            yield found.line_num, dict(zip(heading, row, strict=True))
    except csv.Error as error:
        raise UnreadableBill([f"Line {found.line_num}: {error}."]) from None


def _read(
    export: str, rows: Iterable[tuple[int, dict[str, str]]], reader: _Reader, parse: Callable[[Mapping[str, str]], Iterable[Line]]
) -> Bill:
    lines: list[Line] = []
    problems: list[str] = []
    seen: dict[tuple[str, ...], int] = {}
    for count, (number, row) in enumerate(rows, start=1):
        if count > MAX_LINES:
            raise UnreadableBill([f"The file has more than {MAX_LINES:,} lines. Import it by months, or with fewer groupings."])
        try:
            if (first := seen.setdefault(tuple(row.values()), number)) != number:
                raise _Wrong(f"the same as line {first}.")
            lines += parse(row)
        except _Wrong as error:
            problems.append(f"Line {number}: {error}")
            if len(problems) == MAX_PROBLEMS:
                break
    if problems:
        raise UnreadableBill(problems)
    if not lines:
        raise UnreadableBill(["The file has no line of usage."])
    days = [line.day for line in lines]
    if max(days) - min(days) >= timedelta(days=MAX_DAYS):
        raise UnreadableBill([f"The file goes from {min(days)} to {max(days)}; a bill has at most {MAX_DAYS} days."])
    return Bill(export, tuple(lines), max(1, 5 * 10 ** (8 - reader.digits)) if reader.digits < 9 else 1)


# The exports ------------------------------------------------------------------------------------------------------------------------


def _openai_day(row: Mapping[str, str], reader: _Reader) -> date:
    """The day of a bucket, which has to be one whole day."""
    start, end = reader.quantity(row, "start_time"), reader.quantity(row, "end_time")
    if start % 86_400 or end - start != 86_400 or start > 10**11:
        raise _Wrong("start_time and end_time are not one day in UTC; export by days.")
    return reader.day(f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d}", "start_time")


def _openai_costs(row: Mapping[str, str], reader: _Reader) -> Iterator[Line]:
    if not row["amount_value"].strip() and not row["line_item"].strip():
        return  # a day without costs
    day, amount = _openai_day(row, reader), reader.amount(row, "amount_value")
    _in_dollars(row, "amount_currency")
    item = row["line_item"].strip()
    if not item:
        raise _Wrong("line_item is empty; group the costs by line item before you export them.")
    model, _, words = item.rpartition(", ")
    said = " ".join(re.sub(r"[-_]", " ", words.lower()).replace("tokens", "").split())
    component = _WORDS_OF_OPENAI.get(said, "") if model else ""
    if not component and (_OTHER.search(item) or amount < 0):
        yield Line(day, item[:128], amount_nanos=amount, other=True)
        return
    _not_negative(amount, "amount_value")
    quantity = reader.quantity(row, "quantity") if row.get("quantity", "").strip() else None
    yield Line(day, (model if component else item)[:128], component, "", quantity if component else None, amount)


def _openai_usage(row: Mapping[str, str], reader: _Reader) -> Iterator[Line]:
    if not row["model"].strip() and not row["input_tokens"].strip():
        return  # a day without usage

    def count(column: str) -> int:
        return reader.quantity(row, column) if row.get(column, "").strip() else 0

    day, cached, audio = _openai_day(row, reader), count("input_cached_tokens"), count("input_audio_tokens")
    cached_audio, written = count("input_cached_audio_tokens"), count("input_cache_write_tokens")
    found = {
        "input_tokens": count("input_tokens") - cached - (audio - cached_audio) - written,
        "cached_input_tokens": cached - cached_audio,
        "cache_write_tokens": written,
        "input_audio_tokens": audio - cached_audio,
        "cached_input_audio_tokens": cached_audio,
        "output_tokens": count("output_tokens") - count("output_audio_tokens"),
        "output_audio_tokens": count("output_audio_tokens"),
    }
    if not row["model"].strip():
        raise _Wrong("model is empty; group the usage by model before you export it.")
    if any(quantity < 0 for quantity in found.values()):
        raise _Wrong("input_tokens or output_tokens is less than its parts.")
    for component, quantity in found.items():
        if quantity:
            yield Line(day, row["model"].strip()[:128], component, "", quantity)


def _anthropic_costs(row: Mapping[str, str], reader: _Reader) -> Iterator[Line]:
    day, amount = reader.day(row["usage_date_utc"][:10], "usage_date_utc"), reader.amount(row, "cost_usd")
    model, word = row["model"].strip(), row["token_type"].strip()
    named = model or word or row.get("cost_type", "").strip()
    if not named:
        raise _Wrong("model and token_type are empty.")
    if amount < 0 or (not model and _OTHER.search(named)):
        yield Line(day, named[:128], amount_nanos=amount, other=True)
        return
    if word and word not in _WORDS_OF_ANTHROPIC:
        yield Line(day, f"{model} {word}".strip()[:128], amount_nanos=amount)
        return
    yield Line(day, named[:128], _WORDS_OF_ANTHROPIC.get(word, ""), _anthropic_level(row), None, amount)


def _anthropic_usage(row: Mapping[str, str], reader: _Reader) -> Iterator[Line]:
    day, model = reader.day(row["usage_date_utc"][:10], "usage_date_utc"), row["model_version"].strip()
    if not model:
        raise _Wrong("model_version is empty.")
    for word, component in _WORDS_OF_ANTHROPIC.items():
        column = f"usage_{word}_tokens" if word == "output" else word.replace("input_", "usage_input_tokens_")
        if quantity := reader.quantity(row, column):
            yield Line(day, model[:128], component, _anthropic_level(row), quantity)


def _anthropic_level(row: Mapping[str, str]) -> str:
    return "batch" if row.get("usage_type", "").strip().lower() == "batch" else "standard"


def _mapped(row: Mapping[str, str], reader: _Reader, columns: Columns) -> Iterator[Line]:
    day, amount = reader.day(row[columns.day], columns.day, columns.day_format), reader.amount(row, columns.amount)
    if columns.currency:
        _in_dollars(row, columns.currency)
    model, word = row[columns.model].strip(), row[columns.component].strip() if columns.component else ""
    component = columns.components.get(word, "" if not columns.component else "?")
    if component == "?":
        if not _OTHER.search(word):
            raise _Wrong(
                f"{columns.component} is {word[:40]!r}, which the mapping does not name; it names {', '.join(columns.components)}."
            )
        component = "other"
    if component == "other":
        yield Line(day, f"{model} {word}".strip()[:128], amount_nanos=amount, other=True)
        return
    if not model:
        raise _Wrong(f"{columns.model} is empty.")
    if not columns.component and _OTHER.search(model):
        yield Line(day, model[:128], amount_nanos=amount, other=True)
        return
    _not_negative(amount, columns.amount)
    counted = component and columns.quantity and row[columns.quantity].strip()
    quantity = reader.quantity(row, columns.quantity, columns.quantity_scale) if counted else None
    yield Line(day, model[:128], component, "", quantity, amount)


def _in_dollars(row: Mapping[str, str], column: str) -> None:
    if row[column].strip().lower() not in ("usd", "$", "us$"):
        raise _Wrong(f"{column} is {row[column][:20]!r}; only bills in US dollars are compared.")


def _not_negative(amount: int, column: str) -> None:
    if amount < 0:
        raise _Wrong(f"{column} is negative, and the line is neither a credit nor a discount.")


_Parse = Callable[[Mapping[str, str], _Reader], Iterable[Line]]
#: By provider: what an export is called, the columns that it is known by and read from, and how.
EXPORTS: Final[Mapping[str, Sequence[tuple[str, tuple[str, ...], _Parse]]]] = {
    "openai": (
        ("costs", ("start_time", "end_time", "amount_value", "amount_currency", "line_item"), _openai_costs),
        ("usage", ("start_time", "end_time", "model", "input_tokens", "output_tokens", "input_cached_tokens"), _openai_usage),
    ),
    "anthropic": (
        ("costs", ("usage_date_utc", "model", "token_type", "cost_usd"), _anthropic_costs),
        (
            "usage",
            (
                "usage_date_utc", "model_version", "usage_input_tokens_no_cache", "usage_input_tokens_cache_write_5m",
                "usage_input_tokens_cache_write_1h", "usage_input_tokens_cache_read", "usage_output_tokens",
            ),
            _anthropic_usage,
        ),
    ),
}  # fmt: skip
#: What a mapping may say that a word of the file is.
MEANINGS: Final = (*COMPONENTS, "other")
