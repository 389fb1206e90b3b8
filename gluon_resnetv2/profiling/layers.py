"""Which layer each primitive of a training or inference step belongs to.

oneDNN does not know our layers. But MXNet executes a graph's nodes in their order, and the backward
pass in the reverse, so the n-th convolution is that of the n-th node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gluon_resnetv2.profiling.verbose import Primitive

# What oneDNN calls the operators whose executions are counted. What else it does, such as copies
# into another layout, is for the one that comes next.
COUNTED = {
    "Convolution": "convolution",
    "BatchNorm": "batch_normalization",
    "Activation": "eltwise",
    "FullyConnected": "inner_product",
    "elemwise_add": "sum",  # in the forward pass; backward sums are of gradients
}


def layers_of(primitives: Sequence[Primitive], nodes: Sequence[tuple[str, str]]) -> list[str]:
    """The layer of each primitive of one step; "" after the last that is known.

    Args:
        primitives: of one step, in their order.
        nodes: (operator, name) of the graph's nodes, in their order.
    """
    names: dict[str, list[str]] = {kind: [] for kind in COUNTED.values()}
    for op, name in nodes:
        if op in COUNTED:
            names[COUNTED[op]].append(name)
    # The first convolution reads images, of which there is no gradient.
    inner = names["convolution"][1:]
    backward: dict[tuple[str, str], Iterator[str]] = {
        ("convolution", "backward data"): iter(inner[::-1])
    }
    forward: dict[str, Iterator[str]] = {}
    going_back = False
    found, pending = [""] * len(primitives), []
    for number, primitive in enumerate(primitives):
        pending.append(number)
        kind, direction = primitive.kind, primitive.direction
        going_back = going_back or direction.startswith("backward")
        if kind not in names or (kind == "sum" and going_back):
            continue
        if going_back:
            left = backward.setdefault((kind, direction), reversed(names[kind]))
        else:
            left = forward.setdefault(kind, iter(names[kind]))
        layer = next(left, "")
        for one in pending:
            found[one] = layer
        pending = []
    return found
