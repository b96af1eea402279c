"""Logos that people upload: a small PNG, JPEG or WebP by its content, whatever its name says. SVG can carry script, and is none of them.

    check    what the bytes are, or why they are no logo

Nothing is decoded here: the size in pixels is read from the header, so an image that would unfold to gigabytes is refused for what it
declares. Browsers get the type that was found, and ``nosniff``.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 64 * 1024
MAX_PIXELS: Final = 2_048
_JPEG_SIZES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class NoLogo(ValueError):
    """The bytes are no logo that we take. The message says why."""


@dataclass(frozen=True, slots=True)
class Logo:
    content: bytes
    type: str
    digest: str
    width: int
    height: int


def check(content: bytes) -> Logo:
    """:raises NoLogo: empty, too large, no whole PNG, JPEG or WebP, moving, or with more than ``MAX_PIXELS`` to a side."""
    if not content:
        raise NoLogo("The file is empty.")
    if len(content) > MAX_BYTES:
        raise NoLogo(f"The file has {len(content) // 1024 + 1} KB; a logo has at most {MAX_BYTES // 1024} KB.")
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            type_, (width, height) = "image/png", _png(content)
        elif content.startswith(b"\xff\xd8\xff"):
            type_, (width, height) = "image/jpeg", _jpeg(content)
        elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            type_, (width, height) = "image/webp", _webp(content)
        else:
            raise NoLogo("The file is no PNG, JPEG or WebP image.")
    except (struct.error, IndexError) as error:
        raise NoLogo("The image is cut short.") from error
    if not (0 < width <= MAX_PIXELS and 0 < height <= MAX_PIXELS):
        raise NoLogo(f"The image declares {width} × {height} pixels; a logo has at most {MAX_PIXELS} × {MAX_PIXELS}.")
    return Logo(content, type_, hashlib.sha256(content).hexdigest()[:32], width, height)


def _png(content: bytes) -> tuple[int, int]:
    kinds: list[bytes] = []
    for kind, data in _png_chunks(content):
        if kind == b"acTL":
            raise NoLogo("The image moves; a logo stands still.")
        if not kinds and (kind != b"IHDR" or len(data) != 13):
            break
        kinds.append(kind)
    if not kinds or b"IDAT" not in kinds or kinds[-1] != b"IEND":
        raise NoLogo("The image is cut short or damaged.")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, kind = 8, b""
    while at < len(content):
        if kind == b"IEND":
            raise NoLogo("Something follows the end of the image.")
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        data, checksum = content[at + 8 : at + 8 + length], content[at + 8 + length : at + 12 + length]
        if struct.unpack(">I", checksum)[0] != zlib.crc32(kind + data):
            raise NoLogo("The image is damaged.")
        yield kind, data
        at += 12 + length


def _jpeg(content: bytes) -> tuple[int, int]:
    if not content.endswith(b"\xff\xd9"):
        raise NoLogo("The image is cut short.")
    at = 2
    while True:
        if content[at] != 0xFF:
            raise NoLogo("The image is damaged.")
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        (length,) = struct.unpack(">H", content[at + 2 : at + 4])
        if marker in _JPEG_SIZES:
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
        if length < 2 or marker == 0xDA:  # the image's data, and no size before it
            raise NoLogo("The image is damaged.")
        at += 2 + length


def _webp(content: bytes) -> tuple[int, int]:
    (length,) = struct.unpack("<I", content[4:8])
    if length + 8 != len(content):
        raise NoLogo("The image is cut short, or something follows its end.")
    kind = content[12:16]
    if kind == b"VP8X":
        if content[20] & 0b10:
            raise NoLogo("The image moves; a logo stands still.")
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L" and content[20] == 0x2F:
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise NoLogo("The image is damaged.")
