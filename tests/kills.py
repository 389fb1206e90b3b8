"""Kills a training again and again, and compares what it ends with to a training left in peace.

    python tests/kills.py [--kills 30] [--while-writing 10] [--cpus 1]

The kills are SIGKILLs at random moments, some of them while a checkpoint is being written. After
each, `--resume auto` goes on. In the end parameters, momenta, statistics and metrics have to be the
same bit for bit. Prints the counts; exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Everything that draws random numbers: dropout, mixup, CutMix, augmentation, the order of images;
# an average; and weights that are given, of which the first learn nothing.
OPTIONS = (
    *("--dataset", "digits", "--image-size", "8", "--model", "resnet8", "--unit", "basic"),
    *("--shortcut", "dropout:0.5", "--mixup", "0.2", "--label-smoothing", "0.1"),
    *("--optimizer", "nag", "--lr", "0.05", "--warmup", "linear", "--lr-schedule", "cosine"),
    *("--cutmix", "1", "--rand-augment", "1,5", "--random-erasing", "0.2", "--ema", "0.9"),
    *("--batch-size", "50", "--checkpoint-every", "3", "--log-every", "5"),
)
GIVEN = ("--freeze", "1", "--lr-scale-features", "0.5", "--init-from")
TIMES = ("seconds", "images_per_second")  # what may differ


def start(folder: Path, options) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train/cifar.py"), *OPTIONS, *options]
    return subprocess.Popen(
        [*command, "--output", str(folder), "--resume", "auto"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def writing(folder: Path) -> set[str]:
    """The checkpoints that are being written, or that a killed process has left unfinished."""
    return {path.name for path in folder.glob("checkpoints/.step-*")}


def steps(folder: Path) -> int:
    names = [path.name for path in folder.glob("checkpoints/step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def kill(process: subprocess.Popen, folder: Path, while_writing: bool, rng) -> tuple[bool, bool]:
    """Kills the process once it trains: whether it was still running, and was writing then."""
    before, left = steps(folder), writing(folder)
    while steps(folder) == before and process.poll() is None:
        time.sleep(0.001)  # it starts up
    time.sleep(rng.uniform(0, 0.5))
    if while_writing:
        wait, since = rng.uniform(0, 0.01), time.monotonic()
        while not writing(folder) - left and process.poll() is None:
            if time.monotonic() - since > 60:
                break
        time.sleep(wait)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running, bool(writing(folder) - left)


def outcome(folder: Path) -> dict:
    """What has to be the same, but for times."""
    last = folder / "checkpoints" / f"step-{steps(folder):08d}"
    state = json.loads((last / "state.json").read_text())
    for record in (state, state["metrics"], state["recipe"]):
        for name in (*TIMES, "output"):
            record.pop(name, None)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return {
        **{name: (last / name).read_bytes() for name in ("net.params", "training.params")},
        "state.json": state,
        "metrics.jsonl": [{k: v for k, v in m.items() if k not in TIMES} for m in metrics],
    }


def main(kills: int, while_writing: int, seed: int, options) -> int:
    """Prints what happened; returns the exit status."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    try:
        process = start(folder / "given", ("--num-steps", "1"))
        if process.wait():
            print(process.stderr.read())
            return 1
        options = (*options, *GIVEN, str(folder / "given"))
        process = start(folder / "in-peace", options)
        if process.wait():
            print(process.stderr.read())
            return 1
        done = {"kills": 0, "while writing": 0}
        while done["kills"] < kills or done["while writing"] < while_writing:
            process = start(folder / "killed", options)
            wanted = done["while writing"] < while_writing and rng.random() < 0.7
            running, was_writing = kill(process, folder / "killed", wanted, rng)
            if not running:
                print(f"it ended by itself after {done}: {process.stderr.read()}")
                return 1
            done["kills"] += 1
            done["while writing"] += was_writing
            print(f"killed after step {steps(folder / 'killed')}, {done}", flush=True)
        if start(folder / "killed", options).wait():
            return 1
        expected, found = outcome(folder / "in-peace"), outcome(folder / "killed")
        different = [name for name in expected if found[name] != expected[name]]
        print(
            f"{done['kills']} kills, {done['while writing']} of them while a checkpoint was being "
            f"written; {len(expected['metrics.jsonl'])} records; different: "
            f"{different or 'nothing'}"
        )
        return bool(different)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--while-writing", type=int, default=10)
    parser.add_argument("--cpus", default="1")
    parser.add_argument("--num-epochs", default="40")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    sys.exit(
        main(
            chosen.kills,
            chosen.while_writing,
            chosen.seed,
            ("--cpus", chosen.cpus, "--num-epochs", chosen.num_epochs),
        )
    )
