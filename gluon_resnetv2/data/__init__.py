"""Data sets, and batches of them. NumPy in, NumPy out: nothing here imports MXNet."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from gluon_resnetv2.data import cifar, digits, folders, idx, imagenet, synthetic
from gluon_resnetv2.data.arrays import ArrayDataset, Split, with_channels
from gluon_resnetv2.data.augment import normalise, pad_crop_flip
from gluon_resnetv2.data.batching import batch_images, num_batches, random_numbers
from gluon_resnetv2.data.dataset import Dataset
from gluon_resnetv2.data.policies import Policy
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.prefetch import prefetch

__all__ = [
    "DECODED",
    "NAMES",
    "ArrayDataset",
    "Dataset",
    "Policy",
    "Split",
    "batch_images",
    "load",
    "normalise",
    "num_batches",
    "options",
    "pad_crop_flip",
    "prefetch",
    "random_numbers",
]

# Options of those that decode files.
_FILES = (
    *("image_size", "augmentation", "colour", "flip", "in_channels", "threads", "leave_out"),
    *("interpolation", "stretch"),
)

# What loads a data set, and the options of `load` that it takes.
_ARRAYS: dict[str, tuple[Callable[..., ArrayDataset], tuple[str, ...]]] = {
    "digits": (digits.load, ("image_size", "in_channels")),
    "cifar10": (cifar.load_cifar10, ("data_dir", "flip", "in_channels")),
    "cifar100": (cifar.load_cifar100, ("data_dir", "coarse", "flip", "in_channels")),
    "synthetic": (
        synthetic.load,
        ("image_size", "classes", "train_count", "test_count", "in_channels"),
    ),
    "mnist": (partial(idx.load, "mnist"), ("data_dir", "in_channels")),
    "fashion-mnist": (partial(idx.load, "fashion-mnist"), ("data_dir", "flip", "in_channels")),
    "kmnist": (partial(idx.load, "kmnist"), ("data_dir", "in_channels")),
    "idx": (partial(idx.load, "idx"), ("data_dir", "flip", "in_channels")),
}
_DECODED: dict[str, tuple[Callable[..., Dataset], tuple[str, ...]]] = {
    "folder": (folders.load, ("data_dir", *_FILES, "val_fraction", "split_seed", "classes")),
    "imagenet": (imagenet.load, ("data_dir", *_FILES, "test_size")),
}
_SETS = {**_ARRAYS, **_DECODED}
NAMES = tuple(_SETS)
DECODED = tuple(_DECODED)  # whose files are decoded, at any size


def options(name: str) -> tuple[str, ...]:
    """The options of `load` that the data set called `name` takes.

    Raises:
        UserError: an unknown name.
    """
    if name not in _SETS:
        raise UserError(f"unknown data set '{name}'; choose {', '.join(NAMES)}")
    return _SETS[name][1]


def load(name: str, data_dir: str | os.PathLike[str] | None = None, **given: Any) -> Dataset:
    """The data set called `name`, one of `NAMES`. None leaves an option at its default.

    Args:
        data_dir: cifar10, cifar100, mnist, fashion-mnist, kmnist: the folder of the files; by
            default the user's cache, where they are downloaded to. folder, imagenet, idx: the
            folder of the images.
        given: options by name.

            - image_size: digits, synthetic, folder, imagenet: height and width in pixels.
            - in_channels: 1 for grey images, 3 for colours; by default what the set has.
            - flip: whether augmentation mirrors images; by default where that is known to be right.
            - coarse: cifar100: the 20 coarse classes instead of the 100 fine ones.
            - classes, train_count, test_count: synthetic: how many; 10, 256 and 64 by default.
            - others: as `folders.load` and `imagenet.load` take them.

    Raises:
        UserError: an unknown name, an option that this data set does not take or that is out of
            range, or data that can't be had.
    """
    allowed = options(name)
    given = {"data_dir": data_dir, **given}
    given = {option: value for option, value in given.items() if value is not None}
    for option, value in given.items():
        if option not in allowed:
            raise UserError(f"{name} takes no {option}; it takes {', '.join(allowed)}")
        least = 0 if option == "split_seed" else 1
        if type(value) is int and value < least:
            raise UserError(f"{option} must be at least {least}, not {value}")
    if given.get("in_channels", 1) not in (1, 3):
        raise UserError(f"in_channels must be 1 or 3, not {given['in_channels']}")
    if name in DECODED:
        if not data_dir:
            raise UserError("--data-dir is missing: a folder with train and val, or their .rec")
        return _DECODED[name][0](**given)
    channels = given.pop("in_channels", None)
    dataset = _ARRAYS[name][0](**given)
    return with_channels(dataset, channels) if channels else dataset
