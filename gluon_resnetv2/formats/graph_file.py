"""Graph files: their structure, and the seal by which a pair shows damage without its manifest.

NAME-symbol.json is {"nodes": [{"op", "name", "attrs", "inputs"}, ...], "arg_nodes", "heads",
"node_row_ptr", "attrs"}, where an input is [node, output of it, version] and attributes are text.
Attributes __so__ are hidden: the user's or Gluon's, not the operator's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnetv2.formats.old_graph import VERSION, modern
from gluon_resnetv2.formats.operators import FUSIBLE, OPERATORS, dimensions
from gluon_resnetv2.formats.params_file import NAME, PARAMS_BYTES, TYPES, bare, parse_arrays
from gluon_resnetv2.untrusted import Fault, faults_of, quote, read_bytes, read_json

# The largest graph; resnet1202's has 10 219 nodes. MXNet takes 60 kB for each node.
SYMBOL_BYTES, NODES = 8 << 20, 12_000
SEAL = "__sha256__"  # attribute of the images' variable
HIDDEN = {SEAL} | {  # attributes that graphs of MXNet have
    f"__{name}__"
    for name in (
        *("shape", "dtype", "storage_type", "init", "lr_mult", "wd_mult", "layout", "ctx_group"),
        *("profiler_scope", "force_mirroring", "mirror_stage"),
    )
}
TEXT = re.compile(r"[ -~]{0,4096}")  # MXNet's reader knows no other characters' escapes
VERSIONS = range(10000, 20000)  # of MXNet: since 1.0 graphs have been written like this
KEYS = ({"nodes", "arg_nodes", "heads"}, {"node_row_ptr", "attrs"})  # needed, and possible
NODE_KEYS = ({"op", "name", "inputs"}, {"attrs", "subgraphs"})


@dataclass(frozen=True)
class Node:
    """A node whose parts are what they should be.

    Attributes:
        index: its place among the nodes.
        inputs: [node, output of it, version] of each.
        json: the node in the graph that was read.
        values: its attributes, parsed; "chain": the operators that a fused one stands for.
        outputs: how many it has.
        integers: whether the first of them holds integers.
    """

    index: int
    op: str
    name: str
    inputs: list
    json: dict
    values: dict
    outputs: int = 1
    integers: bool = False


def check_graph(graph: Any, integers: Container[str] = (), inner: bool = False) -> list[Node]:
    """The nodes of a graph that is well formed, of known operators, and without a loop.

    Args:
        graph: what the file's JSON says.
        integers: names of parameters that are integers: by zero, they end the process.
        inner: whether it is the graph that a fused operator stands for.

    Raises:
        Fault: it is none.
    """
    if not _has_keys(graph, KEYS) or not all(isinstance(graph[k], list) for k in KEYS[0]):
        raise Fault("is no MXNet graph: it needs nodes, arg_nodes and heads, and nothing else")
    if len(graph["nodes"]) > NODES:
        raise Fault(f"has {len(graph['nodes'])} nodes; {NODES} are the most that is read")
    nodes: list[Node] = []
    names = set()
    for index, node in enumerate(graph["nodes"]):
        try:
            checked = _check_node(index, node, nodes, integers, inner)
            if checked.name in names:
                raise Fault("has the name of another node")
        except Fault as fault:
            name = quote(node["name"]) if _has_name(node) else "without a name"
            raise Fault(f"is wrong in node {index}, {name}: {fault}") from None
        names.add(checked.name)
        nodes.append(checked)
    _check_rest(graph, nodes)
    return nodes


def free_inputs(nodes: list[Node], names: set[str]) -> tuple[Node, list[str]]:
    """The images' variable, and the names of the labels': what no parameter gives.

    Args:
        names: the parameters'.

    Raises:
        Fault: there are not images, or more than a graph reads is given.
    """
    variables = {node.name: node for node in nodes if node.op == "null"}
    unused = sorted(names - set(variables))
    if unused:
        raise Fault(f"has no variable for the parameter {unused[0]}")
    free = [name for name in variables if name not in names]
    labels = [name for name in free if name.endswith("label")]
    images = [name for name in free if not name.endswith("label")]
    if len(images) != 1:
        listed = ", ".join(images[:5]) or "none"
        raise Fault(f"should have one input that no parameter gives, the images: {listed}")
    return variables[images[0]], labels


def check_hidden(nodes: list[Node], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a Fault where a hidden attribute is unknown, or says what the parameters are not.

    `clean` leaves them out, but others may load the file itself.

    Args:
        arrays: the parameters by name.
    """
    for node in nodes:
        for key, text in _attributes(node.json).items():
            if not _is_hidden(key):
                continue
            if key not in HIDDEN:  # perhaps the seal, were it not for a flipped bit
                raise Fault(f"has an unknown attribute of {node.name}, {quote(key)}")
            if not _is_true(key, text, arrays.get(node.name)):
                raise Fault(f"says {key} = {quote(text)} of {node.name}, which does not fit")


def clean(graph: dict) -> dict:
    """The graph without what inference does not need: MXNet parses some of it."""
    nodes = []
    for node in graph["nodes"]:
        kept = {key: value for key, value in _attributes(node).items() if not _is_hidden(key)}
        if node["op"] == "null":
            kept = {}  # what `mx.sym` leaves of the operator that a variable was made for
        new = {key: node[key] for key in ("op", "name", "inputs")}
        if kept:
            new["attrs"] = kept
        if "subgraphs" in node:
            new["subgraphs"] = [clean(inner) for inner in node["subgraphs"]]
        nodes.append(new)
    kept = {key: graph[key] for key in KEYS[0]}
    return {**kept, "nodes": nodes, "attrs": {"mxnet_version": ["int", VERSION]}}


# -- The seal: a SHA-256 of graph and parameters, in the graph itself ------------------------------


def seal(text: str, params: str | Path) -> str:
    """A graph's JSON with the seal of it and of a .params file, in place of any before.

    MXNet keeps the seal as an attribute of the images' variable and makes no use of it.

    Raises:
        UserError: one of them is damaged, or they are no pair.
    """
    with faults_of(params):
        data = read_bytes(params, PARAMS_BYTES)
        names = set(map(bare, parse_arrays(data)))
    with faults_of("the graph"):
        graph = modern(read_json(text.encode()))
        images, _ = free_inputs(check_graph(graph), names)
    for node in graph["nodes"]:
        _attributes(node).pop(SEAL, None)
    images.json.setdefault("attrs", {})[SEAL] = _digest(graph, data)
    return json.dumps(graph, indent=1)


def check_seal(graph: dict, params: bytes) -> None:
    """Raises a Fault where a checked graph has a seal that is not its own and `params`'."""
    seals = [a[SEAL] for a in map(_attributes, graph["nodes"]) if SEAL in a]
    if seals and seals != [_digest(graph, params)]:
        raise Fault(
            "is damaged or was changed after export: its SHA-256 does not fit it and its parameters"
        )


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


# -- One node --------------------------------------------------------------------------------------


def _attributes(node) -> dict:
    return node.get("attrs", {})


def _is_hidden(key: str) -> bool:
    return len(key) > 4 and key.startswith("__") and key.endswith("__")


def _is_true(key: str, text: str, array: np.ndarray | None) -> bool:
    """Whether a hidden attribute says what there is: an array, or else what takes no integers."""
    if key == "__shape__":
        try:
            said = dimensions(text)
        except ValueError:
            return False
        fits = zip(said, said if array is None else array.shape)
        known = not said or array is None or len(said) == array.ndim
        return known and all(size < 1 or size == found for size, found in fits)
    if key == "__dtype__":
        found = TYPES[0] if array is None else array.dtype
        return text == "-1" or any(text == str(n) and found == TYPES[n] for n in TYPES)
    return key != "__storage_type__" or text in ("-1", "0")  # unknown, or dense


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def _has_keys(value, keys) -> bool:
    needed, possible = keys
    return isinstance(value, dict) and needed <= set(value) <= needed | possible


def _has_name(node) -> bool:
    return isinstance(node, dict) and isinstance(node.get("name"), str)


def _is_entry(entry, nodes) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(map(_is_count, entry))
        and entry[0] < len(nodes)
        and entry[1] < nodes[entry[0]].outputs
    )


def _check_node(index, node, before, integers, inner) -> Node:
    if not _has_keys(node, NODE_KEYS):
        raise Fault("it needs op, name and inputs, and may have attrs and subgraphs")
    op, name, inputs, attributes = node["op"], node["name"], node["inputs"], _attributes(node)
    if not _has_name(node) or not NAME.fullmatch(name):
        raise Fault("its name is not of printable ASCII characters")
    if not isinstance(attributes, dict) or not all(
        isinstance(text, str) and TEXT.fullmatch(text)
        for text in (*attributes, *attributes.values())
    ):
        raise Fault("its attributes are not short texts of printable ASCII characters")
    if inner and any(map(_is_hidden, attributes)):
        raise Fault("it has hidden attributes")
    if not isinstance(op, str) or (op != "null" and op not in OPERATORS):
        raise Fault(f"operator {quote(str(op))} is unknown, or no image classifier's")
    if not isinstance(inputs, list) or not all(_is_entry(entry, before) for entry in inputs):
        raise Fault("it reads what no node before it gives")
    if op == "null":
        if inputs or "subgraphs" in node:
            raise Fault("a variable reads nothing")
        return Node(index, op, name, inputs, node, {}, integers=name in integers)
    operator = OPERATORS[op]
    values = {k: operator.value(k, text) for k, text in attributes.items() if not _is_hidden(k)}
    if ("subgraphs" in node) != operator.fused or (inner and op not in FUSIBLE):
        raise Fault("it is no operator that stands for a graph, or within one")
    if operator.fused:
        values["chain"] = _check_chain(node["subgraphs"])
    if operator.rule:
        operator.rule(values)
    count, outputs, gives, reads = (
        what(values) if callable(what) else what
        for what in (operator.inputs, operator.outputs, operator.integers, operator.quantised)
    )
    if len(inputs) != count:
        raise Fault(f"{op} reads {count} inputs, not {len(inputs)}")
    if any(before[source].op != "null" for source, *_ in inputs[1 : 1 + operator.given]):
        raise Fault(f"{op} has parameters that are computed")
    if not reads and any(before[source].integers and not output for source, output, _ in inputs):
        raise Fault(f"{op} does not read integers")
    return Node(index, op, name, inputs, node, values, outputs, bool(gives))


def _check_chain(subgraphs) -> list[Node]:
    """The operators of a fused one's graph, each of which reads the one before and variables."""
    if not isinstance(subgraphs, list) or len(subgraphs) != 1:
        raise Fault("it should stand for one graph")
    try:
        nodes = check_graph(subgraphs[0], inner=True)
    except Fault as fault:
        raise Fault(f"its graph {fault}") from None
    chain: list[Node] = []
    fresh: list[int] = []
    for node in nodes:
        if node.op == "null":
            fresh.append(node.index)
            continue
        previous = [chain[-1].index] if chain else []
        if [source for source, *_ in node.inputs] != previous + fresh:
            raise Fault("its graph is no chain of operators")
        chain.append(node)
        fresh = []
    if fresh or not chain or subgraphs[0]["heads"][0][0] != chain[-1].index:
        raise Fault("its graph is no chain of operators")
    return chain


def _check_rest(graph, nodes) -> None:
    heads, pointers, about = graph["heads"], graph.get("node_row_ptr", []), graph.get("attrs", {})
    if len(heads) != 1 or not _is_entry(heads[0], nodes):
        raise Fault("should have one output, of one of its nodes")
    read = {source for node in nodes for source, *_ in node.inputs} | {heads[0][0]}
    if len(read) < len(nodes):
        unread = next(node for node in nodes if node.index not in read)
        raise Fault(f"has a node, {unread.name}, that nothing reads")
    if graph["arg_nodes"] != [node.index for node in nodes if node.op == "null"]:
        raise Fault("has other arg_nodes than variables")
    if not isinstance(pointers, list) or not all(map(_is_count, pointers)):
        raise Fault("has a node_row_ptr that is no list of numbers")
    if about != {} and not (
        _has_keys(about, ({"mxnet_version"}, set()))
        and isinstance(about["mxnet_version"], list)
        and about["mxnet_version"][:1] == ["int"]
        and len(about["mxnet_version"]) == 2
        and about["mxnet_version"][1] in VERSIONS
    ):
        raise Fault("was not written by MXNet 1")
