"""What docs/webhooks.md promises to client apps."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "webhooks.md"


@cache
def documented() -> dict[str, dict[str, Any]]:
    """The example of each kind's ``data``, by the heading that it stands under."""
    kinds = PAGE.read_text().split("\n## Kinds\n")[1]
    sections = re.findall(r"^### `([a-z_.]+)`\n(.*?)(?=^### |\Z)", kinds, re.MULTILINE | re.DOTALL)
    return {kind: json.loads(re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)[0]) for kind, text in sections}


def as_documented(kind: str, data: dict[str, Any]) -> bool:
    """Whether ``data`` has the fields of the page's example, and no others."""
    return set(data) == set(documented()[kind])
