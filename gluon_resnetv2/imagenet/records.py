"""Images in a RecordIO file, as MXNet's `im2rec` packs them."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_file
from gluon_resnetv2.imagenet.progress import in_turn, told
from gluon_resnetv2.pixels import NoImage, decode


class Records:
    """The images of NAME.rec, in the order of their keys in NAME.idx.

    NAME.lst, which `im2rec` reads and `pack` leaves there, names the classes by its paths' folders.
    Where it is missing, or files of several folders share a label, classes are named by number.

    Attributes:
        path, index: of the .rec and the .idx file.
        keys: int64 (N,), ascending.
        classes: the classes' names, sorted; numbers in their order.
        class_labels: the label that each has in this file.
        named: whether the names are more than numbers.

    Raises:
        UserError: a file is missing, empty or no such file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.index = self.path.with_suffix(".idx")
        self._list = self.path.with_suffix(".lst")
        self._marker = self.path.with_suffix(".checked")
        for file in (self.path, self.index):
            if not file.is_file():
                raise UserError(f"{file} is missing; pack the images again")
        table = np.fromfile(self.index, np.int64, sep=" ")
        keys, offsets = table[::2], table[1::2]
        if not 0 < len(offsets) == len(np.unique(keys)) or offsets.max() >= self._bytes():
            raise UserError(f"{self.index} does not belong to {self.path}; pack the images again")
        order = keys.argsort()
        self.keys, self._offsets = keys[order], offsets[order]
        names = self._names()
        self.named = names is not None
        if not self.named:
            print(f"{self.path}: classes are named by number: no usable .lst", file=sys.stderr)
            names = {label: str(label) for label in self._labels()}
        self.class_labels = tuple(sorted(names, key=names.get if self.named else None))
        self.classes = tuple(names[label] for label in self.class_labels)
        self._lock, self._reader = threading.Lock(), None

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, row: int) -> str:
        """What to call image `row` in a message."""
        key = self.keys[row]
        paths = (path for listed, _, path in self._lines() if listed == key)
        path = next(paths, None) if self._list.is_file() else None
        return f"{self.path}, record {key}" + (f" ({path})" if path else "")

    def read(self, row: int) -> tuple[bytes, int]:
        """Image `row` as it was encoded, and its label in this file. Safe in several threads.

        Raises:
            UserError: no such record is where the index says, or its label is no whole number.
        """
        try:
            with self._lock:  # MXNet seeks first and reads then
                if self._reader is None:
                    self._reader = mx.recordio.MXIndexedRecordIO(
                        str(self.index), str(self.path), "r"
                    )
                record = self._reader.read_idx(self.keys[row])
            header, data = mx.recordio.unpack(record)
        except (mx.MXNetError, TypeError, struct.error):
            raise UserError(f"{self.name(row)} is broken; pack the images again") from None
        return data, self._label(row, header.flag, header.label)

    def check(self, pool: ThreadPoolExecutor) -> None:
        """Decodes all images, unless `pack` or an earlier call did: NAME.checked says so.

        Raises:
            UserError: some can't be decoded; each is named on standard error.
        """
        if self._marker.is_file() and self._marker.read_text() == self._all_is_well():
            return

        def problem(row):
            try:
                decode(self.read(row)[0])
            except NoImage as error:
                return f"{self.name(row)} {error}"

        bad = []
        for message in told(in_turn(pool, problem, len(self)), f"check {self.path}", len(self)):
            if message:
                bad.append(message)
                print(message, file=sys.stderr)
        if bad:
            raise UserError(
                f"{len(bad)} of {len(self)} images can't be read, the first: {bad[0]}; pack the "
                "images again"
            )
        with contextlib.suppress(OSError):  # a folder that can't be written to is checked each time
            self.mark_checked()

    def mark_checked(self) -> None:
        """Notes beside the file that all its images can be decoded.

        Raises:
            OSError: the folder can't be written to.
        """
        with whole_file(self._marker) as temporary:
            temporary.write_text(self._all_is_well())

    def _all_is_well(self):
        return f"{len(self)} images in {self._bytes()} bytes, all decoded once\n"

    def _bytes(self):
        return self.path.stat().st_size

    def _names(self) -> dict[int, str] | None:
        """The folder that each label's images came from, if that tells the classes apart."""
        if not self._list.is_file():
            return None
        pairs = {(label, os.path.dirname(path)) for _, label, path in self._lines()}
        names = {label: os.path.basename(folder) for label, folder in pairs}
        usable = len(pairs) == len(names) == len(set(names.values())) and all(names.values())
        return names if usable else None

    def _lines(self) -> Iterator[tuple[int, int, str]]:
        """(key, label, path) of each line of the list."""
        with open(self._list, encoding="utf-8") as file:
            for line in file:
                try:
                    key, label, path = line.strip().split("\t")
                    yield int(key), int(float(label)), path
                except ValueError:
                    raise UserError(
                        f"{self._list} has a line that is not 'key, label, path': {line.strip()}"
                    ) from None

    def _labels(self) -> set[int]:
        """All labels, from the records' headers alone: the images are not read."""
        labels = set()
        with open(self.path, "rb") as file:
            for row, offset in enumerate(self._offsets):
                # A record starts with a magic number and its length, then flag and label.
                header = os.pread(file.fileno(), 8, offset + 8)
                labels.add(self._label(row, *struct.unpack("If", header)))
        return labels

    def _label(self, row, flag, label):
        if flag or not float(label).is_integer():
            raise UserError(f"{self.name(row)} has not one whole number as its label")
        return int(label)
