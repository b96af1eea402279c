"""Who may ask, what is garbage, idempotency keys, faults, and what is left after a crash."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stripe

from stripe_double import API_VERSION
from stripe_double.params import decode
from stripe_double.server import BODY_AT_MOST, Double
from stripe_double.tests.conftest import KEY, Client

FORM = {"Content_Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "key", ["", "Bearer", "Bearer sk_test_short", f"Bearer sk_live_{'0' * 24}", f"Bearer pk_test_{'0' * 24}", f"Basic {KEY}"]
)
def test_a_wrong_key_is_a_401(client: Client, key: str) -> None:
    status, body, _ = client.raw("GET", "/v1/customers", Authorization=key)
    assert (status, body["error"]["type"]) == (401, "invalid_request_error")
    assert "0" * 24 not in str(body)


def test_the_sdk_raises_its_own_errors(client: Client) -> None:
    stranger = stripe.StripeClient("sk_live_" + "0" * 24, base_addresses={"api": client.address}, stripe_version=API_VERSION)
    with pytest.raises(stripe.AuthenticationError):
        stranger.v1.customers.list()
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.customers.retrieve("cus_none")
    assert (missing.value.http_status, missing.value.code, missing.value.param) == (404, "resource_missing", "id")
    assert missing.value.request_id
    with pytest.raises(stripe.InvalidRequestError) as lacking:
        client.v1.checkout.sessions.create({"success_url": "http://x.test"})
    assert (lacking.value.code, lacking.value.param) == ("parameter_missing", "mode")


def test_another_version_of_the_api_is_refused(client: Client) -> None:
    drifting = stripe.StripeClient(KEY, base_addresses={"api": client.address})  # it follows the SDK
    with pytest.raises(stripe.InvalidRequestError, match="pin the version"):
        drifting.v1.customers.list()


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nothing"), ("DELETE", "/v1/prices/price_1"), ("POST", "/v1/events"), ("GET", "/v1/"), ("GET", "/v2/core/events")],
)
def test_an_address_that_is_not_here_is_a_404(client: Client, method: str, path: str) -> None:
    status, body, _ = client.raw(method, path)
    assert (status, "Unrecognized request URL" in body["error"]["message"]) == (404, True)


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"name",
            b"name=%ff",
            b"name=%C3%28",
            b"=1",
            b"a[=1",
            b"a]=1",
            b"a=1&a=2",
            b"metadata=x&metadata[a]=1",
            b"metadata[a][b]=1",
            b"name[]=1",
        ),
        *(
            b"\xff\xfe",
            b"x=1",
            b"email=nobody",
            b"balance=1.5",
            b"address=1",
            b"name=" + b"x" * 5001,
            b"&".join(b"metadata[%d]=1" % n for n in range(51)),
        ),
        *(b"a[b][c][d][e][f][g][h][i][j]=1", b"&".join(b"metadata[%d]=1" % n for n in range(1001)), b'{"name": "Ada"}'),
    ],
)
def test_a_body_that_is_garbage_is_a_400_and_makes_nothing(client: Client, body: bytes) -> None:
    status, answer, _ = client.raw("POST", "/v1/customers", body, **FORM)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert client.v1.customers.list().data == []


def test_json_in_place_of_a_form_is_refused(client: Client) -> None:
    assert client.raw("POST", "/v1/customers", b'{"name": "Ada"}', Content_Type="application/json")[0] == 400


def test_a_huge_body_is_refused_before_it_is_read(client: Client) -> None:
    host, port = client.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        head = f"POST /v1/customers HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {BODY_AT_MOST + 1}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["-1", "x", "1e3", ""])
def test_a_length_that_is_none_is_refused(client: Client, length: str) -> None:
    host, port = client.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"POST /v1/customers HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {length}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 411")


def test_forms_are_read_as_the_sdk_writes_them() -> None:
    assert decode("a[b][0]=x&a[b][1]=y+z&c=&d[]=1&d[]=2") == {"a": {"b": {"0": "x", "1": "y z"}}, "c": "", "d": {"0": "1", "1": "2"}}


# Idempotency keys


def test_a_repeated_key_says_the_first_answer_again(client: Client) -> None:
    first = client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"})
    status, again, headers = client.raw("POST", "/v1/customers", b"name=Ada", Idempotency_Key="k1", **FORM)
    assert (status, again["id"], headers["Idempotent-Replayed"], headers["Idempotency-Key"]) == (200, first.id, "true", "k1")
    assert len(client.v1.customers.list().data) == 1
    event = client.v1.events.list().data[0]
    assert event["request"].idempotency_key == "k1"  # event.request is a method of the SDK's


@pytest.mark.parametrize(("path", "body"), [("/v1/customers", b"name=Grace"), ("/v1/products", b"name=Ada")])
def test_a_key_with_other_parameters_is_an_idempotency_error(client: Client, path: str, body: bytes) -> None:
    client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"})
    status, answer, _ = client.raw("POST", path, body, Idempotency_Key="k1", **FORM)
    assert (status, answer["error"]["type"]) == (400, "idempotency_error")


def test_a_declined_charge_stays_declined_for_its_key_and_garbage_does_not(client: Client) -> None:
    given: Any = {"amount": 1000, "currency": "usd", "payment_method": "pm_card_chargeDeclined", "confirm": True}
    for _ in range(2):
        with pytest.raises(stripe.CardError):
            client.v1.payment_intents.create(given, {"idempotency_key": "k1"})
    assert len(client.v1.charges.list().data) == 1
    assert client.raw("POST", "/v1/customers", b"colour=red", Idempotency_Key="k2", **FORM)[0] == 400
    assert client.raw("POST", "/v1/customers", b"name=Ada", Idempotency_Key="k2", **FORM)[0] == 200


def test_a_key_is_forgotten_after_a_day(client: Client) -> None:
    first = client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"})
    client.advance(days=1.01)
    assert client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"}).id != first.id


def test_the_same_key_at_the_same_time_makes_one_and_refuses_or_repeats_the_others(client: Client) -> None:
    answers = []

    def ask() -> None:
        answers.append(client.raw("POST", "/v1/customers", b"name=Ada", Idempotency_Key="k1", **FORM)[0])

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {200, 409}
    assert 200 in answers
    assert len(client.v1.customers.list().data) == 1


def test_a_key_in_flight_is_a_409(double: Double, client: Client) -> None:
    client.control("POST", "/fault", mode="slow", seconds=1, count=1)
    slow = threading.Thread(target=client.raw, args=("POST", "/v1/customers", b"name=Ada"), kwargs={"Idempotency_Key": "k1", **FORM})
    slow.start()
    while "k1" not in double.flying:
        time.sleep(0.01)
    status, answer, _ = client.raw("POST", "/v1/customers", b"name=Ada", Idempotency_Key="k1", **FORM)
    slow.join()
    assert (status, answer["error"]["code"]) == (409, "idempotency_key_in_use")
    assert client.raw("POST", "/v1/customers", b"name=Ada", Idempotency_Key="k1", **FORM)[0] == 200
    assert len(client.v1.customers.list().data) == 1


# Faults


def create(client: Client, key: str = "k1") -> stripe.Customer:
    return client.v1.customers.create({"name": "Ada"}, {"idempotency_key": key})


def test_a_429_is_what_the_sdk_calls_a_rate_limit(client: Client) -> None:
    client.control("POST", "/fault", mode="429", count=1)
    with pytest.raises(stripe.RateLimitError):
        create(client)
    assert create(client).id


def test_a_500_before_has_no_effect_and_the_key_is_free(client: Client) -> None:
    client.control("POST", "/fault", mode="500_before", count=1)
    with pytest.raises(stripe.APIError):
        create(client)
    assert client.v1.customers.list().data == []
    assert create(client).id


def test_a_500_after_has_its_effect_and_stays_the_answer_of_its_key(client: Client) -> None:
    client.control("POST", "/fault", mode="500_after", count=1)
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            create(client)
    assert len(client.v1.customers.list().data) == 1


def test_a_connection_that_dies_after_the_effect_is_healed_by_the_key(client: Client) -> None:
    client.control("POST", "/fault", mode="dead_after", count=1)
    with pytest.raises(stripe.APIConnectionError):
        create(client)
    assert create(client).id == client.v1.customers.list().data[0].id
    assert len(client.v1.customers.list().data) == 1


def test_a_connection_that_dies_before_leaves_nothing(client: Client) -> None:
    client.control("POST", "/fault", mode="dead_before", path="/v1/customers")
    with pytest.raises(stripe.APIConnectionError):
        create(client)
    client.v1.products.create({"name": "Elsewhere"})
    client.control("DELETE", "/fault")
    assert client.v1.customers.list().data == []


def test_a_slow_answer_comes_late(client: Client) -> None:
    client.control("POST", "/fault", mode="slow", seconds=0.4, count=1, method="GET")
    create(client)
    begun = time.monotonic()
    client.v1.customers.list()
    assert time.monotonic() - begun >= 0.4


def test_the_sdks_own_retries_make_one_customer(client: Client) -> None:
    patient = stripe.StripeClient(KEY, base_addresses={"api": client.address}, stripe_version=API_VERSION, max_network_retries=2)
    client.control("POST", "/fault", mode="dead_after", count=1, method="POST")
    patient.v1.customers.create({"name": "Ada"})
    assert len(client.v1.customers.list().data) == 1


# A process of its own


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], Client]]]:
    """Start the double as its own process on the same file, as often as the test likes."""
    running: list[subprocess.Popen[str]] = []

    def begin() -> tuple[subprocess.Popen[str], Client]:
        data = tmp_path / "var" / "double.sqlite3"
        command = [sys.executable, "-m", "stripe_double", "--port", "0", "--data", str(data)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        running.append(process)
        assert process.stdout
        return process, Client(process.stdout.readline().split()[3])

    yield begin
    for process in running:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=10)
        assert process.stdout
        process.stdout.close()


Start = Callable[[], tuple[subprocess.Popen[str], Client]]


def test_everything_acknowledged_is_there_after_a_kill(start: Start) -> None:
    process, client = start()
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(2500).id)
    client.advance(days=40)
    kept = create(client)
    events, now = client.events(), client.now()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, again = start()
    assert again.events() == events
    assert 0 <= again.now() - now < 60
    assert create(again).id == kept.id
    assert again.v1.subscriptions.retrieve(subscription.id).status == "active"
    again.advance(days=31)
    assert len(again.v1.invoices.list({"subscription": subscription.id}).data) == 3


def test_killed_in_the_middle_of_work_it_has_whole_requests_only(start: Start) -> None:
    process, client = start()
    customer, price = client.customer(), client.price(2500)
    acknowledged: list[str] = []

    def work() -> None:
        try:
            while True:
                acknowledged.append(client.subscribe(customer.id, price.id).id)
        except stripe.APIConnectionError:
            return

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 5:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    process.wait()
    _, again = start()
    found = {one.id: one.status for one in again.v1.subscriptions.list({"limit": 100}).auto_paging_iter()}
    assert set(acknowledged) <= set(found)
    assert set(found.values()) == {"active"}
    assert len(list(again.v1.charges.list({"limit": 100}).auto_paging_iter())) == len(found)


def test_it_ends_when_it_is_told_to(start: Start) -> None:
    process, client = start()
    create(client)
    process.terminate()
    assert process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    "given", [("--port", "x"), ("--port", "70000"), ("--port", "1", "--data", "/"), ("--data", "/dev/null/x"), ("--colour", "red")]
)
def test_a_command_line_that_makes_no_sense_is_refused_in_words(given: tuple[str, ...], tmp_path: Path) -> None:
    data = () if "--data" in given else ("--data", str(tmp_path / "new.sqlite3"))
    command = [sys.executable, "-m", "stripe_double", "--port", "0", *data, *given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=20)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    garbage = tmp_path / "no.sqlite3"
    garbage.write_bytes(b"garbage" * 1000)
    command = [sys.executable, "-m", "stripe_double", "--port", "0", "--data", str(garbage)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=20)
    assert (done.returncode, "Traceback" in done.stderr, garbage.read_bytes()) == (2, False, b"garbage" * 1000)
