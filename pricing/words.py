"""What is sold, in the words of a page or a mail.

money      a price: $25, $12.50, 25.00 EUR
interval   what it is paid for: a month, a member and month
name       a feature or a meter: api_access → API access
allowance  a limit: 100 messages a day
lack       a limit of none at all: automations: not included
per        its window alone: a day
"""

from __future__ import annotations

from pricing.catalog import Limit
from pricing.models import Entitlement, PlanVersion

_ABBREVIATIONS = {"ai", "api", "csv", "pdf", "saml", "sla", "sso"}
_WINDOWS = {
    Entitlement.Window.REQUEST: "a request",
    Entitlement.Window.OPEN: "at a time",
    Entitlement.Window.HOUR: "an hour",
    Entitlement.Window.DAY: "a day",
    Entitlement.Window.PERIOD: "a billing period",
    Entitlement.Window.LIFETIME: "in all",
    Entitlement.Window.COUNT: "",
}
_SAID_BY_WINDOW: dict[str, str] = {Entitlement.Window.REQUEST: "request_", Entitlement.Window.OPEN: "concurrent_"}


def money(cents: int, *, currency: str) -> str:
    """``cents`` of ``currency`` (lower case, as Stripe writes it); whole amounts in dollars without their cents."""
    sign, cents = "\N{MINUS SIGN}" if cents < 0 else "", abs(cents)
    whole, part = divmod(cents, 100)
    if currency != "usd":
        return f"{sign}{whole:,}.{part:02}\N{NO-BREAK SPACE}{currency.upper()}"
    return f"{sign}${whole:,}.{part:02}" if part else f"{sign}${whole:,}"


def interval(version: PlanVersion) -> str:
    return f"a member and {version.interval}" if version.per_seat else f"a {version.interval}"


def name(key: str) -> str:
    """In lower case, but for abbreviations."""
    return " ".join(word.upper() if word in _ABBREVIATIONS else word for word in key.replace("-", "_").split("_"))


def title(key: str) -> str:
    """The same, as a heading."""
    text = name(key)
    return text[:1].upper() + text[1:]


def meter(key: str, window: str) -> str:
    """What a limit counts. The window says it again: ``request_tokens`` a request are tokens, ``concurrent_tasks`` at a time tasks."""
    return name(key.removeprefix(_SAID_BY_WINDOW.get(window, "")))


def per(window: str) -> str:
    """Of existing objects, nothing: they are there or not."""
    return _WINDOWS[Entitlement.Window(window)]


def allowance(limit: Limit) -> str:
    """``Unlimited agents``, ``unlimited tasks at a time``, ``1 project``, ``20,000 tokens a request``. Not for a limit of 0: see `lack`."""
    counted = meter(limit.key, limit.window)
    if limit.limit is None:
        at_once = per(limit.window) if limit.window == Entitlement.Window.OPEN else ""
        return f"Unlimited {counted} {at_once}".rstrip()
    singular = counted.removesuffix("s") if limit.limit == 1 and not counted.endswith("ss") else counted
    return f"{limit.limit:,} {singular} {per(limit.window)}".rstrip()


def lack(limit: Limit) -> str:
    """What a limit of 0 says: ``automations: not included``, as a sentence."""
    return f"{title(meter(limit.key, limit.window))}: not included"
