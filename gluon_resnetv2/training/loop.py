"""The training loop."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from tqdm import tqdm

from gluon_resnetv2.checkpoint import load_parameters
from gluon_resnetv2.data import batch_images, num_batches, prefetch
from gluon_resnetv2.data.dataset import Dataset
from gluon_resnetv2.distributed.workers import Workers
from gluon_resnetv2.engines.choice import native_fault
from gluon_resnetv2.engines.native.block import native_block
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.training import resume, statistics
from gluon_resnetv2.training.engine import choose as choose_engine
from gluon_resnetv2.training.events import Events
from gluon_resnetv2.training.meter import Meter, evaluate
from gluon_resnetv2.training.optimizer import make_trainer, set_learning_rate
from gluon_resnetv2.training.precision import all_finite
from gluon_resnetv2.training.progress import Progress
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.run import Run
from gluon_resnetv2.training.step import Step
from gluon_resnetv2.training.stop import StopSignal

# How many steps Python may be ahead of the devices: enough to keep them busy, and few enough that
# the queued batches do not fill the memory.
STEPS_AHEAD = 2

# For so many steps moving statistics are not to be evaluated with: 0.9^50 is half a percent.
STEPS_UNSETTLED = 50
STATISTICS_BATCHES = 10  # what takes their place is the mean over so many batches

# How many steps workers take between agreeing on whether to stop or to write a checkpoint.
STEPS_AGREED = 10

# Between two drawings of the curves there pass so many times what one takes: half a second.
BETWEEN_DRAWINGS = 100


class Stopped(Exception):
    """A signal asked the run to end."""


class Diverged(UserError):
    """The loss, or a parameter, is no longer finite."""


def fit(
    net: ResNetV2,
    dataset: Dataset,
    recipe: Recipe,
    devices: Sequence[mx.Context],
    run: Run,
    workers: Workers | None = None,
) -> dict | None:
    """Trains `net`, already initialised on `devices`, from the run's last valid checkpoint on.

    Every epoch ends with an evaluation, a line in metrics.jsonl and a checkpoint. Curves are drawn
    at the end, and before that as often as a small part of the time allows. SIGTERM and SIGINT end
    it after the step under way, with a checkpoint.

    Args:
        workers: the processes that train together; by default this one alone.

    Returns:
        The last epoch's record, or None where a signal ended it before.

    Raises:
        Diverged: the loss is no longer finite; metrics.jsonl then ends in a record that says so.
        UserError: the data set is not the one of the checkpoint.
        OSError: the last checkpoint can't be written.
    """
    training = Training(net, dataset, recipe, devices, run, workers or Workers(recipe.kv_store))
    with StopSignal() as stop:
        return training.run_to_the_end(stop)


class Training:
    """A run under way.

    Attributes:
        step: steps done.
        epoch: epochs done and evaluated.
        best: step, epoch and test error of the best epoch so far.
        engine: that it computes with, "mxnet" or "native".
        record: the last epoch's.
        saved: {step: path} of the checkpoints that are valid, oldest first.
        news: lines about the engine and the schedule, to be printed.
    """

    def __init__(
        self,
        net: ResNetV2,
        dataset: Dataset,
        recipe: Recipe,
        devices: Sequence[mx.Context],
        run: Run,
        workers: Workers,
    ):
        self.net, self.dataset, self.recipe, self.run = net, dataset, recipe, run
        self.devices, self.workers = devices, workers
        parts = recipe.parts * workers.count
        self.images = recipe.epoch_images(dataset.train_count, workers.count)  # of an epoch
        self.steps = num_batches(self.images, recipe.batch_size, parts)  # of an epoch
        self.steps_in_all = recipe.total_steps(self.steps)
        self.epochs = -(-self.steps_in_all // self.steps)
        self.lr_at = recipe.schedule(self.steps)
        self.step = self.epoch = 0
        self.seconds = 0.0  # of the epoch under way
        self.best: dict[str, Any] | None = None
        self.record: dict[str, Any] | None = None
        self.saved: dict[int, Path] = {}
        self.meter = Meter()
        # (step, images, each part's sum of losses) that the devices may still be computing, where
        # images, too, are this worker's.
        self._pending: deque[tuple[int, int, list[mx.nd.NDArray]]] = deque()
        self._start()
        self._saved_at = self._looked = self._draws_at = time.monotonic()
        self._drawn = self.epoch

    def run_to_the_end(self, stop: StopSignal) -> dict | None:
        """As `fit`."""
        folder = self.run.folder
        self.events = Events(folder, self.step) if self.run.writes and not self._done else None
        total, quiet = self.steps_in_all, not self.run.writes
        with Progress(
            self.epochs, self.steps, self.step, total=total, quiet=quiet
        ) as self.progress:
            for line in self.news:
                self.progress.line(line)
            try:
                while not self._done:
                    self._train(stop)
                    self._evaluate(stop)
                if self.epoch < self.epochs:
                    self.progress.line(self._early())
            except Stopped:
                self._checkpoint_now(final=True)
                return None
            finally:
                self._draw()
                if self.events:
                    self.events.close()
        return self.record

    @property
    def _done(self) -> bool:
        """Whether all epochs are, or the last ones were no better than one before."""
        waited = self.epoch - self.best["epoch"] if self.best else 0
        return self.epoch == self.epochs or 0 < self.recipe.patience <= waited

    def _early(self) -> str:
        best = self.best or {}
        return (
            f"ends after epoch {self.epoch} of {self.epochs}: no better test error in "
            f"{self.recipe.patience} (--patience) than {best['test_error']:.2f} % of epoch "
            f"{best['epoch']}"
        )

    # One epoch

    def _train(self, stop):
        """The steps that are left of the epoch."""
        recipe, workers = self.recipe, self.workers
        first = self.epoch * self.steps
        batches = self._training_batches(start=self.step - first)
        began, end = self.step, min(first + self.steps, self.steps_in_all)
        with closing(prefetch(batches)) as prepared:
            for images, labels in itertools.islice(prepared, end - self.step):
                lr = set_learning_rate(self.trainer, recipe, self.lr_at, self.step)
                count = batch_images(
                    self.images,
                    recipe.batch_size,
                    recipe.parts * workers.count,
                    self.step - first,
                )
                wait = self.step == began
                losses, outputs, answers = self.update(images, labels, self.step, count, wait)
                self.meter.add(losses, outputs, answers)
                sums = [loss.sum() for loss in losses]
                self._pending.append((self.step, len(labels), sums))
                self.step += 1
                workers.up()
                loss = self._next_loss() if len(self._pending) > STEPS_AHEAD else None
                self.progress.step(count, lr, loss)
                wants_stop, wants_checkpoint = self._agree(stop.received)
                if wants_stop:
                    raise Stopped
                if wants_checkpoint and self.step < end:  # the epoch ends with one anyway
                    self._checkpoint_now()
        self._drain()

    def _training_batches(self, start: int = 0):
        """This worker's parts of the epoch's batches, from its step `start` on."""
        return self.dataset.batches(
            self.recipe.batch_size,
            train=True,
            images=self.images,
            seed=self.recipe.seed,
            epoch=self.epoch,
            devices=self.recipe.parts,
            start=start,
            worker=self.workers.rank,
            workers=self.workers.count,
            policy=self.recipe.policy,
        )

    def _evaluate(self, stop):
        """Ends an epoch: its evaluation, its record and its checkpoint."""
        recipe, workers = self.recipe, self.workers
        passed = self.meter.read(workers.sum)
        speed = passed["images"] / self.clock()
        settle = self._recalibrate if self.step < STEPS_UNSETTLED else self._average
        with self._settled(settle) as besides:
            batches = self.dataset.batches(
                recipe.batch_size, worker=workers.rank, workers=workers.count
            )
            batches = self._unless_stopped(prefetch(batches), stop)
            try:
                tested = evaluate(
                    self._answering, batches, self.devices, recipe.array_dtype, workers.sum
                )
            except UserError:  # a test image can't be read: to be mended, and gone on from here
                self._checkpoint(besides)
                raise
            record = self.record = {
                "epoch": self.epoch + 1,
                "step": self.step,
                "lr": self.lr_at(self.step - 1),
                "train_loss": passed["loss"],
                "train_error": passed["error"],
                "test_loss": tested["loss"],
                "test_error": tested["error"],
                "images_per_second": speed,
                "seconds": self.clock(),
                "engine": self.engine,
            }
            if self.best is None or tested["error"] < self.best["test_error"]:
                self.best = {name: record[name] for name in ("step", "epoch", "test_error")}
            self.epoch, self.seconds, self.meter = self.epoch + 1, 0.0, Meter()
            self._log(**record)
            self._checkpoint(besides, final=self._done)
        if time.monotonic() >= self._draws_at:
            self._draw()
        if self.run.writes:
            self.progress.epoch(record)

    def _draw(self):
        """Draws the curves, unless they show the last epoch already."""
        if not self.run.writes or self._drawn == self.epoch:
            return
        # Importing matplotlib takes longer than most first steps, which need not wait for it.
        from gluon_resnetv2.training.curves import draw_curves

        began = time.monotonic()
        with suppress(OSError, UserError):  # a full disk has kept the metrics back
            draw_curves(self.run.folder)
        ended = time.monotonic()
        self._drawn, self._draws_at = self.epoch, ended + BETWEEN_DRAWINGS * (ended - began)

    def clock(self) -> float:
        """Seconds that the epoch under way has taken, in earlier processes too."""
        now = time.monotonic()
        self.seconds, self._looked = self.seconds + now - self._looked, now
        return self.seconds

    def _unless_stopped(self, batches, stop):
        for batch in batches:
            if stop.received and self.workers.count == 1:  # the others could not know
                raise Stopped
            yield batch

    def _agree(self, stop: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether to write a checkpoint: what one worker wants, all do."""
        every, late = self.recipe.checkpoint_every, False
        due = not every.endswith("m") and self.step % int(every) == 0
        if every.endswith("m") and self.run.writes:
            late = time.monotonic() - self._saved_at >= 60 * float(every[:-1])
        if self.workers.count > 1 and self.step % STEPS_AGREED:
            return False, due
        if self.workers.count > 1:
            (wishes,) = self.workers.sum([np.array([stop, late], "float32")])
            stop, late = bool(wishes[0]), bool(wishes[1])
        return stop, due or late

    # The network that is evaluated and saved

    @functools.cached_property
    def _answering(self):
        """What evaluates: the network, or by the native engine what it computes."""
        native = self.engine == "native"
        if native and not native_fault(self.net, self.dataset.image_shape, self.recipe.dtype):
            return native_block(self.net, self.recipe.dtype, training=False)
        return self.net

    @contextlib.contextmanager
    def _settled(self, settle: Callable[[], None]) -> Iterator[dict[str, mx.nd.NDArray]]:
        """Within the block, the network to be evaluated and saved; after it, the one to train.

        Args:
            settle: gives every device the same moving statistics.

        Yields:
            What a checkpoint keeps beside the network and the optimiser's arrays.
        """
        average = self.update.average
        with statistics.settled(self.net, self._average if average else settle) as own:
            besides: dict[str, mx.nd.NDArray] = {}
            for name, copies in own.items():
                besides.update((f"device{i}:{name}", copy) for i, copy in enumerate(copies))
            with contextlib.ExitStack() as stack:
                if average:
                    besides.update(stack.enter_context(average.in_place(settle)))
                yield besides

    def _average(self):
        several = self.workers.count > 1
        statistics.average(self.net, self.workers.mean if several else None)

    def _recalibrate(self):
        few = itertools.islice(self._training_batches(), STATISTICS_BATCHES)
        rounds = (part for images, _ in few for part in self.update.rounds(images))
        statistics.recalibrate(self.net, rounds, self.update.move_statistics)
        self.update.forget_gradients()
        self._average()

    # Losses

    def _next_loss(self) -> float:
        """The oldest mean loss of a step that is not known yet, once it is.

        It is over all devices, and over all workers where it is logged.

        Raises:
            Diverged: it is not a number, or infinite.
        """
        step, images, sums = self._pending.popleft()
        total = np.array([sum(part.asscalar().item() for part in sums), images])
        lr, logs = self.lr_at(step), (step + 1) % self.recipe.log_every == 0
        if logs:
            (total,) = self.workers.sum([total])
        loss = float(total[0] / total[1])
        if not math.isfinite(loss):
            what = f"the loss is {loss} at step {step} with learning rate {lr:g}"
            raise self._diverged(what, step)
        if logs:
            speed = self.progress.images_per_second
            self._log(step=step + 1, lr=lr, loss=loss, images_per_second=speed)
        return loss

    def _drain(self):
        while self._pending:
            self._next_loss()

    def _diverged(self, what, step) -> Diverged:
        self.run.log(step=step + 1, lr=self.lr_at(step), loss=math.nan, diverged=what)
        good = [path for at, path in self.saved.items() if at < step and path.exists()]
        saved = f"; the last good checkpoint is {good[-1]}" if good else ""
        return Diverged(f"{what}; try a smaller --lr{saved}")

    def _log(self, **record):
        self.run.log(**record)
        if self.events:
            numbers: dict[str, Any] = {
                k: v for k, v in record.items() if isinstance(v, (int, float))
            }
            self.events.add(**numbers)

    # Checkpoints

    def _checkpoint_now(self, final: bool = False) -> None:
        with self._settled(self._average) as besides:
            self._checkpoint(besides, final)

    def _checkpoint(self, besides: dict[str, mx.nd.NDArray], final: bool = False) -> None:
        """Writes the run's state. Where it can't, says so and goes on, unless it is the last."""
        self._drain()
        arrays, state = resume.kept(self)
        if not self.run.writes:
            return
        if not all_finite([p.list_data()[0] for p in self.net.collect_params().values()]):
            what = f"a parameter is not finite after step {self.step - 1}"
            raise self._diverged(what, self.step)
        try:
            self.saved[self.step] = self.run.checkpoint(self.net, {**besides, **arrays}, state)
        except OSError as error:
            if final:
                raise
            self._warn(
                f"warning: no checkpoint of step {self.step}: {error.strerror or error}; training "
                f"goes on, and the last one is {['still to come', *self.saved.values()][-1]}"
            )
        self._saved_at = time.monotonic()

    def _start(self):
        """Begins where the newest valid checkpoint ends, or at the beginning."""
        path, state = self.run.last_checkpoint(self._warn) or (None, None)
        changes = resume.check(self, path, state) if path and state else {}
        # Where the run ended within an epoch, that epoch goes on.
        if state and state.epoch * self.steps > state.step < self.steps_in_all:
            state = replace(state, epoch=state.epoch - 1)
        if path:
            load_parameters(self.net, path / "net.params", self.devices)
        self.run.rewind(state)
        self.run.keep_schedule()
        recipe, workers = self.recipe, self.workers
        shape, begun = self.dataset.image_shape, state.engine if state else None
        self.engine, lines = choose_engine(recipe, self.net, shape, workers, begun)
        step = state.step if state else 0
        self.trainer = make_trainer(self.net, recipe, workers, self.lr_at, step)
        mixed = recipe.mixed_steps(self.steps)
        by_engine = replace(recipe, engine=self.engine)
        self.update = Step(self.net, self.trainer, by_engine, self.devices, workers.rank, mixed)
        if path and state:
            resume.restore(self, path, state)
        self.news = [*resume.news(self, state, changes), *([] if self._done else lines)]

    def _warn(self, text):
        if self.workers.rank == 0:
            tqdm.write(text, file=sys.stderr)
