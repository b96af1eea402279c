"""Features of a product that staff switch on and off for as long as they like: django-waffle's switches, under *Switches* in admin.

    off    what is said of a feature that is switched off: what users do instead

A switch is of a feature by its name, ``<product>.<feature>`` (``elite.cloud_execution``); its note is the fallback, which client apps are
told. A feature without a switch is on. Read at most once a second, as :mod:`metering.kill_switches` are, which are for emergencies and end.
"""

from __future__ import annotations

import time

from django.db import connection
from waffle import get_waffle_switch_model

from metering import kill_switches
from pricing.models import Product

_kept: tuple[float, dict[str, str]] | None = None


def off(*, product: Product, feature: str) -> str | None:
    """The fallback, in staff's words, where the feature is off; None where it is on."""
    note = _off().get(f"{product.slug}.{feature}")
    return None if note is None else note.strip() or f"{feature} is switched off."


def _off() -> dict[str, str]:
    """The notes of all switches that are off, by their names."""
    global _kept
    if connection.in_atomic_block or _kept is None or time.monotonic() - _kept[0] > kill_switches.MAX_AGE_SECONDS:
        read_at = time.monotonic()
        found = dict(get_waffle_switch_model().objects.filter(active=False, name__contains=".").values_list("name", "note"))
        if connection.in_atomic_block:  # what a transaction sees is its own
            return found
        _kept = (read_at, found)
    return _kept[1]
