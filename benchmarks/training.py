"""Training steps of ours, and of every other way to train these networks on the same machine.

python benchmarks/training.py
python benchmarks/training.py --models preact110 preact164 --rounds 5 --output training

The ways take turns, each time in a fresh process, all with the same number of threads, on the same
images: forward, backward, an update with momentum and weight decay. A round's figure is the median
of its steps; the table has the median of the rounds and their range, and the ratio to GluonCV's.
With --output NAME the same as NAME.json and NAME.png.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks import in_a_fresh_process
from benchmarks.peers import gluoncv_network, module_step, torch_step
from gluon_resnetv2 import cli
from gluon_resnetv2.runtime import cpus
from gluon_resnetv2.spec import named

BASE = "GluonCV"
WAYS = (
    BASE,
    "MXNet Module",
    "PyTorch eager",
    "PyTorch channels_last",
    "PyTorch compiled",
    "PyTorch bf16 channels_last",
    "PyTorch bf16 compiled",
    "ours float32",
    "ours bfloat16",
    "ours native float32",
    "ours native bfloat16",
)
WARM_UP = 3  # steps: the first ones compile, and lay out weights


def gluon_step(net, images, labels):
    """A step of a hybridized Gluon network, as everybody writes it."""
    import mxnet as mx
    from mxnet import autograd, gluon

    net.hybridize(static_alloc=True, static_shape=True)
    settings = {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-4}
    trainer = gluon.Trainer(net.collect_params(), "sgd", settings)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    images, labels = mx.nd.array(images), mx.nd.array(labels)

    def step():
        with autograd.record():
            loss = loss_of(net(images), labels)
        loss.backward()
        trainer.step(len(images))
        mx.nd.waitall()

    return step


def our_step(spec, way, images, labels):
    """A step of ours, by the code that `train/` runs."""
    import mxnet as mx

    from gluon_resnetv2.training.main import initial_network
    from gluon_resnetv2.training.optimizer import make_trainer
    from gluon_resnetv2.training.recipe import Recipe
    from gluon_resnetv2.training.step import Step

    *_, dtype = way.split()
    engine = "native" if "native" in way else "mxnet"
    settings = {"batch_size": len(images), "dtype": dtype, "engine": engine}
    recipe = Recipe(model=spec.name, dataset="synthetic", **settings)
    net = initial_network(recipe, spec.classes, [mx.cpu()])
    update = Step(net, make_trainer(net, recipe), recipe, [mx.cpu()])
    update.trainer.set_learning_rate(0.01)

    def step():
        update(images, labels, 0, len(images))
        mx.nd.waitall()

    return step


def step_of(way: str, model: str, images: np.ndarray, labels: np.ndarray):
    """A function that makes one training step, and returns when it is done."""
    spec = named(model)
    if way == BASE:
        return gluon_step(gluoncv_network(spec), images, labels)
    if way == "MXNet Module":
        return module_step(spec, images, labels)
    if way.startswith("PyTorch"):
        return torch_step(spec, way, images, labels)
    return our_step(spec, way, images, labels)


def measure(way: str, model: str, batch_size: int, size: int, seconds: float) -> list[float] | None:
    """Seconds of each step; None where what it needs is not installed."""
    import gluon_resnetv2  # noqa: F401  # prepares MXNet

    rng = np.random.RandomState(0)
    images = rng.normal(size=(batch_size, 3, size, size)).astype("float32")
    labels = rng.randint(0, named(model).classes, batch_size).astype("int32")
    try:
        step = step_of(way, model, images, labels)
    except ImportError:
        return None
    for _ in range(WARM_UP):
        step()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return times


def summary(batch_size: int, rounds: dict[str, list]) -> dict[str, dict]:
    """{way: images/s, its range over the rounds, and the ratio to `BASE` with its own}."""
    found = {}
    for way, times in rounds.items():
        if None in times:
            continue
        speeds = [batch_size / statistics.median(one) for one in times]
        found[way] = {"images_per_second": statistics.median(speeds), "range": _range(speeds)}
        if None not in rounds.get(BASE, [None]):
            pairs = zip(speeds, (batch_size / statistics.median(one) for one in rounds[BASE]))
            ratios = [speed / base for speed, base in pairs]  # of one round: neighbours in time
            found[way].update(ratio=statistics.median(ratios), ratio_range=_range(ratios))
    return found


def _range(values):
    return [min(values), max(values)]


def table(found: dict[str, dict]) -> str:
    lines = [("", "images/s", "range", f"of {BASE}", "range")]
    for way, values in found.items():
        low, high = values["range"]
        line = [way, f"{values['images_per_second']:.4g}", f"{low:.4g}-{high:.4g}", "", ""]
        if "ratio" in values:
            low, high = values["ratio_range"]
            line[3:] = f"{values['ratio']:.2f}", f"{low:.2f}-{high:.2f}"
        lines.append(line)
    return cli.aligned(lines, range(1, 5))


def draw(results: dict[str, dict], path: Path) -> None:
    """Ratios to `BASE`, a panel for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 2.4 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (model, found) in zip(panels, results.items()):
        ways = [way for way in found if "ratio" in found[way]][::-1]
        ratios = [found[way]["ratio"] for way in ways]
        ends = np.array([found[way]["ratio_range"] for way in ways]).T.reshape(2, -1)
        colors = ["#d55e00" if way.startswith("ours") else "#7f7f7f" for way in ways]
        axes.barh(ways, ratios, color=colors, xerr=np.abs(ends - ratios), error_kw={"linewidth": 1})
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(f"{model}, training", fontsize=10, loc="left")
    panels[-1].set_xlabel(f"speed / {BASE}'s; lines from the least to the most of the rounds")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["preact20", "preact110", "preact164"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a step")
    parser.add_argument("--image-size", type=int, help="in pixels; default: 32 or 224")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each way")
    parser.add_argument("--threads", type=int, default=cpus(), help="that each way may use")
    parser.add_argument("--output", metavar="NAME", help="writes NAME.json and NAME.png")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # the processes inherit it
    results = {}
    for model in args.models:
        size = args.image_size or (32 if named(model).stem == "cifar" else 224)
        rounds = {way: [] for way in args.ways}
        for _ in range(args.rounds):
            for way, times in rounds.items():
                job = way, model, args.batch_size, size, args.seconds
                times.append(in_a_fresh_process(measure, *job))
        results[model] = summary(args.batch_size, rounds)
        print(
            f"{model} at {size}x{size}, batch {args.batch_size}, {args.threads} threads, ", end=""
        )
        print(f"n = {args.rounds}\n{table(results[model])}\n", flush=True)
    if args.output:
        about = {"machine": platform.platform(), "threads": args.threads, "rounds": args.rounds}
        about.update(batch_size=args.batch_size, results=results)
        Path(f"{args.output}.json").write_text(json.dumps(about, indent=1) + "\n")
        draw(results, Path(f"{args.output}.png"))


if __name__ == "__main__":
    cli.run(main)
