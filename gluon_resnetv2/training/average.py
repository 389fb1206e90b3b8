"""The exponential moving average of a network's parameters, which is evaluated and exported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import mxnet as mx

from gluon_resnetv2.layers import is_statistic
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.training import statistics
from gluon_resnetv2.training.optimizer import TENSORS_AT_ONCE

Arrays = dict[str, mx.nd.NDArray]


class Average:
    """Follows the parameters and the moving statistics of `net`, both in the same way.

    After update n, counted from 1, average = d * average + (1 - d) * parameter, where d is the
    decay or, early on, (1 + n) / (10 + n), so that the average leaves its start behind. It starts
    as the network does. Parameters are the same on every device and averaged on the first;
    statistics are each device's own, and averaged where they are.

    Args:
        net: initialised.
        decay: 0 to below 1.
    """

    def __init__(self, net: ResNetV2, decay: float):
        self.net, self.decay = net, decay
        parameters = net.collect_params()
        self._learned = [p for name, p in parameters.items() if not is_statistic(name)]
        self._statistics = [p for name, p in parameters.items() if is_statistic(name)]
        self._parameters: Arrays = {p.name: p.list_data()[0].copy() for p in self._learned}
        self._own = {p.name: [one.copy() for one in p.list_data()] for p in self._statistics}

    def follow(self, updates: int) -> None:
        """Moves towards the parameters after update number `updates`. Waits for nothing."""
        share = 1 - min(self.decay, (1 + updates) / (10 + updates))
        for device, found in enumerate(zip(*(p.list_data() for p in self._statistics))):
            # For MXNet's scheduler a backward pass only reads the statistics that it writes: what
            # reads them would not wait for it, what writes them, if only the same again, does.
            _move(found, found, 0)
            _move([self._own[p.name][device] for p in self._statistics], found, share)
        _move([*self._parameters.values()], [p.list_data()[0] for p in self._learned], share)

    @contextlib.contextmanager
    def in_place(self, settle: Callable[[], None]) -> Iterator[Arrays]:
        """Within the block, the network has the averages; after it, what training needs.

        Args:
            settle: gives every device the same statistics, as for `statistics.settled`, within
                which this stands.

        Yields:
            What a checkpoint has to keep beside the network: "trained:NAME", the parameters as they
            are trained, and statistics as all devices have them before; "averageN:NAME", the
            statistics' average on device N.
        """
        parameters = [*self._learned, *self._statistics]
        trained = {p.name: p.list_data()[0].copy() for p in parameters}
        for parameter in self._learned:
            statistics.give(parameter, self._parameters[parameter.name])
        statistics.restore(self.net, self._own)
        settle()
        try:
            kept = {f"trained:{name}": array for name, array in trained.items()}
            for name, copies in self._own.items():
                kept.update((f"average{i}:{name}", copy) for i, copy in enumerate(copies))
            yield kept
        finally:
            for parameter in self._learned:
                statistics.give(parameter, trained[parameter.name])

    def load(self, trained: Arrays, averages: dict[str, Arrays]) -> None:
        """Goes on from a checkpoint whose network, the average, has been loaded into `net`.

        Args:
            trained: the parameters that training goes on with, which `net` has then.
            averages: the statistics' averages of each device, "average0" and so on; without them,
                as where devices are others than they were, all have the mean that was evaluated.
        """
        for parameter in self._learned:
            self._parameters[parameter.name][:] = parameter.list_data()[0]
        for parameter in self._statistics:
            for i, copy in enumerate(parameter.list_data()):
                known = averages.get(f"average{i}", {})
                self._own[parameter.name][i][:] = known.get(parameter.name, copy)
        for parameter in (*self._learned, *self._statistics):
            statistics.give(parameter, trained[parameter.name])


def _move(averages, towards, share) -> None:
    """averages += share * (towards - averages), many arrays in one operation."""
    for start in range(0, len(averages), TENSORS_AT_ONCE):
        some, others = (arrays[start : start + TENSORS_AT_ONCE] for arrays in (averages, towards))
        count = len(some)
        # A step of SGD whose gradient is -towards, with a decay of 1.
        pairs = [array for pair in zip(some, others) for array in pair]
        mx.nd.multi_sgd_update(
            *pairs, out=list(some), num_weights=count, lrs=[-share] * count, wds=[-1] * count
        )
