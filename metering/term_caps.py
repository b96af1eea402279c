"""How far one person alone moves a price of ours with a lever: a pack's, a plan's, a rate card's markup or multiplier.

The cap is that of :mod:`pricing.change_cap`. A markup is held against it as what customers pay: from 50 % to 80 % is from 1.5 to 1.8 of the
cost. A model that gets a multiplier of its own had the card's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pricing import catalog_file, change_cap
from pricing.models import Lever

if TYPE_CHECKING:
    from metering.levers import Change


def far(*, changes: Sequence[Change], now: datetime) -> list[str]:
    """What is above the cap, a line each: from what the term says, or said before a lever of the last day."""
    found = []
    for change in changes:
        after = _figure(change, change.after)
        if after is None:
            continue
        for said in (change.before, *_earlier(change, now)):
            before = _figure(change, said)
            if before is not None and change_cap.exceeded(before=before, after=after):
                was = "as usual" if said is None else said
                share = change_cap.share(before=before, after=after)
                found.append(f"{change.product}, {change.name}: {was} → {change.after} ({share} of the price)")
                break
    return found


def _earlier(change: Change, now: datetime) -> list[Any]:
    pulled = Lever.objects.filter(product=change.product, pulled_at__gt=now - change_cap.WINDOW, undone_at=None)
    return [before for lever in pulled for path, before, _ in lever.changes if tuple(path) == change.path]


def _figure(change: Change, said: Any) -> Fraction | None:
    """What is paid, in a measure of the term's own; None where it is no price, or there is none."""
    section, *_, key = change.path
    if section in ("packs", "plans") and key == "price":
        return _number(said)
    if section != "rate_cards":
        return None
    if key == "markup_percent":
        markup = _number("0" if said is None else said)
        return None if markup is None else 100 + markup
    if key == "default_multiplier":
        return _number(said)
    if change.path[2] == "multipliers":
        card = (catalog_file.current(slug=change.product.slug) or {}).get("rate_cards", {}).get(change.path[1], {})
        return _number(card.get("default_multiplier") if said is None else said)
    return None


def _number(said: Any) -> Fraction | None:
    return Fraction(said) if isinstance(said, str) and re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", said) else None
