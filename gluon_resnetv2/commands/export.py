"""A run's network as a pair that MXNet serves."""

from __future__ import annotations

import argparse
import dataclasses

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.precisions import PRECISIONS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    add = parser.add_argument
    add("run", help="a run's folder")
    add("--output", help="the export's folder; default: RUN/export")
    add("--checkpoint", help="last, best, or a step; default: the run's --export")
    add("--pixels", action="store_true", help="the graph takes 0 to 255 itself")
    add("--softmax", action="store_true", help="the graph gives probabilities")
    add(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help="that it computes in; 16 and 8 bits are held against float32 on training images",
    )
    add("--calibration-images", type=int, default=256, help="how many of them")
    add("--data-dir", help="folder that has them; default: the run's")
    add("--fused", action="store_true", help="write the graph as MXNet's oneDNN backend fuses it")
    add("--to", choices=("onnx",), help="write NAME.onnx too")
    add(
        "--for",
        dest="server",
        choices=("mlserver",),
        help="write what that server needs beside the pair",
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

    def calibration():
        recipe = run_recipe(options.run)
        if options.data_dir:
            recipe = dataclasses.replace(recipe, data_dir=options.data_dir)
        return training_images(recipe, options.calibration_images)

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
