"""An exported pair against the training graph."""

from __future__ import annotations

import argparse

from gluon_resnetv2 import cli
from gluon_resnetv2.engines.native import add_engine
from gluon_resnetv2.formats.pretrained import FOLDERS_HELP


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `verify`."""
    parser.add_argument(
        "export",
        help=f"folder of an export or run, {FOLDERS_HELP}, or a pair's -symbol.json or .params",
    )
    cli.add_shape(parser)
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the differences; 1 where one is too large.

    Raises:
        UserError: as `artifact.load` and `verify.report`.
    """
    from gluon_resnetv2.exports.verify import report
    from gluon_resnetv2.formats.artifact import load
    from gluon_resnetv2.training.stop import termination_as_interrupt

    artifact = load(options.export)
    with termination_as_interrupt():  # or what runs beside would go on
        return 0 if report(artifact, options.shape, options.engine) else 1
