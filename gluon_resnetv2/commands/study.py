"""The paper's tables and figures, run again."""

from __future__ import annotations

import argparse

from gluon_resnetv2 import cli
from gluon_resnetv2.study import DATASETS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `study`."""
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help="a study, as table1 or propagation; --list shows all; or: all",
    )
    add("--list", action="store_true", help="show the rows, with the names that --rows takes")
    add("--rows", nargs="+", metavar="ROW", help="only these, as gate:-6 or resnet110/gate:-6")
    add(
        "--dataset",
        choices=DATASETS,
        default=DATASETS[0],
        help="images to train on; paper: each row on its own",
    )
    add("--data-dir", help="folder of the data set; default: the user's cache")
    add("--seeds", type=int, default=3, help="runs of each row")
    add(
        "--depth",
        type=int,
        help="cut deeper networks to so many layers; digits: 164, for table1 and figure3 56",
    )
    add("--budget", type=int, metavar="EPOCHS", help="of each run; default: its recipe's")
    add("--gpus", type=cli.numbers, help="as in 0,1,2,3; default: the CPU")
    add("--gpus-per-run", type=int, default=1, metavar="N", help="others train other runs")
    add("--jobs", type=int, help="runs at a time on the CPU; default: one for each core")
    add("--output", help="the study's folder; default: studies/DATASET")
    add("--dry-run", action="store_true", help="print the runs and what they cost here")


def run(options: argparse.Namespace) -> int:
    """Trains what is missing, and writes the report.

    Raises:
        UserError: as `study.main.main`.
    """
    from gluon_resnetv2.study import main

    return main.main(options)
