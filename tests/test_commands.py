"""The commands as a user types them: what they print, leave behind and answer to mistakes."""

from __future__ import annotations

import csv
import json
import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gluon_resnetv2.engines import choice
from gluon_resnetv2.training.precision import cpu_has_bfloat16
from gluon_resnetv2.training.recipes import RECIPES
from tests.common import skip_unless_installed
from tests.imagenet_tree import corrupt, make_tree

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("--dataset", "synthetic", "--image-size", "8", "--model", "preact8"),
    *("--batch-size", "64", "--num-epochs", "1"),
)


def run(monkeypatch, capsys, *command):
    """Runs `train/cifar.py` or `-m gluon_resnetv2` here; returns its status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    start, target = (
        (runpy.run_module, "gluon_resnetv2")
        if command[0] == "gluon_resnetv2"
        else (runpy.run_path, str(ROOT / command[0]))
    )
    with pytest.raises(SystemExit) as exited:
        start(target, run_name="__main__")
    return exited.value.code, *capsys.readouterr()


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: run(monkeypatch, capsys, *words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, and what the script that made it printed."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    script = [sys.executable, "-W", "error", str(ROOT / "train/cifar.py"), *TINY]
    done = subprocess.run(
        [*script, "--output", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_training_ends_with_a_verified_export(trained):
    folder, printed = trained
    assert "epoch 1/1" in printed
    assert "verified: " in printed
    error = json.loads((folder / "metrics.jsonl").read_text())["test_error"]
    assert f"test accuracy {100 - error:.2f} %" in printed
    assert sorted(path.name for path in (folder / "export").iterdir()) == [
        "manifest.json",
        "preact8-0000.params",
        "preact8-symbol.json",
    ]
    manifest = json.loads((folder / "export" / "manifest.json").read_text())
    assert len(manifest["verification"]) == 9 + (not choice.native_library()[1])
    assert all(entry["passed"] for entry in manifest["verification"])


@pytest.mark.slow
def test_a_thousand_layers_train_two_steps_and_are_verified(command, tmp_path):
    words = "--model preact1001 --cpus 2 --batch-size 4 --dataset synthetic --output run"
    status, printed, _ = command("train/cifar.py", *words.split())
    assert status == 0
    assert "verified: " in printed
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["step"] == 2


def test_export_verify_and_predict(trained, command):
    folder, _ = trained
    before = (folder / "export" / "preact8-0000.params").read_bytes()
    assert command("gluon_resnetv2", "export", folder, "--output", "again")[0] == 0
    assert Path("again/preact8-0000.params").read_bytes() == before
    status, printed, _ = command("gluon_resnetv2", "verify", "again")
    assert (status, printed.splitlines()[-1][:8]) == (0, "verified")
    Image.new("L", (50, 40), 128).save("grey.png")
    status, printed, _ = command("gluon_resnetv2", "predict", folder, "grey.png", "grey.png")
    assert status == 0
    assert printed.count("grey.png") == 2
    assert printed.count(" %  class") == 10


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16")
def test_export_in_another_precision_calibrates_on_training_images(trained, command, tmp_path):
    folder, _ = trained
    words = ("--precision", "bfloat16", "--calibration-images", 8)
    status, _, errors = command("gluon_resnetv2", "export", folder, *words, "--output", "other")
    assert status == 0, errors
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    assert manifest["precision"] == "bfloat16"


def test_the_native_engine_verifies_and_predicts(trained, command, tmp_path):
    skip_unless_installed()
    folder, _ = trained
    status, printed, _ = command("gluon_resnetv2", "verify", folder, "--engine", "native")
    assert status == 0
    assert "ok      native engine " in printed
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    words = ("gluon_resnetv2", "predict", folder, tmp_path / "red.png")
    assert command(*words)[1] == command(*words, "--engine", "native")[1]


def test_the_native_engine_takes_a_fused_graph(trained, command, tmp_path):
    skip_unless_installed()
    folder, _ = trained
    assert command("gluon_resnetv2", "export", folder, "--fused", "--output", "other")[0] == 0
    status, printed, _ = command("gluon_resnetv2", "verify", "other", "--engine", "native")
    assert status == 0
    assert "ok      native engine " in printed
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    for verb in (("predict", "other", tmp_path / "red.png"), ("evaluate", "other")):
        status, _, errors = command("gluon_resnetv2", *verb, "--engine", "native")
        assert status == 0, errors


def test_recipes_say_what_to_expect(command):
    status, printed, _ = command("gluon_resnetv2", "recipes")
    assert status == 0
    trains = f"{sys.executable} -m gluon_resnetv2 train --recipe"
    assert printed.count("expected") == printed.count(trains) == len(RECIPES)
    assert "--recipe paper-cifar100\n" in printed
    assert "24.33" in printed


def test_evaluate_finds_the_error_that_training_found(trained, command):
    folder, _ = trained
    error = json.loads((folder / "metrics.jsonl").read_text())["test_error"]
    for words in ((folder,), (folder / "export",), (folder, "--cpus", "3", "--batch-size", "7")):
        status, printed, _ = command("gluon_resnetv2", "evaluate", *words)
        assert status == 0
        assert printed.startswith(f"error {error:.2f} %\ntop-5 error ")


def test_evaluate_writes_a_report_once(trained, command):
    folder, _ = trained
    status, printed, _ = command("gluon_resnetv2", "evaluate", folder, "--report", "report")
    assert status == 0
    assert printed.splitlines()[-1] == "report report/report.html"
    error = float(printed.split()[1])
    with open("report/per_class.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = sum(int(row["images"]) for row in rows)
    right = sum(int(row["right"]) for row in rows)
    assert 100 - 100 * right / images == pytest.approx(error, abs=0.005)
    before = Path("report/report.html").read_bytes()
    status, printed, told = command("gluon_resnetv2", "evaluate", folder, "--report", "report")
    assert (status, printed, told.count("\n")) == (2, "", 1)
    assert "report exists" in told
    assert Path("report/report.html").read_bytes() == before


def test_compare_overlays_runs(trained, command):
    folder, _ = trained
    status, printed, _ = command("gluon_resnetv2", "compare", folder, folder)
    assert status == 0
    assert printed.count("preact8") == 2
    with Image.open("compare.png") as picture:
        assert picture.size[0] > 500


def test_imagenet_from_folders_and_from_recordio(command, tmp_path):
    tree = make_tree(tmp_path / "tree")
    words = "--model preact8 --image-size 32 --batch-size 12 --num-epochs 1 --lr 0.01 --cpus 2"
    status, printed, err = command(
        "train/imagenet.py", "--data-dir", tree, *words.split(), "--output", "run"
    )
    assert status == 0, err
    assert "verified: " in printed
    error = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["test_error"]
    for part in ("train", "val"):
        assert command("gluon_resnetv2", "pack", tree / part, f"packed/{part}.rec")[0] == 0
    for where in (tree, "packed"):
        words = ("run", "--data-dir", where, "--cpus", "3", "--batch-size", "7")
        status, printed, _ = command("gluon_resnetv2", "evaluate", *words)
        assert status == 0
        assert f"error {error:.2f} %" in printed
    words = ("run", "--crops", "10", "--report", "report")
    status, printed, _ = command("gluon_resnetv2", "evaluate", *words)
    assert status == 0
    with open("report/mistakes.csv", encoding="utf-8") as file:
        mistakes = list(csv.DictReader(file))
    assert all(Path(one["image"]).parent == tree / "val" / one["class"] for one in mistakes)
    wrong = len({one["image"] for one in mistakes if Path(one["image"]).is_file()})
    assert wrong == pytest.approx(25 * float(printed.split()[1]) / 100, abs=0.01)
    corrupt(tree / "val" / "eel" / "1.JPEG")
    for verb in (("evaluate", "run"), ("pack", tree / "val", "again.rec")):
        status, printed, line = command("gluon_resnetv2", *verb)
        assert (status, printed) == (2, "")
        assert "1.JPEG" in line
    words = ("--data-dir", tree, "--model", "preact8", "--image-size", "32", "--output", "new")
    status, _, line = command("train/imagenet.py", *words)
    assert (status, "1.JPEG" in line) == (2, True)
    assert not Path("again.rec").exists()
    assert not Path("new").exists()
    status, printed, _ = command("gluon_resnetv2", "evaluate", "run", "--leave-out")
    assert status == 0
    wrong = 24 * float(printed.split()[1]) / 100  # of 25 images one is left out
    assert abs(wrong - round(wrong)) < 0.01


def test_models_lists_the_papers_networks(command):
    status, printed, _ = command("gluon_resnetv2", "models")
    rows = [line.split() for line in printed.splitlines()]
    assert status == 0
    (row,) = [row for row in rows if row[0] == "preact164" and row[-3:] == ["[v2]", "Table", "2"]]
    assert row[1:4] == ["full_preact", "identity", "bottleneck"]
    assert row[4:9] == ["164", "1.70", "M", "0.245", "G"]
    rows = [" ".join(row) for row in rows]
    assert any("exclusive-gate:-6" in row and " 8.70 " in row for row in rows)


def test_the_verb_trains_any_data_set(command):
    words = "--model preact8 --unit basic --image-size 8 --batch-size 4 --num-steps 1 --output run"
    status, printed, _ = command(
        "gluon_resnetv2", "train", "--dataset", "synthetic", *words.split()
    )
    assert status == 0
    assert "verified: " in printed
    status, _, told = command(
        "gluon_resnetv2", "train", "--dataset", "imagenet", "--data-dir", "no"
    )
    assert (status, told.count("\n")) == (2, 1)
    assert "neither train.rec nor a folder train" in told


@pytest.mark.parametrize("words", [("train/cifar.py",), ("gluon_resnetv2", "train")], ids=str)
def test_help_names_every_option(command, words):
    status, printed, _ = command(*words, "--help")
    assert status == 0
    assert "--lr-step-epochs" in printed
    assert "(default: preact110)" in " ".join(printed.split())
    assert "None" not in printed


CIFAR = "train/cifar.py"
MISTAKES = {
    "unknown option": ((CIFAR, "--modle", "preact20"), "did you mean --model?"),
    "abbreviation": ((CIFAR, "--mod", "preact20"), "--mod"),
    "no number": ((CIFAR, "--lr", "fast"), "--lr"),
    "unknown choice": ((CIFAR, "--dataset", "cifar11"), "cifar11"),
    "impossible depth": ((CIFAR, "--model", "preact21"), "6n+2"),
    "impossible unit": ((CIFAR, "--model", "preact32", "--unit", "bottleneck"), "9n+2"),
    "unknown shortcut": ((CIFAR, "--shortcut", "gate"), "gate:BIAS"),
    "batch smaller than devices": ((CIFAR, "--batch-size", "3", "--cpus", "4"), "devices"),
    "no data": ((CIFAR, *TINY, "--data-dir", "here"), "data-dir"),
    "taken folder": ((CIFAR, *TINY, "--output", "."), "exists"),
    "folder that can't be made": ((CIFAR, *TINY, "--output", "/proc/run"), "/proc/run"),
    "no recipe": ((CIFAR, "--recipe", "mine"), "paper-cifar10"),
    "nothing to resume": ((CIFAR, "--resume", "nowhere"), "nowhere"),
    "two lengths": ((CIFAR, "--num-epochs", "1", "--num-steps", "2"), "--num-steps"),
    "float16 without GPU": ((CIFAR, *TINY, "--dtype", "float16"), "--gpus"),
    "no launcher": ((CIFAR, *TINY, "--kv-store", "dist_sync"), "launch"),
    "no images": (("train/imagenet.py",), "--data-dir"),
    "nowhere to evaluate": (("gluon_resnetv2", "evaluate", "nowhere"), "nowhere"),
    "nothing to pack": (("gluon_resnetv2", "pack", "nowhere", "a.rec"), "nowhere"),
    "nothing to compare": (("gluon_resnetv2", "compare", "nowhere"), "nowhere"),
    "no workers": (("gluon_resnetv2", "launch", "--workers", "0", "--", "true"), "--workers"),
    "no run": (("gluon_resnetv2", "export", "nowhere"), "nowhere"),
    "no export": (("gluon_resnetv2", "verify", "nowhere"), "nowhere"),
    "no shape": (("gluon_resnetv2", "verify", "x", "--shape", "3"), "--shape"),
    "unknown verb": (("gluon_resnetv2", "trian"), "trian"),
    "no verb": (("gluon_resnetv2",), "VERB"),
    "no image": (("gluon_resnetv2", "predict", "nowhere"), "image"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(command, tmp_path, mistake):
    (tmp_path / "taken").touch()
    words, says = MISTAKES[mistake]
    status, printed, line = command(*words)
    assert status == 2
    assert printed == ""
    assert says in line
    assert line.count("\n") == 1
    assert os.listdir(tmp_path) == ["taken"]


def test_gpus_are_refused_where_there_is_none(command, tmp_path):
    mx = pytest.importorskip("mxnet")
    if mx.context.num_gpus():
        pytest.skip("this machine has a GPU")
    status, _, line = command(CIFAR, *TINY, "--gpus", "0")
    assert status == 2
    assert "GPU" in line
    assert line.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_wrong_images_and_damaged_exports_get_one_line(trained, command):
    folder, _ = trained
    Path("text.png").write_text("no image")
    status, printed, line = command("gluon_resnetv2", "predict", folder, "text.png")
    assert (status, printed, line.count("error: "), line.count("\n")) == (2, "", 1, 2)
    assert line.startswith("engine ")
    assert "text.png" in line
    Image.new("L", (50, 40), 128).save("grey.png")
    words = ("text.png", "grey.png", "nowhere.png")
    status, printed, lines = command("gluon_resnetv2", "predict", folder, *words)
    assert (status, printed.splitlines()[0], lines.count("error: ")) == (2, "grey.png", 2)
    assert command("gluon_resnetv2", "export", folder, "--output", "again")[0] == 0
    Path("again/manifest.json").rename("manifest.json")
    status, _, line = command("gluon_resnetv2", "predict", "again", "grey.png", "grey.png")
    assert (status, line.count("no manifest.json")) == (2, 1)
    Path("manifest.json").rename("again/manifest.json")
    params = Path("again/preact8-0000.params")
    params.write_bytes(params.read_bytes()[:-1])
    for verb in (("verify", "again"), ("predict", "again", "text.png")):
        status, printed, line = command("gluon_resnetv2", *verb)
        assert (status, printed, line.count("\n")) == (2, "", 1)
        assert "preact8-0000.params" in line


@pytest.mark.parametrize("room", [100, 20_000])
def test_a_full_disk_gets_one_line_and_nothing_half_written(tmp_path, room):
    """Files larger than `room` bytes can't be written: the recipe, or the parameters."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train/cifar.py"), *TINY, "--output", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    left = sorted(
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if path.is_file() and "tfevents" not in path.name
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert left == ([] if room == 100 else ["run/metrics.jsonl", "run/recipe.json"])


def test_a_message_is_one_line_whatever_a_file_is_called(command):
    status, _, told = command("gluon_resnetv2", "verify", "no\nverified: \x1b[2J\udcff")
    assert status == 2
    assert told == (
        "error: no\\nverified: \\x1b[2J\\udcff does not exist; name an export's folder\n"
    )
