"""What goes wrong: a client dies each second, connections are cut, Valkey forgets or dies, PostgreSQL stops in the middle of everything."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
import psycopg
import redis

from config import embedded, roles

#: How often each happens, in seconds; the first time after half of that.
EVERY_SECONDS = {"kills": 1.0, "terminated": 0.7, "flushes": 3.0, "restarts": 10.0, "valkey_kills": 24.0}


class Nemesis:
    """``done`` counts what it did. ``kill`` is told how to choose one client, and ends it at once."""

    def __init__(self, name: str, servers: embedded.Servers, draw: Random, kill: Callable[[Random], None]) -> None:
        self.done = Counter(dict.fromkeys(EVERY_SECONDS, 0))
        self._name, self._servers, self._draw, self._kill = name, servers, draw, kill
        self._next = {deed: time.monotonic() + seconds / 2 for deed, seconds in EVERY_SECONDS.items()}

    def strike(self) -> None:
        """Does what is due."""
        due = [deed for deed, at in self._next.items() if time.monotonic() >= at]
        for deed in due:
            self._next[deed] += EVERY_SECONDS[deed]
            match deed:
                case "kills":
                    self._kill(self._draw)
                case "flushes":
                    self._flush()
                case "restarts":  # as "pg_ctl stop -m immediate", and a start that has to recover
                    self._end(embedded._postmaster, signal.SIGQUIT)
                case "valkey_kills":
                    self._end(embedded._valkey, signal.SIGKILL)
            self.done[deed] += self._terminate() if deed == "terminated" else 1

    def _terminate(self) -> int:
        """``pg_terminate_backend`` of two connections; how many it were."""
        with psycopg.connect(self._servers.superuser_url, autocommit=True) as connection:
            found = connection.execute("select pid from pg_stat_activity where usename = %s order by pid", [roles.APP]).fetchall()
            chosen = self._draw.sample(found, min(2, len(found)))
            return sum(bool(ended) for pid in chosen for (ended,) in connection.execute("select pg_terminate_backend(%s)", pid))

    def _flush(self) -> None:
        with redis.Redis.from_url(self._servers.redis_url) as valkey:
            valkey.flushall()

    def _end(self, find: Callable[[Path], psutil.Process | None], how: signal.Signals) -> None:
        """Ends a server and starts it again."""
        server = find(self._servers.home)
        assert server is not None
        server.send_signal(how)
        while find(self._servers.home) is not None:
            time.sleep(0.01)
        if embedded.start(self._name) != self._servers:
            raise embedded.EmbeddedError("Another program took the server's port meanwhile. Run again.")
