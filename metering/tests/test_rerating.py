"""Usage that had no price is rated when the price arrives: once, at its own time's price, charged or absorbed as the product says."""

from __future__ import annotations

import io
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from psycopg.types.range import Range

from accounts.models import Account
from analytics import rollups
from billing import audit, ledger
from billing.models import LedgerEntry, UsageRating, Wallet
from metering import rerating, usage
from metering.models import OpenAuthorization, UsageRecord
from metering.tests.test_api import App, body
from metering.tests.test_ingest import get
from pricing.models import PriceRow
from tests.factories import NANOS, START, give, make_account, make_model, make_product

pytestmark = pytest.mark.django_db


def now() -> datetime:
    return datetime.now(UTC)


def unheard_of() -> str:
    return f"acme:new-{secrets.token_hex(4)}"


def price(
    model: str, *, component: str = "input_tokens", nanos: int = 3_000_000_000, since: datetime = START, level: str = "standard"
) -> None:
    provider, _, name = model.partition(":")
    PriceRow.objects.create(
        provider=provider, model=name, component=component, price_nanos=nanos, valid=Range(since, None), service_level=level, source="test"
    )


def used(account: Account, model: str, at: datetime, **fields: Any) -> UsageRecord:
    event = usage.Event(secrets.token_hex(8), account, at, model, fields.pop("quantities", {"input_tokens": 1_000}), **fields)
    [answer] = usage.record(events=[event], now=now())
    assert isinstance(answer, ledger.Usage)
    assert answer.state == "unpriced"
    return UsageRecord.objects.get(account=account, id=answer.id)


def balance(account: Account) -> int:
    return Wallet.objects.get(account=account).balance


class TestRecords:
    @pytest.mark.failure(31)
    def test_a_record_is_charged_once_when_its_price_arrives(self) -> None:
        account, model = make_account(credit=1), unheard_of()
        record = used(account, model, now())
        assert rerating.run(now=now()) == rerating.Tally(waiting=1)
        price(model)
        assert rerating.run(now=now()) == rerating.Tally(rated=1)
        assert rerating.run(now=now()) == rerating.Tally()
        rating = UsageRating.objects.get(account=account)
        assert (rating.usage_id, rating.cost_nanos, rating.price_nanos, rating.waived_nanos) == (record.id, 3_000_000, 4_500_000, 0)
        assert NANOS - balance(account) == 4_500_000
        unchanged = UsageRecord.objects.get(account=account, id=record.id)
        assert (unchanged.outcome, unchanged.price_nanos) == ("unpriced", None)
        assert LedgerEntry.objects.get(account=account, kind="usage").usage_id == record.id
        assert (audit.run(), rollups.check()) == ([], [])

    def test_a_second_rating_is_answered_with_the_first(self) -> None:
        account, model = make_account(credit=1), unheard_of()
        record = used(account, model, now())
        terms: dict[str, Any] = {
            "account_id": account.pk,
            "usage_id": record.id,
            "rate_card_id": 1,
            "price_ids": [],
            "unit_id": account.product.unit_id,
        }
        first = ledger.rate(**terms, charge=ledger.Charge(1, 10, 10, 1), charged=True)
        again = ledger.rate(**terms, charge=ledger.Charge(2, 99, 99, 1), charged=True)
        assert (first.outcome, again.outcome, again.price_nanos) == ("done", "replayed", 10)
        assert NANOS - balance(account) == 10

    def test_what_was_priced_at_once_is_not_rated_again(self) -> None:
        account = make_account(credit=1)
        [answer] = usage.record(events=[usage.Event("k", account, now(), make_model(), {"input_tokens": 1})], now=now())
        assert isinstance(answer, ledger.Usage)
        with pytest.raises(ledger.NotFound):
            ledger.rate(
                account_id=account.pk,
                usage_id=answer.id,
                rate_card_id=1,
                price_ids=[],
                unit_id=None,
                charge=ledger.Charge(1, 1, 1, 1),
                charged=True,
            )

    def test_the_price_of_its_own_time_and_service_level_counts(self) -> None:
        account, model = make_account(credit=1), unheard_of()
        used(account, model, now() - timedelta(hours=5), service_level="batch")
        price(model)
        turn = now() - timedelta(hours=1)
        price(model, level="batch", nanos=1, since=turn)
        assert rerating.run(now=now()).waiting == 1
        provider, _, name = model.partition(":")
        PriceRow.objects.create(
            provider=provider, model=name, component="input_tokens", price_nanos=2_000_000_000, service_level="batch", source="test",
            valid=Range(START, turn),
        )  # fmt: skip
        assert rerating.run(now=now()).rated == 1
        assert UsageRating.objects.get(account=account).cost_nanos == 2_000_000

    def test_reasoning_is_folded_into_output_by_the_price_that_arrives(self) -> None:
        account, model = make_account(credit=1), unheard_of()
        record = used(account, model, now(), quantities={"output_tokens": 1, "reasoning_tokens": 2})
        assert record.quantities == [0, 1, 0, 0, 0, 2]
        price(model, component="output_tokens", nanos=1_000_000)
        rerating.run(now=now())
        assert UsageRating.objects.get(account=account).cost_nanos == 3

    @pytest.mark.parametrize(("policy", "hours", "charged"), [("charge", 47, 4_500_000), ("charge", 49, 0), ("absorb", 1, 0)])
    def test_late_charging_is_the_products_policy(self, policy: str, hours: int, charged: int) -> None:
        account, model = make_account(make_product(late_charging=policy), credit=1), unheard_of()
        used(account, model, now() - timedelta(hours=hours))
        price(model)
        assert rerating.run(now=now()) == rerating.Tally(rated=1, absorbed=0 if charged else 1)
        rating = UsageRating.objects.get(account=account)
        assert (rating.cost_nanos, rating.price_nanos, rating.waived_nanos) == (3_000_000, charged, 4_500_000 - charged)
        assert NANOS - balance(account) == charged
        assert (audit.run(), rollups.check()) == ([], [])

    def test_one_accounts_usage_that_cannot_be_rated_does_not_stop_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, [first, second] = unheard_of(), [make_account(), make_account()]
        for account in (first, second):
            give(account, NANOS)
            used(account, model, now())
        price(model)
        rate, failed = rerating._rate, dict[str, str]()

        def poison(record: UsageRecord, account: Account, charged: bool) -> None:
            if account == first:
                raise ZeroDivisionError("poison")
            rate(record, account, charged)

        monkeypatch.setattr(rerating, "_rate", poison)
        tally = rerating.run(now=now(), failed=lambda account, error: failed.update({account: str(error)}))
        assert (tally, failed) == (rerating.Tally(rated=1, failed=1), {first.public_id: "poison"})
        monkeypatch.undo()
        assert rerating.run(now=now()) == rerating.Tally(rated=1)
        assert audit.run() == []

    def test_a_rating_beyond_the_balance_is_debt_and_can_be_reversed(self) -> None:
        account, model = make_account(), unheard_of()
        give(account, 1_000_000)
        record = used(account, model, now())
        price(model)
        rerating.run(now=now())
        wallet = Wallet.objects.get(account=account)
        assert (wallet.balance, wallet.debt) == (0, 3_500_000)
        ledger.reverse(account_id=account.pk, usage_id=record.id, key="r", actor="ann", reason="ours to bear")
        wallet.refresh_from_db()
        assert (wallet.balance, wallet.debt) == (1_000_000, 0)
        assert (audit.run(), rollups.check()) == ([], [])

    def test_the_command_says_what_it_did(self) -> None:
        account, model = make_account(credit=1), unheard_of()
        used(account, model, now())
        used(account, unheard_of(), now())
        price(model)
        out = io.StringIO()
        call_command("rerate", stdout=out)
        assert out.getvalue() == "rerate: 1 rated (0 at the product's expense), 1 still without a price\n"


class TestWaitingCaptures:
    def waiting(self, **product: Any) -> App:
        app = App(**product)
        give(app.account, NANOS)
        held = body(app.authorize())
        done = app.post(f"authorizations/{held['id']}/capture", {"quantities": {"input_tokens": 1_000, "images": 1}})
        assert body(done)["status"] == "awaiting_price"
        return app

    @pytest.mark.failure(32)
    def test_a_waiting_capture_is_captured_at_the_promised_prices_and_the_missing_one(self) -> None:
        app = self.waiting()
        assert rerating.run(now=now()).waiting == 1
        price(app.model, component="images", nanos=2_000_000_000_000)
        assert rerating.run(now=now()) == rerating.Tally(rated=1)
        record = UsageRecord.objects.get(account=app.account)
        assert (record.outcome, record.cost_nanos, record.price_nanos) == ("captured", 1_000 * 3_000 + 2_000_000, 7_500_000)
        wallet = Wallet.objects.get(account=app.account)
        assert (wallet.balance, wallet.held) == (NANOS - 7_500_000, 0)
        assert not OpenAuthorization.objects.filter(account=app.account).exists()
        assert rerating.run(now=now()) == rerating.Tally()
        assert audit.run() == []

    def test_after_the_late_charging_hours_the_hold_comes_back_whole(self) -> None:
        app = self.waiting()
        price(app.model, component="images")
        assert rerating.run(now=now() + timedelta(hours=49)) == rerating.Tally(rated=1, absorbed=1)
        record = UsageRecord.objects.get(account=app.account)
        assert (record.price_nanos, record.waived_nanos) == (0, 4_504_500)
        assert balance(app.account) == NANOS
        assert audit.run() == []

    def test_where_a_capture_above_the_hold_is_refused_the_hold_is_the_most(self) -> None:
        app = self.waiting(overage="reject")
        price(app.model, component="images", nanos=900_000_000_000_000_000)
        assert rerating.run(now=now()).rated == 1
        record = UsageRecord.objects.get(account=app.account)
        assert record.price_nanos == record.hold == 450_000_000
        assert record.waived_nanos > 0


class TestReads:
    def test_records_sums_and_explanation_have_the_rating(self) -> None:
        app = App(visibility="full_breakdown")
        give(app.account, NANOS)
        app.model = unheard_of()
        event = app.event(quantities={"input_tokens": 1_000, "reasoning_tokens": 0})
        recorded = body(app.post("records", event))
        assert (recorded["status"], body(get(app, "current"))["unpriced"]) == ("unpriced", 1)
        price(app.model)
        rerating.run(now=now())
        current = body(get(app, "current"))
        assert (current["unpriced"], current["charged"]) == (0, "0.004500000")
        [listed] = body(get(app, "records"))["items"]
        assert (listed["outcome"], listed["charged"]) == ("recorded", "0.004500000")
        told = body(get(app, f"records/{recorded['id']}/explain"))
        assert told["rating"]["reproduces"] is True
        assert [(line["kind"], line["amount"]) for line in told["burnt"]] == [("usage", "-0.004500000")]
        assert body(app.post("records", event))["charged"] is None  # the first answer, for ever
