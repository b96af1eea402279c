"""How an account stands with the limits of its plan, for people: what is used of each, what it allows, and when it begins anew.

Limits in shadow mode are the operator's own trial and are not told. A limit on cost counts what the work costs us: customers learn whether
it is reached and when it resets, never how much it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from accounts.models import Account
from billing import subscriptions
from metering import limits, usage
from pricing import words
from pricing.models import Entitlement, Product

_TOLD: Final = (Entitlement.Mode.SOFT, Entitlement.Mode.HARD)


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit in a customer's words. ``allowed`` None: there is no limit. ``used`` None: nothing is counted, or not told.

    ``hidden``: how much it is, is not told. ``reached``: nothing more fits; where ``soft``, work goes on all the same. ``lacking``: the
    plan allows none at all. ``meter`` names the limit to the page of the way on.
    """

    name: str
    used: int | None
    allowed: int | None
    resets_at: datetime | None
    reached: bool
    soft: bool
    hidden: bool = False
    meter: str = ""

    @property
    def lacking(self) -> bool:
        return self.allowed == 0 and not self.soft


@dataclass(frozen=True, slots=True)
class Standing:
    """All limits in the order of the plan, and why work is stopped as a whole, where it is (until ``stopped_until``, if that is known)."""

    limits: tuple[Limit, ...]
    stopped: str
    stopped_until: datetime | None


def of_account(account: Account, *, product: Product, now: datetime) -> Standing:
    """The hot path's own decision, in words. Like the hot path it reads by the account in code alone: call it after the walls."""
    account.product = product
    allowed = subscriptions.allowed(account=account)
    layers = usage.decide(account=account, ask=None, now=now).layers
    refusing = [layer for layer in layers if not layer.allowed and layer.mode == Entitlement.Mode.HARD]
    stop = next((layer for layer in layers if layer.name in ("kill_switch", "throttle") and layer in refusing), None)
    counted = {layer.meter: layer for layer in layers if layer.meter and layer.limit is not None}
    found = []
    for limit in allowed.plan.limits if allowed else ():
        if limit.mode not in _TOLD:
            continue
        layer = counted.pop(f"{limit.key}/{limit.window}", None)
        if layer is not None:
            found.append(_limit(layer))
        elif limit.limit is None:
            found.append(Limit(_name(limit.key, limit.window), None, None, None, reached=False, soft=False))
    # Caps have a page of their own: they are of members and runs.
    found += [_limit(layer) for layer in counted.values() if layer.mode in _TOLD and layer.name != "cap"]
    return Standing(tuple(found), stop.reason if stop else "", stop.resets_at if stop else None)


def _limit(layer: limits.Layer) -> Limit:
    key, _, window = (layer.meter or "").partition("/")
    hidden = layer.name == "cost"
    each = layer.name == "request_size"
    reached = not layer.allowed or (layer.remaining == 0 and not each)
    return Limit(
        name=f"Fair use {words.per(window)}" if hidden else _name(key, window),
        used=None if hidden or each else layer.used,
        allowed=None if hidden else layer.limit,
        resets_at=layer.resets_at,
        reached=reached,
        soft=layer.mode == Entitlement.Mode.SOFT,
        hidden=hidden,
        meter=layer.meter or "",
    )


def _name(key: str, window: str) -> str:
    """``Messages a day``, ``Agents``, ``Tokens a request``."""
    name = f"{words.meter(key, window)} {words.per(window)}".rstrip()
    return name[:1].upper() + name[1:]
