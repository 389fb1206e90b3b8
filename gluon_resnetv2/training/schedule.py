"""The learning rate as a pure function of the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepSchedule:
    """A constant rate, multiplied by `factor` at each boundary, after a constant warm-up.

    Steps are iterations, counted from 0. The paper's CIFAR rate (appendix) is
    StepSchedule(0.1, (32000, 48000), 0.1, warmup_lr=0.01, warmup_steps=400).
    """

    lr: float
    boundaries: tuple[int, ...] = ()
    factor: float = 0.1
    warmup_lr: float = 0.0
    warmup_steps: int = 0

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.warmup_lr
        return self.lr * self.factor ** sum(step >= boundary for boundary in self.boundaries)
