"""Runs every benchmark on servers of its own (``var/bench``, which sync as production does), prints the rows and keeps them.

``SECONDS`` (2) is how long one load runs; ``SCALE`` (6) is how much history the large database has, as a power of ten: with 7, ten
million records, a run takes a quarter of an hour more.
"""

from __future__ import annotations

import fcntl
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg

from benchmarks import suite
from benchmarks.measure import Row, table
from config import embedded

NAME = "bench"
RESULTS = Path(__file__).parent / "results" / "latest.json"
PAGE = embedded.BASE_DIR / "docs" / "performance.md"
BEGIN, END = "<!-- last run -->", "<!-- end of last run -->"


def main() -> int:
    sizes = suite.Sizes(seconds=float(os.environ.get("SECONDS", "2")), large=10 ** int(os.environ.get("SCALE", "6")))
    with open(embedded.BASE_DIR / "var" / "bench.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another benchmark is running here.", file=sys.stderr)
            return 1
        embedded.remove(NAME)
        servers = embedded.borrow(NAME)
        machine = machine_line(servers.database_url)
        print(machine, flush=True)
        rows: list[Row] = []
        for title, found in suite.run(servers.database_url, servers.redis_url, sizes, migrated=None):
            print(f"\n{title}\n", *table(found), sep="\n", flush=True)
            rows += found
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("[\n" + ",\n".join(row.json() for row in rows) + "\n]\n")
    PAGE.write_text(with_last_run(PAGE.read_text(), machine, rows))
    missed = [row.goal for row in rows if row.met is False]
    print(f"\n{sum(row.met is True for row in rows)} goals met, {len(missed)} missed.", *missed, sep="\n  ")
    return 0


def machine_line(url: str) -> str:
    with psycopg.connect(url) as connection:
        [(version,)] = connection.execute("show server_version").fetchall()
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {psutil.cpu_count()} cores, {memory:.0f} GiB, "
        f"load {os.getloadavg()[0]:.1f} before the run, PostgreSQL {version} with synchronous commits, Python {platform.python_version()}."
    )


def with_last_run(page: str, machine: str, rows: list[Row]) -> str:
    """``page`` with this run between its markers: rows with a goal first."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    with_goal, without = ([row for row in rows if (row.target is None) is plain] for plain in (False, True))
    parts = [machine, "", "### Goals", "", *table(with_goal), "", "### Everything else", "", *table(without)]
    return f"{before}{BEGIN}\n" + "\n".join(parts) + f"\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
