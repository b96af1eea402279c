"""``python -m config.djstripe_schema``: our one dj-stripe migration makes the tables that upstream's make.

Upstream's take over a minute, so a pair that was found equal is remembered in ``var/`` until dj-stripe, Django or our migrations change.
Exit code 1, with the differences, where they are not equal.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import cast

import django
from django.conf import settings
from django.core.management import call_command
from django.core.management.commands import migrate
from django.db import connection
from django.db.backends.postgresql.base import DatabaseWrapper

CATALOG = (Path(__file__).parent / "sql" / "djstripe_catalog.sql").read_text()
REMEMBERED = Path(__file__).parent.parent / "var" / "djstripe-schema.equal"


def main() -> int:
    say = print
    pair = _fingerprint()
    if REMEMBERED.exists() and REMEMBERED.read_text() == pair:
        say(f"dj-stripe {version('dj-stripe')}: schemas were found equal before.")
        return 0
    say(f"dj-stripe {version('dj-stripe')}: comparing schemas, upstream's takes over a minute …", flush=True)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.test")
    django.setup()
    ours = _schema("ours", settings.MIGRATION_MODULES)
    upstream = _schema("upstream", {})
    differences = list(difflib.unified_diff(upstream, ours, "upstream", "ours", lineterm="", n=0))
    say(*differences, sep="\n", end="")
    if differences or not ours:
        say("The schemas differ: python manage.py makemigrations djstripe")
        return 1
    REMEMBERED.parent.mkdir(exist_ok=True)
    REMEMBERED.write_text(pair)
    say(f"equal: {len(ours)} tables, columns, indexes and constraints.")
    return 0


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{version('dj-stripe')} {version('django')}".encode())
    for path in (Path(__file__), *sorted((Path(__file__).parent / "djstripe_migrations").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _schema(name: str, modules: dict[str, str]) -> list[str]:
    """What migrating dj-stripe into an empty scratch database makes, one sorted line a thing; names that Django hashes are made equal."""
    database = f"djstripe_{name}_{os.getpid()}"
    home = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f"create database {database}")
    try:
        _connect_to(database)
        settings.MIGRATION_MODULES = modules
        call_command(migrate.Command(), "djstripe", verbosity=0, interactive=False)  # Django's own: no roles, no rights
        with connection.cursor() as cursor:
            cursor.execute(CATALOG)
            return sorted(re.sub(r"_[0-9a-f]{8}(?=_|\b)", "_HASH", row[0]) for row in cursor.fetchall())
    finally:
        _connect_to(home)
        with connection.cursor() as cursor:
            cursor.execute(f"drop database {database}")


def _connect_to(database: str) -> None:
    connection.close()
    cast(DatabaseWrapper, connection).close_pool()
    connection.settings_dict["NAME"] = database


if __name__ == "__main__":
    sys.exit(main())
