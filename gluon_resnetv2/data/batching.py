"""Batches: in which order, how many, how large, and made while the device is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from gluon_resnetv2.data.augment import normalise, pad_crop_flip
from gluon_resnetv2.data.dataset import Dataset
from gluon_resnetv2.errors import UserError

T = TypeVar("T")


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


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool = False,
    seed: int = 0,
    epoch: int = 0,
    devices: int = 1,
    start: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One pass over the training images, shuffled and augmented, or over the test images as stored.

    What a training step gets depends on (seed, epoch, step) alone. Hence beginning at step `start`
    gives exactly what the whole pass gives from there on.

    Args:
        batch_size: images per batch, over all devices; `num_batches` says what the last one holds.
        train: the training images rather than the test images.
        seed, epoch: not negative; unused for test images.
        devices: among how many a batch will be split.
        start: steps to leave out.

    Yields:
        images: float32 (n, 3, H, W), normalised by the data set's mean and std.
        labels: int32 (n,).

    Raises:
        UserError: as `num_batches`, at once rather than with the first batch.
    """
    split = dataset.train if train else dataset.test
    count = len(split.labels)
    steps = num_batches(count, batch_size, devices)
    order = _rng(seed, epoch).permutation(count) if train else np.arange(count)
    fill = (np.subtract(dataset.fill, dataset.mean)) / dataset.std

    def make(step: int) -> tuple[np.ndarray, np.ndarray]:
        end = count if step == steps - 1 else (step + 1) * batch_size
        rows = order[step * batch_size : end]
        images = normalise(split.images[rows], dataset.mean, dataset.std)
        if train:
            rng = _rng(seed, epoch, step)
            images = pad_crop_flip(images, rng, dataset.pad, dataset.flip, fill)
        return images, split.labels[rows]

    return map(make, range(start, steps))


def _rng(seed: int, *path: int) -> np.random.Generator:
    """Independent random numbers for every path below a seed, such as an epoch, or its step."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))


def prefetch(iterable: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The items of `iterable`, of which up to `depth` are made ahead in a background thread.

    An exception raised by `iterable` is raised here, in its turn. The thread ends with the last
    item or, when the consumer stops early, after the item that it is working on.

    Args:
        depth: at least 1.
    """
    iterator, end = iter(iterable), object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        ahead = deque(pool.submit(next, iterator, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, iterator, end))
            yield item
    finally:
        # Not waiting: the garbage collector may run this in the pool's own thread.
        pool.shutdown(wait=False, cancel_futures=True)
