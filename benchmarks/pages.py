"""How long staff's pages take with much history behind them: ``python -m benchmarks.pages`` prints a table and keeps it.

It fills a database of its own with 10,000 accounts and a million finished calls over a year (``SCALE`` is the power of ten), and asks for
each page as a superuser, once all is folded, through the whole stack of middleware but without a web server.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator

from benchmarks import world
from benchmarks.__main__ import NAME, PAGE, machine_line
from benchmarks.crowd import crowd
from benchmarks.measure import Row, alone, table
from benchmarks.suite import PREFIX
from config import embedded

BEGIN, END = "<!-- staff's pages -->\n", "<!-- end of staff's pages -->"
ACCOUNTS = 10_000
#: What an account bought; the busy one burns a tenth of it.
CREDIT = 10_000
GOAL = "≤ 300"
#: A page is asked for over and over for so long.
SECONDS = 2.0


def main() -> int:
    """0, or 1 where another benchmark runs."""
    records = 10 ** int(os.environ.get("SCALE", "6"))
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
        found = []
        for row in rows(servers.database_url, servers.redis_url, records=records):
            print(*list(table([row]))[2:], flush=True)
            found.append(row)
    lines = [f"{records:,} records of {ACCOUNTS:,} accounts. {machine}", "", *table(found), ""]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}" + "\n".join(lines) + END + rest.partition(END)[2])
    return 0


def rows(url: str, redis_url: str, *, records: int, accounts: int = ACCOUNTS, seconds: float = SECONDS) -> Iterator[Row]:
    """One page after the other: its middle time in milliseconds."""
    empty = world.clone(url, f"{PREFIX}_pages")
    with crowd("benchmarks.product", empty, processes=1, redis_url=redis_url) as staff:
        staff.ask("migrate")
        made = staff.ask("make", credit=CREDIT)
        first, last = world.people(empty, like=made["account"], count=accounts)
        staff.ask("call_once", account=made["account"], model=made["model"])
        world.remember(world.Place(empty, first, last, made["key"], made["model"]), records=records)
    with crowd("benchmarks.product", empty, processes=1, redis_url=redis_url) as staff:
        yield alone(f"fold of {records:,} charges into the books: charges a second", [records / staff.ask("fold")])
        with world.owner(empty) as connection:
            connection.autocommit = True
            connection.execute("vacuum (analyze)")
        for name, address in staff.ask("staff_addresses", account=first).items():
            staff.load("staff_page", clients=1, seconds=0, address=address)
            yield alone(f"{name}: p50, ms", [staff.load("staff_page", clients=1, seconds=seconds, address=address).p50], target=GOAL)


if __name__ == "__main__":
    sys.exit(main())
