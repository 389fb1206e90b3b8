"""Peak memory and time of a training step, with and without activation recomputation.

python benchmarks/recompute.py --model preact1001 --batch-size 32
python benchmarks/recompute.py --model preact1001 --batch-size 128 --recomputed-only

The two ways take turns, each time in a fresh process. Peak memory is the most that the process ever
held (resident set): the interpreter and MXNet, parameters, gradients, momentum, and activations.
Gradients and moving statistics of the first step are compared array by array.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks import in_a_fresh_process
from benchmarks.rounds import load_before
from gluon_resnetv2 import cli
from gluon_resnetv2.spec import named


def peak_memory() -> float:
    """The most that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(way: str, model: str, batch_size: int, segments: int | None, steps: int, folder: str):
    """Trains for one step, and for `steps` more that are timed.

    Args:
        way: "plain" or "recomputed", in `segments` segments.
        folder: where the first step's gradients and moving statistics go.

    Returns:
        {"before" and "peak": MB, "first" and "times": seconds}.
    """
    # Here, so that the process that starts the others stays small: they inherit its peak.
    import mxnet as mx
    from mxnet import autograd, gluon

    from gluon_resnetv2.memory import Recomputed
    from gluon_resnetv2.net import ResNetV2

    spec = named(model)
    size = 32 if spec.stem == "cifar" else 224
    mx.random.seed(0)
    rng = np.random.RandomState(0)
    images = mx.nd.array(rng.normal(size=(batch_size, 3, size, size)))
    labels = mx.nd.array(rng.randint(0, spec.classes, batch_size))
    net = ResNetV2(spec)
    net.initialize()
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(
        net.collect_params(), "sgd", {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-4}
    )
    cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
    recomputed = Recomputed(net, segments) if way == "recomputed" else None

    def losses_of(outputs):
        return [cross_entropy(output, labels) for output in outputs]

    def forward_backward():
        if recomputed:
            recomputed.forward_backward([images], losses_of)
            return
        with autograd.record():
            losses = losses_of([net(images)])
        autograd.backward(losses)

    mx.nd.waitall()
    before, times = peak_memory(), []
    for step in range(1 + steps):
        started = time.perf_counter()
        forward_backward()
        mx.nd.waitall()
        elapsed = time.perf_counter() - started
        if step == 0:
            for name, parameter in net.collect_params().items():
                array = parameter.data() if parameter.grad_req == "null" else parameter.grad()
                np.save(f"{folder}/{name}", array.asnumpy())
        started = time.perf_counter()
        trainer.step(batch_size)
        mx.nd.waitall()
        times.append(elapsed + time.perf_counter() - started)
    return {"before": before, "peak": peak_memory(), "first": times[0], "times": times[1:]}


def compare(plain: Path, other: Path) -> str:
    """What the arrays in two folders say about each other, in a line."""
    names = sorted(path.name for path in plain.iterdir())
    differences = []
    for name in names:
        expected, found = np.load(plain / name), np.load(other / name)
        if not np.array_equal(expected, found):
            difference = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            differences.append((difference, name[: -len(".npy")]))
    line = f"{len(names) - len(differences)} of {len(names)} gradients and statistics bit-identical"
    if differences:
        line += "; largest relative difference {:.1e}, {}".format(*max(differences))
    return line


def row(way: str, runs: list[dict], batch_size: int) -> tuple[float, float]:
    """Prints a line of the table; returns the peak and the median time."""
    times = [seconds for run in runs for seconds in run["times"]]
    peak, median = max(run["peak"] for run in runs), statistics.median(times)
    print(
        f"{way:<12}{max(run['before'] for run in runs):>10.0f}{peak:>10.0f}"
        f"{max(run['first'] for run in runs):>12.2f}{len(times):>5}{median:>10.2f}"
        f"{f'{min(times):.2f}-{max(times):.2f}':>14}{batch_size / median:>11.1f}"
    )
    return peak, median


def number_of_segments(text: str) -> int | None:
    return None if text == "auto" else int(text)


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="preact1001", help="as in train/cifar.py")
    parser.add_argument("--batch-size", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each way")
    parser.add_argument(
        "--recompute", type=number_of_segments, default="auto", help="auto or a number of segments"
    )
    parser.add_argument("--recomputed-only", action="store_true", help="leave out the plain way")
    args = parser.parse_args()

    ways = ["recomputed"] if args.recomputed_only else ["plain", "recomputed"]
    runs = {way: [] for way in ways}
    load_before()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, way) for way in ways]
        for folder in folders:
            folder.mkdir()
        for _ in range(args.rounds):
            for way, folder in zip(ways, folders):
                job = (way, args.model, args.batch_size, args.recompute, args.steps, str(folder))
                runs[way].append(in_a_fresh_process(measure, *job))
        verdict = "" if args.recomputed_only else compare(*folders)

    print(f"{args.model}, batch {args.batch_size}; memory in MB, times in s")
    print(
        f"{'':<12}{'at start':>10}{'peak':>10}{'first step':>12}{'n':>5}{'median':>10}"
        f"{'spread':>14}{'images/s':>11}"
    )
    results = [row(way, runs[way], args.batch_size) for way in ways]
    if not args.recomputed_only:
        (peak, median), (recomputed_peak, recomputed_median) = results
        print(f"peak {recomputed_peak / peak:.1%}, time {recomputed_median / median:.2f}x of plain")
        print(verdict)


if __name__ == "__main__":
    cli.run(main)
