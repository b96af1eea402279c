"""A mail server on a port of its own: it speaks SMTP to whoever connects and keeps what it was given."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage


class PostOffice(socketserver.ThreadingTCPServer):
    """``on_mail`` is called when a whole mail has come, before it is answered. ``refuse`` is answered to MAIL instead, where it is set."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.got: list[EmailMessage] = []
        self.senders: list[str] = []
        self.recipients: list[str] = []
        self.on_mail: Callable[[], None] = lambda: None
        self.refuse = ""

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Conversation(socketserver.StreamRequestHandler):
    server: PostOffice

    def handle(self) -> None:
        self._say("220 post office")
        while command := self.rfile.readline():
            verb = command.strip().upper()
            if verb.startswith((b"EHLO", b"HELO", b"RSET", b"NOOP")):
                self._say("250 fine")
            elif verb.startswith(b"MAIL"):
                self.server.senders.append(command.decode().strip())
                self._say(self.server.refuse or "250 fine")
            elif verb.startswith(b"RCPT"):
                self.server.recipients.append(command.decode().strip())
                self._say("250 fine")
            elif verb == b"DATA":
                self._say("354 go on")
                self.server.got.append(self._letter())
                self.server.on_mail()
                self._say("250 kept")
            elif verb == b"QUIT":
                self._say("221 goodbye")
                return
            else:
                self._say("502 what?")

    def _letter(self) -> EmailMessage:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        return message_from_bytes(b"".join(lines), policy=policy.default)

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")


@contextmanager
def opened() -> Iterator[PostOffice]:
    with PostOffice() as office:
        thread = threading.Thread(target=office.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield office
        office.shutdown()
        thread.join()
