"""From stored images to what a network reads, a whole batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray


def normalise(images: NDArray[Any], mean: ArrayLike, std: ArrayLike) -> NDArray[np.float32]:
    """(images - mean) / std by channel, with the channels moved to the front.

    Args:
        images: (N, H, W, C).
        mean, std: C numbers each.

    Returns:
        float32 (N, C, H, W), contiguous.
    """
    normalised = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    normalised -= _by_channel(mean)
    normalised /= _by_channel(std)
    return normalised


def pad_crop_flip(
    images: NDArray[Any],
    rng: np.random.Generator,
    pad: int,
    flip: bool,
    fill: ArrayLike,
    of: int | None = None,
    at: NDArray[np.intp] | slice = np.s_[:],
) -> NDArray[Any]:
    """Moves every image by up to `pad` pixels along each axis and mirrors every other one.

    That is the augmentation of [v2] (appendix) where pad is 4 and flip True: pad on each side, cut
    the image's size out at random, mirror left to right with probability one half.

    Args:
        images: (N, C, H, W).
        rng: drawn from, always in the same way for the same arguments.
        pad: pixels.
        flip: whether to mirror at all.
        fill: C numbers, what comes in at the edges.
        of, at: where `images` are but some of a batch: how many that holds, and which they are.
            Each is then moved and mirrored as it would be with all of them.

    Returns:
        A new array like `images`.
    """
    count, channels, height, width = images.shape
    padded = np.empty((count, channels, height + 2 * pad, width + 2 * pad), images.dtype)
    padded[:] = _by_channel(fill)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    # NumPy 1's stubs know of one axis only.
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))  # type: ignore[call-overload, unused-ignore]
    top, left = rng.integers(0, 2 * pad + 1, (2, of or count))[:, at]
    crops: NDArray[Any] = windows[np.arange(count), :, top, left]
    if flip:
        mirrored = rng.random(of or count)[at] < 0.5
        crops[mirrored] = crops[mirrored, ..., ::-1]
    return crops


def _by_channel(numbers: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(numbers, np.float32)[:, None, None]
