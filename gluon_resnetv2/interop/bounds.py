"""What a file of weights may have at most, in whatever format, before its numbers are looked at."""

from __future__ import annotations

import mmap

from gluon_resnetv2.untrusted import Fault

MOST_BYTES = 4 << 30  # of a file
MOST_DESCRIPTION = 4 << 20  # bytes of what tells of the numbers, in it or of its model
MOST_DIMENSIONS = 8
MOST_NUMBERS = 1 << 40  # of a shape, its zeros left out: of more, NumPy makes no array, even empty
MOST_OBJECTS = 100_000  # members of an archive, which take a kilobyte each; groups in HDF5
MEMBER = b"PK\x01\x02"  # what each member of a zip archive is announced by


def check_members(data: bytes | mmap.mmap) -> None:
    """Raises a Fault where a zip archive's content has more members than `MOST_OBJECTS`."""
    at = -1
    for _ in range(MOST_OBJECTS + 1):
        at = data.find(MEMBER, at + 1)
        if at < 0:
            return
    raise Fault("is an archive of too many files")
