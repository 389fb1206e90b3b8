"""Trains a residual network on ImageNet, or on images laid out like it.

python train/imagenet.py --model preact200 --data-dir imagenet --gpus 0,1,2,3,4,5,6,7
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    from gluon_resnetv2.training.main import train
    from gluon_resnetv2.training.options import CIFAR, add_options, read_options
    from gluon_resnetv2.training.recipes import RECIPES


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    recipe = RECIPES["paper-imagenet"].fields
    add_options(parser, CIFAR, defaults=recipe)
    chosen = vars(parser.parse_args())
    return train(*read_options(chosen, recipe), chosen["recipe"])


if __name__ == "__main__":
    cli.run(main)
