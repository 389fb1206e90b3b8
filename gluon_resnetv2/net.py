"""The whole network: stem, residual units, head; and how its weights start."""

from __future__ import annotations

from typing import Any

from mxnet import initializer
from mxnet.gluon import HybridBlock, nn

from gluon_resnetv2.layers import Numerics, PadZeros, batch_norm, chain, convolution
from gluon_resnetv2.spec import Spec, named
from gluon_resnetv2.unit import ResidualUnit

CLASSIFIER = ("fc1_weight", "fc1_bias")  # its parameters


class ResNetV2(HybridBlock):
    """The residual network that `spec` describes.

    Maps images (N, in_channels, H, W) of any size to logits (N, classes). `features` is everything
    up to the pooled features (N, out_channels), `output` the classifier, as in Gluon's model zoo.
    Parameter names are those of MXNet's symbolic ResNets: `stage1_unit1_conv1_weight`.

    Args:
        spec: the architecture.
        dtype: "bfloat16" or "float16" has the units compute in it. The parameters, the statistics,
            the features and the logits are float32 all the same, so that every other `ResNetV2` of
            this spec takes the parameters.
        sync_devices: number of devices, each of which normalises its part of a training batch by
            the statistics of the whole batch. MXNet weighs every device alike, so the parts have
            to be of one size. Each device waits for the others: hybridize the network, and give
            every device a part of every training batch. See `training.precision.check_sync`.
    """

    def __init__(self, spec: Spec, prefix: str = "", dtype: str = "float32", sync_devices: int = 1):
        super().__init__(prefix=prefix)
        self.spec = spec
        self.numerics = Numerics(dtype, sync_devices)
        with self.name_scope():
            units = [ResidualUnit(unit, spec, self.numerics) for unit in spec.units()]
            self.features = chain([*self._stem(), *units, *self._head()])
            self.output = nn.Dense(spec.classes, in_units=spec.out_channels, prefix="fc1_")

    def _stem(self):
        spec = self.spec
        if spec.input_bn != "off":
            learned = {"scale": False, "center": spec.input_bn == "shift"}
            yield batch_norm("bn_data", spec.in_channels, spec, self.numerics, **learned)
        for op in spec.stem_ops:
            yield (
                convolution(spec.stem_conv, self.numerics)
                if op == "conv0"
                else self._bn_or_relu(op, spec.channels[0])
            )
        if spec.stem_pool:
            if spec.pool_pad == "zero":
                yield PadZeros(prefix="pad0_")
            yield nn.MaxPool2D(3, 2, int(spec.pool_pad == "ignored"), prefix="pool0_")

    def _head(self):
        for op in self.spec.head_ops:
            yield self._bn_or_relu(op, self.spec.out_channels)
        # The mean over the axes, not a pooling: that operator's backward pass is slow in MXNet.
        yield nn.HybridLambda(
            lambda F, x: F.mean(self.numerics.to_float32(F, x), axis=(2, 3), name="fwd"),
            prefix="pool1_",
        )

    def _bn_or_relu(self, op, channels):
        if op.startswith("bn"):
            return batch_norm(op, channels, self.spec, self.numerics)
        return nn.Activation("relu", prefix=f"{op}_")

    @property
    def units(self) -> list[ResidualUnit]:
        """The residual units, first to last."""
        return [block for block in self.features if isinstance(block, ResidualUnit)]

    def hybrid_forward(self, F, x):
        return self.output(self.features(x))

    def initialize(
        self,
        init: initializer.Initializer | None = None,
        *args: Any,
        zero_last: bool = False,
        **kwargs: Any,
    ) -> None:
        """`Block.initialize`, with `he_normal()` where no initialiser is given.

        Args:
            zero_last: start every unit as its shortcut, by a zero in F(x)'s last layer (Goyal et
                al., arXiv:1706.02677): the convolution, or the gamma of a BN after it.

        Raises:
            UserError: `zero_last` for units that would never learn.
        """
        if zero_last:
            for unit in self.units:
                unit.last.init = "zeros"
        super().initialize(init or he_normal(), *args, **kwargs)


def he_normal(fan: str = "in") -> initializer.Initializer:
    """Normal weights of variance 2 / fan ("in": He et al., arXiv:1502.01852, as in the paper;
    "out": the authors' released code). Betas start at 0, gammas at 1, biases at 0 but for gates'.
    """
    return initializer.MSRAPrelu(factor_type=fan, slope=0)


def get_model(name: str, **switches: Any) -> ResNetV2:
    """The network called `name`, not yet initialised.

    >>> get_model("preact110", classes=100, shortcut="gate:-6")

    Args:
        name: as in `spec.named`: "preact110", "resnet50", "plain20".
        switches: fields of `Spec`; `shortcut` may be text, as in `spec.parse_shortcut`.

    Raises:
        UserError: the name or a switch means no network.
    """
    return ResNetV2(named(name, **switches))
