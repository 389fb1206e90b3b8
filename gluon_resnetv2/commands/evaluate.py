"""The test error of a run or an export."""

from __future__ import annotations

import argparse
import os

from gluon_resnetv2 import cli
from gluon_resnetv2.data import NAMES
from gluon_resnetv2.engines.native import add_engine
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.pretrained import FOLDERS_HELP


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    add = parser.add_argument
    add("source", help=f"folder of a run or an export, or {FOLDERS_HELP}")
    add(
        "--checkpoint",
        default="last",
        help="checkpoint of a run: last, best, or the number of its step",
    )
    add("--dataset", help=f"images to test on: {', '.join(NAMES)}; default: the run's")
    add("--data-dir", help="folder of the data set; default: the run's")
    add("--gpus", type=cli.numbers, help="GPUs to compute on, as in 0,1,2,3; default: the CPU")
    add("--cpus", type=int, default=1, help="devices to simulate on the CPU, without --gpus")
    add_engine(parser)
    add("--batch-size", type=int, default=64, help="images computed at once")
    add(
        "--size",
        type=int,
        help="images that are cut out (imagenet, folder): height and width of a crop in pixels; "
        "default: the run's",
    )
    add(
        "--crops",
        type=int,
        default=1,
        choices=(1, 10),
        help="images that are cut out (imagenet, folder): crops of each to average",
    )
    add(
        "--scales",
        type=cli.numbers,
        default=(),
        help="images that are cut out (imagenet, folder): instead of crops, average whole images "
        "with these shorter sides in pixels, as in 224,256",
    )
    add(
        "--recalibrate",
        type=int,
        default=0,
        metavar="N",
        help="first measure a run's batch normalisation statistics anew, over N training batches; "
        "0: keep them",
    )
    add(
        "--threads",
        type=int,
        help="folder, imagenet: threads that read images; default: one per CPU",
    )
    add(
        "--leave-out",
        action="store_true",
        help="folder, imagenet: go without images that can't be decoded",
    )
    add(
        "--report",
        metavar="DIR",
        help="new folder for report.html, with each class's accuracy, the confusion matrix and the "
        "most confident mistakes, and for its tables as CSV",
    )


def run(options: argparse.Namespace) -> None:
    """Prints errors and loss.

    Raises:
        UserError: as `evaluate_source`.
    """
    from gluon_resnetv2.training.devices import contexts
    from gluon_resnetv2.training.evaluation import evaluate_source

    if options.cpus < 1:
        raise UserError(f"--cpus must be at least 1, not {options.cpus}")
    given = dict(vars(options))
    for name in ("action", "gpus", "cpus"):
        del given[name]
    found = evaluate_source(devices=contexts(options.gpus, options.cpus), **given)
    for name, text in (("error", "error"), ("error5", "top-5 error")):
        if name in found:
            print(f"{text} {found[name]:.2f} %")
    print(f"loss {found['loss']:.4f}")
    print(f"engine {found['engine']}")
    if options.report:
        print(f"report {cli.printable(os.path.join(options.report, 'report.html'))}")
