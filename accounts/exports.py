"""Tables that customers take away as CSV: RFC 4180 in UTF-8, written while they are sent, and harmless in a spreadsheet.

    download   rows as a response that is a file, and a line in the audit log of who took it away
    text       the same file as text, some rows at a time
    MAX_ROWS   the most rows of one file; whoever cuts there says so in the file's name

A cell is written by its type: ``str`` is somebody's words, and never becomes a formula; :class:`Nanos` is an exact decimal, ``int`` a
count, ``datetime`` an instant in UTC, ``None`` empty.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Final, TypeAlias

from django.http import StreamingHttpResponse
from django.utils import timezone

from accounts import acts
from accounts.api import amount
from accounts.models import Account, AuditEvent

MAX_ROWS: Final = 50_000
_ROWS_A_WRITE: Final = 200
#: What makes spreadsheets read a cell as a formula, alone or behind white space; the full-width forms too.
_FORMULA: Final = tuple("=+-@\t\r\n\0＝＋－＠")


class Nanos(int):
    """An amount in nanos."""


Cell: TypeAlias = "str | Nanos | int | datetime | None"


def download(rows: Iterable[Sequence[Cell]], *, name: str, account: Account | None = None) -> StreamingHttpResponse:
    """``rows``, the headings first, as the file ``name``, which is ours and plain ASCII. An error on the way ends the connection, so that a
    part is never taken for the whole. The line in the audit log names who is signed in and, where it is one's alone, the ``account``.
    """
    if acting := acts.present():
        user, request = acting
        asked = {"asked": query} if (query := request.META.get("QUERY_STRING", "")[: acts.MAX_VALUE]) else None
        acts.note(
            actor=user, account=account, what=f"Exported {name}", kind=AuditEvent.Kind.EXPORTED, after=asked, now=timezone.now()
        )  # fmt: skip
    return StreamingHttpResponse(
        text(rows), content_type="text/csv; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


def text(rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    """The file's text, in parts of some rows."""
    write = csv.writer(_Line(), lineterminator="\r\n").writerow
    lines = (write([_text(cell) for cell in row]) for row in rows)
    while some := "".join(islice(lines, _ROWS_A_WRITE)):
        yield some


def _text(cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case Nanos():
            return amount(cell)
        case datetime():
            return cell.astimezone(UTC).isoformat()
        case int():
            return str(cell)
    return f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA) else cell


class _Line:
    """What csv writes to: it gives each line back."""

    def write(self, line: str) -> str:
        return line
