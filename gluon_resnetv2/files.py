"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        before = temporary.with_name(f"{temporary.name}.before")
        temporary.chmod(0o755)  # mkdtemp's folders are private
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        _sync_folder(temporary)
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
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(path):
    """Has the disk know the names in a folder, not only the files' contents."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes `value` as indented JSON, whole or not at all.

    Raises:
        OSError: as `whole_file`.
    """
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=_plain) + "\n", encoding="utf-8")


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else str(value)  # NumPy's numbers


def sha256(path: str | os.PathLike) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where downloads and compiled code go (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gluon_resnetv2"
