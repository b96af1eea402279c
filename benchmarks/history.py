"""What history costs: captures, reads and reports with little of it behind them, and with much."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import psycopg

from benchmarks.crowd import Crowd
from benchmarks.hot_path import Sql
from benchmarks.measure import Load, Row, Run, alone, compare, rounds
from benchmarks.world import DAYS, Place

CLIENTS = 16
CONSTANT = "≤ 1.2"
#: The goal for the margin report is for so many records.
MARGIN_RECORDS = 10**7
REPLAY_SECONDS = "≤ 180"


def write_rows(small: Sql, large: Sql, names: tuple[str, str], load: Load) -> list[Row]:
    """Authorizations and captures a second. ``names`` are the numbers of records, for people."""
    for verbs in (small, large):  # warms up
        verbs.run_authorize(clients=CLIENTS, seconds=load.seconds)
        verbs.run_capture(clients=CLIENTS)
    parts: dict[str, Callable[[], Run]] = {
        "small authorize": partial(small.run_authorize, clients=CLIENTS, seconds=load.seconds),
        "large authorize": partial(large.run_authorize, clients=CLIENTS, seconds=load.seconds),
        "small capture": partial(small.run_capture, clients=CLIENTS),
        "large capture": partial(large.run_capture, clients=CLIENTS),
    }
    rates = {part: [run.rate for run in runs] for part, runs in rounds(load.rounds, parts).items()}
    what = f"after {names[1]} records × after {names[0]}, {CLIENTS} clients: per second"
    return [compare(f"{verb} {what}", rates[f"large {verb}"], rates[f"small {verb}"], target="≥ 0.9") for verb in ("capture", "authorize")]


def read_rows(crowds: tuple[Crowd, Crowd], places: tuple[Place, Place], names: tuple[str, str], load: Load) -> list[Row]:
    """The busy account's balance and pages: its last month is the same in both, what was before it is not."""
    reads: dict[str, tuple[str, dict[str, str]]] = {
        "balance, read in Python": ("read_balance", {}),
        "page with the balance": ("read_page", {"page": ""}),
        "page of usage": ("read_page", {"page": "usage/"}),
    }
    for crowd, place in zip(crowds, places, strict=True):
        crowd.ask("visitor", account=place.first)
    found = []
    for what, (operation, arguments) in reads.items():
        parts = {
            side: partial(crowd.load, operation, clients=1, seconds=load.seconds / 2, account=place.first, **arguments)
            for side, crowd, place in zip(("small", "large"), crowds, places, strict=True)
        }
        for warm_up in parts.values():
            warm_up()
        p50 = {side: [run.p50 for run in runs] for side, runs in rounds(load.rounds, parts).items()}
        goal = f"{what}, account with a tenth of {names[1]} records × of {names[0]}: p50, ms"
        found.append(compare(goal, p50["large"], p50["small"], target=CONSTANT))
    return found


def margin_rows(crowd: Crowd, *, records: int, load: Load) -> list[Row]:
    crowd.ask("fold")
    parts = {
        "scan": partial(crowd.load, "margin_scan", clients=1, seconds=0),
        "live": partial(crowd.load, "margin_report", clients=1, seconds=load.seconds / 4),
    }
    p50 = {part: [run.p50 for run in runs] for part, runs in rounds(load.rounds, parts).items()}
    goal = f"margin report of a year over {records:,} events, raw scan × live: ms"
    return [compare(goal, p50["scan"], p50["live"], target="≥ 100" if records >= MARGIN_RECORDS else None)]


def replay_rows(crowd: Crowd, place: Place, *, records: int) -> list[Row]:
    """Everything that was used in a year under a draft, in one process; the goal is for a million records."""
    found = []
    for what, changed in (("the catalog as it is", False), ("a dearer draft with limits", True)):
        done = crowd.ask("replay_draft", account=place.first, days=DAYS + 5, changed=changed)
        if done["wrong"] or bool(done["changed"]) is not changed:
            raise RuntimeError(f"The replay under {what} found {done}.")
        goal = f"replay of {done['uses']:,} uses under {what}: seconds"
        found.append(alone(goal, [done["seconds"]], target=REPLAY_SECONDS if records <= 10**6 else None))
    return found


def disk_rows(place: Place) -> list[Row]:
    """What a record and its entry take, indexes and half-empty pages included."""
    with psycopg.connect(place.url) as connection:
        [(count, size)] = connection.execute(
            "select (select count(*) from usage_record), pg_total_relation_size('usage_record') + pg_total_relation_size('ledger_entry')"
        ).fetchall()
    goal = "disk, usage record and ledger entry with their indexes, large database: bytes an event"
    return [alone(goal, [float(size) / count], target="≤ 700")]


def audit_rows(crowds: tuple[Crowd, ...]) -> list[Row]:
    """Everything that the loads did, recounted."""
    findings = [finding for crowd in crowds for finding in crowd.ask("findings")]
    for finding in findings[:20]:
        print(f"audit: {finding}")
    return [alone("invariants violated, over everything that was done here", [len(findings)], target="≤ 0")]
