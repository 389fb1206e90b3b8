"""What runs inside every process of a distributed job: a thread that holds on to the supervisor.

ps-lite waits for ever for a process that has died, deep inside MXNet, where the main thread hears
nothing. This thread goes on meanwhile, and ends the process when the supervisor (`launch`) says so
or is gone itself.

`python -m gluon_resnetv2.distributed.watch` is a scheduler or server of MXNet's, and with `join` as
its argument a process that asks the supervisor which role to take.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time

from gluon_resnetv2 import cli
from gluon_resnetv2.errors import UserError

# How a process is told of its supervisor: "host:port", the job's secret, and its own role.
ADDRESS = "GLUON_RESNETV2_SUPERVISOR"
TOKEN = "GLUON_RESNETV2_TOKEN"
ROLE = "GLUON_RESNETV2_ROLE"

# Seconds without a word after which the other side counts as lost, as when a machine is switched
# off and nothing closes its connections. The supervisor speaks, and is answered, every second.
SILENCE = 30

EXIT_SECONDS = 20  # what Python and MXNet may take to shut down
JOIN_SECONDS = 60  # for so long `join` looks for a supervisor that may start later

role: str | None = None  # "worker 0", where `launch` has started this process
_connection: socket.socket | None = None
_sending = threading.Lock()


def start() -> None:
    """Starts the thread, once, in a process that `launch` has started; in others does nothing.

    To be called before anything that may wait for other processes.

    Raises:
        UserError: the supervisor is gone.
    """
    global _connection, role
    if _connection is not None or ADDRESS not in os.environ:
        return
    # Out of the environment: what this process starts is no part of the job.
    address, token, role = (os.environ.pop(name) for name in (ADDRESS, TOKEN, ROLE))
    _connection = _connect(address)
    # What the supervisor is reached from, the other processes can reach, too.
    os.environ.setdefault("DMLC_NODE_HOST", _connection.getsockname()[0])
    tell(token=token, role=role, pid=os.getpid(), host=socket.gethostname())
    threading.Thread(target=_listen, args=(_connection, role), daemon=True).start()
    # The interpreter's shutdown ends this thread before MXNet's own, which may wait for ever: from
    # there on the kernel's clock takes over.
    atexit.register(signal.alarm, EXIT_SECONDS)


def tell(**message) -> None:
    """Sends a message to the supervisor, where there is one."""
    if _connection is not None:
        _send(_connection, message)


def _send(connection, message) -> None:
    # A supervisor that is gone is the listening thread's business.
    with _sending, contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    try:
        connection = socket.create_connection((host, int(port)), timeout=SILENCE)
    except OSError as error:
        raise UserError(
            f"the supervisor at {address} does not answer ({error.strerror or error}); "
            "start the whole job again"
        ) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _listen(connection: socket.socket, role: str) -> None:
    why = "the supervisor has ended"
    try:
        for line in connection.makefile(encoding="utf-8"):
            message = json.loads(line)
            if "end" in message:
                _end(role, message["end"])
            if "signal" in message:
                os.kill(os.getpid(), message["signal"])
            _send(connection, {})
    except TimeoutError:
        why = f"nothing was heard of the supervisor for {SILENCE} s"
    except OSError:
        pass
    _end(role, why)


def _end(role: str, why: str | None) -> None:
    """Ends this process, whatever its main thread waits for."""
    if why:
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # a progress bar may be on the line
        with contextlib.suppress(OSError):  # the supervisor took what is written here with it
            os.write(2, f"{clear}error: {why}; {role} (pid {os.getpid()}) ends too\n".encode())
    os._exit(1 if why else 0)


def join() -> None:
    """Asks the supervisor for a role, and becomes it.

    Raises:
        UserError: no supervisor answers, or it needs nobody.
    """
    if ADDRESS not in os.environ or TOKEN not in os.environ:
        raise UserError(f"to join a job, {ADDRESS} and {TOKEN} must say which: see `launch`")
    started = time.monotonic()
    while True:
        try:
            connection = _connect(os.environ[ADDRESS])
            break
        except UserError:
            if time.monotonic() - started > JOIN_SECONDS:
                raise
            time.sleep(1)
    with connection:
        _send(connection, {"token": os.environ[TOKEN]})
        line = connection.makefile(encoding="utf-8").readline()
    if not line:
        raise UserError(f"the job at {os.environ[ADDRESS]} needs no more processes")
    role = json.loads(line)
    os.chdir(role["directory"])
    os.environ.update(role["environment"])
    os.execvp(role["command"][0], role["command"])


def _fail(unraisable) -> None:
    """Ends a server whose optimiser fails; Python ignores errors in functions that C has called."""
    sys.__unraisablehook__(unraisable)
    os._exit(1)


def main() -> None:
    if sys.argv[1:] == ["join"]:
        join()
    start()
    sys.unraisablehook = _fail
    import mxnet  # noqa: F401  # serves within the import, by DMLC_ROLE, and exits


if __name__ == "__main__":
    cli.run(main)
