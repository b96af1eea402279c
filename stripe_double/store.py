"""Everything the double knows, in one SQLite file: objects, events, what is due when, deliveries, idempotency keys, its clock.

One lock, one transaction a request: a request that fails leaves nothing. Objects are dictionaries in the API's shape; keys that begin
with an underscore are the double's own and never leave it. Within a transaction an object is one dictionary, however often it is read.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stripe_double import API_VERSION, errors

Obj = dict[str, Any]

SCHEMA = """
create table if not exists object (seq integer primary key, id text not null, kind text not null, body text not null, unique (kind, id));
create index if not exists object_id on object (id);
create index if not exists object_kind on object (kind, seq);
create index if not exists object_customer on object (kind, json_extract(body, '$.customer'), seq);
create index if not exists object_invoice on object (kind, json_extract(body, '$.invoice'), seq);
create table if not exists due (seq integer primary key, at integer not null, action text not null, id text not null);
create index if not exists due_at on due (at, seq);
create table if not exists delivery (
    seq integer primary key, event text not null, endpoint text not null, attempts integer not null default 0, at real, status integer
);
create index if not exists delivery_at on delivery (at) where at is not null;
create table if not exists idempotency (key text primary key, fingerprint text not null, at integer not null, status integer, body text);
create table if not exists setting (name text primary key, value text not null);
"""

NOBODY: Obj = {"id": None, "idempotency_key": None}

SETTINGS: dict[str, Any] = {
    "clock_offset": 0,  # seconds that the double's clock is ahead of the machine's
    "settlement_seconds": 20,  # how long a bank debit is processing
    "finalize_seconds": 3600,  # how long the invoice of a renewal stays a draft
    "retry_days": [3, 5, 7],  # pauses between attempts to collect an invoice
    "retry_end": "canceled",  # the subscription's state after the last one: canceled, unpaid or past_due
    "webhook_retry_seconds": 5,  # the first pause between deliveries; each is twice the one before, an hour at most
    "webhook_attempts": 16,
    "webhooks_paused": False,
    "invoice_number": 0,
}


class Store:
    def __init__(self, path: Path | str, address: str = ""):
        self.address = address  # of the hosted pages
        self.lock = threading.RLock()
        self.request = NOBODY
        self._at: int | None = None
        self._objects: dict[tuple[str, str], Obj] = {}
        self._sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        self._sql.executescript("pragma journal_mode = wal; pragma synchronous = normal;" + SCHEMA)

    def close(self) -> None:
        with self.lock:
            self._sql.close()

    # Transactions and the clock

    @contextmanager
    def transaction(self, *, at: int | None = None, request: Obj | None = None) -> Iterator[None]:
        """All or nothing, except that an error which ``keeps`` keeps. ``at`` is what the clock says inside, ``request`` what its events
        say about their cause."""
        with self.lock:
            self._at = at
            self.request = request or NOBODY
            self._sql.execute("begin immediate")
            try:
                yield
                self._sql.execute("commit")
            except BaseException as error:
                self._sql.execute("commit" if isinstance(error, errors.StripeError) and error.keeps else "rollback")
                raise
            finally:
                self._objects.clear()
                self._at = None

    @contextmanager
    def pretend(self) -> Iterator[None]:
        """Inside a transaction: whatever happens in here has not happened afterwards."""
        self._sql.execute("savepoint pretend")
        try:
            yield
        finally:
            self._sql.execute("rollback to pretend")
            self._sql.execute("release pretend")
            self._objects.clear()

    def now(self) -> int:
        """The double's time in seconds since 1970."""
        with self.lock:
            return self._at if self._at is not None else int(time.time()) + int(self.setting("clock_offset"))

    def setting(self, name: str) -> Any:
        row = self.sql("select value from setting where name = ?", name).fetchone()
        return json.loads(row[0]) if row else SETTINGS[name]

    def set(self, name: str, value: Any) -> None:
        self.sql("insert into setting values (?, ?) on conflict (name) do update set value = excluded.value", name, json.dumps(value))

    def sql(self, query: str, *values: Any) -> sqlite3.Cursor:
        with self.lock:
            return self._sql.execute(query, values)

    # Objects

    def new(self, kind: str, prefix: str, **fields: Any) -> Obj:
        """The beginning of an object, not yet added."""
        return {"id": f"{prefix}_{secrets.token_hex(12)}", "object": kind, "created": self.now(), "livemode": False} | fields

    def add(self, obj: Obj, *events: str) -> Obj:
        kind, id = obj["object"], obj["id"]
        if self.sql("select 1 from object where kind = ? and id = ?", kind, id).fetchone():
            raise errors.invalid(f"{kind.capitalize()} already exists: {id}", param="id", code="resource_already_exists")
        self.sql("insert into object (id, kind, body) values (?, ?, ?)", id, kind, json.dumps(obj))
        self._objects[kind, id] = obj
        for event in events:
            self.emit(event, obj)
        return obj

    def save(self, obj: Obj, *events: str) -> Obj:
        """Write ``obj``; the events are made only if something has changed that the world can see."""
        kind, id = obj["object"], obj["id"]
        before = json.loads(self.sql("select body from object where kind = ? and id = ?", kind, id).fetchone()[0])
        changed = _changed(public(before), public(obj))
        self.sql("update object set body = ? where kind = ? and id = ?", json.dumps(obj), kind, id)
        for event in events if changed else ():
            self.emit(event, obj, changed if event.endswith(".updated") else None)
        return obj

    def delete(self, obj: Obj, *events: str, stub: bool = True) -> Obj:
        """Take an object away. Stripe answers for it with a stub for ever, except where ``stub`` is False."""
        for event in events:
            self.emit(event, obj)
        gone = {"id": obj["id"], "object": obj["object"], "deleted": True}
        if stub:
            obj["_deleted"] = True
            self.save(obj)
        else:
            self.sql("delete from object where kind = ? and id = ?", obj["object"], obj["id"])
            self._objects.pop((obj["object"], obj["id"]), None)
        return gone

    def get(self, kind: str, id: str, *, param: str | None = "id", deleted: bool = False) -> Obj:
        """:raises StripeError: resource_missing; for a deleted object too, unless it is asked for."""
        row = self.sql("select seq, body from object where kind = ? and id = ?", kind, id).fetchone()
        if row is None:
            raise errors.missing_resource(kind, id, param=param)
        obj = self._objects.setdefault((kind, id), json.loads(row[1]))
        if obj.get("_deleted") and not deleted:
            raise errors.missing_resource(kind, id, param=param)
        return obj

    def lookup(self, id: str) -> Obj | None:
        """An object of any kind by its id, for ``expand``."""
        row = self.sql("select kind from object where id = ?", id).fetchone()
        return self.get(row[0], id, deleted=True) if row else None

    def find(self, kind: str, where: dict[str, Any] | None = None, *, tail: str = "", tail_values: tuple[Any, ...] = ()) -> list[Obj]:
        """The objects of a kind whose fields (``a.b`` for nested ones, never a client's words) have these values, newest first; deleted
        ones are left out."""
        query, values = "select id, body from object where kind = ? and json_extract(body, '$._deleted') is null", [kind]
        for path, value in (where or {}).items():
            query += f" and json_extract(body, '$.{path}') = ?"
            values.append(value)
        rows = self.sql(f"{query} {tail or 'order by seq desc'}", *values, *tail_values).fetchall()
        return [self._objects.setdefault((kind, id), json.loads(body)) for id, body in rows]

    # Events, and what is due

    def emit(self, type: str, obj: Obj, previous: Obj | None = None) -> None:
        """Put an event on record, and a delivery for each endpoint that wants it."""
        data: Obj = {"object": json.loads(json.dumps(public(obj)))} | ({"previous_attributes": previous} if previous else {})
        wanting = [
            endpoint for endpoint in self.find("webhook_endpoint", {"status": "enabled"}) if {"*", type} & set(endpoint["enabled_events"])
        ]
        event = self.new("event", "evt", api_version=API_VERSION, type=type, data=data)
        event |= {"pending_webhooks": len(wanting), "request": dict(self.request)}
        self.add(event)
        for endpoint in wanting:
            self.sql("insert into delivery (event, endpoint, at) values (?, ?, ?)", event["id"], endpoint["id"], time.time())

    def schedule(self, at: int, action: str, id: str) -> None:
        """Have ``action`` (see clock.py) done to the object when the clock reaches ``at``. It checks itself whether it still applies."""
        self.sql("insert into due (at, action, id) values (?, ?, ?)", at, action, id)

    def next_due(self, until: int) -> tuple[int, int, str, str] | None:
        """Sequence number, time, action and object of the earliest thing due."""
        row: tuple[int, int, str, str] | None = self.sql(
            "select seq, at, action, id from due where at <= ? order by at, seq limit 1", until
        ).fetchone()
        return row


def public(obj: Obj) -> Obj:
    """What the API shows of an object."""
    if obj.get("_deleted"):
        return {"id": obj["id"], "object": obj["object"], "deleted": True}
    return {name: value for name, value in obj.items() if not name.startswith("_")}


def listed(data: list[Obj], url: str, *, more: bool = False) -> Obj:
    return {"object": "list", "data": data, "has_more": more, "url": url}


def _changed(before: Obj, after: Obj) -> Obj:
    """What the fields that differ said before, as ``previous_attributes`` has it."""
    found: Obj = {}
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old != new:
            found[name] = _changed(old, new) if isinstance(old, dict) and isinstance(new, dict) else old
    return found
