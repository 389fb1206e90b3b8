"""`python -m gluon_resnetv2 serve`: exports behind the Open Inference Protocol v2 over HTTP."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
from pathlib import Path

from gluon_resnetv2 import runtime
from gluon_resnetv2.errors import UserError

MEGABYTE = 2**20
BACKLOG = 2048  # connections that wait to be accepted


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    add = parser.add_argument
    add(
        "exports",
        nargs="+",
        metavar="[NAME=]EXPORT",
        help="folder of an export or a run, and the name it is served by; default: the export's",
    )
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one")
    add("--port", type=int, default=8080, help="0: any that is free")
    add("--max-batch", type=int, default=64, help="images in one request, or computed at once")
    add("--queue", type=int, default=1024, help="images that wait for a model")
    add("--body-limit", type=float, default=64, help="MB of one body")
    add("--memory", type=float, default=256, help="MB of all bodies at hand")
    add("--timeout", type=float, default=30, help="seconds for one request")
    add("--threads", type=int, help="that compute; default: one per core")
    add("--no-batching", action="store_true", help="compute each request alone")
    add("--page", action="store_true", help="serve a page to try the models, at /")
    add("--access-log", action="store_true", help="print a line for each request")


def main(options: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT.

    Raises:
        UserError: an option makes no sense, an export can't be served, or the address is taken.
    """
    _check(options)
    with _listener(options.host, options.port) as listener:
        threads = _settle_threads(options.threads)
        _serve(options, listener, threads)
    return 0


def _serve(options, listener, threads):
    # Here, so that other verbs do without them, and after what MXNet reads of the environment.
    from gluon_resnetv2.deploy.http_server import Uvicorn
    from gluon_resnetv2.deploy.predictor import Predictor
    from gluon_resnetv2.deploy.service import Limits, Metrics, Model, Service

    limits = Limits(
        body=int(options.body_limit * MEGABYTE),
        memory=int(options.memory * MEGABYTE),
        queue=options.queue,
        seconds=options.timeout,
    )
    metrics, models = Metrics(), {}
    for name, artifact in _artifacts(options.exports).items():
        predictor = Predictor(artifact, max_batch=options.max_batch)
        for line in predictor.rejected:
            line = " ".join(line.split())
            print(f"{name}: a form that is wrong here is not run: {line}", file=sys.stderr)
        models[name] = Model(name, predictor, metrics, limits.queue, not options.no_batching)
    service = Service(models, limits, metrics, options.page)
    gc.collect()
    gc.freeze()  # what is there now stays: no need to look through it again while requests wait
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    forms = ", ".join(f"{name} ({model.predictor.form})" for name, model in models.items())
    listener.listen(BACKLOG)  # before the line below invites requests
    print(f"serving {forms} at {address} on {threads} threads", flush=True)
    _log_to_stderr(options.access_log)
    Uvicorn(service, options.access_log).run([listener])
    service.close()


def _artifacts(words):
    """The exports by name, of words that are EXPORT or NAME=EXPORT."""
    from gluon_resnetv2.deploy.artifact import load

    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = None, word
        elif not name or "/" in name:
            raise UserError(f"{word} is no NAME=EXPORT; a name is not empty and has no slash")
        artifact = load(path)
        name = artifact.name if name is None else name
        if name in found:
            raise UserError(f"two exports have the name {name}; name one: NAME={path}")
        found[name] = artifact
    return found


def _check(options):
    for name, least in (("max_batch", 1), ("queue", 1), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    for name in ("body_limit", "memory", "timeout"):
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port must be within 0 to 65535, not {options.port}")
    if options.memory < options.body_limit:
        raise UserError(f"--memory must be at least --body-limit, {options.body_limit:g}")


def _listener(host, port):
    """A socket that has the address already, and listens later."""
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except OSError as error:
        if listener:
            listener.close()
        reason = error.strerror or error
        raise UserError(f"can't listen on {host}:{port}: {reason}; name another --port") from None


def _settle_threads(threads):
    """Sets what OpenMP reads when MXNet loads it; how many threads compute.

    By default OpenMP's threads wait for each other in a loop. Where anything else wants a CPU, as
    the event loop does here, that takes the CPU from the thread that is waited for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores = max(1, runtime.cpus() // (2 if runtime.hyper_threads() else 1))
    if threads or "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads or cores)
    return os.environ["OMP_NUM_THREADS"]


def _log_to_stderr(access_log):
    """Failures, and each request if asked for; not what clients do wrong, which they are told."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
