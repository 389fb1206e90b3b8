"""The one exception that means: not a bug, something to put right; and what MXNet's say."""

from __future__ import annotations

import re


class UserError(ValueError):
    """A mistake in what was asked, or something this machine lacks, told in one line.

    The message names the thing and the way out. The command line prints it without a traceback
    and exits with status 2.
    """


def last_line(error: Exception) -> str:
    """What an error of MXNet's says, without the trace of where in MXNet that was."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\[[\d:]+\] \S+ ", "", lines[-1])[:200]
