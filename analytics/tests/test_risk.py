"""The month's costs and risks: PRPM's example from a history of the real verbs, the rules at their edges, and what support can say."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import Account
from analytics import risk, risk_page, rollups
from billing.models import Agreement, StripeCustomer, Subscription
from billing.tests.stripe_stub import Stub, new
from billing.tests.test_stripe_inbox import stub
from billing.tests.test_stripe_payments import happen
from metering import throttles
from metering.tests.limited import PER_TOKEN, Shop
from pricing import catalog, catalog_file
from pricing.models import Plan, PlanVersion, Product
from tests.factories import NANOS, START, give, make_account, make_key, make_model, make_product
from tests.test_admin import staff, superuser

__all__ = ["stub", "superuser"]  # fixtures
pytestmark = pytest.mark.django_db
SUMMARY = "/api/v1/admin/cost-analytics/summary"
PAGE = "/admin/analytics/margin/risk/"
PRPM = Path(__file__).parents[2] / "pricing" / "catalogs" / "prpm.toml"
NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)


def ask(product: Product, query: str = "", scopes: list[str] | None = None) -> Any:
    return Client().get(SUMMARY + query, headers={"Authorization": f"Bearer {make_key(product, scopes=scopes)}"})


def subscribed(stub: Stub, account: Account, price: str, *, status: str = "active") -> None:
    """The account subscribes at Stripe, which tells us, and pays the first invoice."""
    StripeCustomer.objects.get_or_create(account=account, defaults={"id": new("cus")})
    begun = int((timezone.now() - timedelta(days=3)).timestamp())
    subscription = stub.subscription(account.stripe_customer.pk, price, status=status, start=begun, end=begun + 30 * 86_400)
    assert happen(("customer.subscription.created", subscription)) == [("done", "")]
    if status == "active":
        assert happen(("invoice.paid", stub.invoice(subscription, 600))) == [("done", "")]


@pytest.fixture
def prpm(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Product:
    monkeypatch.setenv("STRIPE_PRPM_PLUS_PRICE_ID", "price_plus")
    catalog_file.apply(catalog_file.parse(PRPM.read_bytes()), actor="ada", effective=START)
    catalog.clear()
    return Product.objects.get(slug="prpm")


@pytest.fixture
def twenty(prpm: Product, stub: Stub) -> list[Account]:
    """Twenty subscribers at $6 who cost $8.50: one $0.95 of the dollar that a day allows, one $0.35, the others $0.40 each."""
    accounts = [make_account(prpm) for _ in range(20)]
    costs = {"0.95": accounts[:1], "0.35": accounts[1:2], "0.40": accounts[2:]}
    for cost, theirs in costs.items():
        model = make_model(input_price=int(Decimal(cost) * NANOS) * 50, output_price=0)
        for account in theirs:
            subscribed(stub, account, "price_plus")
            Shop(account, model).use(tokens=20_000)
    return accounts


class TestSummary:
    def test_it_answers_the_guides_example_to_the_letter_with_its_risk_list_and_health_figures(
        self, prpm: Product, twenty: list[Account]
    ) -> None:
        example = (
            '{"totalMonthlyRevenue": 120.00, "totalMonthlyCost": 8.50, "overallMargin": 92.92, '
            '"activeUsers": 20, "throttledUsers": 0, "highRiskUsers": 1}'
        )
        answer = ask(prpm)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.content.decode() == example
        rollups.fold()
        assert ask(prpm).content.decode() == example
        assert json.loads(ask(make_product()).content)["activeUsers"] == 0

        # The costliest come first, and the health figures have the guide's decimals.
        month = risk.look(product=prpm, now=timezone.now())
        assert [one.account for one in month.costliest] == [twenty[0], *twenty[2:11]]
        assert [one.level for one in month.costliest] == ["high_risk", *["low_risk"] * 9]
        assert [one.account for one in month.high_risk] == [twenty[0]]
        assert (month.costliest[0].cost_nanos, month.costliest[0].revenue_nanos) == (950_000_000, 6 * NANOS)
        assert month.health == risk.Health(20, 0, Decimal("0.4250"), Decimal("8.50"))
        assert str(month.health.average) == "0.4250"

    def test_nothing_yet_is_zeros_and_no_margin(self) -> None:
        answer = ask(make_product())
        assert list(json.loads(answer.content).values()) == [0, 0, None, 0, 0, 0]

    @pytest.mark.parametrize(
        "query", ["?product=prpm", "?account=x", "?%00=1", "?since=2026-01-01&since=2026-01-02", "?=", "?" + "a" * 3_000]
    )
    def test_it_takes_no_parameters(self, query: str) -> None:
        answer = ask(make_product(), query)
        assert (answer.status_code, json.loads(answer.content)["code"]) == (422, "invalid_request")

    def test_it_needs_a_key_with_the_scope(self) -> None:
        product = make_product()
        assert Client().get(SUMMARY).status_code == 401
        refused = ask(product, scopes=["usage:read", "billing:read"])
        assert (refused.status_code, json.loads(refused.content)["code"]) == (403, "missing_scope")
        account_key = make_key(product, account=make_account(product))
        assert Client().get(SUMMARY, headers={"Authorization": f"Bearer {account_key}"}).status_code == 403
        assert Client().post(SUMMARY, headers={"Authorization": f"Bearer {make_key(product)}"}).status_code == 405


class TestRevenue:
    @pytest.mark.parametrize(("status", "cents"), [("active", 600), ("past_due", 600), ("trialing", 0), ("unpaid", 0), ("canceled", 0)])
    def test_a_subscription_counts_while_it_is_paid_or_about_to_be(self, prpm: Product, stub: Stub, status: str, cents: int) -> None:
        subscribed(stub, make_account(prpm), "price_plus", status=status)
        assert risk.look(product=prpm, now=timezone.now()).subscriptions_nanos == cents * NANOS // 100

    def test_a_plan_with_a_price_that_nobody_pays_brings_nothing_and_an_agreed_one_a_twelfth_of_its_year_a_member(self) -> None:
        account = make_account()
        plan = Plan.objects.create(product=account.product, slug="large", name="Large", rank=9)
        version = PlanVersion.objects.create(
            plan=plan, valid_from=START, price_cents=120_000, rate_card="standard", interval="year", per_seat=True
        )
        Subscription.objects.filter(account=account).update(plan_version=version, seats=3)
        assert risk.look(product=account.product, now=timezone.now()).revenue_nanos == 0
        Agreement.objects.create(
            account=account, plan_version=version, collection="none", key="k", actor="ada", reason="agreed", created_at=timezone.now()
        )
        assert risk.look(product=account.product, now=timezone.now()).revenue_nanos == 300 * NANOS

    def test_packs_count_in_the_month_in_which_they_are_bought_and_gifts_never(self) -> None:
        account, now = make_account(), timezone.now()
        give(account, 7 * NANOS, cash_nanos=5 * NANOS, currency="usd")
        give(account, 7 * NANOS, source="staff", cash_nanos=0)
        assert risk.look(product=account.product, now=now).packs_nanos == 5 * NANOS
        assert risk.look(product=account.product, now=now + timedelta(days=32)).packs_nanos == 0


class TestLevels:
    @pytest.mark.parametrize(
        ("tokens", "level"), [(75, "low_risk"), (76, "medium_risk"), (89, "medium_risk"), (90, "high_risk"), (100, "high_risk")]
    )
    def test_the_share_of_a_limit_decides_at_its_edges(self, tokens: int, level: str) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 100 * PER_TOKEN})
        with shop.at(NOON):
            shop.use(tokens=tokens)
            [one] = risk.look(product=shop.product, now=NOON).costliest
            assert one.level == level

    @pytest.mark.parametrize(("tokens", "level"), [(300, "low_risk"), (301, "medium_risk"), (999, "medium_risk"), (1_000, "high_risk")])
    def test_so_does_the_share_of_what_it_pays_with_the_products_own_alert_margin(self, tokens: int, level: str) -> None:
        shop = Shop.new(credit=0, alert_margin_ppm=700_000)
        with shop.at(NOON):
            give(shop.account, NANOS, cash_nanos=1_000 * PER_TOKEN, currency="usd")
            shop.use(tokens=tokens)
            [one] = risk.look(product=shop.product, now=NOON).costliest
            assert (one.level, one.revenue_nanos) == (level, 1_000 * PER_TOKEN)

    def test_without_an_alert_margin_only_a_loss_is_a_risk(self) -> None:
        shop = Shop.new(credit=0)
        with shop.at(NOON):
            give(shop.account, NANOS, cash_nanos=1_000 * PER_TOKEN, currency="usd")
            shop.use(tokens=999)
            assert risk.look(product=shop.product, now=NOON).at_risk == ()
            shop.use(tokens=1)
            assert len(risk.look(product=shop.product, now=NOON).high_risk) == 1

    def test_the_month_begins_at_midnight_utc_and_takes_its_costs_with_it(self) -> None:
        shop = Shop.new()
        last, first = datetime(2027, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
        with shop.at(last):
            shop.use(tokens=5)
            assert risk.look(product=shop.product, now=last).cost_nanos == 5 * PER_TOKEN
        assert risk.look(product=shop.product, now=first).active == 0

    def test_what_is_refused_after_the_limit_shows_as_throttled_once_for_two_limits(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 10 * PER_TOKEN, "monthly_cost_nanos": 10 * PER_TOKEN})
        with shop.at(NOON):
            shop.use(tokens=10)
            month = risk.look(product=shop.product, now=NOON)
            assert (len(month.throttled), month.throttled_accounts, month.health.throttled) == (2, 1, 1)


class TestPage:
    @pytest.fixture(autouse=True)
    def throttled(self) -> Shop:
        shop = Shop.new(tier={"monthly_cost_nanos": 100 * PER_TOKEN})
        shop.use(tokens=100)
        return shop

    def text(self, client: Client, query: str = "") -> str:
        page = client.get(PAGE + query)
        assert page.status_code == 200
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.content.decode()))

    def test_it_says_who_is_at_risk_and_why_credits_are_not_what_throttles_them(self, superuser: Client, throttled: Shop) -> None:
        seen = self.text(superuser, f"?product={throttled.product.slug}")
        assert f"1 account of {throttled.product} is at high risk , 1 is throttled." in seen
        assert "It has used 90 % or more of a limit on cost." in seen
        assert "What it used in this billing period cost us $0.0001; its cost tier allows $0.0001." in seen
        assert "Its credits are not the reason: $999.99 are left and none are lost." in seen
        assert "It works again by itself on" in seen

    def test_a_stop_by_staff_is_told_with_its_reason(self) -> None:
        account = make_account()
        throttles.stop(account=account, actor="ada", reason="a stolen key", ends_at=None, now=timezone.now())
        [one] = risk_page.explain(tuple(throttles.everybody(now=timezone.now(), product=account.product)), now=timezone.now())
        assert one.sentences == (
            "Stopped by ada until somebody resumes it: a stolen key",
            "It has no credits left either: after the throttle it needs a top-up.",
        )

    @pytest.mark.parametrize("query", ["", "?product=", "?product=nobody", "?product=%00", "?product=1&product=2", "?colour=red"])
    def test_garbage_shows_the_first_product(self, superuser: Client, query: str) -> None:
        assert "at high risk" in self.text(superuser, query)

    def test_only_who_may_see_the_margin_sees_it(self) -> None:
        assert staff("accounts.view_account").get(PAGE).status_code == 403
        assert staff("analytics.view_margin").get(PAGE).status_code == 200
        assert Client().get(PAGE).status_code == 302


def test_every_shipped_rule_has_a_sentence_and_the_high_ones_come_first() -> None:
    levels = [rule.level for rule in risk.RULES]
    assert levels == sorted(levels, key=list(risk.Level).index)
    assert all(rule.says.endswith(".") for rule in risk.RULES)
