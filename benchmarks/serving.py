"""Throughput and latency of `serve`, one image a request, beside the predictor alone.

python benchmarks/serving.py runs/digits-preact20
python benchmarks/serving.py runs/digits-preact20 --clients 1 --tritonclient

The ways take turns. Server and clients share this machine, which is part of the price. The clients
are connections of one process, each sending its next request when its last is answered: binary
tensors over bare sockets, the least that a client can cost; with --tritonclient also NVIDIA's own.
Every answer is compared with the predictor's. Ratios are to the predictor alone.
"""

from __future__ import annotations

import json
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks import in_a_fresh_process
from benchmarks.rounds import load_before
from gluon_resnetv2 import cli
from gluon_resnetv2.scores import relative_difference

ROOT = Path(__file__).resolve().parents[1]
BATCH = 64  # of the predictor alone
WARM_UP = 0.5  # seconds that are not counted
TOLERANCE = 1e-4  # relative to the largest output: batches of other sizes round differently
ALONE = "predictor alone, batch 64"
SERVERS = {"batching on": [], "batching off": ["--no-batching"]}


def images_of(shape: tuple, count: int) -> np.ndarray:
    return np.random.RandomState(0).normal(size=(count, *shape)).astype("float32")


def predictor_alone(export: str, count: int, seconds: float) -> dict:
    """Images per second at batch 64; and the shape of an image and the outputs for `count`."""
    from gluon_resnetv2.engines.predictor import Predictor
    from gluon_resnetv2.formats.artifact import load

    predictor = Predictor(load(export), max_batch=BATCH)
    images = images_of(predictor.shape, BATCH)
    times, end = [], time.perf_counter() + WARM_UP + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        predictor.run(images)
        times.append(time.perf_counter() - started)
    return {
        "rate": BATCH * len(times) / sum(times),
        "form": predictor.form,
        "shape": predictor.shape,
        "output": predictor.output,
        "expected": predictor.run(images_of(predictor.shape, count)),
    }


class Server:
    """`serve` in a process of its own, for the length of a block."""

    def __init__(self, export: str, options: list[str]):
        command = [sys.executable, "-m", "gluon_resnetv2", "serve", f"net={export}", "--port", "0"]
        self._process = subprocess.Popen(
            [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> int:
        """The port that it listens on."""
        line = self._process.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        return int(re.search(r":(\d+) ", line)[1])

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(timeout=30):
            sys.exit(f"the server ended with status {self._process.returncode}")


def bare_clients(port: int, images: np.ndarray, output: str, expected, seconds: float) -> list:
    """Latencies of requests over a connection for each image, in seconds."""
    waiting, requests = selectors.DefaultSelector(), []
    for index, image in enumerate(images):
        tensor = {"name": "data", "datatype": "FP32", "shape": [1, *image.shape]}
        tensor["parameters"] = {"binary_data_size": image.nbytes}
        asked = [{"name": output, "parameters": {"binary_data": True}}]
        text = json.dumps({"inputs": [tensor], "outputs": asked}).encode()
        head = (
            f"POST /v2/models/net/infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Inference-Header-Content-Length: {len(text)}\r\n"
            f"Content-Length: {len(text) + image.nbytes}\r\n\r\n"
        )
        requests.append(head.encode() + text + image.tobytes())
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting.register(connection, selectors.EVENT_READ, index)
    sent, size, received = [0.0] * len(images), expected[0].nbytes, [b""] * len(images)

    def send(connection, index):
        sent[index], received[index] = time.perf_counter(), b""
        connection.sendall(requests[index])

    for key in list(waiting.get_map().values()):
        send(key.fileobj, key.data)
    latencies, begin = [], time.perf_counter() + WARM_UP
    while time.perf_counter() < begin + seconds:
        for key, _ in waiting.select():
            index = key.data
            received[index] += key.fileobj.recv(65536)
            head, separator, body = received[index].partition(b"\r\n\r\n")
            if not separator:
                continue
            if len(body) < int(re.search(rb"content-length: (\d+)", head)[1]):
                continue
            now = time.perf_counter()
            if now >= begin:
                latencies.append(now - sent[index])
            if not head.startswith(b"HTTP/1.1 200"):
                sys.exit(body.decode())
            check(np.frombuffer(body[-size:], "<f4"), expected[index])
            send(key.fileobj, index)
    return latencies


def triton_clients(port: int, images: np.ndarray, output: str, expected, seconds: float) -> list:
    """The same with tritonclient's connections, driven by gevent."""
    import gevent
    from tritonclient import http

    client = http.InferenceServerClient(f"127.0.0.1:{port}", concurrency=len(images))
    latencies, begin = [], time.perf_counter() + WARM_UP

    def requests(index):
        tensor = http.InferInput("data", [1, *images[index].shape], "FP32")
        tensor.set_data_from_numpy(images[index][None])
        asked = [http.InferRequestedOutput(output)]
        while time.perf_counter() < begin + seconds:
            started = time.perf_counter()
            answer = client.infer("net", [tensor], outputs=asked)
            if started >= begin:
                latencies.append(time.perf_counter() - started)
            check(answer.as_numpy(output)[0], expected[index])

    gevent.joinall([gevent.spawn(requests, i) for i in range(len(images))], raise_error=True)
    return latencies


def check(found, expected):
    if not relative_difference(found, expected) <= TOLERANCE:
        sys.exit("the server answers other than the predictor")


def row(name: str, rates: list[float], reference: float, latencies: list[float]) -> None:
    """Prints a line of the table."""
    rate = statistics.median(rates)
    line = f"{name:<30}{len(rates):>3}{rate:>9.0f}{f'{min(rates):.0f}-{max(rates):.0f}':>13}"
    line += f"{rate / reference:>8.0%}"
    if latencies:
        p50, p99 = np.percentile(latencies, [50, 99])
        line += f"{len(latencies):>10}{1000 * p50:>8.1f}{1000 * p99:>8.1f}"
    print(line)


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("export", help="folder of an export or a run")
    parser.add_argument("--clients", type=int, default=16, help="requests at a time")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way")
    parser.add_argument("--tritonclient", action="store_true", help="with this client, too")
    args = parser.parse_args()

    clients = {"bare sockets": bare_clients}
    if args.tritonclient:
        clients["tritonclient"] = triton_clients
    load_before()
    rates, latencies = {ALONE: []}, {}
    for _ in range(args.rounds):
        job = (args.export, args.clients, args.seconds)
        alone = in_a_fresh_process(predictor_alone, *job)
        rates[ALONE].append(alone["rate"])
        images = images_of(alone["shape"], args.clients)
        for way, options in SERVERS.items():
            with Server(args.export, options) as port:
                for client, drive in clients.items():
                    job = (port, images, alone["output"], alone["expected"], args.seconds)
                    times = in_a_fresh_process(drive, *job)
                    rates.setdefault(f"{way}, {client}", []).append(len(times) / args.seconds)
                    latencies.setdefault(f"{way}, {client}", []).extend(times)

    print(f"{Path(args.export).name}, {alone['form']}, {args.clients} clients; latency in ms")
    print(
        f"{'':<30}{'n':>3}{'images/s':>9}{'spread':>13}{'ratio':>8}{'requests':>10}{'p50':>8}{'p99':>8}"
    )
    reference = statistics.median(rates[ALONE])
    for name, values in rates.items():
        row(name, values, reference, latencies.get(name, []))


if __name__ == "__main__":
    cli.run(main)
