"""Replays under a draft: the catalog as it is changes nothing, to the nano; what a draft changes is told account by account."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import tomli_w
from django.db import connection

from accounts.models import Account
from analytics.drafts import replays
from analytics.drafts.worlds import Charge, Figures, Limit, Lot, Movement, Opening, Span, Terms, TopUp, Use, replay
from analytics.models import DraftReplay, DraftReplayAccount
from billing import ledger
from billing.models import Subscription
from config import roles
from metering import rerating, usage
from metering.tests.limited import PER_TOKEN, Shop
from pricing import catalog_file
from pricing.models import CostTier, PriceRow, Product, RateCard
from tests.factories import NANOS, START, make_account, make_model

MAY = datetime(2026, 5, 1, tzinfo=UTC)
JUNE = datetime(2026, 6, 1, tzinfo=UTC)
USD = NANOS


# Pure: two worlds side by side ---------------------------------------------------------------------------------------------------


def use(day: float, price: int, *, cost: int | None = None, draft: Charge | str | None = "same", **more: Any) -> Use:
    charge = Charge(price // 2 if cost is None else cost, price, price)
    said = {"feature": "", "tokens": 10, "counts": None} | more
    return Use(uuid4(), MAY + timedelta(days=day), stored=charge, old=charge, new=charge if draft == "same" else draft, **said)  # type: ignore[arg-type]


def opening(*, credit: int = 0, old: Terms | None = None, new: Terms | None = None, **more: Any) -> Opening:
    old = old or Terms()
    span = Span(MAY - timedelta(days=40), JUNE + timedelta(days=400), MAY - timedelta(days=40), 1, (MAY, MAY), old, new or old)
    lots = [Lot(10, JUNE + timedelta(days=900), 1, credit)] if credit else []
    said: dict[str, Any] = {"spans": [span], "lots": lots, "debt": 0, "rollover_cap": None, "movements": [], "used": {}} | more
    return Opening(1, UTC, **said)


def worlds(begin: Opening, *uses: Use) -> Any:
    return replay(begin, uses, since=MAY, until=JUNE)


class TestWorlds:
    def test_the_same_terms_leave_both_worlds_alike_whatever_they_refuse(self) -> None:
        terms = Terms(limits=(Limit("cost", "cost", "day", 5), Limit("quota", "messages", "period", 3)), request_tokens=5)
        found = worlds(opening(credit=30, old=terms), *(use(day / 3, 10) for day in range(60)))
        assert found.same
        assert found.old.records == 60
        assert found.old.debt == 570

    def test_what_a_lower_limit_refuses_costs_nothing_and_counts_against_nothing(self) -> None:
        new = Terms(limits=(Limit("cost", "cost", "day", 12),))
        found = worlds(opening(credit=1_000, new=new), *(use(hour / 24, 10) for hour in range(26)))
        assert found.refused["cost/day"].count == 22  # two fit into a day, and two into the next
        assert found.refused["cost/day"].first == MAY + timedelta(hours=2)
        assert found.refused["cost/day"].last == MAY + timedelta(hours=23)
        assert (found.new.records, found.new.cost, found.new.price) == (4, 20, 40)
        assert (found.old.records, found.old.cost, found.old.price) == (26, 130, 260)

    def test_windows_that_had_begun_keep_what_they_had_counted(self) -> None:
        new = Terms(limits=(Limit("quota", "messages", "period", 10),))
        found = worlds(opening(new=new, used={"messages/period": 9}), *(use(day, 0) for day in range(4)))
        assert found.refused["messages/period"].count == 3

    def test_a_higher_price_runs_dry_sooner_and_what_then_comes_is_refused(self) -> None:
        dearer = Charge(5, 20, 20)
        found = worlds(opening(credit=40), *(use(day, 10, draft=dearer) for day in range(4)))
        assert (found.old.price, found.old.debt) == (40, 0)
        assert (found.new.price, found.new.debt, found.refused["credits"].count) == (40, 0, 2)

    def test_what_the_draft_has_no_price_for_is_refused_as_unknown(self) -> None:
        assert worlds(opening(credit=40), use(1, 10, draft=None)).refused["unknown_model"].value == 10

    def test_features_and_request_sizes_of_the_draft_refuse(self) -> None:
        new = Terms(withheld=frozenset(("search",)), request_tokens=9)
        found = worlds(opening(credit=99, new=new), use(1, 1, feature="search"), use(2, 1), use(3, 1, tokens=9))
        assert {layer: said.count for layer, said in found.refused.items()} == {"entitlement": 1, "request_size": 1}

    def test_credit_burns_in_order_expires_and_rolls_over_up_to_its_cap(self) -> None:
        first = Lot(1, MAY + timedelta(days=10), 1, 50, rolls=(MAY + timedelta(days=20), 15, 2))
        last = Lot(3, JUNE + timedelta(days=99), 2, 7)
        found = worlds(opening(lots=[last, first]), use(1, 20), use(12, 5))
        assert found.old.breakage == 15 + 10  # 30 were left: 15 rolled over, of which 5 were used
        assert found.same

    def test_a_larger_pack_leaves_more_to_expire_and_brings_other_cash(self) -> None:
        lot = Lot(1, MAY + timedelta(days=20), 5, 0)
        found = worlds(opening(movements=[Movement(MAY + timedelta(days=1), lot, 100, 150, 1_000, 1_200)]), use(2, 60))
        assert (found.old.breakage, found.new.breakage) == (40, 90)
        assert (found.old.pack_cents, found.new.pack_cents) == (1_000, 1_200)

    def test_credit_that_arrives_repays_debt_first(self) -> None:
        lot = Lot(1, JUNE + timedelta(days=20), 5, 0)
        found = worlds(opening(debt=30, movements=[Movement(MAY, lot, 20, 50)]), use(1, 0))
        assert (found.old.debt, found.new.debt) == (10, 0)

    def test_a_rule_buys_packs_up_to_its_cap_of_a_day(self) -> None:
        rule = TopUp(threshold=10, price_cents=500, credit=20, cap_cents=1_000, priority=1, expires_after=None)
        found = worlds(opening(credit=20, old_top_up=rule, new_top_up=None), *(use(1 + minute / 1440, 20) for minute in range(4)))
        assert (found.old.top_ups, found.old.top_up_cents, found.old.debt) == (2, 1_000, 20)
        assert (found.new.top_ups, found.refused["credits"].count) == (0, 2)  # the last is in debt in both worlds

    def test_a_plan_costs_its_price_for_each_period_that_begins(self) -> None:
        found = worlds(opening(old=Terms(price_cents=2_500), new=Terms(price_cents=3_000)))
        assert (found.old.plan_cents, found.new.plan_cents) == (2_500, 3_000)

    def test_a_use_whose_own_terms_give_another_charge_is_named(self) -> None:
        faulty = use(1, 10)._replace(old=Charge(5, 11, 11))
        found = worlds(opening(credit=50), use(0, 10), faulty)
        assert (found.wrong, found.faults, found.stored, found.replayed) == (1, [faulty.id], 20, 21)


# With the real ledger ------------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.django_db


def shop(*terms: Any, **more: Any) -> Shop:
    """A product with a whole catalog, its account used since 2 May."""
    made = Shop.new(*terms, **more)
    Product.objects.filter(pk=made.product.pk).update(burn_order=["purchased"])
    period = {"anchor_at": START, "current_period_start": MAY, "current_period_end": JUNE}
    Subscription.objects.filter(account=made.account).update(started_at=START, **period)
    return made


def used(made: Shop, day: int, tokens: int, *, model: str | None = None, account: Account | None = None) -> None:
    at = MAY + timedelta(days=day)
    event = usage.Event(
        account=account or made.account, key=uuid4().hex, model=model or made.model, quantities={"input_tokens": tokens}, at=at
    )
    with ledger.clock(at=at):
        [done] = usage.record(events=[event], now=at)
    assert not isinstance(done, usage.InvalidUsage)


def document(made: Shop, **changes: str) -> catalog_file.Document:
    said = catalog_file.current(slug=made.product.slug)
    assert said is not None
    for path, value in changes.items():
        said = catalog_file.with_value(said, path.split("__"), value)
    return said


def worked(made: Shop, said: catalog_file.Document, *, since: datetime = MAY, until: datetime = JUNE) -> DraftReplay:
    now = datetime(2026, 7, 1, tzinfo=UTC)
    asked = replays.ask(product=made.product, document=said, name="Draft", since=since, until=until, actor="ada", now=now)
    done = replays.work_next(now=now)
    assert done is not None
    assert done.pk == asked.pk
    assert done.error == ""
    return done


class TestReplays:
    def test_the_catalog_as_it_is_changes_nothing_to_the_nano_whatever_changed_in_the_month(self) -> None:
        made = shop(tier={"daily_cost_nanos": 3_000 * PER_TOKEN, "monthly_cost_nanos": None, "requests_per_hour": 100})
        other = make_account(made.product, credit=1)
        dear = make_model(input_price=7_000_000_001, output_price=1)
        for day in range(1, 9):
            used(made, day, 1_000 + day)
            used(made, day, 333, model=dear, account=other)
        card = RateCard.objects.get(product=made.product)
        RateCard.objects.create(
            product=made.product, slug="standard", version=2, valid_from=MAY + timedelta(days=9), mode="markup", markup_ppm=777_777
        )
        assert card.markup_ppm == 500_000
        for day in range(10, 20):
            used(made, day, 1_000 + day)
            used(made, day, 333, model=dear, account=other)
        done = worked(made, document(made))
        summary = done.summary
        assert done.changes == ""
        assert summary["old"] == summary["new"]
        assert summary["changed"] == summary["refused"] == summary["wrong_accounts"] == 0
        assert summary["ledger"] == summary["replayed"] == summary["old"]["price"] > 0
        assert summary["old"]["records"] == done.done == done.total == 36
        assert done.percent == 100

    def test_a_higher_markup_is_charged_account_by_account_as_the_rating_says(self) -> None:
        made = shop(credit=1)
        other = make_account(made.product, credit=1)
        used(made, 1, 1_001)
        used(made, 2, 10, account=other)
        done = worked(made, document(made, rate_cards__standard__markup_percent="100"))
        rows = {row.account_id: row for row in DraftReplayAccount.objects.filter(replay=done)}
        mine = rows[made.account.pk]
        assert (mine.old["price"], mine.new["price"]) == (1_001 * 1_500, 1_001 * 2_000)
        assert mine.change_nanos == 1_001 * 500
        assert mine.new["cost"] == mine.old["cost"] == 1_001 * PER_TOKEN
        assert (done.summary["losers"], done.summary["winners"]) == (2, 0)

    def test_who_would_have_been_throttled_is_told_with_the_time_and_only_for_the_period(self) -> None:
        made = shop(tier={"daily_cost_nanos": None, "monthly_cost_nanos": None, "requests_per_hour": None})
        tier = CostTier.objects.get(product=made.product).slug
        for day in (1, 2, 3, 40):
            used(made, day, 1_000)
        said = document(made) | {
            "cost_tiers": {tier: {"monthly_cost": "0.002", "daily_cost": "unlimited", "requests_per_hour": "unlimited"}}
        }
        done = worked(made, catalog_file.parse(tomli_w.dumps(said).encode()))
        row = DraftReplayAccount.objects.get(replay=done, account=made.account)
        assert row.refused == {
            "cost/period": {"count": 1, "value": 1_500_000, "first": "2026-05-04T00:00:00+00:00", "last": "2026-05-04T00:00:00+00:00"}
        }
        assert row.first_refused_at == MAY + timedelta(days=3)
        assert done.summary["layers"] == {"cost/period": 1}

    def test_upstream_prices_of_the_draft_change_the_cost(self) -> None:
        made = shop()
        sandbox = "e2b:box"
        PriceRow.objects.create(
            provider="e2b", model="box", component="seconds", price_nanos=NANOS, per_units=1000, valid=(START, None), source="guide",
            catalog=made.product.slug,
        )  # fmt: skip
        at = MAY + timedelta(days=1)
        with ledger.clock(at=at):
            usage.record(events=[usage.Event(account=made.account, key="s", model=sandbox, quantities={"seconds": 500}, at=at)], now=at)
        said = document(made)
        said["prices"] = [said["prices"][0] | {"price": "2.00"}]
        done = worked(made, said)
        assert (done.summary["old"]["cost"], done.summary["new"]["cost"]) == (NANOS // 2, NANOS)

    def test_what_was_rated_later_is_replayed_by_the_terms_that_it_got(self) -> None:
        made = shop(late_charging="charge", late_charging_max_hours=8_000)
        used(made, 1, 1_000, model="acme:nameless")
        PriceRow.objects.create(
            provider="acme", model="nameless", component="input_tokens", price_nanos=10**9, valid=(START, None), source="x"
        )
        rerating.run(now=JUNE)
        done = worked(made, document(made))
        assert done.summary["old"]["records"] == 1
        assert done.summary["wrong_accounts"] == 0
        assert done.summary["ledger"] == done.summary["new"]["price"] == 1_500_000

    def test_a_ledger_that_says_otherwise_is_told_with_its_records(self) -> None:
        made = shop()
        used(made, 1, 1_000)
        used(made, 2, 1_000)
        with connection.cursor() as cursor:
            cursor.execute(f"set local role {roles.OWNER}")
            cursor.execute("alter table usage_record disable trigger append_only")
            cursor.execute(
                "update usage_record set price_nanos = price_nanos + 1 where event_at = %s returning id", [MAY + timedelta(days=2)]
            )
            [(faulty,)] = cursor.fetchall()
            cursor.execute("alter table usage_record enable trigger append_only")
            cursor.execute("reset role")
        done = worked(made, document(made))
        assert done.summary["wrong_accounts"] == 1
        [wrong] = done.summary["wrong"]
        assert wrong["records"] == [str(faulty)]
        assert wrong["replayed"] == wrong["ledger"] == 3_000_000

    def test_one_that_was_killed_begins_anew_and_the_first_worker_writes_nothing_more(self) -> None:
        made = shop()
        used(made, 1, 1_000)
        now = datetime(2026, 7, 1, tzinfo=UTC)
        asked = replays.ask(product=made.product, document=document(made), name="x", since=MAY, until=JUNE, actor="ada", now=now)
        taken = replays._take(now)
        assert taken is not None
        replays.run(taken, goes_on=lambda done, total: True)  # and was killed before it said so
        assert replays.work_next(now=now + timedelta(minutes=1)) is None
        done = replays.work_next(now=now + replays.LEASE)
        assert done is not None
        assert (done.pk, done.state, done.attempts) == (asked.pk, "done", 2)
        assert done.accounts.count() == 1
        assert not replays._mine(taken).update(done=5)

    def test_one_whose_workers_never_come_back_is_given_up(self) -> None:
        made, now = shop(), datetime(2026, 7, 1, tzinfo=UTC)
        asked = replays.ask(product=made.product, document=document(made), name="x", since=MAY, until=JUNE, actor="ada", now=now)
        for attempt in range(replays.MAX_ATTEMPTS):
            assert replays._take(now + attempt * replays.LEASE) is not None
        assert replays.work_next(now=now + 9 * replays.LEASE) is None
        asked.refresh_from_db()
        assert (asked.state, asked.error) == ("failed", "Its workers never came back.")

    def test_one_that_is_cancelled_stops_after_its_portion_and_keeps_nothing_of_it(self) -> None:
        made, now = shop(), datetime(2026, 7, 1, tzinfo=UTC)
        used(made, 1, 1_000)
        asked = replays.ask(product=made.product, document=document(made), name="x", since=MAY, until=JUNE, actor="ada", now=now)
        taken = replays._take(now)
        assert taken is not None
        calls = []

        def goes_on(done: int, total: int) -> bool:
            calls.append((done, total))
            return not done  # somebody cancelled it meanwhile

        assert replays.run(taken, goes_on=goes_on) is None
        assert replays.cancel(replay=asked, actor="bob", now=now)
        assert not replays._mine(taken).exists()
        assert calls == [(0, 1), (1, 1)]
        assert not DraftReplayAccount.objects.filter(replay=asked).exists()
        assert replays.again(replay=asked)
        assert not replays.cancel(replay=worked_again(now), actor="bob", now=now)

    @pytest.mark.parametrize(
        ("since", "until"), [(JUNE, MAY), (MAY, MAY), (MAY, datetime(2026, 7, 2, tzinfo=UTC)), (MAY - timedelta(days=400), JUNE)]
    )
    def test_only_periods_of_the_past_of_at_most_a_year_are_replayed(self, since: datetime, until: datetime) -> None:
        made = shop()
        with pytest.raises(replays.InvalidDraft, match="period of the past"):
            replays.ask(
                product=made.product,
                document=document(made),
                name="x",
                since=since,
                until=until,
                actor="a",
                now=datetime(2026, 7, 1, tzinfo=UTC),
            )

    def test_a_draft_of_another_product_is_refused(self) -> None:
        made, other = shop(), shop()
        with pytest.raises(replays.InvalidDraft, match="The draft is of"):
            replays.ask(product=made.product, document=document(other), name="x", since=MAY, until=JUNE, actor="a", now=JUNE)

    def test_figures_are_kept_as_exact_integers(self) -> None:
        assert all(type(value) is int for value in asdict(Figures()).values())
        assert UUID(int=0) not in [use(1, 1).id]


def worked_again(now: datetime) -> DraftReplay:
    done = replays.work_next(now=now)
    assert done is not None
    assert done.state == "done"
    return done


class TestActivating:
    def test_a_draft_price_of_tomorrow_charges_tomorrows_usage_and_leaves_todays(self) -> None:
        made = shop(credit=10)
        used(made, 1, 1_000)
        done = worked(made, document(made, rate_cards__standard__markup_percent="100"))
        with connection.cursor() as cursor:
            cursor.execute("select clock_timestamp()")
            now: datetime = cursor.fetchone()[0]
        tomorrow = now + timedelta(days=1)
        lines = replays.activate(replay=done, effective=tomorrow, actor="ada", now=now)
        assert lines == ['~ rate_cards.standard.markup_percent = "50" → "100"']
        for at, price in ((now, 1_500_000), (tomorrow - timedelta(seconds=1), 1_500_000), (tomorrow, 2_000_000)):
            with ledger.clock(at=at):
                [record] = usage.record(
                    events=[usage.Event(account=made.account, key=str(at), model=made.model, quantities={"input_tokens": 1_000}, at=at)],
                    now=at,
                )
            assert isinstance(record, ledger.Usage)
            assert record.price_nanos == price
        done.refresh_from_db()
        assert done.applied is not None
        with pytest.raises(replays.InvalidDraft, match="activated before"):
            replays.activate(replay=done, effective=tomorrow, actor="ada", now=now)

    def test_nothing_is_activated_into_the_past_unfinished_or_without_a_change(self) -> None:
        made, now = shop(), datetime(2026, 7, 1, tzinfo=UTC)
        asked = replays.ask(product=made.product, document=document(made), name="x", since=MAY, until=JUNE, actor="ada", now=now)
        for effective, message in ((now, "to the end"), (now - timedelta(days=1), "to the end")):
            with pytest.raises(replays.InvalidDraft, match=message):
                replays.activate(replay=asked, effective=effective, actor="ada", now=now)
        done = replays.work_next(now=now)
        assert done is not None
        with pytest.raises(replays.InvalidDraft, match="not over"):
            replays.activate(replay=done, effective=now - timedelta(seconds=1), actor="ada", now=now)
        with pytest.raises(replays.InvalidDraft, match="changes nothing"):
            replays.activate(replay=done, effective=now, actor="ada", now=now)
