"""CSV files: RFC 4180, and no cell that a spreadsheet would compute."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from accounts import exports


def written(*rows: tuple[exports.Cell, ...]) -> str:
    content = exports.download(rows, name="x.csv").getvalue()
    assert isinstance(content, bytes)
    return content.decode()


@pytest.mark.failure(90)
@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\0=1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://evil","x")', "  =1+1",
        "＝1", "＋1", "－1", "＠1",
    ],
)  # fmt: skip
def test_words_that_would_be_a_formula_are_words(text: str) -> None:
    [[cell, other]] = csv.reader(io.StringIO(written((text, "x")), newline=""))
    assert (cell, other) == (f"'{text}", "x")


@pytest.mark.failure(90)
@pytest.mark.parametrize("text", ["Ada", "a=1", "1-1", "", 'say "so"', "one, two", "two\r\nlines", "naïve ☃", "acme:model-4.5"])
def test_other_words_come_back_as_they_were(text: str) -> None:
    assert list(csv.reader(io.StringIO(written((text, "x")), newline=""))) == [[text, "x"]]


def test_lines_end_and_quotes_double_as_rfc_4180_says() -> None:
    assert written(("a", 'b"c'), ("d,e", None)) == 'a,"b""c"\r\n"d,e",\r\n'


def test_figures_are_exact_and_stay_figures() -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=9)))
    assert (
        written((exports.Nanos(-4_500), exports.Nanos(10**18), 5, at))
        == "-0.000004500,1000000000.000000000,5,2026-03-01T03:00:00+00:00\r\n"
    )


def test_rows_are_asked_for_while_the_file_is_sent() -> None:
    asked = []

    def rows() -> Iterator[tuple[int]]:
        for number in range(1000):
            asked.append(number)
            yield (number,)

    stream = iter(exports.download(rows(), name="x.csv"))
    assert asked == []
    next(stream)
    assert 0 < len(asked) < 1000
