"""The recipes that have a name."""

from __future__ import annotations

import argparse

from gluon_resnetv2.training.recipes import RECIPES


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(_options: argparse.Namespace) -> None:
    """Prints what is known of each."""
    print("\n".join(recipe.about(name) for name, recipe in RECIPES.items()))
