"""From rows of the paper to the runs that train them, at the paper's scale or at a laptop's."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gluon_resnetv2.data import options
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.paper import FAIL, Result
from gluon_resnetv2.spec import FAMILIES, UNIT, named
from gluon_resnetv2.training.fields import flag
from gluon_resnetv2.training.options import DERIVED
from gluon_resnetv2.training.recipe import GONE, Recipe
from gluon_resnetv2.training.recipes import RECIPES
from gluon_resnetv2.training.run import read_metrics

# What networks of the paper are trained by on the embedded digits; docs/digits/README.md says why.
LAPTOP: dict[str, Any] = {
    "dataset": "digits",
    "image_size": 8,  # as they were scanned; maps of 8, 4 and 2 pixels
    "batch_size": 64,
    "num_epochs": 30,
    "warmup_steps": 69,
}
LAPTOP_DEPTH = 164  # deeper networks are cut to it, where a study has no bound of its own

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}  # as the paper's tables call them


@dataclass(frozen=True)
class Settings:
    """How rows are trained.

    Attributes:
        dataset: one of `study.DATASETS`; ImageNet's rows are trained on ImageNet all the same.
        seeds: how many runs of each row, with the seeds 0, 1, ...
        depth: deeper networks are cut to so many layers.
        laptop_depth: the same on digits, where `depth` says nothing.
        budget: epochs of each run, instead of its recipe's.
        output: the study's folder.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    seeds: int = 3
    depth: int | None = None
    laptop_depth: int = LAPTOP_DEPTH
    budget: int | None = None
    output: str = "studies/digits"


@dataclass(frozen=True)
class Outcome:
    """What a run that has come to its end has to tell.

    Attributes:
        error: its test error in percent, `FAIL` where it diverged.
        epochs: the records of its epochs.
        error5: ImageNet: its top-5 test error.
    """

    error: float
    epochs: list[dict]
    error5: float | None = None

    @property
    def seconds(self) -> float:
        return sum(record["seconds"] for record in self.epochs)


@dataclass(frozen=True)
class Planned:
    """One run of a study.

    Attributes:
        test_size: ImageNet: the crop that it is tested on after its training, in pixels.
        propagation: whether signals are followed through its network, along its training.
    """

    recipe: Recipe
    test_size: int | None = None
    propagation: bool = False

    @property
    def folder(self) -> Path:
        assert self.recipe.output, "each run of a study has a folder"
        return Path(self.recipe.output)

    @property
    def title(self) -> str:
        """What sets the run apart from others of its study, in words."""
        return f"{' '.join(_kind(self.recipe))}, seed {self.recipe.seed}"

    def records(self) -> list[dict]:
        """What its metrics.jsonl holds so far."""
        there = (self.folder / "metrics.jsonl").is_file()
        return read_metrics(self.folder) if there else []

    def outcome(self) -> Outcome | None:
        """What came out; None where the run is not there or not at its end."""
        records = self.records()
        epochs = [record for record in records if "epoch" in record]
        diverged = any("diverged" in record for record in records)
        if not diverged and not (epochs and self._ended(epochs[-1])):
            return None
        if self.propagation and not any("kind" in r and r["step"] == 0 for r in records):
            return None
        if diverged:
            return Outcome(FAIL, epochs)
        if self.test_size is None:
            return Outcome(epochs[-1]["test_error"], epochs)
        tested = [record for record in records if record.get("test_size") == self.test_size]
        return (
            Outcome(tested[-1]["test_error"], epochs, tested[-1]["test_error5"]) if tested else None
        )

    def _ended(self, last):
        if self.recipe.num_steps is None:
            return last["epoch"] >= self.recipe.num_epochs
        return last["step"] >= self.recipe.num_steps

    def command(self) -> str:
        """What trains the same by hand."""
        words = ["python", "-m", "gluon_resnetv2", "train"]
        for name, value in _given(self.recipe).items():
            words.append(flag(name))
            if isinstance(value, tuple):
                words.append(",".join(f"{number:g}" for number in value))
            elif value is not True:
                words.append(str(value))
        return shlex.join(words)


def plan(results: Iterable[Result], settings: Settings) -> list[tuple[Result, list[Planned]]]:
    """The runs of each row. Rows that come to the same network and recipe share them.

    Raises:
        UserError: the rows can't be trained on that data set, or not so shallow.
    """
    results = list(results)
    data = DATA.get(settings.dataset)
    chosen = [result for result in results if result.data == data] or results
    return [
        (result, [_planned(result, seed, settings) for seed in range(settings.seeds)])
        for result in chosen
    ]


def _planned(result, seed, settings):
    if result.data == "ImageNet" and settings.dataset in DATA:
        raise UserError(f"{result.source} is of ImageNet; leave out --dataset")
    if settings.dataset == "digits" and result.data != "ImageNet":  # which they can't stand for
        fields, depth = dict(LAPTOP), settings.depth or settings.laptop_depth
    else:
        fields, depth = dict(RECIPES[result.recipe].fields), settings.depth
        if settings.dataset in DATA:
            fields["dataset"] = settings.dataset
    fields.update(_network(result, depth), seed=seed)
    if "data_dir" in options(fields.get("dataset", Recipe.dataset)):
        fields["data_dir"] = settings.data_dir
    if settings.budget:
        fields = _shortened(fields, settings.budget)
    recipe = Recipe(**fields)
    folder = Path(settings.output) / "runs" / _name(recipe)
    return Planned(dataclasses.replace(recipe, output=str(folder)), result.test_size)


def _network(result, depth):
    """The row's network, or the deepest of its kind that has no more than `depth` layers.

    Rows that have the same network have it in the same words.
    """
    spec, family = result.spec, result.model.rstrip("0123456789")
    if depth is None or spec.depth <= depth:
        words = {"model": result.model, **result.switches}
    elif result.data == "ImageNet":
        raise UserError(f"{result.model} can't be cut to {depth} layers; leave out --depth")
    else:
        stage = 3 * len(UNIT[spec.unit])  # three stages have one unit more
        units = (depth - 2) // stage
        if units < 1:
            raise UserError(
                f"--depth {depth} leaves nothing of {result.model}; {stage + 2} is the least"
            )
        model = f"{family}{stage * units + 2}"
        words = {"model": model, "unit": spec.unit, **result.switches}
    spec = _nameless(words)
    for name in set(words) - {"model"}:
        fewer = {key: value for key, value in words.items() if key != name}
        for other in FAMILIES:
            fewest = {**fewer, "model": words["model"].replace(family, other)}
            with contextlib.suppress(UserError):  # a depth may need its unit named
                if _nameless(fewest) == spec:
                    words = fewest
                    break
    return words


def _nameless(words):
    """The network that words mean, whatever it is called."""
    switches = {key: value for key, value in words.items() if key != "model"}
    return dataclasses.replace(named(words["model"], **switches), name="")


def _shortened(fields, epochs):
    """The recipe's fields for so many epochs, its learning rate falling at the same parts of it."""
    steps = fields.pop("lr_step_epochs", None)
    before = fields.pop("num_epochs", None)
    for name in ("num_steps", "lr_steps"):
        fields.pop(name, None)
    if steps is not None:
        fields["lr_step_epochs"] = tuple(step * epochs / before for step in steps)
    return {**fields, "num_epochs": epochs}


def _name(recipe):
    """A folder's name that tells a reader what is in it, and is unique to the recipe."""
    identity = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if not field.metadata["machine"]
        and not (field.metadata["later"] and getattr(recipe, field.name) == field.default)
    }
    identity["lr_power"] = GONE["lr_power"]  # which recipes of 0.1 had
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:6]
    text = "-".join(re.sub(r"[^\w.,-]+", "", word) for word in _kind(recipe))
    return f"{text}-seed{recipe.seed}-{digest}"


def _kind(recipe):
    return [one for one in (recipe.model, recipe.order, recipe.shortcut, recipe.unit) if one]


def _given(recipe):
    """The fields that make a recipe of the defaults."""
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    for name in DERIVED:
        rest = {key: value for key, value in fields.items() if key != name}
        if Recipe(**rest) == recipe:
            fields = rest
    plain = Recipe(dataset=recipe.dataset, num_epochs=recipe.num_epochs, num_steps=recipe.num_steps)
    always = ("num_epochs", "num_steps", "seed", "dataset")
    return {
        name: value
        for name, value in fields.items()
        if value is not None and (name in always or value != getattr(plain, name))
    }
