"""Calls addresses that others gave us, and only such as lie outside of our network.

    check   says whether an address may be called: when it is saved
    post    calls it: when something is sent

An address is ``https``, without credentials, at port 443 or 8443, and *every* IP address of its name is public. Names are resolved once a
call, and the call goes to the very addresses that were looked at: a name that answers differently the next moment changes nothing. The
certificate is still checked for the name. Redirects are not followed, proxies of the environment not used, and of the answer only its
status and ``Retry-After`` are read: nobody learns here what stands behind an address.

With ``OUTBOUND_TO_LOCALHOST`` (a developer's machine, never production) loopback addresses are allowed too, by plain HTTP and at any port.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpcore2
from django.conf import settings

MAX_LENGTH = 2000
PORTS = (443, 8443)
CONNECT_SECONDS = 3.0
TOTAL_SECONDS = 10.0
#: A name may have more addresses; so many are tried.
MAX_ADDRESSES = 4
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
#: What no public server has: IANA's special-purpose registry, 224.0.0.0/4, and 168.63.129.16, by which Azure's machines ask Azure.
_NOT_PUBLIC_4 = [
    IPv4Network(each)
    for each in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
    )
]
#: Beyond it there are no public servers: IPv4 in disguise (mapped, NAT64), unique-local, link-local, multicast.
_PUBLIC_6 = IPv6Network("2000::/3")
#: Tunnels that carry IPv4 addresses (Teredo, 6to4), documentation, protocols.
_NOT_PUBLIC_6 = [IPv6Network(each) for each in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]


class Refused(Exception):
    """The address may not be called. The message says why."""


class Unreachable(Exception):
    """The address was called in vain. The message says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side answered: its status, and when it wants to be asked again, as it said so."""

    status: int
    retry_after: str


def check(url: str) -> None:
    """Looks the name up too: not within a transaction. :raises Refused: ``url`` may not be called."""
    parts = _split(url)
    try:
        _addresses(parts, until=time.monotonic() + TOTAL_SECONDS)
    except Unreachable as error:
        raise Refused(str(error)) from None


def post(*, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    """Sends ``body``, in at most ``TOTAL_SECONDS``. Not within a transaction.

    :raises Refused: ``url`` may not be called.
    :raises Unreachable: no answer came.
    """
    parts = _split(url)
    until = time.monotonic() + TOTAL_SECONDS
    network = _Network(_addresses(parts, until=until), until=until)
    sent = {"Host": parts.netloc, "User-Agent": "Tollgate", "Connection": "close", **headers}
    timeouts = {"connect": CONNECT_SECONDS}
    try:
        with (
            httpcore2.ConnectionPool(network_backend=network) as pool,
            pool.stream("POST", url, headers=list(sent.items()), content=body, extensions={"timeout": timeouts}) as response,
        ):
            found = {name.lower(): value for name, value in response.headers}
            return Answer(status=response.status, retry_after=found.get(b"retry-after", b"").decode("ascii", "replace"))
    except httpcore2.TimeoutException:
        raise Unreachable("It did not answer in time.") from None
    except httpcore2.ProtocolError:  # whose message may quote what came
        raise Unreachable("It gave no answer of HTTP.") from None
    except httpcore2.NetworkError as error:
        raise Unreachable(f"It could not be reached: {str(error)[:120] or type(error).__name__}") from error


def is_public(address: str) -> bool:
    """Whether a server of the public internet may have this IP address."""
    found = ip_address(address)
    if found.version == 4:
        return not any(found in network for network in _NOT_PUBLIC_4)
    return found in _PUBLIC_6 and not any(found in network for network in _NOT_PUBLIC_6)


def _split(url: str) -> SplitResult:
    """:raises Refused: ``url`` is not written as it should be."""
    if len(url) > MAX_LENGTH or not url.isascii() or not url.isprintable() or any(each in url for each in ' \\"<>^`{|}'):
        raise Refused(f"Write an address of at most {MAX_LENGTH} characters, without blanks and in ASCII (names in punycode).")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused("This is no address.") from None
    if parts.scheme != "https" and not (settings.OUTBOUND_TO_LOCALHOST and parts.scheme == "http"):
        raise Refused("The address must begin with https://.")
    if "@" in parts.netloc:
        raise Refused("The address must not contain credentials.")
    if "#" in url:
        raise Refused("The address must not have a fragment (#).")
    host = parts.netloc.lower() if port is None else parts.netloc.lower().rpartition(":")[0]
    if not _HOST.fullmatch(host):
        raise Refused("The address has no valid host name.")
    if port is not None and port not in PORTS and not settings.OUTBOUND_TO_LOCALHOST:
        raise Refused(f"The port must be one of {', '.join(map(str, PORTS))}.")
    return parts


def _look_up(host: str, port: int, until: float) -> list[str]:
    """What the machine's resolver says, which knows no deadline: so a thread asks it, and is left to it when the time is over.

    :raises Refused: the name leads nowhere. :raises Unreachable: nobody said where by ``until``.
    """
    told: SimpleQueue[list[str] | None] = SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            told.put(None)
        else:
            told.put(list(dict.fromkeys(str(each[4][0]) for each in found)))

    threading.Thread(target=ask, name="look-up of a name", daemon=True).start()
    try:
        addresses = told.get(timeout=max(until - time.monotonic(), 0))
    except Empty:
        raise Unreachable("Its name could not be looked up in time.") from None
    if not addresses:
        raise Refused("The host name leads nowhere.")
    return addresses


def _addresses(parts: SplitResult, *, until: float) -> list[str]:
    """The IP addresses of the name, all of them public. :raises Refused: one is not, or there is none. :raises Unreachable: see above."""
    addresses = _look_up(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), until)
    local = settings.OUTBOUND_TO_LOCALHOST and all(any(ip_address(each) in network for network in _LOOPBACK) for each in addresses)
    if not local:
        if not all(map(is_public, addresses)):
            raise Refused("The address leads into a private network.")
        if parts.scheme != "https":
            raise Refused("The address must begin with https://.")
        if parts.port is not None and parts.port not in PORTS:
            raise Refused(f"The port must be one of {', '.join(map(str, PORTS))}.")
    return addresses[:MAX_ADDRESSES]


class _Stream(httpcore2.NetworkStream):
    """A connection that is over at ``until``, however busily the other side drips."""

    def __init__(self, inner: httpcore2.NetworkStream, until: float) -> None:
        self._inner, self._until = inner, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._until, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._until, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(self._until, httpcore2.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Network(httpcore2.NetworkBackend):
    """Connects to ``addresses``, in turn, and to nothing else, whatever name it is asked for."""

    def __init__(self, addresses: list[str], *, until: float) -> None:
        self._addresses, self._until = addresses, until

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        failure: Exception | None = None
        for address in self._addresses:
            wait = min(CONNECT_SECONDS, _left(self._until, httpcore2.ConnectTimeout))
            try:
                return _Stream(httpcore2.SyncBackend().connect_tcp(address, port, wait, local_address, socket_options), self._until)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError("no address")


def _left(until: float, too_late: type[Exception]) -> float:
    """The seconds until ``until``. :raises too_late: there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise too_late
    return left
