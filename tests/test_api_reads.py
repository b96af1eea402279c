"""The GET endpoints of usage and billing: what they say of real work, to whom, and what they refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from django.db import connection, transaction
from django.db.models import QuerySet
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts import tenancy
from accounts.models import Account, Membership, User
from billing import ledger
from billing.models import Grant, LedgerEntry, Wallet
from metering import charges, usage
from metering.models import UsageRecord
from pricing.models import CreditPack, Product
from tests.factories import NANOS, START, give, make_account, make_key, make_model, make_product

pytestmark = pytest.mark.django_db

OF_ACCOUNT = [
    "/api/v1/usage/records",
    "/api/v1/usage/current",
    "/api/v1/usage/history",
    "/api/v1/usage/limits",
    "/api/v1/usage/refusals",
    "/api/v1/billing/balance",
    "/api/v1/billing/ledger",
    "/api/v1/billing/subscription",
    "/api/v1/billing/invoices",
    "/api/balance",
]
OF_PRODUCT = ["/api/v1/billing/packs", "/api/v1/billing/plans"]


class Shop:
    """A product with one customer, who has 10.00 in two grants, a priced model and a product key."""

    def __init__(self, **product: Any) -> None:
        self.product: Product = make_product(**product)
        self.account: Account = make_account(self.product)
        give(self.account, 1 * NANOS, source="welcome", priority=10)
        give(self.account, 9 * NANOS, source="purchased", priority=30)
        self.model = make_model()
        self.key = make_key(self.product)

    def get(self, path: str, *, key: str | None = None, **parameters: Any) -> HttpResponse:
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        return Client(raise_request_exception=False).get(path, parameters, headers=headers)  # type: ignore[return-value]

    def read(self, path: str, **parameters: Any) -> Any:
        response = self.get(path, **({"account": self.account.external_id} | parameters))
        assert response.status_code == 200, response.content
        return json.loads(response.content)

    def record(self, *, at: datetime | None = None, account: Account | None = None, **fields: Any) -> ledger.Usage:
        now = datetime.now(UTC)
        event = usage.Event(
            key=str(uuid4()), account=account or self.account, at=at or now, model=fields.pop("model", self.model),
            quantities=fields.pop("quantities", {"input_tokens": 100_000}), **fields,
        )  # fmt: skip
        [answer] = usage.record(events=[event], now=now)
        assert isinstance(answer, ledger.Usage)
        return answer

    def authorize(self) -> UUID:
        ask = usage.Ask(self.model, {"input_tokens": 200_000}, user="ada")
        return usage.authorize(account=self.account, ask=ask, key=str(uuid4()), now=datetime.now(UTC)).usage.id

    def capture(self, **quantities: int) -> UUID:
        id_ = self.authorize()
        usage.capture(account=self.account, authorization_id=id_, quantities=quantities or {"input_tokens": 100_000})
        return id_


@pytest.fixture
def shop() -> Shop:
    return Shop()


def problem(response: HttpResponse) -> dict[str, Any]:
    assert response.headers["Content-Type"] == "application/problem+json", response.content
    body: dict[str, Any] = json.loads(response.content)
    assert body["status"] == response.status_code
    return body


class TestRecords:
    def test_a_record_says_what_was_used_and_charged_and_the_cost_only_to_staff(self, shop: Shop) -> None:
        done = shop.record(feature="chat", user="ada", session="s1", run="r1")
        [record] = shop.read("/api/v1/usage/records")["items"]
        assert record.pop("cost") == "0.300000000"  # this key has admin:read
        assert record.pop("event_at") < record.pop("recorded_at")
        assert record == {
            "id": usage.public_id(shop.account, done.id, kind="rec"), "authorization": None, "account": shop.account.public_id,
            "outcome": "recorded", "model": shop.model, "feature": "chat", "user": "ada", "session": "s1", "run": "r1",
            "quantities": {"input_tokens": 100_000}, "charged": "0.450000000",
            "waived": "0.000000000", "hold": "0.000000000", "unit": "USD", "counted_at": None,
        }  # fmt: skip
        reader = make_key(shop.product, account=shop.account, scopes=["usage:read"])
        [record] = json.loads(shop.get("/api/v1/usage/records", key=reader).content)["items"]
        assert "cost" not in record

    def test_pages_go_through_every_record_once_newest_first(self, shop: Shop) -> None:
        ids = [usage.public_id(shop.account, shop.record().id, kind="rec") for _ in range(5)]
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = shop.read("/api/v1/usage/records", limit=2, **cursor)
            assert len(page["items"]) <= 2
            seen += [record["id"] for record in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == ids[::-1]

    def test_filters_choose_by_time_model_feature_and_user(self, shop: Shop) -> None:
        now = datetime.now(UTC)
        other = make_model()
        shop.record(user="ada", feature="chat", at=now - timedelta(hours=2))
        shop.record(user="bob", feature="code", model=other, at=now - timedelta(hours=1))

        def users(**parameters: str) -> list[str]:
            return [record["user"] for record in shop.read("/api/v1/usage/records", **parameters)["items"]]

        assert users(model=other) == users(feature="code") == users(user="bob") == ["bob"]
        assert users(since=(now - timedelta(hours=1)).isoformat()) == ["bob"]  # inclusive
        assert users(until=(now - timedelta(hours=1)).isoformat()) == ["ada"]  # exclusive
        assert users(model="acme:nobody-used-it") == users(feature="none") == users(user="nobody") == []

    def test_an_authorization_is_found_by_its_id_from_beginning_to_end(self, shop: Shop) -> None:
        id_ = shop.authorize()
        auth, rec = usage.public_id(shop.account, id_), usage.public_id(shop.account, id_, kind="rec")
        begun = json.loads(shop.get(f"/api/v1/usage/records/{auth}").content)
        assert (begun["outcome"], begun["charged"], begun["hold"], begun["user"]) == ("authorized", None, "0.900000000", "ada")
        usage.capture(account=shop.account, authorization_id=id_, quantities={"input_tokens": 100_000})
        ended = json.loads(shop.get(f"/api/v1/usage/records/{auth}").content)
        assert (ended["outcome"], ended["charged"], ended["authorization"], ended["id"]) == ("captured", "0.450000000", auth, rec)
        assert shop.get(f"/api/v1/usage/records/{rec}").content == shop.get(f"/api/v1/usage/records/{auth}").content

    def test_an_accounts_rows_are_found_by_an_index(self, shop: Shop) -> None:
        shop.record()
        with connection.cursor() as cursor:
            cursor.execute("set local enable_seqscan = off")  # the planner's choice on tables of a few rows
        newest: list[QuerySet[Any]] = [
            UsageRecord.objects.filter(account=shop.account).order_by("-id")[:50],
            LedgerEntry.objects.filter(account=shop.account).order_by("-seq")[:50],
            Wallet.objects.filter(account=shop.account),
            Grant.objects.filter(account=shop.account, closed=False),
        ]
        for rows in newest:
            assert "Seq Scan" not in rows.explain()

    def test_a_longer_page_asks_the_database_no_more_often(self, shop: Shop) -> None:
        for path in ("/api/v1/usage/records", "/api/v1/billing/ledger"):
            shop.record(feature="chat")
            with CaptureQueriesContext(connection) as few:
                shop.read(path)
            for number in range(5):
                shop.record(feature=f"feature-{number}", model=make_model())
            with CaptureQueriesContext(connection) as many:
                assert len(shop.read(path)["items"]) >= 5
            assert len(many) <= len(few)  # the first read also looks the key up

    @pytest.mark.parametrize("path", [*OF_ACCOUNT, *OF_PRODUCT])
    def test_head_is_get_without_a_body(self, shop: Shop, path: str) -> None:
        parameters = {} if path in OF_PRODUCT else {"account": shop.account.public_id}
        response = Client().head(path, parameters, headers={"Authorization": f"Bearer {shop.key}"})
        assert (response.status_code, response.content) == (200, b"")


class TestExplain:
    def explain(self, shop: Shop, id_: UUID, *, key: str | None = None) -> Any:
        response = shop.get(f"/api/v1/usage/records/{usage.public_id(shop.account, id_, kind='rec')}/explain", key=key)
        assert response.status_code == 200, response.content
        return json.loads(response.content)

    def reader(self, shop: Shop) -> str:
        return make_key(shop.product, scopes=["usage:read"])

    def test_one_charge_is_followed_from_its_components_to_the_grants_that_it_burnt(self) -> None:
        shop = Shop(visibility="full_breakdown")
        id_ = shop.capture(input_tokens=100_000, output_tokens=40_000)
        told = self.explain(shop, id_, key=self.reader(shop))
        assert told["rating"]["lines"] == [
            {"component": "input_tokens", "quantity": 100_000, "rate": "4.5", "per_units": 1_000_000, "charge": "0.45"},
            {"component": "output_tokens", "quantity": 40_000, "rate": "22.5", "per_units": 1_000_000, "charge": "0.9"},
        ]
        rating = {name: told["rating"][name] for name in ("exact", "price", "reproduces", "mode", "rate_card", "version")}
        assert rating == {
            "exact": "1.35", "price": "1.350000000", "reproduces": True, "mode": "markup", "rate_card": "standard", "version": 1,
        }  # fmt: skip
        assert [(burnt["source"], burnt["amount"], burnt["balance_after"]) for burnt in told["burnt"]] == [
            ("welcome", "-1.000000000", "9.000000000"),
            ("purchased", "-0.350000000", "8.650000000"),
        ]
        assert told["record"]["charged"] == "1.350000000"
        assert "cost" not in told["record"]

    def test_what_is_seen_follows_the_products_visibility(self) -> None:
        seen = {}
        for visibility in Product.Visibility.values:
            shop = Shop(visibility=visibility)
            rating = self.explain(shop, shop.capture(), key=self.reader(shop))["rating"]
            seen[visibility] = None if rating is None else rating.get("lines") is not None
        assert seen == {"depletion_only": None, "amount": False, "full_breakdown": True}

    def test_staff_see_the_lines_with_costs_and_price_rows_whatever_the_visibility(self) -> None:
        shop = Shop(visibility="depletion_only")
        told = self.explain(shop, shop.capture())
        [line] = told["rating"]["lines"]
        assert line["cost"] == "0.3"
        assert isinstance(line["price_row"], int)
        assert told["record"]["cost"] == "0.300000000"

    def test_a_charge_beyond_the_balance_shows_the_debt_that_it_made(self, shop: Shop) -> None:
        done = shop.record(quantities={"input_tokens": 3_000_000})  # 13.50 on a balance of 10.00
        burnt = self.explain(shop, done.id)["burnt"]
        assert [(entry["kind"], entry["amount"], entry["debt_change"], entry["source"]) for entry in burnt] == [
            ("usage", "-1.000000000", "0.000000000", "welcome"),
            ("usage", "-9.000000000", "0.000000000", "purchased"),
            ("debt", "0.000000000", "3.500000000", None),
        ]

    def test_a_minimum_and_a_waiver_are_part_of_a_reproduced_price(self) -> None:
        shop = Shop(minimum_nanos=NANOS, quantum_nanos=NANOS // 4, overage="cap")
        assert self.explain(shop, shop.capture(input_tokens=1))["rating"] | {"lines": None} == {
            "rate_card": "standard", "version": 1, "mode": "markup", "exact": "0.0000045", "quantum": "0.250000000",
            "minimum": "1.000000000", "price": "1.000000000", "reproduces": True, "lines": None,
        }  # fmt: skip
        told = self.explain(shop, shop.capture(input_tokens=500_000))  # 2.25, and the hold is 1.00
        assert (told["record"]["charged"], told["record"]["waived"]) == ("1.000000000", "1.250000000")
        assert (told["rating"]["price"], told["rating"]["reproduces"]) == ("2.250000000", True)

    def test_work_without_a_price_or_without_work_has_no_rating(self, shop: Shop) -> None:
        released = shop.authorize()
        usage.release(account=shop.account, authorization_id=released)
        unpriced = shop.record(model="acme:nobody-priced-it")
        for id_ in (released, unpriced.id):
            told = self.explain(shop, id_)
            assert (told["rating"], told["burnt"]) == (None, [])

    @pytest.mark.parametrize(
        ("numerator", "denominator", "text"),
        [(0, 1, "0"), (NANOS, 1, "1"), (1, 3, "1/3000000000"), (1, 1, "0.000000001"), (5 * NANOS, 2, "2.5"), (1, 8, "0.000000000125")],
    )
    def test_an_exact_amount_has_all_its_digits_or_is_a_fraction(self, numerator: int, denominator: int, text: str) -> None:
        assert charges.exact(Fraction(numerator, denominator)) == text


class TestSums:
    def test_the_current_period_adds_up_by_model(self, shop: Shop) -> None:
        other = make_model(input_price=1_000_000_000)
        shop.record(quantities={"input_tokens": 100_000, "output_tokens": 10})
        shop.record()
        shop.record(model=other)
        shop.record(model="acme:nobody-priced-it")
        usage.release(account=shop.account, authorization_id=shop.authorize())
        current = shop.read("/api/v1/usage/current")
        assert (current["records"], current["unpriced"], current["tokens"]) == (4, 1, 400_010)
        assert (current["charged"], current["reversed"]) == ("1.050225000", "0.000000000")
        assert [(row["model"], row["records"], row["charged"]) for row in current["by_model"]][:2] == [
            (shop.model, 2, "0.900225000"),
            (other, 1, "0.150000000"),
        ]
        assert datetime.fromisoformat(current["start"]) <= datetime.now(UTC) < datetime.fromisoformat(current["end"])

    def test_work_of_another_period_is_not_in_this_one(self, shop: Shop) -> None:
        then = datetime.now(UTC) - timedelta(days=40)
        with ledger.clock(at=then):
            shop.record(at=then)
        assert shop.read("/api/v1/usage/current")["records"] == 0
        shop.record(at=then)  # that period is closed for good: an adjustment of this one
        assert shop.read("/api/v1/usage/current")["records"] == 1

    def test_a_reversal_is_counted_where_it_happened_and_the_charge_stays(self, shop: Shop) -> None:
        done = shop.record(quantities={"input_tokens": 3_000_000})
        ledger.reverse(account_id=shop.account.pk, usage_id=done.id, key="undo", actor="ada", reason="an outage")
        current = shop.read("/api/v1/usage/current")
        assert (current["charged"], current["reversed"]) == ("13.500000000", "13.500000000")

    def test_history_by_day_has_every_day_and_its_sums(self, shop: Shop) -> None:
        noon = datetime.now(UTC).replace(hour=12) - timedelta(days=5)
        shop.record(at=noon)
        shop.record(at=noon + timedelta(hours=11))
        shop.record(at=noon + timedelta(hours=12))
        midnight = noon.replace(hour=0, minute=0, second=0, microsecond=0)
        until = (midnight + timedelta(days=3)).isoformat()
        history = shop.read("/api/v1/usage/history", group="day", since=midnight.isoformat(), until=until)
        assert [(day["records"], day["tokens"], day["charged"]) for day in history["periods"]] == [
            (2, 200_000, "0.900000000"),
            (1, 100_000, "0.450000000"),
            (0, 0, "0.000000000"),
        ]
        assert [datetime.fromisoformat(day["start"]) for day in history["periods"]] == [midnight + timedelta(days=day) for day in range(3)]

    def test_history_shows_a_year_of_months_and_thirty_days_unless_told(self, shop: Shop) -> None:
        months = shop.read("/api/v1/usage/history")["periods"]
        assert len(months) == 12
        assert all(month["end"] == after["start"] for month, after in pairwise(months))
        assert len(shop.read("/api/v1/usage/history", group="day")["periods"]) == 30

    def test_a_part_of_a_day_is_counted_from_its_instant(self, shop: Shop) -> None:
        noon = datetime.now(UTC).replace(hour=12) - timedelta(days=5)
        shop.record(at=noon)
        history = shop.read("/api/v1/usage/history", group="day", since=(noon + timedelta(seconds=1)).isoformat())
        assert [day["records"] for day in history["periods"]] == [0] * 6

    def test_limits_are_the_layers_of_the_decision(self) -> None:
        shop = Shop(request_tokens=50_000)
        told = shop.read("/api/v1/usage/limits")
        assert told["allowed"] is True
        layers = {layer["layer"]: layer for layer in told["limits"]}
        assert (layers["request_size"]["limit"], layers["request_size"]["remaining"]) == (50_000, 50_000)
        assert layers["credits"]["remaining"] == "10.000000000"
        shop.record(quantities={"input_tokens": 3_000_000})
        assert shop.read("/api/v1/usage/limits")["allowed"] is False


class TestBilling:
    def test_the_balance_names_what_is_held_owed_and_in_which_grants(self, shop: Shop) -> None:
        shop.authorize()
        balance = shop.read("/api/v1/billing/balance")
        assert {name: balance[name] for name in ("unit", "balance", "held", "available", "debt")} == {
            "unit": "USD", "balance": "10.000000000", "held": "0.900000000", "available": "9.100000000", "debt": "0.000000000",
        }  # fmt: skip
        assert [(grant["source"], grant["remaining"], grant["expires_at"]) for grant in balance["grants"]] == [
            ("welcome", "1.000000000", None),
            ("purchased", "9.000000000", None),
        ]

    def test_what_has_expired_is_gone_from_the_balance_before_any_job_has_run(self, shop: Shop) -> None:
        soon = datetime.now(UTC) + timedelta(days=1)
        with ledger.clock(at=soon - timedelta(days=3)):
            give(shop.account, 5 * NANOS, priority=5, expires_at=soon - timedelta(days=2))
        balance = shop.read("/api/v1/billing/balance")
        assert balance["balance"] == "10.000000000"
        limits = {layer["layer"]: layer for layer in shop.read("/api/v1/usage/limits")["limits"]}
        assert limits["credits"]["remaining"] == "10.000000000"
        assert shop.get("/api/balance", account=shop.account.external_id).content == b'{"balance": 10.00, "currency": "USD"}'

    def test_an_account_without_a_wallet_has_nothing(self) -> None:
        account = make_account()
        shop = Shop()
        shop.product, shop.account, shop.key = account.product, account, make_key(account.product)
        balance = shop.read("/api/v1/billing/balance")
        assert (balance["balance"], balance["grants"]) == ("0.000000000", [])
        assert shop.get("/api/balance", account=account.public_id).content == b'{"balance": 0.00, "currency": "USD"}'

    def test_the_statement_pages_through_every_entry_and_leads_to_the_usage(self, shop: Shop) -> None:
        id_ = shop.capture()
        first = shop.read("/api/v1/billing/ledger", limit=2)
        rest = shop.read("/api/v1/billing/ledger", limit=2, cursor=first["next_cursor"])
        assert [entry["seq"] for entry in first["items"] + rest["items"]] == [3, 2, 1]
        assert rest["next_cursor"] is None
        used = first["items"][0]
        assert (used["kind"], used["amount"], used["balance_after"]) == ("usage", "-0.450000000", "9.550000000")
        assert used["usage"] == usage.public_id(shop.account, id_, kind="rec")
        assert shop.get(f"/api/v1/usage/records/{used['usage']}").status_code == 200

    def test_the_subscription_has_the_terms_that_were_subscribed_to(self) -> None:
        shop = Shop(flags={"api_access": True}, request_tokens=50_000)
        told = shop.read("/api/v1/billing/subscription")["subscription"]
        assert (told["status"], told["plan"]["slug"], told["plan"]["price"], told["cancel_at_period_end"]) == (
            "active",
            "free",
            "0.00",
            False,
        )
        assert told["plan"]["features"] == {"api_access": True}
        assert told["plan"]["limits"] == [{"key": "request_tokens", "window": "request", "limit": 50_000}]

    def test_the_subscription_says_its_period_and_whether_it_ends_then(self, shop: Shop) -> None:
        start, end = datetime.now(UTC) - timedelta(days=3), datetime.now(UTC) + timedelta(days=28)
        shop.account.subscriptions.update(current_period_start=start, current_period_end=end, cancel_at_period_end=True)
        told = shop.read("/api/v1/billing/subscription")["subscription"]
        assert [datetime.fromisoformat(told["current_period"][edge]) for edge in ("start", "end")] == [start, end]
        assert told["cancel_at_period_end"] is True

    def test_a_period_that_is_over_is_followed_by_the_one_from_the_anchor_before_any_job_has_run(self, shop: Shop) -> None:
        shop.account.subscriptions.update(anchor_at=START, current_period_start=START, current_period_end=START + timedelta(days=31))
        period = shop.read("/api/v1/billing/subscription")["subscription"]["current_period"]
        start, end = (datetime.fromisoformat(period[edge]) for edge in ("start", "end"))
        assert start <= datetime.now(UTC) < end
        assert (start.day, end.day) == (1, 1)

    def test_a_cancelled_subscription_is_none(self, shop: Shop) -> None:
        shop.account.subscriptions.update(status="canceled", ended_at=datetime.now(UTC))
        assert shop.read("/api/v1/billing/subscription")["subscription"] is None

    def test_plans_and_packs_are_the_public_ones_of_the_keys_own_product_on_todays_terms(self, shop: Shop) -> None:
        other = make_product()
        terms = {"credit_nanos": 12 * NANOS, "valid_from": START}
        CreditPack.objects.create(product=shop.product, slug="starter", name="Starter", price_cents=1000, **terms)
        CreditPack.objects.create(product=shop.product, slug="gone", name="Gone", price_cents=500, available=False, **terms)
        CreditPack.objects.create(product=other, slug="theirs", name="Theirs", price_cents=500, **terms)
        later = terms | {"valid_from": datetime.now(UTC) + timedelta(days=1)}
        CreditPack.objects.create(product=shop.product, slug="later", name="Later", price_cents=500, **later)
        shop.product.plans.create(slug="secret", name="Secret", rank=9, public=False)
        shop.product.plans.create(slug="empty", name="Without terms yet", rank=8)
        packs = json.loads(shop.get("/api/v1/billing/packs").content)["items"]
        assert packs == [
            {
                "slug": "starter", "name": "Starter", "version": 1, "price": "10.00", "currency": "usd", "credits": "12.000000000",
                "unit": "USD", "expires_after_days": None,
            }
        ]  # fmt: skip
        assert [plan["slug"] for plan in json.loads(shop.get("/api/v1/billing/plans").content)["items"]] == ["free"]


class TestChatBalance:
    @pytest.fixture
    def ada(self, shop: Shop) -> User:
        user = User.objects.create_user("ada@example.com", "correct horse")
        Membership.objects.create(account=shop.account, user=user)
        return user

    def signed_in(self, user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    def test_a_session_gets_a_json_number_with_two_decimals(self, ada: User) -> None:
        response = self.signed_in(ada).get("/api/balance")
        assert (response.status_code, response.content) == (200, b'{"balance": 10.00, "currency": "USD"}')
        assert response.headers["Content-Type"] == "application/json"

    @pytest.mark.failure(19)
    def test_the_number_is_rounded_down(self, shop: Shop, ada: User) -> None:
        shop.record(quantities={"input_tokens": 1})
        assert self.signed_in(ada).get("/api/balance").content == b'{"balance": 9.99, "currency": "USD"}'

    def test_a_key_reads_it_too_and_wins_over_the_session(self, shop: Shop, ada: User) -> None:
        reader = make_key(shop.product, account=shop.account, scopes=["billing:read"])
        assert shop.get("/api/balance", key=reader).content == b'{"balance": 10.00, "currency": "USD"}'
        response = self.signed_in(ada).get("/api/balance", headers={"Authorization": "Bearer wrong"})
        assert response.status_code == 401

    def test_nobody_gets_nothing(self) -> None:
        assert problem(Client().get("/api/balance"))["code"] == "invalid_key"  # type: ignore[arg-type]

    def test_another_users_account_is_not_found_and_several_must_be_named(self, shop: Shop, ada: User) -> None:
        client, stranger = self.signed_in(ada), make_account(shop.product, credit=7)
        none = client.get("/api/balance", {"account": "acct_" + "0" * 20})
        theirs = client.get("/api/balance", {"account": stranger.public_id})
        assert (theirs.status_code, theirs.content) == (404, none.content)
        Membership.objects.create(account=stranger, user=ada)
        assert client.get("/api/balance").status_code == 422
        assert client.get("/api/balance", {"account": stranger.public_id}).content == b'{"balance": 7.00, "currency": "USD"}'

    def test_a_session_opens_no_other_endpoint(self, ada: User) -> None:
        assert self.signed_in(ada).get("/api/v1/billing/balance").status_code == 401


class TestPricingHealth:
    def test_it_is_ok_where_there_are_prices(self) -> None:
        make_model()
        response = Client().get("/api/health/pricing")
        assert (response.status_code, json.loads(response.content)) == (200, {"status": "ok"})

    def test_an_unreadable_table_is_an_error_without_internals(self) -> None:
        make_model()
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("set local role authenticated")  # may not read the price book
            response = Client().get("/api/health/pricing")
            transaction.set_rollback(True)
        assert response.status_code == 500
        assert json.loads(response.content) == {"status": "error", "error": "The price table or the balance table does not answer."}


class TestWhoMayRead:
    @pytest.mark.parametrize("path", OF_ACCOUNT + OF_PRODUCT)
    def test_a_key_without_the_scope_is_refused_by_name(self, shop: Shop, path: str) -> None:
        body = problem(shop.get(path, key=make_key(shop.product, scopes=["usage:write"])))
        assert (body["status"], body["code"]) == (403, "missing_scope")
        assert body["scope"] == ("usage:read" if "/usage/" in path else "billing:read")

    @pytest.mark.parametrize("path", OF_ACCOUNT + OF_PRODUCT)
    @pytest.mark.parametrize("key", ["", "tg_live_" + "x" * 32, "５" * 40])
    def test_no_good_key_is_401(self, shop: Shop, path: str, key: str) -> None:
        response = shop.get(path, key=key)
        assert problem(response)["code"] == "invalid_key"
        assert response.headers["WWW-Authenticate"] == "Bearer"

    @pytest.mark.parametrize("path", OF_ACCOUNT)
    def test_another_tenants_account_is_as_unknown_as_one_that_never_was(self, shop: Shop, path: str) -> None:
        stranger = make_account(credit=1)
        neighbour = make_account(shop.product, credit=1)
        own = make_key(shop.product, account=shop.account)
        never = shop.get(path, account="acct_" + "0" * 20)
        assert problem(never)["status"] == 404
        for name in (stranger.public_id, stranger.external_id):
            assert shop.get(path, account=name).content == never.content
        for name in (neighbour.public_id, neighbour.external_id):
            assert shop.get(path, key=own, account=name).content == never.content

    @pytest.mark.parametrize("rest", ["", "/explain"])
    def test_another_tenants_record_is_as_unknown_as_one_that_never_was(self, shop: Shop, rest: str) -> None:
        stranger, neighbour = Shop(), make_account(shop.product, credit=1)
        theirs = usage.public_id(stranger.account, stranger.record().id, kind="rec")
        next_door = usage.public_id(neighbour, shop.record(account=neighbour).id, kind="rec")
        mine = make_key(shop.product, account=shop.account)
        never = shop.get(f"/api/v1/usage/records/rec_{'0' * 52}{rest}")
        assert problem(never)["status"] == 404
        assert shop.get(f"/api/v1/usage/records/{theirs}{rest}").content == never.content
        assert shop.get(f"/api/v1/usage/records/{next_door}{rest}", key=mine).content == never.content
        assert shop.get(f"/api/v1/usage/records/{next_door}{rest}").status_code == 200  # the product's own key
        swapped = f"rec_{shop.account.public_id.removeprefix('acct_')}{next_door[-32:]}"
        assert shop.get(f"/api/v1/usage/records/{swapped}{rest}").content == never.content

    @pytest.mark.parametrize("path", [path for path in OF_ACCOUNT if path != "/api/v1/usage/limits"])
    def test_row_level_security_alone_keeps_tenants_apart(self, shop: Shop, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second wall, with the first one standing open: the claims name an account that has nothing."""
        shop.record()
        nobody = make_account(shop.product)
        acting_as = tenancy.acting_as
        monkeypatch.setattr(tenancy, "acting_as", lambda **_: acting_as(account=nobody))
        told = json.dumps(shop.read(path))
        assert "0.45" not in told
        assert "9.5" not in told
        assert '"free"' not in told


GARBAGE = [str(10**24), "-1", "1.5", "５", "NaN", "1e3", "+1", "1_0", " 1", "0x1", "", "true", "\ud7ff", "'", "a\x00b"]


class TestGarbage:
    @pytest.mark.parametrize("path", OF_ACCOUNT + OF_PRODUCT + ["/api/health/pricing"])
    def test_an_unknown_parameter_is_named(self, shop: Shop, path: str) -> None:
        body = problem(shop.get(path, colour="red", format="xml"))
        assert (body["status"], body["code"]) == (422, "invalid_request")
        assert {error["field"] for error in body["errors"]} == {"colour", "format"}

    @pytest.mark.parametrize("path", ["/api/v1/usage/records", "/api/v1/billing/ledger", "/api/v1/billing/invoices"])
    def test_a_limit_is_a_whole_number_from_1_to_100(self, shop: Shop, path: str) -> None:
        for value in [*GARBAGE, "0", "101"]:
            body = problem(shop.get(path, account=shop.account.public_id, limit=value))
            assert ([error["field"] for error in body["errors"]], body["status"]) == (["limit"], 422)

    @pytest.mark.parametrize("path", ["/api/v1/usage/records", "/api/v1/billing/ledger", "/api/v1/billing/invoices"])
    def test_a_cursor_is_one_of_ours(self, shop: Shop, path: str) -> None:
        for value in GARBAGE:
            body = problem(shop.get(path, account=shop.account.public_id, cursor=value))
            assert ([error["field"] for error in body["errors"]], body["status"]) == (["cursor"], 422)

    @pytest.mark.parametrize("path", ["/api/v1/usage/records", "/api/v1/usage/history"])
    def test_an_instant_has_a_zone_and_a_year_of_this_age(self, shop: Shop, path: str) -> None:
        dates = ["2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "1999-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00"]
        for value in GARBAGE + dates:
            body = problem(shop.get(path, account=shop.account.public_id, since=value))
            assert ([error["field"] for error in body["errors"]], body["status"]) == (["since"], 422)

    @pytest.mark.parametrize("parameters", [
        {"group": "week"},
        {"group": "day", "since": "2000-01-01T00:00:00Z"},
        {"since": "2199-01-01T00:00:00Z"},
        {"since": "2026-02-01T00:00:00Z", "until": "2026-02-01T00:00:00Z"},
    ])  # fmt: skip
    def test_a_history_without_periods_or_with_too_many_is_refused(self, shop: Shop, parameters: dict[str, str]) -> None:
        assert problem(shop.get("/api/v1/usage/history", account=shop.account.public_id, **parameters))["status"] == 422

    @pytest.mark.parametrize("path", OF_ACCOUNT)
    def test_a_garbage_account_is_never_more_than_refused(self, shop: Shop, path: str) -> None:
        for value in [*GARBAGE, "x" * 201, "acct_", "acct_" + "\0" * 20]:
            assert problem(shop.get(path, account=value))["status"] in (404, 422)

    @pytest.mark.parametrize("path", OF_ACCOUNT)
    def test_a_product_key_must_name_the_account_and_only_once(self, shop: Shop, path: str) -> None:
        assert [error["field"] for error in problem(shop.get(path))["errors"]] == ["account"]
        twice = shop.get(f"{path}?account={shop.account.public_id}&account={shop.account.public_id}")
        assert problem(twice)["errors"] == [{"field": "account", "message": "Give it once."}]

    @pytest.mark.parametrize("rest", ["", "/explain"])
    def test_a_garbage_id_is_not_found(self, shop: Shop, rest: str) -> None:
        ids = ["", "g" * 52, "５" * 52, "0_" * 26, "\0" * 52, "0" * 51, "0" * 53, "-" * 32 + "0" * 20]
        for value in [*(f"rec_{id_}" for id_ in ids), "REC_" + "0" * 52, "\ufffd", "x" * 5000, "%20", "-1", "NaN"]:
            assert problem(shop.get(f"/api/v1/usage/records/{quote(value)}{rest}"))["status"] == 404

    def test_bytes_that_are_no_text_are_refused(self, shop: Shop) -> None:
        for path in ("/api/v1/usage/records/%ff%fe", "/api/v1/usage/records?account=%ed%a0%80", "/api/v1/%00"):
            assert problem(shop.get(path))["status"] in (404, 422)

    def test_more_parameters_than_anybody_needs_are_a_problem_too(self, shop: Shop) -> None:
        assert problem(shop.get("/api/v1/usage/records?" + "&".join(f"p{number}=1" for number in range(2000))))["status"] in (400, 422)
