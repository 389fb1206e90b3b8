"""ResNet v2 as an `mx.sym` factory, for scripts written for MXNet's image-classification example.

    sym = import_module("symbols.resnetv2").get_symbol(10, 110, "3,32,32")
    mx.mod.Module(sym, context=mx.cpu()).fit(...)

It traces the Gluon network. Names and defaults are those of the example's own
`symbols/resnet.py` (after tornadomeet/ResNet), so that its trained parameters load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mxnet as mx

from gluon_resnetv2 import spec as specs
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.net import ResNetV2

# Where the example departs from the paper's defaults.
EXAMPLE = {
    "widening": "B",
    "project_first": True,
    "stride_on": "3x3",
    "input_bn": "shift",
    "bn_eps": 2e-5,
}


def get_symbol(
    num_classes: int,
    num_layers: int,
    image_shape: str | Sequence[int] = "3,224,224",
    conv_workspace: int = 256,
    dtype: str = "float32",
    **kwargs: Any,
) -> mx.sym.Symbol:
    """The network with a softmax output, ready for `mx.mod.Module`.

    Args:
        num_classes: classes of the classifier.
        num_layers: depth. Those of ImageNet's networks (18 to 269) mean such a network, others a
            CIFAR network; `stem="cifar"` or `"imagenet"` says otherwise.
        image_shape: "channels,height,width" or a tuple; only the channels matter, the network
            never depends on the height.
        conv_workspace: accepted for the convention's sake; MXNet 1.9.1 picks its own.
        dtype: "float32", or "float16" for the layers between input and softmax.
        kwargs: fields of `spec.Spec` (order, shortcut, widening, ...) that replace the example's.
            Others are ignored, since the example's scripts hand over all of their options.

    Returns:
        A symbol of inputs `data` and `softmax_label`, output `softmax_output`.

    Raises:
        UserError: no network has that depth, or a value is out of range.
    """
    if dtype not in ("float32", "float16"):
        raise UserError(f"dtype '{dtype}' is unknown; choose float32, float16")
    if isinstance(image_shape, str):
        image_shape = tuple(int(size) for size in image_shape.split(","))
    switches = {key: value for key, value in kwargs.items() if key in specs.FIELDS}
    stem = switches.pop("stem", None)
    on_imagenet = stem == "imagenet" or (stem is None and int(num_layers) in specs.IMAGENET)
    switches = {
        **EXAMPLE,
        "first_activation": "both" if on_imagenet else "unit",
        **switches,
        "name": f"preact{num_layers}",
        "classes": int(num_classes),
        "in_channels": image_shape[0],
    }
    net = ResNetV2(specs.named(stem=stem, **switches))
    net.cast(dtype)
    data = mx.sym.var("data")
    logits = net(data if dtype == "float32" else mx.sym.Cast(data, dtype=dtype))
    # Module decays weights and gammas; what Gluon's trace says would add biases and betas.
    for variable in logits.get_internals():
        if variable.name.endswith(("_bias", "_beta")):
            variable._set_attr(__wd_mult__="0.0")
    if dtype != "float32":
        logits = mx.sym.Cast(logits, dtype="float32")
    return mx.sym.SoftmaxOutput(logits, name="softmax")
