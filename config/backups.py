"""Backups without a client program: the whole database as one compressed file, and back.

    take      every table in one snapshot, with the sequences, into a file of BACKUP_FOLDER; uploads it, and deletes the old ones
    check     reads a file through: whole, and as many rows as it says
    restore   puts a file into a database that was migrated by the same release and has no accounts yet

The file is a zip: ``manifest.json`` and one text of PostgreSQL's COPY a table. It has the rows and not the schema, which migrations
make; so it needs no ``pg_dump`` of the server's version, and is restored with the release that took it. It holds personal data and the
hashes of secrets: keep it as you keep the database.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection
from psycopg import sql
from psycopg.conninfo import make_conninfo

from config import roles

FORMAT = 1
UPLOAD_SECONDS = 8 * 60
_NAME = re.compile(r"tollgate-(\d{8}T\d{6}Z)\.zip")
_STAMP = "%Y%m%dT%H%M%SZ"
_TABLES = """
    select c.relname, array_agg(a.attname order by a.attnum)
      from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
     where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
       and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e')
     group by c.relname order by c.relname
"""
_MIGRATIONS = "select app || '.' || name from django_migrations order by 1"


class NotRestorable(Exception):
    """The file or the database is not one for a restore. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Backup:
    path: Path
    tables: int
    rows: int


def off() -> str:
    return "" if settings.BACKUP_FOLDER else "BACKUP_FOLDER is not set."


def url() -> str:
    """The database of this process."""
    options = connection.get_connection_params()
    return make_conninfo(**{key: options[key] for key in ("host", "port", "dbname", "user", "password") if options.get(key)})


def take(*, url: str, folder: Path, now: datetime) -> Backup:
    """Writes the file, uploads it where ``BACKUP_COMMAND`` says how, and deletes those older than ``BACKUP_KEEP_DAYS``. Work goes on
    meanwhile; the file is of one moment.

    :raises psycopg.Error: the database does not let it be read. :raises subprocess.SubprocessError: the upload failed; the file is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tollgate-{now.astimezone(UTC).strftime(_STAMP)}.zip"
    partial = path.with_suffix(".partial")
    try:
        with psycopg.connect(url) as server:
            taken = _write(server, partial, now)
        partial.chmod(0o600)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    if settings.BACKUP_COMMAND:
        command = [part.replace("{file}", str(path)) for part in shlex.split(settings.BACKUP_COMMAND)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=UPLOAD_SECONDS)  # noqa: S603 (the operator's own)
        if done.returncode:
            raise subprocess.SubprocessError(f"BACKUP_COMMAND exited with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    for old in _older(folder, now - timedelta(days=settings.BACKUP_KEEP_DAYS)):
        old.unlink()
    return Backup(path, len(taken), sum(taken.values()))


def check(path: Path) -> Backup:
    """:raises NotRestorable: it is not whole."""
    manifest = _manifest(path)
    with zipfile.ZipFile(path) as file:
        for table, told in manifest["tables"].items():
            with file.open(_entry(table)) as rows:
                if (found := sum(1 for _ in rows)) != told["rows"]:
                    raise NotRestorable(f"{table} has {found} rows instead of {told['rows']}.")
    return Backup(path, len(manifest["tables"]), sum(told["rows"] for told in manifest["tables"].values()))


def restore(path: Path, *, url: str) -> Backup:
    """Replaces what migrations put into the database by what the file has, in one transaction. ``url`` is an administrator's: triggers must
    not fire, for the rows are history.

    :raises NotRestorable: the file is not whole, another release took it, the database has accounts, or the role may not do it.
    """
    whole, manifest = check(path), _manifest(path)
    with psycopg.connect(url) as server, zipfile.ZipFile(path) as file:
        if [name for (name,) in server.execute(_MIGRATIONS).fetchall()] != manifest["migrations"]:
            raise NotRestorable("The database is not at the migrations of the backup: migrate it with the release that took it.")
        if server.execute("select exists (select from accounts_account)").fetchone() != (False,):
            raise NotRestorable("The database has accounts: restore into a new one.")
        try:
            server.execute("set session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            raise NotRestorable("The role may not switch triggers off: restore as an administrator of the server.") from None
        names = [sql.Identifier(table) for table in manifest["tables"]]
        server.execute(sql.SQL("truncate {}").format(sql.SQL(", ").join(names)))
        for table, told in manifest["tables"].items():
            columns = sql.SQL(", ").join(map(sql.Identifier, told["columns"]))
            statement = sql.SQL("copy {} ({}) from stdin").format(sql.Identifier(table), columns)
            with server.cursor() as cursor, cursor.copy(statement) as copy, file.open(_entry(table)) as rows:
                while chunk := rows.read(1 << 20):
                    copy.write(chunk)
        for name, last in manifest["sequences"].items():
            server.execute("select setval(%s::regclass, %s)", [f'public."{name}"', last])
    return whole


def _write(server: psycopg.Connection, path: Path, now: datetime) -> dict[str, int]:
    """How many rows of each table were written."""
    server.execute("set transaction isolation level repeatable read read only")
    server.execute("set local statement_timeout = 0")
    server.execute("set local idle_in_transaction_session_timeout = 0")
    if server.execute(roles.MAY_BE_OWNER, [roles.OWNER]).fetchone() == (True,):
        server.execute(sql.SQL("set local role {}").format(sql.Identifier(roles.OWNER)))  # whatever row security says
    tables: dict[str, Any] = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for table, columns in server.execute(_TABLES).fetchall():
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            statement = sql.SQL("copy {} ({}) to stdout").format(sql.Identifier(table), names)
            with server.cursor() as cursor:
                with cursor.copy(statement) as copy, file.open(_entry(table), "w", force_zip64=True) as entry:
                    for chunk in copy:
                        entry.write(chunk)
                tables[table] = {"columns": columns, "rows": cursor.rowcount}
        sequences = server.execute(
            "select sequencename, last_value from pg_sequences where schemaname = 'public' and last_value is not null"
        )
        manifest = {
            "format": FORMAT,
            "taken_at": now.isoformat(),
            "migrations": [name for (name,) in server.execute(_MIGRATIONS).fetchall()],
            "tables": tables,
            "sequences": dict(sequences.fetchall()),
        }
        file.writestr("manifest.json", json.dumps(manifest))
    return {table: told["rows"] for table, told in tables.items()}


def _manifest(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as file:
            if (bad := file.testzip()) is not None:
                raise NotRestorable(f"{bad} is damaged.")
            manifest = json.loads(file.read("manifest.json"))
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, ValueError) as error:
        raise NotRestorable(f"{path} is no backup: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise NotRestorable(f"{path} is no backup of this format.")
    return manifest


def _entry(table: str) -> str:
    return f"{table}.copy"


def _older(folder: Path, than: datetime) -> Iterator[Path]:
    """Ours alone, by the time in their names."""
    for path in sorted(folder.glob("tollgate-*.zip")):
        found = _NAME.fullmatch(path.name)
        if found and datetime.strptime(found[1], _STAMP).replace(tzinfo=UTC) < than:
            yield path
