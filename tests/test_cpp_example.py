"""The C++ example computes what Python computes, and answers what goes wrong with one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import data
from gluon_resnetv2.engines.images import read_image
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.exports.export import Form, export
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.pixels import ORIENTATION
from gluon_resnetv2.spec import named
from tests.common import randomise
from tests.pictures import picture, write_pictures

SOURCE = Path(__file__).parents[1] / "examples" / "cpp"
TOOLS = ("cmake", "c++", "pkg-config")
LIBRARIES = ("libpng", "libturbojpeg", "nlohmann_json")
PACKAGES = "cmake g++ pkg-config libpng-dev libturbojpeg0-dev nlohmann-json3-dev"
SIZE = 16
LOGITS = Form()


def missing() -> list[str]:
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    if tools:
        return tools
    return [
        name for name in LIBRARIES if subprocess.run(["pkg-config", "--exists", name]).returncode
    ]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The example, built as its README says."""
    if missing():
        pytest.skip(f"{', '.join(missing())} not found; on Debian: apt install {PACKAGES}")
    build = tmp_path_factory.mktemp("build")
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    for command in (["cmake", "-S", SOURCE, "-B", build, python], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr.lower()
    return build / "predict"


def run(program, symbol, params, image) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "MXNET_SUBGRAPH_BACKEND"}
    command = [str(argument) for argument in (program, symbol, params, image)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def top(program, artifact, image) -> list[tuple[str, float]]:
    done = run(program, artifact.symbol, artifact.params, image)
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ", 1) for line in done.stdout.splitlines()]
    return [(name, float(probability)) for probability, name in rows]


def assert_same(found, expected, tolerance=1e-6, what=""):
    assert [name for name, _ in found] == [name for name, _ in expected], what
    probabilities = [[probability for _, probability in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*probabilities, rtol=0, atol=tolerance, err_msg=what)


def exported(folder, form=LOGITS, channels=3, **options):
    """A random network, whose probabilities are far from 0 and 1: they show each difference."""
    net = ResNetV2(named("preact8", unit="basic", in_channels=channels))
    randomise(net)
    names = [f"Zahl № {i}" for i in range(10)]
    statistics = {"mean": [80.0, 90.0, 100.0][:channels], "std": [160.0, 150.0, 140.0][:channels]}
    shape = (channels, SIZE, SIZE)
    return export(net, folder, shape, classes=names, form=form, **statistics, **options)


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(data.load("digits", image_size=SIZE).test.images[0]).save(path)
    return path


@pytest.mark.parametrize(
    "form",
    [LOGITS, Form(values="pixels", output="probabilities"), Form(fused=True)],
    ids=["logits", "probabilities of pixels", "fused"],
)
def test_a_digit_has_the_probabilities_that_python_gives_it(program, digit, tmp_path, form):
    artifact = exported(tmp_path / "export", form)
    predictor = Predictor(artifact, max_batch=1)
    (expected,) = predictor.top(predictor.read(digit)[None])
    assert 0.1 < expected[0][1] < 0.999
    assert_same(top(program, artifact, digit), expected)


@pytest.mark.parametrize("channels", [3, 1])
def test_images_are_read_as_python_does(program, tmp_path, channels):
    """In each encoding, turned each way, of its own size and scaled."""
    artifact = exported(tmp_path / "export", crop=0.875, channels=channels)
    predictor = Predictor(artifact, max_batch=1)
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_pictures(folder)
    for size in ((SIZE, SIZE), (301, 157), (40, 333), (11, 13), (144, 155)):
        name = "{}x{}".format(*size)
        picture(size).save(folder / f"{name}.png")
        picture(size).save(folder / f"{name}-progressive.jpg", progressive=True, subsampling=0)
        picture(size).convert("L").save(folder / f"{name}-grey.jpg")
        fading = picture(size)
        fading.putalpha(Image.linear_gradient("L").resize(size))
        fading.save(folder / f"{name}-fading.png")
    for turned in range(10):  # 1 to 8 are defined
        exif = Image.Exif()
        exif[ORIENTATION] = turned
        exif.endian = "<>"[turned % 2]
        picture((40, 20)).save(folder / f"turned-{turned}.jpg", exif=exif)
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    assert len(paths) == 4 * 9 + 5 * 4 + 10
    if channels == 1:  # is made of the same three
        paths = [path for path in paths if path.name.startswith(("wide-", "40x333"))]
    for path in paths:
        with Image.open(path) as image:  # Pillow scales some tall images in another order
            tolerance = 2e-3 if max(image.size) > 5 * min(image.size) else 1e-6
        (expected,) = predictor.top(predictor.read(path)[None])
        assert_same(top(program, artifact, path), expected, tolerance, path.name)


@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_images_are_scaled_as_mxnet_does(program, tmp_path, crop):
    """To a level, since OpenCV's weights are not as fine."""
    artifact = exported(tmp_path / "export", crop=crop, interpolation="opencv bilinear")
    predictor = Predictor(artifact, max_batch=1)
    for size in ((301, 157), (40, 333), (64, 64), (11, 13), (144, 171)):
        path = tmp_path / "picture.png"
        picture(size).save(path)
        (expected,) = predictor.top(predictor.read(path)[None])
        assert_same(top(program, artifact, path), expected, tolerance=2e-3)


def misfused(folder, verification):
    """A pair that MXNet's fusing backend computes wrongly: conv0 has a second reader."""
    conv = mx.sym.Convolution(
        mx.sym.var("data"), kernel=(3, 3), pad=(1, 1), num_filter=8, no_bias=True, name="conv0"
    )
    activated = mx.sym.relu(mx.sym.BatchNorm(conv, fix_gamma=False, name="bn0"))
    branch = mx.sym.Convolution(
        activated, kernel=(3, 3), pad=(1, 1), num_filter=8, no_bias=True, name="conv1"
    )
    pooled = mx.sym.mean(branch + conv, axis=(2, 3))
    symbol = mx.sym.FullyConnected(pooled, num_hidden=5, name="fc")
    shapes, _, statistics = symbol.infer_shape(data=(1, 3, SIZE, SIZE))
    rng = np.random.RandomState(0)
    arrays = {
        f"arg:{name}": mx.nd.array(rng.normal(0, 0.3, shape))
        for name, shape in zip(symbol.list_arguments(), shapes)
        if name != "data"
    }
    for name, shape in zip(symbol.list_auxiliary_states(), statistics):
        arrays[f"aux:{name}"] = mx.nd.array(rng.uniform(0.1, 0.5, shape))
    folder.mkdir()
    symbol.save(str(folder / "net-symbol.json"))
    mx.nd.save(str(folder / "net-0000.params"), arrays)
    described = {"name": "data", "shape": [3, SIZE, SIZE], "values": "normalised", "crop": 1}
    described.update(mean=[127.0] * 3, std=[60.0] * 3)
    manifest = {"format": 2, "output": "logits", "classes": list("abcde"), "input": described}
    if verification is not None:
        manifest["verification"] = [
            {"runtime": runtime, "passed": passed} for runtime, passed in verification.items()
        ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "net-symbol.json", folder / "net-0000.params"


def plain_top(symbol, params, image):
    block = mx.gluon.SymbolBlock(mx.sym.load(str(symbol)), [mx.sym.var("data", dtype="float32")])
    block.collect_params().load(str(params))
    inputs = (read_image(image, (3, SIZE, SIZE))[None] - 127) / 60
    (row,) = mx.nd.softmax(block(mx.nd.array(inputs))).asnumpy()
    return [("abcde"[i], row[i]) for i in np.argsort(-row, kind="stable")]


@pytest.mark.parametrize(
    ("verification", "right"),
    [
        (None, True),
        ({"C predict API": False, "C predict API, no fusion": True}, True),
        ({"C predict API": True, "C predict API, no fusion": True}, False),  # not what verify says
    ],
)
def test_only_what_was_verified_is_fused(program, digit, tmp_path, verification, right):
    symbol, params = misfused(tmp_path / "pair", verification)
    done = run(program, symbol, params, digit)
    found = [float(line.split()[0]) for line in done.stdout.splitlines()]
    expected = [probability for _, probability in plain_top(symbol, params, digit)]
    assert np.allclose(found, expected, rtol=0, atol=1e-6) == right


def test_what_was_verified_to_be_wrong_is_refused(program, digit, tmp_path):
    done = run(program, *misfused(tmp_path / "pair", {"C predict API, no fusion": False}), digit)
    assert_one_line(done, "manifest.json")


@pytest.mark.parametrize("options", [{"interpolation": "bicubic"}, {"stretch": True}])
def test_what_it_does_not_scale_is_refused(program, digit, tmp_path, options):
    artifact = exported(tmp_path / "export", **options)
    done = run(program, artifact.symbol, artifact.params, digit)
    assert_one_line(done, "manifest.json", "scaled")


def assert_one_line(done, *words):
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line[0] != "["]  # MXNet's log
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_what_goes_wrong_is_told_in_one_line(program, digit, tmp_path):
    artifact = exported(tmp_path / "export")
    symbol, params = artifact.symbol, artifact.params
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(digit.read_bytes()[:100])
    picture((64, 64)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:300])
    for name in ("text.png", "cut.png", "cut.jpg", "missing.png", "export"):
        assert_one_line(run(program, symbol, params, tmp_path / name), name)
    assert_one_line(run(program, symbol, tmp_path / "missing.params", digit), "missing.params")
    (tmp_path / "cut.params").write_bytes(params.read_bytes()[:1000])
    assert_one_line(run(program, symbol, tmp_path / "cut.params", digit), "MXNet")
    manifest = load(artifact.folder).manifest.to_dict()
    path = artifact.folder / "manifest.json"
    for text in ("", "{}", "[]", json.dumps({**manifest, "classes": ["one"]})):
        path.write_text(text)
        done = run(program, symbol, params, digit)
        assert_one_line(done, "manifest.json")
    path.unlink()
    assert_one_line(run(program, symbol, params, digit), "manifest.json")
    assert subprocess.run([program], capture_output=True).returncode == 2
