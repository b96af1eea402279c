"""The last resort: everything about a product is written to files, and the module steps aside. Nothing is dropped, and nothing is lost.

    export    the product's rows as CSV files, all of one instant
    disable   usage tracking, balance checks, throttling and top-ups off, for as long as a switch may last

A disabled product's users go on working: what they use is spooled and charged once it is enabled again, by ending the switches.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from django.db import connection, transaction

from metering import kill_switches
from metering.kill_switches import Kind, Wanted
from metering.models import KillSwitch
from pricing.models import Product

#: What is exported: a table, and the column that says whose its rows are.
TABLES: Final = {
    "accounts_account": "id", "accounts_membership": "account_id", "account_state": "account_id", "wallet": "account_id",
    "credit_grant": "account_id", "credit_schedule": "account_id", "ledger_entry": "account_id", "operation_key": "account_id",
    "open_authorization": "account_id", "usage_record": "account_id", "usage_rating": "account_id", "usage_object": "account_id",
    "usage_throttle": "account_id", "metering_spooledusage": "account_id", "billing_subscription": "account_id",
    "billing_stripecustomer": "account_id", "billing_stripepayment": "account_id", "billing_topup": "account_id",
}  # fmt: skip
#: The kinds that let users go on without the module.
KINDS: Final = (Kind.TRACKING, Kind.BALANCE_CHECK, Kind.THROTTLING, Kind.TOP_UPS)


@dataclass(frozen=True, slots=True)
class Exported:
    """One file: its table, and how many rows it has."""

    path: Path
    table: str
    rows: int


def export(*, product: Product, folder: Path) -> list[Exported]:
    """A file a table, RFC 4180 with a heading, in a folder that must not hold any of them yet. Amounts are nanos, times UTC.

    Opens a transaction, whose one snapshot all files are of. :raises FileExistsError: there is such a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Exported] = []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("set transaction isolation level repeatable read read only")
        cursor.execute("set local time zone 'UTC'")
        for table, column in TABLES.items():
            path = folder / f"{table}.csv"
            rows = f"select t.* from {table} t join accounts_account a on a.id = t.{column} where a.product_id = %s"  # noqa: S608 (ours)
            with path.open("xb") as file, cursor.copy(f"copy ({rows}) to stdout with (format csv, header)", [product.pk]) as copy:
                for block in copy:
                    file.write(block)
            found.append(Exported(path, table, cursor.rowcount))
    return found


def disable(*, product: Product, reason: str, actor: str, now: datetime) -> list[KillSwitch]:
    """Throws what is not thrown already, in one transaction; returns the new switches."""
    thrown = []
    with transaction.atomic():
        for kind in KINDS:
            if not KillSwitch.objects.filter(kind=kind, product=product, account=None, ended_at=None, ends_at__gt=now).exists():
                wanted, ends_at = Wanted(kind=kind, product=product), now + kill_switches.MAX_LIFETIME
                thrown.append(kill_switches.throw(wanted=wanted, reason=reason, actor=actor, ends_at=ends_at, now=now))
    return thrown
