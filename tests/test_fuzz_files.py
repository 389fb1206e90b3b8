"""No file that a stranger damaged is more than refused in one line, soon, and within memory."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2.exports.export import export
from gluon_resnetv2.formats import weights
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.pixels import ENDINGS
from gluon_resnetv2.spec import named
from tests.common import randomise
from tests.fuzz_files import MOST, outcomes


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    net = ResNetV2(named("preact8", unit="basic"))
    randomise(net)
    folder = tmp_path_factory.mktemp("fuzz") / "export"
    described = {"classes": list("abcdefghij"), "mean": [120.0] * 3, "std": [60.0] * 3}
    return export(net, folder, (3, 16, 16), **described).folder


@pytest.fixture(scope="module")
def files(tmp_path_factory, exported):
    """A folder for each kind, of honest files."""
    folder = tmp_path_factory.mktemp("files")
    for kind in ("images", "weights", "manifests"):
        (folder / kind).mkdir()
    noise = np.random.RandomState(0).randint(0, 256, (9, 12, 3), "uint8")
    image, exif = Image.fromarray(noise).resize((40, 30)), Image.Exif()
    exif[0x0112] = 6
    for format, (suffix, *_) in ENDINGS.items():
        image.save(folder / "images" / f"plain{suffix}", format)
    image.save(folder / "images/progressive.jpg", progressive=True, exif=exif)
    image.convert("RGBA").save(folder / "images/alpha.png", exif=exif)
    image.quantize(64).save(folder / "images/palette.png", transparency=3)
    image.save(folder / "images/packed.tif", compression="tiff_lzw")
    rng = np.random.RandomState(0)
    arrays = {
        **{f"conv{i}.weight": rng.normal(size=(4, 3, 3, 3)).astype("float32") for i in range(9)},
        "half": rng.normal(size=20).astype("float16"),
        "count": np.array([7]),
    }
    for suffix in (".pth", ".safetensors"):
        weights.write(folder / "weights" / f"net{suffix}", arrays)
    arrays = {name: array for name, array in arrays.items() if array.dtype == "float32"}
    weights.write(folder / "weights/net.params", arrays)
    if importlib.util.find_spec("h5py"):
        from tests.test_interop_keras import archive, numbered_file, small_arrays

        weights.write(folder / "weights/net.h5", small_arrays())
        numbered_file(folder / "weights/net.h5", folder / "weights/net.weights.h5")
        archive(folder / "weights/net.keras", folder / "weights/net.weights.h5")
    shutil.copy(exported / "manifest.json", folder / "manifests")
    return folder


def assert_survived(folder, count, seed):
    found = outcomes(folder, count, seed)
    wrong = [
        line
        for line in found
        if line["lines"] > 1
        or line["growth"] > MOST
        or not (line["outcome"] == "read" or line["outcome"].startswith("refused: "))
    ]
    assert not wrong
    assert sum(line["outcome"] != "read" for line in found) > len(found) / 5


@pytest.fixture(autouse=True)
def beside_manifests(monkeypatch, exported):
    monkeypatch.setenv("EXPORT", str(exported))


@pytest.mark.parametrize("kind", ["images", "weights", "manifests"])
def test_damaged_files(files, kind):
    assert_survived(files / kind, 60 if kind == "manifests" else 20, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"), [("images", 500), ("weights", 700), ("manifests", 5000)]
)
def test_thousands_of_damaged_files(files, kind, count):
    assert_survived(files / kind, count, seed=1)
