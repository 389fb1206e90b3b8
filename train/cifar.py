"""Trains a residual network on CIFAR, or on the handwritten digits that come with the package.

python train/cifar.py --model preact1001 --gpus 0,1,2,3
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from gluon_resnetv2.commands import train

if __name__ == "__main__":
    train.script(__doc__.splitlines()[0], without=train.IMAGENET)
