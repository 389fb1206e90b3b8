"""The few layers a residual network is made of, with names that MXNet's own scripts expect."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import initializer
from mxnet.gluon import Block, HybridBlock, nn

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.spec import Conv, Spec

# What a network computes in, and MXNet's word for it.
DTYPES: dict[str, Any] = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": np.dtype([("bfloat16", np.uint16)]),
}


@dataclass(frozen=True)
class Numerics:
    """How a network is computed. Its parameters are the same, and float32, in every way.

    Attributes:
        dtype: of the activations. With "float32" nothing is cast, so that `Block.cast` decides.
        sync_devices: how many devices share the statistics of each training batch.
        key: by which they find each other; another one for every network.

    Raises:
        UserError: an unknown `dtype`, or no device.
    """

    dtype: str = "float32"
    sync_devices: int = 1
    key: int = field(default_factory=itertools.count().__next__, init=False)

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(f"dtype '{self.dtype}' is unknown; choose {', '.join(DTYPES)}")
        if self.sync_devices < 1:
            raise UserError("sync_devices must be at least 1")

    def to_dtype(self, F, x):
        """`x` in `dtype`; the gradient comes back in the type of `x`."""
        return x if self.dtype == "float32" else F.amp_cast(x, dtype=DTYPES[self.dtype])

    def to_float32(self, F, x):
        """`x` in float32; the gradient comes back in `dtype`."""
        return x if self.dtype == "float32" else F.amp_cast(x, dtype="float32")


class BatchNorm(HybridBlock):
    """Batch normalisation over axis 1 of (N, C, H, W), with float32 statistics.

    `gluon.nn.BatchNorm` but for its names: the statistics are `moving_mean` and `moving_var`, as
    the symbolic operator and every published symbolic ResNet call them.
    """

    def __init__(self, channels, eps, momentum, numerics, scale=True, center=True, **kwargs):
        super().__init__(**kwargs)
        self._numerics = numerics
        self._kwargs = {"eps": eps, "momentum": momentum, "fix_gamma": not scale}
        shape = (channels,)
        self.gamma = self.params.get("gamma", shape=shape, init="ones", **_learned(scale))
        self.beta = self.params.get("beta", shape=shape, init="zeros", **_learned(center))
        self.moving_mean = self.params.get(
            "moving_mean", shape=shape, init="zeros", differentiable=False
        )
        self.moving_var = self.params.get(
            "moving_var", shape=shape, init="ones", differentiable=False
        )

    @property
    def frozen(self) -> bool:
        """Whether it uses its moving statistics in training too, and leaves them alone."""
        return self._kwargs.get("use_global_stats", False)

    def freeze(self) -> None:
        """Makes it `frozen`; before the network is first used."""
        self._kwargs["use_global_stats"] = True

    def hybrid_forward(self, F, x, gamma, beta, moving_mean, moving_var):
        if self._kwargs["fix_gamma"] and F is mx.nd:  # where MXNet would write 1 into it
            gamma = gamma.copy()
        values = gamma, beta, moving_mean, moving_var
        if self._numerics.sync_devices == 1 or self.frozen:
            return F.BatchNorm(x, *values, axis=1, name="fwd", **self._kwargs)
        # It knows float32 alone. In it each device waits for the others.
        y = F.contrib.SyncBatchNorm(
            self._numerics.to_float32(F, x),
            *values,
            ndev=self._numerics.sync_devices,
            key=f"{self._numerics.key}_{self.name}",
            name="fwd",
            **self._kwargs,
        )
        return self._numerics.to_dtype(F, y)

    def cast(self, dtype):
        if self._numerics.sync_devices > 1 and np.dtype(dtype) == np.float64:
            raise UserError("synchronised batch normalisation knows no float64; use float32")
        # Statistics of 16-bit activations are kept in 32 bits, as the operator requires.
        super().cast("float32" if dtype == "bfloat16" or np.dtype(dtype).itemsize == 2 else dtype)


def _learned(yes: bool) -> dict:
    # The multiplier is for Module, which would let weight decay shrink what has no gradient.
    return {"grad_req": "write" if yes else "null", "wd_mult": float(yes)}


class Convolution(nn.Conv2D):
    """`gluon.nn.Conv2D` that casts what it reads to the type that the network computes in.

    That is free where it is of that type already.
    """

    def __init__(self, *args, numerics, **kwargs):
        super().__init__(*args, **kwargs)
        self._numerics = numerics

    def hybrid_forward(self, F, x, weight, bias=None):
        inputs = (x, weight) if bias is None else (x, weight, bias)
        return super().hybrid_forward(F, *(self._numerics.to_dtype(F, value) for value in inputs))


class PadChannels(HybridBlock):
    """Widening by zero channels, option A of [v1]: every `stride`-th pixel, zeros appended."""

    def __init__(self, in_channels, out_channels, stride, **kwargs):
        super().__init__(**kwargs)
        self._in, self._out, self._stride = in_channels, out_channels, stride

    def hybrid_forward(self, F, x):
        if self._stride > 1:
            whole = (None,) * 4
            x = F.slice(x, begin=whole, end=whole, step=(1, 1, self._stride, self._stride))
        if self._out == self._in:
            return x
        # F.pad pads the last axes only.
        copies = -(-self._out // self._in)
        x = F.concat(x, *[F.zeros_like(x) for _ in range(copies - 1)], dim=1)
        return x if copies * self._in == self._out else F.slice_axis(x, 1, 0, self._out)


class PadZeros(HybridBlock):
    """A frame of zeros, one pixel wide: (N, C, H, W) to (N, C, H + 2, W + 2)."""

    def hybrid_forward(self, F, x):
        # Of operators that every form of an export knows, which F.pad is not.
        for axis in (2, 3):
            edge = F.zeros_like(F.slice_axis(x, axis, 0, 1))
            x = F.concat(edge, x, edge, dim=axis)
        return x


def batch_norm(
    name: str,
    channels: int,
    spec: Spec,
    numerics: Numerics,
    scale: bool = True,
    center: bool = True,
) -> BatchNorm:
    """The BatchNorm called `name`, with the network's eps and momentum."""
    return BatchNorm(
        channels, spec.bn_eps, spec.bn_momentum, numerics, scale, center, prefix=f"{name}_"
    )


def convolution(conv: Conv, numerics: Numerics) -> Convolution:
    """The convolution that `conv` describes."""
    return Convolution(
        conv.out_channels,
        conv.kernel,
        strides=conv.stride,
        padding=conv.kernel // 2,
        in_channels=conv.in_channels,
        use_bias=conv.bias is not None,
        bias_initializer=initializer.Constant(conv.bias or 0.0),
        numerics=numerics,
        prefix=f"{conv.name}_",
    )


def chain(ops: list[HybridBlock]) -> nn.HybridSequential:
    """The blocks one after another, adding nothing to their names."""
    sequence = nn.HybridSequential(prefix="")
    sequence.add(*ops)
    return sequence


def batch_norms(block: Block) -> Iterator[BatchNorm]:
    """Every batch normalisation in a block."""
    if isinstance(block, BatchNorm):
        yield block
    for child in block._children.values():
        yield from batch_norms(child)


def is_statistic(name: str) -> bool:
    """Whether a parameter is a moving statistic: an auxiliary state, in symbolic terms."""
    return name.endswith(("_moving_mean", "_moving_var"))
