"""Folders of one's own images, against what Pillow and NumPy alone make of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import data
from gluon_resnetv2.cli import Parser
from gluon_resnetv2.commands import export as export_command
from gluon_resnetv2.data import ArrayDataset, folders, imagenet
from gluon_resnetv2.data.imagenet import damage
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export, export_run
from gluon_resnetv2.formats.artifact import CALIBRATION
from gluon_resnetv2.formats.params_file import read_arrays
from gluon_resnetv2.net import get_model
from gluon_resnetv2.training.datasets import load_data, training_images
from gluon_resnetv2.training.devices import contexts
from gluon_resnetv2.training.evaluation import evaluate_source
from gluon_resnetv2.training.main import train_network
from gluon_resnetv2.training.options import read_options
from tests.imagenet_tree import CLASSES, files, make_tree, rgb, scaled

SIZE = 16


def centre(image: Image.Image) -> np.ndarray:
    """The shorter side scaled to SIZE, the middle of the longer one: torchvision's way."""
    image = scaled(image, SIZE)
    left, top = (round((side - SIZE) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def write(path, value: int = 100, size: tuple[int, int] = (20, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def classes(tmp_path):
    """DIR/CLASS/*, without parts: ten images of each of three classes, and one of a fourth."""
    for label, name in enumerate(("a b", "c,d", "é")):
        for at in range(10):
            write(tmp_path / name / f"{at}.png", 100 * label + at)
    write(tmp_path / "once" / "0.png")
    return tmp_path


def test_images_are_scaled_and_cut_as_in_evaluation(tree):
    dataset = data.load("folder", tree, image_size=SIZE)
    assert isinstance(dataset, ArrayDataset)
    assert dataset.classes == CLASSES
    assert (dataset.name, dataset.image_shape, dataset.crop) == ("folder", (3, SIZE, SIZE), 1.0)
    names = [Path(dataset.test_name(row)) for row in range(dataset.test_count)]
    assert names == [path for _, path in files(tree / "val")]
    for split, part in ((dataset.train, "train"), (dataset.test, "val")):
        expected = files(tree / part)
        assert split.labels.tolist() == [label for label, _ in expected]
        for image, (_, path) in zip(split.images, expected):
            np.testing.assert_array_equal(image, centre(rgb(path)))
    pixels = np.stack([centre(rgb(path)) for _, path in files(tree / "train")])
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_streams_is_what_is_held_in_memory(tree, monkeypatch, channels):
    held = data.load("folder", tree, image_size=SIZE, in_channels=channels)
    monkeypatch.setattr(folders, "HELD", 0)
    streamed = data.load("folder", tree, image_size=SIZE, in_channels=channels)
    assert held.test_name(1) == streamed.test_name(1)
    assert isinstance(held.train.images, np.ndarray)
    assert isinstance(streamed.train.images, folders.Decoded)
    assert held.mean == streamed.mean
    assert len(held.mean) == channels
    for train in (False, True):
        for one, other in zip(*(d.batches(7, train=train) for d in (held, streamed))):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize(("size", "crop"), [(SIZE, 1.0), (66, 0.875)])
def test_a_run_scales_images_as_its_weights_have_seen_them(tree, tmp_path, size, crop):
    """Bicubically where they say so, from training to the export; bilinearly without them."""
    net = get_model("preact8", unit="basic", classes=len(CLASSES))
    net.initialize()
    about = {"classes": CLASSES, "mean": [120.0] * 3, "std": [60.0] * 3, "crop": crop}
    export(net, tmp_path / "theirs", (3, size, size), interpolation="bicubic", **about)
    words = {"recipe": None, "resume": None, "dataset": "folder", "data_dir": str(tree)}
    words |= {"image_size": size, "num_epochs": 1, "batch_size": 8, "lr": 0.0, "warmup_steps": 0}
    recipe, _ = read_options(
        {**words, "output": str(tmp_path / "run"), "init_from": str(tmp_path / "theirs")}
    )
    folder, _, _ = train_network(recipe)
    exported = export_run(folder)
    described = exported.manifest.input
    assert (described.interpolation, described.crop) == ("bicubic", crop)

    rows = files(tree / "val")
    predictor = Predictor(exported)
    seen = predictor.read(rows[0][1])
    image = rgb(rows[0][1])
    side = round(size / crop)
    short = [side * length // min(image.size) for length in image.size]
    whole = image.resize(short, Image.Resampling.BICUBIC)
    left, top = (round((length - size) / 2) for length in short)
    expected = np.asarray(whole.crop((left, top, left + size, top + size)))
    np.testing.assert_array_equal(seen, expected.transpose(2, 0, 1))
    dataset = load_data(recipe, vars(described))
    pixels, _ = next(dataset.batches(len(rows)))
    pixels = pixels[0] * np.reshape(dataset.std, (3, 1, 1)) + np.reshape(dataset.mean, (3, 1, 1))
    np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=1e-3)
    plain, _ = next(load_data(recipe).batches(len(rows)))
    plain = plain[0] * np.reshape(dataset.std, (3, 1, 1)) + np.reshape(dataset.mean, (3, 1, 1))
    assert np.abs(plain - pixels).max() > 1

    parser = Parser()
    export_command.add_options(parser)
    other = tmp_path / "other"
    words = [str(folder), "--precision", "bfloat16", "--output", str(other)]
    export_command.run(parser.parse_args(words))
    calibrated = read_arrays(other / CALIBRATION)["pixels"]
    alike, unlike = (training_images(recipe, how, len(calibrated)) for how in (vars(described), {}))
    np.testing.assert_array_equal(calibrated, alike)
    assert (calibrated != unlike).any()

    found = [evaluate_source(one, contexts(None, 1)) for one in (folder, folder / "export")]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    answers = predictor.probabilities(np.stack([predictor.read(path) for _, path in rows]))
    loss = -np.mean([np.log(row[label]) for row, (label, _) in zip(answers, rows)])
    assert loss == pytest.approx(found[0]["loss"], rel=1e-4)


def test_grey_is_pillows(tree):
    dataset = data.load("folder", tree, image_size=SIZE, in_channels=1)
    _, path = files(tree / "val")[5]
    np.testing.assert_array_equal(dataset.test.images[5][..., 0], centre(rgb(path).convert("L")))


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_the_held_out_part_has_several_names(tree, tmp_path, name):
    shutil.copytree(tree / "train", tmp_path / "train")
    shutil.copytree(tree / "val", tmp_path / name)
    assert data.load("folder", tmp_path, image_size=SIZE).test_count == len(files(tree / "val"))


def test_parts_may_be_records(tree, tmp_path):
    for part in ("train", "val"):
        imagenet.pack(tree / part, tmp_path / f"{part}.rec")
    packed = data.load("folder", tmp_path, image_size=SIZE)
    plain = data.load("folder", tree, image_size=SIZE)
    assert packed.classes == plain.classes
    np.testing.assert_array_equal(packed.test.labels, plain.test.labels)
    np.testing.assert_array_equal(packed.test.images, plain.test.images)


def test_one_folder_is_split_by_a_seed(classes, capsys):
    dataset = data.load("folder", classes, image_size=SIZE)
    assert dataset.classes == ("a b", "c,d", "once", "é")
    assert np.bincount(dataset.test.labels, minlength=4).tolist() == [2, 2, 0, 2]
    assert np.bincount(dataset.train.labels).tolist() == [8, 8, 1, 8]
    assert "6 of 31 images are held out" in capsys.readouterr().err
    again = data.load("folder", classes, image_size=SIZE)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)
    other = data.load("folder", classes, image_size=SIZE, split_seed=1)
    assert not np.array_equal(other.test.images, dataset.test.images)
    half = data.load("folder", classes, image_size=SIZE, val_fraction=0.5)
    assert np.bincount(half.test.labels, minlength=4).tolist() == [5, 5, 0, 5]


def test_a_file_that_is_added_moves_few_others(classes):
    before = {image.tobytes() for image in data.load("folder", classes).test.images}
    write(classes / "a b" / "another.png", 7)
    after = {image.tobytes() for image in data.load("folder", classes).test.images}
    assert len(before - after) <= 1


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "car"):
        for at in range(5):
            write(tmp_path / name / f"{at}.png", at)
    assert data.load("folder", tmp_path, image_size=SIZE).classes == ("car", "train")


def test_training_images_alone_are_split(tree, tmp_path):
    shutil.copytree(tree / "train", tmp_path / "train")
    dataset = data.load("folder", tmp_path, image_size=SIZE)
    assert dataset.train_count + dataset.test_count == len(files(tree / "train"))
    assert np.bincount(dataset.test.labels).tolist() == [1] * len(CLASSES)


def test_large_images_are_cut_out_at_random_and_mirrored_unless_told(tree):
    dataset = data.load("folder", tree, image_size=65)
    assert isinstance(dataset, imagenet.ImageFiles)
    assert (dataset.name, dataset.image_shape, dataset.crop) == ("folder", (3, 65, 65), 0.875)
    options = {"image_size": SIZE, "augmentation": "scale", "colour": False}
    plain, mirrored = (data.load("folder", tree, flip=flip, **options) for flip in (False, None))
    equal = []
    for (images, _), (others, _) in zip(*(d.batches(8, train=True) for d in (plain, mirrored))):
        for one, other in zip(images, others):
            equal.append(np.array_equal(one, other))
            assert equal[-1] or np.array_equal(one, other[..., ::-1])
    assert 0 < sum(equal) < len(equal)


def test_no_flip_holds_for_images_in_memory(tree):
    assert data.load("folder", tree, image_size=SIZE).flip
    assert not data.load("folder", tree, image_size=SIZE, flip=False).flip


def test_the_list_of_checked_files_notices_what_was_added_removed_and_changed(classes, monkeypatch):
    looked_at = []
    real = damage._problem
    monkeypatch.setattr(
        damage, "_problem", lambda source, row: looked_at.append(row) or real(source, row)
    )

    def looks() -> bool:
        looked_at.clear()
        data.load("folder", classes, image_size=SIZE)
        return bool(looked_at)

    assert looks()
    assert not looks()
    write(classes / "a b" / "new.png", 5)
    assert looks()
    assert not looks()
    (classes / "a b" / "new.png").unlink()
    assert looks()
    assert not looks()
    path = classes / "a b" / "3.png"
    known = path.stat()
    path.write_bytes(b"x" * known.st_size)  # of the same size
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"3\.png is no image"):
        data.load("folder", classes, image_size=SIZE)
    assert data.load("folder", classes, leave_out=True).train_count == 24


def test_a_split_folder_that_streams_is_checked_once(classes, monkeypatch):
    looked_at = []
    real = damage._problem
    monkeypatch.setattr(
        damage, "_problem", lambda source, row: looked_at.append(row) or real(source, row)
    )
    for expected in (31, 0):
        looked_at.clear()
        dataset = data.load("folder", classes, image_size=SIZE, augmentation="scale")
        assert (dataset.train_count, dataset.test_count) == (25, 6)
        assert len(looked_at) == expected


STRANGE = {
    "an empty file": ("a b/x.png", b"", "x.png is no image"),
    "another file's ending": ("c,d/x.jpg", b"hello", "x.jpg is no image"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_damaged_file_is_named(classes, what):
    name, content, message = STRANGE[what]
    (classes / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        data.load("folder", classes, image_size=SIZE)
    assert "--leave-out" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_hidden_and_foreign_files_are_left_out(classes, capsys):
    (classes / "a b" / ".hidden.png").write_bytes(b"")
    (classes / "a b" / "notes.txt").write_text("hello")
    (classes / ".git").mkdir()
    assert data.load("folder", classes, image_size=SIZE).train_count == 25
    assert "notes.txt" in capsys.readouterr().err


def test_what_is_no_data_set_is_told_in_a_line(tmp_path, classes):
    with pytest.raises(UserError, match="--data-dir is missing"):
        data.load("folder")
    with pytest.raises(UserError, match="is no folder; name another --data-dir"):
        data.load("folder", tmp_path / "nothing")
    (classes / "none").mkdir()
    with pytest.raises(UserError, match="none has no images"):
        data.load("folder", classes)
    shutil.rmtree(classes / "none")
    with pytest.raises(UserError, match="--val-fraction must be between 0 and 1"):
        data.load("folder", classes, val_fraction=1.0)


def test_a_fraction_of_what_has_a_held_out_part_is_refused(tree):
    with pytest.raises(UserError, match="--val-fraction has no effect"):
        data.load("folder", tree, val_fraction=0.5)


def test_another_folder_is_evaluated_by_the_names_of_its_classes(classes, tmp_path, capsys):
    network = ("x", "é", "c,d", "a b", "once")
    dataset = data.load("folder", classes, image_size=SIZE, classes=network)
    assert dataset.classes == network
    assert np.bincount(dataset.test.labels, minlength=5).tolist() == [0, 10, 10, 10, 1]
    assert "its 31 images are the test images" in capsys.readouterr().err
    with pytest.raises(UserError, match="has a class é, which"):
        data.load("folder", classes, image_size=SIZE, classes=("a b", "c,d", "once"))


def test_ten_thousand_classes(tmp_path):
    write(tmp_path / "0.png", size=(8, 8))
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").unlink()
    for at in range(10_000):
        folder = tmp_path / f"{at:05d}"
        folder.mkdir()
        for name in ("0.png", "1.png") if at < 10 else ("0.png",):
            (folder / name).write_bytes(content)
    (tmp_path / "00000" / "2.png").write_bytes(content)
    dataset = data.load("folder", tmp_path, image_size=8)
    assert (len(dataset.classes), dataset.test_count) == (10_000, 10)
    assert dataset.train.labels.max() == 9_999


def test_a_folder_has_a_recipe_of_its_own():
    recipe, _ = read_options(
        {"recipe": None, "resume": None, "dataset": "folder", "data_dir": "x", "image_size": 96}
    )
    assert (recipe.model, recipe.num_epochs, recipe.augmentation) == (
        "preact20",
        60,
        "scale-aspect",
    )
    small, _ = read_options({"recipe": None, "resume": None, "dataset": "folder", "data_dir": "x"})
    assert small.augmentation == "pad"
    with pytest.raises(UserError, match="--val-fraction has no effect with --dataset digits"):
        read_options({"recipe": None, "resume": None, "dataset": "digits", "val_fraction": 0.1})
    with pytest.raises(UserError, match="--flip has no effect with --dataset mnist"):
        read_options({"recipe": None, "resume": None, "dataset": "mnist", "flip": False})
