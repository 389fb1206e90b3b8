"""Activation recomputation: a third more computing for a fraction of the memory.

The network is cut into segments of residual units. The forward pass keeps what enters each segment
and drops the rest; the backward pass runs each segment again before it goes back through it (Chen
et al., *Training Deep Nets with Sublinear Memory Cost*, arXiv:1604.06174). MXNet's own switch for
this, MXNET_BACKWARD_DO_MIRROR, does nothing in Gluon.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import mxnet as mx
import numpy as np
from mxnet import autograd

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.layers import batch_norms, chain
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec

# Part of the activations that the last segment keeps at least: more of it costs memory, and less
# costs the time of the second run.
KEPT = 0.08

# Operators that MXNet's engine is handed at a time: with its default of 15 it is slower here.
BULK = 500


class Recomputed:
    """The training pass of `net` that computes most activations a second time.

    The parameters are those of `net`, which stays what it is, for evaluation and export.

    Args:
        net: the network, initialised and with its final dtype.
        segments: how many to cut the network into: 1 recomputes nothing; None: chosen by
            `best_starts` for little memory and time.

    Raises:
        UserError: fewer than one segment, or more than the network has residual units.
    """

    def __init__(self, net: ResNetV2, segments: int | None = None):
        sizes = unit_sizes(net.spec)
        if segments is None:
            starts = best_starts(sizes)
        elif 1 <= segments <= len(sizes):
            starts = even_starts(sizes, segments)
        else:
            raise UserError(
                f"--recompute {segments} is impossible: {net.spec.name} has {len(sizes)} residual "
                f"units; choose off, auto or 1 to {len(sizes)}"
            )
        blocks = [*net.features, net.output]
        stem = blocks.index(net.units[0])
        cuts = [0, *(stem + start for start in starts[1:]), len(blocks)]
        parts = [blocks[start:end] for start, end in pairwise(cuts)]
        self._segments = [chain(part) for part in parts]
        # A graph of its own, with another momentum, for each segment's first run.
        self._first_runs = [chain(part) for part in parts[:-1]]
        for segment in self._segments + self._first_runs:
            # Not static_alloc: that would keep each segment's buffers for as long as it lives.
            segment.hybridize(forward_bulk_size=BULK, backward_bulk_size=BULK)
        self._norms = list(batch_norms(net))
        self._random = net.spec.shortcut.random
        learns = [_learns(segment) for segment in self._segments]
        self._first = learns.index(True) if True in learns else len(parts) - 1

    def __len__(self) -> int:
        """The number of segments."""
        return len(self._segments)

    def forward_backward(
        self,
        images: Sequence[mx.nd.NDArray],
        losses_of: Callable[[list[mx.nd.NDArray]], list[mx.nd.NDArray]],
        seed: int | Sequence[int] = 0,
    ) -> tuple[list[mx.nd.NDArray], list[mx.nd.NDArray]]:
        """Computes the losses, and fills the parameters' gradients as their `grad_req` says.

        Equal to ::

            with autograd.record():
                outputs = [net(part) for part in images]
                losses = losses_of(outputs)
            autograd.backward(losses)

        but for the masks of dropout, which `seed` and the place in `images` determine here (the
        devices' generators are seeded anew). Waits for the devices between segments.

        Args:
            images: (n, in_channels, H, W) on each device.
            losses_of: makes of the logits, (n, classes) on each device, the losses on each.
            seed: non-negative, another one for every step.

        Returns:
            The losses and the logits, a list entry for each device.
        """
        draws = np.random.RandomState(seed)  # apart from each other: near seeds share streams
        seeds = draws.randint(2**31 - 1, size=(len(self), len(images))).tolist()

        inputs = [list(images)]  # of each segment
        with autograd.pause(train_mode=True), self._statistics_kept():
            for segment, segment_seeds in zip(self._first_runs, seeds):
                inputs.append(self._run(segment, inputs[-1], segment_seeds))

        gradients = None  # of the outputs of the segment at hand
        for k in reversed(range(self._first, len(self))):  # before it, nothing has a gradient
            entering = inputs.pop()
            if k > self._first:
                for x in entering:
                    x.attach_grad()
            with autograd.record():
                leaving = self._run(self._segments[k], entering, seeds[k])
                if gradients is None:
                    outputs, losses = leaving, losses_of(leaving)
                    leaving = losses
            autograd.backward(leaving, gradients)
            if k > self._first:
                gradients = [x.grad for x in entering]
                for gradient in gradients:
                    # Nothing else would keep MXNet from running the segments before this one at
                    # the same time, and from holding the activations of all of them.
                    gradient.wait_to_read()
        return losses, outputs

    def _run(self, segment, inputs, seeds):
        outputs = []
        for x, seed in zip(inputs, seeds):
            if self._random:
                mx.random.seed(seed, x.context)
            outputs.append(segment(x))
        return outputs

    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Has batch normalisation leave its moving statistics alone, by a momentum of 1.

        They are due once in a step: in the second run, or in its backward pass. Which of the two
        updates them depends on the device, so the first run must do so on none.
        """
        momenta = [norm._kwargs["momentum"] for norm in self._norms]
        try:
            for norm in self._norms:
                norm._kwargs["momentum"] = 1.0
            yield
        finally:
            for norm, momentum in zip(self._norms, momenta):
                norm._kwargs["momentum"] = momentum


def _learns(block) -> bool:
    return any(p.grad_req != "null" for p in block.collect_params().values())


# -- Where to cut ----------------------------------------------------------------------------------


def unit_sizes(spec: Spec) -> list[tuple[float, float]]:
    """What each residual unit costs: its input, and all that its backward pass needs.

    In elements for each image and each pixel of the first unit's map. The backward pass needs what
    enters and what leaves every convolution: ReLU, BN and the addition work in place.
    """
    sizes, area = [], 1.0
    for unit in spec.units():
        entering, needed = unit.in_channels * area, 0.0
        for conv in unit.convs:
            needed += conv.in_channels * area
            area /= conv.stride**2
            needed += conv.out_channels * area
        needed += sum(conv.out_channels * area for conv in (unit.projection, unit.gate) if conv)
        sizes.append((entering, needed))
    return sizes


def even_starts(sizes: Sequence[tuple[float, float]], segments: int) -> list[int]:
    """The first unit of each of `segments` segments that need about equally much memory."""
    totals = list(accumulate(needed for _, needed in sizes))
    starts = [0]
    for k in range(1, segments):
        even = bisect_left(totals, totals[-1] * k / segments) + 1
        starts.append(min(max(even, starts[-1] + 1), len(sizes) - segments + k))
    return starts


def peak(sizes: Sequence[tuple[float, float]], starts: Sequence[int]) -> float:
    """The most that the backward pass holds at a time: a segment, and what enters those before."""
    held = most = 0.0
    for start, end in zip(starts, [*starts[1:], len(sizes)]):
        most = max(most, held + sum(needed for _, needed in sizes[start:end]))
        held += sizes[end][0] if end < len(sizes) else 0.0
    return most


def best_starts(sizes: Sequence[tuple[float, float]], kept: float = KEPT) -> list[int]:
    """Where to cut for little memory and little time: the lowest peak with the fewest segments.

    The last segment, which is not run again, holds at least `kept` of what all units need.
    """
    needs = list(accumulate(needed for _, needed in sizes))
    last = max(bisect_left(needs, (1 - kept) * needs[-1]), 1)
    if last >= len(sizes):
        return [0]
    candidates = ([*even_starts(sizes[:last], segments), last] for segments in range(1, last + 1))
    return min(candidates, key=lambda starts: peak(sizes, starts))
