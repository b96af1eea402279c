"""Guests: what they may do for nothing, that it ends, and that signing up keeps their account. Over HTTP, on the chat's shipped catalog."""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction
from django.test import Client

from accounts import registration
from accounts.models import Account, User
from billing import audit, subscriptions
from billing.models import Grant, Operation, Subscription, Wallet
from metering import usage
from metering.models import UsageRecord
from metering.tests.test_concurrency import at_once
from pricing import catalog, catalog_file
from pricing.models import Entitlement, Plan, PlanVersion, PriceRow, Product, RateCard
from tests.factories import NANOS, START, make_account, make_key, make_model, make_product

CHAT = Path(__file__).parents[1] / "pricing" / "catalogs" / "supabase_chat.toml"
MODEL = "openai:gpt-4o"


class App:
    """The chat's own program, with a product key; ``server`` is empty for requests inside the test's transaction."""

    def __init__(self, product: Product, model: str, *, server: str = "") -> None:
        self.product, self.model, self.server, self.key = product, model, server, make_key(product)

    def call(self, path: str, body: Any = None, *, key: str = "") -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of a POST, or of a GET where there is no ``body``."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key or self.key}", "Idempotency-Key": str(uuid4()), "Content-Type": "application/json"}
        if self.server:
            request = urllib.request.Request(f"{self.server}/api/v1/{path}", data, headers)
            try:
                with urllib.request.urlopen(request) as response:
                    return response.status, dict(response.headers), json.loads(response.read())
            except urllib.error.HTTPError as error:
                return error.code, dict(error.headers), json.loads(error.read())
        method = "GET" if data is None else "POST"
        answer = Client().generic(method, f"/api/v1/{path}", data or b"", content_type="application/json", headers=headers)
        return answer.status_code, dict(answer.headers), json.loads(answer.content)

    def open(self, external_id: str = "visitor", kind: str = "guest", **more: Any) -> Any:
        status, _, body = self.call("accounts", {"external_id": external_id, "kind": kind} | more)
        assert status == 200, body
        return body

    def authorize(self, external_id: str = "visitor", *, tokens: int = 1_000) -> tuple[int, dict[str, str], Any]:
        estimate = {"input_tokens": tokens, "max_output_tokens": 0}
        return self.call("usage/authorize", {"account": external_id, "model": self.model, "estimate": estimate})

    def exchange(self, external_id: str = "visitor") -> Any:
        status, _, body = self.authorize(external_id)
        assert status == 200, body
        status, _, settled = self.call(f"usage/authorizations/{body['id']}/capture", {"quantities": {"input_tokens": 1_000}})
        assert status == 200, settled
        return settled

    def limits(self, external_id: str = "visitor") -> dict[str, Any]:
        """What the account's limits say, by layer or meter."""
        _, _, body = self.call(f"usage/limits?account={external_id}")
        return {layer["meter"] or layer["layer"]: layer for layer in body["limits"]}


@pytest.fixture
def chat(db: None) -> App:
    catalog_file.apply(catalog_file.parse(CHAT.read_bytes()), actor="ada", effective=START)
    PriceRow.objects.create(
        provider="openai", model="gpt-4o", component="input_tokens", price_nanos=2_500_000_000, valid=(START, None), source="test"
    )
    return App(catalog.product(slug="supabase_chat"), MODEL)


def own_chat(server: str = "", *, allowance: int = 3) -> App:
    """A product of the test's own that has guests; for tests that commit."""
    with transaction.atomic():
        product = make_product(guest_plan="guest", welcome_credit_nanos=10 * NANOS)
        RateCard.objects.create(product=product, slug="nothing", valid_from=START, mode="included")
        plan = Plan.objects.create(product=product, slug="guest", name="Guest", rank=0, public=False)
        version = PlanVersion.objects.create(plan=plan, valid_from=START, price_cents=0, rate_card="nothing")
        Entitlement.objects.create(plan_version=version, key="messages", kind="limit", window="lifetime", limit=allowance)
    return App(product, make_model(), server=server)


class TestAllowance:
    def test_three_exchanges_are_free_over_http_the_fourth_is_refused_and_signing_up_is_the_way_out(self, server: str) -> None:
        app = own_chat(server)
        guest = app.open("visitor", name="Somebody")
        assert {app.exchange()["charged"] for _ in range(3)} == {"0.000000000"}
        status, headers, refused = app.authorize()
        assert (status, refused["code"], refused["layer"], refused["status"]) == (429, "quota_exceeded", "quota", 429)
        assert refused["detail"] == "3 of 3 messages are used in all. Sign up to go on."
        assert refused["upgrade"] == {"plan": "free", "name": "Free", "price": "0.00", "currency": "usd"}
        assert int(headers["Retry-After"]) > 0
        [quota] = [layer for layer in refused["limits"] if layer["layer"] == "quota"]
        assert (quota["meter"], quota["used"], quota["remaining"], quota["resets_at"]) == ("messages/lifetime", 3, 0, None)
        signed_up = app.open("visitor", "person", name="Ada")
        assert signed_up["account"] == guest["account"]
        time.sleep(subscriptions.MAX_AGE_SECONDS)  # a change is felt within that time
        assert app.exchange()["charged"] == "0.004500000"
        account = Account.objects.get(public_id=guest["account"])
        assert [record.price_nanos for record in UsageRecord.objects.filter(account=account).order_by("id")] == [0, 0, 0, 4_500_000]
        assert audit.run() == []

    def test_of_two_at_once_on_the_last_exchange_exactly_one_passes(self, committed: None) -> None:
        app = own_chat(allowance=3)
        account = make_account(app.product, kind="guest")
        ask = usage.Ask(app.model, {"input_tokens": 1_000})

        def authorize(number: int) -> usage.Authorization:
            return usage.authorize(account=account, ask=ask, key=f"k{number}", now=datetime.now(UTC))

        for number in range(2):
            authorize(number)
        answers = at_once(2, lambda number: authorize(10 + number))
        assert [answer.layer.name for answer in answers if isinstance(answer, usage.Refused)] == ["quota"]
        assert [answer.usage.replayed for answer in answers if isinstance(answer, usage.Authorization)] == [False]

    def test_a_guest_has_no_wallet_and_what_it_uses_is_recorded_with_its_cost(self, chat: App) -> None:
        chat.open()
        chat.exchange()
        account = Account.objects.get(external_id="visitor")
        record = UsageRecord.objects.get(account=account)
        assert (record.cost_nanos, record.price_nanos, record.value_nanos, record.unit_id) == (2_500_000, 0, 0, None)
        assert not Wallet.objects.filter(account=account).exists()
        assert not Operation.objects.filter(account=account).exists()
        _, _, balance = chat.call("billing/balance?account=visitor")
        assert (balance["balance"], balance["held"], balance["debt"], balance["grants"]) == (*["0.000000000"] * 3, [])
        assert chat.call("billing/ledger?account=visitor")[2]["items"] == []

    def test_the_limits_say_what_is_left_before_and_after(self, chat: App) -> None:
        chat.open()
        assert [chat.limits()["messages/lifetime"][name] for name in ("limit", "used", "remaining", "allowed")] == [3, 0, 3, True]
        chat.exchange()
        assert [chat.limits()["messages/lifetime"][name] for name in ("limit", "used", "remaining", "allowed")] == [3, 1, 2, True]
        asked = usage.Ask(MODEL, {"input_tokens": 1})
        account = Account.objects.get(external_id="visitor")
        assert usage.decide(account=account, ask=asked, now=datetime.now(UTC)).refusal is None  # no least balance is asked of a guest

    def test_an_exchange_that_is_given_back_is_free_again_and_one_reported_afterwards_counts(self, chat: App) -> None:
        chat.open()
        _, _, held = chat.authorize()
        chat.call(f"usage/authorizations/{held['id']}/release", {})
        event = {"account": "visitor", "model": MODEL, "time": datetime.now(UTC).isoformat(), "quantities": {"input_tokens": 1}}
        for number in range(3):
            assert chat.limits()["messages/lifetime"]["used"] == number
            assert chat.call("usage/records", event | {"id": str(number)})[2]["charged"] == "0.000000000"
        assert chat.authorize()[2]["layer"] == "quota"

    @pytest.mark.parametrize(("value", "allowance"), [("5", 5), ("0", 0), ("007", 7), ("", 3), ("9" * 18, 10**18 - 1)])
    def test_the_environment_says_how_many(self, chat: App, monkeypatch: pytest.MonkeyPatch, value: str, allowance: int) -> None:
        chat.open()
        monkeypatch.setenv("FREE_GUEST_EXCHANGES", value)
        assert chat.limits()["messages/lifetime"]["limit"] == allowance
        assert chat.authorize()[0] == (200 if allowance else 429)
        assert catalog_file.export(slug="supabase_chat") == CHAT.read_bytes()

    @pytest.mark.parametrize("value", ["-1", "3.0", "three", "unlimited", " 3", "３", "9" * 19])
    def test_an_environment_that_says_no_number_is_never_taken_for_another(
        self, chat: App, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        chat.open()
        monkeypatch.setenv("FREE_GUEST_EXCHANGES", value)
        with pytest.raises(catalog.InvalidSetting, match=r"The environment variable FREE_GUEST_EXCHANGES is .*; expected a whole number"):
            usage.decide(account=Account.objects.get(external_id="visitor"), ask=None, now=datetime.now(UTC))
        ready = Client().get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        assert ready.json()["checks"]["settings"].startswith("The environment variable FREE_GUEST_EXCHANGES is ")
        with pytest.raises(catalog_file.InvalidCatalog, match=r"plans\.guest\.entitlements\.messages\.setting"):
            catalog_file.parse(CHAT.read_bytes())


class TestSigningUp:
    def test_the_account_stays_with_its_records_and_gets_the_default_plan_and_the_welcome_credit_once(self, chat: App) -> None:
        guest = chat.open()
        chat.exchange()
        sent = {"name": "Ada", "billing_email": "ada@example.com", "time_zone": "Europe/Paris"}
        for _ in range(2):
            person = chat.open("visitor", "person", **sent)
        assert person == guest | {"kind": "person", "name": "Ada", "time_zone": "Europe/Paris"}
        account = Account.objects.get(external_id="visitor")
        assert account.billing_email == "ada@example.com"
        plans = Subscription.objects.filter(account=account).order_by("id").values_list("plan_version__plan__slug", "status")
        assert list(plans) == [("guest", "canceled"), ("pay_per_use", "active")]
        assert list(Grant.objects.filter(account=account).values_list("source", "granted")) == [("welcome", 10 * NANOS)]
        assert len(chat.call("usage/records?account=visitor")[2]["items"]) == 1

    def test_the_guests_allowance_no_longer_binds_and_usage_is_charged(self, chat: App) -> None:
        chat.open()
        for _ in range(3):
            chat.exchange()
        chat.open("visitor", "person", name="Ada")
        assert "messages/lifetime" not in chat.limits()
        assert [chat.exchange()["charged"] for _ in range(4)] == ["0.002500000"] * 4
        assert chat.call("billing/balance?account=visitor")[2]["balance"] == "9.990000000"

    def test_work_begun_as_a_guest_stays_free(self, chat: App) -> None:
        chat.open()
        _, _, held = chat.authorize()
        chat.open("visitor", "person", name="Ada")
        _, _, done = chat.call(f"usage/authorizations/{held['id']}/capture", {"quantities": {"input_tokens": 1_000}})
        assert done["charged"] == "0.000000000"
        assert Wallet.objects.get(account__external_id="visitor").balance == 10 * NANOS

    def test_a_person_never_becomes_a_guest_again_nor_a_team(self, chat: App) -> None:
        person = chat.open("visitor", "person", name="Ada")
        assert chat.open() == person
        assert chat.open("visitor", "team", name="Eve") == person
        assert Grant.objects.filter(account__external_id="visitor").count() == 1

    def test_a_closed_guest_does_not_sign_up(self, chat: App) -> None:
        chat.open()
        Account.objects.filter(external_id="visitor").update(closed_at=START)
        assert [chat.open("visitor", "person", name="Ada")[name] for name in ("kind", "closed_at")] == ["guest", "2026-01-01T00:00:00Z"]
        assert not Grant.objects.filter(account__external_id="visitor").exists()

    def test_a_user_who_signs_up_becomes_the_owner(self, chat: App) -> None:
        user, now = User.objects.create_user("ada@example.com", "correct horse battery"), datetime.now(UTC)
        for kind in ("guest", "team"):
            account = registration.open_account(product=chat.product, external_id="u", name="Ada", kind=kind, owner=user, now=now)
        assert [(place.user, place.role) for place in account.memberships.all()] == [(user, "owner")]

    def test_sign_ups_at_once_are_one(self, committed: None) -> None:
        app = own_chat()
        guest = make_account(app.product, kind="guest")

        def sign_up(number: int) -> Account:
            return make_account(app.product, external_id=guest.external_id)

        assert {(account.pk, account.kind) for account in at_once(6, sign_up)} == {(guest.pk, "person")}
        assert Grant.objects.filter(account=guest).count() == 1
        assert Subscription.objects.filter(account=guest).count() == 2


class TestOpening:
    def test_a_new_account_is_opened_once_and_answered_alike(self, chat: App) -> None:
        first, again = chat.open("u-1", "team", name="Acme"), chat.open("u-1", "team", name="Other")
        assert first == again
        assert (first["name"], first["kind"], first["closed_at"]) == ("Acme", "team", None)
        assert Grant.objects.filter(account__public_id=first["account"]).count() == 1

    def test_a_product_without_guests_refuses_them_by_name(self, db: None) -> None:
        app = App(make_product(), make_model())
        status, _, body = app.call("accounts", {"external_id": "visitor", "kind": "guest"})
        message = f"{app.product.name} has no guests."
        assert (status, body["detail"], body["errors"]) == (422, message, [{"field": "kind", "message": message}])
        assert not Account.objects.filter(product=app.product).exists()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"kind": "robot"}, {"kind": None}, {"kind": 1}, {"kind": ["guest"]}, {"kind": "Guest"}, {"kind": ""}, {"kind": "person"},
            {"kind": "person", "name": ""}, {"external_id": ""}, {"external_id": "acct_0123"}, {"external_id": "x" * 129},
            {"external_id": 5}, {"external_id": None}, {"external_id": "a\nb"}, {"name": "x" * 121}, {"name": "a\tb"}, {"name": 5},
            {"billing_email": "nobody"}, {"billing_email": None}, {"billing_email": "x" * 300 + "@example.com"},
            {"time_zone": "Mars/Base"}, {"time_zone": "../etc"}, {"time_zone": 5}, {"plan": "pay_per_use"},
        ],
    )  # fmt: skip
    def test_garbage_is_422_by_field_and_opens_and_changes_nothing(self, chat: App, wrong: dict[str, Any]) -> None:
        chat.open("before")
        status, _, body = chat.call("accounts", {"external_id": "before", "kind": "guest"} | wrong)
        field = "name" if wrong.get("kind") == "person" else next(iter(wrong))
        assert (status, body["code"], [error["field"] for error in body["errors"]]) == (422, "invalid_request", [field])
        assert list(Account.objects.filter(product=chat.product).values_list("external_id", "kind")) == [("before", "guest")]

    @pytest.mark.parametrize("raw", [b" ", b"{", b"[]", b"null", b'{"kind":"guest","kind":"guest"}', b'{"kind":"\\ud800"}', b"\xff"])
    def test_what_is_no_command_is_400_or_422(self, chat: App, raw: bytes) -> None:
        assert chat.call("accounts", raw)[0] in (400, 422)

    def test_only_a_product_key_that_may_write_bills_opens_accounts_of_its_own_product(self, chat: App) -> None:
        account = make_account(chat.product)
        body = {"external_id": account.external_id, "kind": "guest"}
        refused = chat.call("accounts", body, key=make_key(chat.product, account=account))
        assert (refused[0], refused[2]["code"]) == (403, "refused")
        weak = chat.call("accounts", body, key=make_key(chat.product, scopes=["usage:write", "usage:read", "billing:read"]))
        assert (weak[0], weak[2]["code"]) == (403, "missing_scope")
        stranger = chat.call("accounts", body | {"kind": "person", "name": "Eve"}, key=make_key(make_product()))[2]
        assert stranger["account"] != account.public_id


class TestStaff:
    def test_guests_are_told_from_others_in_the_list(self, chat: App, client: Client) -> None:
        client.force_login(User.objects.create_superuser(f"{secrets.token_hex(6)}@example.com", "correct horse battery"))
        chat.open("visitor", name="Nobody Yet")
        chat.open("u-1", "person", name="Ada Lovelace")
        listed = client.get("/admin/accounts/account/", {"kind__exact": "guest"}).context["cl"]
        assert [account.name for account in listed.result_list] == ["Nobody Yet"]
        assert "kind" in listed.list_display

    def test_staff_open_a_guests_account_where_the_product_has_guests(self, chat: App, client: Client) -> None:
        client.force_login(User.objects.create_superuser(f"{secrets.token_hex(6)}@example.com", "correct horse battery"))
        other = make_product()
        for product in (chat.product, other):
            fields = {"product": product.pk, "external_id": "visitor", "name": "Guest", "kind": "guest", "time_zone": "UTC"}
            shown = client.post("/admin/accounts/account/add/", fields, follow=True).content.decode()
        assert f"No account was opened. {other.name} has no guests." in shown
        account = Account.objects.get(external_id="visitor")
        assert account.product == chat.product
        assert account.subscriptions.get().plan_version.plan.slug == "guest"
        assert not account.wallets.exists()
