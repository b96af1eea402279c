"""Which models the customers of a product used lately, for the margin lint: from rollups, so it costs the same at any history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

from django.db import connection

from analytics import rollups
from pricing.margin_lint import Mix

DAYS = 30
#: Models beyond these are next to nothing of what is used.
MOST_MODELS = 50


def observed(slug: str, now: datetime) -> Mix | None:
    """Tokens by model of the last 30 days in UTC, today among them; None where no tokens were used.

    Rollups do not tell input from output: that share is the catalog's, see :mod:`pricing.margin_terms`.
    """
    today = now.astimezone(UTC).date()
    since = today - timedelta(days=DAYS - 1)
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("model_mix"), {"product": slug, "since": since, "until": today, "most": MOST_MODELS})
        tokens = {model: int(count) for model, count in cursor.fetchall()}
    if not tokens:
        return None
    total = sum(tokens.values())
    return Mix(tokens, Fraction(3, 5), f"The mix is that of {total:,} tokens on {len(tokens)} models, used since {since:%Y-%m-%d}.")
