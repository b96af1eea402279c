"""The audit: recomputes every equation of the ledger from its rows (``billing/sql/audit.sql``) and reports what does not hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from django.db import connection, transaction

SQL = Path(__file__).parent / "sql" / "audit.sql"


@dataclass(frozen=True, slots=True)
class Finding:
    """One violated equation of one account."""

    check: str
    account_id: int
    text: str


def checks() -> dict[str, str]:
    """The checks by name, as SQL."""
    parts = re.split(r"^-- name: (.+)$", SQL.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def run() -> list[Finding]:
    """Every finding of every check.

    Outside a transaction all checks read one snapshot, so that work going on meanwhile is no finding.
    """
    findings: list[Finding] = []
    outermost = not connection.in_atomic_block
    with transaction.atomic(), connection.cursor() as cursor:
        if outermost:
            cursor.execute("set transaction isolation level repeatable read read only")
        cursor.execute("set local statement_timeout = 0")
        for name, sql in checks().items():
            cursor.execute(sql)
            findings += [Finding(name, account_id, text) for account_id, text in cursor.fetchall()]
    return findings
