"""The one exception that means: not a bug, something to put right."""


class UserError(ValueError):
    """A mistake in what was asked, or something this machine lacks, told in one line.

    The message names the thing and the way out. The command line prints it without a traceback
    and exits with status 2.
    """
