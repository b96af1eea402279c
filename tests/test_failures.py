"""What goes wrong between client apps, this service and its database: lost answers, locks, deadlocks, late and broken reports.

The rows of docs/failures.md that no single app's tests show. Whatever can is asked over HTTP, as a client app would.
"""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.models import ProtectedError
from django.test.utils import CaptureQueriesContext
from psycopg.types.range import Range
from structlog.testing import capture_logs

from accounts import registration
from accounts.models import Account, Membership, User
from billing import audit, ledger
from billing.models import LedgerEntry, Wallet
from metering import ingest, rerating, usage
from metering.models import OpenAuthorization, UsageRecord
from metering.tests.limited import Shop
from metering.tests.test_api import App, balance, body
from pricing.models import PriceRow
from tests.cutter import Cutter, cutter, database_behind_a_cutter
from tests.factories import NANOS, START, give, make_account, make_model, make_product

#: As long as a client app waits for one answer.
PATIENCE_SECONDS = 30


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Client:
    """A client app of one product over a real wire, which may be a cutter's."""

    app: App
    port: int

    def post(self, path: str, command: object, *, key: str | None = None) -> Answer:
        """:raises OSError, http.client.HTTPException: no answer came."""
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        headers = {"Authorization": f"Bearer {self.app.token}", "Content-Type": "application/json"} | (
            {"Idempotency-Key": key} if key else {}
        )
        try:
            wire.request("POST", f"/api/v1/usage/{path}", json.dumps(command), headers)
            answer = wire.getresponse()
            return Answer(answer.status, dict(answer.headers), json.loads(answer.read()))
        finally:
            wire.close()

    def authorize(self, *, key: str = "", tokens: int = 100_000) -> Answer:
        command = {
            "account": self.app.account.external_id, "model": self.app.model, "estimate": {"input_tokens": tokens, "max_output_tokens": 0},
        }  # fmt: skip
        return self.post("authorize", command, key=key or str(uuid4()))

    def until_done(self, path: str, command: object, *, key: str | None = None) -> tuple[Answer, int]:
        """Asks until the answer is 2xx, as docs/api.md asks of client apps; how often that was."""
        for tries in range(1, 60):
            answer = self.post(path, command, key=key)
            if answer.status < 300:
                return answer, tries
            assert (answer.status, answer.body["code"]) == (503, "dependency_unavailable")
            time.sleep(0.2 * int(answer.headers["Retry-After"]))
        raise AssertionError("the database did not come back")


@pytest.fixture
def client(server: str) -> Client:
    app = App()
    give(app.account, NANOS)
    return Client(app, urlsplit(server).port or 0)


@pytest.fixture
def wire(client: Client) -> Iterator[Cutter]:
    """Between the client app and the service."""
    with cutter(port=client.port) as wire:
        client.port = wire.port
        yield wire


class TestLostAnswers:
    @pytest.mark.failure(2)
    def test_the_retry_of_a_lost_answer_is_that_answer_and_does_nothing_again(self, client: Client, wire: Cutter) -> None:
        """Authorize, capture and release, each with its first answer cut off behind the service."""
        held = client.authorize().body
        calls: list[tuple[Callable[[], Answer], str]] = [
            (lambda: client.authorize(key="k"), "/authorize"),
            (lambda: client.post(f"authorizations/{held['id']}/capture", {"quantities": {"input_tokens": 5}}), "/capture"),
            (lambda: client.post(f"authorizations/{other['id']}/release", {}), "/release"),
        ]
        other = client.authorize(tokens=1_000).body
        for call, path in calls:
            wire.lose_answer_to(path.encode())
            with pytest.raises((OSError, http.client.HTTPException)):
                call()
            head, _, lost = wire.lost.partition(b"\r\n\r\n")
            assert b" 200 " in head.partition(b"\r\n")[0]
            assert b"Idempotency-Replayed" not in head
            again = call()
            assert (again.status, again.body, again.headers["Idempotency-Replayed"]) == (200, json.loads(lost), "true"), path
        assert balance(client.app.account) == (NANOS - 5 * 4_500, 450_000_000, 0)
        assert audit.run() == []

    @pytest.mark.failure(24)
    def test_an_event_whose_answer_was_lost_is_a_duplicate(self, client: Client, wire: Cutter) -> None:
        event = client.app.event()
        wire.lose_answer_to(b"/records")
        with pytest.raises((OSError, http.client.HTTPException)):
            client.post("records", event)
        again = client.post("records", event)
        assert (again.status, again.body["status"]) == (200, "duplicate")
        assert UsageRecord.objects.filter(account=client.app.account).count() == 1


class TestDatabase:
    @pytest.mark.failure(37)
    def test_what_was_used_is_charged_once_when_the_database_was_away_before_the_capture(self, client: Client) -> None:
        with database_behind_a_cutter() as database:
            capture = f"authorizations/{client.authorize().body['id']}/capture", {"quantities": {"input_tokens": 100_000}}
            event = client.app.event(quantities={"input_tokens": 1_000})
            database.down()
            for path, command in (capture, ("records", event), capture):
                away = client.post(path, command)
                assert (away.status, away.body["code"], away.headers["Retry-After"]) == (503, "dependency_unavailable", "1")
            database.up()
            done, _ = client.until_done(*capture)
            recorded, _ = client.until_done("records", event)
        assert (done.body["charged"], "Idempotency-Replayed" in done.headers) == ("0.450000000", False)
        assert recorded.body["status"] == "created"
        assert balance(client.app.account) == (NANOS - 450_000_000 - 4_500_000, 0, 0)
        assert audit.run() == []

    @pytest.mark.failure(2, 37)
    @pytest.mark.parametrize(("path", "state"), [("capture", b"captured"), ("release", b"released")])
    def test_what_the_database_had_done_when_its_answer_was_lost_is_answered_to_the_retry(
        self, client: Client, path: str, state: bytes
    ) -> None:
        with database_behind_a_cutter() as database:
            held = client.authorize().body
            path, command = f"authorizations/{held['id']}/{path}", {"quantities": {"input_tokens": 1_000}} if path == "capture" else {}
            database.lose_answer(len(state).to_bytes(4, "big") + state)  # a row with the state in it
            assert client.post(path, command).status == 503
            assert database.lost != b""
            done, _ = client.until_done(path, command)
        assert done.headers["Idempotency-Replayed"] == "true"
        assert balance(client.app.account) == (NANOS - (4_500_000 if "quantities" in command else 0), 0, 0)
        assert audit.run() == []

    @pytest.mark.failure(21)
    def test_a_deadlock_is_503_nothing_of_the_batch_is_done_and_its_retry_does_all_of_it(self, client: Client) -> None:
        """Somebody locks two accounts in the wrong order, which none of our verbs does, around a batch for both."""
        first, second = client.app.account, make_account(client.app.product, credit=1)
        batch = {"events": [client.app.event(), client.app.event(account=second.external_id)]}
        with ThreadPoolExecutor(1) as pool:
            with transaction.atomic():
                give(second, 1)
                answer = pool.submit(client.post, "records", batch)
                wait_for_a_lock(answer)
                give(first, 1)  # the batch has this one's lock, and waits for the other
            refused = answer.result()
        assert (refused.status, refused.body["code"], refused.headers["Retry-After"]) == (503, "dependency_unavailable", "1")
        assert not UsageRecord.objects.filter(account__in=[first, second]).exists()
        again = client.post("records", batch)
        assert [result["status"] for result in again.body["results"]] == ["created", "created"]
        assert audit.run() == []


def wait_for_a_lock(work: Future[Any]) -> None:
    """Until somebody else's statement in this database waits for a lock."""
    for _ in range(500):
        with connection.cursor() as cursor:
            cursor.execute("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
            if cursor.fetchone() != (0,):
                return
        assert not work.done(), work.result()
        time.sleep(0.01)
    raise AssertionError("nobody waits")


class TestInFlight:
    @pytest.mark.failure(4)
    def test_the_second_of_a_key_waits_for_the_first_and_is_answered_as_it(self, client: Client) -> None:
        assert client.authorize(tokens=0).status == 200  # the model's name is known, so that nobody waits for that
        first = usage.Ask(client.app.model, {"input_tokens": 100_000, "output_tokens": 0})
        with ThreadPoolExecutor(1) as pool:
            with transaction.atomic():
                held = usage.authorize(account=client.app.account, ask=first, key="k", now=datetime.now(UTC))
                answer = pool.submit(client.authorize, key="k")
                wait_for_a_lock(answer)
            second = answer.result()
        assert (second.status, second.headers["Idempotency-Replayed"]) == (200, "true")
        assert second.body["id"] == usage.public_id(client.app.account, held.usage.id)
        assert balance(client.app.account) == (NANOS, 450_000_000, 0)

    @pytest.mark.failure(4)
    def test_who_waits_too_long_is_told_to_come_back_and_nothing_was_done(self, client: Client) -> None:
        """While another transaction of the account does not end; it waits for a fifth of a second instead of ``DB_LOCK_TIMEOUT_MS``."""

        def ask() -> tuple[int, str, str]:
            try:
                with connection.cursor() as cursor:
                    cursor.execute("set lock_timeout = 200")
                answer = client.app.authorize(key="k")
                with connection.cursor() as cursor:
                    cursor.execute("reset lock_timeout")
                return answer.status_code, body(answer)["code"], answer.headers["Retry-After"]
            finally:
                connections.close_all()

        with ThreadPoolExecutor(1) as pool, transaction.atomic():
            give(client.app.account, NANOS)
            assert pool.submit(ask).result() == (503, "dependency_unavailable", "1")
        assert not OpenAuthorization.objects.filter(account=client.app.account).exists()
        assert client.authorize(key="k").status == 200

    @pytest.mark.failure(1)
    def test_of_fifty_at_once_with_credit_for_ten_ten_work_and_forty_begin_nothing(self, client: Client) -> None:
        client.app.account = make_account(client.app.product)
        give(client.app.account, 4_500_000_000)
        worked: list[int] = []
        barrier = Barrier(50)

        def work(number: int) -> tuple[int, str]:
            barrier.wait()
            leave = client.authorize()
            if leave.status != 200:
                return leave.status, leave.body["code"]
            worked.append(number)  # the call to the model
            done = client.post(f"authorizations/{leave.body['id']}/capture", {"quantities": {"input_tokens": 100_000}})
            return done.status, done.body["status"]

        with ThreadPoolExecutor(50) as pool:
            answers = Counter(pool.map(work, range(50)))
        assert answers == {(200, "captured"): 10, (402, "insufficient_credits"): 40}
        assert len(worked) == 10
        assert balance(client.app.account) == (0, 0, 0)
        assert UsageRecord.objects.filter(account=client.app.account).count() == 10
        assert audit.run() == []


class TestBatches:
    @pytest.mark.failure(26)
    def test_of_a_thousand_events_three_bad_ones_are_named_and_the_rest_is_charged_once(self, client: Client) -> None:
        account = client.app.account
        events = [client.app.event() for _ in range(1_000)]
        events[0] |= {"quantities": {"input_tokens": -1}}
        events[499] |= {"time": "2026-01-01T00:00:00"}
        events[999] |= {"account": "nobody"}
        for good in ("created", "duplicate"):
            answer = client.post("records", {"events": events})
            assert answer.status == 200
            told = [(result["index"], result["status"]) for result in answer.body["results"]]
            assert told == [(number, "invalid" if number in (0, 499, 999) else good) for number in range(1_000)]
            assert balance(account) == (NANOS - 997 * 4_500, 0, 0)
        assert UsageRecord.objects.filter(account=account).count() == 997
        assert audit.run() == []


@pytest.fixture
def app(db: None) -> App:
    app = App()
    give(app.account, NANOS)
    return app


@pytest.mark.django_db
class TestCaptures:
    @pytest.mark.failure(8, 35)
    @pytest.mark.parametrize(
        ("overage", "status", "told", "after"),
        [
            ("charge", 200, {"charged": "1.350000000", "owed": "0.350000000", "waived": "0.000000000"}, (0, 0, 350_000_000)),
            ("cap", 200, {"charged": "0.450000000", "owed": "0.000000000", "waived": "0.900000000"}, (550_000_000, 0, 0)),
            ("reject", 422, {"code": "capture_exceeds_hold"}, (NANOS, 450_000_000, 0)),
        ],
    )
    def test_a_capture_of_three_times_the_hold_is_by_the_products_policy(
        self, overage: str, status: int, told: dict[str, str], after: tuple[int, int, int]
    ) -> None:
        app = App(overage=overage)
        give(app.account, NANOS)
        path = f"authorizations/{body(app.authorize())['id']}/capture"
        done = app.post(path, {"quantities": {"input_tokens": 300_000}})
        assert done.status_code == status
        assert body(done) | told == body(done)
        assert balance(app.account) == after
        if status == 200:
            record = UsageRecord.objects.get(account=app.account)
            assert (record.hold, record.price_nanos, record.cost_nanos) == (450_000_000, int(told["charged"].replace(".", "")), 900_000_000)
        else:
            assert app.post(path, {"quantities": {"input_tokens": 100_000}}).status_code == 200
        assert audit.run() == []

    @pytest.mark.failure(9, 10)
    def test_six_days_late_a_capture_is_charged_as_promised_and_after_seven_its_usage_is_reported_as_a_record(self, app: App) -> None:
        late, later = (body(app.authorize()) for _ in range(2))
        promised = OpenAuthorization.objects.filter(account=app.account)[0]
        provider, _, name = app.model.partition(":")
        now = datetime.now(UTC)
        row = {"provider": provider, "model": name, "component": "input_tokens"}
        PriceRow.objects.filter(**row).update(valid=Range(START, now))
        PriceRow.objects.create(**row, price_nanos=6_000_000_000, valid=Range(now, None), source="test")
        used = {"quantities": {"input_tokens": 100_000}}
        with ledger.clock(at=now + timedelta(days=6)):
            ledger.sweep(limit=100)
            assert balance(app.account) == (NANOS, 0, 0)
            done = app.post(f"authorizations/{late['id']}/capture", used)
            assert (done.status_code, body(done)["charged"]) == (200, "0.450000000")
            record = UsageRecord.objects.get(account=app.account)
            assert usage.public_id(app.account, record.id) == late["id"]
            assert record.rate_card_id == promised.rate_card_id
            assert set(record.price_ids or ()) <= set(promised.price_ids or ())
        with ledger.clock(at=now + timedelta(days=7, minutes=20)):
            refused = app.post(f"authorizations/{later['id']}/capture", used)
            assert (refused.status_code, body(refused)["code"]) == (409, "hold_expired")
            recorded = app.post("records", app.event(**used))
            assert body(recorded)["status"] == "created"
            assert balance(app.account) == (0, 0, 350_000_000)
            assert audit.run() == []

    @pytest.mark.failure(36)
    def test_a_call_that_failed_is_released_or_charged_what_the_provider_billed_of_it(self, app: App) -> None:
        failed, broken = (body(app.authorize())["id"] for _ in range(2))
        assert body(app.post(f"authorizations/{failed}/release", {}))["status"] == "released"
        assert balance(app.account) == (NANOS, 450_000_000, 0)
        done = body(app.post(f"authorizations/{broken}/capture", {"quantities": {"input_tokens": 2_000}}))
        assert (done["charged"], done["released"]) == ("0.009000000", "0.441000000")
        assert balance(app.account) == (NANOS - 9_000_000, 0, 0)
        costs = UsageRecord.objects.filter(account=app.account).values_list("outcome", "cost_nanos")
        assert dict(costs) == {"released": 0, "captured": 6_000_000}


@pytest.mark.django_db
class TestReports:
    @pytest.mark.failure(24)
    @pytest.mark.parametrize("days", [365, 367, 3_650])
    def test_an_event_is_a_duplicate_years_later_too(self, app: App, days: int) -> None:
        event = app.event()
        assert body(app.post("records", event))["status"] == "created"
        [again] = ingest.read([event], product_id=app.product.pk, account_id=None)
        assert isinstance(again, usage.Event)
        later = again.at + timedelta(days=days)
        with ledger.clock(at=later):
            answer, other = usage.record(events=[again, replace(again, quantities={"input_tokens": 2})], now=later)
        assert isinstance(answer, ledger.Usage)
        assert isinstance(other, ledger.Usage)
        assert (answer.outcome, other.outcome) == ("replayed", "key_reused")
        assert UsageRecord.objects.filter(account=app.account).count() == 1

    def test_which_of_many_old_events_were_recorded_is_asked_once(self) -> None:
        product, model, now = make_product(), make_model(), datetime.now(UTC)
        accounts = [make_account(product, credit=1) for _ in range(3)]
        events = [usage.Event(f"e{number}", accounts[number % 3], now, model, {"input_tokens": 1}) for number in range(12)]
        first = usage.record(events=events[:9], now=now)
        later = now + timedelta(days=400)

        def again(events: list[usage.Event]) -> list[str]:
            with ledger.clock(at=later), CaptureQueriesContext(connection) as asked:
                answers = usage.record(events=events, now=later)
            assert sum("key_hash" in query["sql"] for query in asked) == 1
            return [str(answer.id) if isinstance(answer, ledger.Usage) else "refused" for answer in answers]

        assert again(events) == [str(answer.id) for answer in first if isinstance(answer, ledger.Usage)] + ["refused"] * 3
        others = [replace(event, account=accounts[(number + 1) % 3]) for number, event in enumerate(events)]
        assert again(others) == ["refused"] * 12  # a key is its account's

    @pytest.mark.failure(30)
    def test_75_000_dollars_in_one_call_are_refused_before_it_and_recorded_to_the_nano_after_it(self) -> None:
        app = App(mode="pass_through")
        give(app.account, NANOS)
        app.model = make_model(output_price=75 * NANOS)
        refused = app.authorize(estimate={"input_tokens": 0, "max_output_tokens": 10**9})
        assert (refused.status_code, body(refused)["code"]) == (402, "insufficient_credits")
        limited = Shop.new(tier={"daily_cost_nanos": 100 * NANOS}, credit=1_000_000)
        assert limited.refused_by(tokens=75_000 * NANOS // 1_000) == "cost"
        done = app.post("records", app.event(quantities={"output_tokens": 10**9}))
        assert body(done)["charged"] == "75000.000000000"
        assert balance(app.account) == (0, 0, 74_999 * NANOS)
        assert audit.run() == []

    @pytest.mark.failure(31, 32)
    @pytest.mark.parametrize("missing", ["model", "component"])
    def test_what_has_no_price_is_refused_before_the_call_and_after_it_stored_told_and_charged_when_it_has_one(
        self, app: App, missing: str
    ) -> None:
        if missing == "model":
            app.model = f"acme:unheard-of-{uuid4()}"
            quantities = {"input_tokens": 1_000}
        else:
            quantities = {"input_tokens": 1_000, "cache_write_tokens": 1_000}
        refused = app.authorize(estimate=quantities)
        assert (refused.status_code, body(refused)["code"]) == (422, "unknown_model")
        counted = usage.UNPRICED._value.get()
        with capture_logs() as logs:
            recorded = app.post("records", app.event(quantities=quantities))
        assert (body(recorded)["status"], body(recorded)["charged"]) == ("unpriced", None)
        assert usage.UNPRICED._value.get() == counted + 1
        assert [(log["log_level"], log["model"], log["account"]) for log in logs if log["event"] == "No pricing found for model"] == [
            ("error", app.model, app.account.public_id)
        ]
        assert balance(app.account) == (NANOS, 0, 0)
        provider, _, name = app.model.partition(":")
        component = "input_tokens" if missing == "model" else "cache_write_tokens"
        PriceRow.objects.create(
            provider=provider, model=name, component=component, price_nanos=NANOS, valid=Range(START, None), source="test"
        )
        assert rerating.run(now=datetime.now(UTC)).rated == 1
        assert balance(app.account)[0] == NANOS - (1_500_000 if missing == "model" else 4_500_000 + 1_500_000)
        assert audit.run() == []


@pytest.mark.django_db
class TestLedgerByHand:
    @pytest.mark.failure(20)
    @pytest.mark.parametrize(
        "amount", [float("nan"), float("inf"), -float("inf"), -0.0, 1.5, 2**63, -(2**63), 0, "NaN", "1e9", None], ids=repr
    )
    def test_a_shell_grants_whole_nanos_above_nothing_and_nothing_else(self, app: App, amount: Any) -> None:
        entries = LedgerEntry.objects.filter(account=app.account).count()
        with pytest.raises((ValueError, TypeError, ledger.LedgerError, DatabaseError)), transaction.atomic():
            give(app.account, amount, cash_nanos=0)
        assert LedgerEntry.objects.filter(account=app.account).count() == entries
        assert balance(app.account) == (NANOS, 0, 0)

    @pytest.mark.failure(11)
    @pytest.mark.parametrize("charge", [ledger.Charge(-1, 5, 5, 1), ledger.Charge(5, -1, 5, 1), ledger.Charge(5, 5, -1, 1)])
    def test_a_negative_price_mints_nothing(self, app: App, charge: ledger.Charge) -> None:
        held = body(app.authorize())
        _, id_ = usage.split_id(held["id"])
        call = ledger.Call(1, None, None, 1, [1], [1])
        event = ledger.Event(
            app.account.pk, ledger.key_hash("k"), ledger.key_hash("f"), call, app.product.unit_id, datetime.now(UTC), charge
        )  # fmt: skip
        acts: list[Callable[[], object]] = [
            lambda: ledger.record(event),
            lambda: ledger.record_many([event]),
            lambda: ledger.capture(
                account_id=app.account.pk, authorization_id=id_, quantities=[1], price_ids=[1], charge=charge, overage="charge"
            ),
        ]
        for act in acts:
            with pytest.raises(DatabaseError), transaction.atomic():
                act()
        assert balance(app.account) == (NANOS, 450_000_000, 0)
        assert audit.run() == []


@pytest.mark.failure(23)
def test_a_person_who_is_forgotten_leaves_the_books_as_they_were(app: App) -> None:
    user = User.objects.create_user("ada@example.com")
    Membership.objects.create(account=app.account, user=user, role="owner")
    app.post("records", app.event(quantities={"input_tokens": 1_000}))
    before = list(LedgerEntry.objects.filter(account=app.account).order_by("seq").values_list())
    registration.forget_user(user=user, now=datetime.now(UTC))
    assert not User.objects.filter(email="ada@example.com").exists()
    assert list(LedgerEntry.objects.filter(account=app.account).order_by("seq").values_list()) == before
    for gone in (user, app.account, app.product):
        with pytest.raises((ProtectedError, DatabaseError)), transaction.atomic():
            gone.delete()
    for table, key in (("accounts_account", app.account.pk), ("accounts_user", user.pk)):
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"delete from {table} where id = {key}; set constraints all immediate")
    assert Wallet.objects.get(account=app.account).balance == NANOS - 4_500_000
    assert Account.objects.get(pk=app.account.pk).name == "Forgotten"
    assert audit.run() == []
