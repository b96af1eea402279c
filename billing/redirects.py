"""Where a customer may be sent back to from a page that is not ours. Pure: strings in, a string or a refusal out.

No address is parsed and compared, because parsers differ: an address is allowed if its first characters are an allowed origin, letter by
letter, and what follows begins a path, a query or a fragment. So whatever reads it goes to that origin.
"""

from __future__ import annotations

import re
from collections.abc import Collection

MOST_CHARACTERS = 2_000
#: An origin that ends so is allowed at every port: for our own host on a developer's machine.
ANY_PORT = ":*"

_CHARACTERS = re.compile(r"[!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z{}~]*")
_CONTROL = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")
_PORT = re.compile(r":[1-9][0-9]{0,4}")


class NotAllowed(ValueError):
    """An address leads elsewhere. ``field`` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check(url: str, *, origins: Collection[str], field: str) -> str:
    """``url``, which begins with one of ``origins``; a missing path is ``/``.

    :raises NotAllowed: it does not, is longer than ``MOST_CHARACTERS``, or has characters that addresses do not have, encoded control
        characters included.
    """
    if len(url) > MOST_CHARACTERS:
        raise NotAllowed(field, f"An address has at most {MOST_CHARACTERS} characters.")
    if not _CHARACTERS.fullmatch(url) or _CONTROL.search(url):
        raise NotAllowed(field, "Write the address in the characters of a URL, others percent-encoded.")
    for origin in origins:
        begins = _begins(url, origin)
        if begins is not None:
            rest = url[len(begins) :]
            if not rest or rest[0] in "/?#":
                return begins + (rest if rest.startswith("/") else f"/{rest}")
    allowed = ", ".join(sorted(origins)) or "none"
    raise NotAllowed(field, f"The address leads to none of the allowed origins ({allowed}).")


def _begins(url: str, origin: str) -> str | None:
    """What of ``url`` is the origin; None where it is another."""
    if not origin.endswith(ANY_PORT):
        return origin if url.startswith(origin) else None
    exact = origin.removesuffix(ANY_PORT)
    if not url.startswith(exact):
        return None
    port = _PORT.match(url, len(exact))
    return exact + (port.group() if port else "")
