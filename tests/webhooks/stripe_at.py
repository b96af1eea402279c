"""Stripe as it was at some moment of a history: copies of the double's database, each answering reads as the double would have then.

An order of deliveries needs thousands of reads of the same few objects, so an answer is worked out once, by the double's own code.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stripe_double import api, errors
from stripe_double.params import Params, decode
from stripe_double.server import Double
from stripe_double.store import Store, public


class Moments:
    """``at`` is the moment that is being answered for; they are counted from 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at = 0
        self._stores: list[Store] = []
        self._answers: dict[tuple[int, str], tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def keep(self, double: Double) -> None:
        """Keeps the present state of the double as the next moment."""
        path = self.folder / f"moment-{len(self._stores)}.sqlite3"
        with double.store.lock, sqlite3.connect(path) as copy:
            double.store._sql.backup(copy)
        self._stores.append(Store(path, double.address))

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def answer(self, target: str) -> tuple[int, bytes]:
        with self._lock:
            key = self.at, target
            if key not in self._answers:
                self._answers[key] = self._ask(self._stores[self.at], target)
            return self._answers[key]

    def _ask(self, store: Store, target: str) -> tuple[int, bytes]:
        parts = urlsplit(target)
        try:
            handler, ids = api.route("GET", parts.path)
            with store.transaction():
                return 200, json.dumps(api.call(store, handler, ids, Params(decode(parts.query)), parts.path)).encode()
        except errors.StripeError as error:
            return error.status, json.dumps(error.body).encode()


def events(double: Double) -> list[dict[str, Any]]:
    """All that the double has announced, oldest first, as it would be delivered."""
    with double.store.transaction():
        return [public(event) for event in double.store.find("event", tail="order by seq")]


@contextmanager
def served(moments: Moments) -> Iterator[str]:
    """The address at which the moments answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            status, body = moments.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing to say."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def double_at(path: Path) -> Iterator[Double]:
    """A double that runs."""
    double = Double(port=0, data=path)
    thread = threading.Thread(target=double.serve_forever)
    thread.start()
    try:
        yield double
    finally:
        double.close()
        thread.join()
