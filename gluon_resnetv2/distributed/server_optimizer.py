"""The optimiser of dist_async, which runs on the servers.

They unpickle it in the middle of `import mxnet`, where they spend their lives: of MXNet this module
imports what is complete by then.
"""

from __future__ import annotations

from collections.abc import Callable

from mxnet.optimizer import Optimizer

# gluon.Trainer numbers its parameters from 0; from here on, arrays are `Workers`'. Keys of a store
# are 32-bit integers.
FIRST_KEY = 2**30


class ServerOptimizer(Optimizer):
    """`optimizer` on the servers of dist_async, which apply each worker's gradient as it comes.

    `count` updates, one of every worker, take the place of a step on the whole batch: a worker's
    gradient has to be the sum over its own images divided by the size of the whole batch (which is
    what `Trainer.step` is given, the same each time), weight decay is divided by `count`, and the
    learning rate is that of the step which the updates belong to. The optimiser's state, such as
    momenta, is on the servers alone: no checkpoint has it.

    Args:
        schedule: the learning rate by step; picklable.
        step: the step that the first update belongs to.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Callable[[int], float], count: int, step: int = 0
    ):
        super().__init__()
        self.optimizer = optimizer
        optimizer.lr_scheduler = _RateByUpdate(schedule, count, step)
        optimizer.wd /= count
        optimizer.aggregate_num = 0  # servers update one array at a time

    def __getstate__(self):
        # The Trainer's parameters stay behind; their multipliers have to come along.
        self.optimizer.lr_mult = {i: p.lr_mult for i, p in self.param_dict.items()}
        self.optimizer.wd_mult = {i: p.wd_mult for i, p in self.param_dict.items()}
        return super().__getstate__()

    def create_state_multi_precision(self, index, weight):
        if index < FIRST_KEY:
            return self.optimizer.create_state_multi_precision(index, weight)
        return None

    def update_multi_precision(self, index, weight, grad, state):
        if index < FIRST_KEY:
            self.optimizer.rescale_grad = self.rescale_grad  # the Trainer's
            self.optimizer.update_multi_precision(index, weight, grad, state)
        else:
            weight[:] = grad


class _RateByUpdate:
    def __init__(self, schedule, count, step):
        self.schedule, self.count, self.step = schedule, count, step

    def __call__(self, num_update):  # counted from 1
        return self.schedule(self.step + max(num_update - 1, 0) // self.count)
