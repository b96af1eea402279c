"""What a call waits for: how often the hot endpoints ask PostgreSQL and Valkey, counted on the wire, and what they may remember."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import pytest
from django.db import connection
from django.db.backends.signals import connection_created
from psycopg import pq
from redis.connection import AbstractConnection

from accounts import api_keys
from accounts.models import Account
from billing import subscriptions
from metering import kill_switches
from metering.tests.test_api import App, body
from pricing.models import PlanVersion
from tests.factories import NANOS, START, give, make_account

pytestmark = pytest.mark.usefixtures("committed", "patient_edge_limit")


@dataclass
class Asked:
    """Round trips."""

    database: int = 0
    valkey: int = 0


@contextmanager
def counted() -> Iterator[Asked]:
    """Counts what PostgreSQL is asked, by libpq's own trace, also on connections that are opened meanwhile, and what is sent to Valkey."""
    asked = Asked()
    send: Callable[..., None] = AbstractConnection.send_packed_command

    def sent(connection: AbstractConnection, *command: Any, **options: Any) -> None:
        asked.valkey += 1
        send(connection, *command, **options)

    with tempfile.TemporaryFile() as heard, patch.object(AbstractConnection, "send_packed_command", sent):

        def listen(connection: Any, **_: object) -> None:
            connection.connection.pgconn.trace(heard.fileno())
            connection.connection.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)

        connection.ensure_connection()
        listen(connection)
        connection_created.connect(listen)
        try:
            yield asked
        finally:
            connection_created.disconnect(listen)
            if connection.connection is not None:
                connection.connection.pgconn.untrace()
        heard.seek(0)
        asked.database = heard.read().count(b"ReadyForQuery")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    """A client app that has just been served, on a machine that is never so slow that what was kept is too old."""
    for module, name in ((subscriptions, "MAX_AGE_SECONDS"), (kill_switches, "MAX_AGE_SECONDS"), (api_keys, "CACHE_SECONDS")):
        monkeypatch.setattr(module, name, 60)
    app = App()
    give(app.account, NANOS)
    held = body(app.authorize())
    assert capture(app, held["id"]) == 200
    others = [app.event(account=make_account(app.product).external_id) for _ in range(3)]
    assert app.post("records", {"events": others}).status_code == 200
    return app


def capture(app: App, id_: str) -> int:
    return app.post(f"authorizations/{id_}/capture", {"quantities": {"input_tokens": 10}}).status_code


class TestRoundTrips:
    def test_a_warm_authorize_asks_the_database_once_and_valkey_once(self, app: App) -> None:
        with counted() as asked:
            assert app.authorize().status_code == 200
        assert asked == Asked(database=1, valkey=1)

    def test_one_for_an_account_that_was_not_heard_of_asks_the_database_once_more(self, app: App) -> None:
        other = make_account(app.product)
        with counted() as asked:
            assert app.authorize(account=other.public_id, estimate={"input_tokens": 0, "max_output_tokens": 0}).status_code == 200
        assert asked == Asked(database=2, valkey=1)

    def test_a_warm_capture_asks_the_database_for_the_promise_and_for_the_charge(self, app: App) -> None:
        held = body(app.authorize())
        with counted() as asked:
            assert capture(app, held["id"]) == 200
        assert asked == Asked(database=2, valkey=1)

    def test_a_hundred_events_of_as_many_accounts_are_one_question_and_one_transaction(self, app: App) -> None:
        accounts = [make_account(app.product) for _ in range(100)]
        with counted() as asked:
            answer = app.post("records", {"events": [app.event(account=account.external_id) for account in accounts]})
        assert body(answer)["created"] == 100
        assert asked == Asked(database=2, valkey=1)


class TestWhatIsRemembered:
    def test_an_account_that_was_closed_is_refused_within_a_second(self, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
        Account.objects.filter(pk=app.account.pk).update(closed_at=datetime.now(UTC))
        assert app.authorize().status_code == 200
        assert self.second_later(app, monkeypatch) == 404

    def test_a_plan_that_ended_is_felt_within_a_second(self, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
        now = datetime.now(UTC)
        app.account.subscriptions.update(status="canceled", ended_at=now)
        assert app.authorize().status_code == 200
        assert self.second_later(app, monkeypatch) == 403

    def test_a_plan_that_changed_is_felt_within_a_second(self, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = app.product.plans.get()
        dearer = PlanVersion.objects.create(plan=plan, version=2, valid_from=START.replace(day=2), price_cents=0, rate_card="no-such-card")
        app.account.subscriptions.update(plan_version=dearer)
        assert app.authorize().status_code == 200
        assert self.second_later(app, monkeypatch) == 422

    def second_later(self, app: App, monkeypatch: pytest.MonkeyPatch) -> int:
        """What the app is told when a second has passed."""
        monkeypatch.undo()
        assert subscriptions.MAX_AGE_SECONDS <= 1
        monkeypatch.setattr(subscriptions, "MAX_AGE_SECONDS", 0)
        status: int = app.authorize().status_code
        return status

    def test_an_account_and_a_plan_that_were_not_there_are_found_at_once(self, app: App) -> None:
        assert app.authorize(account="newcomer").status_code == 404
        newcomer = make_account(app.product, external_id="newcomer")
        estimate = {"input_tokens": 0, "max_output_tokens": 0}
        assert app.authorize(account="newcomer", estimate=estimate).status_code == 200
        subscriptions.end(account=newcomer, now=datetime.now(UTC))  # what this process did, it knows
        assert app.authorize(account="newcomer", estimate=estimate).status_code == 403
        subscriptions.start(account=newcomer, plan="free", now=datetime.now(UTC))
        assert app.authorize(account="newcomer", estimate=estimate).status_code == 200

    def test_what_is_kept_of_one_product_is_not_found_in_another(self, app: App) -> None:
        stranger = App()
        assert stranger.authorize(account=app.account.external_id).status_code == 404
        assert stranger.authorize(account=app.account.public_id).status_code == 404

    def test_what_a_process_keeps_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subscriptions, "MAX_KEPT", 3)
        kept: subscriptions._Kept[int, int] = subscriptions._Kept()
        for number in range(10):
            kept.keep(number, number, 0.0)
        assert len(kept._answers) <= 3
