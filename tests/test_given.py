"""Runs and networks that begin with weights that were given, and what of them learns."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import data
from gluon_resnetv2.checkpoint import choose_checkpoint, load_run
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export
from gluon_resnetv2.interop import convert, source
from gluon_resnetv2.interop.beginning import begin
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec, named
from gluon_resnetv2.training import curves, main
from gluon_resnetv2.training.devices import contexts
from gluon_resnetv2.training.evaluation import evaluate_source
from gluon_resnetv2.training.main import train_network
from gluon_resnetv2.training.network import fields_of
from gluon_resnetv2.training.options import read_options
from gluon_resnetv2.training.precision import cpu_has_bfloat16
from gluon_resnetv2.training.recipe import Recipe
from tests.common import randomise, relative
from tests.test_resume import before_update, differences, kill, outcome, send

PREACT8 = named("preact8", unit="basic")
DIGITS = tuple("0123456789")
OTHERS = tuple("abcdefghij")
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 70.0)
TINY = {  # two epochs of four steps
    "dataset": "synthetic",
    "image_size": 8,
    "batch_size": 12,
    "num_epochs": 2,
    "lr": 0.05,
    "lr_step_epochs": (1.0,),
    "warmup_steps": 2,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without curves, and a data set of 40 images, named classes and a small test part."""
    made = data.load("synthetic", image_size=8, train_count=46, test_count=14)
    monkeypatch.setattr(curves, "draw_curves", lambda folder: None)
    monkeypatch.setattr(main, "load_data", lambda recipe, described=None: made)
    return made


def images(channels=3, count=3, size=8):
    return mx.nd.array(np.random.RandomState(1).normal(size=(count, channels, size, size)))


def exported(folder: Path, spec: Spec = PREACT8, classes=None, **options):
    net = ResNetV2(spec)
    randomise(net)
    names = classes or [str(number) for number in range(spec.classes)]
    statistics = {"mean": MEAN[: spec.in_channels], "std": STD[: spec.in_channels]}
    shape = (spec.in_channels, 8, 8)
    export(net, folder, shape, classes=names, **statistics, **options)
    return net


def parse(**given) -> Recipe:
    """The recipe that options mean."""
    recipe, _ = read_options({"recipe": None, "resume": None, **TINY, **given})
    return recipe


def start(recipe: Recipe, monkeypatch) -> tuple[ResNetV2, object]:
    """The network, and the data set, that training starts from; nothing is trained."""
    started = []
    monkeypatch.setattr(main, "fit", lambda net, dataset, *rest: started.append((net, dataset)))
    train_network(recipe)
    return started[0]


def logits(net, x):
    return net(x).asnumpy()


# What weights are of


SPECS = {
    "preact8": PREACT8,
    "timm's": named("preact50", first_activation="unit", stride_on="3x3"),
    "the model zoo's": named(
        "preact18", stride_on="3x3", first_activation="both", input_bn="plain"
    ),
    "the example's": named("preact20", project_first=True, input_bn="shift", bn_eps=2e-5),
    "Keras'": named("preact50", stride_in="last", biases=True, pool_pad="zero", bn_eps=1.001e-5),
    "plain": named("plain14", unit="single"),
    "gated": named("resnet20", order="bn_after_add", shortcut="gate:-6.25", widening="C"),
    "another stem": named("preact20", stem="cifar", classes=7, in_channels=1),
    "another unit": named("preact56", unit="bottleneck"),
    "another name": dataclasses.replace(named("resnet164"), name="mine"),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_recipe_says_every_network_that_has_a_name(name):
    spec = SPECS[name]
    recipe = Recipe(**fields_of(spec))
    said = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))).spec(spec.classes)
    expected = dataclasses.replace(spec, name=said.name, in_channels=3)
    assert said == expected


def test_a_network_without_a_name_is_refused(tmp_path):
    exported(tmp_path / "export", Spec("slim", "cifar", (1, 1, 1), (4, 8, 16)))
    with pytest.raises(UserError, match=r"slim has stages of \(1, 1, 1\) units with \(4, 8, 16\)"):
        parse(init_from=str(tmp_path / "export"))


@pytest.mark.parametrize("text", ["bn_eps", "bn_eps=x", "bn_eps=2", "order=a", "biases=yes", "a=b"])
def test_switches_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=f"--switches can't have '{text}'"):
        Recipe(switches=text)


# Where a run begins


def test_a_run_begins_with_the_logits_of_its_source(tmp_path, monkeypatch, capsys, quick):
    theirs = exported(tmp_path / "export", classes=quick.classes)
    recipe = parse(init_from=str(tmp_path / "export"), output=str(tmp_path / "run"))
    assert (recipe.model, recipe.order) == ("preact8", None)
    net, dataset = start(recipe, monkeypatch)
    assert relative(logits(net, images()), logits(theirs, images())) < 1e-5
    assert (dataset.mean, dataset.std) == (MEAN, STD)
    said = capsys.readouterr().out
    assert "the classifier is kept, as the 10 classes are the same" in said
    assert "images are prepared as for these weights: mean 120,110,100, std 60,50,70" in said


def test_the_images_may_be_prepared_as_the_data_set_has_it(tmp_path, monkeypatch, quick):
    exported(tmp_path / "export")
    recipe = parse(init_from=str(tmp_path / "export"), normalise_by="data")
    _, dataset = start(dataclasses.replace(recipe, output=str(tmp_path / "run")), monkeypatch)
    assert dataset is quick


@pytest.mark.parametrize(
    ("held", "classes", "told"),
    [
        (10, OTHERS, "is new, as class 0 was 'a' and is "),
        (7, None, "is new, as it had 7 classes, and there are 10 now"),
    ],
)
def test_a_classifier_of_other_classes_is_new(tmp_path, monkeypatch, capsys, held, classes, told):
    theirs = exported(tmp_path / "export", dataclasses.replace(PREACT8, classes=held), classes)
    recipe = parse(init_from=str(tmp_path / "export"), output=str(tmp_path / "run"))
    net, _ = start(recipe, monkeypatch)
    features = logits(theirs.features, images())
    assert relative(logits(net.features, images()), features) < 1e-5
    assert f"the classifier {told}" in capsys.readouterr().out
    fresh = main.initial_network(recipe, 10, [mx.cpu()])  # as a run without them has it
    assert np.array_equal(net.output.weight.data().asnumpy(), fresh.output.weight.data().asnumpy())


def test_a_run_and_its_checkpoint_are_sources(tmp_path, monkeypatch, quick):
    recipe = Recipe(model="preact8", unit="basic", **TINY, output=str(tmp_path / "first"))
    train_network(recipe)
    path, _ = choose_checkpoint(tmp_path / "first")
    theirs, _ = load_run(tmp_path / "first")
    for number, given in enumerate((tmp_path / "first", path, path / "net.params")):
        told = parse(init_from=str(given), output=str(tmp_path / str(number)))
        with monkeypatch.context() as patch:
            net, dataset = start(told, patch)
        assert relative(logits(net, images()), logits(theirs, images())) < 1e-5
        assert dataset.mean == pytest.approx(quick.mean)


def test_files_of_other_implementations_are_sources(tmp_path, monkeypatch, capsys):
    spec = named("preact20", first_activation="unit", split_after_pre="none", input_bn="plain")
    spec = dataclasses.replace(spec, widening="B")
    theirs = exported(tmp_path / "export", spec)
    convert.to_layout(source.read(tmp_path / "export"), tmp_path / "a.params", "gluoncv-cifar")
    recipe = parse(init_from=str(tmp_path / "a.params"), output=str(tmp_path / "run"))
    net, dataset = start(recipe, monkeypatch)
    assert relative(logits(net, images()), logits(theirs, images())) < 1e-5
    assert dataset.mean == pytest.approx((125.307, 122.961, 113.8575))  # GluonCV's for CIFAR-10
    assert "kept, as there are 10 classes as before; what they" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "preact20"}, r"holds preact8, whose stages is \(1, 1, 1\), not \(3, 3, 3\)"),
        ({"order": "relu_preact"}, "whose order is full_preact, not relu_preact as in preact8; "),
        ({"switches": "bn_eps=2e-5"}, "whose bn_eps is 1e-05, not 2e-05 .* --switches bn_eps=2e-5"),
    ],
)
def test_options_of_another_network_are_refused(tmp_path, given, told):
    exported(tmp_path / "export")
    with pytest.raises(UserError, match=told):
        parse(init_from=str(tmp_path / "export"), **given)
    same = parse(init_from=str(tmp_path / "export"), model="preact8", order="full_preact")
    assert same.spec(10) == dataclasses.replace(PREACT8)


def test_a_recipe_in_python_has_to_name_the_network(tmp_path):
    exported(tmp_path / "export")
    recipe = Recipe(**TINY, init_from=str(tmp_path / "export"), output=str(tmp_path / "run"))
    with pytest.raises(UserError, match="holds preact8, whose stages"):
        train_network(recipe)
    assert not (tmp_path / "run").exists()


def test_nothing_is_half_loaded(tmp_path):
    found = source.read(exported(tmp_path / "export") and tmp_path / "export")
    broken = dict(found.ours)
    del broken["stage2_unit1_conv1_weight"]
    broken["conv0_weight"] = broken["conv0_weight"][:8]
    net = ResNetV2(PREACT8)
    net.initialize()
    before = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    with pytest.raises(UserError, match=r"conv0_weight has shape \(8, 3, 3, 3\), .* and 1 more"):
        begin(net, dataclasses.replace(found, ours=broken))
    after = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("input_bn", ["off", "shift"])
def test_the_first_layer_takes_images_of_other_channels(tmp_path, input_bn):
    """One channel gives what it gave three times over."""
    three = named("preact8", unit="basic", input_bn=input_bn)
    one = dataclasses.replace(three, in_channels=1)
    grey = images(1)
    for held, wanted in ((three, one), (one, three)):
        folder = tmp_path / str(held.in_channels)
        theirs = exported(folder, held)
        told = []
        net = ResNetV2(wanted)
        net.initialize()
        begin(net, source.read(folder), report=told.append)
        if input_bn == "off":
            x, y = (grey.repeat(spec.in_channels, axis=1) for spec in (held, wanted))
            assert relative(logits(net, y), logits(theirs, x)) < 1e-5
        else:
            assert "and bn_data has their mean" in told[1]
        assert "the first layer's weight" in told[1]
    two = ResNetV2(dataclasses.replace(three, in_channels=2))
    two.initialize()
    with pytest.raises(UserError, match="weights for 3 channels can't be those for 2"):
        begin(two, source.read(tmp_path / "3"))


def test_a_run_is_evaluated_as_it_was_trained(tmp_path, monkeypatch, quick):
    exported(tmp_path / "export")
    recipe = parse(init_from=str(tmp_path / "export"), output=str(tmp_path / "run"))
    _, record, _ = train_network(recipe)
    monkeypatch.setattr(
        "gluon_resnetv2.training.evaluation.load_data", lambda recipe, *_, **__: quick
    )
    found = evaluate_source(tmp_path / "run", contexts(None, 1))
    assert found["loss"] == pytest.approx(record["test_loss"], rel=1e-5)


# What learns


def trained(recipe: Recipe) -> tuple[dict, dict]:
    """Every parameter before and after a run."""
    net = main.initial_network(recipe, 10, [mx.cpu()])
    begin(net, source.read(recipe.init_from), quick_classes())
    before = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    train_network(recipe)
    path, _ = choose_checkpoint(recipe.output)
    after = mx.nd.load(str(path / "net.params"))
    return before, {name.partition(":")[2]: array.asnumpy() for name, array in after.items()}


def quick_classes():
    return main.load_data(None).classes


STEM = ("bn_data_", "conv0_", "bn0_")
PARTS = {
    "stem": STEM,
    1: (*STEM, "stage1"),
    3: (*STEM, "stage"),
    "features": (*STEM, "stage", "bn1_"),
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cpus": 3},
        {"recompute": 2},
        {"recompute": 3, "cpus": 2},
        {"accumulate": 2, "optimizer": "adam", "lr": 0.01},
        {"mom": 0.0},
        {"ema": 0.9, "cpus": 2},
        {"dtype": "float64"},
        pytest.param(
            {"dtype": "bfloat16"},
            marks=pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16"),
        ),
    ],
    ids=lambda changes: " ".join(f"{name} {value}" for name, value in changes.items()) or "plain",
)
@pytest.mark.parametrize("what", PARTS)
def test_what_is_frozen_stays_bit_for_bit(tmp_path, what, changes):
    spec = named("preact8", unit="basic", input_bn="shift", shortcut="dropout:0.1")
    exported(tmp_path / "export", spec)
    recipe = parse(
        init_from=str(tmp_path / "export"), freeze=what, output=str(tmp_path / "run"), **changes
    )
    before, after = trained(recipe)
    del before["bn_data_gamma"]  # which means nothing, and which MXNet sets to 1
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(PARTS[what])}


def test_frozen_normalisation_uses_its_stored_statistics(tmp_path):
    theirs = exported(tmp_path / "export")
    recipe = parse(init_from=str(tmp_path / "export"), freeze="features")
    net = main.initial_network(recipe, 10, [mx.cpu()])
    begin(net, source.read(tmp_path / "export"), quick_classes())
    with mx.autograd.train_mode():
        found = logits(net.features, images())
    assert relative(found, logits(theirs.features, images())) < 1e-5


def test_two_devices_with_a_frozen_trunk_compute_what_one_computes(tmp_path):
    exported(tmp_path / "export")
    ends = {}
    for cpus in (1, 2):
        folder = tmp_path / str(cpus)
        recipe = parse(
            init_from=str(tmp_path / "export"), freeze="features", cpus=cpus, output=str(folder)
        )
        train_network(recipe)
        net, _ = load_run(folder)
        ends[cpus] = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    assert max(relative(ends[2][name], value, floor=1e-3) for name, value in ends[1].items()) < 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "nag"])
def test_features_learn_by_a_part_of_the_rate(tmp_path, optimizer):
    """One step: the change of what is not the classifier is a tenth, the classifier's the same."""
    exported(tmp_path / "export")
    changes = {}
    for scale in (1.0, 0.1):
        recipe = parse(
            init_from=str(tmp_path / "export"),
            lr_scale_features=scale,
            optimizer=optimizer,
            num_epochs=None,
            lr_step_epochs=None,
            num_steps=1,
            dtype="float64",
            output=str(tmp_path / f"run {scale}"),
        )
        before, after = trained(recipe)
        changes[scale] = {name: after[name] - before[name] for name in before}
    for name, change in changes[1.0].items():
        if "moving" not in name:
            factor = 1 if name.startswith("fc1") else 0.1
            np.testing.assert_allclose(changes[0.1][name], factor * change, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"freeze": "stem"}, "--freeze needs --init-from"),
        (
            {"freeze": 4, "init_from": "x"},
            "--freeze is stem, features or a number of stages, 1 to 3",
        ),
        ({"freeze": 0, "init_from": "x"}, "1 to 3: 0"),
        (
            {"freeze": 1, "init_from": "x", "engine": "native"},
            "--freeze is for MXNet's graph alone",
        ),
        ({"lr_scale_features": 0.0}, "--lr-scale-features must be above 0"),
        (
            {"lr_scale_features": 0.1, "freeze": "features", "init_from": "x"},
            "has no effect with --freeze features",
        ),
        ({"normalise_by": "data"}, "--normalise-by has no effect without --init-from"),
        ({"zero_init": True, "init_from": "x"}, "--zero-init has no effect with --init-from"),
    ],
)
def test_what_excludes_each_other_is_told(given, told):
    with pytest.raises(UserError, match=told):
        Recipe(model="preact8", **given)


# Going on


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": 1, "cpus": 2},
        {"freeze": "features", "mom": 0.0, "normalise_by": "data"},
        {"freeze": "stem", "recompute": 2, "lr_scale_features": 0.1, "momentum_correction": True},
    ],
    ids=["a stage", "all", "the stem"],
)
def test_a_run_that_was_stopped_and_killed_ends_with_the_same_bits(tmp_path, changes):
    """And needs the weights that it began with no more."""
    exported(tmp_path / "export", classes=OTHERS)
    given = {"init_from": str(tmp_path / "export"), **changes}
    train_network(parse(**given, output=str(tmp_path / "in peace")))
    broken = str(tmp_path / "broken")
    for trouble in (before_update(1, send(signal.SIGTERM)), before_update(6, kill), None):
        with pytest.MonkeyPatch.context() as patch:
            if trouble:
                trouble(patch)
            try:
                recipe, resume = read_options(
                    {"recipe": None, "resume": "auto", **TINY, **given, "output": broken}
                )
                train_network(recipe, resume)
            except BaseException as error:
                if type(error).__name__ != "Killed":
                    raise
        shutil.rmtree(tmp_path / "export", ignore_errors=True)
    assert differences(outcome(broken), outcome(tmp_path / "in peace")) == []
