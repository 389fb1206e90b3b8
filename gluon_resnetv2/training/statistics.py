"""The moving statistics of batch normalisation, on one device and on several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mxnet as mx
from mxnet import autograd

from gluon_resnetv2.layers import is_statistic
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.training.devices import split


def average(net: ResNetV2) -> None:
    """Gives every device the mean of the devices' moving statistics.

    Each device keeps statistics of its own part of the batches; what is evaluated and saved is
    their mean.
    """
    # For MXNet's scheduler a backward pass only reads the statistics that it writes: a write after
    # it waits for it, a read does not.
    mx.nd.waitall()
    for parameter in _statistics(net):
        _set(parameter, _mean(parameter.list_data()))


def recalibrate(
    net: ResNetV2, batches: Iterable, devices: Sequence[mx.Context], dtype: str = "float32"
) -> None:
    """Replaces the moving statistics by the mean of those of (images, labels) batches.

    Moving statistics start at 0 and 1 and lag behind the weights: after a few steps they fit
    neither, and a network of a thousand layers overflows in evaluation.
    """
    statistics, momentum = _statistics(net), net.spec.bn_momentum
    sums = {parameter.name: 0 for parameter in statistics}
    count = 0
    for images, _ in batches:
        for parameter in statistics:
            _set(parameter, 0)
        with autograd.record():
            outputs = [net(part) for part in split(images, devices[: len(images)], dtype)]
        autograd.backward(outputs)  # which is when MXNet moves the statistics
        mx.nd.waitall()
        for parameter in statistics:  # they have come from 0, by 1 - momentum of the way
            batch = _mean(parameter.list_data()[: len(outputs)]) / (1 - momentum)
            sums[parameter.name] = batch + sums[parameter.name]
        count += 1
    for parameter in statistics:
        _set(parameter, sums[parameter.name] / count)


def _statistics(net):
    return [p for name, p in net.collect_params().items() if is_statistic(name)]


def _mean(copies):
    return mx.nd.add_n(*(copy.as_in_context(mx.cpu()) for copy in copies)) / len(copies)


def _set(parameter, value):
    for copy in parameter.list_data():  # set_data would have the Trainer forget all momentum
        copy[:] = value
