"""What a file of weights may have at most, in whatever format, before its numbers are looked at."""

from __future__ import annotations

from typing import BinaryIO

from gluon_resnetv2.untrusted import Fault

MOST_BYTES = 4 << 30  # of a file
MOST_DESCRIPTION = 4 << 20  # bytes of what tells of the numbers, in it or of its model
MOST_DIMENSIONS = 8
MOST_NUMBERS = 1 << 40  # of a shape, its zeros left out: of more, NumPy makes no array, even empty
MOST_OBJECTS = 100_000  # members of an archive, which take a kilobyte each
MOST_GROUPS = 10_000  # and arrays in HDF5, which take half a millisecond each to open
LONGEST_NAME = 1000  # characters of an array's
MEMBER = b"PK\x01\x02"  # what each member of a zip archive is announced by, and
HEAD = 32  # the bytes that begin so, and end in how many more are told of it
BLOCK = 1 << 16  # bytes that are looked at at once


def is_name(name: object) -> bool:
    """Whether an array may be called so, and messages name it."""
    return isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable()


def check_members(file: BinaryIO) -> None:
    """Raises a Fault where a zip archive has more members than `MOST_OBJECTS`, or tells of them in
    more than `MOST_DESCRIPTION`: what `zipfile` takes for a member grows with the square of that.
    """
    members = extra = 0
    data = b""
    for block in iter(lambda: file.read(BLOCK), b""):
        data = data[1 - HEAD :] + block
        at = data.find(MEMBER)
        while 0 <= at <= len(data) - HEAD:
            members += 1
            extra += int.from_bytes(data[at + 30 : at + 32], "little")
            at = data.find(MEMBER, at + 1)
        if members > MOST_OBJECTS:
            raise Fault("is an archive of too many files")
        if extra > MOST_DESCRIPTION:
            raise Fault("is an archive that tells too much of its files")
