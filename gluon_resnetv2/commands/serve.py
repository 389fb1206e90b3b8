"""Exports behind the Open Inference Protocol v2 over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import logging
import os
import socket
import sys
from pathlib import Path

from gluon_resnetv2 import cli, machine
from gluon_resnetv2.engines.native import add_engine
from gluon_resnetv2.errors import UserError, install
from gluon_resnetv2.formats.pretrained import FOLDERS_HELP

MEGABYTE = 2**20
MAX_BATCH = 4096
THREADS_PER_CPU = 4  # at most; OpenMP ends the process where it can't start them
SMALLEST_BODY = 0.001  # MB
FAULTS_OF_PORTS = (errno.EADDRINUSE, errno.EACCES)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    add = parser.add_argument
    add(
        "exports",
        nargs="+",
        metavar="[NAME=]EXPORT",
        help=f"what to serve, and by which name (default: its own): folder of an export or run, "
        f"{FOLDERS_HELP}, or a pair's -symbol.json or -NNNN.params (of one epoch)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: all addresses of this machine",
    )
    add("--port", type=int, default=8080, help="port to listen on; 0: any that is free")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name or address, without port, by which clients may reach the server, as behind a "
        "proxy; can be repeated; default: on 127.0.0.1 this machine's own, else any",
    )
    add(
        "--max-batch",
        type=int,
        default=64,
        help="images in one request, and computed at once, at most",
    )
    add_engine(parser)
    cli.add_shape(parser)
    add("--queue", type=int, default=1024, help="images that may wait for one model")
    add("--body-limit", type=float, default=64, help="MB that the body of one request may have")
    add(
        "--memory",
        type=float,
        default=256,
        help="MB that the bodies of all requests may have together",
    )
    add(
        "--timeout",
        type=float,
        default=30,
        help="seconds from a request to its answer, at most",
    )
    add("--threads", type=int, help="threads that compute; default: one per core")
    add(
        "--no-batching",
        action="store_true",
        help="compute each request alone, not with others that wait",
    )
    add("--page", action="store_true", help="serve a page at / to try the models in a browser")
    add("--access-log", action="store_true", help="print a line for each request")


def run(options: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        UserError: an option makes no sense, an export can't be served, or the address is taken.
    """
    _open_standard_files()
    _check(options)
    with _listener(options.host, options.port) as listener:
        threads = _settle_threads(options.threads)
        _serve(options, listener, threads)


def _serve(options, listener, threads):
    # Here, so that other verbs do without them, and after what MXNet reads of the environment.
    with _on_any_cpu():
        import mxnet as mx

    from gluon_resnetv2.serving.hosts import Hosts

    try:
        from gluon_resnetv2.serving.http_server import Uvicorn
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}: {install('serve')}") from None
    from gluon_resnetv2.engines import choice
    from gluon_resnetv2.engines.predictor import Predictor
    from gluon_resnetv2.serving.service import Limits, Metrics, Model, Service

    host, port = listener.getsockname()[:2]
    hosts = Hosts(options.allow_host, host)
    limits = Limits(
        body=int(options.body_limit * MEGABYTE),
        memory=int(options.memory * MEGABYTE),
        queue=options.queue,
        seconds=options.timeout,
    )
    metrics, models, hints = Metrics(), {}, []
    artifacts = _artifacts(options.exports)
    if options.shape and all(artifact.manifest for artifact in artifacts.values()):
        raise UserError(f"{next(iter(artifacts))} says its own shape; leave --shape out")
    for name, artifact in artifacts.items():
        try:
            predictor = Predictor(
                artifact, max_batch=options.max_batch, shape=options.shape, engine=options.engine
            )
        except mx.MXNetError as error:
            if "Failed to allocate" not in str(error):
                raise
            raise UserError(
                f"{name} does not fit into memory; name a smaller --max-batch"
            ) from None
        hints += [f"{name}: not native: {why}" for why in predictor.without]
        if hint := choice.precision_hint(predictor.engine, predictor.precision):
            hints.append(f"{name}: {hint}: export --precision")
        for line in predictor.rejected:
            line = " ".join(line.split())
            print(f"{name}: a form that is wrong here is not run: {line}", file=sys.stderr)
        models[name] = Model(name, predictor, metrics, limits.queue, not options.no_batching)
    # Two sockets can have one address, of which one listens; uvloop would not tell the other.
    with _address_faults(options.host, options.port):
        listener.listen()
    service = Service(models, limits, metrics, options.page, hosts)
    gc.collect()
    gc.freeze()  # what is there now stays: no need to look through it again while requests wait
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    forms = ", ".join(
        f"{name} ({_about(model.predictor, options.shape)})" for name, model in models.items()
    )
    lines = [f"serving {forms} at {address} on {threads} threads", *hints]
    _log_to_stderr(options.access_log)
    Uvicorn(service, options.access_log, lambda: print(*lines, sep="\n", flush=True)).run(
        [listener]
    )
    service.close()


def _about(predictor, shape):
    if predictor.prepares or shape:
        return predictor.form
    return f"{predictor.form}, {'x'.join(map(str, predictor.shape))} assumed: --shape"


def _artifacts(words):
    """The exports by name, of words that are EXPORT or NAME=EXPORT."""
    from gluon_resnetv2.formats.artifact import load

    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = None, word
        elif not _can_be_asked_for(name):
            raise UserError(f"{word!r} is no NAME=EXPORT: no URL has such a name in it")
        artifact = load(path)
        name = artifact.name if name is None else name
        if not _can_be_asked_for(name):
            raise UserError(f"no URL has {name!r} in it; name it: NAME={path}")
        if name in found:
            raise UserError(f"two exports have the name {name}; name one: NAME={path}")
        found[name] = artifact
    return found


def _can_be_asked_for(name):
    """Whether a path can have the name in it."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable()


def _open_standard_files():
    """Opens those that are closed, as the event loop's files must not take their place."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(file)


def _check(options):
    most_threads = THREADS_PER_CPU * machine.cpus()
    bounds = {"max_batch": MAX_BATCH, "queue": float("inf"), "threads": most_threads}
    for name, most in bounds.items():
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            bound = "at least 1" if value < 1 else f"at most {most}"
            raise UserError(f"--{name.replace('_', '-')} must be {bound}, not {value}")
    for name in ("memory", "timeout"):
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise UserError(f"--{name} must be above 0, not {value:g}")
    if not SMALLEST_BODY <= options.body_limit < float("inf"):
        raise UserError(
            f"--body-limit must be at least {SMALLEST_BODY:g}, not {options.body_limit:g}"
        )
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port must be within 0 to 65535, not {options.port}")
    if options.memory < options.body_limit:
        raise UserError(f"--memory must be at least --body-limit, {options.body_limit:g}")


def _listener(host, port):
    """A socket that has the address already, and listens later."""
    with _address_faults(host, port):
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Of a socket whose protocol it is not told, asyncio has answers wait for acknowledgements.
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        return listener


@contextlib.contextmanager
def _address_faults(host, port):
    """Turns an address's fault in the block into a `UserError`."""
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter for what can't be a host's name
        reason = getattr(error, "strerror", None) or error
        option = "--port" if getattr(error, "errno", None) in FAULTS_OF_PORTS else "--host"
        raise UserError(f"can't listen on {host}:{port}: {reason}; name another {option}") from None


def _settle_threads(threads):
    """Sets what OpenMP reads when MXNet loads it; how many threads compute.

    Where there is a thread for every core, each stays on its own: moved to make room for the event
    loop, two of them would share a core while all others wait. OMP_WAIT_POLICY=PASSIVE, set by the
    user, is better on machines that compute other things beside, and then threads may move.
    """
    cores = max(1, machine.cpus() // (2 if machine.hyper_threads() else 1))
    if threads or "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads or cores)
    if "OMP_WAIT_POLICY" not in os.environ and os.environ["OMP_NUM_THREADS"] == str(cores):
        os.environ.setdefault("OMP_PROC_BIND", "true")
        os.environ.setdefault("OMP_PLACES", "cores")
    return os.environ["OMP_NUM_THREADS"]


@contextlib.contextmanager
def _on_any_cpu():
    """For importing MXNet: OpenMP binds the thread that loads it, too."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    yield
    if cpus:
        os.sched_setaffinity(0, cpus)


def _log_to_stderr(access_log):
    """Failures, and each request if asked for; not what clients do wrong, which they are told."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
