"""The picture of a run: loss, error and learning rate, in the manner of the paper's figures."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gluon_resnetv2.files import whole_file
from gluon_resnetv2.training.run import read_metrics


def draw_curves(folder: str | Path) -> Path:
    """Draws curves.png into a run's folder from its metrics.jsonl; returns the picture's path.

    As in the paper's Fig. 1, training loss is dashed on the left axis and test error solid on the
    right one; below them the learning rate.

    Raises:
        UserError: the folder holds no metrics.
    """
    records = [record for record in read_metrics(folder) if "epoch" in record]
    epochs = [record["epoch"] for record in records]
    marker = "o" if len(epochs) == 1 else None  # one point draws no line

    def column(name):
        return [record[name] for record in records]

    figure = Figure(figsize=(7, 5), layout="constrained")
    left, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    right = left.twinx()
    lines = [
        left.plot(epochs, column("train_loss"), "C0--", marker=marker, label="training loss")[0],
        right.plot(epochs, column("train_error"), "C1:", marker=marker, label="training error")[0],
        right.plot(epochs, column("test_error"), "C3-", marker=marker, label="test error")[0],
    ]
    left.set_yscale("log")
    left.set_ylabel("training loss")
    right.set_ylabel("error (%)")
    last = column("test_error")[-1]
    right.set_ylim(0, 20 if last < 20 else 100)  # the paper's range, which a failure leaves
    left.set_title(f"{Path(folder).resolve().name}: test error {last:.2f} %")
    left.legend(handles=lines, loc="upper right")
    below.step(epochs, column("lr"), "C2", where="mid", marker=marker)
    if min(column("lr")) > 0:
        below.set_yscale("log")
    below.set_ylabel("learning rate")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    path = Path(folder) / "curves.png"
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path
