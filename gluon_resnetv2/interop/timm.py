"""timm's pre-activation ResNets: `resnetv2_18`, `_34`, `_50`, `_101` and `_152`.

As in timm 1.0.31: the stem is a 7x7 convolution and a max pooling, without a BN; every unit has
its own pre-activation, which its projection reads where there is one; bottlenecks stride on the
3x3. BNs have PyTorch's eps, 1e-5, and paddings are symmetric. The classifier is a 1x1 convolution.

Others of the family are other networks: deep or tiered stems ("d", "t"), group normalisation and
its kin ("_bit", "_gn", "_evos", "_frn"). Their names or shapes differ, so that they are refused.
What neither would show, average pooling before the projection with a plain stem, none of them has.
"""

from __future__ import annotations

import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.interop.layout import Arrays, Facts, Layout
from gluon_resnetv2.interop.torch import COUNTER, FIELDS
from gluon_resnetv2.spec import Spec


def _spec(facts: Facts) -> Spec:
    if facts.stem != "imagenet" or facts.unit == "single":
        raise UserError("timm's resnetv2 have a 7x7 stem, and units of two or three layers")
    return facts.spec(first_activation="unit", stride_on="3x3")


def _input(spec: Spec, arrays: Arrays, size: int) -> tuple[dict, str]:
    """How timm prepares images for each depth; it scales them to a whole size, rounded down."""
    crop = {18: 0.9, 34: 0.9, 152: 0.875}.get(spec.depth, TIMM.input["crop"])
    return {**TIMM.input, "crop": size / max(size, int(size / crop))}, ""


def _decode(name, array):
    return array[:, :, 0, 0] if name == "fc1_weight" and array.shape[2:] == (1, 1) else array


def _encode(name, array):
    return array[:, :, None, None] if name == "fc1_weight" else array


def _logits(spec: Spec, arrays: Arrays, images: np.ndarray) -> np.ndarray:
    import torch

    try:
        from timm.layers import BatchNormAct2d, create_conv2d
        from timm.models.resnetv2 import ResNetV2
    except RuntimeError as error:  # a torchvision made for another PyTorch
        raise ImportError(f"timm can't be imported: {error}") from error

    basic = spec.unit == "basic"
    net = ResNetV2(
        [*spec.stages],
        channels=tuple(u.out_channels for u in spec.units() if u.name.endswith("_unit1")),
        num_classes=spec.classes,
        in_chans=spec.in_channels,
        stem_chs=spec.channels[0],
        basic=basic,
        bottle_ratio=1.0 if basic else 0.25,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
    )
    net.load_state_dict({name: torch.from_numpy(np.array(arrays[name])) for name in arrays})
    with torch.no_grad():
        return net.eval()(torch.from_numpy(images)).numpy()


TIMM = Layout(
    name="timm",
    about="timm's resnetv2_{18,34,50,101,152}",
    modules={
        "conv0": "stem.conv",
        "stage{s}_unit{u}_bn{i}": "stages.{s-1}.blocks.{u-1}.norm{i}",
        "stage{s}_unit{u}_conv{i}": "stages.{s-1}.blocks.{u-1}.conv{i}",
        "stage{s}_unit{u}_sc": "stages.{s-1}.blocks.{u-1}.downsample.conv",
        "bn1": "norm",
        "fc1": "head.fc",
    },
    fields=FIELDS,
    spec=_spec,
    input={
        "mean": [127.5, 127.5, 127.5],
        "std": [127.5, 127.5, 127.5],
        "crop": 0.95,
        "interpolation": "bicubic",
    },
    prepare=_input,
    decode=_decode,
    encode=_encode,
    extra={COUNTER: np.array(0)},
    logits=_logits,
    package="timm",
)
