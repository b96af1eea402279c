"""``python -m tests.webhooks --orders 200 --deliveries 100000 --seed 1``: see :mod:`tests.webhooks`. The last line is the result as JSON.

Exit code 1: two orders had two ends, something bad had an effect, something genuine had none, or the server broke.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from difflib import unified_diff
from pathlib import Path
from typing import Any

from config import embedded

SHOWN = 20


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.webhooks")
    parser.add_argument("--orders", type=int, default=200, help="half of them are told afterwards, half meanwhile")
    parser.add_argument("--deliveries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--name", default="soak", help="the data folder of the servers below var/")
    parser.add_argument(
        "--here", action="store_true", help="in the migrated, empty database of DATABASE_URL, which is full of junk afterwards"
    )
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"{options.orders} orders, {options.deliveries:,} deliveries, SEED={seed}", flush=True)
    if not options.here:
        if embedded.running(options.name):
            parser.error(f"servers of that name run already; to be rid of them: python -m config.embedded remove --name {options.name}")
        embedded.remove(options.name)
        servers = embedded.start(options.name, durable=False)
        os.environ |= {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
    try:
        result = soak(orders=options.orders, deliveries=options.deliveries, seed=seed, migrated=options.here)
    finally:
        if not options.here:
            embedded.remove(options.name)
    print(json.dumps(result))
    return 0 if result["passed"] else 1


def soak(*, orders: int, deliveries: int, seed: int, migrated: bool) -> dict[str, Any]:
    """Both proofs, in the database of the environment."""
    os.environ |= {"DJANGO_SETTINGS_MODULE": "tests.webhooks.settings", "FLOOD": str(os.getpid())}
    import django

    django.setup()
    if not migrated:
        from tests.torture import world

        world.migrate()
    result: dict[str, Any] = {"passed": True, "seed": seed}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="webhooks-") as folder:
        for proof, amount in ((in_any_order, orders), (in_a_flood, deliveries)):
            if amount:
                began = time.monotonic()
                figures = proof(amount, seed, Path(folder))
                print(f"{proof.__name__.replace('_', ' ')}: {time.monotonic() - began:.0f} s", flush=True)
                wrong += figures.pop("wrong")
                result |= figures
    for line in wrong[:SHOWN]:
        print(f"wrong: {line}")
    return result | {"passed": not wrong, "wrong": len(wrong)}


def in_any_order(count: int, seed: int, folder: Path) -> dict[str, Any]:
    from django.conf import settings
    from django.db import connection

    from tests.webhooks import orders
    from tests.webhooks.stripe_at import served

    orders.deaf()
    history = orders.make(folder)
    ends: dict[bool, set[str]] = {False: set(), True: set()}
    deaths: Counter[str] = Counter()
    figures = Counter({"order_deliveries": 0, "worked": 0})
    wrong: list[str] = []
    with served(history.moments) as address:
        settings.STRIPE_API_HOST = address
        for number in range(count):
            with orders.copied(f"{connection.settings_dict['NAME']}_order"):
                outcome = orders.run(history, seed=seed + number, meanwhile=number % 2 == 1)
            ends[number % 2 == 1].add(outcome.digest)
            deaths += outcome.deaths
            figures += Counter({"order_deliveries": outcome.deliveries, "worked": outcome.worked})
            wrong += [f"order {seed + number}: {each}" for each in outcome.wrong]
    history.moments.close()
    for digests in ends.values():
        for other in sorted(digests)[1:2]:
            wrong += ["two orders, two ends:", *unified_diff(min(digests).split("\n"), other.split("\n"), n=0, lineterm="")]
    print(f"{'events of an order':24} {len(history.told)} of {len(history.people)} customers")
    for where, died in sorted(deaths.items()):
        print(f"{'died ' + where:24} {died:,}")
    told = {"afterwards": len(ends[False]), "meanwhile": len(ends[True])}
    print(f"{'different ends':24} {told['afterwards']} told afterwards, {told['meanwhile']} told meanwhile")
    return {"orders": count, "ends": told, "deaths": sum(deaths.values()), **figures, "wrong": wrong}


def in_a_flood(count: int, seed: int, folder: Path) -> dict[str, Any]:
    from tests.webhooks import flood

    figures = flood.run(deliveries=count, seed=seed, folder=folder)
    for kind, sent in figures["kinds"].items():
        print(f"{kind:24} {sent:,}")
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
