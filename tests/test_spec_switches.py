"""The switches that Keras' networks need, one by one and together, against NumPy."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports import verify as verification
from gluon_resnetv2.exports.export import Form, export
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec, named
from tests.common import randomise, relative
from tests.test_forms import bfloat16 as needs_bfloat16
from tests.test_forms import check_bfloat16, check_float32, check_int8, randomised
from tests.test_memory import assert_equal, batch, both

TINY = Spec(
    name="tiny",
    stem="imagenet",
    stages=(2, 3, 2),
    channels=(4, 6, 8),
    unit="bottleneck",
    first_activation="unit",
    stride_on="3x3",
    classes=5,
)
SWITCHES = {"stride_in": "last", "biases": True, "pool_pad": "zero"}
KERAS = replace(TINY, **SWITCHES)
SUBSETS = [
    dict(subset)
    for count in range(len(SWITCHES) + 1)
    for subset in itertools.combinations(SWITCHES.items(), count)
]


class Oracle:
    """A network of pre-activation bottlenecks as Keras' documentation and code have it.

    Counts the multiply-adds of one image's convolutions in `cost`.
    """

    def __init__(self, values, stages, stride_in="first", biases=False, pool_pad="ignored"):
        self.values, self.stages, self.cost = values, stages, 0
        self.stride_in, self.biases, self.pool_pad = stride_in, biases, pool_pad

    def logits(self, x):
        x = self.conv("conv0", x, stride=2, bias=self.biases)
        padding = 0.0 if self.pool_pad == "zero" else -np.inf
        x = windows(x, 3, 2, 1, padding).max(axis=(4, 5))
        for stage, units in enumerate(self.stages, 1):
            for unit in range(1, units + 1):
                if self.stride_in == "last":
                    halves = unit == units and stage < len(self.stages)
                else:
                    halves = unit == 1 and stage > 1
                x = self.unit(f"stage{stage}_unit{unit}_", x, unit == 1, 2 if halves else 1)
        x = self.bn_relu("bn1", x).mean(axis=(2, 3))
        return x @ self.values["fc1_weight"].T + self.values["fc1_bias"]

    def unit(self, name, x, project, stride):
        active = self.bn_relu(name + "bn1", x)
        if project:
            shortcut = self.conv(name + "sc", active, stride, self.biases)
        else:
            shortcut = x[:, :, ::stride, ::stride]
        y = self.conv(name + "conv1", active)
        y = self.conv(name + "conv2", self.bn_relu(name + "bn2", y), stride)
        y = self.conv(name + "conv3", self.bn_relu(name + "bn3", y), bias=self.biases)
        return shortcut + y

    def conv(self, name, x, stride=1, bias=False):
        weight = self.values[name + "_weight"]
        size = weight.shape[-1]
        y = np.einsum("nchwij,ocij->nohw", windows(x, size, stride, size // 2, 0.0), weight)
        self.cost += weight.size * y.shape[2] * y.shape[3]
        return y + self.values[name + "_bias"][:, None, None] if bias else y

    def bn_relu(self, name, x):
        gamma, beta, mean, var = (
            self.values[f"{name}_{field}"][:, None, None]
            for field in ("gamma", "beta", "moving_mean", "moving_var")
        )
        return np.maximum(gamma * (x - mean) / np.sqrt(var + 1e-5) + beta, 0)


def windows(x, size, stride, pad, padding):
    """(N, C, H, W, size, size): what each place of a sliding window reads."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=padding)
    return sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]


def images_of(height, width):
    return np.random.RandomState(1).normal(size=(2, 3, height, width))


@pytest.mark.parametrize("switches", SUBSETS, ids=str)
def test_networks_are_those_of_the_oracle(switches):
    net = ResNetV2(replace(TINY, **switches))
    values = randomise(net, dtype="float64")
    biases = {name for name in values if name.endswith("_bias")} - {"fc1_bias"}
    # The stem's, three projections' and seven units'.
    assert len(biases) == (11 if "biases" in switches else 0)
    for height, width in ((32, 32), (27, 37)):
        images = images_of(height, width)
        found = net(mx.nd.array(images, dtype="float64")).asnumpy()
        expected = Oracle(values, TINY.stages, **switches).logits(images)
        assert relative(found, expected) <= 1e-12


@pytest.mark.parametrize("switch", SWITCHES.items(), ids=str)
def test_every_switch_changes_what_is_computed(switch):
    values = randomise(ResNetV2(KERAS), dtype="float64")
    images = images_of(27, 37)
    one = Oracle(values, TINY.stages, **dict([switch])).logits(images)
    assert relative(Oracle(values, TINY.stages).logits(images), one) > 1e-4


@pytest.mark.parametrize("switches", SUBSETS, ids=str)
def test_networks_are_counted(switches):
    spec = replace(TINY, **switches)
    values = randomise(ResNetV2(spec), dtype="float64")
    learned = sum(value.size for name, value in values.items() if "_moving_" not in name)
    assert spec.parameter_count() == learned
    for size in (32, 27):
        oracle = Oracle(values, TINY.stages, **switches)
        oracle.logits(images_of(size, size))
        assert spec.multiply_adds(size) == oracle.cost + values["fc1_weight"].size


def test_the_last_unit_subsamples_its_shortcut_and_projects_where_it_widens():
    units = {unit.name: unit for unit in KERAS.units()}
    strides = {name: unit.stride for name, unit in units.items() if unit.stride > 1}
    assert strides == {"stage1_unit2": 2, "stage2_unit3": 2}
    projects = [name for name, unit in units.items() if unit.projection]
    assert projects == ["stage1_unit1", "stage2_unit1", "stage3_unit1"]
    alone = replace(KERAS, stages=(1, 1, 1)).units()
    assert [unit.projection.stride for unit in alone] == [2, 2, 1]


def test_biases_start_at_zero_beside_those_of_gates():
    net = ResNetV2(replace(KERAS, shortcut="gate:-6"))
    net.initialize()
    for name, parameter in net.collect_params(".*_bias").items():
        assert set(parameter.data().asnumpy()) == {-6.0 if name.endswith("gate_bias") else 0.0}


def test_recomputed_passes_give_the_same_bits():
    def build():
        net = ResNetV2(replace(KERAS, classes=10))
        randomise(net, dtype="float64")
        return net

    images, labels = batch(size=16)
    for segments in (2, 7):  # 7: one unit in each, the stem and what pads in the first
        expected, found = both(build, images, labels, segments)
        assert_equal(found, expected)


# -- Descriptions ----------------------------------------------------------------------------------


def test_descriptions_hold_the_switches():
    assert Spec.from_dict(json.loads(json.dumps(KERAS.to_dict()))) == KERAS


def test_descriptions_from_before_the_switches_mean_the_networks_they_meant():
    for spec in (named("preact110"), named("resnet50", classes=7)):
        older = {key: value for key, value in spec.to_dict().items() if key not in SWITCHES}
        assert len(older) == len(spec.to_dict()) - len(SWITCHES)
        assert Spec.from_dict(older) == spec


@pytest.mark.parametrize("field", sorted(set(TINY.to_dict()) - set(SWITCHES)))
def test_descriptions_with_anything_else_missing_are_refused(field):
    damaged = {key: value for key, value in KERAS.to_dict().items() if key != field}
    with pytest.raises(UserError, match=f"description of a network: '{field}'"):
        Spec.from_dict(damaged)


@pytest.mark.parametrize(
    ("switch", "value", "choices"),
    [
        ("stride_in", "middle", "first, last"),
        ("biases", "yes", "False, True"),
        ("pool_pad", "edge", "ignored, zero"),
    ],
)
def test_other_values_are_refused(switch, value, choices):
    with pytest.raises(UserError, match=f"{switch} '{value}' is unknown; choose {choices}"):
        Spec.from_dict({**KERAS.to_dict(), switch: value})


# -- Deployment ------------------------------------------------------------------------------------


def check_exports(folder):
    net = ResNetV2(KERAS)
    randomise(net)
    artifacts = [
        export(
            net,
            folder / str(fused),
            (3, 64, 64),
            classes=list("abcde"),
            mean=[127.5] * 3,
            std=[127.5] * 3,
            form=Form(values="pixels" if fused else "normalised", fused=fused),
        )
        for fused in (False, True)
    ]
    for checks in verification.verify(artifacts):
        assert len(checks) == 1 + len(verification.RUNTIMES)
        assert not [str(check) for check in checks if not check.passed]
        assert max(check.difference for check in checks) <= 1e-5


def test_exports_of_such_networks_are_right_where_mxnet_fuses(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "RUNTIMES", [("simple_bind", None)])
    check_exports(tmp_path)


@pytest.mark.slow
def test_exports_of_such_networks_are_right_in_every_runtime(tmp_path):
    check_exports(tmp_path)


SHALLOW = replace(KERAS, stages=(2, 1), channels=(16, 32))


def test_other_forms_compute_the_same():
    graph, pixels, expected = randomised(SHALLOW)
    check_float32(graph, pixels, expected)
    check_int8(graph, pixels, expected)


@needs_bfloat16
def test_bfloat16_is_near():
    check_bfloat16(*randomised(SHALLOW))
