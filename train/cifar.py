"""Trains a residual network on CIFAR, or on the handwritten digits that come with the package.

python train/cifar.py --model preact1001 --gpus 0,1,2,3
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    from gluon_resnetv2.training.main import train
    from gluon_resnetv2.training.options import IMAGENET, add_options, read_options


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add_options(parser, IMAGENET)
    chosen = vars(parser.parse_args())
    return train(*read_options(chosen), chosen["recipe"])


if __name__ == "__main__":
    cli.run(main)
