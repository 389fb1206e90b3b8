"""Made-up images that can be learnt: for trying things out without any data."""

from __future__ import annotations

import numpy as np

from gluon_resnetv2.data.arrays import ArrayDataset, Split, channel_statistics

GRID = 4  # a class's pattern has GRID x GRID squares


def load(
    image_size: int | None = None,
    classes: int | None = None,
    train_count: int | None = None,
    test_count: int | None = None,
) -> ArrayDataset:
    """Each class is a pattern of coloured squares; each image is its class's pattern with noise.

    The same options give the same images, always. Classes take turns, so they are equally frequent.

    Args:
        image_size: height and width in pixels; 32 by default.
        classes: 10 by default.
        train_count, test_count: number of images; 256 and 64 by default.
    """
    size, classes = image_size or 32, classes or 10
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 192, (classes, GRID, GRID, 3), dtype=np.uint8)
    square = np.arange(size) * GRID // size

    def make(count: int) -> Split:
        labels = np.arange(count, dtype=np.int32) % classes
        images = rng.integers(0, 64, (count, size, size, 3), dtype=np.uint8)
        images += patterns[labels][:, square[:, None], square]
        return Split(images, labels)

    train, test = make(train_count or 256), make(test_count or 64)
    mean, std = channel_statistics(train.images)
    return ArrayDataset(
        name="synthetic",
        train=train,
        test=test,
        classes=tuple(f"class{i}" for i in range(classes)),
        mean=mean,
        std=std,
        pad=size // 8,  # CIFAR's 4 of 32
        flip=True,
        fill=mean,
    )
