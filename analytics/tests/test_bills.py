"""Providers' bills: files with everything wrong in them, a planted bill through the command and the page, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.utils import timezone

from accounts.models import Account
from analytics import alerts, bill_files, bills
from analytics.bill_files import Columns, Line, UnreadableBill
from analytics.bill_models import BillComparison, BillFinding, BillLine, BillMapping, BillUpload, BillVariance
from analytics.models import AlertRule, ProviderBill
from billing import ledger
from metering import usage
from pricing.models import PriceProposal, PriceRow
from tests.factories import make_account, make_model, make_product
from tests.test_admin import staff, superuser

__all__ = ["superuser"]  # a fixture
TODAY = date(2026, 2, 1)
DAY = date(2026, 1, 5)
COSTS = "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item,project_id\n"
ADMIN = "/admin/analytics/providerbill/"


def openai(*rows: tuple[int, str, str, int | None], currency: str = "usd") -> str:
    """A costs export: day of the bill, line item, dollars, quantity."""
    text = COSTS
    for number, (day, item, dollars, quantity) in enumerate(rows):
        start = int(datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC).timestamp()) + 86_400 * day
        text += f'{start},{start + 86_400},,,{dollars},{currency},{quantity or ""},tokens,"{item}",proj_{number}\n'
    return text


def read(text: str | bytes, provider: str = "openai", columns: Columns | None = None) -> bill_files.Bill:
    content = text.encode() if isinstance(text, str) else text
    return bill_files.read(content=content, provider=provider, today=TODAY, columns=columns)


class TestFiles:
    def test_openais_costs_are_read_by_line_item(self) -> None:
        bill = read(
            openai(
                (0, "gpt-4o-2024-08-06, cached input", "1.25", 1_000_000),
                (0, "gpt-4o-2024-08-06, output_tokens", "5.0E-7", None),
                (1, "web search", "0.75", None),
                (1, "Prepaid credit", "-10", None),
            )
            + "1767744000,1767830400,,,,,,,,\n"
        )
        assert bill.lines == (
            Line(DAY, "gpt-4o-2024-08-06", "cached_input_tokens", "", 1_000_000, 1_250_000_000),
            Line(DAY, "gpt-4o-2024-08-06", "output_tokens", "", None, 500),
            Line(DAY + timedelta(days=1), "web search", "", "", None, 750_000_000),
            Line(DAY + timedelta(days=1), "Prepaid credit", amount_nanos=-10_000_000_000, other=True),
        )
        assert read(openai((0, "gpt-4o, input", "1.25", 5))).precision_nanos == 5_000_000

    def test_openais_activity_is_made_disjoint(self) -> None:
        heading = "start_time,end_time,model,batch,input_tokens,output_tokens,input_cached_tokens,input_audio_tokens,input_cached_audio_tokens,output_audio_tokens"  # noqa: E501
        bill = read(f"{heading}\n1767571200,1767657600,gpt-4o,FALSE,1000.0,90,600,100,40,10\n1767657600,1767744000,,,,,,,,\n")
        assert {line.component: line.quantity for line in bill.lines} == {
            "input_tokens": 340, "cached_input_tokens": 560, "input_audio_tokens": 60, "cached_input_audio_tokens": 40, "output_tokens": 80,
            "output_audio_tokens": 10,
        }  # fmt: skip
        with pytest.raises(UnreadableBill, match="Line 2: input_tokens or output_tokens is less than its parts"):
            read(f"{heading}\n1767571200,1767657600,gpt-4o,FALSE,10,90,600,100,40,10\n")

    def test_anthropics_two_exports_are_read(self) -> None:
        costs = read(
            "usage_date_utc,model,workspace,usage_type,token_type,cost_usd,list_price_usd\n"
            "2026-01-05,Claude Haiku 4.5,Default,message,input_cache_read,0.10,1.00\n"
            "2026-01-05,Claude Haiku 4.5,Default,batch,output,0.02,0.02\n2026-01-05,,Default,,web_search,0.50,0.50\n",
            "anthropic",
        )
        assert costs.lines == (
            Line(DAY, "Claude Haiku 4.5", "cached_input_tokens", "standard", None, 100_000_000),
            Line(DAY, "Claude Haiku 4.5", "output_tokens", "batch", None, 20_000_000),
            Line(DAY, "web_search", "", "", None, 500_000_000),
        )
        tokens = read(
            "usage_date_utc,model_version,usage_type,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
            "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens\n"
            "2026-01-05 13:00,claude-haiku-4-5-20251001,standard,10,0,3,4,5\n",
            "anthropic",
        )
        assert [(line.component, line.quantity, line.amount_nanos) for line in tokens.lines] == [
            ("input_tokens", 10, None), ("cached_input_tokens", 4, None), ("cache_write_1h_tokens", 3, None), ("output_tokens", 5, None),
        ]  # fmt: skip

    def test_a_mapping_reads_semicolons_decimal_commas_and_other_words(self) -> None:
        columns = Columns(
            day="Tag", model="Modell", amount="Betrag", component="Art", quantity="Menge", currency="Währung", day_format="%d.%m.%Y",
            delimiter=";", decimal_comma=True, quantity_scale=1_000, components={"Eingabe": "input_tokens", "Steuer": "other"},
        )  # fmt: skip
        text = "\ufeffTag;Modell;Art;Menge;Betrag;Währung\r\n05.01.2026;m;Eingabe;2,5;12,50;USD\r\n05.01.2026;;Steuer;;-1,00;USD\r\n"
        assert read(text, "acme", columns).lines == (
            Line(DAY, "m", "input_tokens", "", 2_500, 12_500_000_000), Line(DAY, "Steuer", amount_nanos=-1_000_000_000, other=True),
        )  # fmt: skip
        for cell, said in (("1.50", "expected a number such as 12,50"), ("x", "Betrag is 'x'"), ("", "Betrag is ''")):
            with pytest.raises(UnreadableBill, match=f"Line 2: .*{said}"):
                read(f"Tag;Modell;Art;Menge;Betrag;Währung\n05.01.2026;m;Eingabe;1;{cell};USD\n", "acme", columns)
        with pytest.raises(UnreadableBill, match="Line 2: Art is 'Bilder', which the mapping does not name"):
            read("Tag;Modell;Art;Menge;Betrag;Währung\n05.01.2026;m;Bilder;1;1,00;USD\n", "acme", columns)
        with pytest.raises(UnreadableBill, match="Line 1: no column Tag"):
            read(openai((0, "m, input", "1", 1)), "acme", columns)

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ((0, "m, input", "NaN", 1), "amount_value is 'NaN'; expected a number"),
            ((0, "m, input", "Infinity", 1), "amount_value is 'Infinity'"),
            ((0, "m, input", "1,5", 1), "columns, where the heading has"),
            ((0, "m, input", "", 1), "amount_value is ''"),
            ((0, "m, input", "-1.00", 1), "amount_value is negative, and the line is neither a credit nor a discount"),
            ((0, "m, input", "1000000000000000000", 1), "more than anybody is billed in a line"),
            ((0, "m, input", "1e99", 1), "more than anybody is billed in a line"),
            ((0, "m, input", "1.00", 10**18), "expected a whole number from 0 to"),
            ((0, "m, input", "1.00", -1), "expected a whole number from 0 to"),
            ((0, "", "1.00", 1), "line_item is empty; group the costs by line item"),
            ((27, "m, input", "1.00", 1), "start_time is 2026-02-01; expected a day that is over"),
            ((-9_000, "m, input", "1.00", 1), "expected a day that is over, from 2020-01-01 on"),
        ],
    )
    def test_a_wrong_cell_is_told_by_its_line(self, row: tuple[int, str, str, int], said: str) -> None:
        with pytest.raises(UnreadableBill) as refused:
            read(openai((1, "m, output", "1.00", 7), row))
        assert refused.value.problems[0].startswith("Line 3: ")
        assert said in refused.value.problems[0]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "Line 1: these are not the columns"),
            (b"\0\0\0", "zero bytes"),
            (b"\xff\xfe\xff", "The file is not UTF-8"),
            ("a,b\n1,2\n".encode("utf-16"), "The file is not UTF-8"),
            (b"model,cost\nm,1\n", "Line 1: these are not the columns of an export of openai"),
            (COSTS.encode(), "The file has no line of usage"),
            (COSTS.encode() + b'1,2,"\n', "Line 2"),
            (COSTS.encode() + b"1,2,3\n", "Line 2: 3 columns, where the heading has 10"),
            (b"x" * (bill_files.MAX_BYTES + 1), "a bill has at most"),
            (COSTS.replace("start_time,", "start_time,start_time,").encode(), "Line 1: the column start_time is there twice"),
            (openai((0, "m, input", "1.00", 1), currency="eur").encode(), "only bills in US dollars are compared"),
            (openai((0, "m, input", "1.00", 1)).replace("1767657600", "1767657599").encode(), "are not one day in UTC"),
            (openai((-400, "m, input", "1.00", 1), (0, "m, input", "1.00", 1)).encode(), "a bill has at most 366 days"),
        ],
    )
    def test_garbage_is_refused(self, content: bytes, said: str) -> None:
        with pytest.raises(UnreadableBill, match=said):
            read(content)

    def test_the_same_line_twice_is_told_and_the_first_ten_problems_at_once(self) -> None:
        line = openai((0, "m, input", "1.00", 1)).splitlines()[1]
        with pytest.raises(UnreadableBill, match="Line 3: the same as line 2"):
            read(f"{COSTS}{line}\n{line}\n")
        with pytest.raises(UnreadableBill) as refused:
            read(openai(*((day, "m, input", "x", 1) for day in range(20))))
        assert len(refused.value.problems) == bill_files.MAX_PROBLEMS

    def test_an_unknown_provider_needs_a_mapping_and_a_bom_tabs_and_semicolons_are_read(self) -> None:
        with pytest.raises(UnreadableBill, match="No export of acme is known; use a mapping"):
            read(openai((0, "m, input", "1.00", 1)), "acme")
        for delimiter in ";\t":
            text = "\ufeff" + openai((0, "m input", "1.00", None)).replace(",", delimiter)
            assert read(text).lines == (Line(DAY, "m input", "", "", None, 1_000_000_000),)


@dataclass
class Month:
    """Five days of three models of OpenAI's at $2 in, $10 out and $0.20 cached per million: a hundredth of a million of each a day."""

    models: list[str] = field(default_factory=lambda: [make_model(provider="openai", input_price=2 * 10**9, output_price=10**10, cached_input_tokens=2 * 10**8) for _ in range(3)])  # noqa: E501  # fmt: skip
    account: Account = field(default_factory=lambda: make_account(make_product(), credit=10**6))

    def use(self, model: int, day: int, times: int = 1, hour: int = 12, **more: Any) -> None:
        quantities = {"input_tokens": 1_000_000, "output_tokens": 100_000, "cached_input_tokens": 5_000_000}
        at = datetime(DAY.year, DAY.month, DAY.day, hour, tzinfo=UTC) + timedelta(days=day)
        name = more.pop("name", "") or self.models[model]
        events = [
            usage.Event(key=str(uuid4()), account=self.account, at=at, model=name, quantities=quantities, **more) for _ in range(times)
        ]
        for answer in usage.record(events=events, now=timezone.now()):
            assert isinstance(answer, ledger.Usage), answer

    def name(self, model: int) -> str:
        return self.models[model].partition(":")[2]

    def bill(self, *more: tuple[int, str, str, int | None], days: int = 5, **prices: dict[str, str]) -> str:
        """Every day of every model at our prices, but for ``prices`` by model (``m0``)."""
        rows: list[tuple[int, str, str, int | None]] = []
        for model in range(3):
            dollars = {"input": "2.00", "output": "1.00", "cached input": "1.00"} | prices.get(f"m{model}", {})
            for day in range(days):
                rows += [
                    (day, f"{self.name(model)}, {part}", dollars[part], quantity)
                    for part, quantity in (("input", 1_000_000), ("output", 100_000), ("cached input", 5_000_000))
                ]
        return openai(*rows, *more)


@pytest.fixture
def month(db: None) -> Month:
    return Month()


@pytest.fixture
def planted(month: Month) -> tuple[Month, str]:
    """The three faults: our output price of one model is too low, a day of another is not recorded, and the third's cache costs double."""
    for model in range(3):
        for day in range(5):
            if (model, day) != (1, 2):
                month.use(model, day)
    text = month.bill(
        (0, "Sora 2", "3.00", None), (1, "Sales tax", "9.99", None), (4, "Credit grant", "-20.00", None),
        m0={"output": "1.20"}, m2={"cached input": "2.00"},
    )  # fmt: skip
    return month, text


def expected(month: Month, rows: dict[tuple[int, str], int]) -> list[str]:
    return [
        f"{month.name(2)} cached_input_tokens: billed at $0.40 per 1,000,000, 2 times ours; our price row "
        f"{rows[2, 'cached_input_tokens']} says $0.20 per 1,000,000. On 5 days from 2026-01-05 to 2026-01-09.",
        f"{month.name(1)}: the bill has 5,000,000 cached input tokens, 1,000,000 input tokens, 100,000 output tokens, and "
        "nothing is recorded, $4.00. On 2026-01-07.",
        "Sora 2 is on the bill with $3.00, and is no model that we price or ever recorded.",
        f"{month.name(0)} output_tokens: billed at $12.00 per 1,000,000; our price row {rows[0, 'output_tokens']} says "
        "$10.00 per 1,000,000. On 5 days from 2026-01-05 to 2026-01-09.",
    ]


def price_rows(month: Month) -> dict[tuple[int, str], int]:
    names = {month.name(number): number for number in range(3)}
    return {(names[row.model], row.component): row.pk for row in PriceRow.objects.filter(model__in=names)}


class TestPlanted:
    def test_the_command_diagnoses_three_faults_and_says_so(self, planted: tuple[Month, str], tmp_path: Path) -> None:
        month, text = planted
        path, out = tmp_path / "january.csv", StringIO()
        path.write_text(text)
        with pytest.raises(SystemExit) as ended:
            call_command("reconcile_bill", str(path), "--provider", "openai", stdout=out)
        assert ended.value.code == 1
        said = out.getvalue().splitlines()
        assert said[0] == "Our record is 18.8 % below the bill, and may be off by ±5 %: $69.00 billed, $56.00 recorded.".replace(
            "19.4", "18.8"
        )
        assert said[1] == "Volume $4.00, price $6.00, not split $3.00."
        findings = expected(month, price_rows(month))
        assert said[2:6] == [
            f"- $5.00: {findings[0]} A price proposal is waiting.", f"- $4.00: {findings[1]}", f"- $3.00: {findings[2]}",
            f"- $1.00: {findings[3]} A price proposal is waiting.",
        ]  # fmt: skip
        assert said[6] == "Not compared: Credit grant −$20.00, Sales tax $9.99."

    def test_the_page_shows_it_before_and_keeps_it_after(self, planted: tuple[Month, str], superuser: Client) -> None:
        month, text = planted
        upload = {"provider": "openai", "costs": SimpleUploadedFile("january.csv", text.encode())}
        preview = superuser.post(f"{ADMIN}upload/", upload, follow=True)
        for sentence in ("18.8 % below the bill", *expected(month, price_rows(month)), "Credit grant", "Importing proposes this price."):
            assert sentence in preview.content.decode()
        assert not ProviderBill.objects.exists()
        assert not PriceProposal.objects.exists()
        result = superuser.post(preview.redirect_chain[-1][0], {"import": "1"}, follow=True)
        for sentence in ("18.8 % below the bill", *expected(month, price_rows(month)), "A price proposal is waiting.", "Price proposals"):
            assert sentence in result.content.decode()
        bill = ProviderBill.objects.get()
        assert (bill.since, bill.until, bill.billed_nanos, bill.other_nanos) == (
            DAY, DAY + timedelta(days=5), 69 * 10**9, -10_010_000_000,
        )  # fmt: skip
        assert LogEntry.objects.get(object_id=str(bill.pk)).get_change_message() == "Imported from costs: january.csv."
        assert not BillUpload.objects.exists()
        again = superuser.post(
            f"{ADMIN}upload/", {"provider": "openai", "costs": SimpleUploadedFile("copy.csv", text.encode())}, follow=True
        )
        refused = superuser.post(again.redirect_chain[-1][0], {"import": "1"}, follow=True)
        assert "These files were imported on" in refused.content.decode()
        assert ProviderBill.objects.count() == 1
        assert superuser.get(ADMIN).status_code == 200
        file = b"".join(superuser.get(f"{ADMIN}{bill.pk}/file/").streaming_content).decode()  # type: ignore[attr-defined]
        assert f"2026-01-07,{month.name(1)},output_tokens,,100000,1.000000000,0,0,0.000000000,1.000000000,0.000000000,0.000000000" in file

    def test_its_rows_add_up_and_the_proposals_are_what_the_bill_implies(self, planted: tuple[Month, str]) -> None:
        month, text = planted
        prepared = bills.prepared(files=[("a.csv", text.encode())], provider="openai", mapping=None, today=TODAY)
        comparison = bills.import_(bill=prepared, actor="ada", user=None, now=timezone.now())
        assert (comparison.recorded_nanos, comparison.volume_nanos, comparison.price_nanos) == (56 * 10**9, 4 * 10**9, 6 * 10**9)
        lines = list(comparison.variances.all())
        assert len(lines) == 46
        assert sum(line.volume_nanos + line.price_nanos + line.unsplit_nanos for line in lines) == 13 * 10**9
        assert [(one.kind, one.amount_nanos // 10**9) for one in comparison.findings.all()] == [
            ("price", 5), ("missing", 4), ("unknown_model", 3), ("price", 1),
        ]  # fmt: skip
        rows = price_rows(month)
        found = {
            (one.previous_id, one.price_nanos * 10**6 // one.per_units, one.state, one.valid_from) for one in PriceProposal.objects.all()
        }
        assert found == {
            (rows[2, "cached_input_tokens"], 4 * 10**8, "pending", None), (rows[0, "output_tokens"], 12 * 10**9, "pending", None),
        }  # fmt: skip
        bill = comparison.bill
        again = bills.compare_again(bill=bill, actor="ada", user=staff_user(), now=timezone.now())
        assert [one.proposed for one in again.findings.filter(kind="price")] == ["A price proposal for it is waiting already."] * 2
        assert list(bill.comparisons.all()) == [again, comparison]

    def test_a_price_that_was_rejected_is_not_proposed_again_and_one_in_the_book_not_at_all(self, planted: tuple[Month, str]) -> None:
        month, text = planted
        rows = price_rows(month)
        prepared = bills.prepared(files=[("a.csv", text.encode())], provider="openai", mapping=None, today=TODAY)
        bill = bills.import_(bill=prepared, actor="ada", user=None, now=timezone.now()).bill
        PriceProposal.objects.update(state="rejected", decided_by="ada", decided_at=timezone.now())
        again = bills.compare_again(bill=bill, actor="ada", user=staff_user(), now=timezone.now())
        assert {one.proposed for one in again.findings.filter(kind="price")} == {"This price was proposed and rejected before."}
        PriceRow.objects.filter(pk=rows[0, "output_tokens"]).update(withdrawn_at=timezone.now())
        row = PriceRow.objects.get(pk=rows[0, "output_tokens"])
        PriceRow.objects.create(
            provider="openai", model=row.model, component="output_tokens", price_nanos=12 * 10**9, valid=row.valid, source="test"
        )
        again = bills.compare_again(bill=bill, actor="ada", user=staff_user(), now=timezone.now())
        assert "The price book says so by now." in {one.proposed for one in again.findings.filter(kind="price")}


def staff_user() -> Any:
    from accounts.models import User

    return User.objects.create_user(f"{uuid4().hex}@example.com", is_staff=True)


@pytest.mark.django_db
class TestCauses:
    def found(self, text: str, **more: Any) -> bills.Compared:
        bill = bills.prepared(files=[("a.csv", text.encode())], provider="openai", mapping=None, today=TODAY)
        return bills.compared(provider="openai", since=bill.since, until=bill.until, lines=bill.lines)

    def test_a_bill_that_is_our_record_is_green_to_the_nano(self, month: Month) -> None:
        for model in range(3):
            month.use(model, 0)
        found = self.found(month.bill(days=1))
        assert (found.sentence, found.findings) == ("Our record is the bill, to the nano: $12.00 billed, $12.00 recorded.", ())

    def test_late_doubled_unpriced_and_own_key_usage_are_told_apart(self, month: Month) -> None:
        for model in range(3):
            for day in range(5):
                month.use(
                    model, day, times=2 if (model, day) == (0, 1) else 0 if (model, day) == (1, 1) else 2 if (model, day) == (1, 2) else 1
                )
        month.account = make_account(make_product(mode="byo"))
        month.use(2, 3, times=9)
        texts = [one.text for one in self.found(month.bill()).findings]
        assert texts == [
            f"{month.name(0)}: 2 times what was billed is recorded, $4.00. On 2026-01-06. 1 record of it "
            "equals another in all but the key.",
            f"{month.name(1)}: $4.00 of traffic that the bill has on 2026-01-06 is recorded on 2026-01-07. Its events carry a late "
            "time, or the provider's day does not begin at 00:00 UTC.",
        ]  # fmt: skip

    def test_usage_without_a_price_is_named_as_such(self, month: Month) -> None:
        name = f"fresh-{uuid4().hex[:8]}"
        month.use(0, 0, name=f"openai:{name}")
        found = self.found(openai((0, f"{name}, input", "3.00", 1_000_000)))
        assert [one.text for one in found.findings] == [
            f"{name}: $3.00 is recorded without a price. Approve prices for it; it is rated by itself then. On 2026-01-05."
        ]

    def test_costs_without_quantities_are_split_once_the_usage_is_there(self, month: Month) -> None:
        month.use(0, 0)
        costs = openai(
            (0, f"{month.name(0)}, output", "2.00", None),
            (0, f"{month.name(0)}, input", "2.00", None),
            (0, f"{month.name(0)}, cached input", "1.00", None),
        )
        [one] = self.found(costs).findings
        assert "cannot be told apart: import the usage export" in one.text
        heading = "start_time,end_time,model,input_tokens,output_tokens,input_cached_tokens"
        activity = f"{heading}\n1767571200,1767657600,{month.name(0)},6000000,200000,5000000\n"
        files = [("costs.csv", costs.encode()), ("usage.csv", activity.encode())]
        bill = bills.prepared(files=files, provider="openai", mapping=None, today=TODAY)
        found = bills.compared(provider="openai", since=bill.since, until=bill.until, lines=bill.lines)
        assert (found.volume_nanos, found.price_nanos, found.unsplit_nanos) == (10**9, 0, 0)
        assert "the bill has 100,000 output tokens more than is recorded" in found.findings[0].text
        with pytest.raises(UnreadableBill, match="quantities and no amounts"):
            bills.prepared(files=files[1:], provider="openai", mapping=None, today=TODAY)
        with pytest.raises(UnreadableBill, match="One file is there twice"):
            bills.prepared(files=[files[0], files[0]], provider="openai", mapping=None, today=TODAY)

    def test_quantities_that_cannot_be_meant_are_refused(self, month: Month) -> None:
        PriceRow.objects.create(
            provider="openai", model="dear", component="input_tokens", price_nanos=10**15, per_units=1, source="test",
            valid=PriceRow.objects.latest("pk").valid,
        )  # fmt: skip
        with pytest.raises(UnreadableBill, match="more than an amount can hold"):
            self.found(openai((0, "dear, input", "1.00", 10**14)))
        with pytest.raises(UnreadableBill, match="The files come to more than"):
            self.found(openai(*((day, "dear, input", "99999999", 1) for day in range(-99, 0))))

    def test_a_page_of_a_year_shows_the_days_that_are_off_and_stays_small(self, month: Month, superuser: Client) -> None:
        rows = [(day, f"{month.name(model)}, input", "2.00", 1_000_000) for day in range(-180, 0) for model in range(3)]
        bill = bills.prepared(files=[("a.csv", openai(*rows).encode())], provider="openai", mapping=None, today=TODAY)
        kept = bills.import_(bill=bill, actor="ada", user=None, now=timezone.now()).bill
        page = superuser.get(f"{ADMIN}{kept.pk}/change/").content.decode()
        assert "The first 60 days that are off" in page
        assert page.count('<td class="nowrap">') == 60
        assert "the bill has 180,000,000 input tokens, and nothing is recorded, $360.00. On 180 days" in page

    def test_the_threshold_is_the_alert_rules(self) -> None:
        assert bills.threshold() == 50_000
        alerts.ship()
        AlertRule.objects.filter(slug="cost-accuracy").update(threshold=20_000)
        assert bills.threshold() == 20_000
        assert bills.green(100, 95, 50_000)
        assert not bills.green(100, 94, 50_000)
        assert not bills.green(0, 1, 50_000)
        assert bills.green(0, 0, 50_000)


@pytest.mark.django_db
class TestKept:
    def test_nothing_of_a_bill_is_changed_or_deleted(self, planted: tuple[Month, str]) -> None:
        _, text = planted
        prepared = bills.prepared(files=[("a.csv", text.encode())], provider="openai", mapping=None, today=TODAY)
        bills.import_(bill=prepared, actor="ada", user=None, now=timezone.now())
        for model in (ProviderBill, BillLine, BillComparison, BillVariance, BillFinding):
            table = model._meta.db_table
            for statement in (f"update {table} set id = id", f"delete from {table}", f"truncate {table} cascade"):
                with (
                    pytest.raises(DatabaseError, match=r"append-only|permission denied"),
                    transaction.atomic(),
                    connection.cursor() as cursor,
                ):
                    cursor.execute(statement)

    def test_garbage_is_an_error_and_stores_nothing(self, superuser: Client, tmp_path: Path) -> None:
        for content in (b"", b"\0", b"a,b\n1,2\n", COSTS.encode(), openai((0, "m, input", "NaN", 1)).encode()):
            page = superuser.post(f"{ADMIN}upload/", {"provider": "openai", "costs": SimpleUploadedFile("x.csv", content)})
            assert page.status_code == 200
            path = tmp_path / "x.csv"
            path.write_bytes(content)
            with pytest.raises(CommandError, match=r"x\.csv: "):
                call_command("reconcile_bill", str(path), "--provider", "openai")
        assert superuser.post(f"{ADMIN}upload/", {"provider": "\0"}).status_code == 200
        for arguments in (["nowhere.csv"], ["\0"], [str(path), "--mapping", "none"], [str(path), "--actor", " "]):
            with pytest.raises(CommandError):
                call_command("reconcile_bill", *arguments, "--provider", "openai")
        assert not ProviderBill.objects.exists()
        assert not BillUpload.objects.exists()
        assert superuser.get(f"{ADMIN}upload/{uuid4()}/").status_code == 302
        assert superuser.get(f"{ADMIN}99/file/").status_code == 404

    def test_a_mapping_is_a_row_and_says_what_is_wrong_with_it(self, superuser: Client) -> None:
        columns = {
            "slug": "acme", "delimiter": ",", "day_column": "Date", "day_format": "%Y-%m-%d", "model_column": "Model",
            "component_column": "Type", "quantity_column": "Units", "quantity_scale": "1", "amount_column": "USD",
            "components": '{"in": "input_tokens"}',
        }  # fmt: skip
        add = "/admin/analytics/billmapping/add/"
        for wrong in (
            {"components": '{"in": "nonsense"}'},
            {"components": "{}"},
            {"components": "["},
            {"model_column": "Date"},
            {"quantity_scale": "0"},
        ):
            assert superuser.post(add, columns | wrong).status_code == 200
        assert superuser.post(add, columns).status_code == 302
        mapping = BillMapping.objects.get()
        text = b"Date,Model,Type,Units,USD\n2026-01-05,m,in,7,1.50\n"
        bill = bills.prepared(files=[("a.csv", text)], provider="acme", mapping=mapping, today=TODAY)
        assert (bill.billed_nanos, bill.source) == (1_500_000_000, "mapping: a.csv")

    def test_the_alert_takes_the_last_bill_of_the_same_days(self, planted: tuple[Month, str]) -> None:
        _, text = planted
        now = timezone.now()
        alerts.ship()
        assert bills.threshold() == 50_000
        prepared = bills.prepared(files=[("a.csv", text.encode())], provider="openai", mapping=None, today=TODAY)
        bills.import_(bill=prepared, actor="ada", user=None, now=now)
        ProviderBill.objects.create(
            provider="openai", since=prepared.since, until=prepared.until, billed_nanos=56 * 10**9, entered_by="ada",
            entered_at=now + timedelta(minutes=1),
        )  # fmt: skip
        from analytics.alert_metrics import _rows

        [(provider, since, _, billed, recorded)] = [row for row in _rows("alert_bills", since=DAY) if row[0] == "openai"]
        assert (provider, since, Decimal(billed), recorded) == ("openai", DAY, Decimal(56 * 10**9), 56 * 10**9)

    def test_only_who_may_enter_bills_imports_them(self, planted: tuple[Month, str]) -> None:
        _, text = planted
        prepared = bills.prepared(files=[("a.csv", text.encode())], provider="openai", mapping=None, today=TODAY)
        bill = bills.import_(bill=prepared, actor="ada", user=None, now=timezone.now()).bill
        reader = staff("analytics.view_providerbill")
        assert reader.get(f"{ADMIN}{bill.pk}/change/").status_code == 200
        for address in (f"{ADMIN}upload/", f"{ADMIN}upload/{uuid4()}/", f"{ADMIN}{bill.pk}/again/"):
            assert reader.post(address).status_code == 403
        assert staff("accounts.view_account").get(f"{ADMIN}{bill.pk}/file/").status_code == 403
