"""What training does to images besides moving and mirroring them, as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gluon_resnetv2.data.batching import random_numbers
from gluon_resnetv2.data.randaugment import rand_augment

# Of random erasing, arXiv:1708.04896, section 4.1: the part of an image's area, and the ratio of a
# rectangle's height to its width, whose logarithm is even as in timm and torchvision.
AREA = 0.02, 0.4
RATIO = 0.3, 1 / 0.3
TRIES = 10  # rectangles that are drawn until one fits into the image

Part = NDArray[np.intp] | slice
PIXELS, NORMALISED = 2, 3  # ends of paths; a training step's are 0 and 1


@dataclass(frozen=True)
class Policy:
    """RandAugment on pixels, and random erasing on normalised images, or neither.

    What is random depends on the path alone: the seed and numbers such as epoch and step. Where
    images are but some of a batch, `of` says how many images the batch has, and `at` which of them
    are given.

    Attributes:
        operations, strength: as `rand_augment` takes them.
        erasing: the probability that an image loses a rectangle.
    """

    operations: int = 0
    strength: float = 0.0
    erasing: float = 0.0

    def on_pixels(
        self,
        images: NDArray[np.uint8],
        path: tuple[int, ...],
        fill: ArrayLike,
        of: int | None = None,
        at: Part = np.s_[:],
    ) -> NDArray[np.uint8]:
        """RandAugment of uint8 images (n, H, W, C), as a new array.

        Args:
            fill: C numbers, the colour beyond an image's edges.
        """
        if not self.operations:
            return images
        rng = random_numbers(*path, PIXELS)
        return rand_augment(images, rng, self.operations, self.strength, fill, of, at)

    def on_normalised(
        self,
        images: NDArray[Any],
        path: tuple[int, ...],
        of: int | None = None,
        at: Part = np.s_[:],
    ) -> NDArray[Any]:
        """Random erasing of normalised images, float (n, C, H, W), in place; returns them."""
        if self.erasing:
            erase(images, random_numbers(*path, NORMALISED), self.erasing, of, at)
        return images


NO_POLICY = Policy()


def erase(
    images: NDArray[Any],
    rng: np.random.Generator,
    probability: float,
    of: int | None = None,
    at: Part = np.s_[:],
) -> None:
    """Random erasing, in place: a rectangle of an image becomes zero, the mean of all images.

    Args:
        images: normalised, (n, C, H, W).
        of, at: as `Policy`.
    """
    count, _, height, width = images.shape
    size = of or count
    wanted = rng.random(size)[at] < probability
    area = height * width * rng.uniform(*AREA, (TRIES, size))[:, at]
    ratio = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), (TRIES, size)))[:, at]
    place = rng.random((2, size))[:, at]
    tall, wide = (np.rint(np.sqrt(one)).astype(int) for one in (area * ratio, area / ratio))
    fits = (tall < height) & (wide < width)
    first = fits.argmax(axis=0), np.arange(count)
    tall, wide = tall[first], wide[first]
    top, left = (place * (height - tall + 1, width - wide + 1)).astype(int)
    for one in np.flatnonzero(wanted & fits[first]):
        box = np.s_[top[one] : top[one] + tall[one], left[one] : left[one] + wide[one]]
        images[(one, np.s_[:], *box)] = 0
