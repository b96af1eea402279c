"""What the commands of this app are told on the command line."""

from argparse import ArgumentTypeError
from datetime import UTC, datetime


def words(text: str) -> str:
    """A name or a reason."""
    if not 1 <= len(text.strip()) <= 150 or not text.isprintable():
        raise ArgumentTypeError("write from 1 to 150 printable characters")
    return text.strip()


def instant(text: str) -> datetime:
    """ISO 8601; UTC where it names no zone."""
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is no ISO 8601 time, e.g. 2027-01-01T00:00:00+00:00") from None
