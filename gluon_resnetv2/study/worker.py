"""One run of a study, in a process of its own: `python -m gluon_resnetv2.study.worker JSON`.

It trains, then measures what the study asks for beside the test error. All of it goes into the
run's metrics.jsonl, and nothing is done that is there already.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from pathlib import Path

from gluon_resnetv2 import cli

with cli.one_line_errors():  # of an MXNet that is missing or can't be loaded, too
    from gluon_resnetv2.checkpoint import checkpoints, load_run, remove_checkpoints
    from gluon_resnetv2.study import propagation
    from gluon_resnetv2.training.datasets import load_data
    from gluon_resnetv2.training.devices import contexts
    from gluon_resnetv2.training.evaluation import evaluate_source
    from gluon_resnetv2.training.loop import Diverged
    from gluon_resnetv2.training.main import initial_network, train_network
    from gluon_resnetv2.training.recipe import Recipe
    from gluon_resnetv2.training.run import InUse, read_metrics

PATIENCE = 60  # seconds for a process of a study that was killed to leave the run's folder

IMAGES = 64  # of the batch that signals are followed with

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main() -> int:
    _end_with_parent()
    job = json.loads(sys.argv[1])
    recipe = Recipe.from_dict(job["recipe"])
    try:
        if _train(recipe) is None:
            return cli.STOPPED
    except Diverged as error:  # an outcome: metrics.jsonl has it
        print(error)
    else:
        for size in job["test_sizes"]:
            _test(recipe, size)
    if job["propagation"]:
        _follow(recipe)
    assert recipe.output, "each run of a study has a folder"
    remove_checkpoints(recipe.output, keep=1)  # of a hundred runs they fill a disk
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
    """Adds the test error at another size of the images."""
    records = read_metrics(recipe.output)
    if any(record.get("test_size") == size for record in records):
        return
    found = evaluate_source(recipe.output, contexts(recipe.gpus, recipe.cpus), size=size)
    errors = {"test_error": found["error"], "test_error5": found.get("error5")}
    _add(recipe, [{"step": records[-1]["step"], "test_size": size, **errors}])


def _follow(recipe):
    """Adds how signals pass through the network at each checkpoint and, last, at its start."""
    done = {record["step"] for record in read_metrics(recipe.output) if "kind" in record}
    dataset, devices = load_data(recipe), contexts(recipe.gpus, recipe.cpus)[:1]
    images, labels = next(iter(dataset.batches(IMAGES, train=True)))
    for path in reversed(checkpoints(recipe.output)):
        step = int(path.name.rpartition("-")[2])
        if step not in done:
            net, _ = load_run(recipe.output, str(step), devices)
            _add(recipe, propagation.records(net, images, labels, step))
    if 0 not in done:
        net = initial_network(recipe, len(dataset.classes), devices, dataset.image_shape[0])
        _add(recipe, propagation.records(net, images, labels, 0))


def _add(recipe, records):
    path = Path(recipe.output) / "metrics.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(_short(record)) + "\n" for record in records))


def _short(value):
    """`value` with numbers of six digits, which make a third of the file."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.6g}"))


if __name__ == "__main__":
    cli.run(main)
