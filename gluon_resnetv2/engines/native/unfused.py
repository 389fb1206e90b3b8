"""What MXNet's oneDNN backend has made of a graph, undone. Imports no framework."""

from __future__ import annotations

Range = tuple[float, float]  # the least and the largest value

CASTS = ("_contrib_quantize_v2", "_contrib_dequantize")  # between float32 and 8 bits
IN_8_BITS = "_contrib_quantized_"
PLAIN = {
    "batch_norm": "BatchNorm",
    "act": "Activation",
    "pooling": "Pooling",
    "concat": "Concat",
    "flatten": "Flatten",
    "elemwise_add": "elemwise_add",
}
KEEPING = ("Activation", "Pooling", "Flatten")  # whose range is that of what they read


def unfused(nodes: list[dict]) -> tuple[list[dict], dict[int, Range]]:
    """The nodes of the float32 graph that a fused or int8 graph was made of; others stay.

    Returns:
        The nodes, and of those that 8 bits hold, by index, the range that they are to hold.
    """
    plain: list[dict] = []
    ranges: dict[int, Range] = {}
    became: list[int] = []  # of each node, which one computes the same

    def add(node: dict, inputs: list[int]) -> int:
        plain.append({**node, "inputs": [[index, 0, 0] for index in inputs]})
        return len(plain) - 1

    for node in nodes:
        op, attrs = node["op"], dict(node.get("attrs", {}))
        # What is further than a node's first output are ends of its range.
        inputs = [became[source] for source, output, *_ in node["inputs"] if not output]
        ends = attrs.pop("min_calib_range", None), attrs.pop("max_calib_range", None)
        if "subgraphs" in node:
            (graph,) = node["subgraphs"]
            given = iter(inputs)
            inner: list[int] = []
            for one in graph["nodes"]:
                read = [inner[source] for source, *_ in one["inputs"]]
                inner.append(next(given) if one["op"] == "null" else add(one, read))
            index = inner[graph["heads"][0][0]]
        elif op in CASTS:
            (index,) = inputs
        elif op.startswith(IN_8_BITS):
            name = PLAIN.get(op.removeprefix(IN_8_BITS), op)
            index = add({**node, "op": name, "attrs": attrs}, inputs)
            if name in KEEPING and inputs[0] in ranges:
                least, largest = ranges[inputs[0]]
                ranges[index] = (max(least, 0) if name == "Activation" else least), largest
        else:
            index = add(node, inputs)
        if None not in ends:
            ranges[index] = float(ends[0]), float(ends[1])
        became.append(index)
    return plain, ranges
