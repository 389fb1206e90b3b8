"""No file that anybody may have written crashes MXNet, and every honest pair is read as it is."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.engines import forms, predictor
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats import old_graph
from gluon_resnetv2.formats.artifact import Artifact
from gluon_resnetv2.formats.graph_file import SEAL, seal
from gluon_resnetv2.formats.pair import read_pair
from gluon_resnetv2.formats.params_file import read_arrays
from gluon_resnetv2.layers import DTYPES
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from gluon_resnetv2.untrusted import Fault, read_json
from tests.common import randomise
from tests.mutations import outcomes
from tests.test_net import SHORTCUTS

FLAGS = {  # MXNet's number of a type, from mshadow/base.h, and `struct`'s letter
    "float32": (0, "f"),
    "float64": (1, "d"),
    "float16": (2, "e"),
    "uint8": (3, "B"),
    "int32": (4, "i"),
    "int8": (5, "b"),
    "int64": (6, "q"),
}


def packed_array(
    values, dims, dtype="float32", *, version=0xF993FAC9, storage=0, device=(1, 0), flag=None
) -> bytes:
    """An array, packed by hand; of version 0 is MXNet's before 0.11."""
    number, letter = FLAGS[dtype]
    if version:
        array = struct.pack("<I", version)
        array += b"" if version == 0xF993FAC8 else struct.pack("<i", storage)
        array += struct.pack(f"<i{len(dims)}q", len(dims), *dims)
    else:
        array = struct.pack(f"<{1 + len(dims)}I", len(dims), *dims)
    array += struct.pack("<3i", *device, number if flag is None else flag)
    return array + struct.pack(f"<{len(values)}{letter}", *values)


def packed_file(arrays, names) -> bytes:
    named = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    count = struct.pack("<3Q", 0x112, 0, len(arrays))
    return count + b"".join(arrays) + struct.pack("<Q", len(names)) + named


def packed(
    values=(1, 2, 3, 4, 5, 6),
    dims=(2, 3),
    dtype="float32",
    name=b"arg:w",
    *,
    names=1,
    copies=1,
    **details,
) -> bytes:
    """A file of `copies` of one array."""
    return packed_file(copies * [packed_array(values, dims, dtype, **details)], names * [name])


def written(folder: Path, content: bytes) -> Path:
    path = folder / "net-0000.params"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", FLAGS)
@pytest.mark.parametrize("version", [0, 0xF993FAC8, 0xF993FAC9])
def test_a_file_packed_by_hand_is_read(tmp_path, dtype, version):
    path = written(tmp_path, packed(dtype=dtype, version=version, name=b"aux:a.b/c", device=(2, 3)))
    (found,) = read_arrays(path).items()
    assert found[0] == "a.b/c"
    assert found[1].dtype == dtype
    assert found[1].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert not found[1].flags.writeable
    assert mx.nd.load(str(path))["aux:a.b/c"].asnumpy().tolist() == found[1].tolist()


def test_arrays_are_those_that_mxnet_saved(tmp_path):
    rng = np.random.RandomState(0)
    arrays = {
        f"arg:{dtype}": mx.nd.array(rng.randint(0, 100, (3, 1, 5)), dtype=dtype) for dtype in FLAGS
    }
    arrays["aux:one"] = mx.nd.array([0.1])
    arrays["arg:bfloat16"] = mx.nd.array([[1.5, -2, 3e38]]).astype(DTYPES["bfloat16"])
    path = tmp_path / "net-0000.params"
    mx.nd.save(str(path), arrays)
    found = read_arrays(path)
    assert list(found) == [name[4:] for name in arrays]
    for name, array in zip(found, arrays.values()):
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.asnumpy().tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"x" * 100, "no MXNet parameter file"),
        (struct.pack("<4Q", 0x112, 0, 0, 0), "exported before it has run"),
        (packed()[:-1], "cut off"),
        (packed()[:60], "cut off"),
        (packed() + b"\0", "1 bytes more"),
        (packed(copies=2), "name for each"),
        (packed(copies=2, names=2), "has w twice"),
        (packed(version=0xF993FACB), "format"),
        (packed(storage=1), "not dense"),
        (packed(device=(7, 0)), "device"),
        (packed(flag=7), "type, 7"),
        (packed(flag=1), "cut off"),
        (packed(flag=2), "format|name"),
        (packed(dims=()), "0 dimensions"),
        (packed(dims=(1,) * 9), "9 dimensions"),
        (packed(dims=(), version=0), "0 dimensions"),
        (packed(dims=(1,) * 9, version=0), "format"),
        (packed(dims=(2**32 - 1,) * 8, version=0), "cut off"),
        (packed(version=0)[:-30], "cut off"),
        (packed(dims=(2, -3)), "shape"),
        (packed(dims=(0, 3)), "shape"),
        (packed(dims=(2**62, 2**62)), "cut off"),
        (packed(dims=(10**9, 3)), "cut off"),
        (packed(name=b""), "no parameter's"),
        (packed(name=b"arg:"), "no parameter's"),
        (packed(name=b"arg:\xff"), "no parameter's"),
        (packed(name=b"arg:a\n"), "no parameter's"),
        (packed((1, 2, 3, 4, 5, float("nan"))), "not finite"),
        (packed((1, 2, 3, 4, 5, float("-inf")), dtype="float16"), "not finite"),
    ],
)
def test_a_bad_parameter_file_is_refused(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as refused:
        read_arrays(path)
    assert str(refused.value).startswith(f"{path} ")
    assert "\n" not in str(refused.value)


def test_bfloat16_that_is_not_finite_is_refused(tmp_path):
    path = tmp_path / "net-0000.params"
    mx.nd.save(str(path), {"arg:w": mx.nd.array([1, np.inf]).astype(DTYPES["bfloat16"])})
    with pytest.raises(UserError, match="not finite"):
        read_arrays(path)


@pytest.mark.parametrize("name", ["missing.params", "."])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"can't be read|is no file"):
        read_arrays(tmp_path / name)


def test_reading_allocates_the_file_once_and_lies_about_sizes_nothing(tmp_path):
    size = 1 << 20
    path = tmp_path / "net-0000.params"
    mx.nd.save(str(path), {"arg:w": mx.nd.ones((4, size // 4))})
    content = bytearray(path.read_bytes())
    for dims in ((4, size // 4), (2**40, 2**20), (2**31, 1)):
        struct.pack_into("<2q", content, 36, *dims)
        path.write_bytes(content)
        tracemalloc.start()
        try:
            read_arrays(path)
        except UserError:
            assert dims != (4, size // 4)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1.5 * len(content)


# Honest pairs


def saved(folder: Path, symbol, arguments, states) -> tuple[Path, Path]:
    """The paths of a pair, written as MXNet writes it."""
    paths = folder / "net-symbol.json", folder / "net-0000.params"
    paths[0].write_text(symbol.tojson())
    arrays = {f"arg:{name}": array for name, array in arguments.items()}
    mx.nd.save(str(paths[1]), {**arrays, **{f"aux:{name}": v for name, v in states.items()}})
    return paths


def traced(**switches):
    """Symbol, arguments and auxiliary states of a small network of ours."""
    net = ResNetV2(named(**{"name": "preact8", "unit": "basic", **switches}))
    randomise(net)
    symbol = net(mx.sym.var("data"))
    values = {name: parameter.data() for name, parameter in net.collect_params().items()}
    states = {name: values.pop(name) for name in symbol.list_auxiliary_states()}
    return symbol, values, states


def computed(symbol, arguments, states, data, labels=(), size=32):
    images = mx.nd.array(np.random.RandomState(1).normal(size=(2, 3, size, size)))
    inputs = {data: images, **{label: mx.nd.zeros(2) for label in labels}}
    arrays = [{**arguments, **states, **inputs}[name] for name in symbol.list_inputs()]
    return mx.nd.CachedOp(symbol)(*arrays).asnumpy()


def is_read_as_by_mxnet(symbol: Path, params: Path):
    """Whether a pair computes what it does where MXNet's own functions load it, to the bit."""
    pair = read_pair(symbol, params)
    values = mx.nd.load(str(params))
    parts = (
        {name[4:]: value for name, value in values.items() if name[:4] == kind}
        for kind in ("arg:", "aux:")
    )
    expected = computed(mx.sym.load(str(symbol)), *parts, pair.data, pair.labels)
    found = computed(pair.symbol(), *pair.arrays(), pair.data, pair.labels)
    assert np.isfinite(found).all()
    return np.array_equal(found, expected)


def test_parameters_are_read_with_arg_and_aux_before_their_names_or_without(tmp_path):
    """`collect_params().save` and `save_checkpoint` beside the same symbol."""
    symbol, arguments, states = traced()
    files = saved(tmp_path, symbol, arguments, states)
    expected = read_pair(*files)
    mx.nd.save(str(files[1]), {**arguments, **states})
    found = read_pair(*files)
    assert (expected.kinds, found.kinds) == (True, False)
    for before, after in zip(expected.arrays(), found.arrays()):
        assert set(before) == set(after)
        assert all(np.array_equal(before[k].asnumpy(), after[k].asnumpy()) for k in before)
    assert set(found.arrays()[1]) == set(states)
    mx.nd.save(str(files[1]), {**arguments, **{f"arg:{name}": states[name] for name in states}})
    with pytest.raises(UserError, match="as another kind of parameter than its file"):
        read_pair(*files)


SWITCHES = {
    **{f"shortcut {shortcut}": {"shortcut": shortcut} for shortcut in SHORTCUTS},
    **{f"widening {option}": {"widening": option} for option in "ABC"},
    "input BN": {"input_bn": "shift"},
    "bottleneck": {"name": "preact11", "unit": "bottleneck"},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_our_exports_are_read(tmp_path, name):
    assert is_read_as_by_mxnet(*saved(tmp_path, *traced(**SWITCHES[name])))


def with_preprocessing(symbol, arguments, states):
    data, mean, std = (mx.sym.var(name) for name in ("data", "mean", "std"))
    values = {"mean": mx.nd.ones((1, 3, 1, 1)), "std": 2 * mx.nd.ones((1, 3, 1, 1))}
    normalised = mx.sym.broadcast_div(mx.sym.broadcast_sub(data, mean), std)
    return mx.sym.softmax(symbol(data=normalised)), {**arguments, **values}, states


def in_bfloat16(symbol, arguments, states):
    inner = mx.sym.amp_cast(mx.sym.var("data"), dtype=DTYPES["bfloat16"])
    return symbol(data=mx.sym.amp_cast(inner, dtype="float32")), arguments, states


def in_8_bits(symbol, arguments, states):
    images = np.random.RandomState(0).normal(size=(4, 3, 16, 16)).astype("float32")
    return forms.int8(symbol, arguments, states, images)


CHANGES = {
    "baked preprocessing": with_preprocessing,
    "bfloat16": in_bfloat16,
    "softmax": lambda symbol, *arrays: (mx.sym.softmax(symbol / 2 + 1), *arrays),
    "SoftmaxOutput": lambda symbol, *arrays: (
        mx.sym.SoftmaxOutput(symbol, name="softmax"),
        *arrays,
    ),
    "fused": lambda symbol, *arrays: (symbol.get_backend_symbol("MKLDNN"), *arrays),
    "int8": in_8_bits,
}


@pytest.mark.parametrize("name", CHANGES)
def test_forms_of_our_exports_are_read(tmp_path, name):
    assert is_read_as_by_mxnet(*saved(tmp_path, *CHANGES[name](*traced())))


def test_images_whose_channels_are_last_are_taken(tmp_path):
    symbol, arguments, states = traced()
    data, mean = mx.sym.var("data"), mx.sym.var("mean")
    centred = mx.sym.transpose(mx.sym.broadcast_sub(data, mean), axes=(0, 3, 1, 2))
    numbers = mx.nd.array([[[[1, 2, 3]]]])
    files = saved(tmp_path, symbol(data=centred), {**arguments, "mean": numbers}, states)
    assert read_pair(*files).shape == (32, 32, 3)
    assert read_pair(*files, (16, 24, 3)).shape == (16, 24, 3)
    with pytest.raises(UserError, match=r"takes images of shape \(16, 24, 3\), not \(3, 16, 24\)"):
        read_pair(*files, (3, 16, 24))
    files = saved(tmp_path, symbol, arguments, states)
    with pytest.raises(UserError, match=r"takes images of shape \(3, 16, 24\), not \(16, 24, 3\)"):
        read_pair(*files, (16, 24, 3))


def test_symbols_that_mxnet_named_the_variables_of_are_read(tmp_path):
    """`mx.sym` leaves an operator's attributes on the variables that it makes for it."""
    conv = mx.sym.Convolution(mx.sym.var("data"), kernel=(3, 3), num_filter=4, name="conv")
    logits = mx.sym.FullyConnected(mx.sym.Pooling(conv, global_pool=True), num_hidden=2, name="fc")
    shapes = dict(zip(logits.list_arguments(), logits.infer_shape(data=(1, 3, 32, 32))[0]))
    del shapes["data"]
    values = {name: mx.nd.random.normal(shape=shape) for name, shape in shapes.items()}
    symbol, params = saved(tmp_path, logits, values, {})
    assert '"kernel"' in json.dumps(json.loads(symbol.read_text())["nodes"][1])
    assert is_read_as_by_mxnet(symbol, params)


@pytest.mark.parametrize(
    "name", ["cifar_resnet20_v2", "resnet50_v2", "resnet18_v1", "se_resnext50_32x4d", "resnest14"]
)
def test_gluoncv_s_exports_are_read(tmp_path, name):
    model_zoo = pytest.importorskip("gluoncv.model_zoo", exc_type=ImportError)
    zoo_export(model_zoo.get_model(name, classes=10), tmp_path)
    assert is_read_as_by_mxnet(tmp_path / "net-symbol.json", tmp_path / "net-0000.params")


@pytest.mark.parametrize("name", ["resnet18_v1", "resnet18_v2", "mobilenet_v2_0_25"])
def test_the_model_zoo_s_exports_are_read(tmp_path, name):
    zoo_export(getattr(mx.gluon.model_zoo.vision, name)(classes=10), tmp_path)
    assert is_read_as_by_mxnet(tmp_path / "net-symbol.json", tmp_path / "net-0000.params")


def as_old(graph: dict, states: set[str], version: int | None) -> dict:
    """A graph of today's as MXNet 0.9 to 0.12 wrote it; or, without version, as 0.8 did."""
    nodes, places = [], {}
    for index, node in enumerate(graph["nodes"]):
        if not version and node["name"] in states:
            continue
        places[index] = len(nodes)
        new = {"op": node["op"], "name": node["name"].removesuffix("_fwd")}
        said = node.get("attrs", {})
        said = {k: v for k, v in said.items() if not k.startswith("__")}
        if node["op"] == "BatchNorm":
            said.pop("axis")
        entries = [(places[i], *rest) for i, *rest in node["inputs"] if i in places]
        if version:
            nodes.append({**new, "attr": {**said, "lr_mult": "2.0"}, "inputs": entries})
            continue
        new["op"] = {"elemwise_add": "_Plus", "SoftmaxOutput": "Softmax"}.get(*2 * [node["op"]])
        entries = [entry[:2] for entry in entries]
        new.update(param=said, inputs=entries, backward_source_id=-1)
        layer = node["op"] == "Convolution"
        nodes.append({**new, "attr": {"weight_lr_mult": "1.2"} if layer else {"ctx_group": "b"}})
    variables = [index for index, node in enumerate(nodes) if node["op"] == "null"]
    old = {"nodes": nodes, "arg_nodes": variables, "heads": [[len(nodes) - 1, 0]]}
    if version:
        old.update(heads=[[len(nodes) - 1, 0, 0]], node_row_ptr=list(range(len(nodes) + 1)))
        old["attrs"] = {"mxnet_version": ["int", version]}
    return old


@pytest.mark.parametrize(
    ("version", "arrays"), [(None, 0), (905, 0), (1100, 0xF993FAC8), (1200, 0xF993FAC9)]
)
def test_pairs_of_mxnet_0_are_read(tmp_path, version, arrays):
    """What MXNet 1.9.1 makes of the same files is what they should be."""
    symbol, arguments, states = traced(input_bn="shift")
    symbol = mx.sym.SoftmaxOutput(symbol, name="softmax", multi_output=False, out_grad=False)
    paths = tmp_path / "net-symbol.json", tmp_path / "net-0000.params"
    graph = as_old(json.loads(symbol.tojson()), set(states), version)
    paths[0].write_text(json.dumps(graph))
    named = {f"arg:{name}": array.asnumpy() for name, array in arguments.items()}
    named.update({f"aux:{name}": array.asnumpy() for name, array in states.items()})
    content = [packed_array(a.ravel(), a.shape, version=arrays) for a in named.values()]
    paths[1].write_bytes(packed_file(content, [name.encode() for name in named]))
    assert is_read_as_by_mxnet(*paths)
    assert read_pair(*paths).labels == ["softmax_label"]
    graph["nodes"][1]["plugin"] = 1
    paths[0].write_text(json.dumps(graph))
    with pytest.raises(UserError, match="may have"):
        read_pair(*paths)


@pytest.mark.parametrize("name", old_graph.NAMES)
def test_operators_have_the_names_that_mxnet_gives_them_now(name):
    operator = getattr(mx.sym, name, None) or getattr(mx.sym._internal, name)
    one, two = map(mx.sym.var, "ab")
    made = operator(one, scalar=2) if "Scalar" in name else operator(one, two)
    assert json.loads(made.tojson())["nodes"][-1]["op"] == old_graph.NAMES[name]


def zoo_export(net, folder):
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.export(str(folder / "net"))


@pytest.mark.filterwarnings("ignore")  # MXNet's quantisation has its own
def test_a_quantised_export_is_read(tmp_path):
    symbol, params = quantised(tmp_path)
    assert "_contrib_quantize_v2" in symbol.read_text()
    assert is_read_as_by_mxnet(symbol, params)


def quantised(folder: Path) -> tuple[Path, Path]:
    symbol, params = saved(folder, *traced())
    net = mx.gluon.SymbolBlock.imports(str(symbol), ["data"], str(params))
    images = np.random.RandomState(0).normal(size=(4, 3, 16, 16)).astype("float32")
    quantised = mx.contrib.quantization.quantize_net_v2(
        net,
        quantized_dtype="auto",
        calib_mode="naive",
        calib_data=mx.io.NDArrayIter(images, None, batch_size=4),
        ctx=mx.cpu(),
    )
    quantised.hybridize()
    quantised(mx.nd.array(images)).wait_to_read()
    quantised.export(str(folder / "int8"))
    return folder / "int8-symbol.json", folder / "int8-0000.params"


# Hostile graphs


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A small sealed pair."""
    folder = tmp_path_factory.mktemp("honest")
    symbol, params = saved(folder, *traced())
    symbol.write_text(seal(symbol.read_text(), params))
    return symbol, params


def unsealed(symbol: Path) -> dict:
    graph = json.loads(symbol.read_text())
    for node in graph["nodes"]:
        node.get("attrs", {}).pop(SEAL, None)
    return graph


def node_of(graph, op):
    """The first node of an operator; of variables, "null", the first convolution's weight."""
    return next(node for node in graph["nodes"][1:] if node["op"] == op)


def set_attribute(op, **attributes):
    return lambda graph: node_of(graph, op).setdefault("attrs", {}).update(attributes)


def image_attribute(**attributes):
    return lambda graph: graph["nodes"][0].setdefault("attrs", {}).update(attributes)


def replace_operator(op, new, **attributes):
    return lambda graph: node_of(graph, op).update(op=new, attrs=attributes)


def concatenate_without_end(graph):
    """Each of these nodes holds twice as much as the one before: 2^40 times the image."""
    conv = next(i for i, node in enumerate(graph["nodes"]) if node["op"] == "Convolution")
    graph["nodes"] += [
        {
            "op": "Concat",
            "name": f"more{i}",
            "attrs": {"dim": "2", "num_args": "2"},
            "inputs": [[len(graph["nodes"]) + i - 1 if i else conv, 0, 0]] * 2,
        }
        for i in range(40)
    ]
    pooled = {"op": "mean", "name": "end", "attrs": {"axis": "(2, 3)"}}
    graph["nodes"].append({**pooled, "inputs": [[len(graph["nodes"]) - 1, 0, 0]]})
    both = [[graph["heads"][0][0], 0, 0], [len(graph["nodes"]) - 1, 0, 0]]
    graph["nodes"].append(
        {"op": "Concat", "name": "all", "attrs": {"dim": "1", "num_args": "2"}, "inputs": both}
    )
    graph["heads"] = [[len(graph["nodes"]) - 1, 0, 0]]
    del graph["node_row_ptr"]


def reshape_beyond(graph):
    """MXNet takes the kernel's word for how many numbers there are."""
    reshape = {"op": "Reshape", "name": "more", "attrs": {"shape": "(0, 1000)"}}
    graph["nodes"].append({**reshape, "inputs": graph["heads"]})
    graph["heads"] = [[len(graph["nodes"]) - 1, 0, 0]]
    del graph["node_row_ptr"]


def gamma_of_another_size(graph):
    """MXNet's shape inference lets it pass, and its kernel reads beyond the end."""
    gammas = [node for node in graph["nodes"] if node["name"].endswith("_gamma")]
    gammas[0]["name"], gammas[-1]["name"] = gammas[-1]["name"], gammas[0]["name"]


HOSTILE = {
    "stride 0": (set_attribute("Convolution", stride="(0, 0)"), "stride"),
    "no groups": (set_attribute("Convolution", num_group="0"), "num_group"),
    "groups that don't divide": (set_attribute("Convolution", num_group="3"), "num_group"),
    "huge pad": (set_attribute("Convolution", pad="(100000, 1)"), "pad"),
    "pad beyond the kernel": (set_attribute("Convolution", pad="(64, 64)"), "pad"),
    "huge kernel": (set_attribute("Convolution", kernel="(2147483647, 2)"), "kernel"),
    "another kernel": (set_attribute("Convolution", kernel="(5, 5)"), "does not fit"),
    "unknown attribute": (set_attribute("Convolution", plugin="x"), "plugin"),
    "unknown operator": (replace_operator("Activation", "Custom", op_type="x"), "Custom"),
    "fused without a graph": (replace_operator("Activation", "_sg_mkldnn_conv"), "stands for"),
    "axis beyond": (set_attribute("BatchNorm", axis="100"), "axis"),
    "scaled by nan": (replace_operator("Activation", "_mul_scalar", scalar="nan"), "scalar"),
    "reshape that reads beyond": (reshape_beyond, r"makes \(2, 1000\) of \(2, 10\)"),
    "reshape by nothing": (
        replace_operator("Activation", "Reshape", shape="(0, -4, 0, -1)"),
        "shape",
    ),
    "reshape of the batch": (replace_operator("Activation", "Reshape", shape="(1, -1)"), "not fit"),
    "a mean over the images": (set_attribute("mean", axis="(0, 1)"), "not fit"),
    "a slice of few images": (
        replace_operator("Activation", "slice", begin="()", end="3"),
        "mixes",
    ),
    "a slice from beyond": (
        replace_operator("Activation", "slice", begin="(0, 0, -99)", end="(None, None, None)"),
        "begin",
    ),
    "integers": (replace_operator("Activation", "Cast", dtype="int32"), "dtype"),
    "another shape": (set_attribute("null", __shape__="(16, 4, 3, 3)"), "__shape__"),
    "another number of axes": (set_attribute("null", __shape__="(16,)"), "__shape__"),
    "a shape of words": (set_attribute("null", __shape__="(many,)"), "__shape__"),
    "another type": (set_attribute("null", __dtype__="2"), "__dtype__"),
    "images of another type": (image_attribute(__dtype__="4"), "__dtype__"),
    "a sparse array": (set_attribute("null", __storage_type__="1"), "__storage_type__"),
    "a loop": (lambda graph: node_of(graph, "Convolution")["inputs"][0].__setitem__(0, 2), "reads"),
    "a later node": (
        lambda graph: node_of(graph, "mean")["inputs"][0].__setitem__(0, 10**9),
        "reads",
    ),
    "an output not there": (
        lambda graph: node_of(graph, "mean")["inputs"][0].__setitem__(1, 2),
        "reads",
    ),
    "an unread node": (lambda graph: graph.update(heads=[[2, 0, 0]]), "nothing reads"),
    "two outputs": (lambda graph: graph.update(heads=graph["heads"] * 2), "one output"),
    "an unknown key": (lambda graph: graph["nodes"][0].update(plugin=1), "may have"),
    "a name twice": (lambda graph: graph["nodes"][1].update(name="data"), "another node"),
    "another name": (lambda graph: graph["nodes"][1].update(name="conv0_weigh"), "no variable"),
    "too few inputs": (lambda graph: node_of(graph, "BatchNorm")["inputs"].pop(), "reads 5"),
    "more memory than any network": (concatenate_without_end, "numbers of an image"),
    "parameters of another layer": (gamma_of_another_size, "gamma"),
    "another seal's name": (
        image_attribute(__sha257__="0"),
        "sha257",
    ),
    "deep nesting": (
        lambda graph: json.dumps(graph).replace("[]", 3000 * "[        " + 3000 * "]", 1),
        "deep",
    ),
    "a key twice": (lambda graph: json.dumps(graph).replace('"op"', '"op": "null", "op"'), "twice"),
    "another encoding": (lambda graph: json.dumps(graph).encode("utf-16"), "no JSON"),
    "a huge number": (
        lambda graph: json.dumps(graph).replace("[[", "[[" + 99999 * "9", 1),
        "number",
    ),
    "no graph": (lambda graph: "[]", "no MXNet graph"),
    "nothing": (lambda graph: b"", "no JSON"),
    "too much": (lambda graph: b" " * (9 << 20), "the most"),
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 1}', "twice"),
        ('{"a": NaN}', "NaN"),
        ("[-Infinity]", "Infinity"),
        ("[1e999]", "1e999"),
        ("[" + 99 * "9" + "]", "number"),
        (3000 * "[        " + 3000 * "]", "deep"),
        (3000 * "[],", "brackets"),
        ("[1", "no JSON"),
        ("[1] 2", "no JSON"),
        ("\ufeff[1]", "no JSON"),
    ],
)
def test_json_that_is_not_strict_is_refused(text, message):
    with pytest.raises(Fault, match=message) as refused:
        read_json(text.encode())
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_json_is_read():
    value = {"a": [1, -2.5, 1e-300, None, True, "\u00e9"], "b": {}, "c": [[], {}]}
    assert read_json(json.dumps(value).encode()) == value
    with pytest.raises(Fault, match="no JSON"):
        read_json(b'"\xff"')


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused(honest, tmp_path, name):
    change, message = HOSTILE[name]
    graph = unsealed(honest[0])
    content = change(graph)
    content = content if isinstance(content, (str, bytes)) else json.dumps(graph)
    path = tmp_path / "net-symbol.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as refused:
        read_pair(path, honest[1])
    assert str(refused.value).startswith(f"{path} ")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_hidden_attributes_within_a_fused_operator_are_refused(tmp_path):
    symbol, params = saved(tmp_path, *CHANGES["fused"](*traced()))
    graph = json.loads(symbol.read_text())
    node_of(graph, "_sg_mkldnn_conv")["subgraphs"][0]["nodes"][0]["attrs"] = {"__dtype__": "0"}
    symbol.write_text(json.dumps(graph))
    with pytest.raises(UserError, match="hidden"):
        read_pair(symbol, params)


def test_integers_are_for_quantised_operators_alone(tmp_path):
    """In MXNet the first division of integers by zero is the last."""
    quotient = mx.sym.broadcast_div(mx.sym.var("one"), mx.sym.var("zero"))
    pooled = mx.sym.mean(mx.sym.var("data"), axis=(2, 3))
    symbol = mx.sym.broadcast_mul(pooled, mx.sym.Cast(quotient, dtype="float32"))
    zero = mx.nd.zeros((1, 3), dtype="int32")
    files = saved(tmp_path, symbol, {"one": zero + 1, "zero": zero}, {})
    with pytest.raises(UserError, match="integers"):
        read_pair(*files)


# Images of a batch


def classifier(features):
    """A pair's symbol and parameters: one layer on channels' means."""
    pooled = mx.sym.mean(features, axis=(2, 3))
    rng = np.random.RandomState(0)
    values = {"fc_weight": rng.normal(size=(10, 3)), "fc_bias": rng.normal(size=10)}
    arrays = {name: mx.nd.array(value) for name, value in values.items()}
    return mx.sym.FullyConnected(pooled, num_hidden=10, name="fc"), arrays


def second_row_changes(symbol, arrays):
    """Whether another first image changes what MXNet computes for the second."""
    images = np.random.RandomState(1).normal(size=(2, 3, 8, 8))
    others = np.concatenate([7 * images[1:] + 1, images[1:]])
    rows = []
    for data in (images, others):
        given = {**arrays, "data": mx.nd.array(data)}
        inputs = [given[name] for name in symbol.list_inputs()]
        rows.append(mx.nd.CachedOp(symbol)(*inputs).asnumpy()[1])
    assert np.isfinite(rows).all()
    return not np.array_equal(*rows)


def swapped(x):
    return mx.sym.SwapAxis(x, dim1=0, dim2=1)


def transposed(x):
    return mx.sym.transpose(x, axes=(1, 0, 2, 3))


def in_int8(x, **ranges):
    return mx.sym.contrib.dequantize(*mx.sym.contrib.quantize_v2(x, out_type="int8", **ranges))


MIXING = {
    "the first": lambda x: mx.sym.broadcast_add(x, mx.sym.slice_axis(x, axis=-4, begin=0, end=1)),
    "mean": lambda x: mx.sym.broadcast_sub(x, mx.sym.mean(x, axis=-4, keepdims=True)),
    "sum": lambda x: mx.sym.broadcast_add(x, mx.sym.sum(x, axis=0, keepdims=True)),
    "softmax": lambda x: mx.sym.softmax(x, axis=0),
    "softmax from the end": lambda x: mx.sym.softmax(x, axis=-4),
    "channels of all": lambda x: mx.sym.Reshape(
        mx.sym.softmax(mx.sym.Reshape(x, shape=(1, -1, 0, 0)), axis=1), shape=(-1, 3, 0, 0)
    ),
    "swapped axes": lambda x: swapped(mx.sym.softmax(swapped(x), axis=1)),
    "another axis": lambda x: mx.sym.sum(
        mx.sym.softmax(mx.sym.expand_dims(x, axis=0), axis=1), axis=0
    ),
    "halves of two": lambda x: mx.sym.slice_axis(
        mx.sym.Reshape(mx.sym.Concat(x, x, dim=-4), shape=(-1, 6, 0, 0)), axis=1, begin=0, end=3
    ),
    "transposed": lambda x: transposed(mx.sym.softmax(transposed(x), axis=1)),
    "the range of all": in_int8,
}
APART = {
    "slice": lambda x: mx.sym.broadcast_add(x, mx.sym.slice_axis(x, axis=-3, begin=0, end=1)),
    "mean": lambda x: mx.sym.broadcast_sub(x, mx.sym.mean(x, axis=-1, keepdims=True)),
    "softmax": lambda x: mx.sym.softmax(x, axis=-3),
    "swapped axes": lambda x: mx.sym.SwapAxis(x, dim1=2, dim2=3),
    "transposed": lambda x: mx.sym.transpose(x, axes=(0, 1, 3, 2)),
    "a calibrated range": lambda x: in_int8(x, min_calib_range=-3, max_calib_range=3),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_graph_that_mixes_images_is_refused(tmp_path, name):
    symbol, arrays = classifier(MIXING[name](mx.sym.var("data")))
    assert second_row_changes(symbol, arrays)
    with pytest.raises(UserError, match=r"mix(es)? (its )?images"):
        read_pair(*saved(tmp_path, symbol, arrays, {}), (3, 8, 8))


@pytest.mark.parametrize("name", APART)
def test_a_graph_that_keeps_images_apart_is_read(tmp_path, name):
    symbol, arrays = classifier(APART[name](mx.sym.var("data")))
    assert not second_row_changes(symbol, arrays)
    assert is_read_as_by_mxnet(*saved(tmp_path, symbol, arrays, {}))


# What is legal, and too much


def convolved(x, count=1, **options):
    """`count` convolutions by the same weight."""
    weight = mx.sym.var("weight")
    for _ in range(count):
        x = mx.sym.Convolution(x, weight, num_filter=3, no_bias=True, **options)
    return x


LARGE = {"kernel": (64, 64), "stride": (1, 1), "pad": (32, 32)}
TOO_MUCH = {
    "pooling": (lambda x: mx.sym.Pooling(x, pool_type="max", **LARGE), "pools 51916800 numbers"),
    "a window of all": (
        lambda x: mx.sym.broadcast_add(
            x, mx.sym.contrib.AdaptiveAvgPooling2D(x, output_size=(64, 64))
        ),
        "pools 50331648 numbers",
    ),
    "convolutions": (lambda x: convolved(x, 2600, kernel=(55, 55), pad=(27, 27)), "products"),
    "a convolution laid out": (lambda x: convolved(x, **LARGE), "lays out 51916800 numbers"),
    "nodes": (lambda x: [x := mx.sym.relu(x) for _ in range(12_001)][-1], "12000 are the most"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_more_work_than_any_network_s_is_refused(tmp_path, name):
    """Tens of kilobytes, of which each would take minutes, or gigabytes."""
    change, message = TOO_MUCH[name]
    symbol, arrays = classifier(change(mx.sym.var("data")))
    if "weight" in symbol.list_arguments():
        shapes = zip(symbol.list_arguments(), symbol.infer_shape(data=(1, 3, 64, 64))[0])
        arrays["weight"] = mx.nd.zeros(dict(shapes)["weight"])
    with pytest.raises(UserError, match=message):
        read_pair(*saved(tmp_path, symbol, arrays, {}), (3, 64, 64))


def test_so_many_images_at_once_as_the_memory_holds(tmp_path, monkeypatch):
    data = mx.sym.var("data")
    symbol, arrays = classifier(mx.sym.relu(data) + data)
    artifact = Artifact(*saved(tmp_path, symbol, arrays, {}), None)
    # The images, their ReLU and the sum.
    assert artifact.read((3, 64, 64)).peak() == 3 * 3 * 64 * 64
    monkeypatch.setattr(predictor, "_memory", lambda: 8 * 3 * 3 * 64 * 64 * 4)
    assert Predictor(artifact, max_batch=4, shape=(3, 64, 64)).max_batch == 4
    with pytest.raises(UserError, match="for 5 images at once"):
        Predictor(artifact, max_batch=5, shape=(3, 64, 64))


ANSWERS = {
    "float16": lambda x: mx.sym.Cast(x, dtype="float16"),
    "float64": lambda x: mx.sym.Cast(x, dtype="float64"),
    "bfloat16": lambda x: mx.sym.amp_cast(x, dtype=DTYPES["bfloat16"]),
}


@pytest.mark.parametrize("dtype", ANSWERS)
def test_answers_that_are_not_float32_are_refused_in_a_line(tmp_path, dtype):
    symbol, arrays = classifier(mx.sym.var("data"))
    artifact = Artifact(*saved(tmp_path, ANSWERS[dtype](symbol), arrays, {}), None)
    with pytest.raises(UserError, match=f"answers in .*{dtype}.*`convert") as refused:
        artifact.read()
    assert "\n" not in str(refused.value)


def test_a_loss_of_more_than_rows_is_refused(tmp_path):
    symbol, arrays = classifier(mx.sym.SoftmaxOutput(mx.sym.var("data"), name="loss"))
    with pytest.raises(UserError, match="wrong in loss: it takes a row of classes"):
        read_pair(*saved(tmp_path, symbol, arrays, {}), (3, 8, 8))


def test_the_shape_of_the_images_is_checked(honest):
    pair = read_pair(*honest)
    assert pair.shape == (3, 32, 32)
    assert pair.check((3, 16, 16)) == 10
    with pytest.raises(UserError, match="does not fit"):
        pair.check((1, 16, 16))
    with pytest.raises(UserError, match="does not fit"):
        read_pair(*honest, shape=(4, 16, 16))


# Seals, and sums from elsewhere


def sums(*paths):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_files_of_the_right_sums_are_read(honest):
    assert read_pair(*honest, sums=sums(*honest)).text == read_pair(*honest).text
    ((_, params_sum),) = sums(honest[1]).items()
    assert set(read_arrays(honest[1], params_sum)) == set(read_pair(*honest).parameters)


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_of_another_sum_is_refused(honest, number):
    wrong = honest[number]
    for changed in ({wrong.name: hashlib.sha256(b"").hexdigest()}, {wrong.name: ""}):
        with pytest.raises(UserError, match=f"^{wrong} is not the file that was exported"):
            read_pair(*honest, sums={**sums(*honest), **changed})
    with pytest.raises(UserError, match=f"^{wrong} is not the file that was exported"):
        read_pair(*honest, sums=sums(honest[1 - number]))


def test_arrays_of_another_sum_are_refused(honest):
    with pytest.raises(UserError, match="is not the file that was exported"):
        read_arrays(honest[1], "0" * 64)


def test_a_sealed_pair_is_read_by_everyone(honest, tmp_path):
    symbol, params = honest
    assert is_read_as_by_mxnet(symbol, params)
    mx.sym.load(str(symbol)).save(str(tmp_path / "again-symbol.json"))
    assert SEAL in (tmp_path / "again-symbol.json").read_text()
    read_pair(tmp_path / "again-symbol.json", params)


def test_a_seal_is_of_graph_and_parameters_however_they_are_written(honest):
    symbol, params = honest
    graph = json.loads(symbol.read_text())
    again = seal(json.dumps(unsealed(symbol), indent=7), params)
    assert json.loads(again) == graph
    assert json.loads(seal(again, params)) == graph


CHANGED = {
    "a weight": ("params", lambda data: data[:-4000] + bytes([data[-4000] ^ 1]) + data[-3999:]),
    "an attribute": ("symbol", lambda data: data.replace(b'"1e-05"', b'"2e-05"', 1)),
    "a multiplier": ("symbol", lambda data: data.replace(b'"1.0"', b'"1.1"', 1)),
    "the seal": ("symbol", lambda data: data.replace(b'sha256__": "', b'sha256__": "0', 1)),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_changed_pair_is_refused(honest, tmp_path, what):
    which, change = CHANGED[what]
    symbol, params = tmp_path / "net-symbol.json", tmp_path / "net-0000.params"
    for path, source in zip((symbol, params), honest):
        data = source.read_bytes()
        path.write_bytes(change(data) if which in path.name else data)
    with pytest.raises(UserError, match="damaged or was changed after export"):
        read_pair(symbol, params)


# Mutants, in a process of their own


def assert_survived(found, files, allowed):
    """Every mutant was refused in one line, or came to what is allowed, within bounded memory."""
    wrong = [
        mutant
        for mutant in found
        if mutant["outcome"].split(":")[0] not in {"refused", *allowed}
        or (mutant["outcome"].startswith("refused") and "\n" in mutant["outcome"])
    ]
    assert not wrong
    honest = sum(path.stat().st_size for path in files)
    assert max(mutant["growth"] - 2 * max(mutant["size"], honest) for mutant in found) < NOISE
    assert {"same", "refused"} <= {mutant["outcome"].split(":")[0] for mutant in found}


# Bytes: what a busy machine adds by itself, as its other threads' first pieces of memory (0.2 MB
# alone, 3.7 once beside other tests). What a false length or shape asks for is far above it.
NOISE = 16 << 20


def mutants_of_a_sealed_pair(honest, count, seed):
    """Without its manifest it still gives its own outputs, or none."""
    assert_survived(outcomes(*honest, count, seed), honest, {"same"})


def mutants_of_a_pair_without_seal(honest, folder, count, seed):
    symbol = folder / "net-symbol.json"
    symbol.write_text(json.dumps(unsealed(honest[0])))
    found = outcomes(symbol, honest[1], count, seed)
    assert_survived(found, (symbol, honest[1]), {"same", "different"})


def test_mutants_of_a_sealed_pair(honest):
    mutants_of_a_sealed_pair(honest, 300, seed=0)


def test_mutants_of_a_pair_without_seal(honest, tmp_path):
    mutants_of_a_pair_without_seal(honest, tmp_path, 300, seed=0)


@pytest.mark.slow  # half a minute each
def test_2000_mutants_of_a_sealed_pair(honest):
    mutants_of_a_sealed_pair(honest, 2000, seed=1)


@pytest.mark.slow
def test_2000_mutants_of_a_pair_without_seal(honest, tmp_path):
    mutants_of_a_pair_without_seal(honest, tmp_path, 2000, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fused", "int8"])
def test_2000_mutants_of_other_forms(tmp_path, form):
    files = saved(tmp_path, *CHANGES[form](*traced()))
    assert_survived(outcomes(*files, 2000, 2), files, {"same", "different"})


def test_a_process_that_ends_early_is_seen(honest, tmp_path):
    with pytest.raises(AssertionError, match="ended with"):
        outcomes(tmp_path / "missing", honest[1], 1)
