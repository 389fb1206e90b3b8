"""Every variant of the network builds, traces and learns; and the paper's equations hold in it."""

from __future__ import annotations

import itertools
import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from gluon_resnetv2.net import ResNetV2, get_model, he_normal
from gluon_resnetv2.spec import ORDER, named
from tests.common import randomise, relative

SHORTCUTS = (
    "identity",
    "plain",
    "scale:0.5,1",
    "scale:0.5,0.5",
    "gate:-6",
    "exclusive-gate:-6",
    "conv1x1",
    "dropout:0.5",
)
DEPTHS = {"basic": 8, "bottleneck": 11, "single": 5}
VARIANTS = list(itertools.product(ORDER, SHORTCUTS, DEPTHS))


def variant(order, shortcut, unit, **switches):
    return named(f"preact{DEPTHS[unit]}", unit=unit, order=order, shortcut=shortcut, **switches)


@pytest.mark.parametrize(("order", "shortcut", "unit"), VARIANTS)
def test_every_variant_builds_traces_and_trains(order, shortcut, unit):
    spec = variant(order, shortcut, unit)
    net = ResNetV2(spec)
    names = net(mx.sym.var("data")).list_arguments()
    assert len(set(names)) == len(names)

    mx.random.seed(0)
    net.initialize()
    net.hybridize(static_alloc=True, static_shape=True)
    learned = {n: p for n, p in net.collect_params().items() if p.grad_req != "null"}
    count = sum(math.prod(parameter.shape) for parameter in learned.values())
    assert count == spec.parameter_count()

    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
    x = mx.nd.array(np.random.RandomState(0).normal(size=(4, 3, 16, 16)))
    with autograd.record():
        loss = gluon.loss.SoftmaxCrossEntropyLoss()(net(x), mx.nd.array([0, 1, 2, 3]))
    before = {name: parameter.data().asnumpy() for name, parameter in learned.items()}
    loss.backward()
    trainer.step(4)
    assert np.isfinite(loss.asnumpy()).all()
    weights = [name for name in learned if name.endswith("weight")]
    assert all(np.any(learned[name].data().asnumpy() != before[name]) for name in weights)


def test_exports_of_one_network_are_the_same_bytes():
    first, second = (get_model("preact20")(mx.sym.var("data")).tojson() for _ in range(2))
    assert first == second


def test_images_may_have_any_size():
    net = get_model("preact8", unit="basic")
    net.initialize()
    for size in (8, 13, 32, 33):
        assert net(mx.nd.zeros((1, 3, size, size))).shape == (1, 10)


@pytest.mark.parametrize("fan", ["in", "out"])
def test_weights_start_as_the_paper_says(fan):
    mx.random.seed(1)
    net = get_model("preact50")
    net.initialize(he_normal(fan))
    for name in ("stage3_unit2_conv2_weight", "stage4_unit1_sc_weight", "conv0_weight"):
        weight = net.collect_params()[name].data().asnumpy()
        inputs = math.prod(weight.shape[1:])
        outputs = weight.shape[0] * math.prod(weight.shape[2:])
        expected = math.sqrt(2 / {"in": inputs, "out": outputs}[fan])
        assert weight.std() == pytest.approx(expected, rel=0.02)
        assert abs(weight.mean()) < 0.03 * expected


def test_fan_in_is_what_a_network_starts_with_unless_told_otherwise():
    net = get_model("preact20")
    net.initialize()
    assert net.features[0].weight.data().asnumpy().std() == pytest.approx(
        math.sqrt(2 / 27), rel=0.1
    )
    net.initialize(mx.init.Constant(0.5), force_reinit=True)
    assert (net.features[0].weight.data().asnumpy() == 0.5).all()


def test_gates_start_at_their_bias():
    net = get_model("resnet20", shortcut="exclusive-gate:-6")
    net.initialize()
    gates = {n: p for n, p in net.collect_params().items() if n.endswith("gate_bias")}
    assert len(gates) == 9
    assert all((parameter.data().asnumpy() == -6).all() for parameter in gates.values())


def test_moving_statistics_follow_the_batches():
    net = get_model("preact20")
    net.initialize()
    images = mx.nd.array(np.random.RandomState(0).normal(2, 3, size=(8, 3, 16, 16)))
    stem = net.features[0](images).asnumpy()
    with autograd.record():
        net(images).backward()  # which is when MXNet moves them
    mx.nd.waitall()
    mean = net.collect_params()["bn0_moving_mean"].data().asnumpy()
    assert relative(mean, 0.1 * stem.mean(axis=(0, 2, 3))) < 1e-5
    variance = net.collect_params()["bn0_moving_var"].data().asnumpy()
    assert relative(variance, 0.9 + 0.1 * stem.var(axis=(0, 2, 3))) < 1e-5


def test_dropout_is_on_the_shortcut():
    p = 0.25
    unit = get_model("preact20", shortcut=f"dropout:{p}").units[1]
    unit.initialize()
    unit.body[-1].weight.set_data(mx.nd.zeros((16, 16, 3, 3)))
    mx.random.seed(0)
    x = mx.nd.random.normal(shape=(4, 16, 16, 16))
    assert (unit(x).asnumpy() == x.asnumpy()).all()
    with autograd.train_mode():
        y = unit(x).asnumpy()
    kept = y != 0
    assert kept.mean() == pytest.approx(1 - p, abs=0.02)
    assert y[kept] == pytest.approx(x.asnumpy()[kept] / (1 - p), rel=1e-6)


# -- The equations ---------------------------------------------------------------------------------


def stage1(net):
    """The first three units of preact20, which keep the shape of what they read."""
    return net.units[:3]


def test_equation_3_a_stage_with_zero_branches_is_the_identity():
    net = get_model("preact20")
    randomise(net)
    for unit in stage1(net):
        unit.body[-1].weight.set_data(mx.nd.zeros((16, 16, 3, 3)))
    x = y = mx.nd.random.normal(shape=(2, 16, 8, 8))
    for unit in stage1(net):
        y = unit(y)
    assert (x.asnumpy() == y.asnumpy()).all()


def test_equation_4_a_stage_is_its_input_and_the_sum_of_its_branches():
    net = get_model("preact20")
    randomise(net, dtype="float64")
    x = mx.nd.array(np.random.RandomState(0).normal(size=(2, 16, 8, 8)), dtype="float64")
    inputs = [x]
    for unit in stage1(net):
        inputs.append(unit(inputs[-1]))
    branches = [unit.body(unit.pre(x)) for unit, x in zip(stage1(net), inputs)]
    assert relative(inputs[-1].asnumpy(), (x + sum(branches)).asnumpy()) < 1e-12


@pytest.mark.parametrize("l", [0, 1, 2])
def test_equation_5_the_gradient_arrives_whole_and_through_the_branches(l):  # noqa: E741
    net = get_model("preact20")
    randomise(net, dtype="float64")
    rng = np.random.RandomState(l)
    x = mx.nd.array(rng.normal(size=(2, 16, 8, 8)), dtype="float64")
    at_the_end = mx.nd.array(rng.normal(size=(2, 16, 8, 8)), dtype="float64")  # dE/dx_L

    def gradient(sum_of_branches):
        x.attach_grad()
        with autograd.record():
            reached, branches = x, 0
            for unit in stage1(net)[l:]:
                branches = branches + unit.body(unit.pre(reached))
                reached = unit(reached)
            (branches if sum_of_branches else reached).backward(at_the_end)
        return x.grad.asnumpy()

    expected = at_the_end.asnumpy() + gradient(sum_of_branches=True)
    assert relative(gradient(sum_of_branches=False), expected) < 1e-12


@pytest.mark.parametrize(("scale", "units"), [(0.5, 3), (0.9, 2)])
def test_equation_7_constant_scaling_multiplies(scale, units):
    net = get_model("preact20", shortcut=f"scale:{scale},1")
    randomise(net)
    for unit in stage1(net):
        unit.body[-1].weight.set_data(mx.nd.zeros((16, 16, 3, 3)))
    x = y = mx.nd.random.normal(shape=(2, 16, 8, 8))
    for unit in net.units[1 : 1 + units] if units == 2 else stage1(net):
        y = unit(y)
    assert relative(y.asnumpy(), scale**units * x.asnumpy()) < 1e-6
