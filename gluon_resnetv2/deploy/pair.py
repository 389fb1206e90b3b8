"""Reading a pair, NAME-symbol.json and NAME-0000.params, that anybody may have written.

MXNet's own loader takes what it is given: a flipped bit becomes a wrong weight, an edited number
a division by zero in C++, a read outside an array or 12 GB of memory. Here both files are taken
apart in Python first, and MXNet sees only what has been checked:

- the parameters' bytes, which become arrays without MXNet's reader;
- the graph: operators and attributes that image classifiers need, each with values that no kernel
  fails on; without what MXNet needs for training alone;
- every shape within it, against the parameters and against what is worth allocating;
- the seal, where there is one: a SHA-256 of graph and parameters in the graph itself, so that a
  pair shows damage without its manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.layers import DTYPES

SEAL = "__sha256__"  # attribute of the images' variable
SYMBOL_BYTES, NODES = 8 << 20, 20_000  # largest graph; preact1001's has 2.5 MB and 8 344 nodes
PARAMS_BYTES = 4 << 30  # largest parameters
# What one image may make of memory, in elements: an array as large as so many of its planes (a
# wide layer has 2048 at a quarter of the size), and all arrays of the graph together.
PLANES = 1024
TOTAL = 1 << 30
SIZES = (32, 224, 299, 28, 64, 96, 128, 256, 16, 8)  # images' usual heights and widths, in pixels


class _Fault(Exception):
    """What is wrong with a file, to be told with the file's name before it."""


@contextlib.contextmanager
def _told_of(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except _Fault as fault:
        raise UserError(f"{path} {fault}") from None


@dataclass(frozen=True)
class Pair:
    """A graph and its parameters, checked.

    Attributes:
        text: the graph as JSON, as MXNet is given it.
        graph: the same, parsed.
        parameters: a read-only array for each "arg:NAME" and "aux:NAME", a view of the file.
        data: name of the images' input.
        labels: names of inputs that a loss would read.
        shape: (C, H, W) of an image, as given, or a usual one that fits.
    """

    text: str
    graph: dict
    parameters: dict[str, np.ndarray] = field(repr=False)
    data: str
    labels: list[str]
    shape: tuple[int, int, int]

    def symbol(self) -> mx.sym.Symbol:
        """The graph, as MXNet has it."""
        return mx.sym.load_json(self.text)

    def arrays(self) -> tuple[dict[str, mx.nd.NDArray], dict[str, mx.nd.NDArray]]:
        """Copies of the parameters on the CPU, by name: the arguments, the auxiliary states."""
        arguments, states = {}, {}
        for name, value in self.parameters.items():
            kind, _, name = name.partition(":")
            array = mx.nd.array(value, ctx=mx.cpu(), dtype=value.dtype)
            (arguments if kind == "arg" else states)[name] = array
        return arguments, states

    def check(self, shape: tuple[int, int, int]) -> int:
        """Has the graph take images of (C, H, W); returns how many classes it tells apart.

        Raises:
            UserError: it does not take them, or would make far more of them than a network does.
        """
        with _told_of("the graph"):
            return _check_shapes(self, shape)


def read_pair(
    symbol: str | Path, params: str | Path, shape: tuple[int, int, int] | None = None
) -> Pair:
    """Reads and checks both files.

    Allocates no more than the files' size, and once more for the graph's JSON.

    Args:
        shape: (C, H, W) of an image, where it is known.

    Raises:
        UserError: a file is missing, damaged, or no image classifier's.
    """
    with _told_of(params):
        data = _read(params, PARAMS_BYTES)
        parameters = _parameters(data)
    with _told_of(symbol):
        graph = _parse(_read(symbol, SYMBOL_BYTES))
        nodes = _check_graph(
            graph, {name[4:] for name, array in parameters.items() if array.dtype.kind in "iu"}
        )
        seals = [a[SEAL] for a in map(_attributes, graph["nodes"]) if SEAL in a]
        if seals and seals != [_digest(graph, data)]:
            raise _Fault(
                "is damaged or was changed after export: its SHA-256 does not fit it and "
                f"{Path(params).name}"
            )
        images, labels = _free(nodes, parameters)
        unknown = {key for key in _attributes(images) if _hidden(key)} - KNOWN
        if unknown:  # perhaps a seal, were it not for a flipped bit
            raise _Fault(f"has an unknown attribute of {images['name']}, {_quote(min(unknown))}")
        clean = _clean(graph)
        pair = Pair(json.dumps(clean), clean, parameters, images["name"], labels, shape or ())
        _check_symbol(pair)
        if shape:
            _check_shapes(pair, shape)
            return pair
        return replace(pair, shape=_usual_shape(pair, nodes))


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The read-only arrays of a .params file by name, "arg:NAME" or "aux:NAME".

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    with _told_of(path):
        return _parameters(_read(path, PARAMS_BYTES))


def seal(text: str, params: bytes | str | Path) -> str:
    """A graph's JSON with its own SHA-256 and the parameters' in it, in place of any before.

    MXNet keeps the seal as an attribute of the images' variable and makes no use of it.

    Args:
        params: the .params file, or its content.

    Raises:
        UserError: as `read_pair`.
    """
    with _told_of("the graph's parameters" if isinstance(params, bytes) else params):
        data = params if isinstance(params, bytes) else _read(params, PARAMS_BYTES)
        parameters = _parameters(data)
    with _told_of("the graph"):
        graph = _parse(text.encode())
        images, _ = _free(_check_graph(graph), parameters)
        digest = _digest(graph, data)
    for node in graph["nodes"]:
        _attributes(node).pop(SEAL, None)
    images.setdefault("attrs", {})[SEAL] = digest
    return json.dumps(graph, indent=1)


def _digest(graph, params: bytes) -> str:
    """The SHA-256 of a graph, however its JSON is written and without seal, and of parameters."""
    nodes = []
    for node in graph["nodes"]:
        kept = {key: value for key, value in _attributes(node).items() if key != SEAL}
        others = {key: value for key, value in node.items() if key != "attrs"}
        nodes.append({**others, "attrs": kept} if kept else others)
    text = json.dumps({**graph, "nodes": nodes}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode())
    digest.update(params)
    return digest.hexdigest()


def _read(path, limit) -> bytes:
    try:
        # A pipe would be waited for.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _Fault("is no file")
            if found.st_size > limit:
                raise _Fault(f"has {found.st_size} bytes; {limit} are the most that is read")
            data = file.read(found.st_size)
    except OSError as error:
        raise _Fault(f"can't be read: {error.strerror}") from None
    if len(data) != found.st_size:
        raise _Fault("changes while it is read")
    return data


def _quote(text: str) -> str:
    """`text` as a short part of one line."""
    return ascii(text if len(text) <= 60 else f"{text[:60]}...")


# The .params file. MXNet's `NDArray::Save` (src/ndarray/ndarray.cc), little-endian:
#   uint64 0x112, uint64 0
#   uint64 count, then for each array
#       uint32 0xF993FAC9, int32 storage type, int32 ndim, int64 dims, int32 device, int32 its id,
#       int32 type, data
#   uint64 count, then for each name
#       uint64 length, characters

LIST = 0x112
# V1 has no storage type; V3 is written where shapes follow NumPy's rules.
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE = 0
TYPES = {
    0: np.dtype("float32"),
    1: np.dtype("float64"),
    2: np.dtype("float16"),
    3: np.dtype("uint8"),
    4: np.dtype("int32"),
    5: np.dtype("int8"),
    6: np.dtype("int64"),
    12: DTYPES["bfloat16"],
}
DEVICES = (1, 2, 3, 5)  # CPU, GPU, CPU pinned and shared: where the arrays were
NAME = re.compile(r"[!#-\[\]-~]{1,256}")  # printable, and nothing that JSON would have to escape
BLOCK = 1 << 20  # elements that are looked at at once


class _Cursor:
    """Reads a file's bytes from the first to the last, never beyond."""

    def __init__(self, data: bytes):
        self._data, self._at = memoryview(data), 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> memoryview:
        if size > self.left:
            raise _Fault(f"is cut off: {size} bytes should follow byte {self._at}")
        self._at += size
        return self._data[self._at - size : self._at]

    def numbers(self, layout: str) -> tuple:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))


def _parameters(data: bytes) -> dict[str, np.ndarray]:
    if not data:
        raise _Fault("is empty")
    cursor = _Cursor(data)
    if cursor.left < 32 or cursor.numbers("QQ") != (LIST, 0):
        raise _Fault("is no MXNet parameter file")
    (count,) = cursor.numbers("Q")
    if not count:
        raise _Fault(
            "holds no parameters (MXNet writes such a file where a quantised network is exported "
            "before it has run)"
        )
    arrays = []
    while len(arrays) < count:
        try:
            arrays.append(_array(cursor))
        except _Fault as fault:
            raise _Fault(f"{fault} (array {len(arrays)} of {count})") from None
    if cursor.numbers("Q") != (count,):
        raise _Fault("does not have a name for each array")
    named = {}
    for array in arrays:
        (length,) = cursor.numbers("Q")
        try:
            name = str(cursor.take(length), "ascii")
        except UnicodeDecodeError:
            name = ""
        kind, _, rest = name.partition(":")
        if kind not in ("arg", "aux") or not NAME.fullmatch(rest):
            raise _Fault(
                f"has a name, {_quote(name)}, that is not of the form arg:NAME or aux:NAME"
            )
        if name in named:
            raise _Fault(f"has {name} twice")
        if not _finite(array):
            raise _Fault(f"has a number in {name} that is not finite")
        named[name] = array
    if cursor.left:
        raise _Fault(f"has {cursor.left} bytes more than its arrays need")
    if len({name[4:] for name in named}) != count:
        raise _Fault("has arg: and aux: of the same name")
    return named


def _array(cursor: _Cursor) -> np.ndarray:
    (version,) = cursor.numbers("I")
    if version not in (V1, V2, V3):
        raise _Fault("has an array that is not in MXNet's format")
    if version != V1 and cursor.numbers("i") != (DENSE,):
        raise _Fault("has an array that is not dense")
    (ndim,) = cursor.numbers("i")
    if not 1 <= ndim <= 8:
        raise _Fault(f"has an array of {ndim} dimensions")
    dims = cursor.numbers(f"{ndim}q")
    device, number, kind = cursor.numbers("iii")
    if device not in DEVICES or not 0 <= number < 256:
        raise _Fault("has an array of an unknown device")
    if kind not in TYPES:
        raise _Fault(f"has an array of an unknown type, {kind}")
    if min(dims) < 1:
        raise _Fault(f"has an array of shape {dims}")
    data = cursor.take(math.prod(dims) * TYPES[kind].itemsize)
    return np.frombuffer(data, TYPES[kind].newbyteorder("<")).reshape(dims)


def _finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    if flat.dtype == TYPES[12]:
        exponent = 0x7F80
        return not any(
            np.any(flat[at : at + BLOCK].view("uint16") & exponent == exponent)
            for at in range(0, flat.size, BLOCK)
        )
    return all(np.isfinite(flat[at : at + BLOCK]).all() for at in range(0, flat.size, BLOCK))


# The -symbol.json file: {"nodes": [{"op", "name", "attrs", "inputs"}, ...], "arg_nodes", "heads",
# "node_row_ptr", "attrs"}, where a node's inputs are [node, output of it, version]. Attributes are
# text. Attributes __so__ are the user's or Gluon's, not the operator's.

VERSIONS = range(10000, 20000)  # of MXNet: since 1.0 graphs have been written like this
VERSION = 10901  # whose graphs MXNet 1.9.1 takes as they are
KEYS = ({"nodes", "arg_nodes", "heads"}, {"node_row_ptr", "attrs"})  # needed, and possible
NODE_KEYS = ({"op", "name", "inputs"}, {"attrs", "subgraphs"})
# The hidden attributes that the images' variable may have.
KNOWN = {SEAL} | {
    f"__{name}__"
    for name in (
        *("shape", "dtype", "storage_type", "init", "lr_mult", "wd_mult", "layout", "ctx_group"),
        *("profiler_scope", "force_mirroring"),
    )
}


def _attributes(node) -> dict:
    return node.get("attrs", {})


def _parse(data: bytes) -> dict:
    def once(pairs):
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            raise _Fault("has a key twice in one object")
        return parsed

    def number(text):
        if len(text) > 18:
            raise _Fault(f"has a number {_quote(text)}")
        return int(text)

    if data.count(b"{") + data.count(b"[") > len(data) // 8:  # each takes Python 64 bytes and more
        raise _Fault("is no MXNet graph: it is all brackets")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_int=number)
    except RecursionError:
        raise _Fault("is nested too deeply") from None
    except ValueError as error:
        raise _Fault(f"is no JSON: {error}") from None


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def _has_keys(value, keys) -> bool:
    needed, possible = keys
    return isinstance(value, dict) and needed <= set(value) <= needed | possible


@dataclass(frozen=True)
class _Node:
    """A node whose parts are what they should be; `values` are its attributes, parsed."""

    index: int
    op: str
    name: str
    inputs: list
    json: dict
    values: dict
    outputs: int = 1
    integers: bool = False  # what its first output holds


def _check_graph(graph, integers=frozenset(), inner: bool = False) -> list[_Node]:
    """The nodes of a graph that is well formed, of known operators, and without a loop.

    Args:
        integers: names of parameters that are integers: by zero, they end the process.
        inner: whether it is the graph that a fused operator stands for.
    """
    if not _has_keys(graph, KEYS) or not all(isinstance(graph[k], list) for k in KEYS[0]):
        raise _Fault("is no MXNet graph: it needs nodes, arg_nodes and heads, and nothing else")
    if len(graph["nodes"]) > NODES:
        raise _Fault(f"has {len(graph['nodes'])} nodes; {NODES} are the most that is read")
    nodes, names = [], set()
    for index, node in enumerate(graph["nodes"]):
        try:
            checked = _check_node(index, node, nodes, integers, inner)
            if checked.name in names:
                raise _Fault("has the name of another node")
        except _Fault as fault:
            name = _quote(node["name"]) if _has_name(node) else "without a name"
            raise _Fault(f"is wrong in node {index}, {name}: {fault}") from None
        names.add(checked.name)
        nodes.append(checked)
    _check_rest(graph, nodes)
    return nodes


def _has_name(node) -> bool:
    return isinstance(node, dict) and isinstance(node.get("name"), str)


def _check_node(index, node, before, integers, inner) -> _Node:
    if not _has_keys(node, NODE_KEYS):
        raise _Fault("it needs op, name and inputs, and may have attrs and subgraphs")
    op, name, inputs, attributes = node["op"], node["name"], node["inputs"], _attributes(node)
    if not _has_name(node) or not NAME.fullmatch(name):
        raise _Fault("its name is not of printable ASCII characters")
    if not isinstance(attributes, dict) or not all(
        isinstance(value, str) and len(value) <= 4096 for value in attributes.values()
    ):
        raise _Fault("its attributes are not short texts")
    if not isinstance(op, str) or (op != "null" and op not in OPERATORS):
        raise _Fault(f"operator {_quote(str(op))} is unknown, or no image classifier's")
    if not isinstance(inputs, list) or not all(_is_entry(entry, before) for entry in inputs):
        raise _Fault("it reads what no node before it gives")
    if op == "null":
        if inputs or "subgraphs" in node:
            raise _Fault("a variable reads nothing")
        return _Node(index, op, name, inputs, node, {}, integers=name in integers)
    operator = OPERATORS[op]
    values = {k: operator.value(k, text) for k, text in attributes.items() if not _hidden(k)}
    if ("subgraphs" in node) != operator.fused or (inner and op not in FUSIBLE):
        raise _Fault("it is no operator that stands for a graph, or within one")
    if operator.fused:
        values["chain"] = _check_chain(node["subgraphs"])
    if operator.rule:
        operator.rule(values)
    count, outputs, gives = (
        what(values) if callable(what) else what
        for what in (operator.inputs, operator.outputs, operator.integers)
    )
    if len(inputs) != count:
        raise _Fault(f"{op} reads {count} inputs, not {len(inputs)}")
    if any(before[source].op != "null" for source, *_ in inputs[1 : 1 + operator.given]):
        raise _Fault(f"{op} has parameters that are computed")
    quantised = operator.quantised and (not operator.fused or values.get("quantized", False))
    if not quantised and any(
        before[source].integers and not output for source, output, _ in inputs
    ):
        raise _Fault(f"{op} does not read integers")
    return _Node(index, op, name, inputs, node, values, outputs, gives)


def _hidden(key: str) -> bool:
    return len(key) > 4 and key.startswith("__") and key.endswith("__")


def _is_entry(entry, nodes) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(map(_is_count, entry))
        and entry[0] < len(nodes)
        and entry[1] < nodes[entry[0]].outputs
    )


def _check_rest(graph, nodes) -> None:
    heads, pointers, about = graph["heads"], graph.get("node_row_ptr"), graph.get("attrs", {})
    if len(heads) != 1 or not _is_entry(heads[0], nodes):
        raise _Fault("should have one output, of one of its nodes")
    read = {source for node in nodes for source, *_ in node.inputs} | {heads[0][0]}
    if len(read) < len(nodes):
        unread = next(node for node in nodes if node.index not in read)
        raise _Fault(f"has a node, {unread.name}, that nothing reads")
    if graph["arg_nodes"] != [node.index for node in nodes if node.op == "null"]:
        raise _Fault("has other arg_nodes than variables")
    if pointers is not None and not (
        isinstance(pointers, list)
        and len(pointers) == len(nodes) + 1
        and all(map(_is_count, pointers))
        and pointers[0] == 0
        and all(1 <= after - at <= 64 for at, after in zip(pointers, pointers[1:]))
    ):
        raise _Fault("has a node_row_ptr that does not fit its nodes")
    if about and not (
        isinstance(about, dict)
        and list(about) == ["mxnet_version"]
        and isinstance(about["mxnet_version"], list)
        and len(about["mxnet_version"]) == 2
        and about["mxnet_version"][0] == "int"
        and _is_count(about["mxnet_version"][1])
        and about["mxnet_version"][1] in VERSIONS
    ):
        raise _Fault("was not written by MXNet 1")


def _free(nodes: list[_Node], parameters: dict) -> tuple[dict, list[str]]:
    """The node of the images, as JSON, and the labels' names: what no parameter gives."""
    variables = {node.name: node.json for node in nodes if node.op == "null"}
    given = {name[4:] for name in parameters}
    unused = sorted(given - set(variables))
    if unused:
        raise _Fault(f"has no variable for the parameter {unused[0]}")
    free = [name for name in variables if name not in given]
    labels = [name for name in free if name.endswith("label")]
    images = [name for name in free if not name.endswith("label")]
    if len(images) != 1:
        listed = ", ".join(images[:5]) or "none"
        raise _Fault(f"should have one input that no parameter gives, the images: {listed}")
    return variables[images[0]], labels


def _clean(graph: dict) -> dict:
    """The graph without what inference does not need: MXNet parses some of it."""
    nodes = []
    for node in graph["nodes"]:
        kept = {key: value for key, value in _attributes(node).items() if not _hidden(key)}
        if node["op"] == "null":
            kept = {}  # what `mx.sym` leaves of the operator that a variable was made for
        clean = {key: node[key] for key in ("op", "name", "inputs")}
        if kept:
            clean["attrs"] = kept
        if "subgraphs" in node:
            clean["subgraphs"] = [_clean(inner) for inner in node["subgraphs"]]
        nodes.append(clean)
    kept = {key: graph[key] for key in graph if key != "attrs"}
    return {**kept, "nodes": nodes, "attrs": {"mxnet_version": ["int", VERSION]}}


# What MXNet makes of the graph, once it is safe to ask.


def _check_symbol(pair: Pair) -> None:
    """Has MXNet read the graph, and the parameters be what it takes them for."""
    try:
        symbol = pair.symbol()
    except mx.MXNetError as error:
        raise _Fault(f"is no graph to MXNet: {_last_line(error)}") from None
    types = {
        name[4:]: array.dtype.newbyteorder("=")
        for name, array in pair.parameters.items()
        if array.dtype != TYPES[12]  # which it has not heard of
    }
    try:
        symbol.infer_type_partial(**types, **{pair.data: "float32"})
    except mx.MXNetError as error:
        raise _Fault(f"does not fit its parameters' types: {_last_line(error)}") from None
    arguments = set(symbol.list_arguments()) - {pair.data, *pair.labels}
    states = set(symbol.list_auxiliary_states())
    expected = {f"arg:{name}" for name in arguments} | {f"aux:{name}" for name in states}
    if expected != set(pair.parameters):
        name = min(expected ^ set(pair.parameters))
        raise _Fault(f"has {name[4:]} as another kind of parameter than its file")


def _usual_shape(pair: Pair, nodes: list[_Node]) -> tuple[int, int, int]:
    """The first usual shape of images that the graph takes."""
    channels, faults = _channels(pair, nodes), []
    for size in SIZES:
        try:
            _check_shapes(pair, (channels, size, size))
        except _Fault as fault:
            faults.append(f"{size} pixels: {fault}")
        else:
            return channels, size, size
    raise _Fault(f"takes no images of a usual size; {faults[0]}; {faults[1]}")


def _channels(pair, nodes) -> int:
    """Of an image: what the first convolution's weight is for."""
    for node in nodes:
        chain = node.values.get("chain", [node])
        if chain[0].op.endswith(("Convolution", "_conv")) and len(node.inputs) > 1:
            weight = pair.parameters.get(f"arg:{nodes[node.inputs[1][0]].name}")
            if weight is not None and weight.ndim == 4:
                return weight.shape[1] * chain[0].values.get("num_group", 1)
    return 3


def _check_shapes(pair: Pair, shape: tuple) -> int:
    """The number of classes; a fault where images of `shape` do not pass the graph one by one, or
    a parameter has another shape than it needs.
    """
    internals = pair.symbol().get_internals()
    names = [output.name for output in internals]
    two, three = (_shapes(pair, internals, (images, *shape)) for images in (2, 3))
    most = max(PLANES * math.prod(shape[1:]), *(array.size for array in pair.parameters.values()))
    found, total = {}, 0  # the shapes of each node's outputs for two images
    for name, of_two, of_three in zip(names, two, three):
        per_image = of_two != of_three
        if not of_two or min(of_two) < 1:
            raise _Fault(f"does not say what shape {name} has")
        if per_image and (of_two[0], *of_three) != (2, 3, *of_two[1:]):
            raise _Fault(f"mixes images in {name}")
        size = math.prod(of_two) // (2 if per_image else 1)
        total += size
        if size > most or total > TOTAL:
            raise _Fault(f"makes {size} numbers of an image in {name}, {total} by then")
        found.setdefault(name, []).append(of_two)
    nodes = pair.graph["nodes"]
    for node in nodes:
        inputs = [found[nodes[source]["name"]][output] for source, output, _ in node["inputs"]]
        _check_sizes(node, inputs, found[node["name"]][0])
    head, output, _ = pair.graph["heads"][0]
    answer = found[nodes[head]["name"]][output]
    if len(answer) != 2 or answer[0] != 2:
        raise _Fault(f"does not give a row of classes for each image: {answer} for two")
    return answer[1]


def _shapes(pair, internals, images) -> list[tuple]:
    """The shape of each output of each node, for images (N, C, H, W)."""
    given = {name[4:]: array.shape for name, array in pair.parameters.items()}
    try:
        arguments, shapes, states = internals.infer_shape_partial(**given, **{pair.data: images})
    except mx.MXNetError as error:
        raise _Fault(
            f"does not fit its parameters or images {images[1:]}: {_last_line(error)}"
        ) from None
    needed = dict(zip(internals.list_arguments(), arguments))
    needed.update(zip(internals.list_auxiliary_states(), states))
    for name, shape in given.items():
        if needed[name] != shape:
            raise _Fault(f"needs {name} of shape {needed[name]}; in its file it has {shape}")
    return shapes


POOLINGS = ("Pooling", "_contrib_quantized_pooling", "_contrib_AdaptiveAvgPooling2D")


def _check_sizes(node, inputs, output) -> None:
    """What MXNet takes for granted: some of it would be read outside an array."""
    op, attributes, axes = node["op"], node.get("attrs", {}), len(output)
    right = True
    if op == "Reshape":
        right = math.prod(inputs[0]) == math.prod(output)
    elif op in ("BatchNorm", "_contrib_quantized_batch_norm"):
        axis = int(attributes.get("axis", 1))
        right = -axes <= axis < axes and inputs[1:5] == [(output[axis],)] * 4
    elif op in POOLINGS:
        right = axes == 4
    elif op == "LeakyReLU":
        right = len(inputs) == 1 or inputs[1] in ((1,), output[1:2])
    elif op == "SwapAxis":
        right = max(int(attributes[name]) for name in ("dim1", "dim2")) < axes
    elif op in ("softmax", "log_softmax"):
        right = -axes <= int(attributes.get("axis", -1)) < axes
    elif op == "SoftmaxOutput":
        right = axes == 2
    elif op == "SoftmaxActivation":
        right = axes == 2 if attributes.get("mode") != "channel" else axes > 2
    if not right:
        raise _Fault(f"has {node['name']} turn {', '.join(map(str, inputs))} into {output}")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300]


# Operators: those that image classifiers are made of, as MXNet 1 writes them.


def _choice(*words: str) -> Callable:
    def parse(text):
        if text not in words:
            raise ValueError
        return text

    return parse


def _boolean(text):
    return {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}[text]


def _integer(low: int, high: int) -> Callable:
    def parse(text):
        if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def _number(text):
    if not re.fullmatch(r"-?\d{1,40}(\.\d{0,40})?(e[-+]?\d{1,2})?", text, re.ASCII):
        raise ValueError
    if abs(float(text)) > 1e30:
        raise ValueError
    return float(text)


def _positive(text):
    if _number(text) <= 0:
        raise ValueError
    return _number(text)


def _optional(kind: Callable) -> Callable:
    return lambda text: None if text == "None" else kind(text)


def _integers(item: Callable, most: int = 6) -> Callable:
    """A tuple or list; or a number, which stands for a tuple of it."""

    def parse(text):
        match = re.fullmatch(r"\((.*)\)|\[(.*)\]|([^,]+)", text)
        inside = next(group for group in match.groups() if group is not None)
        words = [word.strip(" ") for word in inside.split(",")]
        if words[-1] == "":  # of () and (1,)
            words.pop()
        if len(words) > most:
            raise ValueError
        return tuple(item(word) for word in words)

    return parse


FALSE = _choice("False", "false", "0")
AXIS = _integer(-8, 7)
WINDOW = _integers(_integer(1, 64), 2)
PADDING = _integers(_integer(0, 4096), 2)
POSITION = _integer(-(10**6), 10**6)
RANGES = {"min_calib_range": _optional(_number), "max_calib_range": _optional(_number)}
CONVOLUTION = {
    "kernel": WINDOW,
    "stride": WINDOW,
    "dilate": WINDOW,
    "pad": PADDING,
    "num_filter": _integer(1, 1 << 16),
    "num_group": _integer(1, 1 << 16),
    "workspace": _integer(0, 1 << 16),
    "no_bias": _boolean,
    "cudnn_tune": _choice("None", "off", "fastest", "limited_workspace"),
    "cudnn_off": _boolean,
    "layout": _choice("None", "NCHW"),
}
DENSE_LAYER = {"num_hidden": _integer(1, 1 << 20), "no_bias": _boolean, "flatten": _boolean}
POOLING = {
    "kernel": WINDOW,
    "stride": WINDOW,
    "pad": PADDING,
    "pool_type": _choice("max", "avg", "sum"),
    "global_pool": _boolean,
    "pooling_convention": _choice("valid", "full"),
    "p_value": _optional(_integer(1, 8)),
    "count_include_pad": _optional(_boolean),
    "cudnn_off": _boolean,
    "layout": _choice("None", "NCHW"),
}
BATCH_NORM = {
    "eps": _positive,
    "momentum": _number,
    "fix_gamma": _boolean,
    "use_global_stats": _boolean,
    "output_mean_var": FALSE,
    "axis": AXIS,
    "cudnn_off": _boolean,
    **RANGES,
}
ACTIVATION = {"act_type": _choice("relu", "sigmoid", "tanh", "softrelu", "softsign")}
REDUCTION = {
    "axis": _integers(AXIS),
    "keepdims": _boolean,
    "exclude": FALSE,
}
SOFTMAX = {
    "axis": AXIS,
    "temperature": _optional(_positive),
    "dtype": _choice("None", "float16", "float32", "float64"),
    "use_length": _choice("False", "false", "0", "None"),
}
FLOATS = {"dtype": _choice("float16", "float32", "float64", "bfloat16")}
SCALAR = {"scalar": _number, "is_int": _boolean}


@dataclass(frozen=True)
class _Operator:
    """What an operator takes and gives.

    Attributes:
        inputs, outputs: how many; may depend on the attributes' values.
        attributes: a parser for each, which raises ValueError or KeyError.
        rule: raises _Fault where values don't go together.
        given: how many inputs after the first are variables.
        quantised: whether it reads quantised numbers; `integers`: whether it gives them.
        fused: whether it stands for a graph of its own.
    """

    inputs: int | Callable
    attributes: dict[str, Callable]
    outputs: int | Callable = 1
    rule: Callable | None = None
    given: int = 0
    quantised: bool = False
    integers: bool | Callable = False
    fused: bool = False

    def value(self, name: str, text: str):
        """An attribute's value."""
        if name not in self.attributes:
            raise _Fault(f"attribute {_quote(name)} is unknown")
        try:
            return self.attributes[name](text)
        except (ValueError, KeyError, AttributeError):
            raise _Fault(f"{name} = {_quote(text)} is out of range") from None


def _with_bias(values) -> int:
    return 2 if values.get("no_bias") else 3


def _window_rule(values) -> None:
    for name in ("kernel", "stride", "dilate", "pad"):
        if len(values.get(name, ())) not in (0, 2):
            raise _Fault(f"{name} should have two numbers")


def _pooling_rule(values) -> None:
    _window_rule(values)
    pads = zip(values.get("kernel", ()), values.get("pad", ()))
    if any(pad >= size for size, pad in pads):
        raise _Fault("pad is as large as the kernel")


def _convolution_rule(values) -> None:
    _window_rule(values)
    if len(values.get("kernel", ())) != 2:
        raise _Fault("kernel should have two numbers")
    windows = zip(values["kernel"], values.get("dilate") or (1, 1), values.get("pad") or (0, 0))
    if any(pad > size * step for size, step, pad in windows):
        raise _Fault("pad is larger than the kernel")
    if values.get("num_filter", 1) % values.get("num_group", 1):
        raise _Fault("num_group does not divide num_filter")


def _reduction_rule(values) -> None:
    axes = values.get("axis", ())
    if not axes or 0 in axes or len(set(axes)) < len(axes):
        raise _Fault("axis should be some, each once, and not the images'")


def _transpose_rule(values) -> None:
    axes = values.get("axes", ())
    if axes[:1] != (0,) or sorted(axes) != list(range(len(axes))):
        raise _Fault("axes should be all, and leave the images' in its place")


def _reshape_rule(values) -> None:
    sizes = values.get("shape", ())
    if sizes[:1] != (0,):
        raise _Fault("shape should begin with 0, which keeps the images apart")
    for at in (at for at, size in enumerate(sizes) if size == -4):
        low, high = sorted([*sizes[at + 1 : at + 3], 0, 0][:2])
        if high < 1 or (low < 1 and low != -1):
            raise _Fault("shape should split an axis into two sizes, one of which may be -1")


def _steps_rule(values) -> None:
    if len({len(values[name]) for name in ("begin", "end", "step") if values.get(name)}) > 1:
        raise _Fault("begin, end and step have different lengths")
    first = values.get("begin", ())[:1], values.get("end", ())[:1]
    if first[0] not in ((), (None,), (0,)) or first[1] not in ((), (None,)):
        raise _Fault("axis 0 is the images', which stay apart")


def _arguments(values) -> int:
    return values.get("num_args", 0)


def _apart(**axes: int) -> Callable:
    """A rule: these axes, here with their defaults, are not the first, which is the images'."""

    def rule(values):
        if 0 in [values.get(name, default) for name, default in axes.items()]:
            raise _Fault("axis 0 is the images', which stay apart")

    return rule


def _check_chain(subgraphs) -> list[_Node]:
    """The operators of a fused one's graph, each of which reads the one before and variables."""
    if not isinstance(subgraphs, list) or len(subgraphs) != 1:
        raise _Fault("it should stand for one graph")
    try:
        nodes = _check_graph(subgraphs[0], inner=True)
    except _Fault as fault:
        raise _Fault(f"its graph {fault}") from None
    chain, fresh = [], []
    for node in nodes:
        if node.op == "null":
            fresh.append(node.index)
            continue
        previous = [chain[-1].index] if chain else []
        if [source for source, *_ in node.inputs] != previous + fresh:
            raise _Fault("its graph is no chain of operators")
        chain.append(node)
        fresh = []
    if fresh or not chain or subgraphs[0]["heads"][0][0] != chain[-1].index:
        raise _Fault("its graph is no chain of operators")
    return chain


POINTWISE = ("Activation", "LeakyReLU", "clip")


def _fused_convolution_rule(values) -> None:
    """The attributes, by which MXNet counts inputs, say what the graph is."""
    ops = ["act" if node.op in POINTWISE else node.op for node in values["chain"]]
    said = ["Convolution"]
    for flag, op in (
        ("with_bn", "BatchNorm"),
        ("with_act", "act"),
        ("with_sum", "elemwise_add"),
        ("with_postsum_act", "act"),
    ):
        said += [op] if values.get(flag) else []
    if ops != said:
        raise _Fault(f"it stands for {' '.join(ops)}, not for {' '.join(said)}")
    if values.get("quantized"):
        _calibrated_rule(values)


def _chain_inputs(values) -> int:
    """The variables of the graph that a fused operator stands for."""
    return sum(len(node.inputs) for node in values["chain"]) - len(values["chain"]) + 1


def _fused_convolution_inputs(values) -> int:
    ranges = 2 + 2 * values.get("with_sum", False) if values.get("quantized") else 0
    return _chain_inputs(values) + ranges


def _fused_dense_rule(values) -> None:
    ops = ["act" if node.op in POINTWISE else node.op for node in values["chain"]]
    if ops != ["FullyConnected", *(["act"] if values.get("with_eltwise") else [])]:
        raise _Fault(f"it stands for {' '.join(ops)}, which its attributes do not say")
    if _is_quantised(values):
        _calibrated_rule(values)


def _fused_dense_inputs(values) -> int:
    count = _chain_inputs(values)
    if not values.get("quantized"):
        return count
    return count + 2 if values.get("channel_wise_quantize") else 3 * count


def _is_quantised(values) -> bool:
    return values.get("quantized", False) and not values.get("enable_float_output")


def _fused_outputs(values) -> int:
    return 3 if _is_quantised(values) else 1


def _calibrated_rule(values) -> None:
    if None in [values.get(name) for name in RANGES]:
        raise _Fault("it needs calibrated ranges")


def _quantised(inputs, attributes, rule=None) -> _Operator:
    return _Operator(inputs, attributes, 3, rule, quantised=True, integers=True)


OPERATORS = {
    "Convolution": _Operator(_with_bias, CONVOLUTION, rule=_convolution_rule),
    "FullyConnected": _Operator(_with_bias, DENSE_LAYER),
    "Pooling": _Operator(1, POOLING, rule=_pooling_rule),
    "_contrib_AdaptiveAvgPooling2D": _Operator(1, {"output_size": _integers(_integer(1, 256), 2)}),
    "BatchNorm": _Operator(5, BATCH_NORM, given=4),
    "Activation": _Operator(1, ACTIVATION),
    "LeakyReLU": _Operator(
        lambda values: 2 if values.get("act_type") == "prelu" else 1,
        {
            "act_type": _choice("elu", "gelu", "leaky", "prelu", "selu"),
            "slope": _number,
            "lower_bound": _number,
            "upper_bound": _number,
        },
        given=1,
    ),
    "clip": _Operator(1, {"a_min": _number, "a_max": _number}),
    "hard_sigmoid": _Operator(1, {"alpha": _number, "beta": _number}),
    "Dropout": _Operator(
        1,
        {
            "p": _number,
            "mode": _choice("training"),
            "axes": _integers(_integer(0, 7)),
            "cudnn_off": _optional(_boolean),
        },
    ),
    "softmax": _Operator(1, SOFTMAX),
    "log_softmax": _Operator(1, SOFTMAX),
    "SoftmaxActivation": _Operator(1, {"mode": _choice("instance", "channel")}),
    "SoftmaxOutput": _Operator(
        2,
        {
            "grad_scale": _number,
            "ignore_label": _number,
            "smooth_alpha": _number,
            "multi_output": FALSE,
            "use_ignore": _boolean,
            "preserve_shape": _boolean,
            "out_grad": FALSE,
            "normalization": _choice("null", "batch", "valid"),
        },
    ),
    "Flatten": _Operator(1, {}),
    "Reshape": _Operator(
        1,
        {"shape": _integers(_integer(-4, 1 << 24), 8), "reverse": FALSE},
        rule=_reshape_rule,
    ),
    "transpose": _Operator(1, {"axes": _integers(AXIS)}, rule=_transpose_rule),
    "SwapAxis": _Operator(
        1, {name: _integer(1, 7) for name in ("dim1", "dim2")}, rule=_apart(dim1=0, dim2=0)
    ),
    "expand_dims": _Operator(1, {"axis": AXIS}, rule=_apart(axis=0)),
    "squeeze": _Operator(1, {"axis": _integers(AXIS)}, rule=_reduction_rule),
    "Concat": _Operator(
        _arguments, {"num_args": _integer(1, 1024), "dim": AXIS}, rule=_apart(dim=1)
    ),
    "add_n": _Operator(_arguments, {"num_args": _integer(1, 1024)}),
    "slice": _Operator(
        1,
        {
            "begin": _integers(_optional(POSITION)),
            "end": _integers(_optional(POSITION)),
            "step": _integers(_optional(_integer(1, 64))),
        },
        rule=_steps_rule,
    ),
    "slice_axis": _Operator(
        1,
        {"axis": AXIS, "begin": POSITION, "end": _optional(POSITION)},
        rule=_apart(axis=0),
    ),
    "SliceChannel": _Operator(
        1,
        {"num_outputs": _integer(1, 64), "axis": AXIS, "squeeze_axis": _boolean},
        lambda values: values.get("num_outputs", 1),
        rule=_apart(axis=1),
    ),
    "mean": _Operator(1, REDUCTION, rule=_reduction_rule),
    "sum": _Operator(1, REDUCTION, rule=_reduction_rule),
    "max": _Operator(1, REDUCTION, rule=_reduction_rule),
    "Cast": _Operator(1, FLOATS),
    "amp_cast": _Operator(1, FLOATS),
    **{
        name: _Operator(1, {})
        for name in (
            *("relu", "sigmoid", "tanh", "softsign", "exp", "square", "sqrt", "abs"),
            *("_copy", "BlockGrad", "zeros_like", "ones_like"),
        )
    },
    **{
        f"{way}_{name}": _Operator(2, {})
        for way in ("elemwise", "broadcast")
        for name in ("add", "sub", "mul", "div")
    },
    **{
        f"_{name}_scalar": _Operator(1, SCALAR)
        for name in ("plus", "minus", "rminus", "mul", "div", "rdiv")
    },
    # What MXNet's MKLDNN backend makes of them.
    "_sg_mkldnn_conv": _Operator(
        _fused_convolution_inputs,
        {
            **{f"with_{what}": _boolean for what in ("bn", "act", "sum", "postsum_act")},
            "quantized": _boolean,
            **RANGES,
        },
        _fused_outputs,
        _fused_convolution_rule,
        quantised=True,
        integers=_is_quantised,
        fused=True,
    ),
    "_sg_mkldnn_fully_connected": _Operator(
        _fused_dense_inputs,
        {
            "quantized": _boolean,
            "enable_float_output": _boolean,
            "with_eltwise": _boolean,
            "channel_wise_quantize": _optional(_boolean),
            **RANGES,
        },
        _fused_outputs,
        _fused_dense_rule,
        quantised=True,
        integers=_is_quantised,
        fused=True,
    ),
    "_contrib_quantize_v2": _Operator(
        1, {"out_type": _choice("auto", "int8", "uint8"), **RANGES}, 3, integers=True
    ),
    "_contrib_dequantize": _Operator(3, {"out_type": _choice("float32")}, quantised=True),
    "_contrib_requantize": _quantised(3, {"out_type": _choice("auto", "int8", "uint8"), **RANGES}),
    "_contrib_quantized_conv": _quantised(
        lambda values: 3 * _with_bias(values), CONVOLUTION, _convolution_rule
    ),
    "_contrib_quantized_fully_connected": _quantised(
        lambda values: 3 * _with_bias(values), DENSE_LAYER
    ),
    "_contrib_quantized_pooling": _quantised(3, POOLING, _pooling_rule),
    "_contrib_quantized_flatten": _quantised(3, {}),
    "_contrib_quantized_act": _quantised(3, ACTIVATION),
    "_contrib_quantized_concat": _quantised(
        lambda values: 3 * _arguments(values),
        {"num_args": _integer(1, 1024), "dim": _integer(1, 3)},
    ),
    "_contrib_quantized_elemwise_add": _quantised(6, RANGES),
    "_contrib_quantized_batch_norm": _quantised(7, BATCH_NORM, _calibrated_rule),
}
FUSIBLE = {"Convolution", "FullyConnected", "BatchNorm", "elemwise_add", *POINTWISE}
