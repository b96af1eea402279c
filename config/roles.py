"""The database roles: who owns the tables, who may only use them, who reads a tenant's rows.

    tollgate_owner   cannot log in; owns the database and everything in it; migrations run as it
    tollgate_app     the program's log-in; inherits nothing; may only SELECT from the ledger and EXECUTE its verbs
    authenticated    cannot log in; the tenant-facing reads run as it, under row-level security

``manage.py migrate`` takes the owner's role for its work and gives out the rights afterwards. Where there is only one role all of it
still works, without the second wall.
"""

from __future__ import annotations

from pathlib import Path

OWNER = "tollgate_owner"
APP = "tollgate_app"
TENANT = "authenticated"

#: Written by the ledger's SQL functions alone: the app role may only read them.
LEDGER_TABLES = (
    "account_state",
    "wallet",
    "credit_grant",
    "credit_schedule",
    "open_authorization",
    "usage_record",
    "usage_rating",
    "ledger_entry",
    "operation_key",
    "usage_counter",
    "usage_spend_window",
    "usage_spend",
    "usage_object",
    "usage_throttle",
    "rollup_delta",
    "output_delta",
    "rollup_model",
    "rollup_account",
    "rollup_state",
    "book_wallet",
    "book_account",
    "book_product",
    "book_origin",
    "book_user",
)

#: Asks whether the present role may take the owner's, whose name is the parameter.
MAY_BE_OWNER = "select coalesce((select pg_has_role(current_user, oid, 'SET') from pg_roles where rolname = %s), false)"

_SQL = Path(__file__).parent / "sql"


def roles_sql() -> str:
    """Makes the three roles where they are missing. The app role gets no password here."""
    return (_SQL / "roles.sql").read_text()


def administrator_sql() -> str:
    """What a managed server's administrator runs in our database, before the first ``migrate`` or later. Safe to run again."""
    return roles_sql() + (_SQL / "ownership.sql").read_text()


def tenant_role_sql() -> str:
    """Makes the role of the tenant-facing reads where it is missing; migrations name it."""
    return (_SQL / "tenant_role.sql").read_text()


def grants_sql() -> str:
    """The app role's rights on all that the current role owns: the ledger read-only, its verbs executable, the rest writable.

    ``PUBLIC`` loses what PostgreSQL gives it on functions; ``authenticated`` keeps exactly what migrations granted it.
    """
    tables = ", ".join(f"'{table}'" for table in LEDGER_TABLES)
    return (_SQL / "grants.sql").read_text().replace("(LEDGER_TABLES)", f"(array[{tables}])")
