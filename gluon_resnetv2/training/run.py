"""A run's folder: its recipe, its metrics, its curves and its checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gluon_resnetv2.checkpoint import (
    State,
    checkpoints,
    recover_checkpoints,
    remove_checkpoints,
    valid_checkpoints,
    write_checkpoint,
)
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import locked, whole_file, write_json
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.training.recipe import SCHEDULE, Recipe, read_values
from gluon_resnetv2.untrusted import Fault, faults_of, read_bytes, read_json

# What the names of a run's files begin with that has done nothing yet.
UNBEGUN = ("recipe.json", ".recipe.json.", "events.out.tfevents.")


METRICS_BYTES = 1 << 27  # with a line for each of a million steps
MOST = 1e12  # of what has no bound of its own
EPOCH = {"lr": MOST, "images_per_second": MOST, "seconds": MOST}
EPOCH.update(train_error=100, test_error=100)
EARLIER = "metrics-without-checkpoint.jsonl"


class InUse(UserError):
    """Another process is training in a run's folder."""


class Run:
    """A run's folder while it is being written: `recipe.output`, or a new one in runs/.

    As a context, it leaves no folder of a new run that fails before it has done anything.

    Args:
        recipe: what is run.
        resume: go on in a folder that holds a run already.
        writes: False for a process that leaves the writing to another one.

    Raises:
        UserError: `recipe.output` is taken.
        InUse: another process is training there.
        OSError: the folder can't be made or written to; it is then not left behind.
    """

    def __init__(self, recipe: Recipe, *, resume: bool = False, writes: bool = True):
        self.recipe, self.writes = recipe, writes
        self._damaged: set[Path] = set()  # checkpoints that were left out
        self._unwritten = ""  # lines of metrics.jsonl that the disk had no room for
        self._alone = contextlib.ExitStack()  # holds the folder's lock
        self._made = None  # of a new run: whether its folder is new, too
        if not writes:
            assert recipe.output, "several workers were told to name it"
            self.folder = Path(recipe.output)
            return
        if resume and recipe.output and (Path(recipe.output) / "recipe.json").is_file():
            self.folder = Path(recipe.output)
            self._lock()
            recover_checkpoints(self.folder)
            return
        self._made = not (recipe.output and Path(recipe.output).exists())
        self.folder = _new_folder(recipe)
        self._lock()
        try:
            write_json(self.folder / "recipe.json", recipe.to_dict())
        except OSError:
            self._leave_nothing()
            raise

    def _lock(self):
        """Keeps other processes from training here until this one ends."""
        try:
            self._alone.enter_context(locked(self.folder))
        except BlockingIOError:
            raise InUse(f"{self.folder} is in use: another process trains there") from None
        except OSError:
            pass  # some network file systems know no locks: better unguarded than not at all

    def __enter__(self) -> Run:
        return self

    def __exit__(self, failed, *exception) -> None:
        if failed and self._made is not None:
            self._leave_nothing()
        self.close()

    def _leave_nothing(self):
        """Takes back the folder of a run that ended before it had done anything."""
        files = list(self.folder.iterdir())
        if all(file.name.startswith(UNBEGUN) for file in files):
            with contextlib.suppress(OSError):
                for file in files:
                    file.unlink()
                if self._made:
                    self.folder.rmdir()

    def close(self) -> None:
        """Releases the folder: another process may go on here."""
        self._alone.close()

    def last_checkpoint(self, warn: Callable[[str], object] = print) -> tuple[Path, State] | None:
        """Path and state of the newest valid checkpoint; `warn` is told of those skipped.

        Raises:
            UserError: there are some, and none is valid; or it is of another recipe.
        """
        for path, state in valid_checkpoints(self.folder, warn):
            Recipe.from_dict(state.recipe).check_goes_on(self.recipe, path)
            self._damaged = {one for one in checkpoints(self.folder) if one.name > path.name}
            return path, state
        if checkpoints(self.folder):
            raise UserError(f"{self.folder} has no valid checkpoint left; name a new --output")
        # One epoch may be there without: its record comes before its checkpoint.
        logged = self.folder / "metrics.jsonl"
        epochs = [r for r in read_metrics(self.folder) if "epoch" in r] if logged.is_file() else []
        if len(epochs) > 1:  # the disk was full from the start, or somebody has removed them
            warn(
                f"{self.folder} has no checkpoint: training starts anew; {EARLIER} has its metrics"
            )
            if self.writes:
                os.replace(logged, self.folder / EARLIER)
        return None

    def keep_schedule(self) -> None:
        """Has recipe.json say the schedule that the run goes on with.

        Raises:
            OSError: it can't be written; it is then as it was.
        """
        if not self.writes:
            return
        path = self.folder / "recipe.json"
        before = read_values(path)
        after = {**before, **{name: getattr(self.recipe, name) for name in SCHEDULE}}
        if Recipe.from_dict(after) != Recipe.from_dict(before):
            write_json(path, after)

    def rewind(self, state: State | None) -> None:
        """Removes from metrics.jsonl what came after a checkpoint, or everything."""
        path = self.folder / "metrics.jsonl"
        if not self.writes or not path.is_file():
            return
        step, epoch = (state.step, state.epoch) if state else (0, 0)
        kept = [
            record
            for record in read_metrics(self.folder)
            if (record["epoch"] <= epoch if "epoch" in record else record["step"] <= step)
        ]
        with whole_file(path) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")

    def log(self, **record: Any) -> None:
        """Appends a line to metrics.jsonl, once there is room for it."""
        if not self.writes:
            return
        self._unwritten += _line(record)
        with contextlib.suppress(OSError):  # it is tried again, before the next checkpoint at least
            self._write_lines()

    def _write_lines(self):
        path = self.folder / "metrics.jsonl"
        before = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(self._unwritten)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, before)  # no half a line
            error.filename = str(path)
            raise
        self._unwritten = ""

    def checkpoint(self, net: ResNetV2, arrays: dict, state: State) -> Path:
        """Writes a checkpoint, then removes those that `recipe.keep` does not spare.

        Raises:
            OSError: it can't be written; those before are still there.
        """
        if self._unwritten:  # whoever goes on from here would not log it again
            self._write_lines()
        path = write_checkpoint(self.folder, net, arrays, state)
        self._damaged.discard(path)
        best = (state.best or {}).get("step")
        remove_checkpoints(self.folder, self.recipe.keep, best, self._damaged)
        return path


def check_folder(recipe: Recipe) -> None:
    """Refuses early what `Run` would refuse after the data has been loaded.

    A folder may be empty, or be what a run has left that came to nothing.

    Raises:
        UserError: `recipe.output` is taken.
    """
    folder = Path(recipe.output or "")
    if not recipe.output or not folder.exists():
        return
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    if not all(name.startswith(UNBEGUN) for name in names):
        way_out = " or add --resume auto" if "recipe.json" in names else ""
        raise UserError(f"--output {folder} exists already; name a new folder{way_out}")


def _new_folder(recipe: Recipe) -> Path:
    """Makes the folder, so that no other run can take it."""
    check_folder(recipe)
    if recipe.output:
        Path(recipe.output).mkdir(parents=True, exist_ok=True)
        return Path(recipe.output)
    name, number = recipe.default_folder, 1
    while True:
        folder = Path(name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def read_metrics(folder: str | Path) -> list[dict]:
    """The records of a run's metrics.jsonl, without lines that are damaged, as by a crash.

    A record has its "step"; one of an "epoch" all that `Training` logs of it, one with "lr" its
    "loss", and one with a "test_size" the errors there; within bounds that can be drawn.

    Raises:
        UserError: the folder holds no metrics, or more than METRICS_BYTES.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"{path} is missing; is {folder} a run's folder?")
    with faults_of(path):
        lines = io.BytesIO(read_bytes(path, METRICS_BYTES))
    records = []
    for line in lines:
        with contextlib.suppress(Fault):
            record = read_json(line, finite=False)
            if _is_record(record):
                records.append(record)
    return records


def _is_record(value) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("step"), int):
        return False
    if "epoch" in value:
        counts = [value["epoch"], value["step"]]
        return (
            all(isinstance(count, int) and count > 0 for count in counts)
            and all(_within(value.get(name), most) for name, most in EPOCH.items())
            and all(_is_loss(value.get(name)) for name in ("train_loss", "test_loss"))
        )
    if "test_size" in value:
        return _within(value.get("test_error"), 100) and "test_error5" in value
    return "lr" not in value or (_within(value["lr"], MOST) and _is_loss(value.get("loss")))


def _within(value, most) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= most


def _is_loss(value) -> bool:
    """Whether it is a float32 number; training may have come to no other."""
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    return abs(value) < 1e39 if finite else isinstance(value, float)


def _line(record):
    return json.dumps(record) + "\n"
