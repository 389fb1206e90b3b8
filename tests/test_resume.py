"""Runs that are stopped, killed, damaged or out of room, and what they end with once they go on."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import checkpoint, cli, data, files
from gluon_resnetv2.checkpoint import checkpoints, choose_checkpoint
from gluon_resnetv2.commands import train as train_command
from gluon_resnetv2.distributed.workers import Workers
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export_run
from gluon_resnetv2.net import ResNetV2, he_normal
from gluon_resnetv2.training import curves, loop
from gluon_resnetv2.training.devices import contexts
from gluon_resnetv2.training.precision import cpu_has_bfloat16
from gluon_resnetv2.training.recipe import OPTIMIZERS, Recipe
from gluon_resnetv2.training.run import Run, read_metrics
from gluon_resnetv2.training.step import Step
from tests.common import relative, skip_unless_installed, use_moving_statistics

ROOT = Path(__file__).resolve().parents[1]
DATASET = data.load("synthetic", image_size=8, train_count=22, test_count=14)
RECIPE = Recipe(  # two epochs of four steps, of 6, 6, 6 and 4 images
    model="preact8",
    unit="basic",
    dataset="synthetic",
    image_size=8,
    batch_size=6,
    num_epochs=2,
    lr_step_epochs=(1.0,),
    warmup_steps=3,
    log_every=3,
)
STEPS = 4
FILES = ("net.params", "training.params", "state.json", "manifest.json")
TIMES = ("seconds", "images_per_second")


def variant(**changes) -> Recipe:
    return dataclasses.replace(RECIPE, **changes)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Without curves, and without waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw_curves", lambda folder: None)
        patch.setattr(os, "fsync", lambda file: None)
        yield


# -- Parts of a run, and what ends them ------------------------------------------------------------


class Killed(BaseException):
    """What stands for a SIGKILL."""


def kill(patch):
    """Ends the process: nothing that would tidy up after it does."""
    patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    patch.setattr(Path, "unlink", lambda *args, **kwargs: None)
    raise Killed


def send(number):
    return lambda patch: os.kill(os.getpid(), number)


def before_update(wanted: int, act):
    """Has `act` happen before update number `wanted`, counted from 0."""

    def prepare(patch):
        class Troubled(Step):
            def __call__(self, images, labels, step, *args):
                if step == wanted:
                    act(patch)
                return super().__call__(images, labels, step, *args)

        patch.setattr(loop, "Step", Troubled)

    return prepare


def in_evaluation(act, batches: int = 1):
    """Has `act` happen after so many batches of the first evaluation to come."""

    def prepare(patch):
        def troubled(net, images, *args):
            def some():
                for number, batch in enumerate(images):
                    if number == batches:
                        act(patch)
                    yield batch

            return evaluate(net, some(), *args)

        patch.setattr(loop, "evaluate", troubled)

    evaluate = loop.evaluate
    return prepare


seeds = itertools.count(1000)


def train(folder, recipe=RECIPE, trouble=None, prepare=lambda net: None, dataset=DATASET):
    """One process's part of the run in `folder`, which may be the whole of it.

    Args:
        trouble: what ends it, as a function of a `MonkeyPatch`.
    """
    recipe = dataclasses.replace(recipe, output=str(folder))
    devices = contexts(None, recipe.cpus)
    mx.random.seed(recipe.seed)
    net = ResNetV2(recipe.spec(10), dtype="bfloat16" if recipe.dtype == "bfloat16" else "float32")
    net.initialize(he_normal(recipe.init), ctx=devices)
    net.cast(recipe.array_dtype)
    prepare(net)
    net.hybridize(static_alloc=True, static_shape=True)
    mx.random.seed(next(seeds))  # what a process has drawn before must not matter
    run = Run(recipe, resume=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            if trouble:
                trouble(patch)
            record = loop.fit(net, dataset, recipe, devices, run)
    except Killed:
        return None
    finally:
        run.close()
    apart = [name for name, p in net.collect_params().items() if not _same_everywhere(p)]
    assert apart == [], "the devices have come apart"
    return record


def _same_everywhere(parameter):
    if parameter.grad_req == "null":  # a moving statistic is each device's own
        return True
    first, *others = (copy.asnumpy() for copy in parameter.list_data())
    return all(np.array_equal(first, other) for other in others)


def outcome(folder) -> dict:
    """All that a run has computed, but not how long it took and where it is."""
    path, state = choose_checkpoint(folder)
    state = state.to_dict()
    for record in (state, state["metrics"], state["recipe"]):
        for name in (*TIMES, "output", "keep", "checkpoint_every"):
            record.pop(name, None)
    arrays = {
        f"{file} {name}": (array.dtype, array.shape, array.asnumpy().tobytes())
        for file in ("net.params", "training.params")
        for name, array in dict(mx.nd.load(str(path / file))).items()
    }
    metrics = [{k: v for k, v in m.items() if k not in TIMES} for m in read_metrics(folder)]
    return {**arrays, "state": state, "metrics": metrics}


def differences(found: dict, expected: dict) -> list[str]:
    return [name for name in {**found, **expected} if found.get(name) != expected.get(name)]


def warnings_in(text: str) -> list[str]:
    """The lines on standard error that do not tell how far a slow machine is."""
    return [line for line in text.splitlines() if not line.startswith("epoch ")]


# -- Exactly the same ------------------------------------------------------------------------------

CASES = {
    "one device": {},
    "no momentum": {"mom": 0.0},
    "float64": {"dtype": "float64"},
    "decay of weights only": {"wd_on": "weights"},
    "three devices, local": {"cpus": 3, "kv_store": "local", "optimizer": "adam", "lr": 0.01},
    "a batch in parts": {"accumulate": 2, "cpus": 2},
    "dropout": {"shortcut": "dropout:0.5"},
    "dropout in parts": {"shortcut": "dropout:0.5", "accumulate": 2},
    "mixed images and smooth labels": {"mixup": 0.5, "label_smoothing": 0.1, "cpus": 2},
    "CutMix or mixup": {"mixup": 0.5, "cutmix": 1.0, "cpus": 2},
    "changed and erased images": {"rand_augment": (2, 9.0), "random_erasing": 0.5},
    "an average": {"ema": 0.9},
    "an average on two devices, in parts": {
        **{"ema": 0.9999, "cpus": 2, "accumulate": 2, "cutmix": 0.5, "rand_augment": (1, 5)},
    },
    "an average by the native engine": {"ema": 0.5, "engine": "native", "random_erasing": 1.0},
    "cosine": {"lr_schedule": "cosine", "warmup": "linear", "warmup_lr": 0.0},
    "corrected momenta": {"momentum_correction": True, "warmup": "linear", "cpus": 2},
    "corrected momenta in parts": {
        **{"momentum_correction": True, "cpus": 2},
        **{"lr_schedule": "cosine", "optimizer": "nag", "accumulate": 2},
    },
    "an end within an epoch": {"num_epochs": None, "num_steps": 6},
    "recomputed activations": {"recompute": 2},
    "recomputed dropout": {"recompute": 2, "shortcut": "dropout:0.5"},
    "dropout on two devices": {"shortcut": "dropout:0.5", "cpus": 2},
    "the native engine": {"engine": "native"},
    "the native engine, a batch in parts": {"engine": "native", "accumulate": 2, "cpus": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_stopped_and_killed_ends_with_the_same_bits(tmp_path, case):
    recipe = variant(**CASES[case])
    if recipe.engine == "native":
        skip_unless_installed()
    train(tmp_path / "in peace", recipe)
    broken = tmp_path / "broken"
    train(broken, recipe, before_update(1, send(signal.SIGTERM)))
    assert [path.name for path in checkpoints(broken)] == ["step-00000002"]
    train(broken, recipe, in_evaluation(send(signal.SIGINT)))
    assert [path.name for path in checkpoints(broken)][-1] == "step-00000004"
    assert not [record for record in read_metrics(broken) if "epoch" in record]
    train(broken, recipe, before_update(5, kill))  # two updates after the epoch's checkpoint
    train(broken, recipe)
    assert differences(outcome(broken), outcome(tmp_path / "in peace")) == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_with_the_same_bits(tmp_path, name):
    """Stopped where the learning rate changes, on two devices, which have to stay alike."""
    recipe = variant(optimizer=name, lr=0.01, warmup_lr=0.001, num_epochs=1, cpus=2)
    train(tmp_path / "in peace", recipe)
    for step in (0, 2):
        train(tmp_path / "broken", recipe, before_update(step, send(signal.SIGTERM)))
    train(tmp_path / "broken", recipe)
    assert differences(outcome(tmp_path / "broken"), outcome(tmp_path / "in peace")) == []


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16")
def test_bfloat16_goes_on_with_the_same_bits(tmp_path):
    recipe = variant(dtype="bfloat16")
    train(tmp_path / "in peace", recipe)
    train(tmp_path / "broken", recipe, before_update(4, send(signal.SIGTERM)))
    train(tmp_path / "broken", recipe)
    assert differences(outcome(tmp_path / "broken"), outcome(tmp_path / "in peace")) == []


@pytest.mark.parametrize(("cpus", "unsettled"), [(1, 50), (2, 0)])
def test_a_run_may_be_stopped_after_every_step_and_in_every_evaluation(
    tmp_path, monkeypatch, cpus, unsettled
):
    monkeypatch.setattr(loop, "STEPS_UNSETTLED", unsettled)
    recipe = variant(cpus=cpus)
    train(tmp_path / "in peace", recipe)
    broken = tmp_path / "broken"
    for step in range(2 * STEPS):
        assert train(broken, recipe, before_update(step, send(signal.SIGTERM))) is None
        assert checkpoints(broken)[-1].name == f"step-{step + 1:08d}"
        if (step + 1) % STEPS == 0:
            for batches in (0, 1):
                assert train(broken, recipe, in_evaluation(send(signal.SIGINT), batches)) is None
    assert train(broken, recipe)["epoch"] == 2
    assert differences(outcome(broken), outcome(tmp_path / "in peace")) == []


def test_a_run_may_be_killed_at_every_step_and_in_every_evaluation(tmp_path):
    recipe = variant(cpus=2, checkpoint_every="2", keep=1)
    train(tmp_path / "in peace", recipe)
    broken = tmp_path / "broken"
    for step in range(1, 2 * STEPS):
        train(broken, recipe, before_update(step, kill))
        if step % STEPS == 0:
            train(broken, recipe, in_evaluation(kill))
    train(broken, recipe)
    assert differences(outcome(broken), outcome(tmp_path / "in peace")) == []


@pytest.mark.parametrize("cpus", [1, 2])
def test_two_runs_give_the_same_bits(tmp_path, cpus):
    """oneDNN leaves weights in layouts of its own, whose updates round differently: see `Step`."""
    recipe = variant(optimizer="nag", num_epochs=6, cpus=cpus)
    for name in "ab":
        train(tmp_path / name, recipe)
    assert differences(outcome(tmp_path / "a"), outcome(tmp_path / "b")) == []


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [0.01, 0.01, 0.01, 0.1, 0.01, 0.01, 0.01, 0.01]),
        # Three steps from 0 to 0.1; then 0.05 * (1 + cos(pi * n / 5)).
        (
            {"lr_schedule": "cosine", "warmup": "linear", "warmup_lr": 0.0},
            [0, 0.0333333, 0.0666667, 0.1, 0.0904508, 0.0654508, 0.0345492, 0.0095492],
        ),
    ],
)
def test_the_learning_rate_goes_on_where_it_was(tmp_path, monkeypatch, schedule, expected):
    """Four processes; the third is killed two updates after the checkpoint at the epoch's end."""
    taken = []

    class Recording(Step):
        def __call__(self, images, labels, step, *args):
            taken.append((step, self.trainer.learning_rate))
            return super().__call__(images, labels, step, *args)

    monkeypatch.setattr(loop, "Step", Recording)
    monkeypatch.setattr(sys.modules[__name__], "Step", Recording)
    for stop in ((0, send(signal.SIGTERM)), (2, send(signal.SIGTERM)), (6, kill), (9, kill)):
        train(tmp_path / "run", variant(**schedule), before_update(*stop))
    assert [step for step, _ in taken] == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert [rate for _, rate in taken] == [
        pytest.approx(expected[step], abs=1e-7) for step, _ in taken
    ]


# -- Killed while it writes ------------------------------------------------------------------------


def half_written(name: str):
    """Kills when half of a checkpoint's file is written."""

    def prepare(patch):
        def hash_or_die(path):
            if Path(path).name == name and Path(path).parent.name.startswith("."):
                os.truncate(path, os.path.getsize(path) // 2)
                kill(patch)
            return sha256(path)

        patch.setattr(checkpoint, "sha256", hash_or_die)

    sha256 = files.sha256
    return prepare


def before_replacing(name: str):
    """Kills when everything is written, but not renamed yet."""

    def prepare(patch):
        def replace_or_die(source, target):
            if Path(target).name == name:
                kill(patch)
            return replace(source, target)

        patch.setattr(os, "replace", replace_or_die)

    replace = os.replace
    return prepare


def while_removing(patch):
    """Kills when half of an old checkpoint is removed."""

    def remove_half(path, *args, **kwargs):
        if "step-" in Path(path).name and Path(path).is_dir():
            next(Path(path).iterdir()).unlink()
            kill(patch)

    patch.setattr(shutil, "rmtree", remove_half)


KILLED = {
    "net.params": half_written("net.params"),
    "training.params": half_written("training.params"),
    "state.json": half_written("state.json"),
    "manifest.json": before_replacing("manifest.json"),
    "the folder": before_replacing("step-00000006"),
    "the metrics, on going on": before_replacing("metrics.jsonl"),
    "old ones": while_removing,
}


@pytest.fixture(scope="module")
def in_peace(tmp_path_factory):
    """What a run ends with that nobody disturbs."""
    folder = tmp_path_factory.mktemp("resume") / "in peace"
    train(folder)
    return folder


@pytest.mark.parametrize("killed", KILLED)
def test_a_kill_while_writing_loses_no_older_checkpoint(tmp_path, in_peace, killed):
    recipe, broken = variant(checkpoint_every="2", keep=1), tmp_path / "broken"
    train(broken, recipe, before_update(5, kill))
    assert train(broken, recipe, KILLED[killed]) is None
    _, state = choose_checkpoint(broken, warn=None)  # nothing to be warned of
    assert state.step == (8 if killed == "old ones" else 4)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lr"')  # it may have been writing this, too
    train(broken, recipe)
    assert differences(outcome(broken), outcome(in_peace)) == []
    assert not list(broken.glob("checkpoints/.*"))


def test_a_kill_while_writing_the_first_checkpoint_loses_no_run(tmp_path, in_peace):
    """The epoch's record is in metrics.jsonl already."""
    broken = tmp_path / "broken"
    assert train(broken, trouble=before_replacing("step-00000004")) is None
    assert [record["step"] for record in read_metrics(broken)] == [3, 4]
    train(broken)
    assert differences(outcome(broken), outcome(in_peace)) == []


@pytest.mark.parametrize("new_is_whole", [True, False])
def test_a_checkpoint_that_was_being_replaced_is_still_there(tmp_path, in_peace, new_is_whole):
    broken = tmp_path / "broken"
    train(broken, trouble=in_evaluation(send(signal.SIGTERM)))  # step 4, not evaluated

    def prepare(patch):
        def replace_or_die(source, target):
            before = Path(target).name == "step-00000004"
            if before and not new_is_whole:
                (Path(source) / "net.params").unlink()
            if before:
                kill(patch)
            return replace(source, target)

        patch.setattr(os, "replace", replace_or_die)

    replace = os.replace
    assert train(broken, trouble=prepare) is None
    assert checkpoints(broken) == []
    assert [path.suffix for path in broken.glob("checkpoints/*")].count(".before") == 1
    train(broken)
    assert differences(outcome(broken), outcome(in_peace)) == []
    assert not list(broken.glob("checkpoints/.*"))


def test_what_a_killed_process_left_makes_room_before_anything_is_written(tmp_path):
    broken = tmp_path / "broken"
    train(broken, trouble=before_update(2, send(signal.SIGTERM)))
    left = broken / "checkpoints" / ".step-00000004.k1ll3d_x.new"
    left.mkdir()
    (left / "net.params").write_bytes(bytes(1000))
    seen = []
    train(broken, trouble=before_update(3, lambda patch: seen.append(left.exists())))
    assert seen == [False]


# -- Damaged ---------------------------------------------------------------------------------------


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


def flip(at: float):
    """Changes one bit."""

    def function(content):
        changed, place = bytearray(content), int(at * (len(content) - 1))
        changed[place] ^= 4
        return bytes(changed)

    return lambda path, older: change(path, function)


def replace_by_folder(path, older):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path, older):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "a bit in the beginning": flip(0),
    "a bit in the middle": flip(0.5),
    "cut short": lambda path, older: change(path, lambda content: content[: len(content) // 2]),
    "emptied": lambda path, older: path.write_bytes(b""),
    "only zeros": lambda path, older: change(path, lambda content: bytes(len(content))),
    "deleted": lambda path, older: path.unlink(),
    "a folder": replace_by_folder,
    "a pipe": replace_by_pipe,
    "the older one's": lambda path, older: shutil.copy(older, path),
}


@pytest.fixture
def finished(in_peace, tmp_path):
    """A copy of a run that has ended, its older checkpoint and its newest."""
    shutil.copytree(in_peace, tmp_path / "run")
    older, newest = checkpoints(tmp_path / "run")
    return SimpleNamespace(folder=tmp_path / "run", older=older, newest=newest)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_skipped_with_a_line_that_names_it(finished, file, damage):
    DAMAGES[damage](finished.newest / file, finished.older / file)
    lines = []
    path, state = choose_checkpoint(finished.folder, warn=lines.append)
    assert (path, state.step) == (finished.older, STEPS)
    (line,) = lines
    assert str(finished.newest) in line
    assert "\n" not in line
    if file != "manifest.json":  # with which another file may not fit
        assert str(finished.newest / file) in line


@pytest.mark.parametrize("file", FILES)
def test_a_run_goes_on_from_before_the_damage(finished, in_peace, capfd, file):
    DAMAGES["a bit in the middle"](finished.newest / file, None)
    assert train(finished.folder)["step"] == 2 * STEPS
    assert differences(outcome(finished.folder), outcome(in_peace)) == []
    warnings = warnings_in(capfd.readouterr().err)
    assert len(warnings) == 1
    assert str(finished.newest) in warnings[0]


def test_where_every_checkpoint_is_damaged_nothing_is_thrown_away(finished, capfd):
    for path in (finished.older, finished.newest):
        (path / "net.params").unlink()
    before = contents(finished.folder)
    with pytest.raises(UserError, match="no valid checkpoint left; name a new --output"):
        train(finished.folder)
    assert contents(finished.folder) == before
    assert len(warnings_in(capfd.readouterr().err)) == 2


MANIFESTS = {
    "nothing": ("null", "is no JSON object"),
    "a list": ("[]", "is no JSON object"),
    "no format": ("{}", "has no format"),
    "no sums": ('{"format": 2}', "has no sha256"),
    "an unknown format": ('{"format": 3}', "has a format that this version does not know"),
    "sums of nothing": ('{"format": 2, "sha256": null}', "has a wrong sha256"),
    "too few sums": (
        '{"format": 2, "sha256": {"net.params": "0"}}',
        "has no sha256.training.params",
    ),
    "no texts": (
        json.dumps({"format": 2, "sha256": dict.fromkeys(FILES, 1)}),
        "has a wrong sha256.net.params",
    ),
    "no UTF-8": (b"\xff\xfe", "is no JSON: not UTF-8, "),
}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_that_is_none_is_skipped(finished, manifest):
    content, told = MANIFESTS[manifest]
    content = content if isinstance(content, bytes) else content.encode()
    (finished.newest / "manifest.json").write_bytes(content)
    lines = []
    assert choose_checkpoint(finished.folder, warn=lines.append)[0] == finished.older
    assert len(lines) == 1
    assert f"{finished.newest / 'manifest.json'} {told}" in lines[0]


def test_swapped_and_renamed_checkpoints_are_skipped(finished):
    swapped = finished.folder / "swapped"
    finished.older.rename(swapped)
    finished.newest.rename(finished.older)
    swapped.rename(finished.newest)
    lines = []
    with pytest.raises(UserError, match="no valid checkpoint"):
        choose_checkpoint(finished.folder, warn=lines.append)
    assert [str(path) in line for path, line in zip((finished.newest, finished.older), lines)] == [
        True,
        True,
    ]
    finished.older.rename(finished.folder / "checkpoints" / "step-00000099")
    assert next(checkpoint.valid_checkpoints(finished.folder, lines.append), None) is None
    assert "step-00000099" in lines[2]


def test_a_file_that_the_disk_can_not_read_is_skipped(finished, monkeypatch):
    def failing(path):
        if Path(path) == finished.newest / "training.params":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return files.sha256(path)

    monkeypatch.setattr(checkpoint, "sha256", failing)
    lines = []
    assert choose_checkpoint(finished.folder, warn=lines.append)[0] == finished.older
    assert "training.params" in lines[0]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_do_not_push_out_good_ones(tmp_path, keep):
    """They are newer than all that the run writes next, and count for nothing."""
    folder, recipe = tmp_path / "run", variant(checkpoint_every="1", keep=4)
    train(folder, recipe, before_update(7, kill))
    for path in checkpoints(folder)[-keep - 1 :]:
        DAMAGES["cut short"](path / "net.params", None)
    last_good = choose_checkpoint(folder, warn=lambda line: None)[1].step
    assert last_good == 6 - keep
    train(folder, dataclasses.replace(recipe, keep=keep), before_update(last_good + 1, kill))
    _, state = choose_checkpoint(folder, warn=lambda line: None)
    assert state.step == last_good + 1


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path):
    """They are older than what the run writes next, but stand for nothing either."""
    folder, recipe = tmp_path / "run", variant(checkpoint_every="1", keep=4)
    train(folder, recipe, before_update(7, kill))
    for path in checkpoints(folder)[-2:]:
        DAMAGES["cut short"](path / "net.params", None)
    train(folder, variant(keep=2))
    valid = checkpoint.valid_checkpoints(folder, lambda line: None)
    assert [state.step for _, state in valid][:2] == [8, 5]


def test_what_is_no_checkpoint_is_left_alone(finished):
    """A copy that somebody has made by hand, for example."""
    copies = [f"{finished.newest}.copy", f"{finished.newest}-before-the-change"]
    names = (".step-notes", ".step-00000004.mine", ".step-00000004.before", ".step-4.old")
    copies += [str(finished.newest.with_name(name)) for name in names]
    for copy in copies:
        shutil.copytree(finished.older, copy)
    shutil.rmtree(finished.newest)
    train(finished.folder, variant(keep=1, checkpoint_every="1"))
    assert all(os.path.isfile(f"{copy}/net.params") for copy in copies)
    assert finished.newest in checkpoints(finished.folder)


# -- A disk without room ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, which hold four checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
            yield folder
            subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip("needs the right to mount a file system")


@pytest.mark.parametrize("room", [0, 0.01, 0.3, 0.6, 0.99])
def test_a_full_disk_loses_nothing_older(small_disk, in_peace, capfd, room):
    """There is room for that part of a checkpoint, and later for a whole one."""
    recipe, folder = variant(checkpoint_every="1", keep=1), small_disk / "run"
    seen = {}

    def trouble(patch):
        class Filling(Step):
            def __call__(self, images, labels, step, *args):
                if step == STEPS:
                    size = sum(file.stat().st_size for file in checkpoints(folder)[-1].iterdir())
                    free = shutil.disk_usage(small_disk).free
                    (small_disk / "filler").write_bytes(bytes(free - int(room * size)))
                if step == STEPS + 2:
                    seen["last"] = choose_checkpoint(folder, warn=None)[1].step
                    seen["others"] = len(list(folder.glob("checkpoints/*"))) - 1
                    (small_disk / "filler").unlink()
                return super().__call__(images, labels, step, *args)

        patch.setattr(loop, "Step", Filling)

    assert train(folder, recipe, trouble)["epoch"] == 2
    assert seen == {"last": STEPS, "others": 0}
    warnings = [line for line in warnings_in(capfd.readouterr().err) if "checkpoint" in line]
    assert [f"no checkpoint of step {step}" in line for step, line in zip((5, 6), warnings)] == [
        True,
        True,
    ]
    assert len(warnings) == 2
    assert "step-00000004" in warnings[0]
    assert differences(outcome(folder), outcome(in_peace)) == []


@contextlib.contextmanager
def file_size_limit(size: int):
    """No file can become larger: what every system has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_can_not_be_written_is_tried_again(tmp_path, in_peace, capfd):
    recipe, folder = variant(checkpoint_every="1", keep=2), tmp_path / "run"

    def trouble(patch):
        def limited(run, net, arrays, state):
            with file_size_limit(100_000) if state.step in (2, 5) else contextlib.nullcontext():
                return write(run, net, arrays, state)

        patch.setattr(Run, "checkpoint", limited)

    write = Run.checkpoint
    train(folder, recipe, trouble)
    warnings = warnings_in(capfd.readouterr().err)
    assert [re.findall(r"step-?\s?0*(\d)", line) for line in warnings] == [["2", "1"], ["5", "4"]]
    assert differences(outcome(folder), outcome(in_peace)) == []


def test_a_record_that_the_disk_had_no_room_for_is_written_before_the_checkpoint(
    tmp_path, in_peace
):
    """Whoever goes on from there would not make it again."""

    def trouble(patch):
        def limited(run, **record):
            with file_size_limit(10):
                log(run, **record)

        patch.setattr(Run, "log", limited)
        before_update(2, send(signal.SIGTERM))(patch)

    log = Run.log
    train(tmp_path / "run", trouble=trouble)
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [3]
    train(tmp_path / "run")
    assert differences(outcome(tmp_path / "run"), outcome(in_peace)) == []


def test_the_last_checkpoint_has_to_be_written(tmp_path):
    """Nobody would go on with the run: it ends with an error that names what could not be."""
    folder = tmp_path / "run"

    def trouble(patch):
        def limited(run, net, arrays, state):
            with file_size_limit(100_000) if state.step == 8 else contextlib.nullcontext():
                return write(run, net, arrays, state)

        patch.setattr(Run, "checkpoint", limited)

    write = Run.checkpoint
    with pytest.raises(OSError, match="step-00000008"):
        train(folder, trouble=trouble)
    assert choose_checkpoint(folder, warn=None)[1].step == STEPS
    assert not list(folder.glob("checkpoints/.*"))


def test_a_disk_that_was_full_from_the_start_costs_that_run_alone(tmp_path, in_peace, capfd):
    """With room again, the same words train from the start, and what was logged is still there."""
    folder = tmp_path / "run"
    with file_size_limit(20_000), pytest.raises(OSError, match="step-00000008"):
        train(folder)
    logged = (folder / "metrics.jsonl").read_text()
    assert checkpoints(folder) == []
    assert train(folder)["epoch"] == 2
    assert differences(outcome(folder), outcome(in_peace)) == []
    assert (folder / "metrics-without-checkpoint.jsonl").read_text() == logged
    assert f"{folder} has no checkpoint: training starts anew" in capfd.readouterr().err


# -- On other devices ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["nag", "adam"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_with_other_devices(tmp_path, monkeypatch, before, after, optimizer):
    """The result is the same but for rounding, where no statistics are of a device's own part."""
    monkeypatch.setattr(loop, "STEPS_UNSETTLED", 0)
    recipe = variant(optimizer=optimizer, lr=0.001 if optimizer == "adam" else 0.03, num_epochs=3)
    freeze = lambda net: net.apply(use_moving_statistics)  # noqa: E731
    train(tmp_path / "one", recipe, prepare=freeze)
    for cpus, step in ((before, 5), (after, None)):
        stop = before_update(step, send(signal.SIGTERM)) if step else None
        train(tmp_path / "both", dataclasses.replace(recipe, cpus=cpus), stop, freeze)
    one, both = (choose_checkpoint(tmp_path / name)[0] for name in ("one", "both"))
    for file, kinds in (("net.params", "arg:"), ("training.params", "optimizer:")):
        expected, found = (mx.nd.load(str(path / file)) for path in (one, both))
        names = [name for name in expected if name.startswith(kinds)]
        assert len(names) >= 23
        for name in names:
            assert relative(found[name].asnumpy(), expected[name].asnumpy(), 1e-3) < 1e-4, name
    for one, both in zip(
        outcome(tmp_path / "one")["metrics"], outcome(tmp_path / "both")["metrics"]
    ):
        if "epoch" in one:
            assert both.pop("engine") == one.pop("engine")
            assert both == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_statistics_go_on_from_the_devices_mean(tmp_path, before, after):
    folder = tmp_path / "run"
    train(folder, variant(cpus=before), before_update(1, send(signal.SIGTERM)))
    saved = mx.nd.load(str(checkpoints(folder)[-1] / "net.params"))["aux:bn0_moving_mean"]
    train(folder, variant(cpus=after, checkpoint_every="1"), before_update(3, kill))
    arrays = mx.nd.load(str(checkpoints(folder)[-1] / "training.params"))
    found = [array.asnumpy() for name, array in arrays.items() if "bn0_moving_mean" in name]
    assert len(found) == after
    for device in found:  # one step away: 0.9 of what it was, and a tenth of its batch's
        assert 0 < relative(device, saved.asnumpy()) < 2
        assert relative(device, 0.9 * saved.asnumpy()) > 0
    train(folder, variant(cpus=before))
    assert [m["epoch"] for m in read_metrics(folder) if "epoch" in m] == [1, 2]


def test_devices_that_make_other_batches_are_refused_before_anything_is_changed(tmp_path):
    """Three devices can't share a last batch of two images; the one before it takes them."""
    dataset = data.load("synthetic", image_size=8, train_count=20, test_count=14)
    folder = tmp_path / "run"
    train(folder, variant(cpus=1), before_update(5, send(signal.SIGTERM)), dataset=dataset)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="device"):
        train(folder, variant(cpus=3), dataset=dataset)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert train(folder, variant(cpus=2), dataset=dataset)["epoch"] == 2


# -- What ends a run -------------------------------------------------------------------------------


def test_a_second_signal_acts_as_usual(tmp_path, in_peace):
    # A shell starts what runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def interrupt(patch):
        os.kill(os.getpid(), signal.SIGTERM)
        while signal.getsignal(signal.SIGINT) != handlers[1]:  # two may come in either order
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        # Another thread may get it, and Python raise it a moment later: in the destructor of an
        # array it would be lost.
        for _ in range(10_000):
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", variant(checkpoint_every="2"), before_update(3, interrupt))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    signal.signal(signal.SIGINT, before)
    assert choose_checkpoint(tmp_path / "run")[1].step == 2
    train(tmp_path / "run")
    assert differences(outcome(tmp_path / "run"), outcome(in_peace)) == []


@pytest.mark.parametrize(("every", "good"), [("10m", 4), ("1", 5)])
def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path, every, good):
    """After update 5 the parameters are finite, but no good: the next loss says so."""
    recipe = variant(lr=1e31, warmup_lr=0.01, warmup_steps=5, checkpoint_every=every, keep=9)
    with pytest.raises(UserError) as error:
        train(tmp_path / "run", recipe)
    # Whether it is nan or inf depends on the processor's kernels.
    assert str(error.value).replace("loss is inf", "loss is nan") == (
        "the loss is nan at step 6 with learning rate 1e+30; try a smaller --lr; the last good "
        f"checkpoint is {tmp_path / 'run' / 'checkpoints' / f'step-{good:08d}'}"
    )
    for path in checkpoints(tmp_path / "run"):
        for file in ("net.params", "training.params"):
            arrays = mx.nd.load(str(path / file)).values()
            assert all(np.isfinite(array.asnumpy()).all() for array in arrays)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    """The last update of an epoch overflows: no loss after it tells."""
    recipe = variant(lr=3e38, warmup_lr=0.01, warmup_steps=3, checkpoint_every="2")
    with pytest.raises(UserError, match="a parameter is not finite after step 3") as error:
        train(tmp_path / "run", recipe)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002"]
    assert str(error.value).endswith("step-00000002")


# -- Which checkpoints there are -------------------------------------------------------------------

ERRORS = (50.0, 20.0, 40.0, 20.0, 30.0)  # test error after each epoch; the second is the best


@pytest.fixture
def graded(monkeypatch, tmp_path):
    """A function that trains five epochs with these test errors, and returns the run's folder."""

    def train_graded(**changes):
        errors = iter(ERRORS)
        monkeypatch.setattr(loop, "evaluate", lambda *args: {"loss": 1.0, "error": next(errors)})
        train(tmp_path / "run", variant(num_epochs=5, **changes))
        return tmp_path / "run"

    return train_graded


@pytest.mark.parametrize(
    ("keep", "every", "kept"),
    [
        (1, "10m", [8, 20]),
        (2, "10m", [8, 16, 20]),
        (4, "10m", [8, 12, 16, 20]),
        (9, "10m", [4, 8, 12, 16, 20]),
        (3, "3", [8, 16, 18, 20]),
    ],
)
def test_the_best_checkpoint_and_the_last_ones_are_kept(graded, keep, every, kept):
    folder = graded(keep=keep, checkpoint_every=every)
    assert [int(path.name[5:]) for path in checkpoints(folder)] == kept
    assert json.loads((checkpoints(folder)[-1] / "state.json").read_text())["best"] == {
        "step": 8,
        "epoch": 2,
        "test_error": 20.0,
    }


@pytest.mark.parametrize(("patience", "epochs"), [(0, 5), (1, 3), (2, 4), (3, 5), (4, 5)], ids=str)
def test_a_run_ends_after_so_many_epochs_without_a_better_one(graded, capfd, patience, epochs):
    """The second epoch is the best; that the fourth is as good does not count."""
    folder = graded(patience=patience)
    assert [record["epoch"] for record in read_metrics(folder) if "epoch" in record][-1] == epochs
    early = f"no better test error in {patience} (--patience) than 20.00 % of epoch 2"
    told = [f"ends after epoch {epochs} of 5: {early}"] if epochs < 5 else []
    assert [line for line in capfd.readouterr().out.splitlines() if "ends" in line] == told
    before = outcome(folder)
    again = train(folder, variant(num_epochs=5, patience=patience))  # it is at its end already
    assert again["epoch"] == epochs
    assert differences(outcome(folder), before) == []
    assert capfd.readouterr().out.splitlines() == told


def test_a_run_that_ended_early_goes_on_with_more_patience(graded, monkeypatch):
    folder = graded(patience=1)
    errors = iter(ERRORS[3:])
    monkeypatch.setattr(loop, "evaluate", lambda *args: {"loss": 1.0, "error": next(errors)})
    assert train(folder, variant(num_epochs=5, patience=3))["epoch"] == 5
    assert json.loads((folder / "recipe.json").read_text())["patience"] == 3


def test_patience_is_counted_over_interruptions(tmp_path, monkeypatch):
    recipe, errors = variant(num_epochs=5, patience=2), iter(ERRORS)
    monkeypatch.setattr(loop, "evaluate", lambda *args: {"loss": 1.0, "error": next(errors)})
    train(tmp_path / "run", recipe, before_update(3 * STEPS + 1, kill))
    assert train(tmp_path / "run", recipe)["epoch"] == 4


def test_a_recipe_says_which_checkpoint_is_exported(graded, tmp_path):
    folder = graded(export="best")
    assert export_run(folder).manifest.details["step"] == 8
    assert export_run(folder, tmp_path / "last", "last").manifest.details["step"] == 20


def test_best_last_and_numbered_checkpoints_can_be_exported(graded, tmp_path):
    folder = graded(keep=2)
    for which, step in (("best", 8), ("last", 20), ("16", 16), ("0016", 16)):
        artifact = export_run(folder, tmp_path / which, checkpoint=which)
        assert artifact.manifest.details["step"] == step
        assert artifact.manifest.details["metrics"]["epoch"] == step // STEPS
        saved = mx.nd.load(str(folder / "checkpoints" / f"step-{step:08d}" / "net.params"))
        exported = mx.nd.load(str(artifact.params))
        assert np.array_equal(
            exported["arg:fc1_weight"].asnumpy(), saved["arg:fc1_weight"].asnumpy()
        )
    for which in ("12", "worst", "-1", "", "8.0"):
        with pytest.raises(UserError, match="choose last, best or a step"):
            export_run(folder, tmp_path / "none", checkpoint=which)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("3", [3, 4, 6, 8]),
        ("1", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("99", [4, 8]),
        ("2m", [2, 4, 6, 8]),
        ("1.5m", [2, 4, 6, 8]),
        ("3m", [3, 4, 7, 8]),  # counted from the checkpoint before
    ],
)
def test_checkpoints_come_every_so_many_steps_or_minutes(tmp_path, monkeypatch, every, expected):
    """Each step takes a minute here."""
    steps = {"done": 0}
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 60.0 * steps["done"]))

    class Slow(Step):
        def __call__(self, *args):
            steps["done"] += 1
            return super().__call__(*args)

    monkeypatch.setattr(loop, "Step", Slow)
    train(tmp_path / "run", variant(checkpoint_every=every, keep=99))
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "run")] == expected


def test_an_epochs_seconds_are_those_of_all_its_processes(tmp_path, monkeypatch):
    """Each step takes a minute here, too."""
    now = {"seconds": 0.0}
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now["seconds"]))

    class Slow(Step):
        def __call__(self, images, labels, step, *args):
            now["seconds"] += 60
            if step == 1 and not checkpoints(tmp_path / "run"):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(images, labels, step, *args)

    monkeypatch.setattr(loop, "Step", Slow)
    for _ in range(2):
        train(tmp_path / "run")
        now["seconds"] += 1000  # between the processes
    records = [record for record in read_metrics(tmp_path / "run") if "epoch" in record]
    assert [record["seconds"] for record in records] == [240, 240]
    assert [record["images_per_second"] for record in records] == [22 / 240, 22 / 240]


# -- Going on, or not ------------------------------------------------------------------------------


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_going_on_with_a_finished_run_changes_nothing(finished, capfd):
    before = contents(finished.folder)
    expected = read_metrics(finished.folder)[-1]
    assert train(finished.folder) == expected
    assert contents(finished.folder) == before
    assert capfd.readouterr() == ("", "")


def lr_drops(*steps, factor=0.5, **changes) -> Recipe:
    """Rates of few binary digits, so that one schedule's are exactly another's."""
    changes = {"lr": 0.125, "warmup_steps": 0, "mom": 0.5, **changes}
    return variant(lr_step_epochs=None, lr_steps=steps, lr_factor=factor, **changes)


EXTENDED = {
    "twice as many epochs": (variant(), variant(num_epochs=4), variant(num_epochs=4)),
    "steps for epochs": (
        variant(),
        variant(num_epochs=None, num_steps=12),
        variant(num_epochs=None, num_steps=12),
    ),
    # From 0.125 at step 7 to 0.0625 at step 8, where one schedule is all 0.125 and one all 0.0625.
    "another rate": (
        lr_drops(),
        lr_drops(lr=0.0625, num_epochs=3),
        lr_drops(8, num_epochs=3),
    ),
    "another rate, corrected momenta": (
        lr_drops(momentum_correction=True),
        lr_drops(lr=0.0625, num_epochs=3, momentum_correction=True),
        lr_drops(8, num_epochs=3, momentum_correction=True),
    ),
}


@pytest.mark.parametrize("case", EXTENDED)
def test_a_finished_run_goes_on_with_the_bits_of_a_longer_one(tmp_path, capfd, case):
    first, then, straight = EXTENDED[case]
    train(tmp_path / "long", straight)
    train(tmp_path / "run", first)
    capfd.readouterr()
    train(tmp_path / "run", then)
    assert capfd.readouterr().out.splitlines()[0].startswith("from step 8 on: --")
    found, expected = outcome(tmp_path / "run"), outcome(tmp_path / "long")
    assert found["state"].pop("recipe")["num_epochs"] == then.num_epochs
    del expected["state"]["recipe"]
    assert differences(found, expected) == []
    stored = Recipe.from_dict(json.loads((tmp_path / "run" / "recipe.json").read_text()))
    assert stored == dataclasses.replace(then, output=str(tmp_path / "run"))
    assert train(tmp_path / "run", stored)["step"] == 12 + 4 * (
        then.num_epochs == 4
    )  # is at its end


def test_another_rate_within_an_epoch(tmp_path, capfd):
    """Killed then, before a checkpoint says so: the step's old rate is still the old schedule's."""
    first = lr_drops(momentum_correction=True, num_epochs=3)
    then = dataclasses.replace(first, lr=0.0625)
    train(tmp_path / "run", first, before_update(5, send(signal.SIGTERM)))  # ends after step 6
    for step in (7, None):
        train(tmp_path / "run", then, before_update(step, kill) if step else None)
    assert capfd.readouterr().out.count("from step 6 on: --lr 0.0625, instead of --lr 0.125\n") == 2
    train(tmp_path / "long", lr_drops(6, momentum_correction=True, num_epochs=3))
    found, expected = (outcome(tmp_path / name) for name in ("run", "long"))
    del found["state"]["recipe"], expected["state"]["recipe"]
    assert differences(found, expected) == []


def test_a_run_that_ended_within_an_epoch_goes_on_there(tmp_path):
    """But for what its epoch's record says of training, which begins where it ended."""
    for name, lengths in (("run", (6, 12)), ("long", (12,))):
        for steps in lengths:
            train(tmp_path / name, variant(num_epochs=None, num_steps=steps))
    found, expected = (outcome(tmp_path / name) for name in ("run", "long"))
    for one in (found, expected):
        del one["state"]["best"]  # it may be of what is no longer an end
        (record,) = (record for record in one["metrics"] if record.get("epoch") == 2)
        del record["train_loss"], record["train_error"]
    assert differences(found, expected) == []


@pytest.mark.parametrize(
    "changes", [{"lr": 0.01}, {"num_epochs": 1}, {"num_epochs": None, "num_steps": 7}]
)
def test_a_finished_run_needs_more_to_go_on(finished, changes):
    before = contents(finished.folder)
    with pytest.raises(UserError, match=r"has done 8 steps and .* name more --num-epochs or --"):
        train(finished.folder, variant(**changes))
    assert contents(finished.folder) == before


def test_what_fails_before_it_begins_leaves_no_folder(tmp_path):
    def fail(folder, resume=False, act=lambda run: None):
        with contextlib.suppress(UserError), Run(variant(output=str(folder)), resume=resume) as run:
            act(run)
            raise UserError("no")

    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        fail(tmp_path / name)
        fail(tmp_path / name, resume=True)
        fail(tmp_path / name, act=lambda run: (run.folder / "events.out.tfevents.1.x").touch())
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []
    # Whatever has been done, or had been before, stays.
    fail(tmp_path / "new", act=lambda run: run.log(step=1, loss=1.0))
    assert sorted(os.listdir(tmp_path / "new")) == ["metrics.jsonl", "recipe.json"]
    Run(variant(output=str(tmp_path / "killed"))).close()
    fail(tmp_path / "killed", resume=True)
    assert os.listdir(tmp_path / "killed") == ["recipe.json"]


def test_two_processes_do_not_train_in_one_folder(finished):
    recipe = variant(output=str(finished.folder))
    first = Run(recipe, resume=True)
    before = contents(finished.folder)
    with pytest.raises(UserError, match="in use"):
        Run(recipe, resume=True)
    assert contents(finished.folder) == before
    first.close()
    Run(recipe, resume=True).close()


def test_another_data_set_or_network_is_refused_before_anything_is_changed(finished):
    folder = finished.folder
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lr": 1, "loss": 1, "images_per_second": 1}\n')
    before = contents(folder)
    larger = data.load("synthetic", image_size=8, train_count=40)
    with pytest.raises(UserError, match="steps in an epoch"):
        train(folder, dataset=larger)
    with pytest.raises(UserError, match="started with --model preact8, not with --model preact14"):
        train(folder, variant(model="preact14"))
    assert contents(folder) == before


def test_a_run_that_was_killed_before_it_began_can_begin(tmp_path, in_peace):
    """Its folder is there, and a recipe half written."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".recipe.json.1234.json").write_text('{"model"')
    assert train(folder)["epoch"] == 2
    assert differences(outcome(folder), outcome(in_peace)) == []


# -- As a user sees it -----------------------------------------------------------------------------


def test_signals_end_a_run_whose_words_go_on_with_it(tmp_path):
    """One process gets SIGTERM; another, started with what it printed, SIGINT."""
    options = "--dataset digits --image-size 8 --model preact8 --unit basic --batch-size 50"
    options += " --num-epochs 9 --optimizer nag --warmup-steps 9 --checkpoint-every 9999"
    verb = ("-m", "gluon_resnetv2", "train")
    command = [sys.executable, "-W", "error", *verb, *options.split(), "--output", "a run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for number, epoch in ((signal.SIGTERM, 1), (signal.SIGINT, 2)):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stdout:
            if line.startswith(f"epoch {epoch}/"):
                process.send_signal(number)
                break
        printed, complaints = process.communicate(timeout=120)
        assert (process.returncode, warnings_in(complaints)) == (3, [])
        step = int(checkpoints(tmp_path / "a run")[-1].name[5:])
        assert 29 * epoch < step < 29 * (epoch + 1)  # digits have 29 steps of 50
        words = shlex.split(printed.splitlines()[-1].partition("go on with: ")[2])
        assert words[0] == sys.executable
        command = [sys.executable, "-W", "error", *words[1:]]
    records = read_metrics(tmp_path / "a run")
    assert [record["epoch"] for record in records if "epoch" in record] == [1, 2]
    assert [record["step"] for record in records if "epoch" not in record] == [50]


TINY = (
    *("--dataset", "synthetic", "--image-size", "8", "--model", "preact8", "--unit", "basic"),
    *("--num-epochs", "1", "--output", "run"),
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_verifying_is_a_line(tmp_path, monkeypatch, capfd, number):
    monkeypatch.chdir(tmp_path)
    trained = (Path("run"), {}, Workers("device"))
    monkeypatch.setattr("gluon_resnetv2.training.main.train_network", lambda *_: trained)
    monkeypatch.setattr(
        "gluon_resnetv2.exports.export.export_run", lambda folder, checkpoint: folder
    )
    monkeypatch.setattr(
        "gluon_resnetv2.exports.verify.report", lambda _: send(number)(None) or time.sleep(60)
    )
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as by a shell's `&`
    try:
        parser = cli.Parser()
        train_command.add_options(parser)
        assert train_command.run(parser.parse_args(["--dataset", "digits"])) == 3
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGTERM) == before
    printed, complaints = capfd.readouterr()
    assert complaints == ""
    (line,) = printed.splitlines()
    assert line.startswith("stopped; go on with: ")
    assert line.endswith(" --resume run")


@pytest.mark.slow
def test_a_run_stopped_while_verifying_leaves_nothing_running(tmp_path):
    command = [sys.executable, str(ROOT / "train/cifar.py"), *TINY]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "run/export/manifest.json").exists() or not running(process.pid):
            assert time.monotonic() < until
            time.sleep(0.05)
        left = running(process.pid)
        process.terminate()
        printed, _ = process.communicate(timeout=20)
    assert process.returncode == 3
    assert printed.splitlines()[-1].startswith("stopped; go on with: ")
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    again = shlex.split(printed.splitlines()[-1].partition("go on with: ")[2])
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verified: " in done.stdout


@pytest.mark.slow
def test_a_verification_that_is_ended_says_so_and_leaves_nothing_running():
    export = ROOT / "tests/fixtures/v0.1/fused"
    command = [sys.executable, "-m", "gluon_resnetv2", "verify", str(export)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not (left := [pid for pid in running(process.pid) if is_python(pid)]):
            assert time.monotonic() < until
            time.sleep(0.05)
        process.terminate()
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told.strip()) == (130, "interrupted")
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def is_python(pid: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return sys.executable.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def running(parent: int) -> list[str]:
    """The processes that a process has started from any of its threads."""
    lists = Path(f"/proc/{parent}/task").glob("*/children")
    return [pid for path in lists for pid in path.read_text().split()]
