"""What a run says while it trains: a live bar on a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

FIRST_LINE, LINES_APART = 10, 60  # seconds without a word before a log file gets a line
MEMORY = 0.98  # of the moving averages, at each step: they span the last fifty or so


class Progress:
    """Where a run of `epochs` times `steps` steps is, how fast it goes and what it has left.

    Speed is a moving average from the first known loss on: what comes before it also prepares
    kernels. The time left is the whole run's, with what an epoch takes beside its steps: its test.

    Args:
        step: how many steps earlier parts of the run have done.
        total: steps of the run, where its last epoch is cut short.
        quiet: say nothing, as one of several workers.
        file: where the bar, or the lines about steps, go; default: standard error.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        epochs: int,
        steps: int,
        step: int = 0,
        *,
        total: int | None = None,
        quiet: bool = False,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._epochs, self._steps, self._done = epochs, steps, step
        self._total, self._quiet = total or epochs * steps, quiet
        self._file, self._clock = file or sys.stderr, clock
        self._lr: float | None = None
        self._loss: float | None = None
        self._known: tuple[float, int] | None = None  # when the last loss came, after which step
        self._fresh = 0  # images since then
        self._images = self._count = self._seconds = 0.0  # fading sums: images, steps, their time
        self._between = 0.0  # seconds between an epoch's last step and the next epoch's first
        self._spoke, self._patience = clock(), FIRST_LINE
        self._bar = None
        if not quiet and self._file.isatty():
            self._bar = tqdm(
                desc=self._state(*divmod(step, steps)),
                total=self._steps_of(step // steps),
                initial=step % steps,
                file=self._file,
                leave=False,
                dynamic_ncols=True,
                miniters=1,
                bar_format="{desc} |{bar}|",
            )

    @property
    def images_per_second(self) -> float | None:
        """The speed of the last steps; None while it is unknown."""
        return self._images / self._seconds if self._seconds else None

    @property
    def seconds_left(self) -> float | None:
        """What the run's remaining steps and epochs take; None while that is unknown."""
        if not self._seconds:
            return None
        steps = self._total - self._done
        epochs = self._epochs - self._done // self._steps
        return steps * self._seconds / self._count + epochs * self._between

    def step(self, images: int, lr: float, loss: float | None = None) -> None:
        """Takes note of one step: its images, and the latest loss where one has become known."""
        self._done += 1
        self._fresh += images
        self._lr = lr
        if loss is not None:
            self._loss = loss
            self._measure()
        epoch, before = divmod(self._done - 1, self._steps)
        if self._bar is not None:
            self._bar.set_description_str(self._state(epoch, before + 1), refresh=False)
            self._bar.update()
        elif self._clock() - self._spoke >= self._patience:
            self._patience = LINES_APART
            self._say(self._state(epoch, before + 1), self._file)

    def epoch(self, record: dict) -> None:
        """Prints the line of an epoch that is done, from its record in metrics.jsonl."""
        if self._known is not None and not self._between:  # a guess until the next epoch begins
            self._between = self._clock() - self._known[0]
        epoch, last = record["epoch"], record["epoch"] == self._epochs
        parts = [f"epoch {_of(epoch, self._epochs)}", f"lr {record['lr']:<6.3g}"]
        for part in ("train", "test"):
            loss, error = _loss(record[f"{part}_loss"]), record[f"{part}_error"]
            parts.append(f"{part} loss {loss} error {error:5.2f} %")
        parts.append(_speed(record["images_per_second"]))
        if (left := self.seconds_left) is not None and not last:
            parts.append(f"{duration(left)} left")
        if self._bar is not None and not last:
            self._bar.set_description_str(self._state(epoch, 0), refresh=False)
            self._bar.reset(total=self._steps_of(epoch))
        self.line("  ".join(parts))

    def line(self, text: str) -> None:
        """Prints to standard output, above the bar."""
        self._say(text, sys.stdout)

    def close(self) -> None:
        """Takes the bar away; may be called again."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _measure(self):
        now = self._clock()
        if self._known is not None:
            then, step = self._known
            steps, seconds = self._done - step, now - then
            if (self._done - 1) // self._steps == (step - 1) // self._steps:
                memory = MEMORY**steps
                self._images = memory * self._images + self._fresh
                self._count = memory * self._count + steps
                self._seconds = memory * self._seconds + seconds
            elif self._count:
                self._between = max(0.0, seconds - steps * self._seconds / self._count)
        self._known, self._fresh = (now, self._done), 0

    def _state(self, epoch, step):
        parts = [f"epoch {_of(epoch + 1, self._epochs)}"]
        if self._lr is not None:
            parts.append(f"lr {self._lr:<6.3g}")
        parts.append(f"step {_of(step, self._steps_of(epoch))}")
        if self._loss is not None:
            parts.append(f"loss {_loss(self._loss)}")
        if (left := self.seconds_left) is not None:
            parts += [_speed(self.images_per_second), f"{duration(left)} left"]
        return "  ".join(parts)

    def _steps_of(self, epoch):
        """Of the epoch of that number, counted from 0: the last one may be cut short."""
        return max(0, min(self._steps, self._total - epoch * self._steps))

    def _say(self, text, file):
        if not self._quiet:
            tqdm.write(text, file=file)
            file.flush()
        self._spoke = self._clock()


def duration(seconds: float) -> str:
    """A length of time in its two largest units, as in "2 h 05 min"."""
    seconds = round(seconds)
    for size, unit, part, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part:02d} {small}"
    return f"{seconds} s"


def _of(number, total):
    return f"{number:{len(str(total))}}/{total}"


def _loss(loss):
    return f"{loss:6.4f}" if loss < 10 else f"{loss:6.4g}"


def _speed(images_per_second):
    return f"{images_per_second:5.{0 if images_per_second >= 10 else 2}f} images/s"
