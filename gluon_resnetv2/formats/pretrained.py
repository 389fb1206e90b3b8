"""Exports that come with the package, by name. Each manifest says how its network was trained."""

from __future__ import annotations

import sys
from pathlib import Path

from gluon_resnetv2.cli import printable

FOLDER = Path(__file__).resolve().parents[1] / "pretrained"
NAMES = tuple(sorted(folder.name for folder in FOLDER.iterdir())) if FOLDER.is_dir() else ()


def find(source: str | Path) -> Path:
    """The folder of the weights called `source`, or else `source` itself.

    A path of that name wins; where there are both, or the package's are taken, a line on standard
    error says so.
    """
    if str(source) not in NAMES:
        return Path(source)
    exists = Path(source).exists()
    what = "what is there is taken, not the" if exists else "taken are the"
    print(printable(f"{source}: {what} weights that come with the package"), file=sys.stderr)
    return Path(source) if exists else FOLDER / str(source)
