"""Traces of LLM usage: files with one model call a line, as providers publish them.

Two formats are known, told apart by their header:

* Azure 2023: ``TIMESTAMP,ContextTokens,GeneratedTokens`` (the AzurePublicDataset repository, CC-BY 4.0; Patel et al., "Splitwise:
  Efficient Generative LLM Inference Using Phase Splitting", ISCA 2024). Its files are named ``…_conv.csv`` and ``…_code.csv``.
* BurstGPT: ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`` (Wang et al., "BurstGPT: A Real-World Workload
  Dataset to Optimize LLM Serving Systems", KDD 2025). A call that failed has 0 response tokens.

Columns may stand in any order and others beside them. A file is read line by line, whatever its size. A line that says nothing sensible
is reported with its number, and the lines after it are read all the same.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, TextIO

MAX_TOKENS: Final = 999_999_999
MAX_LINE: Final = 1_000
_INTEGER: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_SECONDS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_KIND: Final = {"conv": "conversation", "code": "code"}

AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURST_GPT: Final = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


class TraceError(Exception):
    """The file is no trace, or cannot be read. The message says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One call: what went in and what came out. ``kind`` is what it was for ("conversation", "code", "api"), "" where nobody says."""

    line: int
    input_tokens: int
    output_tokens: int
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no call, and why."""

    line: int
    reason: str


def read(path: Path) -> Iterator[Row | Broken]:
    """The calls of a trace, in the order of the file. Blank lines are passed over.

    :raises TraceError: the file cannot be read, is empty, or its header is none of the known ones.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = _lines(file)
            _, header = next(lines, (0, None))
            parse = _parser(path, header)
            for number, line in lines:
                try:
                    yield parse(number, line)
                except ValueError as error:
                    yield Broken(number, str(error))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}.") from error


def _lines(file: TextIO) -> Iterator[tuple[int, str | None]]:
    """Each line that is not blank with its number; None for one that is too long, which is never wholly in memory."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        whole = True
        while len(line) > MAX_LINE and not line.endswith("\n"):
            whole, line = False, file.readline(MAX_LINE + 1)
        if not whole:
            yield number, None
        elif not line.isspace():
            yield number, line.rstrip("\n")


def _parser(path: Path, header: str | None) -> Callable[[int, str | None], Row]:
    try:
        names = _cells(header)
    except ValueError:
        names = []
    for columns, parse in ((AZURE, _azure), (BURST_GPT, _burst_gpt)):
        if all(names.count(column) == 1 for column in columns):
            places = [names.index(column) for column in columns]
            kind = _KIND.get(path.stem.rpartition("_")[2].lower(), "")

            def row(number: int, line: str | None) -> Row:
                cells = _cells(line)
                if len(cells) != len(names):
                    raise ValueError(f"{len(cells)} cells; expected {len(names)}, as in the header")
                return parse(number, [cells[place] for place in places], kind)  # noqa: B023 -- the loop ends here

            return row
    found = f"begins with {header[:80]!r}" if header else "has no first line"
    raise TraceError(f"{path} {found}; expected the header {','.join(AZURE)} or {','.join(BURST_GPT)}.")


def _azure(number: int, cells: list[str], kind: str) -> Row:
    try:
        datetime.fromisoformat(cells[0])
    except ValueError:
        raise ValueError(f"TIMESTAMP is {cells[0]!r}; expected a date and time such as 2023-11-16 18:15:46.6805900") from None
    return Row(number, _integer(AZURE[1], cells[1]), _integer(AZURE[2], cells[2]), kind)


def _burst_gpt(number: int, cells: list[str], kind: str) -> Row:
    if not _SECONDS.fullmatch(cells[0]):
        raise ValueError(f"Timestamp is {cells[0]!r}; expected seconds since the start")
    asked, answered, total = (_integer(BURST_GPT[place], cells[place]) for place in (2, 3, 4))
    if asked + answered != total:
        raise ValueError(f"Total tokens is {total}; {asked} and {answered} make {asked + answered}")
    return Row(number, asked, answered, cells[5].removesuffix(" log").lower() if cells[5] in ("Conversation log", "API log") else kind)


def _integer(column: str, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{column} is {text[:40]!r}; expected an integer from 0 to {MAX_TOKENS}")
    return int(text)


def _cells(line: str | None) -> list[str]:
    """A line's cells. Quotes are understood within the line only: one that stays open would swallow the file."""
    if line is None:
        raise ValueError(f"longer than {MAX_LINE} characters")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError(f"no CSV: {error}") from None
