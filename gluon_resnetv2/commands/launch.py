"""A training command on several machines, or in several processes on this one."""

from __future__ import annotations

import argparse
import shutil
import sys

from gluon_resnetv2.cli import MISTAKE, STOPPED
from gluon_resnetv2.distributed.launch import Failure, Job, say
from gluon_resnetv2.distributed.launchers import LAUNCHERS, STARTERS
from gluon_resnetv2.errors import UserError, python

START_RETRIES = 3  # ps-lite aborts in about one of sixty starts


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `launch`."""
    add = parser.add_argument
    add("--workers", type=int, required=True, help="number of processes that train")
    add("--servers", type=int, default=1, help="number of processes that add up gradients")
    add(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="what starts the processes: this machine (local), ssh, mpirun, srun, or you, by the "
        "command shown (none)",
    )
    add(
        "--hosts",
        help="with --launcher ssh or mpi, file with a machine per line; for ssh, as NAME or "
        "NAME:PORT",
    )
    add(
        "--address",
        help="HOST or HOST:PORT at which the workers reach this machine; default: found",
    )
    add("--restarts", type=int, default=0, help="how often to start all again after a failure")
    add(
        "--start-timeout",
        type=float,
        default=120,
        help="seconds that the start may go without progress",
    )
    add(
        "--grace",
        type=float,
        default=60,
        help="seconds that all workers have to end, once SIGTERM or Ctrl-C asks them to",
    )
    add(
        "command",
        nargs="+",
        help="after --, the training command that each worker runs, with --kv-store dist_sync",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command on all workers.

    Returns:
        0 where every worker ended with 0, `cli.STOPPED` where a signal ended them before their
        training was done, else the status of the one that failed, or 1.

    Raises:
        UserError: an option makes no sense here.
    """
    _check(options)
    retries, restarts = START_RETRIES, options.restarts
    while True:
        job = Job(options)
        try:
            job.run()
            return STOPPED if job.stopped else 0
        except Failure as failure:
            if failure.at_start and retries and not job.stopping:
                retries -= 1
                say(f"the start failed: {failure}; trying again")
            elif failure.status == STOPPED:
                say(str(failure))
                return STOPPED
            elif job.up and restarts and not job.stopping and failure.status != MISTAKE:
                restarts -= 1
                say(f"error: {failure}; starting again (left after this: {restarts})")
            else:
                say(f"error: {failure}" + (f"; go on with: {_resume(options)}" if job.up else ""))
                return failure.status


def _check(options) -> None:
    for name, least in (("workers", 1), ("servers", 1), ("restarts", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be at least {least}, not {getattr(options, name)}")
    for name in ("start_timeout", "grace"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0 seconds")
    if options.restarts and "--resume" not in " ".join(options.command):
        raise UserError("--restarts needs a command that goes on, with --resume auto")
    if options.launcher == "ssh" and not options.hosts:
        raise UserError("--launcher ssh needs --hosts FILE, with a machine per line")
    if options.hosts and options.launcher not in ("ssh", "mpi"):
        raise UserError("--hosts goes with --launcher ssh or mpi")
    here = options.launcher == "local"
    program = {"ssh": "ssh", **STARTERS}.get(options.launcher)
    for command in (program, options.command[0] if here else None):
        if command and not shutil.which(command):
            raise UserError(f"there is no command {command} on this machine")


def _resume(options) -> str:
    resume = () if "--resume" in options.command else ("--resume", "auto")
    return python("-m", "gluon_resnetv2", *sys.argv[1:], *resume)
