"""State dicts of PyTorch's ports of the networks that came in Lua, and of a relative.

The Lua files number their modules; ports name them, and most do as torchvision: `conv1`,
`layer1.0.bn1`, `layer1.0.conv1`, `layer1.0.downsample.0`, `fc`. The BN after the last unit is `bn`
in the ports that descend from bearpaw/pytorch-classification, which are most. ImageNet's BN after
the stem is `bn1`; CIFAR's is the first unit's own, `layer1.0.bn1`.

The weights do not show where a unit strides, nor what its projection reads. So bottlenecks of
`TORCH_KAIMING` and of `TORCH_PRERESNET` look alike, and have to be told apart by the user.
"""

from __future__ import annotations

import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.interop.layout import CIFAR_INPUT, IMAGENET_INPUT, Facts, Layout
from gluon_resnetv2.spec import Spec

FIELDS = {
    "weight": ".weight",
    "bias": ".bias",
    "gamma": ".weight",
    "beta": ".bias",
    "moving_mean": ".running_mean",
    "moving_var": ".running_var",
}
COUNTER = ".num_batches_tracked"  # of training batches, which every BN counts

UNITS = {
    "conv0": "conv1",
    "stage{s}_unit{u}_bn{i}": "layer{s}.{u-1}.bn{i}",
    "stage{s}_unit{u}_conv{i}": "layer{s}.{u-1}.conv{i}",
    "stage{s}_unit{u}_sc": "layer{s}.{u-1}.downsample.0",
    "bn1": "bn",
    "fc1": "fc",
}

# Of fb.resnet.torch's datasets/cifar10.lua, 0 to 255.
FB_CIFAR_INPUT = {"mean": [125.3, 123.0, 113.9], "std": [63.0, 62.1, 66.7], "crop": 1.0}


def _fb(facts: Facts) -> Spec:
    _only(facts, "fb.resnet.torch's ImageNet networks", "imagenet", "basic", "bottleneck")
    return facts.spec(stride_on="3x3")


def _fb_cifar(facts: Facts) -> Spec:
    _only(facts, "fb.resnet.torch's CIFAR networks", "cifar", "basic")
    return facts.spec(widening="A", split_after_pre="widening")


def _kaiming(facts: Facts) -> Spec:
    _only(facts, "resnet-1k-layers' networks", "cifar", "bottleneck")
    return facts.spec()


def _preresnet(facts: Facts) -> Spec:
    _only(facts, "pytorch-classification's preresnets", "cifar", "basic", "bottleneck")
    return facts.spec(
        stride_on="3x3",
        first_activation="unit",
        split_after_pre="none",
    )


def _only(facts, whose, stem, *units):
    if facts.stem != stem or facts.unit not in units:
        raise UserError(f"{whose} have the {stem} stem and {' or '.join(units)} units")


def _layout(name, about, spec, modules, prepared, namesake=""):
    return Layout(
        name=name,
        about=about,
        modules={**UNITS, **modules},
        fields=FIELDS,
        spec=spec,
        input=prepared,
        extra={COUNTER: np.array(0)},
        namesake=namesake,
    )


TORCH_FB = _layout(
    "torch-fb",
    "ports of facebook/fb.resnet.torch's preresnet for ImageNet",
    _fb,
    {"bn0": "bn1"},
    IMAGENET_INPUT,
)

TORCH_FB_CIFAR = _layout(
    "torch-fb-cifar",
    "ports of facebook/fb.resnet.torch's preresnet for CIFAR",
    _fb_cifar,
    {"bn0": "layer1.0.bn1"},
    FB_CIFAR_INPUT,
)

TORCH_KAIMING = _layout(
    "torch-kaiming",
    "ports of KaimingHe/resnet-1k-layers",
    _kaiming,
    {"bn0": "layer1.0.bn1"},
    FB_CIFAR_INPUT,
)

# Unlike what it was ported from: units project the raw input, and stride on the 3x3.
TORCH_PRERESNET = _layout(
    "torch-preresnet",
    "bearpaw/pytorch-classification's preresnet",
    _preresnet,
    {},
    CIFAR_INPUT,
    namesake="fb.resnet.torch's preresnet with projections",
)
