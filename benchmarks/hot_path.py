"""authorize, capture and batches: as SQL under pgbench beside TPC-B, from Python, and beside the ORM and django-hordak.

SQL is what the Python face really sends. After every load the ledger's own counts say whether each transaction did what it should.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import psycopg
from psycopg import sql

from benchmarks import pgbench, world
from benchmarks.crowd import Crowd
from benchmarks.measure import Load, Row, Run, alone, compare, rounds
from benchmarks.world import Place
from config import roles

CLIENTS = (1, 16, 64)
EVENTS = 100
FEW_ACCOUNTS = 200
#: Events are made before the clock runs: as many as the fastest could take.
MOST_EVENTS_A_SECOND = 60_000
#: Clients of the comparison with the ORM: one a process.
PROCESSES = 4
_COUNTS = "select (select sum(seq) from wallet), (select count(*) from open_authorization), pg_current_wal_insert_lsn() - '0/0'"
#: As wide as a usage record; its key is what makes an event count once.
_BARE_TABLE = (
    "create table bench_event (account_id bigint, id uuid, key_hash uuid, fingerprint uuid, event_at timestamptz,"
    " cost bigint, price bigint, value bigint, waived bigint, model_id int, feature_id int, rate_card_id int, price_ids int[],"
    " quantities bigint[], primary key (account_id, key_hash))"
)


@dataclass
class Sql:
    """The ledger's verbs on one database, under pgbench."""

    place: Place
    authorize: str
    capture: str
    limited: str
    wal: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, place: Place, crowd: Crowd) -> Sql:
        with world.owner(place.url) as connection:
            connection.execute("create table bench_ticket (client int, n int, account_id bigint, id uuid, primary key (client, n))")
            connection.execute(sql.SQL("grant select, insert, truncate on bench_ticket to {}").format(sql.Identifier(roles.APP)))
        return cls(place, **crowd.ask("statements", account=place.last, model=place.model))

    def run_authorize(self, *, clients: int, seconds: float) -> Run:
        return self._counted("authorize", self._begin(), clients=clients, seconds=seconds, entries=0, opened=1)

    def run_pair(self, *, clients: int, seconds: float) -> Run:
        script = f"{self._begin()}\\gset\n{self.capture};\n"
        return self._counted("authorize + capture", script, clients=clients, seconds=seconds, entries=1, opened=0)

    def run_capture(self, *, clients: int) -> Run:
        """Captures what :meth:`run_authorize` has left open, each client its own share."""
        with psycopg.connect(self.place.url) as connection:
            connection.execute("truncate bench_ticket")
            connection.execute(
                "insert into bench_ticket select n %% %(clients)s, n / %(clients)s + 1, account_id, id"
                " from (select *, row_number() over (order by key_hash) - 1 as n from open_authorization where state = 'open') a",
                {"clients": clients},
            )
            [(count,)] = connection.execute("select count(*) from bench_ticket").fetchall()
        one = self.capture.replace(":account", "t.account_id").replace(":id", "t.id")
        script = f"\\set n :n + 1\nselect r.* from bench_ticket t, lateral ({one}) r where t.client = :client_id and t.n = :n;\n"
        return self._counted("capture", script, clients=clients, transactions=count // clients, entries=1, opened=-1)

    def _begin(self) -> str:
        """The key comes with the call, as a client's does."""
        text = self.authorize.replace(":key", "md5(:call::text)::uuid")
        return f"\\set account random({self.place.first}, {self.place.last})\n\\set call random(1, {2**62})\n{text}\n"

    def _counted(self, name: str, script: str, *, entries: int, opened: int, **load: Any) -> Run:
        """:raises RuntimeError: the ledger did not do what pgbench asked for."""
        script = script if script.rstrip().endswith(";") else script.rstrip() + ";\n"
        before = self.counts()
        run = pgbench.script(self.place.url, script, **load)
        after = self.counts()
        done = (after[0] - before[0], after[1] - before[1])
        if done != (entries * run.count, opened * run.count):
            raise RuntimeError(f"{run.count} × {name} made {done[0]} entries and {done[1]} open authorizations.")
        self.wal.setdefault(name, []).append((after[2] - before[2]) / run.count)
        return run

    def counts(self) -> tuple[int, int, int]:
        with psycopg.connect(self.place.url) as connection:
            [(entries, opened, wal)] = connection.execute(_COUNTS).fetchall()
            return int(entries), int(opened), int(wal)


def sql_rows(verbs: Sql, tpcb: dict[str, str], load: Load) -> list[Row]:
    """``tpcb`` has the addresses of TPC-B's tables, for ``many`` accounts and for ``one``."""
    found: list[Row] = []
    for shape, name in _SHAPES.items():
        for clients in CLIENTS:
            here = replace(verbs, place=_shaped(verbs.place, shape), wal={})
            parts: dict[str, Callable[[], Run]] = {
                "TPC-B": partial(pgbench.tpcb, tpcb[shape], clients=clients, seconds=load.seconds),
                "authorize": partial(here.run_authorize, clients=clients, seconds=load.seconds),
                "capture": partial(here.run_capture, clients=clients),
                "authorize + capture": partial(here.run_pair, clients=clients, seconds=load.seconds),
            }
            runs = rounds(load.rounds, parts)
            reference = runs.pop("TPC-B")
            for verb, ours in runs.items():
                what = f"SQL {verb} × TPC-B, {_clients(clients)}, {name}"
                target = _SQL_TARGETS.get((verb, shape, clients))
                found.append(compare(f"{what}: per second", [run.rate for run in ours], [run.rate for run in reference], target=target))
                found.append(compare(f"{what}: p50, ms", [run.p50 for run in ours], [run.p50 for run in reference]))
                found.append(compare(f"{what}: p99, ms", [run.p99 for run in ours], [run.p99 for run in reference]))
            if (shape, clients) == ("many", 16):
                found += [alone(f"WAL of {verb}, {_clients(clients)}, {name}: bytes", here.wal[verb]) for verb in runs]
    return found


def limited_rows(verbs: Sql, tpcb: str, load: Load) -> list[Row]:
    """The same two verbs for accounts with four limits: their calls are counted, which is not the usual way."""
    here = replace(verbs, authorize=verbs.limited, wal={})
    parts: dict[str, Callable[[], Run]] = {
        "TPC-B": partial(pgbench.tpcb, tpcb, clients=16, seconds=load.seconds),
        "authorize": partial(here.run_authorize, clients=16, seconds=load.seconds),
        "capture": partial(here.run_capture, clients=16),
    }
    runs = rounds(load.rounds, parts)
    reference = [run.rate for run in runs.pop("TPC-B")]
    return [
        compare(f"SQL {verb} within four limits × TPC-B, 16 clients, many accounts: per second", [run.rate for run in ours], reference)
        for verb, ours in runs.items()
    ]


def python_rows(place: Place, crowd: Crowd, load: Load) -> list[Row]:
    found: list[Row] = []
    for shape, name in _SHAPES.items():
        here = _shaped(place, shape)
        for clients in CLIENTS:
            call = partial(crowd.load, clients=clients, seconds=load.seconds, first=here.first, last=here.last, model=here.model)
            parts: dict[str, Callable[[], Run]] = {
                "usage.authorize": partial(call, "authorize"),
                "usage.authorize + usage.capture": partial(call, "authorize_and_capture"),
            }
            for verb, runs in rounds(load.rounds, parts).items():
                what = f"Python {verb}, {_clients(clients)}, {name}"
                found.append(alone(f"{what}: per second", [run.rate for run in runs]))
                found.append(alone(f"{what}: p50, ms", [run.p50 for run in runs]))
                found.append(alone(f"{what}: p99, ms", [run.p99 for run in runs]))
    return found


def django_rows(verbs: Sql, crowd: Crowd, reference: Crowd, load: Load) -> list[Row]:
    """The ledger's capture through Django's cursor, metering's whole capture, and the two references; one client a process."""
    found: list[Row] = []
    for shape, name in _SHAPES.items():
        here = replace(verbs, place=_shaped(verbs.place, shape))

        def ours(operation: str, here: Sql = here, **arguments: Any) -> Run:
            here.run_authorize(clients=16, seconds=load.seconds / 2)  # as many as a load can capture, or more
            arguments |= {"shares": PROCESSES, "first": here.place.first, "last": here.place.last}
            return crowd.load(operation, clients=PROCESSES, seconds=load.seconds, **arguments)

        def orm(shape: str = shape) -> Run:
            reference.ask("authorize", hot=shape == "one", count=max(PROCESSES, int(2_000 * load.seconds)))
            return reference.load("capture", clients=PROCESSES, seconds=load.seconds, shares=PROCESSES)

        parts: dict[str, Callable[[], Run]] = {
            "ledger": partial(ours, "ledger_capture", statement=verbs.capture),
            "usage": partial(ours, "capture"),
            "orm": orm,
            "hordak": partial(reference.load, "transfer", clients=PROCESSES, seconds=load.seconds, hot=shape == "one"),
        }
        rates = {part: [run.rate for run in runs] for part, runs in rounds(load.rounds, parts).items()}
        what = f"from Django, {PROCESSES} processes, {name}: per second"
        found.append(compare(f"ledger's capture × the same steps through the ORM, {what}", rates["ledger"], rates["orm"], target="≥ 12"))
        found.append(compare(f"ledger's capture × django-hordak transfer, {what}", rates["ledger"], rates["hordak"], target="≥ 3"))
        found.append(
            compare(f"usage.capture, which also rates, × the ledger's steps through the ORM, {what}", rates["usage"], rates["orm"])
        )
    return found


def batch_rows(place: Place, crowd: Crowd, load: Load) -> list[Row]:
    with world.owner(place.url) as connection:
        connection.execute(_BARE_TABLE)
        connection.execute(sql.SQL("grant insert on bench_event to {}").format(sql.Identifier(roles.APP)))
    found: list[Row] = []
    for accounts, target in ((place.last - place.first + 1, "≥ 0.4"), (FEW_ACCOUNTS, "≥ 0.55")):
        last = min(place.first + accounts - 1, place.last)
        call = partial(crowd.load, clients=1, seconds=load.seconds, first=place.first, last=last, size=EVENTS)
        sets = max(4, int(load.seconds * MOST_EVENTS_A_SECOND / EVENTS))
        parts: dict[str, Callable[[], Run]] = {
            "settle": partial(call, "record_many", sets=sets // 2, model=place.model),
            "bare": partial(call, "bare_insert", sets=sets),
        }
        rates = {part: [EVENTS * run.rate for run in runs] for part, runs in rounds(load.rounds, parts).items()}
        what = f"batch settle × bare deduped INSERT … unnest, {EVENTS} events a transaction, {accounts:,} accounts: events/s"
        found.append(compare(what, rates["settle"], rates["bare"], target=target))
    return found


_SHAPES = {"many": "many accounts", "one": "one hot account"}
_SQL_TARGETS = {("authorize", "many", 16): "≥ 2", ("capture", "many", 16): "≥ 1.3", ("capture", "one", 16): "≥ 0.8"}


def _shaped(place: Place, shape: str) -> Place:
    return place if shape == "many" else replace(place, last=place.first)


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"
