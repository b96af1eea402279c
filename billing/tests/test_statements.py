"""Statements: periods meet, opening + Σ movements = closing on any history, and what the page and the file say is that."""

from __future__ import annotations

import csv
import io
import random
import secrets
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import exports
from accounts.models import Account, User
from billing import ledger, pages, statements, subscriptions
from billing.models import LedgerEntry, Wallet
from metering import usage
from tests import factories

NANOS = factories.NANOS

pytestmark = pytest.mark.django_db


@pytest.fixture
def user() -> User:
    return User.objects.create_user(f"{secrets.token_hex(6)}@example.com", "correct horse battery")


@pytest.fixture
def signed_in(client: Client, user: User) -> Client:
    client.force_login(user)
    return client


def aged(account: Account, *, days: int) -> Account:
    """The account as if it had been opened so long ago."""
    Account.objects.filter(pk=account.pk).update(created_at=datetime.now(UTC) - timedelta(days=days))
    account.refresh_from_db()
    return account


def happen(account: Account, *, seed: int, steps: int, start: datetime, now: datetime) -> None:
    """Anything that moves credits, at moments that follow each other: grants that expire, use beyond the balance, reversals and more."""
    chance = random.Random(seed)
    model = factories.make_model()
    done: list[ledger.Usage] = []
    for number in range(steps):
        at = start + (now - start) * number // steps
        with ledger.clock(at=at):
            match chance.choice(["grant", "use", "use", "use", "reverse", "adjust"]):
                case "grant":
                    ends = at + timedelta(days=chance.randint(1, 40)) if chance.random() < 0.5 else None
                    factories.give(account, chance.randint(1, 5 * NANOS), source=chance.choice(["monthly", "purchased"]), expires_at=ends)
                case "use":
                    event = usage.Event(
                        key=secrets.token_hex(8),
                        account=account,
                        at=at,
                        model=model,
                        quantities={"input_tokens": chance.randint(1, 700_000)},
                    )
                    [answer] = usage.record(events=[event], now=at)
                    assert isinstance(answer, ledger.Usage)
                    done.append(answer)
                case "reverse" if done:
                    ledger.reverse(account_id=account.pk, usage_id=done.pop().id, key=secrets.token_hex(8), actor="t", reason="t")
                case "adjust":
                    with suppress(ledger.InsufficientCredits):
                        ledger.adjust(
                            account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=-chance.randint(1, NANOS),
                            key=secrets.token_hex(8), actor="t", reason="t",
                        )  # fmt: skip


def all_periods(account: Account, now: datetime) -> tuple[list[statements.Period], list[statements.Period]]:
    return statements.choices(account=account, allowed=subscriptions.allowed(account=account), now=now)


class TestEquation:
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 2**32), steps=st.integers(1, 60))
    def test_opening_and_movements_make_closing_in_every_period_of_any_history(self, seed: int, steps: int) -> None:
        now = datetime.now(UTC)
        account = aged(factories.make_account(), days=100)
        happen(account, seed=seed, steps=steps, start=now - timedelta(days=99), now=now)
        wallet = Wallet.objects.filter(account=account).first()
        written = list(LedgerEntry.objects.filter(account=account).order_by("seq")) if wallet else []
        for kind in all_periods(account, now):
            found = [(period, statements.of_period(wallet=wallet, period=period)) for period in reversed(kind)]
            for period, each in found:
                inside = [entry for entry in written if each.first <= entry.seq < each.after]
                assert inside == [entry for entry in written if period.start <= entry.recorded_at < period.end]
                assert each.opening + sum(entry.amount for entry in inside) == each.closing
                assert each.opening_debt + sum(entry.debt_delta for entry in inside) == each.closing_debt
                assert sum(sums.amount for sums in each.sums) == each.closing - each.opening
                assert sum(sums.debt_delta for sums in each.sums) == each.closing_debt - each.opening_debt
                assert sum(sums.entries for sums in each.sums) == len(inside) == each.entries
            for (_, one), (_, next_one) in pairwise(found):
                assert (one.after, one.closing, one.closing_debt) == (next_one.first, next_one.opening, next_one.opening_debt)
            if wallet:
                assert (found[-1][1].closing, found[-1][1].closing_debt) == (wallet.balance, wallet.debt)

    def test_a_boundary_is_found_in_a_few_questions_however_long_the_history_is(self, django_assert_max_num_queries: Any) -> None:
        account = factories.make_account(credit=10)
        model, now = factories.make_model(), datetime.now(UTC)
        for _ in range(3):
            events = [usage.Event(secrets.token_hex(8), account, now, model, {"input_tokens": 1}) for _ in range(1000)]
            assert len(list(usage.record(events=events, now=now))) == 1000
        wallet = Wallet.objects.get(account=account)
        entries = list(LedgerEntry.objects.filter(account=account).order_by("seq"))
        for wanted in (1, 2, 777, 3001):
            at = entries[wanted - 1].recorded_at
            first = next(entry.seq for entry in entries if entry.recorded_at >= at)
            with django_assert_max_num_queries(4):
                found = statements.of_period(wallet=wallet, period=statements.Period("2026-01", at, now + timedelta(days=1)))
            assert (found.first, found.after) == (first, 3002)


class TestPeriods:
    def test_periods_of_a_kind_meet_and_the_latest_runs(self) -> None:
        now = datetime.now(UTC)
        account = aged(factories.make_account(time_zone="America/New_York"), days=400)
        billing, months = all_periods(account, now)
        for kind in (billing, months):
            assert kind[0].start <= now < kind[0].end
            assert all(earlier.end == later.start for later, earlier in pairwise(kind))
            assert kind[-1].start <= account.created_at < kind[-1].end
        assert months[0].start.astimezone(UTC).hour in (4, 5)

    def test_every_period_is_found_by_its_name(self) -> None:
        now = datetime.now(UTC)
        account = aged(factories.make_account(), days=100)
        allowed = subscriptions.allowed(account=account)
        for period in (period for kind in all_periods(account, now) for period in kind):
            assert statements.named(period.name, account=account, allowed=allowed, now=now) == period

    def test_a_trial_is_a_period_of_its_own_that_no_other_overlaps(self) -> None:
        now = datetime.now(UTC)
        account = aged(factories.make_account(), days=100)
        whole = subscriptions.allowed(account=account)
        assert whole
        for began, ends in ((3, 11), (20, -2)):  # it runs; it is over, and its end was the anchor
            start, end = now - timedelta(days=began), now + timedelta(days=ends)
            allowed = replace(whole, anchor_at=end, period_start=start, period_end=end)
            billing, _ = statements.choices(account=account, allowed=allowed, now=now)
            assert (start, end) in [(period.start, period.end) for period in billing]
            assert all(earlier.end == later.start for later, earlier in pairwise(billing))
            for later, earlier in pairwise(billing):
                assert statements.around(later, account=account, allowed=allowed, now=now)[0] == earlier
                assert statements.named(earlier.name, account=account, allowed=allowed, now=now) == earlier

    def test_no_more_periods_are_offered_than_anybody_looks_through(self) -> None:
        account = aged(factories.make_account(), days=5000)
        assert [len(kind) for kind in all_periods(account, datetime.now(UTC))] == [statements.MAX_CHOICES] * 2

    def test_an_account_without_a_plan_has_calendar_months(self) -> None:
        account = factories.make_account()
        subscriptions.end(account=account, now=datetime.now(UTC))
        billing, months = statements.choices(account=account, allowed=None, now=datetime.now(UTC))
        assert (billing, len(months)) == ([], 1)

    @pytest.mark.parametrize(
        "name",
        ["", "2026", "2026-13", "2026-00", "2026-02-30", "26-02", "2026-2", "２０２６-02", "1999-12", "2199-01", "9999-12", "0000-01",
         "2026-02\n", "2026-02-", "%00", "2026-02' or 1=1"],
    )  # fmt: skip
    def test_garbage_names_no_period(self, signed_in: Client, user: User, name: str) -> None:
        account = factories.make_account(credit=10, owner=user)
        for path in ("statement/", "statement.csv"):
            assert signed_in.get(f"/a/{account.public_id}/{path}", {"period": name}).status_code == 404


class TestPage:
    def test_it_opens_with_the_billing_period_that_runs_and_closes_at_the_balance(self, signed_in: Client, user: User) -> None:
        account = factories.make_account(credit=10, owner=user)
        context = signed_in.get(f"/a/{account.public_id}/statement/").context
        assert not context["period"].is_month
        assert (context["statement"].opening, context["statement"].closing) == (0, 10 * NANOS)

    def test_use_by_day_is_the_same_movements_in_fewer_lines(self, signed_in: Client, user: User) -> None:
        now = datetime.now(UTC)
        account = aged(factories.make_account(owner=user), days=70)
        happen(account, seed=4, steps=200, start=now - timedelta(days=69), now=now)
        _, months = all_periods(account, now)
        shown = 0
        for period in months:
            context = signed_in.get(f"/a/{account.public_id}/statement/?period={period.name}&view=days").context
            found, runs = context["statement"], context["runs"]
            assert found.opening + sum(run.amount for run in runs) == found.closing
            assert sum(run.entries for run in runs) == found.entries
            shown += len(runs)
        assert 10 < shown < Wallet.objects.get(account=account).seq

    def test_more_movements_than_fit_are_said_and_not_cut(self, signed_in: Client, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
        account = factories.make_account(credit=10, owner=user)
        factories.give(account, NANOS)
        monkeypatch.setattr(exports, "MAX_ROWS", 1)
        page = signed_in.get(f"/a/{account.public_id}/statement/?view=days").content.decode()
        assert "Too many movements for one page" in page
        response = signed_in.get(f"/a/{account.public_id}/statement.csv")
        assert "_first-1-rows.csv" in response.headers["Content-Disposition"]
        rows = list(csv.DictReader(io.StringIO(response.getvalue().decode())))
        assert [row["what"] for row in rows] == ["opening balance", "grant"]

    @pytest.mark.parametrize("query", ["view=", "view=weeks", "view=%00", "page=0", "unit=EUR", "unit=%00"])
    def test_garbage_is_not_found(self, signed_in: Client, user: User, query: str) -> None:
        account = factories.make_account(credit=10, owner=user)
        assert signed_in.get(f"/a/{account.public_id}/statement/?{query}").status_code == 404


class TestFile:
    def rows(self, client: Client, account: Account, query: str = "") -> list[dict[str, str]]:
        response = client.get(f"/a/{account.public_id}/statement.csv{query}")
        assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
        return list(csv.DictReader(io.StringIO(response.getvalue().decode(), newline="")))

    def test_it_adds_up_from_the_opening_to_the_closing_row_over_all_its_chunks(
        self, signed_in: Client, user: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = datetime.now(UTC)
        account = aged(factories.make_account(owner=user), days=20)
        happen(account, seed=7, steps=80, start=now - timedelta(days=19), now=now)
        monkeypatch.setattr(pages, "_CHUNK", 7)
        _, months = all_periods(account, now)
        for period in months:
            opening, *movements, closing = self.rows(signed_in, account, f"?period={period.name}")
            nanos = [int(row["amount"].replace(".", "")) for row in movements]
            ends = [int(row["balance_after"].replace(".", "")) for row in (opening, closing)]
            assert ends[0] + sum(nanos) == ends[1]
            assert [row["entry"] for row in movements] == [
                str(number) for number in range(int(movements[0]["entry"]), len(movements) + int(movements[0]["entry"]))
            ]

    def test_times_are_utc_amounts_exact_and_use_names_its_record(self, signed_in: Client, user: User) -> None:
        account = factories.make_account(credit=10, owner=user, time_zone="Asia/Tokyo")
        event = usage.Event("k", account, datetime.now(UTC), factories.make_model(), {"input_tokens": 1})
        [done] = usage.record(events=[event], now=datetime.now(UTC))
        assert isinstance(done, ledger.Usage)
        _, grant, used, closing = self.rows(signed_in, account)
        assert (grant["amount"], grant["source"], grant["unit"]) == ("10.000000000", "purchased", "USD")
        assert used["amount"] == "-0.000004500"
        assert used["written_at"].endswith("+00:00")
        assert used["usage_record"] == usage.public_id(account, done.id, kind="rec")
        assert closing["balance_after"] == "9.999995500"


class TestCredits:
    def page(self, client: Client, account: Account) -> Any:
        response = client.get(f"/a/{account.public_id}/credits/")
        assert response.status_code == 200
        return response

    def test_lots_stand_in_the_order_in_which_they_are_spent(self, signed_in: Client, user: User) -> None:
        now = datetime.now(UTC)
        account = factories.make_account(owner=user)
        factories.give(account, 10 * NANOS, priority=30)
        factories.give(account, 5 * NANOS, source="welcome", priority=10, expires_at=now + timedelta(days=9))
        context = self.page(signed_in, account).context
        assert [lot.source for lot in context["lots"]] == ["welcome", "purchased"]
        assert context["next_to_expire"].source == "welcome"
        assert [movement.entry.seq for movement in context["movements"]] == [2, 1]

    def test_what_comes_next_is_the_schedules_next_grant_though_no_job_ran(self, signed_in: Client, user: User) -> None:
        account = factories.make_account(owner=user)
        anchor = datetime.now(UTC) - timedelta(days=75)
        with ledger.clock(at=anchor):
            ledger.schedule(
                account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=3 * NANOS, source="monthly", source_key="s",
                anchor_at=anchor, months=1, priority=20, key="s", actor="t", reason="t",
            )  # fmt: skip
        at, amount, source = self.page(signed_in, account).context["next_grant"]
        assert datetime.now(UTC) < at <= datetime.now(UTC) + timedelta(days=31)
        assert (amount, source) == (3 * NANOS, "monthly")

    def test_what_a_dispute_froze_is_told(self, signed_in: Client, user: User) -> None:
        account = factories.make_account(owner=user)
        factories.give(account, 10 * NANOS, source_key="pi_1")
        ledger.freeze(account_id=account.pk, source="purchased", source_key="pi_1", key="f", actor="t", reason="t")
        assert "cannot be spent while a payment is disputed" in self.page(signed_in, account).content.decode()
