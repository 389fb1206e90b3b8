"""Starts the processes of a job, and ends every one of them when one dies.

The processes find each other by MXNet's own means, its parameter server: a scheduler, servers that
add up gradients, and workers that run the command. MXNet's launcher starts them as well, but fails
since Python 3.9, and watches nothing: ps-lite waits for ever for a process that has died. So here
every process keeps a connection to this one, the supervisor; see `watch`.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import itertools
import json
import math
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from gluon_resnetv2.cli import STOPPED
from gluon_resnetv2.distributed import launchers, watch
from gluon_resnetv2.distributed.hosts import LOOPBACK, free_port, own_address, read_hosts
from gluon_resnetv2.errors import UserError

# The supervisor's socket: characters of a line, what a role says besides its name, and how many
# connections that have not said the secret are kept; a further one ends the oldest.
LINE = 1000
SAID = ("connected", "up", "done", "stopped")
STRANGERS = 64

EARLY_SECONDS = 5  # within which all workers end, where one ends before its training is done
LOST_SECONDS = 3  # from a broken connection to the end of its process, which tells more
KILL_SECONDS = 5  # from being told to end to being killed
PASSED = 2**16  # characters of a line that are passed on at once
LAST_WORD = 1  # seconds from the end of a process to what it said before

_saying = threading.Lock()  # threads share the streams


def say(line: str, stream=None) -> None:
    """Writes a line at once, by default to standard error, from any thread."""
    stream = stream or sys.stderr
    if stream is None:  # closed
        return
    clear = "\r\033[K" if stream.isatty() else ""  # worker 0's progress bar may be on the line
    with _saying, contextlib.suppress(OSError, ValueError):  # nobody reads any more
        stream.write(f"{clear}{line}\n")  # at once: worker 0 writes to the same file
        stream.flush()


class Failure(Exception):
    """Why a job has failed; `at_start` where another start may not."""

    def __init__(self, reason: str, status: int = 1, at_start: bool = False):
        super().__init__(reason)
        self.status, self.at_start = status, at_start


class Role:
    """One process of a job: "scheduler", "server 0", "worker 0", or a program that starts them."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]):
        self.name, self.command = name, command
        kind = name.split()[0]
        self.is_worker = kind == "worker"
        self.environment = {**environment, "DMLC_ROLE": kind, watch.ROLE: name}
        self.who = name  # with process id and machine, once they are known
        self.process: subprocess.Popen[str] | None = None  # where it was started from here
        self.connection: socket.socket | None = None
        # What has happened: it has found the others; its training is done, or a signal has ended it
        # before; its process has ended.
        self.connected = self.done = self.stopped = self.ended = False
        self.signalled = False  # a signal has been passed on to it
        self.status: int | None = None
        self.signs: set[str] = set()  # of its end: "status", "lost"
        self.first_sign = math.inf  # when it came
        self._suspended = math.inf  # since when

    def send(self, **message) -> bool:
        """Sends by the connection; returns whether there is one."""
        if self.connection:
            with contextlib.suppress(OSError):
                self.connection.sendall(json.dumps(message).encode() + b"\n")
        return self.connection is not None

    def signal(self, number: int) -> None:
        """Passes a signal on, once, where the process can be reached by now."""
        if not self.signalled:
            self.signalled = self.send(signal=number)
        if not self.signalled and (process := self.running):
            process.send_signal(number)
            self.signalled = True

    def end(self, why: str | None) -> None:
        """Tells the process to end: with a line that says why, or silently."""
        if not self.send(end=why) and (process := self.running):
            process.terminate()

    @property
    def running(self) -> subprocess.Popen[str] | None:
        """The process that was started from here, while it runs."""
        return self.process if self.process and self.process.poll() is None else None

    def suspended_for(self, now: float) -> float:
        """For how many seconds a process that was started from here has been seen suspended."""
        found = None
        with contextlib.suppress(ChildProcessError):  # it has just ended
            if process := self.running:
                # This says nothing of that, and takes nothing from `Popen.wait`.
                options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
                found = os.waitid(os.P_PID, process.pid, options)
        self._suspended = min(self._suspended, now) if found else math.inf
        return now - self._suspended

    def kill(self) -> None:
        """Ends the process, and what it has started, which may be there without it."""
        if self.process:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.connection:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


class Job:
    """One start of all processes.

    Threads wait for processes, connections and output. What they find are events, and one loop, in
    `_supervise`, decides.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.up = False  # a worker has said that it trains
        self.stopping: int | None = None  # the signal that has asked for the end
        # A role's event with an exit status, or a signal's number. Signal handlers may use it, too.
        self._events: queue.SimpleQueue[tuple[Role, str, int | None] | int] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[Role] = queue.SimpleQueue()  # that no process has yet
        self._copies: list[threading.Thread] = []
        self._token = os.environ.get(watch.TOKEN) or secrets.token_hex(16)
        self._hosts = read_hosts(options.hosts) if options.hosts else []
        address, port = own_address(options, self._hosts)
        try:
            self._listener = socket.create_server(("" if address != LOOPBACK else address, port))
        except OSError as error:
            if not port:
                raise
            reason = os.strerror(error.errno or 0)
            raise UserError(f"--address {address}:{port}: {reason}; name another port") from None
        self._contact = {
            watch.ADDRESS: f"{address}:{self._listener.getsockname()[1]}",
            watch.TOKEN: self._token,
        }
        environment = {
            "DMLC_PS_ROOT_URI": address,
            "DMLC_PS_ROOT_PORT": str(free_port()),
            "DMLC_NUM_WORKER": str(options.workers),
            "DMLC_NUM_SERVER": str(options.servers),
            **self._contact,
        }
        names = ["scheduler", *(f"server {i}" for i in range(options.servers))]
        serve = [sys.executable, "-m", watch.__name__]
        self.workers = [
            Role(f"worker {i}", options.command, environment) for i in range(options.workers)
        ]
        self.roles = [*(Role(name, serve, environment) for name in names), *self.workers]
        self._starter: Role | None = None

    @property
    def stopped(self) -> bool:
        """Whether a signal has ended the workers before their training was done."""
        return any(worker.stopped for worker in self.workers)

    def run(self) -> None:
        """Starts everything, and returns when all workers have ended well.

        Raises:
            Failure: they have not. Either way nothing of the job runs any more.
        """
        why = None
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        handlers = {number: signal.signal(number, self._signalled) for number in numbers}
        try:
            _thread(self._accept)
            self._start()
            self._supervise()
        except Failure as failure:
            why = str(failure)
            raise
        finally:
            self._end(why)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    # Starting

    def _start(self) -> None:
        self._progress = time.monotonic()
        scheduler, *others = self.roles
        self._spawn(scheduler)  # here, in every case: the others need its address beforehand
        launcher = self.options.launcher
        if launcher == "local":
            for role in others:
                self._spawn(role)
        elif launcher == "ssh":
            for role, (host, port) in zip(others, itertools.cycle(self._hosts)):
                role.who = f"{role.name} on {host}"
                script = launchers.script(role.command, role.environment)
                self._popen(role, launchers.ssh(host, port), script)
        else:  # others start processes, which come and ask for a role
            for role in others:
                self._free.put(role)
            count, contact = len(others), self._contact
            if launcher == "none":
                say(f"waiting for {count} processes that run: {launchers.by_hand(contact)}")
                return
            command = launchers.starter(launcher, count, self.options.hosts, contact)
            self._starter = Role(command[0], command, contact)
            self._spawn(self._starter)

    def _spawn(self, role: Role) -> None:
        self._popen(role, role.command, env={**os.environ, **role.environment})

    def _popen(self, role: Role, command: list[str], script: str | None = None, **kwargs) -> None:
        """Starts a process, which reads `script` on its standard input."""
        # Worker 0 has the terminal, for its progress bar; what the others say goes through here.
        pipe = None if role in (self.workers[0], self._starter) else subprocess.PIPE
        process = role.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if script else subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process alone
            **kwargs,
        )
        if pipe:
            for source, stream in ((process.stdout, sys.stdout), (process.stderr, None)):
                self._copies.append(_thread(_copy, source, stream, role.name))
        _thread(self._wait, role, process)
        if script and process.stdin:
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(script)

    # What happens, as events

    def _signalled(self, number: int, _) -> None:
        # Workers know no SIGHUP: to them the end of a terminal is as any other.
        self._events.put(signal.SIGTERM if number == signal.SIGHUP else number)

    def _wait(self, role: Role, process: subprocess.Popen[str]) -> None:
        status = process.wait()
        if not role.connection:
            time.sleep(LAST_WORD)  # it may have connected, and not been heard yet
        self._events.put((role, "status", status))

    def _accept(self) -> None:
        strangers: dict[socket.socket, None] = {}  # who have not said the secret, oldest first
        while self._listener.fileno() >= 0:
            try:
                connection = self._listener.accept()[0]
            except OSError:  # it is closed, or there are no more files for now
                time.sleep(0.1)
                continue
            strangers[connection] = None
            for oldest in list(strangers)[:-STRANGERS]:  # whoever belongs here says so at once
                strangers.pop(oldest, None)
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            _thread(self._talk, connection, lambda one=connection: strangers.pop(one, None))

    def _talk(self, connection: socket.socket, known: Callable[[], None]) -> None:
        """Turns what comes by a connection into events; it is `known` once it has said the secret.

        What makes no sense ends it.
        """
        # RecursionError is JSON's, of many brackets.
        amiss = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
        with connection, contextlib.suppress(*amiss):
            connection.settimeout(watch.SILENCE)
            lines = connection.makefile(encoding="utf-8")
            try:
                hello = json.loads(lines.readline(LINE))
                if not hmac.compare_digest(hello["token"].encode(), self._token.encode()):
                    return
            finally:
                known()
            if "role" not in hello:
                self._assign(connection)
                return
            (role,) = (r for r in self.roles if r.name == hello["role"] and not r.connection)
            role.who = f"{role.name} (pid {hello['pid']} on {hello['host']})"
            role.connection = connection
            self._events.put((role, "hello", None))
            event = "lost"
            try:
                while line := lines.readline(LINE):
                    for name in json.loads(line):
                        self._events.put((role, SAID[SAID.index(name)], None))
            except TimeoutError:
                event = "silent"
            finally:
                self._events.put((role, event, None))

    def _assign(self, connection: socket.socket) -> None:
        """Gives a process that came without a role the next one, where one is left."""
        with contextlib.suppress(queue.Empty):
            role = self._free.get_nowait()
            reply = {
                "directory": os.getcwd(),
                "environment": role.environment,
                "command": role.command,
            }
            connection.sendall(json.dumps(reply).encode() + b"\n")
            self._events.put((role, "joined", None))

    # Deciding

    def _supervise(self) -> None:
        while not all(role.ended for role in (*self.workers, self._starter) if role):
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=1)
                if isinstance(event, int):
                    self._stop(event)
                else:
                    self._handle(*event)
            self._check_clock(time.monotonic())

    def _stop(self, number: int) -> None:
        if self.stopping:
            raise Failure("interrupted", 128 + number)
        self.stopping, self._stop_by = number, time.monotonic() + self.options.grace
        for worker in self.workers:
            worker.signal(number)

    def _handle(self, role: Role, event: str, status: int | None) -> None:
        if event in ("joined", "hello", "connected"):
            role.connected |= event == "connected"
            self._progress = time.monotonic()
            if self.stopping and role.is_worker:  # which could not be reached before
                role.signal(self.stopping)
        elif event == "up":
            self.up = True
        elif event == "done":
            role.done = True
        elif event == "stopped":
            role.stopped = True
        elif event == "silent":
            raise Failure(f"{role.who} was not heard of for {watch.SILENCE} s")
        elif event in ("status", "lost"):
            role.status = status if event == "status" else role.status
            role.signs.add(event)
            role.first_sign = min(role.first_sign, time.monotonic())
            # The connection's last word may come after the end of the process.
            expected = {"status": role.process, "lost": role.connection}
            if all(sign in role.signs for sign, source in expected.items() if source):
                self._ended(role)

    def _ended(self, role: Role) -> None:
        role.ended = True
        status = 0 if role.process is None and role.done else role.status
        if role.is_worker or role is self._starter:
            well = status == 0 or (status == STOPPED and self.stopped)
        else:  # the scheduler and the servers, which go when the workers let them go
            well = status == 0 or all(worker.done or worker.ended for worker in self.workers)
        if not well:
            if self.stopping and status == -self.stopping and not self.up:
                raise Failure("stopped before the training began", STOPPED)
            at_start = not self.up and (status is None or status < 0)
            failed = 1 if status in (None, STOPPED) else max(status, 1)
            raise Failure(f"{role.who} {_how(status)}", failed, at_start)
        if all(worker.ended for worker in self.workers):
            for other in self.roles:
                other.end(None)

    def _check_clock(self, now: float) -> None:
        for role in self.roles:
            role.send()
        if self.stopping and now > self._stop_by:
            raise Failure(f"the workers did not end within {self.options.grace:g} s")
        missing = [role.name for role in self.workers if not (role.connected or role.ended)]
        if missing and now - self._progress > self.options.start_timeout:
            raise Failure(
                f"{', '.join(missing)} did not find the others within "
                f"{self.options.start_timeout:g} s; does the command have --kv-store dist_sync?",
                at_start=all(role.connection for role in self.roles),
            )
        for role in filter(None, (*self.roles, self._starter)):
            if role.suspended_for(now) > watch.SILENCE:
                raise Failure(f"{role.who} was suspended for {watch.SILENCE} s")
        for role in self.roles:
            if not role.ended and now - role.first_sign > LOST_SECONDS:
                if "status" in role.signs:
                    self._ended(role)
                elif not role.done:
                    raise Failure(f"{role.who} has closed its connection, and goes on")
        for role in self.workers:
            early = role.ended and not role.done and now - role.first_sign > EARLY_SECONDS
            if early and not all(worker.ended or worker.done for worker in self.workers):
                raise Failure(f"{role.who} ended early, while others train")

    def _end(self, why: str | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which ends the waiting accept, too
        self._listener.close()
        for role in self.roles:
            role.end(why)
        everything = [*self.roles, self._starter] if self._starter else self.roles
        until = time.monotonic() + KILL_SECONDS
        while any(role.running for role in everything) and time.monotonic() < until:
            time.sleep(0.05)
        for role in everything:
            role.kill()
        for copy in self._copies:
            copy.join(timeout=1)


def _how(status: int | None) -> str:
    if status is None:
        return "was lost"
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"was killed by {names.get(-status, f'signal {-status}')}"
    return f"ended with status {status}"


def _thread(target, *args) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _copy(source, stream, name: str) -> None:
    with source:
        while line := source.readline(PASSED):
            say(f"[{name}] {line.rstrip()}", stream)
