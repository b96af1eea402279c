"""What a customer is told who is stopped by a limit, and where a refusal sends them."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from django.test import Client

from accounts.models import Account, Membership, User
from billing import ledger
from metering import kill_switches, prompts, usage
from metering.tests.limited import PER_TOKEN, Shop, plan
from tests.factories import NANOS, give, make_account, make_key, make_product

pytestmark = pytest.mark.django_db


def now() -> datetime:
    return datetime.now(UTC)


def spent(shop: Shop, times: int) -> None:
    for _ in range(times):
        shop.use()


def words(content: bytes) -> str:
    main = content.decode().partition("<main")[2].partition("</main>")[0]
    return re.sub(r" ([.,;:])", r"\1", " ".join(unescape(re.sub(r"<[^>]+>", " ", main)).replace("\N{NO-BREAK SPACE}", " ").split()))


def owner(account: Account, role: str = Membership.Role.OWNER) -> User:
    user = User.objects.create_user(f"{secrets.token_hex(6)}@example.com")
    Membership.objects.create(account=account, user=user, role=role)
    return user


def page(client: Client, account: Account, query: str = "", *, role: str = Membership.Role.OWNER) -> str:
    client.force_login(owner(account, role))
    response = client.get(f"/a/{account.public_id}/limit/{query}")
    assert response.status_code == 200
    return words(response.content)


class TestReached:
    def test_nothing_stops_who_has_something_left_of_everything(self) -> None:
        shop = Shop.new(("messages", "day", 2), ("tasks", "open", 1), ("agents", "count", 0))
        spent(shop, 1)
        shop.authorize()  # the one task that may run is running: busy, not stopped
        shop = Shop.new(("messages", "day", 2))
        assert prompts.reached(account=shop.account, now=now()) == []

    def test_work_under_way_is_no_stop(self) -> None:
        shop = Shop.new(("tasks", "open", 1))
        shop.authorize()
        assert prompts.reached(account=shop.account, now=now()) == []

    @pytest.mark.parametrize(
        ("term", "heading"),
        [
            (("messages", "day", 1), "All messages of today are used"),
            (("messages", "hour", 1), "All messages of this hour are used"),
            (("messages", "period", 1), "All messages of this billing period are used"),
            (("messages", "lifetime", 1), "All messages are used"),
            (("requests", "hour", 1), "All requests of this hour are used"),
        ],
    )
    def test_a_used_up_limit_says_which_how_much_and_what_the_next_plan_allows(self, term: tuple[Any, ...], heading: str) -> None:
        shop = Shop.new(term)
        key, window, _ = term
        plan(shop.product, "pro", 21, (key, window, 1_000))
        spent(shop, 1)
        [prompt] = prompts.reached(account=shop.account, now=now())
        assert prompt.heading == heading
        assert (prompt.used, prompt.limit, prompt.counted) == (1, 1, key)
        assert prompt.upgrade is not None
        assert prompt.upgrade.plan == "pro"
        assert prompt.allows.startswith(f"1,000 {key}")
        assert (prompt.layer.resets_at is None) == (window == "lifetime")

    def test_the_wholesale_cost_limit_tells_no_amount(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 2 * PER_TOKEN})
        shop.use(tokens=2)
        [prompt] = prompts.reached(account=shop.account, now=now())
        assert prompt.heading == "The usage limit for today is reached"
        assert (prompt.used, prompt.limit) == (None, None)

    def test_limits_in_shadow_stop_nobody(self) -> None:
        shop = Shop.new(("messages", "day", 0, "shadow"))
        assert prompts.reached(account=shop.account, now=now()) == []

    @pytest.mark.parametrize(("credit", "stopped"), [(0, True), (1, False)])
    def test_no_credit_stops_where_use_is_charged(self, credit: int, stopped: bool) -> None:
        shop = Shop.new(credit=0)
        if credit:
            give(shop.account, credit)
        assert bool(prompts.reached(account=shop.account, now=now())) is stopped

    def test_below_the_products_minimum_is_too_little(self) -> None:
        shop = Shop.new(credit=0, minimum_balance_nanos=10)
        give(shop.account, 9)
        [prompt] = prompts.reached(account=shop.account, now=now())
        assert prompt.heading == "Too little is left to spend"

    def test_no_credit_stops_nobody_whose_use_is_included(self) -> None:
        shop = Shop.new(mode="included", credit=0)
        assert prompts.reached(account=shop.account, now=now()) == []

    def test_a_closed_wallet_of_debts_stops_though_work_that_is_free_may_go_on(self) -> None:
        shop = Shop.new(credit=0)
        give(shop.account, 5 * PER_TOKEN * 2)
        shop.record(shop.event(tokens=1_000))
        [prompt] = prompts.reached(account=shop.account, now=now())
        assert prompt.layer.name == "credits"


class TestPage:
    def test_it_says_which_limit_how_much_when_it_resets_and_what_the_next_plan_gives(self, client: Client) -> None:
        shop = Shop.new(("messages", "day", 3))
        plan(shop.product, "pro", 21, ("messages", "day", 1_000))
        spent(shop, 3)
        told = page(client, shop.account)
        assert "All messages of today are used 3 of 3 messages are used. It resets in" in told
        assert "(UTC). Pro gives you: 1,000 messages a day." in told
        assert "Upgrade to Pro Compare plans" in told

    def test_a_stopped_account_is_told_why_and_until_when(self, client: Client) -> None:
        shop = Shop.new()
        ends = now() + timedelta(hours=3, minutes=1)
        ledger.throttle(account_id=shop.account.pk, actor="staff", reason="Unusual traffic.", ends_at=ends)
        told = page(client, shop.account)
        assert "This account is stopped Why: Unusual traffic." in told
        assert f"Until in 3 hours, on {ends.day} {ends:%B %Y, %H:%M}" in told
        assert "Upgrade" not in told

    def test_a_stop_without_an_end_says_who_lifts_it(self, client: Client) -> None:
        shop = Shop.new(support_email="help@example.com")
        ledger.throttle(account_id=shop.account.pk, actor="staff", reason="Chargeback.")
        told = page(client, shop.account)
        assert "It lasts until it is lifted: ask support. Write to support" in told

    def test_a_kill_switch_says_so(self, client: Client) -> None:
        shop = Shop.new()
        wanted = kill_switches.Wanted(product=shop.product)
        kill_switches.throw(wanted=wanted, reason="Maintenance.", actor="t", ends_at=now() + timedelta(hours=1), now=now())
        assert "is switched off for the moment Why: Maintenance." in page(client, shop.account)

    def test_without_credit_it_says_how_to_check_the_balance_and_to_add_credit(self, client: Client) -> None:
        shop = Shop.new(credit=0)
        told = page(client, shop.account)
        assert "Nothing is left to spend New work is refused until credit comes in." in told
        assert "Your balance is always the first line of the overview" in told
        assert "Buy credits" in told

    def test_debt_is_told(self, client: Client) -> None:
        shop = Shop.new(credit=0)
        give(shop.account, PER_TOKEN)
        shop.record(shop.event(tokens=1_000))
        assert "You owe $0.0015" in page(client, shop.account)

    def test_a_member_is_told_whom_to_ask_and_gets_no_button(self, client: Client) -> None:
        shop = Shop.new(("messages", "day", 0))
        plan(shop.product, "pro", 21, ("messages", "day", 1_000))
        told = page(client, shop.account, role=Membership.Role.MEMBER)
        assert "Upgrade to" not in told
        assert "Ask an owner or admin of Ada" in told

    def test_nothing_reached_says_so(self, client: Client) -> None:
        assert "No limit is reached" in page(client, Shop.new(("messages", "day", 5)).account)

    @pytest.mark.parametrize(
        ("meter", "told"),
        [
            ("messages/day", "5 messages are left for today"),
            ("agents/count", "There is room for more agents"),
            ("tasks/open", "Up to 2 tasks can run at a time on your plan"),
            ("request_tokens/request", "A request may have up to 100 tokens on your plan"),
            ("cost/day", "There is a usage limit for today"),
            ("api_access", "Your plan does not include API access"),
            ("seats/count", "Your plan does not include seats Pro gives you: 5 seats."),
            ("credits", "There is credit left to spend You have"),
        ],
    )
    def test_every_limit_that_a_refusal_may_name_has_its_words_also_once_it_has_reset(self, client: Client, meter: str, told: str) -> None:
        terms = [("messages", "day", 5), ("agents", "count", 3), ("tasks", "open", 2), ("request_tokens", "request", 100)]
        shop = Shop.new(*terms, tier={"daily_cost_nanos": NANOS}, flags={"api_access": False})
        plan(shop.product, "pro", 21, *terms, ("seats", "count", 5), flags={"api_access": True})
        assert told in page(client, shop.account, f"?meter={meter}")

    @pytest.mark.parametrize("meter", ["", "messages", "messages/", "messages/day", "/", "%00", "x" * 5_000, "' or 1=1", "１/day"])
    def test_a_limit_that_there_is_not_is_not_found(self, client: Client, meter: str) -> None:
        account = make_account(credit=1)
        client.force_login(owner(account))
        assert client.get(f"/a/{account.public_id}/limit/?meter={meter}").status_code == 404

    @pytest.mark.failure(91)
    def test_it_is_read_only(self, client: Client) -> None:
        account = make_account(credit=1)
        client.force_login(owner(account))
        assert client.post(f"/a/{account.public_id}/limit/").status_code == 405

    def test_it_is_nobody_elses(self, client: Client) -> None:
        client.force_login(owner(make_account()))
        assert client.get(f"/a/{make_account().public_id}/limit/").status_code == 404


class TestRefusal:
    def refused(self, shop: Shop, **ask: Any) -> dict[str, Any]:
        body = {"account": shop.account.public_id, "model": shop.model, "estimate": {"input_tokens": 1, "max_output_tokens": 0}} | ask
        response = Client().post(
            "/api/v1/usage/authorize",
            body,
            content_type="application/json",
            headers={"Authorization": f"Bearer {make_key(shop.product)}", "Idempotency-Key": secrets.token_hex(4)},
        )
        assert response.status_code >= 400
        answer: dict[str, Any] = response.json()
        return answer

    @pytest.mark.parametrize(
        ("terms", "more", "heading"),
        [
            ([("messages", "day", 0)], {}, "Your plan does not include messages"),
            ([("request_tokens", "request", 0)], {}, "Your plan does not include tokens"),
            ([("tasks", "open", 0)], {}, "Your plan does not include tasks"),
            ([], {"tier": {"daily_cost_nanos": 0}}, "The usage limit for today is reached"),
            ([], {"credit": 0}, "Nothing is left to spend"),
            ([], {"flags": {"chat": False}}, "Your plan does not include chat"),
        ],
    )
    def test_its_page_opens_and_tells_of_that_limit(self, client: Client, terms: list[Any], more: dict[str, Any], heading: str) -> None:
        shop = Shop.new(*terms, **more)
        address = self.refused(shop, **({"feature": "chat"} if "flags" in more else {}))["page"]
        assert address.startswith(f"https://testserver/a/{shop.account.public_id}/limit/")
        client.force_login(owner(shop.account))
        assert heading in words(client.get(address).content)

    def test_a_guests_leads_to_the_sign_up(self) -> None:
        product = make_product(guest_plan="free")
        guest = make_account(product, kind="guest")
        shop = Shop(guest, Shop.new().model)
        with pytest.raises(usage.Refused):
            shop.authorize()
        assert self.refused(shop)["page"] == f"https://testserver/accounts/signup/?product={product.slug}"


class TestOverview:
    def test_a_reached_limit_is_its_first_line_with_the_way_on_as_a_link_and_a_dialog(self, client: Client) -> None:
        shop = Shop.new(("messages", "day", 1))
        plan(shop.product, "pro", 21, ("messages", "day", 1_000))
        spent(shop, 1)
        client.force_login(owner(shop.account))
        content = client.get(f"/a/{shop.account.public_id}/").content
        assert "All messages of today are used. New work is refused until" in words(content)
        assert f'<a href="/a/{shop.account.public_id}/limit/" data-dialog="prompt">How to go on</a>'.encode() in content
        assert b'<dialog id="prompt"' in content
        assert b'src="/static/dialog.js" defer' in content

    def test_without_one_there_is_neither_banner_nor_script(self, client: Client) -> None:
        shop = Shop.new(("messages", "day", 1))
        client.force_login(owner(shop.account))
        content = client.get(f"/a/{shop.account.public_id}/").content
        assert b"<dialog" not in content
        assert b"<script" not in content
