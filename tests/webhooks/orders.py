"""The same events in many orders, each delivered one to four times and worked by workers that die: all orders have one end.

The history is made once on the double, and every moment of it is kept. An order then gets a copy of the database as it was before, is told
the events through the receiver, and works the inbox in between; what it reads is the double at that moment of the order:

* *afterwards*: everything has happened at Stripe already, so the digest has every ledger entry in it;
* *meanwhile*: things go on happening between the deliveries, objects are read half-way, and the digest has what is left in the end.

A worker may die after its claim, after its reads, or after all of its work and before the commit. Its event is worked by another one
when the lease has ended.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import psycopg
from django.conf import settings
from django.db import connection
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import Client as Http
from django.utils import timezone
from psycopg import sql

from accounts import doorbell
from billing import audit, stripe_api, stripe_inbox
from billing.models import StripeEvent
from billing.tests.stripe_stub import new, signature
from config import roles
from stripe_double.tests.conftest import Client
from tests.webhooks import lives
from tests.webhooks.digest import END, WHOLE, digest
from tests.webhooks.lives import LIVES, Person
from tests.webhooks.stripe_at import Moments, double_at, events

ENDPOINTS = ("/api/v1/billing/webhook", "/api/auth/stripe/webhook")
#: How often a worker dies, at each of the three places.
DEATH = 0.04
#: How often a repeated delivery comes as an event of its own, with another id.
OTHER_ID = 0.3


@dataclass(frozen=True)
class Told:
    """An event as Stripe made it, at the moment after which it may be delivered."""

    moment: int
    event: dict[str, Any]


@dataclass(frozen=True)
class History:
    people: list[Person]
    told: list[Told]
    moments: Moments
    last: int

    @property
    def accounts(self) -> list[int]:
        return [person.account_id for person in self.people]


@dataclass
class Outcome:
    digest: str
    deliveries: int
    worked: int
    deaths: Counter[str]
    wrong: list[str]


def make(folder: Path) -> History:
    """Five customers live their lives in turns on a double, and every event that means something here is kept with its moment."""
    moments, told, seen = Moments(folder), [], 0
    with double_at(folder / "double.sqlite3") as double:
        client = Client(double.address)
        shop = lives.open_shop(client)
        people = [lives.move_in(client, shop, life) for life in LIVES]
        moments.keep(double)
        living = [LIVES[person.life][0](client, shop, person) for person in people]
        moment = 0
        while living:
            for life in list(living):
                if next(life, life) is life:
                    living.remove(life)
                    continue
                moment += 1
                moments.keep(double)
                announced = events(double)
                told += [Told(moment, event) for event in announced[seen:] if event["type"] in stripe_inbox._READERS]
                seen = len(announced)
    return History(people, told, moments, moment)


class Killed(BaseException):
    """The worker's process is gone. Not an error: nothing in the worker hears of it."""


class Fate:
    """Kills workers, by the dice. While it is in charge, ``deaths`` counts them by where they died."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.deaths: Counter[str] = Counter()

    def strike(self, where: str) -> None:
        if self.dice.random() < DEATH:
            self.deaths[where] += 1
            raise Killed(where)

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        number, read, finish = stripe_inbox._read_number, stripe_inbox._read, stripe_inbox._finish

        def after_the_claim() -> int:
            self.strike("after its claim")
            return number()

        def after_the_read(event: StripeEvent) -> stripe_inbox.Effect:
            effect = read(event)
            self.strike("after its reads")
            return effect

        def before_the_commit(event: StripeEvent, state: StripeEvent.State, reason: str, now: datetime) -> None:
            finish(event, state, reason, now)
            self.strike("before its commit")

        stripe_inbox._read_number, stripe_inbox._read, stripe_inbox._finish = after_the_claim, after_the_read, before_the_commit
        try:
            yield
        finally:
            stripe_inbox._read_number, stripe_inbox._read, stripe_inbox._finish = number, read, finish


def run(history: History, *, seed: int, meanwhile: bool) -> Outcome:
    """One order, in the database that the connection has now."""
    order = _Order(history, Random(seed), meanwhile=meanwhile)
    with order.fate.in_charge():
        order.run()
    left = StripeEvent.objects.exclude(state=StripeEvent.State.DONE)
    wrong = [f"{event} is {event.state}: {event.last_error}" for event in left]
    wrong += lives.wrong(history.people) + [str(finding) for finding in audit.run()]
    return Outcome(digest(history.accounts, END if meanwhile else WHOLE), order.deliveries, order.worked, order.fate.deaths, wrong)


class _Order:
    def __init__(self, history: History, dice: Random, *, meanwhile: bool) -> None:
        self.history, self.dice, self.fate = history, dice, Fate(dice)
        self.now = timezone.now()
        self.http = Http()
        self.deliveries = self.worked = 0
        self.waiting: list[dict[str, Any]] = []
        self.moment = 0
        self.reach(0 if meanwhile else history.last)

    def run(self) -> None:
        while self.waiting or self.moment < self.history.last:
            happens = self.dice.random()
            if happens < 0.3 and self.moment < self.history.last:
                self.reach(self.moment + 1)
            elif happens < 0.7 and self.waiting:
                self.deliver(self.waiting.pop(self.dice.randrange(len(self.waiting))))
            else:
                self.work()
        done = list(StripeEvent.objects.values_list("event_id", flat=True).order_by("event_id"))
        stripe_inbox.work_again(event_ids=self.dice.sample(done, 5), now=self.now)  # as staff may
        while StripeEvent.objects.filter(state=StripeEvent.State.PENDING).exists():
            self.work()

    def reach(self, moment: int) -> None:
        """All until then has happened at Stripe; what it announced waits to be delivered, one to four times."""
        for told in self.history.told:
            if self.moment < told.moment <= moment:
                copies = [told.event] * self.dice.randint(1, 4)
                self.waiting += [event if self.dice.random() > OTHER_ID else event | {"id": new("evt")} for event in copies]
        self.moment = self.history.moments.at = moment

    def deliver(self, event: dict[str, Any]) -> None:
        body = json.dumps(event)
        answer = self.http.post(
            self.dice.choice(ENDPOINTS), body, content_type="application/json", headers={"Stripe-Signature": signature(body)}
        )
        assert answer.status_code == 200, answer.content
        self.deliveries += 1

    def work(self) -> None:
        """Works one event, or dies of it; where there is none, time goes by until a dead worker's lease has ended."""
        self.now += timedelta(seconds=1)
        try:
            if stripe_inbox.work_next(now=self.now) is None:
                self.now += stripe_inbox.LEASE
            else:
                self.worked += 1
        except Killed:
            connection.close()


# A database for each order ------------------------------------------------------------------------------------------------------


@contextmanager
def copied(name: str) -> Iterator[None]:
    """The connection has a copy of its database, which is gone afterwards."""
    origin = str(connection.settings_dict["NAME"])
    copy, template = sql.Identifier(name), sql.Identifier(origin)
    _leave()
    with psycopg.connect(_server(), autocommit=True) as server:
        # The owner may make its database a template and drop its copies; only who logs in may create one.
        owner = _owner(server)
        as_owner = sql.SQL("set role {}").format(sql.Identifier(owner)) if owner else sql.SQL("reset role")
        belongs = sql.SQL("owner {}").format(sql.Identifier(owner)) if owner else sql.SQL("")
        server.execute(as_owner)
        server.execute(sql.SQL("alter database {} is_template true").format(template))
        server.execute("reset role")
        server.execute(sql.SQL("create database {} {} template {}").format(copy, belongs, template))
        server.execute(as_owner)
        connection.settings_dict["NAME"] = name
        try:
            yield
        finally:
            _leave()
            connection.settings_dict["NAME"] = origin
            server.execute(sql.SQL("drop database {}").format(copy))
            server.execute(sql.SQL("alter database {} is_template false").format(template))


def _leave() -> None:
    connection.close()
    cast(DatabaseWrapper, connection).close_pool()


def _server() -> str:
    url: str = settings.DATABASE_URL
    return urlunsplit(urlsplit(url)._replace(path="/postgres"))


def _owner(server: psycopg.Connection) -> str | None:
    found = server.execute("select 1 from pg_roles where rolname = %s and pg_has_role(session_user, oid, 'SET')", [roles.OWNER]).fetchone()
    return roles.OWNER if found else None


def deaf() -> None:
    """Nobody is rung: the orders are their own workers."""
    doorbell.ring = lambda task, *arguments: None
    stripe_api.client.cache_clear()
