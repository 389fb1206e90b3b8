"""The picture of a run: loss, error and learning rate, in the manner of the paper's figures."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from gluon_resnetv2.training.plots import (
    BLUE,
    GREEN,
    ORANGE,
    VERMILION,
    log_scale,
    save,
    scale_errors,
)
from gluon_resnetv2.training.run import read_metrics


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
            (right, "test_error", "-", VERMILION),
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


def shortened(name: str, length: int = 40) -> str:
    """A run's name for a picture or a table: printable, and shortened in its middle."""
    name = name.encode("utf-8", "replace").decode()
    half = length // 2 - 1
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"
