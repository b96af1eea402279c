"""The hosted pages in a real browser, without scripts: buy, be declined, be asked by the bank, subscribe, switch, cancel, resume."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from conftest import CHROMIUM
from stripe_double.tests.conftest import Client, Receiver

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: install the package chromium, or name it in CHROMIUM")


@pytest.fixture
def tab(browser: Browser) -> Page:
    return browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 740}).new_page()


def pay(tab: Page, number: str, button: str) -> None:
    tab.get_by_label("Card or account number").fill(number)
    tab.get_by_role("button", name=button).click()


def test_a_customer_gets_through_checkout_and_the_portal(client: Client, receiver: Receiver, tab: Page) -> None:
    """The shop's own page is an address that answers 501 to a GET: that the browser came to it is all that counts."""
    shop = receiver.url
    core, pro = client.price(2500, name="Core"), client.price(5000)
    given: Any = {
        "mode": "subscription",
        "success_url": f"{shop}?session={{CHECKOUT_SESSION_ID}}",
        "cancel_url": f"{shop}?back",
        "line_items": [{"price": core.id, "quantity": 1}],
    }
    session = client.v1.checkout.sessions.create(given)
    tab.goto(str(session.url))
    expect(tab.get_by_role("heading", name="Checkout")).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.get_by_label("Email").fill("ada@example.com")
    pay(tab, "4000 0000 0000 0002", "Subscribe")
    expect(tab.get_by_role("alert")).to_have_text("Your card was declined.")
    tab.get_by_label("Email").fill("ada@example.com")
    pay(tab, "4000 0027 6000 3184", "Subscribe")
    tab.get_by_role("button", name="Complete authentication").click()
    tab.wait_for_url(f"{shop}?session={session.id}")

    customer = str(client.v1.checkout.sessions.retrieve(session.id).customer)
    tab.goto(str(client.v1.billing_portal.sessions.create({"customer": customer, "return_url": shop}).url))
    pay(tab, "5555555555554444", "Change card")
    expect(tab.get_by_text("mastercard ending in 4444 (default)")).to_be_visible()
    tab.get_by_label("Another plan").select_option(pro.id)
    tab.get_by_role("button", name="Switch plan").click()
    expect(tab.get_by_text("50.00 USD").first).to_be_visible()
    tab.get_by_role("button", name="Cancel the plan").click()
    expect(tab.get_by_text("Cancels on")).to_be_visible()
    tab.get_by_role("button", name="Keep the plan").click()
    expect(tab.get_by_text("Renews on")).to_be_visible()
    tab.get_by_role("listitem").first.get_by_role("link").click()
    expect(tab.get_by_text("Status: paid")).to_be_visible()
    (subscription,) = client.v1.subscriptions.list({"customer": customer}).data
    assert (subscription.status, subscription["items"].data[0].price.id, subscription.cancel_at_period_end) == ("active", pro.id, False)
