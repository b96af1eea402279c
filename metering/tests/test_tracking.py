"""Usage tracking off and on again: work goes on, nothing is lost, and all of it is charged once, at its own time and price."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError, connection, connections
from psycopg.types.range import Range

from accounts.models import WebhookEvent
from billing import audit, ledger
from billing.models import Wallet
from config import jobs
from metering import kill_switches, tracking, usage
from metering.models import KillSwitch, OpenAuthorization, SpooledUsage, UsageRecord
from metering.tests.limited import PER_TOKEN, Shop
from metering.tests.switched import thrown
from metering.tests.test_api import App, body
from pricing.models import PriceRow, RateCard
from tests.factories import NANOS, give, make_account, make_model

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def shop(**fields: Any) -> Shop:
    """A token costs and is charged 1,000 nanos."""
    return Shop.new(mode="pass_through", **fields)


def authorize(shop: Shop, now: datetime = NOON, *, tokens: int = 1, key: str = "", **ask: Any) -> tracking.Spooled:
    done = tracking.authorize(account=shop.account, ask=shop.ask(tokens, **ask), key=key or str(uuid4()), now=now)
    assert isinstance(done, tracking.Spooled)
    return done


def capture(shop: Shop, id_: Any, now: datetime = NOON, *, tokens: int = 1) -> Any:
    return tracking.capture(account=shop.account, authorization_id=id_, quantities={"input_tokens": tokens}, now=now)


def wallet(shop: Shop) -> tuple[int, int, int]:
    """Balance, held and debt, in tokens."""
    found = Wallet.objects.get(account=shop.account)
    return found.balance // PER_TOKEN, found.held // PER_TOKEN, found.debt // PER_TOKEN


def poor(tokens: int = 100, **fields: Any) -> Shop:
    made = shop(credit=0, **fields)
    give(made.account, tokens * PER_TOKEN)
    return made


@pytest.mark.django_db
class TestWhileItIsOff:
    def test_work_is_let_go_without_a_hold_and_charged_once_when_it_is_on_again(self) -> None:
        mine = poor()
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            done = [authorize(mine, tokens=400) for _ in range(3)]  # far beyond what is left
            for each, tokens in zip(done, (10, 20, 30), strict=True):
                capture(mine, each.row.ref, tokens=tokens)
            assert not OpenAuthorization.objects.exists()
            assert not UsageRecord.objects.exists()
            assert wallet(mine) == (100, 0, 0)
            assert tracking.backfill(now=NOON + MINUTE) == 0
        with mine.at(NOON + HOUR):
            assert [tracking.backfill(now=NOON + HOUR) for _ in range(2)] == [3, 0]
        assert wallet(mine) == (40, 0, 0)
        records = UsageRecord.objects.order_by("first_seq")
        assert [(record.event_at, record.quantities, record.price_nanos) for record in records] == [
            (NOON, [tokens], tokens * PER_TOKEN) for tokens in (10, 20, 30)
        ]
        assert audit.run() == []

    @pytest.mark.parametrize("scope", ["product", "account", "everything"])
    def test_it_covers_its_scope_and_nobody_else(self, scope: str) -> None:
        mine, stranger = shop(), shop()
        neighbour = Shop(make_account(mine.product, credit=1), mine.model)
        scopes: dict[str, dict[str, Any]] = {"product": {"product": mine.product}, "account": {"account": mine.account}}
        thrown(kind="tracking", now=NOON, **scopes.get(scope, {}))
        for each, covered in ((mine, True), (neighbour, scope != "account"), (stranger, scope == "everything")):
            with each.at(NOON):
                done = tracking.authorize(account=each.account, ask=each.ask(1), key="k", now=NOON)
                [answer] = tracking.record(events=[each.event(at=NOON)], now=NOON)
            assert [isinstance(said, tracking.Spooled) for said in (done, answer)] == [covered, covered]

    def test_no_counted_limit_throttle_or_balance_is_asked_and_what_cached_reads_say_still_counts(self) -> None:
        mine = Shop.new(
            ("messages", "day", 0), ("request_tokens", "request", 50), credit=0, tier={"monthly_cost_nanos": 0}, flags={"reports": False}
        )
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            ledger.throttle(account_id=mine.account.pk, actor="ada", reason="abuse")
            assert authorize(mine).outcome == "done"
            for refused, by in (({"tokens": 51}, "request_size"), ({"feature": "reports"}, "entitlement")):
                with pytest.raises(usage.Refused) as error:
                    authorize(mine, **refused)
                assert error.value.layer.name == by
            thrown(now=NOON, product=mine.product)
            with pytest.raises(usage.Refused, match="Switched off"):
                authorize(mine)
        assert SpooledUsage.objects.count() == 1

    def test_the_same_key_is_the_same_leave_and_another_command_under_it_is_refused(self) -> None:
        mine = shop()
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            first = authorize(mine, key="k")
            again = authorize(mine, key="k")
            assert (again.row.ref, again.replayed) == (first.row.ref, True)
            with pytest.raises(ledger.KeyReused):
                authorize(mine, key="k", tokens=2)
        with mine.at(NOON + HOUR):  # just after the switch too
            assert authorize(mine, NOON + HOUR, key="k").row.ref == first.row.ref

    def test_a_key_that_the_ledger_has_answered_before_is_answered_by_it_again(self) -> None:
        mine = shop()
        with mine.at(NOON):
            before = mine.authorize(key="k")
            thrown(kind="tracking", now=NOON, product=mine.product)
            again = tracking.authorize(account=mine.account, ask=mine.ask(1), key="k", now=NOON)
        assert isinstance(again, usage.Authorization)
        assert (again.usage.id, again.usage.replayed) == (before.usage.id, True)

    def test_a_capture_or_release_is_said_once_and_not_otherwise(self) -> None:
        mine = shop()
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            one, two = authorize(mine).row.ref, authorize(mine).row.ref
            assert [capture(mine, one, tokens=5).replayed for _ in range(2)] == [False, True]
            with pytest.raises(ledger.AlreadyResolved, match="captured"):
                capture(mine, one, tokens=6)
            with pytest.raises(ledger.AlreadyResolved, match="captured"):
                tracking.release(account=mine.account, authorization_id=one, now=NOON)
            answers = [tracking.release(account=mine.account, authorization_id=two, now=NOON) for _ in range(2)]
            assert [answer.replayed for answer in answers] == [False, True]
            with pytest.raises(ledger.AlreadyResolved, match="released"):
                capture(mine, two)
            with pytest.raises(ledger.NotFound):
                capture(mine, uuid4())
            with pytest.raises(ledger.NotFound):
                capture(shop(), one)
        with mine.at(NOON + HOUR):
            assert tracking.backfill(now=NOON + HOUR) == 1
            assert capture(mine, one, NOON + HOUR, tokens=5).record.quantities == [5]

    def test_what_is_captured_after_the_switch_is_charged_at_once_and_what_is_too_late_never(self) -> None:
        mine = poor()
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            one, two = authorize(mine).row, authorize(mine).row
            extended = tracking.extend(account=mine.account, authorization_id=two.ref, lifetime=HOUR, now=NOON)
            assert isinstance(extended, tracking.Spooled)
            assert extended.row.expires_at == NOON + HOUR
        assert one.expires_at is not None
        late = one.expires_at + timedelta(days=7)
        with mine.at(late - MINUTE):
            assert capture(mine, two.ref, late - MINUTE, tokens=7).record.price_nanos == 7 * PER_TOKEN
        with mine.at(late), pytest.raises(ledger.AlreadyResolved) as error:
            capture(mine, one.ref, late)
        assert error.value.state == "timed_out"
        assert wallet(mine) == (93, 0, 0)

    def test_an_event_counts_once_however_often_and_whenever_it_is_sent(self) -> None:
        mine = poor()
        with mine.at(NOON):
            early, event = mine.event(tokens=1), mine.event(tokens=5)
            mine.record(early)
            thrown(kind="tracking", now=NOON, product=mine.product)
            said = tracking.record(events=[early, event, event], now=NOON)
            assert [answer.outcome for answer in said if isinstance(answer, tracking.Spooled)] == ["done", "done", "replayed"]
            other = usage.Event(event.key, mine.account, NOON, mine.model, {"input_tokens": 6})
            [conflict] = tracking.record(events=[other], now=NOON)
            assert isinstance(conflict, tracking.Spooled)
            assert conflict.outcome == "key_reused"
        with mine.at(NOON + HOUR):
            [again] = tracking.record(events=[event], now=NOON + HOUR)  # before it was charged from the spool
            assert isinstance(again, ledger.Usage)
            assert (again.outcome, again.price_nanos) == ("done", 5 * PER_TOKEN)
            tracking.backfill(now=NOON + HOUR)
        assert wallet(mine) == (94, 0, 0)
        assert not SpooledUsage.objects.exclude(state="done").exists()

    def test_each_use_is_charged_at_the_price_and_card_of_its_time(self) -> None:
        mine = poor(10_000)
        [row] = PriceRow.objects.filter(model=mine.model.partition(":")[2], component="input_tokens")
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            early = authorize(mine)
            PriceRow.objects.filter(pk=row.pk).update(valid=Range(row.valid.lower, NOON + MINUTE))
            dear = {"provider": row.provider, "model": row.model, "component": row.component, "source": "test"}
            PriceRow.objects.create(**dear, price_nanos=row.price_nanos * 2, valid=Range(NOON + MINUTE, None))
            RateCard.objects.create(
                product=mine.product, slug="standard", version=2, valid_from=NOON + 2 * MINUTE, mode="markup", markup_ppm=500_000
            )
            later, latest = authorize(mine, NOON + MINUTE), authorize(mine, NOON + 2 * MINUTE)
            for each in (latest, early, later):  # in whatever order they end
                capture(mine, each.row.ref, NOON + 3 * MINUTE, tokens=100)
        with mine.at(NOON + HOUR):
            assert tracking.backfill(now=NOON + HOUR) == 3
        charged = UsageRecord.objects.order_by("first_seq").values_list("event_at", "price_nanos")
        assert list(charged) == [
            (NOON, 100 * PER_TOKEN), (NOON + MINUTE, 200 * PER_TOKEN), (NOON + 2 * MINUTE, 300 * PER_TOKEN)
        ]  # fmt: skip


@pytest.mark.django_db
class TestHoldsOfBefore:
    @pytest.mark.parametrize("overage", ["charge", "cap", "reject"])
    def test_their_ends_are_written_down_and_follow_when_it_is_on_again(self, overage: str) -> None:
        mine = poor(overage=overage)
        with mine.at(NOON):
            one, two = mine.authorize(tokens=50), mine.authorize(tokens=20)
            thrown(kind="tracking", now=NOON, product=mine.product)
            assert [capture(mine, one.usage.id, tokens=60).replayed for _ in range(2)] == [False, True]
            with pytest.raises(ledger.AlreadyResolved):
                capture(mine, one.usage.id, tokens=61)
            tracking.release(account=mine.account, authorization_id=two.usage.id, now=NOON)
            assert wallet(mine) == (100, 70, 0)
        with mine.at(NOON + HOUR):  # the holds have run out meanwhile
            ledger.sweep(limit=100)
            assert tracking.backfill(now=NOON + HOUR) == 2
            assert capture(mine, one.usage.id, NOON + HOUR, tokens=60).record.pk == one.usage.id
        assert wallet(mine) == (40 if overage == "charge" else 50, 0, 0)
        assert UsageRecord.objects.get(pk=one.usage.id).event_at == NOON
        assert audit.run() == []

    def test_one_that_has_ended_for_good_meanwhile_is_charged_all_the_same(self) -> None:
        mine = poor()
        with mine.at(NOON):
            held = mine.authorize(tokens=50)
        late = NOON + timedelta(days=7)
        with mine.at(late):
            thrown(kind="tracking", now=late, product=mine.product)
            capture(mine, held.usage.id, late, tokens=30)
        with mine.at(late + HOUR):
            ledger.sweep(limit=100)
            ledger.sweep(limit=100)
            assert UsageRecord.objects.get().outcome == "timed_out"
            assert tracking.backfill(now=late + HOUR) == 1
        assert wallet(mine) == (70, 0, 0)
        assert UsageRecord.objects.get(outcome="recorded").event_at == NOON

    def test_a_hold_that_another_process_made_under_the_same_key_costs_nothing_more(self) -> None:
        mine = poor()
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            let_go = authorize(mine, key="k", tokens=10)
            mine.authorize(key="k", tokens=10)  # it did not know of the switch yet
            capture(mine, let_go.row.ref, tokens=10)
        with mine.at(NOON + HOUR):
            tracking.backfill(now=NOON + HOUR)
            ledger.sweep(limit=100)
        assert wallet(mine) == (90, 0, 0)

    def test_work_that_ended_meanwhile_takes_no_place_when_it_is_on_again(self) -> None:
        mine = Shop.new(("tasks", "open", 1), mode="pass_through")
        with mine.at(NOON):
            before = mine.authorize(tokens=10)
            switch = thrown(kind="tracking", now=NOON, product=mine.product)
            capture(mine, before.usage.id, tokens=10)
            kill_switches.end(switch=switch, actor="ada", now=NOON)
            after = tracking.authorize(account=mine.account, ask=mine.ask(1), key="k", now=NOON)
            assert isinstance(after, usage.Authorization)
            with pytest.raises(usage.Refused, match="1 of 1 tasks are running"):  # this one is under way
                tracking.authorize(account=mine.account, ask=mine.ask(1), key="l", now=NOON)

    def test_a_capture_after_the_switch_waits_for_a_part_of_what_is_spooled_and_not_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger, "CHUNK", 2)
        mine = poor()
        with mine.at(NOON):
            switch = thrown(kind="tracking", now=NOON, product=mine.product)
            done = [authorize(mine, tokens=1) for _ in range(6)]
            for one in done[:5]:
                capture(mine, one.row.ref, tokens=1)
            kill_switches.end(switch=switch, actor="ada", now=NOON)
            assert capture(mine, done[5].row.ref, tokens=1).record is None
            assert SpooledUsage.objects.filter(state="done").count() == 2
            assert tracking.backfill(now=NOON) == 4
        assert wallet(mine) == (94, 0, 0)


@pytest.mark.django_db
class TestGarbage:
    def test_what_can_never_be_charged_is_refused_and_not_written_down(self) -> None:
        mine = shop()
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            for quantities in ({"bananas": 1}, {"input_tokens": -1}, {"input_tokens": 10**19}):
                with pytest.raises(usage.InvalidUsage):
                    tracking.authorize(account=mine.account, ask=usage.Ask(mine.model, quantities), key="k", now=NOON)
            with pytest.raises(usage.InvalidUsage):
                tracking.authorize(account=mine.account, ask=usage.Ask("no-model", {}), key="k", now=NOON)
            events = [mine.event(at=NOON + timedelta(days=1)), mine.event(at=NOON - timedelta(days=400)), mine.event(tokens=-5)]
            assert all(isinstance(answer, usage.InvalidUsage) for answer in tracking.record(events=events, now=NOON))
        assert not SpooledUsage.objects.exists()

    def test_what_nobody_has_priced_is_recorded_unpriced_and_what_overflows_waits_with_the_reason(self) -> None:
        mine = poor()
        thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            unknown, dear = Shop(mine.account, "acme:unheard-of"), Shop(mine.account, make_model(input_price=10**17))
            said = tracking.record(events=[unknown.event(at=NOON), dear.event(tokens=10**9, at=NOON), mine.event(tokens=3)], now=NOON)
            assert [answer.outcome for answer in said if isinstance(answer, tracking.Spooled)] == ["done"] * 3
        with mine.at(NOON + HOUR):
            assert tracking.backfill(now=NOON + HOUR) == 2
            assert tracking.backfill(now=NOON + HOUR) == 0
        assert sorted(UsageRecord.objects.values_list("outcome", flat=True)) == ["recorded", "unpriced"]
        [waiting] = SpooledUsage.objects.filter(state="waiting")
        assert "exceeds" in waiting.error
        assert wallet(mine) == (97, 0, 0)


@pytest.mark.django_db
class TestJob:
    def test_the_job_charges_what_was_spooled_before_it_says_that_the_switch_is_over(self) -> None:
        mine = poor()
        switch = thrown(kind="tracking", now=NOON, product=mine.product)
        with mine.at(NOON):
            tracking.record(events=[mine.event(tokens=5)], now=NOON)
        after = NOON + HOUR + kill_switches.SETTLING
        with mine.at(after):
            assert kill_switches.finish(now=after) == 0
            subjects: Any = type("Subjects", (), {"given_up": frozenset(), "failed": None})()
            assert jobs._finish_switches(after, subjects) == 2
            assert jobs._finish_switches(after, subjects) == 0
        assert wallet(mine) == (95, 0, 0)
        assert KillSwitch.objects.get(pk=switch.pk).finished_at == after
        assert WebhookEvent.objects.filter(key=f"{switch.pk}:off").count() == 1


@pytest.mark.usefixtures("committed")
class TestCrashes:
    @pytest.fixture
    def spooled(self) -> Iterator[list[Shop]]:
        """Three accounts with 150 events each, of one token, two, three …, and their switch just over."""
        now = datetime.now(UTC) - HOUR
        mine = shop(credit=1)
        shops = [mine, *(Shop(make_account(mine.product, credit=1), mine.model) for _ in range(2))]
        thrown(kind="tracking", now=now, product=mine.product, minutes=59)
        kill_switches._kept = None
        for each in shops:
            tracking.record(events=[each.event(tokens=number, at=now + timedelta(seconds=number)) for number in range(1, 151)], now=now)
        kill_switches._kept = None
        yield shops
        kill_switches._kept = None

    def charged(self, each: Shop) -> tuple[int, int]:
        records = UsageRecord.objects.filter(account=each.account).order_by("first_seq")
        assert [record.quantities[0] for record in records] == sorted(record.quantities[0] for record in records)
        return len(records), (NANOS - Wallet.objects.get(account=each.account).balance) // PER_TOKEN

    @pytest.mark.parametrize("after", [1, 120, 151, 290])
    def test_a_worker_that_dies_in_the_middle_loses_nothing_and_charges_nothing_twice(self, spooled: list[Shop], after: int) -> None:
        """Its connection is cut while it waits for the row that comes ``after`` so many."""
        row = SpooledUsage.objects.filter(account__product=spooled[0].product).order_by("account_id", "at", "id")[after]
        died: list[Exception] = []
        pid: list[int] = []
        ready = threading.Event()

        def work() -> None:
            with connection.cursor() as cursor:
                cursor.execute("select pg_backend_pid()")
                pid.append(cursor.fetchone()[0])
            ready.set()
            try:
                tracking.backfill(now=datetime.now(UTC))
            except OperationalError as error:
                died.append(error)
            finally:
                connections.close_all()

        blocker = connection.copy()
        try:
            blocker.set_autocommit(False)
            with blocker.cursor() as cursor:
                cursor.execute("select 1 from metering_spooledusage where id = %s for update", [row.pk])
                worker = threading.Thread(target=work)
                worker.start()
                ready.wait()
                cursor.execute("select pg_sleep(0.2)")
                while True:
                    cursor.execute("select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", [pid[0]])
                    if cursor.fetchone() == (True,):
                        break
                cursor.execute("select pg_terminate_backend(%s)", [pid[0]])
                worker.join()
            blocker.rollback()
        finally:
            blocker.close()
        assert len(died) == 1
        left = SpooledUsage.objects.filter(account__product=spooled[0].product, state="waiting").count()
        assert 0 < left <= 450
        assert tracking.backfill(now=datetime.now(UTC)) == left
        assert [self.charged(each) for each in spooled] == [(150, 150 * 151 // 2)] * 3

    def test_two_workers_at_once_charge_each_use_once_and_in_order(self, spooled: list[Shop]) -> None:
        counts: list[int] = []

        def work() -> None:
            counts.append(tracking.backfill(now=datetime.now(UTC)))
            connections.close_all()

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sum(counts) == 450
        assert [self.charged(each) for each in spooled] == [(150, 150 * 151 // 2)] * 3


@pytest.mark.django_db
class TestApi:
    def test_every_answer_says_that_it_was_spooled_until_it_is_charged(self) -> None:
        app = App()
        give(app.account, NANOS)
        before = body(app.authorize())
        switch = thrown(kind="tracking", now=datetime.now(UTC), product=app.product)
        held = app.authorize(key="k")
        said = body(held)
        assert (held.status_code, said["status"], said["hold"], said["limits"], said["spooled"]) == (
            200,
            "authorized",
            "0.000000000",
            [],
            True,
        )
        assert app.authorize(key="k").headers["Idempotency-Replayed"] == "true"
        assert app.authorize(key="k", estimate={"input_tokens": 1, "max_output_tokens": 0}).status_code == 409
        extended = body(app.post(f"authorizations/{said['id']}/extend", {"seconds": 600}))
        assert extended["spooled"] is True
        used = {"quantities": {"input_tokens": 100_000}}
        for id_ in (said["id"], before["id"]):
            captured = app.post(f"authorizations/{id_}/capture", used)
            assert (captured.status_code, body(captured)["status"], body(captured)["spooled"]) == (200, "captured", True)
            assert "charged" not in body(captured)
            assert app.post(f"authorizations/{id_}/capture", used).headers["Idempotency-Replayed"] == "true"
            assert app.post(f"authorizations/{id_}/release", {}).status_code == 409
        provider = body(app.authorize())["id"]
        report = {"provider_usage": {"input_tokens": 1, "output_tokens": 0}}
        assert app.post(f"authorizations/{provider}/capture", report).status_code == 422  # the model's provider has no such report
        event = app.event()
        recorded = app.post("records", event)
        assert (body(recorded)["status"], body(recorded)["id"], body(recorded)["spooled"]) == ("created", None, True)
        batch = body(app.post("records", {"events": [event, app.event(), {**event, "quantities": {"input_tokens": 2}}, {}]}))
        assert [result["status"] for result in batch["results"]] == ["duplicate", "created", "conflict", "invalid"]
        kill_switches.end(switch=switch, actor="ada", now=datetime.now(UTC))
        tracking.backfill(now=datetime.now(UTC))
        again = body(app.post(f"authorizations/{said['id']}/capture", used))
        assert (again["charged"], again["spooled"]) == ("0.450000000", True)
        assert again["record"].startswith("rec_")
        usual = body(app.authorize())
        assert "spooled" not in usual
        assert Wallet.objects.get(account=app.account).balance < NANOS - 2 * 450_000_000 + 1

    @pytest.mark.parametrize("garbage", ["auth_x", "rec_" + "0" * 52, "auth_" + "0" * 52, "auth_" + "z" * 52])
    def test_ids_of_nothing_are_404(self, garbage: str) -> None:
        app = App()
        thrown(kind="tracking", now=datetime.now(UTC), product=app.product)
        for act, said in (("capture", {"quantities": {"input_tokens": 1}}), ("release", {}), ("extend", {"seconds": 1})):
            assert app.post(f"authorizations/{garbage}/{act}", said).status_code == 404
