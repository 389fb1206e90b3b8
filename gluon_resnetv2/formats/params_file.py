"""Parameter files, read without MXNet's reader, which takes what it is given.

A flipped bit of a .params file becomes a wrong weight in MXNet, or 12 GB of memory. This is what
its `NDArray::Save` (src/ndarray/ndarray.cc) writes, little-endian:

    uint64 0x112, uint64 0
    uint64 count, then for each array
        uint32 0xF993FAC9, int32 storage type, int32 ndim, int64 dims, int32 device, int32 its id,
        int32 type, data
    uint64 count, then for each name
        uint64 length, characters

An array of before 0.12 begins with 0xF993FAC8 and has no storage type; one of before 0.11 is
uint32 ndim, uint32 dims, and from the device on the same.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import struct
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.layers import DTYPES
from gluon_resnetv2.untrusted import Fault, faults_of, quote, read_bytes

PARAMS_BYTES = 4 << 30  # the most that is read
LIST = 0x112
# V3 is written where shapes follow NumPy's rules.
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE = 0
MOST_DIMENSIONS = 8
TYPES: dict[int, np.dtype] = {
    0: np.dtype("float32"),
    1: np.dtype("float64"),
    2: np.dtype("float16"),
    3: np.dtype("uint8"),
    4: np.dtype("int32"),
    5: np.dtype("int8"),
    6: np.dtype("int64"),
    12: DTYPES["bfloat16"],
}
DEVICES = (1, 2, 3, 5)  # CPU, GPU, CPU pinned and shared: where the arrays were
NAME = re.compile(r"[!#-\[\]-~]{1,256}")  # printable, and nothing that JSON would have to escape
BLOCK = 1 << 20  # elements that are looked at at once


def read_arrays(path: str | Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """The read-only arrays of a .params file by their `bare` names.

    Args:
        sha256: the file's, in hexadecimal, where it is known.

    Raises:
        UserError: the file is missing, damaged, or another one.
    """
    with faults_of(path):
        arrays = parse_arrays(read_bytes(path, PARAMS_BYTES, sha256))
    return {bare(name): array for name, array in arrays.items()}


def bare(name: str) -> str:
    """A name without "arg:" or "aux:", which the files of pairs have before it, and no others."""
    return name[4:] if name.startswith(("arg:", "aux:")) else name


def parse_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .params file's content, as views of it, by the names that it has for them.

    Raises:
        Fault: it is damaged, or something else.
    """
    if not data:
        raise Fault("is empty")
    cursor = _Cursor(data)
    if cursor.left < 32 or cursor.numbers("QQ") != (LIST, 0):
        raise Fault("is no MXNet parameter file")
    (count,) = cursor.numbers("Q")
    if not count:
        raise Fault(
            "holds no parameters (MXNet writes such a file where a quantised network is exported "
            "before it has run)"
        )
    arrays: list[np.ndarray] = []
    while len(arrays) < count:
        try:
            arrays.append(_array(cursor))
        except Fault as fault:
            raise Fault(f"{fault} (array {len(arrays)} of {count})") from None
    if cursor.numbers("Q") != (count,):
        raise Fault("does not have a name for each array")
    named, names = {}, set()
    for array in arrays:
        (length,) = cursor.numbers("Q")
        name = str(cursor.take(length), "ascii", "replace")
        if not NAME.fullmatch(bare(name)):
            raise Fault(f"has a name, {quote(name)}, that is no parameter's")
        if bare(name) in names:
            raise Fault(f"has {bare(name)} twice")
        names.add(bare(name))
        if not _finite(array):
            raise Fault(f"has a number in {name} that is not finite")
        named[name] = array
    if cursor.left:
        raise Fault(f"has {cursor.left} bytes more than its arrays need")
    return named


class _Cursor:
    """Reads bytes from the first to the last, never beyond."""

    def __init__(self, data: bytes):
        self._data, self._at = memoryview(data), 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> memoryview:
        if size > self.left:
            raise Fault(f"is cut off: {size} bytes should follow byte {self._at}")
        self._at += size
        return self._data[self._at - size : self._at]

    def numbers(self, layout: str) -> tuple:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))


def _array(cursor: _Cursor) -> np.ndarray:
    (version,) = cursor.numbers("I")
    if version > MOST_DIMENSIONS and version not in (V1, V2, V3):
        raise Fault("has an array that is not in MXNet's format")
    if version in (V2, V3) and cursor.numbers("i") != (DENSE,):
        raise Fault("has an array that is not dense")
    first = version <= MOST_DIMENSIONS
    ndim, size = (version, "I") if first else (*cursor.numbers("i"), "q")
    if not 1 <= ndim <= MOST_DIMENSIONS:
        raise Fault(f"has an array of {ndim} dimensions")
    dims = cursor.numbers(f"{ndim}{size}")
    device, number, kind = cursor.numbers("iii")
    if device not in DEVICES or not 0 <= number < 256:
        raise Fault("has an array of an unknown device")
    if kind not in TYPES:
        raise Fault(f"has an array of an unknown type, {kind}")
    if min(dims) < 1:
        raise Fault(f"has an array of shape {dims}")
    data = cursor.take(math.prod(dims) * TYPES[kind].itemsize)
    return np.frombuffer(data, TYPES[kind].newbyteorder("<")).reshape(dims)


def _finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    blocks = (flat[at : at + BLOCK] for at in range(0, flat.size, BLOCK))
    if flat.dtype == DTYPES["bfloat16"]:
        exponent = 0x7F80  # all ones: infinite, or no number
        return not any(np.any(block.view("uint16") & exponent == exponent) for block in blocks)
    return all(np.isfinite(block).all() for block in blocks)


def save_arrays(path: str | Path, arrays: dict[str, mx.nd.NDArray]) -> None:
    """Writes named arrays in MXNet's format.

    Raises:
        OSError: the file can't be written, or not whole.
    """
    with contextlib.suppress(mx.MXNetError):
        mx.nd.save(str(path), arrays)
    # MXNet's writer does not notice a full disk.
    if not (os.path.exists(path) and os.path.getsize(path) == _file_size(arrays)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _file_size(arrays):
    """In bytes: for each array its description, numbers and name; and three counts more."""
    return 32 + sum(
        24 + 8 * array.ndim + array.size * np.dtype(array.dtype).itemsize + 8 + len(name.encode())
        for name, array in arrays.items()
    )
