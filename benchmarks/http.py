"""authorize and capture over HTTP on one connection that is kept, against a view that does nothing behind the same middleware."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from benchmarks.measure import Result, compare
from benchmarks.world import World

CALLS = 100
START_SECONDS = 60


def results(world: World) -> list[Result]:
    with _served() as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"}
        held: deque[str] = deque()

        def post(path: str, body: dict[str, Any], **more: str) -> dict[str, Any]:
            client.request("POST", path, json.dumps(body), headers | more)
            response = client.getresponse()
            data = response.read()
            if response.status != 200:
                raise RuntimeError(f"{path} was answered {response.status}: {data[:200]!r}")
            answer: dict[str, Any] = json.loads(data) if data else {}
            return answer

        def empty() -> None:
            post("/empty", {})

        def authorize() -> None:
            number, account = next(world.turns)
            estimate = {"input_tokens": 1_000, "max_output_tokens": 1_024}
            body = {"account": account.external_id, "model": world.model, "feature": "conversation", "estimate": estimate}
            held.append(post("/api/v1/usage/authorize", body, **{"Idempotency-Key": f"http:{number}"})["id"])

        def capture() -> None:
            quantities = {"input_tokens": 1_000, "output_tokens": 129}
            post(f"/api/v1/usage/authorizations/{held.popleft()}/capture", {"quantities": quantities})

        with contextlib.closing(client):
            return compare({"POST to an empty view": empty, "POST authorize": authorize, "POST capture": capture}, repeat=CALLS)


@contextlib.contextmanager
def _served() -> Iterator[int]:
    """The application as ``make run`` serves it, with one worker; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--blocking-threads", "8", "--no-ws"]
    server = subprocess.Popen(
        [sys.executable, "-m", "granian", *options, "--log-level", "warning", "config.wsgi:application"],
        env=os.environ | {"LOG_LEVEL": "WARNING"},
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("The web server did not start; its last lines are above.") from None
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(20)
