"""Damages pairs in every way that comes to mind, and sees what reading and running them does.

    python -m tests.mutations SYMBOL PARAMS [--count 2000] [--seed 0] [--shape 3,16,16]

reads so many mutants of a pair one after another, runs those that are not refused, and prints what
became of each, as JSON: {"number", "mutation", "size", "outcome", "growth"}. "outcome" is
"refused: ...", "same" or "different" outputs, "mixed" where the first image changes the second's,
or "failed: ..." in MXNet; "size" is how many bytes its files have, and "growth" by how many the
process grew at most. A mutant that ends the process is the one whose number was printed last.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 20  # after which a mutant counts as hanging


def _words(text: str) -> list[str]:
    return text.split()


HOSTILE = (
    *_words("0 -1 1 2 3 7 64 65 100000 1000000000 -1000000000 2147483647 2147483648 4294967296"),
    *_words("9223372036854775807 () (0,) (0,0) (-1,-1) (2,2) (1,1,1) (0,1,2,3) (3,2,1,0) [0,0]"),
    *_words("(100000,100000) (2147483647,2) (1000000000,1000000000) (0,0,0,0) (0,-4,0,-1)"),
    *_words("(-1,10) (0,-1,3) (0,7) (0,-3,-3) (None,None) (0,5) (0,0,-9) None nan inf -inf"),
    *_words("1e400 1e-45 0.0 True False abc float16 int32 int8 bfloat16 always full lp prelu"),
    *_words('NHWC %s%n ../../etc/passwd " \\'),
    *("", " ", "(2, 2)", "1" + 100 * "0", 50 * "(", 100000 * "(", 5000 * "1,"),
    *("\0", "\u00e9", "\n"),
)
OPERATORS = _words("""
    null data Custom _NDArray _Native _CrossDeviceCopy _CachedOp _cond _foreach _zeros _ones _arange
    Embedding RNN Proposal ROIPooling BilinearSampler where Pad Deconvolution UpSampling Crop
    InstanceNorm argmax topk dot tile repeat one_hot _random_normal sgd_update LRN transpose squeeze
    SliceChannel add_n elemwise_div max SoftmaxActivation _contrib_requantize
    Convolution FullyConnected BatchNorm Activation LeakyReLU Pooling Dropout Flatten Reshape
    SwapAxis expand_dims Concat slice slice_axis elemwise_add broadcast_mul _div_scalar mean sum
    softmax SoftmaxOutput Cast amp_cast clip zeros_like BlockGrad _contrib_AdaptiveAvgPooling2D
    _sg_mkldnn_conv _sg_mkldnn_fully_connected _contrib_quantize_v2 _contrib_dequantize
    _contrib_quantized_act _contrib_quantized_pooling _contrib_quantized_flatten
    _contrib_quantized_concat _contrib_quantized_elemwise_add _contrib_quantized_batch_norm
""")
AXES, ENDS = ("0", "1", "-1", "-2", "-3", "-4"), ("1", "2", "-1", "None")
ATTRIBUTES = _words("""
    kernel stride pad dilate num_filter num_group no_bias layout workspace num_hidden flatten axis
    eps pool_type global_pool act_type slope p shape axes dim1 dim2 dim num_args begin end step
    num_outputs scalar dtype output_size nsize mode keepdims quantized with_bn out_grad multi_output
    preserve_shape use_length op_type key a_min out_type min_calib_range
    __shape__ __dtype__ __storage_type__ __init__ __ctx_group__ __anything__
""")


@dataclass(frozen=True)
class Mutant:
    """What was done to a pair, and its files then."""

    mutation: str
    symbol: bytes
    params: bytes


def mutants(symbol: bytes, params: bytes, count: int, seed: int = 0) -> Iterator[Mutant]:
    """`count` mutants of a pair's files; the same for the same seed."""
    places = _places(params)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        mutate = rng.choice(FILES if rng.random() < 0.05 else (_mutate_params, _mutate_symbol))
        name, new_symbol, new_params = mutate(rng, symbol, params, places)
        yield Mutant(name, new_symbol, new_params)


# The parameters: bytes at random, and each field of MXNet's format on its own.


def _places(params: bytes) -> dict[str, list[tuple[int, str]]]:
    """Where each kind of field is, and its `struct` layout."""
    places = {kind: [] for kind in ("count", "magic", "storage", "ndim", "dim", "device", "type")}
    places.update(length=[], name=[], data=[], header=[(0, "Q"), (8, "Q")])
    places["count"].append((16, "Q"))
    (count,), at = struct.unpack_from("<Q", params, 16), 24
    for _ in range(count):
        (ndim,) = struct.unpack_from("<i", params, at + 8)
        dims = struct.unpack_from(f"<{ndim}q", params, at + 12)
        places["magic"].append((at, "I"))
        places["storage"].append((at + 4, "i"))
        places["ndim"].append((at + 8, "i"))
        places["dim"] += [(at + 12 + 8 * axis, "q") for axis in range(ndim)]
        at += 12 + 8 * ndim
        places["device"] += [(at, "i"), (at + 4, "i")]
        places["type"].append((at + 8, "i"))
        size = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8, 12: 2}[params[at + 8]]
        for dim in dims:
            size *= dim
        places["data"].append((at + 12, f"{size}s"))
        at += 12 + size
    places["count"].append((at, "Q"))
    at += 8
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", params, at)
        places["length"].append((at, "Q"))
        places["name"].append((at + 8, f"{length}s"))
        at += 8 + length
    assert at == len(params)
    return places


def _mutate_params(rng, symbol, params, places):
    new, kind = bytearray(params), rng.choice((*places, "bytes", "arrays", "names"))
    if kind == "bytes":
        return f"params: {_damage(rng, new)}", symbol, bytes(new)
    if kind in ("arrays", "names"):  # of two, exchanged
        (one, layout), (other, _) = rng.sample(places["data" if kind == "arrays" else "name"], 2)
        size = min(struct.calcsize(layout), 64)
        new[one : one + size], new[other : other + size] = (
            params[other : other + size],
            params[one : one + size],
        )
        return f"params: {kind} exchanged", symbol, bytes(new)
    at, layout = rng.choice(places[kind])
    size = struct.calcsize(f"<{layout}")
    if layout.endswith("s"):
        for _ in range(rng.choice((1, 1, 1, 8))):
            new[at + rng.randrange(size)] ^= 1 << rng.randrange(8)
        return f"params: bits of a {kind}", symbol, bytes(new)
    (value,) = struct.unpack_from(f"<{layout}", params, at)
    signed = layout.islower()
    limit = 1 << (8 * size - signed)
    choices = (0, 1, 2, 3, 12, value + 1, value - 1, value * 2, value ^ (1 << rng.randrange(31)))
    values = [*choices, -1, 2**31 - 1, 2**31, 10**9, limit - 1, limit // 2, -limit]
    values = [v for v in values if (-limit if signed else 0) <= v < limit and v != value]
    struct.pack_into(f"<{layout}", new, at, rng.choice(values))
    return f"params: a {kind}", symbol, bytes(new)


def _damage(rng, data: bytearray) -> str:
    """Changes bytes with no regard to what they mean."""
    kind = rng.choice(("truncated", "extended", "cut", "repeated", "zeroed", "noise", "bits"))
    at, size = rng.randrange(len(data)), rng.choice((1, 4, 8, 100, 5000))
    if kind == "truncated":
        del data[at:]
    elif kind == "extended":
        data += rng.choice((b"\x00", b" ", b"}", rng.randbytes(size)))
    elif kind == "cut":
        del data[at : at + size]
    elif kind == "repeated":
        data[at:at] = data[at : at + size]
    elif kind == "zeroed":
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif kind == "noise":
        data[at : at + size] = rng.randbytes(len(data[at : at + size]))
    else:
        for _ in range(rng.choice((1, 1, 1, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return kind


# The graph: its text at random, and its parts on their own.


def _mutate_symbol(rng, symbol, params, _places):
    if rng.random() < 0.2:
        new = bytearray(symbol)
        return f"symbol: {_damage(rng, new)}", bytes(new), params
    graph = json.loads(symbol)
    graphs = [graph] + [inner for node in graph["nodes"] for inner in node.get("subgraphs", ())]
    chosen = rng.choice(graphs) if rng.random() < 0.5 else graph
    mutate = rng.choice(GRAPH)
    detail = mutate(rng, chosen)
    text = detail if isinstance(detail, bytes) else json.dumps(graph).encode()
    return f"symbol: {mutate.__name__.strip('_')}", text, params


def _operator(rng, graph):
    return rng.choice([node for node in graph["nodes"] if node["op"] != "null"])


def _attribute(rng, graph):
    nodes = [node for node in graph["nodes"] if node.get("attrs")]
    if not nodes:
        return _new_attribute(rng, graph)
    attributes = rng.choice(nodes)["attrs"]
    attributes[rng.choice(list(attributes))] = rng.choice(HOSTILE)


def _number_in_attribute(rng, graph):
    nodes = [n for n in graph["nodes"] if any(map(_has_digit, n.get("attrs", {}).values()))]
    if not nodes:
        return _new_attribute(rng, graph)
    attributes = rng.choice(nodes)["attrs"]
    key = rng.choice([key for key, value in attributes.items() if _has_digit(value)])
    places = [at for at, letter in enumerate(attributes[key]) if letter.isdigit()]
    at, value = rng.choice(places), attributes[key]
    attributes[key] = value[:at] + rng.choice("0123456789-") + value[at + 1 :]


def _has_digit(text):
    return any(letter.isdigit() for letter in text)


def _new_attribute(rng, graph):
    attributes = rng.choice(graph["nodes"]).setdefault("attrs", {})
    attributes[rng.choice(ATTRIBUTES)] = rng.choice(HOSTILE)


def _no_attribute(rng, graph):
    nodes = [node for node in graph["nodes"] if node.get("attrs")]
    if not nodes:
        return _other_operator(rng, graph)
    attributes = rng.choice(nodes)["attrs"]
    del attributes[rng.choice(list(attributes))]


def _other_operator(rng, graph):
    node = rng.choice(graph["nodes"])
    node["op"] = rng.choice(OPERATORS)


def _replaced_operator(rng, graph):
    """Another operator with attributes that suit it, more or less."""
    node = _operator(rng, graph)
    node["op"], node["attrs"] = copy.deepcopy(
        rng.choice(
            (
                ("Reshape", {"shape": rng.choice(("(0, -1)", "(0, 10)", "(1, -1)", "(0, 2, -1)"))}),
                ("SwapAxis", {"dim1": rng.choice("0123"), "dim2": rng.choice("0123")}),
                ("expand_dims", {"axis": rng.choice(("0", "1", "-1", "-5"))}),
                ("Concat", {"dim": rng.choice("01"), "num_args": str(len(node["inputs"]))}),
                ("slice_axis", {"axis": rng.choice(AXES), "begin": "0", "end": rng.choice(ENDS)}),
                ("slice", {"begin": "(0, 0)", "end": f"({rng.choice(ENDS)}, 1)"}),
                ("slice", {"begin": "(0,)", "end": "(None,)", "step": rng.choice("012")}),
                ("mean", {"axis": rng.choice(("(2, 3)", "0", "()", "(1, 1)", "9"))}),
                ("mean", {"axis": rng.choice(AXES), "keepdims": "True"}),
                ("softmax", {"axis": rng.choice(AXES)}),
                ("Pooling", {"kernel": "(2, 2)", "stride": rng.choice(("(1, 1)", "(0, 0)"))}),
                ("_div_scalar", {"scalar": "0"}),
                ("Cast", {"dtype": rng.choice(("int32", "float16", "float64", "uint8"))}),
                ("_contrib_quantize_v2", {"out_type": "int8"}),
                ("_contrib_AdaptiveAvgPooling2D", {"output_size": rng.choice(("1", "0", "99999"))}),
                ("LeakyReLU", {"act_type": rng.choice(("prelu", "elu", "rrelu", "gelu"))}),
                ("elemwise_add", {}),
                ("broadcast_add", {}),
                ("Flatten", {}),
                ("SoftmaxOutput", {"multi_output": "True"}),
                ("FullyConnected", {"num_hidden": "10", "no_bias": "True"}),
                ("Convolution", {"kernel": "(3, 3)", "num_filter": "16", "num_group": "0"}),
            )
        )
    )


def _index(rng, graph):
    node = _operator(rng, graph)
    if not node["inputs"]:
        return
    entry = rng.choice(node["inputs"])
    values = (-1, 0, 1, 2, rng.randrange(len(graph["nodes"])), len(graph["nodes"]), 2**31, 2**63)
    entry[rng.randrange(3)] = rng.choice((*values, 1.5, "0", None, True, [0], 10**30))


def _rewired(rng, graph):
    """An input from any node before: often a graph that is well formed."""
    index = rng.randrange(1, len(graph["nodes"]))
    if graph["nodes"][index]["inputs"]:
        rng.choice(graph["nodes"][index]["inputs"])[0] = rng.randrange(index)


def _inputs(rng, graph):
    inputs = _operator(rng, graph)["inputs"]
    change = rng.choice(("fewer", "more", "many", "order"))
    if change == "fewer" and inputs:
        inputs.pop(rng.randrange(len(inputs)))
    elif change == "order":
        rng.shuffle(inputs)
    elif inputs:
        inputs += [list(rng.choice(inputs))] * (1 if change == "more" else 10000)


def _name(rng, graph):
    node = rng.choice(graph["nodes"])
    other = rng.choice(graph["nodes"])["name"]
    letter = rng.randrange(len(node["name"]))
    flipped = chr(ord(node["name"][letter]) ^ 1 << rng.randrange(7))
    changed = node["name"][:letter] + flipped + node["name"][letter + 1 :]
    node["name"] = rng.choice((other, changed, changed, "", "x" * 10**6, "\u0000", 7, None, "data"))


def _rows(rng, graph):
    kind = rng.choice(("heads", "arg_nodes", "node_row_ptr", "attrs", "nodes"))
    rows = graph.get(kind)
    values = (None, [], {}, "x", 7, -1, [[0, 0, 0]], [[10**9, 0, 0]], [[0, 10**9, 0]], [[]], [0])
    if isinstance(rows, list) and rows and rng.random() < 0.6:
        row = rng.randrange(len(rows))
        rows[row] = rng.choice((*values, [row, 0, 0], [max(0, row - 1), 0, 0], [row, 1, 0]))
        if rng.random() < 0.3:
            del rows[row]
    elif rng.random() < 0.5:
        graph.pop(kind, None)
    else:
        graph[kind] = rng.choice(
            (*values, {"mxnet_version": ["int", rng.choice((801, 10**9, -1))]})
        )


def _nodes(rng, graph):
    nodes = graph["nodes"]
    one, other = rng.randrange(len(nodes)), rng.randrange(len(nodes))
    change = rng.choice(("exchanged", "copied", "lost", "key", "subgraphs"))
    if change == "exchanged":
        nodes[one], nodes[other] = nodes[other], nodes[one]
    elif change == "copied":
        nodes.insert(other, copy.deepcopy(nodes[one]))
    elif change == "lost":
        del nodes[one]
    elif change == "key":
        nodes[one][rng.choice(("attr", "param", "control_deps", "backward_source_id", "x"))] = [0]
    else:
        nodes[one]["subgraphs"] = rng.choice(([], [graph["heads"]], [{"nodes": []}], [None]))


def _nested(rng, graph):
    text, depth = json.dumps(graph), rng.choice((100, 1000, 100000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    deep = depth * opened + "1" + depth * closed
    return text.replace("[]", deep, 1).encode() if rng.random() < 0.7 else deep.encode()


def _doubled(rng, graph):
    key = rng.choice(('"op":', '"name":', '"inputs":', '"heads":', '"nodes":', '"attrs":'))
    return json.dumps(graph).replace(key, f"{key} null, {key}", 1).encode()


def _encoded(rng, graph):
    encoding = rng.choice(("utf-16", "utf-32", "utf-8-sig"))
    return json.dumps(graph).encode(encoding)


GRAPH = (
    *(_attribute, _attribute, _attribute, _number_in_attribute, _new_attribute, _no_attribute),
    *(_other_operator, _replaced_operator, _replaced_operator, _index, _rewired, _rewired, _inputs),
    *(_name, _rows, _nodes, _nested, _doubled, _encoded),
)


# Whole files.


def _exchanged(_rng, symbol, params, _places):
    return "files exchanged", params, symbol


def _emptied(rng, symbol, params, _places):
    empty = rng.choice((b"", b"{}", b"[]", b"null", struct.pack("<4Q", 0x112, 0, 0, 0)))
    return (
        ("a file emptied", empty, params)
        if rng.random() < 0.5
        else ("a file emptied", symbol, empty)
    )


def _garbage(rng, symbol, params, _places):
    noise = rng.randbytes(rng.choice((1, 31, 32, 1000, 100000)))
    return ("garbage", noise, params) if rng.random() < 0.5 else ("garbage", symbol, noise)


FILES = (_exchanged, _emptied, _garbage)


# What reading and running mutants does, in a process that may end by it.


def outcomes(
    symbol: Path, params: Path, count: int, seed: int = 0, shape=(3, 16, 16)
) -> list[dict]:
    """What became of each mutant of a pair, in one process of its own.

    Raises:
        AssertionError: it ended before the last, by a crash, by hanging, or for want of memory.
    """
    numbers = ",".join(map(str, shape))
    command = [sys.executable, "-m", "tests.mutations", str(symbol), str(params)]
    done = subprocess.run(
        [*command, "--count", str(count), "--seed", str(seed), "--shape", numbers],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        # Kernels that oneDNN keeps for the next pair are no memory that this one asks for.
        env={**os.environ, "DNNL_PRIMITIVE_CACHE_CAPACITY": "0"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = [line for line in lines if "outcome" in line]
    assert len(found) == count, (
        f"ended with {done.returncode} in {lines[-1:]}: {done.stderr[-2000:]}"
    )
    return found


def _run(pair, symbol: Path, images) -> list:
    """The outputs of a pair for images and labels: as it was read, as MXNet's backend fuses that,
    and as MXNet itself loads the file.
    """
    import mxnet as mx

    arguments, states = pair.arrays()
    inputs = {pair.data: mx.nd.array(images), **{name: mx.nd.zeros(2) for name in pair.labels}}
    outputs = []
    for graph in (pair.symbol(), pair.symbol().get_backend_symbol("MKLDNN")):
        arrays = [{**arguments, **states, **inputs}[name] for name in graph.list_inputs()]
        outputs.append(mx.nd.CachedOp(graph)(*arrays).asnumpy())
    executor = mx.sym.load(str(symbol)).simple_bind(
        mx.cpu(),
        grad_req="null",
        **{name: array.shape for name, array in inputs.items()},
    )
    executor.copy_params_from(arguments, states)
    outputs.append(executor.forward(is_train=False, **inputs)[0].asnumpy())
    return outputs


def _memory(field: str) -> int:
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def _main(options) -> None:
    os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"  # an int8 graph is not to be fused once more
    from gluon_resnetv2.errors import UserError
    from gluon_resnetv2.formats.pair import read_pair  # before MXNet, which it prepares

    shape = tuple(int(size) for size in options.shape.split(","))
    images = np.random.RandomState(0).normal(size=(2, *shape))
    others = np.concatenate([1 - images[:1], images[1:]])
    honest = _run(read_pair(options.symbol, options.params, shape), options.symbol, images)
    files = Path(options.symbol).read_bytes(), Path(options.params).read_bytes()
    folder = Path(tempfile.mkdtemp())
    symbol, params = folder / "net-symbol.json", folder / "net-0000.params"
    for number, mutant in enumerate(mutants(*files, options.count, options.seed)):
        print(json.dumps({"number": number, "mutation": mutant.mutation}), flush=True)
        symbol.write_bytes(mutant.symbol)
        params.write_bytes(mutant.params)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest size so far
        before = _memory("VmRSS")
        signal.alarm(SECONDS)
        try:
            pair = read_pair(symbol, params, shape)
            found, outcome = _run(pair, symbol, images), "same"
            if not all(map(np.array_equal, found, honest)):
                again = _run(pair, symbol, others)
                apart = all(
                    np.array_equal(a[1], b[1], equal_nan=True) for a, b in zip(found, again)
                )
                outcome = "different" if apart else "mixed"
        except UserError as error:
            outcome = f"refused: {error}"
        except RuntimeError as error:  # an MXNetError, or what `simple_bind` makes of it
            outcome = f"failed: {error}"
        signal.alarm(0)
        growth = _memory("VmHWM") - before
        size = len(mutant.symbol) + len(mutant.params)
        line = {"number": number, "mutation": mutant.mutation, "size": size}
        line.update(outcome=outcome, growth=growth)
        print(json.dumps(line), flush=True)
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("symbol")
    parser.add_argument("params")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", default="3,16,16")
    _main(parser.parse_args())
