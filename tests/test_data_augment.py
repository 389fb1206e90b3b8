"""Augmentation, held against one image at a time in plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gluon_resnetv2.data import normalise, pad_crop_flip

FILL = (-1.0, -2.0, -3.0)


def outcomes(image, pad, flip):
    """Every image that padding, cropping and mirroring can make of one (3, H, W)."""
    _, height, width = image.shape
    padded = np.stack(
        [np.pad(plane, pad, constant_values=fill) for plane, fill in zip(image, FILL)]
    )
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            crop = padded[:, top : top + height, left : left + width]
            yield (top, left, False), crop
            if flip:
                yield (top, left, True), np.flip(crop, axis=2)


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True), (1, True)])
def test_every_outcome_is_a_crop_of_the_padded_image_and_all_are_as_likely(pad, flip):
    count = 100 * (2 * pad + 1) ** 2 * (2 if flip else 1)
    shape = (count, 3, 5, 4)
    images = np.random.default_rng(1).permutation(np.prod(shape)).reshape(shape)
    images = images.astype(np.float32)
    kept = images.copy()

    made = pad_crop_flip(images, np.random.default_rng(0), pad, flip, FILL)

    assert (made.shape, made.dtype, made.flags.c_contiguous) == (shape, np.float32, True)
    np.testing.assert_array_equal(images, kept)
    seen = Counter()
    for image, result in zip(images, made):
        matches = [how for how, made in outcomes(image, pad, flip) if np.array_equal(made, result)]
        assert len(matches) == 1
        seen[matches[0]] += 1
    assert len(seen) == count // 100  # each expected 100 times, standard deviation 10
    assert min(seen.values()) > 60
    assert max(seen.values()) < 140


def test_the_same_generator_state_gives_the_same_images():
    images = np.random.default_rng(0).random((8, 3, 6, 6), np.float32)
    first, again, other = (
        pad_crop_flip(images, np.random.default_rng(seed), 2, True, FILL) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_normalise_moves_channels_and_scales_each():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 3), np.uint8)
    mean, std = (10.5, 100.0, 200.25), (3.0, 70.5, 1.0)
    made = normalise(images, mean, std)
    assert (made.shape, made.dtype, made.flags.c_contiguous) == ((4, 3, 3, 5), np.float32, True)
    for (n, y, x, c), value in np.ndenumerate(images):
        assert made[n, c, y, x] == pytest.approx((int(value) - mean[c]) / std[c], rel=1e-6)
