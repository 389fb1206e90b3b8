"""The learning rate as a pure function of the step. Steps are iterations, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Rate = Callable[[int], float]  # of learning, by step


@dataclass(frozen=True)
class Steps:
    """A constant rate, multiplied by `factor` at each boundary."""

    lr: float
    boundaries: tuple[int, ...] = ()
    factor: float = 0.1

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** sum(step >= boundary for boundary in self.boundaries)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave from `lr` at step `first` to `end_lr` at step `last` (arXiv:1608.03983,
    without restarts)."""

    lr: float
    last: int
    first: int = 0
    end_lr: float = 0.0

    def __call__(self, step: int) -> float:
        wave = (1 + math.cos(math.pi * _part(step, self.first, self.last))) / 2
        return self.end_lr + (self.lr - self.end_lr) * wave


@dataclass(frozen=True)
class WarmUp:
    """Another rate for the first `steps` steps: `lr`, or on a line from `lr` to `then(steps)`.

    The paper's CIFAR rate (appendix) is WarmUp(Steps(0.1, (32000, 48000)), 400, 0.01).
    """

    then: Rate
    steps: int
    lr: float
    linear: bool = False

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.then(step)
        if not self.linear:
            return self.lr
        return self.lr + (self.then(self.steps) - self.lr) * step / self.steps


def _part(step: int, first: int, last: int) -> float:
    """How much of the way from `first` to `last` lies behind `step`, 0 to 1."""
    return min(max((step - first) / max(last - first, 1), 0.0), 1.0)
