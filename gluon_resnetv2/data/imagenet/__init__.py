"""ImageNet and data sets laid out like it: read from folders or RecordIO, and packed."""

from gluon_resnetv2.data.imagenet.dataset import ImageNet, load
from gluon_resnetv2.data.imagenet.packing import pack

__all__ = ["ImageNet", "load", "pack"]
