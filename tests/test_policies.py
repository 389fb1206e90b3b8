"""What is done to training images besides moving and mirroring: erasing, and by data sets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gluon_resnetv2 import data
from gluon_resnetv2.data.policies import Policy, erase
from gluon_resnetv2.data.randaugment import rand_augment
from gluon_resnetv2.engines.images import denormalise
from tests.imagenet_tree import make_tree


def rectangles(images):
    """(top, left, height, width) of the zeros in each image; None where there are none."""
    for image in images:
        rows, columns = np.nonzero(image[0] == 0)
        if not len(rows):
            yield None
            continue
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        assert (image[:, top:bottom, left:right] == 0).all()
        assert len(rows) == (bottom - top) * (right - left), "a rectangle"
        yield top, left, bottom - top, right - left


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erased_rectangles_are_the_papers(probability):
    """0.02 to 0.4 of the area, 0.3 to 1/0.3 in shape, anywhere (arXiv:1708.04896)."""
    images = np.ones((2000, 1, 40, 60), np.float32)
    erase(images, np.random.default_rng(0), probability)
    found = list(rectangles(images))
    boxes = np.array([box for box in found if box])
    assert len(boxes) / 2000 == pytest.approx(probability, abs=0.03)
    top, left, height, width = boxes.T
    area, ratio = height * width / 2400, height / width
    assert 0.018 < area.min() < 0.025
    assert 0.37 < area.max() < 0.41
    assert area.mean() == pytest.approx(0.2, abs=0.02)  # some large ones don't fit
    assert 0.27 < ratio.min() < 0.35
    assert 2.8 < ratio.max() < 3.7
    assert np.exp(np.log(ratio).mean()) == pytest.approx(0.9, abs=0.05)  # tall ones fit less
    assert (top.min(), left.min(), (top + height).max(), (left + width).max()) == (0, 0, 40, 60)
    middle = np.array([(top + height / 2).mean(), (left + width / 2).mean()])
    np.testing.assert_allclose(middle, [20, 30], rtol=0.05)


@pytest.mark.parametrize("probability", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 5)])
def test_small_images_come_through(shape, probability):
    images = np.ones((50, 1, *shape), np.float32)
    erase(images, np.random.default_rng(0), probability)
    assert all(image.any() for image in images)
    assert probability or images.all()


def test_a_part_of_a_batch_loses_what_it_would_with_all_of_it():
    whole = np.ones((11, 3, 9, 9), np.float32)
    erase(whole, np.random.default_rng(5), 0.5)
    assert (whole == whole[:, :1]).all()
    assert {image.all() for image in whole} == {True, False}
    for part in np.array_split(np.arange(11), 3):
        images = np.ones((len(part), 3, 9, 9), np.float32)
        erase(images, np.random.default_rng(5), 0.5, of=11, at=part)
        np.testing.assert_array_equal(images, whole[part])


POLICY = Policy(operations=2, strength=9.0, erasing=0.5)


def test_a_data_set_applies_a_policy_to_training_images_alone():
    dataset = data.load("synthetic", image_size=8, train_count=30, test_count=30)
    first, again, other, without = (
        np.concatenate([images for images, _ in dataset.batches(8, train=True, **options)])
        for options in (
            *({"policy": POLICY}, {"policy": POLICY}, {"policy": POLICY, "epoch": 1}),
            {},
        )
    )
    np.testing.assert_array_equal(first, again)
    changed = (first != without).any(axis=(1, 2, 3))
    assert changed.sum() > 20
    assert (first != other).any()
    for found, plain in zip(dataset.batches(8, policy=POLICY), dataset.batches(8)):
        np.testing.assert_array_equal(found[0], plain[0])


def test_workers_and_a_later_start_get_the_same_images():
    dataset = data.load("synthetic", image_size=8, train_count=30, test_count=30)
    options = {"train": True, "policy": POLICY, "seed": 3, "epoch": 2}
    whole = list(dataset.batches(8, **options))
    parts = [list(dataset.batches(8, worker=i, workers=3, start=1, **options)) for i in range(3)]
    assert len(whole) == 4
    for (images, labels), *some in zip(whole[1:], *parts):
        np.testing.assert_array_equal(np.concatenate([part for part, _ in some]), images)
        np.testing.assert_array_equal(np.concatenate([part for _, part in some]), labels)


def test_images_that_are_decoded_get_it_whatever_their_batch_and_thread(tmp_path):
    """Each by the numbers of its row: held against the same crops without a policy."""
    root = make_tree(tmp_path, train=2, val=1)
    one, many = (
        data.load("imagenet", root, image_size=16, colour=False, threads=threads)
        for threads in (1, 3)
    )
    options = {"train": True, "seed": 3, "epoch": 1}
    ((images, labels),) = one.batches(99, policy=POLICY, **options)
    parts = [list(many.batches(5, policy=POLICY, worker=i, workers=2, **options)) for i in (0, 1)]
    found = [image for some in zip(*parts) for images, _ in some for image in images]
    np.testing.assert_array_equal(np.stack(found), images)
    ((plain, same),) = one.batches(99, **options)
    np.testing.assert_array_equal(same, labels)
    pixels = denormalise(plain, one.mean, one.std).round().astype(np.uint8).transpose(0, 2, 3, 1)
    order = data.random_numbers(3, 1).permutation(len(labels))
    for image, result, row in zip(pixels, images, order):
        made = rand_augment(image[None], data.random_numbers(3, 1, row, 2), 2, 9.0, one.mean)
        expected = data.normalise(made, one.mean, one.std)
        erase(expected, data.random_numbers(3, 1, row, 3), 0.5)
        np.testing.assert_allclose(result, expected[0], atol=1e-6)
    tested, plain = (list(one.batches(5, **policy)) for policy in ({"policy": POLICY}, {}))
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(tested, plain))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_data_set_takes_it_in_colour_and_in_grey(channels):
    dataset = data.load("digits", image_size=16, in_channels=channels)
    images, _ = next(iter(dataset.batches(32, train=True, policy=POLICY)))
    plain, _ = next(iter(dataset.batches(32, train=True)))
    assert images.shape == plain.shape == (32, channels, 16, 16)
    assert (images != plain).any(axis=(1, 2, 3)).sum() > 20


def test_pixels_are_changed_before_and_erased_after_all_else():
    """Of one image that is neither moved nor mirrored, by the random numbers of its path."""
    dataset = data.load("synthetic", image_size=8, train_count=6, test_count=6)
    dataset = dataclasses.replace(dataset, pad=0, flip=False)
    ((images, labels),) = dataset.batches(6, train=True, seed=7, epoch=1, policy=POLICY)
    order = data.random_numbers(7, 1).permutation(6)
    pixels = rand_augment(
        dataset.train.images[order], data.random_numbers(7, 1, 0, 2), 2, 9.0, dataset.fill
    )
    expected = data.normalise(pixels, dataset.mean, dataset.std)
    erase(expected, data.random_numbers(7, 1, 0, 3), 0.5)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, dataset.train.labels[order])
