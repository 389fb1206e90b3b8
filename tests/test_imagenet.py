"""Reading and evaluating ImageNet from folders and RecordIO, against plain Python loops."""

from __future__ import annotations

import os
import shutil

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import get_model
from gluon_resnetv2.data import imagenet
from gluon_resnetv2.data.imagenet import damage
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.pixels import decode
from gluon_resnetv2.training.views import evaluate_views
from tests.common import randomise
from tests.imagenet_tree import (
    CLASSES,
    corrupt,
    files,
    make_tree,
    normalised,
    rgb,
    scaled,
    write_rec,
)

SIZE = 32


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def packed(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    for part in ("train", "val"):
        imagenet.pack(tree / part, folder / f"{part}.rec")
    return folder


@pytest.fixture(scope="module")
def net():
    net = get_model("preact8", classes=len(CLASSES))
    devices = [mx.cpu(i) for i in range(3)]
    randomise(net)
    net.collect_params().reset_ctx(devices)
    net.hybridize(static_alloc=True)
    return net


def centre(path, size, shorter):
    image = scaled(rgb(path), shorter)
    left, top = (round((side - size) / 2) for side in image.size)  # as torchvision
    return [image.crop((left, top, left + size, top + size))]


def ten(path, size, shorter):
    image = scaled(rgb(path), shorter)
    crops = centre(path, size, shorter)
    for left in (0, image.width - size):
        for top in (0, image.height - size):
            crops.append(image.crop((left, top, left + size, top + size)))
    return crops + [crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for crop in crops]


def several(path, sides):
    return [scaled(rgb(path), side) for side in sides]


def plain_loop(net, part, views):
    """One image after the other, one view after the other, on one device."""
    wrong = wrong5 = loss = images = 0
    for label, path in files(part):
        score = 0
        for view in views(path):
            logits = net(mx.nd.array(normalised(view))).asnumpy()[0].astype(np.float64)
            score = score + np.exp(logits) / np.exp(logits).sum()
        score = score / len(views(path))
        ranked = sorted(range(len(score)), key=lambda i: -score[i])
        wrong += ranked[0] != label
        wrong5 += label not in ranked[:5]
        loss -= np.log(score[label])
        images += 1
    return 100 * wrong / images, 100 * wrong5 / images, loss / images, images


# What to evaluate, and the same for the plain loop. 37 and 55 are 32 and 48 over 0.875.
WAYS = {
    "centre": ({}, lambda path: centre(path, 32, 37)),
    "larger": ({"size": 48}, lambda path: centre(path, 48, 55)),
    "ten": ({"crops": 10}, lambda path: ten(path, 32, 37)),
    "scales": ({"scales": (28, 32, 48)}, lambda path: several(path, (28, 32, 48))),
}


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_is_a_plain_loop(tree, packed, net, way):
    options, views = WAYS[way]
    error, error5, loss, images = plain_loop(net, tree / "val", views)
    assert 0 < error5 < error < 100, "a network that tells nothing would show nothing"
    for data_dir in (tree, packed):
        dataset = imagenet.load(data_dir, image_size=SIZE)
        for devices in (1, 3):
            found = evaluate_views(
                net, dataset, [mx.cpu(i) for i in range(devices)], batch_size=7, **options
            )
            assert found["images"] == images
            assert found["error"] == pytest.approx(error)
            assert found["error5"] == pytest.approx(error5)
            assert found["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("crops", [1, 10])
def test_five_classes_have_no_top_5_error(mine, net, crops):
    """Nothing is ever not among five."""
    for part in ("train", "val"):
        shutil.rmtree(mine / part / CLASSES[-1])
    dataset = imagenet.load(mine, image_size=SIZE)
    found = evaluate_views(net, dataset, [mx.cpu()], batch_size=50, crops=crops)
    assert found.keys() == {"error", "loss", "images"}


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_every_view_is_computed_once(tree, way, devices):
    options, views = WAYS[way]
    expected = [normalised(view) for _, path in files(tree / "val") for view in views(path)]
    seen, done = [], []

    def spy(images):
        assert len(images) <= 7
        seen.extend(np.round(images.asnumpy().astype(np.float64).sum(axis=(1, 2, 3)), 0))
        return mx.nd.zeros((len(images), len(CLASSES)), ctx=images.context)

    dataset = imagenet.load(tree, image_size=SIZE)
    contexts = [mx.cpu(i) for i in range(devices)]
    evaluate_views(spy, dataset, contexts, batch_size=7, progress=done.append, **options)
    np.testing.assert_allclose(sorted(seen), sorted(view.sum() for view in expected), atol=1)
    assert sum(done) == len(files(tree / "val"))


def test_choices_that_exclude_each_other(tree, net):
    dataset = imagenet.load(tree, image_size=SIZE)
    for options in ({"crops": 5}, {"crops": 10, "scales": (32,)}):
        with pytest.raises(UserError, match="choose"):
            evaluate_views(net, dataset, [mx.cpu()], 8, **options)


def test_test_batches_are_what_pillow_makes(tree, packed):
    dataset = imagenet.load(tree, image_size=16, test_size=SIZE)
    batches = list(dataset.batches(7))
    expected = files(tree / "val")
    assert [len(labels) for _, labels in batches] == [7, 7, 7, 4]
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    assert labels.tolist() == [label for label, _ in expected]
    for image, (_, path) in zip(images, expected):
        (view,) = centre(path, 32, 37)
        np.testing.assert_allclose(image, normalised(view)[0], atol=1e-5)
    # RecordIO gives the same bits.
    other = imagenet.load(packed, image_size=16, test_size=SIZE)
    for found, wanted in zip(other.batches(7), batches):
        for left, right in zip(found, wanted):
            np.testing.assert_array_equal(left, right)
    assert (dataset.classes, dataset.train_count) == (CLASSES, 31)
    assert (other.classes, other.train_count) == (CLASSES, 31)
    assert dataset.image_shape == (3, 32, 32)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_test_images(tree, workers):
    dataset = imagenet.load(tree, image_size=16)
    whole = np.concatenate([images for images, _ in dataset.batches(8)])
    count = 0
    for worker in range(workers):
        for images, _ in dataset.batches(8, worker=worker, workers=workers):
            assert len(images)
            for image in images:
                assert (image == whole).all(axis=(1, 2, 3)).sum() == 1
            count += len(images)
    assert count == len(whole)


@pytest.fixture
def mine(tree, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(tree, tmp_path / "mine")


def test_what_is_left_out_is_counted_and_named(mine, tmp_path, capfd):
    """In training and evaluation, and in packing."""
    ape, train = mine / "train" / "ape", mine / "train"
    image = Image.open(ape / "1.JPEG")
    (ape / "more" / "even").mkdir(parents=True)
    for name in (
        "more/1.jpg",
        "more/even/2.jpg",
        "note.txt",
        "plain",
        "p1.psd",
        "p2.psd",
        ".hidden",
    ):
        image.save(ape / name, "JPEG")
    image.save(train / "stray.jpg")
    os.mkfifo(ape / "pipe.jpg")
    told = (
        f"{train}: left out are 4 of other endings (ape/note.txt, ape/p1.psd, ape/p2.psd, ...), "
        "2 deeper (ape/more/1.jpg, ape/more/even/2.jpg), 1 outside of classes (stray.jpg), "
        "1 that are no files (ape/pipe.jpg); images "
    )
    taken = ["a.jpe", "b.jfif", "c.WEBP", "d.tif", "e.tiff", "f.gif"]
    for name in taken:
        image.save(ape / name, "JPEG" if name < "c" else None)
    dataset = imagenet.load(mine, image_size=16)
    assert dataset.train_count == 31 + len(taken)
    assert capfd.readouterr().err.startswith(told)
    for options, count in (({}, 37), ({"images": 34}, 34)):
        batches = list(dataset.batches(8, train=True, **options))
        assert sum(len(labels) for _, labels in batches) == count
    capfd.readouterr()
    assert imagenet.pack(train, tmp_path / "train.rec").images == 37
    assert capfd.readouterr().err.startswith(told)


def test_a_class_of_other_files_says_what_images_are(mine):
    for path in (mine / "val" / "fox").iterdir():
        path.rename(path.with_suffix(".psd"))
    with pytest.raises(UserError, match=r"val/fox has no images; .* CLASS/FILE .* \.jpeg, \.jpg"):
        imagenet.load(mine)


@pytest.fixture(params=["folder", "records"])
def damaged(request, tree, mine, tmp_path):
    """A data set with damaged images, what they are called, and what mends the first."""
    names = ["train/cat/1.JPEG", "train/fox/2.JPEG", "val/eel/0.JPEG"]

    def pack():
        for part in ("train", "val"):
            items = [(label, path.read_bytes()) for label, path in files(mine / part)]
            write_rec(tmp_path / f"{part}.rec", items)

    def mend():
        shutil.copy(tree / names[0], mine / names[0])
        pack()

    (mine / names[0]).write_bytes(b"")
    (mine / names[1]).write_bytes(b"no image")
    corrupt(mine / names[2])
    pack()
    if request.param == "folder":
        return mine, [str(mine / name) for name in names], mend
    keys = []
    for name in names:
        part = mine / name.split("/")[0]
        keys.append([path for _, path in files(part)].index(mine / name))
    parts = ("train", "train", "val")
    called = [f"{tmp_path}/{part}.rec, record {key}" for part, key in zip(parts, keys)]
    return tmp_path, called, mend


def test_damaged_images_are_told_all_at_once(damaged, capfd, monkeypatch):
    root, names, mend = damaged
    looked_at, look = [], damage.read
    monkeypatch.setattr(damage, "read", lambda *row: looked_at.append(row) or look(*row))
    for looks in (56, 3):  # what was found is looked at again: it may have been mended
        with pytest.raises(UserError, match=r"^3 of 56 images can't be .* --leave-out") as told:
            imagenet.load(root, image_size=16).batches(8, train=True)
        assert f"the first: {names[0]} " in str(told.value)
        lines = capfd.readouterr().err.splitlines()
        assert [sum(f"{name} " in line for line in lines) for name in names] == [1, 1, 1]
        assert len(looked_at) == looks
        looked_at.clear()
    with pytest.raises(UserError, match=f"^1 of 25 images can't be read, the first: {names[2]} "):
        list(imagenet.load(root, image_size=16).batches(8))
    mend()
    with pytest.raises(UserError, match=r"^2 of 56 images"):
        imagenet.load(root, image_size=16).batches(8, train=True)


def test_damaged_images_are_left_out_in_training_and_evaluation(damaged, tree, net, capfd):
    """And in packing: see `test_imagenet_pack`."""
    root, _, mend = damaged
    for count in (29, 30):
        dataset = imagenet.load(root, image_size=SIZE, leave_out=True)
        assert (dataset.train_count, dataset.test_count) == (count, 24)
        labels = np.concatenate([labels for _, labels in dataset.batches(8, train=True)])
        expected = np.bincount([label for label, _ in files(tree / "train")])
        expected[[2, 5]] -= [count == 29, 1]  # cat and fox
        assert np.bincount(labels).tolist() == expected.tolist()
        mend()
    good = evaluate_views(net, dataset, [mx.cpu()], batch_size=7)
    assert good["images"] == 24
    assert ": 2 images are left out" in capfd.readouterr().err
    # What is left is evaluated as if the other had never been there.
    other = shutil.copytree(tree, root / "other")
    (other / "val" / "eel" / "0.JPEG").unlink()
    dataset = imagenet.load(other, image_size=SIZE)
    assert evaluate_views(net, dataset, [mx.cpu()], batch_size=7) == good


@pytest.mark.parametrize("packed_too", [False, True])
def test_a_class_is_not_left_out(mine, packed_too):
    for path in (mine / "val" / "fox").iterdir():
        corrupt(path)
    if packed_too:
        items = [(label, path.read_bytes()) for label, path in files(mine / "val")]
        write_rec(mine / "val.rec", items)
        lines = [f"{key}\t{label}\t{CLASSES[label]}/x\n" for key, (label, _) in enumerate(items)]
        (mine / "val.lst").write_text("".join(lines))
    dataset = imagenet.load(mine, image_size=16, leave_out=True)
    with pytest.raises(UserError, match="class fox has no image that can be decoded"):
        dataset.test_count  # noqa: B018


def test_a_broken_record_file_is_told(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    rec = copy / "val.rec"
    data = bytearray(rec.read_bytes())
    data[:4] = b"oops"  # the first record's magic number; which image that is, the list says
    rec.write_bytes(data)
    with pytest.raises(UserError, match=r"val.rec, record \d+ \(\w+/\d.\w+\) is broken"):
        list(imagenet.load(copy, image_size=16).batches(8))
    rec.write_bytes(data[:100])
    with pytest.raises(UserError, match=r"val.idx does not belong to .*val.rec"):
        imagenet.load(copy)
    (copy / "val.idx").unlink()
    with pytest.raises(UserError, match=r"val.rec is broken from its start, and .*idx is missing"):
        imagenet.load(copy)


@pytest.mark.parametrize("name", ["ape/0.JPEG", "bee/0.JPEG", "cat/9.PNG", "dog/0.JPEG"])
def test_images_are_decoded_as_the_iterator_does(tree, tmp_path, name):
    """Greyscale, CMYK, PNG and one that has to be turned."""
    data = (tree / "train" / name).read_bytes()
    path, image = write_rec(tmp_path / "one.rec", [(0, data)]), decode(data)
    found = mx.io.ImageRecordIter(
        path_imgrec=str(path),
        path_imgidx=str(path.with_suffix(".idx")),
        data_shape=(3, image.height, image.width),
        batch_size=1,
        verbose=False,
    ).next()
    pixels = found.data[0].asnumpy()[0].transpose(1, 2, 0)
    np.testing.assert_allclose(np.asarray(image), pixels, atol=1)  # CMYK is rounded otherwise


def test_classes_are_matched_by_name(mine, packed, tmp_path):
    """A part that was packed without some classes has other labels for the rest."""
    for name in ("ape", "cat"):
        shutil.rmtree(mine / "val" / name)
    expected = [CLASSES.index(path.parent.name) for _, path in files(mine / "val")]
    kept = ["fox", "eel", "bee", "dog"]
    names = [path.relative_to(mine / "val") for _, path in files(mine / "val")]
    own = [kept.index(name.parent.name) for name in names]
    data = [(mine / "val" / name).read_bytes() for name in names]
    write_rec(tmp_path / "val.rec", list(zip(own, data)))
    lines = [
        f"{key}\t{float(label)}\t{name}\n" for key, (label, name) in enumerate(zip(own, names))
    ]
    (tmp_path / "val.lst").write_text("".join(lines))
    for suffix in (".rec", ".idx", ".lst"):
        shutil.copy(packed / f"train{suffix}", tmp_path)
    for data_dir in (mine, tmp_path):
        labels = [labels for _, labels in imagenet.load(data_dir, image_size=16).batches(8)]
        assert np.concatenate(labels).tolist() == expected

    (mine / "val" / "bee").rename(mine / "val" / "gnu")
    with pytest.raises(UserError, match="class gnu, which no training image has"):
        imagenet.load(mine)


def test_without_a_list_classes_are_numbers(packed, tmp_path, capsys):
    copy = shutil.copytree(packed, tmp_path / "copy")
    for part in ("train", "val"):
        (copy / f"{part}.lst").unlink()
    dataset = imagenet.load(copy, image_size=16)
    assert dataset.classes == ("0", "1", "2", "3", "4", "5")
    assert "train.rec: classes are named by number" in capsys.readouterr().err
    labels = [
        np.concatenate([y for _, y in imagenet.load(d, image_size=16).batches(8)])
        for d in (copy, packed)
    ]
    np.testing.assert_array_equal(*labels)


def test_labels_are_whole_numbers(tree, packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    (copy / "val.lst").unlink()
    data = (tree / "val" / "ape" / "0.JPEG").read_bytes()
    for label in (1.5, float("nan")):
        write_rec(copy / "val.rec", [(0, data), (label, data)])
        with pytest.raises(UserError, match=r"val.rec, record 1 has not one whole number"):
            imagenet.load(copy)


def test_missing_parts_are_named(tree, tmp_path):
    with pytest.raises(UserError, match=r"has neither train.rec nor a folder train"):
        imagenet.load(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"train has no folders of images"):
        imagenet.load(tmp_path)
    (tmp_path / "train" / "ape").mkdir()
    with pytest.raises(UserError, match=r"train/ape has no images"):
        imagenet.load(tmp_path)
    for options in ({"crop": 1.5}, {"image_size": 0}, {"augmentation": "scal"}):
        with pytest.raises(UserError):
            imagenet.load(tree, **options)
