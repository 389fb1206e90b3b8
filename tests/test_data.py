"""Data sets that need no files, and what all of them have in common."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

from gluon_resnetv2.data import NAMES, load
from gluon_resnetv2.data.arrays import CHUNK, channel_statistics
from gluon_resnetv2.errors import UserError


@pytest.mark.parametrize("name", ["digits", "synthetic"])
@pytest.mark.parametrize("size", [None, 7, 48])
def test_images_and_labels_have_the_promised_shape_and_type(name, size):
    dataset = load(name, image_size=size)
    for split in (dataset.train, dataset.test):
        count, pixels = len(split.labels), size or 32
        assert (split.images.shape, split.images.dtype) == ((count, pixels, pixels, 3), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((count,), np.int32)
        assert set(split.labels) == set(range(len(dataset.classes)))
    assert dataset.name == name
    np.testing.assert_allclose(dataset.mean, dataset.train.images.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, dataset.train.images.std((0, 1, 2)), rtol=1e-9)


def test_channel_statistics_of_more_images_than_one_chunk():
    images = np.random.default_rng(0).integers(0, 256, (2 * CHUNK + 3, 4, 5, 3), np.uint8)
    images[-3:] = 255, 0, 7  # what a forgotten rest would not see
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-12)


# -- digits ----------------------------------------------------------------------------------------


def test_digits_are_the_sources_images_each_in_one_part():
    source, dataset = load_digits(), load("digits", image_size=8)  # 8: nothing to resample
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (1437, 360)

    def rows(images, labels):
        return sorted((int(label), image.tobytes()) for image, label in zip(images, labels))

    ours = [rows(part.images[..., 0], part.labels) for part in (dataset.train, dataset.test)]
    theirs = rows(np.rint(source.images * 255 / 16).astype(np.uint8), source.target)
    assert sorted(ours[0] + ours[1]) == theirs
    for channel in (1, 2):
        np.testing.assert_array_equal(
            dataset.test.images[..., 0], dataset.test.images[..., channel]
        )


def test_digits_are_split_by_class_and_always_alike():
    dataset, target = load("digits", image_size=8), load_digits().target
    fifths = np.bincount(target) / 5
    assert np.abs(np.bincount(dataset.test.labels) - fifths).max() < 1
    # What the first release measured its accuracy on.
    fingerprint = hashlib.sha256(dataset.test.images.tobytes() + dataset.test.labels.tobytes())
    assert fingerprint.hexdigest().startswith("af649cd493084669")
    np.testing.assert_array_equal(load("digits", image_size=20).test.labels, dataset.test.labels)


def test_digits_are_enlarged_smoothly_and_in_place():
    small, large = (load("digits", image_size=size).test.images[..., 0] for size in (8, 32))
    for image, enlarged in zip(small.astype(float), large):
        smooth = zoom(image, 4, order=1, mode="nearest", grid_mode=True)  # bilinear
        # Ours: up to 9.4. Moved by a pixel: from 14.2. Repeated pixels: from 15.1. Mirrored: 49.
        assert np.abs(enlarged - smooth).mean() < 12


def test_digits_are_moved_a_little_on_black_and_not_mirrored():
    dataset = load("digits")
    assert (dataset.pad, dataset.flip, dataset.fill) == (2, False, (0, 0, 0))


# -- synthetic -------------------------------------------------------------------------------------


def test_synthetic_takes_any_number_and_repeats_itself():
    options = {"image_size": 9, "classes": 3, "train_count": 30, "test_count": 12}
    first, again = load("synthetic", **options), load("synthetic", **options)
    assert (len(first.train.labels), len(first.test.labels), len(first.classes)) == (30, 12, 3)
    assert list(np.bincount(first.train.labels)) == [10, 10, 10]
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.train.images[:12], first.test.images)


@pytest.mark.parametrize("size", [5, 32])
def test_synthetic_can_be_learnt(size):
    dataset = load("synthetic", image_size=size)
    train, test = (
        split.images.reshape(len(split.labels), -1).astype(float)
        for split in (dataset.train, dataset.test)
    )
    centres = np.stack([train[dataset.train.labels == label].mean(0) for label in range(10)])
    nearest = ((test[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == dataset.test.labels).mean() > 0.95


# -- load ------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="'cifar11'; choose digits, cifar10, cifar100, synth"):
        load("cifar11")
    assert (
        *("digits", "cifar10", "cifar100", "synthetic"),
        *("mnist", "fashion-mnist", "kmnist", "idx", "folder", "imagenet"),
    ) == NAMES


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"coarse": True}, "digits takes no coarse; it takes image_size"),
        ("digits", {"data_dir": "x"}, "digits takes no data_dir"),
        ("cifar10", {"coarse": True}, "cifar10 takes no coarse; it takes data_dir"),
        ("cifar100", {"image_size": 64}, "cifar100 takes no image_size"),
        ("synthetic", {"classes": 0}, "classes must be at least 1, not 0"),
        ("digits", {"image_size": -8}, "image_size must be at least 1, not -8"),
    ],
)
def test_an_option_that_would_not_be_used_is_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        load(name, **options)
