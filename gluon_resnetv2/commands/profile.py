"""Where the time of a training step or an inference goes."""

from __future__ import annotations

import argparse
import dataclasses

from gluon_resnetv2.engines.native import DTYPES, add_engine
from gluon_resnetv2.spec import IMAGE_SIZES_HELP, MODEL_HELP
from gluon_resnetv2.training.fields import flag
from gluon_resnetv2.training.recipe import Recipe

NETWORK = ("order", "shortcut", "unit", "widening")  # options of `train`, by their fields


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `profile`."""
    add = parser.add_argument
    add("model", help=f"network to profile, as preact20: {MODEL_HELP}")
    add(
        "--inference",
        action="store_true",
        help="profile an inference instead of a training step",
    )
    add("--batch-size", type=int, default=64, help="images in a batch")
    add(
        "--image-size",
        type=int,
        help=f"height and width of images in pixels; default: {IMAGE_SIZES_HELP}, by the model",
    )
    add(
        "--in-channels",
        type=int,
        choices=(1, 3),
        default=3,
        help="channels of an image, 1 (grey) or 3",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="precision of the residual units",
    )
    add_engine(parser)
    add("--steps", type=int, default=5, help="steps to measure, after two that warm up")
    fields = {field.name: field.metadata for field in dataclasses.fields(Recipe)}
    for name in NETWORK:
        add(flag(name), choices=fields[name]["choices"], help=fields[name]["help"])


def run(options: argparse.Namespace) -> int:
    """Profiles, and prints the report.

    Raises:
        UserError: as `profiling.main.main`.
    """
    from gluon_resnetv2.profiling import main

    return main.main(options)
