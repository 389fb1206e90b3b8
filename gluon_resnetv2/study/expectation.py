"""What gradients to expect at initialisation, from the specification of a network alone."""

from __future__ import annotations

import math

import numpy as np

from gluon_resnetv2.spec import Scale, Spec

# The variance within a channel of a 3x3 or 1x1 convolution's output, when it reads ReLU(z), z
# standard normal, with He's weights: 2 (E ReLU(z)^2 - (E ReLU(z))^2) = 2 (1 / 2 - 1 / (2 pi)).
VARIANCE = 1 - 1 / math.pi

# How far a network may exceed `expected_gradients`: channels are few and images no noise, so some
# channels of the first units vary less than expected, and batch normalisation divides by that.
# Measured in 66 networks of 20 to 164 layers: 0.6 to 0.8 times it on noise, 0.4 to 2.3 on images,
# and no more with depth.
MARGIN = 3.0


def expected_gradients(spec: Spec) -> list[float] | None:
    """|dE/dx_l| / |dE/dx_N| at initialisation, of wide channels and random images, first to last.

    With He's weights, gamma 1 and beta 0, and v = `VARIANCE`, a = 1 / v = pi / (pi - 1):

    A weight layer takes the gradient's squared norm times 2 through the convolution, 1/2 through
    ReLU, and 1 / s through BN, s the variance of the channels that it normalises. Behind another
    convolution s = v, so a layer of a plain net multiplies it by a (norm: 1.21; Yang et al.,
    arXiv:1902.08129): it *explodes*, going back.

    In x_{l+1} = x_l + F(x_l), full pre-activation, F adds v to the variance of each channel.
    Hence s_l = (l - 1/2) v, where x_1 = ReLU(BN(.)) has v / 2, and k layers in F make

        |dE/dx_l|^2 = |dE/dx_{l+1}|^2 (1 + a^(k-1) / s_l) = |dE/dx_{l+1}|^2 (1 + a^k / (l - 1/2)),

    since the parts are uncorrelated. For a^k = 1 the product over l telescopes to a multiple of N;
    in general it is a ratio of gamma functions, ~ N^(a^k). So the norm grows as a power of the
    number of units, N^0.73 for one layer, N^1.08 for basic units, N^1.58 for bottlenecks; while a
    plain net's grows as 1.21^(k N). The first unit has no BN and ReLU before its convolution: 2
    a^(k-1) instead of a^(k-1) / s_1.

    Widening by zeros starts channels anew at s = v, and drops their gradient there. So channels of
    each age have their own s and share of the gradient: F gives each the same, then BN divides by
    s. After a projection, all channels start at 2 v.

    A scaled shortcut, A x + B F, has A^2 and B^2 before the summands in both recursions.

    Returns:
        None where it is not known: other orders but of plain nets, and other shortcuts.
    """
    units, kind = spec.units(), spec.shortcut
    layers = len(units[0].convs)
    a, count = 1 / VARIANCE, len(units)
    if not spec.has_shortcut and spec.order == "original":
        return [a ** (layers * after / 2) for after in reversed(range(count))]
    if spec.order != "full_preact" or kind.factor is None:
        return None
    on_x, on_f = 1.0, 1.0
    if isinstance(kind, Scale):
        on_x, on_f = kind.on_shortcut**2, kind.on_residual**2
    inner = on_f * a ** (layers - 1)

    variance = np.full(units[0].in_channels, VARIANCE / 2)  # of each channel
    entering = []
    for unit in units:
        entering.append(variance)
        old = on_x * variance
        if unit.projection:
            old = np.full(unit.out_channels, on_x * VARIANCE)
        variance = np.pad(old, (0, unit.out_channels - len(old))) + on_f * VARIANCE
    squares = 1 / variance  # of the gradient, in each channel; the head's BN divides, too
    norms = []
    for unit, variance in zip(reversed(units), reversed(entering)):
        total, channels = squares.sum(), unit.in_channels
        passed = 1 / variance if unit.pre else np.full(channels, 2.0)
        if unit.projection:
            squares = (inner + on_x) * total * passed / channels
        else:
            squares = on_x * squares[:channels] + inner * total * passed / channels
        norms.append(math.sqrt(squares.sum()))
    return [norm / norms[0] for norm in reversed(norms)]
