"""Images in one folder per class."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gluon_resnetv2.cli import tell_left_out
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.pixels import SUFFIXES

IMAGES = f"images are CLASS/FILE with FILE ending in {', '.join(SUFFIXES)}"


class Folder:
    """The images of PATH/CLASS/*.JPEG and the like, in the order of their names.

    Other files are left out; a line on standard error counts them and names some. Of those whose
    names begin with a dot it says nothing.

    Attributes:
        path: the folder that holds the classes' folders.
        marker, checked: see `Records`.
        classes: their names, sorted.
        class_labels: the label of each class: its index.
        named: True; see `Records`.
        files: of the images, CLASS/FILE.
        labels: int32 (N,), of the images.

    Raises:
        UserError: the folder is missing, or a class or the whole has no images.
    """

    named = True

    def __init__(self, path: str | os.PathLike[str]):
        self.path, self.marker = Path(path), Path(path) / ".checked"
        self.checked = False
        if not self.path.is_dir():
            raise UserError(f"{self.path} is no folder")
        inside = _entries(self.path)
        self.classes = tuple(sorted(entry.name for entry in inside if entry.is_dir()))
        if not self.classes:
            raise UserError(f"{self.path} has no folders of images, one per class")
        outside = [entry.name for entry in inside if not entry.is_dir()]
        self.files, labels, other, deeper, strange = [], [], [], [], []
        for label, name in enumerate(self.classes):
            entries = _entries(self.path / name)
            names = sorted(f"{name}/{entry.name}" for entry in entries if entry.is_file())
            images = [file for file in names if file.lower().endswith(SUFFIXES)]
            if not images:
                raise UserError(f"{self.path / name} has no images; remove it or fill it: {IMAGES}")
            self.files += images
            labels += [label] * len(images)
            other += [file for file in names if not file.lower().endswith(SUFFIXES)]
            for entry in entries:
                if entry.is_dir():
                    deeper += _below(entry.path, self.path)
                elif not entry.is_file():  # a pipe, which would be waited for
                    strange.append(f"{name}/{entry.name}")
        kinds = {"of other endings": other, "deeper": deeper, "outside of classes": outside}
        kinds["that are no files"] = strange
        tell_left_out(self.path, kinds, IMAGES)
        self.class_labels = range(len(self.classes))
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, row: int) -> str:
        """What to call image `row` in a message."""
        return str(self.path / self.files[row])

    def read(self, row: int) -> tuple[bytes, int]:
        """Image `row` as it was encoded, and its label.

        Raises:
            OSError: the file can't be read.
        """
        return Path(self.name(row)).read_bytes(), int(self.labels[row])

    def contents(self) -> str:
        """As of `Records`."""
        digest = hashlib.sha256()
        for row, file in enumerate(self.files):
            with contextlib.suppress(OSError):  # such an image is found to be damaged
                known = os.stat(self.name(row))
                digest.update(os.fsencode(f"{file}\0{known.st_size}\0{known.st_mtime_ns}\0"))
        return f"{len(self)} images of names, sizes and times {digest.hexdigest()}"

    def leave_out(self, rows: Sequence[int]) -> None:
        """As of `Records`."""
        self.files = np.delete(self.files, rows).tolist()
        self.labels = np.delete(self.labels, rows)

    def present(self) -> set[int]:
        """As of `Records`."""
        return set(self.labels.tolist())

    def subset(self, rows: NDArray[np.intp]) -> Folder:
        """Some of the images, of the same classes."""
        part = copy.copy(self)
        part.files, part.labels = [self.files[row] for row in rows], self.labels[rows]
        return part


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _below(folder: str, root: Path) -> list[str]:
    """All files below a folder, as seen from `root`."""
    return [
        os.path.relpath(os.path.join(inner, file), root)
        for inner, _, files in os.walk(folder)
        for file in files
        if not file.startswith(".")
    ]
