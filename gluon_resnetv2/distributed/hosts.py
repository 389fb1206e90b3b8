"""The machines of a job: where they are listed, and how they reach this one."""

from __future__ import annotations

import argparse
import re
import socket

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.untrusted import faults_of, quote, read_bytes

LOOPBACK = "127.0.0.1"
HOSTS_BYTES = 2**20  # of a hosts file
# No option, and nothing that a shell or ssh's own configuration would make something else of.
HOST = re.compile(r"((?:\w[\w.-]*@)?\w[\w.-]*)(?::(\d{1,5}))?", re.ASCII)


def read_hosts(path: str) -> list[tuple[str, str]]:
    """Names and ports of the machines in a file as MXNet's launcher and mpirun take it.

    Raises:
        UserError: there are none, or what stands there is none.
    """
    with faults_of(f"--hosts {path}"):
        data = read_bytes(path, HOSTS_BYTES)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--hosts {path} is no text file") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()  # without comments and slots=N
        if not words:
            continue
        found = HOST.fullmatch(words[0])
        if not found or not 0 < int(found[2] or 22) < 65536:
            raise UserError(
                f"--hosts {path}, line {number}: {quote(words[0])} is no machine; write NAME or "
                "NAME:PORT"
            )
        hosts.append((found[1], found[2] or ""))
    if not hosts:
        raise UserError(f"--hosts {path} names no machine")
    return hosts


def own_address(options: argparse.Namespace, hosts: list[tuple[str, str]]) -> tuple[str, int]:
    """Address and port of this process; port 0 for any.

    Raises:
        UserError: the address isn't clear.
    """
    if options.address:
        host, _, port = options.address.partition(":")
        if not host or (port and not (port.isdecimal() and int(port) < 65536)):
            raise UserError(f"--address needs HOST or HOST:PORT, not {options.address}")
        return host, int(port or 0)
    if options.launcher == "local" or (
        hosts and {host for host, _ in hosts} <= {"localhost", LOOPBACK}
    ):
        return LOOPBACK, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing, chooses the interface
        except OSError as error:
            raise UserError("this machine's address isn't clear: give --address HOST") from error
        return probe.getsockname()[0], 0


def free_port() -> int:
    """A port that nothing has now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
