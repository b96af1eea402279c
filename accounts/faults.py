"""Faults that must be counted even while the database is what fails.

    note    counts one, in this process; costs no query
    flush   writes what was counted and not yet written

A fault is noted in the middle of what went wrong, often in a transaction that is about to be rolled back or without a database at all. So a
note is a number in memory, which a thread of its own writes down a moment later: once for a burst of faults, in its own transaction, and
again and again until the database takes it. Nothing waits for that. A process that is killed takes the last moments of its counts with it.
"""

from __future__ import annotations

import os
import threading
from datetime import datetime

import structlog
from django.db import connection

from accounts.models import Fault

#: How long a burst is gathered before it is written, and how long a database that refused it is left alone.
GATHER_SECONDS = 2.0
RETRY_SECONDS = 10.0
ABOUT_LENGTH = 200

log = structlog.get_logger(__name__)
_lock = threading.Lock()
_counted: dict[tuple[str, datetime], tuple[int, str]] = {}
_writer: threading.Timer | None = None


def note(*, kind: str, about: str, now: datetime) -> None:
    """Counts one fault of ``kind`` in the minute of ``now``; of a minute's faults the last one's ``about`` is kept, for people."""
    with _lock:
        minute = now.replace(second=0, microsecond=0)
        _counted[kind, minute] = (_counted.get((kind, minute), (0, ""))[0] + 1, about[:ABOUT_LENGTH])
        _schedule(GATHER_SECONDS)


def flush() -> int:
    """Writes what was counted, in a transaction of its own; returns how many faults. What could not be written stays counted.

    :raises DatabaseError: the database does not take it.
    """
    with _lock:
        taken = dict(_counted)
        _counted.clear()
    if not taken:
        return 0
    rows = [Fault(kind=kind, minute=minute, count=count, about=about) for (kind, minute), (count, about) in taken.items()]
    try:
        Fault.objects.bulk_create(rows)
    except BaseException:
        with _lock:
            for key, (count, about) in taken.items():
                _counted[key] = (_counted.get(key, (0, ""))[0] + count, about)
            _schedule(RETRY_SECONDS)
        raise
    return sum(row.count for row in rows)


def _schedule(seconds: float) -> None:
    """Has the counts written after ``seconds``, unless that is to happen already. Under the lock."""
    global _writer
    if _writer is None:
        _writer = threading.Timer(seconds, _write)
        _writer.daemon = True
        _writer.start()


def _write() -> None:
    global _writer
    again = True
    try:
        flush()
        again = False
    except Exception as error:  # noqa: BLE001 (whatever it is, the counts are kept and the next try is not far)
        log.warning("faults not written", error=type(error).__name__)
    try:
        connection.close()
    except Exception as error:  # noqa: BLE001 (the thread must come to its end, or nothing is ever written again)
        log.warning("connection not closed", error=type(error).__name__)
    with _lock:
        _writer = None
        if again or _counted:
            _schedule(RETRY_SECONDS if again else GATHER_SECONDS)


def _forget_writer() -> None:
    """In a forked process, which has neither the thread nor the right to count its parent's faults again."""
    global _writer, _lock
    _writer, _lock = None, threading.Lock()
    _counted.clear()


os.register_at_fork(after_in_child=_forget_writer)
