"""The devices of a run, and the batch split over them."""

from __future__ import annotations

from collections.abc import Sequence

import mxnet as mx
import numpy as np

from gluon_resnetv2 import machine


def contexts(gpus: Sequence[int] | None, cpus: int = 1) -> list[mx.Context]:
    """The GPUs asked for, or `cpus` simulated devices.

    Raises:
        UserError: a GPU that is not there or that this MXNet has no kernels for.
    """
    if not gpus:
        return [mx.cpu(i) for i in range(cpus)]
    machine.check_gpus(gpus)
    return [mx.gpu(i) for i in gpus]


def split(array: np.ndarray, devices: Sequence[mx.Context], dtype=None) -> list[mx.nd.NDArray]:
    """`array` in nearly equal parts along its first axis, one on each device, every row once."""
    return [
        mx.nd.array(part, ctx=device, dtype=dtype or part.dtype)
        for part, device in zip(np.array_split(array, len(devices)), devices)
    ]
