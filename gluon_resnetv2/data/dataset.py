"""What every data set looks like to the rest of the project."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHUNK = 1000  # images handled at once where a whole split's temporaries would fill the memory


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 (N, H, W, 3), red, green, blue.
        labels: int32 (N,), indices into the data set's classes.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, with what training needs to know about its images.

    Attributes:
        name: as `load` knows it.
        train, test: its two parts.
        classes: the classes' names.
        mean, std: of each channel over the training images, 0 to 255.
        pad: pixels by which augmentation moves an image at most, in each direction.
        flip: whether augmentation mirrors images.
        fill: the colour that padding shows, 0 to 255.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int
    flip: bool
    fill: tuple[float, float, float]


def channel_statistics(images: np.ndarray) -> tuple[tuple, tuple]:
    """Mean and standard deviation of each channel of uint8 images (N, H, W, 3)."""
    counts = np.zeros((3, 256), np.int64)  # how often each value occurs: exact, and small
    for start in range(0, len(images), CHUNK):
        for channel in range(3):
            values = images[start : start + CHUNK, ..., channel].ravel()
            counts[channel] += np.bincount(values, minlength=256)
    shares, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256)
    mean = shares @ values
    std = np.sqrt(np.sum(shares * (values - mean[:, None]) ** 2, axis=1))
    return tuple(mean.tolist()), tuple(std.tolist())
