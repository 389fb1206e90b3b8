"""Trains a residual network on CIFAR, or on the handwritten digits that come with the package.

python train/cifar.py --model preact1001 --gpus 0,1,2,3
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    from gluon_resnetv2 import data
    from gluon_resnetv2.training.main import train
    from gluon_resnetv2.training.options import add_options, read_options


def load(recipe):
    """The images to train on: of the synthetic ones two batches, one for testing."""
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


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add_options(parser)
    recipe, resume = read_options(vars(parser.parse_args()))
    return train(recipe, load, resume)


if __name__ == "__main__":
    cli.run(main)
