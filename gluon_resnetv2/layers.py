"""The few layers a residual network is made of, with names that MXNet's own scripts expect."""

from __future__ import annotations

import numpy as np
from mxnet import initializer
from mxnet.gluon import HybridBlock, nn

from gluon_resnetv2.spec import Conv, Gate, Spec


class BatchNorm(HybridBlock):
    """Batch normalisation over axis 1 of (N, C, H, W).

    `gluon.nn.BatchNorm` but for its names: the statistics are `moving_mean` and `moving_var`, as
    the symbolic operator and every published symbolic ResNet call them.
    """

    def __init__(self, channels, eps, momentum, scale=True, center=True, **kwargs):
        super().__init__(**kwargs)
        self._kwargs = {"eps": eps, "momentum": momentum, "axis": 1, "fix_gamma": not scale}
        shape = (channels,)
        self.gamma = self.params.get("gamma", shape=shape, init="ones", **_learned(scale))
        self.beta = self.params.get("beta", shape=shape, init="zeros", **_learned(center))
        self.moving_mean = self.params.get(
            "moving_mean", shape=shape, init="zeros", differentiable=False
        )
        self.moving_var = self.params.get(
            "moving_var", shape=shape, init="ones", differentiable=False
        )

    def hybrid_forward(self, F, x, gamma, beta, moving_mean, moving_var):
        return F.BatchNorm(x, gamma, beta, moving_mean, moving_var, name="fwd", **self._kwargs)

    def cast(self, dtype):
        # Statistics of 16-bit activations are kept in 32 bits, as the operator requires.
        super().cast("float32" if dtype == "bfloat16" or np.dtype(dtype).itemsize == 2 else dtype)


def _learned(yes: bool) -> dict:
    # The multiplier is for Module, which would let weight decay shrink what has no gradient.
    return {"grad_req": "write" if yes else "null", "wd_mult": float(yes)}


class PadChannels(HybridBlock):
    """Widening by zero channels, option A of [v1]: every `stride`-th pixel, zeros appended."""

    def __init__(self, in_channels, out_channels, stride, **kwargs):
        super().__init__(**kwargs)
        self._in, self._out, self._stride = in_channels, out_channels, stride

    def hybrid_forward(self, F, x):
        if self._stride > 1:
            whole = (None,) * 4
            x = F.slice(x, begin=whole, end=whole, step=(1, 1, self._stride, self._stride))
        # F.pad pads the last axes only.
        copies = -(-self._out // self._in)
        x = F.concat(x, *[F.zeros_like(x) for _ in range(copies - 1)], dim=1)
        return x if copies * self._in == self._out else F.slice_axis(x, 1, 0, self._out)


def batch_norm(name: str, channels: int, spec: Spec) -> BatchNorm:
    """The BatchNorm called `name`, with the network's eps and momentum."""
    return BatchNorm(channels, spec.bn_eps, spec.bn_momentum, prefix=f"{name}_")


def convolution(conv: Conv, spec: Spec) -> nn.Conv2D:
    """The convolution that `conv` describes; a gate's bias starts where the shortcut says."""
    bias = spec.shortcut.bias if conv.bias and isinstance(spec.shortcut, Gate) else 0.0
    return nn.Conv2D(
        conv.out_channels,
        conv.kernel,
        strides=conv.stride,
        padding=conv.kernel // 2,
        in_channels=conv.in_channels,
        use_bias=conv.bias,
        bias_initializer=initializer.Constant(bias),
        prefix=f"{conv.name}_",
    )


def chain(ops: list[HybridBlock]) -> nn.HybridSequential:
    """The blocks one after another, adding nothing to their names."""
    sequence = nn.HybridSequential(prefix="")
    sequence.add(*ops)
    return sequence


def is_statistic(name: str) -> bool:
    """Whether a parameter is a moving statistic: an auxiliary state, in symbolic terms."""
    return name.endswith(("_moving_mean", "_moving_var"))
