"""Weights of other implementations, and other libraries that take our networks.

Nothing here imports a framework; its modules do.
"""

from __future__ import annotations

# The layouts of weights that `convert` knows, and the module that has each as NAME_IN_CAPITALS.
LAYOUTS = {
    "symbolic": "mxnet",
    "model-zoo": "mxnet",
    "gluoncv-cifar": "mxnet",
    "timm": "timm",
    "torch-fb": "torch",
    "torch-fb-cifar": "torch",
    "torch-kaiming": "torch",
    "torch-preresnet": "torch",
    "keras": "keras",
}

# Packages that have weights of their own, as in "timm:resnetv2_50.a1h_in1k".
PACKAGES = ("timm", "keras", "gluoncv")


def is_name(source: str) -> bool:
    """Whether it is a name in another package, where there is no path that is called so."""
    package, colon, _ = source.partition(":")
    return bool(colon and package in PACKAGES)
