"""Fetching a file over a network that may break off."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from gluon_resnetv2.errors import UserError

BLOCK = 1 << 16  # bytes
LARGEST = 1 << 28  # bytes of a file; the data sets' have 170 million
REQUESTS = 100  # for a file, within one call
TIMEOUT = 30  # seconds of silence
SLOWEST = 1000  # bytes a second, once a request is older than that


def md5(path: Path) -> str:
    """The file's MD5 in hexadecimal: it tells damage, not forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def download(url: str, path: Path, checksum: str) -> None:
    """Downloads `url` to `path`: whole and with the MD5 `checksum`, or not at all.

    Until then the bytes are in `path` with ".part" appended. They stay there after a break, and
    the next call asks for the rest only. A second process waits for the first.

    Raises:
        UserError: no connection, one that is too slow or breaks off again and again, a wrong
            checksum, more than LARGEST bytes, or a folder that is read-only or full.
    """
    part = path.with_name(f"{path.name}.part")
    print(f"downloading {url} to {path}", file=sys.stderr)
    new = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part):
            if not path.exists():
                _complete(part, url, checksum)
                os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{error.filename or part} can't be written: {error.strerror or error}; "
            "name another folder with --data-dir"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # they are not empty
            for folder in new:
                folder.rmdir()


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Keeps other processes away from `part`, which is not left behind empty."""
    with open(part, "ab") as file:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if os.fstat(file.fileno()).st_size == 0:
                part.unlink(missing_ok=True)


def _complete(part: Path, url: str, checksum: str) -> None:
    """Asks for the rest of `part` for as long as that makes it grow, until its MD5 is right."""
    requests = 0
    while (found := md5(part)) != checksum:
        requests += 1
        size = part.stat().st_size
        problem: _BrokenOff | str | None = None
        try:
            _append(part, url)
        except _BrokenOff as error:
            problem = error
        again = requests < REQUESTS and not isinstance(problem, _TooSlow)
        if part.stat().st_size > size and again:
            continue
        if problem or requests == REQUESTS:
            problem = problem or f"it came in more than {REQUESTS} parts"
            raise UserError(
                f"{url} can't be downloaded ({problem}); try again, or put {url.split('/')[-1]} "
                f"into {part.parent} by hand, or name the folder that has it with --data-dir"
            )
        part.unlink()  # the server has nothing to add, so that this can't come right
        raise UserError(f"{url} came with MD5 {found} instead of {checksum}; try again")


class _BrokenOff(Exception):
    """The connection failed, or was refused."""


class _TooSlow(_BrokenOff):
    """Less than SLOWEST came by it."""


def _append(part: Path, url: str) -> None:
    """Writes what the server has beyond the end of `part`, once.

    Raises:
        _BrokenOff: no connection, or not for long enough; what came is written.
        OSError: `part` can't be written.
    """
    size = part.stat().st_size
    response = _request(url, size)
    if response is None:
        return
    with response:
        if not (response.headers["Content-Range"] or "").startswith(f"bytes {size}-"):
            size = 0  # all of it comes: nothing was there, or the server knows no ranges
        progress = tqdm(
            total=None if response.length is None else size + response.length,
            initial=size,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        with progress, open(part, "ab" if size else "wb") as file:
            for block in _blocks(response):
                if file.tell() + len(block) > LARGEST:
                    part.unlink()
                    raise UserError(f"{url} has more than the {LARGEST} bytes that are read")
                file.write(block)
                progress.update(len(block))


def _request(url: str, start: int) -> HTTPResponse | None:
    """The server's answer for the bytes from `start` on; None when there are none."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        answer: HTTPResponse = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
        return answer
    except HTTPError as error:
        with error:  # which is an open answer, too
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return None
            raise _BrokenOff(error) from None
    except (OSError, HTTPException, ValueError) as error:  # the last of an address it sends us to
        raise _BrokenOff(getattr(error, "reason", error)) from None


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes.

    Raises:
        _BrokenOff: no more does, or too slowly.
    """
    started, size = time.monotonic(), 0
    try:
        while block := response.read1(BLOCK):
            yield block
            size += len(block)
            seconds = time.monotonic() - started
            if seconds > TIMEOUT and size < SLOWEST * seconds:
                raise _TooSlow(f"{size} bytes in {seconds:.0f} s")
    except (OSError, HTTPException) as error:
        raise _BrokenOff(error) from None
