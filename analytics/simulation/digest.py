"""One number for all that a simulated year left in the ledger, the same wherever and however often it is simulated.

It is taken of what an account's statement could show, in the order of the entries, and of nothing that differs between two runs of the
same events: no ids of rows, no reasons (which name them), and not when something was recorded, because jobs may be late.

* every ledger entry: whose, its number, kind, amount, debt, running balance and debt, cash and fee, when it took effect, of which grant
  (source, size, begin, end, cash), for which usage or act;
* every usage record: whose, its key, model, outcome, time, quantities, cost, price, value and what was waived, a later rating included;
* every payment and what was given back; every credit schedule; the plan that each account is on, its seats and period.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from django.db import connection, transaction

from analytics import rollups


def lines(*, product_id: int) -> Iterator[str]:
    """What the digest covers, a line each."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("set local statement_timeout = 0")
        cursor.execute(rollups.query("simulated_ledger"), {"product": product_id})
        while rows := cursor.fetchmany(10_000):
            yield from (line for (line,) in rows)


def digest(*, product_id: int) -> str:
    """SHA-256 over :func:`lines`."""
    sha = hashlib.sha256()
    for line in lines(product_id=product_id):
        sha.update(line.encode() + b"\n")
    return sha.hexdigest()
