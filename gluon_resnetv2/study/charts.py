"""Pictures of trained rows, in the manner of the paper's figures."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from gluon_resnetv2.paper import FAIL
from gluon_resnetv2.study.rows import FAILS, Row, label
from gluon_resnetv2.training.plots import BLUE, GREY, STYLES, VERMILION, log_scale

WIDTH = 7  # inches, of a page's text
COLUMNS = 3  # panels side by side
ABOVE = 5  # times the largest loss of the row compared with, others' are off the axis


def curves(panels: Sequence[tuple[str, Row, Row]]) -> Figure:
    """As in [v2] Fig. 1, 3 and 6: training loss dashed (left), test error solid (right).

    Lines are medians over the seeds; the shades behind them reach from the least to the most.

    Args:
        panels: a title, the row to compare with (grey) and the row in question (vermilion).
    """
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, 0.8 + 2.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_visible(False)
            continue
        title, *rows = panels[number]
        right = axes.twinx()
        for row, color in zip(rows, (GREY, VERMILION)):
            _line(axes, row, "train_loss", color, linestyle="--", linewidth=1)
            _line(right, row, "test_error", color, linewidth=1.5)
        axes.set_title(textwrap.fill(title, 80 // columns), fontsize=9)
        axes.set_xlim(0, None)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        right.set_ylim(0, 100)
        if number % columns == 0:
            axes.set_ylabel("training loss")
        if number % columns == columns - 1:
            right.set_ylabel("test error (%)")
        else:
            right.tick_params(labelright=False)
        if number + columns >= len(panels):
            axes.set_xlabel("epoch")
    log_scale(grid[0, 0])
    # Infinite, and so no bound, where it diverged before its first epoch had ended.
    most = max(map(max, panels[0][1].by_epoch("train_loss")), default=math.inf)
    grid[0, 0].set_ylim(top=min(grid[0, 0].get_ylim()[1], ABOVE * most))
    named = [(GREY, panels[0][1].result.case)]
    named.append((VERMILION, "as titled" if len(panels) > 1 else panels[0][2].result.case))
    handles = [Line2D([], [], color=color, linewidth=2) for color, _ in named]
    handles += [Line2D([], [], color="black", linestyle=style) for style in ("--", "-")]
    labels = [*(name for _, name in named), "training loss", "test error"]
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _line(axes, row, name, color, **style):
    values = row.by_epoch(name)
    epochs = range(1, len(values) + 1)
    style["marker"] = "." if len(values) == 1 else None  # one point draws no line
    axes.plot(epochs, list(map(statistics.median, values)), color=color, **style)
    axes.fill_between(
        epochs, list(map(min, values)), list(map(max, values)), color=color, alpha=0.2, linewidth=0
    )


def errors(rows: Sequence[Row]) -> Figure:
    """The paper's errors and ours side by side, a line of dots for each row."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(reversed(rows)):
        shown = [min(error, 100.0) for error in row.errors]
        axes.plot(shown, [height] * len(shown), "o", color=BLUE, alpha=0.4, markersize=4)
        axes.plot(min(row.error, 100.0), height, "|", color=BLUE, markersize=14, markeredgewidth=2)
        paper = row.result.error
        if paper is not None:
            beyond = paper == FAIL
            axes.plot(
                FAILS if beyond else paper, height, ">" if beyond else "D",
                color=VERMILION, fillstyle="none", markersize=7,
            )  # fmt: skip
    axes.axvline(FAILS, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [label(row, rows) for row in reversed(rows)], fontsize=8)
    axes.set_xlabel("test error (%); the dotted line is where the paper writes “fail”")
    handles = [
        Line2D([], [], color=VERMILION, marker="D", fillstyle="none", linestyle=""),
        Line2D([], [], color=VERMILION, marker=">", fillstyle="none", linestyle=""),
        Line2D([], [], color=BLUE, marker="|", markersize=14, markeredgewidth=2, linestyle=""),
        Line2D([], [], color=BLUE, marker="o", alpha=0.4, markersize=4, linestyle=""),
    ]
    labels = ["the paper's", "the paper's “fail”", "our median", "our seeds"]
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def against_depth(families: Sequence[tuple[str, Sequence[Row]]], name: str, title: str) -> Figure:
    """The last `name` of every run against its network's depth, a line through the medians."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    for (family, rows), (color, marker) in zip(families, STYLES):
        points = [(depth(row), row.by_epoch(name)[-1]) for row in rows if row.by_epoch(name)]
        for at, values in points:
            axes.plot([at] * len(values), values, marker, color=color, alpha=0.4, markersize=4)
        medians = [statistics.median(values) for _, values in points]
        axes.plot([at for at, _ in points], medians, "-", marker=marker, color=color, label=family)
    axes.set_xlabel("layers")
    axes.set_ylabel(title)
    axes.set_ylim(0, None)
    axes.legend(frameon=False)
    return figure


def depth(row: Row) -> int:
    """Layers of the network that was trained."""
    return row.runs[0].recipe.spec(classes=10).depth
