"""Uploads that are logos, and everything that is none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import pytest

from accounts import colours, logos


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 2, height: int = 2, *extra: bytes) -> bytes:
    pixels = zlib.compress(b"\0" * ((width * 3 + 1) * height)) if width * height < 10_000 else zlib.compress(b"\0" * 10_000)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(width: int = 3, height: int = 4) -> bytes:
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0".ljust(14, b"\0") + frame + b"\xff\xda\x00\x02\x00\xff\xd9"


def webp(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def lossless(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    return webp(b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", bits))


def lossy(width: int, height: int) -> bytes:
    return webp(b"VP8 " + struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height))


def extended(width: int, height: int, flags: int = 0) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + size)


@pytest.mark.parametrize(
    ("content", "type_", "size"),
    [
        (png(), "image/png", (2, 2)),
        (png(2048, 1), "image/png", (2048, 1)),
        (jpeg(), "image/jpeg", (3, 4)),
        (lossless(5, 6), "image/webp", (5, 6)),
        (lossy(7, 8), "image/webp", (7, 8)),
        (extended(9, 10), "image/webp", (9, 10)),
    ],
)
def test_a_small_image_is_what_its_bytes_say(content: bytes, type_: str, size: tuple[int, int]) -> None:
    logo = logos.check(content)
    assert (logo.type, (logo.width, logo.height), logo.content) == (type_, size, content)
    assert len(logo.digest) == 32


@pytest.mark.parametrize("make", [png, jpeg, lossless, extended])
@pytest.mark.parametrize("size", [(60_000, 60_000), (2049, 1), (1, 2049)])
def test_an_image_that_would_unfold_is_refused_for_what_it_declares(make: Callable[[int, int], bytes], size: tuple[int, int]) -> None:
    if make is lossless and max(size) > 16_384:
        size = (16_384, 16_384)
    with pytest.raises(logos.NoLogo, match="pixels"):
        logos.check(make(*size))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"GIF89a" + b"\0" * 40,
        b"BM" + b"\0" * 40,
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<?xml version='1.0'?><svg/>",
        b"<html><script>alert(1)</script>",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"\x1f\x8b\x08\0",
        "no image".encode("utf-16"),
        png()[:-1],
        png()[:20],
        png()[:8],
        png() + b"<script>",
        png().replace(b"IHDR", b"IHDX"),
        png()[:30] + b"\xff" + png()[31:],
        b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + b"\xff\xff\xff\xffIHDR",
        png(0, 1),
        jpeg()[:-2],
        jpeg()[:10] + b"\xff\xd9",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\x00\x02\xff\xd9",
        b"\xff\xd8\xff\xe0\x00\x00\xff\xd9",
        jpeg(0, 1),
        b"\xff\xd8" + b"\xff" * 60_000 + b"\xff\xd9",
        lossless(1, 1)[:-1],
        lossless(1, 1) + b"x",
        webp(b""),
        webp(b"VP8X"),
        webp(b"VP9 " + b"\0" * 30),
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\xff\xff\xff\xffWEBP" + b"\0" * 30,
        b"RIFF" + struct.pack("<I", 36) + b"WAVE" + b"\0" * 32,
    ],
)
def test_what_is_no_whole_image_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(logos.NoLogo):
        logos.check(content)


def test_moving_images_are_no_logos() -> None:
    for content in (png(2, 2, chunk(b"acTL", b"\0" * 8)), extended(2, 2, flags=0b10)):
        with pytest.raises(logos.NoLogo, match="moves"):
            logos.check(content)


def test_more_than_64_kb_are_refused_and_64_kb_are_not() -> None:
    room = logos.MAX_BYTES - len(png()) - 12
    assert len(logos.check(png(2, 2, chunk(b"tEXt", b"x" * room))).content) == logos.MAX_BYTES
    with pytest.raises(logos.NoLogo, match="65 KB"):
        logos.check(png(2, 2, chunk(b"tEXt", b"x" * (room + 1))))


def test_every_cut_and_every_flipped_byte_is_an_image_or_refused_and_never_an_error() -> None:
    for whole in (png(), jpeg(), lossless(4, 4), lossy(4, 4), extended(4, 4)):
        for at in range(len(whole)):
            for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
                try:
                    logos.check(content)
                except logos.NoLogo as refused:
                    assert str(refused)  # noqa: PT017 (either is right)


def test_a_stream_of_noise_is_never_an_error() -> None:
    noise = io.BytesIO(bytes((n * n * 31 + n * 7) % 256 for n in range(4_000))).read()
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"):
        for at in range(0, 3_000, 17):
            with pytest.raises(logos.NoLogo):
                logos.check(start + noise[at : at + 900])


class TestColours:
    @pytest.mark.parametrize(
        "colour", ["#000000", "#ffffff", "#ffff00", "#808080", "#767676", "#ff0000", "#00ff00", "#0000ff", "#0f766e", "#151519", "#f0f0f3"]
    )
    @pytest.mark.parametrize("scheme", [colours.LIGHT, colours.DARK])
    def test_any_colour_is_made_readable(self, colour: str, scheme: colours.Scheme) -> None:
        shades = colours.shades(colour, scheme)
        for ground in (scheme.surface, scheme.sunken, shades.soft):
            assert colours.contrast(shades.accent, ground) >= 4.5
        assert colours.contrast(shades.ink, shades.accent) >= 4.5

    def test_a_colour_that_can_be_read_as_it_is_stays(self) -> None:
        assert colours.shades("#0f766e", colours.LIGHT).accent == "#0f766e"

    def test_contrast_is_wcags(self) -> None:
        assert colours.contrast("#000000", "#ffffff") == pytest.approx(21)
        assert colours.contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)

    @pytest.mark.parametrize("colour", ["", "red", "#fff", "#gggggg", "#12345", "#1234567", "123456#"])
    def test_what_is_no_colour_is_none(self, colour: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 (int's own words, or ours)
            colours.stylesheet(colour)
