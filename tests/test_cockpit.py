"""The dashboard's figures and where they lead, and the one box that finds an account by whatever support has in hand."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import acts, api_keys
from accounts.models import Account, Mail, Membership, User, WebhookEvent
from analytics import account_search, overview, rollups
from analytics.tests.world import NANOS, World
from billing import ledger, stripe_api
from billing.models import StripeCustomer, StripeEvent, StripeInvoice, StripePayment, StripeSubscription, Subscription
from metering import usage
from metering.models import UsageModel, UsageRecord
from pricing.models import PriceRow
from tests import factories
from tests.test_admin import page, staff, superuser, text

__all__ = ["superuser"]  # fixtures
FIND = reverse("admin:accounts_account_find")


@pytest.fixture
def rover(db: None) -> World:
    """Sold for $8 of cash, of which $0.50 was the fee: 10 credits, 3 of them used by two accounts."""
    world, now = World.new(), timezone.now()
    ada, grace = world.account(), world.account("Grace Hopper")
    for account in (ada, grace):
        world.grant(account, 10 * NANOS, cash_nanos=8 * NANOS, fee_nanos=NANOS // 2)
    ledger.record(world.event(ada, cost=1_500_000_000, price=2 * NANOS, at=now))
    ledger.record(world.event(grace, cost=500_000_000, price=NANOS, at=now - timedelta(days=20)))
    return world


def dashboard(client: Client, world: World | None = None, **query: object) -> str:
    asked: dict[str, Any] = ({"product": world.product.slug} if world else {}) | query
    response = client.get(reverse("admin:index"), asked)
    assert response.status_code == 200
    return response.content.decode()


def figures(shown: str) -> dict[str, str]:
    """What the cards say, by their heading."""
    cards = re.findall(r'<dt>(.*?)</dt><dd class="number[^"]*">(.*?)</dd>\s*<p>(.*?)</p>', shown, re.S)
    return {words(name): f"{words(figure)}; {words(says)}" for name, figure, says in cards}


def words(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())


def test_an_account_counts_once_a_day_whether_its_use_is_folded_or_not(rover: World) -> None:
    now = timezone.now()
    rollups.fold()
    for account in (rover.accounts[0], rover.account("Alan Turing")):
        for _ in range(2):
            ledger.record(rover.event(account, cost=1, price=1, at=now))
    for one in (rover.product, None):
        active = overview.look(products=[rover.product], one=one, days=30, now=now).active
        assert {day.day: day.accounts for day in active if day.accounts} == {now.date(): 2, now.date() - timedelta(days=20): 1}


class TestDashboard:
    def test_one_product_has_its_own_figures(self, superuser: Client, rover: World) -> None:
        other = World.new(name="Elite")
        ledger.record(other.event(other.account(), cost=NANOS, price=NANOS, at=timezone.now()))
        rover.product.target_margin_ppm = 400_000
        rover.product.save()
        found = figures(dashboard(superuser, rover))
        assert found["Gross margin"].startswith("33.33 %; $1.00 of list value; the target is 40 %, missed")
        assert found["Charged, list value"] == "$3.00; nothing in the 30 days before"
        assert found["Recognised revenue"].startswith("$2.25; of credit that was used, after fees")
        assert found["Owed to customers"].startswith("$13.60; paid for credit that is not used yet")
        assert found["AI cost"].startswith("$2.00; 2 requests")
        assert found["Payment fees"].startswith("$0.15")
        assert found["Outstanding credit"].startswith("$17.00; of 2 accounts")
        assert found["Burn rate"] == "$0.10; a day; what is outstanding lasts 170 days"
        assert found["Accounts"] == "2; 2 active in 30 days"
        assert found["Machine cost"].startswith("none")

    def test_all_products_together_are_the_sum_and_name_each(self, superuser: Client, rover: World) -> None:
        before = figures(dashboard(superuser))
        other = World.new(name="Elite")
        ledger.record(other.event(other.account(), cost=NANOS, price=NANOS, at=timezone.now()))
        shown = dashboard(superuser)
        count = int(figures(shown)["AI cost"].split("; ")[1].split()[0].replace(",", ""))
        assert count == 1 + int(before["AI cost"].split("; ")[1].split()[0].replace(",", ""))
        assert "Elite" in shown

    def test_another_period_counts_other_days(self, superuser: Client, rover: World) -> None:
        assert figures(dashboard(superuser, rover, days=7))["Charged, list value"].startswith("$2.00")
        shown = dashboard(superuser, rover, days=90)
        assert "its busiest day" in shown
        assert len(re.findall(r"<tr><td>\w{3} \d+ \w+ \d{4}</td>", shown)) == 13

    def test_machines_are_a_cost_of_their_own(self, superuser: Client, rover: World) -> None:
        model = UsageModel.objects.get(pk=rover.models[1].pk)
        PriceRow.objects.create(
            provider=model.provider, model=model.name, component="seconds", price_nanos=150_000_000, per_units=3_600,
            valid=(timezone.now(), None), source="test",
        )  # fmt: skip
        ledger.record(rover.event(rover.accounts[0], cost=250_000_000, price=NANOS, at=timezone.now(), model=1))
        found = figures(dashboard(superuser, rover))
        assert found["Machine cost"].startswith("$0.25")
        assert found["AI cost"].startswith("$2.00")

    def test_every_figure_leads_to_its_rows(self, superuser: Client, rover: World) -> None:
        for days in (7, 30, 90):
            shown = dashboard(superuser, rover, days=days)
            cards = re.findall(r'<div class="tg-card pad tg-kpi"><dt>.*?</div>', shown, re.S)
            assert len(cards) >= 15
            for card in cards:
                assert "href=" in card.partition("<dd")[2].partition("</dd>")[0], card
            links = {html.unescape(link) for card in cards for link in re.findall(r'href="([^"]+)"', card)}
            for link in links if days == 30 else ():
                assert superuser.get(link).status_code == 200, link
                assert "e=1" not in superuser.get(link).headers.get("Location", ""), link

    @pytest.mark.parametrize("query", [{"product": "nobody"}, {"product": "\0"}, {"days": "0"}, {"days": "x" * 999}, {"days": "٣"}])
    def test_garbage_shows_all_products_of_thirty_days(self, superuser: Client, rover: World, query: dict[str, str]) -> None:
        shown = dashboard(superuser, **query)  # type: ignore[arg-type]
        assert '<option value="30" selected>' in shown
        assert not re.search(rf'<option value="{rover.product.slug}" selected', shown)

    def test_what_a_month_costs_and_who_is_near_a_limit_stand_on_the_first_page(self, superuser: Client, rover: World) -> None:
        """The hourly figures of PRPM's guide: total cost of the month, users near 90 %, throttled users, the overall margin."""
        found = figures(dashboard(superuser, rover))
        assert re.search(r"requests?; \$[12]\.\d\d this month", found["AI cost"])
        assert "0 high: near 90 % of a limit" in found["At risk"]
        assert found["Throttled"].startswith("0; may begin no work now")
        assert found["Gross margin"].startswith("33.33 %")

    def test_it_says_when_the_sums_were_brought_up_to_date_and_has_them_refreshed(self, superuser: Client, rover: World) -> None:
        shown = dashboard(superuser, rover)
        assert re.search(r"last brought up to date\s+<time datetime=", shown)
        refresh = reverse("admin:analytics_jobrun_run", args=["fold-rollups"])
        assert refresh in shown
        assert superuser.post(refresh, {"reason": "Month end"}).status_code == 302
        assert LogEntry.objects.filter(change_message__contains="Month end").exists()

    def test_support_finds_accounts_and_sees_no_margin(self, rover: World) -> None:
        support = staff("accounts.view_account", "metering.view_costthrottle", "analytics.view_alert")
        shown = dashboard(support)
        assert "Find an account" in shown
        assert set(figures(shown)) == {"Accounts", "Throttled", "Open alerts"}
        assert "AI cost" not in shown

    def test_the_number_of_queries_does_not_grow_with_accounts(
        self, superuser: Client, rover: World, django_assert_max_num_queries: Any
    ) -> None:
        for _ in range(12):
            ledger.record(rover.event(rover.account(), cost=1, price=2, at=timezone.now()))
        dashboard(superuser, rover)
        with django_assert_max_num_queries(50):
            dashboard(superuser, rover)


@pytest.fixture
def ada(rover: World) -> Account:
    """An account by everything that it may be known by."""
    account, now = rover.accounts[0], timezone.now()
    Account.objects.filter(pk=account.pk).update(external_id="customer-77", billing_email="Billing@Engines.example")
    user = User.objects.create_user(f"ada.{uuid4().hex[:6]}@example.com", "correct horse battery")
    Membership.objects.create(account=account, user=user)
    StripeCustomer.objects.create(id="cus_Ada1", account=account)
    StripeSubscription.objects.create(
        id="sub_Ada1", account=account, status="active", price_id="price_1", anchor_at=now, current_period_start=now,
        current_period_end=now + timedelta(days=30), started_at=now, read_number=1,
    )  # fmt: skip
    StripePayment.objects.create(
        id="pi_Ada1", account=account, status="succeeded", currency="usd", paid=1_000, refunded=250, disputed=False, created_at=now,
        read_number=1,
    )  # fmt: skip
    StripeInvoice.objects.create(
        id="in_Ada1", account=account, number="ABCD-0001", status="paid", currency="usd", total=2_500, tax=0, paid=2_500, created_at=now,
        period_start=now, period_end=now, read_number=1,
    )  # fmt: skip
    account.refresh_from_db()
    return account


class TestFind:
    @pytest.mark.parametrize(
        "known_by",
        ["customer-77", " customer-77 ", "billing@engines.example", "cus_Ada1", "sub_Ada1", "pi_Ada1", "in_Ada1", "abcd-0001"],
    )
    def test_what_support_has_in_hand_leads_to_the_account(self, superuser: Client, ada: Account, known_by: str) -> None:
        assert superuser.get(FIND, {"q": known_by}).headers["Location"] == page(ada)

    def test_so_do_its_id_its_peoples_addresses_and_the_beginning_of_its_api_key(self, superuser: Client, ada: Account) -> None:
        issued = api_keys.issue(product=ada.product, account=ada, name="backend", scopes=["usage:read"], now=timezone.now())
        address = ada.memberships.get().user.email
        for known_by in (ada.public_id, address, address.upper(), issued.key.prefix, issued.token):
            assert superuser.get(FIND, {"q": known_by}).headers["Location"] == page(ada), known_by

    def test_a_products_key_is_named_as_what_it_is(self, ada: Account) -> None:
        token = factories.make_key(ada.product)
        found = account_search.find(token)
        assert found.accounts == ()
        assert f"acts for every account of {ada.product}" in found.note
        assert token not in found.note

    def test_a_use_is_found_by_its_id_and_by_the_clients_key(self, superuser: Client, db: None) -> None:
        account = factories.make_account(credit=1)
        key = uuid4().hex
        event = usage.Event(key=key, account=account, at=timezone.now(), model=factories.make_model(), quantities={"input_tokens": 10})
        list(usage.record(events=[event], now=timezone.now()))
        record = UsageRecord.objects.get(account=account)
        target = reverse("admin:metering_usagerecord_change", args=[f"{account.pk}-{record.pk}"])
        public = f"rec_{account.public_id.removeprefix('acct_')}{record.pk.hex}"
        for known_by in (key, public, str(record.pk), record.pk.hex):
            assert superuser.get(FIND, {"q": known_by}).headers["Location"] == target, known_by

    def test_open_work_is_found_too(self, superuser: Client, rover: World) -> None:
        hold = rover.hold(rover.accounts[0], NANOS)
        target = reverse("admin:metering_openauthorization_change", args=[f"{rover.accounts[0].pk}-{hold.id}"])
        assert superuser.get(FIND, {"q": str(hold.id)}).headers["Location"] == target

    def test_several_are_listed_and_the_list_finds_as_the_box_does(self, superuser: Client, rover: World) -> None:
        mark = uuid4().hex[:8]
        both = [rover.account(f"Twin {mark} {number}") for number in range(2)]
        there = superuser.get(FIND, {"q": f"twin {mark}"}).headers["Location"]
        listed = text(superuser, there)
        assert all(account.name in listed for account in both)
        assert both[0].name in text(superuser, reverse("admin:accounts_account_changelist") + f"?q={both[0].public_id}")

    @pytest.mark.parametrize(
        "garbage", ["", " ", "\0", "x" * 5_000, "acct_", "rec_" + "0" * 52, "pi_nobody", "tg_live_", "%", "'; --", "🦀" * 99]
    )
    def test_garbage_finds_nobody_and_says_so(self, superuser: Client, ada: Account, garbage: str) -> None:
        response = superuser.get(FIND, {"q": garbage}, follow=True)
        assert response.status_code == 200
        assert response.request["PATH_INFO"] == reverse("admin:accounts_account_changelist")

    def test_who_may_not_see_accounts_may_not_look_for_one(self, ada: Account) -> None:
        assert staff("analytics.view_alert").get(FIND, {"q": ada.public_id}).status_code == 403

    def test_when_stripe_does_not_answer_that_is_said(self, settings: Any, db: None) -> None:
        settings.STRIPE_API_HOST = "http://127.0.0.1:9"
        stripe_api.client.cache_clear()
        try:
            assert "Stripe did not answer" in account_search.find("ch_somewhere").note
        finally:
            stripe_api.client.cache_clear()


class TestAccountPage:
    def test_it_shows_what_is_at_stripe_with_the_way_there_in_the_right_mode(self, superuser: Client, ada: Account, settings: Any) -> None:
        shown = text(superuser, page(ada))
        for kind, id_ in (("customers", "cus_Ada1"), ("subscriptions", "sub_Ada1"), ("payments", "pi_Ada1"), ("invoices", "in_Ada1")):
            assert f'href="https://dashboard.stripe.com/test/{kind}/{id_}"' in shown
        assert "10.00 USD succeeded, 2.50 USD given back" in shown
        settings.STRIPE_LIVE_MODE = True
        assert 'href="https://dashboard.stripe.com/customers/cus_Ada1"' in text(superuser, page(ada))

    def test_it_shows_mails_webhooks_and_who_did_what(self, superuser: Client, ada: Account) -> None:
        now = timezone.now()
        Mail.objects.create(
            account=ada, kind=Mail.Kind.LOW_BALANCE, key="1", state="sent", sent_to=["ada@example.com"], sendings=1, queued_at=now,
            next_attempt_at=now, done_at=now,
        )  # fmt: skip
        WebhookEvent.objects.create(kind="balance.low", product=ada.product, account=ada, key="1", created_at=now)
        acts.note(account=ada, actor=User.objects.latest("date_joined"), what="Called her about the invoice", now=now)
        shown = text(superuser, page(ada))
        for part in ("Low balance", "ada@example.com", "balance.low", "no endpoint asked for it", "Called her about the invoice"):
            assert part in shown, part
        trail = re.search(r'href="([^"]+)">All acts', shown)
        assert trail
        assert "Called her about the invoice" in text(superuser, html.unescape(trail[1]))

    def test_support_sees_no_margin_there(self, ada: Account) -> None:
        support = staff("accounts.view_account")
        shown = text(support, page(ada))
        assert "Margin" not in shown
        assert "Charged, 30 days" in shown

    def test_every_link_of_its_sections_leads_somewhere(self, superuser: Client, ada: Account) -> None:
        shown = text(superuser, page(ada)).partition('class="tg-facts"')[2]
        links = {html.unescape(link) for link in re.findall(r'href="(/admin/[^"]+)"', shown)}
        assert len(links) > 15
        for link in links:
            assert superuser.get(link).status_code == 200, link
        for anchor in re.findall(r'href="#([^"]+)"', shown):
            assert f'id="{anchor}"' in shown, anchor


class TestPeople:
    def test_staff_find_a_user_and_their_accounts_and_take_their_access_away(self, superuser: Client, ada: Account) -> None:
        user = ada.memberships.get().user
        listed = text(superuser, reverse("admin:accounts_user_changelist") + f"?q={user.email}")
        assert user.email in listed
        url = reverse("admin:accounts_user_change", args=[user.pk])
        membership = ada.memberships.get()
        assert str(ada) in text(superuser, url)
        form = {
            "email": user.email, "memberships-TOTAL_FORMS": 1, "memberships-INITIAL_FORMS": 1, "memberships-0-id": membership.pk,
            "memberships-0-user": user.pk, "memberships-0-account": ada.pk, "memberships-0-role": "owner",
        }  # fmt: skip
        assert superuser.post(url, form).status_code == 302
        user.refresh_from_db()
        assert not user.is_active
        assert LogEntry.objects.filter(object_id=str(user.pk)).exists()


LOG = reverse("admin:analytics_billing_log")


class TestBillingLog:
    @pytest.fixture
    def happened(self, ada: Account) -> Account:
        now = timezone.now()
        StripeEvent.objects.create(
            event_id=f"evt_{uuid4().hex}", endpoint="/x", type="payment_intent.succeeded", object_id="pi_Ada1", payload="{}",
            received_at=now, next_attempt_at=now, state="done", done_at=now,
        )  # fmt: skip
        version = factories.make_account().subscriptions.get().plan_version
        Subscription.objects.create(
            account=ada, plan_version=version, anchor_at=now, current_period_start=now, current_period_end=now + timedelta(days=30),
            started_at=now, status="canceled", ended_at=now,
        )  # fmt: skip
        return ada

    def test_one_list_has_the_ledgers_acts_stripes_events_and_plans(self, superuser: Client, happened: Account) -> None:
        shown = text(superuser, f"{LOG}?account={happened.public_id}")
        for part in ("grant", "payment_intent.succeeded", "subscription began", "subscription ended", "Ada Lovelace"):
            assert part in shown, part
        for link in re.findall(r'nowrap"><a href="([^"]+)"', shown):
            assert superuser.get(link).status_code == 200
        only = text(superuser, f"{LOG}?account={happened.public_id}&kind=stripe").partition('class="tg"')[2]
        assert "payment_intent.succeeded" in only
        assert "subscription began" not in only

    def test_older_ones_are_on_the_next_page_none_twice(self, superuser: Client, rover: World) -> None:
        account = rover.account()
        for number in range(60):
            rover.grant(account, number + 1)
        first = text(superuser, f"{LOG}?account={account.public_id}&kind=credit")
        older = re.search(r'href="([^"]+)">Older', first)
        assert older
        second = text(superuser, LOG + html.unescape(older[1]))
        keys = [re.findall(r'nowrap"><a href="([^"]+)"', shown) for shown in (first, second)]
        assert len(keys[0]) == 50
        assert not set(keys[0]) & set(keys[1])

    @pytest.mark.parametrize(
        "query", ["kind=x", "account=nobody", "account=%00", "before=x", "before=0001-01-01T00:00Z", "before=2026-02-30T00:00Z"]
    )
    def test_garbage_is_answered_as_nothing_asked(self, superuser: Client, happened: Account, query: str) -> None:
        text(superuser, f"{LOG}?{query}")

    def test_it_takes_the_rights_of_all_its_sources(self, db: None) -> None:
        assert staff("billing.view_operation", "billing.view_stripeevent").get(LOG).status_code == 403
        assert staff("billing.view_operation", "billing.view_stripeevent", "billing.view_subscription").get(LOG).status_code == 200
