"""``python -m tests.torture --seconds 600 --seed 1``: see :mod:`tests.torture`. The last line is the result as JSON.

Exit code 1: something was lost, doubled or violated, or too little happened to say so. The servers' data and the journals, in ``var/soak``,
are kept then.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import django

from config import embedded
from tests.torture import WORKERS
from tests.torture.journal import Deed, read
from tests.torture.nemesis import EVERY_SECONDS, Nemesis

if TYPE_CHECKING:
    from tests.torture.checker import Verdict
    from tests.torture.world import World

#: Clients are forks, so that a new one is at work at once. Nothing here holds a connection or a thread while they are made.
FORK = multiprocessing.get_context("fork")
#: Fewer acknowledged operations a second than this prove nothing.
LEAST_A_SECOND = 5
TICK_SECONDS = 0.05
#: No more of them are needed to know that something is wrong.
MOST_CRASHES = 10
SHOWN = 20


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None, help="what the clients and the nemesis choose by; their timing is the machine's")
    parser.add_argument("--name", default="soak", help="the data folder of the servers below var/")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"{options.seconds:g} seconds, SEED={seed}", flush=True)
    if embedded.running(options.name):
        parser.error(f"servers of that name run already; to be rid of them: python -m config.embedded remove --name {options.name}")
    embedded.remove(options.name)
    try:
        result = soak(options.name, seconds=options.seconds, seed=seed)
    finally:
        embedded.stop(options.name)
    if result["passed"]:
        embedded.remove(options.name)
    print(json.dumps(result))
    return 0 if result["passed"] else 1


def soak(name: str, *, seconds: float, seed: int) -> dict[str, Any]:
    """All of it, on new servers; what :func:`report` answers."""
    world = prepare(name)
    servers = embedded.start(name)
    (servers.home / "journals").mkdir()
    crashes, done = torment(world, name, servers, seconds=seconds, seed=seed)
    embedded.stop(name)  # what killed clients had sent may still be under way
    embedded.start(name)
    deeds = [deed for number in range(WORKERS) for deed in read(journal(servers, number))]
    verdict = recount(world, deeds)
    verdict.violations += [f"{crashes} clients ended by themselves: see above"] if crashes else []
    return report(deeds, done, verdict, seconds=seconds, seed=seed)


def prepare(name: str) -> World:
    """Migrates and makes the world, on servers that do not sync yet; Django is set up for them from now on."""
    servers = embedded.start(name, durable=False)
    os.environ |= {
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "DJANGO_SETTINGS_MODULE": "config.settings.test",
    }
    django.setup()
    from tests.torture import world

    with ProcessPoolExecutor(1, mp_context=FORK) as one:
        one.submit(world.migrate).result()
        made = one.submit(world.make).result()
    embedded.stop(name)
    return made


def torment(world: World, name: str, servers: embedded.Servers, *, seconds: float, seed: int) -> tuple[int, Counter[str]]:
    """Keeps the clients at work while the nemesis strikes, then kills them all. How many ended by themselves, and what it did."""
    from tests.torture import worker

    lives: Counter[int] = Counter()
    crashes = 0

    def start(number: int) -> BaseProcess:
        lives[number] += 1
        client = FORK.Process(target=worker.run, args=(journal(servers, number), number, lives[number], seed, world))
        client.start()
        return client

    def kill(draw: Random) -> None:
        number = draw.randrange(WORKERS)
        clients[number].kill()
        clients[number].join()
        clients[number] = start(number)

    clients = [start(number) for number in range(WORKERS)]
    nemesis = Nemesis(name, servers, Random(seed), kill)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and crashes < MOST_CRASHES:
            nemesis.strike()
            for number, client in enumerate(clients):
                if not client.is_alive():
                    crashes += 1
                    clients[number] = start(number)
            time.sleep(TICK_SECONDS)
    finally:
        for client in clients:
            client.kill()
            client.join()
    return crashes, nemesis.done


def journal(servers: embedded.Servers, number: int) -> Path:
    return servers.home / "journals" / f"{number}.jsonl"


def recount(world: World, deeds: list[Deed]) -> Verdict:
    from tests.torture import checker

    verdict = checker.judge(deeds, checker.Facts.read(world.accounts), world.accounts)
    verdict.violations += checker.audit_findings()
    return verdict


def report(deeds: list[Deed], done: Counter[str], verdict: Verdict, *, seconds: float, seed: int) -> dict[str, Any]:
    """Prints what happened, and answers the figures."""
    rows = {do: row(deed for deed in deeds if deed.intent["do"] == do) for do in sorted({deed.intent["do"] for deed in deeds})}
    rows["all"] = row(deeds)
    print(f"{'':12}", *(f"{name:>12}" for name in rows["all"]))
    for do, figures in rows.items():
        print(f"{do:12}", *(f"{figure:>12,}" for figure in figures.values()))
    wrong = {"lost": verdict.lost, "doubled": verdict.doubled, "violations": verdict.violations}
    events = sum(len(deed.intent.get("events", ())) for deed in deeds)
    counts = {"events": events} | done | {name: len(lines) for name, lines in wrong.items()}
    print(*(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()), sep=", ")
    for name, lines in wrong.items():
        print(*(f"{name}: {line}" for line in lines[:SHOWN]), sep="\n", end="\n" if lines else "")
    struck = all(done[deed] >= seconds / EVERY_SECONDS[deed] / 3 for deed in ("kills", "restarts", "terminated", "flushes"))
    enough = struck and rows["all"]["acknowledged"] >= LEAST_A_SECOND * seconds
    if not enough:
        print("Too little happened to prove anything.")
    return {"passed": enough and not any(wrong.values()), "seconds": seconds, "seed": seed} | rows["all"] | counts


def row(deeds: Iterable[Deed]) -> dict[str, int]:
    """``replayed``: the ledger had done it before it could say so; ``unanswered``: under way when the client was killed for good."""
    deeds = list(deeds)
    answers = [deed.answer for deed in deeds if deed.answer is not None]
    return {
        "operations": len(deeds),
        "acknowledged": len(answers),
        "refused": sum("refused" in answer for answer in answers),
        "retried": sum(deed.tries > 0 for deed in deeds),
        "replayed": sum(deed.tries > 0 and bool((deed.answer or {}).get("replayed")) for deed in deeds),
        "unanswered": len(deeds) - len(answers),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
