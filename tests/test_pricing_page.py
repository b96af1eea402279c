"""The public pricing page: every product of ours, the visitor's own plan, and garbage."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Account, User
from billing import offers
from pricing import catalog
from pricing.models import CreditPack, Plan, PlanVersion, Product, Unit
from tests import factories

pytestmark = pytest.mark.django_db
PRODUCTS = ("elite", "prpm", "rover", "supabase_chat", "teach_charlie")


@pytest.fixture
def catalogs() -> None:
    files = sorted((Path(settings.BASE_DIR) / "pricing" / "catalogs").glob("*.toml"))
    call_command("catalog", "apply", *files, actor="test", verbosity=0)


def words(content: bytes) -> str:
    """A page's words, without markup."""
    main = content.decode().partition("<main")[2].partition("</main>")[0]
    return re.sub(r" ([.,;:])", r"\1", " ".join(unescape(re.sub(r"<[^>]+>", " ", main)).replace("\N{NO-BREAK SPACE}", " ").split()))


def shown(client: Client, slug: str, query: str = "") -> str:
    response = client.get(f"/pricing/{slug}/{query}")
    assert response.status_code == 200
    return words(response.content)


@pytest.mark.usefixtures("catalogs")
class TestOurProducts:
    @pytest.mark.parametrize("slug", PRODUCTS)
    def test_every_product_has_its_page_without_signing_in(self, client: Client, slug: str) -> None:
        with CaptureQueriesContext(connection) as queries:
            response = client.get(f"/pricing/{slug}/")
        assert response.status_code == 200
        assert len(response.content) < 100_000
        assert len(queries) <= 20
        assert f"/accounts/signup/?product={slug}&amp;next=/pricing/{slug}/" in response.content.decode()

    def test_rover_sells_two_plans_with_a_trial_one_by_agreement_and_packs_with_a_bonus(self, client: Client) -> None:
        page = shown(client, "rover")
        assert "Core $25 a month 14 days free to try $12.50 of credit each month 5 automations 3 tasks at a time Try Core free" in page
        assert "Enterprise Custom agreed with you Unlimited automations Unlimited tasks at a time" in page
        assert "Pay as you go" not in page
        assert "Enterprise Pack 50 % bonus $150.00 $100 $0.67" in page
        assert "token" not in page.lower()

    def test_prpm_says_what_a_credit_is_and_what_it_costs_in_each_pack(self, client: Client) -> None:
        page = shown(client, "prpm")
        assert "A new account starts with 5 credits, free. 1 credit is 5,000 tokens; a request takes at least 1 credit." in page
        assert "PRPM+ Org Member $3 a member and month 50 credits each month" in page
        assert "Unused credit lives on for a month, at most 200 credits" in page
        assert "Small Pack 500,000 tokens 100 credits $5 $0.05" in page
        assert "Large Pack 50 % bonus 3,000,000 tokens 600 credits $20 $0.0334" in page
        assert "Requests an hour 10 100 100" in page
        assert "0.50" not in page, "what an account may cost us is nobody's business"

    def test_prpm_offers_each_account_the_price_that_it_would_pay(self, client: Client) -> None:
        user = User.objects.create_user(f"{secrets.token_hex(6)}@example.com", "correct horse battery")
        product = Product.objects.get(slug="prpm")
        alone = factories.make_account(product, owner=user)
        client.force_login(user)
        page = shown(client, "prpm")
        assert "For the people of a team." in page
        assert "Upgrade to PRPM+ Org Member" not in page
        assert "Upgrade to PRPM+ Individual" in page
        team = factories.make_account(product, owner=user, kind="team")
        for account in (alone, team):
            page = shown(client, "prpm", f"?account={account.public_id}")
            assert "Upgrade to PRPM+ Org Member" in page
            assert "Upgrade to PRPM+ Individual" not in page
            assert "For people without a team." in page

    def test_the_chat_has_no_plan_to_buy_and_lists_its_models_exactly(self, client: Client) -> None:
        page = shown(client, "supabase_chat")
        assert "A new account starts with $10.00 of credit, free. You pay for what you use, by the token." in page
        assert "openai:gpt-4o $2.50 $10.00 $1.25" in page
        assert "google:gemini-2.0-flash-lite $0.07 5 $0.30 –" in page
        assert "Compare the plans" not in page
        assert "Guest" not in page

    def test_elite_is_one_plan_that_charges_nothing_for_use(self, client: Client) -> None:
        page = shown(client, "elite")
        assert "Elite $50 a month 1 machine Cloud execution Get Elite" in page
        assert "nothing is charged for it" in page
        browser = catalog.plan_version(product_id=catalog.product(slug="elite").pk, slug="browser", at=timezone.now())
        lowest = offers.offer(terms=browser, product=catalog.product(slug="elite"))
        assert (lowest.gives, lowest.lacks) == ((), ("Machines: not included",)), "a limit of none is no gift"

    def test_teach_charlie_compares_three_tiers_feature_by_feature(self, client: Client) -> None:
        page = shown(client, "teach_charlie")
        assert "Free $0 a month 3 agents 100 messages a day 1 project Community support Playground only Sign up free" in page
        assert "Agents 3 10 Unlimited" in page
        assert "Messages a day 100 1,000 5,000" in page
        assert "API access – no – no ✓ yes" in page
        assert "Support Community Email Priority" in page


class TestVisitor:
    def product(self) -> Product:
        product = factories.make_product(support_email="sales@example.com")
        for rank, slug, cents in ((0, "basic", 500), (2, "pro", 2_900), (3, "custom", None)):
            made = Plan.objects.create(product=product, slug=slug, name=slug.title(), rank=rank)
            PlanVersion.objects.create(plan=made, valid_from=factories.START, price_cents=cents, rate_card="standard")
        return product

    def member(self, product: Product) -> tuple[User, Account]:
        user = User.objects.create_user(f"{secrets.token_hex(6)}@example.com", "correct horse battery")
        return user, factories.make_account(product, owner=user)

    def test_their_plan_is_marked_and_others_are_up_or_down_from_it(self, client: Client) -> None:
        product = self.product()
        user, account = self.member(product)
        client.force_login(user)
        page = shown(client, product.slug)
        assert "Ada is on Free" in page
        assert "Free your plan $0 a month" in page
        assert "Change to Basic" in page
        assert "Upgrade to Pro" in page
        assert "Sign up" not in page
        content = client.get(f"/pricing/{product.slug}/").content.decode()
        assert f"/a/{account.public_id}/billing/plan/pro/" in content
        assert "mailto:sales@example.com?subject=Custom" in content

    def test_with_several_accounts_each_can_be_looked_at(self, client: Client) -> None:
        product = self.product()
        user, _ = self.member(product)
        team = factories.make_account(product, owner=user, kind="team")
        client.force_login(user)
        content = client.get(f"/pricing/{product.slug}/?account={team.public_id}").content.decode()
        assert f"/a/{team.public_id}/billing/plan/pro/" in content

    def test_somebody_elses_account_cannot_be_named(self, client: Client) -> None:
        product = self.product()
        user, _ = self.member(product)
        _, theirs = self.member(product)
        for visitor in (None, user):
            if visitor:
                client.force_login(visitor)
            assert client.get(f"/pricing/{product.slug}/?account={theirs.public_id}").status_code == 404

    def test_an_account_of_another_product_is_a_visitor_like_any(self, client: Client) -> None:
        product = self.product()
        user, _ = self.member(self.product())
        client.force_login(user)
        content = client.get(f"/pricing/{product.slug}/").content.decode()
        assert "your plan" not in content
        assert f"/accounts/signup/?product={product.slug}" in content

    def test_plans_of_yesterday_and_of_tomorrow_are_not_on_offer(self, client: Client) -> None:
        product = self.product()
        Plan.objects.filter(product=product, slug="basic").update(available=False)
        later = Plan.objects.create(product=product, slug="later", name="Later", rank=9)
        PlanVersion.objects.create(plan=later, valid_from=datetime.now(UTC) + timedelta(days=1), price_cents=100, rate_card="standard")
        page = shown(client, product.slug)
        assert "Basic" not in page
        assert "Later" not in page

    def test_names_full_of_markup_are_text(self, client: Client) -> None:
        product = self.product()
        Plan.objects.filter(product=product, slug="pro").update(name="<script>alert(1)</script>")
        Product.objects.filter(pk=product.pk).update(name='"><img src=x>')
        content = client.get(f"/pricing/{product.slug}/").content.decode()
        assert "<script>" not in content
        assert "<img" not in content

    @pytest.mark.failure(91)
    def test_it_is_read_only_and_in_nobodys_frame(self, client: Client) -> None:
        product = self.product()
        assert client.post(f"/pricing/{product.slug}/").status_code == 405
        response = client.get(f"/pricing/{product.slug}/")
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Frame-Options"] == "DENY"

    @pytest.mark.parametrize("path", ["nobody/", "%00/", "a'--/", "x" * 5_000 + "/", "free/../../", "nobody/?account=%00"])
    def test_garbage_is_not_found(self, client: Client, path: str) -> None:
        assert client.get(f"/pricing/{path}").status_code == 404


class TestPacks:
    @pytest.mark.parametrize(
        ("price_cents", "credit_nanos", "percent", "unit_cost_nanos"),
        [
            (1_000, 12 * factories.NANOS, 20, 840_000_000),
            (1_000, 10 * factories.NANOS, 0, 1_000_000_000),
            (1_000, 9 * factories.NANOS, 0, 1_120_000_000),
            (300, 3_989_999_999, 32, 760_000_000),
            (1, 10**18, 9_999_999_999_900, 10_000_000),
        ],
    )
    def test_a_bonus_is_cut_and_a_cost_is_rounded_up_so_that_neither_promises_too_much(
        self, price_cents: int, credit_nanos: int, percent: int, unit_cost_nanos: int
    ) -> None:
        product = factories.make_product()
        CreditPack.objects.create(
            product=product, slug="one", name="One", valid_from=factories.START, price_cents=price_cents, credit_nanos=credit_nanos
        )
        [offer] = offers.packs(product=product, rate_card="standard", at=datetime.now(UTC))
        assert (offer.bonus_percent, offer.unit_cost_nanos, offer.tokens) == (percent, unit_cost_nanos, None)

    def test_a_credit_is_worth_what_the_rate_card_says(self) -> None:
        unit = Unit.objects.create(code=f"{secrets.token_hex(3)}.credit", name="credit", decimals=0)
        product = factories.make_product(unit=unit, mode="credit_rate", tokens_per_credit=5_000, default_multiplier_ppm=1_000_000)
        CreditPack.objects.create(
            product=product, slug="one", name="One", valid_from=factories.START, price_cents=10_000, credit_nanos=150 * factories.NANOS
        )
        [offer] = offers.packs(product=product, rate_card="standard", at=datetime.now(UTC))
        assert (offer.bonus_percent, offer.tokens) == (50, 750_000)
