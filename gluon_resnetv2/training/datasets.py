"""The data set that a recipe names."""

from __future__ import annotations

import numpy as np

from gluon_resnetv2 import data
from gluon_resnetv2.data import imagenet
from gluon_resnetv2.engines.images import denormalise
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.spec import IMAGE_SIZES
from gluon_resnetv2.training.recipe import Recipe


def load_data(recipe: Recipe) -> data.Dataset | imagenet.ImageNet:
    """The recipe's data set; of synthetic images two batches for training and one for testing.

    Raises:
        UserError: it can't be had, or takes no such option.
    """
    if recipe.dataset == "imagenet":
        if not recipe.data_dir:
            raise UserError("--data-dir is missing: a folder with train and val, or their .rec")
        return imagenet.load(
            recipe.data_dir,
            image_size=recipe.image_size or IMAGE_SIZES["imagenet"],
            test_size=recipe.test_size,
            augmentation=recipe.augmentation,
            colour=recipe.colour,
            threads=recipe.threads,
            leave_out=recipe.leave_out,
        )
    counts = {}
    if recipe.dataset == "synthetic":
        counts = {"train_count": 2 * recipe.batch_size, "test_count": recipe.batch_size}
    return data.load(
        recipe.dataset,
        recipe.data_dir,
        image_size=recipe.image_size,
        coarse=recipe.coarse,
        **counts,
    )


def training_images(recipe: Recipe, count: int) -> np.ndarray:
    """The first images of the recipe's first epoch, (count or fewer, C, H, W) uint8 in 0..255.

    Raises:
        UserError: as `load_data`.
    """
    dataset = load_data(recipe)
    count = min(count, dataset.train_count)
    images, _ = next(iter(dataset.batches(count, train=True, seed=recipe.seed)))
    pixels = denormalise(images, dataset.mean, dataset.std)
    return pixels.round().clip(0, 255).astype("uint8")
