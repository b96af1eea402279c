"""Deliveries over HTTP to the real web server: genuine ones while things happen at Stripe, and a flood of what must change nothing.

Customers live the lives of :mod:`tests.webhooks.lives`; a living customer's events are delivered, some of them often, some under another id
or version. Of a *silent* customer, who lives as the others do, no genuine event ever comes: all that is forged, stale, of the future, of
the other mode, cut or too large is about it, so that whatever of this were believed would show. A *stranger* has a customer at Stripe that
is no account of ours. Workers are killed (``kill -9``) and replaced all the while.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from django.conf import settings
from django.utils import timezone

from billing import audit, stripe_api, stripe_inbox, tasks
from billing.models import Grant, StripeEvent, StripePayment, StripeSubscription, Subscription
from billing.tests.stripe_stub import new, signature
from stripe_double.tests.conftest import Client
from tests.webhooks import lives, worker
from tests.webhooks.lives import LIVES, Person, Shop

Event = dict[str, Any]
#: Where events are sent to, and the secret that signs them there; the last one has a secret of its own.
ENDPOINTS = {
    "/api/v1/billing/webhook": "whsec_test_main",
    "/api/auth/stripe/webhook": "whsec_test_main",
    "/api/v1/playground/webhooks/stripe/credits": "whsec_test_playground",
}
MAIN, OTHER = "/api/v1/billing/webhook", "/api/v1/playground/webhooks/stripe/credits"
CLIENTS = 6
WORKERS = 3
WEB_THREADS = 8
#: So many deliveries come for each customer that lives.
A_CUSTOMER = 400
LEAST_CUSTOMERS = 10
KILL_EVERY_SECONDS = 1
WAIT_SECONDS = 60
HUGE_BYTES = 5_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """``sent`` is what is written to the wire of a body that says it is ``length`` long."""

    kind: str
    path: str
    header: str | None
    sent: bytes
    length: int


@dataclass
class Pool:
    """What can be delivered by now."""

    fresh: list[Event] = field(default_factory=list)
    delivered: list[Event] = field(default_factory=list)
    silent: list[Event] = field(default_factory=list)
    strange: list[Event] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def run(*, deliveries: int, seed: int, folder: Path) -> dict[str, Any]:
    """Everything, in the connection's database; the figures, ``wrong`` among them."""
    with stripe(folder) as client, web(folder) as port:
        settings.STRIPE_API_HOST = client.address
        stripe_api.client.cache_clear()
        shop = lives.open_shop(client)
        names = list(LIVES)
        count = max(LEAST_CUSTOMERS, deliveries // A_CUSTOMER)
        people = [lives.move_in(client, shop, names[number % len(names)]) for number in range(count)]
        silent = [lives.move_in(client, shop, life) for life in names]
        strangers = [Person(0, client.customer().id, life) for life in names]
        pool = Pool()
        pool.silent = live(client, shop, silent, Pool())
        pool.strange = live(client, shop, strangers, Pool())
        flood = _Flood(deliveries, seed, pool, port)
        with killed_workers(Random(seed), client.address) as kills:
            flood.run(lambda: live(client, shop, people, pool))
            wait_for_workers()
        work_what_is_left()
        tasks.work_stripe_inbox.app.control.purge()
        wrong = flood.wrong() + lives.wrong(people) + heard_of(silent) + inbox(flood)
        wrong += [str(finding) for finding in audit.run()]
    figures = {"deliveries": sum(flood.sent.values()), "customers": count, "kills": kills["kills"], "server_errors": flood.server_errors}
    return figures | {"kinds": dict(sorted(flood.sent.items())), "wrong": wrong}


# What happens at Stripe ---------------------------------------------------------------------------------------------------------


def live(client: Client, shop: Shop, people: list[Person], pool: Pool) -> list[Event]:
    """They live their lives, five at a time, and what is announced is ready to be delivered. All of it."""
    announced: list[Event] = []
    last = client.v1.events.list({"limit": 1}).data[0].id
    for first in range(0, len(people), len(LIVES)):
        living = [LIVES[person.life][0](client, shop, person) for person in people[first : first + len(LIVES)]]
        while living:
            living = [life for life in living if next(life, life) is not life]
            while more := client.raw("GET", f"/v1/events?limit=100&ending_before={last}")[1]["data"]:
                last = more[0]["id"]
                announced += more[::-1]
                with pool.lock:
                    pool.fresh += more
    return announced


# Deliveries ---------------------------------------------------------------------------------------------------------------------


class _Flood:
    """``sent`` counts deliveries by kind; ``answers`` by kind and status, 0 where the wire was cut before an answer."""

    def __init__(self, deliveries: int, seed: int, pool: Pool, port: int) -> None:
        self.deliveries, self.pool, self.port = deliveries, pool, port
        self.dice = Random(seed)
        self.sent: Counter[str] = Counter()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.bad_ids: set[str] = set()
        self.living = True
        self.lock = threading.Lock()

    def run(self, happen: Callable[[], object]) -> None:
        clients = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for each in clients:
            each.start()
        try:
            happen()
        finally:
            self.living = False
            for each in clients:
                each.join()

    @property
    def server_errors(self) -> int:
        return sum(count for (_, status), count in self.answers.items() if status >= 500)

    def wrong(self) -> list[str]:
        """Answers that were not as they should be."""
        found = [
            f"{count} × {kind} was answered with {status}" for (kind, status), count in self.answers.items() if not _good(kind, status)
        ]
        return found + [f"no {kind} was sent" for kind in KINDS if not self.sent[kind]]

    def _client(self) -> None:
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        while (delivery := self._next()) is not None:
            status = _post(wire, delivery)
            with self.lock:
                self.answers[delivery.kind, status] += 1
        wire.close()

    def _next(self) -> Delivery | None:
        """The next delivery, by the dice; None when all that has to be is delivered."""
        with self.lock, self.pool.lock:
            enough = sum(self.sent.values()) >= self.deliveries
            if enough and not self.living and not self.pool.fresh:
                return None
            if self.pool.fresh and (enough or self.dice.random() < 0.3):
                kind = "genuine"
            else:
                kind = self.dice.choices(list(KINDS), list(KINDS.values()))[0]
            self.sent[kind] += 1
            return self._make(kind)

    def _make(self, kind: str) -> Delivery:
        dice, pool = self.dice, self.pool
        if kind == "genuine" or (kind in REPEATS and not pool.delivered):
            event = pool.fresh.pop(dice.randrange(len(pool.fresh))) if pool.fresh else dice.choice(pool.strange)
            pool.delivered.append(event)
            return _signed(kind, event, dice.choice([MAIN, "/api/auth/stripe/webhook"]))
        if kind in REPEATS:
            event = dice.choice(pool.delivered)
            changes = {
                "duplicate": {},
                "other_id": {"id": new("evt")},
                "other_version": {"id": new("evt"), "api_version": "2099-01-01.zinnia"},
            }
            return _signed(kind, event | changes[kind], dice.choice(list(ENDPOINTS)))
        if kind == "not_ours":
            return _signed(kind, dice.choice(pool.strange) | {"id": new("evt")}, MAIN)
        event = dice.choice(pool.silent) | {"id": new("evt")}
        if kind == "other_mode":
            return _signed(kind, event | {"livemode": True}, MAIN)
        if kind == "unknown_type":
            return _signed(kind, event | {"type": "moon.landed"}, MAIN)
        if kind == "not_at_stripe":
            return _signed(kind, event | {"type": "payment_intent.succeeded", "data": {"object": {"id": new("pi")}}}, MAIN)
        if kind == "nonsense":
            return _signed(kind, {"id": event["id"], "type": event["type"], "data": None, "padding": dice.random()}, MAIN)
        self.bad_ids.add(event["id"])
        return _bad(kind, event, dice)


#: How often each kind comes while nothing genuine is at hand.
KINDS = {
    "genuine": 0,
    "duplicate": 30,
    "other_id": 3,
    "other_version": 2,
    "not_ours": 2,
    "not_at_stripe": 2,
    "other_mode": 6,
    "unknown_type": 4,
    "nonsense": 2,
    "unsigned": 6,
    "other_secret": 8,
    "altered": 8,
    "stale": 8,
    "future": 8,
    "cut_short": 5,
    "cut_off": 2,
    "huge": 0.5,
}
#: Of events that were delivered before.
REPEATS = ("duplicate", "other_id", "other_version")
TAKEN = ("genuine", *REPEATS, "not_ours", "not_at_stripe", "other_mode", "unknown_type", "nonsense")
#: Nobody waits for their answer, or it may come before all of them was sent.
UNHEARD = ("cut_off", "huge")


def _good(kind: str, status: int) -> bool:
    return status == 200 if kind in TAKEN else status == 400 or (kind in UNHEARD and status == 0)


def _signed(kind: str, event: Event, path: str) -> Delivery:
    body = json.dumps(event)
    return Delivery(kind, path, signature(body, secret=ENDPOINTS[path]), body.encode(), len(body.encode()))


def _bad(kind: str, event: Event, dice: Random) -> Delivery:
    """What the receiver must refuse, each in several shapes."""
    body = json.dumps(event)
    header: str | None = signature(body)
    sent = body.encode()
    if kind == "unsigned":
        header = dice.choice([None, "", "t=1,v1=", f"t={int(time.time())}", f"t={int(time.time())},v1={'0' * 64}"])
    elif kind == "other_secret":
        header = signature(body, secret=dice.choice(["", "whsec_guess", ENDPOINTS[OTHER]]))
    elif kind == "altered":
        place = dice.randrange(len(sent))
        sent = sent[:place] + bytes([sent[place] ^ 1]) + sent[place + 1 :]
    elif kind in {"stale", "future"}:
        away = dice.choice([310, 3_600, 10 * 86_400])
        header = signature(body, at=time.time() + (away if kind == "future" else -away))
    elif kind == "cut_short":
        sent = sent[: dice.randrange(len(sent))]
    elif kind == "cut_off":
        return Delivery(kind, MAIN, header, sent[: dice.randrange(len(sent))], len(sent))
    elif kind == "huge":
        sent = json.dumps(event | {"padding": "x" * HUGE_BYTES}).encode()
        header = signature(sent.decode())
    return Delivery(kind, MAIN, header, sent, len(sent))


def _post(wire: http.client.HTTPConnection, delivery: Delivery) -> int:
    """The status of the answer, 0 where the wire was cut before it."""
    try:
        wire.putrequest("POST", delivery.path)
        wire.putheader("Content-Type", "application/json; charset=utf-8")
        wire.putheader("Content-Length", str(delivery.length))
        if delivery.header is not None:
            wire.putheader("Stripe-Signature", delivery.header)
        wire.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was answered before all of it was sent
            wire.send(delivery.sent)
        if delivery.length > len(delivery.sent):
            wire.close()
            return 0
        answer = wire.getresponse()
        answer.read()
        if delivery.kind in UNHEARD:
            wire.close()
        return answer.status
    except (OSError, http.client.HTTPException):
        wire.close()
        return 0


# What is left -------------------------------------------------------------------------------------------------------------------


def wait_for_workers() -> None:
    """Until nothing is due any more."""
    while StripeEvent.objects.filter(state=StripeEvent.State.PENDING, next_attempt_at__lte=timezone.now()).exists():
        time.sleep(0.1)


def work_what_is_left() -> None:
    """Works the inbox until it is empty: what killed workers had claimed, and what failed and is to be tried again later."""
    now = timezone.now()
    while StripeEvent.objects.filter(state=StripeEvent.State.PENDING).exists():
        now += timedelta(hours=1)
        while stripe_inbox.work_next(now=now) is not None:
            pass


def heard_of(silent: list[Person]) -> list[str]:
    """Every trace of those of whom nothing genuine was ever delivered."""
    accounts = [person.account_id for person in silent]
    found: list[str] = []
    for rows in (
        Grant.objects.defer("expires_at").filter(account__in=accounts),
        StripePayment.objects.filter(account__in=accounts),
        StripeSubscription.objects.filter(account__in=accounts),
        Subscription.objects.filter(account__in=accounts).exclude(stripe=None),
    ):
        found += [f"{row} of a silent customer" for row in rows]
    return found


def inbox(flood: _Flood) -> list[str]:
    """What the inbox has that it should not have, or has not that it should."""
    states = dict(StripeEvent.objects.values_list("event_id", "state"))
    taken = flood.bad_ids & set(states)
    lost = {event["id"] for event in flood.pool.delivered} - set(states)
    failed = [event_id for event_id, state in states.items() if state in {"pending", "dead"}]
    unread = StripeEvent.objects.filter(event_id__startswith="unreadable_").count()
    wrong = [f"{name}: {sorted(ids)[:3]}" for name, ids in (("taken", taken), ("lost", lost), ("failed", failed)) if ids]
    if unread != flood.sent["nonsense"]:
        wrong.append(f"{flood.sent['nonsense']} signed events that nobody understands were sent, {unread} are kept")
    if other := StripeEvent.objects.filter(livemode=True).exclude(state="ignored").count():
        wrong.append(f"{other} events of the other mode were not ignored")
    return wrong


# Processes ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def killed_workers(dice: Random, stripe_host: str) -> Iterator[Counter[str]]:
    """Workers at work, one of whom is killed every now and then and replaced. Counts the kills."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__])
    done: Counter[str] = Counter()
    over = threading.Event()

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=worker.run, args=(stripe_host,), daemon=True)
        process.start()
        return process

    workers = [start() for _ in range(WORKERS)]

    def strike() -> None:
        while not over.wait(dice.uniform(0.5, 1.5) * KILL_EVERY_SECONDS):
            number = dice.randrange(WORKERS)
            workers[number].kill()
            workers[number].join()
            workers[number] = start()
            done["kills"] += 1

    nemesis = threading.Thread(target=strike)
    nemesis.start()
    try:
        yield done
    finally:
        over.set()
        nemesis.join()
        for each in workers:
            each.kill()
            each.join()


@contextmanager
def stripe(folder: Path) -> Iterator[Client]:
    """A double in a process of its own."""
    command = [sys.executable, "-m", "stripe_double", "--port", "0", "--data", str(folder / "flood.sqlite3")]
    with open(folder / "stripe.log", "wb") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        assert process.stdout is not None
        try:
            yield Client(process.stdout.readline().split()[3])
        finally:
            process.terminate()


@contextmanager
def web(folder: Path) -> Iterator[int]:
    """The web server as in production, on the connection's database. Its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--blocking-threads", str(WEB_THREADS), "--no-ws", "--log-level", "warning", "config.wsgi:application"]
    with open(folder / "web.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
