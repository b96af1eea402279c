"""The page and the API of automatic top-ups: who may look, who may choose, and that garbage chooses nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import Error, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import tenancy
from accounts.models import Account, Membership, User
from billing.models import AutoTopUp, CardDecline, TopUp
from billing.tests.selling import Shop, double, shop
from billing.tests.test_top_ups import BAD_CARD, card, run, turn_on
from tests.factories import NANOS, make_account, make_key

__all__ = ["double", "shop"]  # fixtures
ON = {"threshold": "10", "pack": "small", "daily_cap": "50.00"}


@pytest.fixture
def owner(shop: Shop) -> User:
    return User.objects.create_user(f"ada-{shop.suffix.lower()}@example.com")


@pytest.fixture
def account(shop: Shop, owner: User) -> Account:
    return shop.account(owner=owner)


def visit(user: User, account: Account, **said: str) -> tuple[int, str]:
    browser = Client()
    browser.force_login(user)
    address = reverse("top_up", args=[account.public_id])
    answer = browser.post(address, said, follow=True) if said else browser.get(address)
    return answer.status_code, answer.content.decode()


class TestPage:
    def test_it_shows_the_effect_before_it_is_turned_on_and_then_what_it_did(self, shop: Shop, owner: User, account: Account) -> None:
        assert "<b>Off.</b>" in visit(owner, account)[1]
        assert "There is no saved card" in visit(owner, account)[1]
        card(shop, account)
        _, shown = visit(owner, account, act="show", **ON)
        assert "<b>$10 is charged within a minute</b>" in shown
        assert "Visa ending 4242" in shown
        assert not AutoTopUp.objects.filter(account=account).exists()
        assert "Automatic top-up is on." in visit(owner, account, act="on", **ON)[1]
        run()
        _, shown = visit(owner, account)
        assert "<b>On.</b>" in shown
        assert "2 × Small" in shown
        assert "Automatic top-up is off." in visit(owner, account, act="off")[1]
        rule = AutoTopUp.objects.get(account=account)
        assert (rule.enabled, rule.changed_by, rule.threshold_nanos) == (False, owner.email, 10 * NANOS)

    def test_why_a_card_was_declined_is_read_and_it_is_tried_again(self, shop: Shop, owner: User, account: Account) -> None:
        turn_on(shop, account, method=BAD_CARD)
        run()
        shown = visit(owner, account)[1]
        assert "Your card was declined." in shown
        assert "was declined.</b> It is tried again from" in shown
        assert 'value="retry"' in shown
        CardDecline.objects.filter(account=account).update(declines=3, retry_at=None)
        assert "declined 3 times in a row.</b> It is not tried again by itself" in visit(owner, account)[1]
        assert 'value="retry"' not in visit(owner, account, act="retry")[1]
        assert CardDecline.objects.get(account=account).declines == 0

    def test_members_look_and_only_owners_and_admins_choose(self, shop: Shop, owner: User, account: Account) -> None:
        member = User.objects.create_user(f"bob-{shop.suffix.lower()}@example.com")
        Membership.objects.create(account=account, user=member, role=Membership.Role.MEMBER)
        card(shop, account)
        status, shown = visit(member, account)
        assert (status, 'name="act"' in shown) == (200, False)
        for act in ("on", "off", "show", "retry"):
            assert visit(member, account, act=act, **ON)[0] == 403
        eve = User.objects.create_user(f"eve-{shop.suffix.lower()}@example.com")
        assert (visit(eve, account)[0], visit(eve, account, act="on", **ON)[0]) == (404, 404)
        assert not AutoTopUp.objects.filter(account=account).exists()

    @pytest.mark.parametrize(
        "said",
        [
            {"threshold": ""}, {"threshold": "-1"}, {"threshold": "1e9"}, {"threshold": "NaN"}, {"threshold": "1,5"},
            {"threshold": "\uff19"}, {"threshold": "1.0000000001"}, {"threshold": "9" * 30}, {"pack": "golden"}, {"pack": ""},
            {"daily_cap": "0"}, {"daily_cap": "4.99"}, {"daily_cap": "5.001"}, {"daily_cap": "999999999"}, {"daily_cap": "\0"},
            {"act": "explode"}, {"act": ""},
        ],
    )  # fmt: skip
    def test_garbage_turns_nothing_on(self, shop: Shop, owner: User, account: Account, said: dict[str, str]) -> None:
        card(shop, account)
        assert visit(owner, account, **({"act": "on"} | ON | said))[0] == 200
        assert not AutoTopUp.objects.filter(account=account).exists()

    def test_while_stripe_is_away_the_page_is_there_and_turns_nothing_on(self, shop: Shop, owner: User, account: Account) -> None:
        card(shop, account)
        shop.client.control("POST", "/fault", mode="500_before", path="/v1/")
        assert "cannot show your saved card" in visit(owner, account)[1]
        assert "does not answer" in visit(owner, account, act="on", **ON)[1]
        assert not AutoTopUp.objects.filter(account=account).exists()


class TestApi:
    def call(self, account: Account, body: Any = None, *, token: str = "") -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token or make_key(account.product)}"}
        path = "/api/v1/billing/top-up"
        if body is None:
            answer = Client().get(path, {"account": account.public_id}, headers=headers)
        else:
            answer = Client().post(path, json.dumps(body), content_type="application/json", headers=headers)
        return answer.status_code, answer.json()

    def test_it_is_chosen_and_read(self, shop: Shop, account: Account) -> None:
        assert self.call(account)[1] == {
            "account": account.public_id, "enabled": False, "threshold": None, "pack": None, "daily_cap": None,
            "spent_today": "0.00", "items": [],
        }  # fmt: skip
        card(shop, account)
        body = {"account": account.external_id, "enabled": True} | ON
        assert self.call(account, body)[0] == 200
        run()
        status, answer = self.call(account)
        assert (status, answer["enabled"], answer["threshold"], answer["daily_cap"]) == (200, True, "10.000000000", "50.00")
        assert answer["spent_today"] == "10.00"
        assert [(each["state"], each["pack"], each["price"], each["credits"]) for each in answer["items"]] == [
            ("paid", "small", "10.00", "12.000000000")
        ]

    @pytest.mark.parametrize(
        ("said", "field"),
        [
            ({"enabled": "yes"}, "enabled"), ({"threshold": 5}, "threshold"), ({"threshold": "-1"}, "threshold"),
            ({"daily_cap": "1.234"}, "daily_cap"),
            ({"daily_cap": "0"}, "daily_cap"), ({"daily_cap": "4.99"}, "daily_cap"), ({"pack": "golden"}, "pack"), ({"pack": None}, "pack"),
            ({"more": 1}, "more"), ({"threshold": "999999999"}, "threshold"),
        ],
    )  # fmt: skip
    def test_garbage_is_422_by_its_field(self, shop: Shop, account: Account, said: dict[str, Any], field: str) -> None:
        card(shop, account)
        status, answer = self.call(account, {"account": account.public_id, "enabled": True} | ON | said)
        assert (status, answer["code"], [error["field"] for error in answer["errors"]]) == (422, "invalid_request", [field])
        assert not AutoTopUp.objects.filter(account=account).exists()

    def test_no_card_is_422_and_no_stripe_503(self, shop: Shop, account: Account) -> None:
        body = {"account": account.public_id, "enabled": True} | ON
        assert self.call(account, body)[0] == 422
        card(shop, account)
        shop.client.control("POST", "/fault", mode="500_before", path="/v1/")
        assert self.call(account, body)[0] == 503

    def test_a_key_that_may_only_read_and_one_of_another_product_choose_nothing(self, shop: Shop, account: Account) -> None:
        body = {"account": account.public_id, "enabled": False} | ON
        assert self.call(account, body, token=make_key(account.product, scopes=["billing:read"]))[0] == 403
        assert self.call(account, body, token=make_key(make_account().product))[0] == 404


def test_tenants_read_their_own_rows_and_no_column_of_ours(shop: Shop, owner: User, account: Account) -> None:
    other = shop.account()
    for each in (account, other):
        AutoTopUp.objects.create(
            account=each, threshold_nanos=1, pack="small", daily_cap_cents=1, changed_at=timezone.now(), changed_by="ada",
            look_again_at=timezone.now(),
        )  # fmt: skip
        TopUp.objects.create(
            account=each, day=timezone.now().date(), state="skipped", reason="no", created_at=timezone.now(), finished_at=timezone.now()
        )
    for model in (AutoTopUp, TopUp):
        with tenancy.acting_as(user=owner):
            assert set(model.objects.values_list("account_id", flat=True)) == {account.pk}
    for query in (TopUp.objects.values_list("fingerprint"), TopUp.objects.values_list("invoice_id"), CardDecline.objects.all()):
        with pytest.raises(Error, match="permission denied"), transaction.atomic(), tenancy.acting_as(user=owner):
            list(query)
