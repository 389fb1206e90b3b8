"""The claims that are shown by measuring signals rather than errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from gluon_resnetv2.paper import Result
from gluon_resnetv2.study import propagation_report, shattering
from gluon_resnetv2.study.plan import Planned, Settings, plan
from gluon_resnetv2.study.rows import Row
from gluon_resnetv2.study.section import Section
from gluon_resnetv2.training.run import read_metrics

EPOCHS = 5  # over which signals are followed

# In the order whose f is the identity, and in that of Table 1; then the orders themselves.
SHORTCUTS = (
    *("identity", "plain", "scale:0.5,1", "scale:0.5,0.5", "exclusive-gate:0"),
    *("exclusive-gate:-6", "gate:0", "gate:-6", "conv1x1", "dropout:0.5"),
)
ORDERS = ("bn_after_add", "relu_before_add", "relu_preact")


def _network(model, **switches):
    return Result("[v2] Eq. (8)", model, "CIFAR-10", None, switches)


class Propagation:
    """How signals pass through networks of each shortcut and order, along their training."""

    name = "propagation"
    results = (
        *(
            _network(f"{family}110", shortcut=s)
            for family in ("preact", "resnet")
            for s in SHORTCUTS
        ),
        *(_network("resnet110", order=order) for order in ORDERS),
    )

    def plan(
        self, results: Sequence[Result], settings: Settings
    ) -> list[tuple[Result, list[Planned]]]:
        """A short training of each network, whose checkpoints are kept until they are measured."""
        epochs = settings.budget or EPOCHS
        settings = dataclasses.replace(
            settings, seeds=1, budget=epochs, output=str(Path(settings.output) / self.name)
        )
        return [
            (result, [Planned(dataclasses.replace(run.recipe, keep=epochs), propagation=True)])
            for result, (run,) in plan(results, settings)
        ]

    def section(self, rows: Sequence[Row], settings: Settings) -> Section:
        return propagation_report.section([one for row in rows for one in row.runs[0].records()])


class Shattering:
    """The correlation of gradients at neighbouring inputs, which needs no training."""

    name = "shattering"
    results = ()

    def plan(self, results, settings):
        return []

    def section(self, rows, settings: Settings) -> Section:
        """Measures the networks whose record is missing; a minute each."""
        folder = Path(settings.output) / self.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        records = read_metrics(folder) if path.is_file() else []
        done = {record["network"] for record in records}
        for name, network in shattering.NETWORKS.items():
            if name in done:
                continue
            print(f"measuring the gradients of the network {name}", flush=True)
            found = [{"step": 0, **one} for one in shattering.measure({name: network})]
            records += found
            with open(path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record) + "\n" for record in found))
        return shattering.section(records)
