"""`python -m gluon_resnetv2.distributed.horovodrun`: Horovod's launcher, with its own options.

`horovodrun` itself imports MXNet to see what it can do, and fails with NumPy from 1.24 on, which
`gluon_resnetv2` puts right. Horovod ends every process when one dies, so it needs no `launch`.
"""

from __future__ import annotations

from gluon_resnetv2 import cli
from gluon_resnetv2.errors import UserError


def main() -> None:
    try:
        from horovod.runner.launch import run_commandline
    except ImportError as error:
        raise UserError(f"Horovod is not installed ({error}): see the README") from error
    run_commandline()


if __name__ == "__main__":
    cli.run(main)
