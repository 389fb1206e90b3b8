"""What `evaluate` counts of each image and class, and the report that it writes."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import tracemalloc
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.training.answers import Answers
from gluon_resnetv2.training.meter import evaluate
from gluon_resnetv2.training.report import check_folder, write_report

NAMES = ('a "quoted", name', "<b>bold</b>", "кошка", "x&y", "it's", "猫", "seven")
MEAN, STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)

# Probabilities of seven classes, and the class of each image: four right, three wrong. No image is
# of class 6, though one is taken for it.
SCORES = np.array(
    [
        [0.50, 0.20, 0.10, 0.08, 0.06, 0.04, 0.02],  # right
        [0.40, 0.30, 0.10, 0.08, 0.06, 0.04, 0.02],  # 1, which is second
        [0.02, 0.04, 0.60, 0.20, 0.08, 0.05, 0.01],  # right
        [0.05, 0.05, 0.01, 0.20, 0.20, 0.24, 0.25],  # 2, which is last
        [0.10, 0.10, 0.10, 0.30, 0.30, 0.05, 0.05],  # 3, by being the first of two
        [0.10, 0.10, 0.10, 0.30, 0.30, 0.05, 0.05],  # 4, which comes after it
        [0.01, 0.01, 0.01, 0.01, 0.01, 0.90, 0.05],  # right
    ]
)
LABELS = np.array([0, 1, 2, 2, 3, 4, 5], "int32")
PIXELS = np.random.RandomState(0).randint(0, 256, (7, 3, 4, 6)).astype("float64")
IMAGES = ((PIXELS - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))).astype("float32")


def answers(batch=3, pictures=2):
    made = Answers(7, pictures)
    for start in range(0, 7, batch):
        rows = slice(start, start + batch)
        made.add(SCORES[rows], LABELS[rows], IMAGES[rows])
    return made


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_answers_are_counted_as_by_hand(batch):
    found = answers(batch)
    assert found.errors() == pytest.approx({"error": 300 / 7, "error5": 100 / 7})
    images, right = found.per_class()
    assert images.tolist() == [1, 1, 2, 1, 1, 1, 0]
    assert right.tolist() == [1, 0, 1, 1, 0, 1, 0]
    assert found.balanced_accuracy() == pytest.approx(100 * 3.5 / 6)
    assert found.confusion() == [
        *((0, 0, 1), (1, 0, 1), (2, 2, 1), (2, 6, 1), (3, 3, 1), (4, 3, 1), (5, 5, 1)),
    ]
    assert found.mistakes().tolist() == [1, 5, 3]
    assert [number for number, _ in found.pictures] == [1, 5]
    for number, image in found.pictures:
        np.testing.assert_array_equal(image, IMAGES[number])


def test_five_classes_are_never_not_among_five():
    found = Answers(5)
    found.add(np.eye(5), np.array([1, 1, 2, 3, 4], "int32"))
    assert found.errors() == {"error": 20.0}


@pytest.mark.parametrize("devices", [1, 3])
def test_answers_agree_with_the_meter(devices):
    logits = np.random.RandomState(1).normal(size=(50, 8)).astype("float32")
    labels = np.random.RandomState(2).randint(0, 8, 50).astype("int32")
    found = Answers(8, pictures=50)
    batches = ((logits[start : start + 7], labels[start : start + 7]) for start in range(0, 50, 7))
    metered = evaluate(
        lambda images: images, batches, [mx.cpu(i) for i in range(devices)], answers=found
    )
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    assert metered["error"] == found.errors()["error"] == 2 * len(wrong)
    below = (logits > logits[np.arange(50), labels][:, None]).sum(1)
    assert found.errors()["error5"] == 2 * (below >= 5).sum()
    powers = np.exp(np.float64(logits))
    np.testing.assert_allclose(found.scores, (powers / powers.sum(1, keepdims=True)).max(1))
    assert sorted(number for number, _ in found.pictures) == wrong.tolist()
    for number, image in found.pictures:
        np.testing.assert_array_equal(image, logits[number])


def test_answers_hold_no_batches():
    rng, found = np.random.RandomState(0), Answers(1000, pictures=3)
    tracemalloc.start()
    try:
        for _ in range(40):
            images = np.zeros((50, 3, 64, 64), "float32")
            found.add(rng.dirichlet(np.ones(1000), 50), rng.randint(0, 1000, 50), images)
        del images
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1e6  # one batch's images have 2.5 MB; its classes, in order, 0.4 MB


class Page(html.parser.HTMLParser):
    """What a page says, and the cells of its tables, row by row."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.tables, self.sources = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._cell = tag in ("td", "th") or (self._cell if tag != "tr" else False)

    _cell = False

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell:
            self.tables[-1][-1][-1] += data


def written(folder, found, classes, mean, std, title, loss):
    dataset = SimpleNamespace(classes=classes, mean=mean, std=std, test_name=str)
    write_report(folder, found, dataset, title, loss)


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "below" / "report"
    written(folder, answers(), NAMES, MEAN, STD, "runs/<x> & y", 1.5)
    return folder


def test_the_tables_hold_every_class_by_its_name(report):
    assert sorted(path.name for path in report.iterdir()) == [
        *("confusion.csv", "mistakes.csv", "per_class.csv", "report.html"),
    ]
    assert read_csv(report / "per_class.csv") == [
        ["class", "images", "right", "accuracy"],
        [NAMES[0], "1", "1", "1"],
        [NAMES[1], "1", "0", "0"],
        [NAMES[2], "2", "1", "0.5"],
        [NAMES[3], "1", "1", "1"],
        [NAMES[4], "1", "0", "0"],
        [NAMES[5], "1", "1", "1"],
        [NAMES[6], "0", "0", ""],
    ]
    header, *pairs = read_csv(report / "confusion.csv")
    assert header == ["class", "predicted", "images"]
    assert [NAMES[2], NAMES[6], "1"] in pairs
    assert len(pairs) == 7
    assert read_csv(report / "mistakes.csv") == [
        ["image", "class", "predicted", "score"],
        ["1", NAMES[1], NAMES[0], "0.4"],
        ["5", NAMES[4], NAMES[3], "0.3"],
        ["3", NAMES[2], NAMES[6], "0.25"],
    ]


def test_the_page_says_the_same_and_loads_nothing(report):
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    texts = [text.strip() for text in page.texts]
    assert "runs/<x> & y" in texts
    for value in ("57.14\xa0%", "85.71\xa0%", "58.33\xa0%", "1.5000"):
        assert value in texts
    assert not page.tags & {"script", "link", "iframe"}
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    classes, matrix, pairs = page.tables
    assert [row[0] for row in classes[1:]] == [NAMES[i] for i in (1, 4, 2, 0, 3, 5, 6)]
    assert classes[-1][1:3] == ["0", "–"]  # noqa: RUF001
    assert matrix[0] == ["", *NAMES]
    assert [row[0] for row in matrix[1:]] == list(NAMES)
    expected = np.zeros((7, 7), int)
    np.add.at(expected, (LABELS, [0, 0, 2, 6, 3, 3, 5]), 1)
    assert [[int(cell or 0) for cell in row[1:]] for row in matrix[1:]] == expected.tolist()
    assert pairs[1:] == [
        [NAMES[1], NAMES[0], "1", "100.00\xa0%"],
        [NAMES[2], NAMES[6], "1", "50.00\xa0%"],
        [NAMES[4], NAMES[3], "1", "100.00\xa0%"],
    ]
    for source, number in zip(page.sources, (1, 5)):
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), PIXELS[number])


def test_a_matrix_of_many_classes_is_a_picture(tmp_path):
    """2,500 classes, of which one is taken for another; five share two points."""
    found = Answers(2500)
    for own, taken in ((0, 0), (2499, 0), (1250, 1251)):
        scores = np.zeros((1, 2500))
        scores[0, taken] = 1
        found.add(scores, np.array([own]))
    written(tmp_path, found, [str(i) for i in range(2500)], [0.0], [1.0], "many", 0.0)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    image = Image.open(io.BytesIO(base64.b64decode(page.sources[0].partition(",")[2])))
    pixels = np.asarray(image)
    assert pixels.shape == (1000, 1000, 3)
    coloured = (pixels != 255).any(axis=2)
    assert np.argwhere(coloured).tolist() == [[0, 0], [500, 500], [999, 0]]
    assert pixels[0, 0].tolist() == [0, 114, 178]
    assert pixels[999, 0].tolist() == [213, 94, 0]
    assert ["2499", "0", "1", "100.00\xa0%"] in page.tables[-1]


def test_one_channel_is_grey_and_nothing_wrong_is_said(tmp_path):
    found = Answers(2, pictures=2)
    found.add(np.eye(2), np.array([0, 1]), np.zeros((2, 1, 3, 3), "float32"))
    written(tmp_path / "right", found, "ab", [7.0], [1.0], "right", 0.0)
    page = Page((tmp_path / "right" / "report.html").read_text(encoding="utf-8"))
    assert "There are none." in page.texts
    found.add(np.eye(2), np.array([1, 1]), np.zeros((2, 1, 3, 3), "float32"))
    written(tmp_path / "wrong", found, "ab", [7.0], [1.0], "wrong", 0.0)
    page = Page((tmp_path / "wrong" / "report.html").read_text(encoding="utf-8"))
    image = Image.open(io.BytesIO(base64.b64decode(page.sources[0].partition(",")[2])))
    assert (image.mode, set(image.tobytes())) == ("L", {7})


def test_a_report_goes_into_a_new_or_empty_folder(tmp_path):
    check_folder(tmp_path)
    check_folder(tmp_path / "new")
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="--report"):
            check_folder(taken)
