"""A brand's colour on our pages: whatever colour it is, text stays readable (WCAG 2, 4.5 to 1), in light and in dark.

    stylesheet   the few custom properties that a brand changes, for ``static/tollgate.css``
    ink          the text on a ground of any colour
    contrast     of two colours, 1 to 21

Colours are ``#rrggbb``. The brand's own colour is the ground of buttons and of the mark where it can be; where it is text, it is darkened
or lightened as little as the ground needs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

READABLE: Final = 4.5
WHITE, BLACK = "#ffffff", "#000000"
_STEPS: Final = 40


class Scheme(NamedTuple):
    """What the colour stands on: the lightest and the darkest ground of text (``static/tollgate.css``), and where to go for contrast."""

    surface: str
    sunken: str
    towards: str


LIGHT: Final = Scheme("#ffffff", "#f0f0f3", BLACK)
DARK: Final = Scheme("#151519", "#1d1d23", WHITE)


class Shades(NamedTuple):
    """The accent, the text on it, and the tint behind it."""

    accent: str
    ink: str
    soft: str


def stylesheet(colour: str) -> str:
    """:raises ValueError: no ``#rrggbb``."""
    light, dark = (_properties(shades(colour, scheme)) for scheme in (LIGHT, DARK))
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def shades(colour: str, scheme: Scheme) -> Shades:
    """The nearest accent to ``colour`` that can be read on every ground of ``scheme``, also on its own tint."""
    for step in range(_STEPS + 1):
        accent = _mix(colour, scheme.towards, step, _STEPS)
        soft = _mix(scheme.surface, accent, 1, 8)
        if min(contrast(accent, ground) for ground in (scheme.surface, scheme.sunken, soft)) >= READABLE:
            break
    return Shades(accent, ink(accent), soft)


def ink(ground: str) -> str:
    """White or black, whichever is easier to read on ``ground``."""
    return max(WHITE, BLACK, key=lambda text: contrast(text, ground))


def contrast(one: str, other: str) -> float:
    """:raises ValueError: no ``#rrggbb``."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _properties(shades: Shades) -> str:
    return f"--accent:{shades.accent};--accent-ink:{shades.ink};--accent-soft:{shades.soft}"


def _mix(colour: str, other: str, part: int, whole: int) -> str:
    """``part`` of ``other`` in ``whole`` of both."""
    return "#" + "".join(f"{(a * (whole - part) + b * part) // whole:02x}" for a, b in zip(_rgb(colour), _rgb(other), strict=True))


def _luminance(colour: str) -> float:
    channels = (value / 255 for value in _rgb(colour))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _rgb(colour: str) -> bytes:
    if len(colour) != 7 or not colour.startswith("#"):
        raise ValueError(f"{colour!r} is no colour.")
    return bytes.fromhex(colour[1:])
