"""The program over HTTP as ``make run`` serves it, against a view that does nothing behind the same middleware.

The client is a few lines over plain sockets, so that little of what is measured is the client.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from benchmarks.measure import Load, Row, Run, compare, rounds
from benchmarks.world import Place

WORKERS = 2
CONNECTIONS = 8
EVENTS = 100
START_SECONDS = 60
USED = {"input_tokens": 1_000, "output_tokens": 129}


def rows(place: Place, load: Load, *, redis_url: str) -> list[Row]:
    with _served(place, redis_url) as port:
        requests = _Requests(place)
        held: list[str] = []

        def one_connection(work: Iterator[bytes], keep: list[str] | None = None) -> Run:
            """Requests one after the other; ``keep`` takes the ids of the answers."""
            latencies = []
            with _Connection(port) as connection:
                end = time.monotonic() + load.seconds
                for request in work:
                    start = time.perf_counter_ns()
                    answer = connection.ask(request)
                    latencies.append((time.perf_counter_ns() - start) / 1e6)
                    if keep is not None:
                        keep.append(json.loads(answer)["id"])
                    if time.monotonic() > end:
                        break
            return Run.of(latencies, seconds=sum(latencies) / 1000)

        def captures() -> Run:
            taken, held[:] = held[:], []
            return one_connection(requests.capture(id_) for id_ in taken)

        def many_connections(work: list[bytes] | None = None) -> float:
            return _saturate(port, requests.empty() if work is None else iter(work), load.seconds)

        one = rounds(
            load.rounds + 1,
            {
                "empty": lambda: one_connection(requests.empty()),
                "authorize": lambda: one_connection(requests.authorize(), held),
                "capture": captures,
            },
        )
        batches = max(8, int(load.seconds * 1_000))
        many = rounds(
            load.rounds,
            {"empty": many_connections, "bulk": lambda: many_connections([requests.batch() for _ in range(batches)])},
        )
    p50 = {name: [run.p50 for run in runs[1:]] for name, runs in one.items()}  # the first round warms up
    return [
        compare("HTTP authorize × empty view, one connection: p50, ms", p50["authorize"], p50["empty"], target="≤ 3.5"),
        compare("HTTP capture × empty view, one connection: p50, ms", p50["capture"], p50["empty"]),
        compare(
            f"HTTP bulk ingest, {EVENTS} events a request × empty view: events/s × requests/s",
            [EVENTS * rate for rate in many["bulk"]],
            many["empty"],
            target="≥ 2",
        ),
    ]


class _Requests:
    """Whole HTTP requests."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._draw = random.Random(0)

    def empty(self) -> Iterator[bytes]:
        return itertools.repeat(self._post("/empty", {"model": self._place.model}))

    def authorize(self) -> Iterator[bytes]:
        while True:
            body = {
                "account": self._account(),
                "model": self._place.model,
                "feature": "feature-0",
                "estimate": {"input_tokens": 1_000, "max_output_tokens": 1_024},
            }
            yield self._post("/api/v1/usage/authorize", body, f"Idempotency-Key: {secrets.token_hex(12)}\r\n")

    def capture(self, id_: str) -> bytes:
        return self._post(f"/api/v1/usage/authorizations/{id_}/capture", {"quantities": USED})

    def batch(self) -> bytes:
        now = datetime.now(UTC).isoformat()
        events = [
            {"id": secrets.token_hex(12), "account": self._account(), "time": now, "model": self._place.model, "quantities": USED}
            for _ in range(EVENTS)
        ]
        return self._post("/api/v1/usage/records", {"events": events})

    def _account(self) -> str:
        return f"customer-{self._draw.randint(self._place.first, self._place.last)}"

    def _post(self, path: str, body: dict[str, Any], more: str = "") -> bytes:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._place.key}\r\nContent-Type: application/json\r\n"
        return f"{head}{more}Content-Length: {len(data)}\r\n\r\n".encode() + data


class _Connection:
    """One kept connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> bytes:
        self.socket.sendall(request)
        while (answer := self.hear()) is None:
            pass
        return answer

    def hear(self) -> bytes | None:
        """Reads once; the body of the answer, if that was all of it.

        :raises RuntimeError: the answer was not 200.
        """
        part = self.socket.recv(1 << 20)
        if not part:
            raise RuntimeError("The server hung up.")
        self._read += part
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return None
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length or 0):
            return None
        self._read = b""
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"The server answered {head[:40]!r} {body[:500]!r}")
        return body


def _saturate(port: int, work: Iterator[bytes], seconds: float) -> float:
    """Answers a second on ``CONNECTIONS`` connections that are never idle, for ``seconds`` or until ``work`` ends."""
    answered = waiting = 0
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for request in itertools.islice(work, CONNECTIONS):
            connection = stack.enter_context(_Connection(port))
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.socket.sendall(request)
            waiting += 1
        start = time.monotonic()
        while waiting:
            for event, _ in selector.select():
                if event.data.hear() is None:
                    continue
                answered += 1
                request = next(work, b"") if time.monotonic() - start < seconds else b""
                if request:
                    event.data.socket.sendall(request)
                else:
                    waiting -= 1
        return answered / (time.monotonic() - start)


@contextmanager
def _served(place: Place, redis_url: str) -> Iterator[int]:
    """The application on a port of its own, as ``make run`` serves it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = [
        "--interface",
        "wsgi",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        str(WORKERS),
        "--blocking-threads",
        "8",
        "--no-ws",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "granian", *options, "--log-level", "error", "config.wsgi:application"],
        env=os.environ | {"DATABASE_URL": place.url, "REDIS_URL": redis_url, "DJANGO_SETTINGS_MODULE": "benchmarks.settings"},
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("The web server did not start; its last lines are above.")
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
