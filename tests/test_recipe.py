"""Recipes: their learning rates against values written by hand, their options, their mistakes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from pathlib import Path

import pytest

from gluon_resnetv2 import cli, data
from gluon_resnetv2.commands.train import CIFAR, IMAGENET, add_options
from gluon_resnetv2.distributed import hosts
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.training.fields import flag
from gluon_resnetv2.training.options import read_options, read_recipe
from gluon_resnetv2.training.recipe import SCHEDULE, Recipe
from gluon_resnetv2.training.recipes import RECIPES
from gluon_resnetv2.training.run import Run
from gluon_resnetv2.training.schedule import Cosine, Steps, WarmUp

ROOT = Path(__file__).resolve().parents[1]
OLD = ROOT / "tests" / "fixtures" / "v0.1"

# -- Schedules -------------------------------------------------------------------------------------


def rates(schedule, steps) -> list[float]:
    return [schedule(step) for step in steps]


def test_steps():
    schedule = Steps(0.5, (3, 7), 0.2)
    assert rates(schedule, range(9)) == pytest.approx([0.5] * 3 + [0.1] * 4 + [0.02] * 2)
    assert rates(Steps(0.5), (0, 10**6)) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("update-on-kvstore", "--update-on-kvstore True"),
        ("lr-power", "--lr-power 1.5"),
        ("poly", "--lr-schedule poly"),
        ("horovod", "--kv-store horovod"),
    ],
)
def test_what_recipes_of_0_1_had_besides_is_named(name, choice):
    with pytest.raises(UserError, match=f"0.1 was the last to know {choice};"):
        read_recipe(OLD / "recipes" / f"{name}.json")


def test_the_defaults_of_0_1_are_those_of_today():
    """But for the engine, which none of 0.1's runs was to choose for itself."""
    assert Recipe(**read_recipe(OLD / "recipes" / "defaults.json")) == Recipe(engine="mxnet")


def test_cosine():
    half = math.sqrt(0.5)
    assert rates(Cosine(1.0, 8), (0, 2, 4, 6, 8, 99)) == pytest.approx(
        [1, (1 + half) / 2, 0.5, (1 - half) / 2, 0, 0]
    )
    assert rates(Cosine(0.5, 14, 4, 0.1), (3, 4, 9, 14, 15)) == pytest.approx(
        [0.5, 0.5, 0.3, 0.1, 0.1]
    )


def test_warm_up():
    """A constant one as in the paper; a linear one reaches the rate that follows it."""
    assert rates(WarmUp(Steps(0.1, (6,)), 4, 0.01), (0, 3, 4, 5, 6)) == pytest.approx(
        [0.01, 0.01, 0.1, 0.1, 0.01]
    )
    assert rates(WarmUp(Steps(0.5), 4, 0.1, linear=True), range(6)) == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.5]
    )
    assert WarmUp(Steps(0.1), 0, 0.01)(0) == 0.1
    assert WarmUp(Steps(0.1), 0, 0.01, linear=True)(0) == 0.1


# Training images, steps of an epoch, steps in all, and the rate at both sides of every boundary.
# 50,000 images are 390 batches of 128 and one of 80, or 781 batches of 64 and one of 16;
# 1,281,167 are 5004 batches of 256, or 1251 of 1024, and one of 143.
RATES = {
    "digits": (
        1437,
        23,
        345,
        {0: 0.01, 19: 0.01, 20: 0.1, 206: 0.1, 207: 0.01, 298: 0.01, 299: 0.001, 344: 0.001},
    ),
    "folder": (640, 10, 600, {0: 0.0, 15: 0.025, 30: 0.05, 315: 0.025}),
    "fashion-mnist": (60_000, 469, 21_105, {0: 0.0, 469: 0.1, 10_787: 0.05}),
    "paper-cifar10": (
        50_000,
        391,
        64_000,
        {
            **{0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1},
            **{32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001},
        },
    ),
    "paper-cifar100": (
        50_000,
        391,
        64_000,
        {
            **{0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1},
            **{32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001},
        },
    ),
    "released-cifar10": (
        50_000,
        782,
        156_400,
        {0: 0.1, 62_559: 0.1, 62_560: 0.01, 94_621: 0.01, 94_622: 0.001, 156_399: 0.001},
    ),
    "tornadomeet-cifar10": (
        50_000,
        391,
        117_300,
        {
            **{0: 0.1, 86_019: 0.1, 86_020: 0.01, 101_659: 0.01, 101_660: 0.001},
            **{109_479: 0.001, 109_480: 0.0001, 117_299: 0.0001},
        },
    ),
    "gluoncv-cifar10": (
        50_000,
        391,
        78_200,
        {0: 0.1, 39_099: 0.1, 39_100: 0.01, 58_649: 0.01, 58_650: 0.001, 78_199: 0.001},
    ),
    "gluoncv-cifar10-mixup": (
        50_000,
        391,
        86_020,
        {0: 0.1, 39_099: 0.1, 39_100: 0.01, 58_649: 0.01, 58_650: 0.001, 86_019: 0.001},
    ),
    "paper-imagenet": (
        1_281_167,
        5005,
        450_450,
        {0: 0.1, 150_149: 0.1, 150_150: 0.01, 300_299: 0.01, 300_300: 0.001, 450_449: 0.001},
    ),
    "paper-imagenet-aspect": (
        1_281_167,
        5005,
        450_450,
        {0: 0.1, 150_149: 0.1, 150_150: 0.01, 300_299: 0.01, 300_300: 0.001, 450_449: 0.001},
    ),
    "tornadomeet-imagenet": (
        1_281_167,
        5005,
        600_600,
        {
            **{0: 0.1, 150_149: 0.1, 150_150: 0.01, 300_299: 0.01, 300_300: 0.001},
            **{450_449: 0.001, 450_450: 0.0001, 600_599: 0.0001},
        },
    ),
    # Five epochs from 0 to 0.4 on a line, then half a wave: 0.7071 is the cosine of its quarter.
    "gluoncv-imagenet": (
        1_281_167,
        1252,
        150_240,
        {
            **{0: 0.0, 1: 6.389776e-5, 3130: 0.2, 6259: 0.3999361, 6260: 0.4},
            **{42_255: 0.2 + 0.2 * 0.7071068, 78_250: 0.2, 150_239: 4.76e-11},
        },
    ),
}


def test_every_recipe_has_its_rates_here():
    assert list(RATES) == list(RECIPES)


@pytest.mark.parametrize("name", RATES)
def test_a_recipes_learning_rates(name):
    images, steps, total, expected = RATES[name]
    recipe = Recipe(**RECIPES[name].fields)
    assert data.num_batches(images, recipe.batch_size) == steps
    assert recipe.total_steps(steps) == total
    schedule = recipe.schedule(steps)
    found = rates(schedule, expected)
    assert found == pytest.approx(list(expected.values()), rel=1e-6, abs=1e-12)
    if recipe.lr_schedule == "steps":  # constant between what is listed, then
        listed = sorted(expected)
        for before, after in itertools.pairwise(listed):
            if after > before + 1:
                among = range(before, after, max((after - before) // 1000, 1))
                assert set(rates(schedule, among)) == {schedule(before)} == {schedule(after)}


def test_epochs_need_not_be_whole():
    """A study of fewer epochs has its rates fall within them."""
    recipe = Recipe(lr=0.1, num_epochs=3, lr_step_epochs=(1.5, 2.26), warmup_epochs=0.4)
    found = rates(recipe.schedule(10), (3, 4, 14, 15, 22, 23))
    assert found == pytest.approx([0.01, 0.1, 0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_is_a_whole_one(name):
    named = RECIPES[name]
    recipe = Recipe(**named.fields)
    assert recipe.spec(10).name == recipe.model
    assert (recipe.dataset == "imagenet") == ("imagenet" in name)
    assert all((named.source, named.cost, named.expected))
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    same = {field for field, value in named.fields.items() if value == defaults[field]}
    assert same <= {"model"}


def test_momenta_are_corrected_where_a_recipes_source_is_in_torch():
    corrected = {n for n, one in RECIPES.items() if Recipe(**one.fields).momentum_correction}
    assert corrected == {"released-cifar10", "paper-imagenet-aspect"}


LATER = (
    *("momentum_correction", "mixup_off_epochs", "cutmix", "rand_augment", "random_erasing"),
    *("ema", "patience", "in_channels"),
)


@pytest.mark.parametrize("later", LATER)
def test_a_recipe_of_before_an_option_has_none(later):
    older = Recipe().to_dict()
    assert not older.pop(later)
    assert Recipe.from_dict(older) == Recipe()


def test_a_network_takes_the_channels_of_its_images():
    """Of the data set where it is known, otherwise those that are asked for."""
    grey = Recipe(in_channels=1)
    assert (grey.spec(10).in_channels, Recipe().spec(10).in_channels) == (1, 3)
    assert (grey.spec(10, 3).in_channels, Recipe().spec(10, 1).in_channels) == (3, 1)


# Of the sources' code and logs: train_mixup_cifar10.py, cifarresnet.py, symbol_resnet.py,
# train_resnet.py and log/resnet-164.log, preresnet.lua, train.lua.
SOURCES = {
    "released-cifar10": {"stride_on": "first", "init": "out", "optimizer": "nag"},
    "tornadomeet-cifar10": {"stride_on": "3x3", "init": "in", "optimizer": "nag"},
    "gluoncv-cifar10": {"widening": "B", "input_bn": "plain", "mixup": 0},
    "gluoncv-cifar10-mixup": {"widening": "B", "input_bn": "plain", "mixup": 1},
    "paper-imagenet": {"optimizer": "sgd", "stride_on": "first", "init": "in"},
    "paper-imagenet-aspect": {"optimizer": "nag", "stride_on": "3x3", "init": "out"},
    "tornadomeet-imagenet": {"stride_on": "3x3", "input_bn": "shift", "colour": False},
    "gluoncv-imagenet": {"stride_on": "3x3", "input_bn": "plain", "colour": True},
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_recipe_is_its_sources(name):
    recipe = Recipe(**RECIPES[name].fields)
    spec = recipe.spec(10)
    found = {field: getattr(spec, field, getattr(recipe, field)) for field in SOURCES[name]}
    assert found == SOURCES[name]


def test_gluoncvs_last_20_epochs_are_without_mixup():
    recipe = Recipe(**RECIPES["gluoncv-cifar10-mixup"].fields)
    assert (recipe.total_steps(391), recipe.mixed_steps(391)) == (86_020, 78_200)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        # The defaults: 400 steps of warm-up at 0.01; drops at half and 3/4 of all steps.
        ({"num_steps": 401}, None),
        ({"num_steps": 400}, ["400 steps", "--lr 0.1", "takes 400", "--warmup-steps"]),
        ({"num_steps": 120}, ["120 steps", "--lr 0.1", "takes 400", "--warmup-steps"]),
        ({"num_epochs": 3, "warmup_epochs": 5}, ["30 steps", "takes 50", "--warmup-epochs"]),
        ({"num_steps": 120, "warmup_lr": 0.1}, None),
        ({"num_steps": 120, "warmup_steps": 0}, None),
        ({"num_steps": 500, "lr_steps": (450, 499)}, None),
        ({"num_steps": 500, "lr_steps": (450, 500, 600)}, ["500 steps", "500, 600", "--lr-steps"]),
        (
            {"num_epochs": 50, "lr_step_epochs": (80.0,)},
            ["500 steps", "falls at 800;", "--lr-step-epochs"],
        ),
        ({"num_steps": 500, "lr_steps": (600,), "lr_factor": 1.0}, None),
        ({"num_steps": 500, "lr_schedule": "cosine"}, None),
    ],
)
def test_what_a_run_is_too_short_for_is_told(fields, told):
    """With ten steps in an epoch."""
    line = Recipe(**fields).beyond_the_end(10)
    assert (line is None) is (told is None)
    assert [part for part in told or () if part not in line] == []


@pytest.mark.parametrize("name", RECIPES)
def test_json_gives_the_recipe_back(name):
    recipe = dataclasses.replace(Recipe(**RECIPES[name].fields), gpus=(0, 1), recompute=3)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


# -- Options ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # There are no weights to take a network from.
    with_network = "gluon_resnetv2.training.given.with_network"
    monkeypatch.setattr(with_network, lambda recipe, told: recipe)


def parse(*words, without=IMAGENET):
    """The recipe that a command line means, and whether to go on with a run."""
    parser = cli.Parser(prog="cifar.py")
    add_options(parser, without)
    return read_options(vars(parser.parse_args([str(word) for word in words])))


# An option for each field, and the value that it means.
OPTIONS = {
    "model": ("resnet56", "resnet56"),
    "order": ("relu_preact", "relu_preact"),
    "shortcut": ("dropout:0.5", "dropout:0.5"),
    "unit": ("basic", "basic"),
    "stem": ("cifar", "cifar"),
    "widening": ("A", "A"),
    "stride_on": ("3x3", "3x3"),
    "input_bn": ("shift", "shift"),
    "init": ("out", "out"),
    "zero_init": (None, True),
    "switches": ("bn_eps=2e-5", "bn_eps=2e-5"),
    "init_from": ("timm:there", "timm:there"),
    "normalise_by": ("data", "data"),
    "freeze": ("2", 2),
    "lr_scale_features": ("0.1", 0.1),
    "dataset": ("digits", "digits"),
    "data_dir": ("/there", "/there"),
    "image_size": ("48", 48),
    "in_channels": ("1", 1),
    "test_size": ("320", 320),
    "augmentation": ("scale-aspect", "scale-aspect"),
    "colour": ("--no-colour", False),
    "flip": ("--no-flip", False),
    "val_fraction": ("0.3", 0.3),
    "split_seed": ("5", 5),
    "threads": ("3", 3),
    "leave_out": ("--leave-out", True),
    "coarse": (None, True),
    "label_smoothing": ("0.1", 0.1),
    "mixup": ("0.2", 0.2),
    "mixup_off_epochs": ("20", 20),
    "cutmix": ("0.5", 0.5),
    "rand_augment": ("2,9", (2, 9)),
    "random_erasing": ("0.25", 0.25),
    "batch_size": ("96", 96),
    "num_epochs": ("7", 7),
    "num_steps": ("700", 700),
    "optimizer": ("adam", "adam"),
    "lr": ("0.3", 0.3),
    "lr_schedule": ("cosine", "cosine"),
    "lr_steps": ("5,6,8", (5, 6, 8)),
    "lr_step_epochs": ("1.5,2", (1.5, 2.0)),
    "lr_factor": ("0.5", 0.5),
    "lr_end": ("0.001", 0.001),
    "warmup": ("linear", "linear"),
    "warmup_lr": ("0.02", 0.02),
    "warmup_steps": ("11", 11),
    "warmup_epochs": ("1.5", 1.5),
    "mom": ("0.8", 0.8),
    "momentum_correction": (None, True),
    "wd": ("5e-4", 5e-4),
    "wd_on": ("weights", "weights"),
    "accumulate": ("2", 2),
    "sync_bn": (None, True),
    "dtype": ("float64", "float64"),
    "seed": ("3", 3),
    "ema": ("0.999", 0.999),
    "patience": ("5", 5),
    "gpus": ("0,2", (0, 2)),
    "cpus": ("2", 2),
    "kv_store": ("local", "local"),
    "engine": ("native", "native"),
    "recompute": ("4", 4),
    "output": ("runs/mine", "runs/mine"),
    "checkpoint_every": ("500", "500"),
    "keep": ("5", 5),
    "log_every": ("10", 10),
    "export": ("best", "best"),
}
# What each of these also changes, since it is meant instead or follows from it.
FOLLOWS = {
    "num_epochs": {"num_steps", "lr_steps", "lr_step_epochs"},
    "num_steps": {"lr_steps"},
    "lr": {"warmup_lr"},
    "lr_step_epochs": {"lr_steps"},
    "warmup_epochs": {"warmup_steps"},
}


# What has to be said as well for some of them to have an effect.
CONTEXT = {
    **{name: ["--dataset", "imagenet"] for name in ("test_size", "augmentation", "colour")},
    **{name: ["--dataset", "imagenet"] for name in ("threads", "leave_out")},
    **{name: ["--dataset", "folder"] for name in ("flip", "val_fraction", "split_seed")},
    "data_dir": ["--dataset", "cifar10"],
    "image_size": ["--dataset", "digits"],
    "coarse": ["--dataset", "cifar100"],
    "mixup_off_epochs": ["--mixup", "1"],
    "lr_end": ["--lr-schedule", "cosine"],
    **{name: ["--init-from", "timm:there"] for name in ("normalise_by", "freeze")},
}


def words_of(field: str) -> list[str]:
    word = OPTIONS[field][0]
    if word is None or word.startswith("--"):
        return [word or flag(field)]
    return [flag(field), word]


def test_every_field_has_an_option_here():
    assert set(OPTIONS) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("field", OPTIONS)
def test_an_option_sets_its_field_and_no_other(field):
    before, _ = parse(*CONTEXT.get(field, ()), without=())
    recipe, resume = parse(*CONTEXT.get(field, ()), *words_of(field), without=())
    assert getattr(before, field) != OPTIONS[field][1] == getattr(recipe, field)
    changed = set(before.differences(recipe))
    assert changed - {field} <= FOLLOWS.get(field, set())
    assert not resume


def test_flags_can_be_taken_back():
    Path("mine.json").write_text('{"zero_init": true, "sync_bn": true}')
    recipe, _ = parse("--recipe", "mine.json", "--no-zero-init")
    assert (recipe.zero_init, recipe.sync_bn) == (False, True)


def test_without_options_it_is_the_papers_recipe():
    """[v2], appendix: batch 128, weight decay 1e-4, momentum 0.9, 64k iterations."""
    recipe, _ = parse()
    assert recipe == Recipe()
    assert (recipe.batch_size, recipe.wd, recipe.mom, recipe.num_steps) == (128, 1e-4, 0.9, 64_000)
    assert (recipe.lr, recipe.lr_steps, recipe.lr_factor) == (0.1, (32_000, 48_000), 0.1)
    assert (recipe.warmup_steps, recipe.warmup_lr) == (400, pytest.approx(0.01))


def test_options_override_a_recipe():
    recipe, _ = parse("--recipe", "digits", "--lr", "0.2", "--num-steps", "50")
    assert (recipe.model, recipe.batch_size, recipe.lr) == ("preact20", 64, 0.2)
    assert (recipe.num_steps, recipe.num_epochs) == (50, None)
    Path("mine.json").write_text(json.dumps(recipe.to_dict()))
    again, _ = parse("--recipe", "mine.json")
    assert again == recipe
    again, _ = parse("--recipe", "mine.json", "--warmup-epochs", "0.5", "--lr-steps", "3")
    assert (again.warmup_steps, again.warmup_epochs) == (None, 0.5)
    assert (again.lr_steps, again.lr_step_epochs) == ((3,), None)
    assert again.model == "preact20"


def test_options_override_a_recipe_of_before():
    """It has `update_on_kvstore`, which is gone, and no format."""
    fields = json.loads((OLD / "run" / "recipe.json").read_text())
    assert not fields["update_on_kvstore"]
    assert "format" not in fields
    recipe, _ = parse("--recipe", str(OLD / "run"), "--lr", "0.03")
    assert (recipe.model, recipe.lr) == (fields["model"], 0.03)


def test_a_recipe_of_a_later_format_is_refused():
    with pytest.raises(UserError, match="format 3 is of a later version"):
        Recipe.from_dict({**Recipe().to_dict(), "format": 3})


def test_what_follows_from_an_option_follows_from_a_new_one():
    Path("mine.json").write_text(json.dumps(parse("--lr", "0.5", "--num-steps", "40")[0].to_dict()))
    recipe, _ = parse("--recipe", "mine.json", "--lr", "0.2", "--num-steps", "80")
    assert recipe == parse("--lr", "0.2", "--num-steps", "80")[0]
    assert recipe.warmup_lr == pytest.approx(0.02)
    assert recipe.lr_steps == (40, 60)


NO_EFFECT = {
    "--mom 0.5 --optimizer adam": "--mom has no effect with --optimizer adam",
    "--lr-steps 5 --lr-schedule cosine": "--lr-steps has no effect with --lr-schedule cosine",
    "--lr-step-epochs 5 --lr-schedule cosine": "--lr-step-epochs has no effect",
    "--lr-factor 0.5 --lr-schedule cosine": "--lr-factor has no effect",
    "--lr-end 0.1": "--lr-end has no effect with --lr-schedule steps",
    "--coarse --dataset cifar10": "--coarse has no effect with --dataset cifar10",
    "--test-size 320": "--test-size has no effect",
    "--augmentation scale": "--augmentation has no effect",
    "--no-colour": "--colour has no effect",
    "--threads 3": "--threads has no effect",
    "--no-flip --dataset mnist": "--flip has no effect with --dataset mnist",
    "--data-dir there --dataset digits": "--data-dir has no effect with --dataset digits",
    "--val-fraction 0.1 --dataset imagenet": "--val-fraction has no effect with --dataset imagenet",
}


@pytest.mark.parametrize("words", NO_EFFECT)
def test_an_option_without_effect_is_refused(words):
    with pytest.raises(UserError) as error:
        parse(*words.split(), without=())
    assert NO_EFFECT[words] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_script_offers_what_it_can_use():
    parser = cli.Parser(prog="imagenet.py")
    add_options(parser, CIFAR, defaults=RECIPES["paper-imagenet"].fields)
    text = " ".join(parser.format_help().split())
    assert "(default: preact200)" in text
    assert "--test-size" in text
    for word in ("--coarse", "cifar100", "SUPPRESS", "None"):
        assert word not in text.replace("paper-cifar100", "")


JSON_MISTAKES = {
    "unknown name": ({"modle": "preact20"}, "'modle'"),
    "a text for a number": ({"lr": "fast"}, "lr"),
    "a number as text": ({"batch_size": "128"}, "batch_size"),
    "a fraction for a whole number": ({"batch_size": 1.5}, "batch_size"),
    "a truth for a number": ({"lr": True}, "lr"),
    "a number for a truth": ({"zero_init": 1}, "zero_init"),
    "a number for a name": ({"model": 110}, "model"),
    "a list for a name": ({"model": ["preact20"]}, "model"),
    "nothing for a number": ({"lr": None}, "lr"),
    "too large": ({"lr": 1e39}, "--lr"),
    "unknown choice": ({"dataset": "cifar1000"}, "dataset"),
    "another case": ({"optimizer": "SGD"}, "optimizer"),
    "one number for a list": ({"lr_steps": 5}, "lr_steps"),
    "texts in a list": ({"lr_steps": ["5"]}, "lr_steps"),
    "lists in a list": ({"lr_steps": [[5]]}, "lr_steps"),
    "truths in a list": ({"gpus": [True]}, "gpus"),
    "an object for a list": ({"lr_step_epochs": {"1": 2}}, "lr_step_epochs"),
    "fractions for steps": ({"lr_steps": [1.5]}, "lr_steps"),
    "fractions for GPUs": ({"gpus": [0.5]}, "gpus"),
    "a word for segments": ({"recompute": "many"}, "recompute"),
    "steps that are none": ({"checkpoint_every": "often"}, "--checkpoint-every"),
    "a number for minutes": ({"checkpoint_every": 100}, "checkpoint_every"),
    "both kinds of length": ({"num_epochs": 1, "num_steps": 1}, "exclude"),
    "a list": ([], "object"),
    "nothing": (None, "object"),
}


@pytest.mark.parametrize("mistake", JSON_MISTAKES)
def test_a_recipe_that_is_none_is_refused_in_a_line_that_names_it(mistake):
    content, says = JSON_MISTAKES[mistake]
    Path("mine.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        parse("--recipe", "mine.json")
    assert str(error.value).startswith("mine.json: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{}", b'{"lr": 0.1', b"\0" * 100, b'{"lr": NaN}']
)
def test_a_file_that_is_no_json_is_refused(content):
    Path("mine.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^mine\.json (is no JSON: |has a number 'NaN')"):
        parse("--recipe", "mine.json")


VALUE_MISTAKES = {
    "--num-steps 0": "--num-steps",
    "--num-epochs -1": "--num-epochs",
    "--num-steps 5 --num-epochs 1": "--num-epochs and --num-steps exclude",
    "--lr-steps 5 --lr-step-epochs 1": "--lr-steps and --lr-step-epochs exclude",
    "--warmup-steps 5 --warmup-epochs 1": "--warmup-steps and --warmup-epochs exclude",
    "--lr-steps 8,5": "--lr-steps needs rising",
    "--lr-steps 0": "--lr-steps needs rising",
    "--lr-step-epochs inf": "--lr-step-epochs needs rising",
    "--lr inf": "--lr must",
    "--mom -0.1": "--mom must",
    "--mixup -1": "--mixup must",
    "--mixup-off-epochs -1": "--mixup-off-epochs must",
    "--cutmix -1": "--cutmix must",
    "--rand-augment 2": "--rand-augment needs a whole number",
    "--rand-augment 0,9": "--rand-augment needs a whole number",
    "--rand-augment 1.5,9": "--rand-augment needs a whole number",
    "--rand-augment 2,11": "strength from 0 to 10, as in 2,9, not 2.0,11.0",
    "--rand-augment 2,nan": "--rand-augment needs a whole number",
    "--rand-augment inf,9": "--rand-augment needs a whole number",
    "--random-erasing 1.1": "--random-erasing must",
    "--random-erasing nan": "--random-erasing must",
    "--ema 1": "--ema must",
    "--ema -0.1": "--ema must",
    "--ema 0.9 --kv-store dist_async": "not one average; leave out --ema",
    "--patience -1": "--patience must",
    "--momentum-correction --optimizer signum": "is for --optimizer sgd and nag, not signum",
    "--momentum-correction --kv-store dist_async": "servers of --kv-store dist_async",
    "--momentum-correction --warmup-lr 0": "none, --warmup-lr too, may be 0",
    "--momentum-correction --lr 0 --warmup-steps 0": "none, --warmup-lr too, may be 0",
    "--label-smoothing 1": "--label-smoothing must",
    "--label-smoothing nan": "--label-smoothing must",
    "--accumulate 0": "--accumulate must",
    "--batch-size 5 --accumulate 3 --cpus 2": "--accumulate, 3",
    "--keep 0": "--keep must",
    "--log-every 0": "--log-every must",
    "--checkpoint-every 0": "--checkpoint-every needs",
    "--checkpoint-every 5h": "--checkpoint-every needs",
    "--checkpoint-every -5": "--checkpoint-every needs",
    "--recompute 0": "--recompute must",
    "--gpus 0 --cpus 2": "exclude",
    "--recipe nowhere": "no recipe 'nowhere'",
    "--recipe .": "no recipe '.'",
    "--resume nowhere": "nowhere/recipe.json is missing",
    "--resume nowhere --recipe digits": "leave out --recipe",
}


@pytest.mark.parametrize("words", VALUE_MISTAKES)
def test_a_mistake_is_one_line_and_touches_nothing(words):
    with pytest.raises(UserError) as error:
        parse(*words.split())
    assert VALUE_MISTAKES[words] in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(Path().iterdir())


# -- Going on --------------------------------------------------------------------------------------

TINY = (
    *("--dataset", "digits", "--model", "preact8", "--unit", "basic"),
    *("--num-epochs", "3", "--batch-size", "50"),
)


def begin(*words) -> Path:
    """Begins a run, and ends it before its first step."""
    recipe, resume = parse(*TINY, *words, without=())
    run = Run(recipe, resume=resume)
    run.close()
    return run.folder


# What differs from that, where the option above does not.
OTHER = {
    "dataset": ["--dataset", "synthetic"],
    "unit": ["--unit", "bottleneck", "--model", "preact11"],
}
MACHINE = [field.name for field in dataclasses.fields(Recipe) if field.metadata["machine"]]


@pytest.mark.parametrize("field", [name for name in OPTIONS if name != "output"])
def test_only_the_schedule_and_how_a_run_goes_on_can_be_changed(field):
    context = CONTEXT.get(field, ())
    folder = begin("--output", "mine", *context)
    before = (folder / "recipe.json").read_bytes()
    words = OTHER.get(field) or words_of(field)
    # One option excludes another, which auto would be given as well.
    length = {"--num-epochs", "3"} if field == "num_steps" else ()
    given = ["--output", "mine", *(word for word in TINY if word not in length), *context]
    for resume in (["--resume", "mine"], [*given, "--resume", "auto"]):
        options = [*resume, *words]
        if field in (*MACHINE, *SCHEDULE):
            recipe, goes_on = parse(*options, without=())
            assert getattr(recipe, field) == OPTIONS[field][1]
            assert (recipe.output, goes_on) == ("mine", True)
            continue
        with pytest.raises(UserError, match=r"mine was started with (no )?--") as error:
            parse(*options, without=())
        assert "\n" not in str(error.value)
    assert (folder / "recipe.json").read_bytes() == before


def test_a_refusal_names_the_option_both_values_and_a_way_out():
    begin("--output", "mine", "--order", "original")
    for words, says in (
        ("--wd 0.2", "--wd 0.0001, not with --wd 0.2; .* leave out --wd, or name a new --output"),
        ("--order relu_preact", "--order original, not with --order relu_preact; "),
        ("--shortcut gate:0", "no --shortcut, not with --shortcut gate:0; "),
        ("--coarse --dataset cifar100", "--dataset digits, not with --dataset cifar100; "),
        ("--zero-init", "--no-zero-init, not with --zero-init; "),
    ):
        with pytest.raises(UserError, match=f"mine was started with {says}"):
            parse("--resume", "mine", *words.split(), without=())


def test_a_folder_of_images_is_known_from_everywhere(monkeypatch):
    """Old recipes may hold names that others complete."""
    monkeypatch.setenv("HOME", "/home/someone")
    here = os.getcwd()
    for given, stored in (
        ("images", f"{here}/images"),
        ("../images", f"{Path(here).parent}/images"),
        ("~/images", "/home/someone/images"),
        ("/images", "/images"),
    ):
        assert Recipe.from_dict({"data_dir": given}).to_dict()["data_dir"] == stored


def test_options_that_say_the_same_again_are_welcome():
    begin("--output", "mine", "--gpus", "0,1")
    for words in (TINY, ["--num-epochs", "3"], ["--cpus", "2"], ["--lr", "0.10"]):
        recipe, resume = parse("--resume", "mine", *words)
        assert resume
        assert recipe.num_epochs == 3
        assert recipe.gpus == (None if "--cpus" in words else (0, 1))


def test_a_run_that_was_moved_goes_on_where_it_is():
    begin("--output", "mine").rename("theirs")
    recipe, _ = parse("--resume", "theirs")
    assert recipe.output == "theirs"
    with pytest.raises(UserError, match="leave out --output"):
        parse("--resume", "theirs", "--output", "mine")


def test_auto_begins_a_run_or_goes_on_with_it():
    assert parse(*TINY, "--output", "mine", "--resume", "auto")[1]
    assert not Path("mine").exists()
    first, again = (begin("--output", "mine", "--resume", "auto") for _ in range(2))
    assert first == again == Path("mine")
    assert parse(*TINY, "--output", "mine", "--resume", "auto", "--lr", "0.5")[0].lr == 0.5
    with pytest.raises(UserError, match="started with --wd"):
        parse(*TINY, "--output", "mine", "--resume", "auto", "--wd", "0.5")


def test_auto_finds_the_newest_run_of_the_same_recipe():
    folders = [begin() for _ in range(10)]
    assert str(folders[9]) == "runs/digits-preact8-10"
    begin("--lr", "0.5")  # the eleventh, of another recipe
    Path("runs/digits-preact8-99-notes").mkdir()
    (Path("runs/digits-preact8-12")).mkdir()
    assert parse(*TINY, "--resume", "auto")[0].output == "runs/digits-preact8-10"
    assert parse(*TINY, "--resume", "auto", "--keep", "9")[0].output == "runs/digits-preact8-10"
    assert parse(*TINY, "--resume", "auto", "--lr", "0.5")[0].output == "runs/digits-preact8-11"
    recipe, resume = parse(*TINY, "--resume", "auto", "--lr", "0.7")
    assert (recipe.output, resume) == (None, True)
    assert str(begin("--resume", "auto", "--lr", "0.7")) == "runs/digits-preact8-13"


@pytest.mark.parametrize("content", ['{"from": "another version"}', "{", "[]"])
def test_auto_passes_over_runs_that_it_can_not_read(content):
    mine, other = begin(), begin()
    (other / "recipe.json").write_text(content)
    assert parse(*TINY, "--resume", "auto")[0].output == str(mine)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is no JSON: "),
        (b'{"seed": 1, "seed": 1}', "has 'seed' twice in one object"),
        (b'{"model": "\xff"}', "is no JSON: not UTF-8, "),
    ],
    ids=["cut", "doubled", "encoding"],
)
def test_a_damaged_recipe_is_told_in_a_line_where_it_is_the_runs_own(content, told):
    (begin("--output", "mine") / "recipe.json").write_bytes(content)
    for words in (["--resume", "mine"], [*TINY, "--output", "mine", "--resume", "auto"]):
        with pytest.raises(UserError, match=rf"^mine/recipe\.json {told}"):
            parse(*words)


def test_files_that_users_write_may_begin_with_a_byte_order_mark():
    for name, text in (("mine.json", '{"lr": 0.5}'), ("hosts", "one:22\ntwo\n")):
        Path(name).write_text(text, encoding="utf-8-sig")
    assert parse("--recipe", "mine.json")[0].lr == 0.5
    assert hosts.read_hosts("hosts") == [("one", "22"), ("two", "")]


CHOICES = [field.name for field in dataclasses.fields(Recipe) if field.metadata["choices"]]


@pytest.mark.parametrize("field", CHOICES)
@pytest.mark.parametrize("value", ["nonsense", ["nonsense"]])
def test_the_class_itself_refuses_what_is_no_choice(field, value):
    with pytest.raises(UserError, match=f"{flag(field)} is one of .*nonsense"):
        Recipe(**{field: value})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model": "foo"}, "'foo'"),
        ({"shortcut": "zz"}, "zz"),
        ({"mom": 2.0}, "--mom must be from 0 to below 1: 2.0"),
        ({"seed": 1.5}, "seed can't be 1.5"),
        ({"sync_bn": 3}, "sync_bn can't be 3"),
        ({"in_channels": 2}, "--in-channels must be 1 or 3, not 2"),
        ({"momentum_correction": "yes"}, "momentum_correction can't be 'yes'"),
        ({"batch_size": "12"}, "batch_size can't be '12'"),
        ({"lr_steps": (1.5,)}, r"lr_steps can't be \(1.5,\)"),
    ],
    ids=str,
)
def test_the_class_itself_refuses_what_is_of_no_use(values, told):
    with pytest.raises(UserError, match=told):
        Recipe(**values)


def test_a_choice_may_be_none_only_where_that_is_the_default():
    assert Recipe(order=None).order is None
    with pytest.raises(UserError, match="--optimizer is one of"):
        Recipe(optimizer=None)
