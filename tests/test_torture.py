"""``make soak`` in short, and its checker: shown a journal that says something else than the ledger, it says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest
from django.db import connections
from pytest_django.plugin import DjangoDbBlocker

from tests.torture import __main__ as command
from tests.torture import journal
from tests.torture.checker import Facts, Verdict, judge
from tests.torture.journal import Deed, Journal
from tests.torture.worker import WEIGHTS, Worker
from tests.torture.world import World, make

SEED = 20
OPERATIONS = 500


@pytest.mark.failure(2, 7, 21, 24, 37)
def test_nothing_acknowledged_is_lost_or_doubled_while_everything_is_killed() -> None:
    arguments = ["--seconds", "10", "--seed", str(SEED), "--name", f"soak-{os.getpid()}"]
    run = subprocess.run([sys.executable, "-m", "tests.torture", *arguments], capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["passed"]
    assert (result["lost"], result["doubled"], result["violations"]) == (0, 0, 0)
    assert result["kills"] >= 5
    assert result["restarts"] >= 1
    assert result["acknowledged"] == result["operations"] - result["unanswered"] > 100
    assert run.stdout.count('{"') == 1


# The checker ------------------------------------------------------------------------------------------------------------------


class Diary:
    """What one client did, undisturbed, and what the ledger has of it."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        worker = Worker(Journal(path), world, 0, Random(SEED), prefix="")
        for _ in range(OPERATIONS):
            worker.work()
        self.facts = Facts.read(world.accounts)

    def deeds(self) -> list[Deed]:
        return journal.read(self.path)

    def judge(self, deeds: list[Deed]) -> Verdict:
        return judge(deeds, self.facts, self.world.accounts)


@pytest.fixture(scope="module")
def diary(django_db_setup: None, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Diary]:
    with django_db_blocker.unblock():
        yield Diary(tmp_path_factory.mktemp("torture") / "journal", make())
        connections.close_all()


def one(deeds: list[Deed], do: str) -> Deed:
    """A deed that was answered and not refused."""
    return next(deed for deed in deeds if deed.intent["do"] == do and deed.answer is not None and "refused" not in deed.answer)


def test_a_journal_that_says_what_the_ledger_has_is_clean(diary: Diary) -> None:
    deeds = diary.deeds()
    assert diary.judge(deeds) == Verdict()
    assert {deed.intent["do"] for deed in deeds} == set(WEIGHTS)


@pytest.mark.parametrize("do", ["authorize", "record", "grant", "adjust", "refund", "freeze", "unfreeze", "reverse", "throttle"])
def test_what_was_acknowledged_and_is_not_there_is_lost(diary: Diary, do: str) -> None:
    deeds = diary.deeds()
    deeds.append(deepcopy(one(deeds, do)))
    deeds[-1].intent["key"] = "never-sent"
    if do == "record":
        deeds[-1].intent["events"][0][1] = "never-sent"
    assert len(diary.judge(deeds).lost) == 1


@pytest.mark.parametrize("do", ["capture", "release"])
def test_an_acknowledged_end_of_an_authorization_that_has_none_is_lost(diary: Diary, do: str) -> None:
    deeds = diary.deeds()
    end = one(deeds, do)
    end.intent["id"] = next(
        found[0]["id"] for place, found in diary.facts.found.items() if place[0] == "usage" and "outcome" not in found[0]
    )
    assert diary.judge(deeds).lost


def test_an_object_that_has_a_place_no_more_is_lost(diary: Diary) -> None:
    deeds = diary.deeds()
    deeds.append(deepcopy(one(deeds, "reserve")))
    deeds[-1].intent["object"] = "another"
    assert len(diary.judge(deeds).lost) == 1


AMOUNTS = [("authorize", "hold"), ("capture", "price"), ("grant", "amount"), ("refund", "amount"), ("reverse", "amount")]


@pytest.mark.parametrize(("do", "name"), AMOUNTS)
def test_another_amount_than_was_acknowledged_is_a_violation(diary: Diary, do: str, name: str) -> None:
    deeds = diary.deeds()
    answer = one(deeds, do).answer
    assert answer is not None
    answer[name] += 1
    verdict = diary.judge(deeds)
    assert verdict.lost == verdict.doubled == []
    assert verdict.violations != []


@pytest.mark.parametrize(("do", "name"), [("authorize", "tokens"), ("capture", "tokens"), ("grant", "amount"), ("adjust", "amount")])
def test_another_amount_than_was_asked_for_is_a_violation(diary: Diary, do: str, name: str) -> None:
    deeds = diary.deeds()
    uncapped = [deed for deed in deeds if diary.world.accounts[deed.intent["account"]] == "charge"]
    one(uncapped, do).intent[name] += 1
    [line] = diary.judge(deeds).violations
    assert "was not what was asked for" in line


@pytest.mark.parametrize("do", ["authorize", "record", "grant", "reverse"])
def test_what_nobody_sent_is_doubled(diary: Diary, do: str) -> None:
    """A retry under a new key looks like this."""
    deeds = diary.deeds()
    deeds.remove(one(deeds, do))
    assert any("sent by nobody" in line for line in diary.judge(deeds).doubled)


@pytest.mark.parametrize("do", ["authorize", "grant", "adjust"])
def test_what_was_refused_and_happened_is_doubled(diary: Diary, do: str) -> None:
    deeds = diary.deeds()
    one(deeds, do).answer = {"refused": "credits"}
    assert len(diary.judge(deeds).doubled) == 1


def test_a_key_that_was_done_twice_is_doubled(diary: Diary) -> None:
    deeds, facts = diary.deeds(), deepcopy(diary.facts)
    twice = next(found for place, found in facts.found.items() if place[0] == "operation")
    twice.append(twice[0])
    assert len(judge(deeds, facts, diary.world.accounts).doubled) == 1


def test_credits_from_nowhere_are_a_violation(diary: Diary) -> None:
    facts = deepcopy(diary.facts)
    facts.net_nanos[next(iter(diary.world.hot))] += 1
    [line] = judge(diary.deeds(), facts, diary.world.accounts).violations
    assert "by the journals" in line


def test_an_operation_without_an_answer_may_have_happened_or_not(diary: Diary) -> None:
    deeds = diary.deeds()
    for do in ("authorize", "capture", "record", "grant", "reverse"):
        one(deeds, do).answer = None
    deeds.append(Deed(one(deeds, "grant").intent | {"key": "never-sent"}))
    assert diary.judge(deeds) == Verdict()


# A client that was killed --------------------------------------------------------------------------------------------------------


def test_a_client_that_comes_back_asks_again_and_is_told_the_same(committed: None, tmp_path: Path) -> None:
    path, world = tmp_path / "journal", make()
    worker = Worker(Journal(path), world, 0, Random(SEED), prefix="")
    for _ in range(40):
        worker.work()
        said = path.read_bytes()
        cut = said[: said.rindex(b'{"key"') + 7]  # killed while it wrote the answer down
        path.write_bytes(cut)
        first = json.loads(said[len(cut) - 7 :])["answer"]
        worker = Worker(Journal(path), world, 0, worker.draw, prefix=f"{_}")
        worker.resume()
        again = journal.read(path)[-1]
        assert again.tries == 1
        assert again.answer is not None
        assert without_replayed(again.answer) == without_replayed(first)
    assert judge(journal.read(path), Facts.read(world.accounts), world.accounts) == Verdict()


def without_replayed(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {name: without_replayed(value) for name, value in answer.items() if name != "replayed"}
    return [without_replayed(value) for value in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_an_intent_that_was_cut_short_was_not_sent_and_spoils_nothing(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    Journal(path).intend({"do": "grant", "key": "a"})
    with open(path, "ab") as file:
        file.write(json.dumps({"intent": {"do": "grant", "key": "b", "account": 12}}).encode()[:cut])
    Journal(path).intend({"do": "grant", "key": "c"})
    assert [deed.intent["key"] for deed in journal.read(path)] == ["a", "c"]


def test_a_client_reads_only_the_end_of_its_journal(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal")
    for number in range(100):
        written.intend({"key": f"{number}"})
        written.answered({"key": f"{number}"}, {"said": number}, tries=0)
    last = journal.read(tmp_path / "journal", tail_bytes=300)
    assert [deed.answer for deed in last] == [{"said": int(deed.intent["key"])} for deed in last]
    assert 1 < len(last) < 10
    assert last[-1].intent["key"] == "99"


# The result ----------------------------------------------------------------------------------------------------------------------

STRUCK = Counter({"kills": 10, "terminated": 20, "flushes": 3, "restarts": 1, "valkey_kills": 0})
DEEDS = [Deed({"do": "grant", "key": f"{number}"}, {"amount": 1}) for number in range(100)]


def result(deeds: list[Deed] = DEEDS, done: Counter[str] = STRUCK, verdict: Verdict | None = None) -> dict[str, Any]:
    return command.report(deeds, done, verdict or Verdict(), seconds=10, seed=1)


def test_a_torture_with_nothing_wrong_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert result()["passed"]
    assert "kills 10, terminated 20" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["kills", "terminated", "flushes", "restarts"])
def test_a_torture_in_which_nothing_went_wrong_proves_nothing(missing: str) -> None:
    assert not result(done=Counter({deed: count for deed, count in STRUCK.items() if deed != missing}))["passed"]


def test_a_torture_in_which_little_was_done_proves_nothing() -> None:
    assert not result(DEEDS[:9])["passed"]


@pytest.mark.parametrize("what", ["lost", "doubled", "violations"])
def test_one_thing_wrong_fails_the_torture(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = Verdict()
    change: Callable[[str], None] = getattr(verdict, what).append
    change("a credit")
    found = result(verdict=verdict)
    assert (found["passed"], found[what]) == (False, 1)
    assert f"{what}: a credit" in capsys.readouterr().out
