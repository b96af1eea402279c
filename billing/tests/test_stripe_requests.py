"""What we ask of Stripe survives crashes, cut lines and a Stripe that fails: it happens once, and we learn what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client as Browser
from django.utils import timezone

from accounts.models import Account, User
from billing import checkout, stripe_api, stripe_customers, stripe_requests, tasks
from billing.models import Checkout, StripeCustomer, StripeRequest
from billing.tests.selling import ORIGIN, Shop

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """A process that ends here."""


def due() -> None:
    """The lease of who asked, and every pause, is over."""
    StripeRequest.objects.filter(state="pending").update(next_attempt_at=timezone.now())


def objects(shop: Shop, account: Account) -> tuple[int, int]:
    """How many customers and sessions there are at Stripe."""
    customers = shop.client.v1.customers.list({"limit": 100}).data
    return len(customers), len(shop.client.v1.checkout.sessions.list({"limit": 100}).data)


def settled(account: Account) -> bool:
    return not StripeRequest.objects.filter(account=account).exclude(state="done").exists()


@pytest.mark.failure(74)
@pytest.mark.parametrize("dies_at", ["customer", "checkout"])
def test_a_crash_between_the_call_and_the_commit_is_made_good_by_the_sweeper(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    account, keep = shop.account(), stripe_requests._done

    def die(request: StripeRequest, *args: Any) -> None:
        if request.kind == dies_at:
            raise Killed
        keep(request, *args)

    monkeypatch.setattr(stripe_requests, "_done", die)
    with pytest.raises(Killed):
        shop.buy(account)
    monkeypatch.undo()
    [request] = StripeRequest.objects.filter(account=account, state="pending")
    assert (request.kind, request.attempts) == (dies_at, 1)
    assert tasks.send_stripe_requests() == 0  # it may still be under way
    due()
    assert tasks.send_stripe_requests() == 1
    assert settled(account)
    assert StripeCustomer.objects.filter(account=account).count() == 1


@pytest.mark.failure(74)
def test_a_process_that_is_killed_between_the_call_and_the_commit_leaves_one_session_that_is_handed_out(shop: Shop) -> None:
    account = shop.account()
    dying = f"""
import os
from django.conf import settings
from django.utils import timezone
settings.STRIPE_API_HOST = {settings.STRIPE_API_HOST!r}
from accounts.models import Account
from billing import checkout, stripe_requests
keep = stripe_requests._done
stripe_requests._done = lambda request, *more: os.kill(os.getpid(), 9) if request.kind == "checkout" else keep(request, *more)
account = Account.objects.select_related("product").get(pk={account.pk})
checkout.buy(account=account, pack="small", success_url="{ORIGIN}/done", cancel_url="{ORIGIN}/back", actor="test", now=timezone.now())
"""
    database = f"{settings.DATABASE_URL.rpartition('/')[0]}/{connection.settings_dict['NAME']}"
    environment = os.environ | {"DATABASE_URL": database, "REDIS_URL": settings.REDIS_URL, "DJANGO_SETTINGS_MODULE": "config.settings.test"}
    ended = subprocess.run(
        [sys.executable, "manage.py", "shell", "-c", dying], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == -9, ended.stderr
    visit = Checkout.objects.get(account=account)
    assert (visit.session_id, visit.url, objects(shop, account)) == (None, "", (1, 1))
    assert shop.buy(account).pk == visit.pk  # the customer tries again
    visit.refresh_from_db()
    assert visit.url
    assert (settled(account), objects(shop, account)) == (True, (1, 1))


@pytest.mark.failure(70)
@pytest.mark.parametrize("fault", ["dead_before", "dead_after", "429", "500_before", "500_after"])
@pytest.mark.parametrize("path", ["/v1/customers", "/v1/checkout/sessions"])
def test_a_call_that_fails_once_is_undecided_and_then_made_good(shop: Shop, fault: str, path: str) -> None:
    account = shop.account()
    shop.client.control("POST", "/fault", mode=fault, path=path, method="POST", count=1)
    with pytest.raises(checkout.Unavailable):
        shop.buy(account)
    assert not settled(account)
    for _ in range(2):  # a failure that Stripe keeps is heard once more before it is looked up
        due()
        tasks.send_stripe_requests()
    assert settled(account)
    visit = shop.buy(account)
    assert visit.url
    assert objects(shop, account) == (1, 1)
    shop.pay(visit)
    assert shop.settle() == set()


def test_what_is_too_old_for_its_key_is_looked_up(shop: Shop) -> None:
    account = shop.account()
    shop.client.control("POST", "/fault", mode="dead_after", path="/v1/customers", method="POST", count=1)
    with pytest.raises(checkout.Unavailable):
        shop.buy(account)
    StripeRequest.objects.filter(account=account).update(
        sent_at=timezone.now() - timedelta(hours=23, minutes=30), next_attempt_at=timezone.now()
    )
    assert tasks.send_stripe_requests() == 1
    assert (settled(account), objects(shop, account)) == (True, (1, 0))


def test_what_cannot_be_found_is_staffs_and_tried_again_under_a_new_key(shop: Shop) -> None:
    account = shop.account()
    shop.client.control("POST", "/fault", mode="dead_before", path="/v1/customers", method="POST", count=1)
    with pytest.raises(checkout.Unavailable):
        shop.buy(account)
    StripeRequest.objects.filter(account=account).update(sent_at=timezone.now() - timedelta(days=2), next_attempt_at=timezone.now())
    tasks.send_stripe_requests()
    [request] = StripeRequest.objects.filter(account=account)
    assert (request.state, "nothing that was made by it" in request.last_error) == ("stuck", True)
    with pytest.raises(checkout.Unavailable):
        shop.buy(account)
    assert stripe_requests.retry(request_ids=[request.pk], now=timezone.now()) == [request]
    assert tasks.send_stripe_requests() == 1
    request.refresh_from_db()
    assert (request.state, request.round) == ("done", 1)
    assert shop.buy(account).url


class TestChanges:
    @pytest.fixture
    def live(self, shop: Shop) -> tuple[Account, str]:
        account = shop.account()
        shop.pay(shop.subscribe(account))
        assert shop.settle() == set()
        return account, str(account.stripe_subscriptions.get().pk)

    @pytest.mark.parametrize("fault", ["dead_after", "500_after", "500_before"])
    def test_a_change_without_an_answer_comes_about_once(self, shop: Shop, live: tuple[Account, str], fault: str) -> None:
        account, subscription = live
        shop.client.control("POST", "/fault", mode=fault, path="/v1/subscriptions", method="POST", count=1)
        with pytest.raises(checkout.Unavailable):
            checkout.change_plan(account=account, plan="pro", actor="test", now=timezone.now())
        for _ in range(3):
            due()
            tasks.send_stripe_requests()
        assert settled(account)
        assert shop.settle() == set()
        [first, *others] = shop.client.v1.invoices.list({"customer": account.stripe_customer.pk}).data[::-1]
        assert (first.amount_paid, len(others)) == (1_000, 1)
        assert stripe_api.subscription(subscription).items == [(shop.prices["pro"], 1)]

    def test_the_last_word_counts(self, shop: Shop, live: tuple[Account, str]) -> None:
        account, subscription = live
        shop.client.control("POST", "/fault", mode="dead_before", path="/v1/subscriptions", method="POST", count=1)
        with pytest.raises(checkout.Unavailable):
            checkout.cancel(account=account, actor="test", now=timezone.now())
        checkout.change_plan(account=account, plan="pro", actor="test", now=timezone.now())
        due()
        assert tasks.send_stripe_requests() == 0
        assert StripeRequest.objects.get(kind="plan", state="refused", account=account).last_error.startswith("Made obsolete by")
        assert not stripe_api.subscription(subscription).cancel_at_period_end


def test_a_refusal_is_final(shop: Shop) -> None:
    account, now = shop.account(), timezone.now()
    path = "/v1/checkout/sessions/cs_none"
    request = stripe_requests.ask(key=f"x:{account.public_id}", kind="x", path=path, changes=path, params={}, account=account, now=now)
    for _ in range(2):
        with pytest.raises(stripe_requests.Refused, match="cs_none"):
            stripe_requests.send(request, now=now)
    assert (request.state, request.attempts) == ("refused", 1)
    assert stripe_requests.retry(request_ids=[request.pk], now=now) == []


def test_the_same_key_is_the_same_request(shop: Shop) -> None:
    account, now = shop.account(), timezone.now()
    first = stripe_customers.of(account=account, now=now)
    asked = StripeRequest.objects.get(account=account)
    again = stripe_requests.ask(key=asked.key, kind="other", path="/v1/prices", params={"a": 1}, account=None, now=now)
    assert (again.pk, again.path) == (asked.pk, "/v1/customers")
    assert stripe_requests.send(again, now=now)["id"] == first.pk
    assert objects(shop, account) == (1, 0)


@pytest.mark.failure(70)
@pytest.mark.parametrize("fault", ["slow", "dead_before", "429", "500_before"])
def test_no_call_takes_longer_than_ten_seconds(shop: Shop, fault: str) -> None:
    account = shop.account()
    shop.client.control("POST", "/fault", mode=fault, path="/v1/", seconds=20 if fault == "slow" else 1)
    calls: list[Callable[[], object]] = [
        lambda: shop.buy(account),
        lambda: shop.subscribe(account),
        lambda: checkout.portal(account=account, return_url=ORIGIN, now=timezone.now()),
    ]
    for call in calls[: 1 if fault == "slow" else None]:
        begun = time.monotonic()
        with pytest.raises(checkout.Unavailable):
            call()
        assert time.monotonic() - begun < 10
    shop.client.control("DELETE", "/fault")
    assert shop.buy(account).url


def test_several_slow_calls_share_one_deadline(shop: Shop) -> None:
    account = shop.account()
    shop.client.control("POST", "/fault", mode="slow", path="/v1/", seconds=4)  # price, customer, session: each alone would do
    begun = time.monotonic()
    with pytest.raises(checkout.Unavailable):
        shop.buy(account)
    assert time.monotonic() - begun < 10
    shop.client.control("DELETE", "/fault")


class TestStaff:
    @pytest.fixture
    def staff(self, committed: None) -> Browser:
        user = User.objects.create_user(f"staff-{time.monotonic_ns()}@example.com", is_staff=True)
        names = ["view_striperequest", "change_striperequest", "view_checkout", "view_planchange"]
        user.user_permissions.set(Permission.objects.filter(content_type__app_label="billing", codename__in=names))
        browser = Browser()
        browser.force_login(user)
        return browser

    def test_what_waits_is_seen_and_tried_again_with_a_reason(self, shop: Shop, staff: Browser) -> None:
        account = shop.account()
        shop.client.control("POST", "/fault", mode="dead_before", path="/v1/customers", method="POST", count=1)
        with pytest.raises(checkout.Unavailable):
            shop.buy(account)
        request = StripeRequest.objects.get(account=account)
        address = "/admin/billing/striperequest/"
        assert "/v1/customers" in staff.get(address).content.decode()
        assert request.key in staff.get(f"{address}{request.pk}/change/").content.decode()
        chosen = {"action": "send_again", "_selected_action": [request.pk]}
        assert "Send again" in staff.post(address, chosen).content.decode()
        request.refresh_from_db()
        assert request.state == "pending"
        staff.post(address, chosen | {"confirm": "1", "reason": "Stripe is back"})
        assert tasks.send_stripe_requests() == 1
        request.refresh_from_db()
        assert request.state == "done"
        shop.buy(account)
        assert "Small" in staff.get("/admin/billing/checkout/").content.decode()
        assert staff.get("/admin/billing/planchange/").status_code == 200

    def test_nobody_writes_there(self, shop: Shop, staff: Browser) -> None:
        account = shop.account()
        shop.buy(account)
        request = StripeRequest.objects.filter(account=account).first()
        assert request is not None
        for page in ("add/", f"{request.pk}/delete/"):
            assert staff.get(f"/admin/billing/striperequest/{page}").status_code == 403
        assert staff.post(f"/admin/billing/striperequest/{request.pk}/change/", {"state": "stuck"}).status_code == 403
