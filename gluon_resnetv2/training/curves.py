"""The picture of a run: loss, error and learning rate, in the manner of the paper's figures."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter

from gluon_resnetv2.files import whole_file
from gluon_resnetv2.training.run import read_metrics

# Colours of Okabe and Ito, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"


def draw_curves(folder: str | Path) -> Path | None:
    """Draws curves.png into a run's folder from its metrics.jsonl; returns the picture's path.

    As in the paper's Fig. 1, training loss is dashed on the left axis and test error solid on the
    right one; below them the learning rate. Behind an epoch's mean loss stand, pale, the losses
    of single steps.

    Returns:
        None, and draws nothing, where no epoch has ended yet.

    Raises:
        UserError: the folder holds no metrics.
        OSError: it can't be written to; an earlier picture is then still there.
    """
    # A study adds records of other things.
    records = [record for record in read_metrics(folder) if "lr" in record]
    epochs = [record for record in records if "epoch" in record]
    if not epochs:
        return None
    steps = [record for record in records if "epoch" not in record]
    epoch = steps_per_epoch(epochs)
    ends = [record["step"] / epoch for record in epochs]
    marker = "o" if len(epochs) == 1 else None  # one point draws no line

    figure = Figure(figsize=(7, 5), layout="constrained")
    name = shortened(Path(folder).resolve().name)
    figure.suptitle(f"{name}: test error {epochs[-1]['test_error']:.2f} %", parse_math=False)
    left, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    right = left.twinx()
    at = [record["step"] / epoch for record in steps]
    left.plot(at, [record["loss"] for record in steps], color=BLUE, alpha=0.25, linewidth=0.8)
    lines = [
        axes.plot(ends, [record[key] for record in epochs], style, color=color, marker=marker)[0]
        for axes, key, style, color in (
            (left, "train_loss", "--", BLUE),
            (right, "train_error", ":", ORANGE),
            (right, "test_error", "-", RED),
        )
    ]
    log_scale(left)
    left.set_ylabel("training loss")
    scale_errors(right, epochs[-1]["test_error"])
    right.set_ylabel("error (%)")
    names = ("training loss", "training error", "test error")
    left.legend(lines, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)

    at = [0, *(record["step"] / epoch for record in records)]
    rates = [records[0]["lr"], *(record["lr"] for record in records)]
    below.step(at, rates, color=GREEN, where="pre")
    highest = max(rates)
    if highest > 0:
        lowest = min(rate for rate in rates if rate > 0)
        lowest = max(lowest, highest * 1e-4)  # the end of a cosine would leave no room for the rest
        log_scale(below)
        below.yaxis.set_minor_formatter(NullFormatter())
        below.set_ylim(lowest / 3.2, highest * 3.2)  # a decade at least, for a tick
    below.set_ylabel("learning rate")
    figure.align_ylabels()
    below.set_xlabel("epoch")
    below.set_xlim(0, 1.01 * at[-1])
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    path = Path(folder) / "curves.png"
    save(figure, path)
    return path


def steps_per_epoch(epochs: list[dict]) -> float:
    """From a run's epoch records; of the first, because the last epoch may be cut short."""
    return epochs[0]["step"] / epochs[0]["epoch"]


def log_scale(axes: Axes) -> None:
    """Makes `axes` logarithmic, with plain numbers at its ticks, if what it shows is positive."""
    if axes.dataLim.minposy == float("inf") or axes.dataLim.y1 <= 0:
        return
    if axes.dataLim.y0 == axes.dataLim.y1:  # else matplotlib warns, and chooses itself
        axes.set_ylim(axes.dataLim.y0 / 2, axes.dataLim.y1 * 2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())  # labels where there is less than a decade


def scale_errors(axes: Axes, error: float) -> None:
    """Has the percentages on `axes` start at 0 and end where an `error` is easy to read.

    That is the paper's range, 20 %, where it fits.
    """
    top = next(top for top in (5, 20, 40, 60, 100) if 2 * error <= top or top == 100)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))


def shortened(name: str, length: int = 40) -> str:
    """A run's name for a picture or a table: printable, and shortened in its middle."""
    name = name.encode("utf-8", "replace").decode()
    half = length // 2 - 1
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def save(figure: Figure, path: Path) -> None:
    """Writes a picture, whole or not at all."""
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a run's name, which the font lacks
        figure.savefig(temporary, dpi=120)
