"""Row-level security on the ledger's tables: what a tenant-facing read can see, also without any scoping in code."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import Error, connection, transaction
from django.utils import timezone

from accounts import tenancy
from accounts.models import Account, Membership, User
from billing.models import (
    Checkout,
    Grant,
    LedgerEntry,
    PlanChange,
    Schedule,
    StripeInvoice,
    StripePayment,
    StripeRequest,
    Subscription,
    Wallet,
)
from metering.models import OpenAuthorization, UsageRecord
from pricing.models import PlanVersion
from tests.factories import make_account, make_product

pytestmark = pytest.mark.django_db
MODELS: list[Any] = [Wallet, Grant, Schedule, LedgerEntry, Subscription, OpenAuthorization, UsageRecord, StripeInvoice, StripePayment]


@pytest.fixture
def two() -> tuple[User, Account, Account]:
    product = make_product()
    user = User.objects.create_user("ada@example.com")
    return user, make_account(product, credit=1, owner=user), make_account(product, credit=1)


def test_member_sees_the_rows_of_their_accounts_and_no_others(two: tuple[User, Account, Account]) -> None:
    user, mine, _ = two
    for model in (Wallet, Grant, LedgerEntry, Subscription):
        assert model.objects.count() == 2
        with tenancy.acting_as(user=user):
            assert set(model.objects.values_list("account_id", flat=True)) == {mine.pk}


@pytest.mark.parametrize("model", MODELS)
def test_nobody_sees_nothing(two: tuple[User, Account, Account], model: Any) -> None:
    with tenancy.acting_as(user=User.objects.create_user("eve@example.com")):
        assert model.objects.count() == 0


def test_members_see_the_purchases_of_their_accounts_and_nobody_elses(two: tuple[User, Account, Account]) -> None:
    user, mine, other = two
    plan = PlanVersion.objects.get(plan__product=mine.product)
    at = timezone.now()
    for account in (mine, other):
        Checkout.objects.create(
            account=account, plan_version=plan, thing="plan", name="Pro", amount_cents=100, currency="usd", success_url="x", cancel_url="x",
            actor="ada", created_at=at,
        )  # fmt: skip
        PlanChange.objects.create(
            account=account, subscription_id="sub_1", from_version=plan, from_price_id="price_1", to_version=plan, to_price_id="price_2",
            keeps_until=at, actor="ada", created_at=at,
        )  # fmt: skip
    for model in (Checkout, PlanChange):
        assert model.objects.count() == 2
        with tenancy.acting_as(user=user):
            assert [row.account_id for row in model.objects.all()] == [mine.pk]
        with tenancy.acting_as(user=User.objects.create_user(f"{model.__name__.lower()}@example.com")):
            assert not model.objects.exists()
    with pytest.raises(Error, match="permission denied"), transaction.atomic(), tenancy.acting_as(user=user):
        StripeRequest.objects.exists()


def test_verbs_and_other_tables_are_closed_to_tenants(two: tuple[User, Account, Account]) -> None:
    user, mine, _ = two
    for sql in (
        "select * from operation_key",
        "select * from accounts_apikey",
        f"select ledger_open_account({mine.pk})",
        "select usage_sweep(1)",
        "update wallet set held = 0",
    ):
        with (
            pytest.raises(Error, match="permission denied"),
            transaction.atomic(),
            tenancy.acting_as(user=user),
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)


@pytest.mark.parametrize(
    ("model", "column"),
    [
        (UsageRecord, "cost_nanos"),
        (OpenAuthorization, "cost_nanos"),
        (Grant, "fee_nanos"),
        (LedgerEntry, "fee_nanos"),
        (Schedule, "reason"),
        (StripeInvoice, "read_number"),
        (StripePayment, "read_number"),
    ],
)
def test_what_work_cost_us_is_closed_to_tenants(two: tuple[User, Account, Account], model: Any, column: str) -> None:
    user, _, _ = two
    with tenancy.acting_as(user=user):
        list(model.objects.values_list("account_id"))
    with pytest.raises(Error, match="permission denied"), transaction.atomic(), tenancy.acting_as(user=user):
        model.objects.values_list(column).first()


def test_chat_documents_check_runs_as_written(two: tuple[User, Account, Account]) -> None:
    user, mine, _ = two
    Membership.objects.create(account=mine, user=User.objects.create_user("bob@example.com"), role=Membership.Role.MEMBER)
    with connection.cursor() as cursor:
        cursor.execute("set local role authenticated")
        cursor.execute(f"set local request.jwt.claim.sub = '{user.pk}'")
        cursor.execute("select * from user_balances")
        rows = cursor.fetchall()
        cursor.execute("reset role")
    assert [(row[0], row[2], row[3]) for row in rows] == [(user.pk, 1, "USD")]
