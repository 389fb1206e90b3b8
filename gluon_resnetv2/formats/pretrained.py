"""Exports that come with the package, by name. Each manifest says how its network was trained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from gluon_resnetv2.cli import printable

FOLDER = Path(__file__).resolve().parents[1] / "pretrained"
FOLDERS = {folder.name: folder for folder in sorted(FOLDER.iterdir())}
FOLDERS_HELP = f"{', '.join(FOLDERS)} (come with this package)"


def find(source: str | Path, report: Callable[[str], object] | None = None) -> Path:
    """The folder of the weights called `source`, one of `FOLDERS`, or else `source` itself.

    A path of that name wins.

    Args:
        report: is told which was taken, where the name is one of `FOLDERS`; stderr by default.
    """
    path = Path(source)
    if str(source) not in FOLDERS:
        return path
    if there := path.exists():
        told = f"{source} is the one here, not the weights that come with this package"
    else:
        told = f"{source}: the weights that come with this package"
    if report:
        report(told)
    else:
        print(printable(told), file=sys.stderr)
    return path if there else FOLDERS[str(source)]
