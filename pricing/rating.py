"""Rating: quantities → cost and price. Pure integer arithmetic, standard library only.

``rate`` never guesses: a model or component without a price raises :class:`UnpricedUsage`. Cost and price are exact sums of fractions
and are each rounded up once, on the total of one usage record.
"""

from __future__ import annotations

#: The order of ``quantities`` arrays in the database. Append only: a position is for ever.
COMPONENTS: tuple[str, ...] = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "images",
    "seconds",
    "gb_months",
    "requests",
)
