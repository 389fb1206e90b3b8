"""What every data set looks like to the rest of the project."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gluon_resnetv2.data.augment import normalise, pad_crop_flip
from gluon_resnetv2.data.batching import Batch, num_batches, random_numbers

Colour = tuple[float, float, float]  # red, green, blue, 0 to 255
CHUNK = 1000  # images handled at once where a whole split's temporaries would fill the memory


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 (N, H, W, 3), red, green, blue.
        labels: int32 (N,), indices into the data set's classes.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, with what training needs to know about its images.

    Attributes:
        name: as `load` knows it.
        train: the part to train on.
        test: the part to test on.
        classes: the classes' names.
        mean: of each channel over the training images, 0 to 255.
        std: their standard deviation.
        pad: pixels by which augmentation moves an image at most, in each direction.
        flip: whether augmentation mirrors images.
        fill: the colour that padding shows, 0 to 255.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: Colour
    std: Colour
    pad: int
    flip: bool
    fill: Colour
    crop = 1.0  # the part of an image's shorter side that evaluation uses

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, height, width, channels = self.train.images.shape
        return channels, height, width

    @property
    def train_count(self) -> int:
        """How many training images there are."""
        return len(self.train.labels)

    def batches(
        self,
        batch_size: int,
        *,
        train: bool = False,
        images: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        devices: int = 1,
        start: int = 0,
        worker: int = 0,
        workers: int = 1,
    ) -> Iterator[Batch]:
        """One pass over the training images, shuffled and augmented, or over the test images.

        What a training step gets depends on (seed, epoch, step) alone. Hence beginning at step
        `start` gives exactly what the whole pass gives from there on, and the workers together get
        exactly what one alone would get.

        Args:
            batch_size: images per batch, over all workers and devices; `num_batches` says what the
                last one holds.
            train: the training images rather than the test images.
            images: so many of them, drawn anew each epoch, rather than all.
            seed, epoch: not negative; unused for test images, which come as they are stored.
            devices: among how many a worker splits its part of a batch.
            start: steps to leave out.
            worker, workers: which part of every batch is wanted, of how many. Of a training
                batch each has an image for every device; of a test batch some may have none, and
                are left out.

        Yields:
            Images, float32 (n, 3, H, W), normalised by the data set's mean and std; and labels,
            int32 (n,).

        Raises:
            UserError: as `num_batches`, at once rather than with the first batch.
        """
        split = self.train if train else self.test
        stored = len(split.labels)
        count = images or stored
        steps = num_batches(count, batch_size, devices * (workers if train else 1))
        order = random_numbers(seed, epoch).permutation(stored) if train else np.arange(count)
        fill = (np.subtract(self.fill, self.mean)) / self.std

        def make(step: int) -> Batch:
            end = count if step == steps - 1 else (step + 1) * batch_size
            rows = order[step * batch_size : end]
            part = np.array_split(np.arange(len(rows)), workers)[worker]
            images = normalise(split.images[rows[part]], self.mean, self.std)
            if train:
                rng = random_numbers(seed, epoch, step)
                images = pad_crop_flip(
                    images, rng, self.pad, self.flip, fill, of=len(rows), at=part
                )
            return images, split.labels[rows[part]]

        made = map(make, range(start, steps))
        return made if train or workers == 1 else (pair for pair in made if len(pair[1]))


def channel_statistics(images: NDArray[np.uint8]) -> tuple[Colour, Colour]:
    """Mean and standard deviation of each channel of uint8 images (N, H, W, 3)."""
    counts = np.zeros((3, 256), np.int64)  # how often each value occurs: exact, and small
    for start in range(0, len(images), CHUNK):
        for channel in range(3):
            part = images[start : start + CHUNK, ..., channel].ravel()
            counts[channel] += np.bincount(part, minlength=256)
    shares, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256)
    mean = shares @ values
    std = np.sqrt(np.sum(shares * (values - mean[:, None]) ** 2, axis=1))
    return tuple(mean.tolist()), tuple(std.tolist())
