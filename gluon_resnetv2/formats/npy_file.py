"""NumPy's files of arrays, written row by row: what is to become one need not fit into memory.

A file is b"\\x93NUMPY", two bytes of version, the header's length as uint16, the header, a Python
dictionary padded with spaces, and the numbers (numpy.lib.format).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

HEADER = 118  # bytes, so that the numbers begin at 128


class Rows:
    """A float32 array (rows, width) in a file that is open for writing.

    Attributes:
        count: how many rows there are.
    """

    def __init__(self, file: BinaryIO):
        self.count, self._width, self._file = 0, 0, file
        self._write_header()

    def add(self, rows: np.ndarray) -> None:
        """Appends rows (n, width)."""
        self._file.write(rows.astype("<f4").tobytes())
        self.count, self._width = self.count + len(rows), rows.shape[1]

    def end(self) -> None:
        """Writes how many rows there are; before, the file says that there are none."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        shape = (self.count, self._width)
        text = repr({"descr": "<f4", "fortran_order": False, "shape": shape})
        header = text.ljust(HEADER - 1).encode() + b"\n"
        self._file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", HEADER) + header)
