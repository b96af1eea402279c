"""Staff see schedules of credit that were stopped, why, and what they missed, and let them go on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from accounts.models import Account, Membership, User
from billing import audit, schedule_page
from billing.models import Grant, Schedule
from billing.tests.test_calendar import schedule
from tests.factories import make_account
from tests.test_admin import staff, superuser

__all__ = ["superuser"]
STOPPED = "/admin/billing/subscription/stopped/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def stopped() -> Account:
    account = make_account()
    now = datetime.now(UTC)
    for number in range(3):
        schedule(account, 100 + number, key=f"agreed {number}", anchor=now)
    return account


def restart(account: Account) -> str:
    return reverse("admin:billing_schedule_restart", args=[account.pk, account.product.unit_id])


@pytest.mark.failure(54)
def test_the_list_says_whose_and_why_and_a_form_what_it_missed(superuser: Client, stopped: Account) -> None:
    page = superuser.get(STOPPED).content.decode()
    assert "1 schedule of credit is stopped." in page
    assert "There are two resets of" in page
    asked = superuser.get(restart(stopped))
    assert f"missed so far: {datetime.now(UTC):%Y-%m-%d}." in asked.context["says"]
    assert "<" not in asked.context["says"]


@pytest.mark.parametrize(("grants", "granted"), [({"grants": "on"}, 303), ({}, 201)])
def test_it_goes_on_once_with_a_line_in_the_audit_log(superuser: Client, stopped: Account, grants: dict[str, str], granted: int) -> None:
    form = {"reason": "three agreements", "key": str(uuid4())} | grants
    assert superuser.post(restart(stopped), form).headers["Location"] == STOPPED
    assert sum(Grant.objects.filter(account=stopped).values_list("granted", flat=True)) == granted
    assert Schedule.objects.get(account=stopped).stopped_at is None
    lines = LogEntry.objects.filter(change_message__startswith="Credit schedule goes on", change_message__endswith=": three agreements")
    assert lines.count() == 1
    assert superuser.post(restart(stopped), form).status_code == 404
    assert "No schedule of credit is stopped." in superuser.get(STOPPED).content.decode()
    assert audit.run() == []


@pytest.mark.parametrize("garbage", [{"reason": ""}, {"reason": "\0"}, {"reason": "x" * 301}, {"key": "x"}, {"key": ""}])
def test_garbage_restarts_nothing(superuser: Client, stopped: Account, garbage: dict[str, str]) -> None:
    answer = superuser.post(restart(stopped), {"reason": "fine", "key": str(uuid4())} | garbage)
    assert set(answer.context["form"].errors) == set(garbage)
    assert Schedule.objects.get(account=stopped).stopped_at is not None


def test_it_takes_the_right_to_see_and_the_right_to_let_it_go_on(stopped: Account) -> None:
    assert staff("accounts.view_account").get(STOPPED).status_code == 403
    viewer = staff("billing.view_subscription")
    assert "Let it go on" not in viewer.get(STOPPED).content.decode()
    assert viewer.post(restart(stopped), {"reason": "x", "key": str(uuid4())}).status_code == 403


def test_what_was_missed_ends_where_the_schedule_does(stopped: Account) -> None:
    row = Schedule.objects.get(account=stopped)
    later = datetime.now(UTC) + timedelta(days=70)
    assert len(schedule_page.missed(schedule=row, now=later)) == 3
    row.ends_at = datetime.now(UTC) + timedelta(days=40)
    assert len(schedule_page.missed(schedule=row, now=later)) == 2
    assert len(schedule_page.missed(schedule=row, now=later + timedelta(days=3_650))) == 2


def test_the_customer_is_promised_nothing_by_a_schedule_that_stopped(stopped: Account) -> None:
    user = User.objects.create_user(email="owner@example.com", password=None)
    Membership.objects.create(account=stopped, user=user, role=Membership.Role.OWNER)
    client = Client()
    client.force_login(user)
    page = client.get(f"/a/{stopped.public_id}/credits/")
    assert page.status_code == 200
    assert page.context["next_grant"] is None
