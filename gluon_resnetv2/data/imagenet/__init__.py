"""ImageNet and data sets laid out like it: read from folders or RecordIO, and packed."""

from gluon_resnetv2.data.imagenet.dataset import ImageFiles, load
from gluon_resnetv2.data.imagenet.packing import pack

__all__ = ["ImageFiles", "load", "pack"]
