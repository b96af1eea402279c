"""The whole run, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import history, hot_path, http, pgbench, rating, world
from benchmarks.crowd import Crowd, crowd
from benchmarks.measure import Load, Row

PREFIX = "tollgate_bench"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. ``small`` and ``large`` are records of history; ``seconds`` is how long one load runs."""

    accounts: int = 10_000
    small: int = 10**5
    large: int = 10**6
    tpcb_scale: int = 20
    seconds: float = 2
    rounds: int = 3
    rating_calls: int = 500


def run(url: str, redis_url: str, sizes: Sizes, *, migrated: str | None) -> Iterator[tuple[str, list[Row]]]:
    """Every part's title and rows, on new databases of the server of ``url``. ``migrated`` names one to copy, to save the time."""
    names = (f"{sizes.small:,}", f"{sizes.large:,}")
    tpcb = {shape: world.clone(url, f"{PREFIX}_tpcb_{shape}", ours=False) for shape in ("many", "one")}
    pgbench.fill(tpcb["many"], scale=sizes.tpcb_scale)
    pgbench.fill(tpcb["one"], scale=1)
    small, large = places(url, redis_url, sizes, migrated)
    with ExitStack() as stack:

        def clients(module: str, address: str, settings: str = "benchmarks.settings") -> Crowd:
            return stack.enter_context(crowd(module, address, settings=settings, redis_url=redis_url))

        ours, theirs = clients("benchmarks.product", small.url), clients("benchmarks.product", large.url)
        verbs, large_verbs = hot_path.Sql.of(small, ours), hot_path.Sql.of(large, theirs)
        load = Load(sizes.rounds, sizes.seconds)
        yield "Rating", rating.rows(sizes.rounds, calls=sizes.rating_calls)
        yield "History: writing", history.write_rows(verbs, large_verbs, names, load)
        yield "History: reading", history.read_rows((ours, theirs), (small, large), names, load)
        yield "Margin", history.margin_rows(theirs, records=sizes.large, load=load)
        yield "Replay under a draft", history.replay_rows(theirs, large, records=sizes.large)
        yield "Disk", history.disk_rows(large)
        yield "SQL", hot_path.sql_rows(verbs, tpcb, load)
        yield "SQL, limits", hot_path.limited_rows(large_verbs, tpcb["many"], load)
        yield "Batches", hot_path.batch_rows(small, ours, load)
        reference_url = world.clone(url, f"{PREFIX}_reference", ours=False)
        reference = clients("benchmarks.reference.clients", reference_url, "benchmarks.reference.settings")
        reference.ask("make", accounts=sizes.accounts)
        yield "Django", hot_path.django_rows(verbs, ours, reference, load)
        yield "Python", hot_path.python_rows(small, ours, load)
        yield "HTTP", http.rows(small, load, redis_url=redis_url)
        yield "Audit", history.audit_rows((ours, theirs))


def places(url: str, redis_url: str, sizes: Sizes, migrated: str | None) -> tuple[world.Place, world.Place]:
    """The small database and the large one."""
    template = world.clone(url, f"{PREFIX}_template", like=migrated or "template1")
    with crowd("benchmarks.product", template, processes=1, redis_url=redis_url) as one:
        if migrated is None:
            one.ask("migrate")
        made = one.ask("make")
        first, last = world.people(template, like=made["account"], count=sizes.accounts)
        one.ask("call_once", account=made["account"], model=made["model"])
    made_places = []
    for name, records in (("small", sizes.small), ("large", sizes.large)):
        place = world.Place(world.clone(url, f"{PREFIX}_{name}", like=f"{PREFIX}_template"), first, last, made["key"], made["model"])
        world.remember(place, records=records)
        made_places.append(place)
    return made_places[0], made_places[1]
