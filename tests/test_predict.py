"""`predict` over files and folders: what it prints in each format, the features that it writes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import commands
from gluon_resnetv2.cli import one_line_errors
from gluon_resnetv2.engines.images import images_below
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import Form, export
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.formats.npy_file import Rows
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from gluon_resnetv2.training.precision import cpu_has_bfloat16
from tests.common import difference, randomise, skip_unless_installed

CLASSES = ('a "quoted", name', "<b>bold</b>", "кошка", "猫", "x y", "six", "seven")
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
NAMES = ("a b/1.png", 'a b/2, "two".png', "a b/кошка.jpg", "c.PNG")  # sorted


@pytest.fixture(scope="module")
def net():
    net = ResNetV2(named("preact8", unit="basic", classes=7))
    randomise(net, seed=2)  # whose classes int8 keeps
    return net


def write(net, folder, form=None):
    pixels = np.random.RandomState(3).randint(0, 256, (200, 3, 16, 16)).astype("uint8")
    about = {"classes": CLASSES, "mean": MEAN, "std": STD}
    return export(
        net, folder, (3, 16, 16), form=form or Form(), calibration=lambda: pixels, **about
    )


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory):
    return write(net, tmp_path_factory.mktemp("exports") / "export").folder


@pytest.fixture
def pictures(tmp_path):
    """A folder with `NAMES` and with what is left out."""
    folder, rng = tmp_path / "pictures", np.random.RandomState(0)
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (16, 16, 3), "uint8")).save(folder / name)
    (folder / ".hidden").mkdir()
    for name in (".hidden/1.png", ".2.png", "notes.txt", "a b/more.txt"):
        (folder / name).touch()
    os.mkfifo(folder / "pipe.png")
    (folder / "linked").symlink_to("a b")
    return folder


def expected(net, pictures):
    """Logits and features of the pictures, prepared by hand."""
    pixels = [np.asarray(Image.open(pictures / name), "float64") for name in NAMES]
    images = mx.nd.array(((np.stack(pixels) - MEAN) / STD).transpose(0, 3, 1, 2))
    features = net.features(images)
    return net.output(features).asnumpy(), features.asnumpy()


def predict(capsys, *words):
    words = ["predict", *map(str, words)]
    options = commands.parser(words).parse_args(words)
    try:
        with one_line_errors():
            status = options.action(options)
    except SystemExit as exited:
        status = exited.code
    return status, *capsys.readouterr()


def test_a_folder_is_all_images_below_it_and_what_is_left_out_is_named(pictures, capsys):
    assert images_below(pictures) == [str(pictures / name) for name in NAMES]
    told = capsys.readouterr().err
    assert told.startswith(f"{pictures}: left out are 2 of other endings ({pictures}/a b/more.txt")
    assert f"1 that are no files ({pictures}/pipe.png)" in told
    assert f"1 folders behind links ({pictures}/linked)" in told
    assert "hidden" not in told
    assert told.count("\n") == 1
    with pytest.raises(UserError, match="has no images; images end in"):
        images_below(_empty(pictures))


def _empty(pictures):
    (pictures / "empty").mkdir()
    return pictures / "empty"


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_each_format_says_the_same(net, exported, pictures, capsys, batch):
    logits, _ = expected(net, pictures)
    powers = np.exp(np.float64(logits))
    scores = powers / powers.sum(1, keepdims=True)
    right = [
        [(CLASSES[i], row[i]) for i in sorted(range(7), key=lambda i: -row[i])[:5]]
        for row in scores
    ]
    words = (exported, pictures, "--max-batch", batch, "--format")
    paths = [f"{pictures}/{name}" for name in NAMES]

    status, printed, _ = predict(capsys, *words, "csv")
    header, *rows = csv.reader(io.StringIO(printed))
    assert status == 0
    assert header == ["file", *(f"{what}{n}" for n in range(1, 6) for what in ("class", "score"))]
    assert [row[0] for row in rows] == paths
    assert [row[1::2] for row in rows] == [[name for name, _ in one] for one in right]
    found = np.array([row[2::2] for row in rows], "float64")
    np.testing.assert_allclose(found, [[score for _, score in one] for one in right], atol=1e-6)

    status, printed, _ = predict(capsys, *words, "json")
    lines = [json.loads(line) for line in printed.splitlines()]
    assert status == 0
    assert [line["file"] for line in lines] == paths
    told = [[(one["class"], one["score"]) for one in line["classes"]] for line in lines]
    assert [[name for name, _ in one] for one in told] == [row[1::2] for row in rows]
    np.testing.assert_allclose([[score for _, score in one] for one in told], found, atol=1e-6)

    status, printed, _ = predict(capsys, *words, "text")
    assert status == 0
    blocks = [
        [path, *(f"  {100 * score:6.2f} %  {name}" for name, score in one)]
        for path, one in zip(paths, right)
    ]
    assert printed.splitlines() == list(itertools.chain(*blocks))


@pytest.mark.parametrize("words", [("--format", "csv"), ("--features", "f.npy")], ids=str)
def test_the_others_are_done_where_some_are_damaged(
    exported, pictures, capsys, monkeypatch, tmp_path, words
):
    monkeypatch.chdir(tmp_path)
    (pictures / "a b" / "1.png").write_bytes(b"\x89PNG")
    asked = (exported, "gone.png", pictures, _empty(pictures), pictures / "c.PNG")
    status, printed, told = predict(capsys, *asked, "--max-batch", 2, *words)
    assert status == 2
    complaints = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(complaints) == 3
    assert "empty has no images" in complaints[0]
    assert "gone.png does not exist" in complaints[1]
    assert "1.png can't be read" in complaints[2] or "1.png is no image" in complaints[2]
    if words[0] == "--features":
        assert printed == ""
        printed = (tmp_path / "f.csv").read_text(encoding="utf-8")
        assert np.load("f.npy").shape == (4, 64)
    _, *rows = csv.reader(io.StringIO(printed))
    assert [row[0] for row in rows] == [
        *(f"{pictures}/{name}" for name in NAMES[1:]),
        f"{pictures}/c.PNG",
    ]


FORMS = [
    Form(),
    Form("pixels", "probabilities", "float32", True),
    pytest.param(
        Form(precision="bfloat16"),
        marks=pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16"),
    ),
    Form("pixels", "probabilities", "int8"),
]
NEAR = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_features_are_what_the_classifier_reads(net, pictures, capsys, tmp_path, form):
    folder = write(net, tmp_path / "export", form).folder
    file = tmp_path / "features.npy"
    words = (folder, pictures, "--features", file, "--max-batch", 3)
    assert predict(capsys, *words)[:2] == (0, "")
    _, features = expected(net, pictures)
    found = np.load(file)
    assert found.dtype == np.float32
    assert difference(found, features) < NEAR[form.precision]
    with open(tmp_path / "features.csv", encoding="utf-8", newline="") as table:
        assert list(csv.reader(table)) == [["file"], *([f"{pictures}/{name}"] for name in NAMES)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_predictor_computes_in_whatever_thread_asks(net, tmp_path, form):
    """As the server's, which is made in another one."""
    predictor = Predictor(write(net, tmp_path / "export", form), max_batch=4)
    images = predictor.prepare(np.random.RandomState(0).randint(0, 256, (3, 3, 16, 16)))
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(predictor.run, images).result()
    np.testing.assert_array_equal(found, predictor.run(images))


def test_features_by_the_native_engine(net, exported, pictures, capsys, tmp_path):
    skip_unless_installed()
    words = ("--features", tmp_path / "f.npy", "--engine", "native")
    assert predict(capsys, exported, pictures, *words)[0] == 0
    assert difference(np.load(tmp_path / "f.npy"), expected(net, pictures)[1]) < 1e-5


def test_features_that_do_not_give_the_manifests_logits_are_refused(net, tmp_path, monkeypatch):
    from gluon_resnetv2.engines import features

    artifact = write(net, tmp_path / "export")
    real = features.features

    def other(pair, name):
        symbol, classify = real(pair, name)
        return 1.01 * symbol, classify

    monkeypatch.setattr("gluon_resnetv2.engines.predictor.features_of", other)
    with pytest.raises(UserError, match="does not compute here what was exported"):
        Predictor(artifact, features=True)


def test_a_graph_without_a_classifier_has_no_features(net, tmp_path):
    """GluonCV's SSD and the like; here, features themselves are the classes."""
    folder = tmp_path / "pair"
    folder.mkdir()
    net.features(mx.sym.var("data")).save(str(folder / "f-symbol.json"))
    values = {p.name: p.data() for p in net.features.collect_params().values()}
    mx.nd.save(str(folder / "f-0000.params"), values)
    assert Predictor(load(folder), shape=(3, 16, 16)).run(np.zeros((1, 3, 16, 16))).shape == (1, 64)
    with pytest.raises(UserError, match="f does not end in a float32 classifier"):
        Predictor(load(folder), shape=(3, 16, 16), features=True)


def test_no_image_gives_features_of_none(exported, tmp_path):
    predictor = Predictor(load(exported), features=True, max_batch=1)
    assert predictor.run(np.zeros((0, 3, 16, 16))).shape == (0, 64)


MISTAKES = {
    "other ending": (("--features", "f.txt"), "end in .npy"),
    "two outputs": (("--features", "f.npy", "--format", "csv"), "leave --format out"),
    "no folder": (("--features", "none/f.npy"), "none/f.npy"),
    "no batch": (("--max-batch", "0"), "at least 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(exported, tmp_path, capsys, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save("red.png")
    words, says = MISTAKES[mistake]
    status, printed, told = predict(capsys, exported, "red.png", *words)
    lines = [line for line in told.splitlines() if not line.startswith("engine ")]
    assert (status, printed, len(lines)) == (2, "", 1)
    assert says in lines[0]
    assert os.listdir() == ["red.png"]


def test_nothing_is_written_where_no_image_can_be_read(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, told = predict(capsys, exported, "gone.png", "--features", "f.npy")
    assert status == 2
    assert "f.npy is not written" in told
    assert os.listdir() == []


@pytest.mark.parametrize("rows", [0, 1, 10, 12345])
def test_rows_are_read_by_numpy(rows):
    array = np.arange(rows * 3, dtype="float32").reshape(rows, 3)
    file = io.BytesIO()
    written = Rows(file)
    for start in range(0, rows, 7):
        written.add(array[start : start + 7])
    written.end()
    file.seek(0)
    found = np.load(file)
    np.testing.assert_array_equal(found.reshape(rows, 3), array)
    assert found.dtype == np.float32
