"""A wire that can be cut: a proxy on loopback in front of a real server, for what happens when answers are lost and servers are away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import connection, connections

#: An answer is whole when nothing more of it has come for so long.
QUIET_SECONDS = 0.3


class Cutter:
    """Carries bytes between its clients and one server.

    lose_answer_to   the next request that contains these bytes is carried out, and its answer kept in ``lost`` instead of sent back
    lose_answer      the same for the next answer that contains these bytes
    down, up         the server is away: every wire is cut and every new one at once; until it is back
    """

    def __init__(self, host: str, port: int) -> None:
        self.lost = b""
        self._server = (host, port)
        self._request = self._answer = b""
        self._away = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answer_to(self, marker: bytes) -> None:
        self._request, self.lost = marker, b""

    def lose_answer(self, marker: bytes) -> None:
        self._answer, self.lost = marker, b""

    def down(self) -> None:
        self._away = True
        self._cut(*self._all())

    def up(self) -> None:
        self._away = False

    def close(self) -> None:
        self._listener.close()
        self._cut(*self._all())

    def _all(self) -> list[socket.socket]:
        with self._lock:
            return list(self._sockets)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                if self._away:
                    client.close()
                    continue
                server = socket.create_connection(self._server)
                with self._lock:
                    self._sockets |= {client, server}
                loses = threading.Event()
                for carry in (self._requests, self._answers):
                    threading.Thread(target=carry, args=(client, server, loses), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, loses: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65_536):
                if self._request and self._request in data:
                    self._request = b""
                    loses.set()
                server.sendall(data)
        self._cut(client, server)

    def _answers(self, client: socket.socket, server: socket.socket, loses: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if self._answer and self._answer in data:
                    self._answer = b""
                    loses.set()
                if loses.is_set():
                    self.lost += data
                    server.settimeout(QUIET_SECONDS)
                else:
                    client.sendall(data)
        self._cut(client, server)

    def _cut(self, *wires: socket.socket) -> None:
        with self._lock:
            self._sockets -= set(wires)
        for wire in wires:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            wire.close()


@contextmanager
def cutter(*, host: str = "127.0.0.1", port: int) -> Iterator[Cutter]:
    wire = Cutter(host, port)
    try:
        yield wire
    finally:
        wire.close()


@contextmanager
def database_behind_a_cutter() -> Iterator[Cutter]:
    """Inside, every connection of this process to the database goes over the wire, unencrypted; a full pool is waited for one second."""
    own: dict[str, Any] = connection.settings_dict
    before = dict(own)
    with cutter(host=own["HOST"], port=int(own["PORT"])) as wire:
        try:
            _leave()
            options = own["OPTIONS"] | {"sslmode": "disable", "gssencmode": "disable", "pool": own["OPTIONS"]["pool"] | {"timeout": 1}}
            own.update(HOST="127.0.0.1", PORT=wire.port, OPTIONS=options)
            yield wire
        finally:
            _leave()
            own.update(before)


def _leave() -> None:
    connections.close_all()
    connection.close_pool()  # type: ignore[attr-defined]
