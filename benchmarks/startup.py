"""Seconds to the end of the first training step, and peak memory, of ours and of others.

python benchmarks/startup.py
python benchmarks/startup.py --models preact1001 --ways GluonCV "ours native bfloat16"

The ways take turns, each time in a fresh process, all with the same number of threads. The clock
starts before the process does: imports, building the network and compiling count. Memory is the
most that the process has held (resident set) after 5 steps. What a way compiles and keeps on disk
is there: a round that does not count goes before the others. The table has the median of the rounds
and their range, and so for the ratios, which are taken within each round. Above 1 is better.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, installed or not

from benchmarks import in_a_fresh_process, rounds, training
from benchmarks.recompute import peak_memory
from gluon_resnetv2 import cli
from gluon_resnetv2.spec import named

COMPILED = "PyTorch compiled"
WAYS = (
    "GluonCV",
    "PyTorch eager",
    COMPILED,
    "ours float32",
    "ours native float32",
    "ours native bfloat16",
)
STEPS = 5
COMPILES = 200  # layers at most, if nobody asks for more: a thousand take very long


def measure(way: str, model: str, batch_size: int, began: float) -> tuple[float, float]:
    """Seconds from `began` to the end of the first step, and MB after all of them.

    Args:
        began: of `time.time()`, which is the same in every process.
    """
    step = training.step_of(way, model, batch_size, rounds.usual_size(model))
    step()
    seconds = time.time() - began
    for _ in range(STEPS - 1):
        step()
    return seconds, peak_memory()


def cases(
    models: Sequence[str], ways: Sequence[str] | None, count: int, batch_size: int
) -> Iterator[dict]:
    """Measures each model, in `count` rounds.

    Args:
        ways: by default all, but what would take very long.
    """
    for model in models:
        job = model, batch_size
        found, failed = rounds.alternate(
            ways or [way for way in WAYS if way != COMPILED or named(model).depth <= COMPILES],
            1 + count,
            lambda way, job=job: in_a_fresh_process(measure, way, *job, time.time()),
        )
        titles = {"s": "to the end of the first step", "MB": f"peak memory after {STEPS} steps"}
        for index, (unit, what) in enumerate(titles.items()):
            figures = {way: [one[index] for one in values[1:]] for way, values in found.items()}
            title = f"{model}, {what}, batch {batch_size}"
            yield rounds.case(title, unit, figures, training.BASES, failed)


def main() -> None:
    parser = rounds.parser(__doc__, WAYS, models=("preact20", "preact110", "preact1001"))
    parser.set_defaults(ways=None)
    parser.add_argument("--batch-size", type=rounds.at_least_1, default=8, help="of a step")
    args = parser.parse_args()
    rounds.compare(__doc__, args, cases(args.models, args.ways, args.rounds, args.batch_size))


if __name__ == "__main__":
    cli.run(main)
