"""The papers' residual networks in plain PyTorch: an oracle that shares no code with the package.

Written without sight of the package's networks, from a digest of

- [v2] "Identity Mappings in Deep Residual Networks", arXiv:1603.05027: Table 1 and Fig. 2
  (shortcuts), Table 2 and Fig. 4 (orders), Table 3 (1-layer skip), and the appendix (first and last
  unit under pre-activation, bottlenecks, pre-activated projections);
- [v1] "Deep Residual Learning for Image Recognition", arXiv:1512.03385: stems, stages, bottlenecks,
  and the options A, B and C for widening.

Conventions rather than statements of the papers: parameter names, EPS, `stride_on` "3x3", where a
gate strides and what it reads. A network is a plain dict:

    family     "cifar" (3x3 stem) or "imagenet" (7x7/2 stem, 3x3/2 max pooling)
    units      units per stage, such as [3, 3, 3]
    unit       a key of KERNELS
    order      a key of CYCLES
    shortcut   ["identity"], ["scale", alpha, beta] (alpha 0: no shortcut), ["gate", bias],
               ["exclusive-gate", bias], ["conv1x1"] or ["dropout", p]; bias is an initial value
               and p matters in training alone, so neither is read here
    widening   "A" zero padding, "B" projections where the shape changes, "C" projections everywhere
    stride_on  "first" convolution of a unit, or a bottleneck's "3x3"
    classes    number of outputs
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

EPS = 1e-5

# One weight layer of each order (Table 2); + stands in the last layer of a unit only.
CYCLES = {
    "original": "conv BN + ReLU",
    "bn_after_add": "conv + BN ReLU",
    "relu_before_add": "conv BN ReLU +",
    "relu_preact": "ReLU conv BN +",
    "full_preact": "BN ReLU conv +",
}
KERNELS = {"single": [3], "basic": [3, 3], "bottleneck": [1, 3, 1]}


def logits(
    net: dict, params: dict[str, torch.Tensor], x: torch.Tensor, training: bool
) -> torch.Tensor:
    """Scores (N, classes) of images x (N, 3, H, W); no parameter is modified.

    Batch normalisation uses the batch's statistics if training, else the moving ones. Raises
    KeyError for a missing parameter, ValueError for one of the wrong shape, NotImplementedError
    for a dropout shortcut in training.
    """

    def fetch(name: str, *shape: int) -> torch.Tensor:
        if params[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(params[name].shape)}, expected {shape}")
        return params[name]

    return _Pass(net, fetch, training).network(x)


def parameter_shapes(net: dict) -> dict[str, tuple]:
    """Name and shape of everything the network reads, moving statistics included."""
    shapes = {}

    def fetch(name: str, *shape: int) -> torch.Tensor:
        shapes[name] = shape
        return torch.empty(shape, device="meta")

    _Pass(net, fetch, training=False).network(torch.empty(1, 3, 32, 32, device="meta"))
    return shapes


class _Pass:
    """One forward pass; fetch(name, *shape) gives a parameter where it is used."""

    def __init__(self, net: dict, fetch: Callable[..., torch.Tensor], training: bool):
        self.net, self.fetch, self.training = net, fetch, training
        cycle = CYCLES[net["order"]].split()
        conv = cycle.index("conv")
        self.before, self.after = cycle[:conv], cycle[conv + 1 :]
        self.normalises_branch = "BN" in self.after[: self.after.index("+")]
        kind, *factors = net["shortcut"]
        self.plain = kind == "scale" and factors[0] == 0

    def network(self, x: torch.Tensor) -> torch.Tensor:
        imagenet = {"cifar": False, "imagenet": True}[self.net["family"]]
        width = 64 if imagenet else 16
        # Each cycle, begun at conv and without +, reads conv BN ReLU. What a pre-activation order
        # has before conv is the first unit's activation, taken before the split (and the pooling).
        x = self.conv("conv0_weight", x, width, *((7, 2) if imagenet else (3, 1)))
        x = self.bn("bn0", x).relu()
        if imagenet:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for s, units in enumerate(self.net["units"], 1):
            for u in range(1, units + 1):
                stride = 2 if s > 1 and u == 1 else 1
                x = self.unit(f"stage{s}_unit{u}_", x, width * 2 ** (s - 1), stride)
        x = self.preactivate("bn1", x)  # the last unit's extra activation
        x = x.mean((2, 3))
        classes = self.net["classes"]
        return F.linear(
            x, self.fetch("fc1_weight", classes, x.shape[1]), self.fetch("fc1_bias", classes)
        )

    def unit(self, name: str, x: torch.Tensor, width: int, stride: int) -> torch.Tensor:
        kernels = KERNELS[self.net["unit"]]
        bottleneck = self.net["unit"] == "bottleneck"
        widths = [width, width, 4 * width] if bottleneck else [width] * len(kernels)
        strided = 2 if bottleneck and self.net["stride_on"] == "3x3" else 1
        changes_shape = stride != 1 or x.shape[1] != widths[-1]
        projects = self.net["shortcut"] == ["conv1x1"] or (
            {"A": False, "B": changes_shape, "C": True}[self.net["widening"]] and not self.plain
        )

        # The first unit's activation has been taken already.
        branch = x if name == "stage1_unit1_" else self.preactivate(f"{name}bn1", x)
        shortcut = branch if projects else x  # projections are pre-activated too
        for i, (channels, kernel) in enumerate(zip(widths, kernels), 1):
            if i > 1:
                branch = self.preactivate(f"{name}bn{i}", branch)
            step = stride if i == strided else 1
            branch = self.conv(f"{name}conv{i}_weight", branch, channels, kernel, step)
            for op in self.after:
                if op == "BN":
                    branch = self.bn(f"{name}bn{i}", branch)
                elif op == "ReLU":
                    branch = branch.relu()
                elif i == len(kernels):
                    branch = self.add(name, shortcut, branch, stride, projects)
        return branch

    def preactivate(self, bn: str, x: torch.Tensor) -> torch.Tensor:
        """What the order has before a convolution; nothing unless it is a pre-activation order."""
        for op in self.before:
            x = self.bn(bn, x) if op == "BN" else x.relu()
        return x

    def add(
        self, name: str, x: torch.Tensor, branch: torch.Tensor, stride: int, projects: bool
    ) -> torch.Tensor:
        """Table 1: the shortcut, which reads x, rejoins the branch."""
        kind, *factors = self.net["shortcut"]
        if self.plain:
            return factors[1] * branch
        channels = branch.shape[1]
        if projects:
            shortcut = self.conv(f"{name}sc_weight", x, channels, 1, stride)
            if self.normalises_branch:  # then both summands are normalised
                shortcut = self.bn(f"{name}scbn", shortcut)
        else:
            new_channels = channels - x.shape[1]
            shortcut = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, new_channels))

        if kind in ("identity", "conv1x1"):
            return shortcut + branch
        if kind == "scale":
            return factors[0] * shortcut + factors[1] * branch
        if kind in ("gate", "exclusive-gate"):
            g = self.conv(f"{name}gate_weight", x, channels, 1, stride)
            g = torch.sigmoid(g + self.fetch(f"{name}gate_bias", channels)[:, None, None])
            return (1 - g) * shortcut + (branch if kind == "gate" else g * branch)
        if kind == "dropout":
            if self.training:
                raise NotImplementedError("a dropout shortcut is random in training")
            return shortcut + branch
        raise ValueError(f"unknown shortcut {kind!r}")

    def conv(
        self, name: str, x: torch.Tensor, channels: int, kernel: int, stride: int
    ) -> torch.Tensor:
        weight = self.fetch(name, channels, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2)

    def bn(self, name: str, x: torch.Tensor) -> torch.Tensor:
        gamma, beta, mean, var = (
            self.fetch(f"{name}_{part}", x.shape[1])[:, None, None]
            for part in ("gamma", "beta", "moving_mean", "moving_var")
        )
        if self.training:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return gamma * (x - mean) / torch.sqrt(var + EPS) + beta
