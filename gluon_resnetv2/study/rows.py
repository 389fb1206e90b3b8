"""Rows of the paper with what came out here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gluon_resnetv2.paper import FAIL, Result
from gluon_resnetv2.study.plan import Outcome, Planned
from gluon_resnetv2.study.section import Table

FAILS = 20.0  # percent: the paper writes "fail" where the error is larger


@dataclass(frozen=True)
class Row:
    """A row of the paper and its runs here, one for each seed, all at their end."""

    result: Result
    runs: list[Planned]
    outcomes: list[Outcome]

    @property
    def network(self) -> str:
        """What was trained, which may be shallower than what the paper trained."""
        recipe = self.runs[0].recipe
        return recipe.model + (" (1-layer skip)" if recipe.unit == "single" else "")

    @property
    def network_for(self) -> str:
        """The same, with the paper's where that is another."""
        model = self.result.model
        return self.network if self.network.startswith(model) else f"{self.network} for {model}"

    @property
    def errors(self) -> list[float]:
        """Test errors in percent, by seed; `FAIL` where a run diverged."""
        return [outcome.error for outcome in self.outcomes]

    @property
    def error(self) -> float:
        """Their median, as in the paper."""
        return statistics.median(self.errors)

    @property
    def deviation(self) -> float:
        """Their standard deviation; NaN of one run, and where one diverged."""
        finite = len(self.errors) > 1 and FAIL not in self.errors
        return statistics.stdev(self.errors) if finite else math.nan

    def by_epoch(self, name: str) -> list[list[float]]:
        """What the runs recorded under `name`: a list for each epoch.

        Runs that diverged are left out, unless all did.
        """
        whole = [outcome.epochs for outcome in self.outcomes if outcome.error != FAIL]
        whole = whole or [outcome.epochs for outcome in self.outcomes]
        return [list(epoch) for epoch in zip(*([r[name] for r in epochs] for epochs in whole))]


def label(row: Row, rows: Sequence[Row], network: bool = True) -> str:
    """The row's case; with its network and its shortcut where others among `rows` share the case.

    Args:
        network: False where it is named beside.
    """
    text = row.result.case
    others = [other for other in rows if other.result.case == text]
    if network and any(other.network != row.network for other in others):
        text += f", {row.network}"
    shortcut = row.runs[0].recipe.shortcut
    if any(other.runs[0].recipe.shortcut != shortcut for other in others):
        text += f": {shortcut}"
    return text


def errors_table(rows: Sequence[Row]) -> Table:
    """The paper's errors beside ours, every seed's among them; on ImageNet the top-5 as well."""
    data = list(dict.fromkeys(row.result.data for row in rows))
    seeds = [f"seed {run.recipe.seed}" for run in rows[0].runs]
    head = ["case", "network", f"paper ({' and '.join(data)})", "ours", "mean ± sd", *seeds]
    lines = [_cells(row, rows, len(data) > 1) for row in rows]
    if rows[0].result.error5 is not None:
        head += ["paper's top-5", "ours"]
        lines = [line + _top5(row) for line, row in zip(lines, rows)]
    return Table(tuple(head), lines)


def _cells(row, rows, name_data):
    case = label(row, rows, network=False) + (f", {row.result.data}" if name_data else "")
    mean = "-"
    if FAIL not in row.errors:
        mean = f"{statistics.mean(row.errors):.2f}"
        mean += f" ± {row.deviation:.2f}" if len(row.errors) > 1 else ""
    ours = percent(row.error) + (" (fail)" if FAILS < row.error < FAIL else "")
    return (case, row.network_for, row.result.reported, ours, mean, *map(percent, row.errors))


def _top5(row):
    ours = [outcome.error5 for outcome in row.outcomes if outcome.error5 is not None]
    return f"{row.result.error5:.1f}", percent(statistics.median(ours)) if ours else "-"


def percent(error: float) -> str:
    """An error as text, without the sign."""
    return "diverged" if error == FAIL else f"{error:.2f}"


def contradictions(rows: Sequence[Row]) -> list[str]:
    """A sentence on the rows that fail in the paper alone or here alone, if there are any."""
    theirs = [label(row, rows) for row in rows if row.result.error == FAIL and row.error <= FAILS]
    ours = [label(row, rows) for row in rows if row.error > FAILS >= (row.result.error or FAIL)]
    found = [
        f"{'; '.join(labels)}: {where}"
        for labels, where in ((theirs, "fails there, not here"), (ours, "fails here, not there"))
        if labels
    ]
    return [f"Against the paper: {'. '.join(found)}."] if found else []


def rank_correlations(rows: Sequence[Row]) -> list[float]:
    """Spearman's, between the paper's errors and ours; fails are tied as worst on both sides.

    One where each of the paper's rows is one of ours; two where it gives a range of biases, of
    which we have the ends: with the first of them for the row, and with the last.
    """
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.result.case, []).append(row)
    chosen = [[same[end] for same in cases.values()] for end in (0, -1)]
    found = [
        np.corrcoef(
            _ranks([_failing(row.result.error) for row in one]),
            _ranks([_failing(row.error) for row in one]),
        )[0, 1]
        for one in chosen
    ]
    return [float(correlation) for correlation in found][: 1 if chosen[0] == chosen[1] else 2]


def _ranks(values):
    """Those of equal values are their mean."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _failing(error):
    return 100.0 if error > FAILS else error
