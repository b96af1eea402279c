"""What one client wrote down: a line for each operation before it is sent, and one once it is answered.

A line is one ``write`` to a file that is opened for appending: ``kill -9`` loses none that was written. It may cut one short, so a client
that comes back begins a new line, and what is no whole line is no line: an operation cut short was not sent yet, an answer not heard.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: How much of the end of a journal a client reads when it comes back. It has one operation under way at a time, the last one.
TAIL_BYTES = 300_000


@dataclass(slots=True)
class Deed:
    """An operation, and what came of it: ``answer`` None means that nobody knows. ``tries`` are those before the one that was answered."""

    intent: dict[str, Any]
    answer: dict[str, Any] | None = None
    tries: int = 0


class Journal:
    """A journal to go on with. ``deeds`` are the last ones it has, oldest first."""

    def __init__(self, path: Path) -> None:
        self.deeds = read(path, tail_bytes=TAIL_BYTES)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, b"\n")

    def intend(self, intent: dict[str, Any]) -> None:
        self._write({"intent": intent})

    def answered(self, intent: dict[str, Any], answer: dict[str, Any], tries: int) -> None:
        self._write({"key": intent["key"], "answer": answer, "tries": tries})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(path: Path, *, tail_bytes: int | None = None) -> list[Deed]:
    """The deeds of a journal, oldest first; of ``tail_bytes`` at its end, if given. A journal that was not begun has none."""
    deeds: dict[str, Deed] = {}
    for line in _lines(path, tail_bytes):
        if "intent" in line:
            deeds[line["intent"]["key"]] = Deed(line["intent"])
        elif line["key"] in deeds:  # else its intent is before the tail
            deed = deeds[line["key"]]
            deed.answer, deed.tries = line["answer"], line["tries"]
    return list(deeds.values())


def _lines(path: Path, tail_bytes: int | None) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with open(path, "rb") as file:
        if tail_bytes is not None:
            file.seek(max(0, path.stat().st_size - tail_bytes))
        return [line for raw in file.read().split(b"\n") if (line := _whole(raw)) is not None]


def _whole(raw: bytes) -> dict[str, Any] | None:
    try:
        line: dict[str, Any] = json.loads(raw)
    except ValueError:  # cut short, or empty
        return None
    return line
