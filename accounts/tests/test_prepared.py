"""Prepared statements: once a connection, whatever they are sent with, and never on a connection that is not ours."""

from __future__ import annotations

import secrets
from typing import Any, cast

import pytest
from django.db import DataError, connection
from django.test.utils import CaptureQueriesContext

from accounts import prepared


@pytest.fixture
def raw(committed: None) -> Any:
    """psycopg's connection, which has prepared nothing yet."""
    connection.close()
    connection.ensure_connection()
    made = cast(Any, connection.connection)
    made.execute("deallocate all")
    made.__dict__.pop("prepared", None)
    made._prepared.clear()
    return made


def of_server(text: str) -> int:
    """How often PostgreSQL has the statement on this connection."""
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_prepared_statements where statement like %s", [f"%{text}%"])
        return int(cursor.fetchone()[0])


def test_numbers_of_every_size_and_none_are_the_same_statement(raw: Any) -> None:
    mark = secrets.token_hex(8)
    for number in (1, -40_000, 2**40, None):
        assert prepared.rows(f"select %s::bigint as n{mark}", [number]) == [(number,)]
    assert of_server(mark) == 1


def test_without_connections_of_our_own_nothing_is_prepared(raw: Any) -> None:
    mark = secrets.token_hex(8)
    raw.prepare_threshold = None  # what DB_POOL=false sets
    try:
        assert prepared.rows(f"select %s::bigint as n{mark}", [7]) == [(7,)]
        assert of_server(mark) == 0
    finally:
        raw.prepare_threshold = 0


def test_an_error_is_djangos_and_the_next_statement_works(raw: Any) -> None:
    with pytest.raises(DataError):
        prepared.rows("select 1 / %s::bigint", [0])
    assert prepared.rows("select 1 / %s::bigint", [1]) == [(1,)]


def test_a_statement_that_is_logged_is_shown_with_what_it_was_sent_with(raw: Any) -> None:
    with CaptureQueriesContext(connection) as asked:
        assert prepared.rows("select %s::bigint", [41]) == [(41,)]
    assert [query["sql"] for query in asked] == ["select 41::bigint"]
