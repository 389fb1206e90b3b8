"""The Trainer of a recipe, and its state as arrays that a checkpoint can hold."""

from __future__ import annotations

import mxnet as mx
from mxnet import gluon

from gluon_resnetv2.distributed.server_optimizer import ServerOptimizer
from gluon_resnetv2.distributed.workers import Workers
from gluon_resnetv2.net import CLASSIFIER
from gluon_resnetv2.training.recipe import MOMENTUM, Recipe
from gluon_resnetv2.training.schedule import Rate

# Tensors updated by one operator call; MXNet's default of 4 costs deep networks time.
TENSORS_AT_ONCE = 45


def make_trainer(
    net: gluon.Block,
    recipe: Recipe,
    workers: Workers | None = None,
    schedule: Rate | None = None,
    step: int = 0,
) -> gluon.Trainer:
    """The recipe's optimiser over every parameter of `net`, which is initialised on all devices.

    Args:
        workers: the processes that train together.
        schedule, step: the learning rate by step, and the step to begin with, for servers that set
            it themselves: those of dist_async.
    """
    params = net.collect_params()
    if recipe.wd_on == "weights":
        for name, parameter in params.items():
            parameter.wd_mult = float(name.endswith("weight"))
    for name, parameter in params.items():
        parameter.lr_mult = 1.0 if name.endswith(CLASSIFIER) else recipe.lr_scale_features
    arguments = {"learning_rate": recipe.lr, "wd": recipe.wd}
    if recipe.optimizer in MOMENTUM:
        arguments["momentum"] = recipe.mom
    optimizer = mx.optimizer.create(recipe.optimizer, **arguments)
    if optimizer.aggregate_num:
        optimizer.aggregate_num = TENSORS_AT_ONCE
    on_server = recipe.kv_store == "dist_async"  # nobody else has every gradient
    if on_server and workers and schedule:
        optimizer = ServerOptimizer(optimizer, schedule, workers.count, step)
    return gluon.Trainer(
        params,
        optimizer,
        kvstore=workers.store if workers else recipe.kv_store,
        update_on_kvstore=on_server,
    )


def set_learning_rate(trainer: gluon.Trainer, recipe: Recipe, schedule: Rate, step: int) -> float:
    """Gives the trainer `schedule(step)`, the learning rate of that update, and returns it.

    From step 1 on the trainer has to have that of the update before, perhaps another schedule's.
    MXNet's SGD and NAG hold the rate within their momenta. With --momentum-correction these are
    scaled as it changes (arXiv:1706.02677, section 3), whether updates are left out or not.
    """
    lr, last = schedule(step), trainer.learning_rate
    trainer.set_learning_rate(lr)
    if recipe.momentum_correction and step and lr != last:
        for updater in _updaters(trainer):
            for state in updater.states.values():
                for momentum in _named("", state).values():
                    momentum *= lr / last
    return lr


def optimizer_state(trainer: gluon.Trainer) -> tuple[dict[str, mx.nd.NDArray], int]:
    """The optimiser's arrays by parameter, "NAME" or "NAME.0", and its count of updates.

    Every device has the same. Where a parameter server updates, they are there and out of reach,
    and there are none here.
    """
    arrays = {}
    for updater in _updaters(trainer)[:1]:
        for index, state in updater.states.items():
            arrays.update(_named(trainer._params[index].name, state))
    return arrays, trainer.optimizer.num_update


def restore_optimizer(
    trainer: gluon.Trainer, arrays: dict[str, mx.nd.NDArray], updates: int
) -> None:
    """Gives the optimiser back what `optimizer_state` said, on however many devices it has now."""
    if not updates:  # then there is nothing to restore
        return
    trainer._init_kvstore()
    trainer._init_params()
    optimizer = trainer.optimizer
    learned = [i for i, p in enumerate(trainer._params) if p.grad_req != "null"]
    for device, updater in enumerate(_updaters(trainer)):
        for index in learned:
            weight = trainer._params[index].list_data()[device]
            state = optimizer.create_state_multi_precision(index, weight)
            for name, array in _named(trainer._params[index].name, state).items():
                array[:] = arrays[name]
            updater.states[index] = state
            updater.states_synced[index] = True
    optimizer.num_update = updates
    ids = {context.device_id for context in trainer._contexts}
    optimizer._all_index_update_counts.update(
        {device_id: dict.fromkeys(learned, updates) for device_id in ids | {0}}
    )
    optimizer._set_current_context(0)


def _updaters(trainer):
    return [] if trainer._update_on_kvstore else trainer._updaters  # a server's are there


def _named(name, state) -> dict[str, mx.nd.NDArray]:
    """The arrays of one parameter's state, which is an array, None, or a tuple of these."""
    if state is None:
        return {}
    if isinstance(state, mx.nd.NDArray):
        return {name: state}
    parts = [_named(f"{name}.{i}", part) for i, part in enumerate(state)]
    return {key: array for part in parts for key, array in part.items()}
