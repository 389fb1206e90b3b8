"""Data sets whose images are all of one size: held in memory, or decoded as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gluon_resnetv2.data.augment import normalise, pad_crop_flip
from gluon_resnetv2.data.batching import Batch, num_batches, random_numbers
from gluon_resnetv2.data.dataset import Colour
from gluon_resnetv2.data.policies import NO_POLICY, Policy

CHUNK = 1000  # images handled at once where a whole split's temporaries would fill the memory
SAMPLE = 10_000  # images over which a large data set's mean and std are measured


class Images(Protocol):
    """uint8 (N, H, W, C), of which rows are taken: an array, or what decodes files."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 (N, H, W, C); red, green, blue where C is 3, grey where it is 1.
        labels: int32 (N,), indices into the data set's classes.
        name: what to call an image by its row: its file, or the row's number.
    """

    images: Images
    labels: NDArray[np.int32]
    name: Callable[[int], str] = str


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A `Dataset` of images of one size, which augmentation moves by some pixels and mirrors.

    Attributes:
        name: as `load` knows it.
        train: the part to train on.
        test: the part to test on.
        classes: the classes' names.
        mean: of each channel over the training images, 0 to 255.
        std: standard deviation of each channel over the training images, 0 to 255.
        pad: pixels by which augmentation moves an image at most, in each direction.
        flip: whether augmentation mirrors images.
        fill: the colour that padding shows, 0 to 255.
        interpolation, stretch: how files were scaled, as `pixels.centre` takes it.
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
    interpolation: str = "bilinear"
    stretch: bool = False
    crop = 1.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, height, width, channels = self.train.images.shape
        return channels, height, width

    @property
    def train_count(self) -> int:
        """How many training images there are."""
        return len(self.train.labels)

    @property
    def test_count(self) -> int:
        """How many test images there are."""
        return len(self.test.labels)

    def test_name(self, row: int) -> str:
        """As `Dataset.test_name`."""
        return self.test.name(row)

    def normalised_by(self, mean: Colour, std: Colour) -> ArrayDataset:
        """As `Dataset.normalised_by`."""
        return replace(self, mean=tuple(mean), std=tuple(std))

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
        policy: Policy = NO_POLICY,
    ) -> Iterator[Batch]:
        """As `Dataset.batches`."""
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
            pixels, labels = split.images[rows[part]], split.labels[rows[part]]
            if not train:
                return normalise(pixels, self.mean, self.std), labels
            path, of = (seed, epoch, step), len(rows)
            pixels = policy.on_pixels(pixels, path, self.fill, of, part)
            images = normalise(pixels, self.mean, self.std)
            rng = random_numbers(*path)
            images = pad_crop_flip(images, rng, self.pad, self.flip, fill, of, part)
            return policy.on_normalised(images, path, of, part), labels

        made = map(make, range(start, steps))
        return made if train or workers == 1 else (pair for pair in made if len(pair[1]))


def channel_statistics(images: Images) -> tuple[Colour, Colour]:
    """Mean and standard deviation of each channel of uint8 images (N, H, W, C).

    Of those that are decoded as they are needed, over `SAMPLE` of them at most.
    """
    count, *_, channels = images.shape
    rows = np.arange(count)
    if not isinstance(images, np.ndarray) and count > SAMPLE:
        rows = np.sort(random_numbers(0).permutation(count)[:SAMPLE])
    counts = np.zeros((channels, 256), np.int64)  # how often each value occurs: exact, and small
    for start in range(0, len(rows), CHUNK):
        part = images[rows[start : start + CHUNK]]
        for channel in range(channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    shares, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256)
    mean = shares @ values
    std = np.sqrt(np.sum(shares * (values - mean[:, None]) ** 2, axis=1))
    return tuple(mean.tolist()), tuple(std.tolist())


def with_channels(dataset: ArrayDataset, channels: int) -> ArrayDataset:
    """The data set with grey images instead of colours (1), or grey as three equal channels (3).

    Grey is Pillow's: ITU-R 601-2 luma, 0.299 R + 0.587 G + 0.114 B.
    """
    if dataset.image_shape[0] == channels:
        return dataset
    train, test = (
        replace(split, images=to_channels(split.images[:], channels))
        for split in (dataset.train, dataset.test)
    )
    mean, std = channel_statistics(train.images)
    fill = mean if any(dataset.fill) else (0.0,) * channels
    return replace(dataset, train=train, test=test, mean=mean, std=std, fill=fill)


def to_channels(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """uint8 images (N, H, W, C) with another number of channels, 1 or 3."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    grey = np.empty((*images.shape[:-1], 1), np.uint8)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].astype(np.uint32)
        # In 16 bits behind the point, as Pillow does.
        luma = (part @ np.array([19595, 38470, 7471], np.uint32) + 0x8000) >> 16
        grey[start : start + CHUNK, ..., 0] = luma
    return grey
