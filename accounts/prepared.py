"""The few statements that every request of the hot path sends, in the form that costs least: written out, and prepared by the server once a
connection. Compiling a query of the ORM takes longer than PostgreSQL takes to answer it, and making a cursor half as long.

    rows   what a statement answers, read whole

Connections that this process keeps (``DB_POOL``) prepare; through a pooler of others nothing is. Numbers are sent without a type, so that
a statement is prepared once and not once for every size of its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.postgresql.base import DatabaseWrapper, ServerBindingCursor
from django.db.backends.utils import CursorWrapper
from psycopg.adapt import Dumper
from psycopg.types.datetime import TimestamptzLoader


class _Whole(Dumper):
    """A whole number, whose type its place in the statement says."""

    def dump(self, obj: int) -> bytes:
        return b"%d" % obj


def rows(statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The answer to ``statement``, whose ``%s`` have, or are cast to, a type of their own. Raises what Django's cursors raise."""
    cursor = _cursor(cast(DatabaseWrapper, connections[DEFAULT_DB_ALIAS]))
    cursor.execute(statement, parameters)
    answer: list[tuple[Any, ...]] = cursor.fetchall()
    return answer


def _cursor(database: DatabaseWrapper) -> CursorWrapper:
    """The only one of its connection: it is read before it is asked again, and never closed."""
    if database.queries_logged:
        return database.cursor()  # only Django's own cursor can say what was sent
    database.ensure_connection()
    connection: Any = database.connection
    cursor = getattr(connection, "prepared", None)
    if cursor is None:
        with database.wrap_database_errors:
            cursor = connection.prepared = cast(Any, ServerBindingCursor)(connection)
        cursor.adapters.register_dumper(int, _Whole)
        cursor.adapters.register_loader("timestamptz", TimestamptzLoader)  # Django's is written in Python, and ten times slower
    wrapped: CursorWrapper = database.make_cursor(cursor)
    return wrapped
