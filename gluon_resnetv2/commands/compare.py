"""Learning curves of several runs in one picture."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `compare`."""
    parser.add_argument("runs", nargs="+", metavar="run", help="folder of a run")
    parser.add_argument("--output", default="compare.png", help="file of the picture")


def run(options: argparse.Namespace) -> None:
    """Draws them, and prints what differs.

    Raises:
        UserError: as `compare.compare`.
    """
    from gluon_resnetv2.training.compare import compare

    print(compare(options.runs, options.output))
