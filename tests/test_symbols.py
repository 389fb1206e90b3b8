"""`symbols/` against the names and habits of MXNet's own image-classification example."""

from __future__ import annotations

from importlib import import_module

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import data
from gluon_resnetv2.errors import UserError
from tests.common import relative

get_symbol = import_module("symbols.resnetv2").get_symbol


def example_names(units, imagenet):
    """Arguments and auxiliary states of the example's bottleneck networks, from its naming rule."""
    convs = ["conv0"]
    norms = ["bn_data"]
    if imagenet:
        norms.append("bn0")
    for stage, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            prefix = f"stage{stage}_unit{unit}_"
            norms += [prefix + f"bn{i}" for i in (1, 2, 3)]
            convs += [prefix + f"conv{i}" for i in (1, 2, 3)]
            if unit == 1:
                convs.append(prefix + "sc")
    norms.append("bn1")
    arguments = ["data", "softmax_label", "fc1_weight", "fc1_bias"]
    arguments += [f"{name}_weight" for name in convs]
    arguments += [f"{name}_{part}" for name in norms for part in ("gamma", "beta")]
    return set(arguments), {f"{n}_moving_{part}" for n in norms for part in ("mean", "var")}


@pytest.mark.parametrize(
    ("depth", "shape", "units", "imagenet"),
    [(50, "3,224,224", (3, 4, 6, 3), True), (164, "3,32,32", (18, 18, 18), False)],
)
def test_names_are_the_examples(depth, shape, units, imagenet):
    symbol = get_symbol(num_classes=10, num_layers=depth, image_shape=shape, conv_workspace=256)
    arguments, auxiliary = example_names(units, imagenet)
    assert set(symbol.list_arguments()) == arguments
    assert len(symbol.list_arguments()) == len(arguments)
    assert set(symbol.list_auxiliary_states()) == auxiliary
    assert symbol.list_outputs() == ["softmax_output"]


def test_other_options_of_the_examples_scripts_are_ignored():
    options = {"network": "resnetv2", "gpus": None, "kv_store": "device", "lr": 0.1, "order": None}
    plain = get_symbol(10, 20, "3,32,32")
    assert get_symbol(10, 20, "3,32,32", **options).tojson() == plain.tojson()


def test_switches_of_the_spec_are_honoured():
    symbol = get_symbol(
        10, 20, (1, 28, 28), order="original", shortcut="gate:-6", widening="A", project_first=False
    )
    shapes = symbol.infer_shape(data=(1, 1, 28, 28))[0]
    assert dict(zip(symbol.list_arguments(), shapes))["conv0_weight"] == (16, 1, 3, 3)
    assert "stage1_unit1_gate_bias" in symbol.list_arguments()
    assert "stage2_unit1_sc_weight" not in symbol.list_arguments()


def test_the_height_never_changes_the_network():
    # The example itself picks another network for 28 than for 32 pixels.
    names = {shape: get_symbol(10, 110, shape).list_arguments() for shape in ("3,28,28", "3,32,32")}
    assert names["3,28,28"] == names["3,32,32"]
    assert "stage4_unit1_conv1_weight" in get_symbol(10, 50, "3,32,32").list_arguments()
    assert "stage4_unit1_conv1_weight" not in get_symbol(10, 50, stem="cifar").list_arguments()


def test_half_precision_is_cast_at_both_ends():
    symbol = get_symbol(10, 20, "3,32,32", dtype="float16")
    types, outputs, _ = symbol.infer_type(data="float32")
    types = dict(zip(symbol.list_arguments(), types))
    assert types["conv0_weight"] == np.float16
    assert types["fc1_weight"] == np.float16
    assert types["bn1_gamma"] == np.float32
    assert outputs == [np.float32]


@pytest.mark.parametrize("arguments", [(10, 21, "3,32,32"), (10, 20, "3,32,32", 0, "int8")])
def test_mistakes_are_named(arguments):
    with pytest.raises(UserError, match=r"21|int8"):
        get_symbol(*arguments)


def test_module_trains_it_on_digits():
    digits = data.load("digits", image_size=16)
    images, labels = zip(*data.batches(digits, 1437, train=True))
    tested, test_labels = zip(*data.batches(digits, 360))
    module = mx.mod.Module(get_symbol(10, 8, "3,16,16"))
    mx.random.seed(0)
    np.random.seed(0)
    module.fit(
        mx.io.NDArrayIter(images[0], labels[0].astype("float32"), 64, shuffle=True),
        num_epoch=4,
        initializer=mx.init.MSRAPrelu("in", 0),
        optimizer_params={"learning_rate": 0.1, "momentum": 0.9, "wd": 1e-4},
    )
    score = module.score(mx.io.NDArrayIter(tested[0], test_labels[0].astype("float32"), 36), "acc")
    assert score[0][1] > 0.8
    # fix_gamma: the input's gamma takes no part in training.
    parameters, _ = module.get_params()
    assert (parameters["bn_data_gamma"].asnumpy() == 1).all()
    assert relative(parameters["bn_data_beta"].asnumpy(), np.zeros(3)) > 0
