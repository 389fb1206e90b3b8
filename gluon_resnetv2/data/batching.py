"""Batches: how many, how large, and from which random numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gluon_resnetv2.errors import UserError

Batch = tuple[NDArray[np.float32], NDArray[np.int32]]  # images (n, C, H, W) and labels (n,)


def num_batches(count: int, batch_size: int, devices: int = 1) -> int:
    """Batches that `count` images make, every image in exactly one.

    The last batch may be smaller than the others. Where it would not have an image for each device,
    the one before takes its images.

    Raises:
        UserError: a batch, or all images together, would leave a device without an image.
    """
    for images, what in ((batch_size, "a batch"), (count, "the data set")):
        if images < devices:
            raise UserError(
                f"{what} of {images} images is too small: {devices} device(s) need one each"
            )
    whole, rest = divmod(count, batch_size)
    return whole + (rest >= devices)


def batch_images(count: int, batch_size: int, devices: int, step: int) -> int:
    """How many images the batch of step `step` holds, of those that `num_batches` counts."""
    last = num_batches(count, batch_size, devices) - 1
    return batch_size if step < last else count - last * batch_size


def random_numbers(seed: int, *path: int) -> np.random.Generator:
    """Independent random numbers for every path below a seed, such as an epoch, or its step."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))
