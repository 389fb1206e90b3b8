"""RecordIO files, as dmlc-core's `recordio.h` and MXNet's `recordio.py` define them.

A record is one part or several, each of a magic number, its kind and length, and its data, filled
up to a multiple of four bytes. Data are split where they hold the magic number themselves. A
record's data begin with a header: how many labels follow it, or 0 and the label in it, and the key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAGIC = struct.pack("<I", 0xCED7230A)
FRAME = struct.Struct("<4sI")  # the magic number; the kind in three bits, the length in 29
WHOLE, FIRST, MIDDLE, LAST = range(4)
HEADER = struct.Struct("<IfQQ")
LABEL = struct.Struct("<f")
HEAD = HEADER.size + LABEL.size

# Bounds of a record: the largest image that is decoded takes less, and the magic number stands in
# one of four billion words.
BYTES, PARTS = 1 << 28, 1000


class Broken(ValueError):
    """There is no whole record where one should begin."""


class Record(NamedTuple):
    """A record, or its beginning.

    Attributes:
        labels: how many it has.
        label: its first; it has no others that we read.
        key: that `im2rec` gave it.
        data: the encoded image, where it has one label.
    """

    labels: int
    label: float
    key: int
    data: bytes


def read(file: BinaryIO, offset: int) -> Record:
    """The record that begins at `offset`.

    Raises:
        Broken: none does, it is cut short, or it is larger than BYTES or PARTS.
    """
    parts: list[bytes] = []
    kind, left = FIRST, BYTES
    while kind in (FIRST, MIDDLE):
        kind, length = _frame(file, offset)
        left -= length
        if left < 0 or len(parts) == PARTS:
            raise Broken
        data = file.read(length)
        if len(data) < length or (kind in (WHOLE, FIRST)) == bool(parts):
            raise Broken
        parts.append(data)
        offset += _room(length)
    return _record(MAGIC.join(parts))


def head(file: BinaryIO, offset: int) -> Record:
    """As `read`, of the beginning alone: without the image."""
    _, length = _frame(file, offset)
    return _record(file.read(min(length, HEAD)))


def offsets(file: BinaryIO) -> Iterator[int]:
    """Where the records of a file begin; whether the last is whole is not looked at.

    Bytes behind it that are too few for another are nothing.

    Raises:
        Broken: something else stands between them.
    """
    size, offset = file.seek(0, 2), 0
    while size - offset >= FRAME.size:
        kind, length = _frame(file, offset)
        if kind in (WHOLE, FIRST):
            yield offset
        offset += _room(length)


def _frame(file: BinaryIO, offset: int) -> tuple[int, int]:
    file.seek(offset)
    data = file.read(FRAME.size)
    if len(data) < FRAME.size or data[:4] != MAGIC:
        raise Broken
    kind, length = divmod(FRAME.unpack(data)[1], 1 << 29)
    if kind > LAST:
        raise Broken
    return kind, length


def _room(length: int) -> int:
    return FRAME.size + length + -length % 4


def _record(data: bytes) -> Record:
    if len(data) < HEADER.size:
        raise Broken
    labels, label, key, _ = HEADER.unpack_from(data)
    start = HEADER.size + labels * LABEL.size
    if labels and len(data) >= HEAD:
        (label,) = LABEL.unpack_from(data, HEADER.size)
    return Record(labels or 1, label, key, data[start:])
