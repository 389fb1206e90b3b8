"""Files that anybody may have written: read whole, or refused in one line that says why."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gluon_resnetv2.errors import UserError

# Brackets that any JSON may have, and from how many bytes on each may have one more: Python takes
# 64 bytes and more for each.
BRACKETS, APART = 1000, 8
DEPTH = 500  # of brackets within each other; Python's own limit depends on its version
STEPS = {ord(bracket): step for bracket, step in {"[": 1, "{": 1, "]": -1, "}": -1}.items()}
NO_BRACKETS = bytes(set(range(256)) - set(STEPS))
DIGITS = 18  # of a whole number: what fits 64 bits


class Fault(ValueError):
    """What is wrong with a file, in words that follow the file's name."""


@contextlib.contextmanager
def faults_of(path: str | os.PathLike) -> Iterator[None]:
    """Turns a `Fault` in the block into a `UserError` that names `path`."""
    try:
        yield
    except Fault as fault:
        raise UserError(f"{path} {fault}") from None


def quote(text: str) -> str:
    """`text` as a short part of one line."""
    return ascii(text if len(text) <= 60 else f"{text[:60]}...")


def check_fields(
    values: Any, checks: Mapping[str, Callable[[Any], object]], prefix: str = ""
) -> None:
    """Checks the fields of parsed JSON.

    Args:
        checks: by field, a function that says whether a value will do; it may raise anything.
        prefix: to the fields' names, where `values` is itself a field.

    Raises:
        Fault: a field is missing or has a wrong value; or `values` is no JSON object.
    """
    if not isinstance(values, dict):
        raise Fault("is no JSON object")
    for name, could_be in checks.items():
        good, reason = False, ""
        try:
            good = bool(could_be(values[name]))
        except UserError as error:
            reason = f": {error}"
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            pass
        if not good:
            what = "a wrong" if name in values else "no"
            raise Fault(f"has {what} {prefix}{name}{reason}")


def read_bytes(path: str | os.PathLike, limit: int, sha256: str | None = None) -> bytes:
    """The content of a file of at most `limit` bytes.

    Args:
        sha256: what its SHA-256 should be, in hexadecimal, where that is known.

    Raises:
        Fault: it can't be read, is no file, is larger, or has another SHA-256.
    """
    try:
        # A pipe would be waited for.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Fault("is no file")
            if found.st_size > limit:
                raise Fault(f"has {found.st_size} bytes; {limit} are the most that is read")
            data = file.read(found.st_size)
    except OSError as error:
        raise Fault(f"can't be read: {error.strerror}") from None
    if len(data) != found.st_size:
        raise Fault("changes while it is read")
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise Fault("is not the file that was exported: its SHA-256 differs; export again")
    return data


def read_json(data: bytes, finite: bool = True) -> Any:
    """What JSON in UTF-8 says, where it says it once and in finite numbers.

    Takes memory in proportion to `data`, whatever that is.

    Args:
        finite: whether NaN, Infinity and what is beyond the floats are refused.

    Raises:
        Fault: it is no such JSON.
    """
    if data.count(b"{") + data.count(b"[") > BRACKETS + len(data) // APART:
        raise Fault("is all brackets")
    return parse_json(data, finite=finite, overflow=not finite)


def parse_json(
    data: bytes, *, finite: bool = True, overflow: bool = False, digits: int = DIGITS
) -> Any:
    """`read_json` of what is known to have few enough values.

    Args:
        finite: whether NaN and Infinity are refused.
        overflow: whether what is beyond the floats is infinite, rather than refused; faster.
        digits: the most of a whole number. Reading more takes time by their square.

    Raises:
        Fault: it is no such JSON.
    """

    def once(pairs):
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise Fault(f"has {quote(twice)} twice in one object")
        return parsed

    def integer(text):
        if len(text) > digits:
            raise Fault(f"has a number of more than {digits} digits, {quote(text)}")
        return int(text)

    def real(text):
        if not math.isfinite(float(text)):
            raise Fault(f"has a number {quote(text)}")
        return float(text)

    if data.count(b"[") + data.count(b"{") > DEPTH and _is_deep(data):
        raise Fault("is nested too deeply")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=once,
            parse_int=integer,
            parse_float=float if overflow else real,
            parse_constant=real if finite else float,  # NaN, Infinity, -Infinity
        )
    except Fault:
        raise
    except UnicodeDecodeError as error:
        raise Fault(f"is no JSON: not UTF-8, {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise Fault(f"is no JSON: {error}") from None


def _is_deep(data: bytes) -> bool:
    """Whether more than `DEPTH` brackets are within each other; those in texts count, too."""
    depths = itertools.accumulate(map(STEPS.__getitem__, data.translate(None, NO_BRACKETS)))
    return any(map(DEPTH.__lt__, depths))  # looks no further than that, and in C
