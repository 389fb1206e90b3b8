"""Weights of other implementations, and other libraries that take our networks.

Nothing here imports a framework; its modules do.
"""

from __future__ import annotations

from pathlib import Path

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

# Weights that come with this package: their names, and the folders of their exports.
BUILT_IN: dict[str, Path] = {}
# Packages that have weights of their own, as in "timm:resnetv2_50.a1h_in1k".
PACKAGES = ("timm", "keras", "gluoncv")


def is_name(source: str) -> bool:
    """Whether weights are called by a name, where there is no path that is called so."""
    package, colon, _ = source.partition(":")
    return source in BUILT_IN or bool(colon and package in PACKAGES)
