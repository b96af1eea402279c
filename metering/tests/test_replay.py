"""The replay, over real HTTP: what is driven, charged, repeated, refused and reported."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import urllib3
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from accounts.models import ApiKey
from billing import audit
from billing.models import LedgerEntry, Wallet
from metering import replay
from metering.models import OpenAuthorization, UsageRecord
from pricing.models import Product, Unit
from tests import factories

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
AT = "2023-11-16 18:15:46.6805900"


@dataclass
class Shop:
    """A product with a priced model, behind a server, and the replay of traces against it."""

    url: str
    product: Product
    model: str

    def replay(self, *files: Path, **options: Any) -> str:
        """The report. Broken rows and progress follow it."""
        out, err = StringIO(), StringIO()
        options = {"product": self.product.slug, "model": self.model, "url": self.url, "accounts": 3, "concurrency": 4} | options
        try:
            call_command("replay", *files, stdout=out, stderr=err, **options)
        except CommandError as error:
            error.args = (f"{error.args[0]}\n{out.getvalue()}{err.getvalue()}",)
            raise
        return out.getvalue() + err.getvalue()

    def digest(self) -> str:
        """A hash of every row that money is in."""
        digest = hashlib.sha256()
        for rows in (
            Wallet.objects.order_by("account_id"),
            LedgerEntry.objects.order_by("account_id", "seq"),
            UsageRecord.objects.order_by("id"),
        ):
            for row in rows.filter(account__product=self.product).values_list():
                digest.update(repr(row).encode())
        return digest.hexdigest()

    def records(self) -> list[UsageRecord]:
        return list(UsageRecord.objects.filter(account__product=self.product, outcome="captured"))


@pytest.fixture
def shop(server: str) -> Shop:
    return Shop(server, factories.make_product(), factories.make_model())


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "small_conv.csv"
    path.write_text(AZURE + "".join(f"{AT},{100 * row},{row}\n" for row in range(1, 25)))
    return path


def _answer(report: str, name: str) -> str:
    found = re.search(rf"^  {name} +(.+)$", report, re.MULTILINE)
    assert found, report
    return found.group(1)


def test_every_row_is_charged_and_the_sums_agree_to_the_nano(shop: Shop, trace: Path) -> None:
    report = shop.replay(trace)
    tokens_in, tokens_out = 100 * 300, 300
    price = tokens_in * 4_500 + tokens_out * 22_500  # nano-USD: $3 and $15 per million, and half as much again
    records = shop.records()
    assert len(records) == 24
    assert sum(record.price_nanos or 0 for record in records) == price
    entries = LedgerEntry.objects.filter(account__product=shop.product, kind="usage")
    assert -sum(entry.amount for entry in entries) == price
    assert _answer(report, "rows").startswith("24: 24 captured, 0 released, 0 refused, 0 failed; 0 had been done before")
    assert _answer(report, "tokens") == "30,000 in, 300 out"
    assert _answer(report, "charged") == "0.141750000 USD"
    assert _answer(report, "cost") == "0.094500000 USD"
    assert _answer(report, "margin") == "0.047250000 USD, 33.33 % of the list value"
    assert _answer(report, "ledger").endswith("the same to the nano")
    assert _answer(report, "audit").startswith("clean")
    assert re.fullmatch(r"p50 [\d.]+ ms  p95 [\d.]+ ms  p99 [\d.]+ ms", _answer(report, "authorize"))
    assert re.fullmatch(r"p50 [\d.]+ ms  p95 [\d.]+ ms  p99 [\d.]+ ms", _answer(report, "capture"))
    assert {record.feature and record.feature.slug for record in records} == {"conversation"}
    assert len({record.account_id for record in records}) == 3
    assert not Wallet.objects.filter(account__product=shop.product).exclude(held=0)


def test_the_same_run_id_again_changes_nothing(shop: Shop, trace: Path) -> None:
    first = shop.replay(trace, run_id="once")
    before = shop.digest()
    again = shop.replay(trace, run_id="once")
    assert shop.digest() == before
    assert _answer(again, "rows").endswith("24 had been done before")
    for name in ("charged", "cost", "margin", "ledger"):
        assert _answer(again, name) == _answer(first, name)


def test_another_run_id_charges_again(shop: Shop, trace: Path) -> None:
    shop.replay(trace, run_id="monday")
    shop.replay(trace, run_id="tuesday")
    assert len(shop.records()) == 48


def test_a_run_that_broke_off_is_finished_by_running_it_again(shop: Shop, trace: Path) -> None:
    shop.replay(trace, run_id="long", limit=7)
    report = shop.replay(trace, run_id="long")
    assert _answer(report, "rows") == "24: 24 captured, 0 released, 0 refused, 0 failed; 7 had been done before"
    assert len(shop.records()) == 24
    assert "17 more records than were captured here" in _answer(shop.replay(trace, run_id="long", limit=7), "ledger")


def test_broken_rows_are_reported_with_their_line_and_the_rest_goes_on(shop: Shop, tmp_path: Path) -> None:
    trace = tmp_path / "broken.csv"
    trace.write_text(f"{AZURE}{AT},100,1\n{AT},-1,5\n{AT},５,5\n{AT},1.5\n{AT},200,2\n")
    report = shop.replay(trace)
    assert _answer(report, "broken rows") == "3"
    assert _answer(report, "rows").startswith("2: 2 captured")
    for line in (3, 4, 5):
        assert f"broken.csv:{line}: " in report


def test_a_row_keeps_its_key_when_the_row_before_it_is_mended(shop: Shop, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"{AZURE}{AT},oops,1\n{AT},200,2\n")
    shop.replay(trace, run_id="mended")
    trace.write_text(f"{AZURE}{AT},100,1\n{AT},200,2\n")
    assert _answer(shop.replay(trace, run_id="mended"), "rows").endswith("1 had been done before")
    assert sorted(record.quantities for record in shop.records()) == [[100, 1], [200, 2]]


def test_only_the_first_broken_rows_are_shown(shop: Shop, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(AZURE + "broken\n" * 1_000)
    report = shop.replay(trace)
    assert _answer(report, "broken rows") == "1,000"
    assert report.count("trace.csv:") == 10


@pytest.mark.failure(36)
def test_a_call_that_failed_is_released_and_costs_nothing(shop: Shop, tmp_path: Path) -> None:
    trace = tmp_path / "burst.csv"
    trace.write_text(f"{BURST}5,ChatGPT,472,18,490,Conversation log\n9,GPT-4,500,0,500,API log\n12,ChatGPT,0,0,0,API log\n")
    report = shop.replay(trace, run_id="burst")
    assert _answer(report, "rows").startswith("3: 1 captured, 2 released")
    assert [record.quantities for record in shop.records()] == [[472, 18]]
    assert not OpenAuthorization.objects.filter(account__product=shop.product).exists()
    assert _answer(shop.replay(trace, run_id="burst"), "rows").endswith("3 had been done before")


def test_several_files_and_folders_are_one_run(shop: Shop, trace: Path) -> None:
    (trace.parent / "more_code.csv").write_text(f"{AZURE}{AT},10,1\n")
    (trace.parent / "notes.txt").write_text("no trace")
    assert _answer(shop.replay(trace.parent), "rows").startswith("25: 25 captured")
    assert {record.feature and record.feature.slug for record in shop.records()} == {"conversation", "code"}
    assert _answer(shop.replay(trace, trace), "rows").startswith("48: 48 captured")


def test_the_generated_workload_needs_no_file(shop: Shop) -> None:
    report = shop.replay(generated=True, limit=40)
    assert "the generated workload" in report
    assert _answer(report, "rows").startswith("40: 40 captured")


def test_a_product_with_its_own_credit_is_replayed_in_that(server: str) -> None:
    unit = Unit.objects.create(code=f"{secrets.token_hex(4)}.credit", name="credit", decimals=0)
    product = factories.make_product(
        unit=unit, mode="credit_rate", tokens_per_credit=5_000, default_multiplier_ppm=1_000_000, quantum_nanos=factories.NANOS
    )
    report = Shop(server, product, factories.make_model()).replay(generated=True, limit=10)
    assert _answer(report, "charged").endswith(f" {unit.code}")
    assert _answer(report, "ledger").endswith("the same to the nano")


class TestRefusals:
    def test_what_the_product_refuses_is_counted_by_its_reason(self, shop: Shop, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text(f"{AZURE}{AT},999999999,1\n{AT},100,1\n{AT},999999999,1\n")
        report = shop.replay(trace)
        assert _answer(report, "rows").startswith("3: 1 captured, 0 released, 2 refused, 0 failed")
        assert _answer(report, "refused") == "2 × insufficient_credits"

    def test_a_model_without_a_price_is_refused_row_by_row(self, shop: Shop, trace: Path) -> None:
        report = shop.replay(trace, model="acme:nobody-priced-this")
        assert _answer(report, "refused") == "24 × unknown_model"
        assert _answer(report, "margin") == "0.000000000 USD, nothing of the list value"

    def test_a_plan_without_the_feature_is_refused(self, server: str, trace: Path) -> None:
        with transaction.atomic():  # a plan's terms are written in one transaction
            product = factories.make_product(flags={"conversation": False})
        shop = Shop(server, product, factories.make_model())
        assert _answer(shop.replay(trace), "refused") == "24 × not_entitled"

    def test_a_key_that_the_server_does_not_know_is_a_failure(self, shop: Shop, trace: Path) -> None:
        with pytest.raises(CommandError, match="24 rows failed") as failure:
            shop.replay(trace, key="tg_live_" + "x" * 32)
        assert "24 × authorize was answered 401 invalid_key" in str(failure.value)

    def test_the_same_run_with_another_model_is_a_failure(self, shop: Shop, trace: Path) -> None:
        shop.replay(trace, run_id="one")
        before = shop.digest()
        with pytest.raises(CommandError, match="24 rows failed"):
            shop.replay(trace, run_id="one", model=factories.make_model())
        assert shop.digest() == before


class TestTheKey:
    def test_one_is_made_for_the_run_and_revoked_after_it(self, shop: Shop, trace: Path) -> None:
        shop.replay(trace)
        [key] = ApiKey.objects.filter(product=shop.product)
        assert key.revoked_at is not None
        assert key.scopes == ["usage:write"]

    def test_a_given_one_is_used_and_stays(self, shop: Shop, trace: Path) -> None:
        token = factories.make_key(shop.product, scopes=["usage:write"])
        shop.replay(trace, key=token)
        [key] = ApiKey.objects.filter(product=shop.product)
        assert key.revoked_at is None


@contextmanager
def _web(handle: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            handle(self, self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, format: str, *args: object) -> None:
            """Requests are the test's own."""

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


def _reply(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


class TestTheNetwork:
    @pytest.mark.failure(2)
    def test_answers_that_get_lost_charge_nothing_twice(self, shop: Shop, trace: Path) -> None:
        """Every fourth request is refused by the proxy, every fourth is carried out and its answer thrown away."""
        upstream, direct, counter, lock = urllib3.PoolManager(maxsize=8), shop.url, iter(range(10**9)), threading.Lock()

        def carry(request: BaseHTTPRequestHandler, body: bytes) -> None:
            with lock:
                number = next(counter)
            if number % 4 == 1:
                _reply(request, 503, b"")
                return
            headers = {
                name: request.headers[name] for name in ("Authorization", "Content-Type", "Idempotency-Key") if name in request.headers
            }
            answer = upstream.request("POST", direct + request.path, body=body, headers=headers, retries=False)
            if number % 4 == 3:
                request.close_connection = True
                request.connection.shutdown(socket.SHUT_RDWR)
                return
            replayed = {"Idempotency-Replayed": "true"} if "Idempotency-Replayed" in answer.headers else {}
            _reply(request, answer.status, answer.data, replayed)

        with _web(carry) as proxy:
            report = shop.replay(trace, url=proxy)
        assert _answer(report, "rows").startswith("24: 24 captured, 0 released, 0 refused, 0 failed")
        assert _answer(report, "charged") == "0.141750000 USD"
        assert _answer(report, "ledger").endswith("the same to the nano")
        assert int(_answer(report, "requests").split()[-2]) > 10
        assert len(shop.records()) == 24

    def test_a_server_that_is_not_there_ends_the_run_and_names_it(self, shop: Shop, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replay, "TRIES", 2)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(CommandError, match=r"does not answer: (.|\n)*--run-id later continues this run"):
            shop.replay(trace, url=url, run_id="later")
        assert _answer(shop.replay(trace, run_id="later"), "rows").startswith("24: 24 captured")
        assert not ApiKey.objects.filter(product=shop.product, revoked_at=None).exists()

    @pytest.mark.parametrize(
        ("status", "body", "reason"),
        [
            (500, b"<h1>Server Error</h1>", "authorize was answered 500"),
            (200, b"[]", "an answer 200 is no JSON object"),
            (200, b"\xff", "an answer 200 is no JSON object"),
            (402, b"{}", "authorize was answered 402"),
            (302, b"", "authorize was answered 302"),
            (200, b'{"id": "auth_x", "charged": 0.5}', "charged is 0.5; expected an exact amount"),
            (200, b'{"id": "auth_x", "charged": "0.0000000001"}', "expected an exact amount"),
            (200, b'{"id": "auth_x", "charged": "NaN"}', "expected an exact amount"),
            (200, b'{"id": "auth_x"}', "expected an exact amount"),
        ],
    )
    def test_an_answer_that_makes_no_sense_fails_the_run(self, shop: Shop, trace: Path, status: int, body: bytes, reason: str) -> None:
        with _web(lambda request, _: _reply(request, status, body)) as web, pytest.raises(CommandError, match="24 rows failed") as failure:
            shop.replay(trace, url=web)
        assert reason in str(failure.value)

    def test_a_server_that_says_more_than_was_charged_is_found_out(self, shop: Shop, trace: Path) -> None:
        """The other side of the comparison: answers that claim a charge which no ledger has."""
        claim = json.dumps({"id": "auth_x", "status": "captured", "charged": "1.000000000"}).encode()
        with _web(lambda request, _: _reply(request, 200, claim)) as web, pytest.raises(CommandError, match="entries differ") as failure:
            shop.replay(trace, url=web)
        assert "THEY DIFFER" in str(failure.value)


def test_what_the_audit_finds_fails_the_run(shop: Shop, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "run", lambda: [audit.Finding("balance", 7, "1 is not 2")])
    with pytest.raises(CommandError, match="the audit has 1 findings") as failure:
        shop.replay(trace)
    assert "account 7: balance: 1 is not 2" in str(failure.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Name trace files, or use --generated"),
        (["--generated", "trace.csv"], "Name trace files, or use --generated"),
        (["nowhere.csv"], "No such file"),
        (["--generated", "--accounts", "0"], "integer from 1 to 10000"),
        (["--generated", "--accounts", "５"], "integer from 1 to 10000"),
        (["--generated", "--concurrency", "1e9"], "integer from 1 to 64"),
        (["--generated", "--limit", "-1"], "integer from 1"),
        (["--generated", "--limit", "9" * 400], "integer from 1"),
        (["--generated", "--credit", "1.5"], "integer from 1"),
        (["--generated", "--run-id", "a b"], "letters, digits"),
        (["--generated", "--run-id", "x" * 65], "letters, digits"),
        (["--generated", "--url", "localhost:8000"], "expected an address"),
        (["--generated", "--url", "file:///etc/passwd"], "expected an address"),
        (["--generated", "--url", "http://[::1"], "expected an address"),
        (["--generated", "--url", "http://localhost:99999"], "expected an address"),
        (["--generated", "--product", "nobody"], "There is no product “nobody”"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_done(shop: Shop, arguments: list[str], expected: str) -> None:
    known = [] if "--product" in arguments else ["--product", shop.product.slug]
    with pytest.raises(CommandError, match=expected):
        call_command("replay", *arguments, *known, stdout=StringIO(), stderr=StringIO())
    assert not shop.product.accounts.exists()


def test_a_file_that_is_no_trace_is_refused_before_anything_is_done(shop: Shop, trace: Path) -> None:
    (trace.parent / "zz.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(CommandError, match=r"zz\.csv begins with 'a,b,c'"):
        shop.replay(trace.parent)
    (trace.parent / "empty").mkdir()
    with pytest.raises(CommandError, match=r"has no \*\.csv file"):
        shop.replay(trace.parent / "empty")
    assert not shop.product.accounts.exists()


def test_a_run_with_another_credit_is_refused(shop: Shop, trace: Path) -> None:
    shop.replay(trace, run_id="one", credit=5)
    with pytest.raises(CommandError, match="another --credit"):
        shop.replay(trace, run_id="one", credit=6)


def test_a_terminal_is_shown_a_bar(shop: Shop, trace: Path) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    out, err = StringIO(), Terminal()
    call_command("replay", trace, product=shop.product.slug, model=shop.model, url=shop.url, stdout=out, stderr=err, no_color=True)
    assert err.getvalue().startswith("\r")
    assert "100%  24 of 24 rows" in err.getvalue()


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (95, 95), (99, 99), (100, 100)])
def test_percentiles_are_nearest_rank(percent: int, expected: int) -> None:
    assert replay.percentile(array("q", reversed(range(1, 101))), percent) == expected
    assert replay.percentile(array("q", [7]), percent) == 7
    assert replay.percentile(array("q"), percent) == 0


@pytest.mark.skipif("TOLLGATE_TRACES" not in os.environ, reason="TOLLGATE_TRACES names no folder with real traces")
def test_the_first_rows_of_real_traces_are_charged_exactly_and_once(shop: Shop) -> None:
    folder = Path(os.environ["TOLLGATE_TRACES"])
    report = shop.replay(folder, limit=300, run_id="azure", accounts=20, concurrency=8)
    before = shop.digest()
    assert _answer(report, "rows").startswith("300: 300 captured, 0 released, 0 refused, 0 failed")
    assert _answer(report, "ledger").endswith("the same to the nano")
    assert _answer(report, "audit").startswith("clean")
    assert _answer(shop.replay(folder, limit=300, run_id="azure", accounts=20), "rows").endswith("300 had been done before")
    assert shop.digest() == before
    with connection.cursor() as cursor:
        cursor.execute(
            "select count(*) from usage_record r join accounts_account a on a.id = r.account_id where product_id = %s", [shop.product.pk]
        )
        assert cursor.fetchone() == (300,)
