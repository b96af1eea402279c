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
from contextlib import contextmanager, suppress
from threading import Barrier, BrokenBarrierError, Event
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
        for number, process in enumerate(crew):
            _tell(process, {"load": operation, "clients": list(range(number, clients, len(crew))), "arguments": arguments})
        for process in crew:
            _hear(process)  # it is ready: what a client needs has been made
        begin = time.monotonic() + NOTICE_SECONDS
        for process in crew:
            _tell(process, {"begin": begin, "end": begin + seconds})
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
        answer = getattr(module, ask)(**order["arguments"]) if ask else _load(getattr(module, load), order["clients"], order["arguments"])
        print(json.dumps(answer), flush=True)


def _load(operation: Callable[..., Callable[[], object]], clients: list[int], arguments: dict[str, Any]) -> dict[str, Any]:
    from django.db import connections

    ready, called_out = Barrier(len(clients) + 1), Event()
    times: dict[str, float] = {}

    def client(number: int) -> list[float]:
        try:
            call = operation(client=number, **arguments)
            latencies: list[float] = []
            ready.wait()
            called_out.wait()
            time.sleep(max(0.0, times["begin"] - time.monotonic()))
            while True:
                start = time.perf_counter_ns()
                try:
                    call()
                except StopIteration:
                    return latencies
                latencies.append((time.perf_counter_ns() - start) / 1e6)
                if time.monotonic() >= times["end"]:
                    return latencies
        except BaseException:
            ready.abort()
            raise
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(clients)) as threads:
        working = [threads.submit(client, number) for number in clients]
        with suppress(BrokenBarrierError):  # the client that broke it raises below
            ready.wait()
            print(json.dumps("ready"), flush=True)
            times |= json.loads(sys.stdin.readline())
        called_out.set()
        latencies = [latency for each in working for latency in each.result()]
    return {"latencies_ms": latencies, "end": time.monotonic()}


if __name__ == "__main__":
    import django

    django.setup()
    _work(importlib.import_module(sys.argv[1]))
