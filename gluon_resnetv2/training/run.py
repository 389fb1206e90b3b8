"""A run's folder: its recipe, its metrics, its curves and its last parameters."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import mxnet as mx

from gluon_resnetv2.deploy.artifact import save_parameters
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_folder, write_json
from gluon_resnetv2.training.recipe import Recipe


class Run:
    """The folder `runs/NAME` (see README) while it is being written.

    Raises:
        OSError: the folder can't be made or written to; it is then not left behind empty.
    """

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            write_json(self.folder / "recipe.json", dataclasses.asdict(recipe))
        except OSError:
            self.folder.rmdir()
            raise

    def log(self, **record) -> None:
        """Appends a line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def checkpoint(self, net: mx.gluon.Block, step: int, **state) -> None:
        """Writes parameters and `state` to checkpoints/step-NNNNNNNN, in place of the last one."""
        folder = self.folder / "checkpoints" / f"step-{step:08d}"
        with whole_folder(folder) as temporary:
            save_parameters(net, temporary / "net.params")
            write_json(temporary / "state.json", {"step": step, **state})
        for older in checkpoints(self.folder)[:-1]:
            shutil.rmtree(older)


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of the run in `folder`, oldest first."""
    return sorted(Path(folder).glob("checkpoints/step-*"))


def read_metrics(folder: str | Path) -> list[dict]:
    """The records of a run's metrics.jsonl.

    Raises:
        UserError: the folder holds no metrics.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing; is {folder} a run's folder?")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_finite(loss: float, step: int, lr: float) -> None:
    """Lets a finite loss pass.

    Raises:
        UserError: it is not a number, or infinite.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step} with learning rate {lr:g}; try a smaller --lr"
        )
