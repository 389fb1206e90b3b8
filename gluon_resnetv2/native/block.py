"""The training pass of a network on the native operator, as a block of Gluon's."""

from __future__ import annotations

import mxnet as mx
from mxnet import gluon

from gluon_resnetv2.layers import is_statistic
from gluon_resnetv2.native import library
from gluon_resnetv2.native.program import Program
from gluon_resnetv2.net import ResNetV2


def native_block(net: ResNetV2, dtype: str = "float32", adds: bool = False) -> gluon.SymbolBlock:
    """What computes the same as `net` in training, by the native operator, with its parameters.

    It is for `autograd.record()` alone; evaluate and export `net`.

    Args:
        dtype: of the activations: "float32" or "bfloat16".
        adds: whether gradients are added to what is there (grad_req "add").

    Raises:
        UserError: the operator has no instruction for something in the network, or can't be used
            here.
    """
    library.load()
    program = Program(net(mx.sym.var("data")), net.spec.in_channels)
    images = mx.sym.var(program.inputs[0], dtype="float32")
    parameters = [mx.sym.var(name) for name in program.inputs[1:]]
    if adds:  # the operator writes, as MXNet does not tell it what to do: its neighbours can add
        parameters = [one if is_statistic(one.name) else mx.sym.identity(one) for one in parameters]
    features = mx.sym.resnetv2_trunk(
        images,
        *parameters,
        program=program.text,
        dtype=dtype,
        inputs=len(program.inputs),
        features=program.features,
    )
    block = gluon.SymbolBlock(net.output(features), [images], params=net.collect_params())
    block.hybridize(static_alloc=True, static_shape=True)
    return block
