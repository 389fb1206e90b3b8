"""Colours, markers and scales that the pictures of runs and of studies share."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from gluon_resnetv2.files import whole_file

# Colours of Okabe and Ito, which the colour-blind tell apart; grey for their yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00", "#7f7f7f")
BLUE, VERMILION, GREEN, _, _, _, ORANGE, GREY = COLOURS

# A line's colour and its marker, for black and white.
STYLES = tuple(zip(COLOURS, "os^DvPX*"))


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


def save(figure: Figure, path: Path) -> None:
    """Writes a picture, whole or not at all."""
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a run's name, which the font lacks
        figure.savefig(temporary, dpi=120)
