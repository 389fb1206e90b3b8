"""Networks on a current oneDNN: everything up to the features as one operator of our own.

Needs oneDNN, which the extras `cpu` and `native` bring, and a C++ compiler. What is exported is the
portable network all the same. Nothing here imports a framework; its modules do.
"""

from __future__ import annotations

import argparse

ENGINES = ("auto", "mxnet", "native")  # that --engine takes
ENGINE_HELP = (
    "what computes: MXNet's operators (mxnet), ours for CPUs (native), or the faster one that is "
    "right here (auto)"
)
DTYPES = ("float32", "bfloat16")  # that the native engine computes in


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The option --engine of what computes with a network."""
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help=ENGINE_HELP)
