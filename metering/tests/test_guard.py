"""The runaway guard: a loop is caught within a minute and costs a bounded amount, ordinary bursts are left alone, and everything ends."""

from __future__ import annotations

import os
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from accounts.models import Mail, WebhookEvent
from billing import audit, ledger
from metering import guard, ladder, traces, usage
from metering.ladder import Step
from metering.models import GuardPeak, GuardState, GuardStep, Throttle
from metering.tests.limited import PER_TOKEN, Shop
from pricing.models import RateCard
from tests.factories import make_account, make_model

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
PRICE = PER_TOKEN * 3 // 2
#: So many tokens are 0.10 USD, a little less.
DIME = 100_000_000 // PRICE
LADDER: dict[str, Any] = {
    "floor_nanos": 10 * DIME * PRICE,
    "warn_at_ppm": 3_000_000, "degrade_at_ppm": 5_000_000, "slow_at_ppm": 8_000_000, "block_at_ppm": 12_000_000,
}  # fmt: skip


def shop_under(**policy: Any) -> Shop:
    shop = Shop.new()
    shop.guard(**(LADDER | policy))
    return shop


def spend(shop: Shop, *, dimes: int, at: datetime, api_key_id: int | None = None, **who: Any) -> None:
    """Records work of so many dimes, as an app that asks nobody."""
    with shop.at(at):
        event = usage.Event(str(uuid4()), shop.account, at, shop.model, {"input_tokens": dimes * DIME}, **who)
        usage.record(events=[event], now=at, api_key_id=api_key_id)


def watch(shop: Shop, at: datetime) -> int:
    with shop.at(at):
        return guard.watch(now=at)


def state(shop: Shop, kind: str = "account", ref: str = "") -> GuardState:
    return GuardState.objects.get(account=shop.account, kind=kind, ref=ref)


def refusal(shop: Shop, at: datetime, **ask: Any) -> Any:
    with shop.at(at):
        return shop.refusal(**ask)


@pytest.mark.django_db
class TestLoop:
    def test_an_agent_in_a_loop_is_blocked_within_a_minute_of_the_threshold_and_costs_no_more_than_that_minute_beyond_it(self) -> None:
        """Ten seconds a call, 0.60 USD a minute: a month's credit of 20 USD would be gone in about half an hour."""
        shop = shop_under(slow_at_ppm=None, degrade_at_ppm=None)
        threshold = 12 * 10  # dimes in ten minutes
        spent, blocked_at, now = 0, None, NOON
        while now < NOON + timedelta(hours=1):
            if refusal(shop, now, session="loop") is None:
                spend(shop, dimes=3, at=now, session="loop")
                spent += 3
            elif blocked_at is None:
                blocked_at = now
            now += timedelta(seconds=10)
            if now.second == 0:
                watch(shop, now)
        assert blocked_at is not None
        assert blocked_at - NOON <= timedelta(seconds=10) * (threshold / 3) + MINUTE
        assert spent <= 2 * (threshold + 6 * 3)  # the first block is over after half an hour, and the loop is caught once more
        assert state(shop, "session", "loop").blocks == 2

    def test_the_loop_s_session_is_blocked_and_the_rest_of_the_account_works_on(self) -> None:
        shop = shop_under()
        spend(shop, dimes=130, at=NOON, session="loop", api_key_id=7)
        spend(shop, dimes=2, at=NOON, session="fine", api_key_id=7)
        assert watch(shop, NOON + MINUTE) == 1
        layer = refusal(shop, NOON + MINUTE, session="loop")
        assert (layer.name, layer.step, layer.resets_at) == ("guard", "block", NOON + 31 * MINUTE)
        assert layer.reason == (
            "This session has spent $12.99 in 10 minutes; usual is $0.99 at most. At this speed the credit is gone in 12 hours."
        )
        assert refusal(shop, NOON + MINUTE, session="fine") is None
        assert refusal(shop, NOON + MINUTE) is None
        assert not Throttle.objects.filter(account=shop.account).exists()

    def test_sessions_without_end_of_one_key_are_the_key_s(self) -> None:
        shop = shop_under()
        for number in range(13):
            spend(shop, dimes=10, at=NOON, session=f"s{number}", api_key_id=7)
        spend(shop, dimes=10, at=NOON, session="other", api_key_id=8)
        assert watch(shop, NOON + MINUTE) == 1
        assert state(shop, "key", "7").step == Step.BLOCK
        with shop.at(NOON + MINUTE):
            ask = shop.ask(1)
            with pytest.raises(usage.Refused, match="This API key has spent"):
                usage.authorize(account=shop.account, ask=ask, key="a", now=NOON + MINUTE, api_key_id=7)
            assert usage.authorize(account=shop.account, ask=ask, key="b", now=NOON + MINUTE, api_key_id=8)

    def test_what_nobody_in_particular_spends_stops_the_account_until_an_end(self) -> None:
        shop = shop_under()
        for number in range(13):
            spend(shop, dimes=10, at=NOON, api_key_id=number)
        watch(shop, NOON + MINUTE)
        stop = Throttle.objects.get(account=shop.account)
        assert (stop.actor, stop.ends_at) == ("runaway guard", NOON + 31 * MINUTE)
        layer = refusal(shop, NOON + MINUTE)
        assert (layer.name, layer.resets_at) == ("throttle", NOON + 31 * MINUTE)
        assert refusal(shop, NOON + 31 * MINUTE) is None
        watch(shop, NOON + 31 * MINUTE)
        assert state(shop).step == Step.NONE
        told = WebhookEvent.objects.filter(account=shop.account, kind__startswith="account.").order_by("pk")
        assert [(event.kind, event.data["by"]) for event in told] == [("account.throttled", "guard"), ("account.unthrottled", "guard")]
        assert audit.run() == []

    def test_looking_again_or_late_changes_nothing_more(self) -> None:
        shop = shop_under()
        spend(shop, dimes=40, at=NOON)
        assert [watch(shop, NOON + 5 * MINUTE) for _ in range(3)] == [1, 0, 0]
        assert GuardStep.objects.filter(account=shop.account).count() == 1

    def test_a_stop_by_staff_is_neither_replaced_nor_lifted(self) -> None:
        shop = shop_under()
        with shop.at(NOON):
            ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
        spend(shop, dimes=130, at=NOON)
        watch(shop, NOON + MINUTE)
        watch(shop, NOON + 40 * MINUTE)
        assert [(stop.actor, stop.lifted_at) for stop in Throttle.objects.filter(account=shop.account)] == [("ada", None)]
        assert not WebhookEvent.objects.filter(account=shop.account, kind="account.unthrottled").exists()  # it is stopped still


@pytest.mark.django_db
class TestUsual:
    def days(self, shop: Shop, *dimes: int) -> None:
        for number, each in enumerate(dimes, 1):
            day = (NOON - number * DAY).date()
            GuardPeak.objects.create(account=shop.account, day=day, window_minutes=10, peak_nanos=each * DIME * PRICE)

    def test_an_account_that_is_used_to_more_is_measured_by_that(self) -> None:
        shop = shop_under()
        self.days(shop, 100, 90, 110, 1_000)
        spend(shop, dimes=299, at=NOON)
        assert watch(shop, NOON + MINUTE) == 0
        spend(shop, dimes=10, at=NOON + MINUTE)
        assert watch(shop, NOON + 2 * MINUTE) == 1
        assert state(shop).usual_nanos == 100 * DIME * PRICE

    def test_today_does_not_count_or_a_runaway_would_be_its_own_usual(self) -> None:
        shop = shop_under()
        self.days(shop, 10, 10)
        spend(shop, dimes=30, at=NOON)
        watch(shop, NOON + MINUTE)
        assert state(shop).step == Step.WARN

    def test_the_busiest_window_of_each_day_is_remembered(self) -> None:
        shop = shop_under()
        for minute, dimes in enumerate((2, 4, 0, 0, 1)):
            if dimes:
                spend(shop, dimes=dimes, at=NOON + 5 * minute * MINUTE)
            watch(shop, NOON + (5 * minute + 1) * MINUTE)
        assert [peak.peak_nanos for peak in GuardPeak.objects.filter(account=shop.account)] == [6 * DIME * PRICE]

    @pytest.mark.parametrize("dimes", [1, 10, 29])
    def test_a_burst_below_the_first_step_is_left_alone(self, dimes: int) -> None:
        shop = shop_under()
        spend(shop, dimes=dimes, at=NOON)
        assert watch(shop, NOON + MINUTE) == 0
        assert not GuardState.objects.filter(account=shop.account).exists()

    def test_late_reports_of_old_work_are_no_runaway(self) -> None:
        shop = shop_under()
        with shop.at(NOON):
            shop.record(shop.event(tokens=500 * DIME, at=NOON - timedelta(hours=5)))
        assert watch(shop, NOON + MINUTE) == 0


@pytest.mark.django_db
class TestSteps:
    def test_a_warning_is_in_the_answer_in_a_mail_and_in_a_webhook(self) -> None:
        shop = shop_under()
        spend(shop, dimes=30, at=NOON, session="s")
        watch(shop, NOON + MINUTE)
        with shop.at(NOON + MINUTE):
            [warning] = shop.authorize(session="s").warnings
            assert (warning.name, warning.step, warning.model) == ("guard", "warn", None)
            assert shop.authorize(session="t").warnings == ()
        event = WebhookEvent.objects.get(account=shop.account, kind="guard.changed")
        assert (event.data["step"], event.data["subject"], event.data["ref"]) == ("warn", "session", "s")
        assert Mail.objects.filter(account=shop.account, kind="guard").count() == 1

    def test_many_sessions_at_once_are_one_mail_an_hour_and_step(self) -> None:
        shop = shop_under()
        for number in range(5):
            spend(shop, dimes=30, at=NOON, session=f"s{number}")
        assert watch(shop, NOON + MINUTE) == 5
        assert Mail.objects.filter(account=shop.account, kind="guard").count() == 1

    def degraded(self, **policy: Any) -> tuple[Shop, str, str]:
        shop = shop_under(**policy)
        cheap, dear = (make_model(input_price=price * 1_000_000, output_price=0) for price in (PER_TOKEN // 10, PER_TOKEN * 10))
        spend(shop, dimes=50, at=NOON, session="s")
        watch(shop, NOON + MINUTE)
        return shop, cheap, dear

    def test_a_dear_model_is_refused_and_the_answer_names_a_cheaper_one(self) -> None:
        shop, cheap, dear = self.degraded()
        policy = shop.product.guards.get()
        policy.cheaper_models = ["acme:unknown", dear, cheap]
        policy.save()
        layer = refusal(shop, NOON + MINUTE, session="s")
        assert (layer.step, layer.model) == ("degrade", cheap)
        assert layer.reason.endswith(f"Use {cheap} instead: it costs less for the same.")
        with shop.at(NOON + MINUTE):
            asked = usage.Ask(cheap, {"input_tokens": 1}, session="s")
            assert usage.authorize(account=shop.account, ask=asked, key="k", now=NOON + MINUTE).warnings[0].step == "degrade"

    def test_where_nothing_is_cheaper_the_work_passes_with_a_warning(self) -> None:
        shop, _, dear = self.degraded()
        shop.product.guards.update(cheaper_models=[dear])
        with shop.at(NOON + MINUTE):
            [warning] = shop.authorize(session="s").warnings
        assert (warning.step, warning.model) == ("degrade", None)

    def test_a_policy_that_advises_lets_it_pass_and_names_the_model(self) -> None:
        shop, cheap, _ = self.degraded(dear_models="advise")
        shop.product.guards.update(cheaper_models=[cheap])
        with shop.at(NOON + MINUTE):
            [warning] = shop.authorize(session="s").warnings
        assert (warning.step, warning.mode, warning.model) == ("degrade", "soft", cheap)

    def test_without_a_list_the_cheapest_of_the_rate_card_is_named(self) -> None:
        shop, cheap, dear = self.degraded()
        card = RateCard.objects.create(product=shop.product, slug="own", valid_from=NOON - DAY, mode="markup", markup_ppm=0)
        for model in (cheap, dear):
            provider, _, name = model.partition(":")
            card.models.create(provider=provider, model=name, markup_ppm=0)
        shop.account.rate_card = "own"
        assert refusal(shop, NOON + MINUTE, session="s").model == cheap

    def test_a_slowed_subject_may_begin_so_many_calls_a_minute_and_hears_when(self) -> None:
        shop = shop_under(slow_per_minute=4, degrade_at_ppm=None)
        spend(shop, dimes=80, at=NOON, session="s")
        watch(shop, NOON + MINUTE)
        begun, at = 0, NOON + MINUTE
        while at < NOON + 4 * MINUTE:
            layer = refusal(shop, at, session="s")
            if layer is None:
                begun += 1
            else:
                assert (layer.name, layer.step) == ("guard", "slow")
                assert at < layer.resets_at <= at + timedelta(seconds=15)
            at += timedelta(seconds=5)
        assert begun == 3 * 4 + 1  # and the half minute's calls that the bucket holds
        with shop.at(at):
            assert shop.decide(tokens=1, session="s").refusal is None  # looking takes nothing

    def test_steps_end_by_themselves_when_it_is_calm(self) -> None:
        shop = shop_under()
        spend(shop, dimes=30, at=NOON, session="s")
        for minute in range(1, 22):
            watch(shop, NOON + minute * MINUTE)
        assert state(shop, "session", "s").step == Step.NONE
        changes = GuardStep.objects.filter(account=shop.account).order_by("id").values_list("before", "step", "actor")
        assert [tuple(change) for change in changes] == [(0, 1, "runaway guard"), (1, 0, "runaway guard")]

    def test_a_step_that_no_look_confirms_holds_nobody_up(self) -> None:
        shop = shop_under(slow_per_minute=1, degrade_at_ppm=None)
        spend(shop, dimes=80, at=NOON, session="s")
        watch(shop, NOON + MINUTE)
        assert refusal(shop, NOON + MINUTE, session="s") is None
        assert refusal(shop, NOON + MINUTE, session="s") is not None
        later = NOON + MINUTE + guard.STALE
        assert [refusal(shop, later, session="s") for _ in range(3)] == [None] * 3

    @pytest.mark.parametrize(("mode", "warned", "told"), [("soft", ["guard"], 1), ("shadow", [], 0)])
    def test_a_policy_that_only_watches_refuses_nothing(self, mode: str, warned: list[str], told: int) -> None:
        shop = shop_under(mode=mode)
        spend(shop, dimes=130, at=NOON)
        spend(shop, dimes=130, at=NOON, session="s")
        watch(shop, NOON + MINUTE)
        with shop.at(NOON + MINUTE):
            assert [layer.name for layer in shop.authorize(session="s").warnings] == warned
        assert not Throttle.objects.filter(account=shop.account).exists()
        assert GuardStep.objects.filter(account=shop.account, mode=mode).count() == 2
        assert WebhookEvent.objects.filter(account=shop.account, kind="guard.changed").count() == 2 * told
        assert Mail.objects.filter(account=shop.account, kind="guard").count() == told

    def test_an_account_that_is_no_longer_guarded_is_let_go(self) -> None:
        shop = shop_under()
        spend(shop, dimes=130, at=NOON)
        watch(shop, NOON + MINUTE)
        shop.product.guard = ""
        shop.product.save()
        assert watch(shop, NOON + 2 * MINUTE) == 1
        assert refusal(shop, NOON + 2 * MINUTE) is None

    def test_credit_that_would_be_gone_soon_warns(self) -> None:
        shop = shop_under(warn_empty_minutes=24 * 60)
        spend(shop, dimes=9, at=NOON)
        assert watch(shop, NOON + MINUTE) == 0
        spend(shop, dimes=100, at=NOON + 20 * MINUTE, session="s")
        shop.product.guards.update(warn_at_ppm=50_000_000, degrade_at_ppm=None, slow_at_ppm=None, block_at_ppm=None)
        watch(shop, NOON + 21 * MINUTE)
        assert state(shop, "session", "s").step == Step.WARN


@pytest.mark.django_db
class TestRelease:
    def test_staff_end_a_step_at_once_and_it_does_not_come_back_for_the_same_spending(self) -> None:
        shop = shop_under()
        spend(shop, dimes=130, at=NOON)
        watch(shop, NOON + MINUTE)
        with shop.at(NOON + 2 * MINUTE):
            done = guard.release(state=state(shop), actor="ann", reason="A batch that they told us of.", now=NOON + 2 * MINUTE)
        assert (done.actor, done.before, done.step) == ("ann", Step.BLOCK, Step.NONE)
        assert refusal(shop, NOON + 2 * MINUTE) is None
        for minute in range(3, 60):
            spend(shop, dimes=13, at=NOON + minute * MINUTE)
            assert watch(shop, NOON + minute * MINUTE) == 0

    def test_who_was_only_watched_hears_nothing_of_a_release(self) -> None:
        shop = shop_under(mode="shadow")
        spend(shop, dimes=130, at=NOON)
        watch(shop, NOON + MINUTE)
        with shop.at(NOON + 2 * MINUTE):
            assert guard.release(state=state(shop), actor="ann", reason="A trial.", now=NOON + 2 * MINUTE).mode == "shadow"
        assert not WebhookEvent.objects.filter(account=shop.account, kind__in=["guard.changed", "account.unthrottled"]).exists()

    def test_lifting_the_stop_on_the_account_s_page_is_a_release_too(self) -> None:
        shop = shop_under()
        spend(shop, dimes=130, at=NOON)
        watch(shop, NOON + MINUTE)
        with shop.at(NOON + 2 * MINUTE):
            ledger.resume(account_id=shop.account.pk, actor="ann")
        watch(shop, NOON + 3 * MINUTE)
        assert refusal(shop, NOON + 3 * MINUTE) is None
        assert state(shop).excused_until == NOON + 3 * MINUTE + ladder.EXCUSED_FOR

    def test_what_has_ended_cannot_be_released(self) -> None:
        shop = shop_under()
        spend(shop, dimes=30, at=NOON)
        watch(shop, NOON + MINUTE)
        kept = state(shop)
        GuardState.objects.update(step=0)
        with pytest.raises(guard.NothingToRelease):
            guard.release(state=kept, actor="ann", reason="r", now=NOON)


def arrivals(path: Path) -> list[tuple[datetime, traces.Row]]:
    """The calls of a trace of Azure's format with the instants at which they came."""
    with path.open(encoding="utf-8-sig") as file:
        at = {number: line.partition(",")[0] for number, line in enumerate(file, 1)}
    rows = (row for row in traces.read(path) if isinstance(row, traces.Row))
    return [(datetime.fromisoformat(at[row.line][:26]).replace(tzinfo=UTC), row) for row in rows]


@pytest.mark.skipif(not os.environ.get("TOLLGATE_TRACES"), reason="set TOLLGATE_TRACES to a folder of traces")
@pytest.mark.parametrize(
    "path", sorted(Path(os.environ.get("TOLLGATE_TRACES") or "/nonexistent").glob("azure*.csv")), ids=lambda path: path.stem
)
def test_false_alarms_on_real_traces_are_few(path: Path) -> None:
    """Real arrivals and sizes, of about an hour, dealt to twenty customers in sittings of twenty-five calls; nobody of them is a loop.

    The hour stands for six days: windows are a minute long, looks five seconds apart, and a "day" has ten minutes. The floor is what an
    average customer spends in a window, so that it hides nothing. What is printed is the share of looks with a step: false alarms, in the
    first three days, when only the floor is known, and after them.
    """
    calls = arrivals(path)
    nanos = [(row.input_tokens * 3_000 + row.output_tokens * 15_000) for _, row in calls]
    start, end = calls[0][0], calls[-1][0]
    average = sum(nanos) * 60 // int((end - start).total_seconds()) // 20
    rules = ladder.Policy(
        floor_nanos=average, begins={Step.WARN: 3_000_000, Step.DEGRADE: 5_000_000, Step.SLOW: 8_000_000, Step.BLOCK: 12_000_000},
        window=MINUTE, calm=MINUTE, block=3 * MINUTE, release_below_ppm=500_000,
    )  # fmt: skip
    mine: dict[int, list[tuple[datetime, int]]] = defaultdict(list)
    for number, ((at, _), spent) in enumerate(zip(calls, nanos, strict=True)):
        mine[number // 25 % 20].append((at, spent))
    looks: dict[bool, list[Step]] = {False: [], True: []}  # by whether the usual is learnt
    for spends in mine.values():
        standing, peaks = ladder.State(), dict[int, int]()
        now = start
        while now < end:
            now += timedelta(seconds=5)
            spent = sum(nanos_ for at, nanos_ in spends if now - MINUTE < at <= now)
            today = int((now - start) / (10 * MINUTE))
            usual = ladder.usual(daily_peaks=[peak for day, peak in peaks.items() if day < today and peak])
            peaks[today] = max(peaks.get(today, 0), spent)
            standing = ladder.climb(policy=rules, state=standing, usual_nanos=usual or 0, spent_nanos=spent, available_nanos=None, now=now)
            looks[usual is not None].append(standing.step)
    for learnt, seen in looks.items():
        shares = ", ".join(f"{step.name.lower()} {seen.count(step) / len(seen):.2%}" for step in Step if step)
        print(f"{path.name}, {len(calls)} calls, {'learnt' if learnt else 'learning'}, {len(seen)} looks: {shares}")
    assert Step.BLOCK not in looks[True]
    assert sum(step > Step.NONE for step in looks[True]) <= len(looks[True]) // 50


@pytest.mark.django_db
def test_an_account_of_an_unguarded_product_is_not_looked_at() -> None:
    shop = Shop.new()
    spend(shop, dimes=10_000, at=NOON)
    make_account(shop.product)
    assert watch(shop, NOON + MINUTE) == 0
    assert not GuardPeak.objects.exists()
