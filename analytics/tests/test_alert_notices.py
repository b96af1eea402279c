"""Staff are told on every kind of channel, once; a channel that fails is tried again, and no other waits for it."""

from __future__ import annotations

import gzip
import json
import smtplib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sentry_sdk
from django.core import mail as django_mail
from django.core.mail.backends.base import BaseEmailBackend
from pytest_django import Settings

from accounts.models import Fault
from analytics import alert_notices, alerts, tasks
from analytics.models import Alert, AlertChannel, AlertNotice, AlertRule

pytestmark = pytest.mark.django_db
NOW = datetime(2031, 6, 6, 12, tzinfo=UTC)


class Listener:
    """Somebody else's server: what it was sent, and what it answers."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200


@contextmanager
def listening() -> Iterator[tuple[str, Listener]]:
    listener = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            listener.heard.append((self.path, dict(self.headers), body))
            self.send_response(listener.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Requests are the tests' own: nothing to log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", listener
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class DeadPost(BaseEmailBackend):
    """A mail server that takes nothing."""

    def send_messages(self, messages: Any) -> int:
        raise smtplib.SMTPServerDisconnected("ann@example.com: gone")


@pytest.fixture(autouse=True)
def only_mine(db: None) -> None:
    AlertNotice.objects.all().delete()
    AlertRule.objects.update(enabled=False)


def fire(kind: str, target: str = "", name: str = "Channel") -> AlertNotice:
    """A real alert that ``kind`` is told of."""
    alerts.ship()
    AlertRule.objects.update(enabled=False)
    rule = AlertRule.objects.create(
        slug=f"test-{name}".lower(), name="Database <issues>", metric="database_errors", comparator="gt", threshold=2, severity="critical"
    )
    channel = AlertChannel.objects.create(name=name, kind=kind, target=target)
    rule.channels.add(channel)
    Fault.objects.create(kind="database", minute=NOW, count=3, about="lost & <!channel> found")
    alerts.look(now=NOW)
    return AlertNotice.objects.get(channel=channel)


def send(now: datetime = NOW) -> list[AlertNotice]:
    sent = []
    while (notice := alert_notices.send_next(now=now)) is not None:
        sent.append(notice)
    return sent


class TestChannels:
    def test_mail_goes_to_the_channels_addresses_with_what_it_is_about_and_where(self) -> None:
        notice = fire("mail", "ann@example.com, ben@example.com")
        assert [one.state for one in send()] == ["sent"]
        [message] = django_mail.outbox
        assert message.to == ["ann@example.com", "ben@example.com"]
        assert message.subject == "[critical] Database <issues>"
        assert message.body == (
            "Database errors in the last 5 minutes: 3, above 2. The last: lost & <!channel> found."
            "\n\nIt is about:\n  lost & <!channel> found"
            f"\n\nhttps://testserver/admin/analytics/alert/{notice.alert_id}/change/\n"
        )
        assert message.extra_headers["Message-ID"] == f"<alert.{notice.pk}@testserver>"

    def test_mail_without_addresses_goes_to_the_settings(self, settings: Settings) -> None:
        settings.ALERT_EMAILS = ["staff@example.com"]
        fire("mail")
        send()
        assert [message.to for message in django_mail.outbox] == [["staff@example.com"]]

    def test_mail_that_nobody_would_get_is_not_sent_and_says_so(self, settings: Settings) -> None:
        settings.ALERT_EMAILS = []
        fire("mail")
        [notice] = send()
        assert (notice.state, notice.error) == ("pending", "Nobody is named: give the channel addresses, or set ALERT_EMAILS.")

    def test_slack_is_posted_text_in_which_nothing_of_others_has_a_meaning(self, settings: Settings) -> None:
        settings.OUTBOUND_TO_LOCALHOST = True
        with listening() as (address, slack):
            notice = fire("slack", f"http://{address}/services/T0/B0/x")
            assert [one.state for one in send()] == ["sent"]
        [(path, headers, body)] = slack.heard
        assert (path, headers["Content-Type"]) == ("/services/T0/B0/x", "application/json")
        text = json.loads(body)["text"]
        assert text.startswith("*[critical] Database &lt;issues&gt;*\nDatabase errors in the last 5 minutes: 3, above 2.")
        assert "lost &amp; &lt;!channel&gt; found" in text
        assert text.endswith(f"\n<https://testserver/admin/analytics/alert/{notice.alert_id}/change/|Open it>")

    def test_a_webhook_is_posted_the_facts(self, settings: Settings) -> None:
        settings.OUTBOUND_TO_LOCALHOST = True
        with listening() as (address, hook):
            notice = fire("webhook", f"http://{address}/alerts")
            send()
        [(_, headers, body)] = hook.heard
        assert headers["Webhook-Id"] == str(notice.pk)
        assert json.loads(body) == {
            "event": "alert.fired", "subject": "[critical] Database <issues>", "text": Alert.objects.get().text,
            "at": NOW.isoformat(), "alert": notice.alert_id, "rule": "test-channel", "severity": "critical", "product": None,
            "rows": ["lost & <!channel> found"], "link": f"https://testserver/admin/analytics/alert/{notice.alert_id}/change/",
        }  # fmt: skip

    def test_sentry_gets_an_event_with_a_fingerprint_of_the_rule(self) -> None:
        with listening() as (address, sentry):
            client = sentry_sdk.Client(
                dsn=f"http://key@{address}/1", default_integrations=False, _experiments={"transport_compression_level": 0}
            )
            sentry_sdk.get_global_scope().set_client(client)
            try:
                fire("sentry")
                assert [one.state for one in send()] == ["sent"]
                client.close(timeout=5)
            finally:
                sentry_sdk.get_global_scope().set_client(None)
        lines = [line for _, headers, body in sentry.heard for line in _plain(headers, body).splitlines()]
        [event] = [json.loads(line) for line in lines if b"fingerprint" in line]
        assert event["fingerprint"] == ["alert", "test-channel", "None"]
        assert event["contexts"]["alert"]["rule"] == "test-channel"

    def test_sentry_without_an_address_says_so(self) -> None:
        fire("sentry")
        assert [(one.state, one.error) for one in send()] == [("pending", "Sentry is not set up: SENTRY_DSN is empty.")]

    @pytest.mark.failure(89)
    @pytest.mark.parametrize(
        "target",
        [
            "https://127.0.0.1/x",
            "https://169.254.169.254/latest",
            "https://[::1]/x",
            "https://localhost/x",
            "http://example.com/",
            "https://",
        ],
    )
    def test_an_address_inside_our_network_is_not_called_however_it_got_there(self, target: str) -> None:
        fire("slack", target)
        [notice] = send()
        assert notice.state == "pending"
        assert notice.error.startswith("The ")

    def test_a_test_goes_to_the_channel_alone(self) -> None:
        channel = AlertChannel.objects.create(name="Test", kind="mail", target="ann@example.com")
        alerts.test_fire(channel=channel, actor="ann", now=NOW)
        send()
        [message] = django_mail.outbox
        assert (message.subject, message.body) == ("[test] Test", "A test of the channel Test, asked for by ann. Nothing is wrong.\n")


class TestFailing:
    @pytest.mark.failure(82)
    def test_a_channel_that_always_fails_is_tried_ten_times_and_holds_up_no_other(self, settings: Settings) -> None:
        settings.OUTBOUND_TO_LOCALHOST = True
        with listening() as (address, slack):
            slack.status = 500
            poison = fire("slack", f"http://{address}/")
            AlertNotice.objects.filter(pk=poison.pk).update(next_attempt_at=NOW - timedelta(seconds=1))
            good = fire("mail", "ann@example.com", name="Good")
            assert {one.pk: str(one.state) for one in send()} == {poison.pk: "pending", good.pk: "sent"}
            now, delays = NOW, []
            while poison.state == "pending":
                poison.refresh_from_db()
                delays.append(poison.next_attempt_at - now)
                now = poison.next_attempt_at
                send(now)
                poison.refresh_from_db()
        assert (poison.state, poison.attempts, poison.error, len(slack.heard)) == ("dead", 10, "It answered 500.", 10)
        assert delays == sorted(delays)
        assert delays[0] == timedelta(seconds=30)
        assert max(delays) == timedelta(hours=1)
        assert send(now + timedelta(days=9)) == []

    def test_what_was_given_up_is_sent_again_when_staff_say_so(self, settings: Settings) -> None:
        notice = fire("mail", "ann@example.com")
        AlertNotice.objects.filter(pk=notice.pk).update(state="dead", done_at=NOW, attempts=10)
        assert [one.pk for one in alert_notices.send_again(notice_ids=[notice.pk], now=NOW)] == [notice.pk]
        assert [one.state for one in send()] == ["sent"]
        assert alert_notices.send_again(notice_ids=[notice.pk], now=NOW) == []

    def test_the_error_of_a_mail_server_is_kept_without_anybodys_address(self, settings: Settings) -> None:
        settings.EMAIL_BACKEND = "analytics.tests.test_alert_notices.DeadPost"
        fire("mail", "ann@example.com")
        [notice] = send()
        assert (notice.state, notice.error) == ("pending", "SMTPServerDisconnected")

    @pytest.mark.failure(77)
    def test_a_worker_that_never_comes_back_is_replaced_when_its_lease_ends(self) -> None:
        fire("mail", "ann@example.com")
        assert alert_notices._claim(NOW) is not None  # and there it dies
        assert send(NOW + alert_notices.LEASE - timedelta(seconds=1)) == []
        assert [one.attempts for one in send(NOW + alert_notices.LEASE)] == [2]

    def test_a_slow_worker_does_not_undo_what_another_did(self) -> None:
        fire("mail", "ann@example.com")
        slow = alert_notices._claim(NOW)
        assert slow is not None
        send(NOW + alert_notices.LEASE)
        alert_notices._failed(slow, RuntimeError("late"), NOW + alert_notices.LEASE)
        assert AlertNotice.objects.get().state == "sent"

    def test_the_task_sends_what_is_due(self) -> None:
        fire("mail", "ann@example.com")
        AlertNotice.objects.update(next_attempt_at=datetime(2026, 1, 1, tzinfo=UTC))
        assert tasks.send_alert_notices() == 1
        assert tasks.send_alert_notices() == 0


def _plain(headers: dict[str, str], body: bytes) -> bytes:
    return gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
