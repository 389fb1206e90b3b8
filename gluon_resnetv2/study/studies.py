"""The paper's claims by name: which rows each needs, and how its section reads.

Every sentence about what came out is made from the runs' records.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from gluon_resnetv2.paper import FAIL, RESULTS, Result
from gluon_resnetv2.study import charts
from gluon_resnetv2.study.measured import Propagation, Shattering
from gluon_resnetv2.study.plan import LAPTOP_DEPTH, Planned, Settings, plan
from gluon_resnetv2.study.rows import Row, errors_table, percent, rank_correlations
from gluon_resnetv2.study.section import Picture, Section, Table

# Of Table 1 on the digits: with 110 layers, rows that the paper has between the identity and
# "fail" would fail within a laptop's time.
SHORTCUT_DEPTH = 56


@dataclass(frozen=True)
class ErrorStudy:
    """A claim that is shown by training.

    Attributes:
        name: as the command line has it.
        claim: what the paper says, and where.
        results: the rows that it needs.
        parts: makes the tables, pictures and paragraphs of its section.
        depth: what deeper networks are cut to on the digits.
    """

    name: str
    title: str
    claim: str
    results: tuple[Result, ...]
    parts: Callable[[Sequence[Row]], list]
    depth: int = LAPTOP_DEPTH

    def plan(
        self, results: Sequence[Result], settings: Settings
    ) -> list[tuple[Result, list[Planned]]]:
        """The runs of each row."""
        if settings.dataset == "digits" and not settings.depth:
            settings = dataclasses.replace(settings, depth=self.depth)
        return plan(results, settings)

    def section(self, rows: Sequence[Row], settings: Settings) -> Section:
        return Section(self.name, self.title, self.claim, self.parts(rows))


def _of(source: str, *keys: str) -> tuple[Result, ...]:
    return tuple(
        result for result in RESULTS if result.source == source and (not keys or result.key in keys)
    )


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


# -- Shortcuts: Table 1, Figure 3 ------------------------------------------------------------------


def _shortcuts(name, rows):
    cases = {row.result.case for row in rows}
    parts = [errors_table(rows)]
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
    panels = [(charts.label(row, rows), baseline, row) for row in rows if row is not baseline]
    return [_curves(name, panels, caption)]


# -- Orders: Table 2, Figures 1 and 6, Table 3 -----------------------------------------------------


def _orders(name, rows):
    parts = [errors_table(rows)]
    for network in dict.fromkeys(_size(row) for row in rows):
        same = [row for row in rows if _size(row) == network]
        parts += _verdict(network, same)
    parts.append(_errors(name, rows))
    panels = []
    for network in dict.fromkeys(_size(row) for row in rows):
        same = [row for row in rows if _size(row) == network]
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
    best, worst = min(rows, key=_error), max(rows, key=_error)
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


def _pairs(name, rows):
    """Original against pre-activation, network by network."""
    parts = [errors_table(rows)]
    panels = []
    for original in rows:
        others = [row for row in rows if _order(row) == "full_preact" and _like(row, original)]
        if _order(original) == "original" and others:
            panels.append((_pair(original, rows), original, others[0]))
    for title, original, preact in panels:
        parts.append(f"{title}: {_faster(original, preact)}")
    if panels:
        caption = "Pre-activation (orange) against the original unit (grey)."
        parts.append(_curves(name, panels, caption))
    return parts


def _pair(row, rows):
    """What a pair of networks is called, with its data where the rows have several."""
    several = len({other.result.data for other in rows}) > 1
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
        f"epochs the original's is {ratio:.2f} times as large."
    )


def _like(row, other):
    same = ("data", "switches", "note")
    return _size(row) == _size(other) and all(
        getattr(row.result, name) == getattr(other.result, name) for name in same
    )


def _order(row):
    return row.runs[0].recipe.spec(classes=10).order


def _size(row):
    return charts.depth(row)


def _error(row):
    return row.error


def _comparison(name, rows):
    return [errors_table(rows), _errors(name, rows)]


# -- Degradation -----------------------------------------------------------------------------------


def _degradation(name, rows):
    families = [
        (family, sorted((r for r in rows if r.result.case == family), key=charts.depth))
        for family in ("plain", "ResNet")
    ]
    families = [(family, same) for family, same in families if same]
    seeds = len(rows[0].runs)
    head = ("network", "paper's test error", "ours", "training error", "training error by seed")
    table = Table(head, [
        (row.network, str(row.result), percent(row.error),
         *_training_errors(row)) for _, same in families for row in same
    ])  # fmt: skip
    parts = [table]
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
        "Training error after the last epoch against depth, a dot for each seed. Deeper plain nets "
        "do not fit better but worse, though they could copy the shallow ones: degradation, and "
        "no overfitting."
    )
    return [*parts, Picture("degradation", picture, caption)]


def _training_errors(row):
    epochs = row.by_epoch("train_error")
    if row.error == FAIL:
        return ("diverged", "-")
    return percent(statistics.median(epochs[-1])), ", ".join(map(percent, epochs[-1]))


# -- The claims ------------------------------------------------------------------------------------


def _trained(name, title, claim, results, parts, **more):
    return ErrorStudy(name, title, claim, results, partial(parts, name), **more)


STUDIES = {
    study.name: study
    for study in (
        _trained(
            "table1",
            "Table 1: what sits on the shortcut",
            "[v2] section 3, Table 1: scaling, gating, 1x1 convolutions and dropout on the "
            "shortcuts of a ResNet-110 (original order) all do worse than the identity.",
            _of("[v2] Table 1"),
            _shortcuts,
            depth=SHORTCUT_DEPTH,
        ),
        _trained(
            "table2",
            "Table 2: the order of operations",
            "[v2] section 4, Table 2: full pre-activation is best, batch normalisation after the "
            "addition worst.",
            _of("[v2] Table 2"),
            _orders,
        ),
        _trained(
            "table3",
            "Table 3: original against pre-activation",
            "[v2] section 4.2, Table 3: pre-activation is better for each network, and more so the "
            "deeper it is.",
            _of("[v2] Table 3"),
            _pairs,
        ),
        _trained(
            "table4",
            "Table 4: deeper networks",
            "[v2] section 5, Table 4: pre-activation ResNets of 164 and 1001 layers against those "
            "of [v1].",
            _of("[v2] Table 4"),
            _comparison,
        ),
        _trained(
            "table5",
            "Table 5: ImageNet",
            "[v2] section 5, Table 5: on ImageNet, pre-activation helps ResNet-200, which in the "
            "original order overfits.",
            _of("[v2] Table 5"),
            _pairs,
        ),
        _trained(
            "figure1",
            "Figure 1: training curves of ResNet-1001",
            "[v2] Fig. 1: with pre-activation the training loss of a very deep network falls "
            "faster, and it ends with a lower test error.",
            _of("[v2] Table 3", "resnet1001", "preact1001"),
            _pairs,
        ),
        _trained(
            "figure3",
            "Figure 3: training curves of shortcuts",
            "[v2] Fig. 3: training itself is slower with each shortcut but the identity.",
            _of(
                "[v2] Table 1",
                *(f"resnet110/{shortcut}" for shortcut in (
                    "identity", "scale:0.5,0.5", "exclusive-gate:-6", "gate:0", "conv1x1",
                )),
            ),
            _shortcuts,
            depth=SHORTCUT_DEPTH,
        ),
        _trained(
            "figure6",
            "Figure 6: training curves of orders",
            "[v2] Fig. 6: batch normalisation after the addition (ResNet-110) slows training down, "
            "full pre-activation (ResNet-164) speeds it up and regularises.",
            _of(
                "[v2] Table 2",
                *("resnet110/original", "resnet110/bn_after_add"),
                *("resnet164/original", "preact164"),
            ),
            _orders,
        ),
        _trained(
            "degradation",
            "Degradation: plain nets against residual nets",
            "[v1] Fig. 1 and 6, Table 6: plain nets get worse with depth, in training error "
            "already; residual nets do not.",
            _of("[v1] Fig. 6") + _of("[v1] Table 6"),
            _degradation,
        ),
        Propagation(),
        Shattering(),
    )
}  # fmt: skip
