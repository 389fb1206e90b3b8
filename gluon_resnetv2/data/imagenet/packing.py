"""Packs a folder of images into RecordIO: checked before, packed by `im2rec`, checked after."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from gluon_resnetv2 import machine
from gluon_resnetv2.data.imagenet.damage import mark
from gluon_resnetv2.data.imagenet.folder import Folder
from gluon_resnetv2.data.imagenet.images import resize_shorter
from gluon_resnetv2.data.imagenet.progress import in_turn, told
from gluon_resnetv2.data.imagenet.records import Records
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.pixels import NoImage, decode

QUALITY = 95  # of images that are encoded anew; im2rec's default


class Packed(NamedTuple):
    """What `pack` has done.

    Attributes:
        path: of the .rec file.
        images: how many it holds.
        classes: their names.
        left_out: messages that name the images which can't be decoded.
    """

    path: Path
    images: int
    classes: tuple[str, ...]
    left_out: list[str]


def pack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    resize: int | None = None,
    leave_out: bool = False,
    threads: int | None = None,
) -> Packed:
    """Packs `SOURCE/CLASS/*.JPEG` and the like into OUTPUT, NAME.rec with .idx, .lst and .checked.

    Every image is decoded first; afterwards every record is read back and compared. Keys count the
    images in the order of their names; the records stand in random order, the same every time, so
    that each part of the file is a fair sample. Files are stored as they are, unless `resize` says
    otherwise. All is written under other names first and needs room beside OUTPUT.

    Args:
        resize: shorter side to which larger images are scaled, and encoded anew as JPEG of quality
            95; while `pack` runs, they take their room twice.
        leave_out: whether images that can't be decoded are left out; else they are an error.
        threads: how many threads decode images; one per CPU by default.

    Raises:
        UserError: a class without images, OUTPUT is there already or no .rec, images that can't be
            decoded (each is named on standard error), or a result that is not what it should be.
        OSError: the folder can't be written to, or the disk is full.
    """
    output = Path(output)
    targets = {
        suffix: output.with_suffix(suffix) for suffix in (".lst", ".idx", ".checked", ".rec")
    }
    if output.suffix != ".rec":
        raise UserError(f"{output} should end in .rec")
    for target in targets.values():
        if target.exists():
            raise UserError(f"{target} exists already; remove it or name another file")
    if resize is not None and resize < 1:
        raise UserError(f"--resize {resize} should be at least 1 pixel")
    folder = Folder(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.stem}.", dir=output.parent) as temporary:
        copies = Path(temporary) / "copies"
        checksums, bad = _check(folder, copies, resize, threads or machine.cpus())
        if bad and not leave_out:
            raise UserError(
                f"{len(bad)} of {len(folder)} images can't be packed, the first: {bad[0]}; mend "
                "them, or leave them out with --leave-out"
            )
        empty = set(range(len(folder.classes))) - {int(folder.labels[row]) for row in checksums}
        if empty:
            raise UserError(f"class {folder.classes[min(empty)]} has no image that can be decoded")
        made = Path(temporary) / output.name
        _write_list(made.with_suffix(".lst"), folder, sorted(checksums))
        _im2rec(made, copies if resize else folder.path.resolve(), len(checksums))
        records = Records(made)
        _compare(records, folder, checksums)
        mark(records)
        for suffix, target in targets.items():  # the .rec last: without it there is nothing to read
            with open(made.with_suffix(suffix), "rb") as file:
                os.fsync(file.fileno())
            os.replace(made.with_suffix(suffix), target)
    return Packed(output, len(checksums), folder.classes, bad)


def _check(
    folder: Folder, copies: Path, resize: int | None, threads: int
) -> tuple[dict[int, int], list[str]]:
    """Decodes all images; with `resize` writes what is to be packed.

    Returns:
        checksums: of what is to be packed, by the rows that can be decoded.
        bad: a message for each other image.
    """

    def one(row: int) -> int | str:
        try:
            data, _ = folder.read(row)
            image = decode(data)
        except NoImage as error:
            return f"{folder.name(row)} {error}"
        except OSError as error:
            return f"{folder.name(row)} can't be read: {error.strerror}"
        if resize:
            if min(image.size) > resize:
                buffer = io.BytesIO()
                resize_shorter(image, resize).save(buffer, "JPEG", quality=QUALITY)
                data = buffer.getvalue()
            copy = copies / folder.files[row]
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
        return zlib.crc32(data)

    checksums, bad = {}, []
    with ThreadPoolExecutor(threads) as pool:
        found = told(in_turn(pool, one, range(len(folder))), "check", len(folder))
        for row, checksum in enumerate(found):
            if isinstance(checksum, str):
                bad.append(checksum)
                tqdm.write(f"can't be packed: {checksum}", file=sys.stderr)
            else:
                checksums[row] = checksum
    return checksums, bad


def _write_list(path: Path, folder: Folder, rows: list[int]) -> None:
    """im2rec's list of what to pack: key, label, file."""
    order = list(enumerate(rows))
    random.Random(100).shuffle(order)  # im2rec's own seed
    with open(path, "w", encoding="utf-8") as file:
        for key, row in order:
            name = folder.files[row]
            if name != name.strip() or not name.isprintable():
                raise UserError(
                    f"{folder.name(row)!r} has a name that im2rec can't read; change it"
                )
            file.write(f"{key}\t{folder.labels[row]}\t{name}\n")


def _im2rec(made: Path, root: Path, count: int) -> None:
    """Has MXNet's im2rec pack the files below `root` that the list beside `made` names."""
    module = "gluon_resnetv2.data.imagenet.im2rec"
    options = ["--pass-through", str(made.with_suffix("")), str(root)]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", module, *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
    )
    last = ""

    def packed() -> Iterator[int]:
        """An item for each image; im2rec tells of every thousandth."""
        nonlocal last
        done = 0
        for line in process.stdout or ():
            last = line.strip() or last
            if "count:" in line:
                now = int(line.split("count:")[1])
                yield from range(done, now)
                done = now
        yield from range(done, count)

    with process:
        for _ in told(packed(), "pack", count):
            pass
    if process.returncode:
        raise UserError(f"im2rec failed: {last}")


def _compare(records: Records, folder: Folder, checksums: dict[int, int]) -> None:
    """Reads all records back: the same images and labels, in the same order."""
    rows = sorted(checksums)
    if len(records) != len(rows):
        raise UserError(f"im2rec packed {len(records)} of {len(rows)} images; is the disk full?")
    for key in told(range(len(rows)), "read back", len(rows)):
        data, label = records.read(key)
        row = rows[key]
        if (zlib.crc32(data), label) != (checksums[row], folder.labels[row]):
            raise UserError(f"{folder.name(row)} was changed while it was packed; pack it again")
