"""A folder of images as RecordIO."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `pack`."""
    add = parser.add_argument
    add("source", help="folder with a folder of images for each class")
    add("output", help="file to write, called train.rec or val.rec")
    add("--resize", type=int, help="scale larger images down to this shorter side, in pixels")
    add("--leave-out", action="store_true", help="leave out images that can't be decoded")


def run(options: argparse.Namespace) -> None:
    """Packs, and prints what there is now.

    Raises:
        UserError: as `imagenet.pack`.
    """
    from gluon_resnetv2.data.imagenet import pack

    packed = pack(
        options.source, options.output, resize=options.resize, leave_out=options.leave_out
    )
    left_out = f", {len(packed.left_out)} left out" if packed.left_out else ""
    print(f"{packed.path}: {packed.images} images of {len(packed.classes)} classes{left_out}")
