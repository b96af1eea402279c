"""HTTP on the loopback: who asks, with which key and version, whether the same was asked before, and what is to go wrong."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from stripe_double import API_VERSION, api, clock, control, errors, pages, webhooks
from stripe_double.params import Params, decode
from stripe_double.store import Store

log = logging.getLogger(__name__)

BODY_AT_MOST = 256 * 1024
KEYS_LAST_SECONDS = 24 * 3600
NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class Request(NamedTuple):
    id: str
    method: str
    path: str
    text: str
    key: str | None
    spoiled: bool  # it takes effect, and is answered with a 500

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.method} {self.path}\n{self.text}".encode()).hexdigest()


class Double(ThreadingHTTPServer):
    """The double at ``address``, keeping what it knows in ``data``. Close it with :meth:`close`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *, port: int, data: Path | str):
        super().__init__(("127.0.0.1", port), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.store = Store(data, self.address)
        self.faults = control.Faults()
        self.flying: set[str] = set()
        self.flying_lock = threading.Lock()
        self._workers: tuple[webhooks.Deliverer, clock.Ticker] = (webhooks.Deliverer(self.store), clock.Ticker(self.store))

    def serve_forever(self, poll_interval: float = 0.05) -> None:
        for thread in self._workers:
            thread.start()
        super().serve_forever(poll_interval)

    def close(self) -> None:
        self.shutdown()
        for thread in self._workers:
            thread.stop()
        self.server_close()
        self.store.close()


class _Handler(BaseHTTPRequestHandler):
    server: Double
    protocol_version = "HTTP/1.1"
    timeout = 60
    server_version = "StripeDouble"
    wbufsize = -1  # one packet an answer: in two, the second waits for the acknowledgement of the first

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def log_message(self, format: str, *args: object) -> None:
        log.info(format, *args)

    def _serve(self, method: str) -> None:
        parts = urlsplit(self.path)
        try:
            answer = self._answer(method, parts.path, parts.query)
        except errors.StripeError as error:
            answer = _json(error.status, error.body, error.headers)
        except _Dead:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        except Exception:
            log.exception("%s %s", method, self.path)
            answer = _json(500, {"error": {"type": "api_error", "message": "The double broke; its log says where."}}, {})
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    def _answer(self, method: str, path: str, query: str) -> Answer:
        body = self._body()
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in NAMES:  # a page elsewhere whose name was made to point here
            raise errors.invalid("The double answers on this machine only.", status=403)
        if path == "/_control" or path.startswith("/_control/"):
            if body and self.headers.get_content_type() != "application/json":
                raise errors.invalid("Send JSON, and say so in Content-Type.", status=415)
            return _json(200, control.handle(self.server.store, self.server.faults, method, path.removeprefix("/_control"), body), {})
        if path.startswith("/v1/"):
            return self._api(method, path, query, body)
        return self._page(method, path, body)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding") or not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise errors.invalid("A Content-Length is needed.", status=411)
        if int(length) > BODY_AT_MOST:
            self.close_connection = True
            raise errors.invalid(f"The body is larger than {BODY_AT_MOST} bytes.", status=413)
        return self.rfile.read(int(length))

    def _page(self, method: str, path: str, body: bytes) -> Answer:
        store = self.server.store
        store_fields = Params(decode(_text(body)))
        with store.transaction():
            page = pages.answer(store, method, path, store_fields)
        headers = {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"}
        return Answer(page.status, page.html.encode(), headers | ({"Location": page.location} if page.location else {}))

    # The API

    def _api(self, method: str, path: str, query: str, body: bytes) -> Answer:
        request_id = f"req_{secrets.token_hex(7)}"
        headers = {"Request-Id": request_id, "Stripe-Version": API_VERSION}
        mode, seconds = self.server.faults.take(method, path)
        if mode == "429":
            error = {"type": "invalid_request_error", "code": "rate_limit", "message": "Request rate limit exceeded."}
            return _json(429, {"error": error}, headers | {"Retry-After": "1"})
        if mode == "500_before":
            return _json(500, _broken(), headers)
        if mode == "dead_before":
            raise _Dead
        key = self.headers.get("Idempotency-Key") if method == "POST" else None
        try:
            self._check_key()
            if body and self.headers.get_content_type() != "application/x-www-form-urlencoded":
                raise errors.invalid("Send the parameters as application/x-www-form-urlencoded.")
            request = Request(request_id, method, path, _text(body) if body else query, key, spoiled=mode == "500_after")
            handler, ids = api.route(method, path)
            with self._alone(key):
                if mode == "slow":
                    time.sleep(seconds)
                answer = self._once(request, handler, ids) if key else self._run(request, handler, ids)
        except errors.StripeError as error:
            return _json(error.status, error.body, headers | error.headers)
        if mode == "dead_after":
            raise _Dead
        return answer._replace(headers=answer.headers | headers | ({"Idempotency-Key": key} if key else {}))

    def _check_key(self) -> None:
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not key:
            raise errors.StripeError(401, "invalid_request_error", "You did not provide an API key.")
        if not key.startswith(("sk_test_", "rk_test_")) or len(key) < 24:
            raise errors.StripeError(401, "invalid_request_error", f"Invalid API Key provided: {key[:8]}{'*' * 8}")
        if (version := self.headers.get("Stripe-Version", API_VERSION)) != API_VERSION:
            raise errors.invalid(f"The double speaks {API_VERSION}, not {version[:40]}: pin the version of the client.")

    @contextmanager
    def _alone(self, key: str | None) -> Iterator[None]:
        """One request at a time for each idempotency key."""
        if key is None:
            yield
            return
        with self.server.flying_lock:
            if key in self.server.flying:
                message = "There is currently another in-progress request using this Idempotent Key."
                raise errors.StripeError(409, "idempotency_error", message, code="idempotency_key_in_use")
            self.server.flying.add(key)
        try:
            yield
        finally:
            with self.server.flying_lock:
                self.server.flying.discard(key)

    def _once(self, request: Request, handler: api.Handler, ids: tuple[str, ...]) -> Answer:
        """Say again what was said to the same key, else run the handler."""
        store = self.server.store
        if len(str(request.key)) > 255:
            raise errors.invalid("An idempotency key has at most 255 characters.")
        with store.transaction():
            store.sql("delete from idempotency where at <= ?", store.now() - KEYS_LAST_SECONDS)
            known = store.sql("select fingerprint, status, body from idempotency where key = ?", request.key).fetchone()
        if known is None:
            return self._run(request, handler, ids)
        if known[0] != request.fingerprint:
            message = "Keys for idempotent requests can only be used with the same parameters they were first used with."
            raise errors.StripeError(400, "idempotency_error", f"{message} Try using a key other than '{request.key}'.")
        return Answer(known[1], known[2].encode(), {"Content-Type": "application/json", "Idempotent-Replayed": "true"})

    def _run(self, request: Request, handler: api.Handler, ids: tuple[str, ...]) -> Answer:
        """The handler's answer, which is kept with its effect: also a declined card, and a 500 in place of the true answer."""
        store = self.server.store
        with store.transaction(request={"id": request.id, "idempotency_key": request.key}):
            try:
                found = api.call(store, handler, ids, Params(decode(request.text)), request.path)
            except errors.StripeError as error:
                if error.keeps:
                    self._keep(request, _json(error.status, error.body, {}))
                raise
            answer = _json(500, _broken(), {}) if request.spoiled else _json(200, found, {})
            self._keep(request, answer)
        return answer

    def _keep(self, request: Request, answer: Answer) -> None:
        if request.key is not None:
            values = (request.key, request.fingerprint, self.server.store.now(), answer.status, answer.body.decode())
            self.server.store.sql("insert into idempotency values (?, ?, ?, ?, ?)", *values)


class _Dead(Exception):
    """The connection is to be cut without an answer."""


def _text(body: bytes) -> str:
    try:
        return body.decode("ascii")
    except UnicodeDecodeError as error:
        raise errors.invalid("Invalid request: the body is no valid form encoding.") from error


def _broken() -> dict[str, Any]:
    return {"error": {"type": "api_error", "message": "An unknown error occurred"}}


def _json(status: int, body: dict[str, Any], headers: dict[str, str]) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"} | headers)
