"""Batch statistics over several devices, against one device that has the whole batch.

Devices that wait for each other may wait for ever: all of it runs in another process, which has a
limited time, and the tests read what it found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.layers import Numerics, batch_norm
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from gluon_resnetv2.training.checks import check_shares
from gluon_resnetv2.training.main import train_network
from gluon_resnetv2.training.precision import SPACES, SPACES_VARIABLE, check_sync, cpu_has_bfloat16
from gluon_resnetv2.training.recipe import Recipe
from tests.common import relative

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # it needs about 5

NETWORKS = {
    "preact": named("preact8", unit="basic", input_bn="shift"),
    # Batch normalisation on both paths of every unit.
    "projected": named("resnet8", unit="basic", widening="C"),
    "bottleneck": named("preact11", order="relu_before_add"),
}


# -- In the other process --------------------------------------------------------------------------


def train(spec, parts, sync, steps=1, dtype="float32"):
    """Trains on random images, split into `parts` over as many devices; returns what there is then.

    Logits and gradients are those of the last step, the gradients summed over the devices.
    """
    devices = [mx.cpu(i) for i in range(len(parts))]
    net = ResNetV2(spec, dtype=dtype, sync_devices=len(parts) if sync else 1)
    mx.random.seed(0)
    net.initialize(ctx=devices)
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(
        net.collect_params(), "sgd", {"learning_rate": 0.01}, update_on_kvstore=False
    )
    rng, cuts = np.random.RandomState(1), np.cumsum([0, *parts])
    cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
    for _ in range(steps):
        images, labels = rng.normal(size=(cuts[-1], 3, 8, 8)), rng.randint(10, size=cuts[-1])
        images, labels = (
            [mx.nd.array(array[a:b], ctx=d) for a, b, d in zip(cuts, cuts[1:], devices)]
            for array in (images, labels)
        )
        with autograd.record():
            outputs = [net(part) for part in images]
            losses = [cross_entropy(*pair) for pair in zip(outputs, labels)]
        autograd.backward(losses)
        mx.nd.waitall()
        gradients = {
            name: sum(gradient.asnumpy() for gradient in parameter.list_grad())
            for name, parameter in net.collect_params().items()
            if parameter.grad_req != "null"
        }
        trainer.step(cuts[-1])
    mx.nd.waitall()
    return {
        "logits": np.concatenate([output.asnumpy() for output in outputs]),
        "gradients": gradients,
        "values": {
            name: [copy.asnumpy() for copy in parameter.list_data()]
            for name, parameter in net.collect_params().items()
        },
        "evaluated": np.concatenate([net(part).asnumpy() for part in images]),
    }


def apart(found, expected):
    """The largest relative differences of what two runs of `train` found."""
    return {
        "logits": relative(found["logits"], expected["logits"]),
        "evaluated": relative(found["evaluated"], expected["evaluated"]),
        "gradients": max(
            relative(found["gradients"][name], gradient, floor=1)
            for name, gradient in expected["gradients"].items()
        ),
        "statistics": max(
            relative(copy, values[0])
            for name, values in expected["values"].items()
            if "moving" in name
            for copy in found["values"][name]
        ),
    }


def between_devices(found):
    return max(relative(c, copies[0]) for copies in found["values"].values() for c in copies[1:])


def normalise_unequal_parts(parts):
    """How far the layer is from the mean over the devices of each device's mean and mean square."""
    x = np.random.RandomState(2).normal(1, 2, size=(sum(parts), 4, 5, 5))
    xs = np.split(x, np.cumsum(parts)[:-1])
    mean = np.mean([part.mean(axis=(0, 2, 3)) for part in xs], axis=0).reshape(1, 4, 1, 1)
    square = np.mean([(part**2).mean(axis=(0, 2, 3)) for part in xs], axis=0).reshape(1, 4, 1, 1)
    expected = (x - mean) / np.sqrt(square - mean**2 + 1e-5)

    layer = batch_norm("bn", 4, NETWORKS["preact"], Numerics(sync_devices=len(parts)))
    devices = [mx.cpu(i) for i in range(len(parts))]
    layer.initialize(ctx=devices)
    xs = [mx.nd.array(part, ctx=device) for part, device in zip(xs, devices)]
    with autograd.train_mode():
        ys = [layer(x) for x in xs]
    return relative(np.concatenate([y.asnumpy() for y in ys]), expected)


def main():
    found = {}
    for name, spec in NETWORKS.items():
        expected = train(spec, [6], sync=False)
        for parts in ([3, 3], [2, 2, 2]):
            ours = train(spec, parts, sync=True)
            found[f"{name} {len(parts)}"] = apart(ours, expected)
    spec = NETWORKS["preact"]
    found["not synchronised"] = apart(train(spec, [3, 3], False), train(spec, [6], False))
    found["between devices"] = between_devices(train(NETWORKS["projected"], [2, 2], True, steps=20))
    exact = train(spec, [8, 8], sync=True)
    if cpu_has_bfloat16():
        found["bfloat16"] = apart(train(spec, [8, 8], sync=True, dtype="bfloat16"), exact)
    found["unequal parts"] = normalise_unequal_parts([3, 1])
    print(json.dumps(found))


# -- In this one -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-c", "import gluon_resnetv2, tests.test_sync_bn as here; here.main()"],
        cwd=ROOT,
        env={**os.environ, SPACES_VARIABLE: str(SPACES)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("devices", [2, 3])
def test_devices_compute_what_one_computes(found, network, devices):
    differences = found[f"{network} {devices}"]
    assert differences["logits"] < 1e-5
    assert differences["evaluated"] < 1e-5
    assert differences["statistics"] < 1e-5
    assert differences["gradients"] < 1e-5


def test_without_it_they_do_not(found):
    assert found["not synchronised"]["logits"] > 1e-2
    assert found["not synchronised"]["statistics"] > 1e-2


def test_devices_stay_the_same_over_many_steps(found):
    assert found["between devices"] == 0


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16")
def test_in_bfloat16_it_is_close(found):
    assert 2**-9 < found["bfloat16"]["logits"] < 0.02
    assert found["bfloat16"]["statistics"] < 0.02


def test_every_device_counts_the_same(found):
    assert found["unequal parts"] < 1e-5


@pytest.mark.parametrize(
    ("options", "workers", "images", "taken"),
    [
        ({}, 1, 61, 61),  # one device
        ({"cpus": 2}, 1, 60, 60),
        ({"cpus": 2}, 1, 61, 60),
        ({"cpus": 2, "sync_bn": False}, 1, 61, 61),
        ({"gpus": (0, 1, 2)}, 1, 61, 60),
        ({"cpus": 2}, 3, 60, 60),
        ({"cpus": 2}, 3, 62, 60),  # else the workers would take 21, 21 and 20
        ({"cpus": 1}, 3, 62, 62),
        ({"cpus": 2, "accumulate": 2}, 1, 62, 62),  # 16 and 16, then 15 and 15
        ({"cpus": 2, "accumulate": 2}, 1, 61, 60),
    ],
)
def test_shares_are_equal(options, workers, images, taken):
    recipe = Recipe(**{"sync_bn": True, "batch_size": images, **options})
    assert recipe.epoch_images(images, workers) == taken
    refused = pytest.raises(UserError, match=f"{images} images do not divide")
    with nullcontext() if taken == images else refused:
        check_shares(recipe, workers)


def test_uneven_batches_are_refused_before_there_is_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv(SPACES_VARIABLE, str(SPACES))
    recipe = Recipe(dataset="digits", batch_size=25, cpus=2, sync_bn=True, output=f"{tmp_path}/run")
    with pytest.raises(UserError, match="25 images do not divide by 2 devices"):
        train_network(recipe)
    assert not list(tmp_path.iterdir())


def test_the_parameters_are_those_of_any_other_network():
    spec = named("preact8", unit="basic")
    shapes = [
        {n: (p.shape, p.dtype) for n, p in net.collect_params().items()}
        for net in (ResNetV2(spec), ResNetV2(spec, sync_devices=2))
    ]
    assert shapes[0] == shapes[1]


def test_every_layer_of_every_network_has_its_own_key():
    spec = named("preact20")
    keys = []
    for _ in range(2):
        symbol = ResNetV2(spec, sync_devices=2)(mx.sym.var("data"))
        keys += [node["key"] for node in symbol.attr_dict().values() if "key" in node]
    assert len(set(keys)) == len(keys) == 2 * 19


def test_float64_is_refused():
    with pytest.raises(UserError, match="knows no float64"):
        ResNetV2(named("preact20"), sync_devices=2).cast("float64")


def test_cpus_that_would_wait_for_ever_are_refused(monkeypatch):
    cpus, gpus = [mx.cpu(0), mx.cpu(1)], [mx.gpu(0), mx.gpu(1)]
    monkeypatch.delenv(SPACES_VARIABLE, raising=False)
    check_sync(cpus[:1])
    check_sync(gpus, dropout=True)
    with pytest.raises(UserError, match=f"start with {SPACES_VARIABLE}={SPACES}"):
        check_sync(cpus)
    monkeypatch.setenv(SPACES_VARIABLE, str(SPACES))
    check_sync(cpus)
    with pytest.raises(UserError, match="dropout exclude each other"):
        check_sync(cpus, dropout=True)
