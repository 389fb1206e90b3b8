"""A network from its recipe to a verified export.

The scripts in train/ are `script` with the options that their data sets have.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from gluon_resnetv2 import cli
from gluon_resnetv2.data import NAMES
from gluon_resnetv2.distributed import watch
from gluon_resnetv2.errors import python
from gluon_resnetv2.training.fields import GROUPS, flag, kind_of
from gluon_resnetv2.training.options import read_options
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.recipes import RECIPES

# Fields, and choices of "dataset", that only one of the scripts in train/ has; `train` has all.
IMAGENET = ("test_size", "imagenet")
CIFAR = ("coarse", "unit", "stem", *(name for name in NAMES if name not in ("folder", "imagenet")))


def add_options(
    parser: argparse.ArgumentParser, without: Sequence[str] = (), defaults: dict | None = None
) -> None:
    """--recipe, --resume, and an option for every field of `Recipe`.

    Only options that are given appear among the parsed ones; what is not given is the recipe's.

    Args:
        without: fields and choices that this command has no use for.
        defaults: fields that differ from `Recipe`'s where no recipe is named, for the help.
    """
    parser.usage = "%(prog)s [options]"  # the groups show them better
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    groups["run"].add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help=f"recipe to train by, which other options override: {', '.join(RECIPES)}, or a "
        "recipe.json",
    )
    groups["run"].add_argument(
        "--resume",
        metavar="auto|RUN",
        help="go on with the run in the folder RUN; auto: with the one in --output, or the last "
        "of the same recipe, if there is one",
    )
    for field in dataclasses.fields(Recipe):
        if field.name not in without:
            default = (defaults or {}).get(field.name, field.default)
            _add(groups[field.metadata["group"]], field, default, without)


def _add(group, field, default, without):
    details = {key: field.metadata[key] for key in ("help", "type", "choices")}
    if isinstance(default, tuple):
        default = ",".join(f"{number:g}" for number in default)
    if default is not None and default is not False:
        details["help"] = f"{details['help'].partition('; default:')[0]} (default: {default})"
    if field.metadata["flag"]:
        action = argparse.BooleanOptionalAction
        group.add_argument(
            flag(field.name), action=action, default=argparse.SUPPRESS, help=details["help"]
        )
        return
    if details["choices"]:
        details["choices"] = [one for one in details["choices"] if one not in without]
    kind, letter = {"int": (int, "N"), "float": (float, "X")}.get(kind_of(field), (str, None))
    details["type"] = details["type"] or kind
    details["metavar"] = None if details["choices"] else letter
    group.add_argument(flag(field.name), default=argparse.SUPPRESS, **details)


def run(options: argparse.Namespace) -> int:
    """Trains, exports and verifies.

    Returns:
        0; 1 where the verification fails; `cli.STOPPED` where a signal ended it before its end.

    Raises:
        UserError, OSError: as `read_options`, `train_network` and `export_run`.
    """
    given = {name: value for name, value in vars(options).items() if name != "action"}
    return _train(*read_options(given), given["recipe"], ("-m", "gluon_resnetv2", "train"))


def script(description: str, without: Sequence[str] = (), defaults: dict | None = None) -> None:
    """`run` as a program of its own, which exits.

    Args:
        description: of its --help.
        without, defaults: as `add_options`; defaults hold where no recipe is named.
    """

    def main():
        parser = cli.Parser(description=description)
        add_options(parser, without, defaults)
        given = vars(parser.parse_args())
        return _train(*read_options(given, defaults), given["recipe"], (sys.argv[0],))

    cli.run(main)


def _train(recipe, resume, name, again):
    from gluon_resnetv2.exports.export import export_run
    from gluon_resnetv2.exports.verify import report
    from gluon_resnetv2.training.main import train_network
    from gluon_resnetv2.training.stop import termination_as_interrupt

    folder, last, workers = train_network(recipe, resume, name)
    if last is None:
        return _stopped(folder, workers, again)
    if workers.rank:
        return 0
    try:
        with termination_as_interrupt():
            artifact = export_run(folder, checkpoint=recipe.export)
            verified = report(artifact)
    except KeyboardInterrupt:
        return _stopped(folder, workers, again)
    error = artifact.own_manifest().details["metrics"]["test_error"]
    print(f"test accuracy {100 - error:.2f} %; learning curves: {folder}/curves.png")
    print(f"try: {python('-m', 'gluon_resnetv2', 'predict', str(folder), 'IMAGE')}")
    return 0 if verified else 1


def _stopped(folder, workers, again):
    watch.tell(stopped=True)
    if workers.rank == 0:
        command = python(*again, "--resume", str(folder))
        alone = workers.count == 1
        print(f"stopped; go on with: {command if alone else 'the same command, --resume auto'}")
    return cli.STOPPED
