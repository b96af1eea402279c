"""What arrives at POST /usage/records: three shapes of events, batches, late events, and garbage in each of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import Account
from billing import audit, ledger, periods
from billing.models import Subscription
from metering import usage
from metering.models import UsageRecord
from metering.tests.test_api import App, body
from tests.factories import NANOS, give, make_account, make_key, make_model

pytestmark = pytest.mark.django_db
FIRST = datetime(2026, 3, 31, tzinfo=UTC)


@pytest.fixture
def app() -> App:
    app = App()
    give(app.account, NANOS)
    return app


def span(app: App, attributes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    provider, _, name = app.model.partition(":")
    said = {
        "gen_ai.provider.name": provider,
        "gen_ai.response.model": name,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 2,
    }
    event = {"id": str(uuid4()), "account": app.account.external_id, "time": datetime.now(UTC).isoformat(), "attributes": said | attributes}
    return event | fields


def get(app: App, path: str) -> HttpResponse:
    of_account = {} if "/" in path else {"account": app.account.external_id}
    return Client().get(f"/api/v1/usage/{path}", of_account, headers={"Authorization": f"Bearer {app.token}"})  # type: ignore[return-value]


class TestSpans:
    def test_cached_parts_are_taken_out_of_the_input_that_contains_them(self, app: App) -> None:
        app.model = make_model(cached_input_tokens=300_000_000, cache_write_tokens=3_750_000_000)
        cached = {
            "gen_ai.usage.input_tokens": 5_120,
            "gen_ai.usage.cache_read.input_tokens": 4_500,
            "gen_ai.usage.cache_creation.input_tokens": 500,
        }
        done = app.post("records", span(app, cached | {"gen_ai.usage.output_tokens": 100}))
        assert body(done)["status"] == "created", done.content
        record = UsageRecord.objects.get(account=app.account)
        assert record.quantities == [120, 100, 4_500, 500]
        assert record.cost_nanos == 120 * 3_000 + 100 * 15_000 + 4_500 * 300 + 500 * 3_750

    def test_the_conversation_is_the_session_unless_one_is_named(self, app: App) -> None:
        app.post("records", span(app, {"gen_ai.conversation.id": "talk-7"}))
        app.post("records", span(app, {"gen_ai.conversation.id": "talk-8"}, session="mine"))
        assert set(UsageRecord.objects.filter(account=app.account).values_list("session_ref", flat=True)) == {"talk-7", "mine"}

    @pytest.mark.parametrize(
        ("system", "provider"), [("gcp.gemini", "google"), ("azure.ai.openai", "azure"), ("aws.bedrock", "aws"), ("anthropic", "anthropic")]
    )
    def test_providers_are_called_as_the_price_book_calls_them(self, app: App, system: str, provider: str) -> None:
        app.model = make_model(provider=provider)
        done = app.post("records", span(app, {"gen_ai.provider.name": None, "gen_ai.system": system}))
        assert body(done)["status"] == "created", done.content
        assert UsageRecord.objects.select_related("model").get(account=app.account).model.provider == provider

    def test_a_span_in_a_cloud_event_counts_once_by_source_and_id(self, app: App) -> None:
        inner = span(app, {"http.route": "/chat"})
        data = {"account": inner["account"], "attributes": inner["attributes"]}
        envelope = {
            "specversion": "1.0",
            "id": "1",
            "source": "/otel",
            "type": "span",
            "time": inner["time"],
            "data": data,
            "traceparent": "00",
        }
        statuses = [result["status"] for result in body(app.post("records", {"events": [envelope, envelope]}))["results"]]
        assert statuses == ["created", "duplicate"]

    @pytest.mark.failure(29)
    @pytest.mark.parametrize(
        ("attributes", "field"),
        [
            ({"gen_ai.usage.input_tokens": None}, "gen_ai.usage.input_tokens"),
            ({"gen_ai.usage.input_tokens": "5"}, "gen_ai.usage.input_tokens"),
            ({"gen_ai.usage.input_tokens": 5.0}, "gen_ai.usage.input_tokens"),
            ({"gen_ai.usage.input_tokens": True}, "gen_ai.usage.input_tokens"),
            ({"gen_ai.usage.output_tokens": -1}, "gen_ai.usage.output_tokens"),
            ({"gen_ai.usage.output_tokens": 10**12 + 1}, "gen_ai.usage.output_tokens"),
            ({"gen_ai.usage.cache_read.input_tokens": 11}, "gen_ai.usage.input_tokens"),
            ({"gen_ai.provider.name": None}, "gen_ai.provider.name"),
            ({"gen_ai.provider.name": ["openai"]}, "gen_ai.provider.name"),
            ({"gen_ai.provider.name": "open ai"}, "gen_ai.response.model"),
            ({"gen_ai.response.model": ""}, "gen_ai.response.model"),
            ({"gen_ai.response.model": "m" * 129}, "gen_ai.response.model"),
            ({"gen_ai.conversation.id": 7}, "gen_ai.conversation.id"),
        ],
    )
    def test_attributes_that_cannot_be_are_named(self, app: App, attributes: dict[str, Any], field: str) -> None:
        refused = app.post("records", span(app, attributes))
        assert refused.status_code == 422
        assert body(refused)["errors"][0]["field"] == f"attributes.{field}"
        assert UsageRecord.objects.count() == 0

    @pytest.mark.parametrize("more", [{"model": "a:b"}, {"quantities": {"input_tokens": 1}}, {"attributes": "x"}, {"attributes": None}])
    def test_a_span_says_what_was_used_once(self, app: App, more: dict[str, Any]) -> None:
        assert app.post("records", span(app, {}) | more).status_code == 422


class TestBatches:
    def test_a_batch_over_many_accounts_asks_for_them_together(self, app: App) -> None:
        def queries(count: int) -> int:
            events = [app.event(account=make_account(app.product).external_id) for _ in range(count)]
            with CaptureQueriesContext(connection) as asked:
                assert body(app.post("records", {"events": events}))["created"] == count
            asked_of = ("from accounts_account", "from billing_subscription")
            return sum(any(table in query["sql"] for table in asked_of) for query in asked)

        assert queries(20) == queries(2) > 0

    def test_an_account_is_found_by_either_name_and_an_account_key_needs_none(self, app: App) -> None:
        own = make_key(app.product, account=app.account)
        other = make_account(app.product)
        nameless = app.event()
        del nameless["account"]
        answer = body(
            app.post(
                "records", {"events": [nameless, app.event(account=app.account.public_id), app.event(account=other.external_id)]}, token=own
            )
        )
        assert [result["status"] for result in answer["results"]] == ["created", "created", "invalid"]
        assert answer["results"][2]["problem"]["code"] == "not_found"
        assert body(app.post("records", nameless))["errors"][0]["field"] == "account"

    def test_another_products_account_does_not_exist_and_what_a_closed_one_used_is_recorded(self, app: App) -> None:
        closed, other = make_account(app.product, credit=1), make_account()
        Account.objects.filter(pk__in=[closed.pk, other.pk]).update(closed_at=datetime.now(UTC))
        names = [closed.external_id, closed.public_id, other.public_id, other.external_id, make_account().public_id, "", "acct_" + "0" * 20]
        results = body(app.post("records", {"events": [app.event(account=name) for name in names]}))["results"]
        assert [result["status"] for result in results] == ["created"] * 2 + ["invalid"] * 5
        assert UsageRecord.objects.filter(account=closed).count() == 2

    def test_an_event_that_overflows_takes_no_other_along(self, app: App) -> None:
        app.model = make_model(input_price=9_000_000_000_000)
        huge = {"input_tokens": 10**12}
        events = [app.event(), app.event(quantities=huge), app.event(quantities=huge), app.event()]
        answer = body(app.post("records", {"events": events}))
        assert (answer["created"] + answer["invalid"], answer["results"][3]["status"]) == (4, "created")
        assert answer["invalid"] >= 1
        assert audit.run() == []


class TestLate:
    """Failure 27: period open, closed within the grace, closed for longer. The row of the subscription is as it was begun."""

    def begin(self, account: Account, at: datetime) -> None:
        """As if the account had been opened then."""
        first = {"anchor_at": at, "started_at": at, "current_period_start": at, "current_period_end": periods.anniversary(at, months=1)}
        Subscription.objects.filter(account=account).update(**first)

    @pytest.fixture
    def account(self) -> Account:
        account = make_account(credit=10)
        self.begin(account, FIRST)
        return account

    @pytest.mark.failure(27)
    @pytest.mark.parametrize(
        ("event_at", "now", "counts_now"),
        [
            (datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 20, tzinfo=UTC), False),
            (datetime(2026, 4, 29, 23, 59, tzinfo=UTC), datetime(2026, 5, 1, 23, 59, tzinfo=UTC), False),
            (datetime(2026, 4, 29, 23, 59, tzinfo=UTC), datetime(2026, 5, 2, 0, 1, tzinfo=UTC), True),
            (datetime(2026, 4, 30, tzinfo=UTC), datetime(2026, 5, 20, tzinfo=UTC), False),
            (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC), True),
        ],
    )
    def test_a_late_event_counts_in_its_own_period_until_48_hours_after_it(
        self, account: Account, event_at: datetime, now: datetime, counts_now: bool
    ) -> None:
        with ledger.clock(at=now):
            events = [usage.Event(f"e{number}", account, event_at, make_model(), {"input_tokens": 1_000}) for number in range(2)]
            answers = [*usage.record(events=events[:1], now=now), *usage.record(events=events, now=now)]
        assert [answer.outcome for answer in answers if isinstance(answer, ledger.Usage)] == ["done", "replayed", "done"]
        for record in UsageRecord.objects.filter(account=account):
            assert (record.event_at, record.recorded_at) == (event_at, now)
            assert record.counted_at == (now if counts_now else None)
            assert record.price_nanos == 4_500_000

    @pytest.mark.failure(27)
    @pytest.mark.parametrize(("hours", "counts_now"), [(47, False), (49, True)])
    @pytest.mark.parametrize("swept", [False, True])
    def test_a_late_capture_counts_like_a_late_event(self, account: Account, swept: bool, hours: int, counts_now: bool) -> None:
        closes = datetime(2026, 4, 30, tzinfo=UTC)  # the period that began on the 31st of March
        begun, now, ask = closes - timedelta(hours=1), closes + timedelta(hours=hours), usage.Ask(make_model(), {"input_tokens": 1_000})
        with ledger.clock(at=begun):
            held = usage.authorize(account=account, ask=ask, key="k", now=begun)
        with ledger.clock(at=now):
            assert not swept or ledger.sweep(limit=10) == 1
            usage.capture(account=account, authorization_id=held.usage.id, quantities={"input_tokens": 500})
        record = UsageRecord.objects.get(account=account)
        assert (record.event_at, record.counted_at) == (begun, now if counts_now else None)
        assert record.price_nanos == 2_250_000
        assert audit.run() == []

    @pytest.mark.failure(27)
    def test_a_closed_month_does_not_change_and_the_adjustment_points_to_it(self) -> None:
        app = App()
        give(app.account, NANOS)
        now = datetime.now(UTC)
        self.begin(app.account, now - timedelta(days=75))
        event_at = now - timedelta(days=70)
        done = app.post("records", app.event(time=event_at.isoformat(), quantities={"input_tokens": 1_000}))
        assert body(done)["status"] == "created"
        months = {month["start"][:7]: month["records"] for month in body(get(app, "history"))["periods"]}
        assert (months[f"{event_at:%Y-%m}"], months[f"{now:%Y-%m}"]) == (0, 1)
        assert body(get(app, "current"))["records"] == 1
        record = body(get(app, f"records/{body(done)['id']}"))
        assert record["event_at"][:10] == f"{event_at:%Y-%m-%d}"
        assert record["counted_at"] is not None
