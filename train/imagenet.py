"""Trains a residual network on ImageNet, or on images laid out like it.

python train/imagenet.py --model preact200 --data-dir imagenet --gpus 0,1,2,3,4,5,6,7
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from gluon_resnetv2.commands import train
from gluon_resnetv2.training.recipes import RECIPES

if __name__ == "__main__":
    train.script(
        __doc__.splitlines()[0], without=train.CIFAR, defaults=RECIPES["paper-imagenet"].fields
    )
