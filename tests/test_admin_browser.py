"""Staff's pages in a real browser: nothing in the console, nothing from elsewhere, nothing wider than a phone. See test_browser.py."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Page
from pytest_django.plugin import DjangoDbBlocker

from accounts import api_keys
from accounts.models import Account, Membership, User
from analytics.tests.world import NANOS, World
from billing import ledger
from billing.tests.test_calendar import schedule
from metering import usage
from metering.models import ShadowRefusal, UsageRecord
from metering.tests.limited import PER_TOKEN, Shop
from pricing.models import CatalogChange, PriceProposal
from tests import factories
from tests.test_browser import keep, pytestmark

__all__ = ["pytestmark"]


def history(world: World, *, scale: int, seed: int) -> Account:
    """A month in the life of a product; the account to look at."""
    dice = random.Random(seed)
    now = timezone.now()
    accounts = [world.account(name) for name in ("Ada Lovelace", "Grace Hopper", "Analytical Engines Ltd", "Mary Somerville")]
    for account in accounts:
        world.grant(account, 40 * scale, cash_nanos=36 * scale, fee_nanos=scale, expires_at=now + timedelta(days=20))
        world.grant(account, 10 * scale, priority=5, expires_at=now + timedelta(days=2, hours=4))
    for day in range(45, -1, -1):
        for _ in range(dice.randrange(2, 7)):
            cost = dice.randrange(scale // 20, scale // 4)
            price = cost * 3 // 2 if dice.random() < 0.92 else cost // 3
            event = world.event(
                dice.choice(accounts),
                cost=cost,
                price=price,
                at=now - timedelta(days=day, minutes=dice.randrange(1, 600)),
                model=dice.randrange(2),
                feature=dice.choice([None, 0, 0, 1]),
            )
            ledger.record(event)
    ada = accounts[0]
    world.hold(ada, scale // 3)
    world.reverse(ada, ledger.record(world.event(ada, cost=scale // 9, price=scale // 6, at=now - timedelta(minutes=4))))
    api_keys.issue(product=world.product, account=ada, name="production backend", scopes=["usage:write", "usage:read"], now=now)
    Membership.objects.create(account=ada, user=User.objects.create_user(f"ada.{uuid4().hex[:4]}@example.com", "correct horse battery"))
    return ada


@pytest.fixture(scope="session")
def ada(django_db_setup: None, django_db_blocker: DjangoDbBlocker, browser: Browser) -> Account:
    with django_db_blocker.unblock():
        PriceProposal.objects.create(
            provider="acme", model=uuid4().hex, component="input_tokens", price_nanos=1, source="test", proposed_at=timezone.now()
        )
        elite = history(World.new(name="Elite"), scale=NANOS // 3, seed=2)
        CatalogChange.objects.create(
            product=elite.product, actor="ada", applied_at=timezone.now(), effective_at=timezone.now(), digest="f" * 64,
            diff="+ plans.pro.price = \"29.00\"\n" * 40,
        )  # fmt: skip
        return history(World.new(name="Rover"), scale=NANOS, seed=1)


@pytest.fixture(params=[1280, 360], ids=["desk", "phone"])
def context(request: pytest.FixtureRequest, browser: Browser, server: str, ada: Account) -> Iterator[BrowserContext]:
    client = Client()
    client.force_login(User.objects.create_superuser(f"staff.{uuid4().hex[:6]}@example.com", "correct horse battery"))
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    context.add_cookies([{"name": "session", "value": client.cookies["session"].value, "url": server}])
    yield context
    context.close()


def watched(context: BrowserContext, server: str) -> tuple[Page, list[str]]:
    """A page, and all that its console or its requests have against it."""
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((server, "data:")) else complaints.append(request.url))
    return page, complaints


def _explained() -> str:
    """The page of a use of which each of two components has its line."""
    account = factories.make_account(credit=1)
    asked = {"input_tokens": 1_845, "output_tokens": 668}
    event = usage.Event(key="k", account=account, at=timezone.now(), model=factories.make_model(), quantities=asked)
    [answer] = usage.record(events=[event], now=timezone.now())
    assert isinstance(answer, ledger.Usage)
    return reverse("admin:metering_usagerecord_change", args=[f"{account.pk}-{UsageRecord.objects.get(account=account).pk}"])


def _shadowed(ada: Account) -> str:
    """The report, with a limit that Ada passed, and her schedule, which was stopped."""
    now = timezone.now()
    ShadowRefusal.objects.filter(account=ada).delete()
    for meter, layer, allowed in (("messages/day", "quota", 50), ("cost/period", "cost", 5 * NANOS)):
        ShadowRefusal.objects.create(
            account=ada, layer=layer, meter=meter, window_end=now + timedelta(days=1), count=1_234, value_nanos=45 * NANOS, allowed=allowed,
            most_used=2 * allowed, first_at=now - timedelta(hours=3), last_at=now,
        )  # fmt: skip
    for number in range(3):
        schedule(ada, NANOS, key=f"{now} {number}", anchor=now)
    return reverse("admin:metering_shadowrefusal_changelist")


def test_every_page_is_quiet_local_and_fits(server: str, ada: Account, context: BrowserContext) -> None:
    used = UsageRecord.objects.filter(account=ada, price_nanos__gt=0)[0]
    width = context.new_page().viewport_size["width"]  # type: ignore[index]
    pages = {
        "dashboard": reverse("admin:index"),
        "account": reverse("admin:accounts_account_change", args=[ada.pk]),
        "accounts": reverse("admin:accounts_account_changelist"),
        "margin": reverse("admin:analytics_margin_changelist") + "?by=account",
        "revenue": reverse("admin:analytics_revenue") + "?by=account",
        "risk": reverse("admin:analytics_risk") + f"?product={ada.product.slug}",
        "projection": reverse("admin:analytics_projection"),
        "grant": reverse("admin:accounts_account_grant", args=[ada.pk]),
        "reverse": reverse("admin:accounts_account_reverse", args=[ada.pk, used.pk]),
        "record": reverse("admin:metering_usagerecord_change", args=[f"{ada.pk}-{used.pk}"]),
        "explained": _explained(),
        "entries": reverse("admin:analytics_entry_changelist"),
        "edit": reverse("admin:accounts_account_edit", args=[ada.pk]),
        "key": reverse("admin:accounts_apikey_add") + f"?account={ada.public_id}",
        "proposals": reverse("admin:pricing_priceproposal_changelist"),
        "product": reverse("admin:pricing_product_change", args=[ada.product_id]),
        "jobs": reverse("admin:analytics_jobrun_changelist"),
        "run": reverse("admin:analytics_jobrun_run", args=["sweep-holds"]),
        "runs": reverse("admin:analytics_jobrun_changelist") + "?job__exact=sweep-holds",
        "shadow": _shadowed(ada),
        "stopped": reverse("admin:billing_schedule_stopped"),
        "restart": reverse("admin:billing_schedule_restart", args=[ada.pk, ada.product.unit_id]),
        "change": reverse("admin:pricing_catalogchange_change", args=[CatalogChange.objects.latest("pk").pk]),
    }
    page, complaints = watched(context, server)
    for name, path in pages.items():
        response = page.goto(server + path)
        assert response
        assert response.status == 200
        keep(page, f"admin-{name}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert complaints == []


def test_the_first_pages_are_quiet_in_the_dark(server: str, ada: Account, context: BrowserContext) -> None:
    page, complaints = watched(context, server)
    page.emulate_media(color_scheme="dark")
    for name, path in (("dashboard", reverse("admin:index")), ("account", reverse("admin:accounts_account_change", args=[ada.pk]))):
        page.goto(server + path)
        page.wait_for_selector("html.dark")
        keep(page, f"admin-{name}-dark-{page.viewport_size['width']}")  # type: ignore[index]
    assert complaints == []


def test_a_charge_is_explained_from_its_components_to_its_entry(server: str, context: BrowserContext) -> None:
    page, complaints = watched(context, server)
    page.goto(server + _explained())
    told = page.locator("section[aria-labelledby=explained]")
    assert told.locator("h2").inner_text().startswith("Charged $")
    assert "re-derives" in told.locator("header").inner_text()
    for words in ("1,845 input tokens and 668 output tokens", "markup of 50 %", "equal to the nano"):
        assert words in told.inner_text()
    assert [table.locator("tbody tr").count() for table in told.locator("table").all()] == [2, 1]
    told.locator("summary").click()
    assert told.locator("details code").first.inner_text().startswith("1|")
    told.locator("summary").click()
    keep(page, f"admin-charge-{page.viewport_size['width']}")  # type: ignore[index]
    if folder := os.environ.get("TOLLGATE_SCREENSHOTS"):
        told.screenshot(path=f"{folder}/charge-{page.viewport_size['width']}.png")  # type: ignore[index]
    told.get_by_role("link", name="3 per 1,000,000").click()
    page.wait_for_url("**/pricerow/**")
    assert complaints == []


def test_a_grant_is_previewed_then_confirmed(server: str, ada: Account, context: BrowserContext) -> None:
    page, complaints = watched(context, server)
    page.goto(server + reverse("admin:accounts_account_grant", args=[ada.pk]))
    page.get_by_label("Amount").fill("12.5")
    page.get_by_label("Reason").fill("Sorry for the outage on Monday")
    page.get_by_role("button", name="Show the effect").click()
    keep(page, f"admin-grant-preview-{page.viewport_size['width']}")  # type: ignore[index]
    assert "Free afterwards" in page.locator("dl").inner_text()
    page.get_by_role("button", name="Confirm").click()
    assert "$12.50 granted." in page.locator("body").inner_text()
    assert "Sorry for the outage on Monday" in page.locator("body").inner_text()
    assert complaints == []


def test_who_is_throttled_is_found_in_the_list_and_works_again(server: str, context: BrowserContext) -> None:
    shop = Shop.new(tier={"monthly_cost_nanos": 100 * PER_TOKEN})
    shop.use(tokens=100)
    page, complaints = watched(context, server)
    width = page.viewport_size["width"]  # type: ignore[index]
    page.goto(f"{server}/admin/metering/costthrottle/?product={shop.product.pk}")
    assert "1 of 1 active account is throttled" in page.locator("body").inner_text()
    keep(page, f"admin-throttled-{width}")
    page.locator("table").first.get_by_role("link").first.click()
    page.get_by_role("link", name="Resume…").click()
    page.get_by_label("Reason").fill("A loop that they have mended")
    page.get_by_role("button", name="Resume the account").click()
    page.get_by_text("works again.").wait_for()
    assert shop.refused_by() is None
    assert "A loop that they have mended" in page.locator("body").inner_text()
    assert complaints == []


def test_a_switch_is_previewed_then_thrown_and_every_page_shows_it(server: str, ada: Account, context: BrowserContext) -> None:
    page, complaints = watched(context, server)
    width = page.viewport_size["width"]  # type: ignore[index]
    page.goto(server + reverse("admin:metering_killswitch_add"))
    keep(page, f"admin-switch-{width}")
    page.get_by_label("What").select_option("cost_cap")
    page.get_by_label("Product").select_option(label="Rover")
    page.get_by_label("Cap").fill("1")
    page.get_by_label("Reason").fill("Costs run away since noon")
    page.get_by_role("button", name="Show whom it touches").click()
    keep(page, f"admin-switch-preview-{width}")
    assert "would touch 4 accounts" in page.get_by_role("status").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Throw it").click()
    banner = page.get_by_label("Kill switches in force")
    assert "Costs run away since noon" in banner.inner_text()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(server + reverse("admin:index"))
        assert "Emergency cost cap of $1 a month: Rover" in banner.inner_text()
        keep(page, f"admin-banner-{scheme}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    banner.get_by_role("link", name="End").click()
    page.get_by_label("Reason").fill("The loop is fixed")
    page.get_by_role("button", name="End it").click()
    assert banner.count() == 0
    page.goto(server + reverse("admin:metering_killswitch_add"))
    page.get_by_label("Reason").fill(f"Everything is wrong {uuid4().hex[:4]}")
    page.get_by_label("Provider").fill("acme")
    page.get_by_label("What").select_option("provider")
    page.get_by_role("button", name="Show whom it touches").click()
    page.get_by_role("button", name="Ask a second person").click()
    keep(page, f"admin-approval-{width}")
    assert "somebody else has to approve it" in page.locator("main, #main").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("Note").fill("A drill")
    page.get_by_role("button", name="Take it back").click()
    keep(page, f"admin-approvals-{width}")
    assert complaints == []
