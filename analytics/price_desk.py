"""What the inbox of prices (:mod:`pricing.price_inbox`) cannot know by itself: what was used, and what waits for a price."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connection

from analytics import rollups
from pricing.price_inbox import Use, Waiting
from pricing.rating import COMPONENTS, TOKEN_COMPONENTS

DAYS: Final = 30
#: So many records that wait are looked at; where there are more, the figures are of these.
LIMIT: Final = 20_000
_TOKENS: Final = [position for position, component in enumerate(COMPONENTS, start=1) if component in TOKEN_COMPONENTS]


def use(provider: str, model: str, component: str, level: str, now: datetime) -> Use:
    """Of the last 30 days."""
    asked: dict[str, Any] = {
        "provider": provider, "model": model, "level": level, "position": COMPONENTS.index(component) + 1,
        "since": now - timedelta(days=DAYS),
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("component_use"), asked)
        quantity, value_nanos = cursor.fetchone()
    return Use(quantity=quantity, value_nanos=value_nanos, days=DAYS)


def waiting() -> list[Waiting]:
    """Models with usage that no price covers, most of it first."""
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("waiting_models"), {"tokens": _TOKENS, "limit": LIMIT})
        return [Waiting(*row) for row in cursor.fetchall()]
