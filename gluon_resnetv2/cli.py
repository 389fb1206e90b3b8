"""What every command has in common: strict options, and mistakes told in one line."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable

from gluon_resnetv2.errors import UserError


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option's default where there is one to show."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviation and answers a mistake with one line."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", Help)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown option {unknown[0]}{self._suggestion(unknown[0])}")
        return parsed

    def _suggestion(self, option: str) -> str:
        close = difflib.get_close_matches(option.split("=")[0], self._option_string_actions, n=1)
        return f"; did you mean {close[0]}?" if close else ""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def run(main: Callable[[], int | None]) -> None:
    """Runs `main` and exits: 0 or what it returns; 2 and one line for a mistake; 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except UserError as error:
        message = str(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
