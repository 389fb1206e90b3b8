"""The training loop."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

import mxnet as mx
from mxnet import autograd, gluon
from tqdm import tqdm

from gluon_resnetv2.data import Dataset, batches, num_batches, prefetch
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.training import statistics
from gluon_resnetv2.training.curves import draw_curves
from gluon_resnetv2.training.devices import split
from gluon_resnetv2.training.evaluate import Meter, cross_entropy, evaluate
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.run import Run

# How many steps Python may be ahead of the devices: enough to keep them busy, and few enough that
# the queued batches do not fill the memory.
STEPS_AHEAD = 2

# For so many steps moving statistics are not to be evaluated with: 0.9^50 is half a percent.
STEPS_UNSETTLED = 50
STATISTICS_BATCHES = 10  # what takes their place is the mean over so many batches


def make_trainer(net: gluon.Block, recipe: Recipe) -> gluon.Trainer:
    """SGD with momentum, and the recipe's kvstore between the devices."""
    return gluon.Trainer(
        net.collect_params(),
        "sgd",
        {"learning_rate": recipe.lr, "momentum": recipe.mom, "wd": recipe.wd},
        kvstore=recipe.kv_store,
    )


def train_step(net, trainer, images, labels):
    """One update on `images` and `labels`, a list entry per device; returns losses and outputs.

    Nothing here waits for the devices. The gradient is that of the whole batch's mean loss, however
    the batch is split.
    """
    with autograd.record():
        outputs = [net(part) for part in images]
        losses = [cross_entropy(output, label) for output, label in zip(outputs, labels)]
    autograd.backward(losses)
    trainer.step(sum(len(part) for part in images))
    return losses, outputs


def check_finite(loss: float, step: int, lr: float) -> None:
    """Lets a finite loss pass.

    Raises:
        UserError: it is not a number, or infinite.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step} with learning rate {lr:g}; try a smaller --lr"
        )


def train_epoch(net, trainer, progress, lr_at, step, devices, dtype) -> dict[str, float]:
    """One pass over the batches of `progress`, a tqdm, of which the first is step `step`.

    Returns:
        The pass's mean "loss", its "error" in percent, and "images_per_second".

    Raises:
        UserError: the loss is no longer finite.
    """
    meter, pending, started = Meter(), deque(), time.perf_counter()
    for images, labels in progress:
        trainer.set_learning_rate(lr_at(step))
        labels = split(labels, devices)
        losses, outputs = train_step(net, trainer, split(images, devices, dtype), labels)
        meter.add(losses, outputs, labels)
        pending.append((step, losses[0].mean()))
        if len(pending) > STEPS_AHEAD:
            earlier, loss = pending.popleft()
            loss = loss.asscalar()
            check_finite(loss, earlier, lr_at(earlier))
            speed = meter.count / (time.perf_counter() - started)
            progress.set_postfix_str(f"loss {loss:.3f}, {speed:.0f} images/s", refresh=False)
        step += 1
    passed = meter.read()
    check_finite(passed["loss"], step - 1, lr_at(step - 1))
    return {**passed, "images_per_second": meter.count / (time.perf_counter() - started)}


def fit(
    net: ResNetV2,
    dataset: Dataset,
    recipe: Recipe,
    devices: Sequence[mx.Context],
    run: Run,
) -> dict:
    """Trains `net`, already initialised on `devices`; returns the last epoch's record.

    Every epoch ends with an evaluation, a line in metrics.jsonl, a checkpoint and fresh curves.

    Raises:
        UserError: the loss is no longer finite.
        OSError: the run's folder can't be written to.
    """
    trainer = make_trainer(net, recipe)
    steps = num_batches(len(dataset.train.labels), recipe.batch_size, len(devices))
    lr_at = recipe.schedule(steps)
    for epoch in range(recipe.num_epochs):
        started = time.perf_counter()
        order = {"seed": recipe.seed, "epoch": epoch, "devices": len(devices)}
        epoch_batches = partial(batches, dataset, recipe.batch_size, train=True, **order)
        progress = tqdm(
            prefetch(epoch_batches()),
            f"epoch {epoch + 1}/{recipe.num_epochs}",
            total=steps,
            unit="step",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        trained = train_epoch(net, trainer, progress, lr_at, epoch * steps, devices, recipe.dtype)
        step = (epoch + 1) * steps
        if step < STEPS_UNSETTLED:
            few = itertools.islice(epoch_batches(), STATISTICS_BATCHES)
            statistics.recalibrate(net, few, devices, recipe.dtype)
        else:
            statistics.average(net)
        tested = evaluate(net, batches(dataset, recipe.batch_size), devices, recipe.dtype)
        record = {
            "epoch": epoch + 1,
            "step": step,
            "lr": lr_at(step - 1),
            "train_loss": trained["loss"],
            "train_error": trained["error"],
            "test_loss": tested["loss"],
            "test_error": tested["error"],
            "images_per_second": trained["images_per_second"],
            "seconds": time.perf_counter() - started,
        }
        run.log(**record)
        run.checkpoint(net, dataset, record)
        draw_curves(run.folder)
        print(
            f"epoch {epoch + 1:3d}/{recipe.num_epochs}  lr {record['lr']:<7.4g} "
            f"train loss {trained['loss']:.4f}  error {trained['error']:5.2f} %   "
            f"test loss {tested['loss']:.4f}  error {tested['error']:5.2f} %   "
            f"{trained['images_per_second']:.0f} images/s",
            flush=True,
        )
    return record
