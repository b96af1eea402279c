"""The price desk in a real browser: a draft is replayed, read and activated for tomorrow, whose usage it charges, and not today's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from django.db import transaction
from django.test import Client
from playwright.sync_api import Browser

from accounts.models import User
from analytics.drafts import replays
from billing import ledger
from billing.models import Subscription
from metering import usage
from metering.tests.limited import Shop
from pricing.models import Product
from tests.factories import START, make_account, make_model
from tests.test_browser import keep, pytestmark

__all__ = ["pytestmark"]
MONTH = (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))


def month(shop: Shop) -> None:
    """A month of usage by three customers, on two models."""
    dear = make_model(input_price=9_000_000_000)
    others = [make_account(shop.product, credit=50) for _ in range(2)]
    for account, name in ((shop.account, "Ada Lovelace"), (others[0], "Analytical Engines Ltd"), (others[1], "Grace Hopper")):
        account.name = name
        account.save()
    Subscription.objects.filter(account__product=shop.product).update(
        started_at=START, anchor_at=START, current_period_start=MONTH[0], current_period_end=MONTH[1]
    )
    events = [
        usage.Event(
            uuid4().hex, account, MONTH[0] + timedelta(hours=9 * day + hours), model, {"input_tokens": 20_000 * (1 + day % 7) * share}
        )
        for day in range(60)
        for share, hours, model, account in ((9, 1, dear, others[0]), (2, 2, shop.model, others[1]), (1, 3, shop.model, shop.account))
    ]
    for at in range(0, len(events), 60):
        with ledger.clock(at=MONTH[1]):
            usage.record(events=events[at : at + 60], now=MONTH[1])


def test_a_draft_price_is_replayed_and_activated_for_tomorrow(server: str, browser: Browser) -> None:
    with transaction.atomic():
        shop = Shop.new(tier={"daily_cost_nanos": None, "monthly_cost_nanos": None, "requests_per_hour": None})
        Product.objects.filter(pk=shop.product.pk).update(name="Rover", burn_order=["purchased"])
        month(shop)
    client = Client()
    client.force_login(User.objects.create_superuser(f"staff.{uuid4().hex[:6]}@example.com", "correct horse battery"))
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_cookies([{"name": "session", "value": client.cookies["session"].value, "url": server}])
    page, complaints = context.new_page(), list[str]()
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.goto(f"{server}/admin/analytics/draftreplay/new/?product={shop.product.slug}")
    page.get_by_label("Name").fill("Markup 60 %, $15 of cost a month")
    page.get_by_label("First day").fill("2026-03-01")
    page.get_by_label("Last day").fill("2026-03-31")
    page.locator("#id_term_1").select_option('["rate_cards", "standard", "markup_percent"]', force=True)
    page.locator("#id_value_1").fill("60")
    tier = f'["cost_tiers", "{shop.product.plans.get(slug="free").versions.latest("version").cost_tier.slug}", "monthly_cost"]'  # type: ignore[union-attr]
    page.locator("#id_term_2").select_option(tier, force=True)
    page.locator("#id_value_2").fill("15.00")
    keep(page, "replay-new")
    page.get_by_role("button", name="Replay", exact=True).click()
    while (done := replays.work_next(now=datetime.now(UTC))) is not None:
        assert done.error == ""
    page.reload()
    assert "Customers would have paid" in page.content()
    assert "to the nano, for each of 3 accounts" in page.content()
    keep(page, "replay")
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    keep(page, "replay-phone")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.get_by_role("link", name="Activate at a date…").click()
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    assert page.locator("#id_effective").input_value() == f"{tomorrow:%Y-%m-%dT%H:%M}"
    page.get_by_label("Reason").fill("AI cost above half of credit revenue")
    page.get_by_role("button", name="Go on").click()
    keep(page, "replay-activate")
    page.get_by_role("button", name="Activate").click()
    assert f"The draft counts from {tomorrow:%Y-%m-%d} 00:00 UTC on." in page.content()
    assert complaints == []
    context.close()
    for at, price in ((tomorrow - timedelta(seconds=1), 1_500_000), (tomorrow, 1_600_000)):
        with ledger.clock(at=at):
            [record] = usage.record(events=[usage.Event(uuid4().hex, shop.account, at, shop.model, {"input_tokens": 1_000})], now=at)
        assert isinstance(record, ledger.Usage)
        assert record.price_nanos == price
