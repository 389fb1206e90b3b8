"""What image files show."""

from __future__ import annotations

import argparse

from gluon_resnetv2 import cli
from gluon_resnetv2.engines.native import add_engine
from gluon_resnetv2.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `predict`."""
    parser.add_argument("export", help="folder of an export or run")
    parser.add_argument("images", nargs="+", metavar="image", help="PNG, JPEG or other image file")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the likeliest classes of each image.

    Returns:
        0, or `cli.MISTAKE` where a file is no image; the others are answered all the same.

    Raises:
        UserError: as `artifact.load` and `Predictor`.
    """
    from gluon_resnetv2.engines.predictor import Predictor
    from gluon_resnetv2.formats.artifact import load

    predictor = Predictor(load(options.export), engine=options.engine)
    predictor.preparation()  # without which each image would complain
    status = 0
    for path in options.images:
        try:
            (classes,) = predictor.top(predictor.read(path)[None])
        except UserError as error:  # the others are not to blame
            cli.complain(error)
            status = cli.MISTAKE
            continue
        print(path)
        for name, probability in classes:
            print(f"  {100 * probability:6.2f} %  {cli.printable(name)}")
    return status
