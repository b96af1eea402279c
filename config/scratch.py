"""Databases that are there for a while: cloned from a template which was migrated once.

    clone      a new database, migrated and empty; the template is made if it is missing
    drop       its end
    template   the template's name
    url        the address of a database of our server

The template's name ends in a hash of all that migrating reads, so a changed migration makes another one. A clone takes a fraction of a
second. Both belong to the owner's role where there is one, as in production; the log-in must be allowed to create databases.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
from django.conf import settings
from psycopg import sql

from config import roles

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "tollgate_scratch"


class ScratchError(Exception):
    """A database could not be made. The message says why."""


def url(database: str) -> str:
    """The address of another database of our server."""
    address: str = settings.DATABASE_URL
    return urlunsplit(urlsplit(address)._replace(path=f"/{database}"))


def clone(name: str) -> None:
    """Creates the database ``name``. What is called ``PREFIX`` and the number of a process is dropped by the next clone when that is gone.

    :raises ScratchError: it does not migrate, or our log-in may not create databases.
    """
    like = template()
    lock = ROOT / "var" / "template.lock"
    lock.parent.mkdir(exist_ok=True)
    with open(lock, "w") as handle, psycopg.connect(url("postgres"), autocommit=True) as server:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            owner = _as_owner(server)
            ours = "select datname, datistemplate from pg_database where starts_with(datname, %s)"
            found = server.execute(ours, [f"{PREFIX}_"]).fetchall()
            for old, whole in found:
                if old != like or not whole:
                    _drop_if_left_over(server, old)
            server.execute("reset role")  # the owner may not create databases, the log-in may
            if (like, True) not in found:
                _create(server, like, "template1", owner)
                _migrate(server, like)
            _create(server, name, like, owner)
        except psycopg.errors.InsufficientPrivilege as error:
            raise ScratchError(f"Our log-in may not create a database: {error}") from error


def template() -> str:
    """The name of what :func:`clone` copies."""
    return f"{PREFIX}_template_{_fingerprint()}"


def drop(name: str) -> None:
    """Drops the database ``name``, whoever of us is still in it."""
    with psycopg.connect(url("postgres"), autocommit=True) as server:
        # Not "with (force)": that may not end an autovacuum worker, which goes by itself when the database is dropped.
        server.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and usename = session_user", [name])
        _as_owner(server)
        server.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))


def _create(server: psycopg.Connection, name: str, template: str, owner: str | None) -> None:
    belongs = sql.SQL("owner {}").format(sql.Identifier(owner)) if owner else sql.SQL("")
    server.execute(sql.SQL("create database {} {} template {}").format(sql.Identifier(name), belongs, sql.Identifier(template)))


def _as_owner(server: psycopg.Connection) -> str | None:
    """Takes the owner's role where there is one and we may; its name, else None."""
    row = server.execute(
        "select rolname from pg_roles where rolname = %s and pg_has_role(session_user, oid, 'SET')", [roles.OWNER]
    ).fetchone()
    if row is None:
        return None
    server.execute(sql.SQL("set role {}").format(sql.Identifier(roles.OWNER)))
    return roles.OWNER


def _migrate(server: psycopg.Connection, template: str) -> None:
    """Migrates, and only then calls it a template: a run that was killed half-way leaves none."""
    environment = os.environ | {"DATABASE_URL": url(template), "REDIS_URL": settings.REDIS_URL}
    migrate = subprocess.run(
        [sys.executable, "manage.py", "migrate", "--no-input", "-v", "0"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if migrate.returncode != 0:
        raise ScratchError(f"The database does not migrate:\n{migrate.stdout}{migrate.stderr}")
    _as_owner(server)
    server.execute(sql.SQL("alter database {} is_template true allow_connections false").format(sql.Identifier(template)))
    server.execute("reset role")


def _drop_if_left_over(server: psycopg.Connection, name: str) -> None:
    """Templates of other migrations, and the databases of processes that were killed."""
    tail = name.removeprefix(f"{PREFIX}_")
    if tail.isdigit() and psutil.pid_exists(int(tail)):
        return
    if tail.startswith("template_"):
        server.execute(sql.SQL("alter database {} is_template false").format(sql.Identifier(name)))
    server.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(name)))


def _fingerprint() -> str:
    """A hash of what migrating reads: every migration, every SQL file, the roles, the versions of what is installed."""
    files = [
        *ROOT.glob("*/migrations/*.py"),
        *ROOT.glob("*/sql/*.sql"),
        *ROOT.glob("config/djstripe_migrations/*.py"),
        ROOT / "config/roles.py",
        ROOT / "config/staff_roles.py",
        ROOT / "config/management/commands/migrate.py",
        ROOT / "requirements.txt",
    ]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
