"""ImageNet and data sets laid out like it: read from folders or RecordIO, packed, evaluated."""

from gluon_resnetv2.imagenet.dataset import ImageNet, load
from gluon_resnetv2.imagenet.evaluation import evaluate
from gluon_resnetv2.imagenet.packing import pack

__all__ = ["ImageNet", "evaluate", "load", "pack"]
