"""The customer's pages in a real browser: sign in, read, on a phone, in the dark, without JavaScript and without a request to anybody
else. ``TOLLGATE_SCREENSHOTS=<folder>`` keeps a picture of every page.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from allauth.account.models import EmailAddress
from playwright.sync_api import Browser, BrowserContext, Page, expect
from pytest_django.plugin import DjangoDbBlocker

from accounts import registration
from accounts.models import Account, User
from conftest import CHROMIUM
from metering import usage
from pricing.models import Product, Unit
from tests import factories

PASSWORD = "correct horse battery"
PAGES = ("", "usage/", "usage/?by=feature&days=90", "credits/", "statement/", "statement/?view=days")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: install the package chromium, or name it in CHROMIUM")


@dataclass(frozen=True)
class Customer:
    user: User
    account: Account


def person(email: str) -> User:
    user = User.objects.create_user(email, PASSWORD)
    EmailAddress.objects.create(user=user, email=email, verified=True, primary=True)
    return user


def customer(product: Product, *, events: int = 60) -> Customer:
    """Somebody with three grants and a month of use."""
    user = person(f"ada.{secrets.token_hex(3)}@example.com")
    now = datetime.now(UTC)
    account = registration.open_account(
        product=product,
        external_id=str(user.pk),
        name="Ada Lovelace",
        owner=user,
        now=now - timedelta(days=40),
        time_zone="Europe/Paris",
    )
    factories.give(account, 5 * factories.NANOS, source="welcome", priority=10, expires_at=now + timedelta(days=9), cash_nanos=0)
    factories.give(account, 20 * factories.NANOS, source="monthly", priority=20, expires_at=now + timedelta(days=23), cash_nanos=0)
    factories.give(account, 25 * factories.NANOS, source="purchased", priority=30)
    models = [factories.make_model(), factories.make_model(input_price=250_000_000, output_price=1_250_000_000)]
    reports = [
        usage.Event(
            key=secrets.token_hex(8),
            account=account,
            at=now - timedelta(hours=n * n * 0.18 + n, minutes=7 * n),
            model=models[n % 3 // 2],
            quantities={"input_tokens": 1_200 + 731 * n, "cached_input_tokens": 0, "output_tokens": 90 + 53 * (n % 17)},
            feature="chat" if n % 4 else None,
            user=f"user-{n % 3}",
        )
        for n in reversed(range(events))
    ]
    for answer in usage.record(events=reports, now=now):
        assert not isinstance(answer, Exception), answer
    return Customer(user, account)


@pytest.fixture(scope="session")
def ada(django_db_setup: None, django_db_blocker: DjangoDbBlocker, browser: Browser) -> Customer:
    with django_db_blocker.unblock():
        return customer(factories.make_product(support_email="help@example.com", brand_colour="#0f766e"))


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    yield context
    context.close()


def sign_in(page: Page, server: str, who: Customer) -> None:
    page.goto(f"{server}/")
    page.get_by_label("Email").fill(who.user.email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def name_of(where: str) -> str:
    return re.sub(r"\W+", "-", where).strip("-") or "overview"


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("TOLLGATE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_signing_in_answers_what_is_left_first(server: str, ada: Customer, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(f"{server}/")
    keep(page, "login")
    sign_in(page, server, ada)
    page.wait_for_url(f"**/a/{ada.account.public_id}/")
    assert page.locator("main h1").first.inner_text().startswith("Left to spend\n$4")
    assert "You used $" in page.locator(".hero-main").inner_text()
    keep(page, "overview")


def test_the_statement_ends_at_the_balance_and_each_charge_explains_itself(server: str, ada: Customer, context: BrowserContext) -> None:
    page = context.new_page()
    sign_in(page, server, ada)
    page.get_by_role("navigation", name="Account").get_by_role("link", name="Credits").click()
    keep(page, "credits-page")
    left = page.locator(".hero-figure data").get_attribute("value")
    page.get_by_role("link", name="Statement", exact=True).click()
    keep(page, "statement")
    assert page.locator("tfoot td").last.inner_text().lstrip("$").rstrip("0") == (left or "").rstrip("0")
    rows = page.locator("section.long tbody tr")
    assert rows.count() == 50
    assert "Welcome credit" in rows.first.inner_text()
    page.get_by_role("link", name="Later →").click()
    page.locator("section.long tbody tr").last.get_by_role("link").click()
    assert page.locator("h1").inner_text().startswith("Charged $")
    keep(page, "explain")


def test_a_period_is_picked_without_javascript_and_printed_by_day(server: str, ada: Customer, browser: Browser) -> None:
    plain = browser.new_context(java_script_enabled=False)
    page = plain.new_page()
    sign_in(page, server, ada)
    page.goto(f"{server}/a/{ada.account.public_id}/statement/")
    page.get_by_label("Period", exact=True).select_option(index=2)
    page.get_by_role("button", name="Show").click()
    assert "period=" in page.url
    page.get_by_role("link", name="Use by day, to print").click()
    page.emulate_media(media="print")
    assert not page.locator(".picker").is_visible()
    assert not page.locator(".tabs").is_visible()
    keep(page, "print")
    plain.close()


def test_the_widget_is_framed_by_the_products_own_page_and_by_no_other(
    server: str, ada: Customer, browser: Browser, django_db_blocker: DjangoDbBlocker
) -> None:
    ours = urlsplit(server)
    other = f"{ours.scheme}://localhost:{ours.port}"
    Product.objects.filter(pk=ada.account.product_id).update(allowed_origins=[server])
    key = factories.make_key(ada.account.product)
    asked = urllib.request.Request(
        f"{server}/api/v1/billing/widget", json.dumps({"account": ada.account.public_id}).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(asked) as response:
        address = json.load(response)["url"]
    for host, seen in ((server, True), (other, False)):
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": 280, "height": 200}, color_scheme=scheme)
            page = context.new_page()
            page.route("**/host", lambda route: route.fulfill(content_type="text/html", body=_FRAME % address))
            page.goto(f"{host}/host")
            page.wait_for_timeout(300)
            shown = page.frames[-1].locator(".figure").count() == 1
            assert shown is seen, (host, scheme)
            if seen:
                assert "$" in page.frames[-1].locator(".figure").inner_text()
                assert context.cookies() == []
                keep(page, f"widget-{scheme}")
            context.close()


_FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><body><iframe src="%s" width="240" height="140"></iframe>"""


def test_the_usage_page_draws_every_day_and_lists_every_use(server: str, ada: Customer, context: BrowserContext) -> None:
    page = context.new_page()
    sign_in(page, server, ada)
    page.goto(f"{server}/a/{ada.account.public_id}/usage/")
    assert page.locator(".chart g").count() == 30
    keep(page, "usage")
    seen = page.locator("#records tbody tr").count()
    while page.get_by_role("link", name="Older →").count():
        page.get_by_role("link", name="Older →").click()
        seen += page.locator("#records tbody tr").count()
    assert seen == 60


@pytest.mark.parametrize("where", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(server: str, ada: Customer, browser: Browser, where: str, scheme: str) -> None:
    phone = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme, device_scale_factor=2)  # type: ignore[arg-type]
    page = phone.new_page()
    sign_in(page, server, ada)
    page.goto(f"{server}/a/{ada.account.public_id}/{where}")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    keep(page, f"phone-{scheme}-{name_of(where)}")
    phone.close()


def test_the_dark_scheme_is_dark_and_readable(server: str, ada: Customer, browser: Browser) -> None:
    night = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="dark")
    page = night.new_page()
    sign_in(page, server, ada)
    for where in PAGES:
        page.goto(f"{server}/a/{ada.account.public_id}/{where}")
        keep(page, f"dark-{name_of(where)}")
        assert page.evaluate(_LIGHTNESS, "body") < 0.1
        assert page.evaluate(_WORST_CONTRAST) >= 4.5
    night.close()


def test_text_stands_out_from_its_ground(server: str, ada: Customer, context: BrowserContext) -> None:
    page = context.new_page()
    sign_in(page, server, ada)
    for where in PAGES:
        page.goto(f"{server}/a/{ada.account.public_id}/{where}")
        assert page.evaluate(_WORST_CONTRAST) >= 4.5, where


def test_pages_ask_nobody_else_for_anything_and_stay_small(server: str, ada: Customer, context: BrowserContext) -> None:
    page = context.new_page()
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    sign_in(page, server, ada)
    for where in PAGES:
        page.goto(f"{server}/a/{ada.account.public_id}/{where}")
        assert len(page.content().encode()) < 100_000, where
    assert [url for url in asked if not url.startswith(server)] == []
    assert problems == []


def test_pages_work_without_javascript(server: str, ada: Customer, browser: Browser) -> None:
    plain = browser.new_context(java_script_enabled=False)
    page = plain.new_page()
    sign_in(page, server, ada)
    page.wait_for_url(f"**/a/{ada.account.public_id}/")
    page.get_by_text("Show every day as a table").click()
    assert page.locator(".behind tbody tr").count() == 30
    assert page.locator(".behind tbody tr").first.is_visible()
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{server}/a/{ada.account.public_id}/")
    assert "/accounts/login/" in page.url
    plain.close()


def test_the_keyboard_reaches_the_content_first(server: str, ada: Customer, context: BrowserContext) -> None:
    page = context.new_page()
    sign_in(page, server, ada)
    page.wait_for_url(f"{server}/a/**", wait_until="load")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    assert skip.bounding_box()["y"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{server}/a/{ada.account.public_id}/#main")


def test_empty_pages_say_what_to_do(server: str, ada: Customer, context: BrowserContext) -> None:
    user = person(f"{secrets.token_hex(6)}@example.com")
    account = registration.open_account(
        product=ada.account.product, external_id=str(user.pk), name="New", owner=user, now=datetime.now(UTC)
    )
    page = context.new_page()
    sign_in(page, server, Customer(user, account))
    for where in PAGES:
        page.goto(f"{server}/a/{account.public_id}/{where}")
        assert page.locator(".empty h3").first.is_visible()
        keep(page, f"empty-{name_of(where)}")


def test_a_product_that_counts_credits_never_shows_a_price_per_token(server: str, ada: Customer, context: BrowserContext) -> None:
    unit = Unit.objects.create(code=f"{secrets.token_hex(3)}.credit", name="credit", decimals=0)
    product = factories.make_product(
        unit=unit,
        visibility=Product.Visibility.DEPLETION_ONLY,
        mode="credit_rate",
        tokens_per_credit=5_000,
        default_multiplier_ppm=1_000_000,
    )
    bob = customer(product, events=8)
    page = context.new_page()
    sign_in(page, server, bob)
    page.wait_for_url(f"**/a/{bob.account.public_id}/")
    assert "credits" in page.locator(".hero-figure").inner_text()
    keep(page, "credits")
    for where in PAGES:
        page.goto(f"{server}/a/{bob.account.public_id}/{where}")
        assert "token" not in page.locator("main").inner_text().lower(), where


_LIGHTNESS = """selector => {
  const [r, g, b] = getComputedStyle(document.querySelector(selector)).backgroundColor.match(/[\\d.]+/g).map(Number);
  return (r + g + b) / 765;
}"""

#: The least contrast (WCAG 2) of any visible text on the page with the ground it stands on.
_WORST_CONTRAST = """() => {
  const numbers = colour => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const luminance = colour => [0, 1, 2].map(i => colour[i] / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let worst = 21;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("svg, .skip, .unseen") || !element.checkVisibility()) continue;
    let ground = element;
    while (ground && numbers(getComputedStyle(ground).backgroundColor)[3] < 255) ground = ground.parentElement;
    const [light, dark] = [luminance(numbers(getComputedStyle(element).color)),
      luminance(numbers(getComputedStyle(ground || document.body).backgroundColor))].sort((a, b) => b - a);
    worst = Math.min(worst, (light + 0.05) / (dark + 0.05));
  }
  return worst;
}"""
