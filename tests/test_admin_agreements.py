"""Staff agree terms with one customer on the account's page: with who and why, and never by garbage."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from accounts.models import Account
from billing import subscriptions
from billing.models import Agreement
from tests.factories import NANOS, make_account
from tests.test_admin import superuser

__all__ = ["superuser"]
pytestmark = pytest.mark.django_db


def said(**fields: Any) -> dict[str, Any]:
    return {
        "token": str(uuid4()), "base": "free", "price": "1200.00", "interval": "month", "credit": "900", "collection": "none",
        "days_until_due": "30", "reason": "signed on Monday", "confirm": "on",
    } | fields  # fmt: skip


def agree(browser: Client, account: Account, fields: dict[str, Any]) -> tuple[int, str]:
    answer = browser.post(reverse("admin:accounts_account_agree", args=[account.pk]), fields)
    return answer.status_code, answer.content.decode()


def test_terms_are_agreed_once_with_who_and_why(superuser: Client) -> None:
    account, fields = make_account(), said()
    assert superuser.get(reverse("admin:accounts_account_agree", args=[account.pk])).status_code == 200
    assert [agree(superuser, account, fields)[0], agree(superuser, account, fields)[0]] == [302, 302]
    made = Agreement.objects.get(account=account)
    assert (made.plan_version.price_cents, made.plan_version.included_credit_nanos) == (120_000, 900 * NANOS)
    assert (made.reason, bool(made.actor)) == ("signed on Monday", True)
    live = subscriptions.current(account_id=account.pk)
    assert live is not None
    assert live.plan_version_id == made.plan_version_id
    assert LogEntry.objects.filter(change_message__contains="Terms agreed").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"price": "-1"}, {"price": "1e5"}, {"price": "1.5"}, {"price": ""}, {"credit": "NaN"}, {"credit": "-5"}, {"base": "golden"},
        {"interval": "week"}, {"collection": "barter"}, {"limits": "agents"}, {"limits": "agents/count = -5"}, {"rate_card": "none"},
        {"limits": "agents/count = 5"}, {"cost_tier": "huge"}, {"days_until_due": "1000"}, {"reason": ""}, {"confirm": ""}, {"token": "x"},
    ],
)  # fmt: skip
def test_garbage_agrees_nothing(superuser: Client, fields: dict[str, Any]) -> None:
    account = make_account()
    assert agree(superuser, account, said(**fields))[0] == 200
    assert not Agreement.objects.filter(account=account).exists()


def test_who_may_not_move_money_agrees_nothing(client: Client) -> None:
    account = make_account()
    assert agree(client, account, said())[0] == 302  # to the log-in
    assert not Agreement.objects.filter(account=account).exists()
