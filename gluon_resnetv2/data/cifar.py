"""CIFAR-10 and CIFAR-100, from their binary archives (https://www.cs.toronto.edu/~kriz/cifar.html).

An archive is read in one pass, and nothing of it is unpacked to disk.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from gluon_resnetv2.data.arrays import CHUNK, ArrayDataset, Split, channel_statistics
from gluon_resnetv2.data.download import download, md5
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import cache_folder, expanded

SIZE = 32  # height and width of every image, in pixels
UNPACKED = 1 << 28  # bytes of an archive that are read; the data sets' have 185 million
PIXELS = 3 * SIZE * SIZE  # bytes of an image: all of its red, then green, then blue


@dataclass(frozen=True)
class Source:
    """An archive, and what is in it.

    Attributes:
        url: where it is downloaded from.
        md5: of the archive, in hexadecimal.
        folder: the one that all its files are in.
        labels: a record's labels, one byte each, before the image: (file of the classes' names,
            number of classes).
        train, test: (file, number of records).
        names: of the classes, where their file is missing, as in the cache of MXNet's Gluon.
    """

    url: str
    md5: str
    folder: str
    labels: tuple[tuple[str, int], ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    names: tuple[str, ...] = ()

    @property
    def archive(self) -> str:
        return self.url.rsplit("/", 1)[-1]


# Layout and MD5 as the data sets' page states them.
SOURCES = {
    "cifar10": Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        labels=(("batches.meta.txt", 10),),
        train=tuple((f"data_batch_{i}.bin", 10_000) for i in range(1, 6)),
        test=(("test_batch.bin", 10_000),),
        names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
    "cifar100": Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        labels=(("coarse_label_names.txt", 20), ("fine_label_names.txt", 100)),
        train=(("train.bin", 50_000),),
        test=(("test.bin", 10_000),),
    ),
}


def load_cifar10(
    data_dir: str | os.PathLike[str] | None = None, flip: bool | None = None
) -> ArrayDataset:
    """CIFAR-10: 50000 training and 10000 test images, 32x32 pixels, 10 classes.

    Args:
        data_dir: has the archive or its unpacked folder, is that folder, or receives the download;
            the user's cache by default.
        flip: whether augmentation mirrors images; it does by default.

    Raises:
        UserError: it can't be downloaded, or what is there is damaged.
    """
    return _load("cifar10", data_dir, 0, flip)


def load_cifar100(
    data_dir: str | os.PathLike[str] | None = None, coarse: bool = False, flip: bool | None = None
) -> ArrayDataset:
    """CIFAR-100: as CIFAR-10, with 100 fine classes or the 20 coarse ones that group them."""
    return _load("cifar100", data_dir, 0 if coarse else 1, flip)


def _load(
    name: str, data_dir: str | os.PathLike[str] | None, label: int, flip: bool | None
) -> ArrayDataset:
    source = SOURCES[name]
    where = _find(source, expanded(data_dir) if data_dir else cache_folder())
    classes, train, test = _read(source, where, label)
    mean, std = channel_statistics(train.images)
    return ArrayDataset(
        name=name,
        train=train,
        test=test,
        classes=classes,
        mean=mean,
        std=std,
        pad=4,  # with flipping, the augmentation of [v1] section 4.2 and [v2] appendix
        flip=flip is not False,
        fill=mean,  # zero once normalised
    )


def _find(source: Source, data_dir: Path) -> Path:
    """The unpacked folder, or else the archive, downloaded if need be and checked."""
    folder, archive = data_dir / source.folder, data_dir / source.archive
    if folder.is_dir():
        return folder
    if (data_dir / source.train[0][0]).is_file():
        return data_dir
    if not archive.exists():
        if (unread := data_dir / source.folder.replace("bin", "py")).is_dir():
            print(f"{unread} is not read: only the binary version is", file=sys.stderr)
        download(source.url, archive, source.md5)
    elif (found := md5(archive)) != source.md5:
        raise _damaged(archive, f"its MD5 is {found}, not {source.md5}")
    return archive


def _damaged(where: Path, what: str) -> UserError:
    return UserError(f"{where} is damaged: {what}; remove it to have it downloaded again")


def _read(source: Source, where: Path, label: int) -> tuple[tuple[str, ...], Split, Split]:
    """The classes' names, the training and the test images, labelled by a record's byte `label`."""
    train, train_parts = _allocate(source.train)
    test, test_parts = _allocate(source.test)
    parts = {**train_parts, **test_parts}
    names_file, count = source.labels[label]
    classes = None
    with _told(where):
        for name, size, file in _files(where):
            if name == names_file:
                classes = tuple(file.read(1 << 16).decode("utf-8", "replace").split())
                if len(classes) != count:
                    raise _damaged(where, f"{name} names {len(classes)} classes, not {count}")
            elif name in parts:
                part, header = parts.pop(name), len(source.labels)
                expected = len(part.labels) * (header + PIXELS)
                if size != expected:
                    raise _damaged(where, f"{name} has {size} bytes, not {expected}")
                _read_records(file, part, header, label)
                if part.labels.max() >= count:
                    what = f"{name} has label {part.labels.max()}, but only {count} classes"
                    raise _damaged(where, what)
    classes = classes or source.names
    missing = [*parts, *([] if classes else [names_file])]
    if missing:
        raise _damaged(where, f"{', '.join(missing)} missing")
    return classes, train, test


@contextlib.contextmanager
def _told(where: Path) -> Iterator[None]:
    """Has whatever tarfile and gzip make of damage become the user's error."""
    try:
        yield
    except UserError:
        raise
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise _damaged(where, f"it is no tar archive in gzip ({error})") from None


def _allocate(files: tuple[tuple[str, int], ...]) -> tuple[Split, dict[str, Split]]:
    """Room for the images of all files, and each file's part of it."""
    total = sum(records for _, records in files)
    whole = Split(np.empty((total, SIZE, SIZE, 3), np.uint8), np.empty(total, np.int32))
    parts, start = {}, 0
    for name, records in files:
        rows = slice(start, start + records)
        parts[name] = Split(whole.images[rows], whole.labels[rows])
        start += records
    return whole, parts


def _files(where: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size in bytes and content of each file, in whatever order they are stored."""
    if where.is_dir():
        for path in filter(Path.is_file, where.iterdir()):
            with open(path, "rb") as file:
                yield path.name, path.stat().st_size, file
        return
    with _Bounded(where) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for member in archive:
            if member.isfile() and (content := archive.extractfile(member)):
                yield Path(member.name).name, member.size, content


class _Bounded(gzip.GzipFile):
    """A file of which no more than UNPACKED bytes are read, whatever it is asked for."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        if self.taken > UNPACKED:
            raise tarfile.ReadError(f"it has more than {UNPACKED} bytes")
        return data


def _read_records(file: IO[bytes], part: Split, header: int, label: int) -> None:
    """Fills `part` with records of `header` label bytes and an image each."""
    length = header + PIXELS
    for start in range(0, len(part.labels), CHUNK):
        rows = slice(start, start + CHUNK)
        count = len(part.labels[rows])
        records = np.frombuffer(file.read(count * length), np.uint8).reshape(count, length)
        part.labels[rows] = records[:, label]
        colours = records[:, header:].reshape(count, 3, SIZE, SIZE)
        np.asarray(part.images)[rows] = colours.transpose(0, 2, 3, 1)
