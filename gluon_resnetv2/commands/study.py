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
        help="study to run, as table1 or propagation; all: every one; --list shows their names",
    )
    add(
        "--list",
        action="store_true",
        help="show the studies and their rows, by the names that --rows takes",
    )
    add(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="run these rows of the studies alone, as gate:-6 or resnet110/gate:-6",
    )
    add(
        "--dataset",
        choices=DATASETS,
        default=DATASETS[0],
        help="images to train on; paper: those that the paper trained each row on",
    )
    add("--data-dir", help="folder of the data set; default: the user's cache")
    add("--seeds", type=int, default=3, help="runs of each row, with the seeds 0, 1, ...")
    add(
        "--depth",
        type=int,
        help="cut deeper networks to so many layers; default: on digits 164, for table1 and "
        "figure3 56; elsewhere none is cut",
    )
    add(
        "--budget",
        type=int,
        metavar="EPOCHS",
        help="epochs of each run; default: as its recipe has it",
    )
    add("--gpus", type=cli.numbers, help="GPUs to train on, as in 0,1,2,3; default: the CPU")
    add(
        "--gpus-per-run",
        type=int,
        default=1,
        metavar="N",
        help="GPUs that train one run together, while the other GPUs train other runs",
    )
    add("--jobs", type=int, help="runs to train at a time on the CPU; default: one per core")
    add("--output", help="folder of the study; default: studies/DATASET")
    add(
        "--dry-run",
        action="store_true",
        help="train nothing; print the runs and what they cost on this machine",
    )


def run(options: argparse.Namespace) -> int:
    """Trains what is missing, and writes the report.

    Raises:
        UserError: as `study.main.main`.
    """
    from gluon_resnetv2.study import main

    return main.main(options)
