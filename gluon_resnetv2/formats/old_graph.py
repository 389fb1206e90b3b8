"""Graph files of MXNet 0.7 to 0.12, in the form that MXNet 1 writes.

A node had "param" or "attr" for "attrs". Up to 0.8 entries had no version, auxiliary states no
variable, and operators other names. MXNet's loader (src/nnvm/legacy_json_util.cc) makes of them
what is made here.
"""

from __future__ import annotations

import re
from typing import Any

from gluon_resnetv2.untrusted import Fault

VERSION = 10901  # whose graphs MXNet 1.9.1 takes as they are
NAMES = {  # what they are called now
    **dict.fromkeys(("_Plus", "_plus", "_add"), "elemwise_add"),
    **dict.fromkeys(("_Mul", "_mul"), "elemwise_mul"),
    **{f"_{name}Scalar": f"_{name.lower()}_scalar" for name in ("Plus", "Minus", "Mul", "Div")},
    "_RMinusScalar": "_rminus_scalar",
    "ElementWiseSum": "add_n",
    "Softmax": "SoftmaxOutput",
    "broadcast_plus": "broadcast_add",
    "broadcast_minus": "broadcast_sub",
}
# Hidden attributes before they were called __so__, of a node or of its "weight_" and "bias_".
HIDDEN = re.compile(
    "^(ctx_group|lr_mult|wd_mult|force_mirroring|mirror_stage)|"
    "(ctx_group|lr_mult|wd_mult|force_mirroring|mirror_stage)$"
)


def modern(graph: Any) -> Any:
    """What a file's JSON says, as MXNet 1 would say it; any other than an old graph as it is.

    Raises:
        Fault: it is an old graph, and damaged.
    """
    if not _is_old(graph):
        return graph
    try:
        nodes: list[dict[str, Any]] = []
        places: list[int] = []
        for node in graph["nodes"]:
            inputs = [_entry(entry, places) for entry in node["inputs"]]
            op = NAMES.get(node["op"], node["op"])
            if op == "BatchNorm" and len(inputs) == 3:
                for state in ("moving_mean", "moving_var"):
                    inputs.append([len(nodes), 0, 0])
                    nodes.append({"op": "null", "name": f"{node['name']}_{state}", "inputs": []})
            places.append(len(nodes))
            nodes.append({**_rest(node), "op": op, "inputs": inputs, "attrs": _attributes(node)})
        return {
            **{key: value for key, value in graph.items() if key != "node_row_ptr"},
            "nodes": nodes,
            "arg_nodes": [index for index, node in enumerate(nodes) if node["op"] == "null"],
            "heads": [_entry(entry, places) for entry in graph["heads"]],
            "attrs": {"mxnet_version": ["int", VERSION]},
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Fault("is no graph that MXNet wrote, before 1.0 or since") from None


def _is_old(graph) -> bool:
    """Whether it says no version, as none did up to 0.8, or one before 1.0."""
    try:
        kind, version = graph.get("attrs", {}).get("mxnet_version", ("int", 0))
    except (AttributeError, TypeError, ValueError):
        return False
    return kind == "int" and type(version) is int and 0 <= version < 10000


def _entry(entry, places):
    """[node, output, version], or that without version, with the node's new place."""
    source, output, *version = entry
    known = type(source) is int and 0 <= source < len(places)
    return [places[source] if known else source, output, *(version or [0])]


def _rest(node):
    kept = {key: value for key, value in node.items() if key not in ("param", "attr")}
    if kept.get("backward_source_id") == -1:  # it is no operator's backward pass
        del kept["backward_source_id"]
    return kept


def _attributes(node):
    both = {
        key: text
        for place in ("param", "attr", "attrs")
        for key, text in node.get(place, {}).items()
    }
    return {key: text for key, text in both.items() if not HIDDEN.search(key)}
