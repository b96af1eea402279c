"""Who may do what in the database, on the tables as they are migrated."""

from __future__ import annotations

import io

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection, transaction

from config import roles

pytestmark = pytest.mark.django_db


def rows(sql: str, *parameters: str | list[str]) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def test_the_ledger_is_only_read_by_the_app_role() -> None:
    tables = list(roles.LEDGER_TABLES)
    may = rows(
        "select name, verb from unnest(%s::text[]) name, unnest(array['select', 'insert', 'update', 'delete', 'truncate']) verb"
        " where has_table_privilege('tollgate_app', name, verb)",
        tables,
    )
    assert sorted(map(str, may)) == sorted(str((table, "select")) for table in tables)


@pytest.mark.parametrize(
    "statement", ["insert into wallet default values", "update ledger_entry set amount = 1", "delete from usage_record"]
)
def test_a_direct_write_to_the_ledger_is_refused(statement: str) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
        rows(statement)


def test_the_app_role_makes_no_tables_and_switches_no_trigger_off() -> None:
    for statement in ("create table mine (id int)", "alter table ledger_entry disable trigger all", "truncate wallet"):
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"), transaction.atomic():
            rows(statement)


def test_nothing_that_we_made_is_executable_by_everybody() -> None:
    open_to_all = rows(
        "select p.oid::regprocedure::text from pg_proc p where pronamespace = 'public'::regnamespace"
        " and not exists (select from pg_depend where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')"
        " and has_function_privilege('public', p.oid, 'execute')"
    )
    assert open_to_all == []


def test_the_tenants_role_executes_no_verb_and_writes_nothing() -> None:
    writable = rows(
        "select oid::regclass::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v')"
        " and has_table_privilege('authenticated', oid, 'insert, update, delete, truncate')"
    )
    verbs = rows(
        "select p.oid::regprocedure::text from pg_proc p where pronamespace = 'public'::regnamespace and proname ~ '^(ledger|usage)_'"
        " and has_function_privilege('authenticated', p.oid, 'execute')"
    )
    assert (writable, verbs) == ([], [])


def test_every_function_that_runs_as_its_owner_pins_its_search_path() -> None:
    loose = rows(
        "select oid::regprocedure::text from pg_proc where pronamespace = 'public'::regnamespace and prosecdef"
        " and not exists (select from unnest(proconfig) setting where setting like 'search_path=%%')"
    )
    assert loose == []


def test_db_roles_prints_the_sql_and_changes_nothing() -> None:
    out = io.StringIO()
    call_command("db", "roles", stdout=out)
    assert "create role tollgate_app login noinherit" in out.getvalue()
    assert "password" not in out.getvalue()


def test_db_roles_apply_needs_an_administrator_and_says_so() -> None:
    with pytest.raises(CommandError, match=r"Nothing was changed: .*(permission denied|must be|Only roles)"):
        call_command("db", "roles", apply=True)


@pytest.mark.skipif(f"{roles.APP}:" not in settings.DATABASE_URL, reason="this server has a single role")
def test_the_log_in_becomes_the_owner_or_a_tenant_only_by_saying_so() -> None:
    with psycopg.connect(settings.DATABASE_URL) as session:
        inherits = session.execute(
            "select pg_has_role('tollgate_owner', 'usage'), pg_has_role('authenticated', 'usage'), pg_has_role('tollgate_owner', 'SET')"
        ).fetchone()
    assert inherits == (False, False, True)
