"""A double for each test, with the real SDK as its client. At the end of each test everything in it must keep the contract."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import stripe

from stripe_double import API_VERSION
from stripe_double.server import Double
from stripe_double.store import Obj, public
from stripe_double.tests.contract import problems

KEY = "sk_test_" + "0" * 24


class Client:
    """The SDK's client beside the double's own switches and its pages."""

    def __init__(self, address: str):
        self.address = address
        self.sdk = stripe.StripeClient(KEY, base_addresses={"api": address}, stripe_version=API_VERSION, max_network_retries=0)
        self.v1 = self.sdk.v1

    def control(self, method: str, path: str, /, **wish: Any) -> Any:
        body = json.dumps(wish).encode() if method == "POST" else None
        request = urllib.request.Request(f"{self.address}/_control{path}", body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def advance(self, *, days: float = 0, to: int | None = None) -> None:
        self.control("POST", "/clock", **({"to": to} if to else {"advance": round(days * 86_400)}))

    def now(self) -> int:
        return int(self.control("GET", "")["now"])

    def post(self, url: str, **fields: str) -> tuple[int, str]:
        """Send a form of a hosted page: the status, and the address of a redirect or the page."""
        try:
            with _no_redirects.open(url, urllib.parse.urlencode(fields).encode()) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get("Location") or error.read().decode()

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, parsed body and headers of a request that is just as it is given."""
        sent = {"Authorization": f"Bearer {KEY}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.address + path, body, sent, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers

    def events(self) -> list[str]:
        """The types of all events, oldest first."""
        return [str(event.type) for event in self.v1.events.list({"limit": 100}).auto_paging_iter()][::-1]

    # What most tests begin with

    def price(self, cents: int, interval: str | None = "month", name: str = "Pro", **more: Any) -> stripe.Price:
        recurring: Any = {"recurring": {"interval": interval}} if interval else {}
        return self.v1.prices.create({"currency": "usd", "unit_amount": cents, "product_data": {"name": name}} | recurring | more)

    def customer(self, card: str | None = "pm_card_visa", **more: Any) -> stripe.Customer:
        given: Any = {"email": "ada@example.com", "name": "Ada"} | more
        customer = self.v1.customers.create(given)
        if card:
            self.use_card(customer.id, card)
        return customer

    def use_card(self, customer: str, card: str) -> None:
        method = self.v1.payment_methods.attach(card, {"customer": customer})
        self.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": method.id}})

    def subscribe(self, customer: str, price: str, **more: Any) -> stripe.Subscription:
        given: Any = {"customer": customer, "items": [{"price": price}]} | more
        return self.v1.subscriptions.create(given)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Leave the redirect to the test."""


_no_redirects = urllib.request.build_opener(_NoRedirects)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    running = Double(port=0, data=tmp_path / "double.sqlite3")
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    with running.store.transaction():
        kinds = [row[0] for row in running.store.sql("select distinct kind from object")]
        everything: list[Obj] = [public(obj) for kind in kinds for obj in running.store.find(kind)]
    running.close()
    thread.join()
    wrong = {problem for obj in everything for problem in problems(obj)}
    assert not wrong, "\n".join(sorted(wrong))


@pytest.fixture
def client(double: Double) -> Client:
    return Client(double.address)


class Receiver(ThreadingHTTPServer):
    """Takes webhooks; answers with what ``says`` holds, one after another, then with 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiving)
        self.url = f"http://127.0.0.1:{self.server_port}/hook"
        self.got: list[tuple[bytes, str]] = []
        self.says: list[int] = []
        self.came = threading.Condition()

    def wait(self, enough: Callable[[list[tuple[bytes, str]]], bool]) -> list[tuple[bytes, str]]:
        """What has come, once it is enough."""
        with self.came:
            assert self.came.wait_for(lambda: enough(self.got), timeout=15), [json.loads(body)["type"] for body, _ in self.got]
            return list(self.got)


class _Receiving(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.came:
            self.server.got.append((body, self.headers["Stripe-Signature"]))
            status = self.server.says.pop(0) if self.server.says else 200
            self.server.came.notify_all()
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to say."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()
