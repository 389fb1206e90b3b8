"""`python -m gluon_resnetv2 VERB`, or `resnetv2 VERB`."""

from __future__ import annotations

import sys

from gluon_resnetv2 import cli, commands


def main() -> int:
    options = commands.parser(sys.argv[1:]).parse_args()
    return options.action(options) or 0


def command() -> None:
    """The program `resnetv2`."""
    cli.run(main)


if __name__ == "__main__":
    command()
