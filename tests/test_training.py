"""The training loop: what it counts, what it computes on several devices, what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import data
from gluon_resnetv2.checkpoint import checkpoints, load_parameters
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export_run
from gluon_resnetv2.net import ResNetV2, get_model, he_normal
from gluon_resnetv2.spec import named
from gluon_resnetv2.training import curves, loop, statistics
from gluon_resnetv2.training.curves import draw_curves
from gluon_resnetv2.training.devices import contexts, split
from gluon_resnetv2.training.evaluation import evaluate_source
from gluon_resnetv2.training.loop import fit
from gluon_resnetv2.training.main import train_network
from gluon_resnetv2.training.meter import evaluate
from gluon_resnetv2.training.optimizer import make_trainer
from gluon_resnetv2.training.options import override
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.recipes import RECIPES
from gluon_resnetv2.training.run import Run, read_metrics
from gluon_resnetv2.training.step import Step, forward_backward
from tests.common import randomise, relative, use_moving_statistics

TINY = Recipe(
    model="preact8",
    unit="basic",
    dataset="synthetic",
    image_size=8,
    batch_size=24,
    num_epochs=2,
    lr_step_epochs=(1.0,),
    warmup_steps=3,
)


def freeze(net):
    """Leaves a network no part for which the images beside an image matter."""
    net.apply(use_moving_statistics)


def train(folder, recipe=TINY, prepare=lambda net: None, dataset=None):
    """Runs `recipe` in `folder`; returns the parameters by name."""
    recipe = dataclasses.replace(recipe, output=str(folder))
    devices = contexts(recipe.gpus, recipe.cpus)
    dataset = dataset or data.load("synthetic", image_size=8)
    mx.random.seed(recipe.seed)
    net = ResNetV2(recipe.spec(len(dataset.classes)))
    net.initialize(he_normal(recipe.init), ctx=devices)
    net.cast(recipe.dtype)
    prepare(net)
    net.hybridize(static_alloc=True, static_shape=True)
    run = Run(recipe)
    fit(net, dataset, recipe, devices, run)
    run.close()
    return {n: p.data(devices[0]).asnumpy() for n, p in net.collect_params().items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_seed_gives_the_same_bits(tmp_path, dtype):
    recipe = dataclasses.replace(TINY, dtype=dtype, shortcut="dropout:0.5", order="original")
    first, second = (train(tmp_path / name, recipe) for name in "ab")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = train(tmp_path / "c", dataclasses.replace(recipe, seed=1))
    weights = [name for name in first if name.endswith("weight")]
    assert all(np.any(first[name] != other[name]) for name in weights)
    assert first["conv0_weight"].dtype == dtype


def test_a_network_of_grey_images_is_trained_exported_and_evaluated(tmp_path):
    fields = {"in_channels": 1, "num_epochs": 1, "lr_step_epochs": (0.5,)}
    folder, last, _ = train_network(
        dataclasses.replace(TINY, output=str(tmp_path / "run"), **fields)
    )
    manifest = export_run(folder).manifest
    described = manifest.input
    assert (manifest.spec.in_channels, described.shape) == (1, (1, 8, 8))
    assert (described.colour, len(described.mean)) == ("grey", 1)
    for source in (folder, folder / "export"):
        found = evaluate_source(source, [mx.cpu()])
        assert (found["images"], found["error"]) == (24, last["test_error"])


def test_a_warm_up_longer_than_the_run_is_told_once(tmp_path, capfd):
    train(tmp_path / "run", dataclasses.replace(TINY, warmup_steps=400))
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if "never comes to --lr 0.1" in line] == lines[:1]


def test_the_last_epochs_are_without_mixup(tmp_path, monkeypatch):
    """Of two epochs of 11 steps: the weights of both images, by step."""
    weights = []
    mix = Step._mix

    def noted(self, *args):
        mixed = mix(self, *args)
        weights.append(mixed[2])
        return mixed

    monkeypatch.setattr(Step, "_mix", noted)
    train(tmp_path / "run", dataclasses.replace(TINY, mixup=1.0, mixup_off_epochs=1))
    steps = len(weights) // 2
    assert all(weight < 1 for weight in weights[:steps])
    assert weights[steps:] == [1.0] * steps


@pytest.mark.parametrize("kv_store", ["device", "local"])
@pytest.mark.parametrize("devices", [2, 3])
def test_devices_share_a_batch_without_changing_the_result(
    tmp_path, monkeypatch, devices, kv_store
):
    """20 steps on ragged batches, with moving statistics in place of each device's own."""
    recipe = dataclasses.replace(
        TINY, num_epochs=2, batch_size=26, kv_store=kv_store, dtype="float64"
    )
    many = dataclasses.replace(recipe, cpus=devices)
    monkeypatch.setattr("gluon_resnetv2.training.loop.STEPS_UNSETTLED", 0)
    one, several = train(tmp_path / "1", recipe, freeze), train(tmp_path / "n", many, freeze)
    assert read_metrics(tmp_path / "n")[-1]["step"] == 20
    assert {name: relative(several[name], one[name]) for name in one} == {
        name: pytest.approx(0, abs=1e-9) for name in one
    }


@pytest.mark.parametrize("devices", [2, 3])
def test_devices_share_a_batch_in_float32(tmp_path, monkeypatch, devices):
    monkeypatch.setattr("gluon_resnetv2.training.loop.STEPS_UNSETTLED", 0)
    # At the recipe's learning rate 20 steps without normalisation magnify rounding.
    recipe = dataclasses.replace(TINY, batch_size=26, lr=0.03, warmup_lr=0.003)
    one = train(tmp_path / "1", recipe, freeze)
    several = train(tmp_path / "n", dataclasses.replace(recipe, cpus=devices), freeze)
    assert max(relative(several[name], one[name], floor=1e-3) for name in one) < 1e-5


@pytest.mark.parametrize("parts", [{"cpus": 2}, {"cpus": 3}, {"cpus": 2, "accumulate": 2}])
def test_a_steps_loss_is_that_of_all_its_images(tmp_path, parts):
    recipe = dataclasses.replace(
        TINY, batch_size=26, lr=0.03, warmup_lr=0.003, num_epochs=1, log_every=1
    )
    losses = {}
    for name, changes in (("one", {}), ("parts", parts)):
        train(tmp_path / name, dataclasses.replace(recipe, **changes), freeze)
        *steps, epoch = read_metrics(tmp_path / name)
        losses[name] = [record["loss"] for record in steps]
        weights = [26] * 9 + [22]  # of 256 images
        assert np.average(losses[name], weights=weights) == pytest.approx(epoch["train_loss"])
    assert losses["parts"] == pytest.approx(losses["one"], rel=1e-5)


def test_an_epoch_trains_on_the_images_that_the_recipe_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(Recipe, "epoch_images", lambda self, count, workers: count - 6)
    train(tmp_path, dataclasses.replace(TINY, batch_size=26, num_epochs=1, log_every=1))
    *steps, epoch = read_metrics(tmp_path)
    losses = [record["loss"] for record in steps]
    assert np.average(losses, weights=[26] * 9 + [16]) == pytest.approx(epoch["train_loss"])


def test_a_step_is_sgd_with_momentum_on_the_mean_gradient():
    """Against the update written out, with a batch that two devices share unevenly."""
    devices = contexts(None, 2)
    recipe = dataclasses.replace(TINY, cpus=2, lr=0.5, mom=0.9, wd=0.01, dtype="float64")
    net, alone = (get_model("preact8", unit="basic") for _ in range(2))
    values = randomise(alone, dtype="float64")
    net.initialize(ctx=devices)
    net.cast("float64")
    for name, parameter in net.collect_params().items():
        parameter.set_data(mx.nd.array(values[name], dtype="float64"))
    for block in (net, alone):
        block.apply(use_moving_statistics)
    images = np.random.RandomState(0).normal(size=(7, 3, 8, 8))
    labels = np.arange(7) % 3
    update = Step(net, make_trainer(net, recipe), recipe, devices)
    learned = {n: v for n, v in values.items() if not n.endswith(("moving_mean", "moving_var"))}
    momentum = dict.fromkeys(learned, 0.0)
    for step in range(2):
        update(images, labels, step, len(labels))
        x, y = mx.nd.array(images, dtype="float64"), mx.nd.array(labels)
        with mx.autograd.record():
            logits = alone(x)
            mean_loss = -(mx.nd.log_softmax(logits).pick(y)).mean()
        mean_loss.backward()
        for name in learned:
            parameter = alone.collect_params()[name]
            gradient = parameter.grad().asnumpy() + 0.01 * learned[name]
            momentum[name] = 0.9 * momentum[name] - 0.5 * gradient
            learned[name] = learned[name] + momentum[name]
            parameter.set_data(mx.nd.array(learned[name], dtype="float64"))
    for name in learned:
        for device in devices:
            found = net.collect_params()[name].data(device).asnumpy()
            assert relative(found, learned[name]) < 1e-6, name  # MXNet rounds 0.9 to float32


@pytest.mark.parametrize(("batch_size", "devices"), [(64, 1), (7, 1), (10, 3), (63, 3), (1, 1)])
def test_evaluation_counts_every_image_once(batch_size, devices):
    dataset = data.load("synthetic", image_size=8, test_count=64)
    net = get_model("preact8", unit="basic")
    values = randomise(net)
    expected_loss = expected_errors = 0
    for image, label in zip(dataset.test.images, dataset.test.labels):
        pixels = (image.astype("float64") - dataset.mean) / dataset.std
        scores = net(mx.nd.array(pixels.transpose(2, 0, 1)[None])).asnumpy()[0].astype("float64")
        expected_loss += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label]
        expected_errors += scores.argmax() != label
    where = contexts(None, devices)
    net.initialize(ctx=where, force_reinit=True)
    for name, parameter in net.collect_params().items():
        parameter.set_data(mx.nd.array(values[name]))
    found = evaluate(net, dataset.batches(batch_size), where)
    assert found["error"] == pytest.approx(100 * expected_errors / 64)
    assert found["loss"] == pytest.approx(expected_loss / 64, rel=1e-4)


@pytest.fixture
def steps(monkeypatch):
    """What every step of a training is given: images, labels, learning rate and batch size."""
    taken = []

    class Recording(Step):
        def __call__(self, images, labels, step, count, *args):
            taken.append((images, labels, self.trainer.learning_rate, count))
            return super().__call__(images, labels, step, count, *args)

    monkeypatch.setattr("gluon_resnetv2.training.loop.Step", Recording)
    return taken


def test_training_counts_every_image_once(tmp_path, steps):
    dataset = data.load("synthetic", image_size=8, train_count=50)
    train(tmp_path / "run", dataclasses.replace(TINY, cpus=3, num_epochs=1), dataset=dataset)
    # Two images would leave a device of three without one.
    assert [len(labels) for _, labels, *_ in steps] == [24, 26]
    assert [count for *_, count in steps] == [24, 26]  # which gradients are divided by
    counted = np.bincount(np.concatenate([labels for _, labels, *_ in steps]))
    assert list(counted) == list(np.bincount(dataset.train.labels))


def test_every_step_has_its_learning_rate(tmp_path, steps):
    train(tmp_path / "run")
    expected = [0.01] * 3 + [0.1] * 8 + [0.01] * 11
    assert [lr for _, _, lr, _ in steps] == pytest.approx(expected)


def test_momenta_are_corrected_from_the_first_change_of_the_rate_on(tmp_path):
    weights = {}
    for count in (3, 5):  # the rate rises at step 3
        for corrects in (False, True):
            changes = {"num_epochs": None, "num_steps": count, "momentum_correction": corrects}
            changes |= {"lr_step_epochs": None, "lr_steps": (9,)}
            recipe = dataclasses.replace(TINY, **changes)
            weights[count, corrects] = train(tmp_path / f"{count}{corrects}", recipe)[
                "conv0_weight"
            ]
    assert np.array_equal(weights[3, False], weights[3, True])
    assert relative(weights[5, True], weights[5, False]) > 1e-3


def test_the_seed_orders_the_images(tmp_path, steps):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, dataclasses.replace(TINY, seed=seed, num_epochs=1))
    first, again, other = ([images for images, *_ in steps[i : i + 11]] for i in (0, 11, 22))
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))


def test_the_devices_statistics_are_averaged_before_they_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("gluon_resnetv2.training.loop.STEPS_UNSETTLED", 0)
    seen = {}

    def remembering(net, *args):
        mx.nd.waitall()
        copies = net.collect_params()["bn1_moving_var"].list_data()
        seen["var"] = [copy.asnumpy() for copy in copies]
        average(net, *args)

    average = statistics.average
    monkeypatch.setattr(statistics, "average", remembering)
    train(tmp_path / "run", dataclasses.replace(TINY, cpus=2))
    net = ResNetV2(named("preact8", unit="basic"))
    load_parameters(net, checkpoints(tmp_path / "run")[-1] / "net.params")
    assert relative(seen["var"][0], seen["var"][1]) > 1e-3
    saved = net.collect_params()["bn1_moving_var"].data().asnumpy()
    assert relative(saved, np.mean(seen["var"], axis=0)) < 1e-6


def test_statistics_are_averaged_over_devices():
    devices = contexts(None, 2)
    net = get_model("preact8", unit="basic")
    net.initialize(ctx=devices)
    mean = net.collect_params()["bn0_moving_mean"]
    mean.data(devices[0])[:] = 1
    mean.data(devices[1])[:] = 4
    statistics.average(net)
    assert [set(mean.data(device).asnumpy()) for device in devices] == [{2.5}, {2.5}]


@pytest.mark.parametrize("count", [1, 2])
def test_recalibrated_statistics_are_those_of_the_batches(count):
    devices = contexts(None, count)
    net = get_model("preact8", unit="basic", bn_momentum=0.8)
    net.initialize(ctx=devices)
    # Next to nothing varies: what is small beside 1 must not be lost.
    batches = [
        (np.random.RandomState(seed).normal(2e-3, 1e-4, (8, 3, 8, 8)).astype("float32"), None)
        for seed in range(3)
    ]
    stems = [
        net.features[0](mx.nd.array(part)).asnumpy()
        for images, _ in batches
        for part in np.split(images, count)
    ]
    rounds = [split(images, devices) for images, _ in batches]
    statistics.recalibrate(net, rounds, partial(forward_backward, net))
    for name, expected in (
        ("mean", np.mean([stem.mean(axis=(0, 2, 3)) for stem in stems], axis=0)),
        ("var", np.mean([stem.var(axis=(0, 2, 3)) for stem in stems], axis=0)),
    ):
        for device in devices:
            found = net.collect_params()[f"bn0_moving_{name}"].data(device).asnumpy()
            assert relative(found, expected) < 1e-5


def test_a_last_batch_for_fewer_devices_counts_only_those():
    devices = contexts(None, 2)
    net = get_model("preact8", unit="basic", bn_momentum=0.8)
    net.initialize(ctx=devices)
    images = np.random.RandomState(0).normal(size=(12, 3, 8, 8)).astype("float32")
    rounds = [split(images[:8], devices), split(images[8:], devices[:1])]
    shares = [images[:4], images[4:8], images[8:]]
    means = [net.features[0](mx.nd.array(x)).asnumpy().mean(axis=(0, 2, 3)) for x in shares]
    statistics.recalibrate(net, rounds, partial(forward_backward, net))
    found = net.collect_params()["bn0_moving_mean"].data(devices[0]).asnumpy()
    # A round is the mean over its devices, and all rounds count alike.
    assert relative(found, (means[0] + means[1]) / 4 + means[2] / 2) < 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.ArrayDataset, "crop", 0.75)  # which is ImageNet's to have
        train(folder)
    return folder


def test_what_a_run_leaves_behind(run):
    assert sorted(path.name.partition(".tfevents")[0] for path in run.iterdir()) == [
        "checkpoints",
        "curves.png",
        "events.out",
        "metrics.jsonl",
        "recipe.json",
    ]
    recipe = json.loads((run / "recipe.json").read_text())
    assert Recipe.from_dict({**recipe, "output": None}) == TINY
    records = read_metrics(run)
    assert [record["epoch"] for record in records] == [1, 2]
    assert [record["lr"] for record in records] == pytest.approx([0.1, 0.01])
    assert [path.name for path in checkpoints(run)] == ["step-00000011", "step-00000022"]
    with Image.open(draw_curves(run)) as picture:
        assert picture.size == (840, 600)


@pytest.mark.parametrize(("between", "drawn"), [(0, [1, 2, 3]), (1e9, [1, 3])])
def test_curves_are_drawn_in_a_part_of_the_time_and_at_the_end(
    between, drawn, tmp_path, monkeypatch
):
    shown = []
    monkeypatch.setattr(loop, "BETWEEN_DRAWINGS", between)
    monkeypatch.setattr(curves, "draw_curves", lambda run: shown.append(len(read_metrics(run))))
    train(tmp_path / "run", dataclasses.replace(TINY, num_epochs=3))
    assert shown == drawn


def test_a_checkpoint_is_the_network_that_was_evaluated(run):
    net = ResNetV2(named("preact8", unit="basic"))
    load_parameters(net, checkpoints(run)[-1] / "net.params")
    dataset = data.load("synthetic", image_size=8)
    found = evaluate(net, dataset.batches(64), [mx.cpu()])
    assert found["error"] == read_metrics(run)[-1]["test_error"]
    assert found["loss"] == pytest.approx(read_metrics(run)[-1]["test_loss"], rel=1e-5)


def test_an_export_says_how_images_are_prepared(run, tmp_path):
    dataset = data.load("synthetic", image_size=8)
    manifest = export_run(run, tmp_path / "export").manifest
    assert manifest.input.shape == (3, 8, 8)
    assert manifest.input.mean == tuple(dataset.mean)
    assert manifest.input.std == tuple(dataset.std)
    assert manifest.input.crop == 0.75
    assert manifest.classes == tuple(dataset.classes)
    assert manifest.details["recipe"]["model"] == "preact8"
    assert manifest.details["metrics"]["epoch"] == 2


def test_export_wants_a_run(run, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        export_run(tmp_path)
    with pytest.raises(UserError, match="no export of ours"):
        export_run(run, run)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(UserError, match=r"step \d+ with learning rate 1e\+30"):
        train(tmp_path / "run", dataclasses.replace(TINY, lr=1e30, warmup_steps=0))


@pytest.mark.parametrize("parts", [{"cpus": 2}, {"accumulate": 2}])
def test_a_loss_that_is_not_finite_is_noticed_in_every_part(tmp_path, monkeypatch, parts):
    class Spoilt(Step):
        def __call__(self, *args):
            losses, *rest = super().__call__(*args)
            return [*losses[:-1], losses[-1] * math.nan], *rest

    monkeypatch.setattr("gluon_resnetv2.training.loop.Step", Spoilt)
    with pytest.raises(UserError, match="the loss is nan at step 0 "):
        train(tmp_path / "run", dataclasses.replace(TINY, **parts))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch-size"),
        ({"batch_size": 2, "cpus": 3}, "smaller than the number of devices"),
        ({"gpus": (0, 0)}, "differ"),
        ({"gpus": ()}, "--gpus"),
        ({"gpus": (0,), "cpus": 2}, "exclude"),
        ({"kv_store": "nccl"}, "nccl"),
        ({"lr": -1.0}, "--lr"),
        ({"wd": float("nan")}, "--wd"),
        ({"seed": 2**31}, "--seed"),
        ({"wd": 1e39}, "--wd"),
        ({"image_size": 10**8}, "--image-size"),
        ({"lr_step_epochs": (2.0, 1.0)}, "--lr-step-epochs"),
        ({"lr_step_epochs": (float("nan"),)}, "--lr-step-epochs"),
    ],
)
def test_impossible_recipes_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(TINY, **change)


def test_a_run_never_takes_anothers_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(dataset="digits", model="preact20")
    assert [str(Run(recipe).folder) for _ in range(3)] == [
        "runs/digits-preact20",
        "runs/digits-preact20-2",
        "runs/digits-preact20-3",
    ]
    mine = dataclasses.replace(recipe, output="mine")
    (tmp_path / "mine").mkdir()
    run = Run(mine)
    assert str(run.folder) == "mine"
    with pytest.raises(UserError, match="another process"):
        Run(mine)
    run.log(step=1)
    run.close()
    with pytest.raises(UserError, match="exists already"):
        Run(mine)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_two_steps(tmp_path, name):
    model, size = ("preact18", 32) if "imagenet" in name else ("preact20", 8)
    small = {"dataset": "synthetic", "model": model, "image_size": size, "batch_size": 4}
    recipe = override(RECIPES[name].fields, {**small, "num_steps": 2})
    train(tmp_path / "run", recipe, dataset=data.load("synthetic", image_size=size))
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2
