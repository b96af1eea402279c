"""The rows behind the figures of the growth page: whose they are, when, and how much; on a page, or as a file.

WHATS   what can be asked for, and how it is called
read    the rows of one figure
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db import connection

from accounts import exports
from accounts.models import Account
from analytics import growth, retention, rollups

WHATS: Final = {
    "paying": "Paid subscriptions",
    "new": "New customers",
    "expansion": "Customers who pay more",
    "contraction": "Customers who pay less",
    "churned": "Customers who left",
    "reactivated": "Customers who came back",
    "lost": "Customers lost",
    "packs": "Packs sold",
    "trials": "Trials that ended",
    "unpaid": "Plans whose payment failed",
}
HEADINGS: Final = ("account", "name", "product", "at", "before_usd", "after_usd", "note")


@dataclass(frozen=True, slots=True)
class Row:
    """``before`` and ``after`` are nano-USD, a month but for packs; ``note`` says what is not in the figures."""

    account: Account
    at: datetime
    before: int
    after: int
    note: str


def read(*, what: str, of: growth.Period, now: datetime, product_id: int | None, limit: int) -> list[Row]:
    """The newest ``limit`` rows of one of ``WHATS``.

    :raises KeyError: there is no such figure.
    """
    if what not in WHATS:
        raise KeyError(what)
    found = list(_found(what, of, now, product_id, limit))[:limit]
    accounts = Account.objects.select_related("product").in_bulk({account_id for account_id, *_ in found})
    return [Row(accounts[account_id], at, before, after, note) for account_id, at, before, after, note in found]


def cells(rows: Sequence[Row]) -> Iterator[Sequence[exports.Cell]]:
    """The same as a file."""
    yield HEADINGS
    for row in rows:
        before, after = exports.Nanos(row.before), exports.Nanos(row.after)
        yield row.account.public_id, row.account.name, row.account.product.slug, row.at, before, after, row.note


def _found(
    what: str, of: growth.Period, now: datetime, product_id: int | None, limit: int
) -> Iterator[tuple[int, datetime, int, int, str]]:
    if what == "trials":
        for trial in retention.trials(of=of, product_id=product_id):
            note = f"paid from {trial.paid_from:%Y-%m-%d %H:%M} UTC" if trial.paid_from else "not paid"
            yield trial.account_id, trial.ended, 0, 0, note
    elif what == "unpaid":
        for plan in retention.failures(of=of, now=now, product_id=product_id).plans:
            note = "open" if plan.ended is None else f"{'recovered' if plan.recovered else 'lost'} {plan.ended:%Y-%m-%d %H:%M} UTC"
            yield plan.account_id, plan.failed, plan.mrr_nanos, 0 if plan.ended and not plan.recovered else plan.mrr_nanos, note
    else:
        asked: dict[str, Any] = {"what": what, "since": of.since, "until": of.until, "product": product_id, "limit": limit}
        with connection.cursor() as cursor:
            cursor.execute(rollups.query("growth_rows"), asked)
            yield from cursor.fetchall()
