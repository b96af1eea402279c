"""The rollups: what was used, charged and paid for, added up so that reports need not read every record.

    fold       adds what the ledger appended since the last time
    check      where the rollups are not what the records say
    rebuild    makes them what the records say
    folded_at  when they were last folded

Figures are live: every report reads folded rows and the deltas not yet folded in one statement (``analytics/sql/rollups.sql``), so
that a late fold changes no figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from django.db import connection, transaction

from pricing.rating import COMPONENTS, TOKEN_COMPONENTS

FOLD_LIMIT = 20_000
_TOKEN_POSITIONS = [position for position, component in enumerate(COMPONENTS, start=1) if component in TOKEN_COMPONENTS]


class Figures(NamedTuple):
    """Sums. Cost and value are nano-USD, price is nanos of the wallet's unit, cash and fee are nanos of the grants' currency."""

    records: int
    tokens: int
    cost_nanos: int
    price_nanos: int
    value_nanos: int
    cash_nanos: int
    fee_nanos: int


@dataclass(frozen=True, slots=True)
class Difference:
    """One row of a rollup that is not what the records say. ``key`` is the model's or the account's id."""

    rollup: str
    product_id: int
    day: date
    key: int
    feature_id: int
    found: Figures
    expected: Figures

    def __str__(self) -> str:
        wrong = ", ".join(
            f"{name} {found} instead of {expected}"
            for name, found, expected in zip(Figures._fields, self.found, self.expected, strict=True)
            if found != expected
        )
        feature = f" feature {self.feature_id}" if self.rollup == "model" else ""
        return f"product {self.product_id} {self.day} {self.rollup} {self.key}{feature}: {wrong}"


def fold(*, limit: int = FOLD_LIMIT) -> int:
    """Adds up to ``limit`` deltas to the rollups, in one transaction; returns how many. Less than ``limit``: there were no more."""
    if limit < 1:
        raise ValueError("Fold at least one delta.")
    with connection.cursor() as cursor:
        cursor.execute("select fold_rollups(%s)", [limit])
        return int(cursor.fetchone()[0])


def check() -> list[Difference]:
    """Every difference between the live figures and a recount of all records. Reads everything; charges go on meanwhile."""
    with patiently(), connection.cursor() as cursor:
        cursor.execute(query("rollup_differences"), {"tokens": _TOKEN_POSITIONS})
        return [
            Difference(rollup, product_id, day, key, feature_id, Figures(*found), Figures(*expected))
            for rollup, product_id, day, key, feature_id, found, expected in cursor.fetchall()
        ]


def rebuild() -> int:
    """Replaces the rollups by a recount; returns how many of their rows were wrong or not yet folded. Charges go on meanwhile."""
    with patiently(), connection.cursor() as cursor:
        cursor.execute("select rebuild_rollups(%s)", [_TOKEN_POSITIONS])
        return int(cursor.fetchone()[0])


def folded_at() -> datetime:
    """When the rollups were last folded or rebuilt."""
    with connection.cursor() as cursor:
        cursor.execute("select folded_at from rollup_state")
        moment: datetime = cursor.fetchone()[0]
        return moment


@cache
def query(name: str) -> str:
    """The text of ``analytics/sql/<name>.sql``."""
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text()


@contextmanager
def patiently() -> Iterator[None]:
    """A transaction in which a statement may take as long as it needs."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("set local statement_timeout = 0")
        yield
