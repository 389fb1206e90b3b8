"""Image files that ask for far more work than their pixels, each by another part of its format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image


def encoded(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size).save(file, kind)
    return file.getvalue()


def segment(marker: int, data: bytes) -> bytes:
    """A part of a JPEG."""
    return b"\xff" + struct.pack(">BH", marker, len(data) + 2) + data


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def parts(kind: str, count: int, name: bytes = b"abCd", data: bytes = b"", before=True) -> bytes:
    """A small image with `count` parts that show nothing, before its pixels or behind them."""
    part = segment(0xE9, data) if kind == "JPEG" else chunk(name, data)
    file = encoded(kind)
    at = {"JPEG": 2, "PNG": 33 if before else -12}[kind]
    return file[:at] + count * part + file[at:]


def scans(width: int, height: int, count: int, arithmetic: bool = False) -> bytes:
    """A progressive JPEG of black pixels with `count` scans that change nothing."""
    blocks = -(-width // 8) * -(-height // 8)
    frame = struct.pack(">BHHB3B", 8, height, width, 1, 1, 0x11, 0)
    table = bytes([1, *15 * [0]])  # of one code, of one bit
    head = [
        b"\xff\xd8",
        segment(0xDB, b"\0" + bytes(64 * [1])),
        segment(0xCA if arithmetic else 0xC2, frame),
        segment(0xC4, b"\x00" + table + b"\x00"),
        segment(0xC4, b"\x10" + table + b"\xe0"),  # a code for 2^14 blocks and more without values
    ]
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(-(-blocks // 8))
    runs = -(-blocks // 0x7FFF) * f"{0x3FFF:015b}"
    runs += "1" * (-len(runs) % 8)
    data = bytes(int(runs[at : at + 8], 2) for at in range(0, len(runs), 8))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + data.replace(b"\xff", b"\xff\0")
    return b"".join([*head, first, scan * (count - 1), b"\xff\xd9"])


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """(name, file, what the refusal says)."""
    jpeg = encoded("JPEG")
    yield "scans", scans(8192, 4096, 10_000), "has 10000 scans"
    yield "arithmetic", scans(8192, 4096, 30, arithmetic=True), "arithmetic"
    exif = segment(0xE1, b"Exif\0\0" + bytes(65_000))
    yield "EXIF", jpeg[:2] + 900 * exif + jpeg[2:], "pieces of EXIF"
    yield "segments", parts("JPEG", 1_000_000), "more parts"
    yield "chunks", parts("PNG", 300_000), "more parts"
    yield "pixels in chunks", parts("PNG", 300_000, b"IDAT"), "more parts"
