"""The benchmarks, in miniature: every part runs and its rows have the declared shape. The figures mean nothing here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from psycopg import sql

from benchmarks import __main__ as command
from benchmarks import history, hot_path, http, measure, pgbench, rating, suite, world
from benchmarks.crowd import Crowd, crowd
from benchmarks.measure import Load, Row, Run
from config import roles, scratch

SIZES = suite.Sizes(accounts=10, small=40, large=200, tpcb_scale=1, seconds=0.05, rounds=1, rating_calls=3)
LOAD = Load(1, 0.05)
ROOT = Path(__file__).resolve().parent.parent
needs_references = pytest.mark.skipif(
    importlib.util.find_spec("hordak") is None or importlib.util.find_spec("litellm") is None, reason="requirements-bench.txt"
)


def assert_whole(rows: list[Row]) -> None:
    assert rows != []
    for row in rows:
        shown = json.loads(row.json())
        assert list(shown) == ["goal", "value", "reference", "ratio", "target", "spread", "met"]
        assert row.goal
        assert (row.reference is None) == (row.ratio is None)
        assert row.spread[0] <= (row.value if row.ratio is None else row.ratio) <= row.spread[1]
        assert (row.target is None) == (row.met is None)
    assert len({row.goal for row in rows}) == len(rows)


class TestRows:
    def test_a_ratio_is_the_median_of_the_rounds_and_its_spread_their_ends(self) -> None:
        row = measure.compare("what", [10, 30, 20], [10, 10, 10], target="≥ 2")
        assert row == Row("what", 20, 10, 2, "≥ 2", (1, 3), True)

    def test_each_value_is_held_against_the_reference_of_its_own_round(self) -> None:
        assert measure.compare("what", [1, 100, 100], [1, 100, 1], target=None).spread == (1, 100)

    @pytest.mark.parametrize(("target", "met"), [("≥ 2.1", False), ("≤ 1.9", False), ("≤ 2", True), (None, None)])
    def test_a_goal_that_is_missed_is_said_to_be(self, target: str | None, met: bool | None) -> None:
        assert measure.compare("what", [20], [10], target=target).met is met

    def test_without_a_reference_the_target_is_about_the_value(self) -> None:
        assert measure.alone("what", [700], target="≤ 700") == Row("what", 700, None, None, "≤ 700", (700, 700), True)

    def test_a_load_that_did_nothing_is_no_measurement(self) -> None:
        with pytest.raises(ValueError, match="did nothing"):
            Run.of([], seconds=1)

    def test_everything_takes_its_turn(self) -> None:
        order: list[str] = []
        measure.rounds(2, {"a": lambda: order.append("a"), "b": lambda: order.append("b")})
        assert order == ["a", "b", "a", "b"]

    def test_the_last_run_stands_between_its_markers_and_the_rest_of_the_page_stays(self) -> None:
        page = f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n"
        rows = [measure.alone("missed", [2], target="≤ 1"), measure.alone("plain", [3])]
        new = command.with_last_run(page, "machine", rows)
        assert new.startswith("before\n")
        assert new.endswith(f"{command.END}\nafter\n")
        assert "old" not in new
        assert "| missed | 2 |  |  | 2–2 | ≤ 1 | **no** |" in new
        assert command.with_last_run(new, "machine", rows) == new


def test_the_page_has_the_markers_that_a_run_writes_between() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    assert page.count(command.BEGIN) == page.count(command.END) == 1


def test_the_rows_kept_of_the_last_run_have_the_declared_shape() -> None:
    rows: list[dict[str, Any]] = json.loads(command.RESULTS.read_text())
    assert_whole([Row(**row | {"spread": tuple(row["spread"])}) for row in rows])


def test_bench_only_packages_are_pinned_and_none_of_the_programs() -> None:
    lines = [line for line in (ROOT / "requirements-bench.txt").read_text().splitlines() if not line.startswith(("#", "-r"))]
    assert {line.partition("==")[0] for line in lines if "==" in line} >= {"django-hordak", "litellm"}
    assert [line for line in lines if "==" not in line] == []
    assert set(lines) & set((ROOT / "requirements.txt").read_text().splitlines()) == set()


@needs_references
def test_rating_is_held_against_two_libraries_that_agree_on_the_cost() -> None:
    rows = rating.rows(1, calls=3)
    assert_whole(rows)
    assert len(rows) == 2


class World:
    """The databases of one miniature run, their clients, and the ledger's verbs on them."""

    def __init__(self, small: world.Place, large: world.Place, ours: Crowd, theirs: Crowd) -> None:
        self.places = (small, large)
        self.crowds = (ours, theirs)
        self.verbs = (hot_path.Sql.of(small, ours), hot_path.Sql.of(large, theirs))


@pytest.fixture(scope="module")
def miniature(django_db_setup: None) -> Iterator[World]:
    url, redis_url = settings.DATABASE_URL, settings.REDIS_URL
    drop_all(url)
    small, large = suite.places(url, redis_url, SIZES, scratch.template())
    with (
        crowd("benchmarks.product", small.url, processes=2, redis_url=redis_url) as ours,
        crowd("benchmarks.product", large.url, processes=1, redis_url=redis_url) as theirs,
    ):
        yield World(small, large, ours, theirs)
    drop_all(url)


def drop_all(url: str) -> None:
    """The databases of a miniature run, those of one that was killed too."""
    with psycopg.connect(world.database(url, "postgres"), autocommit=True) as server:
        found = server.execute(
            "select datname, pg_get_userbyid(datdba) from pg_database where datname like %s", [f"{suite.PREFIX}\\_%"]
        ).fetchall()
        for name, owner in found:
            if owner == roles.OWNER:
                server.execute(sql.SQL("set role {}").format(sql.Identifier(owner)))
                server.execute(sql.SQL("alter database {} is_template false").format(sql.Identifier(name)))
            server.execute(sql.SQL("drop database {} (force)").format(sql.Identifier(name)))
            server.execute("reset role")


class TestRuns:
    """In the order of a real run: the parts share the databases."""

    def test_the_made_up_history_is_whole(self, miniature: World) -> None:
        for crowd_, place, records in zip(miniature.crowds, miniature.places, (SIZES.small, SIZES.large), strict=True):
            with psycopg.connect(place.url) as connection:
                found = connection.execute(
                    "select count(*), count(*) filter (where account_id = %s), count(distinct account_id) from usage_record"
                    " where event_at < now() - interval '1 hour'",
                    [place.first],
                ).fetchone()
            assert found == (records + world.RECENT, records // world.BUSY_SHARE + world.RECENT, SIZES.accounts)
            assert crowd_.ask("findings") == []
            assert crowd_.ask("rollup_differences") == []

    def test_writing_after_history(self, miniature: World) -> None:
        assert_whole(history.write_rows(*miniature.verbs, ("40", "200"), LOAD))

    def test_reading_after_history(self, miniature: World) -> None:
        assert_whole(history.read_rows(miniature.crowds, miniature.places, ("40", "200"), LOAD))

    def test_the_margin_report(self, miniature: World) -> None:
        assert_whole(history.margin_rows(miniature.crowds[1], records=200, load=LOAD))

    def test_the_disk(self, miniature: World) -> None:
        assert_whole(history.disk_rows(miniature.places[1]))

    def test_the_verbs_as_sql(self, miniature: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hot_path, "CLIENTS", (1, 3))
        url = world.clone(settings.DATABASE_URL, f"{suite.PREFIX}_tpcb", ours=False)
        pgbench.fill(url, scale=1)
        rows = hot_path.sql_rows(miniature.verbs[0], {"many": url, "one": url}, LOAD)
        assert_whole(rows)
        assert len(rows) == 2 * 2 * 3 * 3
        limited = hot_path.limited_rows(miniature.verbs[1], url, LOAD)
        assert_whole(limited)
        assert len(limited) == 2

    def test_a_verb_that_did_not_do_what_was_asked_is_no_measurement(self, miniature: World) -> None:
        nobody = hot_path.Sql(miniature.places[0], "select gen_random_uuid() as id", "select 1", "select 1")
        with pytest.raises(RuntimeError, match="made 0 entries and 0 open"):
            nobody.run_authorize(clients=1, seconds=0)

    def test_sql_that_fails_is_no_measurement(self, miniature: World) -> None:
        with pytest.raises(RuntimeError, match="pgbench failed"):
            pgbench.script(miniature.places[0].url, "select 1 / 0;\n", clients=1)

    def test_batches(self, miniature: World) -> None:
        assert_whole(hot_path.batch_rows(miniature.places[0], miniature.crowds[0], LOAD))

    def test_the_python_face(self, miniature: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hot_path, "CLIENTS", (1, 3))
        assert_whole(hot_path.python_rows(miniature.places[0], miniature.crowds[0], LOAD))

    @needs_references
    def test_the_orm_and_hordak(self, miniature: World) -> None:
        url = world.clone(settings.DATABASE_URL, f"{suite.PREFIX}_reference", ours=False)
        settings_ = "benchmarks.reference.settings"
        with crowd("benchmarks.reference.clients", url, settings=settings_, processes=2, redis_url=settings.REDIS_URL) as reference:
            reference.ask("make", accounts=5)
            assert_whole(hot_path.django_rows(miniature.verbs[0], miniature.crowds[0], reference, LOAD))

    def test_http(self, miniature: World) -> None:
        assert_whole(http.rows(miniature.places[0], LOAD, redis_url=settings.REDIS_URL))

    def test_the_audit_finds_nothing_after_all_that(self, miniature: World) -> None:
        [row] = history.audit_rows(miniature.crowds)
        assert (row.value, row.met) == (0, True)
