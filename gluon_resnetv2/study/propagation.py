"""How signals and gradients pass through the residual units, Eq. (5), (7) and (8) of the paper.

The gradient that reaches a unit's input is the sum of what came over the shortcut and of what came
through the rest. `measure` tells the two apart; `products` follows the shortcuts alone, down to
the first unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mxnet as mx
import numpy as np
from mxnet import autograd, initializer

from gluon_resnetv2.layers import chain
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.study.expectation import expected_gradients
from gluon_resnetv2.training.step import cross_entropy
from gluon_resnetv2.unit import ResidualUnit


def records(net: ResNetV2, images, labels, step: int = 0) -> list[dict]:
    """`measure` and `products` as two JSON lines, each of which says what it is about.

    Both have "step", "kind" ("propagation", "products"), "model", "order", "shortcut", "layers"
    (weight layers in a unit), "images" (how many), and "units", which has what the function says
    of each unit in columns: {"unit": [...], "forward": [...], ...}. Propagation's "expected" is
    `expected_gradients` at step 0, else None.
    """
    spec = net.spec
    expected = expected_gradients(spec) if step == 0 else None
    found = {
        "propagation": (measure(net, images, labels), {"expected": expected}),
        "products": (products(net, images), {}),
    }
    return [
        {
            **{"step": step, "kind": kind, "model": spec.name, "order": spec.order},
            **{"shortcut": str(spec.shortcut), "layers": len(spec.units()[0].convs)},
            **{"images": len(images), **more},
            "units": {name: [row[name] for row in rows] for name in rows[0]},
        }
        for kind, (rows, more) in found.items()
    ]


def measure(net: ResNetV2, images, labels) -> list[dict]:
    """The signal that enters each unit, x_l, and the gradient dE/dx_l, first unit to last.

    E is the mean cross-entropy of the batch, normalised by its own statistics, in float32 for
    networks of 16 bits. A copy of the network is run: `net` stays as it is, gradients included.

    The part of the gradient that comes over the shortcut is that of h(x_l), with whatever follows
    the addition. It is linear in x_l for all but `Conv1x1` after a pre-activation: for a gate it is
    that of (1 - g) * x_l *with g held constant*, for dropout that of the mask drawn. The rest
    comes through F, or through the gate. A widened shortcut that splits after its pre-activation
    has that pre-activation, too.

    Args:
        images: (N, in_channels, H, W).
        labels: (N,).

    Returns:
        For each unit its "unit", the name; "forward", the root mean square of x_l; "backward",
        "shortcut" and "residual", the Euclidean norms of dE/dx_l and of its two parts s and r;
        "share", <s, dE/dx_l> / |dE/dx_l|^2, which with the residual's sums to 1.
    """
    passes, head = _forward(net, images)
    top = passes[-1].leaving.detach()
    top.attach_grad()
    with autograd.record():
        loss = cross_entropy(head(top), mx.nd.array(labels, top.context)).mean()
    loss.backward()
    gradient, scale = _scaled(top.grad.asnumpy().astype(np.float64))
    rows = []
    while passes:
        unit = passes.pop()
        shortcut, residual = unit.backward(gradient)
        gradient = shortcut + residual
        square = float(np.vdot(gradient, gradient))
        x = unit.shortcut.asnumpy().astype(np.float64)
        rows.append(
            {
                "unit": unit.name,
                "forward": float(np.sqrt(np.mean(x**2))),
                "backward": scale * math.sqrt(square),
                "shortcut": scale * float(np.linalg.norm(shortcut)),
                "residual": scale * float(np.linalg.norm(residual)),
                "share": float(np.vdot(shortcut, gradient)) / square if square else 0.0,
            }
        )
        gradient, more = _scaled(gradient)
        scale *= more
    return rows[::-1]


def products(net: ResNetV2, images) -> list[dict]:
    """What the product of the shortcuts' derivatives in Eq. (7) and (8) makes of a gradient.

    A gradient at x_L, random normal, goes back over the shortcuts alone, F's part of it stopped.
    Widening by zeros drops the gradient of the channels that it adds, which is no matter of h'; so
    where nothing else widens, the gradient at x_L is zero but in the channels that the first unit
    reads. Projections mix channels, and have all of them.

    What follows an addition, f, takes part. In the order "original" ReLU drops part of the gradient
    at each unit, and in "bn_after_add" BN divides it; Eq. (8) has the identity for f.

    Returns:
        For each unit, *last to first*, its "unit", the name; "between", how many units lie between
        x_l and x_L; "product", the norm at x_l over that at x_L; and "predicted", lambda^between
        for constant scaling, whatever f is; None for other shortcuts and from a projection on.
    """
    passes, _ = _forward(net, images)
    units, factor = net.spec.units(), net.spec.shortcut.factor
    gradient = np.random.RandomState(0).normal(size=passes[-1].leaving.shape).astype(np.float32)
    if not any(unit.projection for unit in units):
        gradient[:, units[0].in_channels :] = 0
    start = np.linalg.norm(gradient.astype(np.float64))
    rows, scale = [], 1.0
    predicted: float | None = 1.0
    for between, (unit, described) in enumerate(zip(reversed(passes), reversed(units)), 1):
        gradient, more = _scaled(unit.backward(gradient)[0])
        scale *= more
        product = scale * float(np.linalg.norm(gradient) / start)
        if factor is None or predicted is None or described.projection:
            predicted = None
        else:
            predicted *= factor
        rows.append(
            {"unit": unit.name, "between": between, "product": product, "predicted": predicted}
        )
    return rows


@dataclass(frozen=True)
class _Pass:
    """One unit's forward pass, its input in two copies: one for the shortcut, one for the rest."""

    name: str
    shortcut: mx.nd.NDArray
    residual: mx.nd.NDArray
    leaving: mx.nd.NDArray

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two parts of the gradient at the input, in float64, from that of the output."""
        self.leaving.backward(mx.nd.array(gradient, self.leaving.context, self.leaving.dtype))
        return tuple(x.grad.asnumpy().astype(np.float64) for x in (self.shortcut, self.residual))


def _forward(net, images):
    """The passes of a copy's units, in training mode, and what comes after the units."""
    net = _copy(net)
    blocks = [*net.features, net.output]
    first, end = blocks.index(net.units[0]), blocks.index(net.units[-1]) + 1
    weight = net.output.weight.data()
    with autograd.train_mode():
        x = chain(blocks[:first])(mx.nd.array(images, weight.context, weight.dtype))
    passes = []
    for unit in net.units:
        shortcut, residual = x.copy(), x.copy()
        shortcut.attach_grad()
        residual.attach_grad()
        with autograd.record():
            x = _leaving(unit, shortcut, residual)
        passes.append(_Pass(unit.unit.name, shortcut, residual, x))
        x = x.detach()
    return passes, chain(blocks[end:])


def _leaving(unit: ResidualUnit, shortcut, residual):
    """`unit` of two copies of its input: see `measure` for what reads which."""
    activated = unit.pre(residual)
    if unit.unit.split_after_pre:
        split, gated = unit.pre(shortcut), activated
    else:
        split, gated = shortcut, residual
    return unit.after(unit.join(mx.nd, unit.body(activated), split, gated))


def _copy(net):
    """The network again, on its first device, without gradients of its parameters."""
    weight = net.output.weight.list_data()[0]
    copy = ResNetV2(net.spec, prefix=net.prefix)
    copy.cast(weight.dtype)
    copy.initialize(initializer.Zero(), ctx=weight.context)  # which draws no random numbers
    copy.collect_params().setattr("grad_req", "null")
    own = net.collect_params()
    for name, parameter in copy.collect_params().items():
        parameter.set_data(own[name].list_data()[0])
    return copy


def _scaled(gradient):
    """The gradient over a power of two, for float32 to hold it however it grows; and that power."""
    power = 2.0 ** math.frexp(np.linalg.norm(gradient))[1]
    return gradient / power, power
