"""From stored images to what a network reads, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(images - mean) / std by channel, with the channels moved to the front.

    Args:
        images: (N, H, W, C).
        mean, std: C numbers each.

    Returns:
        float32 (N, C, H, W), contiguous.
    """
    images = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    images -= _by_channel(mean)
    images /= _by_channel(std)
    return images


def pad_crop_flip(
    images: np.ndarray,
    rng: np.random.Generator,
    pad: int,
    flip: bool,
    fill: Sequence[float],
    of: int | None = None,
    at: np.ndarray | slice = np.s_[:],
) -> np.ndarray:
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
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    top, left = rng.integers(0, 2 * pad + 1, (2, of or count))[:, at]
    crops = windows[np.arange(count), :, top, left]
    if flip:
        mirrored = rng.random(of or count)[at] < 0.5
        crops[mirrored] = crops[mirrored, ..., ::-1]
    return crops


def _by_channel(numbers: Sequence[float]) -> np.ndarray:
    return np.asarray(numbers, np.float32)[:, None, None]
