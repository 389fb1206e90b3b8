"""Images in a RecordIO file, as MXNet's `im2rec` packs them."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gluon_resnetv2.data.imagenet import recordio
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.untrusted import quote

# Bounds: bytes of an index, of which ImageNet's has 25 million, and characters of a list's line.
INDEX_BYTES, LINE = 1 << 29, 1 << 14
COMPARED = 1000  # records that are looked up in the list


class Records:
    """The images of NAME.rec, in the order of their keys in NAME.idx.

    Without NAME.idx, which not all of MXNet's tools write, the file is gone through from record to
    record, and keys are those in the records' headers, or the records' places if those repeat.

    NAME.lst, which `im2rec` reads and `pack` leaves there, names the classes by its paths' folders.
    Where it is missing, or files of several folders share a label, classes are named by number.

    Attributes:
        path, index: of the .rec and the .idx file.
        marker: NAME.checked, which `damage.check` writes.
        checked: whether `damage.check` has been here; what can't be decoded is left out then.
        keys: int64 (N,), ascending.
        classes: the classes' names, sorted; numbers in their order.
        class_labels: the label that each has in this file.
        named: whether the names are more than numbers.

    Raises:
        UserError: a file is missing, empty or no such file, or a list is not UTF-8.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.index = self.path.with_suffix(".idx")
        self._list = self.path.with_suffix(".lst")
        self.marker = self.path.with_suffix(".checked")
        self.checked = False
        if not self.path.is_file():
            raise UserError(f"{self.path} is missing; pack the images again")
        self._has_keys = True
        keys, offsets = self._indexed() if self.index.is_file() else self._found()
        order = keys.argsort()
        self.keys, self._offsets = keys[order], offsets[order]
        names = self._names()
        self.named = names is not None
        if names is None:
            print(f"{self.path}: classes are named by number: no usable .lst", file=sys.stderr)
            names = {label: str(label) for label in self.present()}
        ordered = sorted(names, key=names.__getitem__) if self.named else sorted(names)
        self.class_labels = tuple(ordered)
        self.classes = tuple(names[label] for label in self.class_labels)

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, row: int) -> str:
        """What to call image `row` in a message."""
        key = self.keys[row]
        path = self._paths.get(key)
        return f"{self.path}, record {key}" + (f" ({path})" if path else "")

    def read(self, row: int) -> tuple[bytes, int]:
        """Image `row` as it was encoded, and its label in this file. Safe in several threads.

        Raises:
            UserError: no such record is where the index says, or its label is no whole number.
        """
        with open(self.path, "rb") as file:
            return self._read(recordio.read, file, row)

    def contents(self) -> str:
        """What tells whether the images are still those that were checked."""
        return f"{len(self)} images in {self._bytes()} bytes"

    def leave_out(self, rows: Sequence[int]) -> None:
        """Forgets some of the images, of which the others close ranks."""
        self.keys, self._offsets = (np.delete(one, rows) for one in (self.keys, self._offsets))

    @property
    def labels(self) -> NDArray[np.int32]:
        """int32 (N,), of the images, from the records' headers alone: the images are not read."""
        with open(self.path, "rb", buffering=0) as file:
            labels = [self._read(recordio.head, file, row)[1] for row in range(len(self))]
        return np.array(labels, np.int32)

    def present(self) -> set[int]:
        """All labels that images have."""
        return set(self.labels.tolist())

    @functools.cached_property
    def _paths(self) -> dict[int, str]:
        """The path of each key that NAME.lst has."""
        if not self._list.is_file():
            return {}
        return {key: path for key, _, path in self._lines()}

    def _bytes(self) -> int:
        return self.path.stat().st_size

    def _indexed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys and offsets as NAME.idx has them."""
        if self.index.stat().st_size > INDEX_BYTES:
            raise UserError(f"{self.index} has more than the {INDEX_BYTES} bytes that are read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy's of what is no number
                table = np.fromfile(self.index, np.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            table = np.empty(0, np.int64)
        keys, offsets = table[::2], table[1::2]
        paired = 0 < len(keys) == len(offsets)
        unique = all(len(np.unique(one)) == len(one) for one in (keys, offsets))
        if not paired or not unique or offsets.min() < 0 or offsets.max() >= self._bytes():
            raise UserError(f"{self.index} does not belong to {self.path}; pack the images again")
        return keys, offsets

    def _found(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys and offsets from the file itself."""
        offsets, keys = [], []
        with open(self.path, "rb", buffering=0) as file:
            try:
                for offset in recordio.offsets(file):
                    offsets.append(offset)
                    keys.append(recordio.head(file, offset).key)
            except recordio.Broken:
                where = f"after {len(offsets)} records" if offsets else "from its start"
                raise UserError(
                    f"{self.path} is broken {where}, and {self.index} is missing; pack the images "
                    "again"
                ) from None
        if not offsets:
            raise UserError(f"{self.path} is empty; pack the images again")
        print(f"{self.path}: {len(offsets)} records found without {self.index}", file=sys.stderr)
        self._has_keys = len(set(keys)) == len(keys)
        return np.array(keys if self._has_keys else range(len(keys))), np.array(offsets)

    def _names(self) -> dict[int, str] | None:
        """The folder that each label's images came from, if that tells the classes apart."""
        if not self._list.is_file():
            return None
        pairs = {(label, os.path.dirname(path)) for _, label, path in self._lines()}
        names = {label: os.path.basename(folder) for label, folder in pairs}
        usable = 0 < len(pairs) == len(names) == len(set(names.values())) and all(names.values())
        return names if usable else None

    def check_list(self) -> None:
        """Checks that the list is of these images: some records are looked up in it.

        Raises:
            UserError: it says another label of one.
        """
        if not self.named or not self._has_keys:
            return
        rows = {int(self.keys[row]): row for row in range(0, len(self), len(self) // COMPARED + 1)}
        listed = {key: label for key, label, _ in self._lines() if key in rows}
        with open(self.path, "rb", buffering=0) as file:
            for key, said in listed.items():
                try:
                    _, label = self._read(recordio.head, file, rows[key])
                except UserError:
                    continue  # `damage` tells of all of these
                if said != label:
                    raise UserError(
                        f"{self._list} is not that of {self.path}: record {key} has label {label} "
                        f"there, and {said} here; remove it, or bring the right one"
                    )

    def _lines(self) -> Iterator[tuple[int, int, str]]:
        """(key, label, path) of each line of the list."""
        with open(self._list, encoding="utf-8-sig", newline="\n") as lines:
            try:
                while line := lines.readline(LINE):
                    if line.strip():
                        key, label, path = line.strip().split("\t")
                        yield int(key), int(float(label)), path
            except UnicodeDecodeError:
                raise UserError(
                    f"{self._list} is not UTF-8; convert it: iconv -f ITS_ENCODING -t UTF-8"
                ) from None
            except (ValueError, OverflowError):
                raise UserError(
                    f"{self._list} has a line that is not 'key, label, path': {quote(line.strip())}"
                ) from None

    def _read(
        self, read: Callable[[BinaryIO, int], recordio.Record], file: BinaryIO, row: int
    ) -> tuple[bytes, int]:
        try:
            record = read(file, self._offsets[row])
        except recordio.Broken:
            raise UserError(f"{self.name(row)} is broken") from None
        if record.labels != 1 or not record.label.is_integer():
            raise UserError(f"{self.name(row)} has not one whole number as its label")
        return record.data, int(record.label)
