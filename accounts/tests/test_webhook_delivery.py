"""Webhooks arrive at least once, signed, each with its id; what fails is tried again, what is poisonous stops nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler

import pytest
from cryptography.fernet import Fernet
from django.db import DEFAULT_DB_ALIAS, connection, connections
from pytest_django import Settings
from standardwebhooks import Webhook, WebhookVerificationError

from accounts import sealing, tasks, webhook_delivery, webhook_endpoints, webhooks
from accounts.models import Account, WebhookDelivery, WebhookEndpoint, WebhookEvent
from accounts.tests.conftest import NOW, make_account
from accounts.tests.receiver import Receiver, receiving, status
from pricing.models import Product
from tests.factories import make_product

#: So far ahead that no other test's delivery, and no bell, is in the way.
LATER = datetime(2126, 1, 1, tzinfo=UTC)
SEND_ONE = """
import django
django.setup()
from datetime import datetime
from django.conf import settings
settings.OUTBOUND_TO_LOCALHOST = True
from accounts import webhook_delivery
webhook_delivery.send_next(now=datetime.fromisoformat("{now}"))
"""
State = WebhookDelivery.State


@pytest.fixture(autouse=True)
def local(settings: Settings) -> None:
    settings.OUTBOUND_TO_LOCALHOST = True


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def created(product: Product, receiver: Receiver) -> webhook_endpoints.Created:
    return register(product, receiver.url)


def register(product: Product, url: str, *kinds: str, now: datetime = NOW) -> webhook_endpoints.Created:
    return webhook_endpoints.create(product=product, url=url, kinds=kinds or ("balance.low",), created_by="a test", now=now)


def happen(account: Account, *, key: str = "1", kind: str = "balance.low", now: datetime = NOW) -> WebhookEvent:
    webhooks.queue(account=account, kind=kind, key=key, data={"balance": "2.500000000"}, now=now)
    return WebhookEvent.objects.get(account=account, kind=kind, key=key)


def send(*, now: datetime = NOW) -> WebhookDelivery | None:
    while webhook_delivery.address(now=now):
        pass
    return webhook_delivery.send_next(now=now)


def sent(*, now: datetime = NOW) -> WebhookDelivery:
    delivery = send(now=now)
    assert delivery is not None
    delivery.refresh_from_db()
    return delivery


class TestAddressing:
    def test_an_event_goes_to_the_endpoints_of_its_product_that_subscribe_to_its_kind(self, account: Account, receiver: Receiver) -> None:
        wanted = register(account.product, receiver.url, "balance.low").endpoint
        register(account.product, receiver.url + "/other", "limit.warning")
        register(make_product(), receiver.url)
        late = register(account.product, receiver.url + "/late", now=NOW + timedelta(seconds=1)).endpoint
        off = register(account.product, receiver.url + "/off").endpoint
        webhook_endpoints.disable(endpoint=off, reason="A test.", now=NOW)
        gone = register(account.product, receiver.url + "/gone").endpoint
        webhook_endpoints.delete(endpoint=gone, now=NOW)
        event = happen(account)
        webhook_delivery.address(now=NOW)
        assert list(event.deliveries.values_list("endpoint_id", flat=True)) == [wanted.pk]
        assert late.pk != wanted.pk

    def test_events_are_addressed_once(self, created: webhook_endpoints.Created, account: Account) -> None:
        event = happen(account)
        while webhook_delivery.address(now=NOW):
            pass
        assert webhook_delivery.address(now=NOW) == 0
        assert event.deliveries.count() == 1

    def test_with_nobody_to_tell_an_event_waits_for_nothing(self, account: Account) -> None:
        event = happen(account)
        assert send() is None
        event.refresh_from_db()
        assert event.addressed_at == NOW


class TestSending:
    def test_an_event_arrives_signed_as_the_standard_says(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        now = datetime.now(UTC)
        event = happen(account, now=now)
        delivery = sent(now=now)
        assert (delivery.state, delivery.attempts, delivery.last_status, delivery.done_at) == (State.DELIVERED, 1, 204, now)
        [received] = receiver.received
        Webhook(created.secret).verify(received.body, received.headers)
        assert received.headers["webhook-id"] == event.public_id
        assert received.headers["content-type"] == "application/json"
        assert json.loads(received.body) == {
            "type": "balance.low",
            "timestamp": now.isoformat().replace("+00:00", "Z"),
            "sequence": event.pk,
            "product": account.product.slug,
            "account": account.public_id,
            "external_id": account.external_id,
            "data": {"balance": "2.500000000"},
        }

    def test_a_forged_body_another_secret_and_an_old_time_do_not_verify(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        now = datetime.now(UTC)
        happen(account, now=now)
        sent(now=now)
        [received] = receiver.received
        other = webhook_endpoints._new_secret()
        for secret, body, shift in ((created.secret, b"{}", 0), (other, received.body, 0), (created.secret, received.body, 301)):
            at = str(int(received.headers["webhook-timestamp"]) - shift)
            with pytest.raises(WebhookVerificationError):
                Webhook(secret).verify(body, received.headers | {"webhook-timestamp": at})

    def test_both_secrets_sign_for_a_day_after_the_change_and_then_the_new_one_alone(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        new = webhook_endpoints.rotate(endpoint=created.endpoint, now=NOW)
        assert new != created.secret
        last = NOW + webhook_endpoints.OVERLAP - timedelta(microseconds=1)
        for number, now in enumerate((NOW, last, NOW + webhook_endpoints.OVERLAP)):
            happen(account, key=str(number), now=now)
            sent(now=now)
        signatures = [each.headers["webhook-signature"].split(" ") for each in receiver.received]
        assert [len(each) for each in signatures] == [2, 2, 1]
        assert [each[0] for each in signatures] == [
            Webhook(new).sign(each.headers["webhook-id"], now, each.body.decode())
            for each, now in zip(receiver.received, (NOW, last, NOW + webhook_endpoints.OVERLAP), strict=True)
        ]
        assert signatures[0][1] == Webhook(created.secret).sign(
            receiver.received[0].headers["webhook-id"], NOW, receiver.received[0].body.decode()
        )

    @pytest.mark.parametrize("code", [301, 400, 404, 429, 500, 503])
    def test_what_is_not_taken_is_tried_again_with_the_same_id(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver, code: int
    ) -> None:
        happen(account)
        receiver.answers(code)
        failed = sent()
        assert (failed.state, failed.last_status) == (State.PENDING, code)
        assert failed.reason.startswith(f"It answered {code}")
        assert timedelta(seconds=15) <= failed.next_attempt_at - NOW <= timedelta(seconds=18)
        assert send(now=NOW + timedelta(seconds=14)) is None
        receiver.answers(200)
        assert sent(now=NOW + timedelta(seconds=18)).state == State.DELIVERED
        first, second = receiver.received
        assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
        assert first.headers["webhook-signature"] != second.headers["webhook-signature"]

    def test_it_is_tried_for_about_three_days_and_is_dead_then(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        happen(account)
        receiver.answers(500)
        now = NOW
        delivery = sent(now=now)
        while delivery.state == State.PENDING:
            now = delivery.next_attempt_at
            delivery = sent(now=now)
        assert (delivery.state, delivery.attempts) == (State.DEAD, webhook_delivery.MAX_ATTEMPTS)
        assert timedelta(days=2, hours=18) < now - NOW < timedelta(days=4)
        assert send(now=now + timedelta(days=9)) is None
        webhooks.send_again(delivery_ids=[delivery.pk], now=now + timedelta(days=1))
        receiver.answers(200)
        assert sent(now=now + timedelta(days=1)).state == State.DELIVERED

    @pytest.mark.parametrize("asked", ["3600", format_datetime(NOW + timedelta(hours=1), usegmt=True)])
    def test_an_endpoint_that_asks_for_time_gets_it_for_all_its_events(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver, asked: str
    ) -> None:
        happen(account, key="1")
        happen(account, key="2")
        receiver.answers(429, Retry_After=asked)
        sent()
        assert send(now=NOW + timedelta(minutes=59)) is None
        receiver.answers(200)
        assert sent(now=NOW + timedelta(hours=1)).state == State.DELIVERED

    @pytest.mark.parametrize("asked", ["", "-5", "soon", "1e9", "٣", "99999999999999999999", "Tue, 99 Foo 2026 99:99:99 GMT", "é"])
    def test_nonsense_asked_for_is_not_heeded_and_too_long_is_twelve_hours(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver, asked: str
    ) -> None:
        happen(account)
        receiver.answer = lambda handler: status(handler, 503, Retry_After=asked.encode().decode("latin-1"))
        assert sent().next_attempt_at - NOW <= (timedelta(hours=12) if asked.startswith("9") else timedelta(seconds=18))

    def test_an_endpoint_that_is_gone_is_disabled_and_what_waits_for_it_is_not_sent(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        happen(account, key="1")
        happen(account, key="2")
        receiver.answers(410)
        assert sent().state == State.DEAD
        created.endpoint.refresh_from_db()
        assert created.endpoint.disabled_reason == "It answered 410 (gone)."
        assert sent().state == State.SUPPRESSED
        assert len(receiver.received) == 1

    def test_an_endpoint_that_did_nothing_but_fail_for_five_days_is_disabled_with_the_reason(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        receiver.answers(500)
        for day in (0, 4, 5):
            happen(account, key=str(day), now=NOW + timedelta(days=day))
            created.endpoint.refresh_from_db()
            assert created.endpoint.disabled_at is None
            WebhookDelivery.objects.filter(state=State.PENDING).update(next_attempt_at=NOW + timedelta(days=99))
            sent(now=NOW + timedelta(days=day))
        created.endpoint.refresh_from_db()
        assert created.endpoint.disabled_at == NOW + timedelta(days=5)
        assert created.endpoint.disabled_reason == "Nothing was delivered since 01 March 2026 12:00 UTC. It answered 500."
        webhook_endpoints.enable(endpoint=created.endpoint)
        receiver.answers(200)
        happen(account, key="back", now=NOW + timedelta(days=6))
        assert sent(now=NOW + timedelta(days=6)).state == State.DELIVERED

    def test_one_success_ends_the_count_of_failures(self, created: webhook_endpoints.Created, account: Account, receiver: Receiver) -> None:
        happen(account)
        receiver.answers(500)
        sent()
        receiver.answers(200)
        sent(now=NOW + timedelta(minutes=1))
        created.endpoint.refresh_from_db()
        assert (created.endpoint.failures, created.endpoint.failing_since, created.endpoint.quiet_until) == (0, None, None)

    @pytest.mark.failure(82)
    def test_an_endpoint_that_always_fails_holds_up_no_other(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        for key in range(20):
            happen(account, key=str(key))
        receiver.answers(500)
        with receiving() as good:
            other = make_account(make_product())
            register(other.product, good.url)
            event = happen(other)
            tried = 0
            while not good.received:
                assert send() is not None
                tried += 1
            assert tried <= 2
            assert event.deliveries.get().state == State.DELIVERED
        assert len(receiver.received) == 1  # it is left alone for a while, with all that waits for it

    def test_the_long_queue_of_a_disabled_endpoint_is_ended_before_others_wait_for_it(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in range(5):
            happen(account, key=str(key))
        while webhook_delivery.address(now=NOW):
            pass
        webhook_endpoints.disable(endpoint=created.endpoint, reason="A test.", now=NOW)
        with receiving() as good:
            other = make_account(make_product())
            register(other.product, good.url)
            happen(other)
            monkeypatch.setattr(tasks, "BATCH", 1)
            assert tasks.send_webhooks() == 1
        queue = WebhookDelivery.objects.filter(endpoint=created.endpoint)
        assert set(queue.values_list("state", "reason")) == {("suppressed", "The endpoint is disabled or deleted.")}
        assert receiver.received == []

    def test_what_is_leased_or_not_yet_due_is_not_ended_with_its_endpoint(
        self, created: webhook_endpoints.Created, account: Account
    ) -> None:
        happen(account)
        while webhook_delivery.address(now=NOW):
            pass
        WebhookDelivery.objects.filter(endpoint=created.endpoint).update(next_attempt_at=NOW + webhook_delivery.LEASE)
        webhook_endpoints.disable(endpoint=created.endpoint, reason="A test.", now=NOW)
        assert webhook_delivery.suppress(now=NOW) == 0
        assert webhook_delivery.suppress(now=NOW + webhook_delivery.LEASE) == 1

    @pytest.mark.failure(89)
    def test_an_address_that_became_private_is_not_called_and_says_so(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver, settings: Settings
    ) -> None:
        WebhookEndpoint.objects.filter(pk=created.endpoint.pk).update(url="https://127.0.0.1:8443/")
        happen(account)
        settings.OUTBOUND_TO_LOCALHOST = False
        failed = sent()
        assert (failed.state, failed.last_status, failed.reason) == (State.PENDING, None, "The address leads into a private network.")
        assert receiver.received == []

    def test_what_an_endpoint_answers_is_never_kept(self, created: webhook_endpoints.Created, account: Account, receiver: Receiver) -> None:
        def tell(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(500, "SECRET")
            handler.end_headers()
            handler.wfile.write(b"SECRET")

        happen(account)
        receiver.answer = tell
        delivery = sent()
        assert "SECRET" not in json.dumps({name: str(value) for name, value in vars(delivery).items()})

    def test_a_secret_that_no_key_opens_any_more_is_a_failure_with_its_reason(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver, settings: Settings
    ) -> None:
        settings.SECRET_KEY = "another-secret-key-" + "0" * 50
        happen(account)
        assert sent().reason.startswith("No key opens it")
        assert receiver.received == []

    def test_staff_set_aside_what_is_not_delivered_and_nothing_else(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        happen(account, key="1")
        sent()
        happen(account, key="2")
        webhook_delivery.address(now=NOW)
        every = list(WebhookDelivery.objects.filter(endpoint=created.endpoint).values_list("pk", flat=True))
        assert [each.event.key for each in webhooks.set_aside(delivery_ids=every, reason="Not wanted.", now=NOW)] == ["2"]
        assert send() is None


class TestForgetting:
    def test_deliveries_are_forgotten_ninety_days_after_they_were_done_and_events_after_four_hundred(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        event = happen(account)
        sent()
        waiting = happen(account, key="2")
        webhook_delivery.address(now=NOW)
        second = timedelta(seconds=1)
        webhook_delivery.forget(now=NOW + webhook_delivery.KEEP_DELIVERIES)
        assert event.deliveries.count() == 1
        webhook_delivery.forget(now=NOW + webhook_delivery.KEEP_DELIVERIES + second)
        assert (event.deliveries.count(), waiting.deliveries.count()) == (0, 1)
        webhook_delivery.forget(now=NOW + webhook_delivery.KEEP_EVENTS)
        assert WebhookEvent.objects.filter(pk=event.pk).exists()
        webhook_delivery.forget(now=NOW + webhook_delivery.KEEP_EVENTS + second)
        assert list(WebhookEvent.objects.filter(account=account)) == [waiting]  # it is not over, however old
        assert webhook_delivery.forget(now=NOW + webhook_delivery.KEEP_EVENTS + second) == 0

    def test_an_event_whose_deliveries_are_forgotten_is_not_told_again(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver
    ) -> None:
        happen(account)
        sent()
        later = NOW + webhook_delivery.KEEP_DELIVERIES + timedelta(days=1)
        webhook_delivery.forget(now=later)
        happen(account, now=NOW)
        assert send(now=later) is None
        assert len(receiver.received) == 1

    def test_old_rows_go_a_batch_at_a_time(
        self, created: webhook_endpoints.Created, account: Account, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in range(5):
            happen(account, key=str(key))
            sent()
        monkeypatch.setattr(webhook_delivery, "ENDED_AT_ONCE", 2)
        assert webhook_delivery.forget(now=LATER) >= 10
        assert not WebhookEvent.objects.filter(account=account).exists()


class TestSealing:
    def test_the_secret_is_not_in_the_database(self, created: webhook_endpoints.Created) -> None:
        with connection.cursor() as cursor:
            cursor.execute("select e::text from accounts_webhookendpoint e where id = %s", [created.endpoint.pk])
            row = cursor.fetchone()[0]
        assert created.secret.removeprefix("whsec_") not in row
        assert sealing.unseal(created.endpoint.secret) == created.secret

    def test_keys_are_changed_by_adding_the_new_one_in_front_and_sealing_anew(self, settings: Settings) -> None:
        sealed = sealing.seal("text")
        old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
        settings.ENCRYPTION_KEYS = [old]
        with pytest.raises(sealing.Unreadable):
            sealing.unseal(sealed)
        sealed = sealing.seal("text")
        settings.ENCRYPTION_KEYS = [new, old]
        again = sealing.reseal(sealed)
        settings.ENCRYPTION_KEYS = [new]
        assert sealing.unseal(again) == "text"
        with pytest.raises(sealing.Unreadable):
            sealing.unseal(sealed)

    def test_a_changed_secret_key_still_opens_as_long_as_it_is_a_fallback(self, settings: Settings) -> None:
        sealed = sealing.seal("text")
        settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY = [settings.SECRET_KEY], "another-secret-key-" + "0" * 50
        assert sealing.unseal(sealed) == "text"
        assert sealing.unseal(sealing.reseal(sealed)) == "text"


@pytest.mark.usefixtures("committed")
class TestCommitted:
    """Workers as they are: of their own processes and threads."""

    def test_nothing_is_open_in_the_database_while_an_endpoint_is_called(self, receiver: Receiver) -> None:
        account = make_account(make_product())
        register(account.product, receiver.url, now=LATER)
        happen(account, now=LATER)
        inside: list[bool] = []
        outer = connections[DEFAULT_DB_ALIAS]
        receiver.answer = lambda handler: (inside.append(outer.in_atomic_block), status(handler, 200))[1]  # type: ignore[func-returns-value]
        assert sent(now=LATER).state == State.DELIVERED
        assert inside == [False]

    @pytest.mark.failure(77, 81)
    def test_a_worker_that_is_killed_during_the_call_leads_to_one_more_of_the_same_id_after_the_lease(self, receiver: Receiver) -> None:
        account = make_account(make_product())
        secret = register(account.product, receiver.url, now=LATER).secret
        event = happen(account, now=LATER)
        while webhook_delivery.address(now=LATER):
            pass
        inside, over = threading.Event(), threading.Event()
        receiver.answer = lambda handler: (inside.set(), over.wait(30))[0]  # type: ignore[func-returns-value]
        environment = os.environ | {"DATABASE_URL": _database_url()}
        program = SEND_ONE.format(now=LATER.isoformat())
        worker = subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
        assert inside.wait(30)
        worker.kill()
        worker.wait()
        over.set()
        receiver.answers(200)
        assert send(now=LATER + webhook_delivery.LEASE - timedelta(seconds=1)) is None
        again = LATER + webhook_delivery.LEASE
        assert sent(now=again).state == State.DELIVERED
        assert [each.headers["webhook-id"] for each in receiver.received] == [event.public_id] * 2
        assert receiver.received[1].headers["webhook-signature"] == Webhook(secret).sign(
            event.public_id, again, receiver.received[1].body.decode()
        )

    @pytest.mark.failure(81)
    def test_a_worker_whose_lease_is_over_changes_nothing_that_another_took_over(self, receiver: Receiver) -> None:
        account = make_account(make_product())
        register(account.product, receiver.url, now=LATER)
        event = happen(account, now=LATER)
        while webhook_delivery.address(now=LATER):
            pass
        slow = webhook_delivery._claim(LATER, ())
        assert slow is not None
        again = LATER + webhook_delivery.LEASE
        receiver.answers(503)
        theirs = sent(now=again)
        assert (theirs.state, theirs.last_status) == (State.PENDING, 503)
        webhook_delivery._failed(slow, webhook_delivery.NotTaken("It answered 500.", status=500), again)
        webhook_delivery._finish(slow, State.DEAD, "", again)
        found = event.deliveries.get()
        assert (found.state, found.last_status, found.next_attempt_at) == (State.PENDING, 503, theirs.next_attempt_at)
        receiver.answers(200)
        assert sent(now=found.next_attempt_at + timedelta(minutes=1)).state == State.DELIVERED

    @pytest.mark.failure(78)
    def test_eight_workers_at_once_send_each_event_once(self, receiver: Receiver) -> None:
        account = make_account(make_product())
        register(account.product, receiver.url, now=LATER)
        events = {happen(account, key=str(key), now=LATER).public_id for key in range(20)}

        def work(_: int) -> None:
            try:
                while send(now=LATER) is not None:
                    pass
            finally:
                connections.close_all()

        with ThreadPoolExecutor(8) as workers:
            list(workers.map(work, range(8)))
        assert sorted(each.headers["webhook-id"] for each in receiver.received) == sorted(events)

    @pytest.mark.failure(79)
    def test_the_sweepers_task_sends_what_is_due_though_no_bell_rang(self, receiver: Receiver) -> None:
        account = make_account(make_product())
        register(account.product, receiver.url)
        event = WebhookEvent.objects.create(kind="balance.low", product=account.product, account=account, key="1", created_at=NOW)
        assert tasks.send_webhooks() >= 1
        assert event.public_id in {each.headers["webhook-id"] for each in receiver.received}

    def test_one_slow_endpoint_does_not_take_all_of_a_workers_time(self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "ENDPOINT_SECONDS", 0.3)
        slow = make_account(make_product())
        register(slow.product, receiver.url)
        receiver.answer = lambda handler: (time.sleep(0.2), status(handler, 200))[1]  # type: ignore[func-returns-value]
        for key in range(20):
            WebhookEvent.objects.create(kind="balance.low", product=slow.product, account=slow, key=str(key), created_at=NOW)
        tasks.send_webhooks()
        assert len(receiver.received) == 2
        WebhookDelivery.objects.filter(endpoint__product=slow.product, state=State.PENDING).update(state=State.SUPPRESSED, done_at=NOW)


def _database_url() -> str:
    settings = connection.settings_dict
    return f"postgresql://{settings['USER']}:{settings['PASSWORD']}@{settings['HOST']}:{settings['PORT']}/{settings['NAME']}"
