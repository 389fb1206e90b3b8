"""The data set that a recipe names."""

from __future__ import annotations

from gluon_resnetv2 import data, imagenet
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.training.recipe import Recipe


def load_data(recipe: Recipe):
    """The recipe's data set; of synthetic images two batches for training and one for testing.

    Raises:
        UserError: it can't be had, or takes no such option.
    """
    if recipe.dataset == "imagenet":
        if not recipe.data_dir:
            raise UserError("--data-dir is missing: a folder with train and val, or their .rec")
        return imagenet.load(
            recipe.data_dir,
            image_size=recipe.image_size or 224,
            test_size=recipe.test_size,
            augmentation=recipe.augmentation,
            colour=recipe.colour,
            threads=recipe.threads,
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
