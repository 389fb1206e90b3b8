"""Inference by the native engine with the least around it: without MXNet, once it is planned."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping

import mxnet as mx
import numpy as np

from gluon_resnetv2 import fixes
from gluon_resnetv2.engines.native import library
from gluon_resnetv2.engines.native.program import Program
from gluon_resnetv2.scores import softmax


class Network:
    """A network and its parameters, which stay what they are.

    Args:
        program: of the network, not for training.
        arrays: its parameters in float32, by name.
        dtype: as `native_symbol` takes it.

    Raises:
        UserError: as `library.load`.
    """

    def __init__(self, program: Program, arrays: Mapping[str, np.ndarray], dtype: str):
        self.functions = library.load()
        self.program, self.dtype = program, dtype
        self.arrays = [arrays[name] for name in program.inputs[1:]]
        self.store = ctypes.c_void_p(self.functions.resnetv2_store())
        weakref.finalize(self, self.functions.resnetv2_drop_store, self.store)


class Inference:
    """Computes a network for batches of one size; of those for several sizes, one at a time.

    They share weights as they compute with them, and memory.

    Args:
        shape: of the images, (N, C, H, W).

    Attributes:
        images: (N, C, H, W) float32, what the next call computes of.

    Raises:
        MXNetError: oneDNN can't compute it here.
    """

    def __init__(self, network: Network, shape: tuple[int, ...]):
        self._network, self._functions = network, network.functions
        self.images = np.zeros(shape, "float32")
        self._outputs = np.zeros((shape[0], network.program.features), "float32")
        inputs = [self.images, *network.arrays]
        addresses = [array.ctypes.data for array in inputs]
        sizes = [number for array in inputs for number in (array.ndim, *array.shape)]
        self._plan = self._functions.resnetv2_plan(
            network.store,
            network.program.text.encode(),
            network.dtype.encode(),
            len(addresses),
            (ctypes.c_void_p * len(addresses))(*addresses),
            (ctypes.c_int64 * len(sizes))(*sizes),
            ctypes.c_void_p(self._outputs.ctypes.data),
            fixes.threads,
        )
        weakref.finalize(self, self._functions.resnetv2_drop_plan, self._plan)
        self._check()

    def __call__(self) -> np.ndarray:
        """What the network gives for `images`: (N, classes), or (N, channels) of its features.

        Raises:
            MXNetError: oneDNN can't compute it.
        """
        self._functions.resnetv2_compute(self._plan)
        self._check()
        return softmax(self._outputs) if self._network.program.softmax else self._outputs.copy()

    def _check(self):
        if error := self._plan[0]:
            raise mx.MXNetError(error.decode())
