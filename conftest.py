"""The test database: a real one, migrated once, cloned by each test process.

The first run migrates a template whose name is a hash of everything that migrating reads; later runs, and runs at the same time, clone
it (a fraction of a second) and drop their clone at the end. Tests connect as the app role, as production does. Nothing is ever
flushed: ledger tables refuse TRUNCATE, so a test that commits uses rows of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import pytest
from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.db import connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from playwright.sync_api import Browser, sync_playwright
from psycopg import sql
from pytest_django.plugin import DjangoDbBlocker

from accounts import edge_limit
from config import roles

ROOT = Path(__file__).parent
PREFIX = "tollgate_test"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""


@pytest.fixture(scope="session")
def django_db_setup(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """This process's own database, as :data:`django.db.connection` sees it from now on."""
    name = f"{PREFIX}_{os.getpid()}"
    _clone(name)
    connection.settings_dict["NAME"] = name
    settings.DATABASES["default"]["NAME"] = name
    yield
    with django_db_blocker.unblock():
        connections.close_all()
        cast(DatabaseWrapper, connection).close_pool()
    _drop(name)


@pytest.fixture
def committed(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """The database for a test that commits: threads, processes, crashes. Nothing is rolled back or flushed afterwards."""
    with django_db_blocker.unblock():
        try:
            yield
        finally:
            connections.close_all()


@pytest.fixture
def fresh_database(django_db_setup: None) -> Iterator[str]:
    """The address of a migrated database without rows, for a program that is started on its own."""
    name = f"tollgate_fresh_{os.getpid()}"
    with psycopg.connect(_url("postgres"), autocommit=True) as server:
        owner = _as_owner(server)
        server.execute("reset role")
        _create(server, name, f"{PREFIX}_template_{_fingerprint()}", owner)
    yield _url(name)
    _drop(name)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser that all tests of pages share: Playwright has one event loop a thread, so there is one for the whole session."""
    # Playwright's event loop would make Django refuse the database in this thread.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture
def patient_edge_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The edge limit waits for Valkey on a busy machine too, and has not given it up because of an earlier test."""
    monkeypatch.setattr(edge_limit, "TIMEOUT_SECONDS", 10)
    edge_limit._shared.cache_clear()
    yield
    edge_limit._shared.cache_clear()


@pytest.fixture
def server(committed: None, _web_server: str) -> str:
    """The address of the whole application over real HTTP, on the committed test database: ``http://127.0.0.1:<port>``."""
    return _web_server


@pytest.fixture(scope="session")
def _web_server(django_db_setup: None) -> Iterator[str]:
    web = _Server(("127.0.0.1", 0), _QuietHandler)
    web.set_app(StaticFilesHandler(WSGIHandler()))
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()
    thread.join()


class _Server(ThreadedWSGIServer):
    request_queue_size = 128  # as many clients may come at once


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are the tests' own: nothing to log."""


def _drop(name: str) -> None:
    """Drop the database ``name``, whoever of us is still in it: a request of the last test's browser may be."""
    with psycopg.connect(_url("postgres"), autocommit=True) as server:
        # Not "with (force)": that may not end an autovacuum worker, which goes by itself when the database is dropped.
        server.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and usename = session_user", [name])
        _as_owner(server)
        server.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))


def _clone(name: str) -> None:
    """Create the database ``name`` from the template of the present migrations, which is made if it is missing."""
    template = f"{PREFIX}_template_{_fingerprint()}"
    lock = ROOT / "var" / "test-template.lock"
    lock.parent.mkdir(exist_ok=True)
    with open(lock, "w") as handle, psycopg.connect(_url("postgres"), autocommit=True) as server:
        fcntl.flock(handle, fcntl.LOCK_EX)
        owner = _as_owner(server)
        found = server.execute("select datname, datistemplate from pg_database where datname like %s", [f"{PREFIX}_%"]).fetchall()
        for old, whole in found:
            if old != template or not whole:
                _drop_if_left_over(server, old)
        server.execute("reset role")  # the owner may not create databases, the log-in may
        if (template, True) not in found:
            _create(server, template, "template1", owner)
            _migrate(server, template)
        _create(server, name, template, owner)


def _migrate(server: psycopg.Connection, template: str) -> None:
    """Migrate, and only then call it a template: a run that was killed half-way leaves none."""
    migrate = subprocess.run(
        [sys.executable, "manage.py", "migrate", "--no-input", "-v", "0"],
        cwd=ROOT,
        env=os.environ
        | {"DATABASE_URL": _url(template), "REDIS_URL": settings.REDIS_URL, "DJANGO_SETTINGS_MODULE": "config.settings.test"},
        capture_output=True,
        text=True,
    )
    if migrate.returncode != 0:
        pytest.exit(f"The test database does not migrate:\n{migrate.stdout}{migrate.stderr}", returncode=1)
    _as_owner(server)
    server.execute(sql.SQL("alter database {} is_template true allow_connections false").format(sql.Identifier(template)))
    server.execute("reset role")


def _create(server: psycopg.Connection, name: str, template: str, owner: str | None) -> None:
    belongs = sql.SQL("owner {}").format(sql.Identifier(owner)) if owner else sql.SQL("")
    server.execute(sql.SQL("create database {} {} template {}").format(sql.Identifier(name), belongs, sql.Identifier(template)))


def _drop_if_left_over(server: psycopg.Connection, name: str) -> None:
    """Templates of other migrations, and the databases of test processes that were killed."""
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
        ROOT / "config/management/commands/migrate.py",
        ROOT / "requirements.txt",
    ]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _as_owner(server: psycopg.Connection) -> str | None:
    """Take the owner's role where there is one and we may; its name, else None."""
    row = server.execute(
        "select rolname from pg_roles where rolname = %s and pg_has_role(session_user, oid, 'SET')", [roles.OWNER]
    ).fetchone()
    if row is None:
        return None
    server.execute(sql.SQL("set role {}").format(sql.Identifier(roles.OWNER)))
    return roles.OWNER


def _url(database: str) -> str:
    url: str = settings.DATABASE_URL
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))
