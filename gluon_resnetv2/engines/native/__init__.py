"""Networks on a current oneDNN: everything up to the features as one operator of our own.

Needs the extra `native` and a C++ compiler. What is exported is the portable network all the same.
Nothing here imports a framework; its modules do.
"""

from __future__ import annotations

import argparse

# What --engine takes: MXNet's operators, or the native one as well.
ENGINES = ("mxnet", "native")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The option --engine of what computes with a network."""
    help = "native: by our operator (extra `native`)"
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help=help)
