"""What the customers of the five businesses meet, on the shipped catalogs: from the file to the balance."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from pytest_django import Settings

from accounts import registration
from accounts.models import Account, User
from billing import audit, ledger, subscriptions
from billing.models import Grant, LedgerEntry, Subscription, Wallet
from metering import usage
from pricing import catalog, catalog_file
from pricing.models import PriceRow
from tests.factories import NANOS, START, give, make_key, make_model

CATALOGS = Path(__file__).parents[1] / "pricing" / "catalogs"

pytestmark = pytest.mark.django_db


def customer(product: str, *, credit: int = 0) -> Account:
    """A new account of a shipped product, with ``credit`` whole units purchased."""
    catalog_file.apply(catalog_file.parse((CATALOGS / f"{product}.toml").read_bytes()), actor="ada", effective=START)
    account = registration.open_account(
        product=catalog.product(slug=product), external_id=secrets.token_hex(6), name="Ada", now=datetime.now(UTC)
    )
    if credit:
        give(account, credit * NANOS)
    return account


def use(account: Account, model: str = "", **quantities: int) -> ledger.Usage:
    """Records a use of ``model``; without one, of a model that costs $3.00 a million input tokens, as Sonnet does."""
    now = datetime.now(UTC)
    event = usage.Event(
        key=str(uuid4()), account=account, at=now, model=model or make_model(), quantities=quantities or {"input_tokens": 100_000}
    )
    [answer] = usage.record(events=[event], now=now)
    assert isinstance(answer, ledger.Usage)
    return answer


class TestRover:
    def test_the_markup_is_the_products_unless_staff_put_a_customer_on_the_reduced_one(self) -> None:
        account = customer("rover", credit=1)
        assert use(account).price_nanos == 450_000_000
        account.rate_card = "reduced"
        account.save()
        assert use(account).price_nanos == 405_000_000

    def test_the_markup_is_the_plans_for_everybody_on_it(self) -> None:
        text = (CATALOGS / "rover.toml").read_text()
        before, table, after = text.partition("[plans.pay_as_you_go]\n")
        customer("rover")
        catalog_file.apply(
            catalog_file.parse((before + table + after.replace('rate_card = "standard"', 'rate_card = "reduced"', 1)).encode()), actor="ada"
        )
        later = registration.open_account(product=catalog.product(slug="rover"), external_id="later", name="Bob", now=datetime.now(UTC))
        assert use(later).price_nanos == 405_000_000


class TestPrpm:
    def test_monthly_credit_burns_first_then_what_rolled_over_and_what_was_purchased_last(self) -> None:
        account = customer("prpm")  # with the five credits of the sign-up
        for source in ("purchased", "rollover", "monthly"):
            give(account, NANOS, source=source, priority=subscriptions.priority(product=account.product, source=source))
        for _ in range(8):
            use(account, input_tokens=5_000)
        sources = dict(Grant.objects.filter(account=account).values_list("id", "source"))
        burnt = LedgerEntry.objects.filter(account=account, kind="usage").order_by("seq").values_list("grant_id", flat=True)
        assert [sources[grant] for grant in burnt if grant] == ["monthly", "rollover", *["welcome"] * 5, "purchased"]

    @pytest.mark.failure(40)
    @pytest.mark.parametrize("plan", ["free", "org_member", "individual"])
    def test_20_001_tokens_are_refused_before_the_call_on_every_plan(self, plan: str) -> None:
        account = customer("prpm", credit=100)
        terms = catalog.plan_version(product_id=account.product_id, slug=plan, at=datetime.now(UTC))
        Subscription.objects.filter(account=account).update(plan_version=terms.version)
        model, key = make_model(), make_key(account.product)

        def ask(tokens: int) -> Any:
            body = {"account": account.external_id, "model": model, "estimate": {"input_tokens": tokens, "max_output_tokens": 0}}
            headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid4())}
            return Client().post("/api/v1/usage/authorize", json.dumps(body), content_type="application/json", headers=headers)

        refused = ask(20_001)
        assert (refused.status_code, refused.json()["code"]) == (422, "request_too_large")
        assert Wallet.objects.get(account=account).held == 0
        assert ask(20_000).json()["hold"] == "4.000000000"


class TestChat:
    def test_signing_up_gives_ten_dollars_once_and_a_chat_takes_its_price_from_them(self, client: Client, settings: Settings) -> None:
        settings.ACCOUNT_EMAIL_VERIFICATION = "none"
        customer("supabase_chat")
        email, password = f"{secrets.token_hex(6)}@example.com", "correct horse battery"
        client.post("/accounts/signup/?product=supabase_chat", {"email": email, "password1": password, "password2": password})
        account = Account.objects.get(memberships__user=User.objects.get(email=email))
        again = registration.open_account(product=account.product, external_id=account.external_id, name="Ada", now=datetime.now(UTC))
        assert again == account
        assert list(Grant.objects.filter(account=account).values_list("source", "granted")) == [("welcome", 10 * NANOS)]
        assert client.get("/api/balance").content == b'{"balance": 10.00, "currency": "USD"}'
        for component, price in {"input_tokens": 2_500_000_000, "output_tokens": 10 * NANOS}.items():
            PriceRow.objects.create(
                provider="openai", model="gpt-4o", component=component, price_nanos=price, valid=(START, None), source="test"
            )
        assert use(account, "openai:gpt-4o", input_tokens=10_000, output_tokens=1_000).price_nanos == 35_000_000
        assert client.get("/api/balance").content == b'{"balance": 9.96, "currency": "USD"}'
        assert audit.run() == []


class TestTeachCharlie:
    def test_usage_is_charged_at_cost_or_runs_on_the_customers_own_keys(self) -> None:
        account = customer("teach_charlie", credit=1)
        assert use(account).price_nanos == 300_000_000
        account.rate_card = "own_keys"
        account.save()
        assert use(account).price_nanos == 0
        assert Wallet.objects.get(account=account).balance == 700_000_000

    def test_work_on_the_customers_own_keys_costs_nothing_and_is_a_message_all_the_same(self) -> None:
        account = customer("teach_charlie")
        account.rate_card = "own_keys"
        account.save()
        now, ask = datetime.now(UTC), usage.Ask("anthropic:nobody-priced-it", {"input_tokens": 1_000})
        held = usage.authorize(account=account, ask=ask, key="k", now=now).usage
        done = usage.capture(account=account, authorization_id=held.id, quantities={"input_tokens": 1_000})
        assert (done.cost_nanos, done.price_nanos) == (0, 0)
        use(account)
        [messages] = [layer for layer in usage.decide(account=account, ask=None, now=now).layers if layer.meter == "messages/day"]
        assert (messages.used, messages.limit) == (2, 100)

    def test_a_new_account_is_on_the_free_plan_and_active(self) -> None:
        subscription = Subscription.objects.get(account=customer("teach_charlie"))
        assert (subscription.plan_version.plan.slug, subscription.status) == ("free", "active")
