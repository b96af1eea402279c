"""Only what Stripe has just signed for an endpoint is stored, once, exactly as it came; the request calls nobody."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import connections
from django.http import HttpResponse
from django.test import Client
from pytest_django import DjangoCaptureOnCommitCallbacks, Settings

from accounts import doorbell
from billing import stripe_receiver, tasks
from billing.models import StripeEvent
from billing.tests.stripe_stub import event, new, signature

MAIN = "/api/v1/billing/webhook"
ROVER = "/api/auth/stripe/webhook"
PLAYGROUND = "/api/v1/playground/webhooks/stripe/credits"
SECRETS = {MAIN: "whsec_test_main", ROVER: "whsec_test_main", PLAYGROUND: "whsec_test_playground"}


def post(body: str | bytes, header: str | None, path: str = MAIN, **headers: Any) -> HttpResponse:
    if header is not None:
        headers["HTTP_STRIPE_SIGNATURE"] = header
    return Client().post(path, body, content_type="application/json", **headers)  # type: ignore[return-value]


def text(**fields: Any) -> str:
    return json.dumps(event("invoice.paid", {"id": "in_1", "object": "invoice"}) | fields)


def deliver(body: str, path: str = MAIN) -> HttpResponse:
    return post(body, signature(body, secret=SECRETS[path]), path)


@pytest.mark.django_db
class TestGood:
    @pytest.mark.parametrize("path", SECRETS)
    def test_an_event_is_stored_exactly_as_it_was_signed(self, path: str) -> None:
        body = json.dumps(event("invoice.paid", {"id": "in_1", "name": "Zoë \u0000 😀"}), ensure_ascii=False, indent=1)
        assert deliver(body, path).status_code == 200
        stored = StripeEvent.objects.get(event_id=json.loads(body)["id"])
        assert (stored.payload, stored.endpoint, stored.type, stored.object_id) == (body, path, "invoice.paid", "in_1")
        assert (stored.state, stored.livemode, stored.api_version) == ("pending", False, "2026-05-27.dahlia")

    @pytest.mark.failure(58)
    def test_ten_deliveries_are_stored_once_and_each_is_answered_200(self) -> None:
        body = text()
        assert {deliver(body, path).status_code for path in [*SECRETS, MAIN] * 3} == {200}
        assert StripeEvent.objects.filter(event_id=json.loads(body)["id"]).count() == 1

    def test_the_worker_is_rung_after_the_commit_and_stripe_is_not_called(
        self, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rung: list[dict[str, Any]] = []
        monkeypatch.setattr(tasks.work_stripe_inbox, "apply_async", lambda **options: rung.append(options))
        with django_capture_on_commit_callbacks(execute=True):
            assert deliver(text()).status_code == 200
            assert rung == []
        assert rung == [{"args": (), "retry": False}]

    @pytest.mark.failure(79)
    def test_a_broker_that_is_away_delays_the_work_and_fails_nothing(
        self, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app: Any = tasks.work_stripe_inbox.app
        was = (app.conf.task_always_eager, app.conf.broker_url)
        app.conf.task_always_eager, app.conf.broker_url = False, "redis://127.0.0.1:1/0"
        app._after_fork()  # its pools were made for the other broker
        monkeypatch.setattr(doorbell, "_quiet_until", 0.0)
        try:
            with django_capture_on_commit_callbacks(execute=True):
                assert deliver(body := text()).status_code == 200
            started = time.monotonic()
            with django_capture_on_commit_callbacks(execute=True):
                assert deliver(text()).status_code == 200
            assert time.monotonic() - started < 1  # nobody waits for the broker again
        finally:
            app.conf.task_always_eager, app.conf.broker_url = was
            app._after_fork()
        assert StripeEvent.objects.get(event_id=json.loads(body)["id"]).state == "pending"

    @pytest.mark.failure(76)
    def test_two_secrets_are_good_while_one_is_being_changed_and_then_the_new_one_alone(self, settings: Settings) -> None:
        settings.STRIPE_WEBHOOK_SECRETS = ["whsec_new", "whsec_old"]
        for secret in settings.STRIPE_WEBHOOK_SECRETS:
            body = text()
            assert post(body, signature(body, secret=secret)).status_code == 200
        settings.STRIPE_WEBHOOK_SECRETS = ["whsec_new"]
        body = text()
        assert post(body, signature(body, secret="whsec_old")).status_code == 400
        assert post(body, signature(body, secret="whsec_new")).status_code == 200

    @pytest.mark.failure(56)
    @pytest.mark.parametrize("age", [-299, 0, 299])
    def test_a_signature_is_good_for_five_minutes_either_way(self, age: int) -> None:
        body = text()
        assert post(body, signature(body, at=time.time() - age)).status_code == 200

    def test_another_api_version_and_an_unknown_type_are_kept(self) -> None:
        body = text(api_version="2099-01-01.zinnia", type="moon.landed")
        assert deliver(body).status_code == 200
        assert StripeEvent.objects.get(event_id=json.loads(body)["id"]).api_version == "2099-01-01.zinnia"

    @pytest.mark.failure(67)
    def test_an_event_of_the_other_mode_is_kept_and_ignored(self) -> None:
        body = text(livemode=True)
        before = stripe_receiver.RECEIVED.labels("other_mode")._value.get()
        assert [deliver(body).status_code for _ in range(3)] == [200] * 3
        assert stripe_receiver.RECEIVED.labels("other_mode")._value.get() == before + 1
        stored = StripeEvent.objects.get(event_id=json.loads(body)["id"])
        assert (stored.state, stored.last_error) == ("ignored", "Of live mode, which this is not.")
        assert not configured.STRIPE_LIVE_MODE

    @pytest.mark.failure(69)
    @pytest.mark.parametrize(
        "body",
        [
            "{}",
            "[]",
            "null",
            '"evt_1"',
            "no json",
            "",
            '{"id": 7}',
            "[" * 100_000,
            json.dumps(event("invoice.paid", {"id": "in_1"}, created="yesterday")),
            json.dumps(event("invoice.paid", {"id": "in_1"}, created=10**30)),
            json.dumps(event("invoice.paid", {"id": "in_1"}, livemode="no")),
            json.dumps(event("invoice.paid", {"id": "in_1"}, id="evt_" + "x" * 200)),
            json.dumps(event("invoice.paid", {"id": "in_1"}, id="evt_\0")),
            json.dumps(event("invoice.paid", {"id": "in_1"}, data=None)),
            json.dumps(event("invoice.paid", {"id": "in_1"}, data={"object": "in_1"})),
            json.dumps(event("invoice.paid", {"id": 5})),
        ],
    )
    def test_what_stripe_signed_and_nobody_understands_is_kept_for_staff(self, body: str) -> None:
        for _ in range(2):
            assert deliver(body).status_code == 200
        stored = StripeEvent.objects.get(payload=body)
        assert stored.state == "quarantined"
        assert "not understood" in stored.last_error


@pytest.mark.django_db
class TestForged:
    def refused(self, response: HttpResponse) -> None:
        assert response.status_code == 400
        assert json.loads(response.content)["code"] == "invalid_signature"
        assert not StripeEvent.objects.exists()

    @pytest.mark.failure(55)
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "t=",
            "v1=",
            "t=1,v1=abc",
            "nonsense",
            "t=now,v1=x",
            "t=" + "9" * 400 + ",v1=aa",
            "=" * 5_000,
            "t=1,v1=é",
            "t=٣,v1=x",
            ",",
            "t=1,t=2",
        ],
    )
    def test_a_header_that_is_no_signature_is_400(self, header: str | None) -> None:
        before = stripe_receiver.RECEIVED.labels("refused")._value.get()
        self.refused(post(text(), header))
        assert stripe_receiver.RECEIVED.labels("refused")._value.get() == before + 1

    @pytest.mark.failure(55)
    def test_another_secret_another_endpoints_secret_and_no_secret_at_all_are_400(self, settings: Settings) -> None:
        body = text()
        self.refused(post(body, signature(body, secret="whsec_guess")))
        self.refused(post(body, signature(body, secret=SECRETS[PLAYGROUND])))
        self.refused(post(body, signature(body, secret=SECRETS[MAIN]), PLAYGROUND))
        settings.STRIPE_WEBHOOK_SECRETS = []
        self.refused(post(body, signature(body)))
        self.refused(post(body, signature(body, secret="")))

    @pytest.mark.failure(55)
    def test_one_altered_byte_is_400_wherever_it_is(self) -> None:
        body = text()
        header = signature(body)
        for place in range(0, len(body), 7):
            self.refused(post(body[:place] + chr(ord(body[place]) ^ 1) + body[place + 1 :], header))

    @pytest.mark.failure(55)
    def test_a_body_that_was_cut_short_or_is_no_text_is_400(self) -> None:
        body = text()
        self.refused(post(body[:-5], signature(body)))
        self.refused(post(b"\xff\xfe" + body.encode(), signature(body)))

    @pytest.mark.failure(56)
    @pytest.mark.parametrize("age", [302, 3_600, 10**9, -302, -3_600])
    def test_a_signature_of_the_past_or_of_the_future_is_400(self, age: int) -> None:
        body = text()
        self.refused(post(body, signature(body, at=time.time() - age)))

    @pytest.mark.failure(55)
    @pytest.mark.parametrize("size", [256 * 1024 + 1, 5_000_000])
    def test_a_body_above_256_kib_is_400_though_it_is_signed(self, size: int) -> None:
        body = text(padding="x" * size)[:size]
        self.refused(post(body, signature(body)))

    def test_a_length_that_begins_with_zeros_is_a_length_all_the_same(self) -> None:
        body = text(padding="x" * 300_000)
        self.refused(post(body, signature(body), CONTENT_LENGTH="0" * 20 + str(len(body))))

    def test_a_body_of_exactly_256_kib_is_read(self) -> None:
        body = text(padding="")
        body = body.replace('"padding": ""', '"padding": "' + "x" * (256 * 1024 - len(body)) + '"')
        assert len(body) == 256 * 1024
        assert deliver(body).status_code == 200

    @pytest.mark.failure(57)
    def test_dj_stripes_own_header_opens_nothing(self) -> None:
        self.refused(post(text(), None, HTTP_X_DJSTRIPE_WEBHOOK_SECRET="whsec_test_main"))

    @pytest.mark.parametrize("path", SECRETS)
    def test_nothing_but_a_post_is_answered(self, path: str) -> None:
        for method in ("get", "put", "delete", "patch", "head"):
            assert getattr(Client(), method)(path).status_code == 405


@pytest.mark.failure(58)
def test_deliveries_at_the_same_time_are_stored_once(committed: None, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe_receiver, "ring", lambda: None)
    body = text(id=new("evt"), type="moon.landed")

    def work(_: int) -> int:
        try:
            return deliver(body).status_code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(24))) == {200}
    stored = StripeEvent.objects.get(event_id=json.loads(body)["id"])
    stored.delete()
