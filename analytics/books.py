"""The books: where the cash went that was paid for credit, by day, kept from the ledger's entries (``analytics/sql/books.sql``).

    fold     adds what the ledger entered since the last time
    check    where they are not what the entries say
    rebuild  makes them what the entries say

Reports read folded days and the entries not yet folded in one statement, so that a late fold changes no figure.
"""

from __future__ import annotations

from django.db import connection

from analytics import rollups


def fold() -> int:
    """Adds all that is new, in one transaction; returns of how many wallets."""
    return _patiently("select fold_books()")


def rebuild() -> int:
    """Replaces the books by a recount of every entry; returns of how many wallets. Charges go on meanwhile."""
    return _patiently("select rebuild_books()")


def check() -> list[str]:
    """Every day and line whose live sum is not the recount of all entries, in words. Reads everything."""
    with rollups.patiently(), connection.cursor() as cursor:
        cursor.execute(rollups.query("book_differences"))
        return [
            f"product {product} {day} {line}: {found} instead of {expected}" for product, day, line, found, expected in cursor.fetchall()
        ]


def _patiently(sql: str) -> int:
    with rollups.patiently(), connection.cursor() as cursor:
        cursor.execute(sql)
        return int(cursor.fetchone()[0])
