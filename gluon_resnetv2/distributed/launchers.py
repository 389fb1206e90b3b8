"""The commands by which processes are started elsewhere: by ssh, mpirun, srun, or by hand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

from gluon_resnetv2.distributed import watch
from gluon_resnetv2.errors import UserError

# The programs of launchers that start all processes by one command.
STARTERS = {"mpi": "mpirun", "slurm": "srun"}
LAUNCHERS = ("local", "ssh", *STARTERS, "none")

# What of the environment goes to other machines: the settings of MXNet and of its libraries. Those
# of ps-lite by name: others, and secrets among them, may begin as they do.
PASSED_ON = re.compile(
    r"(MXNET|OMP|KMP)_[A-Z0-9_]+|PS_(VERBOSE|DROP_MSG|RESEND(_TIMEOUT)?)"
    r"|PS_HEARTBEAT_(INTERVAL|TIMEOUT)|DMLC_INTERFACE|LD_LIBRARY_PATH|PYTHONPATH"
)

VERSION_SECONDS = 10  # for mpirun to say which it is

JOIN = [sys.executable, "-m", watch.__name__, "join"]  # comes and asks for a role


def ssh(host: str, port: str) -> list[str]:
    """What starts a shell on another machine, which reads a script."""
    return ["ssh", "-o", "BatchMode=yes", *(["-p", port] if port else []), "--", host, "sh"]


def script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What that shell reads to become `command`, in this folder.

    On standard input it is quoted once, and a secret in it is not among the arguments.
    """
    passed_on = {name: os.environ[name] for name in filter(PASSED_ON.fullmatch, os.environ)}
    values = {**passed_on, **environment}
    lines = [
        f"cd {shlex.quote(os.getcwd())} || exit",
        *(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        f"exec {shlex.join(command)} < /dev/null\n",
    ]
    return "\n".join(lines)


def starter(launcher: str, count: int, hosts: str | None, contact: Mapping[str, str]) -> list[str]:
    """What starts `count` processes that ask for a role.

    Args:
        launcher: one of `STARTERS`.
        hosts: the file of machines.
        contact: variables of this environment that each process needs.

    Raises:
        UserError: mpirun does not say which it is.
    """
    command = [STARTERS[launcher], "-n", str(count)]
    if hosts:
        command += ["--hostfile", os.path.abspath(hosts)]
    if launcher == "mpi" and _is_open_mpi():
        command += [word for name in contact for word in ("-x", name)]
    return [*command, *JOIN]


def by_hand(contact: Mapping[str, str]) -> str:
    """What a user runs to start a process that asks for a role."""
    return shlex.join(["env", *(f"{name}={value}" for name, value in contact.items()), *JOIN])


def _is_open_mpi() -> bool:
    command = ["mpirun", "-V"]
    try:
        said = subprocess.run(command, stdout=subprocess.PIPE, timeout=VERSION_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"mpirun -V does not say which it is: {error}") from None
    return b"Open MPI" in said.stdout
