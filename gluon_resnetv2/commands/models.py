"""The paper's networks as a table."""

from __future__ import annotations

import argparse

from gluon_resnetv2.paper import table


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_options: argparse.Namespace) -> None:
    """Prints the table."""
    print(table())
