"""SGD with momentum by the native library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import mxnet as mx
import numpy as np
from mxnet.base import _LIB, check_call

from gluon_resnetv2.engines.native import library


class Update:
    """What updates tensors of one device, all at once, as MXNet's engine gets round to it.

    Args:
        tensors: (weight, gradient, momentum) each, float32 arrays in memory of their own, which all
            stay the same.
        decays: weight decay of each.

    Raises:
        UserError: as `library.load`.
    """

    def __init__(
        self,
        tensors: Sequence[tuple[mx.nd.NDArray, mx.nd.NDArray, mx.nd.NDArray]],
        decays: Sequence[float],
    ):
        self._library = library.load()
        self._tensors = tensors  # so that they stay
        mx.nd.waitall()  # MXNet has memory for an array as soon as it is written
        self._arrays = _handles(array for arrays in tensors for array in arrays)
        self._written = _handles(
            array for weight, _, momentum in tensors for array in (weight, momentum)
        )
        self._read = _handles(gradient for _, gradient, _ in tensors)
        self._sizes = np.array([weight.size for weight, *_ in tensors], "int64")
        self._decays = np.array(decays, "float32")
        self._context = (ctypes.c_int * 2)(1, tensors[0][0].context.device_id)  # the CPU

    def __call__(self, rates: np.ndarray, momentum: float, rescale_grad: float) -> None:
        """Has the engine make an update, and does not wait for it.

        Args:
            rates: (tensors,), learning rate of each.
        """
        numbers = self._sizes, rates.astype("float32"), self._decays
        update = self._library.resnetv2_update(
            len(self._sizes),
            self._arrays,
            *(ctypes.c_void_p(array.ctypes.data) for array in numbers),
            ctypes.c_float(momentum),
            ctypes.c_float(rescale_grad),
            _LIB.MXNDArrayGetData,
        )
        check_call(0 if update else -1)
        check_call(
            _LIB.MXEnginePushSyncND(
                self._library.resnetv2_apply,
                ctypes.c_void_p(update),
                self._library.resnetv2_drop_update,
                self._context,
                self._read,
                len(self._read),
                self._written,
                len(self._written),
                None,
                0,
                b"resnetv2_update",
            )
        )


def _handles(arrays):
    handles = [array.handle for array in arrays]
    return (ctypes.c_void_p * len(handles))(*handles)
