"""The planted bugs can still be planted. Whether they are noticed is for ``make mutants``, which takes minutes."""

from __future__ import annotations

import ast

import pytest

from tests.mutants import MUTANTS, ROOT, DoesNotApply, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_bug_can_be_planted(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text()
    planted = mutant.plant(source)
    assert planted != source
    if mutant.file.endswith(".py"):
        ast.parse(planted)
    assert [test for test in mutant.tests if not (ROOT / test).is_file()] == []


def test_every_bug_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12


@pytest.mark.parametrize("source", ["", "lock lock"])
def test_bug_that_has_no_one_place_any_more_is_an_error(source: str) -> None:
    with pytest.raises(DoesNotApply, match=f"occurs {source.count('lock')} times"):
        Mutant("lock is dropped", "ledger.sql", "lock", "", ()).plant(source)
