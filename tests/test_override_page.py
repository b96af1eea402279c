"""A limit of one account is overridden on the account's page: seen first, done once, ended early, and by those who may."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Group
from django.test import Client
from django.utils import timezone

from accounts.models import User
from analytics.forms import OverrideForm
from billing.models import LimitOverride
from metering import overrides
from metering.tests.limited import Shop
from pricing.models import Entitlement
from tests.factories import NANOS
from tests.test_admin import page, text

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop() -> Shop:
    return Shop.new(("messages", "day", 100), tier={"monthly_cost_nanos": 2 * NANOS})


def signed_in(role: str = "finance") -> Client:
    user = User.objects.create_user(f"{uuid4().hex}@example.com", is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    client = Client()
    client.force_login(user)
    return client


def send(client: Client, shop: Shop, **fields: Any) -> Any:
    day = timezone.now().date() + timedelta(days=7)
    form = {"meter": "messages/day", "value": "500", "until": day.isoformat(), "reason": "a big launch", "token": str(uuid4())}
    return client.post(page(shop.account, "override"), form | fields)


def words(response: Any) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", response.content.decode()).split())


def test_it_is_offered_a_week_ahead_shown_first_done_once_and_ended_early(shop: Shop) -> None:
    client, token = signed_in(), str(uuid4())
    assert page(shop.account, "override") in text(client, page(shop.account))
    form = text(client, page(shop.account, "override"))
    assert f'value="{timezone.now().date() + timedelta(days=7)}"' in form
    assert "Messages a day: 100" in form
    assert "Cost a billing period: $2.00" in form
    shown = words(send(client, shop))
    assert "Messages a day: 500 instead of 100, felt within a second." in shown
    assert not LimitOverride.objects.filter(account=shop.account).exists()
    for _ in range(2):
        assert send(client, shop, token=token, confirm="1").status_code == 302
    row = LimitOverride.objects.get(account=shop.account)
    shown = words(client.get(page(shop.account)))
    assert "Overridden limits" in shown
    assert "500 100" in shown
    assert "a big launch" in shown
    end = page(shop.account, "end_override", row.pk)
    assert "without it: 100." in words(client.get(end))
    assert client.post(end, {"reason": ""}).status_code == 200
    assert client.post(end, {"reason": "calm again"}).status_code == 302
    assert "It has ended already." in words(client.post(end, {"reason": "calm again"}, follow=True))
    assert "Overridden limits" not in text(client, page(shop.account))
    text(client, page(shop.account, "end_override", 10**9), status=404)


def test_a_cost_limit_is_written_in_dollars_and_raising_it_says_what_is_given_away(shop: Shop) -> None:
    shown = words(send(signed_in(), shop, meter="cost/period", value="12.50"))
    assert "Cost a billing period: $12.50 instead of $2.00" in shown
    assert "given away, up to $12.50 of cost" in shown


def test_support_looks_and_changes_nothing(shop: Shop) -> None:
    finance, support = signed_in(), signed_in("support")
    send(finance, shop, confirm="1")
    row = LimitOverride.objects.get(account=shop.account)
    shown = text(support, page(shop.account))
    assert "a big launch" in shown
    send(finance, shop, meter="cost/period", value="17.31", confirm="1")
    assert "17.31" in text(finance, page(shop.account))
    assert "17.31" not in text(support, page(shop.account))
    assert page(shop.account, "override") not in shown
    assert page(shop.account, "end_override", row.pk) not in shown
    for url in (page(shop.account, "override"), page(shop.account, "end_override", row.pk)):
        assert (support.get(url).status_code, support.post(url, {"reason": "x"}).status_code) == (403, 403)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("value", text) for text in ("", "-1", "1.5", "1e3", "NaN", "٣", "9" * 30, "5\0", "100", "1" + "0" * 15 + "1")),
        *(("until", text) for text in ("", "tomorrow", "2020-01-01", "9999-12-31", "2999-01-01", "\0")),
        *(("meter", text) for text in ("", "messages/hour", "'; drop", "\0")),
        ("reason", ""), ("reason", "x" * 501), ("token", "1"),
    ],
)  # fmt: skip
def test_garbage_changes_nothing_and_is_said(shop: Shop, field: str, value: str) -> None:
    assert send(signed_in(), shop, confirm="1", **{field: value}).status_code == 200
    assert not LimitOverride.objects.filter(account=shop.account).exists()


@pytest.mark.parametrize("value", ["", "-1", "-0.01", "1e3", "NaN", "٣", "0.0000000001", "9" * 20, "1,50"])
def test_a_garbage_amount_of_a_cost_limit_is_an_error_beside_its_field(value: str) -> None:
    choice = overrides.Choice("cost/day", None, Entitlement.Mode.HARD)
    form = OverrideForm(
        {"meter": "cost/day", "value": value, "until": "2027-01-01", "reason": "x", "token": uuid4()}, choices={"cost/day": choice}
    )
    assert set(form.errors) == {"value"}
