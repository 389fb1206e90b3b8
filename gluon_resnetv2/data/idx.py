"""MNIST and the sets that come in its format: four IDX files (http://yann.lecun.com/exdb/mnist/).

An IDX file is two zero bytes, the type (8: uint8), the number of axes, the length of each as a
big-endian 32-bit number, and the values.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from gluon_resnetv2.data.arrays import ArrayDataset, Split, channel_statistics
from gluon_resnetv2.data.download import download
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import cache_folder, expanded

BYTES = 1 << 30  # of an unpacked file that are read; MNIST's have 47 million
PARTS = ("train", "t10k")
KINDS = {"images": "idx3", "labels": "idx1"}
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Source:
    """A published set.

    Attributes:
        url: of the folder that its files are downloaded from.
        md5: of the four files, packed by gzip: images and labels to train on, then to test on.
        classes: their names.
        flip: whether a mirrored image is one of its class.
        installed: the folder of a system's package that has it.
    """

    url: str
    md5: tuple[str, str, str, str]
    classes: tuple[str, ...] = DIGITS
    flip: bool = False
    installed: str = ""


SOURCES = {
    "mnist": Source(
        url="https://ossci-datasets.s3.amazonaws.com/mnist",
        md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": Source(  # arXiv:1708.07747, MIT licence
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        flip=True,
        installed="/usr/share/datasets/fashion-mnist",  # Debian's dataset-fashion-mnist
    ),
    "kmnist": Source(  # arXiv:1812.01718, CC BY-SA 4.0
        url="http://codh.rois.ac.jp/kmnist/dataset/kmnist",
        md5=(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
}


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, flip: bool | None = None
) -> ArrayDataset:
    """A set of four IDX files, of grey images; 70,000 of 28x28 pixels in the published ones.

    Args:
        name: one of `SOURCES`, or "idx" for any other set, whose classes are numbers.
        data_dir: has the files, packed by gzip or not, or receives the download; by default a
            system's package or the user's cache. "idx" needs it.
        flip: whether augmentation mirrors images; by default only where that is known to be right.

    Raises:
        UserError: the files are missing, damaged, or do not belong together.
    """
    source = SOURCES.get(name)
    folder = _folder(name, source, data_dir)
    train, test = (_split(*(_find(folder, part, kind, source) for kind in KINDS)) for part in PARTS)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(f"{folder} has training and test images of different sizes")
    count = int(max(train.labels.max(), test.labels.max())) + 1
    classes = source.classes if source else tuple(map(str, range(count)))
    if count > len(classes):
        raise UserError(f"{folder} has label {count - 1}; {name} has {len(classes)} classes")
    mean, std = channel_statistics(train.images)
    if not all(std):
        raise UserError(f"{folder} has training images that are all alike")
    if flip is None:
        flip = source is not None and source.flip
    return ArrayDataset(
        name=name,
        train=train,
        test=test,
        classes=classes,
        mean=mean,
        std=std,
        pad=train.images.shape[1] // 8,  # CIFAR's 4 of 32
        flip=flip,
        fill=(0.0,) * len(mean),  # the background
    )


def _folder(name: str, source: Source | None, data_dir: str | os.PathLike[str] | None) -> Path:
    if data_dir:
        return expanded(data_dir)
    if source is None:
        raise UserError("--data-dir is missing: the folder of four IDX files")
    installed = Path(source.installed)
    return installed if source.installed and installed.is_dir() else cache_folder() / name


def _find(folder: Path, part: str, kind: str, source: Source | None) -> Path:
    """A file in whatever way it is packed and named; downloaded if need be and checked."""
    names = [f"{part}-{kind}{dot}{KINDS[kind]}-ubyte" for dot in "-."]
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    packed = f"{names[0]}.gz"
    if source is None:
        raise UserError(f"{folder} has no {names[0]}, packed by gzip or not")
    checksum = source.md5[2 * PARTS.index(part) + list(KINDS).index(kind)]
    download(f"{source.url}/{packed}", folder / packed, checksum)
    return folder / packed


def _split(images: Path, labels: Path) -> Split:
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (1,), (3,)):
        raise UserError(f"{images} has arrays {pixels.shape[1:]}, which are no images")
    if classes.ndim != 1 or len(classes) != len(pixels):
        raise UserError(f"{labels} has not one label for each of {len(pixels)} images")
    if not pixels.size:
        raise UserError(f"{images} has no images")
    return Split(pixels.reshape(*pixels.shape[:3], -1), classes.astype(np.int32))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of bytes, packed by gzip or not.

    Raises:
        UserError: it can't be read, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            return _read(gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be read as an IDX file: {what}") from None


def _read(file: IO[bytes] | gzip.GzipFile) -> NDArray[np.uint8]:
    zero, kind, axes = file.read(2), file.read(1), file.read(1)
    if zero != b"\0\0" or not kind or not axes:
        raise ValueError("it does not begin as one")
    if kind != b"\x08":
        raise ValueError(f"its values are of type {kind[0]:#04x}, not bytes (0x08)")
    lengths = file.read(4 * axes[0])
    if len(lengths) != 4 * axes[0]:
        raise ValueError("it ends within its header")
    shape = np.frombuffer(lengths, ">u4").tolist()
    size = math.prod(shape)
    if size > BYTES:
        raise ValueError(f"it has more than {BYTES} values")
    data = file.read(size + 1)
    if len(data) != size:
        raise ValueError(f"it has {'more' if len(data) > size else 'fewer'} than {size} values")
    return np.frombuffer(data, np.uint8).reshape(shape)
