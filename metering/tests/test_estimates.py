"""Holds that size themselves: the arithmetic, what is learned from captures, and the report."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from hypothesis import given, settings
from hypothesis import strategies as st

from accounts.models import Account
from billing import audit, ledger
from billing.models import Wallet
from metering import estimates, hold_report, names, tasks, traces, usage
from metering.models import OpenAuthorization, OutputHistogram, UsageRecord
from metering.traces import Row
from pricing.models import PriceRow
from tests.factories import NANOS, give, make_account, make_key, make_model, make_product

TOKENS = st.integers(0, 10**12)


class TestArithmetic:
    @given(TOKENS)
    def test_a_bucket_is_the_lowest_that_holds_its_tokens(self, tokens: int) -> None:
        place = estimates.bucket(tokens)
        assert tokens <= estimates.edge(place)
        assert place == 0 or estimates.edge(place - 1) < tokens

    def test_edges_are_the_exact_powers_of_the_fourth_root_of_two_rounded_down(self) -> None:
        assert [estimates.edge(place) for place in (0, 4, 8, 36, 37, 38, 39, 40, 160)] == [1, 2, 4, 512, 608, 724, 861, 1024, 2**40]
        assert all(estimates.edge(place) ** 4 <= 2**place < (estimates.edge(place) + 1) ** 4 for place in range(200))

    @given(st.lists(TOKENS, min_size=1, max_size=60), st.data())
    def test_a_quantile_is_never_below_the_true_one_and_in_its_bucket(self, tokens: list[int], data: st.DataObject) -> None:
        counts = [0] * (max(map(estimates.bucket, tokens)) + 1)
        for output in tokens:
            counts[estimates.bucket(output)] += 1
        rank = data.draw(st.integers(1, len(tokens)))
        true = sorted(tokens)[rank - 1]
        found = estimates.quantile(counts, rank)
        assert true <= found == estimates.edge(estimates.bucket(true))
        with pytest.raises(ValueError, match="no"):
            estimates.quantile(counts, len(tokens) + 1)

    @given(st.lists(st.tuples(st.integers(0, 10**6), TOKENS), max_size=50))
    def test_every_capture_is_counted_once_beside_those_with_as_much_input(self, captures: list[tuple[int, int]]) -> None:
        cells: dict[int, estimates.Counts] = {}
        for input_tokens, output_tokens in captures:
            estimates.learn(cells, input_tokens=input_tokens, output_tokens=output_tokens)
        assert sum(map(sum, cells.values())) == len(captures)
        assert {bits: sum(counts) for bits, counts in cells.items()} == {
            bits: sum(input_tokens.bit_length() == bits for input_tokens, _ in captures) for bits in cells
        }

    def test_too_few_captures_say_nothing_and_enough_of_them_cover_ninety_nine_in_a_hundred(self) -> None:
        cells: dict[int, estimates.Counts] = {}
        for number in range(estimates.MIN_CAPTURES):
            assert estimates.sizes(cells).usual(100) is None
            estimates.learn(cells, input_tokens=100, output_tokens=4096 if number % 100 == 0 else 512)
        assert estimates.sizes(cells).usual(100) == 4096  # two of two hundred were beyond 512, one more than may be
        for _ in range(200):
            estimates.learn(cells, input_tokens=100, output_tokens=512)
        assert estimates.sizes(cells).usual(100) == 512

    def test_calls_with_as_much_input_are_asked_first_and_all_calls_where_these_are_few(self) -> None:
        cells: dict[int, estimates.Counts] = {}
        for _ in range(estimates.MIN_CAPTURES):
            estimates.learn(cells, input_tokens=100, output_tokens=16)
            estimates.learn(cells, input_tokens=10_000, output_tokens=1024)
        estimates.learn(cells, input_tokens=10**6, output_tokens=16)
        known = estimates.sizes(cells)
        assert [known.usual(tokens) for tokens in (100, 10_000, 10**6, 0)] == [16, 1024, 1024, 1024]

    def test_a_product_that_changes_is_followed(self) -> None:
        cells: dict[int, estimates.Counts] = {}
        for _ in range(50_000):
            estimates.learn(cells, input_tokens=100, output_tokens=16)
        late = 0
        while estimates.sizes(cells).usual(100) != 1024:
            estimates.learn(cells, input_tokens=100, output_tokens=1024)
            late += 1
        assert late <= estimates.MAX_CAPTURES // 50
        assert sum(cells[7]) <= estimates.MAX_CAPTURES

    @given(st.lists(st.integers(1, 10**5), min_size=1, max_size=8, unique=True), st.integers(0, 10**6))
    @settings(max_examples=10, deadline=None)
    def test_of_calls_like_those_before_no_more_than_one_in_a_hundred_is_beyond(self, lengths: list[int], seed: int) -> None:
        draw, cells, beyond = random.Random(seed), dict[int, estimates.Counts](), 0
        for number in range(4_000):
            output = draw.choice(lengths) * (50 if draw.random() < 0.004 else 1)
            if number >= 2_000:
                usual = estimates.sizes(cells).usual(100)
                assert usual is not None
                beyond += output > usual
            estimates.learn(cells, input_tokens=100, output_tokens=output)
        assert beyond <= 40  # 20 expected at most; twice as many is five deviations

    @pytest.mark.parametrize(
        ("usual", "available", "expected"),
        [
            (None, 0, 4096),
            (None, None, 4096),
            (300, 20 * NANOS - 1, 300),
            (300, 20 * NANOS, 4096),
            (300, -1, 300),
            (300, None, 300),
            (9000, 20 * NANOS, 9000),
            (9000, 0, 9000),
        ],
    )
    def test_the_worst_case_is_held_while_it_is_easily_covered_or_nothing_is_known(
        self, usual: int | None, available: int | None, expected: int
    ) -> None:
        assert estimates.choose(usual=usual, worst_price_nanos=NANOS, available_nanos=available) == expected


class App:
    """A client app that never says how long an answer may be."""

    def __init__(self, *, credit: int = 1_000 * NANOS, **product: Any) -> None:
        self.product = make_product(**product)
        self.model = make_model()
        self.token = make_key(self.product)
        self.account = self.customer(credit)

    def customer(self, credit: int) -> Account:
        account = make_account(self.product)
        if credit:
            give(account, credit)
        return account

    def post(self, path: str, body: object, key: str = "") -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.token}"} | ({"Idempotency-Key": key} if key else {})
        response = Client().post(f"/api/v1/usage/{path}", json.dumps(body), content_type="application/json", headers=headers)
        return response.status_code, json.loads(response.content)

    def authorize(self, account: Account | None = None, *, key: str = "", **estimate: int) -> tuple[int, dict[str, Any]]:
        body = {
            "account": (account or self.account).external_id,
            "model": self.model,
            "feature": "chat",
            "estimate": {"input_tokens": 1_000, **estimate},
        }
        return self.post("authorize", body, key or str(uuid4()))

    def capture(self, id_: str, output_tokens: int, **quantities: int) -> dict[str, Any]:
        used = {"input_tokens": 1_000, "output_tokens": output_tokens, **quantities}
        status, answer = self.post(f"authorizations/{id_}/capture", {"quantities": used})
        assert status == 200, answer
        return answer

    def knows(self, output_tokens: int) -> None:
        """As if enough calls had been captured, each with so many tokens of output."""
        OutputHistogram.objects.update_or_create(
            **self.key(),
            input_bits=10,
            defaults={"counts": [0] * estimates.bucket(output_tokens) + [estimates.MIN_CAPTURES]},
        )

    def key(self) -> dict[str, Any]:
        return {
            "product_id": self.product.pk,
            "model_id": names.model_id(self.model),
            "feature_id": names.feature_id(self.product.pk, "chat"),
        }

    def teach(self, output_tokens: int, *, calls: int = estimates.MIN_CAPTURES) -> None:
        """``calls`` finished open-ended calls, through the hot path itself."""
        ask = usage.Ask(self.model, {"input_tokens": 1_000}, feature="chat", open_ended=True)
        for _ in range(calls):
            held = usage.authorize(account=self.account, ask=ask, key=str(uuid4()), now=datetime.now(UTC))
            usage.capture(
                account=self.account, authorization_id=held.usage.id, quantities={"input_tokens": 1_000, "output_tokens": output_tokens}
            )
        tasks.learn_holds()


@pytest.mark.django_db
class TestThroughTheApi:
    def test_a_hold_covers_what_is_usual_once_that_is_known_and_the_answer_says_for_how_long(self) -> None:
        app = App()
        status, unknown = app.authorize()
        assert (status, unknown["max_output_tokens"]) == (200, 4096)
        assert unknown["hold"] == "0.096660000"  # 1.5 × (1,000 × 3 + 4,096 × 15) USD a million
        app.teach(300)
        poor = app.customer(NANOS)
        status, usual = app.authorize(poor, key="k")
        assert (status, usual["max_output_tokens"], usual["hold"]) == (200, 304, "0.011340000")
        stored = OpenAuthorization.objects.get(account=poor)
        assert (stored.quantities, stored.assumed_output_tokens) == ([1_000, 304], 304)
        assert app.authorize()[1]["max_output_tokens"] == 4096  # an account that has the worst case many times over

        app.knows(3_000)  # what is usual has changed meanwhile: the retry hears what the first answer said
        assert app.authorize(poor, key="k") == (200, usual)
        app.capture(usual["id"], 200)
        assert app.authorize(poor, key="k") == (200, usual)
        record = UsageRecord.objects.get(account=poor)
        assert (record.quantities, record.assumed_output_tokens) == ([1_000, 200], 304)
        assert audit.run() == []

    def test_a_small_balance_is_not_refused_for_a_worst_case_that_hardly_ever_comes(self) -> None:
        app = App()
        poor = app.customer(NANOS // 50)  # 0.02 USD; the worst case is 0.097
        status, refused = app.authorize(poor)
        assert (status, refused["code"]) == (402, "insufficient_credits")
        app.knows(300)
        status, _ = app.authorize(poor)
        assert status == 200
        assert app.authorize(poor)[0] == 402  # the next one is not covered beside it

    def test_a_longer_answer_than_was_assumed_is_charged_in_full(self) -> None:
        app = App()
        app.knows(300)
        poor = app.customer(NANOS)
        done = app.capture(app.authorize(poor)[1]["id"], 2_000)
        assert (done["hold"], done["charged"], done["owed"]) == ("0.011340000", "0.049500000", "0.000000000")

    def test_a_maximum_that_the_client_app_gives_is_held_and_teaches_nothing(self) -> None:
        app = App()
        status, held = app.authorize(max_output_tokens=77)
        assert (status, held["max_output_tokens"]) == (200, 77)
        app.capture(held["id"], 50)
        assert app.authorize(output_tokens=78)[1]["max_output_tokens"] == 78
        assert app.authorize(max_output_tokens=0)[1]["max_output_tokens"] == 0
        assert estimates.fold() == 0
        assert OpenAuthorization.objects.filter(account=app.account, assumed_output_tokens=None).count() == 2

    def test_the_same_key_with_a_maximum_and_without_is_not_the_same_command(self) -> None:
        app = App()
        app.authorize(key="k")
        for maximum in (0, 4096):
            status, other = app.authorize(key="k", max_output_tokens=maximum)
            assert (status, other["code"]) == (409, "idempotency_key_reused")

    def test_reasoning_counts_as_answer_and_what_was_released_counts_for_nothing(self) -> None:
        app = App()
        app.capture(app.authorize()[1]["id"], 10, reasoning_tokens=90)
        app.post(f"authorizations/{app.authorize()[1]['id']}/release", {})
        assert estimates.fold() == 1
        [row] = OutputHistogram.objects.filter(product=app.product)
        assert (str(row.model), str(row.feature), row.input_bits) == (app.model, "chat", 10)
        assert row.counts == [0] * estimates.bucket(100) + [1]

    def test_another_product_and_another_feature_learn_for_themselves(self) -> None:
        app, other = App(), App()
        other.model = app.model
        app.knows(300)
        assert other.authorize(other.customer(NANOS))[1]["max_output_tokens"] == 4096
        body = {"account": app.customer(NANOS).external_id, "model": app.model, "estimate": {"input_tokens": 1_000}}
        assert app.post("authorize", body, "k")[1]["max_output_tokens"] == 4096

    def test_where_nothing_is_charged_limits_are_asked_for_what_is_usual(self) -> None:
        app = App(mode="included", credit=0)
        app.knows(300)
        assert app.authorize()[1]["max_output_tokens"] == 304

    def test_an_unsaid_length_is_no_part_of_the_size_of_a_request(self) -> None:
        app = App(request_tokens=1_500)
        assert app.authorize()[0] == 200
        status, refused = app.authorize(max_output_tokens=501)
        assert (status, refused["code"]) == (422, "request_too_large")

    def test_a_retry_is_answered_when_the_model_has_lost_its_price_meanwhile(self) -> None:
        app = App()
        first = app.authorize(key="k")
        PriceRow.objects.filter(model=app.model.partition(":")[2]).update(withdrawn_at=datetime.now(UTC))
        assert app.authorize(key="k") == first
        assert app.authorize()[1]["code"] == "unknown_model"


def test_folds_at_once_count_every_capture_once(committed: None) -> None:
    app = App()
    for output_tokens in range(60):
        held = usage.authorize(
            account=app.account,
            ask=usage.Ask(app.model, {"input_tokens": 1 << output_tokens % 4}, open_ended=True),
            key=str(output_tokens),
            now=datetime.now(UTC),
        )
        usage.capture(
            account=app.account,
            authorization_id=held.usage.id,
            quantities={"input_tokens": 1 << output_tokens % 4, "output_tokens": output_tokens},
        )

    def fold(_: int) -> int:
        try:
            return sum(iter(lambda: estimates.fold(limit=7), 0))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(fold, range(4))) >= 60
    rows = OutputHistogram.objects.filter(product=app.product)
    assert {row.input_bits: sum(row.counts) for row in rows} == {1: 15, 2: 15, 3: 15, 4: 15}
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from output_delta where account_id = %s", [app.account.pk])
        assert cursor.fetchone() == (0,)


def test_a_process_reads_the_sizes_once_a_minute(committed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    assert estimates.of(**app.key()).usual(1_000) is None
    app.knows(500)
    assert estimates.of(**app.key()).usual(1_000) is None
    monkeypatch.setattr(estimates, "MAX_AGE_SECONDS", 0.0)
    assert estimates.of(**app.key()).usual(1_000) == 512


def test_what_a_wallet_has_is_asked_once_and_then_known_from_the_ledgers_answers(committed: None) -> None:
    app = App()
    app.knows(300)
    account = app.customer(NANOS)
    said = usage.Ask(app.model, {"input_tokens": 1_000, "output_tokens": 300}, feature="chat")
    unsaid = usage.Ask(app.model, {"input_tokens": 1_000}, feature="chat", open_ended=True)

    def queries(ask: usage.Ask, length: int) -> int:
        with CaptureQueriesContext(connection) as seen:
            held = usage.authorize(account=account, ask=ask, key=str(uuid4()), now=datetime.now(UTC))
        assert held.max_output_tokens == length
        return len(seen)

    queries(unsaid, 304)
    assert queries(unsaid, 304) == queries(said, 300)
    give(account, 100 * NANOS)  # nobody tells this process before the next answer does
    assert [queries(unsaid, length) for length in (304, 4096)][1] == queries(said, 300)


@pytest.mark.parametrize(("left", "length"), [(NANOS // 50, 304), (NANOS // 1_000, None)])
def test_what_was_heard_a_while_ago_refuses_nothing_that_the_usual_covers(committed: None, left: int, length: int | None) -> None:
    app = App()
    app.knows(300)
    assert app.authorize()[1]["max_output_tokens"] == 4096
    spent = left - Wallet.objects.get(account=app.account).available
    unit_id, key = app.product.unit_id, str(uuid4())  # elsewhere: this process hears nothing of it
    ledger.adjust(account_id=app.account.pk, unit_id=unit_id, amount_nanos=spent, key=key, actor="test", reason="spent elsewhere")
    refused = usage.REFUSALS.labels("credits")._value.get
    before = refused()
    for _ in range(2):
        status, answer = app.authorize(key="k")
        assert (status, answer.get("max_output_tokens")) == ((200, length) if length else (402, None))
    assert refused() == before + (0 if length else 2)


def test_nothing_is_folded_by_less_than_one() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimates.fold(limit=0)


def _report(*arguments: object) -> str:
    out = StringIO()
    call_command("holds", "report", *map(str, arguments), stdout=out, stderr=out)
    return out.getvalue()


@pytest.mark.django_db
class TestReportOfADatabase:
    def test_it_says_how_holds_fit_by_model_feature_and_who_said_the_length(self) -> None:
        app = App()
        app.knows(300)
        poor = app.customer(NANOS // 40)
        app.capture(app.authorize(poor)[1]["id"], 300)
        app.capture(app.authorize(poor)[1]["id"], 400)
        app.capture(app.authorize(max_output_tokens=600)[1]["id"], 600)
        lines = hold_report.of_records(product=app.product, since=datetime.now(UTC) - timedelta(days=1))
        assumed, said = (lines[app.model, "chat", who] for who in ("assumed", "client app"))
        assert (assumed.held.calls, assumed.held.over, assumed.held.asked, assumed.held.refused) == (2, 1, 2, 0)
        assert assumed.worst.refused == 2  # though their charges fitted
        assert (said.held.calls, said.held.hold_nanos, said.held.charge_nanos) == (1, 18_000_000, 18_000_000)
        assert said.held.asked == 0
        text = _report("--product", app.product.slug)
        assert text.startswith(f"{app.product.slug}, in USD, the last 7 days\n")
        [row] = [line.split() for line in text.splitlines() if "assumed" in line and app.model in line]
        assert row[:6] == [app.model, "chat", "assumed", "2", "0.00", "%"]
        assert row[6:8] == ["50.00", "%"]  # one of two overshot
        assert row[9:11] == ["100.00", "%"]  # with the worst case both would have been refused

    def test_a_product_without_captures_says_so(self) -> None:
        product = make_product()
        assert _report("--product", product.slug, "--days", "1").endswith("no captures\n")

    def test_a_call_without_an_answer_is_reported_and_not_asked_again(self) -> None:
        app = App()
        app.capture(app.authorize()[1]["id"], 0)
        [line] = hold_report.of_records(product=app.product, since=datetime.now(UTC) - timedelta(days=1)).values()
        assert (line.held.calls, line.held.asked) == (1, 0)

    def test_a_charge_that_was_capped_still_overshot(self) -> None:
        app = App(overage="cap")
        held = app.authorize()[1]
        app.capture(held["id"], 5_000)
        [line] = hold_report.of_records(product=app.product, since=datetime.now(UTC) - timedelta(days=1)).values()
        assert (line.held.over, line.held.charge_nanos) == (1, 117_000_000)


class TestReportOfATrace:
    PRICES = {"input_nanos": 3 * NANOS, "output_nanos": 15 * NANOS}

    def test_calls_are_held_for_the_worst_case_until_enough_are_known_and_each_learns_from_those_before(self) -> None:
        rows = [Row(number, 1_000, 64, "chat") for number in range(250)]
        lines = hold_report.of_trace(rows, **self.PRICES, credit_nanos=NANOS)
        assert {about: line.held.calls for about, line in lines.items()} == {("chat", "worst case"): 200, ("chat", "learned"): 50}
        learned = lines["chat", "learned"].held
        assert learned.hold_nanos == learned.charge_nanos == 50 * (3_000_000 + 64 * 15_000)
        assert (learned.over, learned.refused) == (0, 0)
        late = hold_report.of_trace(rows, **self.PRICES, credit_nanos=NANOS, behind=240)
        assert late["chat", "learned"].held.calls == 10

    def test_a_refusal_is_false_where_the_charge_would_have_fitted(self) -> None:
        row = Row(1, 1_000, 64)  # charge 3,960,000; worst case 64,440,000 nano-USD
        [line] = hold_report.of_trace([row] * 10, **self.PRICES, credit_nanos=70_000_000).values()
        assert (line.held.asked, line.held.refused, line.held.calls) == (10, 4, 10)
        [line] = hold_report.of_trace([row], **self.PRICES, credit_nanos=3_959_999).values()
        assert (line.held.asked, line.held.refused, line.held.calls) == (1, 0, 0)

    def test_a_rich_customer_is_held_for_the_worst_case(self) -> None:
        rows = [Row(number, 1_000, 64, "chat") for number in range(250)]
        assert set(hold_report.of_trace(rows, **self.PRICES, credit_nanos=1_000 * NANOS)) == {("chat", "worst case")}

    def test_the_command_needs_no_database(self, tmp_path: Path) -> None:
        trace = tmp_path / "x_code.csv"
        trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:17:03,1000,64\n" * 250 + "broken\n")
        text = _report("--trace", trace)
        assert "1 lines are no calls" in text
        assert next(line.split()[:4] for line in text.splitlines() if " learned " in line) == ["code", "learned", "50", "0.00"]

    @pytest.mark.skipif("TOLLGATE_TRACES" not in os.environ, reason="TOLLGATE_TRACES names no folder with real traces")
    @pytest.mark.parametrize("name", ["code", "conv"])
    @pytest.mark.parametrize("behind", [1, 300])
    def test_on_real_traces_one_charge_in_a_hundred_overshoots_and_holds_are_at_most_twice_the_charges(
        self, name: str, behind: int
    ) -> None:
        path = Path(os.environ["TOLLGATE_TRACES"]) / f"azure_llm_trace_2023_{name}.csv"
        if not path.exists():
            pytest.skip(f"{path.name} is not there")
        rows = [row for row in traces.read(path) if isinstance(row, Row)]
        lines = hold_report.of_trace(rows, **self.PRICES, credit_nanos=NANOS, behind=behind)
        held = hold_report.total(lines).held
        assert held.calls == len(rows)
        assert held.over * 100 <= held.calls
        assert held.hold_nanos <= 2 * held.charge_nanos


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["guess"], "invalid choice"),
        (["report", "--days", "0"], "integer from 1 to 3660"),
        (["report", "--days", "٣"], "integer from 1 to 3660"),
        (["report", "--days", "9" * 400], "integer from 1 to 3660"),
        (["report", "--days", "-1"], "expected one argument|integer from 1"),
        (["report", "--behind", "1.5"], "integer from 1 to 1000000"),
        (["report", "--trace", "nowhere.csv"], "No such file"),
        (["report", "--trace", "."], "Is a directory"),
        (["report", "--trace", "{no_trace}"], "expected the header"),
        (["report", "--trace", "{empty}"], "no calls"),
        (["report", "--trace", "{empty}", "--input-price", "1e9"], "US dollars"),
        (["report", "--trace", "{empty}", "--output-price", "NaN"], "US dollars"),
        (["report", "--trace", "{empty}", "--credit", "-1"], "expected one argument|US dollars"),
        (["report", "--trace", "{empty}", "--credit", "0.0000000001"], "US dollars"),
        (["report", "--trace", "{empty}", "--product", "rover"], "of no product"),
        (["report", "--trace", "{huge}", "--input-price", "999999", "--output-price", "999999"], "cannot be priced"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, arguments: list[str], expected: str) -> None:
    header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    files = {"no_trace": "a,b\n1,2\n", "empty": header, "huge": f"{header}2023-11-16 18:17:03,999999999,999999999\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    named = [argument.format(**{name: tmp_path / name for name in files}) for argument in arguments]
    with pytest.raises(CommandError, match=expected):
        call_command("holds", *named, stdout=StringIO(), stderr=StringIO())


@pytest.mark.django_db
def test_a_product_that_nobody_knows_is_refused() -> None:
    known = make_product().slug
    with pytest.raises(CommandError, match=f"There is no product “nobody”; there are: .*{known}"):
        _report("--product", "nobody")
