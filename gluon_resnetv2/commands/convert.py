"""Weights of other implementations to an export of ours, or back."""

from __future__ import annotations

import argparse
from pathlib import Path

from gluon_resnetv2 import cli
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.pretrained import FOLDERS_HELP
from gluon_resnetv2.interop import LAYOUTS, PACKAGES
from gluon_resnetv2.spec import IMAGE_SIZE_MAX, IMAGE_SIZES_HELP


def _colour(text: str) -> list[float]:
    values = [float(value) for value in text.split(",")]
    if not all(0 <= value <= 255 for value in values):
        raise ValueError
    return values


_colour.__name__ = "R,G,B of 0 to 255"  # argparse names it in its message


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `convert`."""
    add = parser.add_argument
    add(
        "source",
        metavar="SRC",
        help="weights to read: a .params, .pth, .safetensors, .h5 or .keras file, an export, "
        f"a run, {FOLDERS_HELP}, or {', '.join(f'{package}:NAME' for package in PACKAGES)}, which "
        "that package loads",
    )
    add(
        "--from",
        dest="source_layout",
        choices=LAYOUTS,
        metavar="LAYOUT",
        help=f"layout of SRC's weights: {', '.join(LAYOUTS)}; default: what fits their names",
    )
    add(
        "--to",
        dest="layout",
        choices=LAYOUTS,
        metavar="LAYOUT",
        help="write a file of weights in this layout, one of those of --from, instead of an export",
    )
    add(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="folder of the export to write; with --to, file of the weights",
    )
    add(
        "--image-size",
        type=int,
        help="height and width of the images that the export takes, in pixels; default: "
        f"{IMAGE_SIZES_HELP}, by the network's first layers",
    )
    add(
        "--classes",
        metavar="FILE",
        help="text file of the export's class names, one a line; weights that come without a "
        "classifier are given one for these classes",
    )
    add(
        "--mean",
        type=_colour,
        metavar="R,G,B",
        help="mean of each channel, 0 to 255, that is subtracted from the export's images; "
        "default: that of SRC",
    )
    add(
        "--weights",
        metavar="KEY",
        help="which weights to take of a PyTorch file that holds several sets, as with an EMA",
    )


def run(options: argparse.Namespace) -> None:
    """Converts, and prints what was read, what was written, and what its own package has of it.

    Raises:
        UserError: as `source.read`, `to_layout` and `to_export`.
    """
    from gluon_resnetv2.interop import convert
    from gluon_resnetv2.interop.source import read

    if options.image_size is not None and not 1 <= options.image_size <= IMAGE_SIZE_MAX:
        raise UserError(f"--image-size must be 1 to {IMAGE_SIZE_MAX}, not {options.image_size}")
    if options.layout and (options.image_size or options.classes or options.mean):
        raise UserError("--image-size, --classes and --mean are of an export; not with --to")
    classes = None if options.classes is None else _class_names(options.classes)
    source = read(
        options.source,
        options.source_layout,
        report=print,
        key=options.weights,
        classes=len(classes or ()),
    )
    print(cli.printable(str(source)), flush=True)
    if options.layout:
        convert.to_layout(source, options.output, options.layout)
        print(f"wrote {options.output}")
        return
    artifact = convert.to_export(
        source,
        options.output,
        image_size=options.image_size,
        classes=classes,
        mean=options.mean,
        report=print,
    )
    print(f"exported {artifact.name} to {artifact.folder}")
    about = artifact.own_manifest().details["source"]
    if "difference" in about:
        print(f"{about['package']}'s own network has its logits, to {about['difference']:.1e}")
    elif source.layout and source.layout.package:
        print(f"{source.layout.package} can't be imported here, so its logits were not compared")


def _class_names(path: str) -> list[str]:
    try:
        names = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text in UTF-8"
        raise UserError(f"{path}: {reason}") from None
    for line, name in enumerate(names or [""], start=1):
        if not name.strip():
            raise UserError(f"{path} has no name in line {line}; it needs one for each class")
    return names
