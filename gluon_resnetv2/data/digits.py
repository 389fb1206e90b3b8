"""Handwritten digits: 1797 real images that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gluon_resnetv2.data.arrays import ArrayDataset, Split, channel_statistics


def load(image_size: int | None = None) -> ArrayDataset:
    """The digits 0 to 9, white on black, as 1437 training and 360 test images.

    The source is the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
    C. Kaynak, UCI machine learning repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY
    4.0), 8x8 pixels of 17 grey levels: `digits.npz`, in the order of scikit-learn's copy.

    The split never changes: within each digit, in the order of the source, every fifth image is a
    test image. As in a random split, the 13 people who wrote them are in both parts.

    Args:
        image_size: height and width that the images are brought to, in pixels; 32 by default.
    """
    size = image_size or 32
    with np.load(Path(__file__).with_name("digits.npz")) as source:
        images, labels = _enlarge(source["images"], size), source["labels"].astype(np.int32)

    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    train = Split(images[~is_test], labels[~is_test])
    mean, std = channel_statistics(train.images)
    return ArrayDataset(
        name="digits",
        train=train,
        test=Split(images[is_test], labels[is_test]),
        classes=tuple("0123456789"),
        mean=mean,
        std=std,
        # Half a pixel of the source. Every digit fills its frame from top to bottom, an eighth of
        # its ink in the last row, so that a longer way would cut strokes off.
        pad=size // 16,
        flip=False,  # a mirrored digit is no digit
        fill=(0.0, 0.0, 0.0),  # the background
    )


def _enlarge(images: NDArray[np.integer[Any]], size: int) -> NDArray[np.uint8]:
    """Grey images (N, 8, 8) of 0 to 16 as uint8 (N, size, size, 3)."""
    grey = np.empty((len(images), size, size), np.float32)
    for i, image in enumerate(images.astype(np.float32) * (255 / 16)):
        large = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
        grey[i] = np.asarray(large)
    # Bicubic interpolation overshoots at edges.
    grey = np.rint(grey.clip(0, 255)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
