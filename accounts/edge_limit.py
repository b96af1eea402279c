"""The edge rate limit: how often one API key may ask, whatever for. It protects the servers from abuse; what a plan allows is counted by
the ledger.

    check   counts a request of a key, or refuses it

A moving window of a minute, kept in Valkey and so shared by all processes: one atomic script, one round trip. A key is told by its id,
never by the address that it comes from. While Valkey does not answer, each process counts for itself, by the same limit.
"""

from __future__ import annotations

import math
import time
from collections import deque
from functools import cache
from threading import Lock, local
from typing import Any, Final, cast

import structlog
from django.conf import settings
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from prometheus_client import Counter
from redis import ConnectionError, ConnectionPool, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

WINDOW_SECONDS: Final = 60
#: How long a request waits for Valkey, and for how long nobody asks it again after it did not answer.
TIMEOUT_SECONDS: Final = 0.25
PAUSE_SECONDS: Final = 5
#: A process that counts for itself forgets all keys when it knows of more than this.
MAX_LOCAL_KEYS: Final = 4_096

log = structlog.get_logger(__name__)
REFUSED = Counter("edge_refusals", "Requests refused because their API key asks too often.")
LOCAL = Counter("edge_local_decisions", "Requests that a process counted for itself, because Valkey did not answer.")


class TooManyRequests(Exception):
    """The key asked more often than ``EDGE_REQUESTS_PER_MINUTE``. (429)"""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__("This API key asks too often. Send fewer requests, or more events in each.")
        self.retry_after_seconds = retry_after_seconds


def check(*, key_id: int) -> None:
    """Counts one request of the API key.

    :raises TooManyRequests: it made as many as are allowed in the last minute. The refused one is not counted.
    """
    limit = settings.EDGE_REQUESTS_PER_MINUTE
    shared = _shared(settings.REDIS_URL)
    free_at = shared.hit(key_id, limit)
    if free_at is None:
        LOCAL.inc()
        free_at = _local.hit(key_id, limit)
    if free_at > 0:
        REFUSED.inc()
        raise TooManyRequests(max(1, math.ceil(free_at - time.time())))


class _Shared:
    """The windows in Valkey."""

    def __init__(self, url: str) -> None:
        pool = ConnectionPool.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
        )
        prefix = f"{settings.CACHES['default']['KEY_PREFIX']}:edge"
        storage = RedisStorage(url, connection_pool=pool, key_prefix=prefix)
        self.direct = _Direct(pool)
        storage.lua_acquire_moving_window.registered_client = cast(Any, self.direct)
        self._limiter = MovingWindowRateLimiter(storage)
        self._paused_until = 0.0

    def hit(self, key_id: int, limit: int) -> float | None:
        """0 where the request is counted, else when (Unix time) the next one will be. None: Valkey does not answer."""
        if time.monotonic() < self._paused_until:
            return None
        item = RateLimitItemPerMinute(limit)
        try:
            if self._limiter.hit(item, str(key_id)):
                return 0
            return self._limiter.get_window_stats(item, str(key_id)).reset_time
        except RedisError as error:
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            log.error("edge rate limit without Valkey", error=type(error).__name__)
            return None


class _Direct:
    """Valkey as a script asks for it, on a connection of each thread's own: to take one from a pool costs as much as Valkey's answer."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._mine = local()

    def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        return self._ask("EVALSHA", sha, numkeys, *keys_and_args)

    def script_load(self, script: str) -> Any:
        return self._ask("SCRIPT LOAD", script)

    def _ask(self, *command: Any) -> Any:
        """Asks twice where the connection was lost meanwhile: nobody looks after it between two requests."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = self._pool.make_connection()
        connection = self._mine.connection
        try:
            connection.send_command(*command)
            return connection.read_response()
        except ConnectionError:
            connection.disconnect()
        connection.send_command(*command)
        return connection.read_response()


class _Local:
    """The windows of this process alone: of each key the times of its last requests, at most as many as are allowed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._hits: dict[int, deque[float]] = {}

    def hit(self, key_id: int, limit: int) -> float:
        """0 where the request is counted, else when (Unix time) the next one will be."""
        now = time.time()
        with self._lock:
            if len(self._hits) >= MAX_LOCAL_KEYS:
                self._hits.clear()
            hits = self._hits.setdefault(key_id, deque())
            while len(hits) >= limit:
                if hits[0] > now - WINDOW_SECONDS:
                    return hits[0] + WINDOW_SECONDS
                hits.popleft()
            hits.append(now)
        return 0


_shared = cache(_Shared)
_local = _Local()
