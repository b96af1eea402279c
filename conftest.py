"""The test database: a real one, migrated once, cloned by each test process.

The first run migrates a template whose name is a hash of everything that migrating reads; later runs, and runs at the same time, clone
it (a fraction of a second) and drop their clone at the end. Tests connect as the app role, as production does. Nothing is ever
flushed: ledger tables refuse TRUNCATE, so a test that commits uses rows of its own.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from typing import cast

import pytest
from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.db import connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from playwright.sync_api import Browser, sync_playwright
from pytest_django.plugin import DjangoDbBlocker

from accounts import edge_limit
from config import scratch

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""


@pytest.fixture(scope="session")
def django_db_setup(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """This process's own database, as :data:`django.db.connection` sees it from now on."""
    name = f"{scratch.PREFIX}_{os.getpid()}"
    try:
        scratch.clone(name)
    except scratch.ScratchError as error:
        pytest.exit(f"The test database: {error}", returncode=1)
    connection.settings_dict["NAME"] = name
    settings.DATABASES["default"]["NAME"] = name
    yield
    with django_db_blocker.unblock():
        connections.close_all()
        cast(DatabaseWrapper, connection).close_pool()
    scratch.drop(name)


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
    scratch.clone(name)
    yield scratch.url(name)
    scratch.drop(name)


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
