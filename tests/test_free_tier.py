"""PRPM's free tier until the month rolls: 10 requests an hour, $0.10 a day, $0.50 a month; a warning, a throttle and its end."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account, Mail, User, WebhookEvent
from analytics import customer_warnings, rollups
from billing import ledger, periods
from billing.models import Subscription
from metering import prompts, throttles, usage
from metering.models import CostThrottle
from pricing import catalog_file
from pricing.models import Product
from tests.factories import NANOS, make_account, make_key, make_model
from tests.test_admin import superuser

__all__ = ["superuser"]
CATALOG = Path(__file__).parents[1] / "pricing" / "catalogs" / "prpm.toml"
#: At this price a thousand input tokens cost a cent.
PRICE = 10 * NANOS

pytestmark = pytest.mark.django_db


class Visitor:
    """A free account of PRPM, twelve days into its month, with credits to spend; and the client app that works for it."""

    def __init__(self) -> None:
        self.began = timezone.now() - timedelta(days=12)
        catalog_file.apply(catalog_file.parse(CATALOG.read_bytes()), actor="test", effective=self.began)
        self.product = Product.objects.get(slug="prpm")
        self.account: Account = make_account(self.product, credit=1_000)
        self.rolls = periods.period_at(self.began, timezone.now())[1]
        Subscription.objects.filter(account=self.account).update(
            anchor_at=self.began, started_at=self.began, current_period_start=self.began, current_period_end=self.rolls
        )
        self.model = make_model(input_price=PRICE, output_price=0)
        self.headers = {"Authorization": f"Bearer {make_key(self.product)}"}

    def post(self, path: str, body: object) -> Any:
        headers = self.headers | {"Idempotency-Key": str(uuid4())}
        return Client().post(f"/api/v1/usage/{path}", json.dumps(body), content_type="application/json", headers=headers)

    def get(self, path: str) -> Any:
        return Client().get(f"/api/v1/usage/{path}", {"account": self.account.public_id}, headers=self.headers).json()

    def authorize(self, cents: int) -> Any:
        estimate = {"input_tokens": 1_000 * cents, "max_output_tokens": 0}
        return self.post("authorize", {"account": self.account.public_id, "model": self.model, "estimate": estimate})

    def used(self, cents: int, *, days_ago: int) -> None:
        """Work that was reported with its own time: the client app had no network then."""
        at = (timezone.now() - timedelta(days=days_ago)).astimezone(UTC).isoformat()
        event = {"id": str(uuid4()), "time": at, "account": self.account.public_id, "model": self.model}
        assert self.post("records", event | {"quantities": {"input_tokens": 1_000 * cents}}).json()["status"] == "created"

    def page(self, name: str) -> str:
        user, _ = User.objects.get_or_create(email="visitor@example.com")
        self.account.memberships.get_or_create(user=user, defaults={"role": "owner"})
        client = Client()
        client.force_login(user)
        return client.get(reverse(name, args=[self.account.public_id])).content.decode()

    def warned(self) -> list[Any]:
        """The job that warns has run; the shares of the month that were told by mail."""
        rollups.fold()
        customer_warnings.look(now=timezone.now())
        mails = Mail.objects.filter(account=self.account, kind="limit_warning", key__startswith="cost/period").order_by("pk")
        return [mail.context["percent"] for mail in mails]


@pytest.fixture
def visitor() -> Visitor:
    return Visitor()


def refusal(answer: Any) -> tuple[int, str, str | None]:
    body = answer.json()
    return answer.status_code, body["code"], body.get("meter")


def test_the_eleventh_request_of_an_hour_is_refused_with_the_time_to_wait(visitor: Visitor) -> None:
    hour = timezone.now().hour
    answers = [visitor.authorize(0) for _ in range(11)]
    if timezone.now().hour == hour:
        assert [answer.status_code for answer in answers] == [200] * 10 + [429]
        assert refusal(answers[-1])[1] == "rate_limited"
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 3_600


def test_ten_cents_a_day_are_allowed_and_no_more(visitor: Visitor) -> None:
    first = visitor.authorize(9)
    assert first.status_code == 200
    assert visitor.post(f"authorizations/{first.json()['id']}/capture", {"quantities": {"input_tokens": 9_000}}).status_code == 200
    assert refusal(visitor.authorize(2))[:2] == (429, "cost_limit_reached")
    second = visitor.authorize(1)
    assert second.status_code == 200
    visitor.post(f"authorizations/{second.json()['id']}/capture", {"quantities": {"input_tokens": 1_000}})
    throttle = visitor.get("current")["throttle"]
    assert (throttle["throttled"], throttle["meter"], throttle["by"]) == (True, "cost/day", "cost_limit")
    assert "The usage limit for today is reached" in visitor.page("overview")


def test_fifty_cents_a_month_warn_once_at_forty_throttle_at_fifty_and_end_with_the_month(visitor: Visitor, superuser: Client) -> None:
    assert visitor.authorize(0).status_code == 200
    for days_ago in (9, 8, 7):
        visitor.used(10, days_ago=days_ago)
    assert visitor.warned() == []
    visitor.used(10, days_ago=6)
    assert visitor.warned() == [80]
    visitor.used(1, days_ago=5)
    assert visitor.warned() == [80]  # once
    assert visitor.get("current")["throttle"]["throttled"] is False
    visitor.used(9, days_ago=4)
    assert visitor.warned() == [80, 100]
    throttles.follow(now=timezone.now())

    # The client app, the customer and staff see the same: stopped, why and until when, with credits left.
    refused = visitor.authorize(1)
    assert refusal(refused)[:2] == (429, "cost_limit_reached")
    throttle = visitor.get("limits")["throttle"]
    assert throttle == visitor.get("current")["throttle"]
    assert (throttle["throttled"], throttle["reason"]) == (True, "The usage limit for this billing period is reached.")
    assert datetime.fromisoformat(throttle["until"]) == visitor.rolls
    assert "The usage limit for this billing period is reached" in visitor.page("overview")
    staff_page = superuser.get("/admin/metering/costthrottle/").content.decode()
    assert "visitor@example.com" in staff_page
    assert "The usage limit for this billing period is reached." in staff_page
    account_page = superuser.get(reverse("admin:accounts_account_change", args=[visitor.account.pk])).content.decode()
    assert "throttled until" in account_page
    credits = visitor.get("limits")["limits"][-1]
    assert (credits["layer"], credits["allowed"]) == ("credits", True)

    # The month rolls: nobody does anything, and work goes on.
    account, ask = visitor.account, usage.Ask(visitor.model, {"input_tokens": 1_000})
    with ledger.clock(at=visitor.rolls - timedelta(microseconds=1)), pytest.raises(usage.Refused):
        usage.authorize(account=account, ask=ask, key="before", now=visitor.rolls - timedelta(microseconds=1))
    with ledger.clock(at=visitor.rolls):
        assert throttles.of_account(account=account, now=visitor.rolls).stops == ()
        assert prompts.reached(account=account, now=visitor.rolls) == []
        usage.authorize(account=account, ask=ask, key="after", now=visitor.rolls)
        throttles.follow(now=visitor.rolls + timedelta(minutes=1))
    [row] = CostThrottle.objects.filter(account=account, meter="cost/period")
    assert (row.limit_nanos, row.used_nanos, row.ended_at, row.lifted) == (NANOS // 2, NANOS // 2, visitor.rolls, False)
    told = WebhookEvent.objects.filter(account=account, kind__startswith="account.").order_by("pk")
    assert [event.kind for event in told] == ["account.throttled", "account.unthrottled"]


def test_of_a_hundred_and_one_only_who_reached_a_limit_is_throttled(visitor: Visitor) -> None:
    others = [make_account(visitor.product, credit=10) for _ in range(100)]
    now = timezone.now()
    for account in (*others, visitor.account):
        usage.authorize(account=account, ask=usage.Ask(visitor.model, {"input_tokens": 10}), key="k", now=now)
    events = [usage.Event(str(uuid4()), account, now, visitor.model, {"input_tokens": 9_999}) for account in others]
    usage.record(events=[*events, usage.Event(str(uuid4()), visitor.account, now, visitor.model, {"input_tokens": 10_000})], now=now)
    assert visitor.authorize(0).status_code == 429
    assert [one.account for one in throttles.everybody(now=now, product=visitor.product)] == [visitor.account]
    share = throttles.share(now=now, product=visitor.product)
    assert (share.throttled, share.active) == (1, 101)
    assert share.ppm < 10_000  # less than one percent
