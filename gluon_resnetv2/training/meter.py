"""Loss and error of a network over a data set, every image counted once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import mxnet as mx
import numpy as np
from mxnet import gluon

from gluon_resnetv2.scores import softmax
from gluon_resnetv2.training.answers import Answers
from gluon_resnetv2.training.devices import split
from gluon_resnetv2.training.step import cross_entropy

# How many batches Python may be ahead of the devices, lest they fill the memory.
BATCHES_AHEAD = 2


class Meter:
    """Running sums of loss and errors that stay on the devices until they are read.

    Args:
        sums: what `sums` gave, to go on from.
        devices: the devices to go on with.
        dtype: of the losses to come.
    """

    def __init__(
        self,
        sums: Sequence[Sequence[float]] = (),
        devices: Sequence[mx.Context] = (),
        dtype: str = "float32",
    ):
        if len(sums) != len(devices):  # others than before: what matters is the total
            sums = [np.sum(sums, axis=0)] if len(sums) else []
        self.count = int(sum(row[2] for row in sums))
        self._counts: dict[mx.Context, float] = {
            device: row[2] for device, row in zip(devices, sums)
        }
        self._sums = {
            device: mx.nd.array(row[:2], ctx=device, dtype=dtype)
            for device, row in zip(devices, sums)
        }

    def add(self, losses, outputs, labels) -> None:
        """Adds an entry per part of a batch: losses (n,), outputs (n, classes), labels (n,)."""
        for loss, output, label in zip(losses, outputs, labels):
            wrong = output.argmax(axis=1).astype(label.dtype) != label
            sums = mx.nd.concat(loss.sum(), wrong.sum().astype(loss.dtype), dim=0)
            device = loss.ctx
            self._sums[device] = sums + self._sums[device] if device in self._sums else sums
            self._counts[device] = self._counts.get(device, 0) + len(label)
            self.count += len(label)

    def sums(self) -> list[list[float]]:
        """[loss, errors, images] of each device. Waits for the devices."""
        return [
            [*map(float, sums.asnumpy()), self._counts[device]]
            for device, sums in self._sums.items()
        ]

    def read(self, sum_over_workers: Callable = lambda arrays: arrays) -> dict[str, float]:
        """Mean "loss", "error" as the percentage of wrong answers, and how many "images".

        All are over all workers. Waits for the devices.
        """
        total = np.sum([[0.0] * 3, *self.sums()], axis=0)
        ((loss, wrong, count),) = sum_over_workers([total])
        return {
            "loss": float(loss / count),
            "error": float(100 * wrong / count),
            "images": int(count),
        }


def evaluate(
    net: gluon.Block,
    batches: Iterable,
    devices: Sequence[mx.Context],
    dtype: str = "float32",
    sum_over_workers: Callable = lambda arrays: arrays,
    answers: Answers | None = None,
) -> dict[str, float]:
    """Loss and error of `net` over (images, labels) batches, in the manner of `Meter.read`.

    Args:
        answers: is given what the network answers, image by image.
    """
    meter = Meter()
    pending: deque[tuple] = deque()

    def finish():
        outputs, labels, images = pending.popleft()
        if answers is None:
            for output in outputs:
                output.wait_to_read()
        else:
            logits = np.concatenate([output.astype("float64").asnumpy() for output in outputs])
            answers.add(softmax(logits, "float64"), labels, images)

    for images, labels in batches:
        used = devices[: len(labels)]  # a last batch may be smaller than the number of devices
        parts, targets = split(images, used, dtype), split(labels, used)
        outputs = [net(part) for part in parts]
        meter.add([cross_entropy(*pair) for pair in zip(outputs, targets)], outputs, targets)
        pending.append((outputs, labels, images))
        if len(pending) > BATCHES_AHEAD:
            finish()
    while pending:
        finish()
    return meter.read(sum_over_workers)
