"""Puts wrong changes into a copy of the code, one at a time, and tells which ones the tests notice.

    python tests/wrong_changes.py [WORD ...]

runs those whose description has one of the words, or all. Each has survived the tests once, or is
of the same kind: a wrong number without an error. Exits with 1 if one survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Change(NamedTuple):
    """`old` becomes `new` in `file`; the tests in `test` that match `only` have to notice."""

    what: str
    file: str
    old: str
    new: str
    test: str
    only: str


CHANGES = (
    Change(
        "a served form that is 0.1 % off passes",
        "engines/reference.py", "ELSEWHERE = 10 ", "ELSEWHERE = 100 ",
        "test_artifact.py", "ten_times_the_tolerance",
    ),
    Change(
        "plain nets whose F ends in a BN start at zero",
        "unit.py", "if self.has_shortcut and isinstance(block, BatchNorm)",
        "if isinstance(block, BatchNorm)",
        "test_precision.py", "never_learn",
    ),
    Change(
        "the beta of an input BN that learns nothing counts",
        "spec.py", 'self.in_channels * (self.input_bn == "shift")',
        'self.in_channels * (self.input_bn != "off")',
        "test_spec.py", "only_a_shift_is_learned",
    ),
    Change(
        "a short last batch counts devices that had no share",
        "training/statistics.py", "parameter.list_data()[: len(images)]", "parameter.list_data()",
        "test_training.py", "fewer_devices",
    ),
    Change(
        "the aspect ratio is never swapped",
        "data/imagenet/augment.py", "            box.reverse()", "            pass",
        "test_imagenet_training.py", "high_as_wide",
    ),
    Change(
        "segments of a recomputed network do not wait for each other",
        "memory.py", "                    gradient.wait_to_read()", "                    pass",
        "test_memory.py", "segment_waits",
    ),
    Change(
        "two dropouts of a step share their mask",
        "engines/native/trunk.cc",
        "mixed(uint64_t(seed_) << 32 | place)", "mixed(uint64_t(seed_) << 32)",
        "test_native.py", "drop_differently",
    ),
    Change(
        "an addition is fused into a convolution that others read",
        "engines/native/program.py", " or not self._has_one_reader(residual):", ":",
        "test_native.py", "takes_no_addition_in",
    ),
    Change(
        "a converted network is given another std",
        "interop/torch.py", '"std": [63.0, 62.1, 66.7]', '"std": [63.0, 62.1, 60.7]',
        "test_interop.py", "prepared_as_the_source",
    ),
    Change(
        "label smoothing sums over the classes",
        "training/step.py", "smoothing * log_probability.mean(axis=1)",
        "smoothing * log_probability.sum(axis=1)",
        "test_step.py", "",
    ),
    Change(
        "mixup weighs the two images the other way round",
        "training/step.py", "weight * loss - (1 - weight) *", "(1 - weight) * loss - weight *",
        "test_step.py", "",
    ),
    Change(
        "CutMix counts the part of its box that lies outside",
        "training/step.py", "1 - cut / mixed[0, 0].size", "weight",
        "test_step.py", "cutmix_takes",
    ),
    Change(
        "the weights' average reads statistics that are still being written",
        "training/average.py", "            _move(found, found, 0)", "            pass",
        "test_average.py", "ends_with_the_average",
    ),
    Change(
        "the learning rate falls a step late",
        "training/schedule.py", "step >= boundary for", "step > boundary for",
        "test_recipe.py", "",
    ),
    Change(
        "a gate lets through what it should hold back",
        "unit.py", "shortcut * (1 - gate)", "shortcut * gate",
        "test_oracle.py", "",
    ),
    Change(
        "weights start with half of He's variance",
        "net.py", "factor_type=fan, slope=0)", "factor_type=fan, slope=1)",
        "test_net.py", "",
    ),
    Change(
        "recalibrated statistics keep the momentum's part",
        "training/statistics.py", " / (1 - momentum)", "",
        "test_training.py", "recalibrated",
    ),
    Change(
        "the short last batch's gradient is divided by a whole batch's size",
        "training/loop.py", "self.update(images, labels, self.step, count, wait)",
        "self.update(images, labels, self.step, recipe.batch_size, wait)",
        "test_training.py", "training_counts",
    ),
    Change(
        "an epoch's record has the next step's learning rate",
        "training/loop.py", '"lr": self.lr_at(self.step - 1)', '"lr": self.lr_at(self.step)',
        "test_training.py", "leaves_behind",
    ),
    Change(
        "grey of 16 bits is divided by 256",
        "pixels.py", "(values // 257)", "(values // 256)",
        "test_images.py", "sixteen",
    ),
    Change(
        "a widened shortcut has its zeros before its channels",
        "layers.py", "F.concat(x, *[F.zeros_like(x) for _ in range(copies - 1)], dim=1)",
        "F.concat(*[F.zeros_like(x) for _ in range(copies - 1)], x, dim=1)",
        "test_oracle.py", "float64",
    ),
    Change(
        "gammas and betas decay with the weights",
        "training/optimizer.py", 'float(name.endswith("weight"))',
        'float(not name.endswith("bias"))',
        "test_step.py", "decay",
    ),
    Change(
        "momenta are corrected the wrong way",
        "training/optimizer.py", "momentum *= lr / last", "momentum *= last / lr",
        "test_step.py", "torch",
    ),
    Change(
        "an update forgets the loss scale",
        "training/step.py", "self._update(count * scale)", "self._update(count)",
        "test_step.py", "scaled",
    ),
    Change(
        "the parts of an accumulated batch share their dropout masks",
        "training/step.py", "losses_of, seed + round_)", "losses_of, seed)",
        "test_step.py", "",
    ),
    Change(
        "of ten crops one corner counts twice",
        "data/imagenet/images.py", "(right, 0), (0, bottom)", "(right, 0), (right, 0)",
        "test_imagenet.py", "plain_loop",
    ),
    Change(
        "images move less to one side than to the other",
        "data/augment.py", "rng.integers(0, 2 * pad + 1,", "rng.integers(0, 2 * pad,",
        "test_data_augment.py", "",
    ),
    Change(
        "the noise of colours is along other axes",
        "data/imagenet/augment.py", "EIGENVECTORS @ (", "EIGENVECTORS.T @ (",
        "test_imagenet_training.py", "colour",
    ),
    Change(
        "a converted network is given blue's mean for red",
        "interop/mxnet.py", "(123.68, 116.779, 103.939)", "(103.939, 116.779, 123.68)",
        "test_interop.py", "prepared_as_in",
    ),
    Change(
        "a run's export forgets which part of an image is used",
        "exports/export.py", "for key in PREPARING)", 'for key in ("mean", "std"))',
        "test_training.py", "export_says",
    ),
    Change(
        "the best epoch of a comparison is the one that fits best",
        "training/compare.py", 'record: record["test_error"]', 'record: record["train_error"]',
        "test_compare.py", "tells_what_differs",
    ),
    Change(
        "curves take a last epoch that was cut short for a whole one",
        "training/curves.py", 'epochs[0]["step"] / epochs[0]', 'epochs[-1]["step"] / epochs[-1]',
        "test_compare.py", "as_long_as",
    ),
    Change(
        "a rate falls at the end of an epoch that is not whole",
        "training/recipe.py", "round(epochs * steps_per_epoch)", "round(epochs) * steps_per_epoch",
        "test_recipe.py", "not_be_whole",
    ),
    Change(
        "a server's optimiser decays once for each worker",
        "distributed/server_optimizer.py", "optimizer.wd /= count", "pass",
        "test_distributed.py", "optimizer_has",
    ),
    Change(
        "a server's learning rate is an update ahead",
        "distributed/server_optimizer.py", "max(num_update - 1, 0)", "num_update",
        "test_distributed.py", "optimizer_has",
    ),
    Change(
        "int8 has the ranges of the last images alone",
        "engines/forms.py", "ends[..., 0].min(axis=0), ends[..., 1].max(axis=0)",
        "ends[-1, :, 0], ends[-1, :, 1]",
        "test_forms.py", "ranges",
    ),
    Change(
        "weights are read where others have been made since",
        "engines/native/trunk.cc",
        "copy(made_, given, made.values = pool_.keep(desc));", "made.values = given;",
        "test_native.py", "infer_as_float64",
    ),
    Change(
        "a normalisation is folded with its mean unscaled",
        "engines/forms.py", "names[2]: beta - mean * gamma}", "names[2]: beta - mean}",
        "test_forms.py", "float32_forms",
    ),
    Change(
        "answers of a shared batch go to other requests",
        "serving/batching.py", "for array in arrays[:-1]]", "for array in arrays[:0:-1]]",
        "test_batching.py", "",
    ),
)  # fmt: skip


def noticed(change: Change) -> bool:
    """Whether the tests fail with the change."""
    with tempfile.TemporaryDirectory() as copy:
        tracked = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        for name in tracked.split("\0")[:-1]:
            if (ROOT / name).is_file():
                target = Path(copy, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        path = Path(copy, "gluon_resnetv2", change.file)
        text = path.read_text(encoding="utf-8")
        if text.count(change.old) != 1:
            raise SystemExit(f"{change.file} has not once: {change.old}")
        path.write_text(text.replace(change.old, change.new), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": copy}
        if change.file.startswith(
            "engines/native/"
        ):  # what is compiled is of no use to anybody else
            environment["XDG_CACHE_HOME"] = copy
        command = ["-m", "pytest", "-q", "-n", "0", "-x", f"tests/{change.test}", "-k", change.only]
        done = subprocess.run(
            [sys.executable, "-W", "error", *command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):  # no test ran, or pytest broke
            raise SystemExit(done.stdout + done.stderr)
        return done.returncode == 1


def main(words: list[str]) -> int:
    """Runs the changes that match `words`; returns the exit status."""
    chosen = [one for one in CHANGES if not words or any(word in one.what for word in words)]
    survived = 0
    for change in chosen:
        told = noticed(change)
        survived += not told
        print(f"{'noticed ' if told else 'SURVIVED'} {change.what}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
