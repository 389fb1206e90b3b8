"""Trains the runs of a study, several at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gluon_resnetv2 import machine
from gluon_resnetv2.cli import STOPPED
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.paper import FAIL
from gluon_resnetv2.study.plan import Outcome, Planned
from gluon_resnetv2.training.progress import duration
from gluon_resnetv2.training.stop import StopSignal

POLL = 0.2  # seconds


@dataclass(frozen=True)
class Slot:
    """What one run computes on: some GPUs, or so many threads of the CPU."""

    gpus: tuple[int, ...] | None
    threads: int


def slots(gpus: Sequence[int] | None, per_run: int, jobs: int | None) -> list[Slot]:
    """What runs side by side compute on.

    Small networks do not fill a CPU: one thread for each run, and as many runs as CPUs, get most
    out of it.

    Args:
        gpus: or None for the CPU.
        per_run: GPUs of one run.
        jobs: without GPUs: how many runs at a time; None for one per CPU.

    Raises:
        UserError: the numbers do not fit.
    """
    if not gpus:
        jobs = jobs or machine.cpus()
        return [Slot(None, max(1, machine.cpus() // jobs))] * jobs
    if per_run > len(gpus):
        raise UserError(f"--gpus-per-run {per_run} is more than the {len(gpus)} of --gpus")
    groups = [tuple(gpus[i : i + per_run]) for i in range(0, len(gpus) - per_run + 1, per_run)]
    return [Slot(group, max(1, machine.cpus() // len(groups))) for group in groups]


def execute(runs: Sequence[Planned], slots: Sequence[Slot], seconds: dict[Planned, float]) -> bool:
    """Trains what is missing, and prints a line for each run that ends.

    Args:
        runs: that have no outcome yet.
        seconds: what each is expected to take.

    Returns:
        False where a signal stopped it. Runs under way have then written a checkpoint.

    Raises:
        UserError: a run failed, by something else than its loss. Those beside it were finished.
    """
    todo, free = _by_folder(runs), list(slots)
    running: dict[subprocess.Popen, tuple[Planned, Slot, float]] = {}
    failed: list[Planned] = []
    progress = _Progress(todo, seconds, len(slots))
    with StopSignal() as stop:
        told = False
        while running or (todo and not failed and not stop.received):
            while todo and free and not failed and not stop.received:
                slot, same = free.pop(), todo.pop(0)
                running[_start(same, slot)] = same[0], slot, time.monotonic()
            if stop.received and not told:
                print("stopping: runs under way write a checkpoint", flush=True)
                for process in running:
                    process.send_signal(signal.SIGTERM)
                told = True
            for process in [one for one in running if one.poll() is not None]:
                run, slot, began = running.pop(process)
                free.append(slot)
                if process.returncode == 0 and (outcome := run.outcome()):
                    progress.done(run, outcome, time.monotonic() - began)
                elif not told and process.returncode != STOPPED:
                    failed.append(run)
            time.sleep(POLL)
    for run in failed:
        log = _log(run)
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        raise UserError(f"{run.folder.name}: {last.removeprefix('error: ')} (see {log})")
    return not stop.received


class _Progress:
    """Says which runs are done, and how long the others take if they are as slow as these."""

    def __init__(self, todo: list[list[Planned]], seconds: dict[Planned, float], places: int):
        self._seconds, self._places = seconds, places
        self._left = {same[0] for same in todo}
        self._count = len(todo)
        self._expected = self._taken = 0.0

    def done(self, run: Planned, outcome: Outcome, seconds: float) -> None:
        self._left.remove(run)
        self._expected += self._seconds[run]
        self._taken += seconds
        error = outcome.error
        text = f"{self._count - len(self._left):{len(str(self._count))}}/{self._count}  {run.title}"
        text += f": {'diverged' if error == FAIL else f'{error:.2f} %'}, {duration(seconds)}"
        if self._left:
            left = sum(self._seconds[one] for one in self._left) / self._places
            text += f"; about {duration(left * self._taken / self._expected)} left"
        print(text, flush=True)


def _by_folder(runs):
    """Runs that train the same thing, and are tested on different sizes, as one."""
    same: dict[Path, list[Planned]] = {}
    for run in runs:
        same.setdefault(run.folder, []).append(run)
    return list(same.values())


def _start(same: list[Planned], slot: Slot) -> subprocess.Popen:
    recipe = replace(same[0].recipe, gpus=slot.gpus)
    sizes = sorted({run.test_size for run in same if run.test_size})
    propagation = any(run.propagation for run in same)
    job = {"recipe": recipe.to_dict(), "test_sizes": sizes, "propagation": propagation}
    path = _log(same[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gluon_resnetv2.study.worker", json.dumps(job)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(slot.threads)},
            start_new_session=True,  # Ctrl-C reaches the study, which tells them once
        )


def _log(run: Planned) -> Path:
    return run.folder.with_name(f"{run.folder.name}.log")
