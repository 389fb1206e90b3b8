"""Packing image folders into RecordIO."""

from __future__ import annotations

import shutil

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2.data import imagenet
from gluon_resnetv2.data.imagenet import packing
from gluon_resnetv2.errors import UserError
from tests.imagenet_tree import CLASSES, corrupt, files, make_tree, rgb, write_rec


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"), train=1, val=2)


@pytest.fixture
def source(tree, tmp_path):
    return shutil.copytree(tree / "val", tmp_path / "val")


def records(path):
    """(key, label, data) as MXNet reads them from start to end."""
    file, found = mx.recordio.MXRecordIO(str(path), "r"), []
    while (record := file.read()) is not None:
        header, data = mx.recordio.unpack(record)
        found.append((header.id, header.label, data))
    return found


def test_pack_without_opencv(source, tmp_path, capfd, monkeypatch):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "cv2.py").write_text("raise ImportError('not installed')")
    monkeypatch.syspath_prepend(tmp_path / "none")
    packed = imagenet.pack(source, tmp_path / "out" / "val.rec")
    assert packed.images == 13
    assert packed.classes == CLASSES
    found = records(packed.path)
    expected = [(key, label, path.read_bytes()) for key, (label, path) in enumerate(files(source))]
    assert sorted(found) == expected, "the files' own bytes"
    assert found != expected, "in random order"
    assert sorted(path.name for path in packed.path.parent.iterdir()) == [
        "val.checked",
        "val.idx",
        "val.lst",
        "val.rec",
    ]
    told = capfd.readouterr().err
    for what in ("check", "pack", "read back"):
        assert f"{what}: 13/13 images" in told


def test_every_bad_image_is_named(source, tmp_path, capfd):
    bad = [corrupt(source / "bee" / "1.JPEG"), source / "eel" / "0.JPEG"]
    bad[1].write_bytes(b"")
    output = tmp_path / "out" / "val.rec"
    with pytest.raises(UserError, match=f"2 of 13 images can't be packed, the first: {bad[0]} "):
        imagenet.pack(source, output)
    told = capfd.readouterr().err
    assert all(f"can't be packed: {path} " in told for path in bad)
    assert not list(output.parent.iterdir()), "nothing is left behind"

    packed = imagenet.pack(source, output, leave_out=True, resize=75)
    assert [str(path) in message for path, message in zip(bad, packed.left_out)] == [True, True]
    good = [(label, path) for label, path in files(source) if path not in bad]
    found = sorted(records(output))
    assert [label for _, label, _ in found] == [label for label, _ in good]
    scaled = 0
    for (_, _, data), (_, path) in zip(found, good):
        original = rgb(path)
        if min(original.size) <= 75:
            assert data == path.read_bytes()
            continue
        (tmp_path / "one").write_bytes(data)
        image = rgb(tmp_path / "one")
        assert min(image.size) == 75
        small = np.asarray(original.resize(image.size, Image.Resampling.BILINEAR), float)
        assert np.abs(small - np.asarray(image)).mean() < 4
        scaled += 1
    assert 0 < scaled < len(good)


def test_a_class_must_not_vanish(source, tmp_path):
    for path in (source / "fox").iterdir():
        corrupt(path)
    with pytest.raises(UserError, match="class fox has no image that can be decoded"):
        imagenet.pack(source, tmp_path / "out" / "val.rec", leave_out=True)


def forget_one(made, root, rows):
    write_rec(made, rows[1:])


def take_another_image(made, root, rows):
    write_rec(made, [rows[1], *rows[1:]])


def take_another_label(made, root, rows):
    write_rec(made, [(3, rows[0][1]), *rows[1:]])


@pytest.mark.parametrize(
    ("mishap", "message"),
    [
        (forget_one, "im2rec packed 12 of 13 images"),
        (take_another_image, "ape/0.JPEG was changed"),
        (take_another_label, "ape/0.JPEG was changed"),
    ],
)
def test_the_result_is_checked(source, tmp_path, monkeypatch, mishap, message):
    rows = [(label, path.read_bytes()) for label, path in files(source)]
    monkeypatch.setattr(packing, "_im2rec", lambda made, root, count: mishap(made, root, rows))
    with pytest.raises(UserError, match=message):
        imagenet.pack(source, tmp_path / "out" / "val.rec")
    assert not list((tmp_path / "out").iterdir())


def test_a_failing_im2rec_is_told(source, tmp_path, monkeypatch):
    im2rec = packing._im2rec

    def lose_a_class(made, root, count):
        shutil.rmtree(root / "fox")
        im2rec(made, root, count)

    monkeypatch.setattr(packing, "_im2rec", lose_a_class)
    with pytest.raises(UserError, match="im2rec failed: "):
        imagenet.pack(source, tmp_path / "out" / "val.rec")
    assert not list((tmp_path / "out").iterdir())


def test_nothing_is_overwritten(source, tmp_path):
    (tmp_path / "val.lst").write_text("mine")
    with pytest.raises(UserError, match=r"val.lst exists already"):
        imagenet.pack(source, tmp_path / "val.rec")
    with pytest.raises(UserError, match=r"should end in .rec"):
        imagenet.pack(source, tmp_path / "val")
    assert (tmp_path / "val.lst").read_text() == "mine"
