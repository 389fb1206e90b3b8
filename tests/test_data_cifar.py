"""CIFAR's binary archives, from records written here byte by byte."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import io
import random
import tarfile
import threading
from functools import partial

import numpy as np
import pytest

from gluon_resnetv2.data import cifar, load
from gluon_resnetv2.errors import UserError

PUBLISHED = dict(cifar.SOURCES)


def pixel(i, y, x, c):
    """What the fake image i holds; works on numbers and on arrays."""
    return (31 * i + 7 * y + 3 * x + 101 * c) % 256


def record(i: int, *labels: int) -> bytes:
    """As the data sets' page says: labels, then red, green and blue, each row by row."""
    colours = (pixel(i, y, x, c) for c in range(3) for y in range(32) for x in range(32))
    return bytes([*labels, *colours])


def expected(indices) -> np.ndarray:
    return np.stack(
        [np.fromfunction(partial(pixel, i), (32, 32, 3), dtype=int) for i in indices]
    ).astype(np.uint8)


# File by file, in an order that is not that of the batches.
CIFAR10 = {
    "data_batch_2.bin": record(2, 1) + record(3, 2),
    "batches.meta.txt": b"airplane\nautomobile\nbird\n\n",
    "test_batch.bin": record(9, 2),
    "readme.html": b"<p>nothing</p>",
    "data_batch_1.bin": record(0, 0) + record(1, 1),
}
CIFAR100 = {
    "train.bin": record(0, 0, 2) + record(1, 1, 0) + record(2, 1, 1),
    "test.bin": record(3, 0, 1),
    "coarse_label_names.txt": b"fish\nflowers\n",
    "fine_label_names.txt": b"orchids\nroses\nflatfish\n",
}
SMALL = {
    "cifar10": {
        "labels": (("batches.meta.txt", 3),),
        "names": (),
        "train": (("data_batch_1.bin", 2), ("data_batch_2.bin", 2)),
        "test": (("test_batch.bin", 1),),
    },
    "cifar100": {
        "labels": (("coarse_label_names.txt", 2), ("fine_label_names.txt", 3)),
        "train": (("train.bin", 3),),
        "test": (("test.bin", 1),),
    },
}
CONTENT = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@pytest.fixture(autouse=True)
def _small_sources_and_no_network(monkeypatch):
    for name, changes in SMALL.items():
        source = dataclasses.replace(
            cifar.SOURCES[name], url=f"http://127.0.0.1:1/{cifar.SOURCES[name].archive}", **changes
        )
        monkeypatch.setitem(cifar.SOURCES, name, source)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def pack(monkeypatch, name, folder, content):
    """Writes the archive of `name` into `folder`, and makes its checksum the right one."""
    source = cifar.SOURCES[name]
    path = folder / source.archive
    with tarfile.open(path, "w:gz") as archive:
        directory = tarfile.TarInfo(source.folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for file, data in content.items():
            member = tarfile.TarInfo(f"{source.folder}/{file}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    checksum = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.SOURCES, name, dataclasses.replace(source, md5=checksum))
    return path


def unpack(monkeypatch, name, folder, content):
    """Writes the unpacked folder of `name` into `folder`."""
    path = folder / cifar.SOURCES[name].folder
    path.mkdir()
    for file, data in content.items():
        (path / file).write_bytes(data)
    return path


@pytest.fixture(params=[pack, unpack])
def store(request, monkeypatch):
    return partial(request.param, monkeypatch)


def one_line(raised) -> str:
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_cifar10_from_an_archive_and_from_a_folder(store, tmp_path):
    store("cifar10", tmp_path, CIFAR10)
    before = sorted(tmp_path.rglob("*"))
    dataset = load("cifar10", tmp_path)
    np.testing.assert_array_equal(dataset.train.images, expected([0, 1, 2, 3]))
    np.testing.assert_array_equal(dataset.test.images, expected([9]))
    assert dataset.train.images.flags.c_contiguous
    assert (dataset.train.labels.dtype, dataset.test.labels.dtype) == (np.int32, np.int32)
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([0, 1, 1, 2], [2])
    assert dataset.classes == ("airplane", "automobile", "bird")
    assert (dataset.pad, dataset.flip, dataset.fill) == (4, True, dataset.mean)
    np.testing.assert_allclose(dataset.mean, expected([0, 1, 2, 3]).mean((0, 1, 2)))
    assert sorted(tmp_path.rglob("*")) == before  # nothing unpacked, nothing left over


@pytest.mark.parametrize(
    ("coarse", "train", "test", "classes"),
    [
        (False, [2, 0, 1], [1], ("orchids", "roses", "flatfish")),
        (True, [0, 1, 1], [0], ("fish", "flowers")),
    ],
)
def test_cifar100_has_fine_and_coarse_labels(store, tmp_path, coarse, train, test, classes):
    store("cifar100", tmp_path, CIFAR100)
    dataset = load("cifar100", tmp_path, coarse=coarse)
    np.testing.assert_array_equal(dataset.train.images, expected([0, 1, 2]))
    np.testing.assert_array_equal(dataset.test.images, expected([3]))
    assert dataset.train.labels.tolist() == train
    assert dataset.test.labels.tolist() == test
    assert dataset.classes == classes


def test_files_longer_than_what_is_read_at_once(store, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "CHUNK", 2)
    store("cifar100", tmp_path, CIFAR100)
    dataset = load("cifar100", tmp_path)
    np.testing.assert_array_equal(dataset.train.images, expected([0, 1, 2]))
    assert dataset.train.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("name", "file", "data", "message"),
    [
        ("cifar10", "data_batch_2.bin", None, "data_batch_2.bin missing"),
        ("cifar10", "batches.meta.txt", None, "batches.meta.txt missing"),
        ("cifar10", "test_batch.bin", record(9, 2)[:-1], "test_batch.bin has 3072 bytes, not 3073"),
        ("cifar10", "test_batch.bin", b"", "test_batch.bin has 0 bytes, not 3073"),
        ("cifar10", "test_batch.bin", record(9, 3), "test_batch.bin has label 3, but only 3"),
        ("cifar10", "batches.meta.txt", b"cat\n", "batches.meta.txt names 1 classes, not 3"),
        ("cifar100", "test.bin", record(3, 0, 9), "test.bin has label 9, but only 3 classes"),
        ("cifar100", "train.bin", CIFAR10["data_batch_1.bin"], "train.bin has 6146 bytes, not"),
        ("cifar100", "fine_label_names.txt", None, "fine_label_names.txt missing"),
    ],
)
def test_damage_is_told_with_file_and_remedy(store, tmp_path, name, file, data, message):
    content = {**CONTENT[name], file: data}
    where = store(name, tmp_path, {k: v for k, v in content.items() if v is not None})
    with pytest.raises(UserError) as raised:
        load(name, tmp_path)
    assert one_line(raised).startswith(f"{where} is damaged: {message}")
    assert one_line(raised).endswith("remove it to have it downloaded again")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data + b"\0", bytes.swapcase]
)
def test_an_archive_with_another_checksum_is_refused_and_left_alone(monkeypatch, tmp_path, damage):
    path = pack(monkeypatch, "cifar10", tmp_path, CIFAR10)
    path.write_bytes(damage(path.read_bytes()))
    found = path.read_bytes()
    with pytest.raises(UserError) as raised:
        load("cifar10", tmp_path)
    assert f"{path} is damaged: its MD5 is {hashlib.md5(found).hexdigest()}" in one_line(raised)
    assert path.read_bytes() == found


def archived(data: bytes) -> bytes:
    """An archive of one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


BOMB = tarfile.TarInfo("name")
BOMB.type, BOMB.size = tarfile.XHDTYPE, 1 << 30  # of a name
NO_ARCHIVES = {
    "nothing": b"",
    "text": b"<html>not found</html>",
    "gzip of text": gzip.compress(b"<html>not found</html>" * 100, mtime=0),
    "gzip of nothing": gzip.compress(b"", mtime=0),
    "cut short": gzip.compress(random.Random(0).randbytes(5000), mtime=0)[:-2000],
    "a tar cut short": gzip.compress(gzip.decompress(archived(bytes(9000)))[:2000], mtime=0),
    "damaged inside": archived(random.Random(0).randbytes(9000))[:3000] + bytes(6000),
    "a name of a gigabyte": gzip.compress(BOMB.tobuf() + bytes(1 << 20), mtime=0),
}


@pytest.mark.parametrize("kind", NO_ARCHIVES)
def test_what_is_no_archive_is_told(monkeypatch, tmp_path, kind):
    """Though it has the checksum that was expected."""
    path = pack(monkeypatch, "cifar10", tmp_path, CIFAR10)
    path.write_bytes(NO_ARCHIVES[kind])
    checksum = hashlib.md5(NO_ARCHIVES[kind]).hexdigest()
    source = dataclasses.replace(cifar.SOURCES["cifar10"], md5=checksum)
    monkeypatch.setitem(cifar.SOURCES, "cifar10", source)
    with pytest.raises(UserError, match=f"^{path} is damaged: ") as raised:
        load("cifar10", tmp_path)
    one_line(raised)


def test_an_archive_of_too_much_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar, "UNPACKED", 10_000)
    path = pack(monkeypatch, "cifar10", tmp_path, {"other": bytes(10_000), **CIFAR10})
    with pytest.raises(UserError, match=f"{path} is damaged: .* more than 10000 bytes"):
        load("cifar10", tmp_path)


def test_the_table_agrees_with_the_data_sets_page():
    """https://www.cs.toronto.edu/~kriz/cifar.html, where both counts and one size are stated."""
    for source in PUBLISHED.values():
        assert [sum(n for _, n in part) for part in (source.train, source.test)] == [50000, 10000]
    ten, hundred = PUBLISHED["cifar10"], PUBLISHED["cifar100"]
    assert {n * (len(ten.labels) + cifar.PIXELS) for _, n in ten.train + ten.test} == {30_730_000}
    assert ten.md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert hundred.md5 == "03b5dce01913d631647c71ecec9e9cb8"
    assert hundred.labels[0][1] == 20  # "<1 x coarse label><1 x fine label><3072 x pixel>"
    assert hundred.labels[1][1] == 100


def test_a_missing_archive_is_downloaded_into_the_users_cache(monkeypatch, tmp_path):
    (tmp_path / "remote").mkdir()
    pack(monkeypatch, "cifar10", tmp_path / "remote", CIFAR10)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Handler, directory=str(tmp_path / "remote"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        source = dataclasses.replace(cifar.SOURCES["cifar10"], url=url)
        monkeypatch.setitem(cifar.SOURCES, "cifar10", source)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        try:
            first = load("cifar10")
        finally:
            server.shutdown()
    again = load("cifar10")  # without a server
    np.testing.assert_array_equal(first.train.images, expected([0, 1, 2, 3]))
    np.testing.assert_array_equal(again.train.images, expected([0, 1, 2, 3]))
    folder = tmp_path / "cache" / "gluon_resnetv2"
    assert [path.name for path in folder.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_missing_archive_without_network(tmp_path):
    with pytest.raises(UserError) as raised:
        load("cifar100", tmp_path)
    assert "cifar-100-binary.tar.gz can't be downloaded" in one_line(raised)
    assert f"put cifar-100-binary.tar.gz into {tmp_path} by hand" in one_line(raised)
    assert list(tmp_path.iterdir()) == []


def test_the_version_for_python_is_not_read_and_that_is_told(tmp_path, capsys):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match="by hand"):
        load("cifar10", tmp_path)
    told = f"{tmp_path}/cifar-10-batches-py is not read: only the binary version is\n"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_the_unpacked_folder_may_be_given_itself(tmp_path, name):
    for file, data in CONTENT[name].items():
        (tmp_path / file).write_bytes(data)
    dataset = load(name, tmp_path)
    count = len(dataset.train.labels)
    np.testing.assert_array_equal(dataset.train.images, expected(range(count)))


def test_gluons_cache_has_no_names_of_classes(monkeypatch, tmp_path):
    names = ("airplane", "automobile", "bird")
    source = dataclasses.replace(cifar.SOURCES["cifar10"], names=names)
    monkeypatch.setitem(cifar.SOURCES, "cifar10", source)
    for file in (*(f"data_batch_{i}.bin" for i in (1, 2)), "test_batch.bin"):
        (tmp_path / file).write_bytes(CIFAR10[file])
    (tmp_path / source.archive).write_bytes(b"Gluon's archive has another checksum")
    dataset = load("cifar10", tmp_path)
    assert dataset.classes == names
    assert dataset.train.labels.tolist() == [0, 1, 1, 2]


def test_the_names_that_stand_in_are_the_data_sets():
    page = "airplane automobile bird cat deer dog frog horse ship truck"
    assert PUBLISHED["cifar10"].names == tuple(page.split())
