"""Data sets, and batches of them. NumPy in, NumPy out: nothing here imports MXNet."""

from __future__ import annotations

import os
from collections.abc import Callable

from gluon_resnetv2.data import cifar, digits, synthetic
from gluon_resnetv2.data.augment import normalise, pad_crop_flip
from gluon_resnetv2.data.batching import batch_images, num_batches, prefetch, random_numbers
from gluon_resnetv2.data.dataset import Dataset, Split
from gluon_resnetv2.errors import UserError

__all__ = [
    "NAMES",
    "Dataset",
    "Split",
    "batch_images",
    "load",
    "normalise",
    "num_batches",
    "pad_crop_flip",
    "prefetch",
    "random_numbers",
]

# What loads a data set, and the options of `load` that it takes.
_SETS: dict[str, tuple[Callable[..., Dataset], tuple[str, ...]]] = {
    "digits": (digits.load, ("image_size",)),
    "cifar10": (cifar.load_cifar10, ("data_dir",)),
    "cifar100": (cifar.load_cifar100, ("data_dir", "coarse")),
    "synthetic": (synthetic.load, ("image_size", "classes", "train_count", "test_count")),
}
NAMES = tuple(_SETS)


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    coarse: bool = False,
    classes: int | None = None,
    train_count: int | None = None,
    test_count: int | None = None,
) -> Dataset:
    """The data set called `name`, one of `NAMES`. None leaves an option at its default.

    Args:
        data_dir: cifar10, cifar100: the folder of the archive; the user's cache by default.
        image_size: digits, synthetic: height and width in pixels; 32 by default.
        coarse: cifar100: the 20 coarse classes instead of the 100 fine ones.
        classes, train_count, test_count: synthetic: how many; 10, 256 and 64 by default.

    Raises:
        UserError: an unknown name, an option that this data set does not take or that is out of
            range, or data that can't be had.
    """
    if name not in _SETS:
        raise UserError(f"unknown data set '{name}'; choose {', '.join(NAMES)}")
    function, allowed = _SETS[name]
    options = {
        "data_dir": data_dir,
        "image_size": image_size,
        "coarse": coarse or None,
        "classes": classes,
        "train_count": train_count,
        "test_count": test_count,
    }
    options = {option: value for option, value in options.items() if value is not None}
    for option, value in options.items():
        if option not in allowed:
            raise UserError(f"{name} takes no {option}; it takes {', '.join(allowed)}")
        if isinstance(value, int) and value < 1:
            raise UserError(f"{option} must be at least 1, not {value}")
    return function(**options)
