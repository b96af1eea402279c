"""A Stripe of a few objects for tests: it answers the reads of :mod:`billing.stripe_api` over HTTP, and signs events as Stripe does.

What it says is what a test put into it; nothing happens by itself.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import stripe

Obj = dict[str, Any]
JANUARY = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
FEBRUARY = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp())
MARCH = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())


def new(prefix: str) -> str:
    return f"{prefix}_{uuid4().hex[:20]}"


class Stub:
    """``objects`` by id. ``trouble``, where it is set, answers instead: a status, or an exception to die of."""

    def __init__(self) -> None:
        self.objects: dict[str, Obj] = {}
        self.requests: list[str] = []
        self.trouble: int | None = None
        self.before: Callable[[], None] | None = None

    def put(self, obj: Obj) -> Obj:
        self.objects[obj["id"]] = obj
        return obj

    def find(self, kind: str, **where: str) -> list[Obj]:
        return [
            obj for obj in self.objects.values() if obj["object"] == kind and all(obj.get(key) == value for key, value in where.items())
        ]

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, Obj]:
        self.requests.append(path)
        if self.before is not None:
            self.before()
        if self.trouble is not None:
            return self.trouble, {"error": {"type": "api_error", "message": "out of order"}}
        one = {key: values[0] for key, values in query.items()}
        match path.removeprefix("/v1/").split("/"):
            case ["events"]:
                since = int(one["created[gte]"])
                return 200, listed([obj for obj in self.find("event") if obj["created"] >= since])
            case ["invoices"]:
                ours = [
                    each for each in self.find("invoice") if each["parent"]["subscription_details"]["subscription"] == one["subscription"]
                ]
                return 200, listed(ours[::-1])
            case ["prices"]:
                return 200, listed([each for each in self.find("price") if each["product"]["id"] == one["product"]])
            case ["disputes"]:
                return 200, listed(self.find("dispute", payment_intent=one["payment_intent"]))
            case ["checkout", "sessions"]:
                return 200, listed(self.find("checkout.session", payment_intent=one["payment_intent"]))
            case ["invoice_payments"]:
                intent = one["payment[payment_intent]"]
                return 200, listed([each for each in self.find("invoice_payment") if each["payment"]["payment_intent"] == intent])
            case [*_, object_id] if object_id in self.objects:
                return 200, json.loads(json.dumps(self.objects[object_id]))
        return 404, {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": f"No such object: {path}"}}

    # What is at Stripe --------------------------------------------------------------------------------------------------------

    def pack(
        self, customer: str | None, price: str, amount: int, *, quantity: int = 1, discount: int = 0, fee: int | None = 59, **intent: Any
    ) -> Obj:
        """A checkout session that a customer paid, its payment intent and its charge. Returns the intent."""
        total = amount - discount
        charge = self.charge(total, fee)
        paid = self.put(
            {
                "id": new("pi"),
                "object": "payment_intent",
                "amount": total,
                "amount_received": total,
                "currency": "usd",
                "status": "succeeded",
                "customer": customer,
                "created": JANUARY,
                "latest_charge": charge,
            }
            | intent
        )
        charge["payment_intent"] = paid["id"]
        line = {
            "object": "item",
            "price": {"id": price},
            "quantity": quantity,
            "currency": "usd",
            "description": "Starter Pack",
            "amount_subtotal": amount,
            "amount_discount": discount,
            "amount_tax": 0,
            "amount_total": total,
        }
        self.session(
            mode="payment",
            payment_intent=paid["id"],
            payment_status="paid" if paid["status"] == "succeeded" else "unpaid",
            customer=customer,
            amount_total=total,
            line_items=listed([line]),
        )
        return paid

    def session(self, **fields: Any) -> Obj:
        """A checkout session that the customer has finished."""
        finished = {"id": new("cs"), "object": "checkout.session", "status": "complete", "payment_status": "paid", "expires_at": FEBRUARY}
        return self.put(finished | {"payment_intent": None, "subscription": None} | fields)

    def charge(self, amount: int, fee: int | None) -> Obj:
        settled = (
            None if fee is None else {"id": new("txn"), "object": "balance_transaction", "fee": fee, "amount": amount, "currency": "usd"}
        )
        return self.put(
            {
                "id": new("ch"),
                "object": "charge",
                "amount": amount,
                "amount_refunded": 0,
                "currency": "usd",
                "disputed": False,
                "receipt_url": f"https://stripe.test/receipts/{amount}",
                "balance_transaction": settled,
            }
        )

    def refund(self, intent: Obj, amount: int) -> Obj:
        intent["latest_charge"]["amount_refunded"] += amount
        return self.put({"id": new("re"), "object": "refund", "payment_intent": intent["id"], "amount": amount})

    def dispute(self, intent: Obj, amount: int, status: str = "needs_response") -> Obj:
        intent["latest_charge"]["disputed"] = True
        return self.put({"id": new("dp"), "object": "dispute", "payment_intent": intent["id"], "amount": amount, "status": status})

    def subscription(
        self, customer: str, price: str, *, status: str = "active", start: int = JANUARY, end: int = FEBRUARY, **fields: Any
    ) -> Obj:
        item = {"id": new("si"), "price": {"id": price}, "quantity": 1, "current_period_start": start, "current_period_end": end}
        return self.put(
            {
                "id": new("sub"),
                "object": "subscription",
                "customer": customer,
                "status": status,
                "items": listed([item]),
                "billing_cycle_anchor": start,
                "start_date": start,
                "cancel_at_period_end": False,
                "ended_at": None,
            }
            | fields
        )

    def invoice(self, subscription: Obj, amount: int, *, status: str = "paid", proration: bool = False, **fields: Any) -> Obj:
        """An invoice for the subscription's present period, and the payment intent that paid it."""
        item = subscription["items"]["data"][0]
        charge = self.charge(amount, 103)
        intent = self.put(
            {
                "id": new("pi"),
                "object": "payment_intent",
                "amount": amount,
                "amount_received": amount if status == "paid" else 0,
                "currency": "usd",
                "status": "succeeded" if status == "paid" else "requires_payment_method",
                "customer": subscription["customer"],
                "created": item["current_period_start"],
                "latest_charge": charge,
            }
        )
        charge["payment_intent"] = intent["id"]
        invoice_id = new("in")
        payment = self.put(
            {
                "id": new("inpay"),
                "object": "invoice_payment",
                "invoice": invoice_id,
                "status": "paid" if status == "paid" else "open",
                "payment": {"type": "payment_intent", "payment_intent": intent["id"]},
            }
        )
        line = {
            "id": new("il"),
            "object": "line_item",
            "description": "1 × Core",
            "amount": amount,
            "currency": "usd",
            "quantity": item["quantity"],
            "period": {"start": item["current_period_start"], "end": item["current_period_end"]},
            "pricing": {"type": "price_details", "price_details": {"price": item["price"]["id"], "product": "prod_1"}},
            "parent": {"subscription_item_details": {"subscription": subscription["id"], "proration": proration}},
            "discount_amounts": [],
            "taxes": [],
        }
        return self.put(
            {
                "id": invoice_id,
                "object": "invoice",
                "customer": subscription["customer"],
                "status": status,
                "currency": "usd",
                "amount_due": amount,
                "amount_paid": amount if status == "paid" else 0,
                "total": amount,
                "total_taxes": [],
                "attempted": status in ("open", "paid", "uncollectible"),
                "due_date": None,
                "next_payment_attempt": None,
                "status_transitions": {"finalized_at": None if status == "draft" else item["current_period_start"] + 3_600},
                "number": None if status == "draft" else f"T-{len(self.objects)}",
                "period_start": item["current_period_start"],
                "period_end": item["current_period_start"],
                "hosted_invoice_url": None if status == "draft" else f"https://stripe.test/{invoice_id}",
                "invoice_pdf": None if status == "draft" else f"https://stripe.test/{invoice_id}/pdf",
                "created": item["current_period_start"],
                "lines": listed([line]),
                "payments": listed([payment]),
                "parent": {"subscription_details": {"subscription": subscription["id"]}},
            }
            | fields
        )

    def session_of(self, intent: Obj) -> Obj:
        [session] = self.find("checkout.session", payment_intent=intent["id"])
        return session


def listed(data: list[Obj]) -> Obj:
    return {"object": "list", "data": data, "has_more": False, "url": "/v1/list"}


@contextmanager
def served(stub: Stub) -> Iterator[str]:
    """The stub's address, while it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            status, body = stub.answer(parts.path, parse_qs(parts.query))
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are the tests' own: nothing to log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def event(type: str, obj: Obj, **fields: Any) -> Obj:
    """What Stripe says when something happened to an object."""
    return {
        "id": new("evt"),
        "object": "event",
        "type": type,
        "api_version": "2026-05-27.dahlia",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": obj},
    } | fields


def signature(body: str, *, secret: str = "whsec_test_main", at: float | None = None) -> str:
    return str(stripe.WebhookSignature.generate_signature_header(body, secret, int(time.time() if at is None else at)))
