"""Weights that other packages have of their own, through these packages' loaders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from gluon_resnetv2.errors import UserError, last_line, python
from gluon_resnetv2.interop.keras import MODELS
from gluon_resnetv2.interop.layout import Arrays


@dataclass(frozen=True)
class Loaded:
    """What a package's loader gives.

    Attributes:
        arrays: as the package's own files name them.
        layout: a name of `interop.LAYOUTS`; None: by names and shapes.
        input: how images are prepared, where the package says it of these weights.
        classes: a name for each logit, where it says that.
    """

    arrays: Arrays
    layout: str | None
    input: Mapping[str, Any] | None = None
    classes: Sequence[str] | None = None


def load(name: str) -> Loaded:
    """The weights called "PACKAGE:NAME", which the package downloads or finds in its cache.

    Raises:
        UserError: the package is missing, has no such weights, or can't get them.
    """
    package, _, model = name.partition(":")
    get, wheels, elsewhere = _PACKAGES[package]
    if package == "keras":
        os.environ.setdefault("KERAS_BACKEND", "torch")  # its own default is TensorFlow
    try:
        module = import_module(package)
    except Exception as error:  # what it imports may fail in ways of its own
        raise UserError(
            f"{name} needs {package}, which can't be imported ({last_line(error)}): "
            + python("-m", "pip", "install", *wheels)
        ) from None
    try:
        return get(module, model)
    except UserError:
        raise
    except Exception as error:  # of its network, its cache or its names
        raise UserError(
            f"{package} can't get {model}: {last_line(error)}; where the network does not allow "
            f"it, fetch {elsewhere} elsewhere, and name that file"
        ) from None


def _timm(timm: ModuleType, model: str) -> Loaded:
    net = timm.create_model(model, pretrained=True)
    told = net.pretrained_cfg
    described = {key: [255 * number for number in told[key]] for key in ("mean", "std")}
    arrays = {name: np.array(tensor.cpu()) for name, tensor in net.state_dict().items()}
    return Loaded(arrays, "timm", described)


def _keras(keras: ModuleType, model: str) -> Loaded:
    if model not in MODELS.values():
        raise UserError(f"keras:{model} is no network of ours; choose {', '.join(MODELS.values())}")
    net = getattr(keras.applications, model)(weights="imagenet")
    arrays = {
        f"{layer.name}/{variable.name}": np.array(variable.numpy())
        for layer in net.layers
        for variable in layer.weights
    }
    return Loaded(arrays, "keras")


def _gluoncv(gluoncv: ModuleType, model: str) -> Loaded:
    net = gluoncv.model_zoo.get_model(model, pretrained=True)
    arrays = {
        name: parameter.data().asnumpy()
        for name, parameter in net._collect_params_with_prefix().items()
    }
    return Loaded(arrays, None, classes=getattr(net, "classes", None))


# What gets weights, the wheels that it takes, and what to fetch where it can't.
_PACKAGES: dict[str, tuple[Callable[[ModuleType, str], Loaded], tuple[str, ...], str]] = {
    "timm": (
        _timm,
        ("timm", "torch", "torchvision"),
        "model.safetensors of huggingface.co/timm",
    ),
    "keras": (
        _keras,
        ("keras", "torch"),
        "its .h5 of storage.googleapis.com/tensorflow/keras-applications/resnet",
    ),
    "gluoncv": (_gluoncv, ("gluoncv==0.10.5.post0",), "its .params of GluonCV's model zoo"),
}
