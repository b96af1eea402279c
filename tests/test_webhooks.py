"""The second half of ``make soak`` in short, and what it judges by: shown another end, it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from tests.factories import NANOS, give, make_account
from tests.webhooks import digest, flood, lives
from tests.webhooks.lives import LIVES, Person

SEED = 20


def soak(database: str, **amounts: int) -> dict[str, Any]:
    arguments = [word for name, amount in amounts.items() for word in (f"--{name}", str(amount))]
    run = subprocess.run(
        [sys.executable, "-m", "tests.webhooks", "--here", "--seed", str(SEED), *arguments],
        env=os.environ | {"DATABASE_URL": database, "REDIS_URL": settings.REDIS_URL},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    assert (result["passed"], result["wrong"]) == (True, 0)
    return result


@pytest.mark.failure(58, 60, 62)
def test_in_any_order_however_often_and_whenever_workers_die_the_events_of_five_customers_have_one_end(fresh_database: str) -> None:
    result = soak(fresh_database, orders=8, deliveries=0)
    assert result["ends"] == {"afterwards": 1, "meanwhile": 1}
    assert result["deaths"] >= 50
    assert result["order_deliveries"] >= 8 * 58


@pytest.mark.failure(55, 56, 58, 66, 67)
def test_a_flood_of_what_is_no_good_has_no_effect_and_breaks_nothing(fresh_database: str) -> None:
    result = soak(fresh_database, orders=0, deliveries=3_000)
    assert result["server_errors"] == 0
    assert result["deliveries"] >= 3_000
    assert set(result["kinds"]) == set(flood.KINDS)
    assert result["kills"] >= 2


@pytest.mark.django_db
class TestDigest:
    def test_only_columns_that_there_are_are_left_out(self) -> None:
        for part in (*digest.WHOLE, *digest.END):
            with connection.cursor() as cursor:
                columns = {column.name for column in connection.introspection.get_table_description(cursor, part.table)}
            assert set(part.without) <= columns

    def test_one_grant_more_one_nano_less_or_another_key_is_another_end(self) -> None:
        account = make_account()
        seen = set()
        for nanos, key in ((NANOS, "a"), (NANOS - 1, "b"), (NANOS, "c")):
            give(account, nanos, source_key=key)
            seen |= {digest.digest([account.pk], parts) for parts in (digest.WHOLE, digest.END)}
        assert len(seen) == 6

    def test_other_accounts_are_not_in_it(self) -> None:
        account = make_account()
        before = digest.digest([account.pk], digest.WHOLE)
        assert str(account.pk) in before
        make_account(account.product, credit=1)
        assert digest.digest([account.pk], digest.WHOLE) == before


@pytest.mark.django_db
class TestJudgement:
    def test_whose_account_is_not_what_its_life_leaves_is_told(self) -> None:
        account = make_account(credit=6)
        assert lives.wrong([Person(account.pk, "cus_1", "refunded")]) == []
        [line] = lives.wrong([Person(account.pk, "cus_1", "disputed")])
        assert "balance=600" in line

    def test_a_silent_customer_that_has_anything_is_told(self) -> None:
        account = make_account()
        assert flood.heard_of([Person(account.pk, "cus_1", "refunded")]) == []
        give(account, 1)
        assert len(flood.heard_of([Person(account.pk, "cus_1", "refunded")])) == 1

    @pytest.mark.parametrize("kind", flood.KINDS)
    def test_an_answer_of_500_is_never_good_and_the_other_answers_only_for_their_kind(self, kind: str) -> None:
        good = {status for status in (0, 200, 400, 413, 500, 503) if flood._good(kind, status)}
        assert good == ({200} if kind in flood.TAKEN else {0, 400} if kind in flood.UNHEARD else {400})


def test_every_life_leaves_something_behind() -> None:
    assert all(end.grants for _, end in LIVES.values())
