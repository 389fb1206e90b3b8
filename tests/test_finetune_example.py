"""examples/finetune, from images and weights made up here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.common import beside_torch
from tests.test_idx import encoded

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("random", "fine-tuned", "classifier")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four files like Fashion-MNIST's, of 12 and 2 images of each class."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for part, each in (("train", 12), ("t10k", 2)):
        labels = np.repeat(np.arange(10, dtype=np.uint8), each)
        noise = rng.integers(0, 100, (len(labels), 28, 28))
        pixels = (noise + 15 * labels[:, None, None]).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(encoded(pixels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(encoded(labels))
    return folder


def example(folder: Path, images: Path, *words: str) -> dict[str, dict]:
    """Runs it; the recipe of each run."""
    command = [sys.executable, str(ROOT / "examples/finetune/finetune.py"), *words]
    command += ["--data-dir", str(images), "--output", "out", "--images", "8"]
    done = subprocess.run(
        [*command, "--epochs", "1", "--fine-epochs", "1"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = re.findall(r"^(.+?) +(\d+\.\d\d) % test error$", done.stdout, re.MULTILINE)
    assert [name for name, _ in told] == ["random weights", "fine-tuned", "classifier only"]
    with Image.open(folder / "out" / "finetune.png") as figure:
        assert figure.width > 500
    return {name: json.loads((folder / "out" / name / "recipe.json").read_text()) for name in RUNS}


@pytest.mark.slow  # a minute
def test_from_seven_classes_to_three(images, tmp_path):
    recipes = example(tmp_path, images)
    assert {recipe["model"] for recipe in recipes.values()} == {"preact20"}
    seven = str(tmp_path / "out" / "seven")
    assert [recipes[name]["init_from"] for name in RUNS] == [None, seven, seven]
    assert recipes["classifier"]["freeze"] == "features"
    assert len(list((tmp_path / "out/images/three/train/Coat").iterdir())) == 12


@pytest.mark.slow  # a minute
def test_from_timms_layout(images, tmp_path):
    """As in the README, with random weights and smaller images."""
    timm, torch = beside_torch("timm"), pytest.importorskip("torch")
    net = timm.create_model("resnetv2_50")
    torch.save(net.state_dict(), tmp_path / "theirs.pth")
    recipes = example(tmp_path, images, "--init-from", "theirs.pth", "--image-size", "32")
    assert recipes["random"]["model"] == "preact20"
    assert not (tmp_path / "out" / "seven").exists()
    for name in RUNS[1:]:
        assert recipes[name]["init_from"] == str(tmp_path / "theirs.pth")
        assert recipes[name]["model"] == "preact50"
