"""Networks on a current oneDNN: everything up to the features as one operator of our own.

Needs the extra `native` and a C++ compiler. What is exported is the portable network all the same.
Nothing here imports a framework; its modules do.
"""

from __future__ import annotations

import argparse

# What --engine takes: MXNet's operators, or the native one as well.
ENGINES = ("mxnet", "native")
ENGINE_HELP = (
    "what computes: MXNet's operators, or native: ours for CPUs (needs the extra `native`)"
)
DTYPES = ("float32", "bfloat16")  # that the native engine computes in


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The option --engine of what computes with a network."""
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help=ENGINE_HELP)
