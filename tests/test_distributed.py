"""Workers, their launcher and supervisor, with real processes on loopback.

Where only the supervision is tested, a module `mxnet` that waits for ever, as ps-lite does without
its peers, takes the place of MXNet in the scheduler and the servers.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import resource
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import cli
from gluon_resnetv2.checkpoint import checkpoints
from gluon_resnetv2.commands import launch as launching
from gluon_resnetv2.distributed import hosts, launch, launchers, watch
from gluon_resnetv2.distributed import workers as workers_module
from gluon_resnetv2.distributed.server_optimizer import ServerOptimizer
from gluon_resnetv2.distributed.workers import Workers, connect
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.training.run import read_metrics
from tests import distributed_training

ROOT = Path(__file__).resolve().parents[1]
TRAINING = (sys.executable, str(ROOT / "tests" / "distributed_training.py"))
PATIENCE = 120  # seconds for anything to happen on a machine that does a lot else
BOUND = 60  # seconds in which a job has to end after a death

# In place of MXNet: says that it is there, and waits as ps-lite does, where no Python runs.
WAITS = """
import ctypes, sys
print("up", sys.modules["__main__"].role, flush=True)
while True:
    ctypes.CDLL(None).pause()
"""

# In place of the training.
WORKER = """
import ctypes, os, signal, sys
from pathlib import Path
from gluon_resnetv2.distributed import watch

what, rank, log = sys.argv[1], os.environ["GLUON_RESNETV2_ROLE"][-1], Path(sys.argv[2])
with log.open("a") as lines:
    lines.write(rank)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
if what == "fail" and rank == "1":
    sys.exit("no such thing")
watch.start()
watch.tell(connected=True)
if what == "abort" and rank == "0" and log.read_text().count(rank) == 1:
    os.abort()
if what not in ("fail", "abort"):
    watch.tell(up=True)
if what == "die" and rank == "1" and log.read_text().count(rank) == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if what in ("abort", "die"):
    watch.tell(done=True)
    sys.exit()
if what == "early" and rank == "1":
    sys.exit()
print("up", watch.role, os.environ["DMLC_NODE_HOST"], watch.TOKEN in os.environ, flush=True)
while not stopped:  # not `pause`: a signal that came just before it would be waited for in vain
    ctypes.CDLL(None).usleep(100_000)
print("stopped", flush=True)
watch.tell(done=True)
if what == "stop":
    watch.tell(stopped=True)
    sys.exit(3)
if what == "lie":
    sys.exit(3)
"""


UNKNOWN_TO_SERVERS = """
import gluon_resnetv2
import mxnet as mx
from gluon_resnetv2.distributed.server_optimizer import ServerOptimizer
from gluon_resnetv2.distributed.workers import connect

def rate(step):
    return 0.1

with connect("dist_async") as workers:
    workers.store.set_optimizer(ServerOptimizer(mx.optimizer.SGD(), rate, 1))
    workers.barrier()
"""


class Launched:
    """`python -m gluon_resnetv2 launch` and what it prints."""

    def __init__(self, *words, **variables):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gluon_resnetv2", "launch", *map(str, words)],
            cwd=ROOT,
            # Unbuffered, `print` writes a line in pieces, which mix with another process's.
            env={**os.environ, "PYTHONUNBUFFERED": "", "PYTHONPATH": str(ROOT), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = {"stdout": [], "stderr": []}
        self._news = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in self.lines
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name):
        with getattr(self.process, name) as pipe:
            for line in pipe:
                self.lines[name].append(line.rstrip())
                self._news.put(line)
        self._news.put(None)

    def wait_for(self, words, count=1):
        """Returns the lines with `words` in them, when there are so many."""
        while True:
            found = [line for lines in self.lines.values() for line in lines if words in line]
            if len(found) >= count:
                return found
            try:
                news = self._news.get(timeout=PATIENCE)
            except queue.Empty:
                pytest.fail(f"waited for {words!r} in vain: {self.lines}")
            assert news, f"ended without {words}: {self.lines}"

    def children(self):
        """Role and process id of everything that was started."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            roles = [
                v.decode()[len(watch.ROLE) + 1 :] for v in variables if watch.ROLE.encode() in v
            ]
            if int(parent) == self.process.pid and roles:
                found[roles[0]] = int(folder.name)
        return found

    def end(self, timeout=PATIENCE):
        """The exit status, and the seconds until then."""
        started = time.monotonic()
        status = self.process.wait(timeout)
        seconds = time.monotonic() - started
        for reader in self._readers:
            reader.join(timeout)
        return status, seconds

    def errors(self):
        return [line for line in self.lines["stderr"] if "error: " in line]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def job():
    """Starts jobs, and ends what is left of them."""
    started = []

    def start(*words, **variables):
        started.append(Launched(*words, **variables))
        return started[-1]

    yield start
    for launched in started:
        children = launched.children()
        launched.process.kill()
        launched.process.wait()
        for pid in children.values():
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def stand_in(job, tmp_path):
    """Starts jobs without MXNet: two workers that do what is asked of them in a word."""
    (tmp_path / "modules" / "mxnet").mkdir(parents=True)
    (tmp_path / "modules" / "mxnet" / "__init__.py").write_text(WAITS)
    (tmp_path / "worker.py").write_text(WORKER)
    path = f"{tmp_path / 'modules'}{os.pathsep}{ROOT}"

    def start(what, *options, **variables):
        command = (sys.executable, tmp_path / "worker.py", what, tmp_path / "log")
        if "--restarts" in options:
            command += ("--resume", "auto")
        variables.setdefault("PYTHONPATH", path)
        return job("--workers", 2, *options, "--", *command, **variables)

    return start


def options(*words):
    parser = cli.Parser(prog="launch")
    launching.add_options(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--workers", 0), "--workers must be at least 1"),
        (("--workers", 2, "--servers", 0), "--servers must be at least 1"),
        (("--workers", 2, "--restarts", -1), "--restarts must be at least 0"),
        (("--workers", 2, "--launcher", "ssh"), "needs --hosts"),
        (("--workers", 2, "--hosts", "here"), "--hosts goes with"),
        (("--workers", 2, "--launcher", "ssh", "--hosts", "/no/such"), "/no/such can't be read"),
        (("--workers", 2, "--launcher", "ssh", "--hosts", os.devnull), "is no file"),
        (("--workers", 2, "--launcher", "none", "--address", ":1"), "--address needs HOST"),
        (("--workers", 2, "--launcher", "none", "--address", "a:b"), "--address needs HOST"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, named, monkeypatch):
    monkeypatch.setattr(launching.shutil, "which", lambda name: name)
    with pytest.raises(UserError) as refused:
        launching.run(options(*words, "--", "true"))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_command_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no command no-such-command"):
        launching.run(options("--workers", 2, "--", "no-such-command"))


def test_hosts_are_read_as_mxnet_and_mpirun_write_them(tmp_path):
    (tmp_path / "hosts").write_text("one\n\n# a comment\ntwo:2222\nthree slots=4\n")
    assert hosts.read_hosts(tmp_path / "hosts") == [("one", ""), ("two", "2222"), ("three", "")]
    (tmp_path / "hosts").write_text("me@node-1.example.org:22\n_x\n")
    assert hosts.read_hosts(tmp_path / "hosts") == [("me@node-1.example.org", "22"), ("_x", "")]


@pytest.mark.parametrize("launcher", ["ssh", "mpi"])
@pytest.mark.parametrize(
    "line",
    [
        *("-oProxyCommand=touch${IFS}ran", "--help", "me@-oProxyCommand=x", "-l", ":22"),
        *("one:-oProxyCommand=x", "one:0", "one:65536", "one:22:22", "one:", "a`touch`", "a;b"),
        *("$(touch", "%h", "a|b", "a'b", 'a"b', "a/b", "one\0two", "me@you@one", "\x1b[2J"),
    ],
)
def test_a_line_that_is_no_machine_reaches_no_command(line, launcher, tmp_path, monkeypatch):
    """Nor would mpirun's ssh be given it, which reads the file itself."""
    started = []
    monkeypatch.setattr(launching.shutil, "which", lambda name: name)
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *args, **_: started.append(args))
    (tmp_path / "hosts").write_text(f"localhost\n{line} slots=2\n")
    words = ("--workers", 2, "--launcher", launcher, "--hosts", tmp_path / "hosts", "--", "true")
    with pytest.raises(UserError, match=r"hosts, line 2: .* is no machine") as refused:
        launching.run(options(*words))
    assert str(refused.value).isprintable()
    assert not started


def test_a_machines_name_stands_behind_all_options():
    """Then it is no option to ssh, whatever it looks like."""
    command = ["ssh", "-o", "BatchMode=yes", "-p", "2222", "--", "one", "sh"]
    assert launchers.ssh("one", "2222") == command


@pytest.mark.parametrize("does", ["exit 1", "exec sleep 30"])
def test_an_mpirun_that_does_not_say_what_it_is_is_not_used(does, tmp_path, monkeypatch):
    (tmp_path / "mpirun").write_text(f"#!/bin/sh\n{does}\n")
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launchers, "VERSION_SECONDS", 1)
    with pytest.raises(UserError, match="mpirun -V"):
        launching.run(options("--workers", 1, "--launcher", "mpi", "--", "true"))


def test_an_address_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--address {address}: Address already in use"):
            launching.run(options("--workers", 1, "--address", address, "--", "true"))


def test_a_hosts_file_is_bounded(tmp_path):
    (tmp_path / "hosts").write_text("one\n" * 2**20)
    with pytest.raises(UserError, match="hosts has 4194304 bytes; 1048576 are the most"):
        hosts.read_hosts(tmp_path / "hosts")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is no file"):
        hosts.read_hosts(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("variable", "kv_store", "named"),
    [
        (None, "dist_sync", "gluon_resnetv2 launch"),
        ("DMLC_ROLE", "device", "use dist_sync"),
    ],
)
def test_a_store_that_does_not_fit_the_launch_is_refused(variable, kv_store, named, monkeypatch):
    monkeypatch.delenv("DMLC_ROLE", raising=False)
    if variable:
        monkeypatch.setenv(variable, "worker")
    with pytest.raises(UserError, match=named):
        connect(kv_store)


def test_one_worker_alone_has_its_own_sums():
    with connect("device") as workers:
        values = [np.float32([[1, 2]]), np.array(3)]
        for together in (workers.sum, workers.mean):
            found = together(values)
            assert [a.dtype for a in found] == [a.dtype for a in values]
            assert all(np.array_equal(*pair) for pair in zip(found, values))
        assert workers.any(True)
        assert not workers.any(False)
        assert (workers.rank, workers.count, workers.store) == (0, 1, "device")


def test_what_servers_keep_of_a_number_is_all_of_it():
    rng = np.random.RandomState(0)
    numbers = rng.normal(size=1000) * 10.0 ** rng.uniform(-15, 30, 1000)
    numbers[:5] = 0, 2.0**53 - 1, np.inf, -np.inf, np.nan
    parts = workers_module._split(numbers)
    assert parts.dtype == np.float32
    assert np.array_equal(workers_module._join(parts[None])[0], numbers, equal_nan=True)


def results(job, kv_store, folder):
    """What two workers have left in `folder`, after a look at what they have done together."""
    launched = job("--workers", 2, "--", *TRAINING, kv_store, folder)
    assert launched.end()[0] == 0, launched.lines
    first, second = (np.load(folder / f"{rank}.npz") for rank in (0, 1))
    for name in first:
        assert np.array_equal(first[name], second[name]), f"{name} differs between the workers"
    assert first["count"] == 2
    assert np.array_equal(first["sum0"], np.full((2, 3), 3, "float32"))
    assert first["sum0"].dtype == np.float32
    assert first["sum1"] == 2**41 + 1  # float32 would have lost the 1
    assert np.array_equal(first["sum2"], [2e-9, 2e9])
    assert np.array_equal(first["mean"], np.full((2, 3), 1.5, "float32"))
    assert first["any"].tolist() == [False, True]
    return first


@pytest.mark.parametrize(
    "kv_store", ["dist_sync", pytest.param("dist_device_sync", marks=pytest.mark.slow)]
)
def test_two_workers_are_as_one_process(kv_store, job, tmp_path):
    found = results(job, kv_store, tmp_path)
    # One process on the whole batches, whose gradients nobody has to sum up.
    alone = distributed_training.train(Workers("device"))
    start = [p.data().asnumpy() for p in distributed_training.network().collect_params().values()]
    for i, (expected, before) in enumerate(zip(alone, start)):
        far = np.abs(expected - before).max()
        assert np.abs(found[f"parameter{i}"] - expected).max() < 1e-6 < far


def test_a_servers_optimizer_has_the_rate_of_the_step_and_its_part_of_the_decay():
    sgd = mx.optimizer.SGD(momentum=0.9, wd=0.2)
    rates = {3: 0.5, 4: 0.25}
    optimizer = ServerOptimizer(sgd, rates.__getitem__, count=2, step=3)
    optimizer.rescale_grad = 1 / 8
    weight, expected, velocity = mx.nd.ones(1), 1.0, 0.0
    state = optimizer.create_state_multi_precision(0, weight)
    for step in (3, 3, 4, 4):  # of each worker an update
        optimizer.update_multi_precision(0, weight, mx.nd.array([3.0]), state)
        velocity = 0.9 * velocity - rates[step] * (3 / 8 + 0.2 / 2 * expected)
        expected += velocity
        assert weight.asscalar() == pytest.approx(expected)


@pytest.mark.slow
def test_servers_update_as_one_process_would(job, tmp_path):
    found = results(job, "dist_async", tmp_path)["parameter0"]
    weight, velocity = 1.0, 0.0
    for update in range(20):  # two workers, ten steps
        rate = distributed_training.schedule(update // 2)
        gradient = 3 / 8 + distributed_training.DECAY / 2 * weight
        velocity = distributed_training.MOMENTUM * velocity - rate * gradient
        weight += velocity
    assert np.allclose(found, weight, rtol=1e-6)


@pytest.mark.parametrize("victim", ["worker 1", "server 0"])
def test_a_death_in_mid_epoch_ends_the_training(victim, job, tmp_path):
    launched = job("--workers", 2, "--", *TRAINING, "dist_sync", tmp_path, 100000)
    launched.wait_for("up", 2)
    check_end_after_death(launched, victim)


@pytest.mark.parametrize("victim", ["worker 0", "worker 1", "server 1", "scheduler"])
def test_a_death_ends_every_process_with_one_line(victim, stand_in):
    launched = stand_in("wait", "--servers", 2)
    launched.wait_for("up ", 5)
    check_end_after_death(launched, victim)


def check_end_after_death(launched, victim):
    children = launched.children()
    os.kill(children[victim], signal.SIGKILL)
    status, seconds = launched.end()
    assert status == 1
    assert seconds < BOUND
    assert all(gone(pid) for pid in children.values())
    *lines, last = launched.errors()
    why = f"error: {victim} (pid {children[victim]} on "
    assert why in last
    assert "killed by SIGKILL" in last
    assert last.endswith("--resume auto")
    assert len(lines) == len(children) - 1
    for role, pid in children.items():
        own = [line for line in lines if line.endswith(f"; {role} (pid {pid}) ends too")]
        assert len(own) == (role != victim), lines
        assert all(why in line and "SIGKILL" in line for line in own)


def test_no_line_is_written_in_pieces():
    """Or what worker 0 writes itself would come between where PYTHONUNBUFFERED is set."""
    written = []

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)

    launch.say("[server 0] ready", Stream())
    assert written == ["[server 0] ready\n"]


def test_a_line_without_end_is_passed_on_in_pieces():
    """Or the supervisor's memory would fill with it."""
    written = []

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)

    launch._copy(io.StringIO("a\n" + 10**6 * "x"), Stream(), "worker 1")
    assert written[0] == "[worker 1] a\n"
    assert max(map(len, written)) < 10**5
    assert sum(line.count("x") for line in written) == 10**6


def test_nobody_has_to_read_what_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as where it is closed
    launch.say("error: none")


def test_a_signal_without_a_name_is_told():
    assert launch._how(-int(signal.SIGKILL)) == "was killed by SIGKILL"
    assert launch._how(-(signal.SIGRTMIN + 3)) == f"was killed by signal {signal.SIGRTMIN + 3}"


@pytest.mark.parametrize("status", [0, 1])
def test_what_a_worker_leaves_behind_ends_with_the_job(status, job):
    left = f"sleep 1000 & echo left $!; exit {status}"
    launched = job("--workers", 1, "--", "sh", "-c", left)
    assert launched.end()[0] == status
    (line,) = launched.lines["stdout"]
    assert gone(int(line.split()[1]))


def test_all_end_with_their_supervisor(stand_in):
    launched = stand_in("wait")
    launched.wait_for("up ", 3)
    children = launched.children()
    assert len(children) == 4
    launched.process.kill()
    until = time.monotonic() + BOUND
    while not all(gone(pid) for pid in children.values()):
        assert time.monotonic() < until
        time.sleep(0.1)
    launched.wait_for("error: the supervisor has ended; worker 0")


@pytest.mark.slow
def test_a_process_that_is_not_heard_of_counts_as_dead(stand_in):
    launched = stand_in("wait")
    launched.wait_for("up ", 3)
    children = launched.children()
    os.kill(children["worker 1"], signal.SIGSTOP)
    status, seconds = launched.end()
    assert status == 1
    assert seconds < BOUND
    assert all(gone(pid) for pid in children.values())
    assert "worker 1" in launched.errors()[-1]
    assert "not heard of" in launched.errors()[-1]


@pytest.mark.slow
def test_a_server_whose_optimiser_fails_ends_the_job(job, tmp_path):
    """MXNet's own servers go on with the one before, or none, after a line on stderr."""
    (tmp_path / "training.py").write_text(UNKNOWN_TO_SERVERS)
    launched = job("--workers", 1, "--", sys.executable, tmp_path / "training.py")
    assert launched.end()[0] == 1
    assert "server 0" in launched.errors()[-1]
    assert any("Can't get attribute 'rate'" in line for line in launched.lines["stderr"])


def test_a_command_that_fails_at_once_is_not_tried_again(stand_in, tmp_path):
    launched = stand_in("fail", "--restarts", 2)
    assert launched.end()[0] == 1
    assert sorted((tmp_path / "log").read_text()) == ["0", "1"]
    assert "[worker 1] no such thing" in launched.lines["stderr"]
    assert launched.errors()[-1] == "error: worker 1 ended with status 1"  # nothing to go on with


def test_a_worker_that_leaves_the_others_waiting_ends_the_job(stand_in):
    launched = stand_in("early")
    status, seconds = launched.end()
    assert status == 1
    assert seconds < BOUND
    assert "ended early" in launched.errors()[-1]
    assert any("ended early" in line and "worker 0 (pid" in line for line in launched.errors())


def test_a_start_that_aborts_is_tried_again(stand_in, tmp_path):
    launched = stand_in("abort")
    assert launched.end()[0] == 0, launched.lines
    assert any("start failed" in line and "SIGABRT" in line for line in launched.lines["stderr"])
    assert (tmp_path / "log").read_text().count("0") == 2


@pytest.mark.parametrize(("restarts", "status"), [(0, 1), (1, 0)])
def test_restarts_are_as_many_as_allowed(restarts, status, stand_in, tmp_path):
    launched = stand_in("die", "--restarts", restarts)
    assert launched.end()[0] == status, launched.lines
    assert (tmp_path / "log").read_text().count("1") == 1 + restarts


def test_what_a_process_said_counts_though_its_end_is_known_first(monkeypatch):
    """Or a worker that trained and died would count as one that never started."""
    monkeypatch.setattr(launch, "LAST_WORD", 0.2)
    role = launch.Role("worker 1", [], {})
    role.process = subprocess.Popen([sys.executable, "-c", ""])
    role.process.wait()

    class Job:
        _events = queue.Queue()

    waiting = threading.Thread(target=launch.Job._wait, args=(Job, role, role.process))
    waiting.start()
    Job._events.put((role, "hello", None))
    waiting.join(PATIENCE)
    assert [Job._events.get(timeout=PATIENCE)[1] for _ in range(2)] == ["hello", "status"]


def test_a_signal_goes_on_to_the_workers(stand_in):
    launched = stand_in("wait")
    launched.wait_for("up ", 3)
    launched.process.terminate()
    assert launched.end()[0] == 0, launched.lines
    assert {"stopped", "[worker 1] stopped"} <= set(launched.lines["stdout"])
    assert not launched.errors()


def test_workers_that_a_signal_stopped_are_no_failure(stand_in, tmp_path):
    launched = stand_in("stop", "--restarts", 2)
    launched.wait_for("up ", 3)
    launched.process.terminate()
    assert launched.end()[0] == 3, launched.lines
    assert not launched.errors()
    assert (tmp_path / "log").read_text().count("0") == 1


def test_a_worker_that_was_told_to_stop_by_others_is_no_failure_either(stand_in, tmp_path):
    launched = stand_in("stop", "--restarts", 2)
    launched.wait_for("up ", 3)
    for role, pid in launched.children().items():
        if role.startswith("worker"):
            os.kill(pid, signal.SIGTERM)
    assert launched.end()[0] == 3, launched.lines
    assert not launched.errors()
    assert (tmp_path / "log").read_text().count("0") == 1


def test_a_failure_is_not_taken_for_a_stop(stand_in):
    launched = stand_in("lie")
    launched.wait_for("up ", 3)
    launched.process.terminate()
    assert launched.end()[0] == 1, launched.lines
    assert "ended with status 3" in launched.errors()[-1]


@contextlib.contextmanager
def inherited(number, handler):
    """Has processes that are started in the block begin with a signal handled so."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["term", "hup"])
def test_a_signal_at_the_start_is_no_failure(number, job):
    """Nobody has said anything yet, and the signal acts as usual."""
    sleep = "import time; print('here', flush=True); time.sleep(1000)"
    with inherited(number, signal.SIG_DFL):  # whatever began these tests
        launched = job("--workers", 2, "--", sys.executable, "-c", sleep)
    launched.wait_for("here", 2)
    launched.process.send_signal(number)
    status, seconds = launched.end()
    assert status == 3, launched.lines
    assert seconds < BOUND
    assert launched.lines["stderr"][-1] == "stopped before the training began"


def test_a_job_outlives_its_terminal_where_it_was_told_to(job):
    print_and_end = "import time; print('here', flush=True); time.sleep(2)"
    with inherited(signal.SIGHUP, signal.SIG_IGN):  # as of nohup
        launched = job("--workers", 1, "--", sys.executable, "-c", print_and_end)
    launched.wait_for("here")
    launched.process.send_signal(signal.SIGHUP)
    assert launched.end()[0] == 0, launched.lines


def test_a_process_suspended_at_its_start_is_not_waited_for(monkeypatch, capfd):
    """It has no connection yet on which it would be missed."""
    monkeypatch.setattr(watch, "SILENCE", 3)
    monkeypatch.setattr(launch, "KILL_SECONDS", 1)
    stop = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    started = time.monotonic()
    assert launching.run(options("--workers", 1, "--", sys.executable, "-c", stop)) == 1
    assert time.monotonic() - started < BOUND
    assert capfd.readouterr().err.splitlines()[-1] == "error: worker 0 was suspended for 3 s"


def test_workers_that_do_not_find_each_other_are_not_waited_for(job):
    sleep = "import time; time.sleep(1000)"
    launched = job("--workers", 2, "--start-timeout", 1, "--", sys.executable, "-c", sleep)
    assert launched.end()[0] == 1
    assert "worker 0, worker 1 did not find the others" in launched.errors()[-1]


FAKE_SSH = """#!/bin/sh
# ssh [-o OPTION] [-p PORT] -- HOST COMMAND, on this machine, with nothing of the environment
while [ "$1" != -- ]; do shift 2; done
shift
printf '%s\\n' "$*" >> "$0.log"
shift
exec env -i PATH="$PATH" sh -c "$*"
"""

FAKE_STARTER = """#!/bin/sh
# mpirun -n COUNT [--hostfile FILE] [-x VARIABLE] COMMAND
[ "$1" = -V ] && { echo "mpirun (Open MPI) 4.1.4"; exit; }
printf '%s\\n' "$*" >> "$0.log"
count=$2; shift 2
while [ "${1#-}" != "$1" ]; do shift 2; done
for i in $(seq $count); do "$@" & done
wait
"""


def test_other_machines_get_no_more_of_the_environment_than_they_need():
    needed = ("MXNET_ENGINE_TYPE", "OMP_NUM_THREADS", "PS_VERBOSE", "PS_RESEND_TIMEOUT")
    needed += ("DMLC_INTERFACE", "LD_LIBRARY_PATH", "PYTHONPATH")
    others = ("PS_PASSWORD", "PS_VERBOSE_TOKEN", "PYTHONPATH_KEY", "DMLC_ROLE", "HOME")
    names = (*needed, *others, "MXNET_X;touch ran;", "OMP_$(touch ran)")
    assert tuple(filter(launchers.PASSED_ON.fullmatch, names)) == needed


@pytest.mark.parametrize(
    ("launcher", "program", "script"),
    [("ssh", "ssh", FAKE_SSH), ("mpi", "mpirun", FAKE_STARTER), ("slurm", "srun", FAKE_STARTER)],
)
def test_other_launchers(launcher, program, script, stand_in, tmp_path):
    """With stand-ins for the programs: no machine of this kind is at hand."""
    (tmp_path / program).write_text(script)
    (tmp_path / program).chmod(0o755)
    (tmp_path / "hosts").write_text("localhost\n127.0.0.1:2222\n")
    hosts = ("--hosts", tmp_path / "hosts") if launcher != "slurm" else ()
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    options = ("--launcher", launcher, "--address", "127.0.0.1", *hosts)
    launched = stand_in("wait", *options, PATH=path)
    lines = launched.wait_for("up worker", 2)
    assert all(line.endswith("127.0.0.1 False") for line in lines)  # address, no secret left
    launched.wait_for("up server")
    launched.process.terminate()
    assert launched.end()[0] == 0, launched.lines
    calls = (tmp_path / f"{program}.log").read_text().splitlines()
    if launcher == "ssh":
        assert sorted(calls) == ["127.0.0.1 sh", "localhost sh", "localhost sh"]
    else:
        assert len(calls) == 1
        assert calls[0].startswith("-n 3 ")


JOIN = (sys.executable, "-m", watch.__name__, "join")


@pytest.fixture
def open_job(stand_in, tmp_path, request):
    """A job of two workers and a server started by others, and the environment to join it with."""
    token = "a secret"
    what = getattr(request, "param", "wait")
    launched = stand_in(
        what, "--launcher", "none", "--address", "127.0.0.1", GLUON_RESNETV2_TOKEN=token
    )
    (line,) = launched.wait_for("waiting for 3 processes")
    *_, told, secret = [word for word in shlex.split(line) if "GLUON_RESNETV2_" in word]
    assert secret == f"{watch.TOKEN}={token}"
    contact = {watch.ADDRESS: told.partition("=")[2], watch.TOKEN: token}
    modules = f"{tmp_path / 'modules'}{os.pathsep}{ROOT}"
    return launched, {**os.environ, "PYTHONPATH": modules, **contact}


@pytest.mark.parametrize(("open_job", "ends"), [("wait", 0), ("stop", 3)], indirect=["open_job"])
def test_a_signal_reaches_workers_that_connect_after_it(open_job, ends):
    launched, environment = open_job
    launched.process.terminate()
    time.sleep(1)  # the supervisor has heard of it by then
    joined = [subprocess.Popen(JOIN, env=environment) for _ in range(3)]
    status, seconds = launched.end()
    assert status == ends, launched.lines
    assert seconds < BOUND
    statuses = [process.wait(BOUND) for process in joined]
    for _ in range(2):
        statuses.remove(ends)  # the workers'
    assert statuses[0] in (0, 2)  # the server's, which may come when all is over


def test_processes_started_elsewhere_join(open_job):
    launched, environment = open_job
    stranger = subprocess.run(
        JOIN,
        env={**environment, watch.TOKEN: "another"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert stranger.returncode == 2
    assert "needs no more" in stranger.stderr
    joined = [
        subprocess.Popen(JOIN, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in joined:
        assert process.stdout.readline().startswith(b"up ")
    victim = joined[0]
    victim.kill()
    assert launched.end()[0] == 1
    for process in joined:
        _, errors = process.communicate(timeout=BOUND)
        if process is not victim:
            assert process.returncode == 1
            assert f"(pid {victim.pid} on ".encode() in errors
            assert b"was lost" in errors


def connected(environment, *messages):
    """A connection to a supervisor, by which lines have been sent."""
    host, port = environment[watch.ADDRESS].split(":")
    connection = socket.create_connection((host, int(port)), timeout=BOUND)
    connection.sendall(b"".join(message + b"\n" for message in messages))
    return connection


def join_all(launched, environment):
    """Has three processes join a job, then ends it: nothing has happened to it before."""
    joined = [
        subprocess.Popen(JOIN, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in joined:
        assert process.stdout.readline().startswith("up ")
    launched.process.terminate()
    assert launched.end()[0] == 0, launched.lines
    for process in joined:
        process.communicate(timeout=BOUND)
        assert process.returncode == 0
    assert not any("Traceback" in line for line in launched.lines["stderr"])


STRANGE = (
    *(
        b'{"token":5}',
        b'{"token":null}',
        b'{"token":["a secret"]}',
        b"5",
        b"[]",
        b"null",
        b"{}",
        b"",
    ),
    *(b"[" * 999, b"\xff", b'{"token":"\\ud800"}', b'{"token":"a secret","role":5}', b"A" * 2000),
    *(b'{"token":"a secret","role":"worker 9"}', b'{"token":"a secret","role":"worker 0"}'),
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r",
)


def test_strangers_cost_the_supervisor_nothing(open_job):
    """Whatever they send is answered by closing the connection, as soon as it makes no sense."""
    launched, environment = open_job
    for message in STRANGE:
        with connected(environment, message) as connection, contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b"", message
    join_all(launched, environment)


def test_idle_connections_do_not_keep_others_out(open_job):
    """Nor does one that sends its line a byte at a time, whose end is not waited for."""
    launched, environment = open_job
    resource.prlimit(launched.process.pid, resource.RLIMIT_NOFILE, (128, 128))
    with contextlib.ExitStack() as idle:
        for _ in range(300):
            idle.enter_context(connected(environment)).send(b"{")
        threads = len(os.listdir(f"/proc/{launched.process.pid}/task"))
        assert threads < launch.STRANGERS + 20
        join_all(launched, environment)


@pytest.mark.parametrize("message", [b'{"signal": 1}', b"5", b"[" * 999, b"A" * 10**6])
def test_what_a_worker_says_amiss_loses_it(message, open_job):
    launched, environment = open_job
    hello = b'{"token": "a secret", "role": "worker 0", "pid": 1, "host": "x"}'
    with connected(environment, hello, message):
        launched.wait_for("the start failed: worker 0 (pid 1 on x) was lost; trying again")
    assert not any("Traceback" in line for line in launched.lines["stderr"])


def learned(run):
    """What a run has made of its parameters; moving statistics are means over the workers."""
    values = mx.nd.load(str(checkpoints(run)[-1] / "net.params"))
    return {name: v.asnumpy() for name, v in values.items() if name.startswith("arg:")}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker 0", "worker 1", "server 0"])
def test_a_run_goes_on_after_a_death_to_the_same_parameters(victim, job, tmp_path):
    options = (
        *("--dataset", "digits", "--image-size", "8", "--model", "preact8", "--unit", "basic"),
        *("--batch-size", "51", "--num-epochs", "2", "--lr", "0.05", "--checkpoint-every", "10"),
        *("--kv-store", "dist_sync", "--log-every", "1", "--resume", "auto", "--output"),
    )
    training = (sys.executable, ROOT / "train" / "cifar.py", *options)
    runs = [tmp_path / name for name in ("undisturbed", "killed")]
    jobs = [job("--workers", 2, "--restarts", 1, "--", *training, run) for run in runs]
    while not checkpoints(runs[1]):
        assert jobs[1].process.poll() is None, jobs[1].lines
        time.sleep(0.01)
    os.kill(jobs[1].children()[victim], signal.SIGKILL)
    jobs[1].wait_for("starting again")
    assert [launched.end(300)[0] for launched in jobs] == [0, 0], jobs[1].lines
    expected, found = map(learned, runs)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    for run in runs:  # a step's loss is that of both workers' images
        records = read_metrics(run)
        losses = [record["loss"] for record in records if "loss" in record][:29]
        (mean, *_) = [record["train_loss"] for record in records if "epoch" in record]
        assert np.average(losses, weights=[51] * 28 + [9]) == pytest.approx(mean, rel=1e-5)
