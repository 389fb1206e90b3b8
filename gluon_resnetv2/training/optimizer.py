"""The Trainer of a recipe, and its state as arrays that a checkpoint can hold."""

from __future__ import annotations

from collections import defaultdict
from operator import itemgetter

import mxnet as mx
import numpy as np
from mxnet import gluon

from gluon_resnetv2.distributed.server_optimizer import ServerOptimizer
from gluon_resnetv2.distributed.workers import Workers
from gluon_resnetv2.engines.native.update import Update
from gluon_resnetv2.net import CLASSIFIER
from gluon_resnetv2.training.recipe import MOMENTUM, Recipe
from gluon_resnetv2.training.schedule import Rate

TENSORS_AT_ONCE = 45  # updated by one operator call; MXNet's own 4 cost deep networks time
NUMBERS_AT_ONCE = 2**17  # about, of larger ones: the processor reads ahead of few


class Trainer(gluon.Trainer):
    """Gluon's, by which SGD with momentum updates deep networks in a fraction of the time.

    The native engine goes through all tensors once. MXNet's operator for several goes through them
    all as far as the largest reaches: tensors of one size go together. And what stays from one
    update to the next is found out once. The numbers are the same to the bit.

    Args:
        native: whether the native engine updates.
    """

    def __init__(self, *args, native: bool = False, **options):
        super().__init__(*args, **options)
        self._native = native
        self._together: list[list[_Together]] | None = None  # for each device

    def _update(self, ignore_stale_grad=False):
        sgd = self._optimizer
        if type(sgd) is not mx.optimizer.SGD or not sgd.momentum or self._update_on_kvstore:
            super()._update(ignore_stale_grad)
            return
        if self._together is None:
            self._together = [self._collected(device) for device in range(len(self._updaters))]
        for groups in self._together:
            for group in groups:
                group.update(sgd)

    def state(self, device: int, index: int):
        """What the optimiser keeps of a parameter on one device, which is made if it is missing."""
        updater = self._updaters[device]
        if index not in updater.states:
            weight = self._params[index].list_data()[device]
            updater.states[index] = self._optimizer.create_state_multi_precision(index, weight)
            updater.states_synced[index] = True
        return updater.states[index]

    def _collected(self, device):
        """The parameters of one device in groups, with their momenta."""
        by_type = defaultdict(list)
        for index, parameter in enumerate(self._params):
            if parameter.grad_req == "null":
                continue
            weight, gradient = parameter.list_data()[device], parameter.list_grad()[device]
            arrays = weight, gradient, self.state(device, index)
            by_type[weight.dtype].append((weight.size, index, arrays))
        groups = []
        for dtype, tensors in by_type.items():
            if self._native and dtype == np.float32:
                groups.append(_Together(self._optimizer, tensors, native=True))
                continue
            tensors.sort(key=itemgetter(0, 1))
            while tensors:
                count = max(4, min(TENSORS_AT_ONCE, NUMBERS_AT_ONCE // tensors[-1][0]))
                groups.append(_Together(self._optimizer, tensors[-count:]))
                del tensors[-count:]
        return groups


class _Together:
    """Tensors that one call updates: (size, index, (weight, gradient, momentum)) each."""

    def __init__(self, sgd, tensors, native=False):
        self._indices = [index for _, index, _ in tensors]
        self._weights = [arrays[0] for _, _, arrays in tensors]
        self._arrays = [array for _, _, arrays in tensors for array in arrays]
        self._device = self._weights[0].context.device_id
        self._factors = np.array([sgd.param_dict[index].lr_mult for index in self._indices])
        wds = sgd._get_wds(self._indices)
        self._wds = str(wds)
        self._native = Update([arrays for *_, arrays in tensors], wds) if native else None

    def update(self, sgd):
        sgd._set_current_context(self._device)
        sgd._update_count(self._indices)
        rates = sgd.learning_rate * self._factors
        if self._native:
            self._native(rates, sgd.momentum, sgd.rescale_grad)
            return
        mx.nd.multi_sgd_mom_update(
            *self._arrays,
            out=self._weights,
            num_weights=len(self._weights),
            lrs=str(rates.tolist()),
            wds=self._wds,
            momentum=sgd.momentum,
            rescale_grad=sgd.rescale_grad,
        )


def make_trainer(
    net: gluon.Block,
    recipe: Recipe,
    workers: Workers | None = None,
    schedule: Rate | None = None,
    step: int = 0,
) -> Trainer:
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
    return Trainer(
        params,
        optimizer,
        kvstore=workers.store if workers else recipe.kv_store,
        update_on_kvstore=on_server,
        native=recipe.engine == "native",
    )


def set_learning_rate(trainer: Trainer, recipe: Recipe, schedule: Rate, step: int) -> float:
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


def optimizer_state(trainer: Trainer) -> tuple[dict[str, mx.nd.NDArray], int]:
    """The optimiser's arrays by parameter, "NAME" or "NAME.0", and its count of updates.

    Every device has the same. Where a parameter server updates, they are there and out of reach,
    and there are none here.
    """
    arrays = {}
    for updater in _updaters(trainer)[:1]:
        for index, state in updater.states.items():
            arrays.update(_named(trainer._params[index].name, state))
    return arrays, trainer.optimizer.num_update


def restore_optimizer(trainer: Trainer, arrays: dict[str, mx.nd.NDArray], updates: int) -> None:
    """Gives the optimiser back what `optimizer_state` said, on however many devices it has now."""
    if not updates:  # then there is nothing to restore
        return
    trainer._init_kvstore()
    trainer._init_params()
    optimizer = trainer.optimizer
    learned = [i for i, p in enumerate(trainer._params) if p.grad_req != "null"]
    for device in range(len(_updaters(trainer))):
        for index in learned:
            state = trainer.state(device, index)
            for name, array in _named(trainer._params[index].name, state).items():
                array[:] = arrays[name]
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
