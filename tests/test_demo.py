"""The demo log-ins: five products, a staff user and a customer of each, made once however often they are asked for."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from pytest_django import Settings

from accounts.models import Account, Membership, User
from billing import audit
from billing.models import LedgerEntry, Wallet
from config.management.commands import demo_accounts

CATALOGS = sorted((Path(__file__).parent.parent / "pricing" / "catalogs").glob("*.toml"))


@pytest.fixture
def catalogs(db: None, settings: Settings) -> None:
    settings.DEMO_LOG_INS = True
    call_command("catalog", "apply", *map(str, CATALOGS), actor="test", stdout=StringIO())


def _make() -> str:
    out = StringIO()
    call_command("demo_accounts", stdout=out)
    return out.getvalue()


@pytest.mark.usefixtures("catalogs")
def test_every_product_has_a_customer_with_credit_who_can_sign_in() -> None:
    printed = _make()
    assert len(demo_accounts.CUSTOMERS) == len(CATALOGS)
    for customer in demo_accounts.CUSTOMERS:
        user = User.objects.get(email=customer.email)
        assert not user.is_staff
        account = Account.objects.get(product__slug=customer.product, memberships__user=user, memberships__role=Membership.Role.OWNER)
        assert Wallet.objects.get(account=account, unit=account.product.unit).available >= customer.credit * 10**9
        assert re.search(rf"{customer.email} .* (\$[\d.]+|\d+\scredits)$", printed, re.MULTILINE)
        form = {"login": customer.email, "password": demo_accounts.PASSWORD}
        assert Client().post("/accounts/login/", form).status_code == 302
    assert demo_accounts.PASSWORD in printed
    assert audit.run() == []


@pytest.mark.usefixtures("catalogs")
def test_the_staff_user_enters_the_admin() -> None:
    _make()
    client = Client()
    assert client.post("/accounts/login/", {"login": demo_accounts.STAFF, "password": demo_accounts.PASSWORD}).status_code == 302
    assert User.objects.get(email=demo_accounts.STAFF).is_superuser
    assert client.get("/admin/").status_code == 200


@pytest.mark.usefixtures("catalogs")
def test_again_changes_nothing() -> None:
    first = _make()
    before = _rows()
    assert _make() == first
    assert _rows() == before


@pytest.mark.usefixtures("catalogs")
def test_a_changed_password_is_set_back_to_the_printed_one() -> None:
    _make()
    user = User.objects.get(email=demo_accounts.STAFF)
    user.set_password("something else")
    user.save()
    _make()
    user.refresh_from_db()
    assert user.check_password(demo_accounts.PASSWORD)


@pytest.mark.usefixtures("catalogs")
def test_they_are_refused_in_production(settings: Settings) -> None:
    settings.DEMO_LOG_INS = False
    with pytest.raises(CommandError, match="only with the settings of a developer's machine"):
        _make()
    assert not User.objects.filter(email=demo_accounts.STAFF).exists()


def test_without_the_catalogs_nothing_is_made_and_the_command_says_what_to_do(db: None, settings: Settings) -> None:
    settings.DEMO_LOG_INS = True
    with pytest.raises(CommandError, match=r"manage\.py catalog apply"):
        _make()
    assert not User.objects.filter(email=demo_accounts.STAFF).exists()


def _rows() -> list[object]:
    emails = [demo_accounts.STAFF, *(customer.email for customer in demo_accounts.CUSTOMERS)]
    users, accounts = User.objects.filter(email__in=emails), Account.objects.filter(external_id="demo-00001")
    return [
        list(queryset.values_list())
        for queryset in (
            users.order_by("email"),
            accounts.order_by("id"),
            Membership.objects.filter(user__in=users).order_by("id"),
            Wallet.objects.filter(account__in=accounts).order_by("account_id"),
            LedgerEntry.objects.filter(account__in=accounts).order_by("account_id", "seq"),
        )
    ]
