"""Staff see every event of Stripe's, and have it worked again or set aside, with a reason that stays."""

from __future__ import annotations

import io
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account, User
from billing.models import StripeEvent
from billing.tests.stripe_stub import Stub, event
from billing.tests.test_stripe_inbox import balance, receive, shop, stub, work
from tests.factories import NANOS

__all__ = ["shop", "stub"]  # fixtures

pytestmark = pytest.mark.django_db
LIST = reverse("admin:billing_stripeevent_changelist")


def staff(*permissions: str) -> Client:
    user = User.objects.create_user(f"{uuid4().hex}@example.com", "correct horse battery", is_staff=True)
    for codename in permissions:
        user.user_permissions.add(Permission.objects.get(content_type__app_label="billing", codename=codename))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def finance() -> Client:
    return staff("view_stripeevent", "change_stripeevent")


@pytest.fixture
def dead() -> StripeEvent:
    event = receive("moon.landed", {"id": "moon_1", "name": "<script>alert(1)</script>"})
    StripeEvent.objects.filter(pk=event.pk).update(state="dead", attempts=15, done_at=timezone.now(), last_error="RuntimeError: boom")
    event.refresh_from_db()
    return event


def act(client: Client, verb: str, *events: StripeEvent, **fields: Any) -> str:
    data = {"action": verb, "_selected_action": [event.pk for event in events]} | fields
    response = client.post(LIST, data, follow=True)
    assert response.status_code == 200
    return response.content.decode()


class TestAdmin:
    def test_the_inbox_is_listed_by_state_and_an_event_shows_its_body_as_text(self, finance: Client, dead: StripeEvent) -> None:
        receive("invoice.paid", {"id": "in_1"})
        listed = finance.get(LIST + "?state__exact=dead").content.decode()
        assert dead.event_id in listed
        assert "in_1" not in listed
        page = finance.get(reverse("admin:billing_stripeevent_change", args=[dead.pk])).content.decode()
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<script>alert(1)" not in page
        assert "RuntimeError: boom" in page

    def test_an_event_that_makes_no_sense_has_a_page_too(self, finance: Client) -> None:
        event = StripeEvent.objects.create(
            event_id="unreadable_1", payload="[" * 100_000, state="quarantined", received_at=timezone.now(), next_attempt_at=timezone.now(),
            done_at=timezone.now(),
        )  # fmt: skip
        assert finance.get(reverse("admin:billing_stripeevent_change", args=[event.pk])).status_code == 200

    def test_working_again_asks_for_a_reason_keeps_it_and_works(self, finance: Client, dead: StripeEvent) -> None:
        page = act(finance, "work_again", dead)
        assert "moon_1" in page
        assert "reason" in page
        assert "This field is required" in act(finance, "work_again", dead, confirm="1", reason=" ")
        dead.refresh_from_db()
        assert dead.state == "dead"
        assert "Work again: 1 of 1 event." in act(finance, "work_again", dead, confirm="1", reason="the price id was missing")
        dead.refresh_from_db()
        assert (dead.state, dead.attempts) == ("ignored", 1)  # the worker was rung, and nothing depends on such an event
        assert LogEntry.objects.get(object_id=str(dead.pk)).change_message == "Work again: the price id was missing"

    def test_setting_aside_leaves_what_is_done(self, finance: Client, dead: StripeEvent) -> None:
        done = receive("invoice.paid", {"id": "in_1"})
        StripeEvent.objects.filter(pk=done.pk).update(state="done", done_at=timezone.now())
        assert "Set aside: 1 of 2 events." in act(finance, "set_aside", dead, done, confirm="1", reason="a test of theirs")
        assert set(StripeEvent.objects.values_list("event_id", "state")) == {(dead.event_id, "ignored"), (done.event_id, "done")}
        assert LogEntry.objects.get().object_id == str(dead.pk)

    @pytest.mark.parametrize("permissions", [(), ("view_stripeevent",)])
    def test_who_may_not_change_events_decides_nothing(self, dead: StripeEvent, permissions: tuple[str, ...]) -> None:
        client = staff(*permissions)
        for verb in ("work_again", "set_aside"):
            client.post(LIST, {"action": verb, "_selected_action": [dead.pk], "confirm": "1", "reason": "please"})
        dead.refresh_from_db()
        assert dead.state == "dead"
        assert not LogEntry.objects.exists()

    def test_nobody_adds_edits_or_deletes_an_event(self, dead: StripeEvent) -> None:
        client = Client()
        client.force_login(User.objects.create_superuser(f"{uuid4().hex}@example.com", "correct horse battery"))
        assert client.post(reverse("admin:billing_stripeevent_add"), {"event_id": "evt_mine"}).status_code == 403
        assert client.post(reverse("admin:billing_stripeevent_change", args=[dead.pk]), {"state": "done"}).status_code == 403
        assert client.post(reverse("admin:billing_stripeevent_delete", args=[dead.pk]), {"post": "yes"}).status_code == 403
        assert StripeEvent.objects.get().state == "dead"


class TestCommand:
    def run(self, *arguments: str) -> str:
        out = io.StringIO()
        call_command("stripe", *arguments, stdout=out)
        return out.getvalue()

    def test_inbox_counts_and_lists_the_newest_first(self, dead: StripeEvent) -> None:
        newer = receive("invoice.paid", {"id": "in_1"}, now=dead.received_at + timedelta(seconds=1))
        lines = self.run("inbox").splitlines()
        assert lines[0] == "pending 1, done 0, ignored 0, quarantined 0, dead 1"
        assert [newer.event_id in lines[1], dead.event_id in lines[2]] == [True, True]
        assert lines[2].endswith("moon.landed moon_1  RuntimeError: boom")
        assert newer.event_id not in self.run("inbox", "--state", "dead")
        assert len(self.run("inbox", "--limit", "1").splitlines()) == 2

    def test_replay_works_named_events_or_all_that_are_dead(self, dead: StripeEvent) -> None:
        for arguments in ([dead.event_id], ["--state", "dead"]):
            StripeEvent.objects.filter(pk=dead.pk).update(state="dead", done_at=timezone.now())
            assert self.run("replay", *arguments) == "1 event to be worked again\n"
            dead.refresh_from_db()
            assert dead.state == "ignored"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["replay"],
            ["replay", "evt_unknown"],
            ["replay", "evt_\0"],
            ["replay", "evt_1", "--state", "dead"],
            ["replay", "--state", "done"],
            ["inbox", "--limit", "0"],
            ["inbox", "--limit", "٣"],
            ["inbox", "--limit", "9" * 40],
            ["inbox", "--state", "gone"],
            ["missing", "--days", "31"],
            ["missing", "--days", "-1"],
            ["missing", "--days", "1.5"],
            ["outbox"],
            [],
        ],
    )
    def test_garbage_is_refused_and_changes_nothing(self, dead: StripeEvent, arguments: list[str]) -> None:
        with pytest.raises(CommandError):
            self.run(*arguments)
        dead.refresh_from_db()
        assert dead.state == "dead"

    @pytest.mark.failure(71)
    def test_missing_names_what_never_came_and_takes_it_in_when_it_is_told_to(self, stub: Stub, shop: Account) -> None:
        intent = stub.pack(shop.stripe_customer.pk, "price_pack", 1_000)
        came, lost = (stub.put(event("payment_intent.succeeded", intent)) for _ in range(2))
        stub.put(event("payment_intent.succeeded", intent, created=int(time.time()) - 4 * 86_400))
        receive("payment_intent.succeeded", intent, id=came["id"])
        out = io.StringIO()
        with pytest.raises(SystemExit):
            call_command("stripe", "missing", stdout=out)
        assert out.getvalue().splitlines() == [
            f"missing: {lost['id']}  payment_intent.succeeded",
            "2 events of the last 3 days compared, 1 missing",
        ]
        assert not StripeEvent.objects.filter(event_id=lost["id"]).exists()
        assert self.run("missing", "--store").endswith("1 missing, stored now\n")
        assert self.run("missing").endswith("2 events of the last 3 days compared, 0 missing\n")
        assert {str(one.state) for one in work(timezone.now())} == {"done"}
        assert balance(shop) == (12 * NANOS, 0, 0)

    def test_missing_says_that_stripe_does_not_answer(self, stub: Stub) -> None:
        stub.trouble = 503
        with pytest.raises(CommandError, match="Stripe does not answer"):
            self.run("missing")
