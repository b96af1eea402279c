"""Buying, changing and ending on the customer's pages, with the double of Stripe behind them; and Stripe away, strangers and garbage."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from accounts.models import Account, Membership, User
from billing import subscriptions
from billing.models import Checkout, StripeInvoice, StripeSubscription, Subscription
from billing.tests.selling import BANK_FAILS, BANK_WORKS, Shop, double, shop  # noqa: F401 (fixtures)
from pricing.models import CreditPack, Plan, PlanVersion
from tests.factories import NANOS, START, give, make_account, make_product
from tests.test_pricing_page import words

PAGES = ("billing/", "buy/")
CHANGING = ("billing/plan/pro/", "billing/cancel/")
ACTING = (*CHANGING, "buy/", "billing/resume/", "billing/portal/")


def person(account: Account, role: str = Membership.Role.OWNER) -> Browser:
    user = User.objects.create_user(f"{secrets.token_hex(6)}@example.com", "correct horse battery")
    Membership.objects.create(account=account, user=user, role=role)
    browser = Browser()
    browser.force_login(user)
    return browser


def told(response: Any, status: int = 200) -> str:
    assert response.status_code == status, response.status_code
    return words(response.content)


def path(account: Account, rest: str = "") -> str:
    return f"/a/{account.public_id}/{rest}"


class TestBuying:
    def test_a_pack_is_paid_for_and_only_the_webhook_says_so(self, shop: Shop) -> None:  # noqa: F811
        account = shop.account()
        browser = person(account)
        page = told(browser.get(path(account, "buy/")))
        assert "$6.00 of credit 20 % bonus Small · $0.84 for $1.00 of credit · never expires $5" in page
        sent = browser.post(path(account, "buy/"), {"pack": "small", "quantity": "2"})
        visit = Checkout.objects.get(account=account)
        assert (sent.status_code, sent.headers["Location"]) == (302, visit.url)
        assert (visit.amount_cents, visit.quantity) == (1_000, 2)
        assert visit.success_url == f"http://testserver{path(account, f'checkout/{visit.public_id}/')}"
        assert visit.cancel_url == f"{visit.success_url}?left=1"

        waiting = browser.get(visit.success_url)
        assert "Waiting for the payment to be confirmed" in told(waiting)
        assert waiting.headers["Refresh"] == f"3; url={path(account, f'checkout/{visit.public_id}/')}?look=1"
        assert "Nothing was charged" in told(browser.get(visit.cancel_url))
        assert b"<title>Not paid" in browser.get(visit.cancel_url).content
        assert "Refresh" not in browser.get(visit.cancel_url)
        shop.pay(visit)
        assert "Waiting for the payment" in told(browser.get(visit.success_url)), "paid, but nobody has told us yet"
        assert "2 × Small not paid yet $10" in told(browser.get(path(account, "buy/")))

        assert shop.settle() == set()
        paid = browser.get(visit.success_url)
        assert "Thank you: it is paid 2 × Small, $10. $12.00 of credit came in; $12.00 is left to spend." in told(paid)
        assert "Refresh" not in paid
        assert "Thank you: it is paid" in told(browser.get(visit.cancel_url)), "whichever link was followed"
        assert "2 × Small paid $10" in told(browser.get(path(account, "buy/")))
        assert "paid" in told(browser.get(path(account, "billing/")))

    def test_a_bank_that_takes_its_time_and_then_refuses(self, shop: Shop) -> None:  # noqa: F811
        account = shop.account()
        browser = person(account)
        browser.post(path(account, "buy/"), {"pack": "small", "quantity": "1"})
        visit = Checkout.objects.get(account=account)
        shop.pay(visit, BANK_FAILS)
        assert shop.settle() == set()
        waiting = told(browser.get(visit.success_url))
        assert "Your bank takes its time: this can last some days." in waiting
        assert "You can leave this page: the credit comes in by itself" in waiting
        assert "every few seconds" not in waiting
        assert "waiting for the bank" in told(browser.get(path(account, "buy/")))
        shop.client.advance(days=7)
        assert shop.settle() == set()
        failed = browser.get(visit.success_url)
        assert "The payment failed" in told(failed)
        assert "Nothing was charged, and no credit came in." in told(failed)
        assert "Refresh" not in failed

    def test_a_bank_that_takes_its_time_and_pays(self, shop: Shop) -> None:  # noqa: F811
        account = shop.account()
        browser = person(account)
        browser.post(path(account, "buy/"), {"pack": "small", "quantity": "1"})
        visit = Checkout.objects.get(account=account)
        shop.pay(visit, BANK_WORKS)
        shop.client.advance(days=7)
        assert shop.settle() == set()
        assert "$6.00 of credit came in" in told(browser.get(visit.success_url))

    def test_a_page_that_expired_is_no_purchase(self, shop: Shop) -> None:  # noqa: F811
        account = shop.account()
        browser = person(account)
        browser.post(path(account, "buy/"), {"pack": "small", "quantity": "1"})
        visit = Checkout.objects.get(account=account)
        shop.client.advance(days=2)
        assert shop.settle() == set()
        assert "This purchase was not finished" in told(browser.get(visit.success_url))

    def test_twice_the_same_order_is_one_visit(self, shop: Shop) -> None:  # noqa: F811
        account = shop.account()
        browser = person(account)
        first = browser.post(path(account, "buy/"), {"pack": "small", "quantity": "1"})
        second = browser.post(path(account, "buy/"), {"pack": "small", "quantity": "1"})
        assert first.headers["Location"] == second.headers["Location"]
        assert Checkout.objects.filter(account=account).count() == 1


class TestPlans:
    @pytest.fixture
    def account(self, shop: Shop) -> Account:  # noqa: F811
        return shop.account()

    @pytest.fixture
    def browser(self, account: Account) -> Browser:
        return person(account)

    def subscribe(self, shop: Shop, browser: Browser, account: Account, plan: str = "core") -> Checkout:  # noqa: F811
        sent = browser.post(path(account, f"billing/plan/{plan}/"))
        visit = Checkout.objects.filter(account=account).latest("pk")
        assert (sent.status_code, sent.headers["Location"]) == (302, visit.url)
        shop.pay(visit)
        assert shop.settle() == set()
        return visit

    def test_from_free_through_checkout_up_down_and_out(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        page = told(browser.get(path(account, "billing/plan/core/")))
        assert "Get Core $10 a month, before tax. You are on Free ($0 a month) now." in page
        assert "You pay on Stripe's page: now, and each month from then on." in page
        assert not Checkout.objects.filter(account=account).exists(), "looking buys nothing"
        visit = self.subscribe(shop, browser, account)
        assert "You are on Core. $10.00 is left to spend." in told(browser.get(visit.success_url))
        page = told(browser.get(path(account, "billing/")))
        assert "Your plan Core It renews" in page
        assert "Next charge $10 on" in page
        assert "Credit with it $10.00 each paid month" in page
        assert re.search(r"Core.* paid \S+ \$10 Invoice", page)

        # Up: at once, for the rest of the period
        page = told(browser.get(path(account, "billing/plan/pro/")))
        due = re.search(r"It changes at once\. (\$\d+(?:\.\d\d)?) is charged to your card now", page)
        assert due is not None
        assert "Then $30 each month." in page
        before = told(browser.get(path(account, "billing/")))
        assert "Your plan Core" in before, "looking changes nothing"
        form = self.form(browser, account, "pro")
        changed = browser.post(path(account, "billing/plan/pro/"), form, follow=True)
        assert shop.settle() == set()
        assert "You are on Pro now." in words(changed.content)
        assert "Your plan Pro" in told(browser.get(path(account, "billing/")))

        # Down: at the end of the period
        page = told(browser.get(path(account, "billing/plan/core/")))
        assert re.search(r"It changes on \d+ \w+ \d{4} .*, and costs \$10 each month from then on\. Nothing is charged now", page)
        browser.post(path(account, "billing/plan/core/"), self.form(browser, account, "core"))
        assert shop.settle() == set()
        page = told(browser.get(path(account, "billing/")))
        assert "Your plan Pro It changes to Core" in page
        assert "Next charge $10 on" in page
        assert "You keep Pro: what was to come at the end of the period is called off." in told(
            browser.get(path(account, "billing/plan/pro/"))
        )

        # Out, and back
        page = told(browser.get(path(account, "billing/cancel/")))
        assert "Cancel Pro? You keep it until" in page
        assert "What you lose then $40.00 of credit each month" in page
        assert "Credit that you bought stays yours." in page
        assert "is canceled" in words(browser.post(path(account, "billing/cancel/"), follow=True).content)
        assert shop.settle() == set()
        page = told(browser.get(path(account, "billing/")))
        assert "You have canceled it: it ends" in page
        assert "and go on with Free; nothing more is charged." in page
        assert "Next charge" not in page
        assert "Keep Pro" in page
        assert "There is nothing to cancel" in words(browser.get(path(account, "billing/cancel/"), follow=True).content)
        assert "it renews as before" in words(browser.post(path(account, "billing/resume/"), follow=True).content)
        assert shop.settle() == set()
        assert "Your plan Pro It renews" in told(browser.get(path(account, "billing/")))

        # To the default plan is a cancellation
        answer = browser.get(path(account, "billing/plan/free/"))
        assert answer.headers["Location"] == path(account, "billing/cancel/")

    def form(self, browser: Browser, account: Account, plan: str) -> dict[str, str]:
        content = browser.get(path(account, f"billing/plan/{plan}/")).content.decode()
        return dict(re.findall(r'<input type="hidden" name="(kind|due)" value="([^"]*)"', content))

    def test_a_change_that_costs_more_than_was_shown_is_shown_anew(
        self, shop: Shop, browser: Browser, account: Account,  # noqa: F811
    ) -> None:  # fmt: skip
        self.subscribe(shop, browser, account)
        due = int(self.form(browser, account, "pro")["due"])
        for kind, shown in (("upgrade", str(due - 1)), ("downgrade", str(due)), ("", ""), ("upgrade", "１"), ("upgrade", "9" * 99)):
            page = told(browser.post(path(account, "billing/plan/pro/"), {"kind": kind, "due": shown}))
            assert "Something has changed since you looked. Nothing was done" in page
        live = subscriptions.current(account_id=account.pk)
        assert live is not None
        assert live.plan_version.plan.slug == "core"

    def test_a_card_that_is_declined_changes_nothing(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        self.subscribe(shop, browser, account)
        customer = StripeSubscription.objects.get(account=account).account.stripe_customer.pk
        form = self.form(browser, account, "pro")
        shop.client.use_card(customer, "pm_card_chargeCustomerFail")
        subscription = StripeSubscription.objects.get(account=account).pk
        shop.client.v1.subscriptions.update(subscription, {"default_payment_method": ""})
        page = told(browser.post(path(account, "billing/plan/pro/"), form), 409)
        assert "declined" in page
        assert "Your plan Core" in told(browser.get(path(account, "billing/")))

    def test_a_trial_says_until_when_and_what_then(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        shop.plan("tried", 2_000, 20, rank=9, trial_days=14)
        page = told(browser.get(path(account, "billing/plan/tried/")))
        assert "Free for 14 days. Your card is charged after that, unless you cancel before. " in page
        assert "Start the trial" in page
        visit = self.subscribe(shop, browser, account, "tried")
        begun = told(browser.get(visit.success_url))
        assert "Your trial has begun You are on Tried, free for 14 days." in begun
        assert "Nothing was charged." in begun
        assert "paid" not in begun
        assert "receipt" not in begun
        page = told(browser.get(path(account, "billing/")))
        assert "Your trial runs until" in page
        assert "Then it costs $20 a month, unless you cancel before." in page
        assert "First charge $20" in page

    def test_who_had_a_trial_is_promised_no_other(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        shop.plan("tried", 2_000, 20, rank=9, trial_days=14)
        shop.plan("other", 3_000, 30, rank=10, trial_days=14)
        promise, where = "14 days free to try", f"/pricing/{account.product.slug}/"
        assert told(browser.get(where)).count(promise) == 2
        self.subscribe(shop, browser, account, "tried")
        assert promise not in told(browser.get(where))

    def test_an_unpaid_renewal_says_what_to_do(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        self.subscribe(shop, browser, account)
        subscription = StripeSubscription.objects.get(account=account).pk
        shop.client.use_card(account.stripe_customer.pk, "pm_card_chargeCustomerFail")
        shop.client.v1.subscriptions.update(subscription, {"default_payment_method": ""})
        shop.client.advance(days=32)
        assert shop.settle() == set()
        page = told(browser.get(path(account, "billing/")))
        assert "The last payment did not go through. Your plan goes on while the card is tried again, until" in page
        assert "Update card" in page
        assert "to pay" in page
        assert "The last invoice is not paid" in told(browser.get(path(account, "billing/plan/pro/")), 409)

    def test_the_portal_leads_to_stripe_and_back_to_billing(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        self.subscribe(shop, browser, account)
        sent = browser.post(path(account, "billing/portal/"))
        assert sent.status_code == 302
        assert sent.headers["Location"].startswith(f"{shop.client.address}/p/")

    def test_a_plan_that_is_not_on_sale_there_is_refused_in_words(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        shop.monkeypatch.setenv(f"PRICE_CORE_{shop.suffix}", "price_gone")
        assert "Core cannot be bought at the moment" in told(browser.post(path(account, "billing/plan/core/")), 409)

    def test_forms_may_lead_to_the_hosted_pages_and_nowhere_else(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        policy = browser.get(path(account, "buy/")).headers["Content-Security-Policy"]
        [allowed] = re.findall(r"form-action ([^;]*)", policy)
        assert allowed.split() == ["'self'", "https://checkout.stripe.com", "https://billing.stripe.com", shop.client.address]

    @pytest.mark.failure(70)
    def test_with_stripe_away_pages_are_read_and_buttons_say_so(self, shop: Shop, browser: Browser, account: Account) -> None:  # noqa: F811
        self.subscribe(shop, browser, account)
        form = self.form(browser, account, "pro")
        shop.client.control("POST", "/fault", mode="500_before", path="/v1/")
        try:
            for page in PAGES:
                assert browser.get(path(account, page)).status_code == 200
            posts = [("billing/plan/pro/", form), ("billing/cancel/", {}), ("billing/resume/", {}), ("billing/portal/", {})]
            for page, data in [*posts, ("buy/", {"pack": "small", "quantity": "1"})]:
                response = browser.post(path(account, page), data)
                assert "Payments cannot be reached just now" in told(response, 503), page
                assert response.headers["Retry-After"]
            assert "Payments cannot be reached just now" in told(browser.get(path(account, "billing/plan/pro/")), 503)
        finally:
            shop.client.control("DELETE", "/fault")
        assert "Your plan Core It renews" in told(browser.get(path(account, "billing/")))


@pytest.mark.django_db
class TestReading:
    """What needs no Stripe at all."""

    @pytest.fixture
    def account(self) -> Account:
        product = make_product()
        CreditPack.objects.create(
            product=product, slug="small", name="Small", valid_from=START, price_cents=500, credit_nanos=6 * NANOS, expires_after_days=90
        )
        plan = Plan.objects.create(product=product, slug="pro", name="Pro", rank=2)
        PlanVersion.objects.create(plan=plan, valid_from=START, price_cents=1_000, rate_card="standard")
        return make_account(product, credit=3)

    def visit(self, account: Account, **fields: Any) -> Checkout:
        values = {"thing": "pack:small", "name": "Small", "amount_cents": 500, "currency": "usd", "actor": "t"}
        pack = CreditPack.objects.filter(product=account.product).first()
        return Checkout.objects.create(account=account, pack=pack, created_at=datetime.now(UTC), **values | fields)

    def test_the_free_plan_costs_nothing_and_offers_others(self, account: Account) -> None:
        page = told(person(account).get(path(account, "billing/")))
        assert "Your plan Free It costs nothing by itself. Change plan" in page
        assert "Cancel plan" not in page
        assert "Nothing was charged yet" in page

    def test_an_agreed_price_is_told_as_agreed(self, account: Account) -> None:
        made = Plan.objects.create(product=account.product, slug="custom", name="Custom", rank=5)
        version = PlanVersion.objects.create(plan=made, valid_from=START, price_cents=None, rate_card="standard")
        Subscription.objects.filter(account=account).update(plan_version=version)
        assert "Its price is agreed with you." in told(person(account).get(path(account, "billing/")))

    def test_a_plan_whose_grace_is_over_says_how_to_have_it_back(self, account: Account) -> None:
        over = datetime.now(UTC) - timedelta(hours=1)
        Subscription.objects.filter(account=account).update(status="past_due", grace_ends_at=over)
        page = told(person(account).get(path(account, "billing/")))
        assert f"Your plan stopped counting on {over.day} {over:%B %Y, %H:%M}. Update your card" in page
        assert "to have it back." in page

    def test_without_a_plan_it_says_to_choose_one(self, account: Account) -> None:
        subscriptions.end(account=account, now=datetime.now(UTC))
        assert "Choose a plan to begin working." in told(person(account).get(path(account, "billing/")))

    def test_invoices_are_listed_with_their_pages(self, account: Account) -> None:
        at = datetime(2026, 3, 4, tzinfo=UTC)
        StripeInvoice.objects.create(
            id="in_1", account=account, number="A-0001", status="open", description="Pro", currency="usd", total=1_190, tax=190, paid=0,
            created_at=at, period_start=at, period_end=at, hosted_invoice_url="https://invoice.stripe.com/i/1",
            invoice_pdf="https://pay.stripe.com/1.pdf", read_number=1,
        )  # fmt: skip
        content = person(account).get(path(account, "billing/")).content
        assert "4 Mar 2026 Pro to pay A-0001 $11.90 $1.90 tax Pay A-0001 · PDF A-0001" in words(content)
        assert b'href="https://invoice.stripe.com/i/1" rel="noopener noreferrer"' in content

    def test_a_pack_says_when_it_expires_and_one_can_be_chosen_beforehand(self, account: Account) -> None:
        response = person(account).get(path(account, "buy/?pack=small"))
        assert "$6.00 of credit 20 % bonus Small · expires after 90 days $5" in told(response)
        assert b'value="small" required checked' in response.content

    def test_without_packs_it_says_where_to_look(self) -> None:
        account = make_account()
        assert "No packs on sale" in told(person(account).get(path(account, "buy/")))
        assert "Buy credits" not in told(person(account).get(path(account, "billing/")))

    def test_debt_is_told_before_buying(self, account: Account) -> None:
        give(account, 1)
        assert "$3.00 left to spend now" in told(person(account).get(path(account, "buy/")))

    @pytest.mark.parametrize("state", ["paid", "failed", "expired"])
    def test_a_finished_visit_does_not_look_again(self, account: Account, state: str) -> None:
        visit = self.visit(account, state=state, completed=True)
        assert "Refresh" not in person(account).get(path(account, f"checkout/{visit.public_id}/"))

    @pytest.mark.failure(63)
    def test_paid_without_its_credit_is_not_called_credited(self, account: Account) -> None:
        visit = self.visit(account, state="paid", completed=True)
        page = told(person(account).get(path(account, f"checkout/{visit.public_id}/")))
        assert "The credit is on its way to your balance; $3.00 is left to spend" in page

    @pytest.mark.failure(63)
    def test_looking_at_it_however_often_grants_nothing(self, account: Account) -> None:
        visit = self.visit(account)
        browser = person(account)
        for _ in range(3):
            assert "Waiting for the payment" in told(browser.get(path(account, f"checkout/{visit.public_id}/")))
        assert "$3.00 left to spend now" in told(browser.get(path(account, "buy/")))
        visit.refresh_from_db()
        assert visit.state == "open"

    def test_it_looks_again_less_and_less_and_then_waits_for_the_visitor(self, account: Account) -> None:
        visit = self.visit(account)
        browser = person(account)
        address = path(account, f"checkout/{visit.public_id}/")
        assert browser.get(f"{address}?look=29").headers["Refresh"] == f"8; url={address}?look=30"
        last = browser.get(f"{address}?look=30")
        assert "Refresh" not in last
        assert "Look again later" in told(last)

    @pytest.mark.failure(63)
    def test_a_forged_or_foreign_visit_is_not_found(self, account: Account) -> None:
        other = make_account(account.product)
        theirs = self.visit(other)
        browser = person(account)
        for id_ in (theirs.public_id, "co_" + "0" * 20, "co_", "cs_test_1", "co_" + "g" * 20, "%00", theirs.public_id.upper()):
            assert browser.get(path(account, f"checkout/{id_}/")).status_code == 404
        assert browser.get(path(other, f"checkout/{theirs.public_id}/")).status_code == 404

    @pytest.mark.parametrize("look", ["-1", "１", "1.5", "9999", "x", "%00", ""])
    def test_garbage_in_the_address_is_not_found(self, account: Account, look: str) -> None:
        visit = self.visit(account)
        assert person(account).get(path(account, f"checkout/{visit.public_id}/?look={look}")).status_code == 404

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"pack": "", "quantity": "1"},
            {"pack": "small"},
            {"pack": "small", "quantity": ""},
            {"pack": "small", "quantity": "0"},
            {"pack": "small", "quantity": "-1"},
            {"pack": "small", "quantity": "1.5"},
            {"pack": "small", "quantity": "101"},
            {"pack": "small", "quantity": "1e2"},
            {"pack": "small", "quantity": "NaN"},
            {"pack": "small", "quantity": "9" * 5_000},
            {"pack": "nobody", "quantity": "1"},
            {"pack": "sm\0all", "quantity": "1"},
            {"pack": "x" * 5_000, "quantity": "1"},
            {"pack": "<script>", "quantity": "1"},
        ],
    )
    def test_garbage_in_the_order_is_refused_beside_its_field_and_nothing_is_bought(self, account: Account, data: dict[str, str]) -> None:
        response = person(account).post(path(account, "buy/"), data)
        assert "Nothing was bought." in told(response, 422)
        assert b'class="errorlist"' in response.content
        assert b"<script>" not in response.content
        assert not Checkout.objects.filter(account=account).exists()

    @pytest.mark.parametrize("slug", ["nobody", "x" * 64, "cancel%00", "..", "PRO"])
    def test_a_plan_that_there_is_not_is_not_found(self, account: Account, slug: str) -> None:
        browser = person(account)
        assert browser.get(path(account, f"billing/plan/{slug}/")).status_code == 404
        assert browser.post(path(account, f"billing/plan/{slug}/")).status_code == 404

    def test_a_closed_account_reads_its_bills_and_buys_nothing(self, account: Account) -> None:
        Account.objects.filter(pk=account.pk).update(closed_at=datetime.now(UTC))
        browser = person(account)
        assert "This account was closed" in told(browser.get(path(account, "billing/")))
        assert "Continue to payment" not in told(browser.get(path(account, "buy/")))
        assert "Nothing can be bought for it." in told(browser.post(path(account, "buy/"), {"pack": "small", "quantity": "1"}), 422)
        assert not Checkout.objects.filter(account=account).exists()


@pytest.mark.django_db
class TestWho:
    @pytest.fixture
    def account(self) -> Account:
        return make_account(credit=1)

    @pytest.mark.parametrize("page", [*PAGES, *CHANGING])
    def test_a_visitor_is_sent_to_sign_in_and_back(self, client: Browser, account: Account, page: str) -> None:
        assert client.get(path(account, page)).headers["Location"] == f"/accounts/login/?next={path(account, page)}"

    @pytest.mark.parametrize("page", PAGES)
    def test_a_member_reads_and_finds_no_button(self, account: Account, page: str) -> None:
        response = person(account, Membership.Role.MEMBER).get(path(account, page))
        assert "Only owners and admins of Ada can" in told(response)
        assert b'method="post" action="/a/' not in response.content

    @pytest.mark.parametrize("page", ACTING)
    def test_a_member_changes_nothing(self, account: Account, page: str) -> None:
        browser = person(account, Membership.Role.MEMBER)
        assert browser.post(path(account, page), {"pack": "small", "quantity": "1"}).status_code == 403
        if page in CHANGING:
            assert browser.get(path(account, page)).status_code == 403

    @pytest.mark.parametrize("page", [*PAGES, *CHANGING])
    def test_an_admin_may(self, account: Account, page: str) -> None:
        assert person(account, Membership.Role.ADMIN).get(path(account, page)).status_code in (200, 302, 404)

    @pytest.mark.parametrize("page", [*ACTING, *PAGES])
    def test_somebody_elses_looks_like_none(self, account: Account, page: str) -> None:
        browser = person(make_account())
        for method in (browser.get, browser.post):
            answer = method(path(account, page)).status_code
            assert answer in (404, 405)
            assert answer == method(f"/a/acct_{'0' * 20}/{page}").status_code

    @pytest.mark.failure(91)
    @pytest.mark.parametrize("page", ACTING)
    def test_a_form_from_elsewhere_is_refused(self, account: Account, page: str) -> None:
        browser = person(account)
        browser.handler.enforce_csrf_checks = True
        assert browser.post(path(account, page), {"pack": "small", "quantity": "1"}).status_code == 403

    @pytest.mark.failure(91)
    @pytest.mark.parametrize("page", ["billing/resume/", "billing/portal/"])
    def test_what_only_acts_cannot_be_had_by_a_link(self, account: Account, page: str) -> None:
        assert person(account).get(path(account, page)).status_code == 405

    @pytest.mark.failure(91)
    @pytest.mark.parametrize("page", [*PAGES, *CHANGING])
    def test_none_is_in_a_frame_or_in_a_cache(self, account: Account, page: str) -> None:
        response = person(account).get(path(account, page))
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Frame-Options"] == "DENY"
        if response.status_code == 200:
            assert "no-store" in response.headers["Cache-Control"]

    @pytest.mark.parametrize("page", PAGES)
    def test_more_history_asks_no_more_queries_and_weighs_little(self, account: Account, page: str) -> None:
        def count() -> int:
            with CaptureQueriesContext(connection) as queries:
                assert len(browser.get(path(account, page)).content) < 100_000
            return len(queries)

        browser = person(account)
        pack = CreditPack.objects.create(
            product=account.product, slug="small", name="Small", valid_from=START, price_cents=500, credit_nanos=NANOS
        )
        few = count()
        at = datetime.now(UTC)
        for number in range(60):
            Checkout.objects.create(
                account=account, pack=pack, thing="pack:small", name="Small", amount_cents=500, currency="usd", actor="t", state="paid",
                created_at=at - timedelta(hours=number),
            )  # fmt: skip
            StripeInvoice.objects.create(
                id=f"in_{secrets.token_hex(6)}", account=account, status="paid", currency="usd", total=500, tax=0, paid=500, created_at=at,
                period_start=at, period_end=at, hosted_invoice_url="https://invoice.stripe.com/" + "i" * 400, read_number=1,
            )  # fmt: skip
        assert count() == few <= 26
