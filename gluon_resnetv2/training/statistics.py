"""The moving statistics of batch normalisation, on one device and on several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import mxnet as mx

from gluon_resnetv2.layers import batch_norms
from gluon_resnetv2.net import ResNetV2


@contextlib.contextmanager
def settled(net: ResNetV2, settle: Callable[[], None]) -> Iterator[dict[str, list]]:
    """Within the block, the statistics that `settle` gives every device; after it, each its own.

    Each device keeps statistics of its own part of the batches. What is evaluated and saved is one
    network, but training goes on as if nobody had looked.

    Yields:
        {name: a copy of each device's own}.
    """
    # For MXNet's scheduler a backward pass only reads the statistics that it writes: a write after
    # it waits for it, a read does not.
    mx.nd.waitall()
    own = {p.name: [copy.copy() for copy in p.list_data()] for p in _statistics(net)}
    settle()
    try:
        yield own
    finally:
        restore(net, own)


def restore(net: ResNetV2, own: dict[str, list]) -> None:
    """Gives every device its own statistics back."""
    for parameter in _statistics(net):
        for copy, value in zip(parameter.list_data(), own[parameter.name]):
            copy[:] = value


def average(net: ResNetV2, mean_over_workers: Callable[[list], list] | None = None) -> None:
    """Gives every device the mean of the devices' moving statistics, and of the workers'.

    Args:
        mean_over_workers: the mean of each of a list of NumPy arrays, over all workers.
    """
    mx.nd.waitall()
    statistics = _statistics(net)
    means = [_mean(parameter.list_data()) for parameter in statistics]
    if mean_over_workers:
        means = mean_over_workers([mean.asnumpy() for mean in means])
    for parameter, mean in zip(statistics, means):
        give(parameter, mean)


def recalibrate(net: ResNetV2, rounds: Iterable[list], forward_backward: Callable) -> None:
    """Replaces the moving statistics by the mean of those of some batches.

    Moving statistics start at 0 and 1 and lag behind the weights: after a few steps they fit
    neither, and a network of a thousand layers overflows in evaluation.

    Args:
        rounds: lists of images (n, C, H, W), an entry for each device; a last one may have fewer.
        forward_backward: as `step.forward_backward`, of this network.
    """
    statistics, momentum = _statistics(net), net.spec.bn_momentum
    sums = {parameter.name: 0 for parameter in statistics}
    count = 0
    if not statistics:
        return
    for images in rounds:
        for parameter in statistics:
            give(parameter, 0)
        forward_backward(images, lambda outputs: outputs, count)  # going back is when they move
        mx.nd.waitall()
        for parameter in statistics:  # they have come from 0, by 1 - momentum of the way
            batch = _mean(parameter.list_data()[: len(images)]) / (1 - momentum)
            sums[parameter.name] = batch + sums[parameter.name]
        count += 1
    for parameter in statistics:
        give(parameter, sums[parameter.name] / count)


def _statistics(net):
    """All but those of a part that is frozen, which stay what they are."""
    norms = [norm for norm in batch_norms(net) if not norm.frozen]
    return [p for norm in norms for p in (norm.moving_mean, norm.moving_var)]


def _mean(copies):
    return mx.nd.add_n(*(copy.as_in_context(mx.cpu()) for copy in copies)) / len(copies)


def give(parameter: mx.gluon.Parameter, value: mx.nd.NDArray) -> None:
    """Gives every device the value."""
    for copy in parameter.list_data():  # set_data would have the Trainer forget all momentum
        copy[:] = value
