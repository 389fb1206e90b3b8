"""The layouts of MXNet's own world: its symbolic example, Gluon's model zoo, GluonCV."""

from __future__ import annotations

import re

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.interop.layout import (
    CIFAR_INPUT,
    FIELDS,
    IMAGENET_INPUT,
    MODULES,
    Arrays,
    Facts,
    Layout,
)
from gluon_resnetv2.pixels import OPENCV
from gluon_resnetv2.spec import Spec


def _symbolic(facts: Facts) -> Spec:
    return facts.spec(
        stride_on="3x3",
        first_activation="both" if facts.stem == "imagenet" else "unit",
        project_first=True,
        input_bn="shift",
        bn_eps=2e-5,
    )


EXAMPLES_MEAN = (123.68, 116.779, 103.939)  # what MXNet 1.9.1's example subtracts by default


def _symbolic_input(spec: Spec, arrays: Arrays, size: int) -> tuple[dict, str]:
    """How images are prepared. The moving mean of the input BN tells what a training fed to it:
    tornadomeet's and older ones raw values, about 104 to 124; MXNet 1.9.1's example what is left
    once a mean is subtracted, about 0. tornadomeet's CIFAR validation takes the whole image;
    MXNet's train_cifar10.py has 28x28, cut from 32x32 without scaling.
    """
    seen = float(np.mean(arrays["bn_data_moving_mean"]))
    mean = EXAMPLES_MEAN if abs(seen) < min(EXAMPLES_MEAN) / 2 else (0.0, 0.0, 0.0)
    whole = spec.stem == "cifar" and size != 28
    prepared = {**SYMBOLIC.input, "mean": mean, "crop": 1.0 if whole else 0.875}
    how = "centred" if any(mean) else "raw"
    return prepared, f"bn_data's moving mean is {seen:.1f}, so images are taken to be {how}"


SYMBOLIC = Layout(
    name="symbolic",
    about="MXNet's symbolic ResNets (tornadomeet/ResNet, example/image-classification)",
    modules={name: name for name in MODULES},
    fields={name: f"_{name}" for name in FIELDS},
    spec=_symbolic,
    input={
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "crop": 0.875,
        "interpolation": OPENCV,
    },
    prepare=_symbolic_input,
)

_GLUON_FIELDS = {
    "weight": ".weight",
    "bias": ".bias",
    "gamma": ".gamma",
    "beta": ".beta",
    "moving_mean": ".running_mean",
    "moving_var": ".running_var",
}


def _model_zoo(facts: Facts) -> Spec:
    return facts.spec(stride_on="3x3", first_activation="both", input_bn="plain")


def _gluoncv_cifar(facts: Facts) -> Spec:
    if facts.stem != "cifar" or facts.unit != "basic":
        raise UserError("GluonCV's cifar_resnet*_v2 have a 3x3 stem and basic units")
    return facts.spec(first_activation="unit", split_after_pre="none", input_bn="plain")


def _block_names(stem: int, head: int) -> dict[str, str]:
    """Names of `save_parameters`: stages follow the stem's blocks, and a BN them."""
    unit = f"features.{{s+{stem}}}.{{u-1}}"
    return {
        "bn_data": "features.0",
        "conv0": "features.1",
        "bn0": "features.2",
        "stage{s}_unit{u}_bn{i}": unit + ".bn{i}",
        "stage{s}_unit{u}_conv{i}": unit + ".conv{i}",
        "stage{s}_unit{u}_sc": unit + ".downsample",
        "bn1": f"features.{head}",
        "fc1": "output",
    }


# Of GluonCV's `export_block`, whose graphs take height, width and channels from 0 to 255.
_INSIDE = {"mean": "_init_mean", "std": "_init_scale"}
_COUNTED = re.compile(
    r"(?:stage(?P<stage>\d+)_)?(?P<kind>batchnorm|conv|dense)(?P<number>\d+)_(?P<field>\w+)"
)


def _from_pair(stem: int, head: int):
    """Renames an exported pair's parameters, which are counted, as `save_parameters` would."""

    def canonical(arrays: Arrays) -> Arrays:
        inside = {name: arrays[name] for name in arrays if name.endswith((*_INSIDE.values(),))}
        arrays = {name: arrays[name] for name in arrays if name not in inside}
        found = {name: match for name in arrays if (match := _COUNTED.search(name))}
        if len(found) < len(arrays):
            return {**arrays, **inside}
        layers: dict[tuple[int, str], set[int]] = {}  # those of each stage, in order
        for match in found.values():
            place = int(match["stage"] or 0), match["kind"]
            layers.setdefault(place, set()).add(int(match["number"]))
        kernels = {
            (int(match["stage"] or 0), int(match["number"])): arrays[name].shape[-1]
            for name, match in found.items()
            if match["kind"] == "conv"
        }
        renamed = {}
        for name, match in found.items():
            stage, kind = int(match["stage"] or 0), match["kind"]
            numbers = sorted(layers[stage, kind])
            index = numbers.index(int(match["number"]))
            if not stage:
                block = {
                    "conv": "features.1",
                    "dense": "output",
                    "batchnorm": f"features.{head if index == len(numbers) - 1 else 2 * index}",
                }[kind]
            else:
                bottleneck = kernels[stage, min(layers[stage, "conv"])] == 1
                block = f"features.{stage + stem}." + _in_stage(
                    kind, index, len(numbers), 3 if bottleneck else 2
                )
            renamed[f"{block}.{match['field']}"] = arrays[name]
        return {**(renamed if len(renamed) == len(arrays) else arrays), **inside}

    return canonical


def _in_stage(kind, index, count, per_unit):
    """The block that is number `index` of `count` of its kind in a stage, as they are made."""
    if kind == "conv" and count % per_unit:  # the first unit's projection follows its layers
        if index == per_unit:
            return "0.downsample"
        index -= index > per_unit
    unit, layer = divmod(index, per_unit)
    return f"{unit}.{'bn' if kind == 'batchnorm' else 'conv'}{layer + 1}"


def _run(make, arrays: Arrays, images: np.ndarray) -> np.ndarray:
    """What a Gluon network with these parameters gives."""
    net = make()
    net.collect_params().setattr("grad_req", "null")  # gradients would take as much again
    net.initialize(mx.init.Zero())
    for name, parameter in net._collect_params_with_prefix().items():
        parameter.shape = arrays[name].shape
        parameter.set_data(mx.nd.array(arrays[name]))
    return net(mx.nd.array(images)).asnumpy()


def _model_zoo_logits(spec: Spec, arrays: Arrays, images: np.ndarray) -> np.ndarray:
    from mxnet.gluon.model_zoo import vision

    kind = vision.BottleneckV2 if spec.unit == "bottleneck" else vision.BasicBlockV2
    last = 4 if spec.unit == "bottleneck" else 1
    channels = [spec.channels[0], *(last * width for width in spec.channels)]

    def make():
        return vision.ResNetV2(kind, list(spec.stages), channels, classes=spec.classes)

    return _run(make, arrays, images)


def _gluoncv_cifar_logits(spec: Spec, arrays: Arrays, images: np.ndarray) -> np.ndarray:
    from gluoncv.model_zoo import cifarresnet

    def make():
        return cifarresnet.CIFARResNetV2(
            cifarresnet.CIFARBasicBlockV2,
            list(spec.stages),
            [spec.channels[0], *spec.channels],
            classes=spec.classes,
        )

    return _run(make, arrays, images)


MODEL_ZOO = Layout(
    name="model-zoo",
    about="Gluon's and GluonCV's resnet*_v2",
    modules=_block_names(stem=4, head=9),
    fields=_GLUON_FIELDS,
    spec=_model_zoo,
    input={**IMAGENET_INPUT, "interpolation": OPENCV},
    inside=_INSIDE,
    canonical=_from_pair(stem=4, head=9),
    logits=_model_zoo_logits,
    package="mxnet",
)

GLUONCV_CIFAR = Layout(
    name="gluoncv-cifar",
    about="GluonCV's cifar_resnet*_v2",
    modules={k: v for k, v in _block_names(stem=1, head=5).items() if k != "bn0"},
    fields=_GLUON_FIELDS,
    spec=_gluoncv_cifar,
    # As demo_cifar10.py takes images of any size.
    input={**CIFAR_INPUT, "interpolation": OPENCV, "stretch": True},
    inside=_INSIDE,
    canonical=_from_pair(stem=1, head=5),
    logits=_gluoncv_cifar_logits,
    package="gluoncv",
)
