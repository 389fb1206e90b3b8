"""Keras' ResNet50V2, ResNet101V2 and ResNet152V2 (`keras.applications`).

They are pre-activation bottlenecks with the stride in a stage's last unit, biases where a sum
follows, and a max pooling of the unrectified stem that counts its padding as zero.
"""

from __future__ import annotations

import os

import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.interop.layout import Arrays, Facts, Layout
from gluon_resnetv2.spec import IMAGENET, Spec

MODELS = {IMAGENET[depth][1]: f"ResNet{depth}V2" for depth in (50, 101, 152)}  # by their stages
CHANNELS = (64, 128, 256, 512)
# Kernels there are HWIO, a classifier's (inputs, outputs).
TO_OURS = {4: (3, 2, 0, 1), 2: (1, 0)}
TO_THEIRS = {4: (2, 3, 1, 0), 2: (1, 0)}


def _spec(facts: Facts) -> Spec:
    wide = facts.stem == "imagenet" and facts.unit == "bottleneck" and facts.channels == CHANNELS
    if not wide or facts.stages not in MODELS:
        raise UserError(
            f"Keras has {', '.join(MODELS.values())} alone, and no {facts.unit} network with "
            f"{facts.stages} units of {facts.channels} channels in its stages"
        )
    return facts.spec(
        stride_on="3x3",
        stride_in="last",
        first_activation="unit",
        biases=True,
        pool_pad="zero",
        bn_eps=1.001e-5,
    )


def _decode(_name: str, array: np.ndarray) -> np.ndarray:
    return array.transpose(TO_OURS[array.ndim]) if array.ndim in TO_OURS else array


def _encode(_name: str, array: np.ndarray) -> np.ndarray:
    return array.transpose(TO_THEIRS[array.ndim]) if array.ndim in TO_THEIRS else array


def _logits(spec: Spec, arrays: Arrays, images: np.ndarray) -> np.ndarray:
    os.environ.setdefault("KERAS_BACKEND", "torch")  # its own default is TensorFlow
    import keras

    if int(keras.__version__.partition(".")[0]) < 3:
        raise ImportError("Keras 3 is needed")
    if keras.config.image_data_format() == "channels_last":
        images = images.transpose(0, 2, 3, 1)
    model = getattr(keras.applications, MODELS[spec.stages])(
        weights=None,
        input_tensor=keras.Input(images.shape[1:]),
        classes=spec.classes,
        classifier_activation=None,
    )
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])
    return model.predict(images, batch_size=1, verbose=0)


_UNIT = "conv{s+1}_block{u}_"

KERAS = Layout(
    name="keras",
    about="Keras' ResNet50V2, ResNet101V2 and ResNet152V2",
    modules={
        "conv0": "conv1_conv",
        "stage{s}_unit{u}_bn1": _UNIT + "preact_bn",
        "stage{s}_unit{u}_bn{i}": _UNIT + "{i-1}_bn",
        "stage{s}_unit{u}_conv{i}": _UNIT + "{i}_conv",
        "stage{s}_unit{u}_sc": _UNIT + "0_conv",
        "bn1": "post_bn",
        "fc1": "predictions",
    },
    fields={
        "weight": "/kernel",
        "bias": "/bias",
        "gamma": "/gamma",
        "beta": "/beta",
        "moving_mean": "/moving_mean",
        "moving_var": "/moving_variance",
    },
    spec=_spec,
    # `load_img` fits images into a target size so, and `preprocess_input` makes -1 to 1 of them.
    input={
        "mean": [127.5, 127.5, 127.5],
        "std": [127.5, 127.5, 127.5],
        "crop": 1.0,
        "interpolation": "nearest",
        "stretch": True,
    },
    decode=_decode,
    encode=_encode,
    logits=_logits,
    package="keras",
)
