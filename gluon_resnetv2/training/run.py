"""A run's folder: its recipe, its metrics, its curves and its checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from gluon_resnetv2.checkpoint import write_checkpoint
from gluon_resnetv2.data import Dataset
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import write_json
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.training.recipe import Recipe


class Run:
    """A run's folder while it is being written: `recipe.output`, or a new one in runs/.

    Raises:
        UserError: `recipe.output` is taken.
        OSError: the folder can't be made or written to; it is then not left behind.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        was_there = recipe.output and Path(recipe.output).exists()
        self.folder = _new_folder(recipe)
        try:
            write_json(self.folder / "recipe.json", dataclasses.asdict(recipe))
        except OSError:
            if not was_there:
                self.folder.rmdir()
            raise

    def log(self, **record) -> None:
        """Appends a line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def checkpoint(self, net: ResNetV2, dataset: Dataset, metrics: dict) -> None:
        """Writes the parameters and what an export needs to say, in place of the last time."""
        height, width = dataset.train.images.shape[1:3]
        state = {
            "spec": net.spec.to_dict(),
            "classes": dataset.classes,
            "input": {
                "shape": (net.spec.in_channels, height, width),
                "mean": dataset.mean,
                "std": dataset.std,
                "crop": 1.0,  # evaluation uses the whole image, too
            },
            "recipe": dataclasses.asdict(self.recipe),
            "metrics": metrics,
        }
        write_checkpoint(self.folder, net, metrics["step"], state)


def check_folder(recipe: Recipe) -> None:
    """Refuses early what `Run` would refuse after the data has been loaded.

    Raises:
        UserError: `recipe.output` is taken.
    """
    folder = Path(recipe.output or "")
    if recipe.output and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--output {folder} exists already; name a new folder")


def _new_folder(recipe: Recipe) -> Path:
    """Makes the folder, so that no other run can take it."""
    check_folder(recipe)
    if recipe.output:
        Path(recipe.output).mkdir(parents=True, exist_ok=True)
        return Path(recipe.output)
    name, number = f"runs/{recipe.dataset}-{recipe.model}", 1
    while True:
        folder = Path(name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def read_metrics(folder: str | Path) -> list[dict]:
    """The records of a run's metrics.jsonl.

    Raises:
        UserError: the folder holds no metrics.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing; is {folder} a run's folder?")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
