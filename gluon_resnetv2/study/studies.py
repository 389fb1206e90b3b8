"""The paper's claims by name: which rows each needs, and which section they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from gluon_resnetv2.paper import RESULTS, Result
from gluon_resnetv2.study import error_sections
from gluon_resnetv2.study.measured import Propagation, Shattering
from gluon_resnetv2.study.plan import LAPTOP_DEPTH, Planned, Settings, plan
from gluon_resnetv2.study.rows import Row
from gluon_resnetv2.study.section import Section

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
        return plan(results, dataclasses.replace(settings, laptop_depth=self.depth))

    def section(self, rows: Sequence[Row], settings: Settings) -> Section:
        return Section(self.name, self.title, self.claim, self.parts(rows))


def _of(source: str, *keys: str) -> tuple[Result, ...]:
    return tuple(
        result for result in RESULTS if result.source == source and (not keys or result.key in keys)
    )


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
            error_sections.shortcuts,
            depth=SHORTCUT_DEPTH,
        ),
        _trained(
            "table2",
            "Table 2: the order of operations",
            "[v2] section 4, Table 2: full pre-activation is best, batch normalisation after the "
            "addition worst.",
            _of("[v2] Table 2"),
            error_sections.orders,
        ),
        _trained(
            "table3",
            "Table 3: original against pre-activation",
            "[v2] section 4.2, Table 3: pre-activation is better for each network, and more so the "
            "deeper it is.",
            _of("[v2] Table 3"),
            error_sections.pairs,
        ),
        _trained(
            "table4",
            "Table 4: deeper networks",
            "[v2] section 5, Table 4: pre-activation ResNets of 164 and 1001 layers against those "
            "of [v1].",
            _of("[v2] Table 4"),
            error_sections.comparison,
        ),
        _trained(
            "table5",
            "Table 5: ImageNet",
            "[v2] section 5, Table 5: on ImageNet, pre-activation helps ResNet-200, which in the "
            "original order overfits.",
            _of("[v2] Table 5"),
            error_sections.pairs,
        ),
        _trained(
            "figure1",
            "Figure 1: training curves of ResNet-1001",
            "[v2] Fig. 1: with pre-activation the training loss of a very deep network falls "
            "faster, and it ends with a lower test error.",
            _of("[v2] Table 3", "resnet1001", "preact1001"),
            error_sections.pairs,
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
            error_sections.shortcuts,
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
            error_sections.orders,
        ),
        _trained(
            "degradation",
            "Degradation: plain nets against residual nets",
            "[v1] Fig. 1 and 6, Table 6: plain nets get worse with depth, in training error "
            "already; residual nets do not.",
            _of("[v1] Fig. 6") + _of("[v1] Table 6"),
            error_sections.degradation,
        ),
        Propagation(),
        Shattering(),
    )
}  # fmt: skip
