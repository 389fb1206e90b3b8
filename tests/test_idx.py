"""MNIST's format: found, read, checked and downloaded, against arrays written by hand."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import threading

import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import data
from gluon_resnetv2.data import idx
from gluon_resnetv2.data.arrays import to_channels
from gluon_resnetv2.errors import UserError

RNG = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (12, 7, 5), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.arange(12, dtype=np.uint8) % 10,
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (4, 7, 5), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.array([3, 1, 9, 0], np.uint8),
}


def encoded(array: np.ndarray) -> bytes:
    """As http://yann.lecun.com/exdb/mnist/ has it."""
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    for name, array in ARRAYS.items():
        (tmp_path / name).write_bytes(encoded(array))
    return tmp_path


def check(dataset):
    np.testing.assert_array_equal(dataset.train.images[..., 0], ARRAYS["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(dataset.test.images[..., 0], ARRAYS["t10k-images-idx3-ubyte"])
    assert dataset.train.labels.tolist() == [*range(10), 0, 1]
    assert dataset.test.labels.tolist() == [3, 1, 9, 0]
    assert dataset.image_shape == (1, 7, 5)
    pixels = ARRAYS["train-images-idx3-ubyte"]
    np.testing.assert_allclose([dataset.mean[0], dataset.std[0]], [pixels.mean(), pixels.std()])


@pytest.mark.parametrize("name", ["idx", "mnist", "fashion-mnist", "kmnist"])
def test_four_files_are_a_data_set(folder, name):
    dataset = data.load(name, folder)
    check(dataset)
    assert (dataset.name, len(dataset.classes)) == (name, 10)
    assert dataset.flip == (name == "fashion-mnist")  # digits and letters are never mirrored


def test_files_may_be_packed_and_named_with_a_dot(folder):
    for at, path in enumerate(sorted(folder.iterdir())):
        packed = gzip.compress(path.read_bytes())
        path.unlink()
        name = path.name.replace("-idx", ".idx") if at % 2 else path.name
        (folder / f"{name}.gz").write_bytes(packed)
    check(data.load("idx", folder))


def test_grey_images_become_three_equal_channels_and_colours_become_grey_as_pillow_has_it(folder):
    dataset = data.load("idx", folder, in_channels=3)
    for channel in range(3):
        np.testing.assert_array_equal(
            dataset.train.images[..., channel], ARRAYS["train-images-idx3-ubyte"]
        )
    assert len(dataset.mean) == len(dataset.fill) == 3
    colours = RNG.integers(0, 256, (2, 50, 60, 3), dtype=np.uint8)
    grey = to_channels(colours, 1)
    for image, expected in zip(grey, colours):
        np.testing.assert_array_equal(
            image[..., 0], np.asarray(Image.fromarray(expected).convert("L"))
        )


def test_a_batch_of_grey_images_is_normalised(folder):
    dataset = data.load("idx", folder)
    ((images, _labels),) = dataset.batches(4)
    assert images.shape == (4, 1, 7, 5)
    pixels = ARRAYS["t10k-images-idx3-ubyte"].astype(float)
    expected = (pixels - dataset.mean[0]) / dataset.std[0]
    np.testing.assert_allclose(images[:, 0], expected, rtol=1e-5, atol=1e-6)


NAME = "train-images-idx3-ubyte"
DAMAGED = {
    "empty": (b"", "does not begin as one"),
    "no IDX file": (b"\x89PNG....", "does not begin as one"),
    "floats": (b"\0\0\x0d\x03", "type 0x0d, not bytes"),
    "cut in its header": (encoded(ARRAYS[NAME])[:9], "ends within its header"),
    "cut short": (encoded(ARRAYS[NAME])[:-1], "fewer than 420 values"),
    "too long": (encoded(ARRAYS[NAME]) + b"x", "more than 420 values"),
    "huge": (b"\0\0\x08\x03" + b"\xff" * 12, "more than 1073741824 values"),
    "no images": (encoded(np.zeros(9, np.uint8)), "which are no images"),
    "too few": (encoded(ARRAYS[NAME][:5]), "not one label for each of 5 images"),
    "all alike": (encoded(np.zeros((12, 7, 5), np.uint8)), "all alike"),
    "of another size": (encoded(ARRAYS[NAME][:, :6]), "of different sizes"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_told_in_a_line(folder, damage):
    content, message = DAMAGED[damage]
    (folder / NAME).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        data.load("idx", folder)
    assert "\n" not in str(raised.value)


def test_a_broken_gzip_file_is_told_in_a_line(folder):
    (folder / NAME).unlink()
    (folder / f"{NAME}.gz").write_bytes(gzip.compress(encoded(ARRAYS[NAME]))[:-9])
    with pytest.raises(UserError, match=r"gz can't be read as an IDX file"):
        data.load("idx", folder)


def test_a_missing_file_and_a_missing_folder_are_named(folder):
    (folder / NAME).unlink()
    with pytest.raises(UserError, match=f"has no {NAME}"):
        data.load("idx", folder)
    with pytest.raises(UserError, match="--data-dir is missing"):
        data.load("idx")


def test_labels_beyond_the_classes_are_refused(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(encoded(np.array([3, 1, 10, 0], np.uint8)))
    with pytest.raises(UserError, match="label 10; mnist has 10 classes"):
        data.load("mnist", folder)
    assert len(data.load("idx", folder).classes) == 11


def test_an_installed_package_is_found(folder, monkeypatch, tmp_path):
    source = idx.SOURCES["fashion-mnist"]
    found = dict(
        idx.SOURCES, **{"fashion-mnist": dataclasses.replace(source, installed=str(folder))}
    )
    monkeypatch.setattr(idx, "SOURCES", found)
    check(data.load("fashion-mnist"))


@pytest.fixture
def server(folder):
    """Serves the packed files on 127.0.0.1."""
    packed = {f"/{name}.gz": gzip.compress(encoded(array)) for name, array in ARRAYS.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(packed[self.path])))
            self.end_headers()
            self.wfile.write(packed[self.path])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        sums = tuple(hashlib.md5(content).hexdigest() for content in packed.values())
        yield f"http://127.0.0.1:{running.server_port}", sums
        running.shutdown()


def test_files_are_downloaded_by_checksum(server, monkeypatch, tmp_path):
    url, sums = server
    monkeypatch.setattr(idx, "SOURCES", {"mnist": idx.Source(url=url, md5=sums)})
    check(data.load("mnist", tmp_path / "new"))
    monkeypatch.setattr(idx, "SOURCES", {"mnist": idx.Source(url=url, md5=("0" * 32, *sums[1:]))})
    with pytest.raises(UserError, match="instead of 0000"):
        data.load("mnist", tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.gz")) if (tmp_path / "other").exists() else True
