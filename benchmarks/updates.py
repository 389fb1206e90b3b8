"""One update of every parameter, by Gluon's Trainer, by ours, and by PyTorch's SGD.

python benchmarks/updates.py
python benchmarks/updates.py --models preact20 --ways "Gluon Trainer" ours --rounds 3

The ways take turns, each time in a fresh process, all with the same number of threads: SGD with
momentum 0.9 and weight decay 1e-4, after a pass forward and backward that does not count. A round's
figure is the median of its updates. The table has the median of the rounds and their range, and so
for the ratios, which are taken within each round. Above 1 is better.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks import in_a_fresh_process, rounds
from benchmarks.peers import torch_network
from gluon_resnetv2 import cli
from gluon_resnetv2.spec import named

# How PyTorch's SGD goes through the parameters.
TORCH = {
    "PyTorch SGD": {},
    "PyTorch SGD foreach": {"foreach": True},
    "PyTorch SGD fused": {"fused": True},
}
WAYS = ("Gluon Trainer", *TORCH, "ours", "ours native")
BASES = "Gluon Trainer", "PyTorch SGD", "PyTorch SGD fused"
WARM_UP = 2  # updates
SIZE = 8  # of the images: any give gradients


def torch_update(way: str, model: str, images: np.ndarray):
    """What makes gradients and what uses them, in PyTorch."""
    import torch

    net = torch_network(named(model)).train()
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, **TORCH[way]}
    optimizer = torch.optim.SGD(net.parameters(), **settings)

    def backward():
        optimizer.zero_grad(set_to_none=True)
        net(torch.from_numpy(images)).sum().backward()

    return backward, optimizer.step


def gluon_update(way: str, model: str, images: np.ndarray):
    """The same with Gluon's Trainer, as it is or as we make it."""
    import mxnet as mx
    from mxnet import autograd, gluon

    from gluon_resnetv2.training.main import initial_network
    from gluon_resnetv2.training.optimizer import make_trainer
    from gluon_resnetv2.training.recipe import Recipe

    spec = named(model)
    engine = "native" if way == "ours native" else "mxnet"
    settings = {"lr": 0.01, "mom": 0.9, "wd": 1e-4, "engine": engine}
    recipe = Recipe(model=model, dataset="synthetic", **settings)
    net = initial_network(recipe, spec.classes, [mx.cpu()])
    if way.startswith("ours"):
        trainer = make_trainer(net, recipe)
    else:
        settings = {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-4}
        trainer = gluon.Trainer(net.collect_params(), "sgd", settings)
    images = mx.nd.array(images)

    def backward():
        with autograd.record():
            outputs = net(images)
        outputs.backward()
        mx.nd.waitall()

    def update():
        trainer.step(len(images))
        mx.nd.waitall()

    return backward, update


def measure(way: str, model: str, seconds: float) -> float:
    """Milliseconds of an update."""
    import gluon_resnetv2  # noqa: F401  # prepares MXNet

    shape = 2, named(model).in_channels, SIZE, SIZE
    images = np.random.RandomState(0).normal(size=shape).astype("float32")
    backward, update = (torch_update if way in TORCH else gluon_update)(way, model, images)
    return 1e3 * rounds.median_seconds(update, seconds, WARM_UP, before=backward)


def cases(models: Sequence[str], ways: Sequence[str], count: int, seconds: float) -> Iterator[dict]:
    """Measures each model, in `count` rounds."""
    for model in models:
        found, failed = rounds.alternate(
            ways,
            count,
            lambda way, model=model: in_a_fresh_process(measure, way, model, seconds),
        )
        yield rounds.case(f"{model}, one update", "ms", found, BASES, failed)


def main() -> None:
    parser = rounds.parser(__doc__, WAYS, models=("preact1001",))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each, with its passes")
    args = parser.parse_args()
    found = cases(args.models, args.ways, args.rounds, args.seconds)
    rounds.compare(__doc__, args, found)


if __name__ == "__main__":
    cli.run(main)
