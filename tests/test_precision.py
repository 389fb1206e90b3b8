"""Reduced precision: what is computed in it, what stays float32, and that it learns."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.layers import DTYPES
from gluon_resnetv2.net import ResNetV2, get_model
from gluon_resnetv2.spec import ORDER, named
from gluon_resnetv2.training.precision import (
    LossScaler,
    all_finite,
    check_dtype,
    cpu_has_bfloat16,
)
from tests.common import relative

ROOT = Path(__file__).resolve().parents[1]

SHORTCUTS = ("plain", "scale:0.5,0.5", "exclusive-gate:-6", "conv1x1", "dropout:0.5")
DEPTHS = {"basic": 8, "bottleneck": 11, "single": 5}
VARIANTS = [
    *itertools.product(ORDER, ["identity", "gate:-6"], DEPTHS),
    *itertools.product(ORDER, SHORTCUTS, ["single"]),
]

bfloat16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="needs a CPU with AVX-512")
cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()


def start(spec, dtype, seed=0, ctx=None):
    """A network of `spec` with the weights that `seed` draws."""
    net = ResNetV2(spec, dtype=dtype)
    mx.random.seed(seed)
    net.initialize(ctx=ctx or mx.cpu())
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def batch(count=16, size=16):
    rng = np.random.RandomState(0)
    return rng.normal(size=(count, 3, size, size)).astype("float32"), np.arange(count) % 10


def gradients(net):
    learned = {n: p for n, p in net.collect_params().items() if p.grad_req != "null"}
    return {name: p.grad().asnumpy() for name, p in learned.items()}


def forward_backward(net, images, labels):
    """Logits and gradients, after one pass in both directions."""
    with autograd.record():
        outputs = net(mx.nd.array(images))
        loss = cross_entropy(outputs, mx.nd.array(labels))
    loss.backward()
    mx.nd.waitall()
    return outputs.asnumpy(), gradients(net)


def rounded(array):
    """To the nearest bfloat16, ties to even: the upper half of the bits of a float32."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    bits = bits + 0x7FFF + ((bits >> 16) & 1) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


# -- What is computed in which type ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shortcut", ["identity", "gate:-6", "dropout:0.5"])
def test_all_but_the_two_ends_is_of_the_type(dtype, shortcut):
    spec = named("preact20", shortcut=shortcut, input_bn="plain")
    symbol = ResNetV2(spec, dtype=dtype)(mx.sym.var("data"))
    parameters, logits, statistics = symbol.infer_type(data="float32")
    assert set(parameters + logits + statistics) == {np.float32}
    inside = symbol.get_internals()
    types = dict(zip(inside.list_outputs(), inside.infer_type(data="float32")[1]))
    computed = {np.dtype(t) for name, t in types.items() if name.endswith("conv2_fwd_output")}
    computed |= {np.dtype(t) for name, t in types.items() if name.endswith("bn2_fwd_output")}
    computed |= {np.dtype(t) for name, t in types.items() if "_plus" in name}
    assert computed == {np.dtype(DTYPES[dtype])}
    assert types["bn_data_fwd_output"] == types["pool1_fwd_output"] == np.float32


def test_float32_casts_nothing():
    names = get_model("preact20")(mx.sym.var("data")).get_internals().list_outputs()
    assert not any("cast" in name for name in names)


def test_the_parameters_are_those_of_the_float32_network():
    spec = named("resnet20", shortcut="gate:-6")
    found, expected = (
        {n: (p.shape, p.dtype) for n, p in ResNetV2(spec, dtype=dtype).collect_params().items()}
        for dtype in ("bfloat16", "float32")
    )
    assert found == expected


@bfloat16
def test_a_convolution_rounds_what_it_reads_and_what_it_writes():
    """The oracle: a 1x1 convolution in float64, of inputs rounded bit by bit."""
    net = start(named("resnet11", widening="C"), "bfloat16")
    conv = net.units[0].widen[0]
    rng = np.random.RandomState(0)
    weight = conv.weight.data().asnumpy()[:, :, 0, 0]
    x = rng.normal(size=(2, weight.shape[1], 4, 4)).astype("float32")
    head = rng.normal(size=(2, weight.shape[0], 4, 4)).astype("float32")
    data = mx.nd.array(x)
    with autograd.record():
        y = mx.nd.amp_cast(conv(data), dtype="float32")
    y.backward(mx.nd.array(head))

    exact = np.einsum("oi,nihw->nohw", weight, x, dtype=float)
    expected = np.einsum("oi,nihw->nohw", rounded(weight), rounded(x), dtype=float)
    assert relative(y.asnumpy(), rounded(expected)) < 1e-4
    assert relative(y.asnumpy(), exact) > 1e-3
    exact = np.einsum("nohw,nihw->oi", head, x, dtype=float)
    expected = np.einsum("nohw,nihw->oi", rounded(head), rounded(x), dtype=float)
    gradient = conv.weight.grad().asnumpy()[:, :, 0, 0]
    assert conv.weight.grad().dtype == np.float32
    assert relative(gradient, rounded(expected)) < 1e-4
    assert relative(gradient, exact) > 1e-3


@bfloat16
@pytest.mark.parametrize(("order", "shortcut", "unit"), VARIANTS)
def test_every_variant_trains_a_step(order, shortcut, unit):
    spec = named(f"preact{DEPTHS[unit]}", unit=unit, order=order, shortcut=shortcut)
    net = start(spec, "bfloat16")
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
    before = {n: p.data().asnumpy() for n, p in net.collect_params().items()}
    logits, found = forward_backward(net, *batch(2, 8))
    trainer.step(2)
    assert np.isfinite(logits).all()
    for name, gradient in found.items():
        assert np.isfinite(gradient).all(), name
    for name, parameter in net.collect_params().items():
        if name.endswith(("weight", "_moving_mean")):
            value = parameter.data()
            assert value.dtype == np.float32
            assert np.any(value.asnumpy() != before[name]), name


# -- How far it is from float32 --------------------------------------------------------------------


@bfloat16
@pytest.mark.parametrize("model", ["preact8", "preact11", "resnet20"])
def test_it_is_close_to_float32(model):
    spec = named(model, **({"unit": "basic"} if model == "preact8" else {}))
    logits, found = forward_backward(start(spec, "bfloat16"), *batch())
    exact, expected = forward_backward(start(spec, "float32"), *batch())
    # 2^-9 is what one rounding costs at most.
    assert 2**-9 < relative(logits, exact) < 0.02
    # Rounding moves inputs of ReLUs across 0, and there gradients jump: a third of a percent of
    # the units of each layer, and their square roots add up.
    found, expected = (np.concatenate([g[n].ravel() for n in g]) for g in (found, expected))
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert 0.95 < cosine < 0.9999
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(expected), rel=0.05)


@bfloat16
def test_it_learns_as_float32_does_and_float32_takes_its_parameters():
    spec = named("preact8", unit="basic")
    rng = np.random.RandomState(0)
    patterns = rng.normal(size=(10, 3, 16, 16))
    labels = np.arange(32) % 10
    images = (patterns[labels] + rng.normal(size=(32, 3, 16, 16))).astype("float32")
    losses = {}
    for dtype in ("float32", "bfloat16"):
        net = start(spec, dtype)
        trainer = gluon.Trainer(
            net.collect_params(), "sgd", {"learning_rate": 0.02, "momentum": 0.9}
        )
        losses[dtype] = []
        for _ in range(15):
            with autograd.record():
                loss = cross_entropy(net(mx.nd.array(images)), mx.nd.array(labels))
            loss.backward()
            trainer.step(len(labels))
            losses[dtype].append(loss.mean().asscalar())
    assert losses["float32"][-1] < 0.5 * losses["float32"][0]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1, abs=0.02)
    assert losses["bfloat16"] != pytest.approx(losses["float32"], rel=1e-4)

    mx.nd.waitall()
    plain = start(spec, "float32")
    for name, parameter in plain.collect_params().items():
        parameter.set_data(net.collect_params()[name].data())
    logits, exact = net(mx.nd.array(images)), plain(mx.nd.array(images))
    assert relative(logits.asnumpy(), exact.asnumpy()) < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not mx.context.num_gpus(), reason="needs a GPU that MXNet can use")
def test_float16_trains_on_a_gpu():
    spec = named("preact20")
    images, labels = batch(32, 32)
    scaler, losses = LossScaler(), {}
    for dtype in ("float32", "float16"):
        net = start(spec, dtype, ctx=mx.gpu())
        trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.05})
        x, y = mx.nd.array(images, ctx=mx.gpu()), mx.nd.array(labels, ctx=mx.gpu())
        losses[dtype] = []
        for _ in range(10):
            with autograd.record():
                loss = cross_entropy(net(x), y)
                scaled = loss * scaler.scale
            scaled.backward()
            count = 32 * scaler.scale
            if scaler.passed(net.collect_params().values()):
                trainer.step(count)
                losses[dtype].append(loss.mean().asscalar())
    count = len(losses["float16"])
    assert count >= 5
    assert losses["float16"] == pytest.approx(losses["float32"][:count], rel=0.1)


# -- Loss scaling ----------------------------------------------------------------------------------


def linear(devices, values):
    """A parameter on the devices, its gradients as given, an entry for each device."""
    weight = gluon.Parameter("weight", shape=(3,))
    weight.initialize(mx.init.Zero(), ctx=devices)
    for gradient, value in zip(weight.list_grad(), values):
        gradient[:] = value
    return weight


def test_scaling_changes_no_update():
    """Powers of two lose nothing in float32."""
    spec = named("preact8", unit="basic")
    images, labels = map(mx.nd.array, batch(8))
    weights = []
    for scaler in (None, LossScaler()):
        net = start(spec, "float32")
        trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
        scale = scaler.scale if scaler else 1
        with autograd.record():
            loss = cross_entropy(net(images), labels) * scale
        loss.backward()
        assert scaler is None or scaler.passed(net.collect_params().values())
        trainer.step(8 * scale)
        weights.append(net.collect_params()["conv0_weight"].data().asnumpy())
    assert relative(*weights) < 1e-6


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("device", [0, 1])
def test_an_overflow_on_any_device_halves_the_scale(bad, device):
    values = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    devices = [mx.cpu(0), mx.cpu(1)]
    scaler = LossScaler(scale=1024)
    assert scaler.passed([linear(devices, values)])
    assert scaler.scale == 1024
    values[device][2] = bad
    assert not scaler.passed([linear(devices, values)])
    assert scaler.scale == 512


def test_an_overflow_on_one_device_is_on_all_of_them_after_the_sum():
    devices = [mx.cpu(0), mx.cpu(1)]
    weight = linear(devices, [[1, np.inf, 1], [1, 1, 1]])
    trainer = gluon.Trainer([weight], "sgd", {"learning_rate": 0.1}, update_on_kvstore=False)
    trainer.allreduce_grads()
    for gradient in weight.list_grad():
        assert not all_finite([gradient])


def test_the_scale_doubles_after_a_window_without_an_overflow():
    good, bad = linear([mx.cpu()], [1.0]), linear([mx.cpu()], [np.inf])
    scaler = LossScaler(scale=4, window=3, most=8)
    scales = []
    for parameter in (good, good, bad, good, good, good, good, good, good, good):
        scaler.passed([parameter])
        scales.append(scaler.scale)
    assert scales == [4, 4, 2, 2, 2, 4, 4, 4, 8, 8]
    for _ in range(6):
        scaler.passed([good])
    assert scaler.scale == 8


def test_a_scaler_goes_on_from_its_state():
    good = linear([mx.cpu()], [1.0])
    scaler, other = LossScaler(scale=4, window=3), LossScaler(window=3)
    scaler.passed([good])
    scaler.passed([good])
    assert scaler.state() == {"scale": 4.0, "passed": 2}
    other.load(scaler.state())
    other.passed([good])
    assert other.state() == {"scale": 8.0, "passed": 0}


def test_an_overflow_without_a_scale_is_the_users_to_mend():
    scaler = LossScaler(scale=2)
    bad = linear([mx.cpu()], [np.inf])
    assert not scaler.passed([bad])
    with pytest.raises(UserError, match="overflow float16 without any loss scale"):
        scaler.passed([bad])


def test_parameters_without_a_gradient_do_not_count():
    net = start(named("preact8", unit="basic"), "float32")
    forward_backward(net, *batch(2))
    net.collect_params()["bn0_moving_mean"].data()[:] = np.nan
    assert LossScaler().passed(net.collect_params().values())


@pytest.mark.parametrize("count", [1, 200, 201, 450])
def test_finite_means_all_of_any_number(count):
    arrays = [mx.nd.ones((2,)) for _ in range(count)]
    assert all_finite(arrays)
    for at in {0, count // 2, count - 1}:
        arrays[at][1] = np.nan
        assert not all_finite(arrays)
        arrays[at][1] = 1


# -- What can be had -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "gpus", "message"),
    [("float16", None, "float16 needs --gpus"), ("bfloat16", [0], "bfloat16 is for CPUs")],
)
def test_what_mxnet_lacks_is_refused(dtype, gpus, message):
    with pytest.raises(UserError, match=message):
        check_dtype(dtype, gpus)


@bfloat16
def test_what_mxnet_has_is_let_through():
    check_dtype("float32", None)
    check_dtype("float32", [0])
    check_dtype("float16", [0])
    check_dtype("bfloat16", None)


def test_bfloat16_is_refused_where_onednn_cannot():
    code = "from gluon_resnetv2.training.precision import *; check_dtype('bfloat16', None)"
    done = subprocess.run(
        [sys.executable, "-c", f"import gluon_resnetv2; {code}"],
        cwd=ROOT,
        env={**os.environ, "DNNL_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert "UserError: --dtype bfloat16 needs a CPU with AVX-512" in done.stderr


def test_an_unknown_type_is_refused():
    with pytest.raises(UserError, match="dtype 'int8' is unknown"):
        ResNetV2(named("preact20"), dtype="int8")


# -- Units that start as their shortcuts -----------------------------------------------------------


@pytest.mark.parametrize("model", ["preact20", "preact29"])
def test_a_stage_of_zeroed_units_starts_as_the_identity_and_learns(model):
    net = get_model(model)
    mx.random.seed(0)
    net.initialize(zero_last=True)
    first, *rest = net.units[: net.spec.stages[0]]
    x = first(mx.nd.random.normal(shape=(2, net.spec.channels[0], 8, 8)))
    y = x
    for unit in rest:
        y = unit(y)
    assert (x.asnumpy() == y.asnumpy()).all()

    _, found = forward_backward(net, *batch(4))
    for unit in net.units:
        last = found[f"{unit.name}_{unit.unit.convs[-1].name}_weight"]
        assert np.linalg.norm(last) > 1e-4


@pytest.mark.parametrize(
    ("order", "last"),
    [
        ("full_preact", "conv2_weight"),
        ("bn_after_add", "conv2_weight"),
        ("original", "bn2_gamma"),
        ("relu_preact", "bn2_gamma"),
    ],
)
def test_the_last_layer_of_every_unit_starts_at_zero(order, last):
    net = get_model("preact20", order=order)
    net.initialize(zero_last=True)
    values = {n: p.data().asnumpy() for n, p in net.collect_params().items()}
    zeros = {n for n, v in values.items() if n.endswith(("weight", "gamma")) and not v.any()}
    assert zeros == {f"{unit.name}_{last}" for unit in net.units}
    _, found = forward_backward(net, *batch(4))
    assert all(np.linalg.norm(found[name]) > 1e-4 for name in zeros)


@pytest.mark.parametrize(
    "net",
    [
        get_model("preact20", order="relu_before_add"),
        get_model("preact20", shortcut="plain"),  # F ends in a convolution
        get_model("plain20"),  # and in a batch normalisation
    ],
)
def test_units_that_would_never_learn_are_refused(net):
    with pytest.raises(UserError, match="leave out zero_last"):
        net.initialize(zero_last=True)
