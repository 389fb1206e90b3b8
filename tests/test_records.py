"""RecordIO files as people have them: read, or told in one line."""

from __future__ import annotations

import struct

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.data import imagenet
from gluon_resnetv2.data.imagenet.records import Records
from gluon_resnetv2.errors import UserError
from tests.imagenet_tree import lines, write_rec, write_six


@pytest.fixture
def small(tmp_path):
    write_six(tmp_path)
    return tmp_path


def classes_and_labels(folder):
    dataset = imagenet.load(folder, image_size=8, threads=1)
    (batch,) = dataset.batches(6)
    return dataset.classes, batch[1].tolist()


def as_mxnet_reads(path):
    file, found = mx.recordio.MXRecordIO(str(path), "r"), []
    while (record := file.read()) is not None:
        header, data = mx.recordio.unpack(record)
        found.append((header.label, data))
    return found


WANTED = ("c", "d"), [0, 1, 0, 1, 0, 1]


def test_a_list_with_a_mark_and_blank_lines_is_read(small):
    text = "\n" + "".join(lines(3)) + " \n\r\n" + "".join(lines(6)[3:]) + "\n\n"
    (small / "val.lst").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert classes_and_labels(small) == WANTED


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_a_list_that_is_not_utf8_is_told(small, encoding):
    (small / "val.lst").write_bytes("".join(lines(6)).replace("c/", "类/").encode(encoding))
    with pytest.raises(UserError, match=r"val.lst is not UTF-8; convert it: iconv"):
        imagenet.load(small)


def test_a_list_without_labels_is_told(small):
    (small / "val.lst").write_text("0\tinf\tc/0.png\n")
    with pytest.raises(UserError, match=r"val.lst has a line that is not 'key, label, path'"):
        imagenet.load(small)


@pytest.mark.parametrize("index", [True, False])
def test_a_list_of_other_images_is_refused(small, index):
    shifted = [f"{key}\t{(key + 1) % 2}\t{'dc'[key % 2]}/{key}.png\n" for key in range(6)]
    (small / "val.lst").write_text("".join(shifted))
    if not index:
        (small / "val.idx").unlink()
    told = r"val.lst is not that of .*val.rec: record 0 has label 0 there, and 1 here; remove it"
    with pytest.raises(UserError, match=told):
        imagenet.load(small)


def test_a_list_without_lines_is_none(small, capfd):
    for part in ("train", "val"):
        (small / f"{part}.lst").write_text("\n\n")
    assert classes_and_labels(small) == (("0", "1"), WANTED[1])
    assert "named by number" in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:tostring")  # which MXNet packs such labels by
def test_one_label_packed_as_a_list_is_one(small):
    data = as_mxnet_reads(small / "val.rec")[0][1]
    items = [(np.array([key % 2], "float32"), data) for key in range(6)]
    write_rec(small / "val.rec", items)
    assert classes_and_labels(small) == WANTED
    (small / "val.lst").unlink()  # labels are then read from the headers
    write_rec(small / "train.rec", items)
    assert classes_and_labels(small)[1] == WANTED[1]
    write_rec(small / "val.rec", [(np.zeros(2, "float32"), data)])
    with pytest.raises(UserError, match=r"val.rec, record 0 has not one whole number as its label"):
        imagenet.load(small)


def test_without_an_index_records_are_found(small, capfd):
    (small / "val.idx").unlink()
    assert classes_and_labels(small) == WANTED
    assert "val.rec: 6 records found without" in capfd.readouterr().err


def test_a_file_that_is_no_multiple_of_four_is_read(small):
    for name, change in (("train", lambda data: data + b"\0\0\0"), ("val", cut_padding)):
        path = small / f"{name}.rec"
        path.write_bytes(change(path.read_bytes()))
        assert path.stat().st_size % 4
    assert classes_and_labels(small) == WANTED
    for part in ("train", "val"):
        (small / f"{part}.idx").unlink()
    assert classes_and_labels(small) == WANTED


def cut_padding(data):
    stripped = data.rstrip(b"\0")
    return stripped if len(stripped) % 4 else data[:-1]


@pytest.mark.parametrize("index", [True, False])
def test_a_record_file_cut_short_is_told(small, index):
    path = small / "val.rec"
    path.write_bytes(path.read_bytes()[:-30])
    if not index:
        (small / "val.idx").unlink()
    with pytest.raises(UserError, match=r"val.rec, record 5 \(d/5.png\) is broken"):
        classes_and_labels(small)


def test_all_that_is_damaged_is_told_at_once(small, capfd):
    path = small / "train.rec"
    data = bytearray(path.read_bytes())
    length = len(data) // 6
    frame_and_header = 8 + 24
    for place in (length, 4 * length + frame_and_header):  # a magic number, an image's beginning
        data[place : place + 4] = b"oops"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"^2 of 12 images .* leave them out with --leave-out"):
        imagenet.load(small, image_size=8).batches(2, train=True)
    told = capfd.readouterr().err
    assert f"{path}, record 1 (d/1.png) is broken\n" in told
    assert f"{path}, record 4 (c/4.png) is no image" in told


def test_what_is_no_record_file_is_told(small):
    (small / "val.idx").unlink()
    for data, told in ((b"no records at all", "is broken from its start"), (b"", "is empty")):
        (small / "val.rec").write_bytes(data)
        with pytest.raises(UserError, match=f"val.rec {told}"):
            imagenet.load(small)


def test_records_are_those_that_mxnet_reads(tmp_path):
    """Data that hold the magic number of records too, which are split there."""
    magic, rng = struct.pack("<I", 0xCED7230A), np.random.default_rng(0)
    images = [b"", magic, b"1234" + magic * 2 + b"12", b"12" + magic, rng.bytes(40) + magic]
    path = write_rec(tmp_path / "one.rec", list(enumerate(images)))
    found = Records(path)
    assert [found.read(row) for row in range(5)] == [(d, n) for n, d in enumerate(images)]
    path.with_suffix(".idx").unlink()
    again = Records(path)
    assert [again.read(row) for row in range(5)] == [(d, n) for n, d in enumerate(images)]
    assert as_mxnet_reads(path) == list(enumerate(images))
