"""What no API of Stripe's offers: moving the clock, making things fail, closing disputes. JSON in, JSON out, under ``/_control``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from stripe_double import cards, checkout, clock, errors, payments, webhooks
from stripe_double.store import SETTINGS, Obj, Store, public

FAULTS = ("slow", "429", "500_before", "500_after", "dead_before", "dead_after")


class Faults:
    """What is to go wrong: one fault, for the next ``count`` requests of the API (or until it is cleared) whose path begins so."""

    def __init__(self) -> None:
        self.now: Obj | None = None

    def set(self, wish: Obj) -> None:
        mode, count, seconds = wish.get("mode"), wish.get("count"), wish.get("seconds", 1)
        if mode not in FAULTS or not (count is None or (isinstance(count, int) and count > 0)) or not isinstance(seconds, int | float):
            raise errors.invalid(f"A fault has a mode ({', '.join(FAULTS)}), a count of 1 or more or null, and seconds.")
        if not 0 <= seconds <= 600:
            raise errors.invalid("A fault slows by 0 to 600 seconds.", param="seconds")
        self.now = {"mode": mode, "count": count, "seconds": seconds, "path": str(wish.get("path", "/v1/")), "method": wish.get("method")}

    def take(self, method: str, path: str) -> tuple[str, float]:
        """The fault for this request, used up by one: its mode ("" for none) and seconds."""
        fault = self.now
        if fault is None or not path.startswith(fault["path"]) or fault["method"] not in {None, method}:
            return "", 0
        if fault["count"] is not None:
            fault["count"] -= 1
            self.now = fault if fault["count"] else None
        return fault["mode"], fault["seconds"]


def state(store: Store, faults: Faults) -> Obj:
    counts = dict(store.sql("select kind, count(*) from object group by kind order by kind").fetchall())
    waiting = store.sql("select count(*) from delivery where at is not null").fetchone()[0]
    settings = {name: store.setting(name) for name in SETTINGS}
    return {"now": store.now(), "fault": faults.now, "settings": settings, "objects": counts, "deliveries_waiting": waiting}


def _clock(store: Store, faults: Faults, wish: Obj) -> Obj:
    to, by = wish.get("to"), wish.get("advance")
    to = store.now() + by if type(by) is int and to is None else to
    if type(to) is not int:
        raise errors.invalid('Pass {"advance": seconds} or {"to": timestamp}.')
    return {"done": clock.advance(store, to), "now": store.now()}


def _fault(store: Store, faults: Faults, wish: Obj) -> Obj:
    faults.set(wish)
    return {"fault": faults.now}


def _no_fault(store: Store, faults: Faults, wish: Obj) -> Obj:
    faults.now = None
    return {"fault": None}


def _settings(store: Store, faults: Faults, wish: Obj) -> Obj:
    for name, value in wish.items():
        if name not in SETTINGS or name in {"clock_offset", "invoice_number"} or type(value) is not type(SETTINGS[name]):
            raise errors.invalid(f"Not a setting, or of another type: {name}", param=name)
        if name == "retry_end" and value not in {"canceled", "unpaid", "past_due"}:
            raise errors.invalid("retry_end is canceled, unpaid or past_due.", param=name)
        if name == "retry_days" and not all(isinstance(day, int) and 0 < day <= 60 for day in value):
            raise errors.invalid("retry_days are whole days from 1 to 60.", param=name)
        if isinstance(value, int) and value < 0:
            raise errors.invalid(f"{name} must not be negative.", param=name)
        store.set(name, value)
    return {name: store.setting(name) for name in SETTINGS}


def _settle(store: Store, faults: Faults, wish: Obj, id: str) -> Obj:
    end, intent = wish.get("outcome", "succeeded"), store.get("payment_intent", id)
    if end not in {"succeeded", "failed"} or intent["status"] != "processing":
        raise errors.invalid('A payment that is processing ends as {"outcome": "succeeded"} or {"outcome": "failed"}.')
    checkout.settle(store, intent, "succeeded" if end == "succeeded" else "insufficient_funds")
    return public(intent)


def _dispute(store: Store, faults: Faults, wish: Obj) -> Obj:
    charge, amount = store.get("charge", str(wish.get("charge")), param="charge"), wish.get("amount")
    if amount is not None and not (isinstance(amount, int) and 0 < amount <= charge["amount"]):
        raise errors.invalid("A dispute is about at most the whole charge.", param="amount")
    return public(payments.open_dispute(store, charge, amount, str(wish.get("reason", "fraudulent"))))


def _close(store: Store, faults: Faults, wish: Obj, id: str) -> Obj:
    return public(payments.close_dispute(store, store.get("dispute", id), str(wish.get("outcome"))))


def _fail_refund(store: Store, faults: Faults, wish: Obj, id: str) -> Obj:
    return public(payments.fail_refund(store, store.get("refund", id)))


def _roll(store: Store, faults: Faults, wish: Obj, id: str) -> Obj:
    return {"secret": webhooks.roll(store, store.get("webhook_endpoint", id), keep_old=bool(wish.get("keep_old", True)))}


def _secret(store: Store, faults: Faults, wish: Obj, id: str) -> Obj:
    """Give an endpoint the secret that the product has been configured with."""
    endpoint, secret = store.get("webhook_endpoint", id), wish.get("secret")
    if not (isinstance(secret, str) and secret.startswith("whsec_") and len(secret) > 12):
        raise errors.invalid("A secret begins with whsec_ and goes on for a while.", param="secret")
    endpoint["_secrets"] = [secret]
    store.save(endpoint)
    return {"secret": secret}


def _resend(store: Store, faults: Faults, wish: Obj, id: str) -> Obj:
    event, endpoint = store.get("event", id), wish.get("endpoint")
    ids = [row[0] for row in store.sql("select distinct endpoint from delivery where event = ?", id).fetchall()]
    wanted = [str(endpoint)] if endpoint else ids
    for one in wanted:
        store.get("webhook_endpoint", one, param="endpoint")
        store.sql("insert into delivery (event, endpoint, at) values (?, ?, ?)", id, one, time.time())
    event["pending_webhooks"] += len(wanted)
    store.save(event)
    return {"resent_to": wanted}


def _deliveries(store: Store, faults: Faults, wish: Obj) -> Obj:
    rows = store.sql("select event, endpoint, attempts, at, status from delivery order by seq desc limit 1000").fetchall()
    return {"deliveries": [dict(zip(("event", "endpoint", "attempts", "next_at", "status"), row, strict=True)) for row in rows]}


def _cards(store: Store, faults: Faults, wish: Obj) -> Obj:
    return {number: card.says for number, card in cards.CARDS.items()}


ROUTES: dict[tuple[str, str], Callable[..., Obj]] = {
    ("GET", ""): lambda store, faults, wish: state(store, faults),
    ("GET", "cards"): _cards,
    ("POST", "clock"): _clock,
    ("POST", "fault"): _fault,
    ("DELETE", "fault"): _no_fault,
    ("POST", "settings"): _settings,
    ("GET", "deliveries"): _deliveries,
    ("POST", "disputes"): _dispute,
    ("POST", "disputes/*/close"): _close,
    ("POST", "events/*/resend"): _resend,
    ("POST", "payment_intents/*/settle"): _settle,
    ("POST", "refunds/*/fail"): _fail_refund,
    ("POST", "webhook_endpoints/*/roll"): _roll,
    ("POST", "webhook_endpoints/*/secret"): _secret,
}


def handle(store: Store, faults: Faults, method: str, path: str, body: bytes) -> Obj:
    """``path`` is what comes after ``/_control``."""
    parts = path.strip("/").split("/")
    ids = parts[1:2] if len(parts) == 3 else []
    act = ROUTES.get((method, "/".join([parts[0], "*", parts[2]]) if ids else "/".join(parts)))
    if act is None:
        raise errors.invalid(f"Unrecognized request URL ({method}: /_control/{path[:200]}).", status=404)
    try:
        wish: Any = json.loads(body or b"{}")
    except ValueError as error:
        raise errors.invalid("The body is no JSON.") from error
    if not isinstance(wish, dict):
        raise errors.invalid("The body is no JSON object.")
    if act is _clock:  # its own transactions, one for each thing that is due
        return _clock(store, faults, wish)
    with store.transaction():
        return act(store, faults, wish, *ids)
