"""How the sections of trained rows read: tables, pictures, and sentences on what came out.

Each function makes the parts of a section from its name and its rows; all that depends on what came
out is computed from the runs' records.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from gluon_resnetv2.paper import FAIL
from gluon_resnetv2.study import charts
from gluon_resnetv2.study.rows import (
    Row,
    contradictions,
    errors_table,
    label,
    percent,
    rank_correlations,
)
from gluon_resnetv2.study.section import Part, Picture, Table


def _curves(name, panels, caption):
    text = (
        f"{caption} Training loss is dashed (left axis), test error solid (right axis); medians "
        "over the seeds, and shades from the least to the most."
    )
    return Picture(f"{name}-curves", charts.curves(panels), text)


def _errors(name, rows):
    return Picture(
        f"{name}-errors",
        charts.errors(rows),
        "Each row's errors: diamonds are the paper's, bars our medians. What to compare is the "
        "order of the rows, not the percentages, where the data are not the paper's.",
    )


def shortcuts(name: str, rows: Sequence[Row]) -> list:
    """Table 1 and Figure 3."""
    cases = {row.result.case for row in rows}
    parts = [errors_table(rows), *contradictions(rows)]
    if len(cases) > 2:
        found = [f"{correlation:.2f}" for correlation in rank_correlations(rows)]
        text = (
            f"Spearman's rank correlation between the paper's errors and ours is {found[0]} over "
            f"{len(cases)} rows, fails tied as worst."
        )
        if len(found) > 1:
            text += (
                f" That is with the first bias for the row that the paper gives for a range of "
                f"them; with the last it is {found[1]}."
            )
        parts.append(text)
    parts.append(_errors(name, rows))
    parts += _against(
        name, rows, "identity", "Each shortcut (orange) against the identity (grey): look for how "
        "far its curves stay above."
    )  # fmt: skip
    return parts


def _against(name, rows, word, caption):
    """The curves of every row against those of the row whose key has `word`."""
    baseline = next((row for row in rows if word in row.result.key.split("/")), None)
    if baseline is None or len(rows) < 2:
        return []
    panels = [(label(row, rows), baseline, row) for row in rows if row is not baseline]
    return [_curves(name, panels, caption)]


def orders(name: str, rows: Sequence[Row]) -> list:
    """Table 2 and Figure 6."""
    parts = [errors_table(rows), *contradictions(rows)]
    for network in dict.fromkeys(charts.depth(row) for row in rows):
        same = [row for row in rows if charts.depth(row) == network]
        parts += _verdict(network, same)
    parts.append(_errors(name, rows))
    panels = []
    for network in dict.fromkeys(charts.depth(row) for row in rows):
        same = [row for row in rows if charts.depth(row) == network]
        original = next((row for row in same if _order(row) == "original"), None)
        panels += [
            (f"{row.result.case}, {network} layers", original, row)
            for row in same
            if original and row is not original
        ]
    if panels:
        caption = "Each order (orange) against the original one (grey) at the same depth."
        parts.append(_curves(name, panels, caption))
    return parts


def _verdict(network, rows):
    preact = next((row for row in rows if _order(row) == "full_preact"), None)
    if preact is None or len(rows) < 3:
        return []
    best, worst = min(rows, key=lambda r: r.error), max(rows, key=lambda r: r.error)
    text = f"With {network} layers, the least median error is {percent(best.error)} % "
    text += f"({best.result.case}), the largest {percent(worst.error)} % ({worst.result.case}). "
    if best is preact:
        text += "Full pre-activation is best."
    else:
        margin, deviation = preact.error - best.error, preact.deviation
        within = "within" if margin <= deviation else "not within"
        text += (
            f"Full pre-activation is {margin:.2f} points above the best, {within} its standard "
            f"deviation of {deviation:.2f}."
        )
    return [text]


def pairs(name: str, rows: Sequence[Row]) -> list:
    """Tables 3 and 5, Figure 1: original against pre-activation, network by network."""
    parts = [errors_table(rows), *contradictions(rows)]
    panels: list[tuple[str, Row, Row]] = []
    for original in rows:
        others = [row for row in rows if _order(row) == "full_preact" and _like(row, original)]
        known = any(original.runs == pair[1].runs for pair in panels)  # of other data, perhaps
        if _order(original) == "original" and others and not known:
            panels.append((_pair(original, rows), original, others[0]))
    for title, original, preact in panels:
        parts.append(f"{title}: {_faster(original, preact)}")
    if panels:
        caption = "Pre-activation (orange) against the original unit (grey)."
        parts.append(_curves(name, panels, caption))
    return parts


def _pair(row, rows):
    """What a pair of networks is called, with its data where the rows were trained on several."""
    several = len({other.runs[0].recipe.dataset for other in rows}) > 1
    return row.network + (f", {row.result.data}" if several else "")


def _faster(original, preact):
    """By how much training loss falls faster, in words."""
    first, second = original.by_epoch("train_loss"), preact.by_epoch("train_loss")
    epochs = list(zip(first, second))
    if FAIL in (original.error, preact.error):
        return "one of the two diverged."
    below = sum(statistics.median(ours) < statistics.median(theirs) for theirs, ours in epochs)
    apart = sum(max(ours) < min(theirs) for theirs, ours in epochs)
    ratio = statistics.geometric_mean(
        statistics.median(theirs) / statistics.median(ours) for theirs, ours in epochs
    )
    return (
        f"the training loss of pre-activation is lower after {below} of {len(epochs)} epochs by "
        f"the median, after {apart} for every pair of seeds; on (geometric) average over the "
        f"epochs the original's is {ratio:.3g} times as large."
    )


def _like(row, other):
    same = ("data", "switches", "note")
    return charts.depth(row) == charts.depth(other) and all(
        getattr(row.result, name) == getattr(other.result, name) for name in same
    )


def _order(row):
    return row.runs[0].recipe.spec(classes=10).order


def comparison(name: str, rows: Sequence[Row]) -> list:
    """Table 4."""
    return [errors_table(rows), *contradictions(rows), _errors(name, rows)]


def degradation(name: str, rows: Sequence[Row]) -> list:
    """[v1]: training error against depth."""
    families = [
        (family, sorted((r for r in rows if r.result.case == family), key=charts.depth))
        for family in ("plain", "ResNet")
    ]
    families = [(family, same) for family, same in families if same]
    seeds = len(rows[0].runs)
    head = ("network", "paper's test error", "ours", "training error", "training error by seed")
    table = Table(head, [
        (row.network_for, row.result.reported, percent(row.error),
         *_training_errors(row)) for _, same in families for row in same
    ])  # fmt: skip
    parts: list[Part] = [table]
    for family, same in families:
        ends = [row for row in (same[0], same[-1]) if row.by_epoch("train_error")]
        if len(ends) == 2 and ends[0] is not ends[1]:
            shallow, deep = (statistics.median(row.by_epoch("train_error")[-1]) for row in ends)
            parts.append(
                f"{family}: from {charts.depth(ends[0])} to {charts.depth(ends[1])} layers the "
                f"training error goes from {shallow:.2f} to {deep:.2f} % (medians of {seeds})."
            )
    picture = charts.against_depth(families, "train_error", "training error (%)")
    caption = (
        "Training error after the last epoch against depth, a dot for each seed. A deeper network "
        "could fit as well as a shallow one, by copying it; where it fits worse it degrades, which "
        "is not overfitting."
    )
    return [*parts, Picture(name, picture, caption)]


def _training_errors(row):
    epochs = row.by_epoch("train_error")
    if row.error == FAIL:
        return ("diverged", "-")
    return percent(statistics.median(epochs[-1])), ", ".join(map(percent, epochs[-1]))
