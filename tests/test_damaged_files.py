"""Files of a data set or a run, damaged at random but seeded: read, or told in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from gluon_resnetv2.checkpoint import checkpoints, choose_checkpoint
from gluon_resnetv2.data import imagenet
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.training import compare, curves
from gluon_resnetv2.training.options import run_recipe
from gluon_resnetv2.training.run import Run
from tests.imagenet_tree import write_six

RUN = Path(__file__).parent / "fixtures" / "v0.1" / "run"
SECONDS, MEMORY = 10, 2**20  # of a processor, and KiB, that a file may take at most
TOKENS = (b"\0", b"\n", b"\t", b"[" * 5000, b"9" * 5000, b"-1", b"1e999", b"NaN", b"\xff", b"{}")


def each(few: int, many: int):
    """Runs a test on so many seeds, and where slow tests are run on many more."""
    return pytest.mark.parametrize(
        "seeds", [range(few), pytest.param(range(few, many), marks=pytest.mark.slow)], ids=len
    )


def damaged(rng: random.Random, data: bytes) -> bytes:
    """`data` with one bit to five turned, cut, doubled, exchanged, or with something put in."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, to = (rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(8)
        if kind < 4 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 4:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 5:
            data[at : at + 4] = rng.randbytes(4)
        elif kind == 6:
            data[at:at] = data[min(at, to) : max(at, to)]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def answer(use):
    """What `use` returns, or its one line; within bounds of time and memory."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        found = use()
    except UserError as error:
        found = str(error)
        assert found.isprintable()
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    return found


@pytest.fixture
def packed(tmp_path):
    write_six(tmp_path)
    return tmp_path


@each(60, 3000)
def test_record_list_and_index_files(packed, seeds):
    original = {path.name: path.read_bytes() for path in packed.iterdir()}

    def use():
        (batch,) = imagenet.load(packed, image_size=8, threads=1).batches(6)
        return np.concatenate([array.ravel() for array in batch]).tobytes()

    right = answer(use)
    for seed in seeds:
        rng = random.Random(seed)
        for path in packed.iterdir():
            path.unlink()
        for name, data in original.items():
            (packed / name).write_bytes(data)
        name = rng.choice(("val.rec", "val.idx", "val.lst"))
        for other in {"val.idx", "val.lst"} - {name}:
            if rng.random() < 0.3:
                (packed / other).unlink()
        (packed / name).write_bytes(damaged(rng, original[name]))
        answer(use)
        (packed / name).write_bytes(original[name])
        (packed / "val.checked").unlink(missing_ok=True)
        assert answer(use) == right, seed


VALUES = (
    *(None, True, -1, 0, 1, 10**17, 1e-300, 1e300, float("inf"), float("nan"), "", "1"),
    *([], [1], {}, {"step": 1}),
)


def odd(rng: random.Random, value: dict) -> dict:
    """An object of which some values are others, or missing."""
    value = dict(value)
    for name in rng.sample(sorted(value), rng.choice((1, 1, 2, 4))):
        if rng.random() < 0.2:
            del value[name]
        else:
            value[name] = rng.choice(VALUES)
    return value


@pytest.fixture
def run(tmp_path):
    """A run of two epochs and more, with a checkpoint."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))


@each(12, 500)
def test_metrics(run, seeds, tmp_path, monkeypatch):
    save = curves.save

    def save_some(figure, path):  # as drawing takes most of the time
        if seed % 20 == 19:
            save(figure, path)

    for module in (curves, compare):
        monkeypatch.setattr(module, "save", save_some)
    path = run / "metrics.jsonl"
    original = path.read_bytes()
    records = [json.loads(line) for line in original.splitlines()]

    seed = 19

    def use():
        curves.draw_curves(run)
        return compare.compare([run], tmp_path / "compare.png")

    right = answer(use)
    for seed in seeds:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            path.write_bytes(damaged(rng, original))
        else:
            some = [odd(rng, one) if rng.random() < 0.5 else one for one in records]
            path.write_text("".join(json.dumps(one) + "\n" for one in some))
        answer(use)
        path.write_bytes(original)
        assert answer(use) == right, seed


@each(40, 500)
def test_checkpoints(run, seeds):
    """Those too whose sums are right, which say something else."""
    (path,) = checkpoints(run)[-1:]
    original = {file.name: file.read_bytes() for file in path.iterdir()}
    for other in checkpoints(run)[:-1]:
        shutil.rmtree(other)
    state = json.loads(original["state.json"])

    def use():
        choose_checkpoint(run, warn=lambda line: None)
        recipe = dataclasses.replace(run_recipe(run), output=str(run))
        with contextlib.closing(Run(recipe, resume=True, writes=False)) as going_on:
            return going_on.last_checkpoint(lambda line: None)

    right = answer(use)
    for seed in seeds:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            name = rng.choice(sorted(original))
            (path / name).write_bytes(damaged(rng, original[name]))
        else:
            kind = rng.choice(("recipe", None))
            new = {**state, kind: odd(rng, state[kind])} if kind else odd(rng, state)
            (path / "state.json").write_text(json.dumps(new))
            manifest = json.loads(original["manifest.json"])
            manifest["sha256"]["state.json"] = hashlib.sha256(
                (path / "state.json").read_bytes()
            ).hexdigest()
            (path / "manifest.json").write_text(json.dumps(manifest))
        answer(use)
        for name, data in original.items():
            (path / name).write_bytes(data)
        assert answer(use) == right, seed
