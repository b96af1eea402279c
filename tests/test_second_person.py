"""Credit above the cap of one person: asked for, approved by another, given once; and the same in a browser."""

from __future__ import annotations

import os
import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page

from accounts import approvals
from accounts.models import Account, Approval, AuditEvent, User
from billing import staff_credit
from billing.models import Operation, Wallet
from tests.factories import NANOS, make_account, make_product

CAP = 100 * NANOS


def person(role: str) -> User:
    user = User.objects.create_user(f"{role}-{uuid4().hex[:8]}@example.com", "correct horse battery", is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    return user


def shop(**fields: Any) -> Account:
    return make_account(make_product(staff_credit_cap_nanos=CAP, **fields), credit=5)


def wanted(account: Account, amount: int, verb: Any = "grant", mark: str = "") -> staff_credit.Wanted:
    account = Account.objects.select_related("product__unit").get(pk=account.pk)
    source = "goodwill" if verb == "grant" else ""
    return staff_credit.Wanted(account=account, verb=verb, amount_nanos=amount, mark=mark or str(uuid4()), source=source)


def give(account: Account, amount: int, actor: User, **more: Any) -> str | Approval:
    return staff_credit.give(wanted=wanted(account, amount, **more), actor=actor, reason="an outage", now=timezone.now())


def free(account: Account) -> int:
    return Wallet.objects.get(account=account).available


@pytest.mark.django_db
class TestCap:
    def test_up_to_the_cap_one_person_suffices_and_above_it_nothing_moves(self) -> None:
        account, ann = shop(), person("support")
        assert give(account, CAP, ann) == "$100.00 granted."
        asked = give(shop(), CAP + 1, ann)
        assert isinstance(asked, Approval)
        assert (free(account), Operation.objects.filter(account__public_id=asked.payload["account"], verb="grant").count()) == (
            105 * NANOS,
            1,
        )

    def test_many_small_acts_are_no_way_around_it(self) -> None:
        account, ann, bob = shop(), person("support"), person("support")
        assert isinstance(give(account, CAP - NANOS, ann), str)
        assert isinstance(give(account, -NANOS, ann, verb="adjust"), str)  # what is taken counts too
        assert isinstance(give(account, 1, ann), Approval)
        assert isinstance(give(account, 1, bob), str)  # each has their own
        assert isinstance(give(shop(), CAP, ann), str)  # and each account
        later = timezone.now() + staff_credit.WINDOW + timedelta(seconds=1)
        assert not staff_credit.above_cap(wanted=wanted(account, CAP), actor=ann, now=later)

    def test_a_product_without_a_cap_trusts_one_person(self) -> None:
        assert give(make_account(make_product()), 10**15, person("support")) == "$1,000,000.00 granted."

    def test_another_approves_and_it_is_given_once_in_the_name_of_both(self) -> None:
        account, ann, fin = shop(), person("support"), person("finance")
        asked = give(account, 250 * NANOS, ann)
        assert isinstance(asked, Approval)
        assert (
            asked.before
            == f"{account} ({account.public_id}) can spend $5.00, and $255.00 afterwards. One person alone may move $100.00 a day there."
        )
        assert asked.after == f"Grant $250.00 to {account}, from goodwill"
        with pytest.raises(approvals.NotAllowed, match="Somebody else"):
            approvals.approve(approval=asked, actor=ann, now=timezone.now())
        with pytest.raises(approvals.NotAllowed, match="approve_operation"):
            approvals.approve(approval=asked, actor=person("support"), now=timezone.now())
        assert approvals.approve(approval=asked, actor=fin, now=timezone.now()) == "$250.00 granted."
        with pytest.raises(approvals.NotPending):
            approvals.approve(approval=asked, actor=person("finance"), now=timezone.now())
        assert free(account) == 255 * NANOS
        operation = Operation.objects.get(account=account, verb="grant", amount=250 * NANOS)
        assert (operation.actor, operation.reason) == (f"{ann.email}, approved by {fin.email}", "an outage")
        kinds = AuditEvent.objects.filter(account=account).order_by("pk").values_list("kind", "entry__user__email", "reason")
        assert list(kinds) == [("asked", ann.email, "an outage"), ("money", fin.email, "an outage"), ("approved", fin.email, "")]
        assert isinstance(give(account, CAP, ann), str)  # what two people did counts for nobody alone

    def test_what_cannot_be_done_any_more_still_waits(self) -> None:
        account, fin = shop(), person("finance")
        give(account, 295 * NANOS, person("support"))
        asked = give(account, -200 * NANOS, person("support"), verb="adjust")
        assert isinstance(asked, Approval)
        with pytest.raises(approvals.Impossible):
            approvals.approve(approval=asked, actor=fin, now=timezone.now())
        assert Approval.objects.get(pk=asked.pk).is_pending(timezone.now())

    def test_the_same_twice_is_one_request_and_a_form_sent_again_is_one_grant(self) -> None:
        account, ann = shop(), person("support")
        asked = give(account, 250 * NANOS, ann, mark="m")
        assert isinstance(asked, Approval)
        with pytest.raises(approvals.AlreadyAsked):
            give(account, 250 * NANOS, ann, mark="m")
        approvals.approve(approval=asked, actor=person("finance"), now=timezone.now())
        again = give(account, 250 * NANOS, ann, mark="m")
        assert isinstance(again, Approval)
        assert approvals.approve(approval=again, actor=person("finance"), now=timezone.now()) == "$250.00 already granted."
        assert free(account) == 255 * NANOS


@pytest.mark.usefixtures("committed")
def test_of_three_acts_at_once_no_more_than_the_cap_goes_through() -> None:
    account, ann, said, ready = shop(), person("support"), [], threading.Barrier(3)

    def act() -> None:
        ready.wait()
        try:
            said.append(give(account, 60 * NANOS, ann))
        except approvals.AlreadyAsked:
            said.append("asked already")
        finally:
            connection.close()

    threads = [threading.Thread(target=act) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(each).__name__ for each in said) == ["Approval", "str", "str"]
    assert free(account) == 65 * NANOS


@pytest.mark.django_db
class TestPages:
    def test_the_page_says_that_a_second_person_is_needed_before_it_is_asked(self) -> None:
        account, ann = shop(), person("support")
        client = Client()
        client.force_login(ann)
        url = reverse("admin:accounts_account_grant", args=[account.pk])
        form = {"token": str(uuid4()), "amount": "250", "source": "goodwill", "last_day": "", "reason": "an outage"}
        shown = client.post(url, form).content.decode()
        assert "more than one person may move alone" in shown
        assert "Ask a second person" in shown
        answer = client.post(url, form | {"confirm": "1"})
        asked = Approval.objects.get(payload__account=account.public_id)
        assert answer.headers["Location"] == reverse("admin:accounts_approval_decide", args=[asked.pk])
        twice = client.post(url, form | {"confirm": "1"})
        assert (twice.status_code, "waits for somebody else" in twice.content.decode()) == (200, True)
        assert (Approval.objects.count(), free(account)) == (1, 5 * NANOS)
        small = client.post(url, form | {"token": str(uuid4()), "amount": "2.5"}).content.decode()
        assert "Ask a second person" not in small


def open_as(browser: Browser, server: str, user: User, path: str, **context: Any) -> Page:
    client = Client()
    client.force_login(user)
    page = browser.new_context(viewport={"width": 1440, "height": 900}, **context).new_page()
    page.context.add_cookies([{"name": "session", "value": client.cookies["session"].value, "url": server}])
    page.goto(server + path)
    return page


@pytest.mark.usefixtures("committed")
def test_staff_grants_above_the_cap_and_a_second_person_approves(browser: Browser, server: str) -> None:
    account, ann, fin = shop(), person("support"), person("finance")
    page = open_as(browser, server, ann, reverse("admin:accounts_account_change", args=[account.pk]))
    page.get_by_role("link", name="Grant credits").click()
    page.get_by_label("Amount").fill("250")
    page.get_by_label("Source").select_option("goodwill")
    page.get_by_label("Reason").fill("Two days of outage, ticket 4711")
    page.get_by_role("button", name="Show the effect").click()
    page.get_by_role("button", name="Ask a second person").click()
    page.get_by_text("somebody else has to approve it").wait_for()
    assert page.get_by_role("button", name="Approve").count() == 0
    assert free(account) == 5 * NANOS
    asked = Approval.objects.get(payload__account=account.public_id)
    other = open_as(browser, server, fin, "/admin/")
    other.get_by_role("link", name=re.compile("wait.* for a second person")).click()
    other.goto(server + reverse("admin:accounts_approval_decide", args=[asked.pk]))
    for width in (360, 1440):
        other.set_viewport_size({"width": width, "height": 800})
        assert other.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("TOLLGATE_SCREENSHOTS"):
        other.screenshot(path=Path(folder) / "approval.png")
    other.get_by_role("button", name="Approve").click()
    other.get_by_text("$250.00 granted.").wait_for()
    assert free(account) == 255 * NANOS
    page.context.close()
    other.context.close()
