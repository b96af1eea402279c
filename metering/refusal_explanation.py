"""A refusal in sentences: who refused and by which figures, what else was asked, when it ends and what would lift it.

    explain   the sentences, for staff or for the account's own people

It reads the plan's terms, which no tenant's role may: call it after the wall, with a refusal from behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from accounts.models import Account
from accounts.templatetags.amounts import plain_amount
from billing import subscriptions
from metering import limits
from metering.explanation import DOLLAR, Step, Told
from metering.limits import Layer
from metering.models import Refusal
from pricing import words

#: Layers that stop work whatever credit there is.
_NOT_CREDITS = ("throttle", "guard", "cost", "requests", "concurrency", "quota")


def explain(*, refusal: Refusal, account: Account, told: Told, now: datetime) -> tuple[Step, ...]:
    """``refusal.costs``, which no tenant may read, is read for staff alone who read the margin report."""
    return tuple(_steps(refusal, account, told, now))


def _layers(refusal: Refusal, told: Told) -> Iterator[Layer]:
    for place, kept in enumerate(refusal.layers):
        resets_at = kept["resets_at"] and datetime.fromisoformat(kept["resets_at"])
        limit, used, remaining = kept["limit"], kept["used"], kept["remaining"]
        if kept["name"] == "cost" and told.costs:
            limit, used, remaining = refusal.costs[place]
        yield Layer(
            kept["name"], allowed=kept["allowed"], mode=kept["mode"], meter=kept["meter"], limit=limit, used=used, remaining=remaining,
            resets_at=resets_at, switched=kept["switched"],
        )  # fmt: skip


def _steps(refusal: Refusal, account: Account, told: Told, now: datetime) -> Iterator[Step]:
    layers = list(_layers(refusal, told))
    refusing = next((each for each in layers if (each.name, each.meter or "") == (refusal.layer, refusal.meter)), Layer(refusal.layer))
    feature = f", in the feature {refusal.feature}" if refusal.feature else ""
    user = f", for the user {refusal.user}" if refusal.user else ""
    times = f", {refusal.count:,} times since {told.on(refusal.first_at)}" if refusal.count > 1 else ""
    figures = f" ({_figures(refusing, account)})" if _figures(refusing, account) else ""
    yield Step(
        "refused", f"Refused on {told.on(refusal.last_at)}{times}: {refusal.model}{feature}{user}. {refusal.reason.rstrip('.')}{figures}."
    )
    yield Step("layers", "What was asked, in this order:", tuple(_said(each, refusing, account) for each in layers))
    if refusal.resets_at:
        yield Step("resets", f"It {'ended' if refusal.resets_at <= now else 'ends'} on {told.on(refusal.resets_at)}.")
    elif refusal.layer == "credits":
        yield Step("resets", "It ends as soon as credit comes in.")
    credit = next((each.remaining for each in layers if each.name == "credits"), None)
    if refusal.layer in _NOT_CREDITS:
        left = f": {plain_amount(credit, account.product.unit, True)} were left" if credit else ""
        yield Step("credits", f"Credits are not the reason{left}, and being refused used none of them.")
    allowed = subscriptions.allowed(account=account)
    offer = limits.upgrade(account=account, allowed=allowed, layer=refusing, now=now)
    yield Step("lifts", f"The plan {offer.name} would lift it." if offer else _way_out(refusal.layer))


def _way_out(layer: str) -> str:
    if layer == "credits":
        return "More credit lifts it."
    if layer in ("kill_switch", "throttle", "guard"):
        return "No plan lifts it; it ends by itself or when support ends it."
    return "No plan that is on offer would lift it."


def _said(layer: Layer, refusing: Layer, account: Account) -> str:
    name = words.name(layer.name) + (f" ({layer.meter})" if layer.meter else "")
    says = (
        "refused"
        if layer is refusing
        else "passed"
        if layer.allowed
        else "would have refused too"
        if layer.mode == "hard"
        else "only noted"
    )
    figures = _figures(layer, account)
    return f"{name}: {says}{f', {figures}' if figures else ''}"


def _figures(layer: Layer, account: Account) -> str:
    """``$1.02 of $1.00``; nothing where no figure may be told, or there is none."""
    unit = DOLLAR if layer.name == "cost" else account.product.unit if layer.name in ("cap", "credits") else None

    def said(value: int) -> str:
        return f"{value:,}" if unit is None else plain_amount(value, unit)

    if layer.limit is not None and layer.used is not None:
        return f"{said(layer.used)} of {said(layer.limit)}"
    return f"{said(layer.remaining)} free" if layer.name == "credits" and layer.remaining is not None else ""
