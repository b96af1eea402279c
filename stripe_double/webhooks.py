"""Webhook endpoints and the thread that delivers events to them: signed, several at a time, again until they are answered with 2xx."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from stripe_double import API_VERSION, errors
from stripe_double.params import Params
from stripe_double.store import Obj, Store, public

log = logging.getLogger(__name__)
AT_ONCE = 4
TIMEOUT_SECONDS = 10
LONGEST_PAUSE_SECONDS = 3600


def create(store: Store, p: Params) -> Obj:
    """The only answer that shows the secret."""
    endpoint = store.new("webhook_endpoint", "we", url=_url(p), metadata=p.metadata(), status="enabled", application=None)
    endpoint |= {"api_version": p.text("api_version", API_VERSION, choices=(API_VERSION,)), "description": p.text("description")}
    endpoint["enabled_events"] = p.texts("enabled_events")
    if not endpoint["enabled_events"]:
        raise errors.invalid("Missing required param: enabled_events.", param="enabled_events", code="parameter_missing")
    endpoint["_secrets"] = [f"whsec_{secrets.token_hex(16)}"]
    p.known("connect")
    return store.add(endpoint) | {"secret": endpoint["_secrets"][0]}


def update(store: Store, p: Params, id: str) -> Obj:
    endpoint = store.get("webhook_endpoint", id)
    endpoint |= {"metadata": p.metadata(endpoint["metadata"]), "enabled_events": p.texts("enabled_events") or endpoint["enabled_events"]}
    p.put(endpoint, "description")
    if p.has("url"):
        endpoint["url"] = _url(p)
    if p.has("disabled"):
        endpoint["status"] = "disabled" if p.flag("disabled") else "enabled"
    return store.save(endpoint)


def delete(store: Store, p: Params, id: str) -> Obj:
    store.sql("delete from delivery where endpoint = ? and at is not null", id)
    return store.delete(store.get("webhook_endpoint", id))


def roll(store: Store, endpoint: Obj, *, keep_old: bool) -> str:
    """A new secret; deliveries carry a signature by the old one too while that is kept."""
    secret = f"whsec_{secrets.token_hex(16)}"
    endpoint["_secrets"] = [secret, *(endpoint["_secrets"][:1] if keep_old else [])]
    store.save(endpoint)
    return secret


def _url(p: Params) -> str:
    url = p.need("url")
    try:
        parts = urlsplit(url)
        known = (
            parts.scheme in {"http", "https"} and parts.hostname in {"localhost", "127.0.0.1", "::1", "testserver"} and (parts.port or 1)
        )
    except ValueError:
        known = False
    if not known:
        raise errors.invalid("The double delivers to this machine only: http://127.0.0.1:<port>/…", param="url", code="url_invalid")
    return url


def signature(body: bytes, keys: list[str], at: int) -> str:
    """The ``Stripe-Signature`` header: one v1 for each secret, over ``<time>.<body>``."""
    signed = f"{at}.".encode() + body
    return ",".join([f"t={at}", *(f"v1={hmac.new(key.encode(), signed, hashlib.sha256).hexdigest()}" for key in keys)])


class Deliverer(threading.Thread):
    """Looks for deliveries that are due; the pauses between attempts are the machine's time, not the double's."""

    def __init__(self, store: Store):
        super().__init__(name="deliverer", daemon=True)
        self._store = store
        self._stopped = threading.Event()
        self._flying: set[int] = set()

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        with ThreadPoolExecutor(AT_ONCE, "delivery") as pool:
            while not self._stopped.wait(0.02):
                for seq, event, endpoint, attempts in self._due():
                    self._flying.add(seq)
                    done = pool.submit(self._deliver, seq, event, endpoint, attempts)
                    done.add_done_callback(partial(self._landed, seq))

    def _due(self) -> list[tuple[int, str, str, int]]:
        with self._store.lock:
            room = 0 if self._store.setting("webhooks_paused") else AT_ONCE - len(self._flying)
            query = "select seq, event, endpoint, attempts from delivery where at <= ? order by at, seq limit ?"
            rows = self._store.sql(query, time.time(), room + len(self._flying)).fetchall() if room > 0 else []
            return [row for row in rows if row[0] not in self._flying][: max(0, room)]

    def _landed(self, seq: int, done: Future[None]) -> None:
        self._flying.discard(seq)
        if error := done.exception():
            log.error("Delivery %s broke", seq, exc_info=error)

    def _deliver(self, seq: int, event_id: str, endpoint_id: str, attempts: int) -> None:
        with self._store.transaction():
            endpoint = self._store.get("webhook_endpoint", endpoint_id, deleted=True)
            event = self._store.get("event", event_id)
            body = json.dumps(public(event)).encode()
        status = 0 if endpoint.get("_deleted") else _post(endpoint["url"], body, signature(body, endpoint["_secrets"], int(time.time())))
        with self._store.transaction():
            attempts += 1
            ok, last = 200 <= status < 300, attempts >= self._store.setting("webhook_attempts")
            pause = min(self._store.setting("webhook_retry_seconds") * 2 ** (attempts - 1), LONGEST_PAUSE_SECONDS)
            again = None if ok or last or endpoint.get("_deleted") else time.time() + pause
            self._store.sql("update delivery set attempts = ?, status = ?, at = ? where seq = ?", attempts, status, again, seq)
            if ok:
                event = self._store.get("event", event_id)
                event["pending_webhooks"] -= 1
                self._store.save(event)
        log.info("%s to %s: %s", event["type"], endpoint.get("url"), status or "not reached")


def _post(url: str, body: bytes, signed: str) -> int:
    """The status of the answer, 0 when there was none. A redirect is not followed."""
    parts = urlsplit(url)
    make = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = make(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        headers = {"Content-Type": "application/json; charset=utf-8", "Stripe-Signature": signed, "User-Agent": "Stripe/1.0 (double)"}
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, headers)
        answer = connection.getresponse()
        answer.read(4096)
        return answer.status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()
