"""Networks that compute on the native operator: as a graph, and as a block of Gluon's to train."""

from __future__ import annotations

from collections.abc import Mapping

import mxnet as mx
import numpy as np
from mxnet import gluon

from gluon_resnetv2.engines.native import library
from gluon_resnetv2.engines.native.program import Program
from gluon_resnetv2.layers import is_statistic
from gluon_resnetv2.net import ResNetV2


def native_symbol(
    symbol: mx.sym.Symbol,
    in_channels: int,
    dtype: str = "float32",
    training: bool = False,
    adds: bool = False,
    images_gradient: bool = False,
    kept: bool = True,
) -> mx.sym.Symbol:
    """The graph that computes what `symbol` does, with the native operator up to the features.

    Its inputs are float32 and have the names that they have in `symbol`.

    Args:
        symbol: a network that reads images (N, in_channels, H, W).
        dtype: of the activations: "float32" or "bfloat16"; "int8", for a graph in 8 bits, is the
            latter where the processor has it, for what is not in 8 bits.
        training: whether it is for training passes alone, or for inference alone.
        kept: in inference, whether parameters are for good what they are in the first pass.
        adds: in training, whether gradients are added to what is there (grad_req "add").
        images_gradient: in training, whether the images' gradient is computed, too; else what
            MXNet gives for it has not been written.

    Raises:
        UserError: the operator has no instruction for something in the network, or can't be used
            here.
    """
    library.load()
    program = Program(symbol, in_channels, training)
    images, *names = program.inputs
    inputs = [mx.sym.var(images, dtype="float32"), *map(mx.sym.var, names)]
    if adds:  # the operator writes, as MXNet does not tell it what to do: its neighbours can add
        inputs = [
            one if is_statistic(name) else mx.sym.identity(one)
            for name, one in zip(program.inputs, inputs)
        ]
    features = mx.sym.resnetv2_trunk(
        *inputs,
        program=program.text,
        dtype=dtype,
        training=int(training),
        images=int(images_gradient),
        kept=int(kept and not training),
        inputs=len(inputs),
        features=program.features,
    )
    return program.head(features)


def native_arrays(arrays: Mapping[str, mx.nd.NDArray]) -> dict[str, mx.nd.NDArray]:
    """A graph's parameters, of any precision, as its `native_symbol` takes them."""
    return {
        name: array if array.dtype == np.float32 else mx.nd.amp_cast(array, dtype="float32")
        for name, array in arrays.items()
    }


def native_block(
    net: ResNetV2,
    dtype: str = "float32",
    adds: bool = False,
    training: bool = True,
    images_gradient: bool = True,
) -> gluon.SymbolBlock:
    """What computes the same as `net`, by the native operator, with its parameters as they change.

    Args:
        dtype, adds, images_gradient: as `native_symbol`.
        training: whether it is for `autograd.record()` alone, or for inference alone.

    Raises:
        UserError: as `native_symbol`.
    """
    traced = net(mx.sym.var("data"))
    channels = net.spec.in_channels
    symbol = native_symbol(traced, channels, dtype, training, adds, images_gradient, kept=False)
    images = mx.sym.var("data", dtype="float32")
    block = gluon.SymbolBlock(symbol, [images], params=net.collect_params())
    block.hybridize(static_alloc=True, static_shape=True)
    return block
