"""Calls to addresses that others gave us stay out of our network, however they are written, named, renamed or redirected."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from accounts import outbound
from accounts.tests.receiver import Names, Receiver, certificate, receiving, status

PUBLIC = "93.184.215.14"
WRITTEN_WRONG = [
    "", "https://", "https:///path", "//example.com/x", "example.com", "http://example.com/", "ftp://example.com/", "file:///etc/passwd",
    "gopher://example.com/", "https://user@example.com/", "https://user:secret@example.com/", "https://ok.example@127.0.0.1/",
    "https://example.com:22/", "https://example.com:6379/", "https://example.com:0/", "https://example.com:99999/", "https://example.com:x/",
    "https://example.com/#fragment", "https://example.com\\@127.0.0.1/", "https://exa mple.com/", "https://example.com/\n", "https://exämple.com/",
    "https://example.com/\0", "https://[::1/", "https://[fe80::1%25eth0]/", "https://%31%32%37.0.0.1/", "https://example.com/" + "x" * 2000,
    "https://-example.com/", "javascript:alert(1)", "https:example.com",
]  # fmt: skip
LONG = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000
PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:93.184.215.14", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:db8::1", "2002:7f00:1::",
    "2002:a00:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
]  # fmt: skip


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A resolver of its own for each test: no name of the real world is asked for."""
    found = Names(hooks_test=[[PUBLIC]])
    monkeypatch.setattr(socket, "getaddrinfo", found)
    return found


@pytest.fixture
def local(settings: Settings) -> None:
    """Real servers of a test are on this machine, which only a developer's settings may call."""
    settings.OUTBOUND_TO_LOCALHOST = True


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def send(url: str) -> outbound.Answer:
    return outbound.post(url=url, body=b"{}", headers={"Content-Type": "application/json"})


@pytest.mark.usefixtures("names")
class TestAddresses:
    @pytest.mark.parametrize(
        "url", ["https://hooks.test/", "https://HOOKS.test:443/a?b=c", "https://hooks.test:8443", f"https://{PUBLIC}/x"]
    )
    def test_a_public_address_is_good(self, url: str) -> None:
        outbound.check(url.replace("HOOKS", "hooks"))

    @pytest.mark.failure(89)
    @pytest.mark.parametrize("url", WRITTEN_WRONG)
    def test_what_is_no_plain_https_address_is_refused(self, url: str) -> None:
        with pytest.raises(outbound.Refused):
            outbound.check(url)

    @pytest.mark.failure(89)
    @pytest.mark.parametrize("address", PRIVATE)
    def test_a_private_address_is_refused_written_out_or_behind_a_name(self, address: str, names: Names) -> None:
        names.answers["hooks.test"] = [[address]]
        for url in (f"https://[{address}]/" if ":" in address else f"https://{address}/", "https://hooks.test/"):
            for call in (outbound.check, send):
                with pytest.raises(outbound.Refused, match="private network"):
                    call(url)

    @pytest.mark.failure(89)
    @pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0"])
    def test_other_ways_to_write_an_address_are_looked_through(self, host: str) -> None:
        with pytest.raises(outbound.Refused, match="private network"):
            outbound.check(f"https://{host}/")

    @pytest.mark.failure(89)
    def test_one_private_address_among_public_ones_is_enough_to_refuse(self, names: Names) -> None:
        names.answers["hooks.test"] = [[PUBLIC, "10.0.0.7"]]
        with pytest.raises(outbound.Refused, match="private network"):
            outbound.check("https://hooks.test/")

    def test_a_name_that_leads_nowhere_is_refused(self) -> None:
        with pytest.raises(outbound.Refused, match="leads nowhere"):
            outbound.check("https://nowhere.test/")

    @given(number=st.integers(0, 2**32 - 1))
    def test_whatever_ipv4_address_is_called_is_global(self, number: int) -> None:
        address = IPv4Address(number)
        assert not outbound.is_public(str(address)) or (address.is_global and not address.is_multicast)

    @given(number=st.integers(0, 2**128 - 1) | st.integers(0x2000 << 112, (0x4000 << 112) - 1))
    def test_whatever_ipv6_address_is_called_is_global_and_carries_no_ipv4(self, number: int) -> None:
        address = IPv6Address(number)
        hidden = address.ipv4_mapped or address.sixtofour or address.teredo
        assert not outbound.is_public(str(address)) or (address.is_global and not address.is_multicast and not hidden)


class TestCalls:
    @pytest.mark.failure(89)
    def test_a_name_that_turned_private_after_it_was_saved_is_refused_at_the_call(self, names: Names, receiver: Receiver) -> None:
        names.answers["hooks.test"] = [[PUBLIC], ["127.0.0.1"]]
        outbound.check("https://hooks.test:8443/")
        with pytest.raises(outbound.Refused, match="private network"):
            send("https://hooks.test:8443/")
        assert receiver.received == []

    @pytest.mark.failure(89)
    @pytest.mark.usefixtures("local")
    def test_the_call_goes_to_the_address_that_was_looked_at_and_the_name_is_asked_once(self, names: Names, receiver: Receiver) -> None:
        with receiving(host="127.0.0.2", port=receiver.port) as other:
            names.answers["hooks.test"] = [["127.0.0.1"], ["127.0.0.2"]]
            assert send(f"http://hooks.test:{receiver.port}/hook?x=1").status == 204
            assert other.received == []
        assert names.asked == ["hooks.test"]
        assert receiver.received[0].headers["host"] == f"hooks.test:{receiver.port}"
        assert receiver.received[0].path == "/hook?x=1"

    @pytest.mark.usefixtures("local")
    def test_the_certificate_is_checked_for_the_name_though_the_call_goes_to_an_address(
        self, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trusted, context = certificate(tmp_path, name="hooks.test")
        asked: list[str | None] = []
        context.sni_callback = lambda connection, name, _: asked.append(name)
        names.answers |= {"hooks.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]}
        with receiving(context=context) as secure:
            with pytest.raises(outbound.Unreachable, match="certificate"):
                send(f"https://hooks.test:{secure.port}/")
            monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            assert send(f"https://hooks.test:{secure.port}/").status == 204
            with pytest.raises(outbound.Unreachable, match="certificate"):
                send(f"https://other.test:{secure.port}/")
            assert len(secure.received) == 1
        assert asked == ["hooks.test", "hooks.test", "other.test"]

    @pytest.mark.failure(89)
    @pytest.mark.usefixtures("local")
    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_a_redirect_is_an_answer_and_is_not_followed(self, receiver: Receiver, code: int) -> None:
        with receiving() as inner:
            receiver.answers(code, Location=inner.url)
            assert send(receiver.url).status == code
            assert inner.received == []

    @pytest.mark.usefixtures("local")
    def test_the_proxies_of_the_environment_are_not_used(self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        with receiving() as proxy:
            for name in ("http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
            assert send(receiver.url).status == 204
            assert proxy.received == []

    @pytest.mark.usefixtures("local")
    def test_a_server_that_drips_is_left_after_the_time_for_all_of_it(self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbound, "TOTAL_SECONDS", 1.0)
        over = threading.Event()

        def drip(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not over.wait(0.1):
                handler.wfile.write(b"x")
                handler.wfile.flush()

        receiver.answer = drip
        begun = time.monotonic()
        with pytest.raises(outbound.Unreachable, match="in time"):
            send(receiver.url)
        over.set()
        assert 0.9 < time.monotonic() - begun < 3

    @pytest.mark.usefixtures("local")
    def test_a_server_that_takes_the_call_and_says_nothing_is_left_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbound, "TOTAL_SECONDS", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(outbound.Unreachable, match="in time"):
            send(f"http://127.0.0.1:{silent.getsockname()[1]}/")

    @pytest.mark.usefixtures("local")
    def test_a_huge_body_is_not_read(self, receiver: Receiver) -> None:
        written = 0

        def pour(handler: BaseHTTPRequestHandler) -> None:
            nonlocal written
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while written < 256 * 1024 * 1024:
                written += handler.wfile.write(b"x" * 65_536)

        receiver.answer = pour
        begun = time.monotonic()
        assert send(receiver.url).status == 200
        assert time.monotonic() - begun < 2
        assert written < 64 * 1024 * 1024

    @pytest.mark.usefixtures("local")
    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"SECRET\r\n",
            b"HTTP/1.1 2000 SECRET\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nSECRET\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000,
        ],
    )
    def test_what_is_no_answer_of_http_is_unreachable_and_shows_nothing_of_it(self, receiver: Receiver, raw: bytes) -> None:
        receiver.answer = lambda handler: handler.wfile.write(raw) and None  # type: ignore[assignment]
        with pytest.raises(outbound.Unreachable) as raised:
            send(receiver.url)
        assert str(raised.value) == "It gave no answer of HTTP."

    @pytest.mark.usefixtures("local")
    def test_nobody_there_is_unreachable_and_the_next_address_of_the_name_is_tried(self, names: Names, receiver: Receiver) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            free = taken.getsockname()[1]
        with pytest.raises(outbound.Unreachable, match="could not be reached"):
            send(f"http://127.0.0.1:{free}/")
        names.answers["hooks.test"] = [["127.0.0.9", "127.0.0.1"]]
        assert send(f"http://hooks.test:{receiver.port}/").status == 204

    @pytest.mark.failure(89)
    @pytest.mark.usefixtures("local")
    def test_status_and_retry_after_are_all_that_is_told(self, receiver: Receiver) -> None:
        receiver.answer = lambda handler: status(handler, 503, Retry_After="120", X_Secret="inside")
        assert send(receiver.url) == outbound.Answer(status=503, retry_after="120")

    @pytest.mark.usefixtures("local", "names")
    def test_on_a_developers_machine_private_networks_stay_refused(self) -> None:
        for url in ("http://10.0.0.1/", "http://169.254.169.254/", f"http://{PUBLIC}/", f"https://{PUBLIC}:22/"):
            with pytest.raises(outbound.Refused):
                outbound.check(url)


def test_a_name_that_nobody_answers_for_is_given_up_in_time(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "TOTAL_SECONDS", 0.3)
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(20) and names(*args, **kwargs))
    begun = time.monotonic()
    with pytest.raises(outbound.Unreachable, match="could not be looked up in time"):
        send("https://hooks.test/")
    with pytest.raises(outbound.Refused, match="could not be looked up in time"):
        outbound.check("https://hooks.test/")
    over.set()
    assert time.monotonic() - begun < 5
