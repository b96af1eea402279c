"""Load from PostgreSQL's own ``pgbench``, a C program: its TPC-B and our verbs by the same driver, prepared, on durable commits.

    fill     makes the tables of TPC-B
    tpcb     TPC-B on them
    script   any statements, once a transaction

A load of at least a second runs for that long, a shorter one for ``FEW`` transactions a client.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.measure import Run
from config import embedded

THREADS = 2
FEW = 5
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


def fill(url: str, *, scale: int) -> None:
    _run(url, ["--initialize", "--quiet", "--scale", str(scale)])


def tpcb(url: str, *, clients: int, seconds: float) -> Run:
    return _load(url, ["--builtin", "tpcb-like"], clients, _length(seconds))


def script(url: str, text: str, *, clients: int, seconds: float = 0, transactions: int = 0) -> Run:
    """``text`` over and over, for ``seconds`` or, where they are given, for so many ``transactions`` a client. ``:n`` begins as 0."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(text)
        file.flush()
        length = ["--transactions", str(transactions)] if transactions else _length(seconds)
        return _load(url, ["--define", "n=0", "--file", file.name], clients, length)


def _length(seconds: float) -> list[str]:
    return ["--time", str(round(seconds))] if seconds >= 1 else ["--transactions", str(FEW)]


def _load(url: str, work: list[str], clients: int, length: list[str]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-vacuum", "--protocol", "prepared", "--client", str(clients), "--jobs", str(min(clients, THREADS))]
        output = _run(url, [*options, *length, "--log", "--log-prefix", f"{folder}/log", *work])
        # client, number, µs, file, second, µs of it
        latencies = [int(line.split()[2]) / 1000 for log in Path(folder).iterdir() for line in log.read_text().splitlines()]
    rate = _TPS.search(output)
    if rate is None:
        raise RuntimeError(f"pgbench did not say how fast it was:\n{output}")
    return Run.of(latencies, seconds=len(latencies) / float(rate[1]))


def _run(url: str, options: list[str]) -> str:
    server = urlsplit(url)
    program = embedded._postgres_programs() / "pgbench"
    where = ["--host", server.hostname or "", "--port", str(server.port), "--username", server.username or ""]
    done = subprocess.run(
        [program, *where, *options, server.path.removeprefix("/")],
        env=os.environ | {"PGPASSWORD": server.password or ""},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 or " aborted" in done.stderr:
        raise RuntimeError(f"pgbench failed:\n{done.stderr or done.stdout}")
    return done.stdout
