"""Drives a workload through the API, as a client app would: authorize, then capture; or release, for a call that failed.

    run      drives the rows, and says what the answers were; all it knows comes over the network
    booked   what the database has of a run, to hold against that

Every idempotency key is made of the run's id and the row's number. A run that broke off is finished by running it again, and a run
that was finished changes nothing the second time.
"""

from __future__ import annotations

import json
import math
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias

import urllib3
from django.db.models import Count, Sum

from billing.models import LedgerEntry
from metering.models import UsageRecord
from metering.traces import Row

#: Tries of one request whose answer did not arrive, or said that the server is not there now: about half a minute in all.
TRIES: Final = 12
LONGEST_PAUSE_SECONDS: Final = 5.0
TIMEOUT_SECONDS: Final = 30
MAX_EXAMPLES: Final = 10
_NOT_NOW: Final = frozenset({502, 503, 504})
#: The product said no to this call, for a reason; any other answer than these and 200 is a fault of the run or of the server.
_REFUSALS: Final = frozenset({402, 403, 413, 422, 429})


#: Microseconds, eight bytes each: a trace has millions of rows.
Micros: TypeAlias = "array[int]"  # Python 3.11 cannot subscript it at run time


class Unreachable(Exception):
    """The server did not answer, however often it was asked. The run stops; the same run id continues it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the calls go, with which product key, and for whom: row n is account n modulo their number's."""

    url: str
    key: str
    model: str
    accounts: Sequence[str]
    run_id: str


@dataclass(slots=True)
class Tally:
    """What happened. ``charged_nanos`` is the sum of the captures' answers; the latencies are those of answered requests, in µs."""

    rows: int = 0
    captured: int = 0
    released: int = 0
    replayed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    charged_nanos: int = 0
    requests: int = 0
    retries: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    authorize_micros: Micros = field(default_factory=lambda: array("q"))
    capture_micros: Micros = field(default_factory=lambda: array("q"))

    def add(self, other: Tally) -> None:
        self.rows += other.rows
        self.captured += other.captured
        self.released += other.released
        self.replayed += other.replayed
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.charged_nanos += other.charged_nanos
        self.requests += other.requests
        self.retries += other.retries
        self.refused += other.refused
        self.failed += other.failed
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]
        self.authorize_micros += other.authorize_micros
        self.capture_micros += other.capture_micros


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: dict[str, Any]
    replayed: bool
    micros: int


class _Fault(Exception):
    """An answer that no client app could go on with."""


def run(
    rows: Iterable[tuple[int, Row]],
    *,
    target: Target,
    concurrency: int,
    on_progress: Callable[[int], None] = lambda done: None,
    progress_seconds: float = 0.2,
) -> Tally:
    """Drives each (number, row), ``concurrency`` at a time, each in its order of arrival; ``on_progress`` hears how many are done.

    A row that is refused or fails is counted and the rest go on.

    :raises Unreachable: a request was not answered in ``TRIES`` tries. Rows that had begun may be half done.
    """
    source = _Shared(rows)
    pool = urllib3.PoolManager(num_pools=1, maxsize=concurrency, block=True, retries=False, timeout=urllib3.Timeout(TIMEOUT_SECONDS))
    with pool, ThreadPoolExecutor(concurrency, thread_name_prefix="replay") as executor:
        workers = [_Worker(target, source, pool) for _ in range(concurrency)]
        running = [executor.submit(worker.work) for worker in workers]
        try:
            pending = set(running)
            while pending:
                done, pending = wait(pending, timeout=progress_seconds, return_when=FIRST_EXCEPTION)
                on_progress(sum(worker.tally.rows for worker in workers))
                for future in done:
                    future.result()
        finally:
            source.close()
    total = Tally()
    for worker in workers:
        total.add(worker.tally)
    return total


@dataclass(frozen=True, slots=True)
class Booked:
    """The captured usage records of a run: their number and sums, and the sum of their ledger entries (what was burnt and what is owed)."""

    records: int
    cost_nanos: int
    price_nanos: int
    value_nanos: int
    entries_nanos: int


def booked(*, account_ids: Sequence[int], run_id: str) -> Booked:
    """What the database has of the run in these accounts. Prices and entries are nanos of the wallet's unit, costs and values nano-USD."""
    records = UsageRecord.objects.filter(account_id__in=account_ids, run_ref=run_id, outcome=UsageRecord.Outcome.CAPTURED).order_by()
    sums = records.aggregate(
        records=Count("id"), cost=Sum("cost_nanos", default=0), price=Sum("price_nanos", default=0), value=Sum("value_nanos", default=0)
    )
    movements = LedgerEntry.objects.filter(
        account_id__in=account_ids, usage_id__in=records.values("id"), kind__in=(LedgerEntry.Kind.USAGE, LedgerEntry.Kind.DEBT)
    ).aggregate(amount=Sum("amount", default=0), debt=Sum("debt_delta", default=0))
    # PostgreSQL's sums of bigint are numeric: exact, but not int.
    cost, price, value = int(sums["cost"]), int(sums["price"]), int(sums["value"])
    return Booked(sums["records"], cost, price, value, int(movements["debt"]) - int(movements["amount"]))


def percentile(micros: Micros, percent: int) -> int:
    """The nearest-rank percentile; 0 where nothing was measured."""
    ordered = sorted(micros)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else 0


class _Shared:
    """An iterator that several threads may draw from; once closed it has no more."""

    def __init__(self, rows: Iterable[tuple[int, Row]]) -> None:
        self._rows = iter(rows)
        self._lock = threading.Lock()
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        return self

    def __next__(self) -> tuple[int, Row]:
        with self._lock:
            if self.closed.is_set():
                raise StopIteration
            return next(self._rows)

    def close(self) -> None:
        self.closed.set()


class _Worker:
    """One client: its rows one after the other, over a connection that is kept."""

    def __init__(self, target: Target, source: _Shared, pool: urllib3.PoolManager) -> None:
        self.tally = Tally()
        self._target = target
        self._source = source
        self._pool = pool
        self._headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}

    def work(self) -> None:
        for number, row in self._source:
            try:
                self._drive(number, row)
            except _Fault as fault:
                self.tally.failed[str(fault)] += 1
                if len(self.tally.examples) < MAX_EXAMPLES:
                    self.tally.examples.append(f"row {number}: {fault}")
            self.tally.rows += 1

    def _drive(self, number: int, row: Row) -> None:
        target, tally = self._target, self.tally
        command: dict[str, Any] = {
            "account": target.accounts[number % len(target.accounts)],
            "model": target.model,
            "run": target.run_id,
            "estimate": {"input_tokens": row.input_tokens, "max_output_tokens": _ceiling(row.output_tokens)},
        }
        if row.kind:
            command["feature"] = row.kind
        authorized = self._post("authorize", command, key=f"replay:{target.run_id}:{number}")
        tally.authorize_micros.append(authorized.micros)
        if authorized.status != 200:
            self._refused(authorized, "authorize")
            return
        path = f"authorizations/{authorized.body.get('id')}"
        if not row.output_tokens:
            released = self._post(f"{path}/release", {})
            if released.status == 200:
                tally.released += 1
                tally.replayed += released.replayed
            else:
                self._refused(released, "release")
            return
        captured = self._post(f"{path}/capture", {"quantities": {"input_tokens": row.input_tokens, "output_tokens": row.output_tokens}})
        tally.capture_micros.append(captured.micros)
        if captured.status != 200:
            self._refused(captured, "capture")
            return
        tally.charged_nanos += _nanos(captured.body.get("charged"))
        tally.captured += 1
        tally.replayed += captured.replayed
        tally.input_tokens += row.input_tokens
        tally.output_tokens += row.output_tokens

    def _refused(self, answer: _Answer, verb: str) -> None:
        code = answer.body.get("code")
        if answer.status not in _REFUSALS or not isinstance(code, str):
            raise _Fault(f"{verb} was answered {answer.status} {code or ''}".rstrip())
        self.tally.refused[code if verb == "authorize" else f"{verb}: {code}"] += 1

    def _post(self, path: str, command: dict[str, Any], key: str | None = None) -> _Answer:
        """The answer of the server, asked again (the same key, so at most one effect) while none arrives.

        :raises Unreachable: none arrived.
        """
        url = f"{self._target.url}/api/v1/usage/{path}"
        headers = self._headers | ({"Idempotency-Key": key} if key else {})
        body = json.dumps(command).encode()
        problem: object = None
        for attempt in range(TRIES):
            if attempt:
                self.tally.retries += 1
                if self._source.closed.wait(min(0.05 * 2**attempt, LONGEST_PAUSE_SECONDS)):
                    break
            self.tally.requests += 1
            start = time.perf_counter_ns()
            try:
                response = self._pool.request("POST", url, body=body, headers=headers)
            except urllib3.exceptions.HTTPError as error:
                problem = error
                continue
            if response.status in _NOT_NOW:
                problem = response.status
                continue
            micros = (time.perf_counter_ns() - start) // 1000
            return _Answer(response.status, _parsed(response), response.headers.get("Idempotency-Replayed") == "true", micros)
        raise Unreachable(f"{url} does not answer: {problem}")


def _ceiling(tokens: int) -> int:
    """What a client app would have allowed the model at most, not knowing the answer: 1,024 tokens, or four times that, and so on."""
    ceiling = 1_024
    while ceiling < tokens:
        ceiling *= 4
    return ceiling


def _parsed(response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    try:
        body = json.loads(response.data)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        if response.status == 200:
            raise _Fault("an answer 200 is no JSON object")
        return {}
    return body


def _nanos(amount: object) -> int:
    """An exact decimal string in nanos."""
    try:
        nanos = Decimal(amount).scaleb(9) if isinstance(amount, str) else Decimal("NaN")
    except InvalidOperation:
        nanos = Decimal("NaN")
    if not nanos.is_finite() or nanos != int(nanos):
        raise _Fault(f"charged is {amount!r}; expected an exact amount")
    return int(nanos)
