"""Images of one's own: a folder for each class, or RecordIO files."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gluon_resnetv2 import machine
from gluon_resnetv2.data.arrays import ArrayDataset, Images, Split, channel_statistics
from gluon_resnetv2.data.imagenet import dataset as files
from gluon_resnetv2.data.imagenet.augment import Augmentation
from gluon_resnetv2.data.imagenet.damage import check
from gluon_resnetv2.data.imagenet.folder import Folder
from gluon_resnetv2.data.imagenet.images import Source, read
from gluon_resnetv2.data.imagenet.progress import in_turn, told
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import expanded
from gluon_resnetv2.pixels import centre

HELD_OUT = ("val", "valid", "validation", "test")
PADDED = 64  # pixels; up to so many "pad" is the default augmentation
HELD = 1 << 30  # bytes of decoded images that are held in memory
CROP = 0.875  # of the shorter side that evaluation keeps, where training cuts out parts


def load(
    data_dir: str | os.PathLike[str],
    image_size: int | None = None,
    augmentation: str | None = None,
    colour: bool = True,
    flip: bool | None = None,
    in_channels: int | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
    threads: int | None = None,
    leave_out: bool = False,
    interpolation: str = "bilinear",
    stretch: bool = False,
    classes: Sequence[str] | None = None,
) -> ArrayDataset | files.ImageFiles:
    """The images below a folder: DIR/train/CLASS/* and DIR/val/CLASS/*, or DIR/CLASS/*.

    The held-out part may also be called valid, validation or test. Where there is none, a part of
    each class is held out: which depends on the files' names and a seed, so that a file that is
    added moves few others. Either part may be RecordIO, train.rec and val.rec.

    Args:
        data_dir: DIR.
        image_size: height and width that images are brought to; 32 by default.
        augmentation: "pad" scales every image to that size, and moves it by some pixels; "scale"
            and "scale-aspect" cut out parts at random, as `Augmentation`. By default "pad" up to
            `PADDED` pixels, and "scale-aspect" above.
        colour: whether "scale" and "scale-aspect" add random light.
        flip: whether training mirrors half of the images; it does by default.
        in_channels: 3 for red, green and blue, the default, or 1 for grey.
        val_fraction: part of each class that is held out where DIR has no held-out part; 0.2 by
            default.
        split_seed: random seed by which those images are chosen.
        threads: how many threads decode images; one per CPU by default.
        leave_out: whether images that can't be decoded are left out; else they are an error.
        interpolation, stretch: how images are scaled, as `pixels.centre` takes it; boxes that are
            cut out at random are never stretched more than their augmentation says.
        classes: those of a network, where images are to evaluate it. The held-out part, or all
            images of a folder without parts, are then the test images, and may lack classes.

    Raises:
        UserError: the folder holds nothing that can be read, or an option is out of range.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction must be between 0 and 1: {val_fraction}")
    size, channels = image_size or 32, in_channels or 3
    root, threads = expanded(data_dir), threads or machine.cpus()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
    train, test = _parts(root, pool, leave_out, val_fraction, split_seed, classes is not None)
    names = train.classes if classes is None else tuple(classes)
    augmentation = augmentation or default_augmentation(size)
    if augmentation != "pad":
        return files.ImageFiles(
            "folder",
            train=train,
            test=test,
            augmentation=Augmentation(augmentation, size, colour, flip is not False, interpolation),
            test_size=size,
            crop=CROP,
            mean=files.MEAN,
            std=files.STD,
            channels=channels,
            threads=threads,
            leave_out=leave_out,
            classes=names,
            stretch=stretch,
        )
    parts = train, test
    numbers = [files.class_numbers(names, source, train) for source in parts]
    decoded = [Decoded(one, size, channels, pool, interpolation, stretch) for one in parts]
    held = _split(train, numbers[0], decoded[0])
    tested = held if test is train else _split(test, numbers[1], decoded[1])
    mean, std = channel_statistics(held.images)
    if not all(std):
        raise UserError(f"{root} has training images that are all alike")
    return ArrayDataset(
        name="folder",
        train=held,
        test=tested,
        classes=names,
        mean=mean,
        std=std,
        pad=size // 8,  # CIFAR's 4 of 32
        flip=flip is not False,
        fill=mean,  # zero once normalised
        interpolation=interpolation,
        stretch=stretch,
    )


def default_augmentation(size: int) -> str:
    """That of images which are brought to so many pixels."""
    return "pad" if size <= PADDED else "scale-aspect"


class Decoded:
    """The images of a source as an array, uint8 (N, size, size, C), decoded as they are asked for.

    Args:
        channels: C, 1 for grey or 3.
        pool: of the threads that decode.
        interpolation, stretch: as `pixels.centre` takes it.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        channels: int,
        pool: ThreadPoolExecutor,
        interpolation: str,
        stretch: bool,
    ):
        self._source, self._pool, self._scaling = source, pool, (interpolation, stretch)
        self.shape = len(source), size, size, channels

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        chosen = range(len(self._source))[rows] if isinstance(rows, slice) else rows.tolist()
        return self._stack(in_turn(self._pool, self._one, chosen))

    def all(self) -> NDArray[np.uint8]:
        """All images, with a word now and then on how many there are."""
        count = len(self._source)
        return self._stack(told(in_turn(self._pool, self._one, range(count)), "read images", count))

    def _stack(self, images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.array([*images], np.uint8).reshape(-1, *self.shape[1:])

    def _one(self, row: int) -> NDArray[np.uint8]:
        _, height, width, channels = self.shape
        image, _ = read(self._source, row, channels)
        pixels: NDArray[np.uint8] = np.asarray(centre(image, width, height, 1.0, *self._scaling))
        return pixels.reshape(height, width, channels)


def _split(source: Source, numbers: dict[int, int], decoded: Decoded) -> Split:
    images: Images = decoded.all() if np.prod(decoded.shape) <= HELD else decoded
    classes = [files.class_number(numbers, label, source) for label in source.labels.tolist()]
    return Split(images, np.array(classes, np.int32), source.name)


def _parts(
    root: Path,
    pool: ThreadPoolExecutor,
    leave_out: bool,
    fraction: float | None,
    seed: int,
    evaluated: bool,
) -> tuple[Source, Source]:
    """The training and the test images, whose damaged ones are known and not among them."""
    held_out = [name for name in HELD_OUT if _is_part(root, name)]
    if evaluated and (held_out or not _is_part(root, "train")):
        test = files.part(root, held_out[0]) if held_out else _folder(root)
        check([test], pool, leave_out)
        print(f"{test.path}: its {len(test)} images are the test images", file=sys.stderr)
        return test, test
    if held_out and fraction is not None:
        raise UserError(f"--val-fraction has no effect: {root / held_out[0]} is the held-out part")
    whole = files.part(root, "train") if _is_part(root, "train") else _folder(root)
    if held_out and whole.path != root:
        sources = whole, files.part(root, held_out[0])
        check(sources, pool, leave_out)
        return sources
    check([whole], pool, leave_out)
    if not isinstance(whole, Folder):
        raise UserError(f"{root} has train.rec and no val.rec; pack images to test on, too")
    rows = _held_out(whole, 0.2 if fraction is None else fraction, seed)
    if not rows.any():
        raise UserError(f"{whole.path} has too few images in each class to hold some of them out")
    train, test = whole.subset(np.flatnonzero(~rows)), whole.subset(np.flatnonzero(rows))
    print(
        f"{whole.path}: {len(test)} of {len(whole)} images are held out as test images",
        file=sys.stderr,
    )
    return train, test


def _is_part(root: Path, name: str) -> bool:
    """Whether that is a part, and not a class of this name."""
    folder = root / name
    if (root / f"{name}.rec").is_file():
        return True
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def _folder(root: Path) -> Folder:
    if not root.is_dir():
        raise UserError(f"{root} is no folder; name another --data-dir")
    return Folder(root)


def _held_out(folder: Folder, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which images are held out: of each class those whose names' digests are the smallest.

    Of a class of two or more at least one is, and at least one is left.
    """
    digests = [hashlib.sha256(os.fsencode(f"{seed}\0{name}")).digest() for name in folder.files]
    held_out = np.zeros(len(folder), bool)
    for label in folder.class_labels:
        rows = np.flatnonzero(folder.labels == label).tolist()
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out[sorted(rows, key=digests.__getitem__)[:count]] = True
    return held_out
