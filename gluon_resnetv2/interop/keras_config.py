"""What a file of Keras says of its model beside the weights, held against Keras' ResNetV2.

The description is read, never run. Any layer or setting that would compute otherwise is refused.
"""

from __future__ import annotations

import re
from collections import Counter

from gluon_resnetv2.deploy.untrusted import Fault, quote

# What a setting may be. One that is not given is Keras' default, or of a later version.
SETTINGS = {
    "InputLayer": {},
    "Dropout": {},
    "Add": {},
    "ZeroPadding2D": {"padding": [[[1, 1], [1, 1]]]},
    "Conv2D": {
        "activation": ["linear"],
        "padding": ["valid"],
        "groups": [1],
        "dilation_rate": [[1, 1]],
    },
    "BatchNormalization": {
        "axis": [[3], 3, -1, [1], 1],
        "epsilon": [1.001e-5],
        "center": [True],
        "scale": [True],
    },
    "Activation": {"activation": ["relu"]},
    "MaxPooling2D": {"pool_size": [[1, 1]], "strides": [[2, 2]], "padding": ["valid"]},
    "GlobalAveragePooling2D": {"keepdims": [False]},
    "Dense": {"activation": ["softmax", "linear"]},
}
OF_LAYER = {
    "conv1_pad": {"padding": [[[3, 3], [3, 3]]]},
    "pool1_pool": {"pool_size": [[3, 3]]},
}
UNIT = re.compile(r"conv(\d{1,3})_block(\d{1,3})_2_conv")


def check(config: object) -> None:
    """Refuses the description of a model that is no ResNetV2 of Keras.

    Raises:
        Fault: a layer or a setting is another; or a layer without weights is missing or too many.
    """
    try:
        layers = [
            (layer["class_name"], layer["config"]["name"], layer["config"])
            for layer in config["config"]["layers"]
        ]
        units = Counter(int(unit[1]) for _, name, _ in layers if (unit := UNIT.fullmatch(name)))
    except (KeyError, TypeError):
        raise Fault("has a config.json that describes no model of layers") from None
    for kind, name, settings in layers:
        if not isinstance(kind, str) or kind not in SETTINGS:
            _refuse(name, f"of kind {quote(str(kind))}")
        allowed = {**SETTINGS[kind], **OF_LAYER.get(name, {})}
        if kind == "Conv2D":
            allowed["strides"] = [[_stride(name, units)] * 2]
        for setting, values in allowed.items():
            if setting in settings and settings[setting] not in values:
                _refuse(name, f"with {setting}={quote(str(settings[setting]))}")
        if kind == "Dense" and settings.get("units") == 1:
            _refuse(name, "with units=1, of which a softmax is always 1")
    _check_counts(Counter(kind for kind, *_ in layers), units)


def _stride(name, units):
    unit = UNIT.fullmatch(name)
    strided = unit and int(unit[1]) < max(units) and int(unit[2]) == units[int(unit[1])]
    return 2 if strided or name == "conv1_conv" else 1


def _check_counts(found, units):
    number, stages = sum(units.values()), len(units)
    expected = {
        "Activation": 3 * number + 1,
        "Add": number,
        "ZeroPadding2D": number + 2,
        "MaxPooling2D": stages,  # the stem's, and of a last unit with a stride
        "GlobalAveragePooling2D": 1,
    }
    for kind, count in expected.items():
        if found[kind] != count:
            raise Fault(f"has {found[kind]} layers {kind}, of which its ResNetV2 has {count}")


def _refuse(name, what):
    raise Fault(f"has a layer {quote(str(name))} {what}, which no ResNetV2 of Keras has")
