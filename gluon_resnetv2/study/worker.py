"""One run of a study, in a process of its own: `python -m gluon_resnetv2.study.worker JSON`."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from pathlib import Path

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    from gluon_resnetv2.study.runner import STOPPED
    from gluon_resnetv2.training.assess import assess
    from gluon_resnetv2.training.devices import contexts
    from gluon_resnetv2.training.loop import Diverged
    from gluon_resnetv2.training.main import train_network
    from gluon_resnetv2.training.recipe import Recipe
    from gluon_resnetv2.training.run import InUse

PATIENCE = 60  # seconds for a process of a study that was killed to leave the run's folder

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main() -> int:
    """Trains, or goes on; tests on the sizes asked for what is not tested yet."""
    _end_with_parent()
    job = json.loads(sys.argv[1])
    recipe = Recipe.from_dict(job["recipe"])
    try:
        if _train(recipe) is None:
            return STOPPED
    except Diverged as error:  # an outcome: metrics.jsonl has it
        print(error)
        return 0
    for size in job["test_sizes"]:
        _test(recipe, size)
    return 0


def _end_with_parent():
    """Has the kernel ask this process to stop when the study is killed; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _train(recipe):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return train_network(recipe, resume=True)[1]
        except InUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _test(recipe, size):
    path = Path(recipe.output) / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if any(record.get("test_size") == size for record in records):
        return
    found = assess(recipe.output, contexts(recipe.gpus, recipe.cpus), size=size)
    record = {"step": records[-1]["step"], "lr": records[-1]["lr"], "loss": found["loss"]}
    record.update(test_size=size, test_error=found["error"], test_error5=found["error5"])
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    cli.run(main)
