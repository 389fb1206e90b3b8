"""Files of PyTorch and safetensors, of which none is trusted."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import pickletools
import random
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from gluon_resnetv2 import untrusted
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats import bounds, safetensors_file, torch_file


def arrays_of(seed=0):
    rng = np.random.RandomState(seed)
    return {
        "layer1.0.conv1.weight": rng.normal(size=(4, 3, 3, 3)).astype("float32"),
        "bn.running_var": rng.uniform(size=5).astype("float32"),
        "bn.num_batches_tracked": np.array(7),
        "double": rng.normal(size=(2, 1)),
        "none": np.zeros((0, 3), "float32"),
    }


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def refused(reader, path, told):
    """The one line in which a file is refused, which names it."""
    with pytest.raises(UserError, match=told) as caught:
        reader.read(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


# -- What PyTorch itself reads and writes ----------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def module(torch):
    """A module with tensors of many kinds among its parameters and buffers."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5))
    tensors = {
        "half": torch.randn(3, 4).half(),
        "brain": torch.cat([torch.randn(7), torch.tensor([1e-40, 3e38, -0.0])]).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "part": torch.arange(10.0)[3:8:2],
        "turned": torch.randn(3, 4).t(),
        "empty": torch.zeros(0, 3),
        "whole": torch.tensor(2.5),
    }
    for name, tensor in tensors.items():
        net.register_buffer(f"a_{name}", tensor)
    return net


def as_arrays(state):
    halves = {name: t.float() if t.element_size() == 2 else t for name, t in state.items()}
    return {name: tensor.detach().numpy() for name, tensor in halves.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("as_zip", [True, False])
def test_every_number_is_what_pytorch_reads(torch, module, protocol, as_zip, tmp_path):
    torch.save(
        module.state_dict(),
        tmp_path / "w.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=as_zip,
    )
    expected = as_arrays(torch.load(tmp_path / "w.pth", weights_only=False))
    found = torch_file.read(tmp_path / "w.pth")
    assert list(found) == list(expected)
    assert_same(found, expected)


@pytest.mark.parametrize("key", torch_file.WRAPPERS)
def test_a_checkpoint_gives_its_state_dict_and_says_so(torch, module, key, tmp_path):
    state = module.state_dict()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    torch.save(
        {
            "epoch": 3,
            "best": torch.tensor(0.5),
            key: OrderedDict((f"module.{name}", tensor) for name, tensor in state.items()),
            "optimizer": optimizer.state_dict(),
        },
        tmp_path / "w.pth",
    )
    told = []
    assert_same(torch_file.read(tmp_path / "w.pth", told.append), as_arrays(state))
    assert told == [
        f"{tmp_path / 'w.pth'}: took what is under '{key}'",
        f"{tmp_path / 'w.pth'}: took 'module.' off every name",
    ]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_lies_beside_the_weights_is_skipped(torch, module, protocol, tmp_path):
    state = module.state_dict()
    beside = {
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999), where=pathlib.PurePosixPath("a/b")),
        "best_acc": np.float64(93.1),
        "history": np.arange(6.0).reshape(2, 3),
        "rng": random.Random(0).getstate(),
        "seen": {(0, 1): {1, 2}, None: frozenset("ab")},
        "filled": [collections.deque([1]), collections.defaultdict(list, a=[1, 2])],
        "calls": [os.mkdir, functools.partial(os.mkdir, "x"), torch.nn.ReLU, 3 + 4j, b"abc"],
        "complex": torch.zeros(3, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    }
    torch.save({**beside, "state_dict": state}, tmp_path / "w.pth", pickle_protocol=protocol)
    told = []
    assert_same(torch_file.read(tmp_path / "w.pth", told.append), as_arrays(state))
    assert told == [f"{tmp_path / 'w.pth'}: took what is under 'state_dict'"]


def test_of_several_sets_of_weights_one_is_chosen(torch, tmp_path):
    path, one, two = tmp_path / "w.pth", {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    told, beside = [], {"epoch": 1, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}

    def read(saved, key=None):
        told.clear()
        torch.save({**beside, **saved}, path)
        return torch_file.read(path, told.append, key)["w"].tolist()

    both = {"state_dict_ema": two, "state_dict": one}
    assert read(both) == [1, 1]
    assert told == [
        f"{path}: took what is under 'state_dict', not 'state_dict_ema', which --weights takes"
    ]
    assert read(both, "state_dict_ema") == [0, 0]
    assert told == [
        f"{path}: took what is under 'state_dict_ema', not 'state_dict', which --weights takes"
    ]
    assert read({"model_ema": two}) == [0, 0]
    assert told == [f"{path}: took what is under 'model_ema'"]
    assert read({"teacher": two, "student": one}, "student") == [1, 1]
    with pytest.raises(UserError, match="'optimizer'; it has 'state_dict_ema' or 's"):
        read(both, "optimizer")
    with pytest.raises(UserError, match="'teacher' or 'student': choose"):
        read({"teacher": two, "student": one})
    with pytest.raises(UserError, match="no weights under 'x'; it has 'w'"):
        read({"w": one}, "x")


@pytest.mark.parametrize("mmap", [False, True])
def test_pytorch_reads_what_is_written(torch, mmap, tmp_path):
    expected = arrays_of()
    torch_file.write(tmp_path / "w.pth", expected)
    state = torch.load(tmp_path / "w.pth", weights_only=True, mmap=mmap)
    assert list(state) == list(expected)
    assert_same({name: tensor.numpy() for name, tensor in state.items()}, expected)
    bn = torch.nn.BatchNorm2d(5)
    bn.load_state_dict({k[3:]: v for k, v in state.items() if k.startswith("bn.")}, strict=False)
    assert bn.num_batches_tracked == 7


def test_damage_of_old_files_is_told_in_one_line(torch, tmp_path):
    state = {name: torch.tensor(array) for name, array in arrays_of().items()}
    saved = {"state_dict": state, "args": Evil(os.mkdir, str(tmp_path / "mark"))}
    torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    good, path, seen = (tmp_path / "w.pth").read_bytes(), tmp_path / "bad.pth", 0
    assert_same(torch_file.read(tmp_path / "w.pth"), arrays_of())
    for bad in damaged(good, 400, seed=4):
        path.write_bytes(bad)
        seen += is_refused(torch_file, path)
    assert seen > 200
    assert not (tmp_path / "mark").exists()
    path.write_bytes(good[:-1])
    refused(torch_file, path, "damaged or cut short")
    path.write_bytes(good.replace(b"\x88", b"\x89", 1))
    refused(torch_file, path, "big-endian")


def test_modules_are_told_how_to_be_saved(torch, module, tmp_path):
    torch.save(module, tmp_path / "module")
    refused(
        torch_file, tmp_path / "module", r"wants to run torch\.nn\.modules\.\S*Sequential, .*state"
    )
    torch.save(torch.zeros(3), tmp_path / "tensor")
    refused(torch_file, tmp_path / "tensor", "holds no state dict")
    torch.save({"w": torch.zeros(3), "epoch": 3}, tmp_path / "mixed")
    refused(torch_file, tmp_path / "mixed", "holds epoch, which is no tensor")


@pytest.mark.parametrize(
    "tensor",
    [
        lambda torch: torch.zeros(1).expand(1000),
        lambda torch: torch.zeros(3, dtype=torch.complex64).conj(),
        lambda torch: torch.eye(3).to_sparse(),
        lambda torch: torch._neg_view(torch.ones(3)),
    ],
)
def test_tensors_that_are_more_than_numbers_are_refused(torch, tensor, tmp_path):
    torch.save({"w": tensor(torch)}, tmp_path / "w.pth")
    refused(torch_file, tmp_path / "w.pth", "damaged|wants to run")


# -- Without PyTorch -------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    torch_file.write(tmp_path / "w.pth", arrays_of())
    found = torch_file.read(tmp_path / "w.pth")
    assert list(found) == list(arrays_of())
    assert_same(found, arrays_of())


@pytest.mark.parametrize("reader", [torch_file, safetensors_file])
@pytest.mark.parametrize(
    "prefixes", [["module."], ["_orig_mod."], ["model."], ["module.", "_orig_mod."], ["ema."]]
)
def test_what_stands_before_every_name_is_taken_off_and_told(reader, prefixes, tmp_path):
    arrays, path, told = arrays_of(), tmp_path / "w", []
    reader.write(path, {"".join(prefixes) + name: array for name, array in arrays.items()})
    assert_same(reader.read(path, told.append), arrays)
    assert told == [f"{path}: took '{prefix}' off every name" for prefix in prefixes]


@pytest.mark.parametrize("reader", [torch_file, safetensors_file])
def test_an_average_of_models_is_a_model(reader, tmp_path):
    """As torch.optim.swa_utils.AveragedModel names it."""
    arrays = {f"module.{name}": array for name, array in arrays_of().items()}
    reader.write(tmp_path / "w", {"n_averaged": np.array(7), **arrays})
    assert_same(reader.read(tmp_path / "w", lambda line: None), arrays_of())


@pytest.mark.parametrize("reader", [torch_file, safetensors_file])
def test_what_stands_before_some_names_stays(reader, tmp_path):
    arrays, told = {"module.w": np.ones(3), "w": np.zeros(3)}, []
    reader.write(tmp_path / "w", arrays)
    assert_same(reader.read(tmp_path / "w", told.append), arrays)
    assert not told


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def save(path, parts, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def described(path, description):
    """A file of one storage, of 12 floats, whose description is `description`."""
    return save(path, {"a/data.pkl": description, "a/data/0": bytes(48), "a/version": b"3\n"})


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """What `pickle` asks of a function."""


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {"w": evil}}])
def test_code_among_the_weights_is_named_and_not_run(protocol, wrap, tmp_path):
    mark = tmp_path / "mark"
    description = pickle.dumps(wrap(Evil(os.mkdir, str(mark))), protocol)
    path = described(tmp_path / "w.pth", description)
    if protocol < 2:  # whose operations PyTorch's files never have
        refused(torch_file, path, "damaged|wants to run")
    else:
        refused(torch_file, path, r"w\.pth wants to run posix\.mkdir, .*state_dict\(\)")
    assert not mark.exists()
    pickle.loads(description)
    assert mark.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: [evil, {"a": (evil, {"b"})}],
        lambda evil: Evil(evil, 1),  # whose call gives what is called again
        lambda evil: Evil(getattr, evil, "pop"),
        lambda evil: argparse.Namespace(a=evil),
    ],
)
def test_code_beside_the_weights_is_not_run(protocol, wrap, tmp_path):
    weights, mark = tensor()[2:-1], tmp_path / "mark"
    beside = pickle.dumps(wrap(Evil(os.mkdir, str(mark))), protocol)
    # Without frames, whose lengths would not fit; and with a memo of its own.
    beside = pickletools.optimize(beside)[2 if protocol < 4 else 11 : -1]
    head = b"\x80" + bytes([protocol]) + b"}X\x04\0\0\0args"
    path = described(
        tmp_path / "w.pth", head + beside + b"sX\x0a\0\0\0state_dict" + weights + b"s."
    )
    assert_same(torch_file.read(path), {"w": np.zeros(12, "float32")})
    assert not mark.exists()
    with contextlib.suppress(Exception):  # which what the folder's maker gives may raise
        pickle.loads(b"\x80" + bytes([protocol]) + beside + b".")
    assert mark.exists()


FLOATS = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x0ctQ"


def tensor(offset=b"K\0", shape=b"(K\x0ct", strides=b"(K\x01t"):
    """A description of {"w": tensor}, of which each part is given as operations."""
    call = b"ctorch._utils\n_rebuild_tensor_v2\n" + FLOATS + offset + shape + strides + b"\x89}tR"
    return b"\x80\x02}X\x01\0\0\0w" + call + b"s."


def wide(number):
    """The operation that gives a number of any size."""
    data = number.to_bytes((number.bit_length() + 8) // 8, "little")
    return b"\x8a" + bytes([len(data)]) + data


def of_one_hash(count):
    """A dict of numbers that Python gives the same hash."""
    keys = b"".join(wide(n * (2**61 - 1)) + b"N" for n in range(1, count))
    return b"\x80\x02}(" + keys + b"u."


def sets_of_sets(inner, outer):
    """A dict that has one set of weights under many names."""
    weights = tensor()[2:-2].replace(b"}", b"}(", 1) + b"q\x01"
    weights += b"".join(b"X\x06\0\0\0%06dh\x01" % n for n in range(inner)) + b"uq\x02"
    names = b"".join(b"X\x06\0\0\0%06dh\x02" % n for n in range(outer))
    return b"\x80\x02}(X\x05\0\0\0first" + weights + names + b"u."


def again_and_again(operations, times, first=b""):
    """A list of many values, and `times` operations that each copy it."""
    return b"\x80\x02](" + first + b"N" * 200_000 + b"eq\0" + operations(b"h\0") * times + b"."


HUGE = b"\x8a\x09" + (1 << 64).to_bytes(9, "little")  # 2 ** 64


def nested(depth):
    """A tuple of a tuple of a tuple, in `depth` operations and 2 ** depth leaves."""
    return b")" + b"2\x86" * depth


def test_the_description_by_hand_is_one(tmp_path):
    found = torch_file.read(described(tmp_path / "w.pth", tensor()))
    assert_same(found, {"w": np.zeros(12, "float32")})


def test_the_stride_of_a_single_number_may_be_anything(tmp_path):
    path = described(
        tmp_path / "w.pth", tensor(shape=b"(K\x01t", strides=b"(" + wide(2**62) + b"t")
    )
    assert torch_file.read(path)["w"].tolist() == [0]


@pytest.mark.parametrize(
    ("description", "told"),
    [
        (b"\x80\x02(S'true'\nios\nsystem\n.", "damaged|wants to run os.system"),
        (b"\x80\x02(X\x04\0\0\0trueios\nsystem\n.", "wants to run os.system"),
        (b"\x80\x02cbuiltins\neval\n.", "wants to run builtins.eval"),
        (b"\x80\x04X\x02\0\0\0osX\x06\0\0\0system\x93.", "wants to run os.system"),
        (b"\x80\x02ctorch\nload\n.", "wants to run torch.load"),
        (b"\x80\x02c__torch__.nn\nReLU\n)\x81.", "wants to run __torch__.nn.ReLU"),  # TorchScript
        (b"\x80\x02ctorch._utils\n__builtins__\n.", "wants to run torch._utils.__builtins__"),
        (b"\x80\x02cos\x1b[2J\nsystem\n.", r"wants to run 'os\\x1b\[2J.system'"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "wants to run coll"),  # NEWOBJ
        (b"\x80\x02\x82\x01.", "damaged"),  # of the registry of extensions
        (b"\x80\x02}X\x09\0\0\0__class__Ksb.", "damaged"),
        (b"\x80\x02]}b.", "damaged"),  # BUILD of a list
        (b"\x80\x02ccollections\nOrderedDict\n(]tR.", "damaged"),
        (b"\x80\x02K\x01)R.", "damaged"),
        (b"\x80\x02].", "holds no state dict"),
        (b"\x80\x02}.", "holds no tensors"),
        (b"\x80\x02}X\x01\0\0\0w]s.", "holds w, which is no tensor"),
        (b"\x80\x02}X\x01\0\0\0\nK\x01s.", "can't be printed"),
        (b"\x80\x02}X\xe9\3\0\0" + b"x" * 1001 + b"K\x01s.", "whose name is long"),
        (b"", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02" + b"(" * 100000, "damaged"),
        (b"\x80\x02" + b"0" * 10, "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fw.", "damaged"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f.", "damaged"),  # BYTEARRAY8 of 10 ** 18 bytes
        (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.", "damaged"),  # FRAME of as many
        (b"\x80\x02}r\xff\xff\xff\x7f.", "holds no tensors"),  # a memo of 2 ** 31 entries
        (b"\x80\x02}" + nested(40) + b"K\x01s.", "can't be printed"),  # as a key
        (b"\x80\x02" + nested(40) + b")R.", "damaged"),  # as a function
        (FLOATS.replace(b"X\x01\0\0\x000", nested(40)) + b".", "damaged"),  # as a storage
        (of_one_hash(40_000), "can't be printed"),
        (sets_of_sets(5_000, 50_000), "choose by --weights"),
        (again_and_again(lambda many: b"ctorch\nSize\n" + many + b"\x85R", 200), "damaged"),
        (
            again_and_again(
                lambda many: b"ctorch._utils\n_rebuild_parameter\n" + many + b"R0", 50_000
            ),
            "damaged",
        ),
        (again_and_again(lambda many: many + b"Q0", 50_000, FLOATS[2:-2]), "damaged"),
        (tensor().replace(b"\1\0\0\x000", b"\xe9\3\0\0" + b"0" * 1001), "makes no sense"),
        (tensor(shape=b"(K\0" + wide(2**62) + b"t", strides=b"(K\0K\0t"), "no such shape"),
        (tensor(offset=b"K\x01"), "reaches beyond its storage"),
        (tensor(shape=b"(K\x0dt"), "reaches beyond its storage"),
        (tensor(strides=b"(K\x02t"), "reaches beyond its storage"),
        (tensor(shape=b"(K\x0dt", strides=b"(K\0t"), "reaches beyond its storage"),
        (tensor(shape=b"(" + HUGE + b"t", strides=b"(K\0t"), "no such shape"),
        (tensor(offset=b"J\xff\xff\xff\xff"), "no such shape"),
        (tensor(offset=b"\x88"), "no such shape"),
        (tensor(strides=b"(J\xff\xff\xff\xfft"), "no such shape"),
        (tensor(shape=b"(K\x03K\x04t"), "no such shape"),
        (tensor(shape=b"(" + b"K\x01" * 9 + b"t", strides=b"(" + b"K\0" * 9 + b"t"), "no such sh"),
        (tensor(shape=b"X\x01\0\0\0w"), "no such shape"),
        (tensor().replace(b"K\x0ctQ", b"K\x0btQ"), "storage '0' is not all there"),
        (tensor().replace(b"FloatS", b"DoubleS"), "storage '0' is not all there"),
        (tensor().replace(b"\0000X", b"\0001X"), "storage '1' is not all there"),
        (tensor().replace(b"storagec", b"modulesc"), "damaged"),
        (
            tensor()[:-2]  # one tensor under many names
            + b"q\x01s("
            + b"".join(b"X\x02\0\0\0%02dh\x01" % i for i in range(99))
            + b"u.",
            "tensors larger than itself",
        ),
    ],
)
def test_a_description_that_means_harm_is_refused_at_once(description, told, tmp_path):
    path = described(tmp_path / "w.pth", description)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        refused(torch_file, path, told)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        assert time.perf_counter() - began < 10
    finally:
        tracemalloc.stop()


def test_an_archive_that_is_not_pytorchs_is_refused(tmp_path):
    torch_file.write(tmp_path / "w.pth", arrays_of())
    good = entries(tmp_path / "w.pth")
    path = tmp_path / "bad.pth"
    save(path, good, zipfile.ZIP_DEFLATED)
    refused(torch_file, path, "is compressed")
    save(path, {"README": b"no weights"})
    refused(torch_file, path, "none that PyTorch saved")
    save(path, {**good, "other/data.pkl": b"."})
    refused(torch_file, path, "none that PyTorch saved")
    save(path, {**good, "archive/data.pkl": bytes(torch_file.MOST_DESCRIPTION + 1)})
    refused(torch_file, path, "holds far more than weights")
    save(path, {**good, "archive/byteorder": b"big"})
    refused(torch_file, path, "big-endian")
    path.write_text("No weights here.")
    refused(torch_file, path, "is no file that PyTorch saved")
    refused(torch_file, tmp_path / "nowhere", "No such file")
    refused(torch_file, tmp_path, "Is a directory")

    save(path, {"a/data.pkl": b".", "b/data.pkl": b"."})
    path.write_bytes(path.read_bytes().replace(b"b/data.pkl", b"a/data.pkl"))
    refused(torch_file, path, "two entries of one name")


def test_an_archive_that_names_the_same_bytes_often_is_refused(tmp_path):
    """A zip whose entries overlap: few bytes that would become many."""
    data, name = bytes(1 << 16), "a/data/00"
    local = b"PK\3\4" + struct.pack("<5H3I2H", 20, 0, 0, 0, 33, 0, len(data), len(data), 9, 0)
    central = b"PK\1\2" + struct.pack(
        "<6H3I5H2I", 20, 20, 0, 0, 0, 33, 0, len(data), len(data), 9, 0, 0, 0, 0, 0, 0
    )
    names = [f"a/data/{i:02}".encode() for i in range(99)]
    directory = b"".join(central + each for each in names)
    begin = local + name.encode() + data
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 99, 99, len(directory), len(begin), 0)
    (tmp_path / "w.pth").write_bytes(begin + directory + end)
    assert len(zipfile.ZipFile(io.BytesIO(begin + directory + end)).infolist()) == 99
    refused(torch_file, tmp_path / "w.pth", "more bytes than it has")


def test_an_archive_of_too_many_files_is_refused(tmp_path):
    save(tmp_path / "w.pth", {str(n): b"" for n in range(120_000)})
    tracemalloc.start()
    try:
        refused(torch_file, tmp_path / "w.pth", "too many files")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_archive_that_tells_much_of_its_files_is_refused_at_once(tmp_path):
    """What stands beside each name is gone through in a time that grows with its square."""
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
        for number in range(400):
            entry = zipfile.ZipInfo(str(number))
            entry.extra = struct.pack("<2H", 2, 0) * 16_000
            file.writestr(entry, b"")
    began = time.perf_counter()
    refused(torch_file, tmp_path / "w.pth", "tells too much")
    assert time.perf_counter() - began < 10


def test_the_members_of_an_archive_are_counted_across_blocks(monkeypatch):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(20):
            archive.writestr(str(number), b"")
    for block in range(1, 50):
        monkeypatch.setattr(bounds, "BLOCK", block)
        for most in (19, 20):
            monkeypatch.setattr(bounds, "MOST_OBJECTS", most)
            file.seek(0)
            with contextlib.nullcontext() if most == 20 else pytest.raises(untrusted.Fault):
                bounds.check_members(file)


def damaged(good, count, seed):
    """`good` cut short, and with a few bytes changed, `count` times."""
    rng = random.Random(seed)
    for _ in range(count):
        bad = bytearray(good)
        if rng.random() < 0.3:
            del bad[rng.randrange(len(bad)) :]
        for _ in range(rng.randrange(4)):
            if bad:
                bad[rng.randrange(len(bad))] = rng.choice((0, 255, rng.randrange(256)))
        yield bytes(bad)


def test_damage_is_told_in_one_line_whatever_it_is(tmp_path):
    torch_file.write(tmp_path / "w.pth", arrays_of())
    parts = entries(tmp_path / "w.pth")
    path, seen = tmp_path / "bad.pth", 0
    for bad in damaged((tmp_path / "w.pth").read_bytes(), 200, seed=1):
        path.write_bytes(bad)
        seen += is_refused(torch_file, path)
    for bad in damaged(parts["archive/data.pkl"], 400, seed=2):
        save(path, {**parts, "archive/data.pkl": bad})
        seen += is_refused(torch_file, path)
    assert seen > 200  # what is not refused is whole, but for a name or a number


def is_refused(reader, path):
    try:
        reader.read(path)
    except UserError as error:
        return "\n" not in str(error)
    return False


@pytest.mark.parametrize("reader", [torch_file, safetensors_file])
def test_arrays_that_are_not_numbers_are_not_written(reader, tmp_path):
    for dtype in ("complex64", "U3", ">f4"):
        with pytest.raises(UserError, match=r"w is .*, which is not written"):
            reader.write(tmp_path / "w", {"w": np.zeros(3, dtype)})
    assert not list(tmp_path.iterdir())


# -- safetensors -----------------------------------------------------------------------------------


def test_safetensors_are_what_its_package_reads_and_writes(torch, module, tmp_path):
    package = pytest.importorskip("safetensors.torch")
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    package.save_file(state, tmp_path / "w.safetensors", {"format": "pt"})
    assert_same(safetensors_file.read(tmp_path / "w.safetensors"), as_arrays(state))
    safetensors_file.write(tmp_path / "w.safetensors", arrays_of())
    found = package.load_file(tmp_path / "w.safetensors")
    assert_same({name: tensor.numpy() for name, tensor in found.items()}, arrays_of())


def test_safetensors_are_read_as_written(tmp_path):
    safetensors_file.write(tmp_path / "w.safetensors", arrays_of())
    assert_same(safetensors_file.read(tmp_path / "w.safetensors"), arrays_of())


def test_halves_are_widened_exactly(tmp_path):
    """Against the formats' own definitions: one bfloat16 is the upper half of a float32."""
    values = np.array([1.0, -2.5, 1e-40, 3e38, np.inf], "float32")
    upper = values.view("uint32") >> 16
    halves = np.array([1.5, -65504.0, 2.0**-24, 0.0, -np.inf], "float16")
    header = json.dumps(
        {
            "brain": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]},
            "half": {"dtype": "F16", "shape": [5], "data_offsets": [10, 20]},
        }
    ).encode()
    numbers = upper.astype("<u2").tobytes() + halves.tobytes()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + numbers)
    found = safetensors_file.read(path)
    np.testing.assert_array_equal(found["brain"].view("uint32"), upper << 16)
    assert found["half"].dtype == np.float32
    assert found["half"].tolist() == halves.tolist()


def place(start, stop, shape=None, dtype="F32"):
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"w": place(0, 44)}, "4 bytes belong to nothing"),
        ({"w": place(0, 52)}, "w is not where"),
        ({"w": place(4, 48)}, "w is not where"),
        ({"v": place(0, 32), "w": place(16, 48)}, "w is not where"),
        ({"v": place(0, 16), "w": place(20, 48)}, "w is not where"),
        ({"v": place(0, 48), "w": place(0, 48)}, "w is not where"),
        ({"w": place(0, 48, [13])}, "another size than its shape"),
        ({"w": place(0, 48, [1 << 62, 1 << 62])}, "no place of 'w'"),
        ({"v": place(0, 0, [0, 1 << 62]), "w": place(0, 48)}, "no place of 'v'"),
        ({"w": place(0, 48, dtype="F8_E4M3")}, "w as F8_E4M3, which is not read"),
        ({"w": place(0, 48, [-12])}, "no place of 'w'"),
        ({"w": place(0, 48, [12.0])}, "no place of 'w'"),
        ({"w": place(0, 48, [1] * 8 + [12])}, "no place of 'w'"),
        ({"w": place(0, 48, 12)}, "no place of 'w'"),
        ({"w": place(0, 48, dtype=["F32"])}, "no place of 'w'"),
        ({"w": 3}, "no place of 'w'"),
        ({"\n": place(0, 48)}, r"no place of '\\n'"),
        ({"x" * 1001: place(0, 48)}, "no place of 'x{80}'$"),
        ({}, "48 bytes belong to nothing"),
        ([], "is no object"),
        (b'{"w": {"data_offsets": [0, 1' + b"0" * 1000000 + b"]}}", "more than 19 digits"),
        (b'{"w": 1, "w": 2}', "has 'w' twice"),
        (b"[" * 100000, "nested too deeply"),
        (b'{"w\xff": 1}', "is no JSON"),
        (b"{", "is no JSON"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(header, told, tmp_path):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(48))
    refused(safetensors_file, path, told)


def test_safetensors_that_are_none_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    for content in (b"", b"12345678", b"No weights here.", struct.pack("<Q", 1 << 63) + b"{}"):
        path.write_bytes(content)
        refused(safetensors_file, path, "is cut short, or no safetensors file")
    with path.open("wb") as file:  # of which nothing is on the disk
        file.write(struct.pack("<Q", 1 << 40) + b"{")
        file.truncate(1 << 41)
    refused(safetensors_file, path, "which is no network's")
    refused(safetensors_file, tmp_path, "Is a directory")


def test_damaged_safetensors_are_told_in_one_line(tmp_path):
    safetensors_file.write(tmp_path / "w", arrays_of())
    path, seen = tmp_path / "bad", 0
    for bad in damaged((tmp_path / "w").read_bytes(), 600, seed=3):
        path.write_bytes(bad)
        seen += is_refused(safetensors_file, path)
    assert seen > 200
