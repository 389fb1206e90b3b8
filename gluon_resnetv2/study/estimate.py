"""What runs cost on this machine, before they are made.

A step costs so much for each operation that MXNet is handed, and so much for each multiply-add.
Both are measured here by a few steps of a small network.

`python -m gluon_resnetv2.study.estimate JSON` is the process that measures, with the threads that a
run will have.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gluon_resnetv2.cli import run_module
from gluon_resnetv2.data import num_batches
from gluon_resnetv2.spec import IMAGE_SIZES, Spec
from gluon_resnetv2.study.plan import Planned
from gluon_resnetv2.study.runner import Slot

IMAGES = {  # for training and for testing
    "digits": (1437, 360),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
}
CLASSES = 10  # about: a classifier costs next to nothing
START = 6.0  # seconds of a run's start and end, most of them MXNet's import
FOLLOWING = 8  # steps that take as long as following signals once, an operation at a time
STEPS = 3  # measured of each batch
BATCHES = {False: (8, 64), True: (2, 8)}  # images of those measured, by whether it is ImageNet's


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step for each operation, and for each multiply-add of its images."""

    operation: float
    multiply_add: float

    def step(self, spec: Spec, image_size: int, images: int) -> float:
        """Seconds of one step."""
        work = spec.multiply_adds(image_size) * images
        return self.operation * _operations(spec) + self.multiply_add * work


def estimate(runs: Sequence[Planned], slot: Slot) -> dict[Planned, float]:
    """Seconds that each run takes on one slot, while the others are as busy."""
    if not runs:
        return {}
    imagenet = any(run.recipe.dataset == "imagenet" for run in runs)
    speed = _measured(imagenet, runs[0].recipe.engine, slot)
    return {run: seconds(run, speed) for run in runs}


def seconds(run: Planned, speed: Speed) -> float:
    """What training takes, evaluation after each epoch included."""
    recipe = run.recipe
    train, test = IMAGES[recipe.dataset]
    size = recipe.image_size or IMAGE_SIZES["imagenet" if recipe.dataset == "imagenet" else "cifar"]
    spec = recipe.spec(CLASSES)
    steps = recipe.total_steps(num_batches(train, recipe.batch_size, recipe.parts))
    # A forward pass is a third of a step.
    evaluated = 1 + test / train / 3
    if run.propagation:
        steps += FOLLOWING * ((recipe.num_epochs or 0) + 1)
    return START + steps * evaluated * speed.step(spec, size, recipe.batch_size)


def _operations(spec):
    units = spec.units()
    return sum(len(unit.pre + unit.body + unit.after) + 1 for unit in units)


def _measured(imagenet: bool, engine: str, slot: Slot) -> Speed:
    """`measure`, with the threads of a slot.

    Raises:
        UserError: it can't be measured.
    """
    answer = run_module(
        "gluon_resnetv2.study.estimate",
        {"imagenet": imagenet, "engine": engine, "gpus": slot.gpus},
        "the speed of this machine",
        OMP_NUM_THREADS=str(slot.threads),
    )
    return Speed(*json.loads(answer))


def measure(imagenet: bool, engine: str, gpus: Sequence[int] | None) -> Speed:
    """Times training steps of a small network, of two batch sizes, as a run would make them.

    Args:
        engine: as the recipe has it.
    """
    import mxnet as mx
    import numpy as np

    from gluon_resnetv2.distributed.workers import Workers
    from gluon_resnetv2.training.devices import contexts
    from gluon_resnetv2.training.engine import choose
    from gluon_resnetv2.training.main import initial_network
    from gluon_resnetv2.training.optimizer import make_trainer
    from gluon_resnetv2.training.recipe import Recipe
    from gluon_resnetv2.training.step import Step

    model, size = ("preact18", 224) if imagenet else ("preact20", 16)
    first = tuple(gpus[:1]) if gpus else None
    recipe = Recipe(model=model, dataset="synthetic", engine=engine, gpus=first)
    devices = contexts(recipe.gpus)
    net = initial_network(recipe, CLASSES, devices)
    engine, _ = choose(recipe, net, (3, size, size), Workers(None))
    recipe = replace(recipe, engine=engine)
    update = Step(net, make_trainer(net, recipe), recipe, devices)
    times, (small, large) = [], BATCHES[imagenet]
    for count in (small, large):
        images, labels = np.ones((count, 3, size, size), "float32"), np.zeros(count, "int32")
        taken = []
        for number in range(STEPS + 1):
            began = time.perf_counter()
            update(images, labels, number, count)
            mx.nd.waitall()
            taken.append(time.perf_counter() - began)
        times.append(statistics.median(taken[1:]))  # the first one prepares kernels
    slope = max((times[1] - times[0]) / (large - small), 0.0)  # seconds for an image
    intercept = max(times[0] - small * slope, 0.0)
    return Speed(intercept / _operations(net.spec), slope / net.spec.multiply_adds(size))


def main() -> None:
    speed = measure(**json.loads(sys.argv[1]))
    print(json.dumps([speed.operation, speed.multiply_add]))


if __name__ == "__main__":
    main()
