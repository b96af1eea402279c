"""The databases that are measured: a product whose accounts never run out of credit, with more or less history behind them.

    clone     a database like another
    people    many accounts like the first one
    remember  many finished calls like the first one, with their entries and rollups
    owner     a connection with the owner's rights

Rows are copied by SQL as their owner, with every guard on: constraints, triggers, foreign keys. The audit finds nothing wrong in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from config import roles

#: The made-up past begins so many days ago. In its last ``QUIET_DAYS`` only the busy account did anything: ``RECENT`` calls.
DAYS = 360
QUIET_DAYS = 31
RECENT = 200
#: One in so many records of the past is the busy account's.
BUSY_SHARE = 10
CHUNK = 100_000


@dataclass(frozen=True, slots=True)
class Place:
    """A database of the product. Its accounts have the ids from ``first``, the busy one, to ``last``; ``key`` acts for all of them."""

    url: str
    first: int
    last: int
    key: str
    model: str


def database(url: str, name: str) -> str:
    """The address of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def clone(url: str, name: str, *, like: str = "template1", ours: bool = True) -> str:
    """A new database like ``like``; its address. ``ours``: the owner's role has it, as in production, else the log-in."""
    belongs = sql.SQL("owner {}").format(sql.Identifier(roles.OWNER)) if ours else sql.SQL("")
    with psycopg.connect(database(url, "postgres"), autocommit=True) as server:
        if like != "template1":  # only what is called a template may be copied by others than its owner
            server.execute(sql.SQL("set role {}").format(sql.Identifier(roles.OWNER)))
            server.execute(sql.SQL("alter database {} is_template true").format(sql.Identifier(like)))
            server.execute("reset role")
        server.execute(sql.SQL("create database {} {} template {}").format(sql.Identifier(name), belongs, sql.Identifier(like)))
    return database(url, name)


def people(url: str, *, like: int, count: int) -> tuple[int, int]:
    """``count`` accounts like the account ``like``, all of whose credit is one grant and unused; their first and last id."""
    first, last = like + 1, like + count
    with owner(url) as connection:

        def copy(table: LiteralString, **changes: LiteralString) -> None:
            whose = sql.SQL("id" if table == "accounts_account" else "account_id")
            one = sql.SQL("(select * from {} where {} = {})").format(sql.Identifier(table), whose, like)
            _copy(connection, table, one, sql.SQL("generate_series({}::bigint, {}::bigint) n").format(first, last), changes)

        grant: LiteralString = "(select g.id from credit_grant g where g.account_id = n)"
        operation: LiteralString = "(select o.id from operation_key o where o.account_id = n)"
        copy("accounts_account", id="n", public_id="'acct_' || substr(md5(n::text), 1, 20)", external_id="'customer-' || n")
        copy("account_state", account_id="n")
        copy("wallet", account_id="n", balance="0", seq="0")
        copy("credit_grant", account_id="n", id="nextval(pg_get_serial_sequence('credit_grant', 'id'))")
        copy("operation_key", account_id="n", id="nextval(pg_get_serial_sequence('operation_key', 'id'))", grant_id=grant)
        copy("ledger_entry", account_id="n", grant_id=grant, operation_id=operation)
        copy("billing_subscription", account_id="n", id="nextval(pg_get_serial_sequence('billing_subscription', 'id'))")
        _write_wallets(connection)
        connection.execute("select setval(pg_get_serial_sequence('accounts_account', 'id'), %s)", [last])
    return first, last


def remember(place: Place, *, records: int) -> None:
    """``records`` finished calls like the only one that was really made, the oldest first, of every model and feature in turn, folded."""
    theirs = records // BUSY_SHARE
    chunks = max(1, records // CHUNK)
    with owner(place.url) as connection:
        connection.execute(
            "create temporary table the_record as select * from usage_record;"
            "create temporary table the_entry as select * from ledger_entry where usage_id is not null;"
            "create temporary table the_delta as select * from rollup_delta;"
            "create temporary table past (account_id bigint, seq bigint, id uuid, at timestamptz, model_id int, feature_id int,"
            " price_ids int[])"
        )
        for chunk in range(chunks):
            for busy, count in ((False, records - theirs), (True, theirs)):
                numbers = range(count * chunk // chunks, count * (chunk + 1) // chunks)
                _imagine(connection, place, numbers, busy=busy, begin=DAYS, days=(DAYS - QUIET_DAYS) / max(count, 1))
            _copy_the_call(connection)
        _imagine(connection, place, range(theirs, theirs + RECENT), busy=True, begin=QUIET_DAYS - 1, days=(QUIET_DAYS - 2) / RECENT)
        _copy_the_call(connection)
        _write_wallets(connection)
        connection.commit()
        connection.autocommit = True
        connection.execute("vacuum (analyze)")


def _imagine(connection: psycopg.Connection, place: Place, numbers: range, *, busy: bool, begin: int, days: float) -> None:
    """Puts the calls with these numbers into ``past``, ``days`` apart, from ``begin`` days ago on: number 0, or the first recent one."""
    connection.execute(
        """
        insert into past
        select %(base)s + n %% %(accounts)s, n / %(accounts)s + 2, uuidv7(t.at - clock_timestamp()), t.at, m.id, f.id, m.prices
        from generate_series(%(from)s::bigint, %(to)s::bigint) n
          cross join lateral (select now() - %(begin)s * interval '1 day' + (n - %(zero)s) * %(days)s * interval '1 day') t (at)
          join (
            select u.id, row_number() over (order by u.id) - 1, count(*) over (),
              array(select b.id::int from price_book b where b.provider = u.provider and b.model = u.name order by b.id)
            from metering_usagemodel u) m (id, i, c, prices) on m.i = n %% m.c
          join (select id, row_number() over (order by id) - 1, count(*) over () from metering_feature) f (id, i, c) on f.i = n %% f.c
        order by n
        """,
        {
            "accounts": 1 if busy else place.last - place.first,
            "base": place.first if busy else place.first + 1,
            "from": numbers.start,
            "to": numbers.stop - 1,
            "zero": 0 if begin == DAYS else numbers.start,
            "begin": begin,
            "days": days,
        },
    )


def _copy_the_call(connection: psycopg.Connection) -> None:
    """Copies the call, its entry and its rollup once for every row of ``past``, and empties that."""
    rows = sql.SQL("past p join credit_grant g on g.account_id = p.account_id")
    record: dict[str, LiteralString] = {
        "account_id": "p.account_id", "id": "p.id", "key_hash": "gen_random_uuid()", "model_id": "p.model_id", "feature_id": "p.feature_id",
        "price_ids": "p.price_ids",
        "event_at": "p.at", "recorded_at": "p.at", "authorized_at": "p.at", "expires_at": "p.at + interval '1 hour'",
        "first_seq": "p.seq", "balance_after": "g.granted - (p.seq - 1) * m.price_nanos",
        "seal": "usage_seal(usage_sealed(p.account_id, p.id, m.outcome::text, p.at, p.at, null, p.model_id, m.service_level, m.quantities,"
        " m.rate_card_id, p.price_ids, m.unit_id, m.cost_nanos, m.price_nanos, m.value_nanos, m.waived_nanos, m.hold, p.seq,"
        " (select usage_movement(g.id, e.amount, e.debt_delta, e.cash_nanos, e.fee_nanos) from the_entry e)))",
    }  # fmt: skip
    entry: dict[str, LiteralString] = {
        "account_id": "p.account_id", "seq": "p.seq", "grant_id": "g.id", "usage_id": "p.id", "effective_at": "p.at", "recorded_at": "p.at",
        "balance_after": "g.granted + (p.seq - 1) * m.amount",
    }  # fmt: skip
    delta: dict[str, LiteralString] = {
        "account_id": "p.account_id", "day": "(p.at at time zone 'UTC')::date", "model_id": "p.model_id", "feature_id": "p.feature_id",
    }  # fmt: skip
    _copy(connection, "usage_record", sql.SQL("the_record"), rows, record)
    _copy(connection, "ledger_entry", sql.SQL("the_entry"), rows, entry)
    _copy(connection, "rollup_delta", sql.SQL("the_delta"), rows, delta)
    connection.execute("truncate past")
    connection.execute("select fold_rollups(%s)", [2 * CHUNK])
    connection.commit()


def _write_wallets(connection: psycopg.Connection) -> None:
    """Makes wallets and grants what their entries say."""
    connection.execute(
        "with last as (select distinct on (account_id, unit_id) * from ledger_entry order by account_id, unit_id, seq desc)"
        "update wallet w set balance = e.balance_after, seq = e.seq from last e where (e.account_id, e.unit_id) = (w.account_id, w.unit_id)"
    )
    connection.execute(
        "update credit_grant g set remaining = w.balance from wallet w where (w.account_id, w.unit_id) = (g.account_id, g.unit_id)"
    )


def _copy(
    connection: psycopg.Connection, table: LiteralString, one: sql.Composable, rows: sql.Composable, changes: dict[str, LiteralString]
) -> None:
    """Copies the only row of ``one``, called ``m``, into ``table`` for every one of ``rows``, with ``changes`` to its columns."""
    found = connection.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped", [table]
    )
    columns = [name for (name,) in found]
    values = [sql.SQL(changes[name]) if name in changes else sql.SQL("m.{}").format(sql.Identifier(name)) for name in columns]
    connection.execute(
        sql.SQL("insert into {} ({}) overriding system value select {} from {} m, {}").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(values), one, rows
        )
    )


@contextmanager
def owner(url: str) -> Iterator[psycopg.Connection]:
    """A connection with the owner's rights, which the app's log-in may take on the embedded server."""
    with psycopg.connect(url, options="-c statement_timeout=0") as connection:
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(roles.OWNER)))
        connection.commit()
        yield connection
