"""Where the time of a training step or an inference goes."""

from __future__ import annotations

import argparse

from gluon_resnetv2.engines.native import add_engine
from gluon_resnetv2.spec import IMAGE_SIZES_HELP, ORDER, SHORTCUT_HELP, UNIT


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `profile`."""
    add = parser.add_argument
    add("model", help="as preact20")
    add("--inference", action="store_true", help="instead of a training step")
    add("--batch-size", type=int, default=64, help="images of a step")
    add("--image-size", type=int, help=f"in pixels; default: {IMAGE_SIZES_HELP}, by the model")
    add("--in-channels", type=int, choices=(1, 3), default=3, help="of an image")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the units")
    add_engine(parser)
    add("--steps", type=int, default=5, help="that are counted, after two that warm up")
    add("--order", choices=tuple(ORDER), help="default: the model's")
    add("--shortcut", help=f"{SHORTCUT_HELP}; default: the model's")
    add("--unit", choices=tuple(UNIT), help="default: by depth")
    add("--widening", choices=("A", "B", "C"), help="A: zero padding, B: projection; default: A")


def run(options: argparse.Namespace) -> int:
    """Profiles, and prints the report.

    Raises:
        UserError: as `profiling.main.main`.
    """
    from gluon_resnetv2.profiling import main

    return main.main(options)
