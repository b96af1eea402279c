"""Staff's pages: everything answers for those who may see it, nobody edits the ledger, and an act happens once, with its reason."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import api_keys
from accounts.models import Account, ApiKey, User
from analytics.tests.world import NANOS, World
from billing import ledger
from billing.models import Grant, LedgerEntry, Operation, Subscription, Wallet
from metering import usage
from metering.models import OpenAuthorization, UsageRecord
from pricing.models import Plan, PriceProposal, PriceRow, Product, RateCard
from tests import factories

GARBAGE = [
    "",
    "abc",
    "0",
    "-1",
    "0.0000000001",
    "1e400",
    "NaN",
    "Infinity",
    "٣",
    "５",
    "9" * 40,
    "9300000000",
    "1,5",
    "0x10",
    "1_0",
    "--1",
    "\0",
]


def staff(*permissions: str) -> Client:
    user = User.objects.create_user(f"{uuid4().hex}@example.com", "correct horse battery", is_staff=True)
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def superuser(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser(f"{uuid4().hex}@example.com", "correct horse battery"))
    return client


@pytest.fixture
def world(db: None) -> World:
    return World.new()


@pytest.fixture
def account(world: World) -> Account:
    """An account to which everything has happened."""
    account = world.account()
    world.grant(account, 10 * NANOS, cash_nanos=8 * NANOS, fee_nanos=NANOS // 2)
    world.grant(account, 5 * NANOS, expires_at=timezone.now() + timedelta(days=3))
    now = timezone.now()
    for price in (1, 450_000_000, 7):
        ledger.record(world.event(account, cost=300_000_000, price=price, at=now, feature=0))
    world.reverse(account, ledger.record(world.event(account, cost=1, price=2, at=now)))
    world.hold(account, NANOS)
    api_keys.issue(product=world.product, account=account, name="backend", scopes=["usage:read"], now=now)
    return account


def page(account: Account, name: str = "change", *more: object) -> str:
    return reverse(f"admin:accounts_account_{name}", args=[account.pk, *more])


def free(account: Account) -> int:
    return sum(wallet.available for wallet in Wallet.objects.filter(account=account))


def text(client: Client, url: str, status: int = 200) -> str:
    response = client.get(url)
    assert response.status_code == status, url
    return response.content.decode()


# Pages -----------------------------------------------------------------------------------------------------------------------


def test_every_list_answers_for_a_superuser_with_rows_searches_and_filters(superuser: Client, account: Account) -> None:
    for model in admin.site._registry:
        url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        text(superuser, url)
        if admin.site._registry[model].search_fields:
            text(superuser, url + "?q=Ada")
    for ours in ("billing_grant", "analytics_entry", "billing_operation", "metering_usagerecord", "metering_openauthorization"):
        text(superuser, reverse(f"admin:{ours}_changelist") + f"?account__id__exact={account.pk}")
        if ours != "metering_openauthorization":  # only what is open is in it: it needs no limit
            text(superuser, reverse(f"admin:{ours}_changelist") + "?within=all&p=1")


def test_every_row_of_the_ledger_has_a_page(superuser: Client, account: Account) -> None:
    for model, name in (
        (Grant, "billing_grant"),
        (Operation, "billing_operation"),
        (UsageRecord, "metering_usagerecord"),
        (OpenAuthorization, "metering_openauthorization"),
    ):
        row = model.objects.filter(account=account).values_list("pk")[0][0]
        listed = text(superuser, reverse(f"admin:{name}_changelist") + f"?account__id__exact={account.pk}")
        url = reverse(f"admin:{name}_change", args=[f"{account.pk}-{row}"])
        assert url in listed
        text(superuser, url)
    entry = LedgerEntry.objects.filter(account=account)[0]
    text(superuser, reverse("admin:analytics_entry_change", args=[f"{account.pk}-{entry.unit_id}-{entry.seq}"]))


@pytest.mark.parametrize(
    "key", ["1", "1-2", "x-y", "1-x-2", "٣-1-1", "-", "99999999999999999999-1-1", "1-00000000-0000-0000-0000-000000000000"]
)
def test_a_key_of_no_row_leads_back_to_the_list(superuser: Client, key: str) -> None:
    for name in ("billing_grant", "metering_usagerecord", "analytics_entry"):
        assert superuser.get(reverse(f"admin:{name}_change", args=[key])).status_code == 302


def test_the_menu_names_ours_and_not_one_model_of_dj_stripe(superuser: Client, account: Account) -> None:
    assert not [model for model in admin.site._registry if model._meta.app_label == "djstripe"]
    menu = text(superuser, reverse("admin:index"))
    for name in ("Customers", "Money", "Usage", "Catalog", "System", "Price proposals", "Ledger entries", "Margin"):
        assert name in menu


def test_nobody_but_staff_gets_in(db: None, account: Account) -> None:
    customer = Client()
    customer.force_login(User.objects.create_user(f"{uuid4().hex}@example.com", "correct horse battery"))
    for client in (Client(), customer):
        for url in (reverse("admin:index"), page(account), page(account, "grant"), reverse("admin:analytics_margin_changelist")):
            assert client.get(url).status_code == 302
            assert client.post(url).status_code == 302


def test_staff_without_permissions_see_nothing_and_do_nothing(account: Account) -> None:
    client = staff()
    assert "Revenue" not in text(client, reverse("admin:index"))
    usage = UsageRecord.objects.filter(account=account)[0]
    for url in (
        page(account),
        page(account, "edit"),
        page(account, "grant"),
        page(account, "adjust"),
        page(account, "reverse", usage.pk),
        reverse("admin:analytics_margin_changelist"),
        reverse("admin:metering_usagerecord_changelist"),
        reverse("admin:accounts_apikey_add"),
        reverse("admin:accounts_apikey_revoke", args=[account.api_keys.get().pk]),
    ):
        assert client.get(url).status_code == 403, url


def test_support_may_look_at_an_account_without_moving_its_money(account: Account) -> None:
    client = staff("accounts.view_account", "metering.view_usagerecord")
    assert "Grant credits" not in text(client, page(account))
    before = free(account)
    assert client.post(page(account, "grant"), grant_form()).status_code == 403
    assert free(account) == before


def test_the_account_page_shows_everything_with_its_unit(superuser: Client, account: Account) -> None:
    shown = text(superuser, page(account))
    for part in (
        "Ada Lovelace",
        account.public_id,
        "$13.54",
        "$14.54",
        "$1.00",
        "backend",
        "reversed",
        "anthropic:model",
        "chat",
        "Purchase",
        "test",
    ):
        assert part in shown, part


def test_the_account_page_of_an_account_to_which_nothing_happened(superuser: Client, world: World) -> None:
    assert "No credits have ever arrived." in text(superuser, page(world.account()))


def test_staff_see_the_same_credit_and_period_as_the_customer_though_no_job_ran(superuser: Client, world: World) -> None:
    now = timezone.now()
    account = factories.make_account(credit=10)
    with ledger.clock(at=now - timedelta(days=2)):
        factories.give(account, 5 * NANOS, source="welcome", expires_at=now - timedelta(days=1))
    start = now - timedelta(days=40)
    Subscription.objects.filter(account=account).update(
        anchor_at=start, current_period_start=start, current_period_end=start + timedelta(30)
    )
    shown = re.sub(r"<[^>]+>", "", text(superuser, page(account)))
    assert "$10.00 balance, $0.00 held" in shown
    assert re.search(r"period ends in\s+\d+\sdays", shown)


def test_the_number_of_queries_of_an_account_page_does_not_grow(
    superuser: Client, world: World, account: Account, django_assert_max_num_queries: object
) -> None:
    for _ in range(20):
        ledger.record(world.event(account, cost=1, price=2, at=timezone.now()))
        world.grant(account, 5)
    with django_assert_max_num_queries(48):  # type: ignore[operator]
        text(superuser, page(account))


def test_the_page_of_a_use_explains_its_charge_to_the_last_digit(superuser: Client, db: None) -> None:
    """1,001 tokens at $3.00 a million cost $0.003003; with 50 % they are charged at $0.0045045."""
    account = factories.make_account(credit=1)
    [answer] = usage.record(
        events=[usage.Event(key="k", account=account, at=timezone.now(), model=factories.make_model(), quantities={"input_tokens": 1_001})],
        now=timezone.now(),
    )
    assert isinstance(answer, ledger.Usage)
    record = UsageRecord.objects.get(account=account)
    shown = re.sub(r"<[^>]+>", "", text(superuser, reverse("admin:metering_usagerecord_change", args=[f"{account.pk}-{record.pk}"])))
    for words in (
        "$0.004504500", "$0.003003000", "3 per 1,000,000", "0.0045045", "wholesale cost plus a markup of 50 %", "nothing had to be rounded",
        "equal to the nano", "re-derives", "The first 32 digits of its SHA-256",
    ):  # fmt: skip
        assert words in shown, words
    [row] = record.price_ids or []
    assert reverse("admin:pricing_pricerow_change", args=[row]) in text(
        superuser, reverse("admin:metering_usagerecord_change", args=[f"{account.pk}-{record.pk}"])
    )


def test_a_use_whose_terms_are_gone_has_a_page_that_says_so(superuser: Client, account: Account) -> None:
    record = UsageRecord.objects.filter(account=account, price_nanos__gt=0)[0]
    shown = text(superuser, reverse("admin:metering_usagerecord_change", args=[f"{account.pk}-{record.pk}"]))
    assert "cannot be read: There is no rate card" in shown


def test_a_product_is_shown_in_hours_percent_and_its_own_unit(superuser: Client, db: None) -> None:
    product = factories.make_product(
        welcome_credit_nanos=10 * NANOS, target_margin_ppm=780_000, payment_fee_ppm=29_000, payment_fee_cents=30
    )
    shown = text(superuser, reverse("admin:pricing_product_change", args=[product.pk]))
    for words in ("10.00 USD", "78 %", "15 minutes", "24 hours", "2.9 % + 0.30 USD a payment"):
        assert words in shown, words
    assert "nanos" not in shown
    assert "ppm" not in shown


def test_an_instant_on_staffs_pages_has_its_seconds_and_its_zone(superuser: Client, account: Account) -> None:
    shown = text(superuser, reverse("admin:analytics_entry_changelist"))
    assert re.search(r"\d{1,2} \w{3} \d{4}, \d\d:\d\d:\d\d UTC", shown)


def test_the_margin_page_shows_totals_and_every_grouping(superuser: Client, world: World, account: Account) -> None:
    url = reverse("admin:analytics_margin_changelist") + f"?product={world.product.slug}"
    for by in ("model", "account", "product", "day", "feature"):
        shown = text(superuser, f"{url}&by={by}")
        assert "$0.45" in shown
        assert "last brought up to date" in shown
        assert "<svg" in shown


@pytest.mark.parametrize(
    "query",
    [
        "by=x",
        "since=x",
        "since=2026-02-30",
        "last_day=0000-00-00",
        "since=2030-01-01&last_day=2020-01-01",
        "since=0001-01-01",
        "last_day=9999-12-31",
        "product=nobody",
        "product=%00",
        "by=%00",
    ],
)
def test_garbage_in_the_margin_page_is_an_error_on_the_page(superuser: Client, query: str) -> None:
    assert 'role="alert"' in text(superuser, reverse("admin:analytics_margin_changelist") + f"?{query}")


def test_the_dashboard_shows_the_figures_and_what_waits(superuser: Client, account: Account) -> None:
    PriceProposal.objects.create(
        provider="a", model="b", component="input_tokens", price_nanos=1, source="test", proposed_at=timezone.now()
    )
    shown = text(superuser, reverse("admin:index"))
    assert "Gross margin" in shown
    assert "price proposals to decide on" in shown


# Read-only -------------------------------------------------------------------------------------------------------------------


def test_nobody_adds_changes_or_deletes_what_is_history(superuser: Client, account: Account) -> None:
    PriceRow.objects.create(
        provider="a", model=uuid4().hex, component="input_tokens", price_nanos=1, valid=(timezone.now(), None), source="test"
    )
    Plan.objects.create(product=account.product, slug="free", name="Free", rank=1)
    rows: dict[str, Any] = {
        "billing_grant": Grant,
        "billing_operation": Operation,
        "metering_usagerecord": UsageRecord,
        "metering_openauthorization": OpenAuthorization,
    }
    urls = []
    for name, model in rows.items():
        urls += [(name, f"{account.pk}-{model.objects.filter(account=account).values_list('pk')[0][0]}")]
    entry = LedgerEntry.objects.filter(account=account)[0]
    urls += [("analytics_entry", f"{account.pk}-{entry.unit_id}-{entry.seq}")]
    catalog: tuple[Any, ...] = (PriceRow, Product, Plan)
    for model in catalog:
        urls += [(f"pricing_{model._meta.model_name}", str(model.objects.latest("pk").pk))]
    LogEntry.objects.create(user=User.objects.latest("date_joined"), object_id="1", object_repr="x", action_flag=1)
    urls += [("admin_logentry", str(LogEntry.objects.latest("pk").pk))]
    for name, key in urls:
        for action, arguments in (("change", [key]), ("delete", [key]), ("add", [])):
            url = reverse(f"admin:{name}_{action}", args=arguments)
            assert superuser.post(url, {"post": "yes", "granted": "1", "price_nanos": "1"}).status_code == 403, url
        assert superuser.post(reverse(f"admin:{name}_changelist"), {"action": "delete_selected", "_selected_action": key}).status_code in (
            200,
            302,
        )
    for _, model in rows.items():
        assert model.objects.filter(account=account).exists()
    assert PriceRow.objects.get(source="test", provider="a").price_nanos == 1


def test_an_account_and_a_key_are_not_deleted_and_its_page_takes_no_post(superuser: Client, account: Account) -> None:
    assert superuser.post(reverse("admin:accounts_account_delete", args=[account.pk]), {"post": "yes"}).status_code == 403
    assert superuser.post(reverse("admin:accounts_apikey_delete", args=[account.api_keys.get().pk]), {"post": "yes"}).status_code == 403
    assert superuser.post(page(account), {"name": "Mallory"}).status_code == 405


# Acts ------------------------------------------------------------------------------------------------------------------------


def grant_form(**fields: str) -> dict[str, str]:
    return {
        "token": str(uuid4()),
        "amount": "2.50",
        "source": "goodwill",
        "last_day": "",
        "reason": "Sorry for the outage",
        "confirm": "1",
    } | fields


def test_a_grant_shows_its_effect_and_changes_nothing_before_it_is_confirmed(superuser: Client, account: Account) -> None:
    before = free(account)
    form = grant_form()
    del form["confirm"]
    shown = superuser.post(page(account, "grant"), form).content.decode()
    assert "Free afterwards" in shown
    assert form["token"] in shown
    assert free(account) == before


@pytest.mark.failure(15)
def test_a_confirmed_grant_is_in_the_ledger_with_who_and_why(superuser: Client, account: Account) -> None:
    before = free(account)
    assert superuser.post(page(account, "grant"), grant_form()).status_code == 302
    assert free(account) == before + 2_500_000_000
    done = Operation.objects.filter(account=account).latest("id")
    assert (done.actor, done.reason) == (User.objects.get(pk=superuser.session["_auth_user_id"]).email, "Sorry for the outage")


@pytest.mark.failure(15)
def test_a_grant_form_that_is_sent_twice_grants_once(superuser: Client, account: Account) -> None:
    before, form = free(account), grant_form()
    for _ in range(3):
        assert superuser.post(page(account, "grant"), form).status_code == 302
    assert free(account) == before + 2_500_000_000


def test_a_used_form_grants_no_other_amount(superuser: Client, account: Account) -> None:
    form = grant_form()
    superuser.post(page(account, "grant"), form)
    before = free(account)
    response = superuser.post(page(account, "grant"), form | {"amount": "3"})
    assert "used before" in response.content.decode()
    assert free(account) == before


@pytest.mark.failure(15, 20)
@pytest.mark.parametrize("amount", GARBAGE)
def test_a_garbage_amount_is_an_error_beside_its_field_and_changes_nothing(superuser: Client, account: Account, amount: str) -> None:
    entries = LedgerEntry.objects.filter(account=account).count()
    shown = superuser.post(page(account, "grant"), grant_form(amount=amount))
    assert shown.status_code == 200
    assert shown.context["form"].errors.keys() == {"amount"}
    if amount != "-1":
        assert superuser.post(page(account, "adjust"), grant_form(amount=amount)).context["form"].errors.keys() == {"amount"}
    assert LedgerEntry.objects.filter(account=account).count() == entries


@pytest.mark.failure(15)
@pytest.mark.parametrize(
    "wrong",
    [
        {"reason": ""},
        {"reason": " "},
        {"reason": "x" * 501},
        {"reason": "\0"},
        {"source": "purchase"},
        {"source": ""},
        {"token": ""},
        {"token": "x"},
        {"last_day": "2020-01-01"},
        {"last_day": "9999-12-31"},
        {"last_day": "x"},
        {"last_day": "2026-02-30"},
    ],
)
def test_any_other_garbage_changes_nothing_either(superuser: Client, account: Account, wrong: dict[str, str]) -> None:
    entries = LedgerEntry.objects.filter(account=account).count()
    assert superuser.post(page(account, "grant"), grant_form(**wrong)).context["form"].errors.keys() == wrong.keys()
    assert LedgerEntry.objects.filter(account=account).count() == entries


def test_a_grant_that_the_wallet_cannot_hold_is_refused_with_words(superuser: Client, account: Account) -> None:
    before = free(account)
    response = superuser.post(page(account, "grant"), grant_form(amount="9223372036.854775807"))
    assert "larger than the ledger can hold" in response.content.decode()
    assert free(account) == before


def test_a_grant_expires_at_the_end_of_its_last_day(superuser: Client, account: Account) -> None:
    last_day = timezone.now().date() + timedelta(days=9)
    superuser.post(page(account, "grant"), grant_form(last_day=last_day.isoformat()))
    expires_at = Grant.objects.filter(account=account).latest("id").expires_at
    assert expires_at.isoformat() == f"{last_day + timedelta(days=1)}T00:00:00+00:00"


def test_an_adjustment_goes_up_and_down_and_never_below_what_is_free(superuser: Client, account: Account) -> None:
    before = free(account)
    superuser.post(page(account, "adjust"), grant_form(amount="1"))
    superuser.post(page(account, "adjust"), grant_form(amount="-3.5"))
    assert free(account) == before - 2_500_000_000
    response = superuser.post(page(account, "adjust"), grant_form(amount="-1000"))
    assert response.context["form"].errors.keys() == {"amount"}
    assert free(account) == before - 2_500_000_000


def test_a_charge_is_reversed_once_with_a_reason(superuser: Client, account: Account) -> None:
    usage = UsageRecord.objects.get(account=account, price_nanos=450_000_000)
    before, url = free(account), page(account, "reverse", usage.pk)
    assert superuser.post(url, {"token": str(uuid4()), "confirm": "1"}).context["form"].errors.keys() == {"reason"}
    assert "$0.45" in superuser.post(url, {"token": str(uuid4()), "reason": "Wrong model"}).content.decode()
    assert free(account) == before
    assert superuser.post(url, {"token": str(uuid4()), "reason": "Wrong model", "confirm": "1"}).status_code == 302
    assert free(account) == before + 450_000_000
    again = superuser.post(url, {"token": str(uuid4()), "reason": "Wrong model", "confirm": "1"})
    assert "undone before" in again.content.decode()
    assert free(account) == before + 450_000_000


def test_what_was_not_charged_to_this_account_cannot_be_reversed(superuser: Client, world: World, account: Account) -> None:
    usage = UsageRecord.objects.filter(account=account, price_nanos__gt=0)[0]
    for url in (page(account, "reverse", uuid4()), page(world.account(), "reverse", usage.pk)):
        assert superuser.get(url).status_code == 404


def test_a_new_account_is_opened_with_its_ledger(superuser: Client, db: None) -> None:
    external_id = uuid4().hex
    fields = {"product": factories.make_product().pk, "external_id": external_id, "name": "Grace", "kind": "person", "time_zone": "UTC"}
    response = superuser.post(reverse("admin:accounts_account_add"), fields)
    assert response.status_code == 302, response.context["errors"]
    account = Account.objects.get(external_id=external_id)
    assert superuser.post(page(account, "grant"), grant_form()).status_code == 302
    assert free(account) == 2_500_000_000


def test_an_account_of_a_product_without_its_plan_is_not_opened_and_staff_hear_why(superuser: Client, world: World) -> None:
    fields = {"product": world.product.pk, "external_id": "ada", "name": "Ada", "kind": "person", "time_zone": "UTC"}
    shown = superuser.post(reverse("admin:accounts_account_add"), fields, follow=True).content.decode()
    assert "There is no plan" in shown
    assert not world.product.accounts.exists()


def test_an_account_is_renamed_and_keeps_its_product_and_ids(superuser: Client, account: Account) -> None:
    fields = {
        "name": "Ada King",
        "time_zone": "Europe/London",
        "product": "1",
        "external_id": "mine",
        "memberships-TOTAL_FORMS": "0",
        "memberships-INITIAL_FORMS": "0",
        "closed_at_0": "",
        "closed_at_1": "",
    }
    assert superuser.post(page(account, "edit"), fields).status_code == 302
    changed = Account.objects.get(pk=account.pk)
    assert (changed.name, changed.external_id, changed.product_id) == ("Ada King", account.external_id, account.product_id)


def test_an_account_is_put_on_another_rate_card_of_its_own_product_and_on_no_other(superuser: Client, db: None) -> None:
    product, other = factories.make_product(), factories.make_product()
    for owner, slug in ((product, "own-keys"), (other, "theirs")):
        RateCard.objects.create(product=owner, slug=slug, valid_from=factories.START, mode="byo")
    RateCard.objects.create(product=product, slug="next-year", valid_from=timezone.now() + timedelta(days=365), mode="byo")
    account = factories.make_account(product)
    fields = {"name": "Ada", "time_zone": "UTC", "memberships-TOTAL_FORMS": "0", "memberships-INITIAL_FORMS": "0"}
    for slug in ("nonsense", "theirs", "next-year", "٣", "x" * 65, "\0"):
        refused = superuser.post(page(account, "edit"), fields | {"rate_card": slug})
        assert "rate_card" in refused.context["adminform"].form.errors, slug
    assert superuser.post(page(account, "edit"), fields | {"rate_card": "own-keys"}).status_code == 302
    account.refresh_from_db()
    assert account.rate_card == "own-keys"


# API keys --------------------------------------------------------------------------------------------------------------------


def issue(client: Client, url: str, **fields: object) -> str:
    """The page that answers a filled-in key form."""
    token = re.search(r'name="token" value="([0-9a-f]+)"', text(client, url))
    assert token
    return client.post(url, {"token": token[1], "name": "cron", "scopes": ["usage:read"]} | fields).content.decode()


def test_a_key_is_shown_once_works_and_is_in_the_audit_log(superuser: Client, account: Account) -> None:
    url = reverse("admin:accounts_apikey_add") + f"?account={account.public_id}"
    shown = issue(superuser, url)
    token = re.search(r"tg_live_\w+", shown)
    assert token
    assert api_keys.authenticate(token=token[0], now=timezone.now()).account_id == account.pk
    key = ApiKey.objects.get(name="cron", account=account)
    assert LogEntry.objects.filter(object_id=str(key.pk), change_message__contains="usage:read").exists()
    assert token[0] not in text(superuser, page(account))
    assert key.created_by == User.objects.get(pk=superuser.session["_auth_user_id"]).email


def test_a_key_form_that_is_sent_twice_issues_one_key(superuser: Client, world: World) -> None:
    url = reverse("admin:accounts_apikey_add")
    token = re.search(r'name="token" value="([0-9a-f]+)"', text(superuser, url))
    assert token
    form = {"token": token[1], "name": "cron", "scopes": ["admin:read"], "product": world.product.pk}
    assert "tg_live_" in superuser.post(url, form).content.decode()
    assert "has issued its key already" in superuser.post(url, form).content.decode()
    assert world.product.api_keys.count() == 1


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "x" * 121}, {"name": "\0"}, {"scopes": []}, {"scopes": ["root"]}, {"scopes": ["admin:read"]}]
)
def test_a_garbage_key_form_issues_nothing(superuser: Client, account: Account, wrong: dict[str, object]) -> None:
    assert "tg_live_" not in issue(superuser, reverse("admin:accounts_apikey_add") + f"?account={account.public_id}", **wrong)
    assert account.api_keys.count() == 1


@pytest.mark.parametrize("name", ["acct_nobody", "", "%00", "1"])
def test_a_key_for_nobody_is_not_found(superuser: Client, name: str) -> None:
    assert superuser.get(reverse("admin:accounts_apikey_add") + f"?account={name}").status_code == 404


def test_a_revoked_key_is_refused_and_the_reason_is_kept(superuser: Client, account: Account) -> None:
    issued = api_keys.issue(product=account.product, account=account, name="old", scopes=["usage:read"], now=timezone.now())
    url = reverse("admin:accounts_apikey_revoke", args=[issued.key.pk])
    assert superuser.post(url, {"reason": ""}).context["form"].errors.keys() == {"reason"}
    assert superuser.post(url, {"reason": "Leaked"}).status_code == 302
    with pytest.raises(api_keys.InvalidKey):
        api_keys.authenticate(token=issued.token, now=timezone.now() + timedelta(seconds=2))
    assert LogEntry.objects.filter(object_id=str(issued.key.pk), change_message__contains="Leaked").exists()
    assert superuser.get(reverse("admin:accounts_apikey_revoke", args=[2**31])).status_code == 404


# The price desk ----------------------------------------------------------------------------------------------------------------


def propose() -> PriceProposal:
    return PriceProposal.objects.create(
        provider="anthropic", model=uuid4().hex, component="input_tokens", price_nanos=3 * NANOS, source="test", proposed_at=timezone.now()
    )


def decide(client: Client, proposal: PriceProposal, verb: str, **fields: str) -> int:
    url = reverse("admin:pricing_priceproposal_changelist")
    return client.post(url, {"action": verb, "_selected_action": str(proposal.pk)} | fields).status_code


def test_a_proposal_becomes_a_price_only_with_a_reason(superuser: Client) -> None:
    proposal = propose()
    assert decide(superuser, proposal, "approve") == 200
    assert decide(superuser, proposal, "approve", confirm="1", reason="") == 200
    assert not PriceRow.objects.filter(model=proposal.model).exists()
    assert decide(superuser, proposal, "approve", confirm="1", reason="As published") == 302
    assert PriceRow.objects.get(model=proposal.model).price_nanos == 3 * NANOS
    assert decide(superuser, proposal, "approve", confirm="1", reason="Again") == 200
    assert PriceRow.objects.filter(model=proposal.model).count() == 1


def test_a_rejected_proposal_is_no_price(superuser: Client) -> None:
    proposal = propose()
    assert decide(superuser, proposal, "reject", confirm="1", reason="A typing error") == 302
    proposal.refresh_from_db()
    assert (proposal.state, proposal.reason) == ("rejected", "A typing error")
    assert not PriceRow.objects.filter(model=proposal.model).exists()


def test_who_may_only_look_decides_on_no_proposal(db: None) -> None:
    proposal = propose()
    decide(staff("pricing.view_priceproposal"), proposal, "approve", confirm="1", reason="Please")
    proposal.refresh_from_db()
    assert proposal.state == "pending"


# Roles -------------------------------------------------------------------------------------------------------------------------


def test_staff_cannot_make_themselves_or_others_superuser(db: None) -> None:
    client = staff("accounts.view_user", "accounts.change_user")
    me = User.objects.get(pk=client.session["_auth_user_id"])
    client.post(
        reverse("admin:accounts_user_change", args=[me.pk]), {"email": me.email, "is_active": "on", "is_superuser": "on", "is_staff": "on"}
    )
    me.refresh_from_db()
    assert not me.is_superuser
    boss = User.objects.create_superuser(f"{uuid4().hex}@example.com", "correct horse battery")
    assert client.post(reverse("admin:accounts_user_change", args=[boss.pk]), {"email": "x@example.com"}).status_code == 403
    assert client.get(reverse("admin:auth_user_password_change", args=[boss.pk])).status_code == 403
