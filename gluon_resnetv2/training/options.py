"""From the words of a command line to a recipe, and to the run that goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path

from gluon_resnetv2 import data
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.training import network
from gluon_resnetv2.training.fields import flag
from gluon_resnetv2.training.recipe import MOMENTUM, Recipe, read_values
from gluon_resnetv2.training.recipes import DEFAULTS, RECIPES


def read_options(given: dict, defaults: dict | None = None) -> tuple[Recipe, bool]:
    """The recipe that options mean, and whether to go on with a run that is there.

    Args:
        given: the options that were given, by field, and "recipe" and "resume".
        defaults: fields that differ from `Recipe`'s where no recipe is named; by default those of
            the data set's own recipe, if there is one.

    Raises:
        UserError: there is no such recipe or run, or the run was started with other options.
    """
    given = dict(given)
    if not defaults and given.get("dataset") in DEFAULTS:
        defaults = RECIPES[DEFAULTS[given["dataset"]]].fields
    name, resume = given.pop("recipe"), given.pop("resume")
    if name and (Path(name) / "recipe.json").is_file():
        name = Path(name) / "recipe.json"
    if resume and resume != "auto":
        return _resumed(given, name, resume), True
    fields = read_recipe(name) if name else defaults or {}
    recipe = override({**fields, "output": None}, given)  # never the folder of another run
    if recipe.init_from and ("init_from" in given or "model" not in fields):
        recipe = _with_network(recipe, given, resume)
    folder = resume and (recipe.output or _last_of(recipe))
    if folder and (Path(folder) / "recipe.json").is_file():
        run_recipe(folder).check_goes_on(recipe, folder)
        return dataclasses.replace(recipe, output=str(folder)), True
    return recipe, bool(resume)


def _with_network(recipe, given, resume):
    """A recipe with the network of the weights that it begins with."""
    told = {name: given[name] for name in network.FIELDS if name in given}
    if resume and recipe.output and (Path(recipe.output) / "recipe.json").is_file():
        started = run_recipe(recipe.output)  # the weights need not be there any more
        fields = {name: getattr(started, name) for name in network.FIELDS}
        return dataclasses.replace(recipe, **{**fields, **told})
    from gluon_resnetv2.training.given import with_network  # which needs MXNet

    return with_network(recipe, told)


def _resumed(given, name, folder):
    if name:
        raise UserError("--resume RUN has the run's own recipe; leave out --recipe")
    started = run_recipe(folder)
    if given.setdefault("output", folder) != folder:
        raise UserError(f"--resume {folder} goes on there; leave out --output")
    recipe = override(vars(started), given)
    started.check_goes_on(recipe, folder)
    return recipe


def run_recipe(folder: str | Path) -> Recipe:
    """The recipe of the run in `folder`.

    Raises:
        UserError: the folder holds none.
    """
    path = Path(folder) / "recipe.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; is {folder} a run's folder?")
    return Recipe.from_dict(read_recipe(path))


def read_recipe(name: str | Path) -> dict:
    """The fields of the recipe called `name`, or of the one in that file.

    Raises:
        UserError: there is none, or the file is no recipe.
    """
    if name in RECIPES:
        return RECIPES[name].fields
    if not Path(name).is_file():
        raise UserError(f"no recipe '{name}'; choose {', '.join(RECIPES)}, or name a recipe.json")
    values = read_values(name)
    try:
        fields = Recipe.fields_of(values)
        Recipe(**fields)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return fields


# Fields of which one is meant where the other was: to give one takes the other back.
EITHER = (
    ("num_epochs", "num_steps"),
    ("lr_steps", "lr_step_epochs"),
    ("warmup_steps", "warmup_epochs"),
    ("gpus", "cpus"),
)


# Fields that follow from others unless they are given.
DERIVED = ("lr_steps", "lr_step_epochs", "warmup_lr", "augmentation")

# Options that mean something only where another field has one of these values.
NEEDS = {
    "mom": ("optimizer", MOMENTUM),
    "lr_steps": ("lr_schedule", ("steps",)),
    "lr_step_epochs": ("lr_schedule", ("steps",)),
    "lr_factor": ("lr_schedule", ("steps",)),
    "lr_end": ("lr_schedule", ("cosine",)),
}


def override(fields: dict, given: dict) -> Recipe:
    """The recipe of `fields`, but for the options that were given.

    Raises:
        UserError: an option would have no effect.
    """
    fields = dict(fields)
    for name in set(DERIVED) & set(fields):
        rest = {key: value for key, value in fields.items() if key != name}
        if getattr(Recipe(**rest), name) == fields[name]:  # it follows from the new ones, too
            fields = rest
    for pair in EITHER:
        if set(pair) & set(given):
            for name in pair:
                fields.pop(name, None)
    recipe = Recipe(**{**fields, **given})
    for name in given:
        other, values = NEEDS.get(name, (None, ()))
        if other and getattr(recipe, other) not in values:
            raise UserError(
                f"{flag(name)} has no effect with {flag(other)} {getattr(recipe, other)}; it is "
                f"for {', '.join(values)}"
            )
        takers = [one for one in data.NAMES if name in data.options(one)]
        if takers and recipe.dataset not in takers:
            raise UserError(
                f"{flag(name)} has no effect with --dataset {recipe.dataset}; it is for "
                f"{', '.join(takers)}"
            )
    return recipe


def _last_of(recipe: Recipe) -> Path | None:
    """The newest folder that a run of this recipe made for itself."""
    first = Path(recipe.default_folder)
    numbered = {1: first}
    for path in first.parent.glob(f"{first.name}-*"):
        if match := re.fullmatch(re.escape(first.name) + r"-(\d+)", path.name):
            numbered[int(match[1])] = path
    for _, path in sorted(numbered.items(), reverse=True):
        with contextlib.suppress(UserError):  # some other version's, or none
            if not run_recipe(path).differences(recipe, machine=False):
                return path
    return None
