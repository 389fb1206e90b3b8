"""What a file of Keras says of its model beside the weights, held against Keras' ResNetV2.

The description is read, never run. Any layer, setting or connection that would compute otherwise
is refused.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gluon_resnetv2.untrusted import Fault, quote

MODELS = ("Functional", "Model", "Sequential")  # a layer may be a model, too
PACKAGES = ("keras", "tf_keras", "tensorflow")
IMAGE = "the image"
# Layers that users add are known by their kind, not by their name.
NAMES = {"GlobalAveragePooling2D": "avg_pool", "Dense": "predictions"}
# What a setting may be, beside those in `network`. One that is not given is Keras' default, or of
# a later version.
SETTINGS: dict[str, dict[str, list[Any]]] = {
    "Conv2D": {
        "activation": ["linear"],
        "padding": ["valid"],
        "groups": [1],
        "dilation_rate": [[1, 1]],
    },
    "BatchNormalization": {"epsilon": [1.001e-5], "center": [True], "scale": [True]},
    "Activation": {"activation": ["relu"]},
    "MaxPooling2D": {"padding": ["valid"]},
    "GlobalAveragePooling2D": {"keepdims": [False]},
    "Dense": {"activation": ["softmax", "linear"]},
}
AXES = {"channels_last": [3, -1, [3], [-1]], "channels_first": [1, [1]]}


@dataclass(frozen=True)
class Layer:
    """A layer, the names of those whose outputs it takes, in order, and its settings."""

    kind: str
    inputs: Sequence[str]
    settings: Mapping


def network(stages: Sequence[int]) -> dict[str, Layer]:
    """A ResNetV2 with so many units in its stages, by the layers' names, as Keras lists them."""
    layers = {}

    def add(name, kind, *inputs, **settings):
        layers[name] = Layer(kind, sorted(inputs), settings)
        return name

    def pad(name, x, by):
        return add(name, "ZeroPadding2D", x, padding=[[by, by], [by, by]])

    def conv(name, x, stride=1):
        return add(name, "Conv2D", x, strides=[stride, stride])

    def pool(name, x, size):
        return add(name, "MaxPooling2D", x, pool_size=[size, size], strides=[2, 2])

    def rectified(name, x):
        return add(f"{name}_relu", "Activation", add(f"{name}_bn", "BatchNormalization", x))

    x = conv("conv1_conv", pad("conv1_pad", IMAGE, 3), 2)
    x = pool("pool1_pool", pad("pool1_pad", x, 1), 3)
    for stage, units in enumerate(stages, 2):
        for unit in range(1, units + 1):
            name = f"conv{stage}_block{unit}"
            stride = 2 if unit == units and stage <= len(stages) else 1
            first = rectified(f"{name}_preact", x)
            inner = rectified(f"{name}_1", conv(f"{name}_1_conv", first))
            inner = conv(f"{name}_2_conv", pad(f"{name}_2_pad", inner, 1), stride)
            inner = rectified(f"{name}_2", inner)
            if unit == 1:
                x = conv(f"{name}_0_conv", first, stride)
            elif stride == 2:
                x = pool(_pooled(x), x, 1)
            x = add(f"{name}_out", "Add", x, conv(f"{name}_3_conv", inner))
    add("predictions", "Dense", add("avg_pool", "GlobalAveragePooling2D", rectified("post", x)))
    return layers


def _pooled(name):
    return f"{name}, pooled"  # Keras counts these, in whatever else it has made


def stages_of(layers: Container[str]) -> list[int]:
    """How many units each stage has, by the layers' names."""
    stages: list[int] = []
    while f"conv{len(stages) + 2}_block1_1_conv" in layers:
        unit = 1
        while f"conv{len(stages) + 2}_block{unit + 1}_1_conv" in layers:
            unit += 1
        stages.append(unit)
    return stages


def layers_of(config: object) -> dict[str, Layer]:
    """The layers that a description has, by the names that `network` gives them, in order.

    Raises:
        Fault: it describes another network than a ResNetV2 of Keras.
    """
    found: dict[str, Layer] = {}
    try:
        last = _walk(config, IMAGE, found)
    except Fault:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise Fault("describes no model of layers") from None
    expected = network(stages_of(found))
    orders = [
        layer.settings["data_format"] for layer in found.values() if "data_format" in layer.settings
    ]
    order = "channels_first" if orders[:1] == ["channels_first"] else "channels_last"
    for name, layer in found.items():
        if name not in expected or layer.kind != expected[name].kind:
            _refuse(layer, f"of kind {quote(str(layer.kind))}")
        if layer.inputs != expected[name].inputs:
            _refuse(layer, f"that takes {quote(' and '.join(layer.inputs))}")
        allowed = {setting: [value] for setting, value in expected[name].settings.items()}
        allowed = {"data_format": [order], "axis": AXES[order], **allowed}
        for setting, values in {**allowed, **SETTINGS.get(layer.kind, {})}.items():
            if setting in layer.settings and layer.settings[setting] not in values:
                _refuse(layer, f"with {setting}={quote(str(layer.settings[setting]))}")
    if "predictions" not in found:  # features alone, pooled or not
        del expected["predictions"]
        if last == "post_relu":
            del expected["avg_pool"]
    if missing := [name for name in expected if name not in found]:
        raise Fault(f"describes no layer {missing[0]}, which each ResNetV2 of Keras has")
    if last != [*expected][-1]:
        raise Fault(f"describes a model that gives {quote(last)}, not its classifier's logits")
    return found


def _walk(model, taken, found):
    """Adds the layers of a model that takes `taken` to `found`; returns what the model gives."""
    if model["class_name"] not in MODELS:
        raise Fault(f"describes a model of class {quote(str(model['class_name']))}, not of layers")
    gives: dict[str, str] = {}
    last = taken
    for entry in model["config"]["layers"]:
        kind, settings = entry["class_name"], entry["config"]
        name = settings["name"] + ""
        layer = Layer(kind, [last], settings)
        if entry.get("module", "keras").partition(".")[0] not in PACKAGES:
            _refuse(layer, f"of kind {quote(entry['module'])}")
        if kind == "InputLayer":
            if taken in gives.values():
                _refuse(layer, "for a second input")
        else:
            if model["class_name"] != "Sequential":
                layer = Layer(kind, sorted(gives[x] for x in _inputs(layer, entry)), settings)
            last = _place(layer, entry, found)
        gives[name] = last
    if model["class_name"] == "Sequential":
        return last
    outputs = model["config"]["output_layers"]
    ((output, *_),) = [outputs] if isinstance(outputs[0], str) else outputs
    return gives[output]


def _place(layer, entry, found):
    """Adds a layer, or the layers of one that is a model, to `found`; returns what it gives."""
    if layer.kind in MODELS:
        (taken,) = layer.inputs
        return _walk(entry, taken, found)
    if layer.kind == "Dropout":  # is nothing but in training
        (taken,) = layer.inputs
        return taken
    if layer.inputs == ["predictions"] and _is_softmax(layer):
        dense = found["predictions"]
        if dense.settings["activation"] != "linear":
            _refuse(layer, "after another")
        settings = {**dense.settings, "activation": "softmax"}
        found["predictions"] = Layer(dense.kind, dense.inputs, settings)
        return "predictions"
    name = NAMES.get(layer.kind, layer.settings["name"])
    if layer.kind == "MaxPooling2D" and name != "pool1_pool":
        name = _pooled(*layer.inputs)
    if name in found:
        _refuse(layer, f"beside another {name}")
    found[name] = layer
    return name


def _is_softmax(layer):
    """Whether it is one of classes, beside the classifier that could have it as its activation."""
    if layer.kind == "Softmax":
        return layer.settings["axis"] in (-1, [-1])
    return layer.kind == "Activation" and layer.settings["activation"] == "softmax"


def _inputs(layer, entry):
    """The names of the layers that one takes: Keras 3 says it in objects, Keras 2 in lists."""
    if len(entry["inbound_nodes"]) != 1:
        _refuse(layer, "that is not called once")
    (node,) = entry["inbound_nodes"]
    if isinstance(node, dict):
        (tensors,) = node["args"]
        tensors = tensors if isinstance(tensors, list) else [tensors]
        names = [tensor["config"]["keras_history"][0] for tensor in tensors]
        options = node["kwargs"]
    else:
        names = [name for name, *_ in node]
        options = {key: value for _, _, _, *more in node for key, value in dict(*more).items()}
    for option, value in options.items():
        if value:  # such as training=True, with which a batch's own statistics normalise it
            _refuse(layer, f"called with {option}={quote(str(value))}")
    return names


def _refuse(layer, what):
    name = quote(str(layer.settings["name"]))
    raise Fault(f"describes a layer {name} {what}, which no ResNetV2 of Keras has")
