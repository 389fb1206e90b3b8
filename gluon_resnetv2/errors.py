"""The one exception that means: not a bug, something to put right; and what its messages say."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path


class UserError(ValueError):
    """A mistake in what was asked, or something this machine lacks, told in one line.

    The message names the thing and the way out. The command line prints it without a traceback
    and exits with status 2.
    """


def last_line(error: Exception) -> str:
    """What an error of MXNet's says, without the trace of where in MXNet that was."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\[[\d:]+\] \S+ ", "", lines[-1])[:200]


def python(*words: str) -> str:
    """A command line for the Python that runs this one, since another may lack the packages."""
    return shlex.join([sys.executable, *words])


def install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml, from the checkout if this is one."""
    checkout = Path(__file__).resolve().parents[1]
    package = checkout if (checkout / "setup.py").exists() else "gluon_resnetv2"
    return python("-m", "pip", "install", f"{package}[{extra}]")


def uninstall(*wheels: str) -> str:
    """The command that removes wheels."""
    return python("-m", "pip", "uninstall", *wheels)
