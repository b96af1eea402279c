"""The revenue page and the journal: who may, what they show, and that both say the same."""

from __future__ import annotations

import csv
import io
import random
from collections import Counter
from datetime import date, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.exports import Nanos
from analytics import journal, margin, recognition
from analytics.tests.life import Life
from analytics.tests.world import NANOS, NOON, World
from billing import ledger
from tests.test_admin import staff, superuser, text, world

__all__ = ["superuser", "world"]  # fixtures
SINCE, UNTIL = date(2026, 3, 1), date(2026, 6, 1)
REVENUE, JOURNAL = "admin:analytics_revenue", "admin:analytics_journal"


@pytest.fixture
def life(world: World) -> Life:
    life = Life(world, random.Random(7))
    for _ in life.steps(60):
        pass
    return life


def test_the_journal_balances_to_zero_each_day_and_is_what_was_recognised(life: Life) -> None:
    lines = list(journal.lines(since=SINCE, until=UNTIL, product=life.world.product))
    days: Counter[str] = Counter()
    accounts: Counter[str] = Counter()
    for line in lines:
        days[line.day] += line.amount_nanos
        accounts[line.account] += line.amount_nanos
    assert len(days) > 10
    assert set(days.values()) == {0}
    sums = recognition.report(since=SINCE, until=UNTIL, product_id=life.world.product.pk).totals
    assert sums.cash_nanos == life.cash
    assert accounts["Cash at the payment provider"] == life.cash - life.returned - life.fees - life.time_fees
    owed = sum(accounts[f"Deferred revenue, {kind}"] for kind in ("credit", "disputed credit", "plans"))
    assert -owed == sums.deferred_nanos
    earned = [name for name in journal.CHART if name.startswith(("Revenue", "Breakage", "Refunds", "Payment fees"))]
    assert -sum(accounts[name] for name in earned) == sums.recognised_nanos


def test_a_journal_of_all_products_has_each_and_no_line_of_nothing(life: Life) -> None:
    other = World.new(name="Elite")
    with ledger.clock(at=NOON):
        other.grant(other.account(), 100, cash_nanos=70, fee_nanos=7)
    found = [line for line in journal.lines(since=SINCE, until=UNTIL) if line.product == other.product.slug]
    assert [(line.day, line.account, line.amount_nanos) for line in found] == [
        ("2026-03-10", "Cash at the payment provider", 63),
        ("2026-03-10", "Prepaid payment fees", 7),
        ("2026-03-10", "Deferred revenue, credit", -70),
    ]


def test_the_command_and_the_page_write_the_same_file(life: Life, superuser: Client) -> None:
    slug = life.world.product.slug
    out = io.StringIO()
    call_command("journal", since=SINCE, until=UNTIL, product=slug, stdout=out)
    response: Any = superuser.get(f"{reverse(JOURNAL)}?since={SINCE}&last_day={UNTIL - timedelta(days=1)}&product={slug}")
    assert (response.status_code, response["Content-Disposition"]) == (
        200,
        f'attachment; filename="journal_{slug}_2026-03-01_2026-05-31.csv"',
    )
    content = response.getvalue().decode()
    assert content == out.getvalue()
    heads, *rows = csv.reader(io.StringIO(content))
    assert heads == ["Day (UTC)", "Product", "Account", "Debit USD", "Credit USD"]
    nanos = [[int(cell.replace(".", "") or 0) for cell in row[3:]] for row in rows]
    assert sum(debit for debit, _ in nanos) == sum(credit for _, credit in nanos) > 0


def test_a_products_name_never_becomes_a_formula() -> None:
    [_, row] = journal.cells(iter([journal.Line("2026-03-01", "=cmd", "Cash", -5)]))
    assert row == ("2026-03-01", "=cmd", "Cash", None, Nanos(5))  # accounts/exports.py quotes what is text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "2026-03-01"],
        ["--since", "x", "--until", "2026-04-01"],
        ["--since", "2026-02-30", "--until", "2026-04-01"],
        ["--since", "2026-04-01", "--until", "2026-03-01"],
        ["--since", "0001-01-01", "--until", "9999-12-31"],
        ["--since", "2026-03-01", "--until", "2026-04-01", "--product", "nobody"],
        ["--since", "2026-03-01", "--until", "2026-04-01", "--product", "\0"],
    ],
)
def test_garbage_is_refused_by_the_command(db: None, arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("journal", *arguments)


def test_the_page_shows_the_sum_that_proves_itself_in_every_grouping(world: World, superuser: Client) -> None:
    account = world.account("Ada")
    world.grant(account, 75 * NANOS, cash_nanos=50 * NANOS, fee_nanos=NANOS)
    ledger.record(world.event(account, cost=NANOS, price=15 * NANOS, at=timezone.now()))
    for by in recognition.BYS:
        shown = text(superuser, f"{reverse(REVENUE)}?product={world.product.slug}&by={by}")
        for words in ("$9.80", "$40.00", "$0.20", "$50.00", "was recognised", "Download the journal"):
            assert words in shown, (by, words)
    assert "0.08 %" not in shown
    assert "400.00 %" in shown


def test_an_empty_product_has_a_page(world: World, superuser: Client) -> None:
    assert "Nothing was paid or used" in text(superuser, f"{reverse(REVENUE)}?product={world.product.slug}")


@pytest.mark.parametrize(
    "query", ["by=x", "since=x", "last_day=9999-12-31", "last_day=0001-01-01", "since=2030-01-01&last_day=2020-01-01", "product=%00"]
)
@pytest.mark.parametrize("name", [REVENUE, JOURNAL])
def test_garbage_is_an_error_on_the_page(superuser: Client, name: str, query: str) -> None:
    assert 'role="alert"' in text(superuser, f"{reverse(name)}?{query}")


@pytest.mark.parametrize("name", [REVENUE, JOURNAL])
def test_who_may_not_see_margins_sees_neither(db: None, name: str) -> None:
    assert staff("billing.view_grant", "analytics.view_entry").get(reverse(name)).status_code == 403
    assert staff("analytics.view_margin").get(reverse(name)).status_code == 200
    assert Client().get(reverse(name)).status_code == 302


def test_the_margin_page_names_the_models_that_earn_least_and_takes_the_fee_in(world: World, superuser: Client) -> None:
    account = world.account()
    world.grant(account, 100 * NANOS, cash_nanos=50 * NANOS, fee_nanos=10 * NANOS)
    ledger.record(world.event(account, cost=NANOS, price=10 * NANOS, at=timezone.now(), model=0))
    ledger.record(world.event(account, cost=9 * NANOS, price=10 * NANOS, at=timezone.now(), model=1))
    url = f"{reverse('admin:analytics_margin_changelist')}?product={world.product.slug}"
    for by in margin.BYS:
        shown = text(superuser, f"{url}&by={by}")
        assert f"Earns least: <b>{world.models[1]}</b> (10.00 %" in shown
        assert "$10.00 (50.00 %) was left at list prices, $0.00 (0.00 %) of what customers had paid" in shown
    with_fees = text(superuser, f"{url}&fees=on&order=least")
    assert "$8.00 (40.00 %) was left at list prices, −$2.00 (−20.00 %) of what customers had paid" in with_fees
    assert "Payment fees</th>" in with_fees
