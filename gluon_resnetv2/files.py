"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gluon_resnetv2.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes `path`'s place when the block succeeds.

    Raises:
        OSError: the folder can't be written to, or the disk is full; `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)  # the temporary name would tell nobody anything
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path`; it takes `path`'s place when the block succeeds.

    Raises:
        OSError: as `whole_file`; what `path` held before is then still there.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        name = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
        temporary = Path(name)
        with contextlib.ExitStack() as alone:
            with contextlib.suppress(OSError):  # a file system without locks
                alone.enter_context(locked(temporary))
            temporary.chmod(0o755)  # mkdtemp's folders are private
            yield temporary
            for file in temporary.iterdir():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            _sync_folder(temporary)
            _put_in_place(temporary, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary, path):
    before = temporary.with_suffix(".before")
    if path.exists():
        os.replace(path, before)
    try:
        os.replace(temporary, path)
    except OSError:
        if before.exists():
            os.replace(before, path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(before, ignore_errors=True)


def recover_folder(path: str | os.PathLike) -> None:
    """Puts back what a killed `whole_folder` had taken from its place, and removes its remains.

    What another process is still writing is left alone; so is all where that can't be known: on a
    file system without locks, or without the right to write.
    """
    path = Path(path).resolve()
    remains = re.compile(re.escape(f".{path.name}.") + r"\w{8}\.(new|before)")
    try:
        found = [file for file in path.parent.iterdir() if remains.fullmatch(file.name)]
    except OSError:
        return
    for new in {file.with_suffix(".new") for file in found}:
        before = new.with_suffix(".before")
        with contextlib.suppress(OSError), contextlib.ExitStack() as alone:
            if new.exists():
                alone.enter_context(locked(new))
            if before.exists() and not (path.exists() and any(path.iterdir())):
                before.rename(path)
            shutil.rmtree(before, ignore_errors=True)
            shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes that ask for it out of a folder, until the block or this process ends.

    Raises:
        BlockingIOError: another process is there.
        OSError: the file system knows no locks, or it is no folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # a pipe would be waited for
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _sync_folder(path):
    """Has the disk know the names in a folder, not only the files' contents."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes `value` as indented JSON, whole or not at all.

    Raises:
        OSError: as `whole_file`.
    """
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=plain) + "\n", encoding="utf-8")


def plain(value):
    """`value`, which JSON has no place for, as what has one: of NumPy's numbers, and text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def sha256(path: str | os.PathLike) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def expanded(path: str | os.PathLike, way_out: str = "name another folder") -> Path:
    """`path` with the home folder that a leading ~ or ~USER stands for.

    Raises:
        UserError: that is not known: no HOME, and the system does not know the user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"no home folder is known for {path}; {way_out}") from None


def cache_folder() -> Path:
    """Where downloads and compiled code go (XDG base directory specification).

    Raises:
        UserError: as `expanded`.
    """
    named = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = expanded(named, "set HOME or XDG_CACHE_HOME") / "gluon_resnetv2"
    return folder.absolute()
