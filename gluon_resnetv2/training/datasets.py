"""The data set that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gluon_resnetv2 import data
from gluon_resnetv2.engines.images import denormalise
from gluon_resnetv2.formats.manifest import SCALING, Input
from gluon_resnetv2.spec import IMAGE_SIZES
from gluon_resnetv2.training.recipe import Recipe


def load_data(
    recipe: Recipe, described: Mapping[str, Any] | None = None, **options: Any
) -> data.Dataset:
    """The recipe's data set; of synthetic images two batches for training and one for testing.

    Args:
        described: how images in files are scaled, as a manifest's input says it.
        options: that the recipe does not have, as `data.load` takes them.

    Raises:
        UserError: it can't be had, or takes no such option.
    """
    taken = data.options(recipe.dataset)
    options |= {name: getattr(recipe, name, None) for name in taken if name not in options}
    if recipe.dataset == "synthetic":
        options |= {"train_count": 2 * recipe.batch_size, "test_count": recipe.batch_size}
    elif recipe.dataset in data.DECODED:
        options["image_size"] = recipe.image_size or IMAGE_SIZES[recipe.spec(classes=10).stem]
        options |= scaling(described or {})
    return data.load(recipe.dataset, **options)


def scaling(described: Mapping[str, Any]) -> dict[str, Any]:
    """What of `described` says how images are scaled, or its defaults."""
    return {name: described.get(name, getattr(Input, name)) for name in SCALING}


def training_images(recipe: Recipe, described: Mapping[str, Any], count: int) -> np.ndarray:
    """The first images of the recipe's first epoch, (count or fewer, C, H, W) uint8 in 0..255.

    Args:
        described: as `load_data` takes it.

    Raises:
        UserError: as `load_data`.
    """
    dataset = load_data(recipe, described)
    count = min(count, dataset.train_count)
    images, _ = next(iter(dataset.batches(count, train=True, seed=recipe.seed)))
    pixels = denormalise(images, dataset.mean, dataset.std)
    return pixels.round().clip(0, 255).astype("uint8")
