"""The devices of a run, and the batch split over them."""

from __future__ import annotations

from collections.abc import Sequence

import mxnet as mx
import numpy as np

from gluon_resnetv2 import runtime
from gluon_resnetv2.layers import is_statistic


def contexts(gpus: Sequence[int] | None, cpus: int = 1) -> list[mx.Context]:
    """The GPUs asked for, or `cpus` simulated devices.

    Raises:
        UserError: a GPU that is not there or that this MXNet has no kernels for.
    """
    if not gpus:
        return [mx.cpu(i) for i in range(cpus)]
    runtime.check_gpus(gpus)
    return [mx.gpu(i) for i in gpus]


def split(array: np.ndarray, devices: Sequence[mx.Context], dtype=None) -> list[mx.nd.NDArray]:
    """`array` in nearly equal parts along its first axis, one on each device, every row once."""
    return [
        mx.nd.array(part, ctx=device, dtype=dtype or part.dtype)
        for part, device in zip(np.array_split(array, len(devices)), devices)
    ]


def average_statistics(net: mx.gluon.Block) -> None:
    """Gives every device the mean of the devices' batch-normalisation statistics.

    Each device keeps statistics of its own part of the batches; what is evaluated and saved is
    their mean.
    """
    for name, parameter in net.collect_params().items():
        if is_statistic(name):
            copies = parameter.list_data()
            mean = mx.nd.add_n(*(copy.as_in_context(mx.cpu()) for copy in copies)) / len(copies)
            for copy in copies:  # set_data would have the Trainer forget all momentum
                mean.copyto(copy)
