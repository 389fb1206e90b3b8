"""Training steps of ours, and of every other way to train these networks on the same machine.

python benchmarks/training.py
python benchmarks/training.py --models preact110 preact164 --rounds 5 --output training

The ways take turns, each time in a fresh process, all with the same number of threads, on the same
images: forward, backward, an update with momentum and weight decay. A round's figure is the median
of its steps; the table has the median of the rounds and their range, and so for the ratios, which
are taken within each round. Above 1 is better. A matrix product's figure is what the multiply-adds
of the three passes come to at the speed of the machine's largest one, a bound of its type's ways.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks import in_a_fresh_process, rounds
from benchmarks.peers import (
    LIMITS,
    PEERS,
    gluoncv_network,
    module_step,
    multiply_adds,
    torch_step,
)
from gluon_resnetv2 import cli
from gluon_resnetv2.spec import named

WAYS = (
    *PEERS,
    "ours float32",
    "ours bfloat16",
    "ours native float32",
    "ours native bfloat16",
    *LIMITS,
)
BASES = "GluonCV", "PyTorch eager", "PyTorch bf16 compiled"
WARM_UP = 3  # steps


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


def step_of(way: str, model: str, batch_size: int, size: int):
    """A function that makes one training step, and returns when it is done."""
    import gluon_resnetv2  # noqa: F401  # prepares MXNet

    spec = named(model)
    rng = np.random.RandomState(0)
    images = rng.normal(size=(batch_size, spec.in_channels, size, size)).astype("float32")
    labels = rng.randint(0, spec.classes, batch_size).astype("int32")
    if way == "GluonCV":
        return gluon_step(gluoncv_network(spec), images, labels)
    if way == "MXNet Module":
        return module_step(spec, images, labels)
    if way.startswith("PyTorch"):
        return torch_step(spec, way, images, labels)
    return our_step(spec, way, images, labels)


def measure(way: str, model: str, batch_size: int, size: int, seconds: float) -> float:
    """Images per second."""
    if way in LIMITS:  # forward, and back to the images and to the weights
        return multiply_adds(way) / (3 * named(model).multiply_adds(size))
    step = step_of(way, model, batch_size, size)
    return batch_size / rounds.median_seconds(step, seconds, WARM_UP)


def cases(
    models: Sequence[str],
    ways: Sequence[str],
    count: int,
    seconds: float,
    batch_size: int,
    image_size: int | None = None,
) -> Iterator[dict]:
    """Measures each model, in `count` rounds."""
    for model in models:
        size = image_size or rounds.usual_size(model)
        job = model, batch_size, size, seconds
        found, failed = rounds.alternate(
            ways, count, lambda way, job=job: in_a_fresh_process(measure, way, *job)
        )
        title = f"{model}, training, {size}x{size}, batch {batch_size}"
        yield rounds.case(title, "images/s", found, (*BASES, *LIMITS), failed)


def main() -> None:
    parser = rounds.parser(__doc__, WAYS, models=("preact20", "preact110", "preact164"))
    parser.add_argument("--batch-size", type=rounds.at_least_1, default=64, help="of a step")
    parser.add_argument("--image-size", type=rounds.at_least_1, help="default: 32 or 224")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    args = parser.parse_args()
    sizes = args.batch_size, args.image_size
    found = cases(args.models, args.ways, args.rounds, args.seconds, *sizes)
    rounds.compare(__doc__, args, found)


if __name__ == "__main__":
    cli.run(main)
