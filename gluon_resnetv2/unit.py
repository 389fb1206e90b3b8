"""The residual unit: y = h(x) + F(x), Eq. (1), (2) and (9) of the paper, in every variant of it."""

from __future__ import annotations

from mxnet.gluon import HybridBlock, Parameter, nn

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.layers import (
    BatchNorm,
    Convolution,
    Numerics,
    PadChannels,
    batch_norm,
    chain,
    convolution,
)
from gluon_resnetv2.spec import Dropout, Gate, Scale, Spec, Unit


class ResidualUnit(HybridBlock):
    """One residual unit, as `unit` spells it out.

    Reads (N, in_channels, H, W), writes (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, unit: Unit, spec: Spec, numerics: Numerics):
        super().__init__(prefix=f"{unit.name}_")
        self.unit = unit
        self.numerics = numerics
        self.shortcut = spec.shortcut
        self.has_shortcut = spec.has_shortcut
        with self.name_scope():
            blocks = {conv.name: convolution(conv, numerics) for conv in unit.convs}
            for op in unit.pre + unit.body + unit.after:
                if op.startswith("bn"):
                    blocks[op] = batch_norm(op, unit.bn_channels(op), spec, numerics)
                elif op.startswith("relu"):
                    blocks[op] = nn.Activation("relu", prefix=f"{op}_")
            self.pre = chain([blocks[op] for op in unit.pre])
            self.body = chain([blocks[op] for op in unit.body])
            self.after = chain([blocks[op] for op in unit.after])
            self.widen = chain(self._widening(spec))
            if unit.gate:
                self.gate = convolution(unit.gate, numerics)
            if isinstance(self.shortcut, Dropout):
                # cuDNN's dropout does not heed mx.random.seed, on which masks have to depend.
                self.dropout = nn.HybridLambda(
                    lambda F, x, p=self.shortcut.p: F.Dropout(x, p=p, cudnn_off=True, name="fwd"),
                    prefix="dropout_",
                )

    def _widening(self, spec):
        """What fits the shortcut to the shape of F(x): nothing where it fits already."""
        unit = self.unit
        if unit.projection:
            blocks = [convolution(unit.projection, self.numerics)]
            if unit.projection_bn:
                blocks.append(batch_norm("scbn", unit.out_channels, spec, self.numerics))
            return blocks
        if unit.stride > 1 or unit.in_channels != unit.out_channels:
            return [PadChannels(unit.in_channels, unit.out_channels, unit.stride, prefix="pad_")]
        return []

    @property
    def last(self) -> Parameter:
        """The parameter with which F(x) becomes zero and can grow again: the weight of the last
        convolution, or the gamma of a batch normalisation after it.

        Raises:
            UserError: F ends in a ReLU, which passes no gradient at zero, or there is no shortcut.
        """
        block = self.body[-1]
        if self.has_shortcut and isinstance(block, Convolution):
            return block.weight
        if self.has_shortcut and isinstance(block, BatchNorm):
            return block.gamma
        raise UserError(
            "units that start as their shortcuts need one, and another order than relu_before_add: "
            "leave out zero_last"
        )

    def hybrid_forward(self, F, x):
        activated = self.pre(x)
        residual = self.body(activated)
        split = activated if self.unit.split_after_pre else x
        return self.after(self.join(F, residual, split, split))

    def join(self, F, residual, split, gated):
        """h(split) + residual, each weighed as Table 1 says; a gate reads `gated`.

        That is `split`, but where the gradient through the gate is to be told from the shortcut's.
        """
        kind = self.shortcut
        if isinstance(kind, Scale):
            residual = residual if kind.on_residual == 1 else residual * kind.on_residual
            if kind.on_shortcut == 0:
                return residual
            return residual + self.widen(split) * kind.on_shortcut
        shortcut = self.widen(split)
        if isinstance(kind, Gate):
            gate = F.sigmoid(self.gate(gated))
            shortcut = shortcut * (1 - gate)
            residual = residual * gate if kind.exclusive else residual
        elif isinstance(kind, Dropout):
            # MXNet has no dropout of bfloat16.
            shortcut = self.dropout(self.numerics.to_float32(F, shortcut))
            shortcut = self.numerics.to_dtype(F, shortcut)
        # The convolution's output comes first: MXNet 1.9.1 cannot fuse the sum the other way round.
        return residual + shortcut
