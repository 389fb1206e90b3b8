"""One training step: from a batch to updated parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from gluon_resnetv2.data import random_numbers
from gluon_resnetv2.engines.native.block import native_block
from gluon_resnetv2.memory import Recomputed
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.training.average import Average
from gluon_resnetv2.training.devices import split
from gluon_resnetv2.training.precision import LossScaler
from gluon_resnetv2.training.recipe import Recipe


def forward_backward(
    net: gluon.Block, images: Sequence, losses_of: Callable, seed: int = 0
) -> tuple[list[mx.nd.NDArray], list[mx.nd.NDArray]]:
    """Fills the gradients of `net` with those of the losses' sum; returns losses and outputs.

    Nothing here waits for the devices.

    Args:
        images: (n, C, H, W), an entry for each device.
        losses_of: makes of the outputs, a list of logits (n, classes), a list of losses.
        seed: unused; it is for a pass that draws the same random numbers twice.
    """
    with autograd.record():
        outputs = [net(part) for part in images]
        losses = losses_of(outputs)
    autograd.backward(losses)
    return losses, outputs


def forward(net: gluon.Block, images: Sequence, _losses_of: Callable, seed: int = 0) -> None:
    """The first half of `forward_backward`."""
    with autograd.record():
        for part in images:
            net(part)


def training_passes(net: ResNetV2, recipe: Recipe) -> tuple[Callable, Callable]:
    """`forward_backward` of `net` in the way that the recipe asks for.

    Returns:
        It, and the shortest pass that moves the statistics, which takes the same. MXNet moves them
        on the way back, the native engine on the way there.

    Raises:
        UserError: it can't be had.
    """
    if recipe.recompute != "off":
        segments = None if recipe.recompute == "auto" else int(recipe.recompute)
        both = Recomputed(net, segments).forward_backward
    elif recipe.engine == "native":
        block = native_block(net, recipe.dtype, adds=recipe.accumulate > 1, images_gradient=False)
        return partial(forward_backward, block), partial(forward, block)
    else:
        both = partial(forward_backward, net)
    return both, both


def cross_entropy(
    output: mx.nd.NDArray,
    label: mx.nd.NDArray,
    other: mx.nd.NDArray | None = None,
    smoothing: float = 0.0,
    weight: float = 1.0,
) -> mx.nd.NDArray:
    """The loss (n,) of logits (n, classes) whose classes are `label` (n,).

    Args:
        other, weight: where an image is made of two (mixup, arXiv:1710.09412, and CutMix,
            arXiv:1905.04899): the second one's class, and what the first one weighs.
        smoothing: the part of each label that all classes share alike (arXiv:1512.00567).
    """
    log_probability = mx.nd.log_softmax(output)
    loss = -log_probability.pick(label)
    if weight < 1:
        loss = weight * loss - (1 - weight) * log_probability.pick(other)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * log_probability.mean(axis=1)
    return loss


def cut_box(sizes: Sequence[int], weight: float, rng: np.random.Generator) -> list[slice]:
    """Rows and columns that CutMix takes from another image (arXiv:1905.04899, section 3.1).

    The box has the image's shape and `1 - weight` of its area, and its middle is anywhere in the
    image, so that part of it may lie outside, and is left out.

    Args:
        sizes: the image's height and width.
    """
    share = math.sqrt(1 - weight)
    box = []
    for size in sizes:
        middle, half = int(rng.integers(size)), int(size * share) // 2
        box.append(slice(max(middle - half, 0), min(middle + half, size)))
    return box


class Step:
    """What the recipe does with a batch: called with one, it makes one update.

    The gradient is that of the whole batch's mean loss, over all workers, however it is split.
    What is random depends on (seed, step, worker) alone, so that a run can go on from any step.

    Attributes:
        forward_backward: what computes the gradients, as the function of this name.
        scaler: a `LossScaler`, or None.
        mixed_steps: before which step the recipe's mixup and CutMix end.
        average: of the parameters, where the recipe has one; follows each update that is made.
    """

    def __init__(
        self,
        net: ResNetV2,
        trainer: gluon.Trainer,
        recipe: Recipe,
        devices: Sequence[mx.Context],
        worker: int = 0,
        mixed_steps: float = math.inf,
    ):
        self.trainer, self.recipe, self.devices, self.worker = trainer, recipe, devices, worker
        self.mixed_steps = mixed_steps
        self.forward_backward, self._moves_statistics = training_passes(net, recipe)
        self.scaler = LossScaler() if recipe.dtype == "float16" else None
        self.average = Average(net, recipe.ema) if recipe.ema else None
        self._draws = net.spec.shortcut.random
        # MXNet moves the statistics of a normalisation on the way back, which it does not go to
        # one that learns nothing, unless somebody asks for the images' gradient.
        self._asks = net.spec.input_bn == "plain" and recipe.freeze is None
        self._added = []  # parameters whose gradients add up over the rounds of a step
        if recipe.accumulate > 1:
            self._added = [p for p in net.collect_params().values() if p.grad_req != "null"]
            for parameter in self._added:
                parameter.grad_req = "add"

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, step: int, count: int, wait: bool = False
    ):
        """Makes update number `step`, counted from 0, and does not wait for the devices.

        Args:
            images: (n, C, H, W), this worker's part of the batch.
            labels: (n,).
            count: how many images the whole batch holds.
            wait: for the gradients, before the update. The first step after an evaluation has to:
                oneDNN leaves convolutions' weights in a layout of its own there, training brings
                them back when it gets round to it, and an update rounds differently on either.

        Returns:
            losses, outputs and labels: lists with an entry for each part of the batch.
        """
        images, others, weight = self._mix(images, labels, step)
        scale = self.scaler.scale if self.scaler else 1
        seed = self._seed(step)
        losses, outputs, answers = [], [], []
        for round_, (x, y, z) in enumerate(zip(*map(self.rounds, (images, labels, others)))):

            def losses_of(logits, y=y, z=z):
                smoothing = self.recipe.label_smoothing
                return [cross_entropy(*of, smoothing, weight) * scale for of in zip(logits, y, z)]

            found, logits = self.gradients(x, losses_of, seed + round_)
            losses += [loss / scale for loss in found]
            outputs += logits
            answers += y
        if wait:
            mx.nd.waitall()
        self._update(count * scale)
        return losses, outputs, answers

    def gradients(self, images: list[mx.nd.NDArray], losses_of: Callable, seed: int):
        """`forward_backward` of one part on each device, with the random numbers of `seed`."""
        return self._run(self.forward_backward, images, losses_of, seed)

    def move_statistics(self, images: list[mx.nd.NDArray], losses_of: Callable, seed: int) -> None:
        """The same as far as it moves the statistics."""
        self._run(self._moves_statistics, images, losses_of, seed)

    def _run(self, training_pass, images, losses_of, seed):
        if self._draws:
            mx.random.seed(seed)
        return training_pass(images, losses_of, seed=seed)

    def rounds(self, array: np.ndarray) -> list[list[mx.nd.NDArray]]:
        """`array`, split along its first axis, as lists with an entry for each device."""
        count = len(self.devices)
        dtype = self.recipe.array_dtype if array.dtype == np.float32 else array.dtype
        parts = split(array, [*self.devices] * self.recipe.accumulate, dtype)
        if self._asks and array.dtype == np.float32:
            for images in parts:
                images.attach_grad()
        return [parts[i : i + count] for i in range(0, len(parts), count)]

    def _mix(self, images, labels, step):
        """Images, the classes of those mixed in, and the weight of their own."""
        mixup, cutmix = self.recipe.mixup, self.recipe.cutmix
        if not (mixup or cutmix) or step >= self.mixed_steps:
            return images, labels, 1.0
        rng = random_numbers(self.recipe.seed, step, self.worker, 1)
        if cutmix and not (mixup and rng.random() < 0.5):
            weight = float(rng.beta(cutmix, cutmix))
            order = rng.permutation(len(labels))
            rows, columns = cut_box(images.shape[2:], weight, rng)
            mixed = images.copy()
            mixed[..., rows, columns] = images[order][..., rows, columns]
            cut = mixed[0, 0, rows, columns].size
            return mixed, labels[order], 1 - cut / mixed[0, 0].size
        weight = float(rng.beta(mixup, mixup))
        weight = max(weight, 1 - weight)  # the same pairs, and `labels` are the larger part
        order = rng.permutation(len(labels))
        mixed = np.float32(weight) * images + np.float32(1 - weight) * images[order]
        return mixed, labels[order], weight

    def _seed(self, step):
        return int(random_numbers(self.recipe.seed, step, self.worker, 0).integers(2**30))

    def _update(self, count):
        if self.recipe.kv_store == "dist_async":
            count = self.recipe.batch_size  # the servers know no other; a last batch weighs less
        if self.scaler:
            self.trainer.allreduce_grads()
            updates = self.scaler.passed(self.trainer._params)
            if updates:
                self.trainer.update(count)
        else:
            updates = True
            self.trainer.step(count)
        if updates and self.average:
            self.average.follow(self.trainer.optimizer.num_update)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Has gradients that add up start from zero again."""
        if self._added:
            gradients = [gradient for p in self._added for gradient in p.list_grad()]
            mx.nd.reset_arrays(*gradients, num_arrays=len(gradients))
