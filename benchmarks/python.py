"""authorize and capture called from Python, against the least that a durable change can be: one UPDATE of one row, committed."""

from __future__ import annotations

import random
from collections import deque

import psycopg
from django.db import connection
from django.utils import timezone

from benchmarks.measure import Result, compare
from benchmarks.world import World
from metering import usage

CALLS = 100
ROWS = 200


def make_counter(owner_url: str) -> None:
    """The table of the reference, which the application's role may not create."""
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("create table if not exists benchmark_counter (id int primary key, n bigint not null)")
        owner.execute("insert into benchmark_counter select id, 0 from generate_series(1, %s) id on conflict do nothing", [ROWS])
        owner.execute("grant select, update on benchmark_counter to public")


def results(world: World) -> list[Result]:
    held: deque[usage.Authorization] = deque()
    ids = random.Random(1)

    def update() -> None:
        with connection.cursor() as cursor:
            cursor.execute("update benchmark_counter set n = n + 1 where id = %s", [ids.randint(1, ROWS)])

    def authorize() -> None:
        number, account = next(world.turns)
        ask = usage.Ask(world.model, {"input_tokens": 1_000, "output_tokens": 1_024}, feature="conversation")
        held.append(usage.authorize(account=account, ask=ask, key=f"python:{number}", now=timezone.now()))

    def capture() -> None:
        authorization = held.popleft()
        usage.capture(
            account=authorization.account,
            authorization_id=authorization.usage.id,
            quantities={"input_tokens": 1_000, "output_tokens": 129},
        )

    return compare({"UPDATE of one row": update, "usage.authorize": authorize, "usage.capture": capture}, repeat=CALLS)
