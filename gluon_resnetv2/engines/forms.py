"""The forms that a graph can be exported in: each function takes a graph and gives it in another.

A graph is a symbol that reads images from the variable `data`, the learned arguments and the moving
statistics that go with it, both by name. Every form loads and runs in SymbolBlock, Module,
`simple_bind` and the C predict API. Forms are applied in the order in which they stand here; after
`bfloat16` a symbol has to be written by `to_json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import mxnet as mx
import numpy as np
from mxnet.contrib import amp, quantization

from gluon_resnetv2.errors import UserError

Arrays = Mapping[str, mx.nd.NDArray]
Graph = tuple[mx.sym.Symbol, Arrays, Arrays]

PREPROCESS = "preprocess"  # name of the operator that normalises, which begins its parameters too
EPS = 1e-5  # the least that cuDNN's batch normalisation takes
CALIBRATED = 8  # images at once: every output of every layer is held
# What `bfloat16` leaves in float32: the classifier, and operators that cut off what does not fit
# instead of rounding, or don't know the type.
FLOAT32 = ["Dropout", "FullyConnected", "_mul_scalar", "_rminus_scalar", "mean", "sigmoid"]
# What `int8` leaves in float32 everywhere: the classifier; products, whose factors MXNet wants to
# be of one type, and which gates have.
KEPT = ["_sg_mkldnn_fully_connected", "FullyConnected", "elemwise_mul"]
TRUE = ("True", "true", "1")  # as graphs in JSON say it


def to_json(symbol: mx.sym.Symbol) -> str:
    """The symbol as JSON; `Symbol.tojson` by itself leaves out the casts to bfloat16 and back."""
    return symbol.tojson(remove_amp_cast=False)


def with_preprocessing(
    symbol: mx.sym.Symbol,
    arguments: Arrays,
    statistics: Arrays,
    mean: Sequence[float],
    std: Sequence[float],
) -> Graph:
    """The graph for images in 0..255, which it normalises itself: (data - mean) / std.

    It does so by a batch normalisation with fixed statistics, which every runtime knows, infers
    the shapes of and translates to ONNX.

    Args:
        mean, std: of each channel, 0 to 255.
    """
    data = mx.sym.BatchNorm(
        mx.sym.var("data"), name=PREPROCESS, eps=EPS, fix_gamma=False, use_global_stats=True
    )
    means, variances = np.asarray(mean, np.float64), np.asarray(std, np.float64) ** 2
    gamma = np.sqrt(variances + EPS) / std
    learned = {f"{PREPROCESS}_gamma": gamma, f"{PREPROCESS}_beta": np.zeros_like(means)}
    fixed = {f"{PREPROCESS}_moving_mean": means, f"{PREPROCESS}_moving_var": variances}
    return symbol(data=data), {**arguments, **_arrays(learned)}, {**statistics, **_arrays(fixed)}


def bfloat16(symbol: mx.sym.Symbol, arguments: Arrays, statistics: Arrays) -> Graph:
    """The graph that computes in bfloat16 from its first convolution to the pooled features.

    Images and logits are float32; the convolutions' weights become bfloat16 arrays. Cast in the
    graph instead, they would be cast, laid out and folded anew with every batch.
    """
    # MXNet's backend would fold weights that are bfloat16 by then, and cut off what it should
    # round: on 50 layers that costs ten times the error.
    symbol, arguments, statistics = _folded(symbol, arguments, statistics)
    symbol = amp.convert_symbol(
        symbol,
        "bfloat16",
        target_dtype_ops=["Convolution"],
        fp32_ops=FLOAT32,
        conditional_fp32_ops=[],
        data_names=["data"],
        cast_optional_params=True,
    )
    types, _, _ = symbol.infer_type(data="float32")
    arguments = {
        name: mx.nd.amp_cast(arguments[name], dtype=dtype)
        for name, dtype in zip(symbol.list_arguments(), types)
        if name in arguments
    }
    return symbol, arguments, statistics


def int8(symbol: mx.sym.Symbol, arguments: Arrays, statistics: Arrays, images: np.ndarray) -> Graph:
    """The fused graph that computes in 8 bits between its first convolution and the classifier.

    Those two stay float32, as do the sums that MXNet adds up wrongly (`_mixed_sums`).

    Args:
        images: (N, C, H, W) float32 as the graph takes them. The ranges of the layers' outputs are
            those seen with these images, so they should be like those to come.

    Raises:
        UserError: there are no images.
    """
    if not len(images):
        raise UserError("int8 takes the ranges of its layers from images, and there are none")
    symbol = _apart(symbol).get_backend_symbol("MKLDNN_QUANTIZE")
    ranges = _ranges(symbol, {**arguments, **statistics}, images)
    nodes = json.loads(symbol.tojson())["nodes"]
    stem = next(i for i, node in enumerate(nodes) if node["op"] == "_sg_mkldnn_conv")
    kept = [node["name"] for node in nodes[: stem + 1] if node["op"] != "null"]
    kept += _mixed_sums(nodes, ranges)
    options = {"quantized_dtype": "auto", "logger": None}
    symbol, _, _, _ = quantization.quantize_graph(
        symbol,
        arguments,
        statistics,
        ctx=mx.cpu(),
        excluded_sym_names=kept,
        excluded_op_names=KEPT,
        calib_mode="none",
        quantize_mode="smart",
        **options,
    )
    collector = SimpleNamespace(min_max_dict=ranges)
    symbol, arguments, statistics = quantization.calib_graph(
        symbol, arguments, statistics, collector, calib_mode="naive", **options
    )
    return symbol.get_backend_symbol("MKLDNN_QUANTIZE"), arguments, statistics


# What has a graph compute in each precision (`PRECISIONS`), given images as the graph takes them.
IN: dict[str, Callable[[Graph, np.ndarray], Graph]] = {
    "bfloat16": lambda graph, images: bfloat16(*graph),
    "int8": lambda graph, images: int8(*graph, images),
}


def with_softmax(symbol: mx.sym.Symbol, arguments: Arrays, statistics: Arrays) -> Graph:
    """The graph whose output is probabilities rather than logits."""
    return mx.sym.softmax(symbol, name="probabilities"), arguments, statistics


def fused(symbol: mx.sym.Symbol, arguments: Arrays, statistics: Arrays) -> Graph:
    """The graph as MXNet's MKLDNN backend fuses it, convolutions with what follows them.

    `optimize_for` would do the same but for some units: it looks up the shapes of the inputs, whose
    order fusing changes, in the order from before.
    """
    return _apart(symbol).get_backend_symbol("MKLDNN"), arguments, statistics


# -- Graphs as JSON --------------------------------------------------------------------------------


def _readers(graph: dict) -> list[list[dict]]:
    """Of each node, what reads it: nodes, and the graph's output."""
    readers: list[list[dict]] = [[] for _ in graph["nodes"]]
    for node in (*graph["nodes"], {"op": "output", "inputs": graph["heads"]}):
        for source, *_ in node["inputs"]:
            readers[source].append(node)
    return readers


def misfolded(graph: dict) -> list[tuple[int, list[dict]]]:
    """The index of each convolution that MXNet's backend folds wrongly, and the nodes that read it.

    It folds a batch normalisation into the convolution before it, also where others read that
    convolution, which then read what is normalised already.
    """
    return [
        (index, readers)
        for index, readers in enumerate(_readers(graph))
        if graph["nodes"][index]["op"] == "Convolution"
        and len(readers) > 1
        and any(reader["op"] == "BatchNorm" for reader in readers)
    ]


def _apart(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """The same computation, safe for MXNet's backend.

    What would be folded wrongly is read through an operator that does nothing.
    """
    graph = json.loads(to_json(symbol))
    for index, readers in misfolded(graph):
        for reader in readers:
            _redirect(reader["inputs"], {index: len(graph["nodes"])})
        # The backend would remove a `_copy`.
        name = f"{graph['nodes'][index]['name']}_apart"
        graph["nodes"].append({"op": "BlockGrad", "name": name, "inputs": [[index, 0, 0]]})
    return mx.sym.load_json(json.dumps(graph))


def _folded(symbol: mx.sym.Symbol, arguments: Arrays, statistics: Arrays) -> Graph:
    """The graph with every batch normalisation folded into the convolution that only it reads."""
    graph, values = json.loads(to_json(symbol)), {**arguments, **statistics}
    nodes, readers, folded = graph["nodes"], _readers(graph), {}
    for index, norm in enumerate(nodes):
        if norm["op"] != "BatchNorm":
            continue
        (source, *_), *learned = norm["inputs"]
        conv = nodes[source]
        if conv["op"] != "Convolution" or len(conv["inputs"]) > 2 or len(readers[source]) > 1:
            continue
        names = [nodes[i]["name"] for i, *_ in (conv["inputs"][1], *learned)]
        weight, gamma, beta, mean, var = (
            values[name].asnumpy().astype(np.float64) for name in names
        )
        attrs = norm["attrs"]
        if attrs.get("fix_gamma", "True") in TRUE:
            gamma = np.ones_like(gamma)
        gamma = gamma / np.sqrt(var + float(attrs.get("eps", 1e-3)))
        values.update(
            _arrays({names[0]: weight * gamma[:, None, None, None], names[2]: beta - mean * gamma})
        )
        conv["attrs"]["no_bias"] = "False"
        conv["inputs"].append(learned[1])  # what was its beta is now a bias
        folded[index] = source
    for inputs in (*(node["inputs"] for node in nodes), graph["heads"]):
        _redirect(inputs, folded)
    symbol = mx.sym.load_json(json.dumps(graph))
    return (
        symbol,
        {name: values[name] for name in symbol.list_arguments() if name in values},
        {name: values[name] for name in symbol.list_auxiliary_states()},
    )


def _redirect(inputs: list, targets: Mapping[int, int]) -> None:
    """Has entries of a JSON graph read the nodes that others are to be replaced by."""
    for entry in inputs:
        entry[0] = targets.get(entry[0], entry[0])


# -- Calibration -----------------------------------------------------------------------------------


def _ranges(
    symbol: mx.sym.Symbol, arrays: Arrays, images: np.ndarray
) -> dict[str, tuple[float, float]]:
    """The least and the largest value that each operator's output takes for `images`, by name."""
    inner = symbol.get_internals()
    inputs = set(symbol.list_inputs())
    names = [name for name in inner.list_outputs() if name not in inputs]
    group = mx.sym.Group([inner[name] for name in names])
    run, extremes = mx.nd.CachedOp(group), []
    for start in range(0, len(images), CALIBRATED):
        given = {**arrays, "data": mx.nd.array(images[start : start + CALIBRATED])}
        outputs = run(*[given[name] for name in group.list_inputs()])
        extremes.append([(out.min().asscalar(), out.max().asscalar()) for out in outputs])
    ends = np.array(extremes)
    least, largest = ends[..., 0].min(axis=0), ends[..., 1].max(axis=0)
    return dict(zip(names, zip(least.tolist(), largest.tolist())))


def _mixed_sums(nodes: list[dict], ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the convolutions that in 8 bits would add the shortcut wrongly.

    A convolution that also adds the shortcut does so in place. Where the one of shortcut and sum is
    uint8 (after a ReLU, so never negative) and the other int8, MXNet takes the bytes for the other
    type's. A pre-activation network's first addition is of that kind.
    """
    names = []
    for node in nodes:
        attrs = node.get("attrs", {})
        if attrs.get("with_sum") in TRUE:
            source, output, _ = node["inputs"][-1]
            name = f"{nodes[source]['name']}_output"
            least, _ = ranges[name if name in ranges else f"{name}{output}"]
            if (least >= 0) != (attrs.get("with_postsum_act") in TRUE):
                names.append(node["name"])
    return names


def _arrays(values: Mapping[str, np.ndarray]) -> dict[str, mx.nd.NDArray]:
    return {name: mx.nd.array(value, dtype="float32") for name, value in values.items()}
