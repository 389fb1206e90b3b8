"""Loss and error of a network over a data set, every image counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mxnet as mx
import numpy as np
from mxnet import gluon

from gluon_resnetv2.training.devices import split

# The loss of each image, from logits (n, classes) and labels (n,).
cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()


class Meter:
    """Running sums of loss and errors that stay on the devices until they are read."""

    def __init__(self):
        self.count = 0
        self._sums: dict[mx.Context, mx.nd.NDArray] = {}

    def add(self, losses, outputs, labels) -> None:
        """Adds one list entry per device: losses (n,), outputs (n, classes), labels (n,)."""
        for loss, output, label in zip(losses, outputs, labels):
            wrong = output.argmax(axis=1).astype(label.dtype) != label
            sums = mx.nd.concat(loss.sum(), wrong.sum().astype(loss.dtype), dim=0)
            device = loss.ctx
            self._sums[device] = sums + self._sums[device] if device in self._sums else sums
            self.count += len(label)

    def read(self) -> dict[str, float]:
        """{"loss": mean loss, "error": percentage of wrong answers}. Waits for the devices."""
        loss, wrong = np.sum([sums.asnumpy() for sums in self._sums.values()], axis=0) / self.count
        return {"loss": float(loss), "error": 100 * float(wrong)}


def evaluate(
    net: gluon.Block, batches: Iterable, devices: Sequence[mx.Context], dtype: str = "float32"
) -> dict[str, float]:
    """Loss and error of `net` over (images, labels) batches, in the manner of `Meter.read`."""
    meter = Meter()
    for images, labels in batches:
        used = devices[: len(labels)]  # a last batch may be smaller than the number of devices
        images, labels = split(images, used, dtype), split(labels, used)
        outputs = [net(part) for part in images]
        meter.add([cross_entropy(*pair) for pair in zip(outputs, labels)], outputs, labels)
    return meter.read()
