"""Images in one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gluon_resnetv2.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp")


class Folder:
    """The images of PATH/CLASS/*.JPEG and the like, in the order of their names.

    Attributes:
        path: the folder that holds the classes' folders.
        classes: their names, sorted.
        class_labels: the label of each class: its index.
        named: True; see `Records`.
        files: of the images, CLASS/FILE.
        labels: int32 (N,), of the images.

    Raises:
        UserError: the folder is missing, or a class or the whole has no images.
    """

    named = True

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path} is no folder")
        self.classes = tuple(sorted(entry.name for entry in _entries(self.path) if entry.is_dir()))
        if not self.classes:
            raise UserError(f"{self.path} has no folders of images, one per class")
        self.files, labels = [], []
        for label, name in enumerate(self.classes):
            names = sorted(
                entry.name
                for entry in _entries(self.path / name)
                if entry.name.lower().endswith(SUFFIXES) and not entry.is_dir()
            )
            if not names:
                raise UserError(f"{self.path / name} has no images; remove it or fill it")
            self.files += [f"{name}/{file}" for file in names]
            labels += [label] * len(names)
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


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]
