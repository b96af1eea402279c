"""From a visitor to a paying customer and out again, in a real browser, against the double of Stripe's own hosted pages.

``TOLLGATE_SCREENSHOTS=docs/screenshots python -m pytest tests/test_shop_browser.py`` takes the pictures of the README anew.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from django.core import mail
from django.db import transaction
from django.test import Client as HttpClient
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Page, expect

from accounts.models import Account
from billing import audit, subscriptions
from billing.models import Checkout
from billing.tests.selling import CARD, Shop, double, shop  # noqa: F401 (fixtures)
from metering.tests.limited import plan_version
from pricing import catalog
from pricing.models import Entitlement, Product
from tests import factories
from tests.test_browser import _WORST_CONTRAST, keep, pytestmark

__all__ = ["pytestmark"]

NANOS = factories.NANOS
PASSWORD = "correct horse battery"
CHECKOUT_FORM = {"Address": "1 Rue de la Paix", "Postal code": "75002", "City": "Paris", "Country (two letters)": "FR"}


@pytest.fixture
def product(shop: Shop) -> Product:  # noqa: F811
    """Two messages a day for nothing, a thousand for $10 a month; $1 of welcome credit; packs."""
    shop.product.plans.exclude(slug="free").update(available=False)
    plan_version(shop.product.plans.get(slug="free"), ("messages", "day", 2))
    with transaction.atomic():
        plus = shop.plan("plus", 1_000, 10, rank=9)
        Entitlement.objects.create(plan_version=plus, key="messages", kind="limit", window="day", limit=1_000)
    Product.objects.filter(pk=shop.product.pk).update(name="Rover", welcome_credit_nanos=NANOS, brand_colour="#0f766e")
    catalog.clear()
    return Product.objects.get(pk=shop.product.pk)


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    yield from _page(context, server)
    context.close()


def _page(context: BrowserContext, server: str) -> Iterator[Page]:
    """A page on which our own ones must keep the console silent: a policy that is broken, or a script that fails, is heard there."""
    page = context.new_page()
    heard: list[tuple[str, str]] = []
    page.on("console", lambda message: heard.append((message.location["url"], message.text)))
    page.on("pageerror", lambda error: heard.append((server, str(error))))
    yield page
    assert [text for url, text in heard if url.startswith(server)] == []


def sign_up(page: Page, server: str, product: Product) -> Account:
    """By the pricing page, the form and the link in the mail."""
    email = f"ada.{secrets.token_hex(4)}@example.com"
    page.goto(f"{server}/pricing/{product.slug}/")
    page.get_by_role("link", name="Sign up free").click()
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password (again)").fill(PASSWORD)
    page.get_by_role("button", name="Open the account").click()
    page.wait_for_url("**/accounts/confirm-email/")
    [link] = re.findall(r"https?://\S+/accounts/confirm-email/\S+", str(mail.outbox[-1].body))
    page.goto(link)
    page.get_by_role("button", name="Confirm").click()
    if "login" in page.url:
        page.get_by_label("Email").fill(email)
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
    return Account.objects.get(memberships__user__email=email)


def ask(server: str, product: Product, account: Account, model: str) -> tuple[int, dict[str, Any]]:
    """What a client app does before a model call; if it may, the call is made and reported."""
    headers = {"Authorization": f"Bearer {factories.make_key(product)}", "Idempotency-Key": secrets.token_hex(6)}
    body = {"account": account.public_id, "model": model, "estimate": {"input_tokens": 10_000, "max_output_tokens": 0}}
    client = HttpClient()
    asked = client.post("/api/v1/usage/authorize", body, content_type="application/json", headers=headers)
    answer: dict[str, Any] = asked.json()
    if asked.status_code < 300:
        done = client.post(
            f"/api/v1/usage/authorizations/{answer['id']}/capture",
            {"quantities": {"input_tokens": 10_000}},
            content_type="application/json",
            headers=headers,
        )
        assert done.status_code < 300, done.content
    return asked.status_code, answer


def pay(page: Page, number: str = CARD) -> None:
    """On the hosted page."""
    page.get_by_label("Card or account number").fill(number)
    page.get_by_label("Name on card").fill("Ada Lovelace")
    for label, value in CHECKOUT_FORM.items():
        page.get_by_label(label, exact=True).fill(value)
    page.locator("form#pay button").click()


def test_from_visitor_to_customer_and_out_again(server: str, shop: Shop, product: Product, page: Page) -> None:  # noqa: F811
    model = factories.make_model()
    page.goto(f"{server}/pricing/{product.slug}/")
    keep(page, "pricing")
    account = sign_up(page, server, product)

    # Welcome credit
    page.goto(f"{server}/a/{account.public_id}/")
    assert page.locator("main h1").first.inner_text() == "Left to spend\n$1.00"

    # A limit: the client app sends its customer to the page that the refusal names
    assert [ask(server, product, account, model)[0] for _ in range(2)] == [200, 200]
    status, refusal = ask(server, product, account, model)
    assert (status, refusal["code"], refusal["upgrade"]["plan"]) == (429, "quota_exceeded", "plus")
    page.goto(f"{server}/a/{account.public_id}/")
    page.get_by_role("link", name="How to go on").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.goto(refusal["page"].replace("https://testserver", server))
    expect(page.get_by_role("heading", level=1)).to_have_text("All messages of today are used")
    expect(page.get_by_text("Plus gives you: 1,000 messages a day")).to_be_visible()
    keep(page, "limit")

    # The upgrade: what it costs, then the hosted page
    page.get_by_role("link", name="Upgrade to Plus").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Get Plus")
    keep(page, "upgrade")
    page.get_by_role("button", name="Continue to payment").click()
    page.wait_for_url(f"{shop.client.address}/c/pay/**")
    keep(page, "hosted")
    pay(page)

    # Back: pending until the webhook is worked, then paid, by itself
    page.wait_for_url(f"{server}/a/{account.public_id}/checkout/co_*/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Waiting for the payment to be confirmed")
    keep(page, "pending")
    assert shop.settle() == set()
    expect(page.get_by_role("heading", level=1)).to_have_text("Thank you: it is paid", timeout=15_000)
    keep(page, "paid")

    # Its credit is usable, and the limit is the new plan's
    assert ask(server, product, account, model)[0] == 200
    page.get_by_role("link", name="Billing", exact=True).last.click()
    expect(page.locator("main h1")).to_contain_text("Plus")
    keep(page, "billing")

    # The portal and back
    page.get_by_role("button", name="Open Stripe's page").click()
    page.wait_for_url(f"{shop.client.address}/p/**")
    page.goto(f"{server}/a/{account.public_id}/billing/")

    # Out: what is lost and when, then it ends with its period
    page.get_by_role("link", name="Cancel plan").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Cancel Plus?")
    expect(page.get_by_text("$10.00 of credit each month")).to_be_visible()
    keep(page, "cancel")
    page.get_by_role("button", name="Cancel Plus").click()
    assert shop.settle() == set()
    page.reload()
    expect(page.get_by_text("You have canceled it")).to_be_visible()
    live = subscriptions.current(account_id=account.pk)
    assert live is not None
    assert live.cancel_at_period_end
    assert audit.run() == []


def test_credits_are_bought_without_javascript_on_a_phone_in_the_dark(
    server: str, shop: Shop, product: Product, browser: Browser  # noqa: F811
) -> None:  # fmt: skip
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, color_scheme="dark", java_script_enabled=False, device_scale_factor=2
    )
    page = context.new_page()
    account = sign_up(page, server, product)
    page.goto(f"{server}/a/{account.public_id}/")
    page.get_by_role("link", name="Buy credits").click()
    page.get_by_label("Small").check()
    page.get_by_label("How many").fill("2")
    keep(page, "buy-phone")
    page.get_by_role("button", name="Continue to payment").click()
    page.wait_for_url(f"{shop.client.address}/c/pay/**")
    page.get_by_role("link", name="Back").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Nothing was charged")
    page.get_by_role("link", name="Go on paying").click()
    pay(page)
    page.wait_for_url(f"{server}/a/{account.public_id}/checkout/co_*/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Waiting for the payment to be confirmed")
    assert shop.settle() == set()
    expect(page.get_by_role("heading", level=1)).to_have_text("Thank you: it is paid", timeout=15_000)
    assert "$12.00 of credit came in; $13.00 is left to spend" in page.locator("main").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (360, "light"), (1440, "dark")])
def test_every_page_fits_and_can_be_read(
    server: str, shop: Shop, product: Product, browser: Browser, width: int, scheme: str  # noqa: F811
) -> None:  # fmt: skip
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    for page in _page(context, server):
        account = sign_up(page, server, product)
        now = timezone.now()
        visits = {
            state: Checkout.objects.create(
                account=account, pack=product.packs.get(slug="small"), thing=f"pack:{state}", name="Small", amount_cents=500,
                currency="usd", state=state, completed=True, actor="t", created_at=now,
            )
            for state in Checkout.State.values
        }  # fmt: skip
        paths = ["billing/", "billing/plan/plus/", "buy/", "limit/", "limit/?meter=messages/day"]
        for path in [*paths, *(f"checkout/{visit.public_id}/" for visit in visits.values())]:
            page.goto(f"{server}/a/{account.public_id}/{path}")
            looks(page, width, path)
        page.goto(f"{server}/pricing/{product.slug}/")
        looks(page, width, "pricing")
    context.close()


def looks(page: Page, width: int, where: str) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == width, where
    assert page.evaluate(_WORST_CONTRAST) >= 4.5, where
    assert len(page.content().encode()) < 100_000, where
    levels = [int(level) for level in page.evaluate("[...document.querySelectorAll('main :is(h1, h2, h3)')].map(h => h.tagName[1])")]
    assert levels[0] == 1, where
    assert all(after - before <= 1 for before, after in pairwise(levels)), where
