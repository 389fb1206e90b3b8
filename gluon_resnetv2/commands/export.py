"""A run's network as a pair that MXNet serves."""

from __future__ import annotations

import argparse
import dataclasses

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports import SERVERS
from gluon_resnetv2.formats.precisions import PRECISIONS, PRECISIONS_HELP


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    add = parser.add_argument
    add("run", help="folder of a run")
    add("--output", help="folder of the export; default: RUN/export")
    add(
        "--checkpoint",
        help="checkpoint to export: last, best, or the number of its step; default: as the run's "
        "--export says",
    )
    add(
        "--pixels",
        action="store_true",
        help="have the graph take pixels, 0 to 255, and normalise them itself",
    )
    add(
        "--softmax",
        action="store_true",
        help="have the graph give probabilities instead of logits",
    )
    add(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help=f"what the graph computes in; {PRECISIONS_HELP}; in parentheses, of how many "
        "calibration images the class must be float32's".replace("%", "%%"),
    )
    add(
        "--calibration-images",
        type=int,
        default=256,
        help="number of training images that other precisions than float32 are calibrated and "
        "checked with",
    )
    add("--data-dir", help="folder of the data set with these training images; default: the run's")
    add("--fused", action="store_true", help="write the graph as MXNet's oneDNN backend fuses it")
    add("--to", choices=("onnx",), help="write NAME.onnx too, for other runtimes than MXNet")
    add(
        "--for",
        dest="server",
        choices=SERVERS,
        help="write the settings that this server needs beside the pair",
    )


def run(options: argparse.Namespace) -> None:
    """Exports, and prints where to.

    Raises:
        UserError: as `export_run`.
    """
    from gluon_resnetv2.exports.export import Form, export_run
    from gluon_resnetv2.training.datasets import training_images
    from gluon_resnetv2.training.options import run_recipe

    if options.calibration_images < 1:
        raise UserError(
            f"--calibration-images must be at least 1, not {options.calibration_images}"
        )

    def calibration(described):
        recipe = run_recipe(options.run)
        if options.data_dir:
            recipe = dataclasses.replace(recipe, data_dir=options.data_dir)
        return training_images(recipe, vars(described), options.calibration_images)

    form = Form(
        values="pixels" if options.pixels else "normalised",
        output="probabilities" if options.softmax else "logits",
        precision=options.precision,
        fused=options.fused,
    )
    artifact = export_run(
        options.run,
        options.output,
        options.checkpoint,
        form=form,
        calibration=calibration,
        onnx=options.to == "onnx",
        server=options.server,
    )
    print(f"exported {artifact.name} to {artifact.folder}")
