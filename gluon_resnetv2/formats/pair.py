"""Reading a pair, NAME-symbol.json and NAME-0000.params, that anybody may have written.

MXNet's own loader takes what it is given: a flipped bit becomes a wrong weight, an edited number
a division by zero in C++, a read outside an array or 12 GB of memory. Here both files are taken
apart in Python first, and MXNet sees only what has been checked: the parameters (`params_file`),
the graph (`graph_file`), each operator in it (`operators`), and here every shape, against the
parameters, against what is worth allocating, and for images that would mix.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import last_line
from gluon_resnetv2.formats.graph_file import (
    SYMBOL_BYTES,
    Node,
    check_graph,
    check_hidden,
    check_seal,
    clean,
    free_inputs,
)
from gluon_resnetv2.formats.old_graph import modern
from gluon_resnetv2.formats.operators import OPERATORS
from gluon_resnetv2.formats.params_file import PARAMS_BYTES, bare, parse_arrays
from gluon_resnetv2.layers import DTYPES
from gluon_resnetv2.untrusted import Fault, faults_of, read_bytes, read_json

# What one image may make of memory, in elements: an array as large as so many of its planes (a
# wide layer has 2048 at a quarter of the size), and all arrays of the graph together.
PLANES = 1024
TOTAL = 1 << 30
# What one image may make of work: multiplications by parameters (ResNet-269 has 2e10); what lies
# under all windows of pooling, in planes, as that takes MXNet fifty times as long; and what a
# convolution may lay out to be multiplied, in planes.
WORK, WINDOWS, LAID_OUT = 1 << 38, 4096, 9 * PLANES
SIZES = (32, 224, 299, 28, 64, 96, 128, 256, 16, 8)  # images' usual heights and widths, in pixels


@dataclass(frozen=True)
class Pair:
    """A graph and its parameters, checked.

    Attributes:
        text: the graph as JSON, as MXNet is given it.
        graph: the same, parsed.
        nodes: the same, node by node.
        parameters: a read-only array for each name, a view of the file.
        kinds: whether the file has "arg:" or "aux:" before each name.
        data: name of the images' input.
        labels: names of inputs that a loss would read.
        shape: of an image as the graph takes it, (C, H, W) in most, as given or a usual one.
    """

    text: str
    graph: dict
    nodes: list[Node] = field(repr=False)
    parameters: dict[str, np.ndarray] = field(repr=False)
    kinds: bool
    data: str
    labels: list[str]
    shape: tuple[int, ...]

    def symbol(self) -> mx.sym.Symbol:
        """The graph, as MXNet has it."""
        return mx.sym.load_json(self.text)

    def arrays(self) -> tuple[dict[str, mx.nd.NDArray], dict[str, mx.nd.NDArray]]:
        """Copies of the parameters on the CPU, by name: the arguments, the auxiliary states."""
        arrays = {
            name: mx.nd.array(value, ctx=mx.cpu(), dtype=value.dtype)
            for name, value in self.parameters.items()
        }
        states = {name: arrays.pop(name) for name in self.symbol().list_auxiliary_states()}
        return arrays, states

    def types(self, symbol: mx.sym.Symbol) -> list:
        """Those of the graph's answers, given its own `symbol`, where images are float32.

        Raises:
            MXNetError: they do not fit the parameters'.
        """
        types = {
            name: array.dtype.newbyteorder("=")
            for name, array in self.parameters.items()
            if array.dtype != DTYPES["bfloat16"]  # which it has not heard of
        }
        return symbol.infer_type_partial(**types, **{self.data: "float32"})[1]

    def peak(self) -> int:
        """How many numbers MXNet holds of one image at once, at most."""
        internals = self.symbol().get_internals()
        sizes = dict.fromkeys((node.name for node in self.nodes), 0)
        for output, shape in zip(internals, _shapes(self, internals, (2, *self.shape))):
            if output.name not in self.parameters:
                sizes[output.name] += math.prod(shape) // 2
        last = {source: node.index for node in self.nodes for source, *_ in node.inputs}
        held = most = 0
        for node in self.nodes:
            held += sizes[node.name]
            most = max(most, held)
            read = {source for source, *_ in node.inputs if last[source] == node.index}
            held -= sum(sizes[self.nodes[source].name] for source in read)
        return most

    def check(self, shape: tuple[int, int, int]) -> int:
        """Has the graph take images of `shape`; returns how many classes it tells apart.

        Raises:
            UserError: it does not take them, mixes those of a batch, or would make far more of
                them than a network does.
        """
        with faults_of("the graph"):
            return _check_shapes(self, shape)


def read_pair(
    symbol: str | Path,
    params: str | Path,
    shape: tuple[int, ...] | None = None,
    sums: Mapping[str, str] | None = None,
) -> Pair:
    """Reads and checks both files.

    Allocates no more than the files' size, and once more for the graph's JSON.

    Args:
        shape: of an image as the graph takes it, where it is known.
        sums: what the files' SHA-256 should be, in hexadecimal, by the files' names.

    Raises:
        UserError: a file is missing, damaged, no image classifier's, or not what `sums` says.
    """
    with faults_of(params):
        data = read_bytes(params, PARAMS_BYTES, _sum_of(params, sums))
        named = parse_arrays(data)
    arrays = {bare(name): array for name, array in named.items()}
    kinds = not any(name in arrays for name in named)
    with faults_of(symbol):
        graph = modern(read_json(read_bytes(symbol, SYMBOL_BYTES, _sum_of(symbol, sums))))
        nodes = check_graph(graph, {n for n, array in arrays.items() if array.dtype.kind in "iu"})
        check_seal(graph, data)
        images, labels = free_inputs(nodes, set(arrays))
        check_hidden(nodes, arrays)
        graph = clean(graph)
        text = json.dumps(graph)
        pair = Pair(text, graph, nodes, arrays, kinds, images.name, labels, shape or ())
        _check_symbol(pair, named)
        if not shape:
            return replace(pair, shape=_usual_shape(pair))
        _check_given(pair, shape)
        return pair


def _sum_of(path, sums) -> str | None:
    return None if sums is None else sums.get(Path(path).name, "none")


def _check_symbol(pair: Pair, names: Iterable[str]) -> None:
    """Has MXNet read the graph, and the parameters be what their `names` in the file say."""
    try:
        symbol = pair.symbol()
    except mx.MXNetError as error:
        raise Fault(f"is no graph to MXNet: {last_line(error)}") from None
    try:
        pair.types(symbol)
    except mx.MXNetError as error:
        raise Fault(f"does not fit its parameters' types: {last_line(error)}") from None
    states = set(symbol.list_auxiliary_states())
    right = {*pair.parameters, *(f"aux:{name}" for name in states)}
    right |= {f"arg:{name}" for name in set(pair.parameters) - states}
    wrong = [*(states - set(pair.parameters)), *(bare(name) for name in set(names) - right)]
    if wrong:
        raise Fault(f"has {min(wrong)} as another kind of parameter than its file")


def _check_given(pair: Pair, shape: tuple) -> None:
    """`_check_shapes`, and where channels stand last instead of first, or first, it says so."""
    try:
        _check_shapes(pair, shape)
    except Fault:
        for other in ((*shape[1:], shape[0]), (shape[2], *shape[:2])):
            with contextlib.suppress(Fault):
                _check_shapes(pair, other)
                break
        else:
            raise
        raise Fault(f"takes images of shape {other}, not {shape}") from None


def _usual_shape(pair: Pair) -> tuple[int, ...]:
    """The first usual shape of images that the graph takes, channels first or last."""
    channels, faults = _channels(pair), []
    for size in SIZES:
        for shape in ((channels, size, size), (size, size, channels)):
            try:
                _check_shapes(pair, shape)
            except Fault as fault:
                faults.append(f"{size} pixels: {fault}")
            else:
                return shape
    raise Fault(f"takes no images of a usual size; {faults[0]}; {faults[2]}")


def _channels(pair: Pair) -> int:
    """Of an image: what the first convolution's weight is for."""
    for node in pair.nodes:
        first = node.values.get("chain", [node])[0]
        if first.op == "Convolution":
            weight = pair.parameters.get(pair.nodes[node.inputs[1][0]].name)
            if weight is not None and weight.ndim == 4:
                return weight.shape[1] * first.values.get("num_group", 1)
    return 3


def _check_shapes(pair: Pair, shape: tuple) -> int:
    """The number of classes; a fault where images of `shape` do not pass the graph one by one, or
    a parameter has another shape than it needs.
    """
    internals = pair.symbol().get_internals()
    names = [output.name for output in internals]
    two, three = (_shapes(pair, internals, (images, *shape)) for images in (2, 3))
    # Shapes of outputs, for two images and three.
    found: dict[str, list] = {node.name: [] for node in pair.nodes}
    for name, *shapes in zip(names, two, three):
        found[name].append(shapes)
    _check_memory(pair, found, math.prod(shape) // min(shape))
    _check_work(pair, found, math.prod(shape) // min(shape))
    _check_rows(pair, found)
    for node in pair.nodes:
        sizes = node.op != "null" and OPERATORS[node.op].sizes
        if sizes:
            inputs = [
                found[pair.nodes[source].name][output][0] for source, output, _ in node.inputs
            ]
            try:
                sizes(node.values, inputs, found[node.name][0][0])
            except Fault as fault:
                raise Fault(f"is wrong in {node.name}: {fault}") from None
    head, output, _ = pair.graph["heads"][0]
    answer, _ = found[pair.nodes[head].name][output]
    if len(answer) != 2 or answer[0] != 2:
        raise Fault(f"does not give a row of classes for each image: {answer} for two")
    return answer[1]


def _check_memory(pair, found, plane) -> None:
    """Has an image take no more than networks do; one of its planes has `plane` elements."""
    most = max(PLANES * plane, *(array.size for array in pair.parameters.values()))
    total = 0
    for name, shapes in found.items():
        for of_two, of_three in shapes:
            if not of_two or not of_three or min(*of_two, *of_three) < 1:
                raise Fault(f"does not say what shape {name} has")
            size = math.prod(of_three) - math.prod(of_two) or math.prod(of_two)
            total += size
            if size > most or total > TOTAL:
                raise Fault(f"makes {size} numbers of an image in {name}, {total} by then")


def _check_work(pair, found, plane) -> None:
    """Has an image take no more time than networks do, nor more than is beside their arrays."""
    work = windows = 0
    for node in pair.nodes:
        first = node.values.get("chain", [node])[0]  # of what a fused operator stands for
        kind, values = first.op.lower(), first.values
        inputs = [found[pair.nodes[source].name][at][0] for source, at, _ in node.inputs]
        answer = found[node.name][0][0]  # for two images
        if kind in ("convolution", "fullyconnected"):
            each = math.prod(inputs[1][1:])
            work += math.prod(answer) // 2 * each
            laid_out = each * values.get("num_group", 1) * math.prod(answer[2:])
            if kind == "convolution" and laid_out > LAID_OUT * plane:
                raise Fault(f"lays out {laid_out} numbers of an image in {node.name}")
        elif "pool" in kind:
            window = values.get("kernel") if not values.get("global_pool") else ()
            windows += math.prod(answer) // 2 * math.prod(window or inputs[0][2:])
        if work > WORK or windows > WINDOWS * plane:
            raise Fault(
                f"makes {work} products and pools {windows} numbers of an image up to {node.name}"
            )


def _check_rows(pair, found) -> None:
    """Has all that is computed of the images keep a row for each of them, so that none mix.

    Operators that keep the rows and look beyond one are `operators`' to refuse.
    """
    of_images: set[int] = set()
    for node in pair.nodes:
        if node.name in (pair.data, *pair.labels) or of_images & {i for i, *_ in node.inputs}:
            of_images.add(node.index)
        # A quantised operator's other outputs are its range, calibrated and so the same for all.
        (of_two, of_three), *ranges = found[node.name]
        apart = (of_two[0], *of_three) == (2, 3, *of_two[1:])
        right = apart if node.index in of_images else of_two == of_three
        if not right or any(of_two != of_three for of_two, of_three in ranges):
            raise Fault(f"mixes images in {node.name}")


def _shapes(pair, internals, images) -> list[tuple]:
    """The shape of each output of each node, for images (N, C, H, W)."""
    given = {name: array.shape for name, array in pair.parameters.items()}
    try:
        arguments, shapes, states = internals.infer_shape_partial(**given, **{pair.data: images})
    except mx.MXNetError as error:
        raise Fault(
            f"does not fit its parameters or images {images[1:]}: {last_line(error)}"
        ) from None
    needed = dict(zip(internals.list_arguments(), arguments))
    needed.update(zip(internals.list_auxiliary_states(), states))
    for name, shape in given.items():
        if needed[name] != shape:
            raise Fault(f"needs {name} of shape {needed[name]}; in its file it has {shape}")
    return shapes
