"""The moving average of the weights, against its definition in float64."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import data
from gluon_resnetv2.checkpoint import checkpoints, load_run
from gluon_resnetv2.exports.export import export_run
from gluon_resnetv2.net import ResNetV2, get_model, he_normal
from gluon_resnetv2.training import curves, loop
from gluon_resnetv2.training.devices import contexts
from gluon_resnetv2.training.meter import evaluate
from gluon_resnetv2.training.optimizer import make_trainer
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.run import Run, read_metrics
from gluon_resnetv2.training.step import Step
from tests.common import relative, skip_unless_installed, skip_without, use_moving_statistics

DATASET = data.load("synthetic", image_size=8, train_count=50, test_count=20)
RECIPE = Recipe(  # three epochs of five steps
    model="preact8",
    unit="basic",
    dataset="synthetic",
    image_size=8,
    batch_size=10,
    num_epochs=3,
    lr_step_epochs=(2.0,),
    warmup_steps=3,
    ema=0.5,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(curves, "draw_curves", lambda folder: None)
    monkeypatch.setattr(loop, "STEPS_UNSETTLED", 0)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def variant(**changes) -> Recipe:
    return dataclasses.replace(RECIPE, **changes)


def train(folder, recipe=RECIPE, prepare=lambda net: None, stop_at=None):
    """Trains in `folder`, and stops before step `stop_at`, if any.

    Returns:
        For the start and each step, {name: its values on each device}.
    """
    recipe = dataclasses.replace(recipe, output=str(folder))
    devices = contexts(None, recipe.cpus)
    mx.random.seed(0)
    dtype = "float32" if recipe.dtype == "float64" else recipe.dtype
    net = ResNetV2(recipe.spec(10), dtype=dtype)
    net.initialize(he_normal(recipe.init), ctx=devices)
    net.cast(recipe.array_dtype)
    prepare(net)
    net.hybridize(static_alloc=True, static_shape=True)

    def values():
        mx.nd.waitall()
        parameters = net.collect_params().items()
        return {n: [one.asnumpy() for one in p.list_data()] for n, p in parameters}

    seen = [values()]

    class Recording(Step):
        def __call__(self, images, labels, step, *args):
            if step == stop_at:
                raise loop.Stopped
            made = super().__call__(images, labels, step, *args)
            seen.append(values())
            return made

    with pytest.MonkeyPatch.context() as patch, Run(recipe, resume=True) as run:
        patch.setattr(loop, "Step", Recording)
        loop.fit(net, DATASET, recipe, devices, run)
    return seen


def recurrence(seen, decay):
    """The average of all that was seen, by name, of the mean over devices."""
    average, *later = ({n: np.mean(v, axis=0, dtype="float64") for n, v in s.items()} for s in seen)
    for number, values in enumerate(later, 1):
        d = min(decay, (1 + number) / (10 + number))
        average = {name: d * average[name] + (1 - d) * values[name] for name in average}
    return average


def arrays(folder, file="net.params"):
    found = mx.nd.load(str(checkpoints(folder)[-1] / file))
    return {
        name.rpartition(":")[2] if file == "net.params" else name: a for name, a in found.items()
    }


CASES = {
    "early decays": {"ema": 0.9999},
    "a constant decay at last": {"ema": 0.3},
    "two devices": {"cpus": 2},
    "two devices, in parts": {"cpus": 2, "accumulate": 2, "ema": 0.4},
    "float64": {"dtype": "float64"},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "the native engine": {"engine": "native"},
    "bfloat16": {"engine": "native", "dtype": "bfloat16"},
    "recomputed": {"recompute": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_ends_with_the_average_of_its_parameters_and_statistics(tmp_path, case):
    recipe = variant(**CASES[case])
    if recipe.engine == "native":
        skip_unless_installed()
    skip_without(recipe.dtype)
    seen = train(tmp_path, recipe)
    assert len(seen) == 16
    expected, found = recurrence(seen, recipe.ema), arrays(tmp_path)
    assert set(found) == set(expected)
    for name, array in found.items():
        assert relative(array.asnumpy(), expected[name]) < 2e-6, name
        if name.endswith(("weight", "moving_mean")):
            assert relative(np.mean(seen[-1][name], axis=0), expected[name]) > 1e-3, name


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("unsettled", [0, 50])
def test_training_is_the_same_with_and_without(tmp_path, monkeypatch, unsettled, cpus):
    """Bit for bit, although the network is another one in each evaluation."""
    monkeypatch.setattr(loop, "STEPS_UNSETTLED", unsettled)
    train(tmp_path / "with", variant(cpus=cpus))
    train(tmp_path / "without", variant(cpus=cpus, ema=0.0))
    found, expected = (arrays(tmp_path / name, "training.params") for name in ("with", "without"))
    assert len(expected) > 20
    for name, array in expected.items():
        assert np.array_equal(found[name].asnumpy(), array.asnumpy()), name
    for name, array in arrays(tmp_path / "without").items():
        if not name.endswith(("moving_mean", "moving_var")) or not unsettled:
            assert np.array_equal(found[f"trained:{name}"].asnumpy(), array.asnumpy()), name


def test_the_average_is_what_is_evaluated_and_exported(tmp_path):
    train(tmp_path / "run")
    record = [record for record in read_metrics(tmp_path / "run") if "epoch" in record][-1]
    net, state = load_run(tmp_path / "run")
    found = evaluate(net, DATASET.batches(10), [mx.cpu()])
    assert found["error"] == record["test_error"] == state.metrics["test_error"]
    assert found["loss"] == pytest.approx(record["test_loss"], rel=1e-5)
    exported = mx.nd.load(str(export_run(tmp_path / "run").params))
    exported = {name.rpartition(":")[2]: array for name, array in exported.items()}
    for name, array in arrays(tmp_path / "run").items():
        assert np.array_equal(exported[name].asnumpy(), array.asnumpy()), name


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_it_goes_on_on_other_devices(tmp_path, before, after):
    """With no part for which a device's images matter, the average is the same."""
    recipe = variant(dtype="float64", ema=0.8)

    def freeze(net):
        net.apply(use_moving_statistics)

    train(tmp_path / "whole", variant(dtype="float64", ema=0.8), freeze)
    train(tmp_path / "parts", dataclasses.replace(recipe, cpus=before), freeze, stop_at=7)
    assert checkpoints(tmp_path / "parts")[-1].name == "step-00000007"
    train(tmp_path / "parts", dataclasses.replace(recipe, cpus=after), freeze)
    found = arrays(tmp_path / "parts")
    for name, array in arrays(tmp_path / "whole").items():
        assert relative(found[name].asnumpy(), array.asnumpy()) < 1e-9, name


def test_a_step_that_is_left_out_does_not_count():
    """As one whose gradients overflow float16: statistics move all the same, their average not."""
    recipe = variant(ema=0.9, momentum_correction=False)
    net = get_model("preact8", unit="basic")
    net.initialize()
    step = Step(net, make_trainer(net, recipe), recipe, contexts(None, 1))
    finite = iter([True, False, True])
    step.scaler = SimpleNamespace(scale=1.0, passed=lambda parameters: next(finite))
    ((images, labels),) = DATASET.batches(50, train=True)

    def averages():
        with step.average.in_place(lambda: None):
            return {n: p.data().asnumpy() for n, p in net.collect_params().items()}

    def own():
        mx.nd.waitall()
        return {n: p.data().asnumpy() for n, p in net.collect_params().items()}

    found, trained = [averages()], [own()]
    for number in range(3):
        step(images, labels, number, 50)
        trained.append(own())
        found.append(averages())
    moved = [n for n in found[1] if not np.array_equal(found[1][n], found[2][n])]
    assert moved == []
    assert any(not np.array_equal(trained[1][n], trained[2][n]) for n in found[1])
    for name, value in found[3].items():  # the second update that is made: of 3/12
        expected = 3 / 12 * found[2][name].astype("float64") + 9 / 12 * trained[3][name]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
