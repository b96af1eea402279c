"""Charges in sentences, for staff and for customers: every way in which something is charged, or is not."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from psycopg.types.range import Range

from accounts.models import Account
from billing import ledger
from metering import charges, explanation, rerating, usage
from metering.tests.test_rerating import price, unheard_of
from pricing.models import PriceRow
from tests.factories import NANOS, START, give, make_account, make_model, make_product

pytestmark = pytest.mark.django_db


def report(account: Account, *, model: str | None = None, at: datetime | None = None, level: str = "standard", **quantities: int) -> UUID:
    now = datetime.now(UTC)
    used = quantities or {"input_tokens": 1_234}
    event = usage.Event(key=str(now), account=account, at=at or now, model=model or make_model(), quantities=used, service_level=level)
    [done] = usage.record(events=[event], now=now)
    assert isinstance(done, ledger.Usage)
    return done.id


def explained(account: Account, id_: UUID, *, staff: bool = True) -> explanation.Explanation:
    record = charges.record(account, id_)
    assert record is not None
    return explanation.explain(account=account, record=record, burnt=charges.burnt(record), staff=staff)


def said(account: Account, id_: UUID, *, staff: bool = True) -> str:
    told = explained(account, id_, staff=staff)
    assert told.holds, told.differences
    return "\n".join(text for step in told.steps for text in (step.text, *step.parts))


def bought(**fields: Any) -> Account:
    return make_account(make_product(**fields), credit=10)


class TestStaff:
    def test_a_markup_goes_from_the_price_row_to_the_entry(self) -> None:
        account, model = bought(), make_model()
        [row] = PriceRow.objects.filter(model=model.partition(":")[2], component="input_tokens")
        text = said(account, report(account, model=model))
        for sentence in (
            f"1,234 input tokens × $3 per 1,000,000 (price row {row.pk}, valid from 2026-01-01) = $0.003702; with the markup of 50 %",
            "rate card standard, version 1: wholesale cost plus a markup of 50 %.",
            "Together that is $0.005553. That is the price: nothing had to be rounded.",
            "entry 2: $0.005553 from Purchased credit (grant ",
            "behind it $0.005553 of cash, balance $9.994447 after it",
            "give the price $0.005553, the cost $0.003702 and the list value $0.005553: equal to the nano.",
        ):
            assert sentence in text, (sentence, text)
        assert re.search(r"What is stored gives the seal that was written with it, [0-9a-f]{32}\.", text)

    def test_those_who_do_not_read_the_margin_report_are_told_no_cost_no_markup_and_no_seal(self) -> None:
        account = bought(visibility="depletion_only")
        record = charges.record(account, report(account))
        assert record is not None
        told = explanation.explain(account=account, record=record, burnt=charges.burnt(record), staff=True, margins=False)
        text = "\n".join(text for step in told.steps for text in (step.text, *step.parts))
        assert f"for {account.name} on" in text
        assert "1,234 input tokens × $4.5 per 1,000,000 = $0.005553" in text
        assert "rate card standard, version 1." in text
        for word in ("0.003702", "markup", "price row", "seal", "wholesale"):
            assert word not in text, word

    def test_the_one_rounding_and_the_minimum(self) -> None:
        account = bought(quantum_nanos=10_000_000)
        assert "Together that is $0.0555525. The total is rounded up, once, to a multiple of $0.01: $0.06." in said(
            account, report(account, input_tokens=12_345)
        )
        account = bought(minimum_nanos=NANOS)
        assert "A use costs at least $1.00: that is more than the $0.005553 that it comes to." in said(account, report(account))

    def test_credits_of_tokens_and_a_multiplier(self) -> None:
        account = bought(mode="credit_rate", tokens_per_credit=5_000, default_multiplier_ppm=2_500_000, quantum_nanos=NANOS)
        text = said(account, report(account, input_tokens=12_000))
        assert "one credit is 5,000 tokens, and of this model each counts 2.5 times" in text
        assert "that it cost; charged at $6" in text

    def test_own_keys_and_included_use_cost_nothing_for_their_own_reasons(self) -> None:
        byo, included = bought(mode="byo"), bought(mode="included")
        assert "own provider key, so it costs nothing here." in said(byo, report(byo))
        text = said(included, report(included))
        assert "plan includes this use, so it costs nothing." in text
        assert "= $0.003702 that it cost; nothing is charged" in text

    def test_a_price_of_nothing_is_said_to_be_one(self) -> None:
        account = bought()
        text = said(account, report(account, model=make_model(input_price=0)))
        assert "× $0 per 1,000,000" in text
        assert "That comes to nothing, so nothing is charged." in text

    def test_batches_requests_and_objects_have_their_own_prices(self) -> None:
        account, model = bought(), make_model(requests=5_000, gb_months=NANOS)
        name = model.partition(":")[2]
        PriceRow.objects.create(
            provider="acme", model=name, component="input_tokens", service_level="batch", price_nanos=1_500_000_000, source="test",
            valid=Range(START, None),
        )  # fmt: skip
        text = said(account, report(account, model=model, level="batch", input_tokens=1_000))
        assert "at the service level batch." in text
        assert "valid from 2026-01-01, batch) = $0.0015" in text
        text = said(account, report(account, model=model, requests=1, gb_months=3))
        assert "It took 1 request and 3 gb months." in text or "It took 3 gb months and 1 request." in text
        assert "1 request × $0.000005 per 1,000,000" in text

    def test_a_withdrawn_price_still_explains_its_charge(self) -> None:
        account, model = bought(), make_model()
        id_ = report(account, model=model)
        PriceRow.objects.filter(model=model.partition(":")[2]).update(withdrawn_at=datetime(2026, 12, 1, tzinfo=UTC))
        assert "valid from 2026-01-01, withdrawn on 2026-12-01) = $0.003702" in said(account, id_)

    def test_what_had_no_price_says_so_and_later_when_it_was_rated_and_what_of_it_came_too_late(self) -> None:
        account, model = bought(late_charging="absorb"), unheard_of()
        id_ = report(account, model=model)
        assert "is not known yet. Nothing was charged so far" in said(account, id_)
        price(model)
        rerating.run(now=datetime.now(UTC))
        told = explained(account, id_)
        assert told.holds
        assert len(told.charge.stored.seals) == 2
        text = said(account, id_)
        assert "It had no price then. One was set, and it was rated by it on " in text
        assert "$0.005553 of the price was let go: it was rated too late to be charged." in text

    def test_what_comes_after_its_period_says_from_when_it_counts(self) -> None:
        account = bought()
        assert "so it counts from then." in said(account, report(account, at=datetime.now(UTC) - timedelta(days=90)))

    def test_a_reversal_names_who_and_why(self) -> None:
        account = bought()
        id_ = report(account)
        ledger.reverse(account_id=account.pk, usage_id=id_, key="k", actor="ann", reason="typo")
        assert "the whole charge of $0.005553 was given back by ann: typo" in said(account, id_)

    def test_debt_is_said(self) -> None:
        account = make_account()
        give(account, 1_000_000)
        text = said(account, report(account))
        assert "as far as there was credit; the rest of $0.004553 is owed:" in text
        assert "entry 3: $0.004553 of debt" in text


class TestCustomers:
    @pytest.mark.parametrize("visibility", ["depletion_only", "amount", "full_breakdown"])
    def test_no_customer_is_told_cost_markup_price_rows_or_seal(self, visibility: str) -> None:
        account = bought(visibility=visibility)
        text = said(account, report(account), staff=False)
        assert "Applied again" in text
        for hidden in ("0.003702", "markup", "price row", "seal", "cash", "list value"):
            assert hidden not in text
        assert ("1,234 input tokens × $4.5 per 1,000,000 = $0.005553" in text) == (visibility == "full_breakdown")
        assert ("1,234" in text) == (visibility != "depletion_only")

    def test_a_guest_is_one(self) -> None:
        account = bought()
        Account.objects.filter(pk=account.pk).update(kind=Account.Kind.GUEST)
        account.refresh_from_db()
        assert "for you, as a guest," in said(account, report(account), staff=False)

    def test_terms_that_cannot_be_read_are_no_reason_to_break(self) -> None:
        account = bought()
        id_ = report(account)
        record = charges.record(account, id_)
        assert record is not None
        record.rate_card_id = 2**31 - 1
        told = explanation.explain(account=account, record=record, burnt=charges.burnt(record), staff=False)
        assert told.steps[-1].text == "This does not re-derive. Please tell support."
        staff = explanation.explain(account=account, record=record, burnt=charges.burnt(record), staff=True)
        assert "the terms that it was rated at cannot be read: There is no rate card" in staff.steps[-1].text


class TestCommand:
    def run(self, name: str) -> str:
        out = io.StringIO()
        call_command("explain", name, stdout=out)
        return out.getvalue()

    def test_it_tells_all_sentences_and_what_was_sealed(self) -> None:
        account = bought()
        id_ = report(account)
        text = self.run(usage.public_id(account, id_, kind="rec"))
        assert text.startswith("1. ")
        assert "   - 1,234 input tokens × $3 per 1,000,000" in text
        assert f"Sealed: 1|{account.pk}|{id_}|recorded|" in text

    @pytest.mark.parametrize("name", ["", "rec_", "rec_" + "0" * 52, "auth_" + "f" * 52, "\0", "x" * 10_000, "1; drop table wallet"])
    def test_what_is_no_record_exits_2(self, name: str) -> None:
        with pytest.raises(CommandError) as caught:
            self.run(name)
        assert caught.value.returncode == 2
