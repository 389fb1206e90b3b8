"""What a checkpoint keeps of a training, and how one goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mxnet as mx
import numpy as np

from gluon_resnetv2.checkpoint import State
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.manifest import Input
from gluon_resnetv2.training import statistics
from gluon_resnetv2.training.fields import words
from gluon_resnetv2.training.meter import Meter
from gluon_resnetv2.training.optimizer import optimizer_state, restore_optimizer
from gluon_resnetv2.training.recipe import Recipe

if TYPE_CHECKING:
    from gluon_resnetv2.training.loop import Training


def kept(training: Training) -> tuple[dict[str, mx.nd.NDArray], State]:
    """The optimiser's arrays, as "optimizer:NAME", and every number.

    All workers have to call it together.
    """
    arrays, updates = optimizer_state(training.trainer)
    meter = training.meter.sums()
    if training.workers.count > 1:
        total = np.sum([[0.0] * 3, *meter], axis=0)
        meter = [total.tolist() for total in training.workers.sum([total])]
    dataset, scaler = training.dataset, training.update.scaler
    state = State(
        step=training.step,
        epoch=training.epoch,
        steps_per_epoch=training.steps,
        updates=updates,
        loss_scale=scaler.state() if scaler else None,
        meter=meter,
        seconds=training.clock(),
        best=training.best,
        metrics=training.record,
        devices=len(training.devices),
        workers=training.workers.count,
        recipe=training.recipe.to_dict(),
        spec=training.net.spec,
        classes=dataset.classes,
        engine=training.engine,
        input=Input(
            shape=dataset.image_shape,
            mean=dataset.mean,
            std=dataset.std,
            crop=dataset.crop,
            interpolation=dataset.interpolation,
            stretch=dataset.stretch,
        ),
    )
    return {f"optimizer:{name}": array for name, array in arrays.items()}, state


def check(training: Training, path: Path, state: State) -> dict[str, tuple]:
    """Checks that a run can go on from a checkpoint; returns what is new in its schedule.

    Raises:
        UserError: it can't.
    """
    if state.steps_per_epoch != training.steps:
        raise UserError(
            f"{path} has {state.steps_per_epoch} steps in an epoch, not {training.steps}: "
            "another data set, or so many devices or workers that the last batch changes"
        )
    step, end = state.step, training.steps_in_all
    evaluated = state.epoch * training.steps >= step
    changes = Recipe.from_dict(state.recipe).differences(training.recipe, machine=False)
    if changes and (step > end or (step == end and evaluated)):
        raise UserError(
            f"{training.run.folder} has done {step} steps and would end after {end}: to go on with "
            "another schedule, name more --num-epochs or --num-steps"
        )
    return changes


def news(training: Training, state: State | None, changes: dict[str, tuple]) -> list[str]:
    """What is to be told of the schedule: of a new run's, or of one that it goes on with."""
    if state and not changes:
        return []
    lines = [training.recipe.beyond_the_end(training.steps)]
    if state:
        before, now = (words(zip(changes, values)) for values in zip(*changes.values()))
        lines.insert(0, f"from step {state.step} on: {now}, instead of {before}")
    return [line for line in lines if line]


def restore(training: Training, path: Path, state: State) -> None:
    """Brings back all that a checkpoint keeps besides the network.

    Each device's statistics are its own again where the devices are as they were.
    """
    training.step, training.epoch, training.seconds = state.step, state.epoch, state.seconds
    training.best, training.record = state.best, state.metrics
    training.saved = {state.step: path}
    scaler, average = training.update.scaler, training.update.average
    if scaler and state.loss_scale:
        scaler.load(state.loss_scale)
    if state.step:
        started = Recipe.from_dict(state.recipe).schedule(training.steps)
        training.trainer.set_learning_rate(started(state.step - 1))
    arrays: dict[str, dict[str, mx.nd.NDArray]] = {"optimizer": {}}
    # MXNet reads a file without arrays as a list.
    for name, array in dict(mx.nd.load(str(path / "training.params"))).items():
        kind, _, name = name.partition(":")
        arrays.setdefault(kind, {})[name] = array
    count = len(training.devices)
    same = training.workers.count == 1 == state.workers and state.devices == count
    if average:
        average.load(arrays["trained"], arrays if same else {})
    restore_optimizer(training.trainer, arrays["optimizer"], state.updates)
    if same:
        own = [arrays.get(f"device{i}", {}) for i in range(count)]
        statistics.restore(training.net, {name: [one[name] for one in own] for name in own[0]})
    if training.workers.rank == 0:
        training.meter = Meter(state.meter, training.devices, training.recipe.array_dtype)
