"""RandAugment (Cubuk et al., arXiv:1909.13719): a few random operations on each image.

The operations are the paper's fourteen and give the pixels that Pillow gives, a whole batch at a
time. Strengths run as torchvision's: each operation does more the stronger it is, and nothing at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (n, H, W, C), C 1 or 3
Shares = NDArray[np.float64]  # (n,), of the largest strength: 0 to 1, or -1 to 1 for either way

STRONGEST = 10  # on the paper's scale; at it:
ROTATION = 30  # degrees
SHEAR = 0.3
TRANSLATION = 150 / 331  # of the width or height
ENHANCEMENT = 0.9  # of what a blend with a plainer image takes away or adds
BITS = 4  # of 8 that posterising takes away
SOLARISED = 256  # values that are inverted

LUMA = 19595, 38470, 7471  # ITU-R 601-2's weights, times 65536


def rand_augment(
    images: Images,
    rng: np.random.Generator,
    operations: int,
    strength: float,
    fill: Any,
    of: int | None = None,
    at: NDArray[np.intp] | slice = np.s_[:],
) -> Images:
    """Applies `operations` of `OPERATIONS` to each image, drawn with equal chances.

    Args:
        images: uint8 (n, H, W, C) with one channel or red, green and blue.
        rng: drawn from, always in the same way for the same arguments.
        operations: how many for an image, one after the other.
        strength: 0 to STRONGEST, the same for all; which way it goes is drawn.
        fill: C numbers, the colour that comes in where an image is moved away.
        of, at: where `images` are but some of a batch: how many that holds, and which they are.
            Each comes out as it would with all of them.

    Returns:
        A new array like `images`.
    """
    count = of or len(images)
    chosen = rng.integers(0, len(OPERATIONS), (operations, count))[:, at]
    signs = rng.choice((-1.0, 1.0), (operations, count))[:, at]
    colour = np.asarray(fill).round().astype(np.uint8)
    images = images.copy()
    for numbers, shares in zip(chosen, signs * (strength / STRONGEST)):
        for number in np.unique(numbers):
            which = np.flatnonzero(numbers == number)
            images[which] = OPERATIONS[number](images[which], shares[which], colour)
    return images


# Each takes images, shares of the largest strength and the colour to fill with.


def identity(images: Images, shares: Shares, fill: Images) -> Images:
    return images


def auto_contrast(images: Images, shares: Shares, fill: Images) -> Images:
    """Each channel, stretched to 0 to 255."""
    histogram, places = _histograms(images)
    present = histogram > 0
    low = present.argmax(axis=1)[:, None]
    high = 255 - present[:, ::-1].argmax(axis=1)[:, None]
    scale = 255 / np.maximum(high - low, 1)
    stretched = (np.arange(256) * scale + -low * scale).clip(0, 255)
    return np.where(high > low, stretched, np.arange(256)).astype(np.uint8).ravel()[places]


def equalise(images: Images, shares: Shares, fill: Images) -> Images:
    """Each channel, its values spread evenly."""
    histogram, places = _histograms(images)
    below = histogram.cumsum(axis=1) - histogram
    last = histogram[:, ::-1]  # of the largest value that there is
    last = last[np.arange(len(last)), (last > 0).argmax(axis=1), None]
    step = (histogram.sum(axis=1, keepdims=True) - last) // 255
    spread = ((step // 2 + below) // np.maximum(step, 1)).clip(0, 255)
    return np.where(step > 0, spread, np.arange(256)).astype(np.uint8).ravel()[places]


def rotate(images: Images, shares: Shares, fill: Images) -> Images:
    _, height, width, _ = images.shape
    angle = -np.radians(ROTATION * shares)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    return _affine(
        images, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y), fill
    )


def shear_x(images: Images, shares: Shares, fill: Images) -> Images:
    return _affine(images, (1, SHEAR * shares, 0, 0, 1, 0), fill)


def shear_y(images: Images, shares: Shares, fill: Images) -> Images:
    return _affine(images, (1, 0, 0, SHEAR * shares, 1, 0), fill)


def translate_x(images: Images, shares: Shares, fill: Images) -> Images:
    return _affine(images, (1, 0, -np.trunc(TRANSLATION * images.shape[2] * shares), 0, 1, 0), fill)


def translate_y(images: Images, shares: Shares, fill: Images) -> Images:
    return _affine(images, (1, 0, 0, 0, 1, -np.trunc(TRANSLATION * images.shape[1] * shares)), fill)


def solarise(images: Images, shares: Shares, fill: Images) -> Images:
    """Inverts the largest values."""
    threshold = SOLARISED * (1 - np.abs(shares))[:, None, None, None]
    return np.where(images < threshold, images, 255 - images)


def posterise(images: Images, shares: Shares, fill: Images) -> Images:
    """Takes the lowest bits away."""
    mask = 0xFF << np.rint(BITS * np.abs(shares)).astype(int) & 0xFF
    masked: Images = images & mask.astype(np.uint8)[:, None, None, None]
    return masked


def colour(images: Images, shares: Shares, fill: Images) -> Images:
    """More or less of it, against grey."""
    return _blend(_grey(images), images, shares)


def contrast(images: Images, shares: Shares, fill: Images) -> Images:
    """More or less of it, against the mean grey."""
    mean = _grey(images).mean(axis=(1, 2, 3), keepdims=True)
    return _blend((mean + 0.5).astype(np.uint8), images, shares)


def brightness(images: Images, shares: Shares, fill: Images) -> Images:
    """More or less of it, against black."""
    return _blend(np.zeros(1, np.uint8), images, shares)


def sharpness(images: Images, shares: Shares, fill: Images) -> Images:
    """More or less of it, against the mean of 3x3 pixels, of which the middle one weighs 5."""
    smooth = images.copy()
    if min(images.shape[1:3]) > 2:
        wide = images.astype(np.int32)
        rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
        total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
        smooth[:, 1:-1, 1:-1] = (2 * total + 13) // 26
    return _blend(smooth, images, shares)


OPERATIONS: tuple[Callable[[Images, Shares, Images], Images], ...] = (
    *(identity, auto_contrast, equalise, rotate, solarise, colour, posterise, contrast),
    *(brightness, sharpness, shear_x, shear_y, translate_x, translate_y),
)


def _histograms(images: Images) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """How often each value is in each channel, (n * C, 256), and where there pixels are counted."""
    count, channels = len(images), images.shape[-1]
    places = np.arange(0, count * channels * 256, 256).reshape(count, 1, 1, channels) + images
    counts = np.bincount(places.ravel(), minlength=count * channels * 256)
    return counts.reshape(-1, 256), places


def _grey(images: Images) -> Images:
    if images.shape[-1] == 1:
        return images
    red, green, blue = (images[..., i : i + 1].astype(np.int32) * LUMA[i] for i in range(3))
    grey: Images = (red + green + blue + 0x8000 >> 16).astype(np.uint8)
    return grey


def _blend(plain: Images, images: Images, shares: Shares) -> Images:
    """On the line from `plain` to `images`, which lie at 0 and 1."""
    where = (1 + ENHANCEMENT * shares).astype(np.float32)[:, None, None, None]
    start = plain.astype(np.float32)
    return (start + where * (images - start)).clip(0, 255).astype(np.uint8)


def _affine(images: Images, matrix: tuple[Any, ...], fill: Images) -> Images:
    """The nearest pixel to (a x + b y + c, d x + e y + f), `fill` where that is outside.

    Args:
        matrix: a to f, a number or (n,) each; from the middle of a pixel to that of another.
    """
    count, height, width, channels = images.shape
    a, b, c, d, e, f = (np.broadcast_to(one, count)[:, None, None] for one in matrix)

    def fixed(number: Any) -> Any:  # Pillow computes in 1/65536 pixels
        return np.floor(number * 65536 + 0.5).astype(np.int32)

    x, y = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)[:, None]
    left = fixed(c + a * 0.5 + b * 0.5) + fixed(a) * x + fixed(b) * y >> 16
    top = fixed(f + d * 0.5 + e * 0.5) + fixed(d) * x + fixed(e) * y >> 16
    inside = (left >= 0) & (left < width) & (top >= 0) & (top < height)
    first = np.arange(count)[:, None, None] * (height * width)
    places = np.where(inside, first + top * width + left, 0)
    return np.where(inside[..., None], images.reshape(-1, channels).take(places, axis=0), fill)
