"""Runs side by side: their curves in one picture, and a table of what sets them apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gluon_resnetv2.cli import aligned
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.training.curves import shortened, steps_per_epoch
from gluon_resnetv2.training.options import run_recipe
from gluon_resnetv2.training.plots import STYLES, log_scale, save, scale_errors
from gluon_resnetv2.training.run import read_metrics


def compare(folders: Sequence[str | Path], output: str | Path = "compare.png") -> str:
    """Draws runs into one picture; returns a table of them and the picture's path, as text.

    Raises:
        UserError: a folder holds no run, or one of which no epoch has ended, or `output` has the
            name of no kind of picture.
        OSError: `output` can't be written.
    """
    runs = [Trained.read(folder) for folder in folders]
    output = Path(output)
    kinds = Figure().canvas.get_supported_filetypes()
    if output.suffix[1:].lower() not in kinds:
        raise UserError(f"{output} is no picture; name one that ends in .png, .pdf or .svg")
    draw(runs, output)
    return f"{table(runs)}\n\ncurves: {output}"


@dataclass(frozen=True)
class Trained:
    """What a run's folder tells of it: its recipe and the records of its epochs."""

    folder: Path
    recipe: dict
    epochs: list[dict]

    @classmethod
    def read(cls, folder: str | Path) -> Trained:
        """Reads a folder.

        Raises:
            UserError: it is no run's, or none of its epochs has ended.
        """
        epochs = [record for record in read_metrics(folder) if "epoch" in record]
        if not epochs:
            raise UserError(f"no epoch of {folder} has ended yet; wait for it, or leave it out")
        return cls(Path(folder), run_recipe(folder).to_dict(), epochs)

    @property
    def planned(self) -> int:
        """How many epochs its recipe asks for."""
        steps = self.recipe["num_steps"]
        whole = self.recipe.get("num_epochs") or math.ceil(steps / steps_per_epoch(self.epochs))
        return max(whole, self.epochs[-1]["epoch"])

    def column(self, name: str) -> list[float]:
        return [record[name] for record in self.epochs]

    @property
    def last_error(self) -> float:
        return self.epochs[-1]["test_error"]


def draw(runs: Sequence[Trained], output: Path) -> None:
    """Training loss dashed on the left axis, test error solid on the right, a colour a run."""
    names, count = _names(runs), len(runs)
    columns = 1 if max(map(len, names)) > 36 else 2  # that fit
    figure = Figure(figsize=(8, 5 + 0.25 * math.ceil(count / columns)), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    lines = []
    for number, run in enumerate(runs):
        color, marker = STYLES[number % len(STYLES)]
        ends = [step / steps_per_epoch(run.epochs) for step in run.column("step")]
        apart = math.ceil(len(ends) / 8)  # between markers, which no two runs have at one place
        style: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "markersize": 5,
            "markevery": (number * apart // count, apart),
        }
        left.plot(ends, run.column("train_loss"), "--", linewidth=0.9, **style)
        lines += right.plot(ends, run.column("test_error"), "-", linewidth=1.5, **style)
    log_scale(left)
    left.set_ylabel("training loss (dashed)")
    left.set_xlabel("epoch")
    left.set_xlim(0, None)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    scale_errors(right, statistics.median_low(run.last_error for run in runs))
    right.set_ylabel("test error (%, solid)")
    legend = figure.legend(
        lines, [*map(str, range(count))], loc="outside lower center", ncols=columns
    )
    for text, name, run in zip(legend.get_texts(), names, runs):
        text.set(text=f"{name}: {run.last_error:.2f} %", parse_math=False)  # not "_" or "$" as code
    save(figure, output)


def table(runs: Sequence[Trained]) -> str:
    """A line for each run: what its recipe does otherwise than the others', and its results."""
    options = dict.fromkeys(name for run in runs for name in run.recipe)
    values = {name: [_as_given(run.recipe.get(name)) for run in runs] for name in options}
    differing = {name: column for name, column in values.items() if len(set(column)) > 1}
    best = [min(run.epochs, key=lambda record: record["test_error"]) for run in runs]
    columns = {
        "run": _names(runs),
        "model": values["model"],
        **{name: column for name, column in differing.items() if name not in ("model", "output")},
        "epochs": [f"{run.epochs[-1]['epoch']}/{run.planned}" for run in runs],
        "test error": [f"{run.last_error:.2f} %" for run in runs],
        "best": [f"{record['test_error']:.2f} %" for record in best],
        "in epoch": [str(record["epoch"]) for record in best],
        "images/s": [f"{statistics.median(run.column('images_per_second')):.4g}" for run in runs],
        "hours": [f"{sum(run.column('seconds')) / 3600:.2f}" for run in runs],
    }
    text = len(columns) - 6  # the first columns are text, the others numbers
    return aligned([list(columns), *zip(*columns.values())], range(text, len(columns)))


def _names(runs):
    """The folders' names, or their paths where two have the same name."""
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    return [shortened(name) for name in names]


def _as_given(value):
    """A value of a recipe as the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(_as_given, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else str(value)
