"""Clients written in Python: several processes of several threads, each process with Django and its own connections.

    Crowd.load   every thread calls one operation over and over
    Crowd.ask    one process calls a function once, and answers

A process imports one module of operations (``python -m benchmarks.crowd benchmarks.product``) and takes its orders from standard input,
a line of JSON each.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from benchmarks.measure import Run

PROCESSES = 4
#: How far ahead a load is called out, so that all begin together.
NOTICE_SECONDS = 0.05


class Crowd:
    """The processes of one module of operations, on one database."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def load(self, operation: str, *, clients: int, seconds: float, **arguments: Any) -> Run:
        """``clients`` threads, over as many processes as there are, call what ``operation(client=…, **arguments)`` returns."""
        crew = self._processes[:clients]
        begin = time.monotonic() + NOTICE_SECONDS
        for number, process in enumerate(crew):
            mine = list(range(number, clients, len(crew)))
            _tell(process, {"load": operation, "clients": mine, "begin": begin, "seconds": seconds, "arguments": arguments})
        answers = [_hear(process) for process in crew]
        latencies = [latency for answer in answers for latency in answer["latencies_ms"]]
        return Run.of(latencies, seconds=max(answer["end"] for answer in answers) - begin)

    def ask(self, question: str, **arguments: Any) -> Any:
        _tell(self._processes[0], {"ask": question, "arguments": arguments})
        return _hear(self._processes[0])


@contextmanager
def crowd(module: str, url: str, *, settings: str = "benchmarks.settings", processes: int = PROCESSES, redis_url: str) -> Iterator[Crowd]:
    """The processes, until the end of the block."""
    environment = os.environ | {
        "DATABASE_URL": url,
        "REDIS_URL": redis_url,
        "DJANGO_SETTINGS_MODULE": settings,
        "DB_POOL_SIZE": "32",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.crowd", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(processes)
    ]
    try:
        yield Crowd(started)
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        for process in started:
            process.wait(30)


def _tell(process: subprocess.Popen[str], order: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("A client process has ended; its last lines are above.")
    return json.loads(line)


# In such a process ------------------------------------------------------------------------------------------------------------


def _work(module: ModuleType) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        ask, load = order.get("ask"), order.get("load")
        answer = getattr(module, ask)(**order["arguments"]) if ask else _load(getattr(module, load), order)
        print(json.dumps(answer), flush=True)


def _load(operation: Callable[..., Callable[[], object]], order: dict[str, Any]) -> dict[str, Any]:
    from django.db import connections

    end = order["begin"] + order["seconds"]

    def client(number: int) -> list[float]:
        try:
            call = operation(client=number, **order["arguments"])
            latencies: list[float] = []
            time.sleep(max(0.0, order["begin"] - time.monotonic()))
            while True:
                start = time.perf_counter_ns()
                try:
                    call()
                except StopIteration:
                    return latencies
                latencies.append((time.perf_counter_ns() - start) / 1e6)
                if time.monotonic() >= end:
                    return latencies
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(order["clients"])) as threads:
        latencies = [latency for each in threads.map(client, order["clients"]) for latency in each]
    return {"latencies_ms": latencies, "end": time.monotonic()}


if __name__ == "__main__":
    import django

    django.setup()
    _work(importlib.import_module(sys.argv[1]))
