"""The test error of a run or an export."""

from __future__ import annotations

import argparse
import os

from gluon_resnetv2 import cli
from gluon_resnetv2.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    add = parser.add_argument
    add("source", help="folder of a run or an export")
    add("--checkpoint", default="last", help="of a run: last, best, or a step")
    add("--dataset", help="default: the run's")
    add("--data-dir", help="folder of the data set; default: the run's")
    add("--gpus", type=cli.numbers, help="as in 0,1,2,3")
    add("--cpus", type=int, default=1, help="devices to simulate without --gpus")
    add("--batch-size", type=int, default=64, help="images at once")
    add("--size", type=int, help="ImageNet: of a crop; default: the run's")
    add("--crops", type=int, default=1, choices=(1, 10), help="ImageNet: crops of each image")
    add(
        "--scales",
        type=cli.numbers,
        default=(),
        help="ImageNet: whole images at these shorter sides",
    )
    add(
        "--recalibrate",
        type=int,
        default=0,
        metavar="N",
        help="first measure batch normalisation's statistics over N training batches",
    )
    add("--threads", type=int, help="that read images; default: one per CPU")
    add(
        "--leave-out", action="store_true", help="ImageNet: go without images that can't be decoded"
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
    if options.report:
        print(f"report {cli.printable(os.path.join(options.report, 'report.html'))}")
